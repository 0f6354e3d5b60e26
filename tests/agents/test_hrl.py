from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.vec_env import VecEnvWrapper, VecMonitor

from dsrm_agents import (
    HierarchicalPolicy,
    HierarchicalPPO,
    PurifyVecEnv,
    evaluate,
    make_vec_env,
)
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.common.bounds import SlateBounds
from dsrm_agents.common.catalogue import state_and_exposed
from dsrm_agents.common.fairness import Fairness
from dsrm_agents.common.responses import check_mean_response, shown_slates
from dsrm_agents.common.slate_ppo import minibatches
from dsrm_agents.hrl.buffers import level_advantages
from dsrm_agents.hrl.distributions import SlateDistribution
from dsrm_agents.hrl.features import item_features
from dsrm_agents.hrl.rollouts import within_group_credit
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.metrics import summarise
from kuaisim_gym.simulator.groups import popularity_groups

SLATES = {"observation_type": "dict", "action_type": "slate"}
WORKERS = ("constrained", "unconstrained")


def train_env(small, n: int = 16, seed: int = 0, env_id: str = "KuaiRec-Fair-v0", **options):
    return make_vec_env(env_id, n, "train", seed, dataset=small, **(SLATES | options))


def agent(small, seed: int = 0, env=None, worker: str = "constrained", **options):
    env = train_env(small) if env is None else env
    defaults = {"n_steps": 16, "batch_size": 128, "learning_rate": 3e-3}
    policy = {"worker": worker} | options.pop("policy_kwargs", {})
    return HierarchicalPPO(
        "HierarchicalPolicy",
        env,
        seed=seed,
        device="cpu",
        policy_kwargs=policy,
        **(defaults | options),
    )


def tensors(observation) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(part) for name, part in observation.items()}


def context_of(policy: HierarchicalPolicy, observation):
    """The context that the manager's mean gives the worker."""
    state, _ = state_and_exposed(tensors(observation))
    return policy._context(tensors(observation), policy.manager(state))


# Advantages


def test_advantages_against_a_hand_computation() -> None:
    # One slot, three steps; the second step is the last of its session.
    rewards = np.array([[[1.0, 2.0]], [[0.0, 4.0]], [[3.0, 0.0]]], np.float32)
    values = np.array([[[0.5, 1.0]], [[1.0, 0.0]], [[2.0, 2.0]]], np.float32)
    found = level_advantages(
        rewards,
        values,
        np.array([[1.0], [0.0], [1.0]], np.float32),
        np.ones_like(rewards),
        np.array([[4.0, 6.0]], np.float32),
        np.array([False]),
        np.array([0.5, 1.0], np.float32),
        0.5,
    )
    # Manager: d2 = 3 + .5*4 - 2 = 3; d1 = 0 - 1 = -1 (end); d0 = 1 + .5*1 - .5 = 1, + .25*(-1).
    np.testing.assert_allclose(found[:, 0, 0], [0.75, -1.0, 3.0])
    # Worker: d2 = 0 + 6 - 2 = 4; d1 = 4; d0 = 2 + 0 - 1 = 1, + .5*4.
    np.testing.assert_allclose(found[:, 0, 1], [3.0, 4.0, 4.0])


def test_advantages_of_a_manager_that_decides_every_second_step() -> None:
    # One slot, seven steps: a session of three, then one of three and its next one's first.
    # The manager decides at 0, 2 | 3, 5 | 6; gamma 1/2, lambda 1/2.
    rewards = np.array([4.0, 8.0, 1.0, 2.0, 4.0, 6.0, 3.0], np.float32)
    values = np.array([2.0, 99.0, 4.0, 1.0, 99.0, 2.0, 5.0], np.float32)
    decided = np.array([1, 0, 1, 1, 0, 1, 1], np.float32)
    starts = np.array([1, 0, 0, 1, 0, 0, 1], np.float32)
    found = level_advantages(
        rewards[:, None, None],
        values[:, None, None],
        starts[:, None],
        decided[:, None, None],
        np.array([[8.0]], np.float32),
        np.array([False]),
        np.array([0.5], np.float32),
        0.5,
    )[:, 0, 0]
    expected = {
        6: 3 + 4 - 5,  # the rollout's end cuts the stretch: the critic goes on
        5: 6 - 2,  # the session ends within the stretch
        # 2 + 4/2 + (V(5) + lambda * A(5)) / 4 - V(3)
        3: 2 + 2 + (2 + 2) / 4 - 1,
        2: 1 - 4,
        0: 4 + 4 + (4 - 1.5) / 4 - 2,
    }
    assert {step: found[step] for step in expected} == pytest.approx(expected)


def random_rollout(rng: np.random.Generator, steps: int = 12, n: int = 5):
    shape = (steps, n, 2)
    rewards, values = rng.normal(size=(2, *shape)).astype(np.float32)
    starts = (rng.random((steps, n)) < 0.3).astype(np.float32)
    last_values = rng.normal(size=(n, 2)).astype(np.float32)
    return rewards, values, starts, last_values, rng.random(n) < 0.5


def test_where_all_is_decided_it_is_sb3_s_estimate(small) -> None:
    rewards, values, starts, last_values, dones = random_rollout(np.random.default_rng(0))
    gammas = np.array([0.9, 0.6], np.float32)
    decided = np.ones_like(rewards)
    found = level_advantages(rewards, values, starts, decided, last_values, dones, gammas, 0.7)
    env = train_env(small, observation_type="state")
    for level, gamma in enumerate(gammas):
        buffer = RolloutBuffer(
            12, env.observation_space, env.action_space, "cpu", 0.7, float(gamma), 5
        )
        buffer.rewards, buffer.values = rewards[..., level], values[..., level]
        buffer.episode_starts = starts
        buffer.compute_returns_and_advantage(torch.as_tensor(last_values[:, level]), dones)
        np.testing.assert_allclose(found[..., level], buffer.advantages, atol=1e-5)


def test_a_stretch_counts_as_one_step_of_its_summed_rewards() -> None:
    # Three steps a stretch, no session ends: GAE of four steps with gamma^3.
    rng, gamma = np.random.default_rng(1), np.float32(0.8)
    rewards, values, _, last_values, _ = random_rollout(rng)
    decided = np.zeros_like(rewards)
    decided[::3] = 1
    rest = (np.array([0.8, 0.8], np.float32), 0.7)
    found = level_advantages(
        rewards,
        values,
        np.zeros((12, 5), np.float32),
        decided,
        last_values,
        np.zeros(5, bool),
        *rest,
    )
    summed = sum(gamma**k * rewards[k::3] for k in range(3))
    expected = level_advantages(
        summed,
        values[::3],
        np.zeros((4, 5), np.float32),
        np.ones_like(summed),
        last_values,
        np.zeros(5, bool),
        np.array([gamma**3, gamma**3], np.float32),
        0.7,
    )
    np.testing.assert_allclose(found[::3], expected, atol=1e-5)


# Two levels


@pytest.mark.parametrize("worker", WORKERS)
def test_no_gradient_crosses_levels(small, worker: str) -> None:
    model = agent(small, worker=worker)
    model.learn(256)
    batch = next(minibatches(model.rollout_buffer.samples(), 64, np.random.default_rng(0)))
    policy = model.policy
    groups = {group["name"]: group["params"] for group in policy.optimizer.param_groups}
    learned = {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}
    assert learned == {id(one) for group in groups.values() for one in group}
    losses = model._losses(batch, 0.2)
    for loss, own in (
        (losses.policy[0], ["manager"]),
        (losses.policy[1], ["worker"]),
        (losses.value[0], ["manager_critic"]),
        (losses.value[1], ["worker_critic"]),
    ):
        policy.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        moved = [
            name
            for name, group in groups.items()
            if any(one.grad is not None and one.grad.abs().sum() > 0 for one in group)
        ]
        assert moved == own


@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("worker", WORKERS)
def test_re_evaluation_reproduces_the_rollout_s_probabilities(
    small, worker: str, period: int
) -> None:
    model = agent(
        small, worker=worker, learning_rate=0.0, policy_kwargs={"decision_period": period}
    )
    model.learn(256)
    buffer = model.rollout_buffer
    values = torch.as_tensor((buffer.returns - buffer.advantages).reshape(-1, 2))
    assert len(torch.unique(values)) > 100
    for batch in minibatches(buffer.samples(), 64, np.random.default_rng(0)):
        with torch.no_grad():
            again = model.policy.evaluate_decision(batch.observations, batch.control, batch.slates)
        torch.testing.assert_close(
            again.choice_log_prob, batch.old_choice_log_prob, atol=1e-3, rtol=1e-4
        )
        decided = batch.decided > 0
        torch.testing.assert_close(
            again.control_log_prob[decided], batch.old_control_log_prob[decided]
        )
        torch.testing.assert_close(
            again.values, batch.returns - batch.advantages, atol=1e-5, rtol=1e-4
        )


def blank(model: HierarchicalPPO) -> HierarchicalPPO:
    """The agent, knowing nothing of its items."""
    with torch.no_grad():
        model.policy.worker.query.weight.zero_()
        model.policy.worker.query.bias.zero_()
        model.policy.worker.query.bias[-1] = 1e-3  # no ties: by a taste, and hardly
    return model


def played(model: HierarchicalPPO, small) -> dict[str, float]:
    test = train_env(small, n=200, seed=77, max_len=9)
    return summarise(evaluate(model, test, 200), test.catalogue.popular)


def test_it_learns_quality_and_balance(small) -> None:
    model = blank(
        agent(small, env=train_env(small, max_len=9), policy_kwargs={"manager_lr_scale": 3.0})
    )
    before = played(model, small)
    model.learn(8192)
    after = played(model, small)
    assert after["r_each"] > before["r_each"] + 0.05
    assert before["q"] > 0.3
    assert after["q"] <= 0.05
    assert after["len"] > before["len"] + 2


@pytest.mark.parametrize("worker", ["constrained", "unconstrained"])
def test_it_starts_from_what_the_log_knows_of_quality(small, worker: str) -> None:
    new, ignorant = (agent(small, env=train_env(small, max_len=9), worker=worker) for _ in "ab")
    known, unknown = played(new, small), played(blank(ignorant), small)
    assert known["r_each"] > unknown["r_each"] + 0.1


@pytest.mark.parametrize("worker", WORKERS)
def test_training_twice_gives_the_same_agent(small, worker: str) -> None:
    one, two = (agent(small, seed=5, worker=worker).learn(768) for _ in range(2))
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("worker", WORKERS)
def test_saved_and_loaded_it_predicts_and_continues(small, tmp_path, worker: str) -> None:
    period = {"decision_period": 2}
    model = agent(small, worker=worker, fairness_target=-0.01, policy_kwargs=period)
    model.learn(256)
    model.save(tmp_path / "agent")
    observation = train_env(small, seed=9).reset()
    before, _ = model.predict(observation, deterministic=True)
    loaded = HierarchicalPPO.load(tmp_path / "agent", env=train_env(small))
    np.testing.assert_array_equal(before, loaded.predict(observation, deterministic=True)[0])
    assert loaded.manager_gamma == model.manager_gamma
    # The multiplier goes on, unless another weight is asked for.
    assert loaded.weight.value == model.weight.value != model.fairness_coef
    constant = HierarchicalPPO.load(tmp_path / "agent", fairness_target=None, fairness_coef=7.0)
    assert (constant.weight.value, constant.weight.target) == (7.0, None)
    loaded.learn(256, reset_num_timesteps=False)
    assert loaded.num_timesteps == 512
    model.policy.save(tmp_path / "policy")
    policy = HierarchicalPolicy.load(tmp_path / "policy")
    assert (policy.worker.constrained, policy.decision_period) == (worker == "constrained", 2)
    np.testing.assert_array_equal(before, policy.predict(observation, deterministic=True)[0])


def test_predictions_are_slates_of_distinct_unexposed_items(small) -> None:
    model = agent(small)
    env = train_env(small, n=4, seed=3)
    observation = env.reset()
    for _ in range(8):
        slates, _ = model.predict(observation)
        for slate, exposed in zip(slates, observation["exposed"], strict=True):
            assert len(set(slate)) == 10
            assert not set(slate) & set(exposed[exposed >= 0])
        observation, _, dones, _ = env.step(slates)
        assert not dones.all()
    one, _ = model.predict({name: part[0] for name, part in observation.items()})
    assert one.shape == (10,)


def test_the_unconstrained_worker_is_bound_by_nothing(small) -> None:
    model = agent(small, worker="unconstrained")
    with torch.no_grad():
        model.policy.manager[-1].bias[1] = 10.0  # w_fair is 1
    observation = train_env(small, n=64).reset()
    popular = train_env(small).catalogue.popular
    counts = popular[model.predict(observation)[0]].sum(axis=1)
    assert len(set(counts.tolist())) > 1
    model = agent(small)
    with torch.no_grad():
        model.policy.manager[-1].bias[1] = 10.0
    assert (popular[model.predict(observation, deterministic=True)[0]].sum(axis=1) == 5).all()


def test_a_step_cap_is_bootstrapped(small) -> None:
    env = train_env(small, max_steps=3)
    model = agent(small, env=env, n_steps=6, batch_size=96, learning_rate=0.0)
    with torch.no_grad():
        model.policy.manager_critic[-1].bias.fill_(10.0)
    model.learn(16 * 6)
    rewards = model.rollout_buffer.rewards
    # Steps 3 and 6 end by the cap: their manager reward holds gamma * V on top.
    assert rewards[[2, 5], :, 0].min() > 7.0
    assert rewards[[0, 1, 3, 4], :, 0].max() <= 1.0


# Decision periods


def test_z_is_held_for_as_many_steps_as_were_asked_for(small) -> None:
    # Sessions of max_len 7 end after 3 to 7 steps, so that some stretches are cut.
    model = agent(
        small, env=train_env(small, max_len=7), n_steps=24, policy_kwargs={"decision_period": 5}
    )
    model.learn(16 * 24 * 2)  # the second rollout begins within sessions
    buffer = model.rollout_buffer
    starts = buffer.episode_starts
    assert 0 < starts[0].sum() < 16
    known = starts.cumsum(axis=0) > 0  # whose session's start lies in this rollout
    age = np.zeros_like(starts)
    for step in range(1, 24):
        age[step] = np.where(starts[step], 0, age[step - 1] + 1)
    np.testing.assert_array_equal(buffer.decided[known], (age % 5 == 0)[known])
    changed = (np.diff(buffer.control, axis=0) != 0).all(axis=2)
    np.testing.assert_array_equal(changed, buffer.decided[1:] > 0)
    lengths = np.diff(np.flatnonzero(starts[:, 0]))
    assert 0 < buffer.decided.mean() < 0.6
    assert lengths.min() > 1


def test_a_session_s_z_goes_on_over_rollouts(small) -> None:
    model = agent(
        small,
        env=train_env(small, env_id="KuaiRec-v0", step_cost="request", max_len=20),
        n_steps=3,
        batch_size=48,
        policy_kwargs={"decision_period": 5},
    )
    control, decided = [], []
    for rollout in range(1, 5):
        model.learn(16 * 3, reset_num_timesteps=rollout == 1)
        control.append(model.rollout_buffer.control.copy())
        decided.append(model.rollout_buffer.decided.copy())
    expected = np.arange(12) % 5 == 0
    np.testing.assert_array_equal(np.concatenate(decided), np.repeat(expected[:, None], 16, axis=1))
    changed = (np.diff(np.concatenate(control), axis=0) != 0).all(axis=2)
    np.testing.assert_array_equal(changed, np.repeat(expected[1:, None], 16, axis=1))


def test_the_manager_learns_where_it_decided_alone(small) -> None:
    model = agent(small, policy_kwargs={"decision_period": 4}, vf_coef=1.0)
    model.learn(256)
    batch = next(minibatches(model.rollout_buffer.samples(), 256, np.random.default_rng(0)))
    held = batch.decided == 0
    assert held.any()
    expected = model._losses(batch, 0.2)
    advantages, returns = batch.advantages.clone(), batch.returns.clone()
    advantages[held, 0] += 1e3
    returns[held, 0] += 1e3
    elsewhere = batch._replace(
        advantages=advantages,
        returns=returns,
        old_control_log_prob=batch.old_control_log_prob - held.float(),
    )
    found = model._losses(elsewhere, 0.2)
    torch.testing.assert_close(tuple(found), tuple(expected))


@pytest.mark.parametrize("worker", WORKERS)
def test_a_period_of_one_is_the_default(small, worker: str) -> None:
    plain, given = (
        agent(small, worker=worker, policy_kwargs=options).learn(512)
        for options in ({}, {"decision_period": 1})
    )
    assert (given.rollout_buffer.decided == 1).all()
    for a, b in zip(plain.policy.parameters(), given.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    observation = given.env.reset()
    assert given.predict(observation)[1] is None


@pytest.mark.parametrize("period", [0, -1, 2.0, True])
def test_impossible_periods_are_refused(small, period) -> None:
    with pytest.raises(ConfigError, match="decision_period must be an integer of at least 1"):
        agent(small, policy_kwargs={"decision_period": period})


def test_predict_holds_z_as_training_does(small) -> None:
    model = agent(small, policy_kwargs={"decision_period": 3})
    env = train_env(small, n=4, seed=3)
    observation, state = env.reset(), None
    starts, held = np.ones(4, dtype=bool), []
    new = []
    for step in range(8):
        if step == 4:
            starts = np.array([False, True, False, False])  # a new session in slot 1
        _, state = model.predict(observation, state, starts)
        held.append(state[0].copy())
        new.append((held[-1] != held[-2]).all(axis=1) if step else np.ones(4, bool))
        starts = np.zeros(4, dtype=bool)
    expected = np.zeros((8, 4), dtype=bool)
    expected[[0, 3, 6]] = True
    expected[:, 1] = [1, 0, 0, 1, 1, 0, 0, 1]
    np.testing.assert_array_equal(new, expected)
    np.testing.assert_array_equal(state[1], [8, 4, 8, 8])


def test_a_single_observation_holds_z_too(small) -> None:
    model = agent(small, policy_kwargs={"decision_period": 3})
    observation = {name: part[0] for name, part in train_env(small).reset().items()}
    state, held = None, []
    for _ in range(5):
        slate, state = model.predict(observation, state, np.zeros(1, dtype=bool))
        assert slate.shape == (10,)
        held.append(state[0][0].tolist())
    assert held[0] == held[1] == held[2] != held[3] == held[4]


def test_held_weights_bind_the_slates(small) -> None:
    model = agent(small, policy_kwargs={"decision_period": 2})
    env = train_env(small)
    observation = env.reset()
    wants = np.zeros((16, 2), dtype=np.float32)
    wants[:8, 1] = 10.0  # balance, from the last step; the others are asked again
    state = (wants, np.where(np.arange(16) < 8, 1, 2))
    slates, (control, _) = model.predict(observation, state, np.zeros(16, dtype=bool), True)
    assert (env.catalogue.popular[slates[:8]].sum(axis=1) == 5).all()
    assert (env.catalogue.popular[slates[8:]].sum(axis=1) != 5).any()
    np.testing.assert_array_equal(control[:8], wants[:8])
    assert np.abs(control[8:]).max() < 1.0


def test_sessions_are_evaluated_with_held_weights(small) -> None:
    model = agent(small, env=train_env(small, max_len=6), policy_kwargs={"decision_period": 4})
    periods = []
    decide = model.policy.decide

    def spied(obs, held=None, due=None, deterministic=False):
        periods.append(due.numpy().copy())
        return decide(obs, held, due, deterministic)

    model.policy.decide = spied
    sessions = evaluate(model, train_env(small, n=8, seed=4, max_len=6), 16)
    assert len(sessions) == 16
    assert periods[0].all()
    # As often as every slot's sessions ask: at their first step and every fourth after it.
    asked = np.stack(periods).sum(axis=0)
    for slot in range(8):
        two = sessions.length[2 * slot : 2 * slot + 2]
        due = [step for length in two for step in range(length)]
        first = np.stack(periods)[: len(due), slot]
        np.testing.assert_array_equal(first, np.array(due) % 4 == 0)
    assert asked.min() >= 2


# Rewards and credit


@pytest.mark.parametrize("worker", WORKERS)
@pytest.mark.parametrize("measure", ["ad", "gini"])
def test_the_manager_is_paid_for_fairness_and_the_worker_is_not(
    small, measure: str, worker: str
) -> None:
    model = agent(small, worker=worker, fairness=measure, fairness_coef=3.0)
    model.learn(256)
    buffer = model.rollout_buffer
    extra = (buffer.rewards[..., 0] - buffer.rewards[..., 1]) / 3.0
    fair = Fairness(measure, model.policy.catalogue)
    exposed = buffer.observations["exposed"]
    for step in range(15):
        # What the next observation has more, where it is of the same session.
        same = buffer.episode_starts[step + 1] == 0
        before, after = exposed[step][same], exposed[step + 1][same]
        slates = after[(before < 0) & (after >= 0)].reshape(-1, 10)
        np.testing.assert_allclose(extra[step][same], fair(slates, before), atol=1e-5)
    assert np.abs(extra).max() > 0.01


def test_what_was_shown_is_read_off_the_observations(small) -> None:
    env = train_env(small, n=6, seed=2, max_len=4, slate_size=3, window=3)
    observation, rng, ends = env.reset(), np.random.default_rng(0), 0
    state = env.batch.core.state
    for _ in range(12):
        slates = rng.permuted(np.tile(np.arange(240), (6, 1)), axis=1)[:, :3]
        after, rewards, dones, infos = env.step(slates)
        answers = state.responses[np.arange(6), state.steps - 1]
        for slot in np.flatnonzero(dones):
            record = infos[slot]["record"]
            answers[slot] = record.responses[0, record.length[0] - 1]
        shown, responses = shown_slates(observation, after, dones, infos)
        np.testing.assert_array_equal(shown, slates)
        np.testing.assert_array_equal(responses, answers)
        np.testing.assert_allclose(responses.mean(axis=1), rewards, atol=1e-6)
        observation, ends = after, ends + dones.sum()
    assert ends >= 6


def test_every_draw_is_credited_with_its_own_response(small) -> None:
    model = agent(small)
    model.learn(256)
    buffer, popular = model.rollout_buffer, model.policy.catalogue.popular
    assert buffer.credit.shape == (16, 16, 20)
    assert np.abs(buffer.credit).max() > 0.3
    assert (buffer.credit[..., :10] == 0).all()  # choices of groups
    for step in range(15):
        same = buffer.episode_starts[step + 1] == 0
        before = buffer.observations["exposed"][step][same]
        after = buffer.observations["exposed"][step + 1][same]
        latest = (before < 0) & (after >= 0)
        seen = buffer.observations["responses"][step + 1][same][latest].reshape(-1, 10)
        slates = after[latest].reshape(-1, 10)
        np.testing.assert_array_equal(buffer.actions[step][same], slates)
        expected = within_group_credit(seen, popular[slates])
        np.testing.assert_allclose(buffer.credit[step][same][:, 10:], expected, atol=1e-6)


def test_credit_compares_with_the_others_of_the_group() -> None:
    responses = np.array([[1.0, 0.0, 0.5, 0.5], [1.0, 0.2, 0.3, 0.1]], np.float32)
    popular = np.array([[True, True, False, False], [True, False, False, False]])
    found = within_group_credit(responses, popular)
    np.testing.assert_allclose(found, [[0.5, -0.5, 0, 0], [0, 0, 0.1, -0.1]], atol=1e-6)


def test_credit_moves_items_within_their_group_and_no_group() -> None:
    # Two popular and two other items a slate, the popular ones always answered better.
    scores = torch.tensor([[0.3, -0.2, 0.5, 0.1, 0.4, -0.3]], requires_grad=True)
    answers = np.array([0.9, 0.8, 0.7, 0.1, 0.3, 0.1], np.float32)
    slates = torch.tensor(
        [slate for slate in itertools.permutations(range(6), 4) if sum(i < 3 for i in slate) == 2]
    )
    n = len(slates)
    two = torch.full((n, 2), 2)
    distribution = SlateDistribution(
        scores.expand(n, -1), torch.eye(6), torch.empty(n, 0, dtype=torch.int64), (0, 3),
        SlateBounds(two, two), 4,
    )  # fmt: skip
    log_prob = distribution.log_prob(slates)
    credit = torch.as_tensor(within_group_credit(answers[slates], (slates < 3).numpy()))
    probability = log_prob.detach().sum(1).exp()
    assert float(probability.sum()) == pytest.approx(1.0, abs=1e-5)
    (probability[:, None] * log_prob[:, 4:] * credit).sum().backward()
    gradient = scores.grad[0]
    assert abs(float(gradient[:3].sum())) < 1e-6  # towards popular items as such
    assert abs(float(gradient[3:].sum())) < 1e-6
    assert gradient[0] > gradient[1] > gradient[2]
    assert gradient[4] > 0 > max(gradient[3], gradient[5])


def test_credit_is_for_workers_that_look_no_further_than_the_slate(small) -> None:
    model = agent(small, gamma=0.9).learn(256)
    assert (model.rollout_buffer.credit == 0).all()


def test_a_target_is_what_the_manager_s_reward_is_measured_from(small) -> None:
    model = agent(small, fairness_coef=2.0, fairness_target=-0.25, multiplier_step=0.0).learn(256)
    buffer, popular = model.rollout_buffer, model.policy.catalogue.popular
    imbalance = np.abs(2 * popular[buffer.actions].mean(axis=2) - 1)
    expected = buffer.rewards[..., 1] + 2.0 * (0.25 - imbalance)
    np.testing.assert_allclose(buffer.rewards[..., 0], expected, atol=1e-5)
    with pytest.raises(ConfigError, match="An AD of at most x is the target -x"):
        agent(small, fairness_target=0.1)


@pytest.mark.parametrize("option", ["net_arch", "log_std_init", "colour"])
def test_options_of_networks_that_are_not_there_are_refused(small, option: str) -> None:
    with pytest.raises(ConfigError, match=f"An option of HierarchicalPolicy.*{option}"):
        agent(small, policy_kwargs={option: [3]})


def test_the_worker_s_loss_weighs_draws_by_advantage_and_credit(small) -> None:
    model = agent(small)
    model.learn(256)
    batch = next(minibatches(model.rollout_buffer.samples(), 64, np.random.default_rng(0)))
    now = model.policy.evaluate_decision(batch.observations, batch.control, batch.slates)
    advantages = batch.advantages[:, 1:] + batch.credit
    standard = (advantages - advantages.mean()) / advantages.std(correction=0)
    ratio = (now.choice_log_prob - batch.old_choice_log_prob).exp()
    expected = -torch.minimum(ratio * standard, ratio.clamp(0.8, 1.2) * standard).mean()
    torch.testing.assert_close(model._losses(batch, 0.2).policy[1], expected)


def test_tasks_whose_reward_is_no_mean_response_are_refused(small_rand) -> None:
    env = train_env(small_rand, env_id="KuaiRand-Retention-v0")
    with pytest.raises(ConfigError, match="a reward that is their mean"):
        agent(small_rand, env=env).learn(256)
    with pytest.raises(ConfigError, match="a reward that is their mean"):
        check_mean_response(np.array([0.5], np.float32), np.array([[1.0, 0.5]], np.float32))
    agent(small_rand, env=train_env(small_rand, env_id="KuaiRand-Request-v0")).learn(256)


def test_all_that_happened_is_logged(small) -> None:
    model = agent(small, env=train_env(small, max_len=5), fairness_coef=1.5)
    model.learn(256, log_interval=None)
    logged, buffer = model.logger.name_to_value, model.rollout_buffer
    popular = model.policy.catalogue.popular[buffer.actions]
    assert logged["rollout/popular_share"] == pytest.approx(popular.mean())
    imbalance = np.abs(2 * popular.mean(axis=2) - 1)
    assert logged["rollout/fairness"] == pytest.approx(-imbalance.mean(), abs=1e-6)
    for column, level in enumerate(("manager", "worker")):
        reward, value = (part[..., column].mean() for part in (buffer.rewards, buffer.values))
        assert logged[f"rollout/{level}_reward"] == pytest.approx(reward, abs=1e-5)
        assert logged[f"rollout/{level}_value"] == pytest.approx(value, abs=1e-6)
    assert logged["rollout/multiplier"] == 1.5
    assert 0 < logged["rollout/q"] <= 1
    assert 0 < logged["train/worker_entropy"] < np.log(240)
    assert logged["train/manager_entropy"] == pytest.approx(np.log(2 * np.pi * np.e * 0.25))


def test_it_trains_behind_a_purifier(small, dsrm) -> None:
    env = train_env(small, preference=dsrm.reads)
    model = agent(small, env=PurifyVecEnv(env, dsrm)).learn(256)
    raw = train_env(small, preference=dsrm.reads).reset()["state"][:, env.preference_slice]
    purified = dsrm.denoise(raw)
    states = model.rollout_buffer.observations["state"][0, :, : purified.shape[1]]
    np.testing.assert_allclose(states, purified, atol=1e-5)
    # A purified state is in the unit of scores, as a belief is.
    assert float(model.policy.worker.start_query[1, 1]) == 1.0
    np.testing.assert_allclose(model.rollout_buffer.credit.sum(axis=2), 0, atol=1e-5)


# The dial


@pytest.mark.parametrize("trained", [False, True])
def test_the_dial_sets_every_session_s_long_tail_share(small, trained: bool) -> None:
    # Of 48 popular items, so that sessions of at most 5 slates have enough for each share.
    model = agent(small, env=train_env(small, max_len=5))
    if trained:
        model.learn(512)
    shares = []
    for target in (0.1, 0.3, 0.5, 0.55, 0.75, 0.9):
        model.policy.set_fairness(target)
        test = train_env(small, n=32, seed=7, env_id="KuaiRec-v0", max_len=5)
        sessions = evaluate(model, test, 64)
        assert sessions.length.min() >= 3
        shares.append(summarise(sessions, test.catalogue.popular)["longtail_share"])
        assert shares[-1] == pytest.approx(target, abs=0.02)
        popular = test.catalogue.popular[sessions.slates] & (sessions.slates >= 0)
        missed = popular.sum(axis=(1, 2)) - (1 - target) * sessions.length * 10
        assert np.abs(missed).max() <= 0.501
    assert shares == sorted(shares)


def test_drawn_slates_keep_to_the_dial_as_well(small) -> None:
    model = agent(small)
    model.policy.set_fairness(0.7)
    env = train_env(small, n=8)
    slates, _ = model.predict(env.reset())
    assert (env.catalogue.popular[slates].sum(axis=1) == 3).all()


def test_the_dial_is_saved_and_can_be_given_back(small, tmp_path) -> None:
    model = agent(small)
    env = train_env(small, n=32)
    observation = env.reset()
    free, _ = model.predict(observation, deterministic=True)
    model.policy.set_fairness(0.2)
    dialled, _ = model.predict(observation, deterministic=True)
    assert (env.catalogue.popular[dialled].sum(axis=1) == 8).all()
    model.save(tmp_path / "agent")
    model.policy.save(tmp_path / "policy")
    for loaded in (
        HierarchicalPPO.load(tmp_path / "agent").policy,
        HierarchicalPolicy.load(tmp_path / "policy"),
    ):
        assert float(loaded.longtail_share) == pytest.approx(0.2)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], dialled)
    model.policy.set_fairness(None)
    np.testing.assert_array_equal(model.predict(observation, deterministic=True)[0], free)
    assert not (env.catalogue.popular[free].sum(axis=1) == 8).all()


@pytest.mark.parametrize("share", [-0.01, 1.5, np.nan])
def test_shares_outside_the_unit_interval_are_refused(small, share: float) -> None:
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        agent(small).policy.set_fairness(share)


def test_the_fairness_of_unbounded_slates_cannot_be_set(small) -> None:
    policy = agent(small, worker="unconstrained").policy
    with pytest.raises(ConfigError, match='unconstrained.*Train with worker="constrained"'):
        policy.set_fairness(0.5)


# Beliefs: the start, and what holds the worker there


def believing(dataset, n: int = 32, **options):
    return train_env(dataset, n, preference="belief", **options)


def open_band(model: HierarchicalPPO) -> None:
    """Lets the manager demand nothing."""
    with torch.no_grad():
        model.policy.manager[-1].bias[1] = -3.0


def step_by_step(model: HierarchicalPPO, env, steps: int = 4):
    """Observations and deterministic slates of sessions that the agent plays."""
    observation = env.reset()
    for _ in range(steps):
        slates, _ = model.predict(observation, deterministic=True)
        yield observation, slates
        observation, _, dones, _ = env.step(slates)
        assert not dones.any()


@pytest.mark.parametrize("worker", ["constrained", "band"])
@pytest.mark.parametrize("source", ["small", "small_rand"])
def test_an_untrained_worker_shows_the_slates_of_the_filter(
    source: str, worker: str, request
) -> None:
    dataset = request.getfixturevalue(source)
    env_id = "KuaiRec-Fair-v0" if source == "small" else "KuaiRand-Fair-v0"
    env = believing(dataset, env_id=env_id, max_len=9)
    model = agent(dataset, env=env, worker=worker)
    if worker == "constrained":
        model.policy.set_fairness(0.5)
    reference = make_reference("filter+quota", env.batch)
    for observation, slates in step_by_step(model, env):
        np.testing.assert_array_equal(np.sort(slates), np.sort(reference.slates(observation)))


def test_the_band_s_best_slate_has_the_best_sum_of_the_filter_s_scores(small) -> None:
    env = believing(small, max_len=9)
    model, popular = agent(small, env=env, worker="band"), env.catalogue.popular
    open_band(model)
    seen = set()
    for observation, slates in step_by_step(model, env):
        scores = env.batch.belief().scores()
        for row, slate in enumerate(slates):
            exposed = observation["exposed"][row]
            exposed = exposed[exposed >= 0]
            left = np.setdiff1d(np.arange(small.n_items), exposed)
            ahead = int(popular[exposed].sum()) * 2 - len(exposed)
            ranked = [np.sort(scores[row, left[popular[left] == group]])[::-1] for group in (1, 0)]
            # An item ahead of balance is 2 here, and none may be ahead by more than one.
            sums = {
                count: ranked[0][:count].sum() + ranked[1][: 10 - count].sum()
                for count in (4, 5, 6)
                if abs(ahead + 2 * (count - 5)) <= 2
            }
            best = max(sums, key=lambda count: sums[count])
            assert popular[slate].sum() == best
            assert scores[row, slate].sum() == pytest.approx(sums[best], abs=1e-3)
            seen.add(best)
    assert len(seen) > 1


@pytest.mark.parametrize("worker", WORKERS)
def test_popularity_counts_where_no_bounds_do(small, worker: str) -> None:
    policy = agent(small, worker=worker).policy
    observation = tensors(train_env(small, n=4).reset())
    features, exposures = described(policy)
    with torch.no_grad():
        scores = policy.score_items(observation, features, exposures)
        rarer = policy.score_items(observation, features, np.zeros_like(exposures))
    assert torch.equal(scores, rarer) == (worker == "constrained")
    assert (rarer >= scores).all()


class InScores(VecEnvWrapper):
    """Stands for a purifier of pooled states that gives beliefs."""

    preference_unit = "score"

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


def test_the_start_goes_by_the_unit_of_the_preference(small) -> None:
    raw, belief = train_env(small), believing(small)
    for env, expected in (
        (raw, 0.5),
        (VecMonitor(raw), 0.5),
        (belief, 1.0),
        (InScores(raw), 1.0),
        (VecMonitor(InScores(raw)), 1.0),
    ):
        model = agent(small, env=env)
        weight = model.policy.worker.query.weight
        taste = range(1, raw.catalogue.embedding.shape[1])
        assert [float(weight[i, i]) for i in taste] == [expected] * len(taste)
        assert float(weight.abs().sum()) == pytest.approx(expected * len(taste))
    chosen = agent(small, env=belief, policy_kwargs={"similarity": 0.25})
    assert float(chosen.policy.worker.query.weight[1, 1]) == 0.25


def moved(model: HierarchicalPPO, seed: int = 0) -> HierarchicalPPO:
    """The agent with other weights, not far away."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.worker.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def test_drift_is_nothing_at_first_and_half_the_variance_of_what_changed(small) -> None:
    env = believing(small)
    observation = tensors(env.reset())
    control = torch.zeros(32, 2)
    slates = torch.stack([torch.randperm(small.n_items)[:10] for _ in range(32)])
    model = agent(small, env=env, worker="band")
    policy, context = model.policy, model.policy._context(observation, control)
    assert float(policy.worker_drift(observation, control, slates).abs().max()) < 1e-8

    def scores() -> torch.Tensor:
        slates_ = policy.worker.distribution(context)
        with torch.no_grad():
            return (slates_.query @ slates_.key.T)[:, policy.worker.items.column_of_item]

    before = scores()
    moved(model)
    change = (scores() - before).gather(1, slates)
    expected = change.var(dim=1) / 2.0
    found = policy.worker_drift(observation, control, slates)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_an_anchor_holds_the_worker_alone(small) -> None:
    drifts = []
    for anchor in (0.0, 1.0, 30.0):
        env = believing(small, n=16)
        model = agent(small, env=env, worker="band", anchor=anchor).learn(1024)
        batch = model.rollout_buffer.samples()
        with torch.no_grad():
            drift = model.policy.worker_drift(batch.observations, batch.control, batch.slates)
        drifts.append(float(drift.mean()))
    assert drifts[0] > 3.0 * drifts[1] > 9.0 * drifts[2] > 0.0
    expected, model.anchor = model._losses(batch, 0.2), 0.0
    free = model._losses(batch, 0.2)
    torch.testing.assert_close(expected.policy[1] - free.policy[1], 30.0 * drift.mean())
    torch.testing.assert_close(expected.policy[0], free.policy[0])
    for a, b in zip(expected[1:], free[1:], strict=True):
        torch.testing.assert_close(a, b)


def test_a_band_is_that_of_the_rules_it_plays_under(small, tmp_path) -> None:
    wide = train_env(small, ad_bound=0.9)
    agent(small, env=wide, worker="band").save(tmp_path / "agent")
    loaded = HierarchicalPPO.load(tmp_path / "agent", env=train_env(small))
    assert wide.free_counts[0].tolist() == [1, 1]
    assert loaded.policy.worker.band.least.tolist() == [4, 4]
    assert loaded.policy.worker.band.most.tolist() == [6, 6]


@pytest.mark.parametrize("similarity", [-1.0, np.nan, "x"])
def test_impossible_similarities_are_refused(small, similarity) -> None:
    with pytest.raises(ConfigError, match="similarity must be"):
        agent(small, policy_kwargs={"similarity": similarity})


def test_a_loaded_agent_is_held_where_it_once_started(small, tmp_path) -> None:
    env = believing(small, n=16)
    model = agent(small, env=env, worker="band", anchor=2.0).learn(256)
    model.save(tmp_path / "agent")
    loaded = HierarchicalPPO.load(tmp_path / "agent", env=believing(small, n=16))
    assert loaded.anchor == 2.0
    batch = model.rollout_buffer.samples()
    drift, again = (
        one.policy.worker_drift(batch.observations, batch.control, batch.slates)
        for one in (model, loaded)
    )
    assert float(drift.mean()) > 0
    torch.testing.assert_close(again, drift)
    single = agent(small, env=believing(small, 16, slate_size=1, window=10), anchor=1.0)
    single.learn(256)  # of one item nothing changes beside another
    assert all(bool(torch.isfinite(one).all()) for one in single.policy.parameters())


@pytest.mark.parametrize("anchor", [-0.1, np.nan, np.inf, None, True])
def test_impossible_anchors_are_refused(small, anchor) -> None:
    with pytest.raises(ConfigError, match="anchor must be a finite number of at least 0"):
        agent(small, anchor=anchor)


# Item towers


def described(policy: HierarchicalPolicy) -> tuple[torch.Tensor, np.ndarray]:
    """What the worker knows of the catalogue's items, in the catalogue's order."""
    items = policy.worker.items
    return items.described[items.column_of_item], policy.catalogue.exposures


def test_scores_by_the_embedding_are_those_that_slates_are_drawn_by(small) -> None:
    policy = agent(small).learn(256).policy
    observation = train_env(small, n=4).reset()
    worker = policy.worker
    distribution: SlateDistribution = worker.distribution(context_of(policy, observation))
    expected = (distribution.query @ distribution.key.T)[:, worker.items.column_of_item]
    found = policy.score_items(tensors(observation), *described(policy))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        policy.manager[-1].bias[1] = -20.0  # nothing is demanded
        best = policy.score_items(tensors(observation), *described(policy)).topk(10, dim=1).indices
    slates, _ = policy.predict(observation, deterministic=True)
    np.testing.assert_array_equal(slates, best)


def test_item_features_are_columns_for_values_and_numbers(small, small_rand) -> None:
    features = item_features(small)
    codes = small.item_features.codes["category"]
    n_values = len(small.item_features.values["category"])
    assert features.shape == (240, n_values)  # one for each but the missing value, and the ones
    for item in (0, 17, 239):
        expected = np.zeros(n_values)
        expected[[code - 1 for code in codes[item] if code > 0]] = 1
        expected[-1] = 1
        np.testing.assert_array_equal(features[item], expected)
    numbers = small_rand.item_features.numbers["video_duration"]
    standard = item_features(small_rand)[:, -2]
    known = np.isfinite(numbers)
    expected = (numbers - numbers[known].mean()) / numbers[known].std()
    np.testing.assert_allclose(standard[known], expected[known], atol=1e-5)
    assert (standard[~known] == 0).all()


def test_a_dataset_without_item_features_has_no_matrix(small) -> None:
    nothing = dataclasses.replace(small.item_features, codes={}, values={}, numbers={})
    with pytest.raises(ConfigError, match="leave item_features out"):
        item_features(dataclasses.replace(small, item_features=nothing))


@pytest.mark.parametrize("source", ["small", "small_rand"])
def test_a_tower_of_features_starts_near_the_embedding_s_scores(source: str, request) -> None:
    dataset = request.getfixturevalue(source)
    env = train_env(dataset, n=8, env_id="KuaiRec-v0" if source == "small" else "KuaiRand-v0")
    observation = tensors(env.reset())

    def scores(features: np.ndarray | None) -> np.ndarray:
        policy = agent(dataset, env=env, policy_kwargs={"item_features": features}).policy
        with torch.no_grad():
            policy.manager[-1].weight.zero_()  # the same z for all
            return policy.score_items(observation, *described(policy)).numpy()

    expected, features = scores(None), item_features(dataset)
    found = scores(features)
    alike = [np.corrcoef(a, b)[0, 1] for a, b in zip(expected, found, strict=True)]
    assert min(alike) > 0.1  # a category and a duration do not tell more
    # What is left is what no linear map of the features could have told.
    popularity = env.catalogue.log_popularity[:, None]
    rest = expected - found
    assert np.abs(rest @ features).max() < 1e-2 < np.abs(expected @ features).max()
    assert np.abs(rest @ popularity).max() > 1e-2
    # With a row of its own for every item, that is nothing.
    np.testing.assert_allclose(scores(np.eye(len(popularity))), expected, atol=1e-3)


def test_a_tower_learns_and_scores_items_that_were_never_logged(small, tmp_path) -> None:
    features = item_features(small)
    model = agent(small, policy_kwargs={"item_features": features})
    start = model.policy.worker.items.projection.weight.clone()
    model.learn(256)
    assert (model.policy.worker.items.projection.weight != start).any()
    observation = tensors(train_env(small, n=3).reset())
    new = torch.as_tensor(np.stack([features[5], 0.5 * (features[5] + features[9])]))
    exposures = np.array([model.policy.catalogue.exposures[5], 0])
    scores = model.policy.score_items(observation, new, exposures)
    known = model.policy.score_items(observation, *described(model.policy))
    torch.testing.assert_close(scores[:, 0], known[:, 5])
    assert scores.shape == (3, 2)
    assert (scores[:, 0] != scores[:, 1]).all()
    model.save(tmp_path / "agent")
    loaded = HierarchicalPPO.load(tmp_path / "agent").policy
    torch.testing.assert_close(loaded.score_items(observation, new, exposures), scores)


@pytest.mark.parametrize("bad", ["rows", "dimensions", "numbers"])
def test_features_that_do_not_fit_the_items_are_refused(small, bad: str) -> None:
    features = item_features(small).copy()
    if bad == "rows":
        features = features[:-1]
    elif bad == "dimensions":
        features = features[:, 0]
    else:
        features[3, 0] = np.nan
    with pytest.raises(ConfigError, match=r"item_features must be \(240, f\) finite numbers"):
        agent(small, policy_kwargs={"item_features": features})


# What is refused


def test_observations_of_another_length_are_refused(small) -> None:
    other = train_env(small, n=50, max_len=9).reset()
    with pytest.raises(ConfigError, match="max_len and slate_size that it was trained with"):
        agent(small).predict(other)


@pytest.mark.parametrize(
    ("worker", "options"),
    [
        ("constrained", {}),
        ("constrained", {"observation_type": "dict"}),
        ("unconstrained", {"action_type": "slate"}),
    ],
)
def test_the_wrong_spaces_are_refused(small, worker: str, options: dict[str, str]) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 16, dataset=small, **options)
    expected = "HierarchicalPPO needs observation_type='dict' and action_type='slate'"
    with pytest.raises(ConfigError, match=expected):
        agent(small, env=env, worker=worker)


def test_a_checkpoint_of_other_items_is_refused(small, tmp_path) -> None:
    config = SyntheticConfig(n_users=400, n_test_users=80, n_items=240, events_per_user=40)
    other = train_env(synthetic_kuairec(seed=9, config=config))
    model = agent(small)
    model.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="use the dataset that it was trained on"):
        HierarchicalPPO.load(tmp_path / "agent", env=other)
    with pytest.raises(CheckpointError):
        model.set_env(other)


@pytest.mark.parametrize("option", ["target_kl", "normalize_advantage", "clip_range_vf"])
def test_options_without_a_meaning_here_are_refused(small, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        agent(small, **{option: 0.1})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fairness": "jain"}, "fairness must be one of"),
        ({"fairness_coef": -1.0}, "fairness_coef must be a finite number"),
        ({"fairness_target": np.nan}, "fairness_target must be a finite number"),
        ({"multiplier_step": np.inf}, "multiplier_step must be a finite number"),
    ],
)
def test_impossible_fairness_is_refused(small, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(small, **options)


def test_foreign_environments_and_trainers_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="catalogue"):
        HierarchicalPPO("HierarchicalPolicy", "CartPole-v1")
    env = train_env(small)
    flat = PPO(
        HierarchicalPolicy, env, policy_kwargs={"catalogue": env.catalogue}, n_steps=2, batch_size=4
    )
    with pytest.raises(ConfigError, match="train it with HierarchicalPPO"):
        flat.learn(32)
    with pytest.raises(ConfigError, match="worker must be one of"):
        agent(small, worker="free")


def test_a_flat_sample_of_the_buffer_is_refused(small) -> None:
    with pytest.raises(TypeError, match="samples"):
        agent(small).rollout_buffer.get(4)


# Groups of one's own, and the band


def in_three(small) -> np.ndarray:
    return np.arange(small.n_items) % 3


def test_a_worker_balances_three_groups(small) -> None:
    labels = in_three(small)
    env = train_env(small, groups=labels, max_len=8)
    model = agent(small, env=env, learning_rate=1e-2)
    assert model.policy.groups.names == ("0", "1", "2")
    model.learn(512)
    buffer = model.rollout_buffer
    counts = np.stack([(labels[buffer.actions] == group).sum(axis=2) for group in range(3)], -1)
    distance = np.abs(counts / 10 - 1 / 3).sum(axis=2)
    np.testing.assert_allclose(
        buffer.rewards[..., 0], buffer.rewards[..., 1] - 3.5 * distance, atol=1e-5
    )
    same = labels[buffer.actions]  # credit sums to zero over each group of a slate
    for group in range(3):
        credit = (buffer.credit[..., 10:] * (same == group)).sum(axis=2)
        np.testing.assert_allclose(credit, 0.0, atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_dial_takes_a_target_of_any_groups(small, deterministic: bool) -> None:
    labels = in_three(small)
    env = train_env(small, groups=labels, max_len=6, env_id="KuaiRec-v0")
    model = agent(small, env=env)
    for target, shares in (
        ({"0": 0.5, "1": 0.3, "2": 0.2}, (0.5, 0.3, 0.2)),
        ((0.25, 0.25, 0.5), (0.25, 0.25, 0.5)),
    ):
        model.policy.set_fairness(target=target)
        sessions = evaluate(model, env, 32, deterministic)
        for row in range(32):
            shown = labels[sessions.slates[row, : sessions.length[row]].ravel()]
            drift = np.bincount(shown, minlength=3) - np.array(shares) * len(shown)
            assert np.abs(drift).max() <= 1.0
    model.policy.set_fairness()
    assert bool(model.policy.worker.group_shares.isnan().all())
    for wrong, message in (
        ({"target": {"3": 1.0}}, "must be one of"),
        ({"target": (0.5, 0.6, 0.2)}, "sum to 1"),
        ({"longtail_share": 0.5}, "popularity groups alone"),
    ):
        with pytest.raises(ConfigError, match=message):
            model.policy.set_fairness(**wrong)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_band_costs_nothing_and_holds_every_session(small, tmp_path, deterministic) -> None:
    env = train_env(small, n=32, max_len=5)
    model = agent(small, env=env, worker="band", fairness_coef=0.0)
    open_band(model)
    popular = env.catalogue.popular
    for round_ in range(2):
        sessions = evaluate(
            model, train_env(small, n=32, seed=round_, max_len=5), 64, deterministic
        )
        counts = (popular[sessions.slates] & (sessions.slates >= 0)).sum(axis=2)
        steps = np.arange(counts.shape[1]) < sessions.length[:, None]
        assert set(np.unique(counts[steps])) <= {4, 5, 6}
        assert (counts[steps] != 5).any()
        assert np.abs(np.cumsum((counts - 5) * steps, axis=1)).max() == 1
        assert not sessions.penalised.any()
        model.learn(512)
    model.save(tmp_path / "agent")
    loaded, observation = HierarchicalPPO.load(tmp_path / "agent"), env.reset()
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0],
        model.predict(observation, deterministic=True)[0],
    )
    assert loaded.policy.worker.band.least.tolist() == [4, 4]


def test_a_band_needs_an_environment_that_says_what_is_free(small) -> None:
    with pytest.raises(ConfigError, match="window of whole slates"):
        agent(small, env=train_env(small, window=15), worker="band")
    env = train_env(small)
    with pytest.raises(ConfigError, match="needs free_counts"):
        HierarchicalPolicy(
            env.observation_space, env.action_space, lambda _: 1e-3, env.catalogue, worker="band"
        )


def test_groups_too_many_to_be_bounded_are_refused(small) -> None:
    env = train_env(small, groups=np.arange(small.n_items) % 80, env_id="KuaiRec-v0")
    with pytest.raises(ConfigError, match="at most 64 groups, got 80"):
        agent(small, env=env)
    groups = popularity_groups(env.catalogue.popular)
    assert agent(small, env=env, policy_kwargs={"groups": groups}).policy.groups is groups
