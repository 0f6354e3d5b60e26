"""Every algorithm of Stable-Baselines3 and sb3-contrib, on every action type that it can act in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import stable_baselines3
import torch
from sb3_contrib import ARS, QRDQN, TQC, TRPO, CrossQ, MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize, VecVideoRecorder

from dsrm_agents import (
    HistoryExtractor,
    PurifyVecEnv,
    evaluate,
    make_vec_env,
)
from kuaisim_gym.envs.offline import collect_episodes
from kuaisim_gym.envs.single import KuaiEnv

Algorithm = type[BaseAlgorithm]

ACTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "shares": ("KuaiRec-Fair-v0", {"slate_size": 3, "max_len": 6}),
    "scorer": ("KuaiRec-Fair-v0", {"slate_size": 3, "max_len": 6}),
    "slate": ("KuaiRec-Fair-v0", {"slate_size": 3, "max_len": 6}),
    "discrete": ("KuaiRec-Fair-v0", {"max_len": 6}),
    "fusion": ("KuaiRand-Retention-v0", {"slate_size": 3, "max_len": 3, "n_visits": 2}),
}
EVERY, VECTORS = set(ACTIONS), {"shares", "scorer", "fusion"}
ROLLOUT = {"n_steps": 8}
BATCHED = ROLLOUT | {"batch_size": 8}
REPLAY = {"learning_starts": 8, "buffer_size": 200, "batch_size": 8}
TABLE: dict[Algorithm, tuple[set[str], dict[str, Any]]] = {
    A2C: (EVERY, ROLLOUT),
    ARS: (EVERY - {"slate"}, {"n_delta": 4, "n_eval_episodes": 2}),
    CrossQ: (VECTORS, REPLAY),
    DDPG: (VECTORS, REPLAY),
    DQN: ({"discrete"}, REPLAY),
    MaskablePPO: (EVERY - VECTORS, BATCHED),
    PPO: (EVERY, BATCHED),
    QRDQN: ({"discrete"}, REPLAY),
    RecurrentPPO: (EVERY, BATCHED),
    SAC: (VECTORS, REPLAY),
    TD3: (VECTORS, REPLAY),
    TQC: (VECTORS, REPLAY),
    TRPO: (EVERY, BATCHED),
}
Row = tuple[Algorithm, str, str, str]
ROWS: list[Row] = [
    (algorithm, actions, "state", shell)
    for algorithm, (known, _) in TABLE.items()
    for actions in ACTIONS
    if actions in known
    for shell in ("single", "vectorised")
]
ROWS += [
    (algorithm, actions, observations, shell)
    for algorithm, actions in ((PPO, "slate"), (TQC, "shares"))
    for observations in ("dict", "history")
    for shell in ("single", "vectorised")
]
ROWS += [(MaskablePPO, "discrete", "dict", "purified"), (SAC, "shares", "state", "purified")]
REFUSED = [(one, actions) for one in TABLE for actions in ACTIONS if actions not in TABLE[one][0]]


def named(*row: Any) -> Any:
    names = [part if isinstance(part, str) else part.__name__ for part in row]
    return pytest.param(*row, id="-".join(names))


@pytest.fixture
def make(small, small_rand, dsrm) -> Callable[..., Any]:
    """A function that makes an environment: action type, observation type, shell, options."""

    def build(actions: str, observations: str, shell: str, **more: Any) -> Any:
        env_id, options = ACTIONS[actions]
        options = options | more | {"action_type": actions, "observation_type": observations}
        options["dataset"] = small if "KuaiRec" in env_id else small_rand
        if observations == "history":
            options["history_len"] = 5
        if shell == "purified":
            options["preference"] = dsrm.reads
        if shell == "single":
            return gym.make(env_id, **options)
        env = make_vec_env(env_id, 4, seed=0, **options)
        return PurifyVecEnv(env, dsrm) if shell == "purified" else env

    return build


def agent(algorithm: Algorithm, env: Any, **more: Any) -> Any:
    """A small one, with the policy that the observations need."""
    recurrent = algorithm is RecurrentPPO
    kwargs: dict[str, Any] = {"net_arch": [8]} | ({"lstm_hidden_size": 8} if recurrent else {})
    nested = isinstance(env.observation_space, gym.spaces.Dict)
    if nested and "items" in env.observation_space.spaces:
        kwargs["features_extractor_class"] = HistoryExtractor
        kwargs["features_extractor_kwargs"] = {"embedding_dim": 4, "width": 8}
    policy = ("MultiInput" if nested else "Mlp") + ("Lstm" if recurrent else "") + "Policy"
    options = TABLE[algorithm][1] | {"seed": 0, "device": "cpu"} | more
    return algorithm(policy, env, policy_kwargs=kwargs, **options)


def weights(model: Any) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.policy.parameters()).detach().clone()


def test_the_table_knows_every_algorithm() -> None:
    exported = {
        value
        for package in (stable_baselines3, sb3_contrib)
        for value in vars(package).values()
        if isinstance(value, type) and issubclass(value, BaseAlgorithm)
    }
    assert set(TABLE) == exported


@pytest.mark.parametrize(
    ("algorithm", "actions", "observations", "shell"), [named(*row) for row in ROWS]
)
def test_it_trains_saves_loads_and_goes_on(
    make, tmp_path: Path, algorithm: Algorithm, actions: str, observations: str, shell: str
) -> None:
    env = make(actions, observations, shell)
    model = agent(algorithm, env)
    fresh = weights(model)
    model.learn(32)
    trained, steps = weights(model), model.num_timesteps
    assert steps >= 32
    assert trained.isfinite().all()
    assert not torch.equal(trained, fresh)
    seen = model.get_env().reset()
    for deterministic in (False, True):
        chosen, _ = model.predict(seen, deterministic=deterministic)
        assert len(chosen) == model.n_envs
        assert all(env.action_space.contains(one) for one in chosen)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(loaded.predict(seen, deterministic=True)[0], chosen)
    assert loaded.num_timesteps == steps
    loaded.learn(16, reset_num_timesteps=False)
    assert loaded.num_timesteps >= steps + 16
    assert not torch.equal(weights(loaded), trained)


@pytest.mark.parametrize(("algorithm", "actions"), [named(*pair) for pair in REFUSED])
def test_the_rest_is_refused_in_their_own_words(make, algorithm: Algorithm, actions: str) -> None:
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        agent(algorithm, make(actions, "state", "vectorised"))


class Shown(BaseCallback):
    """Counts the items shown again in a session, and holds the masks to what was shown."""

    def _on_training_start(self) -> None:
        self.shown: list[set[int]] = [set() for _ in range(self.training_env.num_envs)]
        self.repeats, self.sessions = 0, 0

    def _on_step(self) -> bool:
        masks = self.locals["action_masks"]
        for slot, done in enumerate(self.locals["dones"]):
            items = set(np.ravel(self.locals["actions"][slot]).tolist())
            if masks is not None:
                places = masks[slot].reshape(np.size(self.locals["actions"][slot]), -1)
                for place in places:
                    assert set(np.flatnonzero(~place).tolist()) == self.shown[slot]
            self.repeats += len(items & self.shown[slot])
            self.sessions += int(done)
            self.shown[slot] = set() if done else self.shown[slot] | items
        return True


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("shell", ["single", "vectorised", "purified"])
@pytest.mark.parametrize("actions", ["discrete", "slate"])
def test_masks_keep_sessions_free_of_repeats(make, actions: str, shell: str, masked: bool) -> None:
    model = agent(MaskablePPO, make(actions, "state", shell))
    with torch.no_grad():  # a darling, shown whenever nothing forbids it
        model.policy.action_net.bias.view(-1, 240)[:, 7] = 50.0
    watch = Shown()
    model.learn(64, callback=watch, use_masking=masked)
    assert watch.sessions >= 4
    assert (watch.repeats == 0) == masked


@pytest.mark.parametrize("shell", ["single", "vectorised"])
@pytest.mark.parametrize("actions", ["discrete", "slate"])
def test_masked_predictions_are_new_to_the_user(make, actions: str, shell: str) -> None:
    model = agent(MaskablePPO, make(actions, "state", shell))
    env = model.get_env()
    seen, shown = env.reset(), [set() for _ in range(env.num_envs)]
    for step in range(8):
        masks = get_action_masks(env)
        chosen, _ = model.predict(seen, action_masks=masks, deterministic=True)
        free, _ = model.predict(seen, deterministic=True)
        seen, _, dones, _ = env.step(chosen)
        for slot, done in enumerate(dones):
            items = set(np.ravel(chosen[slot]).tolist())
            assert not items & shown[slot]
            assert step or np.array_equal(chosen[slot], free[slot])
            shown[slot] = set() if done else shown[slot] | items


@pytest.mark.parametrize("shell", ["single", "vectorised"])
@pytest.mark.parametrize(("algorithm", "actions"), [(DQN, "discrete"), (TQC, "shares")])
def test_a_buffer_holds_each_user_s_own_session(
    make, algorithm: Algorithm, actions: str, shell: str
) -> None:
    """Played again by single environments, to the last observation of every session."""
    options = {"max_steps": 4, "max_len": 9}
    model = agent(algorithm, make(actions, "state", shell, **options), seed=5).learn(160)
    buffer, ends = model.replay_buffer, []
    for slot in range(model.n_envs):
        env = make(actions, "state", "single", **options)
        now, _ = env.reset(seed=5 + slot)
        for t in range(buffer.pos):
            action = buffer.actions[t, slot]
            then, reward, terminated, truncated, _ = env.step(
                int(action[0]) if actions == "discrete" else action
            )
            np.testing.assert_array_equal(buffer.observations[t, slot], now)
            np.testing.assert_array_equal(buffer.next_observations[t, slot], then)
            assert buffer.rewards[t, slot] == np.float32(reward)
            assert buffer.dones[t, slot] == (terminated or truncated)
            assert buffer.timeouts[t, slot] == (truncated and not terminated)
            if terminated or truncated:
                ends.append(terminated)
            now = env.reset()[0] if terminated or truncated else then
    assert set(ends) == {True, False}


def test_the_usual_wrappers_work(small) -> None:
    env = VecNormalize(VecMonitor(make_vec_env("KuaiRec-Fair-v0", 4, dataset=small, max_len=6)))
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(128)
    assert 2 <= model.ep_info_buffer[0]["l"] <= 6


def test_frames_show_every_slot_s_session(make) -> None:
    env = make("shares", "state", "vectorised", render_mode="rgb_array")
    env.reset()
    before = env.render()
    env.step(np.zeros((4, *env.action_space.shape), dtype=np.float32))
    frame, parts = env.render(), env.get_images()
    assert frame.dtype == np.uint8
    assert frame.shape == (2 * parts[0].shape[0], 2 * parts[0].shape[1], 3)
    assert len(parts) == 4
    assert not np.array_equal(frame, before)
    assert not np.array_equal(parts[0], parts[1])


def test_a_video_is_recorded(make, tmp_path: Path) -> None:
    env = make("shares", "state", "vectorised", render_mode="rgb_array")
    video = VecVideoRecorder(env, str(tmp_path), lambda step: step == 0, video_length=2)
    assert video.frames_per_sec == KuaiEnv.metadata["render_fps"]
    video.reset()
    for _ in range(2):
        video.step(np.zeros((4, *env.action_space.shape), dtype=np.float32))
    assert [path.suffix for path in tmp_path.iterdir()] == [".mp4"]


def test_ppo_learns_what_a_linear_scorer_can(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 32, seed=0, dataset=small, abandonment="none")
    model = PPO(
        "MlpPolicy", env, n_steps=32, batch_size=256, learning_rate=3e-3, gamma=0.5, seed=0,
        device="cpu",
    )  # fmt: skip

    def mean_reward() -> float:
        check = make_vec_env("KuaiRec-Fair-v0", 100, seed=9, dataset=small, abandonment="none")
        observation, total = check.reset(), 0.0
        for _ in range(10):
            observation, reward, _, _ = check.step(
                model.predict(observation, deterministic=True)[0]
            )
            total += float(reward.mean()) / 10
        return total

    before = mean_reward()
    model.learn(16_000)
    assert mean_reward() > before + 0.05


def test_masks_are_respected_when_sessions_are_evaluated(small) -> None:
    def repeats(sessions) -> int:
        return sum(
            length - len(np.unique(slates[:length]))
            for length, slates in zip(sessions.length, sessions.slates, strict=True)
        )

    options = {"dataset": small, "action_type": "discrete"}
    env = make_vec_env("KuaiRec-Fair-v0", 4, seed=0, **options)
    model = MaskablePPO("MlpPolicy", env, n_steps=8, batch_size=32, seed=0, device="cpu")
    assert repeats(evaluate(model, env, 8)) == 0
    plain = PPO("MlpPolicy", env, n_steps=8, batch_size=32, seed=0, device="cpu")
    assert repeats(evaluate(plain, env, 8)) > 0
    for mode in ("native", "sync"):
        kwargs = {"vectorization_mode": "sync"} if mode == "sync" else {}
        envs = gym.make_vec("KuaiRec-Fair-v0", num_envs=2, **kwargs, **options)
        for episode in collect_episodes(envs, model, 4, seed=1):
            assert len(np.unique(episode.actions)) == len(episode)


def test_a_new_seed_counts_from_the_next_reset_on(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, seed=0, dataset=small)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, device="cpu").learn(16)
    model.set_random_seed(5)
    model.learn(16, reset_num_timesteps=False)
    fresh = make_vec_env("KuaiRec-Fair-v0", 2, seed=5, dataset=small).reset()
    np.testing.assert_array_equal(env.reset(), fresh)
