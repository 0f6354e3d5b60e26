"""MOFIR: a vector critic, replayed preferences, and one agent for every trade-off."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from dsrm_agents import PurifyVecEnv, ScorerVecEnv, evaluate, make_vec_env
from dsrm_agents.baselines.mofir import MOFIR, PreferenceVecEnv, relabelled
from kuaisim_gym.errors import ConfigError

N = 6
OPTIONS = {
    "learning_rate": 1e-3,
    "gamma": 0.9,
    "batch_size": 64,
    "buffer_size": 20_000,
    "learning_starts": 100,
    "policy_kwargs": {"net_arch": [64, 64]},
    "seed": 0,
    "device": "cpu",
}


def sessions(small, n: int = N, **options) -> VecEnv:
    options = {"max_len": 5, "action_type": "scorer"} | options
    return make_vec_env("KuaiRec-Fair-v0", n, seed=3, dataset=small, **options)


def some_actions(steps: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (steps, N, 10)).astype(np.float32)


# The environment


def test_a_preference_lasts_a_session_and_its_last_observation(small) -> None:
    env, plain = PreferenceVecEnv(sessions(small)), sessions(small)
    assert env.observation_space.shape == (15,)
    seen = env.reset()
    np.testing.assert_array_equal(seen[:, :13], plain.reset())
    drawn = [seen[:, 13:]]
    for actions in some_actions(12):
        before = seen[:, 13:]
        seen, _, dones, infos = env.step(actions)
        expected, _, _, others = plain.step(actions)
        assert all(one in env.observation_space for one in seen)
        np.testing.assert_array_equal(seen[:, :13], expected)
        np.testing.assert_array_equal(seen[~dones, 13:], before[~dones])
        assert (seen[dones, 13:] != before[dones]).all()
        for slot in np.flatnonzero(dones):
            last, other = (one[slot]["terminal_observation"] for one in (infos, others))
            assert last.dtype == np.float32
            np.testing.assert_array_equal(last, np.append(other, before[slot]))
        drawn.append(seen[dones, 13:])
    drawn = np.concatenate(drawn)
    assert len(drawn) >= 3 * N
    np.testing.assert_allclose(drawn.sum(axis=1), 1.0, atol=1e-6)


def test_preferences_are_uniform_and_a_slot_s_own(small) -> None:
    env = PreferenceVecEnv(sessions(small))
    env.seed(7)
    drawn = np.array([env.reset()[:, 13] for _ in range(400)])
    np.testing.assert_allclose(
        np.histogram(drawn, bins=4, range=(0, 1))[0] / drawn.size, 0.25, atol=0.03
    )
    env.seed(7)
    np.testing.assert_array_equal([env.reset()[:, 13] for _ in range(3)], drawn[:3])
    env.seed(8)  # whose slot 0 is slot 1 of before
    np.testing.assert_array_equal([env.reset()[:-1, 13] for _ in range(3)], drawn[:3, 1:])


def test_a_given_preference_is_kept(small) -> None:
    env = PreferenceVecEnv(sessions(small), preference=0.25)
    seen, ends = [env.reset()], 0
    for actions in some_actions(8):
        observation, _, dones, _ = env.step(actions)
        seen.append(observation)
        ends += dones.sum()
    assert ends >= N
    np.testing.assert_array_equal(np.concatenate(seen)[:, 13:], [[0.25, 0.75]] * len(seen) * N)


@pytest.mark.parametrize("purified", [False, True])
def test_both_rewards_are_those_of_the_record(small, dsrm, purified: bool) -> None:
    env: VecEnv = sessions(small, preference=dsrm.reads if purified else "pooled")
    env = PreferenceVecEnv(PurifyVecEnv(env, dsrm) if purified else env)
    popular = env.get_attr("catalogue")[0].popular
    given: list[list[np.ndarray]] = [[] for _ in range(N)]
    seen, ends = env.reset(), 0
    for actions in some_actions(10):
        w = seen[:, 13:]
        seen, rewards, dones, infos = env.step(actions)
        for slot, info in enumerate(infos):
            vector = info["reward_vector"]
            assert vector.shape == (2,)
            assert vector.dtype == np.float32
            given[slot].append(vector)
            assert rewards[slot] == pytest.approx(w[slot] @ vector, abs=1e-6)
        for slot in np.flatnonzero(dones):
            record, steps = infos[slot]["record"], infos[slot]["record"].length[0]
            longtail = [sum(not popular[item] for item in slate) / 10 for slate in record.slates[0]]
            expected = np.column_stack([record.rewards[0, :steps], longtail[:steps]])
            np.testing.assert_allclose(given[slot], expected, atol=1e-6)
            given[slot] = []
            ends += 1
    assert ends >= N


@pytest.mark.parametrize("preference", [-0.1, 1.1, float("nan")])
def test_preferences_off_the_simplex_are_refused(small, preference: float) -> None:
    with pytest.raises(ConfigError, match=r"in \[0, 1\]"):
        PreferenceVecEnv(sessions(small), preference)


@pytest.mark.parametrize(
    "options",
    [{"action_type": "discrete"}, {"action_type": "slate"}, {"observation_type": "dict"}],
)
def test_other_spaces_are_refused(small, options) -> None:
    with pytest.raises(ConfigError, match=f"beneath them.*{next(iter(options.values()))}"):
        PreferenceVecEnv(sessions(small, **options))


def test_a_scorer_beneath_is_refused(small) -> None:
    with pytest.raises(ConfigError, match="slate"):
        PreferenceVecEnv(ScorerVecEnv(sessions(small, action_type="slate"), quota=False))


# The algorithm


class TugOfWar(gym.Env):
    """Utility pulls the action to 1, fairness to -1: what is best for w is w[0] - w[1].

    Two steps a session; the second pays twice.
    """

    observation_space = spaces.Box(0.0, 1.0, (3,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.second, self.utility = False, self.np_random.random()
        return self._seen(), {}

    def step(self, action):
        reward = rewards_of(action[0]) * (2 if self.second else 1)
        done, self.second = self.second, True
        return self._seen(), 0.0, done, False, {"reward_vector": reward}

    def _seen(self) -> np.ndarray:
        return np.array([self.second, self.utility, 1 - self.utility], dtype=np.float32)


def rewards_of(action: float) -> np.ndarray:
    return np.array([1 - (action - 1) ** 2 / 4, 1 - (action + 1) ** 2 / 4], dtype=np.float32)


@pytest.fixture(scope="module")
def tug() -> MOFIR:
    """Trained on the tug-of-war, with nothing in the scalar reward."""
    env = DummyVecEnv([TugOfWar] * 8)
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.3))
    options = OPTIONS | {"tau": 0.02, "action_l2": 0.0}  # actions have a length that counts
    return MOFIR("MlpPolicy", env, action_noise=noise, **options).learn(12_000)


def test_it_learns_the_best_action_of_every_preference(tug: MOFIR) -> None:
    utility = np.linspace(0, 1, 11)
    for second in (0, 1):
        seen = np.column_stack([np.full(11, second), utility, 1 - utility]).astype(np.float32)
        actions = tug.predict(seen)[0][:, 0]
        np.testing.assert_allclose(actions, 2 * utility - 1, atol=0.25)
        assert (np.diff(actions) > 0).all()


def test_its_critic_tells_the_objectives_apart(tug: MOFIR) -> None:
    # What an action earns does not depend on w; what follows it does, through the action of w.
    for utility in (0.2, 0.5, 0.8):
        for action in (-0.5, 0.0, 0.5):
            following = 2 * rewards_of(2 * utility - 1)
            for second, expected in (
                (1, 2 * rewards_of(action)),
                (0, rewards_of(action) + 0.9 * following),
            ):
                seen = torch.tensor([[second, utility, 1 - utility]])
                (values,) = tug.critic(seen, torch.tensor([[action]]))
                np.testing.assert_allclose(values.detach().numpy()[0], expected, atol=0.2)


def three_transitions() -> ReplayBufferSamples:
    w = torch.tensor([[0.5, 0.5], [0.25, 0.75], [1.0, 0.0]])
    return ReplayBufferSamples(
        observations=torch.cat([torch.tensor([[1.0], [2.0], [3.0]]), w], dim=1),
        actions=torch.tensor([[0.1], [0.2], [0.3]]),
        next_observations=torch.cat([torch.tensor([[4.0], [5.0], [6.0]]), w], dim=1),
        dones=torch.tensor([[0.0], [0.0], [1.0]]),
        rewards=torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    )


def test_a_transition_is_replayed_with_the_preference_of_another() -> None:
    twice = relabelled(three_transitions())
    again = [[1, 1, 0], [2, 0.5, 0.5], [3, 0.25, 0.75]]
    first = [[1, 0.5, 0.5], [2, 0.25, 0.75], [3, 1, 0]]
    assert twice.observations.tolist() == first + again
    assert twice.next_observations.tolist() == [[s + 3, *w] for s, *w in first + again]
    for name in ("actions", "dones", "rewards"):
        once = getattr(three_transitions(), name).tolist()
        assert getattr(twice, name).tolist() == once + once


def linear_agent() -> MOFIR:
    """Nets without hidden layers: mu = tanh(w_u), Q = [s + 2 a, 10 w_f - a], targets half of it."""
    options = OPTIONS | {"policy_kwargs": {"net_arch": []}}
    agent = MOFIR("MlpPolicy", DummyVecEnv([TugOfWar]), **options)
    weights = {"critic": [[1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 10.0, -1.0]], "actor": [[0.0, 1.0, 0.0]]}
    with torch.no_grad():
        for name, weight in weights.items():
            for net, scale in (
                (getattr(agent, name), 1.0),
                (getattr(agent, f"{name}_target"), 0.5),
            ):
                for one in net.parameters():
                    one.copy_(scale * torch.tensor(weight) if one.ndim == 2 else torch.zeros(1))
    return agent


def test_targets_and_losses_against_a_hand_computation() -> None:
    agent, twice = linear_agent(), relabelled(three_transitions())
    a = np.tanh([0.25, 0.125, 0.0, 0.5, 0.25, 0.0])  # mu' of w, then of w_j; the third are ends
    expected = [
        [1 + 0.9 * (2 + a[0]), 2 + 0.9 * (2.5 - a[0] / 2)],
        [3 + 0.9 * (2.5 + a[1]), 4 + 0.9 * (3.75 - a[1] / 2)],
        [5, 6],
        [1 + 0.9 * (2 + a[3]), 2 + 0.9 * (0.0 - a[3] / 2)],
        [3 + 0.9 * (2.5 + a[4]), 4 + 0.9 * (2.5 - a[4] / 2)],
        [5, 6],
    ]
    np.testing.assert_allclose(agent.targets(twice), expected, atol=1e-5)
    values = [[1.2, 4.9], [2.4, 7.3], [3.6, -0.3], [1.2, -0.1], [2.4, 4.8], [3.6, 7.2]]
    squares = ((np.array(expected) - values) ** 2).sum(axis=1)
    loss = (squares[:3].mean() + squares[3:].mean()) / 2
    assert agent._critic_loss(twice).item() == pytest.approx(loss, rel=1e-5)
    # w^T Q(s, mu(s, w), w), first with w = [.5, .5], last with w_j = [.25, .75].
    chosen = np.tanh([0.5, 0.25])
    first = 0.5 * (1 + 2 * chosen[0]) + 0.5 * (5 - chosen[0])
    last = 0.25 * (3 + 2 * chosen[1]) + 0.75 * (7.5 - chosen[1])
    for rows, action, worth in (
        (slice(0, 1), chosen[0], first),
        (slice(-1, None), chosen[1], last),
    ):
        loss = agent._actor_loss(twice.observations[rows]).item()
        assert loss == pytest.approx(agent.action_l2 * action**2 - worth, rel=1e-5)


def test_replay_keeps_the_vectors_with_their_transitions(small) -> None:
    agent = MOFIR("MlpPolicy", PreferenceVecEnv(sessions(small)), **OPTIONS)
    seen: dict[bytes, np.ndarray] = {}

    def note(local, _) -> bool:
        vectors = [info["reward_vector"] for info in local["infos"]]
        seen.update({a.tobytes(): r for a, r in zip(local["buffer_actions"], vectors, strict=True)})
        return True

    agent.learn(20 * N, callback=note)
    samples = agent.replay_buffer.sample(50)
    assert samples.rewards.shape == (50, 2)
    assert samples.observations.shape == samples.next_observations.shape == (50, 15)
    for action, reward in zip(samples.actions, samples.rewards, strict=True):
        np.testing.assert_array_equal(reward, seen[action.numpy().tobytes()])
    # Across the end of a session, too, a transition has one w.
    assert samples.dones.sum() > 0
    assert torch.equal(samples.observations[:, 13:], samples.next_observations[:, 13:])


def test_it_trains_saves_loads_and_serves_any_preference(small, tmp_path) -> None:
    agent = MOFIR("MlpPolicy", PreferenceVecEnv(sessions(small)), **OPTIONS)
    before = [one.clone() for one in agent.policy.parameters()]
    agent.learn(40 * N)
    after = list(agent.policy.parameters())
    assert all((one != other).any() for one, other in zip(before, after, strict=True))
    agent.save(tmp_path / "agent")
    env = PreferenceVecEnv(sessions(small, split="test"), preference=0.3)
    loaded = MOFIR.load(tmp_path / "agent", env=env, device="cpu")
    seen = env.reset()
    actions = agent.predict(seen, deterministic=True)[0]
    assert actions.shape == (N, 10)
    np.testing.assert_array_equal(loaded.predict(seen)[0], actions)
    np.testing.assert_allclose(agent.predict(seen[0])[0], actions[0], atol=1e-5)
    assert len(evaluate(loaded, env, 2 * N)) == 2 * N
    steps = loaded.num_timesteps
    assert loaded.learn(20 * N, reset_num_timesteps=False).num_timesteps > steps


def test_rates_follow_their_schedule_and_losses_are_logged_as_means(small, monkeypatch) -> None:
    options = OPTIONS | {"learning_rate": lambda left: 1e-3 * (1 + left), "gradient_steps": 3}
    agent = MOFIR("MlpPolicy", PreferenceVecEnv(sessions(small)), **options)
    losses = {"critic": [], "actor": []}
    for name, kept in losses.items():
        method = getattr(agent, f"_{name}_loss")

        def noted(batch, method=method, kept=kept):
            loss = method(batch)
            kept.append(loss.item())
            return loss

        monkeypatch.setattr(agent, f"_{name}_loss", noted)
    agent.learn(30 * N)
    for name, optimizer in (("critic", agent.critic.optimizer), ("actor", agent.actor.optimizer)):
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(1e-3)]
        assert len(losses[name]) == agent._n_updates > 3
        found = agent.logger.name_to_value[f"train/{name}_loss"]
        assert found == pytest.approx(np.mean(losses[name][-3:]))


def test_one_seed_makes_one_agent(small) -> None:
    def weights() -> torch.Tensor:
        agent = MOFIR("MlpPolicy", PreferenceVecEnv(sessions(small)), **OPTIONS).learn(30 * N)
        return torch.nn.utils.parameters_to_vector(agent.policy.parameters())

    assert torch.equal(weights(), weights())


@pytest.mark.parametrize("option", ["n_steps", "replay_buffer_class", "optimize_memory_usage"])
def test_what_it_decides_by_itself_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        MOFIR("MlpPolicy", DummyVecEnv([TugOfWar]), **{option: None})


def test_two_critics_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_critics=2"):
        MOFIR("MlpPolicy", DummyVecEnv([TugOfWar]), policy_kwargs={"n_critics": 2})


def test_normalised_preferences_are_refused() -> None:
    with pytest.raises(ConfigError, match="VecNormalize"):
        MOFIR("MlpPolicy", VecNormalize(DummyVecEnv([TugOfWar])), **OPTIONS)


def test_an_environment_without_reward_vectors_is_refused(small) -> None:
    with pytest.raises(ConfigError, match="PreferenceVecEnv"):
        MOFIR("MlpPolicy", sessions(small), **OPTIONS).learn(N)
