"""Random calls on every shell: valid and odd actions, seeds, options and requests.

A call holds if it gives an observation of the space and finite rewards in theirs, or if it is
refused by an error of ours and has changed nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from dsrm_agents import make_vec_env
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.baselines.scorer import ScorerVecEnv
from dsrm_agents.hsrl.codebook import Codebook
from dsrm_agents.hsrl.wrappers import SemanticActionWrapper, SemanticVecEnv
from dsrm_agents.serving import Recommender
from kuaisim_gym import Dataset, SessionBatch
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)
from kuaisim_gym.errors import KuaiSimError
from tests.attack.counts import Counts

CALLS = 25  # on one environment
SLOTS = 3
ENGINES = ("numba", "numpy")
OBSERVATIONS = ("state", "dict", "history", "belief")
ACTIONS = ("shares", "scorer", "slate", "discrete", "fusion")
VECTORS = tuple(f"vector {mode.value}" for mode in AutoresetMode)
SHELLS = ("made", "raw", *VECTORS, "sb3", "semantic", "semantic sb3", "scorer sb3")


def random_calls(n: int, seed: int) -> Counts:
    """Makes n calls on environments of every kind, and on a recommender.

    Args:
        n: Number of calls.
        seed: Same seed, same calls.

    Returns:
        What became of them.
    """
    rng, counts = np.random.default_rng(seed), Counts()
    while counts.tried < n:
        for text in _session(rng, min(CALLS, n - counts.tried)):
            counts.note(text)
    return counts


def _session(rng: np.random.Generator, n: int) -> Iterator[str | None]:
    """Calls on one thing drawn: for each a text on what was lost, if anything."""
    if rng.random() < 0.1:
        yield from _requests(rng, n)
        return
    shell = Shell(rng)
    for number in range(n):
        resets = number == 1 or rng.random() < 0.2  # the first call is any, before a reset
        yield shell.reset(rng) if resets else shell.step(rng)


class Shell:
    """One environment of a kind that is drawn, and its ways to reset and to step."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.kind = str(rng.choice(SHELLS))
        options = {
            "engine": str(rng.choice(ENGINES)),
            "observation_type": str(rng.choice(OBSERVATIONS)),
            "action_type": str(rng.choice(ACTIONS)),
            "max_len": int(rng.integers(3, 7)),
            "allow_repeats": bool(rng.random() < 0.2),
        }
        if self.kind.startswith(("semantic", "scorer")):
            options |= {"action_type": "slate", "allow_repeats": False}
        rand = options["action_type"] == "fusion" or rng.random() < 0.3
        env_id = "KuaiRand-Fair-v0" if rand else "KuaiRec-Fair-v0"
        if rand and rng.random() < 0.3 and not self.kind.startswith("scorer"):
            env_id = "KuaiRand-Retention-v0"
        options["dataset"] = small_world(rand)
        self.text = f"{env_id} {self.kind} {options['action_type']} {options['observation_type']}"
        self.env = self._made(env_id, options)
        self.single = self.kind in ("made", "raw", "semantic")
        self.batch: SessionBatch = self.env.unwrapped.batch
        self.action_space: spaces.Space[Any] = getattr(
            self.env, "single_action_space", self.env.action_space
        )
        self.action_space.seed(int(rng.integers(2**31)))

    def _made(self, env_id: str, options: dict[str, Any]) -> Any:
        if self.kind in ("made", "raw", "semantic"):
            env = gym.make(env_id, **options)
            if self.kind == "semantic":
                return SemanticActionWrapper(env, codebook_of(options["dataset"]))
            return env if self.kind == "made" else env.unwrapped
        if self.kind in VECTORS:
            mode = self.kind.removeprefix("vector ")
            return gym.make_vec(env_id, num_envs=SLOTS, autoreset_mode=mode, **options)
        env = make_vec_env(env_id, SLOTS, **options)
        if self.kind == "semantic sb3":
            return SemanticVecEnv(env, codebook_of(options["dataset"]))
        return ScorerVecEnv(env, quota=False) if self.kind == "scorer sb3" else env

    def reset(self, rng: np.random.Generator) -> str | None:
        """Makes a reset, of a seed and of options that are valid or odd."""
        seed, options = _seed(rng), _options(rng)
        if self.kind.endswith("sb3"):
            ways: list[tuple[str, Callable[[], Any]]] = [
                (f"seed({seed!r})", lambda: self.env.seed(seed)),
                (f"set_options({options!r})", lambda: self.env.set_options(options)),
                ("reset()", lambda: self._seen(self.env.reset())),
            ]
            name, call = ways[rng.choice(3, p=(0.2, 0.2, 0.6))]
            return self._judged(name, call)
        if rng.random() < 0.5:
            seed, options = (seed, None) if rng.random() < 0.5 else (None, options)
        return self._judged(
            f"reset(seed={seed!r}, options={options!r})",
            lambda: self._seen(self.env.reset(seed=seed, options=options)[0]),
        )

    def step(self, rng: np.random.Generator) -> str | None:
        """Makes a step of actions that are valid or odd."""
        actions = self.action_space.sample()
        if not self.single:
            actions = np.stack([actions, *(self.action_space.sample() for _ in range(SLOTS - 1))])
        if rng.random() < 0.5:
            actions = _odd(rng, np.asarray(actions))
        return self._judged(f"step({str(actions)[:80]})", lambda: self._step(actions))

    def _step(self, actions: Any) -> None:
        observation, rewards, *_ = self.env.step(actions)
        self._seen(observation)
        low, high = self.batch.reward_space.low, self.batch.reward_space.high
        inside = np.isfinite(rewards) & (low <= rewards) & (rewards <= high)
        assert np.all(inside), f"rewards {rewards} are outside [{low}, {high}]"

    def _seen(self, observation: Any) -> None:
        """Checks that an observation is of the space."""
        space = self.env.observation_space
        if self.kind.endswith("sb3"):
            for row in range(SLOTS):
                one = (
                    {name: column[row] for name, column in observation.items()}
                    if isinstance(observation, dict)
                    else observation[row]
                )
                assert one in space, f"observation {one} is outside the space"
            return
        assert observation in space, f"observation {observation} is outside the space"

    def _judged(self, name: str, call: Callable[[], Any]) -> str | None:
        before = self.batch.snapshot()
        try:
            call()
        except KuaiSimError:
            after = self.batch.snapshot()
            changed = [key for key in before if not np.array_equal(before[key], after[key], True)]
            return f"{self.text}: refused {name} has changed {changed}" if changed else None
        except Exception as error:
            return f"{self.text}: {name} gives {type(error).__name__}: {error}"
        return None


def _requests(rng: np.random.Generator, n: int) -> Iterator[str | None]:
    """Requests to a recommender, valid and odd ones."""
    dataset = small_world(bool(rng.random() < 0.5))
    recommender = recommender_of(dataset)
    users, items = dataset.user_ids, dataset.item_ids[: dataset.n_items]
    usual = recommender.recommend(None)
    for _ in range(n):
        history = [(rng.choice(items).item(), float(rng.random())) for _ in range(3)]
        arguments = [rng.choice(users).item(), history, [], None]
        if rng.random() < 0.7:
            arguments[int(rng.integers(4))] = _odd_request(rng, history)
        try:
            recommender.recommend(*arguments)
        except KuaiSimError:
            again = recommender.recommend(None)
            yield None if again == usual else f"refused {arguments} has changed the recommender"
        except Exception as error:
            yield f"recommend{tuple(arguments)} gives {type(error).__name__}: {error}"
        else:
            yield None


def _odd_request(rng: np.random.Generator, history: list[Any]) -> Any:
    item, response = history[0]
    values = [
        5, "5", -1, 1.5, True, None, [], [[]], {}, {"x": 1}, b"5", np.array(3), np.array([item]),
        np.array([[item, response]]), [item], [(item,)], [(item, response, 1)], [[item], [1, 2]],
        [(item, float("nan"))], [(item, float("inf"))], [(item, 10**400)], [(item, None)],
        [(item, [0.5])], [(item, np.array([0.5, 0.5]))], [(item, 1j)], [(item, "0.5")],
        [(float(item), 0.5)], [(None, 0.5)], [([item], 0.5)], [(-1, 0.5)], [(2**70, 0.5)],
        [(item, -0.1)], [(item, True)], [history], 10**400, float("nan"), float("inf"), 1j,
        object(), [None], [item, None], {item}, (item, item), [item] * 3, "abc", ["abc"],
        [np.str_("a")], np.float64(0.5), np.array([0.5]), [np.datetime64("2020")], {1: 2},
    ]  # fmt: skip
    return values[int(rng.integers(len(values)))]


def _seed(rng: np.random.Generator) -> Any:
    """A seed, or what is none."""
    if rng.random() < 0.4:
        return int(rng.integers(2**40))
    seeds = [
        None, 0, 3, np.int64(3), 2**64 - 1, 2**64 - SLOTS, [1, 2, 3], (4, 5, 6), [1, None, 3],
        [None] * SLOTS, np.arange(SLOTS), np.array(3), np.array([]), np.zeros((SLOTS, 1), int),
        np.ones(SLOTS), np.array([1, None, 2]), -1, 2**64, 2**70, 1.5, 1.0, "a", "abc", b"abc", "",
        True, np.True_, np.float64(3), float("nan"), [1], [1, 2, 3, 4], [], [1, 2, -1],
        [1, 2, "a"], [1, 2, 1.5], [[1], [2, 3], 4], [True] * SLOTS, {}, {"a": 1}, {1, 2, 3},
        range(SLOTS), object(), 1j, np.datetime64("2020"), torch.tensor(3), torch.arange(SLOTS),
        np.ma.masked_array([1, 2, 3], [0, 1, 0]), [2**64, 1, 2], np.array(["a", "b", "c"]),
        np.random.SeedSequence(1), np.timedelta64(3), [np.array(1), 2, 3], iter([1, 2, 3]),
    ]  # fmt: skip
    return seeds[int(rng.integers(len(seeds)))]


def _options(rng: np.random.Generator) -> Any:
    """Options of a reset, or what is none."""
    masks = [
        np.array([True, False, True]), np.ones(SLOTS, bool), np.zeros(SLOTS, bool), [True] * SLOTS,
        np.ones(SLOTS), np.ones(SLOTS + 1, bool), np.ones((SLOTS, 1), bool), np.array(True), "all",
        None, 5, np.ones(SLOTS, object), True, np.array([]), {}, np.ma.masked_array([True] * 3, 1),
        torch.ones(SLOTS, dtype=torch.bool), np.ones(0, bool), [[True], [False, True]],
    ]  # fmt: skip
    mask = masks[int(rng.integers(len(masks)))]
    options = [
        None, {}, {"reset_mask": mask}, {"reset_mask": mask}, {"reset_mask": mask}, 5, [], "", "a",
        {"x": 1}, {5: 1}, {None: 1}, {("a",): 1}, {"reset_mask": mask, "x": 1}, True, 0,
        np.array([1, 2]), np.array(3), {1, 2}, [{}], [{}] * SLOTS, [None] * SLOTS,
        [{"x": 1}] * SLOTS, [5, {}, {}], object(), 1.5, (), [("reset_mask", mask)],
        {b"reset_mask": mask}, {"reset_mask": mask, 5: 1}, torch.ones(2),
        {np.str_("reset_mask"): mask},
    ]  # fmt: skip
    return options[int(rng.integers(len(options)))]


def _odd(rng: np.random.Generator, actions: np.ndarray[Any, Any]) -> Any:
    """Valid actions in another form, or spoiled."""
    if actions.size and rng.random() < 0.4:
        numbers = [float("nan"), float("inf"), -float("inf"), 1.5, -1, -2, 10**6, 2**31, 2**63 - 1]
        spoiled = actions.copy()
        number = numbers[int(rng.integers(len(numbers)))]
        with contextlib.suppress(OverflowError, ValueError):  # an integer can be no NaN
            spoiled.flat[int(rng.integers(actions.size))] = number
        return spoiled if rng.random() < 0.7 else spoiled.tolist()
    loop: list[Any] = []
    loop.append(loop)
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    rows = actions.tolist()
    ragged = [rows, [rows, rows]]
    gradient = torch.zeros(actions.shape, requires_grad=True)
    forms = [
        lambda: rows, lambda: [[1], [2, 3]], lambda: ragged, lambda: loop, lambda: deep,
        lambda: gradient, lambda: torch.as_tensor(actions), lambda: None, lambda: "a",
        lambda: ["a", "b", "c"], dict, lambda: {"a": 1}, set, lambda: b"abc",
        object, list, lambda: [[]], lambda: 3, lambda: 3.5, lambda: True,
        lambda: 2**70, lambda: [2**70] * SLOTS, lambda: 10**400, lambda: iter([1, 2]),
        lambda: actions.astype(np.float64), lambda: actions.astype(np.float16),
        lambda: actions.astype(np.longdouble), lambda: actions.astype(">f4"),
        lambda: actions.astype(">i8"), lambda: actions.astype(np.uint64),
        lambda: np.full(actions.shape, 2**64 - 1, np.uint64), lambda: actions.astype(np.int8),
        lambda: actions.astype(bool), lambda: actions.astype(object), lambda: actions.astype(str),
        lambda: actions.astype("S"), lambda: actions.astype(complex),
        lambda: np.zeros(actions.shape, "M8[s]"), lambda: np.zeros(actions.shape, "m8[s]"),
        lambda: np.zeros(actions.shape, [("a", int), ("b", float)]),
        lambda: np.zeros(actions.shape, np.dtypes.StringDType()), lambda: actions[None],
        lambda: actions[..., None], lambda: actions[..., :-1] if actions.ndim else actions[None],
        lambda: np.asfortranarray(actions), lambda: np.stack([actions, actions], -1)[..., 0],
        lambda: np.ma.masked_array(actions, True), lambda: np.broadcast_to(actions, actions.shape),
        lambda: np.full(actions.shape, None), lambda: np.full(actions.shape, np.nan),
        lambda: np.zeros((0, *actions.shape)), lambda: np.full(actions.shape, 5e-324),
        lambda: [None] * SLOTS, lambda: np.void(b"abc"), lambda: [np.array([1]), np.array([1, 2])],
    ]  # fmt: skip
    return forms[int(rng.integers(len(forms)))]()


@cache
def small_world(rand: bool) -> Dataset:
    """A world that is made in a moment."""
    if rand:
        few = KuaiRandConfig(
            n_users=60, n_items=80, n_categories=4, logged_per_user=20, random_per_user=15
        )
        return synthetic_kuairand(seed=3, config=few)
    config = SyntheticConfig(
        n_users=60, n_test_users=15, n_items=80, events_per_user=20, n_categories=4
    )
    return synthetic_kuairec(seed=3, config=config)


@cache
def codebook_of(dataset: Dataset) -> Codebook:
    """Semantic ids of two tokens, any."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (dataset.n_items, 2))
    return Codebook(rng.normal(size=(2, 4, 9)).astype(np.float32), tokens)


@cache
def recommender_of(dataset: Dataset) -> Recommender:
    """A recommender of a rule, which needs no training."""
    env_id = "KuaiRand-Fair-v0" if dataset.source == "kuairand" else "KuaiRec-Fair-v0"
    options = {"dataset": dataset, "observation_type": "dict", "action_type": "slate"}
    env = make_vec_env(env_id, 2, **options)
    return Recommender(make_reference("filter+quota", env.batch), None, dataset)
