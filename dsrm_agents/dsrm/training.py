"""The training loop of every purifier: averaged weights, and fits that resume to the same ones."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """How long and how fast.

    Attributes:
        updates: Gradient steps.
        batch_size: Pairs a step.
        learning_rate: Of AdamW, at the start; it falls to zero along a half cosine.
        weight_decay: Of AdamW. Targets are far noisier than images: without a strong pull to
            simple maps the network learns their noise.
        ema: Decay of the exponential average of the weights, which is what is kept.
    """

    updates: int = 1500
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 1.0
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


def train(
    objective: nn.Module,
    loss: Callable[[Tensor], Tensor],
    n_rows: int,
    config: TrainConfig,
    *,
    undecayed: Iterable[nn.Parameter] = (),
    identity: str = "",
    checkpoint: str | Path | None = None,
    every: int = 250,
    progress: str | None = None,
) -> None:
    """Minimises a loss over random batches and leaves the averaged weights in the module.

    Draws from torch's global generator; callers fork it.

    Args:
        objective: Everything that is trained.
        loss: (B,) int64 row numbers to a scalar.
        n_rows: Rows to draw from.
        config: How long and how fast.
        undecayed: Parameters without weight decay.
        identity: What this fit is of; a checkpoint of something else is refused.
        checkpoint: File in which progress is kept, so that an interrupted fit goes on where it was
            and ends with the weights of one that was never interrupted; a finished one returns at
            once.
        every: Updates between checkpoints.
        progress: Label of a progress bar; ``None`` for none.

    Raises:
        CheckpointError: The checkpoint is damaged or of another fit.
        ConfigError: The loss is no longer finite, or the checkpoint is a folder.
    """
    if checkpoint is not None and Path(checkpoint).is_dir():
        raise ConfigError(f"The checkpoint {checkpoint} is a folder; name a file.")
    free = set(undecayed)
    groups: list[dict[str, Any]] = [
        {"params": [one for one in objective.parameters() if one not in free]},
        {"params": [one for one in objective.parameters() if one in free], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
    state = _Progress(objective, optimizer, json.dumps([identity, asdict(config)]))
    if checkpoint is not None and Path(checkpoint).is_file():
        state.load(Path(checkpoint))
    with tqdm(
        total=config.updates,
        initial=state.done,
        desc=progress,
        unit="update",
        disable=progress is None,
    ) as bar:
        while state.done < config.updates:
            rate = 0.5 * (1.0 + math.cos(math.pi * state.done / config.updates))
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * rate
            value = loss(torch.randint(n_rows, (config.batch_size,)))
            optimizer.zero_grad()
            if not torch.isfinite(value):
                raise ConfigError(
                    f"The loss is {value.item()} after {state.done} updates: lower learning_rate "
                    f"(now {config.learning_rate})."
                )
            value.backward()
            optimizer.step()
            state.average(config.ema)
            bar.update()
            due = state.done % every == 0 or state.done == config.updates
            if checkpoint is not None and due:
                state.save(Path(checkpoint))
    state.finish()


class _Progress:
    """All that a fit needs to go on: weights, their average, the optimiser and randomness.

    Args:
        objective: Everything that is trained.
        optimizer: AdamW over its parameters.
        identity: What this fit is of.
    """

    def __init__(
        self, objective: nn.Module, optimizer: torch.optim.Optimizer, identity: str
    ) -> None:
        self.optimizer, self.identity = optimizer, identity
        self.done = 0
        self.parameters = dict(objective.named_parameters())
        self.averaged = {name: value.detach().clone() for name, value in self.parameters.items()}

    def average(self, decay: float) -> None:
        """Counts an update and takes its weights into the average."""
        self.done += 1
        # The first updates are averaged plainly: the random start should not linger.
        decay = min(decay, 1.0 - 1.0 / self.done)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.averaged.values()), list(self.parameters.values()), 1.0 - decay
            )

    def finish(self) -> None:
        """Puts the averaged weights into the module."""
        with torch.no_grad():
            for name, value in self.parameters.items():
                value.copy_(self.averaged[name])

    def save(self, path: Path) -> None:
        """Writes everything, whole or not at all."""
        tensors: dict[str, Tensor] = {"random": torch.get_rng_state()}
        for name, value in self.parameters.items():
            tensors[f"weight.{name}"] = value
            tensors[f"average.{name}"] = self.averaged[name]
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"{moment}.{name}"] = self.optimizer.state[value][moment]
        save_tensors(path, FORMAT, arrays_of(tensors), fit=self.identity, done=str(self.done))

    def load(self, path: Path) -> None:
        """Takes up what :meth:`save` wrote.

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
            self.done = int(file.header["done"])
            for name, value in self.parameters.items():
                value.copy_(tensors[f"weight.{name}"])
                self.averaged[name].copy_(tensors[f"average.{name}"])
                self.optimizer.state[value] = {
                    "step": torch.tensor(float(self.done)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
            torch.set_rng_state(tensors["random"])
