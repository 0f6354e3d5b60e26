from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from benchmarks.agents.references import AGENTS, ROWS
from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.bands import Band, InBand, ProviderControl, Quota
from dsrm_agents.baselines.reference import (
    CEILING,
    REFERENCES,
    SCORES,
    ReferencePolicy,
    make_reference,
)
from dsrm_agents.baselines.rules import RuleAgent
from kuaisim_gym.data import BehaviourLog
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import summarise


def play(dataset, name: str, sessions: int = 300, slots: int = 300) -> dict[str, float]:
    env = make_vec_env("KuaiRec-Fair-v0", slots, "test", 5, dataset=dataset, action_type="slate")
    return summarise(
        evaluate(make_reference(name, env.batch), env, sessions), env.catalogue.popular
    )


@pytest.mark.parametrize("source", ["world", "real"])
def test_the_rows_stand_in_their_order(source: str, request) -> None:
    dataset = request.getfixturevalue(source)
    names = [row.name for row in AGENTS if row.name in ROWS and row.suits(dataset)]
    rows = {name: play(dataset, name) for name in names}
    for name, row in rows.items():
        if name.endswith("+quota"):
            assert (row["q"], row["ad"], row["slate_ad"]) == (0, 0, 0)
        if name.endswith("band"):
            assert row["q"] == 0
            assert row["slate_ad"] <= 0.2 + 1e-9
            assert row["len"] > rows[f"{name.partition('+')[0]}+quota"]["len"] - 0.1
        # The ceiling: nobody who is not penalised and knows expected answers does better.
        if not name.startswith("realised"):
            assert row["len"] < rows[CEILING]["len"] + 0.05
    assert rows["random"]["len"] < rows["quality+quota"]["len"]
    assert rows["popularity"]["q"] == 1.0
    assert rows["popularity"]["ad"] == 1.0
    assert rows["train-oracle+quota"]["len"] < rows["expected-oracle+quota"]["len"]
    assert rows["quality+quota"]["len"] < rows["expected-oracle+quota"]["len"]
    assert rows["quality+quota"]["r_each"] < rows["expected-quality+quota"]["r_each"]
    assert rows["expected-quality+quota"]["r_each"] < rows["expected-oracle+quota"]["r_each"]
    assert rows["expected-oracle+quota"]["r_each"] <= rows["realised-oracle+quota"]["r_each"]


class AnyInBand(InBand):
    """Slates without penalty whose number of popular items is drawn anew for each."""

    def __call__(self, scores):
        rng = np.random.default_rng(self.batch.core.state.steps.sum())
        popular = rng.integers(self.band.least, self.band.most + 1, len(scores))
        return self._best_counts(scores, Band(popular, popular))


@pytest.mark.parametrize("source", ["world", "rand_world", "like_world"])
def test_no_unpenalised_policy_of_expected_answers_outlasts_the_ceiling(
    source: str, request
) -> None:
    """Of the same users, under the same draws: the standard error of a difference is below .03."""
    options = {"dataset": request.getfixturevalue(source), "action_type": "slate"}
    n = 300

    def lengths(policy) -> np.ndarray:
        env = make_vec_env("Recommendation-Fair-v0", n, "test", 5, **options)
        sessions = evaluate(policy(env.batch), env, n)
        assert not sessions.penalised.any()
        return sessions.length

    ceiling = lengths(partial(make_reference, CEILING))
    score, _ = REFERENCES[CEILING]
    rows = [
        name
        for name, row in REFERENCES.items()
        if row[0] is score and "+" in name and row[1] is not ProviderControl
    ]
    assert len(rows) == 4
    policies = [partial(make_reference, name) for name in rows if name != CEILING]
    policies.append(lambda batch: ReferencePolicy(score.rule, AnyInBand(batch)))
    for policy in policies:
        gain = lengths(policy) - ceiling
        error = gain.std() / np.sqrt(n)
        assert error < 0.03
        assert gain.mean() <= 2 * error


def test_the_truth_is_the_ceiling_where_the_simulator_answers_by_it(world, real) -> None:
    assert play(world, "truth+quota") == play(world, "expected-oracle+quota")
    with pytest.raises(ConfigError, match="knows the causes of a synthetic world"):
        play(real, "truth+quota")


def test_an_unknown_row_is_refused(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, action_type="slate")
    with pytest.raises(ConfigError, match="Did you mean 'popularity'"):
        make_reference("popular", env.batch)


def test_rows_that_could_not_be_true_are_refused(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, "train", dataset=small, action_type="slate")
    with pytest.raises(ConfigError, match="split='test'"):
        make_reference("expected-oracle+quota", env.batch)
    wide = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, action_type="slate", slate_size=100)
    with pytest.raises(
        ConfigError, match="A quota needs 50 items of the group 'popular', which has 48 of 240"
    ):
        make_reference("quality+quota", wide.batch)


@pytest.mark.parametrize(
    ("slate_size", "target"),
    [(1, [0.5, 0.5]), (3, [0.5, 0.5]), (4, [0.5, 0.5]), (1, [0.5, 0.3, 0.2]), (10, [0.5, 0.3, 0.2]),
     (7, [0.4, 0.3, 0.2, 0.1]), (5, [1 / 3, 1 / 3, 1 / 3])],
)  # fmt: skip
def test_a_quota_comes_as_near_to_what_is_due_as_whole_items_can(
    small, slate_size: int, target: list[float]
) -> None:
    labels = np.arange(small.n_items) % len(target)
    env = make_vec_env(
        "KuaiRec-Fair-v0", 2, dataset=small, action_type="slate", slate_size=slate_size, max_len=20,
        groups=labels, target=target, abandonment="none",
    )  # fmt: skip
    schedule = Quota(env.batch).schedule
    assert (schedule >= 0).all()
    assert (schedule.sum(axis=1) == slate_size).all()
    shown = np.arange(1, len(schedule) + 1)[:, None] * slate_size
    due = shown * np.array(target)
    assert np.abs(schedule.cumsum(axis=0) - due).max() < 1
    whole = np.isclose(due, np.round(due)).all(axis=1)
    np.testing.assert_array_equal(schedule.cumsum(axis=0)[whole], np.round(due[whole]))


def test_a_quota_of_single_items_alternates(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 40, dataset=small, action_type="slate", slate_size=1)
    sessions = evaluate(make_reference("quality+quota", env.batch), env, 40)
    popular = env.catalogue.popular[sessions.slates[:, :2, 0]]
    assert (popular == [False, True]).all()


def test_every_slot_contributes_equally(small) -> None:
    env = make_vec_env(
        "KuaiRec-Fair-v0", 5, "test", 5, dataset=small, action_type="slate", max_len=6
    )
    agent = make_reference("random", env.batch)
    sessions = evaluate(agent, env, 15)
    assert len(sessions) == 15
    # Slot by slot: three sessions of slot 0 first, and slot 0 alone would see the same.
    alone = make_vec_env(
        "KuaiRec-Fair-v0", 1, "test", 5, dataset=small, action_type="slate", max_len=6
    )
    same = evaluate(make_reference("random", alone.batch), alone, 3)
    np.testing.assert_array_equal(sessions.slates[:3], same.slates)
    with pytest.raises(ConfigError, match="multiple of the 5 slots, got 7"):
        evaluate(agent, env, 7)


def test_random_rates_are_drawn_to_their_mean(small, small_rand) -> None:
    items = np.repeat(np.arange(3, dtype=np.int32), 8)
    clicks = np.repeat([1, 1, 0, 0], [8, 4, 4, 8]).astype(np.uint8)  # 8, 4 and 0 of 8
    users = np.full(24, small_rand.train_users[0], dtype=np.int32)
    dataset = replace(small_rand, randomised=BehaviourLog(users, items, clicks))
    options = {"dataset": dataset, "action_type": "slate"}
    env = make_vec_env("KuaiRand-Fair-v0", 2, "test", 5, **options)
    scores = SCORES["random-rates"].rule(env.batch)
    # Variance .25 within items and (4 - 3 * .25) / 24 between them: 1.846 rows count for the mean.
    chance = 0.25 / (3.25 / 24)
    expected = np.full(dataset.n_items, 0.5)
    expected[[0, 2]] = (8 + chance / 2) / (8 + chance), (chance / 2) / (8 + chance)
    np.testing.assert_allclose(scores, np.broadcast_to(expected, scores.shape), rtol=1e-6)
    env = make_vec_env("KuaiRec-Fair-v0", 2, "test", 5, dataset=small, action_type="slate")
    with pytest.raises(ConfigError, match="knows randomised rows; kuairec has none"):
        make_reference("random-rates+quota", env.batch)


@pytest.mark.parametrize("name", ["filter", "filter+quota"])
def test_the_filters_search_shows_what_all_scores_show(small, name):
    env = make_vec_env("KuaiRec-Fair-v0", 6, dataset=small, seed=4, action_type="slate",
                       observation_type="dict", max_len=8)  # fmt: skip
    policy = make_reference(name, env.batch)
    observation = env.reset()
    for _ in range(20):
        slates = policy.slates(observation)
        assert np.array_equal(slates, RuleAgent.slates(policy, observation))
        observation = env.step(slates)[0]
