"""Gradient training of purifiers, with averaged weights and exact resumption."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from dsrm_agents.common.fitted import arrays_of, tensors_of
from kuaisim_gym.config import check_whole
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.tensors import open_tensors, save_tensors

FORMAT = "dsrm-training-1"


@dataclass(frozen=True)
class TrainConfig:
    """Settings of the optimiser.

    Attributes:
        updates: Gradient steps.
        batch_size: Pairs a step.
        learning_rate: Of AdamW, at the start; it falls to zero along a half cosine.
        weight_decay: Of AdamW.
        ema: Decay of the exponential average of the weights, which is what is kept.
    """

    updates: int = 3000
    batch_size: int = 256
    learning_rate: float = 5e-3
    weight_decay: float = 0.05
    ema: float = 0.995

    def __post_init__(self) -> None:
        for name in ("updates", "batch_size"):
            check_whole(name, getattr(self, name), 1)
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not self.weight_decay >= 0:
            raise ConfigError(f"weight_decay must be at least 0, got {self.weight_decay}.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema must lie in [0, 1), got {self.ema}.")


@dataclass(frozen=True)
class TrainRun:
    """One training: its settings, its checkpoint and its progress bar.

    Attributes:
        config: Settings of the optimiser.
        identity: Text that tells this fit from all others; a checkpoint of another one is refused.
        checkpoint: File in which progress is kept, so that an interrupted fit goes on where it was
            and ends with the weights of one that was never interrupted; a finished one returns at
            once. ``None`` for no file.
        interval: Updates between checkpoints.
        progress: Label of a progress bar; ``None`` for none.
    """

    config: TrainConfig
    identity: str = ""
    checkpoint: str | Path | None = None
    interval: int = 250
    progress: str | None = None


def train(module: nn.Module, loss: Callable[[Tensor], Tensor], n_rows: int, run: TrainRun) -> None:
    """Minimises a loss over random batches and leaves the averaged weights in the module.

    Draws from torch's global generator; callers fork it.

    Args:
        module: Its parameters are trained.
        loss: (B,) int64 row numbers to a scalar.
        n_rows: Rows to draw from.
        run: Settings and checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged or of another fit.
        ConfigError: The loss is no longer finite, or the checkpoint is a folder.
    """
    config, checkpoint = run.config, None if run.checkpoint is None else Path(run.checkpoint)
    if checkpoint is not None and checkpoint.is_dir():
        raise ConfigError(f"The checkpoint {checkpoint} is a folder; name a file.")
    optimizer = torch.optim.AdamW(
        module.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    state = _Progress(module, optimizer, json.dumps([run.identity, asdict(config)]))
    if checkpoint is not None and checkpoint.is_file():
        state.load(checkpoint)
    with tqdm(
        total=config.updates,
        initial=state.updates,
        desc=run.progress,
        unit="update",
        disable=run.progress is None,
    ) as bar:
        while state.updates < config.updates:
            rate = 0.5 * (1.0 + math.cos(math.pi * state.updates / config.updates))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            value = loss(torch.randint(n_rows, (config.batch_size,)))
            optimizer.zero_grad()
            if not torch.isfinite(value):
                raise ConfigError(
                    f"The loss is {value.item()} after {state.updates} updates: lower "
                    f"learning_rate (now {config.learning_rate})."
                )
            value.backward()
            optimizer.step()
            state.average(config.ema)
            bar.update()
            due = state.updates % run.interval == 0 or state.updates == config.updates
            if checkpoint is not None and due:
                state.save(checkpoint)
    state.finish()


class _Progress:
    """State of a training: weights, their average, the optimiser and randomness.

    Args:
        module: Its parameters are trained.
        optimizer: AdamW over its parameters.
        identity: Text that tells this fit from all others.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, identity: str) -> None:
        self.optimizer, self.identity = optimizer, identity
        self.updates = 0
        self.parameters = dict(module.named_parameters())
        self.averaged = {name: value.detach().clone() for name, value in self.parameters.items()}

    def average(self, decay: float) -> None:
        """Counts an update and takes its weights into the average."""
        self.updates += 1
        # The first updates are averaged plainly: the random start should not linger.
        decay = min(decay, 1.0 - 1.0 / self.updates)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.values()), list(self.parameters.values()), 1.0 - decay
            )

    def finish(self) -> None:
        """Copies the averaged weights into the module."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.averaged[name])

    def save(self, path: Path) -> None:
        """Writes the state, completely or not at all."""
        tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
        for name, value in self.parameters.items():
            tensors[f"weight.{name}"] = value
            tensors[f"average.{name}"] = self.averaged[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[value][moment]
        save_tensors(path, FORMAT, arrays_of(tensors), fit=self.identity, done=str(self.updates))

    def load(self, path: Path) -> None:
        """Restores the state that :meth:`save` wrote.

        Raises:
            CheckpointError: It is damaged or of another fit.
        """
        with open_tensors(path, FORMAT, "training checkpoint") as file, torch.no_grad():
            if file.header["fit"] != self.identity:
                raise CheckpointError(
                    f"{path} holds the progress of another fit: expected {self.identity}, got "
                    f"{file.header['fit']}. Remove it, or name another file."
                )
            tensors = tensors_of(file.arrays)
            self.updates = int(file.header["done"])
            for name, value in self.parameters.items():
                value.copy_(tensors[f"weight.{name}"])
                self.averaged[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.updates)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
            torch.set_rng_state(tensors["random"])
