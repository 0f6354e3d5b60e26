from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dsrm_agents import PurifyVecEnv, evaluate, fit_purifier, make_vec_env
from dsrm_agents.baselines.items import ItemNetwork, SlatePolicy, unexposed
from dsrm_agents.baselines.slate_learning import SlateOffPolicyAlgorithm, SlateReplayBuffer
from dsrm_agents.common.networks import follow
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue

SLATES = {"observation_type": "dict", "action_type": "slate"}
N, K = 5, 10


class FixedPolicy(SlatePolicy):
    """Scores items by their position; a draw adds noise."""

    def __init__(self, observation_space, action_space, lr_schedule, catalogue, **kwargs) -> None:
        super().__init__(observation_space, action_space, catalogue, **kwargs)
        self.weight = torch.nn.Parameter(torch.arange(catalogue.n_items, dtype=torch.float32))

    def scores(self, state, exposed, deterministic):
        scores = self.weight.expand(len(state), -1)
        return scores if deterministic else scores + 100 * torch.rand(scores.shape)

    def _get_constructor_parameters(self):
        return super()._get_constructor_parameters() | {"lr_schedule": self._dummy_schedule}


class Watcher(SlateOffPolicyAlgorithm):
    """Learns nothing, and keeps count of its updates."""

    updates = 0

    def _optimizers(self) -> list:
        return []

    def _update(self, batch) -> dict[str, float]:
        self.updates += 1
        return {"updates": float(self.updates)}


def sessions(dataset, n: int = N, seed: int = 0, env_id: str = "KuaiRec-Fair-v0", **options):
    return make_vec_env(env_id, n, "train", seed, dataset=dataset, **(SLATES | options))


def watcher(dataset, env=None, **options) -> Watcher:
    env = sessions(dataset, max_len=6) if env is None else env
    return Watcher(FixedPolicy, env, **({"seed": 0, "device": "cpu"} | options))


def other_world():
    config = SyntheticConfig(
        n_users=400, n_test_users=80, n_items=240, events_per_user=40, n_categories=6,
        quality=0.70, user_level=0.20, quality_popularity=-0.17, popularity_spread=1.34,
    )  # fmt: skip
    return synthetic_kuairec(seed=9, config=config)


# Networks and scores


def test_an_item_network_by_hand() -> None:
    embedding = np.array([[1, 0], [0, 2], [3, 4]], np.float32)
    catalogue = Catalogue(embedding, np.array([1, 5, 25]))
    network = ItemNetwork(catalogue, state_dim=4, hidden=8)
    known = catalogue.known / np.sqrt(3)
    np.testing.assert_allclose(network.vectors.detach(), known, rtol=1e-6)
    states = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    assert network(states).abs().max() < 0.1  # near zero at first
    torch.nn.init.zeros_(network.query[-1].weight)
    with torch.no_grad():
        network.query[-1].bias.copy_(torch.tensor([1.0, 2.0, 0.5]))
        network.offsets.copy_(torch.tensor([0.0, 10.0, -1.0]))
        level = network.level(states)  # common to all items, and the state's own
    assert level.std() > 0
    expected = known @ [1.0, 2.0, 0.5] + [0.0, 10.0, -1.0] + level.numpy()
    np.testing.assert_allclose(network(states).detach(), expected, rtol=1e-5)
    some = torch.tensor([[2, 0]] * 6)
    np.testing.assert_allclose(network.of(states, some).detach(), expected[:, [2, 0]], rtol=1e-5)


def test_exposed_items_have_no_score() -> None:
    scores = torch.arange(8.0).reshape(2, 4)
    exposed = torch.tensor([[2, 0, -1], [-1, -1, -1]])
    left = unexposed(scores, exposed)
    assert left.tolist() == [[-np.inf, 1, -np.inf, 3], [4, 5, 6, 7]]
    assert torch.isfinite(scores).all()
    assert unexposed(scores, torch.tensor([[3, 3, 3]] * 2))[:, 3].tolist() == [-np.inf] * 2


# The replay


def played(model: Watcher, env, steps: int):
    """What a replay holds after some steps, and the records of the sessions that ended."""
    records: list[list] = [[] for _ in range(env.num_envs)]

    def keep(local, _) -> bool:
        for slot, info in enumerate(local["infos"]):
            if "record" in info:
                records[slot].append(info["record"])
        return True

    model.learn(steps * env.num_envs, callback=keep)
    return model.replay_buffer, records


@pytest.mark.parametrize("worn", [False, True])
def test_a_replay_is_what_the_sessions_recorded(small, worn: bool) -> None:
    env = sessions(small, max_len=6)
    if worn:
        env = PurifyVecEnv(env, fit_purifier("linear", small))
    replay, records = played(watcher(small, env, learning_starts=100), env, steps=60)
    assert not replay.full
    for slot in range(N):
        step = 0
        assert len(records[slot]) > 5
        for record in records[slot]:
            length = int(record.length[0])
            for t in range(length):
                np.testing.assert_array_equal(replay.actions[step, slot], record.slates[0, t])
                np.testing.assert_array_equal(replay.responses[step, slot], record.responses[0, t])
                exposed = replay.next_exposed[step, slot]
                shown = record.slates[0, : t + 1].ravel()
                np.testing.assert_array_equal(exposed[: len(shown)], shown)
                assert (exposed[len(shown) :] == -1).all()
                assert replay.dones[step, slot] == (t == length - 1)
                assert replay.rewards[step, slot] == pytest.approx(record.rewards[0, t])
                progress = replay.next_observations[step, slot, 9]
                assert progress == pytest.approx((t + 1) / 6)  # the last one's too: not a reset's
                step += 1


def test_samples_are_transitions_of_the_replay(small) -> None:
    env = sessions(small, max_len=6)
    replay, _ = played(watcher(small, env), env, steps=30)
    batch = replay.sample(4000)
    rows = {
        (*state.tolist(), *slate.tolist()): (step, slot)
        for step in range(replay.size())
        for slot, (state, slate) in enumerate(
            zip(replay.observations[step], replay.actions[step], strict=True)
        )
    }
    seen = set()
    for at in range(4000):
        step, slot = rows[(*batch.states[at].tolist(), *batch.slates[at].tolist())]
        seen.add((step, slot))
        np.testing.assert_array_equal(batch.responses[at], replay.responses[step, slot])
        np.testing.assert_array_equal(batch.next_states[at], replay.next_observations[step, slot])
        after, before = batch.next_exposed[at], batch.exposed[at]
        np.testing.assert_array_equal(after, replay.next_exposed[step, slot])
        size = int((before >= 0).sum())
        assert (before[size:] == -1).all()
        np.testing.assert_array_equal(after[:size], before[:size])
        np.testing.assert_array_equal(after[size : size + K], batch.slates[at])
        assert (after[size + K :] == -1).all()
        assert batch.dones[at] == replay.dones[step, slot]
    assert len(seen) == len(rows) == 30 * N
    assert {one.dtype for one in (batch.slates, batch.exposed, batch.next_exposed)} == {torch.int64}


def test_a_cap_of_steps_is_no_end(small) -> None:
    env = sessions(small, max_len=8, max_steps=2)  # two steps cost at most six
    replay, _ = played(watcher(small, env), env, steps=6)
    assert replay.dones.sum() > 0
    assert replay.sample(200).dones.sum() == 0


def test_samples_follow_the_seed(small) -> None:
    env = sessions(small, max_len=6)
    replay, _ = played(watcher(small, env), env, steps=20)

    def drawn(seed: int):
        twin = SlateReplayBuffer(500, env.observation_space, env.action_space, "cpu", N, seed=seed)
        for name in ("observations", "actions", "responses", "next_exposed"):
            setattr(twin, name, getattr(replay, name))
        twin.pos = replay.pos
        return twin.sample(50).states

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


def test_a_full_replay_forgets_the_oldest(small) -> None:
    env = sessions(small, max_len=6)
    whole, _ = played(watcher(small, env), env, steps=30)
    short_env = sessions(small, max_len=6)
    short, _ = played(watcher(small, short_env, buffer_size=20 * N), short_env, steps=30)
    assert short.full
    for name in ("actions", "responses", "next_exposed", "dones"):
        kept = np.roll(getattr(short, name), -short.pos, axis=0)
        np.testing.assert_array_equal(kept, getattr(whole, name)[10:30])


def test_responses_that_cannot_be_read_are_refused(small) -> None:
    env = sessions(small, max_len=6)
    replay = SlateReplayBuffer(50, env.observation_space, env.action_space, "cpu", N)
    before = env.reset()
    slates = np.tile(np.arange(K), (N, 1))
    after, rewards, dones, infos = env.step(slates)
    replay.add(before, after, slates, rewards, dones, infos)
    for bad in (before, {**after, "exposed": np.roll(after["exposed"], 1, axis=1)}):
        with pytest.raises(ConfigError, match="does not show the slate last"):
            replay.add(before, bad, slates, rewards, dones, infos)
    assert replay.pos == 1


def test_episodes_of_several_sessions_are_refused(small_rand) -> None:
    env = sessions(small_rand, env_id="KuaiRand-Retention-v0")
    with pytest.raises(ConfigError, match="single sessions"):
        watcher(small_rand, env).learn(20 * N)


# The algorithm


def test_first_slates_are_random_and_never_repeat(small) -> None:
    env = sessions(small, n=20, max_len=6)
    model = watcher(small, env, learning_starts=10**6)
    replay, _ = played(model, env, steps=50)
    assert model.updates == 0
    batch = replay.sample(500)
    for slate, exposed in zip(batch.slates.tolist(), batch.exposed.tolist(), strict=True):
        assert len(set(slate)) == K
        assert not set(slate) & set(exposed)
    shown = np.bincount(replay.actions[:50].ravel(), minlength=240)  # 10,000 exposures
    assert shown.min() > 15
    assert shown.max() < 80
    assert np.corrcoef(shown, np.arange(240))[0, 1] < 0.2  # the policy would show late ones


def test_after_the_first_slates_the_policy_draws(small) -> None:
    env = sessions(small, max_len=6)
    model = watcher(small, env, learning_starts=20 * N)
    replay, _ = played(model, env, steps=40)
    assert replay.actions[:20].mean() == pytest.approx(119.5, abs=8)
    assert replay.actions[20:40].mean() > 140
    assert model.updates == 20


def test_rates_follow_their_schedule_and_figures_are_logged_as_means(small) -> None:
    env = sessions(small, max_len=6)
    options = {"learning_rate": lambda left: 1e-3 * (1 + left), "gradient_steps": 3}
    model = watcher(small, env, learning_starts=8 * N, **options)
    optimizers = [torch.optim.SGD(model.policy.parameters(), lr=9.0) for _ in range(2)]
    model._optimizers = lambda: optimizers
    model.learn(10 * N, log_interval=None)
    assert model.updates == 6
    assert model.logger.name_to_value["train/updates"] == 5.0  # of 4, 5 and 6
    assert model.logger.name_to_value["train/n_updates"] == 6
    assert [one.param_groups[0]["lr"] for one in optimizers] == [pytest.approx(1e-3)] * 2


def test_predictions_single_batched_and_behind_the_session(small) -> None:
    model = watcher(small)
    observation = sessions(small, max_len=6, seed=4).reset()
    best, hidden = model.predict(observation, deterministic=True)
    assert best.tolist() == [list(range(239, 229, -1))] * N
    assert hidden is None
    one, _ = model.predict({name: part[0] for name, part in observation.items()}, None, None, True)
    assert one.tolist() == best[0].tolist()
    record = evaluate(model, sessions(small, max_len=6, seed=4), N).slates
    assert record[0, 1].tolist() == list(range(229, 219, -1))


def test_training_repeats_with_the_seed(small) -> None:
    def actions(seed: int):
        env = sessions(small, max_len=6)
        return played(watcher(small, env, seed=seed, learning_starts=20), env, 10)[0].actions

    np.testing.assert_array_equal(actions(1), actions(1))
    assert (actions(1) != actions(2)).any()


def test_it_saves_and_loads(small, tmp_path) -> None:
    model = watcher(small)
    model.learn(10 * N)
    with torch.no_grad():
        model.policy.weight.neg_()
    model.save(tmp_path / "agent")
    model.policy.save(tmp_path / "policy")
    model.save_replay_buffer(tmp_path / "replay")
    observation = sessions(small, max_len=6, seed=2).reset()
    for loaded in (
        Watcher.load(tmp_path / "agent"),
        Watcher.load(tmp_path / "agent", env=sessions(small, max_len=6)),
        FixedPolicy.load(tmp_path / "policy"),
    ):
        slates, _ = loaded.predict(observation, deterministic=True)
        assert slates.tolist() == [list(range(K))] * N
    loaded = Watcher.load(tmp_path / "agent")
    loaded.set_env(sessions(small, max_len=6))
    loaded.load_replay_buffer(tmp_path / "replay")
    loaded.learn(10 * N, reset_num_timesteps=False)
    assert loaded.num_timesteps == 20 * N
    assert loaded.replay_buffer.pos == 20


def test_other_items_are_refused(small, tmp_path) -> None:
    model, other = watcher(small), sessions(other_world(), max_len=6)
    model.save(tmp_path / "agent")
    env = model.env
    with pytest.raises(CheckpointError, match="use the dataset that it was trained on"):
        Watcher.load(tmp_path / "agent", env=other)
    with pytest.raises(CheckpointError, match="use the dataset that it was trained on"):
        model.set_env(other)
    assert model.env is env
    unbound = Watcher.load(tmp_path / "agent")
    with pytest.raises(CheckpointError):
        unbound.set_env(other)
    assert unbound.env is None
    model.learn(N)


@pytest.mark.parametrize(
    "options",
    [{"observation_type": "state"}, {"action_type": "scorer"}, {"action_type": "discrete"}],
)
def test_other_spaces_are_refused(small, options) -> None:
    with pytest.raises(ConfigError, match=r"Watcher needs observation_type='dict'.*'slate'"):
        watcher(small, sessions(small, **options))


def test_a_policy_checks_its_spaces_itself(small) -> None:
    env = sessions(small)
    with pytest.raises(ConfigError, match="FixedPolicy needs"):
        FixedPolicy(env.observation_space, spaces.Discrete(240), None, env.catalogue)


def test_an_environment_without_items_is_refused() -> None:
    with pytest.raises(ConfigError, match="`catalogue` attribute"):
        watcher(None, "CartPole-v1")


def test_a_target_follows_by_polyak_averaging() -> None:
    catalogue = Catalogue(np.eye(6, 3, dtype=np.float32), np.arange(6))
    online, target = (ItemNetwork(catalogue, 4, 5) for _ in range(2))
    before = [p.detach().clone() for p in target.parameters()]
    follow(target, online, 0.25)
    for old, new, to in zip(before, target.parameters(), online.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * to)
        assert new.requires_grad
