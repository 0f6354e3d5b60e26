"""The interface of purifiers, their registry, and the templates of those that are fitted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dsrm_agents.common.fitted import FittedModule
from dsrm_agents.dsrm.erasure import STATISTICS, Affine, erase, whiten_blindly
from dsrm_agents.dsrm.pairs import Examples, TargetConfig
from dsrm_agents.dsrm.training import TrainConfig, TrainRun, train
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.observation import PREFERENCE_BOUND
from kuaisim_gym.registration import import_named
from kuaisim_gym.registry import check_free
from kuaisim_gym.tensors import TensorFile, open_tensors

FloatArray = NDArray[np.float32]
Denoise = Callable[[FloatArray], FloatArray]


class Purifier(Protocol):
    """The interface that wrappers and probes need; any object with these members plugs in."""

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the dataset that it was fitted on."""
        ...

    def denoise(self, states: FloatArray) -> FloatArray:
        """(N, d) float32 preference states to purified ones, within the observation space."""
        ...


def purify(denoise: Denoise, states: FloatArray) -> FloatArray:
    """Purifies (n, d) states and checks what comes back.

    Raises:
        ConfigError: The purifier returned another shape, or values that are not finite.
    """
    clean = np.asarray(denoise(states))
    if clean.shape != states.shape or not np.isfinite(clean).all():
        raise ConfigError(
            f"A purifier must return finite states of shape {states.shape}, got "
            f"{clean.shape}{'' if clean.shape != states.shape else ', not all finite'}."
        )
    return clean


@dataclass(frozen=True)
class PurifierConfig:
    """Configuration of a purifier, from which it is rebuilt before its weights are loaded.

    Attributes:
        dim: d, of the preference state.
        fingerprint: Fingerprint of the dataset that it was fitted on.
        blind: Number of popularity statistics that are erased from its input and output, the
            first of :data:`~dsrm_agents.dsrm.erasure.STATISTICS`.
        hidden: Width of its network.
        layers: Hidden layers of its network.
    """

    dim: int
    fingerprint: str = ""
    blind: int = 1
    hidden: int = 96
    layers: int = 2

    def __post_init__(self) -> None:
        for name in ("dim", "hidden", "layers"):
            check_whole(name, getattr(self, name), 1)
        if check_whole("blind", self.blind, 0) > len(STATISTICS):
            raise ConfigError(f"blind must be at most {len(STATISTICS)}, got {self.blind}.")


class Recipe(NamedTuple):
    """A purifier under a name of :func:`~dsrm_agents.dsrm.fit.fit_purifier`.

    Attributes:
        purifier: The class that is fitted.
        options: Options that differ from its defaults.
    """

    purifier: type[FittedPurifier]
    options: Mapping[str, Any]


PURIFIERS: dict[str, Recipe] = {}  # by name, in the order in which classes were defined


def recipe_of(name: str) -> Recipe:
    """The recipe that is registered under a name.

    Args:
        name: One of :data:`PURIFIERS`; or ``"module:name"``, which imports the module that
            defines it first.

    Raises:
        ConfigError: The name is unknown, or the module cannot be imported.
    """
    return PURIFIERS[check_choice("purifier", import_named(name), PURIFIERS)]


class FittedPurifier(FittedModule, ABC):
    """A purifier that has been fitted: condition in, clean state out, in units of its own.

    The condition is the observed state, whitened and with the directions left out along which it
    tells the popularity of the user's history (:func:`~dsrm_agents.dsrm.erasure.whiten_blindly`).
    Clean states are scaled by one number, not coordinate by coordinate, so that a unit of error
    weighs the same along all of them.

    A subclass with a ``kind`` registers itself in :data:`PURIFIERS` when it is defined, so that
    ``fit_purifier`` and :func:`load_purifier` find it. It implements :meth:`fit` and
    :meth:`clean`; :class:`PairedPurifier` and :class:`TrainedPurifier` have a ``fit`` for those
    that learn from pairs.

    Args:
        config: Sizes.

    Attributes:
        kind: Name of the class in checkpoints and tables.
        recipes: Options that differ from the defaults, by the name under which they are
            registered beside, or in place of, the plain ``kind``.
        config_class: Class of the configuration.
        option_groups: Further classes whose fields are options of the fit.
    """

    kind: ClassVar[str]
    format = "dsrm-purifier-1"
    content = "purifier"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    config_class: ClassVar[type[PurifierConfig]] = PurifierConfig
    option_groups: ClassVar[tuple[type[Any], ...]] = ()

    input_centre: Tensor
    input_map: Tensor
    output_centre: Tensor
    output_map: Tensor
    target_centre: Tensor
    target_scale: Tensor

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "kind" not in vars(cls):
            return  # a template
        recipes = {cls.kind: {}, **vars(cls).get("recipes", {})}
        for name in recipes:
            check_free(name, PURIFIERS.get(name, Recipe(cls, {})).purifier, cls)
        PURIFIERS.update({name: Recipe(cls, options) for name, options in recipes.items()})

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__()
        self.config = config
        for name in ("input_centre", "output_centre", "target_centre"):
            self.register_buffer(name, torch.zeros(config.dim))
        for name in ("input_map", "output_map"):
            self.register_buffer(name, torch.eye(config.dim))
        self.register_buffer("target_scale", torch.ones(()))

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the options of ``fit_purifier`` that concern this class."""
        groups = (cls.config_class, *cls.option_groups)
        names = [field.name for group in groups for field in fields(group)]
        return tuple(name for name in names if name not in ("dim", "fingerprint"))

    @abstractmethod
    def fit(self, examples: Examples, run: TrainRun) -> None:
        """Fits everything that was not configured.

        Torch's global generator is seeded; the caller restores its state.

        Args:
            examples: States, pairs and, in synthetic worlds, true preferences.
            run: Settings and checkpoint of a fit by gradient steps.

        Raises:
            ConfigError: The dataset lacks the rows that are learned from.
            CheckpointError: The checkpoint is damaged or of another fit.
        """

    @abstractmethod
    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """(B, d) conditions, and the observed states they come from, to clean states."""

    def set_condition_map(self, whitening: Affine) -> None:
        """Stores the map from observed states to conditions."""
        self.input_centre.copy_(torch.from_numpy(whitening.centre))
        self.input_map.copy_(torch.from_numpy(whitening.matrix))

    def scale_targets(self, target: Tensor) -> Tensor:
        """Stores mean and scale of (n, d) targets; returns them in the purifier's units."""
        self.target_centre.copy_(target.mean(dim=0))
        spread = (target - self.target_centre).square().mean().sqrt()
        self.target_scale.copy_(spread if spread > 0 else torch.ones(()))
        self.output_centre.copy_(self.target_centre)
        self.output_map.copy_(self.target_scale * torch.eye(self.config.dim))
        return (target - self.target_centre) / self.target_scale

    def calibrate(self, states: FloatArray, popularity: NDArray[np.floating]) -> None:
        """Makes the output as blind as the input, and gives it the input's size.

        A network can turn nonlinear traces of popularity in its input into linear ones, so the
        directions along which its output tells popularity are erased again. Regression shrinks
        uncertain targets towards their mean; agents should meet inputs of the raw state's size.
        One factor for all coordinates leaves directions and ranks as they are.

        Args:
            states: (n, d) observed states of users.
            popularity: (n, 3) statistics of the popularity of their histories.
        """
        observed = torch.from_numpy(states)
        with torch.inference_mode():
            clean = self.clean(self.condition(observed), observed).numpy()
        erased = erase(clean, popularity[:, : self.config.blind])
        size = np.sqrt(states.var(axis=0).mean() / max(erased(clean).var(axis=0).mean(), 1e-12))
        self.output_map.copy_(torch.from_numpy(size * erased.matrix))
        self.output_centre.copy_(torch.from_numpy(-size * erased.matrix @ erased.centre))

    def condition(self, states: Tensor) -> Tensor:
        """(B, d) observed states to conditions."""
        return (states - self.input_centre) @ self.input_map.T

    def forward(self, states: Tensor) -> Tensor:
        """(B, d) observed states to purified ones, in the encoder's units."""
        purified = self.in_encoder_units(self.clean(self.condition(states), states))
        return purified.clamp_(-PREFERENCE_BOUND, PREFERENCE_BOUND)

    def in_encoder_units(self, clean: Tensor) -> Tensor:
        """(B, d) clean states in the purifier's units to the encoder's."""
        return torch.addmm(self.output_centre, clean, self.output_map.t())

    def denoise(self, states: FloatArray) -> FloatArray:
        """Purifies a batch of states; wrappers call this.

        Args:
            states: (N, d) float32 preference states.

        Returns:
            (N, d) float32 in the observation space's range.

        Raises:
            ConfigError: The states are not finite or not of the size this was fitted for.
        """
        if states.ndim != 2 or states.shape[1] != self.config.dim:
            raise ConfigError(
                f"Expected states of shape (N, {self.config.dim}), got {states.shape}."
            )
        states = np.require(states, np.float32, ["C", "W"])  # torch wants arrays it could write
        if not np.isfinite(states).all():
            raise ConfigError("Expected finite states, got NaN or infinity.")
        with torch.inference_mode():
            purified: Tensor = self(torch.from_numpy(states))
        return purified.numpy()

    def header(self) -> dict[str, str]:
        return super().header() | {"kind": self.kind}

    @classmethod
    def rebuilt(cls, file: TensorFile) -> Self:
        if file.header["kind"] != cls.kind:
            raise CheckpointError(
                f"{file.path} holds a purifier of kind {file.header['kind']!r}, expected "
                f"{cls.kind!r}; load_purifier(path) loads any."
            )
        return super().rebuilt(file)


class PairedPurifier(FittedPurifier):
    """A template for purifiers that learn targets from conditions."""

    option_groups: ClassVar[tuple[type[Any], ...]] = (TargetConfig,)

    def fit(self, examples: Examples, run: TrainRun) -> None:
        states, popularity = examples.logged
        self.set_condition_map(whiten_blindly(states, popularity[:, : self.config.blind]))
        pairs, target = examples.pairs, self.targets(examples)
        self.learn(
            self.condition(torch.from_numpy(pairs.observed)),
            self.scale_targets(torch.from_numpy(target)),
            torch.from_numpy(pairs.weight),
            run,
        )
        if not np.array_equal(target, pairs.observed):  # the identity needs no calibration
            self.calibrate(states, popularity)

    def targets(self, examples: Examples) -> FloatArray:
        """(n, d) float32 targets of the pairs, in the encoder's units."""
        return examples.pairs.target

    @abstractmethod
    def learn(self, condition: Tensor, target: Tensor, weight: Tensor, run: TrainRun) -> None:
        """Fits the map from conditions to targets.

        Args:
            condition: (n, d) as :meth:`condition` makes them.
            target: (n, d) clean states in the purifier's units.
            weight: (n,) weights of the pairs, one on average.
            run: Settings and checkpoint of a fit by gradient steps.
        """


class TrainedPurifier(PairedPurifier):
    """A template for purifiers that descend a loss on pairs."""

    option_groups = (TargetConfig, TrainConfig)

    def learn(self, condition: Tensor, target: Tensor, weight: Tensor, run: TrainRun) -> None:
        def loss(rows: Tensor) -> Tensor:
            return (weight[rows] * self.loss(condition[rows], target[rows])).mean()

        train(self, loss, len(target), run)

    @abstractmethod
    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Training loss of each row.

        Args:
            condition: (B, d) as :meth:`condition` makes them.
            target: (B, d) clean states in the purifier's units.

        Returns:
            (B,) losses.
        """


def load_purifier(path: str | Path) -> FittedPurifier:
    """Reads a purifier of any registered kind.

    Args:
        path: A file that ``save`` wrote.

    Raises:
        CheckpointError: The file is missing, damaged, or no purifier checkpoint.
    """
    with open_tensors(path, FittedPurifier.format, FittedPurifier.content) as file:
        kind = file.header["kind"]
        if kind not in PURIFIERS:
            raise CheckpointError(
                f"{path} holds a purifier of unknown kind {kind!r}; known: "
                f"{', '.join(PURIFIERS)}. Import the module that defines it first."
            )
        return PURIFIERS[kind].purifier.rebuilt(file)
