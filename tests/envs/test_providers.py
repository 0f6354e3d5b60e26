"""Providers of a catalogue that changes: what is due to them, who leaves, and a rule for them."""

from __future__ import annotations

import copy
import json
import os
import pickle
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.bands import ProviderControl
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.config import SessionConfig
from kuaisim_gym.data.dataset import Labels
from kuaisim_gym.engine import bits, find_engine
from kuaisim_gym.engine.types import SessionState
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics.newcomers import summarise_newcomers
from kuaisim_gym.metrics.providers import mean_shortfall, provider_gini, reached_share
from kuaisim_gym.metrics.sessions import Sessions
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.lifecycle import Lifecycle, Timetable
from kuaisim_gym.simulator.platform import Platform
from kuaisim_gym.simulator.providers import Ownership, Providers, find_ownership

N = 4
LEAVING = {"leave_below": 0.9, "patience": 1, "promised": 0.5}
DAYS = {"days": (1, 5), "sessions_per_day": 5, "lifetime": 8.0, "initial": 0.6}
OPTIONS: dict[str, Any] = {
    "max_len": 4,
    "slate_size": 5,
    "catalogue": DAYS | {"providers": LEAVING},
}


def begun(dataset, seed: int = 3, **options):
    batch = make_batch(N, dataset.name, dataset=dataset, **(OPTIONS | options))
    batch.seed(seed + np.arange(N))
    batch.reset()
    return batch


def play(batch, seed: int, steps: int, fused: bool = False) -> list[Any]:
    """All that random actions let see, and the platform's accounts."""
    rng, seen = np.random.default_rng(seed), []
    for _ in range(steps):
        batch.action_space.seed(int(rng.integers(2**31)))
        actions = np.array([batch.action_space.sample() for _ in range(N)])
        if fused:
            result = batch.play(actions)[0]
            if result.done.any():
                batch.renew(result.done)
        else:
            result = batch.step(actions)
            batch.reset(result.done)
        seen += [*result, batch.observe(), batch.info()["available"]]
        if batch.platform.providers is not None:
            seen += [batch.platform.providers.due, batch.platform.providers.left]
    return seen


def assert_alike(first: list[Any], second: list[Any]) -> None:
    assert len(first) == len(second)
    for left, right in zip(first, second, strict=True):
        if isinstance(left, dict):
            assert_alike(list(left.values()), list(right.values()))
        else:
            np.testing.assert_array_equal(left, right)


def state_of(n_sessions: int, n_items: int, longest: int, k: int) -> SessionState:
    arrays = dict.fromkeys(SessionState._fields, np.zeros(n_sessions, dtype=np.int64))
    arrays["exposed"] = np.zeros((n_sessions, bits.width(n_items)), dtype=np.uint8)
    arrays["slates"] = np.zeros((n_sessions, longest, k), dtype=np.int32)
    return SessionState(**arrays)


class Days:
    """A platform of two sessions a day with slates of two, whose midnights come when called."""

    def __init__(self, table: Timetable, labels: list[int], engine: str = "numpy", **settings):
        n_items = len(labels)
        known = Catalogue(np.zeros((n_items, 2), dtype=np.float32), np.ones(n_items, dtype=int))
        lifecycle = Lifecycle(days=(1, 4), sessions_per_day=2, providers=settings)
        names = tuple("ABCDEFG"[: max(labels) + 1])
        owners = Ownership(lifecycle.providers, names, np.array(labels), None)
        config = SessionConfig(max_len=2, slate_size=2, window=2)
        self.state = state_of(2, n_items, 2, 2)
        self.platform = Platform(table, lifecycle, known, 2, config, find_engine(engine), owners)
        self.platform.arrive(self.state, np.array([0, 1]))

    def show(self, *slates: tuple[int, int]) -> None:
        """Shows a slate to both sessions, and lets the next day begin."""
        self.state.steps[:] = 1
        everyone = np.ones(2, dtype=bool)
        self.platform.show(self.state, np.array(slates), np.ones((2, 2), dtype=bool), everyone)
        self.platform.arrive(self.state, np.array([0, 1]))

    @property
    def items(self) -> list[int]:
        return np.flatnonzero(self.platform.available).tolist()

    @property
    def left(self) -> str:
        return "".join(np.array(list(self.platform.providers.names))[self.platform.providers.left])


@pytest.mark.parametrize("engine", ["numpy", "numba"])
def test_a_provider_leaves_after_two_neglected_days_by_hand(engine: str) -> None:
    # A has items 0 and 1, B 2, C 3, and D 4 and 5, of which 5 comes on day 3.
    table = Timetable(np.array([0, 0, 0, 0, 0, 3]), np.full(6, 9))
    days = Days(table, [0, 0, 1, 2, 3, 3], engine, leave_below=0.5, patience=2)
    providers = days.platform.providers
    np.testing.assert_array_equal(providers.due, np.full(4, 0.25))
    days.show((0, 2), (0, 1))
    assert days.platform.day == 2 and days.left == "" and days.items == [0, 1, 2, 3, 4]
    days.show((0, 2), (0, 3))  # C is shown, D neglected again
    assert days.platform.day == 3 and days.left == "D" and days.items == [0, 1, 2, 3]
    np.testing.assert_allclose(providers.due, [1 / 3, 1 / 3, 1 / 3, 0])
    assert bits.unpack(days.state.exposed, 6)[:, 4:].all()  # new sessions cannot be shown them
    assert days.platform.timetable.gone.tolist() == [9, 9, 9, 9, 3, 3]
    days.show((0, 1), (0, 1))
    assert days.left == "D"
    days.show((0, 1), (0, 1))  # the second such day of B and C, and the platform's last
    assert days.platform.day == 1 and days.left == "" and days.items == [0, 1, 2, 3, 4]
    record = providers.days
    assert record.day.tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(record.reached, [2 / 4, 3 / 4, 1 / 3, 1 / 3])
    np.testing.assert_allclose(record.shortfall, [2 / 4, 1 / 4, 2 / 3, 2 / 3])
    np.testing.assert_allclose(record.gini, [10 / 16, 6 / 16, 2 / 3, 2 / 3])
    assert record.left.tolist() == [0, 1, 1, 1]
    np.testing.assert_allclose(record.left_share, [0, 1 / 4, 1 / 4, 1 / 4])
    days.platform.open()
    assert providers.days.day.size == 0


def test_days_without_items_or_exposures_do_not_count() -> None:
    # B's only item is not there on day 2; nothing is shown on day 3.
    table = Timetable(np.array([0, 0, 1, 3]), np.array([9, 9, 2, 9]))
    days = Days(table, [0, 0, 1, 1], leave_below=0.5, patience=2)
    days.show((0, 1), (0, 1))
    assert days.platform.providers.due.tolist() == [1.0, 0.0]
    days.show((0, 1), (0, 1))
    days.platform.arrive(days.state, np.array([0, 1]))
    assert days.platform.day == 4 and days.left == ""
    # A day without exposures neither ends a row nor adds to it.
    days = Days(
        Timetable(np.zeros(3, dtype=int), np.full(3, 9)), [0, 0, 1], patience=2, leave_below=0.5
    )
    days.show((0, 1), (0, 1))
    days.platform.arrive(days.state, np.array([0, 1]))
    assert days.platform.day == 3 and days.left == ""
    days.show((0, 1), (0, 1))
    assert days.platform.day == 4 and days.left == "B"


def test_a_snapshot_knows_who_was_neglected() -> None:
    days, later = (
        Days(
            Timetable(np.zeros(3, dtype=int), np.full(3, 9)), [0, 0, 1], patience=2, leave_below=0.5
        )
        for _ in range(2)
    )
    days.show((0, 1), (0, 1))
    later.platform.restore(days.platform.snapshot())
    later.show((0, 1), (0, 1))
    assert later.platform.day == 3 and later.left == "B"


def test_the_last_providers_stay() -> None:
    table = Timetable(np.zeros(3, dtype=int), np.full(3, 9))
    days = Days(table, [0, 1, 2], leave_below=0.9, patience=1)
    days.show((0, 1), (0, 1))
    assert days.left == "C"
    days.show((0, 0), (0, 0))  # B would leave one item for slates of two
    assert days.left == "C" and days.items == [0, 1]
    # Nor may C leave where A's item does later.
    table = Timetable(np.zeros(3, dtype=int), np.array([4, 9, 9]))
    days = Days(table, [0, 1, 2], leave_below=0.9, patience=1)
    days.show((0, 1), (0, 1))
    assert days.left == "" and days.items == [0, 1, 2]
    # Nor while B's item has not come.
    days = Days(
        Timetable(np.array([0, 3, 0]), np.full(3, 9)), [0, 1, 2], leave_below=0.9, patience=1
    )
    days.show((0, 0), (0, 0))
    assert days.left == "" and days.items == [0, 2]


def test_who_got_least_of_what_is_due_leaves_first() -> None:
    table = Timetable(np.zeros(3, dtype=int), np.full(3, 9))
    days = Days(table, [0, 1, 2], leave_below=0.9, patience=1)
    days.show((0, 0), (0, 1))  # B has one exposure of 4/3 that are due, C none; one can leave
    assert days.left == "C" and days.items == [0, 1]


def test_targets_share_out_what_is_promised() -> None:
    table = Timetable(np.array([0, 0, 0, 0, 2]), np.full(5, 9))
    uniform = Days(table, [0, 0, 0, 1, 2], promised=0.5).platform.providers
    np.testing.assert_allclose(uniform.due, [0.25, 0.25, 0])
    days = Days(table, [0, 0, 0, 1, 2], target="catalogue")
    np.testing.assert_allclose(days.platform.providers.due, [3 / 4, 1 / 4, 0])
    days.show((0, 1), (0, 1))
    np.testing.assert_allclose(days.platform.providers.due, [3 / 5, 1 / 5, 1 / 5])
    for name in ("due", "received", "exposures", "labels", "left"):
        assert not getattr(days.platform.providers, name).flags.writeable


def labelled(small, codes, values: tuple[str, ...]):
    labels = Labels(np.asarray(codes, dtype=np.int32), values)
    return replace(small, item_groups={"author_id": labels, "maker": labels})


def test_providers_are_a_column_s_labels(small) -> None:
    codes = np.arange(small.n_items) % 4
    dataset = labelled(small, codes, ("", "x", "y", "nobody", "z")[:4])
    owners = find_ownership(dataset, Providers(target={"y": 0.3, "x": 0.1}), 0)
    assert len(owners.names) == 3 + np.count_nonzero(codes == 0)  # each without a label its own
    assert (np.array(owners.names)[owners.labels][codes == 2] == "y").all()
    assert owners.shares[owners.labels[codes == 2]].tolist() == [0.3] * np.count_nonzero(codes == 2)
    assert owners.shares.sum() == pytest.approx(0.4)
    batch = begun(dataset, catalogue=DAYS | {"providers": {"target": {"y": 0.3}, "promised": 0.5}})
    accounts = batch.platform.providers
    assert accounts.due[accounts.names.index("y")] == pytest.approx(0.15)
    assert accounts.due.sum() == pytest.approx(0.15)
    features = find_ownership(small, Providers("category"), 0)
    assert len(features.names) == 6


def test_drawn_providers_are_like_the_real_authors(small) -> None:
    big = replace(small, item_groups={})
    first, again = (find_ownership(big, Providers(), 5).labels for _ in range(2))
    assert (first == again).all() and (find_ownership(big, Providers(), 6).labels != first).any()
    sizes = np.bincount(first)
    assert sizes.sum() == small.n_items and sizes.min() >= 1
    assert 0.75 < np.mean(sizes == 1) < 0.97
    heavy = np.bincount(find_ownership(big, Providers(exponent=1.5), 5).labels)
    assert heavy.max() > sizes.max()


@pytest.mark.skipif("KUAISIM_TEST_DATA" not in os.environ, reason="needs the published files")
def test_the_exponent_is_the_real_authors() -> None:
    from scipy.optimize import minimize_scalar
    from scipy.special import zeta

    path = Path(os.environ["KUAISIM_TEST_DATA"]) / "kuairand_sample/video_features_basic_pure.csv"
    header, *rows = path.read_text().splitlines()
    column = header.split(",").index("author_id")
    sizes = np.array(list(Counter(row.split(",")[column] for row in rows).values()))
    assert (sizes.sum(), len(sizes), sizes.max()) == (7_583, 6_510, 26)
    assert np.mean(sizes == 1) == pytest.approx(0.87, abs=0.001)
    assert np.mean(sizes == 2) == pytest.approx(0.11, abs=0.001)

    def surprise(exponent: float) -> float:
        return exponent * np.log(sizes).sum() + len(sizes) * np.log(zeta(exponent))

    likeliest = minimize_scalar(surprise, bounds=(1.1, 8.0), method="bounded").x
    assert Providers().exponent == pytest.approx(likeliest, abs=0.005)


@pytest.mark.parametrize("action", ["shares", "slate"])
@pytest.mark.parametrize("observation", ["state", "dict"])
def test_engines_and_compiled_steps_agree_on_who_leaves(small, action, observation) -> None:
    options = {"action_type": action, "observation_type": observation}
    runs = []
    for engine, fused in (("numpy", False), ("numba", False), ("numba", True)):
        batch = begun(small, engine=engine, **options)
        runs.append(play(batch, 1, 30, fused))
        assert batch.platform.providers.days.left.max() > 0
    assert_alike(runs[0], runs[1])
    assert_alike(runs[0], runs[2])


def test_snapshots_and_copies_know_who_has_left(small) -> None:
    batch = begun(small, action_type="slate", engine="numpy")
    play(batch, 1, 9)
    assert batch.platform.providers.left.any()
    fresh = begun(small, seed=77, action_type="slate", engine="numpy")
    fresh.restore(batch.snapshot())
    copies = [fresh, copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))]
    expected = play(batch, 2, 12)
    for each in copies:
        assert_alike(play(each, 2, 12), expected)
        assert_alike([*each.platform.providers.days], [*batch.platform.providers.days])
    stranger = begun(small, action_type="slate", catalogue=DAYS)
    with pytest.raises(ConfigError, match="catalogue is"):
        stranger.restore(batch.snapshot())


def test_all_shells_see_the_same_departures(small) -> None:
    env_id, options = "KuaiRec-Dynamic-v0", OPTIONS | {"dataset": small}
    single = gym.make(env_id, **options).unwrapped
    batch = make_batch(1, env_id=env_id, **options)
    vector = gym.make_vec(env_id, N, autoreset_mode="SameStep", **options).unwrapped
    sb3 = make_vec_env(env_id, N, seed=3, **options)
    batch.seed([3])
    batch.reset()
    sb3.reset()
    single.reset(seed=3)
    vector.reset(seed=3)
    rng, departed = np.random.default_rng(0), [0, 0]
    for _ in range(40):
        actions = rng.uniform(-1, 1, vector.action_space.shape).astype(np.float32)
        vector.step(actions)
        sb3.step(actions)
        accounts = [env.batch.platform.providers for env in (vector, sb3)]
        assert_alike(*([*each.changing().values()] for each in accounts))
        *_, terminated, truncated, info = single.step(actions[0])
        if terminated or truncated:
            _, info = single.reset()
        batch.reset(batch.step(actions[:1]).done)
        np.testing.assert_array_equal(info["available"], batch.info()["available"][0])
        left = batch.platform.providers.left
        np.testing.assert_array_equal(single.batch.platform.providers.left, left)
        departed = np.maximum(departed, [accounts[0].left.sum(), left.sum()])
    assert departed.min() > 0


def test_items_of_those_who_left_are_shown_to_nobody(small) -> None:
    batch = begun(small, action_type="slate", observation_type="dict")
    rng, departed = np.random.default_rng(0), 0
    for _ in range(30):
        providers = batch.platform.providers
        absent = providers.left[providers.labels]
        departed += absent.sum()
        assert not batch.info()["available"][:, absent].any()
        assert not bits.unpack(batch.observe()["available"], small.n_items)[:, absent].any()
        masks = batch.actions.masks()
        assert not masks[:, :, absent].any()
        slates = np.array([rng.permutation(np.flatnonzero(mask[0]))[:5] for mask in masks])
        batch.reset(batch.step(slates).done)
    assert departed > 0


def test_accounts_alone_change_nothing(small) -> None:
    plain = begun(small, catalogue=DAYS)
    counted = begun(small, catalogue=DAYS | {"providers": {}})
    bare = play(plain, 1, 20)
    seen = [entry for k, entry in enumerate(play(counted, 1, 20)) if k % 12 < 10]
    assert len(bare) == 200
    assert_alike(seen, bare)
    assert "providers" not in plain.platform.lifecycle.settings
    assert not any("providers" in name for name in plain.snapshot())
    assert any("providers" in name for name in counted.snapshot())


def test_metrics_by_hand() -> None:
    due = np.array([0.25, 0.25, 0.5, 0.0])
    counts = np.array([2, 3, 1, 4])  # of 10: 2.5, 2.5 and 5 are due
    assert reached_share(counts, due) == pytest.approx(2 / 3)  # two whole ones of 2.5
    assert mean_shortfall(counts, due) == pytest.approx((0.2 + 0 + 0.8) / 3)
    assert provider_gini(counts) == pytest.approx((-3 - 2 + 3 + 12) / 40)
    # A tenth of an exposure is due, and one at least must be got.
    assert reached_share(np.array([0, 1]), np.array([0.1, 0.1])) == 0.5
    assert np.isnan(reached_share(np.zeros(4, dtype=int), due))
    assert np.isnan(mean_shortfall(counts, np.zeros(4)))
    assert np.isnan(provider_gini(np.zeros(4, dtype=int)))


def test_newcomers_of_those_who_left_are_not_missed() -> None:
    sessions = Sessions(
        length=np.ones(1, dtype=int), rewards=np.zeros((1, 1)), users=np.zeros(1, dtype=np.int32),
        penalised=np.zeros((1, 1), dtype=bool), slates=np.array([[[0, 1]]], dtype=np.int32),
        responses=np.ones((1, 1, 2), dtype=np.float32), popular=np.zeros((1, 1, 2), dtype=bool),
        ages=np.array([[[3, 1]]], dtype=np.int16),
    )  # fmt: skip
    born = np.array([0, 2, 3])
    assert summarise_newcomers(sessions, Timetable(born, np.full(3, 9)))["unseen"] == 0.5
    assert summarise_newcomers(sessions, Timetable(born, np.array([9, 9, 3])))["unseen"] == 0.0


@pytest.mark.parametrize("exponent", [3.49, 2.0])
def test_a_rule_serves_providers_at_little_cost(small, exponent: float) -> None:
    """On the same platform, of whose exposures half is promised."""
    metrics = {}
    due = {"promised": 0.5, "exponent": exponent}
    life = {"days": (1, 10), "sessions_per_day": 60, "lifetime": 20.0, "providers": due}
    for name in ("filter+quota", "filter+providers"):
        env = make_vec_env(
            "KuaiRec-Dynamic-v0", 20, "test", seed=1, dataset=small, action_type="slate",
            max_len=10, slate_size=10, catalogue=life,
        )  # fmt: skip
        sessions = evaluate(make_reference(name, env.batch), env, 400)
        metrics[name] = env.batch.summarise(sessions)
    quota, served = metrics["filter+quota"], metrics["filter+providers"]
    assert served["provider_reached"] > quota["provider_reached"] + 0.15
    assert served["provider_shortfall"] < 0.4 * quota["provider_shortfall"]
    assert served["provider_gini"] < quota["provider_gini"]
    assert served["r_each"] > 0.94 * quota["r_each"]
    assert served["len"] > 0.98 * quota["len"]
    assert served["providers_left"] == 0.0


def test_raised_scores_by_hand(small) -> None:
    batch = begun(small, action_type="slate", catalogue=DAYS | {"providers": {"promised": 0.5}})
    rule = ProviderControl(batch)
    scores = np.random.default_rng(0).normal(size=(N, small.n_items)).astype(np.float32)
    first = np.flatnonzero(batch.platform.available)[: N * 5].reshape(N, 5)
    batch.step(first)
    providers = batch.platform.providers
    n_present = len(np.unique(providers.labels[batch.platform.available]))
    counts = np.bincount(providers.labels[first.ravel()], minlength=len(providers.names))
    owed = np.maximum(0.5 / n_present * 20 + 1 - counts, 0)[providers.labels]
    spread = scores[:, batch.platform.available].std(axis=1)[:, None]
    today = batch.platform.available
    raised = rule.adjusted(scores)[:, today]
    np.testing.assert_allclose(raised, (scores + 0.25 * spread * owed)[:, today], rtol=1e-5)
    assert (rule(scores).sum(axis=1) == 5).all()
    with pytest.raises(ConfigError, match="here it is to nobody"):
        make_reference("filter+providers", begun(small, catalogue=DAYS, action_type="slate"))


def test_providers_can_be_written_down() -> None:
    fields = {"target": {"b": 0.5, "a": 0.25}, "leave_below": 0.5, "patience": 2}
    lifecycle = Lifecycle.of({"providers": fields})
    written = json.loads(json.dumps(lifecycle.settings))
    assert written["providers"]["target"] == fields["target"]
    assert Lifecycle.of(written) == lifecycle and hash(Lifecycle.of(written)) == hash(lifecycle)


@pytest.mark.parametrize(
    ("providers", "message"),
    [
        (3, "providers must be a mapping of some of"),
        ({"colum": "a"}, "A field of providers must be one of .*Did you mean 'column'"),
        ({"column": "maker2"}, "providers.column must be one of .*Did you mean 'maker'"),
        ({"target": "equal"}, "providers.target must be one of"),
        ({"target": {"x": 0.7, "y": 0.7}}, "shares by name of at least 0 that sum to at most 1"),
        ({"target": {}}, "shares by name"),
        ({"target": 0.5}, "shares by name"),
        ({"target": {"x": -0.1, "y": 0.5}}, "shares by name"),
        ({"target": {"w": 0.5}}, "names 'w', but nobody of that name among the 3"),
        ({"promised": 0}, r"providers.promised must be a number in \(0, 1\]"),
        ({"leave_below": 1.5}, r"providers.leave_below must be a number in \(0, 1\]"),
        ({"patience": 0}, "providers.patience must be an integer of at least 1"),
        ({"exponent": 1.0}, r"providers.exponent must be a number in \(1, inf\)"),
    ],
)
def test_what_are_no_providers(small, providers: Any, message: str) -> None:
    dataset = labelled(small, np.arange(small.n_items) % 3 + 1, ("", "x", "y", "z"))
    with pytest.raises(ConfigError, match=message):
        begun(dataset, catalogue=DAYS | {"providers": providers})


def test_a_column_must_name_two_providers(small) -> None:
    nobody = labelled(small, np.zeros(small.n_items), ("", "x"))
    with pytest.raises(ConfigError, match="'maker' names nobody: no item"):
        find_ownership(nobody, Providers("maker"), 0)
    only = labelled(small, np.ones(small.n_items), ("", "x"))
    with pytest.raises(ConfigError, match="'x' of 'maker' provides all items"):
        find_ownership(only, Providers("maker"), 0)
