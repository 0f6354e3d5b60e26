from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dsrm_agents import HierarchicalPolicy, HierarchicalPPO, evaluate, make_vec_env
from dsrm_agents.hrl.buffers import level_advantages
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.metrics import summarise

SLATES = {"observation_type": "dict", "action_type": "slate"}


def train_env(small, n: int = 16, seed: int = 0, **options):
    return make_vec_env("KuaiRec-Fair-v0", n, "train", seed, dataset=small, **SLATES, **options)


def agent(small, seed: int = 0, **options) -> HierarchicalPPO:
    defaults = {"n_steps": 16, "batch_size": 128, "gamma": 0.0, "learning_rate": 3e-3}
    return HierarchicalPPO(
        "HierarchicalPolicy", train_env(small), seed=seed, device="cpu", **(defaults | options)
    )


def test_advantages_against_a_hand_computation() -> None:
    # One slot, three steps; the second step is the last of its session.
    rewards = np.array([[[1.0, 2.0]], [[0.0, 4.0]], [[3.0, 0.0]]], np.float32)
    values = np.array([[[0.5, 1.0]], [[1.0, 0.0]], [[2.0, 2.0]]], np.float32)
    starts = np.array([[1.0], [0.0], [1.0]], np.float32)
    gammas = np.array([0.5, 1.0], np.float32)
    found = level_advantages(
        rewards, values, starts, np.array([[4.0, 6.0]], np.float32), np.array([False]), gammas, 0.5
    )
    # Manager: d2 = 3 + .5*4 - 2 = 3; d1 = 0 - 1 = -1 (end); d0 = 1 + .5*1 - .5 = 1, + .25*(-1).
    np.testing.assert_allclose(found[:, 0, 0], [0.75, -1.0, 3.0])
    # Worker: d2 = 0 + 6 - 2 = 4; d1 = 4; d0 = 2 + 0 - 1 = 1, + .5*4.
    np.testing.assert_allclose(found[:, 0, 1], [3.0, 4.0, 4.0])


def test_no_gradient_crosses_levels(small) -> None:
    model = agent(small)
    model.learn(256)
    batch = next(model.rollout_buffer.minibatches(64, np.random.default_rng(0)))
    policy = model.policy
    groups = {group["name"]: group["params"] for group in policy.optimizer.param_groups}
    everything = {id(parameter) for parameter in policy.parameters()}
    assert everything == {id(one) for group in groups.values() for one in group}
    policy_loss, value_loss, _ = model._losses(batch, 0.2)
    for loss, own in (
        (policy_loss[0], ["manager"]),
        (policy_loss[1], ["worker"]),
        (value_loss.sum(), ["critic"]),
    ):
        policy.optimizer.zero_grad()
        loss.backward(retain_graph=True)
        moved = [
            name
            for name, group in groups.items()
            if any(one.grad is not None and one.grad.abs().sum() > 0 for one in group)
        ]
        assert moved == own


def test_re_evaluation_reproduces_the_rollout_s_probabilities(small) -> None:
    model = agent(small, learning_rate=0.0)
    model.learn(256)
    for batch in model.rollout_buffer.minibatches(64, np.random.default_rng(0)):
        with torch.no_grad():
            again = model.policy.evaluate_decision(batch.observations, batch.control, batch.slates)
        torch.testing.assert_close(again.log_prob, batch.old_log_prob, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(again.values, batch.old_values, atol=1e-5, rtol=1e-4)


def test_it_learns_quality_and_balance(small) -> None:
    model = HierarchicalPPO(
        "HierarchicalPolicy",
        train_env(small, max_len=9),
        n_steps=16,
        batch_size=128,
        gamma=0.0,
        learning_rate=3e-3,
        fairness_coef=2.0,
        policy_kwargs={"manager_lr_scale": 3.0},
        seed=0,
        device="cpu",
    )
    test = train_env(small, n=200, seed=77, max_len=9)
    before = summarise(evaluate(model, test, 200), test.catalogue.popular)
    model.learn(16_000)
    test.seed(77)
    after = summarise(evaluate(model, test, 200), test.catalogue.popular)
    assert after["r_each"] > before["r_each"] + 0.05
    assert before["q"] > 0.3
    assert after["q"] <= 0.05
    assert after["len"] > before["len"]


def test_training_twice_gives_the_same_agent(small) -> None:
    one, two = agent(small, seed=5).learn(768), agent(small, seed=5).learn(768)
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_saved_and_loaded_it_predicts_and_continues(small, tmp_path) -> None:
    model = agent(small)
    model.learn(256)
    model.save(tmp_path / "agent")
    observation = train_env(small, seed=9).reset()
    before, _ = model.predict(observation, deterministic=True)
    loaded = HierarchicalPPO.load(tmp_path / "agent", env=train_env(small))
    np.testing.assert_array_equal(before, loaded.predict(observation, deterministic=True)[0])
    assert loaded.manager_gamma == model.manager_gamma
    loaded.learn(256, reset_num_timesteps=False)
    assert loaded.num_timesteps == 512
    model.policy.save(tmp_path / "policy")
    policy = HierarchicalPolicy.load(tmp_path / "policy")
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


@pytest.mark.parametrize(("demand", "allowed"), [(1.0, {5}), (0.75, {4, 5, 6})])
def test_the_fairness_demand_can_be_set_after_training(small, tmp_path, demand, allowed) -> None:
    model = agent(small)
    model.policy.set_fairness(demand)
    observation = train_env(small, n=32).reset()
    popular = train_env(small).catalogue.popular
    for _ in range(5):
        counts = popular[model.predict(observation)[0]].sum(axis=1)
        assert set(counts.tolist()) <= allowed
    model.save(tmp_path / "agent")
    loaded = HierarchicalPPO.load(tmp_path / "agent").policy
    assert float(loaded.fairness_demand) == pytest.approx(demand)
    model.policy.set_fairness(None)
    assert model.policy.weights(torch.zeros(1, 2))[1].item() == 0.5
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        model.policy.set_fairness(1.5)


def test_the_unconstrained_worker_is_bound_by_nothing(small) -> None:
    model = agent(small, policy_kwargs={"worker": "unconstrained"})
    model.policy.set_fairness(1.0)
    observation = train_env(small, n=64).reset()
    counts = train_env(small).catalogue.popular[model.predict(observation)[0]].sum(axis=1)
    assert len(set(counts.tolist())) > 1


def test_a_step_cap_is_bootstrapped(small) -> None:
    env = train_env(small, max_steps=3)
    model = HierarchicalPPO(
        "HierarchicalPolicy", env, n_steps=6, seed=0, learning_rate=0.0, device="cpu"
    )
    with torch.no_grad():
        model.policy.manager_critic[-1].bias.fill_(10.0)
    model.learn(16 * 6)
    rewards = model.rollout_buffer.rewards
    # Steps 3 and 6 end by the cap: their manager reward holds gamma * V on top.
    assert rewards[[2, 5], :, 0].min() > 8.0
    assert rewards[[0, 1, 3, 4], :, 0].max() <= 1.0


def test_observations_of_another_length_are_refused(small) -> None:
    other = train_env(small, n=50, max_len=9).reset()
    with pytest.raises(ConfigError, match="max_len and slate_size that it was trained with"):
        agent(small).predict(other)


@pytest.mark.parametrize(
    "options",
    [{}, {"observation_type": "dict"}, {"action_type": "slate"}],
)
def test_the_wrong_spaces_are_refused(small, options) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, **options)
    with pytest.raises(ConfigError, match="observation_type='dict' and action_type='slate'"):
        HierarchicalPPO("HierarchicalPolicy", env)


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


def test_the_fairness_term_is_the_slate_s_imbalance(small) -> None:
    model = agent(small)
    popular = np.flatnonzero(model.policy.catalogue.popular)[:10]
    tail = np.flatnonzero(~model.policy.catalogue.popular)[:10]
    slates = np.stack([popular, tail, np.r_[popular[:5], tail[:5]], np.r_[popular[:4], tail[:6]]])
    np.testing.assert_allclose(model.fairness(slates), [-1.0, -1.0, 0.0, -0.2], atol=1e-6)


def test_the_manager_is_paid_for_fairness_and_the_worker_is_not(small) -> None:
    model = agent(small, fairness_coef=3.0)
    model.learn(256)
    buffer = model.rollout_buffer
    fairness = model.fairness(buffer.actions.reshape(-1, 10).astype(int)).reshape(16, 16)
    np.testing.assert_allclose(
        buffer.rewards[..., 0], buffer.rewards[..., 1] + 3.0 * fairness, atol=1e-5
    )


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
        agent(small, policy_kwargs={"worker": "free"})
