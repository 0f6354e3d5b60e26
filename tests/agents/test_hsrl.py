"""HSRL as a policy for Stable-Baselines3, and its credit for tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback

from dsrm_agents import HSRL, Codebook, HSRLPolicy, PurifyVecEnv, evaluate, make_vec_env
from dsrm_agents.common.slate_ppo import clipped_surrogate
from dsrm_agents.hsrl import hsrl as module
from dsrm_agents.hsrl.network import CONTEXTS
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.metrics import summarise

SLATES = {"observation_type": "dict", "action_type": "slate"}


def sessions(dataset, n: int = 16, seed: int = 0, env_id: str = "KuaiRec-Fair-v0", **options):
    return make_vec_env(env_id, n, "train", seed, dataset=dataset, **(SLATES | options))


def agent(dataset, env=None, seed: int = 0, **options) -> HSRL:
    defaults = {"n_steps": 16, "batch_size": 128, "learning_rate": 3e-3}
    env = sessions(dataset) if env is None else env
    return HSRL("HSRLPolicy", env, seed=seed, device="cpu", **(defaults | options))


def played(model, dataset, max_len: int = 9) -> dict[str, float]:
    test = sessions(dataset, n=200, seed=77, max_len=max_len)
    return summarise(evaluate(model, test, 200), test.catalogue.popular)


# Learning


@pytest.mark.parametrize("fairness", [0.0, 1.0])
def test_it_learns_quality(small, fairness: float) -> None:
    """Of all slates and of balanced ones alone, where it makes sessions longer.

    Where slates are free, balance is one of two optima: seeds differ in which they come to.
    """
    model = agent(
        small,
        sessions(small, max_len=9),
        gamma=0.5,
        learning_rate=5e-3,
        policy_kwargs={"sharpness": 0.0, "fairness": fairness},
    )
    before = played(model, small)
    model.learn(8192)
    after = played(model, small)
    assert after["r_each"] > before["r_each"] + 0.03
    if fairness == 1.0:
        assert after["ad"] == before["ad"] == 0.0
        assert after["len"] > before["len"] + 0.25


@pytest.mark.parametrize(
    ("algorithm", "steps", "options"),
    [
        (PPO, 6144, {"learning_rate": 1e-2, "n_steps": 16, "batch_size": 128, "n_epochs": 2}),
        (A2C, 16_384, {"learning_rate": 3e-3, "n_steps": 5}),
    ],
)
def test_sb3_s_own_algorithms_train_the_policy(small, algorithm, steps, options) -> None:
    env = sessions(small, max_len=9)
    known = {"catalogue": env.catalogue, "sharpness": 0.0}
    model = algorithm(HSRLPolicy, env, policy_kwargs=known, seed=0, gamma=0.0, **options)
    before = played(model, small)["r_each"]
    model.learn(steps)
    assert played(model, small)["r_each"] > before + 0.05


def test_it_starts_from_what_the_log_knows_of_quality(small) -> None:
    blank = agent(small, sessions(small, max_len=9), policy_kwargs={"sharpness": 0.0})
    known = agent(small, sessions(small, max_len=9))
    assert played(known, small)["r_each"] > played(blank, small)["r_each"] + 0.1
    quality = -known.policy.catalogue.item_embedding[:, 0]
    wrong = agent(small, sessions(small, max_len=9), policy_kwargs={"item_quality": quality})
    assert played(wrong, small)["r_each"] < played(blank, small)["r_each"]


def test_training_twice_gives_the_same_agent(small) -> None:
    one, two = (agent(small, seed=5).learn(768) for _ in range(2))
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_it_trains_behind_a_purifier(small, dsrm) -> None:
    env = PurifyVecEnv(sessions(small, preference="parts"), dsrm)
    model = agent(small, env, policy_kwargs={"fairness": 1.0})
    model.learn(512)
    worn = PurifyVecEnv(sessions(small, n=4, seed=3, preference="parts"), dsrm)
    slates, _ = model.predict(worn.reset())
    assert (model.policy.catalogue.popular[slates].sum(axis=1) == 5).all()


# Slates


@pytest.mark.parametrize("fairness", [None, 0.0, 1.0])
@pytest.mark.parametrize("deterministic", [False, True])
def test_predictions_are_slates_of_distinct_unexposed_items(small, fairness, deterministic) -> None:
    model = agent(small, policy_kwargs={"fairness": fairness})
    env = sessions(small, n=4, seed=3)
    popular, observation = env.catalogue.popular, env.reset()
    for _ in range(8):
        slates, _ = model.predict(observation, deterministic=deterministic)
        for slate, exposed in zip(slates, observation["exposed"], strict=True):
            assert len(set(slate)) == 10
            assert not set(slate) & set(exposed[exposed >= 0])
        if fairness == 1.0:
            assert (popular[slates].sum(axis=1) == 5).all()
        observation, _, _, _ = env.step(slates)
    one, _ = model.predict({name: part[0] for name, part in observation.items()})
    assert one.shape == (10,)


def test_a_group_that_runs_out_gives_way(small) -> None:
    model = agent(small, sessions(small, max_len=12), policy_kwargs={"fairness": 1.0})
    observation = sessions(small, n=4, max_len=12).reset()
    popular = np.flatnonzero(model.policy.catalogue.popular)
    assert len(popular) == 48
    observation["exposed"][:, :46] = popular[:46]
    slates, _ = model.predict(observation)
    assert all(set(popular[46:]) <= set(slate) and len(set(slate)) == 10 for slate in slates)


# Credit


@pytest.mark.parametrize("fairness", [None, 0.5])
@pytest.mark.parametrize("context", CONTEXTS)
def test_re_evaluation_reproduces_the_rollout_s_probabilities(small, fairness, context) -> None:
    model = agent(small, policy_kwargs={"fairness": fairness, "context": context}, n_epochs=1)
    seen = []
    model.train, train = lambda: seen.append(model._rollout()), model.train
    model.learn(256)
    rollout = seen[0]
    drawn = model.rollout_buffer.log_probs.reshape(-1)
    np.testing.assert_allclose(rollout.old_log_prob.sum((1, 2)), drawn, rtol=2e-4, atol=2e-4)
    train()


def test_items_are_credited_with_their_own_answers(small) -> None:
    model = agent(small, gamma=0.0, gae_lambda=0.0)
    seen = []
    model.train = lambda: seen.append(model._rollout())
    model.learn(256)
    rollout, buffer = seen[0], model.rollout_buffer
    # Without a future a return is the reward, the mean of the answers; on top comes what differs.
    answers = (rollout.returns[:, None] + rollout.credit).view(16, 16, 10).numpy()
    np.testing.assert_allclose(answers.mean(axis=2), buffer.rewards, atol=1e-5)
    # Where the session goes on, the next observation shows the answers.
    steps, slots = np.nonzero(buffer.episode_starts[1:] == 0)
    assert len(steps) > 100
    shown = (buffer.observations["exposed"][steps, slots] >= 0).sum(axis=1) // 10
    responses = buffer.observations["responses"].reshape(16, 16, -1, 10)
    expected = responses[steps + 1, slots, shown]
    assert expected.std() > 0.1
    np.testing.assert_allclose(answers[steps, slots], expected, atol=1e-5)


@pytest.mark.parametrize("fairness", [None, 0.5])
@pytest.mark.parametrize("token_credit", [True, False])
def test_a_token_s_advantage_is_above_what_was_known_before_it(
    small, monkeypatch, fairness, token_credit: bool
) -> None:
    known = {"fairness": fairness}
    model = agent(small, policy_kwargs=known, token_credit=token_credit, learning_rate=0.0)
    seen = {}

    def spy(log_prob, old, advantages, weight, clip):
        seen.update(advantages=advantages.clone())
        return clipped_surrogate(log_prob, old, advantages, weight, clip)

    monkeypatch.setattr(module, "clipped_surrogate", spy)
    torch.nn.init.normal_(model.policy.critic.value[2].weight)
    model.train = lambda: None
    model.learn(256)
    batch = model._rollout()
    model._losses(batch, 0.2)
    now = model.policy.evaluate_slates(batch.observations, batch.slates)
    own = batch.returns[:, None, None] + batch.credit[:, :, None]
    expected = own - (now.token_values if token_credit else now.values[:, :, None])
    expected = expected.expand_as(now.paths.log_prob).clone()
    if fairness is not None:
        expected[..., 0] -= batch.credit
    torch.testing.assert_close(seen["advantages"].expand_as(expected), expected.detach())


def test_what_follows_counts_where_a_session_goes_on_and_not_where_it_ends(small) -> None:
    model = agent(small, sessions(small, max_len=4), gamma=0.5, gae_lambda=0.0, learning_rate=0.0)
    with torch.no_grad():
        model.policy.critic.value[2].bias.fill_(10.0)
        model.policy.critic.value[2].weight.zero_()
    model.train = lambda: None
    model.learn(256)
    buffer = model.rollout_buffer
    ended = buffer.episode_starts[1:].astype(bool)
    assert ended.any() and not ended.all()
    rewards, returns = buffer.rewards[:-1], buffer.returns[:-1]
    np.testing.assert_allclose(returns, rewards + np.where(ended, 0.0, 5.0), atol=1e-4)


def test_a_step_cap_is_bootstrapped(small) -> None:
    model = agent(small, sessions(small, max_steps=3), n_steps=6, batch_size=96, gamma=0.5)
    with torch.no_grad():
        model.policy.critic.value[2].bias.fill_(10.0)
    model.train = lambda: None
    model.learn(16 * 6)
    rewards = model.rollout_buffer.rewards
    assert rewards[[2, 5]].min() > 4.0 and rewards[[0, 1, 3, 4]].max() <= 1.0


def test_the_weights_of_the_levels_are_trained(small) -> None:
    model = agent(small)
    assert model.policy.critic.omega.tolist() == [0.0] * len(model.policy.trie.widths)
    model.learn(512)
    assert model.policy.critic.omega.detach().std() > 1e-4
    logged = model.logger.name_to_value
    weights = [value for name, value in logged.items() if "critic_weight" in name]
    assert len(weights) == len(model.policy.trie.widths)
    assert sum(weights) == pytest.approx(1.0, abs=1e-5)


# Files


def test_saved_and_loaded_it_predicts_and_continues(small, tmp_path) -> None:
    codebook = Codebook.fit(sessions(small, 1).catalogue.known, levels=2, codes=6, seed=4)
    own = {"codebook": codebook, "fairness": 0.6, "context": "expected"}
    model = agent(small, policy_kwargs=own).learn(256)
    model.save(tmp_path / "agent")
    observation = sessions(small, seed=9).reset()
    before, _ = model.predict(observation, deterministic=True)
    loaded = HSRL.load(tmp_path / "agent", env=sessions(small))
    np.testing.assert_array_equal(before, loaded.predict(observation, deterministic=True)[0])
    assert loaded.policy.codebook.fingerprint == codebook.fingerprint
    loaded.learn(256, reset_num_timesteps=False)
    assert loaded.num_timesteps == 512
    model.policy.save(tmp_path / "policy")
    policy = HSRLPolicy.load(tmp_path / "policy")
    assert (policy.fairness, policy.context) == (0.6, "expected")
    np.testing.assert_array_equal(before, policy.predict(observation, deterministic=True)[0])


def test_a_codebook_that_was_fitted_for_it_is_saved_with_it(small, tmp_path, monkeypatch) -> None:
    model = agent(small)
    model.save(tmp_path / "agent")
    monkeypatch.setattr(Codebook, "fit", None)
    loaded = HSRL.load(tmp_path / "agent")
    assert loaded.policy.codebook.fingerprint == model.policy.codebook.fingerprint


def test_a_checkpoint_of_other_items_is_refused(small, tmp_path) -> None:
    config = SyntheticConfig(n_users=400, n_test_users=80, n_items=240, events_per_user=40)
    other = sessions(synthetic_kuairec(seed=9, config=config))
    model = agent(small)
    model.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="use the dataset that it was trained on"):
        HSRL.load(tmp_path / "agent", env=other)


# What is refused


@pytest.mark.parametrize("options", [{}, {"action_type": "slate"}, {"observation_type": "dict"}])
def test_the_wrong_spaces_are_refused(small, options: dict[str, str]) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 16, dataset=small, **options)
    with pytest.raises(ConfigError, match="HSRL needs observation_type='dict'"):
        agent(small, env)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fairness": 1.5}, r"fairness must lie in \[0, 1\]"),
        ({"context": "free"}, "context must be one of"),
        ({"net_arch": [8]}, "net_arch"),
        ({"item_quality": np.zeros(239)}, r"item_quality must be \(240,\) finite"),
        ({"item_quality": np.full(240, np.nan)}, "item_quality must be"),
        ({"sharpness": -1.0}, "sharpness must be a finite number"),
        ({"dim": 0}, "dim"),
        ({"hidden": 0}, "hidden"),
        ({"codebook": Codebook.fit(np.eye(4))}, "ids of 4 items, the catalogue has 240"),
    ],
)
def test_impossible_policies_are_refused(small, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(small, policy_kwargs=options)


def test_callbacks_begin_once_and_see_every_step(small) -> None:
    class Counter(BaseCallback):
        begun = steps = 0

        def _init_callback(self) -> None:
            self.begun += 1

        def _on_step(self) -> bool:
            self.steps += 1
            return True

    counter = Counter()
    model = agent(small).learn(256, callback=counter)
    model.learn(256, callback=counter, reset_num_timesteps=False)
    assert (counter.begun, counter.steps) == (2, 32)


def test_another_codebook_s_weights_are_refused(small, tmp_path) -> None:
    known = sessions(small, 1).catalogue.known
    one, two = (Codebook.fit(known, seed=seed) for seed in (0, 1))
    weights = agent(small, policy_kwargs={"codebook": one}).policy.state_dict()
    with pytest.raises(CheckpointError, match="trained with other ids"):
        agent(small, policy_kwargs={"codebook": two}).policy.load_state_dict(weights)


def test_sessions_that_show_more_than_there_is_are_refused(small) -> None:
    env = sessions(small, max_len=60, allow_repeats=True)
    with pytest.raises(ConfigError, match="Fewer than 10 items are left"):
        agent(small, env, n_steps=64).learn(16 * 64)


@pytest.mark.parametrize("option", ["target_kl", "normalize_advantage", "clip_range_vf"])
def test_options_without_a_meaning_here_are_refused(small, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        agent(small, **{option: 0.1})
    with pytest.raises(ConfigError, match="n_epochs"):
        agent(small, n_epochs=0)


def test_tasks_whose_items_or_rewards_are_others_are_refused(small_rand, small) -> None:
    env = sessions(small_rand, env_id="KuaiRand-Retention-v0")
    with pytest.raises(ConfigError, match="a reward that is their mean"):
        agent(small_rand, env).learn(256)
    with pytest.raises(ConfigError, match="catalogue"):
        HSRL("HSRLPolicy", "CartPole-v1")
    observation = sessions(small).reset()
    with pytest.raises(ConfigError, match="ask slates"):
        agent(small).policy.get_distribution(observation)


def test_every_slate_of_three_groups_is_balanced(small) -> None:
    labels = np.arange(small.n_items) % 3
    env = sessions(small, max_len=5, slate_size=6, groups=labels)
    model = agent(small, env, policy_kwargs={"fairness": 1.0}).learn(256)
    counts = np.stack(
        [(labels[model.rollout_buffer.actions] == group).sum(-1) for group in range(3)]
    )
    assert (counts == 2).all()
    slates, _ = model.predict(env.reset(), deterministic=True)
    assert all((labels[slates] == group).sum(axis=1).tolist() == [2] * 16 for group in range(3))
    obs = {name: torch.as_tensor(part) for name, part in env.reset().items()}
    with torch.no_grad():
        slates, _, log_prob = model.policy(obs)
        paths = model.policy.slates(obs).paths(slates)
    torch.testing.assert_close(paths.log_prob.sum(dim=(1, 2)), log_prob, atol=1e-4, rtol=1e-4)
