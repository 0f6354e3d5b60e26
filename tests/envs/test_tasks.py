"""Single requests and returning users, worked out by hand from what was shown and answered."""

from __future__ import annotations

import re

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from dsrm_agents import make_vec_env
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym import metrics
from kuaisim_gym.envs.tasks import RequestBatch, RetentionBatch, make_batch, return_model
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.randomness import RESPONSE_STREAM, RETURN_STREAM, USER_STREAM, uniform
from kuaisim_gym.simulator import build_simulator

N = 6


def begun(kind: type, dataset, n: int = N, seed: int = 0, **options):
    batch = kind(n, dataset.name, dataset=dataset, **options)
    batch.seed(seed + np.arange(n))
    batch.reset()
    return batch


def slates_of(dataset, n: int = N, k: int = 10, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.array([rng.permutation(dataset.n_items)[:k] for _ in range(n)])


def cosines(vectors: np.ndarray) -> np.ndarray:
    """(K,) mean cosine of each vector to the others, by two loops."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    k = len(vectors)
    return np.array([np.mean([unit[i] @ unit[j] for j in range(k) if j != i]) for i in range(k)])


# Requests.


@pytest.mark.parametrize("max_len", [2, 7, 20])
def test_every_session_is_exactly_max_len_requests(small_rand, max_len: int) -> None:
    batch = begun(RequestBatch, small_rand, max_len=max_len)
    rng = np.random.default_rng(0)
    for step in range(max_len):
        assert batch.core.state.active.all()
        np.testing.assert_array_equal(batch.core.state.temper, max_len - step)
        result = batch.step(rng.uniform(-1, 1, (N, 11)).astype(np.float32))
        assert not result.penalised.any()
        assert not result.truncated.any()
    assert result.terminated.all()
    assert (batch.core.state.steps == max_len).all()
    assert len(set(batch.core.state.rewards.sum(axis=1).tolist())) > 1


def test_sessions_have_twenty_requests_by_default(small_rand) -> None:
    env = gym.make("KuaiRand-Request-v0", dataset=small_rand)
    env.reset(seed=0)
    for step in range(20):
        *_, terminated, truncated, info = env.step(env.action_space.sample())
        assert terminated == (step == 19)
        assert not truncated
    assert info["session"]["len"] == 20


def test_the_reward_is_the_mean_of_six_behaviours_and_hate_is_none_of_them(small_rand) -> None:
    assert small_rand.behaviours[6] == "is_hate"
    batch = begun(RequestBatch, small_rand, 40, action_type="slate")
    hates = 0
    for step in range(6):
        result = batch.step(slates_of(small_rand, 40, seed=step))
        assert set(np.unique(result.feedback)) <= {0.0, 1.0}
        np.testing.assert_allclose(
            result.responses, result.feedback[:, :, :6].mean(axis=2), atol=1e-6
        )
        np.testing.assert_allclose(result.reward, result.responses.mean(axis=1), rtol=1e-6)
        hates += result.feedback[:, :, 6].sum()
    assert hates > 0


@pytest.mark.parametrize("correlation", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("split", ["train", "test"])
def test_probabilities_fall_by_the_resemblance(small_rand, split: str, correlation: float) -> None:
    options = {"split": split, "correlation": correlation, "stochastic_response": False}
    batch = begun(RequestBatch, small_rand, action_type="slate", **options)
    slates = slates_of(small_rand)
    users = batch.core.state.users
    plain = build_simulator(small_rand, split).model.feedback(users[:, None], slates)
    vectors = batch.catalogue.standardised
    alike = np.array([np.maximum(cosines(vectors[slate]), 0) for slate in slates])
    assert (alike > 0).any()
    assert (alike == 0).any()
    expected = np.maximum(plain - correlation * alike[:, :, None], 0)
    result = batch.step(slates)
    np.testing.assert_allclose(result.feedback, expected, atol=1e-5)
    np.testing.assert_allclose(result.reward, expected[:, :, :6].mean(axis=(1, 2)), atol=1e-5)


def test_the_task_s_own_correlation_is_a_fifth_and_none_is_none(small_rand) -> None:
    """Compared answer by answer, under the same draws."""
    assert begun(RequestBatch, small_rand).config.correlation == 0.2
    slates = slates_of(small_rand, 200)
    rewards = {}
    for correlation in (0.0, 0.2):
        batch = begun(RequestBatch, small_rand, 200, action_type="slate", correlation=correlation)
        rewards[correlation] = batch.step(slates).feedback
    assert (rewards[0.2] <= rewards[0.0]).all()
    assert (rewards[0.2] < rewards[0.0]).any()
    session = make_batch(
        200, "kuairand", dataset=small_rand, action_type="slate", abandonment="none"
    )
    session.seed(np.arange(200))
    session.reset()
    np.testing.assert_array_equal(session.step(slates).feedback, rewards[0.0])


def test_answers_follow_their_draws(small_rand) -> None:
    """From the counters alone: behaviour by behaviour, place by place."""
    batch = begun(RequestBatch, small_rand, seed=90, correlation=0.0, action_type="slate")
    slates = slates_of(small_rand)
    seeds = (90 + np.arange(N)).astype(np.uint64)
    zero = np.zeros(N, dtype=np.int64)
    arrivals = uniform(seeds, zero, zero, 1, USER_STREAM)[:, 0]
    users = small_rand.train_users[(arrivals * len(small_rand.train_users)).astype(int)]
    np.testing.assert_array_equal(batch.core.state.users, users)
    chance = build_simulator(small_rand, "train").model.feedback(users[:, None], slates)
    draws = uniform(seeds, zero, zero, 70, RESPONSE_STREAM).reshape(N, 7, 10)
    expected = draws.swapaxes(1, 2) < chance
    np.testing.assert_array_equal(batch.step(slates).feedback, expected)


def test_the_last_info_of_a_request_session(small_rand) -> None:
    env = gym.make("KuaiRand-Request-v0", dataset=small_rand, max_len=5, action_type="slate")
    env.reset(seed=4)
    rewards, shown = [], []
    for step in range(5):
        slate = slates_of(small_rand, 1, seed=step)[0]
        _, reward, *_, info = env.step(slate)
        rewards.append(reward)
        shown.append(env.unwrapped.catalogue.popular[slate])
    assert info["session"] == {
        "len": 5,
        "r_each": pytest.approx(np.mean(rewards)),
        "r_cum": pytest.approx(np.sum(rewards)),
        "q": 0.0,
        "popular_share": pytest.approx(np.mean(shown)),
        "list_reward_max": max(rewards),
    }


# Returns.


def visits(batch: RetentionBatch, act) -> tuple[list[np.ndarray], list]:
    """Rewards (steps, N) and results of one whole episode in all slots."""
    results = []
    while not results or not results[-1].done.any():
        results.append(batch.step(act()))
    assert results[-1].truncated.all()
    return np.array([result.reward for result in results]), results


def test_rewards_are_days_and_come_when_a_visit_ends(small_rand) -> None:
    batch = begun(RetentionBatch, small_rand, max_len=3, n_visits=4, action_type="slate")
    step = iter(range(100))
    rewards, results = visits(batch, lambda: slates_of(small_rand, seed=next(step)))
    assert rewards.shape == (12, N)
    assert not any(result.terminated.any() for result in results)
    assert not any(result.truncated.any() for result in results[:-1])
    ends = rewards.reshape(4, 3, N)
    assert (ends[:, :2] == 0).all()
    sessions = batch.records(np.arange(N))
    days = sessions.return_day.reshape(N, 4)
    assert ((days >= 1) & (days <= 10)).all()
    assert len(np.unique(days)) > 2
    np.testing.assert_array_equal(ends[:, 2].T, -days / 10)


def test_return_days_follow_from_counters_and_satisfaction(small_rand) -> None:
    batch = begun(RetentionBatch, small_rand, seed=50, max_len=3, n_visits=4, action_type="slate")
    users = batch.core.state.users.copy()
    step = iter(range(100))
    _, results = visits(batch, lambda: slates_of(small_rand, seed=next(step)))
    answers = np.array([result.responses.mean(axis=1) for result in results]).reshape(4, 3, N)
    seeds = (50 + np.arange(N)).astype(np.uint64)
    model = return_model(small_rand)
    days = []
    for visit in range(4):
        # A visit is an episode of the counters, and ends after three steps.
        at = np.full(N, visit), np.full(N, 3)
        draws = uniform(seeds, *at, 1, RETURN_STREAM)[:, 0]
        days.append(model.draw(users, answers[visit].mean(axis=0).astype(float), draws))
    found = batch.records(np.arange(N)).return_day
    np.testing.assert_array_equal(found.reshape(N, 4), np.transpose(days))


def test_a_returning_user_is_the_same_with_the_same_past_and_nothing_shown(small_rand) -> None:
    batch = begun(
        RetentionBatch, small_rand, max_len=2, n_visits=3, action_type="slate",
        observation_type="dict", slate_size=4,
    )  # fmt: skip
    encoder, users = batch.encoder.encoder, batch.core.state.users.copy()
    total, weight = encoder.history_sum[users].copy(), encoder.history_weight[users].copy()
    for step in range(6):
        slates = slates_of(small_rand, k=4, seed=step % 2)  # the same items at each visit
        result = batch.step(slates)
        total += np.einsum("nk,nkd->nd", result.responses, encoder.embedding[slates])
        weight += result.responses.sum(axis=1)
        seen = batch.observe()
        np.testing.assert_allclose(seen["state"][:, :9], encoder.encode(total, weight), atol=1e-4)
        np.testing.assert_array_equal(batch.core.state.users, users)
        visit, done = divmod(step + 1, 2)
        if step == 5:
            break  # the episode is over: its last visit is still to be seen
        if done:
            np.testing.assert_array_equal(seen["exposed"][:, :4], slates)
            np.testing.assert_allclose(seen["state"][:, 9], 0.5)
        else:
            assert (seen["exposed"] == -1).all()
            assert not batch.core.state.exposed.any()
            np.testing.assert_array_equal(seen["state"][:, 9:13], [[0, 0.5, 0, 0]] * N)
        np.testing.assert_allclose(seen["state"][:, 13], visit / 3)
        last = batch.records(np.arange(N)).return_day
        away = last.reshape(N, visit)[:, -1] / 10 if visit else 0
        np.testing.assert_allclose(seen["state"][:, 14], away)
    np.testing.assert_allclose(seen["state"][:, 13], 1)
    # What was answered at one visit may be answered at the next.
    responses = batch.records(np.arange(N)).responses.reshape(N, 3, 2, 4)
    assert responses.sum(axis=(0, 2, 3)).min() > 0
    batch.reset()
    assert (batch.observe()["state"][:, 13:] == 0).all()
    assert (batch.core.state.users != users).any()


def test_a_history_goes_on_over_visits(small_rand) -> None:
    options = {"action_type": "slate", "slate_size": 4, "observation_type": "history"}
    batch = begun(RetentionBatch, small_rand, max_len=2, n_visits=3, history_len=20, **options)
    before = batch.observe()["items"]
    shown = []
    for step in range(5):
        shown.append(slates_of(small_rand, k=4, seed=step))
        batch.step(shown[-1])
    seen = batch.observe()["items"]
    np.testing.assert_array_equal(seen, np.concatenate([before, *shown], axis=1)[:, -20:])


def test_masks_are_fresh_at_each_visit(small_rand) -> None:
    batch = begun(RetentionBatch, small_rand, max_len=2, n_visits=3, action_type="discrete")
    for step in range(5):
        assert (~batch.actions.masks()).sum(axis=(1, 2)).tolist() == [step % 2] * N
        batch.step(np.full(N, 7))


@pytest.mark.parametrize("n_visits", [1, 2, 6])
def test_an_episode_is_truncated_after_its_visits(small_rand, n_visits: int) -> None:
    env = gym.make("KuaiRand-Retention-v0", dataset=small_rand, max_len=3, n_visits=n_visits)
    for seed in (0, 1):
        _, first = env.reset(seed=seed)
        for step in range(3 * n_visits):
            _, reward, terminated, truncated, info = env.step(env.action_space.sample())
            assert not terminated
            assert truncated == (step == 3 * n_visits - 1)
            assert (reward < 0) == (step % 3 == 2)
            # Requests of the visits and of the running session; returns of the visits alone.
            assert info["session"]["len"] == step + 1
            assert (info["session"]["return_time"] > 0) == (step > 1)
        assert info["session"]["len"] == 3 * n_visits
        assert env.reset()[1]["user_id"] != first["user_id"]


def test_a_retention_session_has_six_visits_of_five_requests_by_default(small_rand) -> None:
    batch = begun(RetentionBatch, small_rand)
    assert (batch.config.max_len, batch.n_visits) == (5, 6)
    env = gym.make("KuaiRand-Retention-v0", dataset=small_rand)
    assert env.action_space.shape == (7,)  # weights of behaviours


def test_the_final_metrics_are_those_of_the_records(small_rand) -> None:
    """Visits of unequal length too, as unbalanced slates make them."""
    for options in ({}, {"abandonment": "imbalance"}, {"max_steps": 2}):
        batch = begun(
            RetentionBatch, small_rand, 30, max_len=6, n_visits=3, action_type="slate", **options
        )
        rng, over = np.random.default_rng(0), np.zeros(30, dtype=bool)
        found = {}
        while not over.all():
            slates = np.array([rng.permutation(240)[:10] for _ in range(30)])
            running = ~over
            result = batch.step(slates, running)
            for slot in np.flatnonzero(result.done):
                rows = np.array([slot])
                told = {name: value[slot] for name, value in batch.session().items()}
                records = batch.records(rows)
                assert len(records) == 3
                assert told["len"] == records.length.sum()
                assert told["r_each"] == pytest.approx(metrics.reward_per_step(records))
                assert told["r_cum"] == pytest.approx(records.rewards.sum())
                assert told["return_time"] == metrics.return_time(records)
                assert told["retention"] == metrics.retention(records)
                assert told["q"] == pytest.approx(metrics.penalty_rate(records))
                longtail = metrics.longtail_share(records, batch.catalogue.popular)
                assert told["popular_share"] == pytest.approx(1 - longtail)
                found[slot] = records
            over |= result.done
        lengths = np.array([records.length for records in found.values()])
        if options.get("abandonment"):
            assert lengths.min() < lengths.max() <= 6
        else:
            assert (lengths == options.get("max_steps", 6)).all()


def test_slots_may_be_at_different_visits(small_rand) -> None:
    """A slot that begins anew is at its first visit, whatever the others are at."""
    env = gym.make_vec(
        "KuaiRand-Retention-v0", num_envs=3, dataset=small_rand, max_len=2, n_visits=3,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )  # fmt: skip
    env.reset(seed=0)
    actions = np.zeros((3, 7), dtype=np.float32)
    for _ in range(3):
        env.step(actions)
    seen, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    np.testing.assert_allclose(seen[:, 13], [1 / 3, 0, 1 / 3])
    ends = []
    for _ in range(6):
        *_, truncated, infos = env.step(actions)
        ends.append(truncated.tolist())
        if truncated.any():
            assert infos["final_info"]["session"]["len"][truncated].tolist() == [6] * sum(ends[-1])
    assert [index for index, end in enumerate(ends) if end[0] and end[2] and not end[1]] == [2]
    assert ends[5] == [False, True, False]


def test_between_two_visits_the_one_that_ended_is_drawn(small_rand) -> None:
    env = gym.make(
        "KuaiRand-Retention-v0", dataset=small_rand, max_len=2, n_visits=3, render_mode="ansi"
    )
    _, info = env.reset(seed=0)
    state = env.unwrapped.batch.core.state
    for step in range(6):
        env.step(env.action_space.sample())
        lines = env.render().splitlines()
        assert f"user {info['user_id']}: step {step % 2 + 1} of 2" in lines[0]
        assert lines[-1].startswith("over after 2 steps") == (step % 2 == 1)
        first = [int(re.match(r"\d+", word)[0]) for word in lines[3].split()[1:11]]
        if step % 2 == 0:
            shown = small_rand.item_ids[state.slates[0, 0]].tolist()
        assert first == shown


def test_satisfied_users_come_back_sooner(small_rand) -> None:
    """Better slates, fewer days: random ones against the best of what each user likes."""
    found = {}
    for policy in ("random", "expected-oracle+quota"):
        env = make_vec_env(
            "KuaiRand-Retention-v0", 400, "test", 0, dataset=small_rand, action_type="slate"
        )
        reference = make_reference(policy, env.batch)
        env.reset()
        dones = np.zeros(400, dtype=bool)
        total = np.zeros(400)
        while not dones.any():
            _, rewards, dones, infos = env.step(reference.predict(None)[0])
            total += rewards
        assert dones.all()
        days = np.array([info["session"]["return_time"] for info in infos])
        np.testing.assert_allclose(total, -days * 6 / 10, rtol=1e-5)
        satisfaction = np.mean([info["session"]["r_each"] for info in infos])
        back = np.mean([info["session"]["retention"] for info in infos])
        found[policy] = days, satisfaction, back
    random, best = found["random"], found["expected-oracle+quota"]
    assert best[1] > random[1] + 0.05
    assert best[2] > random[2]
    gain = random[0] - best[0]  # of the same users, under the same draws
    assert gain.mean() > 4 * gain.std() / 20


def test_impossible_tasks_are_refused(small, small_rand) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'retention'"):
        make_batch(2, "kuairand", "retentions", dataset=small_rand)
    for n_visits in (0, True, 2.0, "6"):
        with pytest.raises(ConfigError, match="n_visits must be an integer of at least 1, got"):
            RetentionBatch(2, dataset=small_rand, n_visits=n_visits)
    with pytest.raises(ConfigError, match="Did you mean 'n_visits'"):
        RetentionBatch(2, dataset=small_rand, n_visit=3)
    with pytest.raises(ConfigError, match="must be one of"):
        RequestBatch(2, "kuairand", dataset=small_rand, n_visits=3)
    with pytest.raises(ConfigError, match="a behaviour must be one of"):
        RequestBatch(2, "kuairec", dataset=small)
