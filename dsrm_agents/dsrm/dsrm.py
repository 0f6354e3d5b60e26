"""DSRM, the purifier that runs a diffusion backwards, and its one-step student."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dsrm_agents.common.networks import seeded
from dsrm_agents.dsrm.denoiser import MLPDenoiser
from dsrm_agents.dsrm.diffusion import PREDICTIONS, GaussianDiffusion
from dsrm_agents.dsrm.pairs import Examples, TargetConfig
from dsrm_agents.dsrm.purifier import FittedPurifier, PurifierConfig, TrainedPurifier
from dsrm_agents.dsrm.training import TrainConfig, TrainRun, train
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import Dataset, check_dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision

SERVED = 0.5  # share of the student's training rows at the very start, where serving begins
# The teacher's answers hold no noise, so nothing pulls the weights to zero.
DISTILLATION = TrainConfig(updates=1500, learning_rate=1e-3, weight_decay=1e-4)


@dataclass(frozen=True)
class DSRMConfig(PurifierConfig):
    """Configuration of DSRM and its student.

    Attributes:
        prediction: ``"v"``, ``"x0"`` or ``"noise"`` (eq. 7).
        diffusion_steps: K of the diffusion.
        serving_steps: Evenly spaced steps of the K that serving takes; ``None`` for all. Four
            come as near to the belief of held-out users as twenty; noise predictions need all.
    """

    prediction: str = "v"
    diffusion_steps: int = 20
    serving_steps: int | None = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("prediction", self.prediction, PREDICTIONS)
        check_whole("diffusion_steps", self.diffusion_steps, 1)
        if self.serving_steps is not None:
            check_whole("serving_steps", self.serving_steps, 1)


class DiffusionPurifier(FittedPurifier):
    """A template for purifiers with a diffusion and a network to reverse it.

    Args:
        config: Sizes and prediction.
    """

    config_class = DSRMConfig
    config: DSRMConfig

    def __init__(self, config: DSRMConfig) -> None:
        super().__init__(config)
        self.diffusion = GaussianDiffusion(config.diffusion_steps, config.prediction)
        self.denoiser = MLPDenoiser(
            config.dim, config.width, hidden=config.hidden, layers=config.layers
        )

    def origin(self, condition: Tensor) -> Tensor:
        """(B, d) zeros, where serving begins."""
        return condition.new_zeros(condition.shape[0], self.config.dim)


class DSRM(DiffusionPurifier, TrainedPurifier):
    """Denoising state representation module (Pi_theta of section 4.2).

    The reverse process is deterministic and starts with its noise at zero, so that the same
    observation always gives the same preference: close to the mean of what it might be (its mean,
    were that Gaussian) rather than a draw. With ``source="draw"`` it learns the whole belief:
    :meth:`draw` then gives preferences as likely as the belief says.

    Args:
        config: Sizes and prediction.
    """

    kind = "dsrm"
    recipes = {
        "dsrm-literal": {
            "prediction": "noise",  # eq. 7 as printed
            "serving_steps": None,
            "source": "identity",
            "reads": "pooled",
            "weight_decay": 1e-4,  # its targets hold no noise, so weights may grow
        }
    }

    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        return self.diffusion.training_loss(self.denoiser, target, condition)

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        origin, stops = self.origin(condition), self.config.serving_steps
        return self.diffusion.sample(self.denoiser, origin, condition, stops=stops)

    @single_precision()
    def draw(
        self, states: Tensor, *, eta: float = 0.0, generator: torch.Generator | None = None
    ) -> Tensor:
        """Draws preferences from noise, instead of the one that is served.

        Args:
            states: (B, width) observed states.
            eta: 0 for DDIM from random noise, 1 for DDPM (eq. 3), or between.
            generator: Of the noise; ``None`` for torch's global one.

        Returns:
            (B, d) preferences, which may lie outside the observation space.
        """
        noise = torch.randn(len(states), self.config.dim, generator=generator)
        condition = self.condition(states)
        clean = self.diffusion.sample(self.denoiser, noise, condition, eta=eta, generator=generator)
        return self.in_belief_units(clean)

    @torch.no_grad()
    def trajectory_points(self, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draws a point on a trajectory of the reverse process for each condition.

        A share of the points are those where serving begins; the others lie anywhere on
        trajectories from random noise, of a size between none and full.

        Args:
            condition: (B, width) conditions.

        Returns:
            (B, d) points, (B,) int64 their steps in [1, K], and (B, d) the trajectories' ends.
        """
        steps = self.diffusion.steps
        served = torch.rand(len(condition)) < SERVED
        size = torch.rand(len(condition)) * ~served
        noise = torch.randn_like(self.origin(condition))
        start = self.diffusion.spread[steps] * size[:, None] * noise
        walk = torch.stack(list(self.diffusion.reverse(self.denoiser, start, condition)))
        step = torch.randint(1, steps + 1, (len(condition),))
        step = torch.where(served, steps, step)
        return walk[steps - step, torch.arange(len(step))], step, walk[-1]


class Student(DiffusionPurifier):
    """A consistency model (Song et al. 2023): from any point of a trajectory to its end.

    It has the teacher's network and starts from its weights; one evaluation at the start of the
    reverse process replaces K.

    Args:
        config: The teacher's.
    """

    kind = "student"
    option_groups = (TargetConfig, TrainConfig)  # its teacher's; it takes half the updates

    last: Tensor

    def __init__(self, config: DSRMConfig) -> None:
        super().__init__(config)
        self.register_buffer("last", torch.tensor([config.diffusion_steps]), persistent=False)

    def fit(self, examples: Examples, run: TrainRun) -> None:
        before = replace(
            run,
            identity=f"teacher of {run.identity}",
            checkpoint=None if run.checkpoint is None else f"{run.checkpoint}.teacher",
        )
        with seeded(examples.seed):
            teacher = DSRM(self.config)
            teacher.fit(examples, before)
        training = replace(DISTILLATION, updates=-(-run.config.updates // 2))
        self.imitate(teacher.eval(), examples, replace(run, config=training))

    def imitate(self, teacher: DSRM, examples: Examples, run: TrainRun) -> None:
        """Trains on a teacher's trajectories.

        With K steps of a small network, trajectories are cheap to run to their ends; the student is
        held to those instead of to its own slow copy one step further on, as consistency
        distillation does for large ones.

        Args:
            teacher: A fitted DSRM of the same configuration.
            examples: Of its data, which give the conditions.
            run: Settings and checkpoint.
        """
        self.load_state_dict(teacher.state_dict())
        condition = self.condition(torch.tensor(examples.observed(self.reads)))

        def loss(rows: Tensor) -> Tensor:
            x, step, end = teacher.trajectory_points(condition[rows])
            return (self.end(x, step, condition[rows]) - end).square().mean()

        identity = json.dumps([self.kind, examples.seed, teacher.digest])
        train(self, loss, len(condition), replace(run, identity=identity))

    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        return self.end(self.origin(condition), self.last, condition)

    def end(self, x: Tensor, step: Tensor, condition: Tensor) -> Tensor:
        """The ends of trajectories, each from a point on it.

        Args:
            x: (B, d) points.
            step: (B,) or (1,) int64, their steps in [1, K].
            condition: (B, width) conditions.

        Returns:
            (B, d) clean states.
        """
        signal = self.diffusion.signal[step][:, None]
        spread = self.diffusion.spread[step][:, None]
        on_x, on_predicted = self.diffusion.clean_weights(signal, spread)
        return torch.as_tensor(on_x * x + on_predicted * self.denoiser(x, step, condition))


@single_precision()
def distil(
    teacher: DSRM,
    dataset: Dataset,
    *,
    training: TrainConfig = DISTILLATION,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    progress: bool = True,
) -> Student:
    """Trains a student on a fitted teacher's trajectories.

    Args:
        teacher: A fitted DSRM.
        dataset: The dataset that it was fitted on.
        training: Settings of the optimiser.
        seed: Same seed, same weights.
        checkpoint: See :func:`~dsrm_agents.dsrm.fit.fit_purifier`.
        progress: Whether to show a progress bar.

    Returns:
        The student, in evaluation mode.

    Raises:
        CheckpointError: The checkpoint is damaged or of another fit.
        ConfigError: The teacher was fitted on another dataset.
    """
    check_dataset("distil(teacher, dataset)", dataset)
    if teacher.fingerprint != dataset.fingerprint:
        raise ConfigError(
            f"The teacher was fitted on {teacher.dataset or 'another dataset'}; this is "
            f"{dataset.description}: distil it on its own."
        )
    run = TrainRun(
        training, checkpoint=checkpoint, progress="Purifier (student)" if progress else None
    )
    with seeded(check_whole("seed", seed, 0)):
        student = Student(teacher.config)
        student.imitate(teacher, Examples(dataset, seed=seed), run)
    return student.eval()
