from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from scipy.sparse import csr_matrix
from stable_baselines3 import PPO

from dsrm_agents import (
    DSRM,
    PurifyObservation,
    PurifyVecEnv,
    PurifyVectorObservation,
    fit_dsrm,
    make_vec_env,
)
from dsrm_agents.dsrm.diffusion import GaussianDiffusion, cosine_alpha_bar
from dsrm_agents.dsrm.targets import build_pairs, erase_linearly, mean_log_popularity
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.simulator import load_catalogue


@pytest.fixture(scope="module")
def dsrm(small) -> DSRM:
    return fit_dsrm(small, updates=300, seed=1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean((a * b).sum(axis=1) / norms))


@pytest.mark.parametrize("steps", [1, 5, 20, 500])
def test_the_schedule_runs_from_clean_to_noise(steps: int) -> None:
    alpha_bar = cosine_alpha_bar(steps)
    assert alpha_bar.shape == (steps + 1,)
    assert alpha_bar[0] == 1
    assert alpha_bar[-1] <= 1e-3
    assert (alpha_bar[1:] <= alpha_bar[:-1]).all()


def test_q_sample_has_the_moments_of_eq_2() -> None:
    diffusion = GaussianDiffusion(20)
    noise = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0))
    x0 = torch.tensor([[2.0, -1.0]]).expand(100_000, 2)
    for k in (0, 7, 20):
        noised = diffusion.q_sample(x0, torch.full((100_000,), k), noise)
        alpha_bar = diffusion.alpha_bar[k]
        torch.testing.assert_close(noised.mean(0), alpha_bar.sqrt() * x0[0], atol=0.02, rtol=0)
        torch.testing.assert_close(noised.var(0), (1 - alpha_bar).expand(2), atol=0.02, rtol=0)


class Knows:
    """A denoiser that knows the clean state, and answers as the prediction demands."""

    def __init__(self, diffusion: GaussianDiffusion, x0: torch.Tensor) -> None:
        self.diffusion, self.x0 = diffusion, x0

    def encode(self, condition: torch.Tensor) -> torch.Tensor:
        return condition

    def __call__(self, x: torch.Tensor, step: torch.Tensor, encoded: torch.Tensor) -> torch.Tensor:
        if self.diffusion.prediction == "x0":
            return self.x0
        alpha_bar = self.diffusion.alpha_bar[step][:, None]
        return (x - alpha_bar.sqrt() * self.x0) / (1 - alpha_bar).sqrt()


@pytest.mark.parametrize("prediction", ["x0", "noise"])
@pytest.mark.parametrize("steps", [1, 20])
def test_a_perfect_denoiser_recovers_the_clean_state(prediction: str, steps: int) -> None:
    diffusion = GaussianDiffusion(steps, prediction)
    x0, start = torch.randn(5, 3), torch.randn(5, 3)
    found = diffusion.ddim(Knows(diffusion, x0), start, x0)
    torch.testing.assert_close(found, x0, atol=1e-3, rtol=1e-3)


def test_literal_pairs_are_the_identity_and_debiased_ones_carry_less_popularity(world) -> None:
    catalogue, encoder = load_catalogue(world), preference_encoder(world)
    rng = np.random.default_rng(0)
    literal = build_pairs(world.training, catalogue, encoder, "literal", 2, rng)
    np.testing.assert_array_equal(literal.observed, literal.target)
    debiased = build_pairs(world.training, catalogue, encoder, "debiased", 1, rng)
    log = world.log
    seen = csr_matrix(
        (np.ones(len(log)), (log.users, log.items)), shape=(world.n_users, world.n_items)
    )
    popularity = mean_log_popularity(seen)[world.train_users]
    assert explained(debiased.target, popularity) < 0.1 * explained(debiased.observed, popularity)


def explained(states: np.ndarray, label: np.ndarray) -> float:
    """Share of the label's variance that a linear map of the states explains."""
    design = np.column_stack([states, np.ones(len(states))])
    residual = label - design @ np.linalg.lstsq(design, label, rcond=None)[0]
    return float(1 - residual.var() / label.var())


def test_purifying_unseen_users_removes_popularity_and_keeps_preference(world) -> None:
    encoder, users = preference_encoder(world), world.test_users
    raw = encoder.encode(encoder.history_sum[users], encoder.history_weight[users])
    purified = fit_dsrm(world, seed=0).denoise(raw)
    log = world.log
    seen = csr_matrix(
        (np.ones(len(log)), (log.users, log.items)), shape=(world.n_users, world.n_items)
    )
    popularity = mean_log_popularity(seen)[users]
    assert explained(raw, popularity) > 0.7
    assert explained(purified, popularity) < 0.25 * explained(raw, popularity)
    preference = world.truth.preference[users]
    kept = np.mean([explained(purified, column) for column in preference.T])
    before = np.mean([explained(raw, column) for column in preference.T])
    assert kept > before - 0.03


def test_the_literal_mode_is_close_to_the_identity(world) -> None:
    encoder, users = preference_encoder(world), world.test_users
    raw = encoder.encode(encoder.history_sum[users], encoder.history_weight[users])
    assert cosine(fit_dsrm(world, "literal", updates=1500).denoise(raw), raw) > 0.9


def test_only_train_users_are_read(small, with_watch_ratios) -> None:
    """What test users logged or answered changes no weight."""
    mine = np.isin(small.log.users, small.test_users)
    watch = np.where(mine, 0.0, small.log.watch_ratio).astype(np.float32)
    other = with_watch_ratios(small, log=watch, test=small.test.watch_ratio * 0)
    one, two = fit_dsrm(small, updates=20), fit_dsrm(other, updates=20)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(tensor, two.state_dict()[name], rtol=0, atol=0)


def test_same_seed_same_weights_and_no_global_seeding(small) -> None:
    state = torch.get_rng_state()
    one, two = fit_dsrm(small, updates=20, seed=4), fit_dsrm(small, updates=20, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    states = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    np.testing.assert_array_equal(one.denoise(states), two.denoise(states))
    assert np.any(one.denoise(states) != fit_dsrm(small, updates=20, seed=5).denoise(states))


def test_denoising_is_a_function_of_the_state(dsrm) -> None:
    states = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    together = dsrm.denoise(states)
    np.testing.assert_array_equal(together, dsrm.denoise(states))
    alone = np.concatenate([dsrm.denoise(state[None]) for state in states])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    with pytest.raises(ConfigError, match=r"\(N, 32\)"):
        dsrm.denoise(states[:, :5])
    with pytest.raises(ConfigError, match="finite"):
        dsrm.denoise(np.full((1, 32), np.nan, np.float32))


@pytest.mark.parametrize("observation", ["state", "dict"])
def test_the_three_shells_agree(small, dsrm, observation: str) -> None:
    n, options = 3, {"dataset": small, "observation_type": observation, "max_len": 6}
    raw = make_vec_env("KuaiRec-Fair-v0", n, seed=8, **options)
    sb3 = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", n, seed=8, **options), dsrm)
    singles = [PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), dsrm) for _ in range(n)]
    vector = PurifyVectorObservation(
        SyncVectorEnv([lambda: gym.make("KuaiRec-Fair-v0", **options)] * n), dsrm
    )

    def state(seen) -> np.ndarray:
        return seen["state"] if isinstance(seen, dict) else seen

    unpurified, seen = state(raw.reset()), state(sb3.reset())
    assert np.abs(unpurified[:, :32] - seen[:, :32]).max() > 0.01
    np.testing.assert_array_equal(unpurified[:, 32:], seen[:, 32:])
    np.testing.assert_allclose(seen, state(vector.reset(seed=8)[0]), atol=1e-4)
    for slot, env in enumerate(singles):
        np.testing.assert_allclose(seen[slot], state(env.reset(seed=8 + slot)[0]), atol=1e-4)
    rng = np.random.default_rng(0)
    for _ in range(3):
        actions = rng.uniform(-1, 1, (n, 33)).astype(np.float32)
        raw.step(actions)
        seen, _, dones, infos = sb3.step(actions)
        batch = state(vector.step(actions)[0])
        for slot, env in enumerate(singles):
            own = state(env.step(actions[slot])[0])
            now = infos[slot]["terminal_observation"] if dones[slot] else None
            shown = state(seen)[slot] if now is None else state(now)
            np.testing.assert_allclose(shown, own, atol=1e-4)
            np.testing.assert_allclose(batch[slot], own, atol=1e-4)
        if dones.any():
            break


def test_terminal_observations_are_purified(small, dsrm) -> None:
    options = {"dataset": small, "max_len": 4}
    raw = make_vec_env("KuaiRec-Fair-v0", 2, seed=1, **options)
    worn = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, seed=1, **options), dsrm)
    raw.reset()
    worn.reset()
    actions = np.zeros((2, 33), dtype=np.float32)
    for _ in range(4):
        _, _, dones, plain = raw.step(actions)
        _, _, _, infos = worn.step(actions)
        for slot in np.flatnonzero(dones):
            last = plain[slot]["terminal_observation"]
            expected = dsrm.denoise(last[None, :32])[0]
            np.testing.assert_allclose(
                infos[slot]["terminal_observation"][:32], expected, atol=1e-5
            )
    assert dones.any()


@pytest.mark.parametrize("observation", ["state", "dict"])
@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_native_vector_environments_wear_it_in_every_mode(small, dsrm, mode, observation) -> None:
    n, options = 4, {"dataset": small, "observation_type": observation, "max_len": 5}
    raw, plain = (
        gym.make_vec("KuaiRec-Fair-v0", num_envs=n, autoreset_mode=mode, **options)
        for _ in range(2)
    )
    worn = PurifyVectorObservation(plain, dsrm)

    def check(seen, own) -> None:
        if isinstance(seen, dict):
            np.testing.assert_array_equal(seen["exposed"], own["exposed"])
            seen, own = seen["state"], own["state"]
        seen, own = np.atleast_2d(seen), np.atleast_2d(own)
        np.testing.assert_array_equal(seen[:, 32:], own[:, 32:])
        np.testing.assert_allclose(seen[:, :32], dsrm.denoise(own[:, :32]), atol=1e-4)

    check(worn.reset(seed=3)[0], raw.reset(seed=3)[0])
    raw.action_space.seed(0)
    ends = 0
    for _ in range(12):
        actions = raw.action_space.sample()
        seen, *told, infos = worn.step(actions)
        own, *expected, plain_infos = raw.step(actions)
        check(seen, own)
        for one, other in zip(told, expected, strict=True):
            np.testing.assert_array_equal(one, other)
        over = told[1] | told[2]
        ends += over.sum()
        if mode is AutoresetMode.SAME_STEP and over.any():
            np.testing.assert_array_equal(infos["_final_obs"], over)
            for slot in range(n):
                if over[slot]:
                    check(infos["final_obs"][slot], plain_infos["final_obs"][slot])
                else:
                    assert infos["final_obs"][slot] is None
        if mode is AutoresetMode.DISABLED and over.any():
            check(
                worn.reset(options={"reset_mask": over})[0],
                raw.reset(options={"reset_mask": over})[0],
            )
    assert ends >= n


def test_any_agent_can_wear_it(small, dsrm) -> None:
    env = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 4, dataset=small), dsrm)
    PPO("MlpPolicy", env, n_steps=16, batch_size=32, device="cpu").learn(64)


def test_checkpoints_survive_and_damage_is_reported(small, dsrm, tmp_path) -> None:
    path = tmp_path / "dsrm.safetensors"
    dsrm.save(path)
    states = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    loaded = DSRM.load(path)
    assert loaded.config == dsrm.config
    np.testing.assert_array_equal(loaded.denoise(states), dsrm.denoise(states))
    with pytest.raises(CheckpointError, match="no DSRM checkpoint at"):
        DSRM.load(tmp_path / "missing")
    (tmp_path / "torn").write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        DSRM.load(tmp_path / "torn")
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not a DSRM checkpoint"):
        DSRM.load(tmp_path / "other")


def test_a_checkpoint_of_another_dataset_is_refused(world, dsrm) -> None:
    with pytest.raises(CheckpointError, match="fit it again"):
        PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 2, dataset=world), dsrm)


def test_unknown_options_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'debiased'"):
        fit_dsrm(small, "debias")
    with pytest.raises(ConfigError, match="diffusion_steps"):
        fit_dsrm(small, diffusion_steps=0)
    with pytest.raises(ConfigError, match="prediction"):
        fit_dsrm(small, prediction="v")
    for options in ({"updates": -5}, {"batch_size": 0}, {"learning_rate": -1.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            fit_dsrm(small, **options)


def test_erasure_leaves_a_linear_probe_nothing_and_the_rest_as_it_was() -> None:
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    causes = rng.normal(size=(2000, 6))
    states = (causes @ mixing).astype(np.float32)
    label = causes[:, 0] + 0.1 * rng.normal(size=2000)
    erased = erase_linearly(states, label)
    assert explained(states, label) > 0.95
    assert explained(erased, label) < 0.001
    for other in causes.T[1:]:
        assert explained(erased, other) > 0.95
    np.testing.assert_array_equal(erase_linearly(states, np.ones(2000)), states)
