"""A student that does in one step what DSRM does in K, for serving."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from dsrm_agents.dsrm.dsrm import DSRM, DiffusionPurifier, DSRMConfig
from dsrm_agents.dsrm.targets import TargetConfig, build_pairs
from dsrm_agents.dsrm.training import TrainConfig, train
from kuaisim_gym.config import check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import ConfigError

SERVED = 0.5  # share of the training rows at the very start that is served
# The teacher's answers hold no noise, so nothing pulls the weights to zero.
DISTILLATION = TrainConfig(updates=1500, learning_rate=1e-3, weight_decay=1e-4)


class Student(DiffusionPurifier):
    """A consistency model (Song et al. 2023): from any point of a trajectory to its end.

    It has the teacher's network and starts from its weights; one evaluation at the start of the
    reverse process replaces K.

    Args:
        config: The teacher's.
    """

    kind = "student"

    served: Tensor

    def __init__(self, config: DSRMConfig) -> None:
        super().__init__(config)
        self.register_buffer("served", torch.tensor([self.start]), persistent=False)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """See :class:`FittedPurifier`."""
        return self.end(self.begin(states), self.served, self.denoiser.encode(condition))

    def end(self, x: Tensor, step: Tensor, encoded: Tensor) -> Tensor:
        """The ends of trajectories, each from a point on it.

        Args:
            x: (B, d) points.
            step: (B,) or (1,) int64, the steps that they are at, in [1, K].
            encoded: (B, e) encoded conditions.

        Returns:
            (B, d) clean states.
        """
        signal = self.diffusion.signal[step][:, None]
        spread = self.diffusion.spread[step][:, None]
        on_x, on_predicted = self.diffusion.clean_weights(signal, spread)
        return torch.as_tensor(on_x * x + on_predicted * self.denoiser(x, step, encoded))


def distil(
    teacher: DSRM,
    dataset: Dataset,
    *,
    training: TrainConfig = DISTILLATION,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = False,
) -> Student:
    """Trains a student on a teacher's trajectories.

    With K steps of a small network, trajectories are cheap to run to their ends; the student is
    held to those instead of to its own slow copy one step further on, as consistency distillation
    does for large ones.

    Args:
        teacher: A fitted DSRM.
        dataset: What it was fitted on; the train users' logs give the conditions.
        training: How long and how fast.
        seed: Same seed, same weights.
        checkpoint: See :func:`~dsrm_agents.dsrm.fit.fit_purifier`.
        progress: Whether to show a progress bar.

    Returns:
        The student, in evaluation mode.

    Raises:
        CheckpointError: The checkpoint is damaged or of another fit.
        ConfigError: The teacher was fitted on another dataset.
    """
    if teacher.fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"The teacher was fitted on dataset {teacher.fingerprint!r}, this is "
            f"{dataset.fingerprint!r}: distil it on its own."
        )
    check_whole("seed", seed, 0)
    source = TargetConfig(source="identity")
    pairs = build_pairs(dataset.training, preference_encoder(dataset), source, seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        student = Student(teacher.config)
        student.load_state_dict(teacher.state_dict())
        states = torch.from_numpy(pairs.observed)
        condition = student.condition(states)

        def loss(rows: Tensor) -> Tensor:
            x, step, end = _points(teacher, condition[rows], states[rows])
            found = student.end(x, step, student.denoiser.encode(condition[rows]))
            return (found - end).square().mean()

        train(
            student,
            loss,
            len(states),
            training,
            identity=json.dumps(["student", seed, teacher.digest, asdict(training)]),
            checkpoint=checkpoint,
            progress="Purifier (student)" if progress else None,
        )
    return student.eval()


@torch.no_grad()
def _points(teacher: DSRM, condition: Tensor, states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the teacher's trajectories, a row each: states, their steps and their ends.

    A share of the rows stands where serving begins; the others anywhere on trajectories from
    random noise, of a size between none and full.
    """
    served = torch.rand(len(condition)) < SERVED
    size = torch.rand(len(condition)) * ~served
    start = teacher.begin(states)
    start = start + teacher.diffusion.spread[teacher.start] * size[:, None] * torch.randn_like(
        start
    )
    encoded = teacher.denoiser.encode(condition)
    path = torch.stack(
        list(
            teacher.diffusion.reverse(
                teacher.denoiser,
                start,
                encoded,
                start=teacher.start,
                guidance=teacher.config.guidance,
            )
        )
    )  # (start + 1, B, d), the end last
    step = torch.randint(1, teacher.start + 1, (len(condition),))
    step = torch.where(served, teacher.start, step)
    return path[teacher.start - step, torch.arange(len(step))], step, path[-1]
