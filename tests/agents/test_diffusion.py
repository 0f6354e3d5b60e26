from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from dsrm_agents.dsrm.denoiser import MLPDenoiser, sinusoidal
from dsrm_agents.dsrm.diffusion import (
    PREDICTIONS,
    Denoiser,
    GaussianDiffusion,
    cosine_alpha_bar,
)
from kuaisim_gym.errors import ConfigError


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Oracle(Denoiser):
    """Predicts what a given rule says the clean state is."""

    def __init__(
        self, diffusion: GaussianDiffusion, clean: Callable[[Tensor, Tensor, Tensor], Tensor]
    ) -> None:
        self.diffusion, self.clean = diffusion, clean

    def __call__(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        signal = self.diffusion.signal[step][:, None]
        spread = self.diffusion.spread[step][:, None]
        x0 = self.clean(x, signal, condition)
        noise = (x - signal * x0) / spread
        return {"noise": noise, "x0": x0, "v": signal * noise - spread * x0}[
            self.diffusion.prediction
        ]


def knows(diffusion: GaussianDiffusion) -> Oracle:
    """The condition is the clean state."""
    return Oracle(diffusion, lambda x, signal, condition: condition)


def gaussian(diffusion: GaussianDiffusion, mixing: Tensor, deviation: float) -> Oracle:
    """The exact mean of x0 given its noised state, where x0 ~ N(mixing c, deviation^2 I)."""

    def clean(x: Tensor, signal: Tensor, condition: Tensor) -> Tensor:
        mean = condition @ mixing.T
        gain = signal * deviation**2 / (signal**2 * deviation**2 + 1 - signal**2)
        return mean + gain * (x - signal * mean)

    return Oracle(diffusion, clean)


@pytest.mark.parametrize("steps", [1, 5, 20, 500])
def test_the_schedule_runs_from_clean_to_noise(steps: int) -> None:
    alpha_bar = cosine_alpha_bar(steps)
    assert alpha_bar.shape == (steps + 1,)
    assert alpha_bar[0] == 1
    assert 1e-4 <= alpha_bar[-1] <= 1e-3
    assert (alpha_bar[1:] <= alpha_bar[:-1]).all()
    diffusion = GaussianDiffusion(steps)
    assert diffusion.alpha_bar == alpha_bar.tolist()
    assert not diffusion.state_dict()


def test_q_sample_has_the_moments_of_eq_2() -> None:
    diffusion = GaussianDiffusion(20)
    noise = torch.randn(100_000, 2)
    x0 = torch.tensor([[2.0, -1.0]]).expand(100_000, 2)
    for k in (0, 7, 20):
        noised = diffusion.q_sample(x0, torch.full((100_000,), k), noise)
        alpha_bar = torch.tensor(diffusion.alpha_bar[k])
        torch.testing.assert_close(noised.mean(0), alpha_bar.sqrt() * x0[0], atol=0.02, rtol=0)
        torch.testing.assert_close(noised.var(0), (1 - alpha_bar).expand(2), atol=0.02, rtol=0)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(PREDICTIONS),
    st.integers(1, 30),
    st.floats(0, 1),
    st.integers(0, 1000),
)
def test_a_perfect_denoiser_recovers_the_clean_state(
    prediction: str, steps: int, eta: float, seed: int
) -> None:
    """Whatever the prediction, the starting state and the noise on the way."""
    generator = torch.Generator().manual_seed(seed)
    x0, x = (torch.randn(5, 3, generator=generator) for _ in range(2))
    diffusion = GaussianDiffusion(steps, prediction)
    sampled = diffusion.sample(knows(diffusion), x, x0, eta=eta, generator=generator)
    torch.testing.assert_close(sampled, x0, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_denoiser_has_no_loss(prediction: str) -> None:
    diffusion, x0 = GaussianDiffusion(20, prediction), torch.randn(64, 3)
    loss = diffusion.training_loss(knows(diffusion), x0, x0)
    torch.testing.assert_close(loss, torch.zeros(64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_loss_is_each_row_s_own_in_the_space_of_the_prediction(prediction: str) -> None:
    """A clean state that is off by e puts the prediction off by e times a known weight."""
    diffusion, x0 = GaussianDiffusion(20, prediction), torch.randn(4000, 3)
    off = torch.linspace(0, 2, 4000)[:, None]
    loss = diffusion.training_loss(knows(diffusion), x0, x0 + off)
    signal, spread = diffusion.signal[1:].double(), diffusion.spread[1:].double()
    weights = {"noise": (signal / spread) ** 2, "x0": signal**0, "v": spread**-2}[prediction]
    # Steps are uniform in [1, K]: the ratios are exactly the weights of those steps.
    ratio = (loss / off[:, 0] ** 2)[400:].double()
    nearest = (ratio[:, None] / weights - 1).abs().min(dim=1)
    assert nearest.values.max() < 1e-2
    if prediction == "v":
        assert torch.bincount(nearest.indices, minlength=20)[:10].min() > 100


def test_eta_one_is_ddpm_as_eq_3_has_it() -> None:
    """Against a walk written out with the per-step alpha and the posterior's variance."""
    diffusion = GaussianDiffusion(30, "noise")
    oracle = gaussian(diffusion, torch.eye(3), 0.5)
    condition, x = torch.randn(6, 3), torch.randn(6, 3)
    found = diffusion.sample(
        oracle, x, condition, eta=1.0, generator=torch.Generator().manual_seed(7)
    )
    generator = torch.Generator().manual_seed(7)
    for k in range(30, 0, -1):
        alpha_bar, before = diffusion.alpha_bar[k], diffusion.alpha_bar[k - 1]
        alpha = alpha_bar / before
        noise = oracle(x, torch.tensor([k]), condition)
        x = (x - (1 - alpha) / math.sqrt(1 - alpha_bar) * noise) / math.sqrt(alpha)
        if k > 1:
            variance = (1 - before) / (1 - alpha_bar) * (1 - alpha)
            x = x + math.sqrt(variance) * torch.randn(6, 3, generator=generator)
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_noise_the_conditional_mean_comes_out(prediction: str) -> None:
    diffusion, mixing = GaussianDiffusion(20, prediction), torch.randn(3, 3)
    oracle, condition = gaussian(diffusion, mixing, 0.7), torch.randn(50, 3)
    mean = condition @ mixing.T
    last = torch.full((50,), 20)
    noised = diffusion.q_sample(mean, last, torch.zeros(50, 3))
    torch.testing.assert_close(
        diffusion.sample(oracle, noised, condition), mean, atol=1e-3, rtol=1e-3
    )
    torch.testing.assert_close(
        diffusion.sample(oracle, torch.zeros(50, 3), condition), mean, atol=0.03, rtol=0.03
    )


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_from_noise_have_the_conditional_distribution(eta: float) -> None:
    diffusion, mixing = GaussianDiffusion(200), torch.randn(2, 2)
    condition = torch.tensor([[1.0, -2.0]]).expand(20_000, 2)
    oracle = gaussian(diffusion, mixing, 0.6)
    found = diffusion.sample(oracle, torch.randn(20_000, 2), condition, eta=eta)
    torch.testing.assert_close(found.mean(0), mixing @ condition[0], atol=0.03, rtol=0)
    torch.testing.assert_close(found.std(0), torch.full((2,), 0.6), atol=0.02, rtol=0)
    assert abs(torch.corrcoef(found.T)[0, 1]) < 0.03


@pytest.mark.parametrize(
    ("stops", "visited"), [(1, [8, 0]), (3, [8, 5, 3, 0]), (9, list(range(8, -1, -1)))]
)
def test_some_steps_are_taken_as_if_there_were_no_others(stops: int, visited) -> None:
    diffusion, x = GaussianDiffusion(8), torch.randn(5, 3)
    x0, walk = torch.randn(5, 3), []
    for point in diffusion.reverse(knows(diffusion), x, x0, stops=stops):
        walk.append(point)
    assert len(walk) == len(visited)
    # One who knows the clean state keeps to the line between it and the noise that x shows.
    last = diffusion.steps
    noise = (x - diffusion.signal[last] * x0) / diffusion.spread[last]
    for point, step in zip(walk, visited, strict=True):
        expected = diffusion.signal[step] * x0 + diffusion.spread[step] * noise
        torch.testing.assert_close(point, expected, atol=1e-4, rtol=1e-4)


def test_sampling_is_a_function_of_its_arguments() -> None:
    diffusion, denoiser = GaussianDiffusion(8), MLPDenoiser(3, 3, hidden=16)
    x, condition = torch.randn(4, 3), torch.randn(4, 3)
    copies = x.clone(), condition.clone()
    sampled = diffusion.sample(denoiser, x, condition)
    torch.testing.assert_close(sampled, diffusion.sample(denoiser, x, condition))
    noisy = [
        diffusion.sample(
            denoiser, x, condition, eta=1.0, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (1, 1, 2)
    ]
    assert torch.equal(noisy[0], noisy[1])
    assert not torch.allclose(noisy[0], noisy[2], atol=0.01)
    assert torch.equal(x, copies[0])
    assert torch.equal(condition, copies[1])


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        GaussianDiffusion(0)
    with pytest.raises(ConfigError, match="prediction"):
        GaussianDiffusion(5, "velocity")
    diffusion, x = GaussianDiffusion(5), torch.zeros(1, 2)
    for eta in (-0.1, 1.1, math.nan):
        with pytest.raises(ConfigError, match="eta"):
            diffusion.sample(knows(diffusion), x, x, eta=eta)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_network_is_a_residual_mlp_shifted_by_step_and_condition(layers: int) -> None:
    """Its values and gradients, in place or not, are those of the formula written out."""
    denoiser = MLPDenoiser(3, 3, hidden=8, layers=layers)
    x, step = torch.randn(6, 3, requires_grad=True), torch.randint(1, 21, (6,))
    condition = torch.randn(6, 3)
    embedded = denoiser.time(sinusoidal(step, denoiser.rates))
    shifts = (denoiser.condition(condition) + embedded).chunk(layers + 1, dim=1)
    hidden = silu(denoiser.enter(x) + shifts[0])
    for layer, shift in zip(denoiser.layers, shifts[1:], strict=True):
        hidden = hidden + silu(layer(hidden) + shift)
    plain, predicted = denoiser.leave(hidden), denoiser(x, step, condition)
    torch.testing.assert_close(predicted, plain)
    inputs = (x, *denoiser.parameters())
    for own, expected in zip(
        torch.autograd.grad(predicted.square().sum(), inputs, retain_graph=True),
        torch.autograd.grad(plain.square().sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(own, expected, atol=1e-5, rtol=1e-4)


def test_what_the_sampler_calls_is_the_network_as_it_is_now() -> None:
    denoiser, x = MLPDenoiser(3, 3, hidden=8), torch.randn(6, 3)
    condition = torch.randn(6, 3)
    for _ in range(2):
        predict = denoiser.at(condition, range(1, 21))
        for k in (1, 7, 20):
            expected = denoiser(x, torch.tensor([k]), condition)
            torch.testing.assert_close(predict(x, k), expected)
            torch.testing.assert_close(denoiser(x, torch.full((6,), k), condition), expected)
        with torch.no_grad():
            for parameter in denoiser.parameters():
                parameter.mul_(1.5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_training_learns_the_conditional_mean(prediction: str) -> None:
    mixing, offset = torch.tensor([[1.0, 0.5], [-0.5, 1.0]]), torch.tensor([0.5, -1.0])
    diffusion, denoiser = GaussianDiffusion(20, prediction), MLPDenoiser(2, 2, hidden=48)
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=4e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, total_iters=800)
    for _ in range(800):
        condition = torch.randn(256, 2)
        x0 = offset + condition @ mixing.T + 0.3 * torch.randn(256, 2)
        loss = diffusion.training_loss(denoiser, x0, condition)
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        decay.step()
    condition = torch.randn(500, 2)
    with torch.inference_mode():
        sampled = diffusion.sample(denoiser, torch.zeros(500, 2), condition)
    expected = offset + condition @ mixing.T
    assert (sampled - expected).square().mean() < 0.05 * expected.var()
