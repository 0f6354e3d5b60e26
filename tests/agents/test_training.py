from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dsrm_agents.dsrm.training import TrainConfig, train
from kuaisim_gym.errors import CheckpointError, ConfigError

CONFIG = TrainConfig(updates=20, batch_size=8, learning_rate=0.05, weight_decay=0.0)


class Line(nn.Module):
    """Learns y = 3 x from noisy rows; gives up after so many losses."""

    def __init__(self, patience: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.x = torch.linspace(-1, 1, 64)[:, None]
        self.patience = patience

    def forward(self, rows: Tensor) -> Tensor:
        if self.patience == 0:
            raise KeyboardInterrupt
        self.patience = None if self.patience is None else self.patience - 1
        y = 3 * self.x[rows] + torch.randn(len(rows), 1)
        return (self.layer(self.x[rows]) - y).square().mean()


def fit(model: Line, config: TrainConfig = CONFIG, **options) -> Line:
    torch.manual_seed(5)
    train(model, model, 64, config, **options)
    return model


def weights(model: nn.Module) -> list[Tensor]:
    return [value.detach().clone() for value in model.parameters()]


def test_it_learns() -> None:
    model = fit(Line(), TrainConfig(1500, 32, learning_rate=0.02, weight_decay=0.0))
    assert model.layer.weight.item() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize("killed_after", [0, 1, 4, 7, 19])
def test_a_killed_fit_resumes_to_the_same_weights(tmp_path, killed_after: int) -> None:
    whole = fit(Line())
    file = tmp_path / "progress"
    with pytest.raises(KeyboardInterrupt):
        fit(Line(killed_after), checkpoint=file, every=3)
    assert file.exists() == (killed_after >= 3)
    torch.manual_seed(99)  # the random state, too, comes from the file, once there is one
    resumed = Line()
    if killed_after < 3:
        torch.manual_seed(5)
    train(resumed, resumed, 64, CONFIG, checkpoint=file, every=3)
    for one, two in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(one, two)


def test_a_finished_fit_is_not_made_again(tmp_path) -> None:
    file = tmp_path / "progress"
    done = fit(Line(), checkpoint=file)
    again = fit(Line(patience=0), checkpoint=file)  # any loss would raise
    for one, two in zip(weights(done), weights(again), strict=True):
        assert torch.equal(one, two)


def test_progress_of_another_fit_and_damage_are_refused(tmp_path) -> None:
    file = tmp_path / "progress"
    fit(Line(), checkpoint=file, identity="a")
    with pytest.raises(CheckpointError, match="another fit"):
        fit(Line(), checkpoint=file, identity="b")
    with pytest.raises(CheckpointError, match="another fit"):
        fit(Line(), TrainConfig(updates=21, batch_size=8), checkpoint=file, identity="a")
    torn = tmp_path / "torn"
    torn.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be read"):
        fit(Line(), checkpoint=torn)
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a training checkpoint of this version"):
        fit(Line(), checkpoint=tmp_path / "other")


def test_weights_are_averaged() -> None:
    """With a constant gradient the kept weight is the average of those passed through."""

    class Slope(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at = nn.Parameter(torch.zeros(()))
            self.path: list[float] = []

        def forward(self, rows: Tensor) -> Tensor:
            self.path.append(self.at.item())
            return self.at

    model = Slope()
    train(model, model, 8, TrainConfig(4, 2, learning_rate=1.0, weight_decay=0.0, ema=0.999))
    # Adam's step under a constant gradient is the rate, which falls along a half cosine.
    rates = [(1 + math.cos(math.pi * done / 4)) / 2 for done in range(4)]
    visited = [-sum(rates[: done + 1]) for done in range(4)]
    np.testing.assert_allclose(model.path, [0.0, *visited[:3]], atol=1e-5)
    assert model.at.item() == pytest.approx(sum(visited) / 4, abs=1e-5)


def test_a_fit_that_diverges_says_so() -> None:
    class Diverging(Line):
        def forward(self, rows: Tensor) -> Tensor:
            return super().forward(rows) * float("nan")

    with pytest.raises(ConfigError, match="lower learning_rate"):
        fit(Diverging())


def test_a_folder_is_no_checkpoint(tmp_path) -> None:
    with pytest.raises(ConfigError, match="is a folder"):
        fit(Line(), checkpoint=tmp_path)


def test_some_parameters_are_not_pulled_to_zero() -> None:
    class Still(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pulled, self.free = (nn.Parameter(torch.ones(())) for _ in range(2))

        def forward(self, rows: Tensor) -> Tensor:
            return 0.0 * (self.pulled + self.free)

    model = Still()
    train(model, model, 8, TrainConfig(20, 2, weight_decay=1.0), undecayed=[model.free])
    assert model.free.item() == 1.0
    assert model.pulled.item() < 0.999


@pytest.mark.parametrize(
    "wrong",
    [
        {"updates": 0},
        {"batch_size": 0},
        {"learning_rate": 0.0},
        {"weight_decay": -1.0},
        {"ema": 1.0},
        {"learning_rate": float("nan")},
    ],
)
def test_impossible_settings_are_refused(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainConfig(**wrong)
