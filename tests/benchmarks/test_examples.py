from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from benchmarks.examples import cleanrl_ppo, first_hour
from benchmarks.examples.cleanrl_ppo import Agent, Args, Collector, Rollout, advantages

TINY = Args(sessions=60, test_sessions=20, num_envs=8, num_steps=16, batch_size=32, epochs=2)


def test_a_run_is_finite_and_repeats(small) -> None:
    one = cleanrl_ppo.run(TINY, dataset=small)
    assert 60 <= len(one.train_lengths) <= 60 + 8 * 16
    assert np.isfinite(one.losses).all()
    assert one.losses.shape[1] == 3
    steps = len(one.losses) * 8 * 16
    assert one.train_lengths.sum() <= steps <= one.train_lengths.sum() + 8 * 30
    for lengths in (one.train_lengths, one.test_lengths, one.random_lengths):
        assert ((lengths >= 9) & (lengths <= 30)).all()  # a step costs one to three of thirty
    assert len(one.test_lengths) == len(one.random_lengths) == 20

    again = cleanrl_ppo.run(TINY, dataset=small)
    np.testing.assert_array_equal(one.losses, again.losses)
    np.testing.assert_array_equal(one.train_lengths, again.train_lengths)
    np.testing.assert_array_equal(one.test_lengths, again.test_lengths)
    other = cleanrl_ppo.run(dataclasses.replace(TINY, seed=12), dataset=small)
    assert (one.losses[0] != other.losses[0]).any()


def test_tensorboard_holds_the_run(small, tmp_path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    args = dataclasses.replace(TINY, tensorboard=str(tmp_path))
    outcome = cleanrl_ppo.run(args, dataset=small)
    log = events.EventAccumulator(str(tmp_path)).Reload()
    assert log.Scalars("test/length")[0].value == pytest.approx(outcome.test_lengths.mean())
    shown = [scalar.value for scalar in log.Scalars("losses/value")]
    np.testing.assert_allclose(shown, outcome.losses[:, 1], rtol=1e-6)


def test_it_learns(small) -> None:
    args = Args(sessions=2000, test_sessions=400, num_envs=32)
    outcome = cleanrl_ppo.run(args, dataset=small)
    assert outcome.test_lengths.mean() > outcome.random_lengths.mean() + 0.5
    assert outcome.train_lengths[-500:].mean() > outcome.train_lengths[:500].mean() + 0.3


def test_advantages_stop_where_sessions_do() -> None:
    torch.manual_seed(0)
    rewards, values, next_values = torch.rand(3, 12, 5)
    done = torch.rand(12, 5) < 0.3
    nothing = torch.zeros(12, 5)
    rollout = Rollout(nothing, nothing, nothing, values, rewards, next_values, done)
    found = advantages(rollout, gamma=0.9, gae_lambda=0.8)
    for slot in range(5):
        for step in range(12):
            expected, weight = 0.0, 1.0
            for later in range(step, 12):
                error = rewards[later, slot] + 0.9 * next_values[later, slot] - values[later, slot]
                expected += weight * float(error)
                weight *= 0.9 * 0.8
                if done[later, slot]:
                    break
            assert float(found[step, slot]) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("max_steps", [None, 5])
def test_a_cut_session_is_worth_its_last_observation(small, max_steps) -> None:
    args = dataclasses.replace(TINY, max_len=12)
    options = {"dataset": small, "max_steps": max_steps}
    envs = cleanrl_ppo.make_envs(args, "train", 8, **options)
    torch.manual_seed(1)
    agent = Agent(13, 11, 16, 0.0)
    collector = Collector(envs, agent, seed=3)
    rollouts = [collector.collect(10), collector.collect(10)]

    again = cleanrl_ppo.make_envs(args, "train", 8, **options)
    seen, ends, lengths = again.reset(seed=3)[0], set(), []
    for rollout in rollouts:
        for step in range(10):
            np.testing.assert_array_equal(rollout.observations[step], seen)
            actions = rollout.actions[step].clamp(-1, 1).numpy()
            seen, reward, terminated, truncated, infos = again.step(actions)
            np.testing.assert_allclose(rollout.rewards[step], reward, rtol=1e-6)
            np.testing.assert_array_equal(rollout.ended[step], terminated | truncated)
            after = seen.copy()
            for slot in np.flatnonzero(truncated):
                after[slot] = infos["final_obs"][slot]
            expected = agent.value(torch.as_tensor(after)).detach().numpy()
            expected[terminated] = 0.0
            np.testing.assert_allclose(rollout.next_values[step], expected, atol=1e-6)
            ends |= {(bool(t), bool(u)) for t, u in zip(terminated, truncated, strict=True)}
            done = terminated | truncated
            if done.any():
                lengths += infos["final_info"]["session"]["len"][done].tolist()
    assert collector.lengths == lengths
    assert ends == {(False, False), (True, False)} | ({(False, True)} if max_steps else set())


def test_every_number_is_an_option(capsys) -> None:
    assert cleanrl_ppo.parse([]) == Args()
    args = cleanrl_ppo.parse(["--sessions", "7", "--gamma", "0.5", "--tensorboard", "runs"])
    assert args == dataclasses.replace(Args(), sessions=7, gamma=0.5, tensorboard="runs")
    with pytest.raises(SystemExit):
        cleanrl_ppo.parse(["--help"])
    shown = capsys.readouterr().out
    for option in dataclasses.fields(Args):
        assert f"--{option.name.replace('_', '-')}" in shown


def test_rllib_trains_and_evaluates(small) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.rllib")
    from benchmarks.examples import rllib_ppo

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        curve, test = rllib_ppo.run(2, test_sessions=10, dataset=small, max_len=12)
    finally:
        ray.shutdown()
    assert len(curve) == 2
    # A step costs one to three of twelve temper.
    assert all(4 <= length <= 12 for length in (*curve, test))


def test_the_first_hour_prints_a_curve_between_two_tests(small, capsys) -> None:
    first_hour.run(3, points=2, sessions=500, dataset=small)
    before, curve, after = capsys.readouterr().out.splitlines()
    pattern = r"seed 3: test Len (\d+\.\d\d) (un)?trained"
    untrained, trained = (float(re.fullmatch(pattern, line)[1]) for line in (before, after))
    assert 9 <= untrained != trained <= 30
    points = re.fullmatch(r"(\d+\.\d) (\d+\.\d) ep_len_mean, \d+ s", curve)
    assert 9 <= float(points[1]) < float(points[2]) <= 30
