"""One user at a time: the plain Gymnasium environment."""

from __future__ import annotations

from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.envs.options import check_seed, reset_options
from kuaisim_gym.envs.rows import info_of, row_of
from kuaisim_gym.envs.shared import RENDER_FPS, BatchView
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.registration import registered
from kuaisim_gym.rendering import as_text

RENDER_MODES = ("ansi", "rgb_array", "human")


class KuaiEnv(BatchView, gym.Env):
    """Interactive recommendation of short videos, with fairness-aware abandonment.

    ``KuaiRec-Fair-v0`` and ``KuaiRand-Fair-v0``; ``KuaiRec-v0`` and ``KuaiRand-v0`` are the same
    with ``abandonment="none"``; in ``KuaiRec-Dynamic-v0`` and ``KuaiRand-Dynamic-v0`` the catalogue
    changes.

    ## Description
    A user arrives, is shown slates of K videos, and leaves when patience ("temper") runs out.
    Dull slates cost patience, and so do slates that favour one popularity group: an item is popular
    if it is of the fifth of the catalogue that was shown most. Agents see a state built from a
    popularity-biased log. ``split="train"`` answers as that log does, ``split="test"`` from
    unbiased data: KuaiRec's fully observed small matrix, KuaiRand's uniformly random exposures.

    With ``catalogue="dynamic"`` all sessions are of one platform, whose time is the number of
    sessions that have begun. Items are born, stay for a while and leave; the popular fifth of a day
    is what was shown most on the days before; agents and states know the log of items that were
    there from the start, and the features of all. See
    :class:`~kuaisim_gym.simulator.lifecycle.Lifecycle` for its rates. An item that is not there
    counts as shown before: it is answered by nothing. A reset of all sessions with a seed opens the
    platform anew.

    ## Action Space
    | action_type | Space | Meaning |
    |---|---|---|
    | "shares" (default) | ``Box(-1, 1, (d + G,), float32)`` | weights, and shares of groups |
    | "scorer" | ``Box(-1, 1, (d + 1,), float32)`` | linear scorer of items |
    | "slate" | ``MultiDiscrete([n_items] * K)`` | item positions |
    | "discrete" | ``Discrete(n_items)`` | one item a step, K = 1 |
    | "fusion" | ``Box(-1, 1, (7,), float32)`` | weights of predicted behaviours (KuaiRand) |

    "shares" has d weights and, of each of the G groups (long tail, popular; or ``groups``), a
    component a_g. An item's score is the inner product of the weights with the item's embedding
    (``env.unwrapped.catalogue.item_embedding``: quality, then taste), in which their direction
    alone counts. The K places of the slate are divided in proportion to 1 + a_g, by largest
    remainder, and each group fills its own with its best items that this session has not shown; the
    best of the other groups take over from one that has too few. The zero action divides evenly and
    ranks nothing (by position): what users like has to be learned, and so has the division where
    another one is due.

    "scorer" weighs the d columns of the embedding, each standardised, and standardised
    log-popularity (``env.unwrapped.catalogue.known``), and "fusion" weighs behaviours; they show
    the K best items that this session has not shown. d is 1 + the number of factors of
    :class:`~kuaisim_gym.simulator.factors.PreferenceModel`: 9 in both synthetic worlds. All three
    show items again only when no others are left. For "slate" and "discrete" ``action_masks()``
    marks the items not yet shown, all false when there is none. ``n_items`` is 3,327 (KuaiRec) or
    7,583 (KuaiRand-Pure).

    ## Observation Space
    ``observation_type="state"`` (default): ``Box((m + 4,), float32)`` of

    | Columns | Range | Meaning |
    |---|---|---|
    | m | by ``preference`` | what is known of the user's preference |
    | 1 | [0, 1] | progress: steps over max_len |
    | 1 | [0, 1] | popular share of the exposure window, 0.5 before any exposure, see Episode End |
    | 1 | [0, 1] | last reward |
    | 1 | [0, 1] | mean reward of the session |

    ``env.unwrapped.preference_slice`` names the first m. Of d numbers of an item's embedding
    (quality, then taste) or of a user's preference (level, then taste), they are, with
    ``preference``,

    | preference | m | Meaning |
    |---|---|---|
    | "pooled" (default) | d | response-weighted mean embedding of log and session, in [-10, 10] |
    | "parts" | 4 d + 4 | the same of log and session apart, and of what was shown, with weights |
    | "belief" | 2 d | posterior mean in [-10, 10], then posterior variance in [0, 10] |

    Mean embeddings are standardised over train users. Parts are [log liked mean (d), log shown mean
    (d), session liked mean (d), session shown mean (d), log liked weight, log rows, session liked
    weight, session rows], see :class:`~kuaisim_gym.observation.PooledHistories`. A belief starts
    from what features and log tell of the user, or with ``evidence="session"`` from the features
    alone, and follows every answer, unless ``evidence="log"``; ``preference_slice`` names its mean,
    ``env.unwrapped.batch.encoder.variance_slice`` its variance. An item's score is linear in it,
    see :class:`~kuaisim_gym.simulator.factors.PreferenceModel`. ``observation_type="belief"`` is
    short for "state" with it.

    Temper is hidden. ``observation_type="dict"``:

    | Key | Space | Meaning |
    |---|---|---|
    | "state" | ``Box((m + 4,), float32)`` | as above |
    | "exposed" | ``Box(-1, n_items - 1, (max_len * K,), int32)`` | items shown, -1 padded |
    | "responses" | ``Box(0, 1, (max_len * K,), float32)`` | how they were answered, 0 padded |
    | "available" | ``Box(0, 255, (ceil(n_items / 8),), uint8)`` | today's items |
    | "popular" | ``Box(0, 255, (ceil(n_items / 8),), uint8)`` | today's popular items |

    of which the last two are there where the catalogue changes, as bits
    (:mod:`kuaisim_gym.engine.bits`), and
    with less room where ``max_steps`` is below ``max_len``. Item positions are names, not
    quantities: they are for masking in policies that know it, not for a plain network.

    ``observation_type="history"``, with ``history_len`` H (50), n_all items in log and catalogue
    and B behaviours (1 or 7):

    | Key | Space | Meaning |
    |---|---|---|
    | "items" | ``Box(-1, n_all - 1, (H,), int32)`` | last events, oldest first, -1 padded |
    | "responses" | ``Box(0, 1, (H * B,), float32)`` | how they were answered, event by event |
    | "context" | ``Box(0, 1, (4,), float32)`` | the last four columns above |

    ## Rewards
    Mean of the K responses, in [0, 1]. KuaiRec: a response is Bernoulli with probability
    ``min(watch_ratio, 1)``. KuaiRand: seven behaviours are answered, each Bernoulli, and found in
    ``info["feedback"]``, (K, 7) in the order of ``dataset.behaviours``; a response is the click,
    or what ``reward_weights`` make of them, in [0, 1]. An item shown before in the session gets 0,
    and so does its second place in a slate.

    ``reward="vector"`` gives a (2,) float64 array in its place: the mean response, and 1 less the
    imbalance of the exposure window; a rule of one's own gives what it declares. Both are
    ``env.unwrapped.reward_space``, and change neither patience nor observations, nor
    ``info["session"]``.

    ## Info
    The same keys after each reset and each step:

    | Key | Value | Meaning |
    |---|---|---|
    | "user_id" | int | the user, as the data name it |
    | "slate" | (K,) int64 | ids of the videos shown in this step; -1 after a reset |
    | "slate_responses" | (K,) float32 | how they were answered; 0 after a reset |
    | "feedback" | (K, 7) float32 | KuaiRand: all behaviours |
    | "penalised" | bool | whether the step cost temper by the rule of ``abandonment`` |
    | "session" | dict | ``len``, ``r_each``, ``r_cum``, ``q`` and ``popular_share`` so far |
    | "day" | int | the platform's day, where the catalogue changes |
    | "available" | (n_items,) bool | likewise, today's items |

    Ids are strings where those of the data are. ``env.unwrapped.world`` says whether the world is
    synthetic.

    ## Starting State
    A user drawn uniformly from the split, or from ``users``, with temper ``max_len`` and the logged
    history.

    ## Episode End
    A step costs ``2 - reward`` temper, and one more if the popular share s of the last ``window``
    exposures, once so many were made, has ``|2s - 1| >= ad_bound``. The user leaves
    (``terminated``) when temper < 1, so that E[Len] = (max_len - 1) / (2 - R + q) + 0.5 for mean
    reward R and penalty rate q; up to half a step more where K = 1. ``truncated`` happens at
    ``max_steps`` only.

    With ``groups`` of one's own, a step costs one more if ``sum_g |share_g - target_g| >=
    ad_bound`` over the window; for two groups with equal targets that is ``|2s - 1|``. The
    column of the popular share is then the share of the second of two groups, or half of that
    distance (``env.unwrapped.groups.measure`` names it); ``info`` keeps its keys. Groups that no
    window can serve within the bound are refused unless ``abandonment="none"``.

    ## Arguments
    | Argument | Default | Meaning |
    |---|---|---|
    | ``dataset`` | None | a loaded dataset, a folder of the published files, or None: synthetic |
    | ``dataset_seed`` | 0 | of the synthetic world |
    | ``split`` | "train" | who arrives and who answers: "train" or "test" |
    | ``users`` | None | positions of those of its users who arrive; None: all |
    | ``groups`` | "popularity" | a column such as "category", {column: quantiles}, or labels |
    | ``target`` | "uniform" | shares of the groups: "catalogue", numbers, or numbers by name |
    | ``response_model`` | "factor" | or "sequential" |
    | ``calibration`` | None | "balanced" (KuaiRand's default) or "calibrated" (KuaiRec's) |
    | ``catalogue`` | "fixed" | or "dynamic", or fields of a lifecycle, see Description |
    | ``action_type``, ``observation_type``, ``history_len`` | | see above |
    | ``preference``, ``evidence`` | | see above: "pooled", and all evidence |
    | ``max_len`` | 30 | initial temper T, in steps |
    | ``slate_size`` | 10 | items K in a slate; less if there are under 100; 1 if discrete |
    | ``window`` | None | exposures of the popular share: K; 10 or more if K is 1 or not given |
    | ``ad_bound`` | 0.3 | imbalance from which a step is penalised, in [0, 1] |
    | ``abandonment`` | "imbalance" | "popularity" (popular-heavy windows), "none", or a rule |
    | ``reward`` | "response" | or "vector" (utility, fairness), or a rule, see docs/own_rules.md |
    | ``allow_repeats`` | False | whether an item may be answered again in the session |
    | ``stochastic_response`` | True | responses are drawn; False: their probabilities |
    | ``reward_weights`` | None | weights of the behaviours, by name; None: the first alone |
    | ``step_cost`` | "dissatisfaction" | 2 - reward; or "request", one for any reward |
    | ``correlation`` | 0.0 | what look-alikes in a slate take from each other's probabilities |
    | ``max_steps`` | None | step cap |
    | ``engine`` | "auto" | "numba" where it is installed, or "numpy": the same sessions, slower |
    | ``render_mode`` | None | "ansi", "rgb_array" or "human" |

    ## Version History
    * v0: first version.
    """

    metadata: dict[str, Any] = {"render_modes": list(RENDER_MODES), "render_fps": RENDER_FPS}
    task: ClassVar[str] = "session"

    def __init__(
        self, name: str | None = None, render_mode: str | None = None, **options: Any
    ) -> None:
        if render_mode is not None:
            check_choice("render_mode", render_mode, RENDER_MODES)
        self.render_mode = render_mode
        env_id = options.get("env_id")
        task = (
            options.setdefault("task", self.task) if env_id is None else registered(env_id)["task"]
        )
        if task != self.task and (env_id is None or self.task != KuaiEnv.task):
            raise ConfigError(
                f"{type(self).__name__} fixes its task, {self.task!r}, got {task!r}: "
                "leave it out, or use the class or the id of that task."
            )
        self.batch = make_batch(1, name, **options)
        self.observation_space = self.batch.observation_space
        self.action_space = self.batch.action_space
        self._all: NDArray[np.bool_] = np.ones(1, dtype=bool)
        self._seeded = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Begins a session; arguments and results are Gymnasium's.

        Raises:
            ConfigError: The seed is no seed, or there are options: a reset has none.
        """
        reset_options(options)
        super().reset(seed=None if seed is None else check_seed(seed))
        if seed is None and not self._seeded:
            seed = int(self.np_random.integers(2**63))
        if seed is not None:
            self.batch.seed([seed])
            self._seeded = True
        observation, info = self.batch.renew(self._all)
        self._show()
        return row_of(observation, 0), info_of(info, 0)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Shows a slate; arguments and results are Gymnasium's.

        Raises:
            InvalidActionError: The action is not of the action space.
            ResetNeededError: The session has not begun or is over.
        """
        played = self.batch.play_alone(action)
        self._show()
        return played

    def action_masks(self) -> NDArray[np.bool_]:
        """(m,) bool: choices that lead to items not yet shown, as sb3-contrib's MaskablePPO wants.

        Raises:
            ConfigError: The action type makes no choices.
        """
        return self.batch.actions.masks().reshape(-1)

    def render(self) -> Any:
        """The session so far: text for ``"ansi"``, (H, W, 3) uint8 for ``"rgb_array"``.

        ``"human"`` shows every step in a window by itself.
        """
        if self.render_mode == "ansi":
            return as_text(self.batch.view(0))
        if self.render_mode == "rgb_array":
            return self.drawn().draw(self.batch.view(0))
        return None

    def close(self) -> None:
        """Closes the window, if there is one."""
        self.close_extras()

    def _show(self) -> None:
        if self.render_mode == "human":
            self.drawn().show(self.batch.view(0))


class KuaiRequestEnv(KuaiEnv):
    """Single requests for lists of short videos, rewarded list by list.

    ``KuaiRand-Request-v0``, after KuaiSim's request-level task.

    ## Description
    A user makes ``max_len`` requests and gets a list of K videos for each. Nothing that is shown
    makes the user stay or leave; every request is worth its list alone, and a list of look-alikes
    is worth less. KuaiSim's faults are left behind: probabilities pass one sigmoid, not two, and
    the resemblance of items is a cosine, not a cosine over the dimension.

    ## Action Space
    As :class:`KuaiEnv`: "shares" (default), "scorer", "slate", "discrete" or "fusion".

    ## Observation Space
    As :class:`KuaiEnv`: ``Box((d + 4,), float32)`` by default; a step is a request, and its reward
    that of the list.

    ## Rewards
    The list-wise reward, in [0, 1]: the mean over its items of the share of six behaviours that are
    answered (click, long view, like, comment, forward, follow; hate counts nothing). Six times as
    much is KuaiSim's unnormalised sum. An item's probabilities are first lowered by ``correlation``
    times its mean cosine to the rest of the list, both at least 0.

    ## Info
    As :class:`KuaiEnv`; ``info["session"]`` holds ``len``, ``r_each`` (the average list reward),
    ``r_cum``, ``q``, ``popular_share`` and ``list_reward_max``, and
    :func:`kuaisim_gym.metrics.summarise_requests` gives R-NDCG, R-MRR, coverage and ILD of many
    sessions.

    ## Starting State
    A user drawn uniformly from the split, with the logged history.

    ## Episode End
    ``terminated`` after ``max_len`` requests, for all users alike.

    ## Arguments
    As :class:`KuaiEnv`, with these defaults: ``max_len=20``, ``step_cost="request"``,
    ``abandonment="none"``, ``correlation=0.2``, ``reward_weights`` one for each behaviour but hate.

    ## Version History
    * v0: first version.
    """

    task = "request"


class KuaiRetentionEnv(KuaiEnv):
    """Several sessions of one user, rewarded by how soon the user comes back.

    ``KuaiRand-Retention-v0``, after KuaiSim's cross-session task.

    ## Description
    A user makes ``max_len`` requests, goes, and comes back after some days: the better the session
    was, the sooner. The user's own habit counts too, by how much is logged of the user; in KuaiSim
    it is a random projection. See :class:`~kuaisim_gym.simulator.returns.ReturnModel`, whose
    numbers are assumptions: the public logs do not tell who returned when.

    ## Action Space
    As :class:`KuaiEnv`; "fusion" by default: ``Box(-1, 1, (7,), float32)``, weights of the seven
    behaviours that the platform's own response model, the train simulator's default, predicts. An
    item's score is the weighted sum of its probabilities; the K best unexposed items form the list.

    ## Observation Space
    As :class:`KuaiEnv`, of the running session and with mean responses in the place of rewards,
    and with two more columns of the context: ``Box((d + 6,), float32)`` by default.

    | Columns | Range | Meaning |
    |---|---|---|
    | 1 | [0, 1] | sessions finished over n_visits |
    | 1 | [0, 1] | days away before this session, over 10; 0 before any return |

    ## Rewards
    ``-days / 10`` at the end of a session, with the days until the user comes back, 1 to 10; 0 at
    other steps.

    ## Info
    As :class:`KuaiEnv`; ``info["session"]`` holds, of the episode so far, ``len`` (requests),
    ``r_each`` and ``r_cum`` (of the responses), ``q``, ``popular_share``, and of the sessions that
    are over ``return_time`` (mean days) and ``retention`` (share of returns on the next day).

    ## Starting State
    A user drawn uniformly from the split, with the logged history.

    ## Episode End
    ``truncated`` after ``n_visits`` sessions: the user would go on. Never ``terminated``.

    ## Arguments
    As :class:`KuaiEnv`, with ``n_visits=6`` and these defaults: ``max_len=5`` requests a session,
    ``step_cost="request"``, ``abandonment="none"``, ``action_type="fusion"``. ``max_steps`` cuts
    sessions, not episodes.

    ## Version History
    * v0: first version.
    """

    task = "retention"
