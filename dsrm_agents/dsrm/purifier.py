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
from dsrm_agents.dsrm.pairs import READS, Examples, TargetConfig
from dsrm_agents.dsrm.training import TrainConfig, TrainRun, train
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.observation import PARTS, PREFERENCE_BOUND
from kuaisim_gym.precision import single_precision
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

    @property
    def reads(self) -> str:
        """Preference that the environment must show, its option of this name."""
        ...

    def denoise(self, states: FloatArray) -> FloatArray:
        """(N, width) float32 observed states to (N, d) preferences [level, taste]."""
        ...


def read_width(reads: str, dim: int) -> int:
    """Columns of an observed state that a purifier reads, of d columns of an embedding."""
    return len(PARTS) * (dim + 1) if reads == "parts" else dim


def given_width(reads: str, width: int) -> int:
    """The inverse of :func:`read_width`: d of a purifier that reads so many columns."""
    return width // len(PARTS) - 1 if reads == "parts" else width


def purify(denoise: Denoise, states: FloatArray, dim: int) -> FloatArray:
    """Purifies (n, width) states and checks what comes back.

    Returns:
        (n, dim) float32.

    Raises:
        ConfigError: The purifier returned another shape than (n, dim), no numbers, or some that
            are not finite.
    """
    clean, shape = np.asarray(denoise(states)), (len(states), dim)
    if clean.shape != shape or clean.dtype.kind not in "fiu":
        raise ConfigError(
            f"A purifier must return numbers of shape {shape}, got {clean.dtype} of {clean.shape}."
        )
    clean = clean.astype(np.float32, copy=False)
    if not np.isfinite(clean).all():
        raise ConfigError(
            f"A purifier must return finite preferences, got {clean[~np.isfinite(clean)][0]}."
        )
    return clean


@dataclass(frozen=True)
class PurifierConfig:
    """Configuration of a purifier, from which it is rebuilt before its weights are loaded.

    Attributes:
        dim: d, of the preferences that it gives.
        fingerprint: Fingerprint of the dataset that it was fitted on.
        dataset: Description of the same dataset, for people to read.
        reads: What it reads of the environment, one of :data:`~dsrm_agents.dsrm.pairs.READS`.
        blind: Number of popularity statistics that are erased from its input and output, the
            first of :data:`~dsrm_agents.dsrm.erasure.STATISTICS`.
        hidden: Width of its network.
        layers: Hidden layers of its network.
    """

    dim: int
    fingerprint: str = ""
    dataset: str = ""
    reads: str = "parts"
    blind: int = 0
    hidden: int = 64
    layers: int = 2

    def __post_init__(self) -> None:
        check_choice("reads", self.reads, READS)
        for name in ("dim", "hidden", "layers"):
            check_whole(name, getattr(self, name), 1)
        if check_whole("blind", self.blind, 0) > len(STATISTICS):
            raise ConfigError(f"blind must be at most {len(STATISTICS)}, got {self.blind}.")

    @property
    def width(self) -> int:
        """Columns of what it reads."""
        return read_width(self.reads, self.dim)


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
    """A purifier that has been fitted: observed state in, preference in units of beliefs out.

    A preference is [level, taste], as the belief's mean: ``embedding . (1, taste)`` ranks items.
    The condition is the observed state, whitened and, if ``blind``, without the directions along
    which it tells the popularity of the user's log
    (:func:`~dsrm_agents.dsrm.erasure.whiten_blindly`).

    A subclass with a ``kind`` registers itself in :data:`PURIFIERS` when it is defined, so that
    ``fit_purifier`` and :func:`load_purifier` find it. It implements :meth:`fit` and
    :meth:`clean`; :class:`PairedPurifier` and :class:`TrainedPurifier` have a ``fit`` for those
    that learn from pairs, :class:`StatePurifier` for those whose output is a raw state.

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
    format = "dsrm-purifier-3"
    content = "purifier"
    recipes: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    config_class: ClassVar[type[PurifierConfig]] = PurifierConfig
    option_groups: ClassVar[tuple[type[Any], ...]] = (TargetConfig,)

    input_centre: Tensor
    input_map: Tensor
    output_centre: Tensor
    output_map: Tensor

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
        self.register_buffer("input_centre", torch.zeros(config.width))
        self.register_buffer("input_map", torch.eye(config.width))
        self.register_buffer("output_centre", torch.zeros(config.dim))
        self.register_buffer("output_map", torch.eye(config.dim))

    @property
    def dataset(self) -> str:
        """Description of the dataset that it was fitted on; empty in files of older versions."""
        description: str = self.config.dataset
        return description

    @property
    def reads(self) -> str:
        """Preference that the environment must show: ``"pooled"`` or ``"parts"``."""
        reads: str = self.config.reads
        return reads

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the options of ``fit_purifier`` that concern this class."""
        groups = (cls.config_class, *cls.option_groups)
        names = [field.name for group in groups for field in fields(group)]
        return tuple(name for name in names if name not in ("dim", "fingerprint", "dataset"))

    @abstractmethod
    def fit(self, examples: Examples, run: TrainRun) -> None:
        """Fits everything that was not configured.

        Torch's global generator is seeded; the caller restores its state.

        Args:
            examples: Pairs and, in synthetic worlds, true preferences.
            run: Settings and checkpoint of a fit by gradient steps.

        Raises:
            ConfigError: The dataset lacks the rows that are learned from.
            CheckpointError: The checkpoint is damaged or of another fit.
        """

    @abstractmethod
    def clean(self, condition: Tensor, states: Tensor) -> Tensor:
        """(B, width) conditions, and the states they come from, to (B, d) in own units."""

    def set_condition_map(self, whitening: Affine) -> None:
        """Stores the map from observed states to conditions."""
        self.input_centre.copy_(torch.from_numpy(whitening.centre))
        self.input_map.copy_(torch.from_numpy(whitening.matrix))

    def scale_targets(self, target: Tensor) -> Tensor:
        """Stores mean and scale of (n, d) targets; returns them in the purifier's units.

        One number scales all coordinates, so that a unit of error weighs the same along each.
        """
        centre = target.mean(dim=0)
        spread = (target - centre).square().mean().sqrt()
        scale = spread if spread > 0 else torch.ones(())
        self.output_centre.copy_(centre)
        self.output_map.copy_(scale * torch.eye(self.config.dim))
        return (target - centre) / scale

    def fit_scale(self, examples: Examples) -> None:
        """Puts output that is a state into units of beliefs, by one factor.

        It is the slope of beliefs' tastes on the output's, a coordinate counting as it tells the
        catalogue's items apart.
        """
        observed = torch.tensor(examples.observed(self.reads))
        with torch.inference_mode():
            taste = self.unbounded(observed)[:, 1:].double().numpy()
        apart = examples.encoder.embedding[: examples.dataset.n_items, 1:].var(axis=0)
        size = float((taste**2 @ apart).sum())
        common = float(((taste * examples.evidence.mean[:, 1:]) @ apart).sum())
        factor = common / size if size > 0 else 1.0
        self.output_map *= factor
        self.output_centre *= factor

    def erase_output(self, states: FloatArray, popularity: NDArray[np.floating]) -> None:
        """Makes the output as blind as the input.

        A network can turn nonlinear traces of popularity in its input into linear ones, so the
        directions along which its output tells popularity are erased again.

        Args:
            states: (n, width) observed states.
            popularity: (n, m) statistics of the popularity of their users' logs.
        """
        with torch.inference_mode():
            clean = self.unbounded(torch.tensor(states)).double().numpy()
        erased = erase(clean, popularity)
        matrix, centre = (torch.from_numpy(one).float() for one in (erased.matrix, erased.centre))
        moved = matrix @ (self.output_centre - centre) + centre
        self.output_map.copy_(matrix @ self.output_map)
        self.output_centre.copy_(moved)

    def condition(self, states: Tensor) -> Tensor:
        """(B, width) observed states to conditions."""
        return (states - self.input_centre) @ self.input_map.T

    def forward(self, states: Tensor) -> Tensor:
        """(B, width) observed states to (B, d) preferences in the observation space's range."""
        return self.unbounded(states).clamp_(-PREFERENCE_BOUND, PREFERENCE_BOUND)

    def unbounded(self, states: Tensor) -> Tensor:
        """(B, width) observed states to (B, d) preferences."""
        return self.in_belief_units(self.clean(self.condition(states), states))

    def in_belief_units(self, clean: Tensor) -> Tensor:
        """(B, d) clean states in the purifier's units to preferences."""
        return torch.addmm(self.output_centre, clean, self.output_map.t())

    @single_precision()
    def denoise(self, states: FloatArray) -> FloatArray:
        """Purifies a batch of states; wrappers call this.

        Args:
            states: (N, width) float32, what :attr:`reads` names.

        Returns:
            (N, d) float32 in the observation space's range.

        Raises:
            ConfigError: The states are not finite or not of the size this was fitted for.
        """
        if states.ndim != 2 or states.shape[1] != self.config.width:
            raise ConfigError(
                f"Expected states of shape (N, {self.config.width}), as an environment shows them "
                f"with preference={self.reads!r}, got {states.shape}."
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


@dataclass(frozen=True)
class StateConfig(PurifierConfig):
    """Configuration of a purifier whose output is a pooled state."""

    reads: str = "pooled"


class StatePurifier(FittedPurifier):
    """A template for purifiers whose output is a pooled state, scaled to beliefs by one number.

    Args:
        config: Sizes.

    Attributes:
        needs: What it must read.

    Raises:
        ConfigError: It is to read something else.
    """

    config_class = StateConfig
    needs: ClassVar[str] = "pooled"

    def __init__(self, config: PurifierConfig) -> None:
        super().__init__(config)
        if config.reads != self.needs:
            raise ConfigError(f"{self.kind} needs reads={self.needs!r}, got {config.reads!r}.")

    def fit(self, examples: Examples, run: TrainRun) -> None:
        self.prepare(examples)
        self.fit_scale(examples)

    @abstractmethod
    def prepare(self, examples: Examples) -> None:
        """Fits everything but the scale."""


class PairedPurifier(FittedPurifier):
    """A template for purifiers that learn targets from conditions."""

    def fit(self, examples: Examples, run: TrainRun) -> None:
        states, blind = examples.observed(self.reads), self.config.blind
        popularity = examples.popularity[:, :blind]
        self.set_condition_map(whiten_blindly(states, popularity))
        condition = self.condition(torch.tensor(states))
        self.learn(condition, self.scale_targets(torch.tensor(self.targets(examples))), run)
        if examples.config.source == "identity":
            self.fit_scale(examples)
        if blind:
            self.erase_output(states, popularity)

    def targets(self, examples: Examples) -> FloatArray:
        """(n, d) float32 targets of the pairs."""
        return examples.targets(self.reads)

    @abstractmethod
    def learn(self, condition: Tensor, target: Tensor, run: TrainRun) -> None:
        """Fits the map from conditions to targets.

        Args:
            condition: (n, width) as :meth:`condition` makes them.
            target: (n, d) in the purifier's units, of mean zero and unit spread.
            run: Settings and checkpoint of a fit by gradient steps.
        """


class TrainedPurifier(PairedPurifier):
    """A template for purifiers that descend a loss on pairs."""

    option_groups = (TargetConfig, TrainConfig)

    def learn(self, condition: Tensor, target: Tensor, run: TrainRun) -> None:
        def loss(rows: Tensor) -> Tensor:
            return self.loss(condition[rows], target[rows]).mean()

        train(self, loss, len(target), run)

    @abstractmethod
    def loss(self, condition: Tensor, target: Tensor) -> Tensor:
        """Training loss of each row.

        Args:
            condition: (B, width) as :meth:`condition` makes them.
            target: (B, d) in the purifier's units.

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
