"""The wrappers of Gymnasium and Stable-Baselines3 report what the environments themselves say."""

from __future__ import annotations

from collections import deque

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.wrappers import NormalizeObservation, RecordEpisodeStatistics, RecordVideo
from gymnasium.wrappers import vector as vector_wrappers
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from dsrm_agents import make_vec_env

ENV = "KuaiRec-Fair-v0"
OPTIONS = {"max_len": 8}


def make_vector(kind: str, mode: AutoresetMode, n: int, **options) -> VectorEnv:
    if kind == "native":
        return gym.make_vec(ENV, num_envs=n, autoreset_mode=mode, **options)
    return gym.make_vec(
        ENV,
        num_envs=n,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **options,
    )


@pytest.mark.parametrize("wrapper", [RecordEpisodeStatistics, Monitor])
@pytest.mark.parametrize("max_steps", [None, 3])
def test_single_statistics_are_the_sessions_own(small, wrapper, max_steps) -> None:
    env = wrapper(gym.make(ENV, dataset=small, max_steps=max_steps, **OPTIONS))
    env.reset(seed=1)
    env.action_space.seed(1)
    lengths = []
    for _ in range(20):
        over = False
        while not over:
            *_, terminated, truncated, info = env.step(env.action_space.sample())
            over = terminated or truncated
            assert ("episode" in info) == over
        session = info["session"]
        assert info["episode"]["l"] == session["len"]
        assert info["episode"]["r"] == pytest.approx(session["r_cum"], abs=1e-5)
        lengths.append(session["len"])
        env.reset()
    if wrapper is RecordEpisodeStatistics:
        assert list(env.length_queue) == lengths
    else:
        assert env.get_episode_lengths() == lengths
        assert env.get_total_steps() == sum(lengths)
    assert (max(lengths) <= 3) == (max_steps == 3)


@pytest.mark.parametrize("kind", ["native", "sync"])
@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP])
def test_vector_statistics_are_the_sessions_own(small, kind, mode) -> None:
    env = vector_wrappers.RecordEpisodeStatistics(
        make_vector(kind, mode, 5, dataset=small, **OPTIONS), buffer_length=1000
    )
    env.reset(seed=1)
    env.action_space.seed(1)
    lengths: list[int] = []
    for _ in range(40):
        _, _, terminated, truncated, infos = env.step(env.action_space.sample())
        done = terminated | truncated
        assert ("episode" in infos) == done.any()
        if not done.any():
            continue
        last = infos["final_info"] if mode is AutoresetMode.SAME_STEP else infos
        session = last["session"]
        np.testing.assert_array_equal(infos["_episode"], done)
        same_step = mode is AutoresetMode.SAME_STEP
        np.testing.assert_array_equal(session["_len"], done | (not same_step))
        np.testing.assert_array_equal(infos["episode"]["l"][done], session["len"][done])
        np.testing.assert_allclose(infos["episode"]["r"][done], session["r_cum"][done])
        lengths += session["len"][done].tolist()
    assert list(env.length_queue) == lengths
    assert env.episode_count == len(lengths) > 20


def test_statistics_follow_partial_resets(small) -> None:
    env = vector_wrappers.RecordEpisodeStatistics(
        make_vector("native", AutoresetMode.DISABLED, 4, dataset=small, **OPTIONS)
    )
    env.reset(seed=1)
    env.action_space.seed(1)
    finished = 0
    for _ in range(30):
        _, _, terminated, truncated, infos = env.step(env.action_space.sample())
        done = terminated | truncated
        if done.any():
            np.testing.assert_array_equal(
                infos["episode"]["l"][done], infos["session"]["len"][done]
            )
            finished += done.sum()
            env.reset(options={"reset_mask": done})
    assert finished > 12


def raw_observations(env, steps: int) -> np.ndarray:
    """(steps + 1, N, 13) observations of a vector environment under seeded actions."""
    observations = [env.reset(seed=3)[0]]
    env.action_space.seed(3)
    for _ in range(steps):
        observations.append(env.step(env.action_space.sample())[0])
    return np.array(observations)


@pytest.mark.parametrize("kind", ["native", "sync"])
def test_vector_normalisation_is_by_what_was_seen(small, kind) -> None:
    raw = raw_observations(
        make_vector(kind, AutoresetMode.NEXT_STEP, 6, dataset=small, **OPTIONS), 50
    )
    env = vector_wrappers.NormalizeObservation(
        make_vector(kind, AutoresetMode.NEXT_STEP, 6, dataset=small, **OPTIONS)
    )
    normalised = raw_observations(env, 50)
    np.testing.assert_allclose(env.obs_rms.mean, raw.mean(axis=(0, 1)), atol=1e-3)
    np.testing.assert_allclose(env.obs_rms.var, raw.var(axis=(0, 1)), atol=1e-3)
    expected = (raw[-1] - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(normalised[-1], expected, atol=1e-5)
    assert normalised[-1] in env.observation_space


def test_single_normalisation_is_by_what_was_seen(small) -> None:
    def observations(env) -> np.ndarray:
        seen = [env.reset(seed=4)[0]]
        env.action_space.seed(4)
        for _ in range(60):
            observation, _, terminated, _, _ = env.step(env.action_space.sample())
            seen.append(observation)
            if terminated:
                seen.append(env.reset()[0])
        return np.array(seen)

    raw = observations(gym.make(ENV, dataset=small, **OPTIONS))
    env = NormalizeObservation(gym.make(ENV, dataset=small, **OPTIONS))
    normalised = observations(env)
    np.testing.assert_allclose(env.obs_rms.mean, raw.mean(axis=0), atol=1e-3)
    expected = (raw[-1] - env.obs_rms.mean) / np.sqrt(env.obs_rms.var + env.epsilon)
    np.testing.assert_allclose(normalised[-1], expected, atol=1e-5)
    env.update_running_mean = False
    before = env.obs_rms.mean.copy()
    observations(env)
    np.testing.assert_array_equal(env.obs_rms.mean, before)


def test_vec_monitor_counts_sessions(small, tmp_path) -> None:
    env = VecMonitor(make_vec_env(ENV, 6, seed=2, dataset=small, **OPTIONS), str(tmp_path / "log"))
    env.reset()
    env.action_space.seed(2)
    sessions = []
    for _ in range(40):
        _, _, dones, infos = env.step(np.array([env.action_space.sample() for _ in range(6)]))
        for done, info in zip(dones, infos, strict=True):
            assert ("episode" in info) == done
            if done:
                assert info["episode"]["l"] == info["session"]["len"]
                assert info["episode"]["r"] == pytest.approx(info["session"]["r_cum"], abs=1e-5)
                sessions.append(info["session"])
    env.close()
    written = load_results(str(tmp_path))
    assert written["l"].tolist() == [one["len"] for one in sessions]
    np.testing.assert_allclose(written["r"], [one["r_cum"] for one in sessions], atol=1e-5)


def test_vec_normalize_reaches_the_terminal_observation(small) -> None:
    raw = make_vec_env(ENV, 4, seed=5, dataset=small, **OPTIONS)
    env = VecNormalize(make_vec_env(ENV, 4, seed=5, dataset=small, **OPTIONS), clip_obs=5.0)

    def normal(observation: np.ndarray) -> np.ndarray:
        scale = np.sqrt(env.obs_rms.var + env.epsilon)
        return np.clip((observation - env.obs_rms.mean) / scale, -5.0, 5.0)

    seen = [raw.reset()]
    np.testing.assert_allclose(env.reset(), normal(seen[0]), atol=1e-5)
    env.action_space.seed(5)
    ended = 0
    for _ in range(30):
        actions = np.array([env.action_space.sample() for _ in range(4)])
        observation, reward, done, infos = raw.step(actions)
        found, _, found_done, found_infos = env.step(actions)
        seen.append(observation)
        np.testing.assert_array_equal(found_done, done)
        np.testing.assert_allclose(found, normal(observation), atol=1e-5)
        np.testing.assert_array_equal(env.get_original_obs(), observation)
        np.testing.assert_array_equal(env.get_original_reward(), reward)
        for slot in np.flatnonzero(done):
            last = infos[slot]["terminal_observation"]
            np.testing.assert_allclose(
                found_infos[slot]["terminal_observation"], normal(last), atol=1e-5
            )
            assert found_infos[slot]["session"] == infos[slot]["session"]
            ended += 1
    assert ended > 10
    np.testing.assert_allclose(env.obs_rms.mean, np.mean(seen, axis=(0, 1)), atol=1e-3)


class Lengths(BaseCallback):
    """Keeps the lengths of the last hundred sessions, from the environment's own infos."""

    def __init__(self) -> None:
        super().__init__()
        self.sessions: deque[int] = deque(maxlen=100)
        self.means: list[float] = []

    def _on_step(self) -> bool:
        self.sessions.extend(
            info["session"]["len"] for info in self.locals["infos"] if "session" in info
        )
        return True

    def _on_rollout_end(self) -> None:
        self.means.append(float(np.mean(self.sessions)))


def test_tensorboard_shows_the_sessions_lengths(small, tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    env = VecMonitor(make_vec_env(ENV, 8, seed=1, dataset=small))
    agent = PPO(
        "MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, tensorboard_log=str(tmp_path)
    )
    lengths = Lengths()
    agent.learn(3 * 32 * 8, callback=lengths, tb_log_name="run", log_interval=1)
    assert [file.parent.name for file in tmp_path.rglob("events.out.tfevents.*")] == ["run_1"]
    log = events.EventAccumulator(str(tmp_path / "run_1")).Reload()
    shown = log.Scalars("rollout/ep_len_mean")
    assert [one.step for one in shown] == [256, 512, 768]
    np.testing.assert_allclose([one.value for one in shown], lengths.means, rtol=1e-6)
    assert "rollout/ep_rew_mean" in log.Tags()["scalars"]
    assert "train/value_loss" in log.Tags()["scalars"]


def test_a_session_becomes_a_video(small, tmp_path) -> None:
    from moviepy import VideoFileClip

    env = RecordVideo(gym.make(ENV, dataset=small, render_mode="rgb_array", **OPTIONS), tmp_path)
    env.reset(seed=0)
    env.action_space.seed(0)
    steps, over = 0, False
    while not over:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        steps, over = steps + 1, terminated or truncated
    frame = env.render()
    env.close()
    (file,) = tmp_path.glob("*.mp4")
    with VideoFileClip(str(file)) as video:
        assert video.fps == env.metadata["render_fps"]
        assert video.n_frames == steps + 1
        assert (video.h, video.w) == frame.shape[:2]
