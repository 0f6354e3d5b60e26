"""Episodes for offline reinforcement learning: cut from the log, or recorded from an agent.

:func:`logged_episodes` turns what the platform logged into one-item decisions,
:func:`collect_episodes` records an agent in an environment, and :func:`write_minari` stores either
as a Minari dataset. All three work through one episode at a time.
"""

from __future__ import annotations

import importlib
import json
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.disk import check_free_space, new_folder, storage_error, sweep
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.envs.rows import row_of
from kuaisim_gym.envs.shared import Agent, DrawingAgent, wants_masks
from kuaisim_gym.errors import ConfigError, DataFormatError, StorageError
from kuaisim_gym.observation import PREFERENCES, PreferenceEncoder
from kuaisim_gym.registration import ENVIRONMENTS
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.version import __version__

Arrays = NDArray[Any] | dict[str, NDArray[Any]]
_ASIDE = ".kuaisim-"  # hidden folders are not listed
# Bytes that stay free. HDF5 ends the process where a disk is full, and keeps up to half of them in
# memory until it closes its file; an episode's groups and tables take some thousands, too.
_MARGIN = 1 << 26
_LIBRARIES = {"hdf5": "h5py", "arrow": "pyarrow", "parquet": "pyarrow"}  # by Minari's formats

AnyEnv = gym.Env[Any, Any] | VectorEnv[Any, Any, Any]


@dataclass(frozen=True, eq=False)
class Episode:
    """One session of T steps, as observed by an agent.

    Attributes:
        observations: (T + 1, ...) of the moments before each step and after the last; for
            dictionary observations one such array a key.
        actions: (T, ...) of the steps.
        rewards: (T,) float64.
        terminations: (T,) bool, true where the user left: at the last step or nowhere.
        truncations: (T,) bool, true where the episode was cut although the user stayed.
        seed: Of the reset that began it; ``None`` where that had none.
        log_probs: (T, K) float64, in nats, of the K items of each action, each given the slate's
            earlier ones: exactly what the agent that acted drew them with. ``None`` where it does
            not say.

    Raises:
        DataFormatError: The arrays do not belong to one number of steps, or there is none.
    """

    observations: Arrays
    actions: Arrays
    rewards: NDArray[np.float64]
    terminations: NDArray[np.bool_]
    truncations: NDArray[np.bool_]
    seed: int | None = None
    log_probs: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        steps = len(self.rewards)
        lengths = _lengths(self.actions) | {len(self.terminations), len(self.truncations)}
        lengths |= set() if self.log_probs is None else {len(self.log_probs)}
        observed = _lengths(self.observations)
        if not steps or lengths != {steps} or observed != {steps + 1}:
            raise DataFormatError(
                f"An episode of {steps} rewards needs at least one step, as many actions and "
                f"flags, and one observation more; got lengths {sorted(lengths)} and "
                f"{sorted(observed)} observations."
            )

    def __len__(self) -> int:
        return len(self.rewards)

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        columns = (
            self.observations,
            self.actions,
            self.rewards,
            self.terminations,
            self.truncations,
            *([] if self.log_probs is None else [self.log_probs]),
        )
        return sum(array.nbytes for column in columns for array in _arrays(column))


def logged_episodes(
    dataset: Dataset,
    *,
    max_len: int = 30,
    window: int = 10,
    preference: str = "pooled",
    users: NDArray[np.integer] | None = None,
) -> Iterator[Episode]:
    """Cuts the log of the train users into episodes of discrete actions, a user at a time.

    A step is one logged row: its item is the action, the row's response the reward. The
    observation is that of the environment with ``action_type="discrete"`` and the same ``max_len``,
    ``window`` and ``preference``, for a user whose history is the log before that row: the
    preference goes on over the user's episodes, from the origin, and the context starts over with
    each; of its parts, those of the log are of the rows before the episode. Rows of
    log-only items can be no actions; they enter the preference, like everything that the user
    answered, and are neither steps nor exposures in the window. The last observation of an
    episode is the one right after its last row.

    The log ends nobody's session, so every episode ends truncated. A user's first states rest
    on few rows and are rarer in the environment, where sessions begin with the whole log.

    Args:
        dataset: Whose log; nothing of its test table is read.
        max_len: Steps of the longest episode, at least 1; a step adds ``1 / max_len`` to the
            observed progress.
        window: Exposures over which the popular share is taken, at least 1.
        preference: ``"pooled"`` or ``"parts"``. There is no ``"belief"``: it rests on whole logs,
            so that it would know what the episode's answers will be.
        users: Positions of some train users; all of them by default, ascending.

    Returns:
        The episodes, user by user in the order of time. Observations are (T + 1, d + 4) float32, or
        (T + 1, 4 d + 8) with parts, actions (T,) int64 positions in the catalogue, rewards (T,)
        float64 in [0, 1].

    Raises:
        ConfigError: A number is out of range, an unknown preference or that of a belief, or a user
            is no train user.
    """
    for name, value in (("max_len", max_len), ("window", window)):
        check_whole(name, value, 1)
    if check_choice("preference", preference, PREFERENCES) == "belief":
        raise ConfigError(
            'preference="belief" rests on whole logs, which episodes of the log would foretell: '
            'use "parts" or "pooled", or collect_episodes in an environment that shows the belief.'
        )
    chosen = dataset.train_users if users is None else np.asarray(users)
    strangers = np.setdiff1d(chosen, dataset.train_users)
    if len(strangers):
        raise ConfigError(f"users must be positions of train users; {strangers[0]} is not one.")
    return _cut_log(dataset, max_len, window, preference, chosen)


def _cut_log(
    dataset: Dataset, max_len: int, window: int, preference: str, users: NDArray[np.integer]
) -> Iterator[Episode]:
    """The generator of :func:`logged_episodes`, which checks before the first episode is read."""
    encoder, popular = preference_encoder(dataset), load_catalogue(dataset).popular
    log = dataset.train_log
    starts = log.starts(dataset.n_users)
    response = log.response
    for user in users:
        rows = slice(starts[user], starts[user + 1])
        items, responses = log.items[rows], response[rows].astype(np.float64)
        steps = np.flatnonzero(items < dataset.n_items)
        n_rows, n_before = _rows_seen(steps, max_len)
        preferences = _preferences(encoder, preference, items, responses, n_rows, n_before)
        context = _contexts(popular[items[steps]], responses[steps], max_len, window)
        states = np.column_stack([preferences, context]).astype(np.float32)
        actions, rewards = items[steps].astype(np.int64), responses[steps]
        for begin in range(0, len(steps), max_len):
            length = min(max_len, len(steps) - begin)
            # Each earlier episode of the user has one observation more than it has steps.
            first = begin + begin // max_len
            yield Episode(
                states[first : first + length + 1],
                actions[begin : begin + length],
                rewards[begin : begin + length],
                np.zeros(length, dtype=bool),
                np.arange(length) == length - 1,
            )


def _moments(m: int, max_len: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Steps before each observation of one user's m: of its episode, and of all of them.

    There is one observation more an episode than there are steps.
    """
    moment = np.arange(m + -(-m // max_len))
    return moment % (max_len + 1), moment - moment // (max_len + 1)


def _rows_seen(
    steps: NDArray[np.int64], max_len: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one user's log that precede each observation, and those that precede its episode.

    They are those before the next step's row, and at an episode's end those up to the last step's.
    ``steps`` are the ascending positions of the rows that are steps.
    """
    m = len(steps)
    step, before = _moments(m, max_len)
    ends = (step == max_len) | (before == m)
    n_rows = np.where(ends, steps[before - 1] + 1, steps[np.minimum(before, m - 1)])
    return n_rows, n_rows[np.arange(len(step)) - step]


def _preferences(
    encoder: PreferenceEncoder,
    preference: str,
    items: NDArray[np.integer],
    responses: NDArray[np.float64],
    n_rows: NDArray[np.int64],
    n_before: NDArray[np.int64],
) -> NDArray[np.float32]:
    """(number of observations, width) preferences of one user in them, by :func:`_rows_seen`.

    They rest on the user's logged ``items`` and ``responses``.
    """
    weights = np.stack([responses, np.ones(len(responses))])[: 1 if preference == "pooled" else 2]
    total = np.stack([_running(row[:, None] * encoder.embedding[items]) for row in weights])
    weight = np.stack([_running(row) for row in weights])
    if preference == "parts":  # of the log before the episode, and of the rows in it
        total, weight = (
            np.concatenate([sums[:, n_before], sums[:, n_rows] - sums[:, n_before]])
            for sums in (total, weight)
        )
        return encoder.encode_parts(total.astype(np.float32), weight.astype(np.float32))
    return encoder.encode(total[0, n_rows].astype(np.float32), weight[0, n_rows].astype(np.float32))


def _contexts(
    popular: NDArray[np.bool_], rewards: NDArray[np.float64], max_len: int, window: int
) -> NDArray[np.float64]:
    """(number of observations, 4) contexts, from what all of one user's steps showed and earned."""
    step, before = _moments(len(rewards), max_len)
    earned, shown = _running(rewards), _running(popular.astype(np.float64))
    in_window = np.minimum(step, window)
    share = (shown[before] - shown[before - in_window]) / np.maximum(in_window, 1)
    columns = (
        step / max_len,
        np.where(step > 0, share, 0.5),
        np.where(step > 0, rewards[before - 1], 0.0),
        (earned[before] - earned[before - step]) / np.maximum(step, 1),
    )
    return np.column_stack(columns)


def _running(values: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n + 1, ...) float64: sums of the first 0 to n rows, which float32 would blur."""
    sums = np.zeros((len(values) + 1, *values.shape[1:]))
    np.cumsum(values, axis=0, out=sums[1:])
    return sums


def collect_episodes(
    env: AnyEnv,
    agent: Agent,
    sessions: int,
    *,
    seed: int | None = None,
    deterministic: bool = True,
) -> Iterator[Episode]:
    """Plays whole sessions and records them.

    Every slot of a vector environment contributes equally many (the first ones one more, where
    they do not divide), so that short sessions are not over-represented.

    Args:
        env: A Gymnasium environment or vector environment, of any spaces; it is reset.
        agent: Acts on batches, one row per slot, like a Stable-Baselines3 model. One that draws and
            tells the probabilities of its items (:class:`~kuaisim_gym.envs.shared.DrawingAgent`)
            has them recorded where it is not ``deterministic``.
        sessions: How many to record, at least 1.
        seed: Of the first reset; slot i is seeded ``seed + i``, and the first episode of each slot
            says so. ``None`` for no seed.
        deterministic: True for the agent's best actions, false for drawn ones.

    Returns:
        The episodes, in the order in which they end.

    Raises:
        ConfigError: ``sessions`` is less than 1, or a vector environment does not reset its
            slots by itself.
    """
    if sessions < 1:
        raise ConfigError(f"sessions must be at least 1, got {sessions}.")
    if isinstance(env, gym.Env):
        single = env
        env = SyncVectorEnv([lambda: single], autoreset_mode=AutoresetMode.SAME_STEP)
    mode = env.metadata.get("autoreset_mode")
    if mode not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise ConfigError(
            "collect_episodes needs a vector environment with autoreset_mode SAME_STEP or "
            f"NEXT_STEP, got {mode}."
        )
    return _record(env, agent, sessions, seed, deterministic)


def _record(
    env: VectorEnv[Any, Any, Any],
    agent: Agent,
    sessions: int,
    seed: int | None,
    deterministic: bool,
) -> Iterator[Episode]:
    """The generator of :func:`collect_episodes`."""
    slots = np.arange(env.num_envs)
    quota = sessions // env.num_envs + (slots < sessions % env.num_envs)
    seeds = [None if seed is None else seed + slot for slot in range(env.num_envs)]
    begin = np.zeros(env.num_envs, dtype=np.int64)  # the step at which each slot's session began
    history: dict[int, tuple[Any, ...]] = {}
    observation, _ = env.reset(seed=seed)
    state, step = None, 0
    same_step = env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    masked, inner = wants_masks(agent), cast(Any, env.unwrapped)
    drawing = agent if not deterministic and isinstance(agent, DrawingAgent) else None
    while quota.any():
        masks = {"action_masks": np.stack(inner.call("action_masks"))} if masked else {}
        log_probs: list[Any] = []
        if drawing is not None:
            actions, *log_probs = drawing.draw(observation)
        else:
            actions, state = agent.predict(
                observation, state, begin == step, deterministic=deterministic, **masks
            )
        # Copies: an environment or an agent may use its arrays again.
        observation, actions, log_probs = deepcopy((observation, actions, log_probs))
        following, reward, terminated, truncated, infos = env.step(actions)
        history[step] = (observation, actions, reward, terminated, truncated, *log_probs)
        done = np.asarray(terminated | truncated)
        for slot in np.flatnonzero(done & (quota > 0)).tolist():
            last = row_of(infos["final_obs"] if same_step else following, slot)
            steps = (history[past] for past in range(begin[slot], step + 1))
            observations, acts, rewards, terminations, truncations, *drawn = (
                [row_of(batch, slot) for batch in batches] for batches in zip(*steps, strict=True)
            )
            yield Episode(
                _stack([*observations, last]),
                _stack(acts),
                np.array(rewards, dtype=np.float64),
                np.array(terminations, dtype=bool),
                np.array(truncations, dtype=bool),
                seeds[slot],
                np.array(drawn[0], dtype=np.float64) if drawn else None,
            )
            seeds[slot] = None
            quota[slot] -= 1
        step += 1
        # Under NEXT_STEP one more step, whose action is ignored, resets a finished slot.
        begin[done] = step if same_step else step + 1
        for past in range(min(history), min(int(begin.min()), step)):
            del history[past]
        observation = following


def write_minari(
    dataset_id: str,
    episodes: Iterable[Episode],
    *,
    env: gym.Env[Any, Any] | None = None,
    dataset: Dataset | None = None,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    description: str = "Sessions of short-video recommendation.",
    algorithm_name: str = "unknown",
    author: str = "kuaisim-gym",
    author_email: str | None = None,
    code_permalink: str | None = None,
    data_format: str = "hdf5",
) -> Any:
    """Stores episodes as a local Minari dataset, one at a time.

    The dataset appears under its id when it is complete, and not at all if anything fails; what
    killed exports left is removed by the next. Before each episode the disk must have room for it,
    and 67 MB more. The description ends with the source: its size, whether it is synthetic, and its
    fingerprint. ``infos["log_probs"]`` are the probabilities of the episodes that have them.

    Args:
        dataset_id: ``"name-v0"`` or ``"namespace/name-v0"``.
        episodes: At least one; an iterator is read once, an episode at a time.
        env: An environment of the episodes: its spaces, its dataset, and what
            ``recover_environment()`` makes again. Its options must be names, numbers and paths.
        dataset: Source of the episodes; needed without ``env``, compared with env's otherwise.
        observation_space: Needed without ``env``, refused with it.
        action_space: The same.
        description: Of the episodes.
        algorithm_name: The policy that acted; a logged one is the platform's.
        author: Of the episodes.
        author_email: Address of the author, if any.
        code_permalink: Address of the code that made the episodes, if any.
        data_format: A storage format of Minari's: ``"hdf5"``, ``"arrow"`` or ``"parquet"``.

    Returns:
        The ``minari.MinariDataset``.

    Raises:
        ConfigError: Minari, or what it needs for the format, is missing; the format is unknown;
            the id is malformed or taken; ``env`` cannot be written down or has another dataset;
            spaces or the dataset are missing; there is no episode.
        DataFormatError: An episode is not of the spaces.
        DiskSpaceError: The disk is full, or nearly so.
        StorageError: Minari's folder cannot be written for another reason.
    """
    minari, storage = _minari(data_format)
    if env is not None:
        if observation_space is not None or action_space is not None:
            raise ConfigError("env already has spaces: pass env or the spaces, not both.")
        observation_space, action_space = env.observation_space, env.action_space
        dataset = _source(env, dataset)
    if dataset is None or observation_space is None or action_space is None:
        raise ConfigError("Without env, dataset, observation_space and action_space are needed.")
    metadata = {
        **_origin(minari, dataset_id, dataset, description),
        "algorithm_name": algorithm_name,
        "author": {author},
    }
    if author_email is not None:
        metadata["author_email"] = {author_email}
    if code_permalink is not None:
        metadata["code_permalink"] = code_permalink
    with _new_folder(minari, dataset_id) as folder:
        store = storage.new(
            folder / "data",
            observation_space=observation_space,
            action_space=action_space,
            env_spec=None if env is None else _bounded(env),
            data_format=data_format,
            jpeg_encoding=False,
        )
        store.update_metadata(metadata)
        checked = _with_room(folder, episodes)
        store.update_episodes(_buffers(minari, checked, observation_space, action_space))
        if not store.total_episodes:
            raise ConfigError("A Minari dataset needs at least one episode, got none.")
    return minari.load_dataset(dataset_id)


def _origin(minari: Any, dataset_id: str, dataset: Dataset, description: str) -> dict[str, Any]:
    """Metadata of a Minari dataset that say where its episodes are from."""
    return {
        "dataset_id": dataset_id,
        "minari_version": minari.__version__,
        "description": (
            f"{description} Source: {dataset.description}; fingerprint {dataset.fingerprint}."
        ),
        "requirements": [f"kuaisim-gym=={__version__}"],
        "source": {key: getattr(dataset, key) for key in ("name", "synthetic", "fingerprint")},
    }


@contextmanager
def _new_folder(minari: Any, dataset_id: str) -> Iterator[Path]:
    """A hidden folder that gets the dataset's name when the block ends without an error.

    Each export has one of its own with a lock, by which those of killed exports are known.
    """
    try:
        namespace = minari.dataset.minari_dataset.parse_dataset_id(dataset_id)[0]
    except (ValueError, TypeError) as error:  # the latter where it has no version
        raise ConfigError(
            f'dataset_id must read like "name-v0" or "namespace/name-v0", got {dataset_id!r}.'
        ) from error
    try:
        root: Path = minari.storage.get_dataset_path()
    except OSError as error:  # it makes the folder
        raise storage_error(Path(error.filename), error) from error
    target = root / dataset_id
    occupied = ConfigError(
        f"There is already something at {target}: choose another id than {dataset_id!r}, or "
        "delete it with minari.delete_dataset."
    )
    sweep(root, _ASIDE)
    if target.exists():
        raise occupied
    try:
        with new_folder(target, aside=root / f"{_ASIDE}{uuid.uuid4().hex}") as folder:
            yield folder
            if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
                minari.namespace.create_namespace(namespace)
            if target.exists():
                raise occupied
    except StorageError as error:
        if target.exists():
            raise occupied from error
        raise


def _minari(data_format: str) -> tuple[Any, Any]:
    """Minari and its storage class, imported only where they are used."""
    library = _LIBRARIES[check_choice("data_format", data_format, _LIBRARIES)]
    try:
        # Minari 0.5.4, dataset/_storages/hdf5_storage.py:11 and arrow_storage.py:11, imports Pillow
        # in every format, and declares it for none.
        for needed in (library, "PIL"):
            importlib.import_module(needed)
        minari = importlib.import_module("minari")
    except ImportError as error:
        raise ConfigError(
            'Minari datasets need minari: pip install "kuaisim-gym[minari]".'
        ) from error
    return minari, importlib.import_module("minari.dataset.minari_storage").MinariStorage


def _source(env: gym.Env[Any, Any], dataset: Dataset | None) -> Dataset:
    """The dataset of an environment whose specification can be stored."""
    try:
        source = env.get_wrapper_attr("dataset")
    except AttributeError as error:
        raise ConfigError(f"env must be one of {list(ENVIRONMENTS)}.") from error
    try:
        json.dumps(None if env.spec is None else env.spec.kwargs)
    except TypeError as error:
        raise ConfigError(
            "This environment cannot be written down: make it with gymnasium.make and "
            "dataset=<folder> instead of a Dataset, or pass its dataset and spaces without env."
        ) from error
    if not isinstance(source, Dataset) or (dataset and dataset.fingerprint != source.fingerprint):
        raise ConfigError("The environment's dataset is another than the episodes' one.")
    return source


def _bounded(env: gym.Env[Any, Any]) -> EnvSpec | None:
    """The specification, with a step limit that no session reaches where it has none.

    Readers of Minari datasets, d3rlpy among them, need one. An id can have none: how long sessions
    get is a matter of its options.
    """
    spec = env.spec
    if spec is None or spec.max_episode_steps is not None:
        return spec
    longest: int = env.get_wrapper_attr("batch").longest
    return replace(spec, max_episode_steps=longest + 1)


def _with_room(folder: Path, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """The episodes, for each of which the disk of a folder has room."""
    check_free_space(folder, _MARGIN)
    for episode in episodes:
        check_free_space(folder, episode.nbytes + _MARGIN)
        yield episode


def _buffers(
    minari: Any,
    episodes: Iterable[Episode],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
) -> Iterator[Any]:
    """Episodes as Minari's buffers; the first step of each is checked against the spaces."""
    for number, episode in enumerate(episodes):
        for name, arrays, space in (
            ("observations", episode.observations, observation_space),
            ("actions", episode.actions, action_space),
        ):
            if not space.contains(row_of(arrays, 0)):
                raise DataFormatError(f"Episode {number}: its {name} are not of {space}.")
        yield minari.data_collector.EpisodeBuffer(
            seed=episode.seed,
            observations=episode.observations,
            actions=episode.actions,
            rewards=episode.rewards,
            terminations=episode.terminations,
            truncations=episode.truncations,
            infos=None if episode.log_probs is None else {"log_probs": episode.log_probs},
        )


def _arrays(arrays: Arrays) -> Iterable[NDArray[Any]]:
    return arrays.values() if isinstance(arrays, dict) else [arrays]


def _lengths(arrays: Arrays) -> set[int]:
    return {len(array) for array in _arrays(arrays)}


def _stack(rows: list[Any]) -> Any:
    """Stacks rows: the inverse of :func:`row_of`."""
    if isinstance(rows[0], dict):
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    return np.stack(rows)
