"""Audits of sessions that were played: users, the sessions' own groups, classes of users."""

from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym import metrics
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.tasks import RetentionBatch
from kuaisim_gym.metrics import Audit, Sessions

N = 60


def begun(kind: type, dataset, n: int = N, **options) -> SessionBatch:
    """Sessions of a small world, seeded and begun."""
    batch = kind(n, dataset.name, dataset=dataset, **options)
    batch.seed(np.arange(n))
    batch.reset()
    return batch


def played(batch: SessionBatch, scores) -> Sessions:
    """The sessions, after slates of the best items by a score, drawn anew for each step."""
    rng, rows = np.random.default_rng(0), np.arange(batch.n_sessions)
    while batch.core.state.active.any():
        order = scores(rng).argsort(axis=1, kind="stable")
        exposed = np.take_along_axis(~batch.core.unexposed(), order, axis=1)
        rank = exposed.argsort(axis=1, kind="stable")[:, :10]  # what was not shown comes first
        slates = np.take_along_axis(order, rank, axis=1)
        batch.step(slates, batch.core.state.active)
    return batch.records(rows)


@pytest.fixture(scope="module")
def batch(small) -> SessionBatch:
    """Test sessions whose slates are given."""
    return begun(SessionBatch, small, split="test", action_type="slate", max_len=6)


@pytest.fixture(scope="module")
def random_sessions(batch: SessionBatch) -> Sessions:
    return played(batch, lambda rng: rng.random((N, batch.catalogue.n_items)))


def test_sessions_name_their_users(batch: SessionBatch, random_sessions: Sessions) -> None:
    ids = batch.info()["user_id"]
    assert batch.dataset.user_ids[random_sessions.users].tolist() == ids.tolist()
    assert len(set(ids)) > N / 3
    assert random_sessions.take(np.array([5, 2])).users.tolist() == [
        random_sessions.users[5],
        random_sessions.users[2],
    ]


def test_all_sessions_of_an_episode_are_of_one_user(small_rand) -> None:
    batch = begun(RetentionBatch, small_rand, 4, n_visits=3, max_len=2, action_type="slate")
    users = batch.core.state.users.copy()
    slates = np.tile(np.arange(10), (4, 1))
    for _ in range(6):
        batch.step(slates)
    assert batch.records(np.arange(4)).users.tolist() == np.repeat(users, 3).tolist()


def test_the_audit_agrees_with_the_summary_of_the_task(
    batch: SessionBatch, random_sessions: Sessions
) -> None:
    """On the popularity groups, with equal attention to all ranks."""
    audit = batch.audit(random_sessions, patience=1.0).summarise()
    summary = batch.summarise(random_sessions)
    assert audit["group_ad"] == pytest.approx(summary["ad"])
    assert audit["awrf"] == pytest.approx(summary["slate_ad"])
    assert audit["gini"] == pytest.approx(summary["gini"])
    assert audit["coverage"] == summary["coverage"]


def test_merit_is_what_the_test_simulator_expects(
    batch: SessionBatch, random_sessions: Sessions
) -> None:
    audit = batch.audit(random_sessions)
    assert audit.comparison is not None
    user = random_sessions.users[7]
    expected = batch.simulator.expected.probability(
        np.array([user]), np.arange(batch.catalogue.n_items)
    )
    responses = audit.comparison.responses[audit.comparison.rows[7]]
    np.testing.assert_allclose(responses, expected, rtol=1e-5)
    # The mean response of user 7 to the slates of session 3, without matrices.
    slates = random_sessions.slates
    own, foreign = (expected[row[row >= 0]].mean() for row in (slates[7], slates[3]))
    assert audit.comparison.envies[7, 3] == pytest.approx(max(0, foreign - own), abs=1e-6)


def test_metrics_rank_policies_as_they_should(
    batch: SessionBatch, random_sessions: Sessions
) -> None:
    """Random slates expose all items alike; the same slate for all hides most items."""
    batch.reset()
    order = np.arange(batch.catalogue.n_items, dtype=float)
    popular = played(batch, lambda _: np.tile(order - 1e6 * batch.catalogue.popular, (N, 1)))
    random, same = (batch.audit(sessions).summarise() for sessions in (random_sessions, popular))
    for name in ("group_ad", "group_kl", "inequity", "ee_l", "ee_d", "awrf", "gini"):
        assert random[name] < same[name], name
    for name in ("group_jain", "merit_ratio", "coverage", "entropy", "novelty"):
        assert random[name] > same[name], name
    assert same["merit_ratio"] == 0
    # All get the same items, though not as many of them.
    assert random["envy"] > 3 * same["envy"]
    assert random["ee_d"] == pytest.approx(1, abs=0.2)


def test_groups_are_the_sessions_own(small, random_sessions: Sessions) -> None:
    labels = np.arange(small.n_items) % 3
    options = {"split": "test", "action_type": "slate", "max_len": 6}
    grouped = begun(SessionBatch, small, groups=labels, target=(0.5, 0.3, 0.2), **options)
    audit = grouped.audit(random_sessions)
    items = random_sessions.slates[random_sessions.slates >= 0]
    shares = np.bincount(items % 3) / len(items)
    assert audit.shares == pytest.approx(shares)
    assert audit.summarise()["group_ad"] == pytest.approx(np.abs(shares - [0.5, 0.3, 0.2]).sum())
    other = grouped.audit(random_sessions, labels=np.where(labels == 0, -1, labels - 1))
    assert other.shares == pytest.approx(shares[1:] / shares[1:].sum())
    assert other.target.tolist() == [0.5, 0.5]


def test_intervals_cover_what_other_sessions_give(small) -> None:
    """Half-widths agree with the spread over fresh samples, envy's too."""
    options = {"split": "test", "action_type": "slate", "max_len": 4}
    samples, rng = [], np.random.default_rng(0)
    for seed in range(30):
        batch = SessionBatch(N, small.name, dataset=small, **options)
        batch.seed(1000 * seed + np.arange(N))
        batch.reset()
        shown = np.random.default_rng(seed)
        samples.append(
            batch.audit(played(batch, lambda _, shown=shown: shown.random((N, small.n_items))))
        )
    half = metrics.bootstrap_ci95(samples[0], Audit.summarise, rng)
    for name in ("group_ad", "awrf", "envy", "len_worst"):
        spread = 1.96 * np.std([sample.summarise()[name] for sample in samples], ddof=1)
        assert half[name] == pytest.approx(spread, rel=0.5), name


def test_users_by_class(batch: SessionBatch, random_sessions: Sessions) -> None:
    found = batch.summarise_users(random_sessions)
    log, test_users = batch.dataset.log, batch.simulator.users.tolist()
    rows = {user: int(np.count_nonzero(log.users == user)) for user in test_users}
    played_users = random_sessions.users.tolist()
    for third, level in enumerate(metrics.CLASSES):
        lengths = []
        for user, length in zip(played_users, random_sessions.length, strict=True):
            ahead = sum((count < rows[user]) + (count <= rows[user]) for count in rows.values())
            if third <= 3 * ahead / (2 * len(rows)) < third + 1:
                lengths.append(length)
        assert found[f"len_activity_{level}"] == pytest.approx(np.mean(lengths))
    assert {f"{m}_{c}_{k}" for m in ("len", "r_each") for c in ("activity", "taste")
            for k in metrics.CLASSES} | {"len_worst", "r_each_worst"} == found.keys()  # fmt: skip
    assert found["len_worst"] <= random_sessions.length.mean()
