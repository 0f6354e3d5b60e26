"""Description of an agent of the benchmark: algorithm, settings, wrappers and references."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import PurifyVecEnv, fit_purifier
from dsrm_agents.dsrm.purifier import Purifier, load_purifier
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import SessionBatch
from kuaisim_gym.envs.shared import Agent as Policy
from kuaisim_gym.errors import ConfigError

SLATE_ACTIONS = {"action_type": "slate"}
SLATES = {"observation_type": "dict", **SLATE_ACTIONS}

Options = Mapping[str, Any]
Build = Callable[[VecEnv, dict[str, Any], int], BaseAlgorithm]
Computed = Callable[[VecEnv, dict[str, Any]], Any]
Wrap = Callable[[VecEnv, Any, Options, bool], VecEnv]


class Searched(NamedTuple):
    """A hyper-parameter that the command ``tune`` searches.

    Attributes:
        value: Present value, which may lie outside the search space.
        distribution: Search space.
        text: Description of the search space.
        nearest: Finds the value of the search space that is nearest to a number.
    """

    value: float
    distribution: BaseDistribution
    text: str
    nearest: Callable[[float], float]


def log_uniform(low: float, high: float, *, value: float) -> Searched:
    """A number from ``low`` to ``high``, uniform on a logarithmic scale."""
    return _interval(low, high, value, log=True)


def uniform(low: float, high: float, *, value: float) -> Searched:
    """A number from ``low`` to ``high``, uniform."""
    return _interval(low, high, value, log=False)


def _interval(low: float, high: float, value: float, *, log: bool) -> Searched:
    text = f"{low:g} to {high:g}, {'log-' if log else ''}uniform"
    distribution = FloatDistribution(low, high, log=log)
    return Searched(value, distribution, text, lambda number: min(max(number, low), high))


def one_of(*choices: float, value: float) -> Searched:
    """One of several numbers."""
    text = f"one of {', '.join(map(str, choices))}"
    distribution = CategoricalDistribution(choices)
    return Searched(
        value, distribution, text, lambda number: min(choices, key=lambda x: abs(x - number))
    )


def purified(
    env: VecEnv, purifier: Purifier | None, options: Options | None = None, training: bool = False
) -> VecEnv:
    """A ``wrap`` that puts a purifier between environment and agent, unless it is ``None``."""
    return env if purifier is None else PurifyVecEnv(env, purifier)


@dataclass(frozen=True, eq=False)
class Agent:
    """An agent that is trained, by ``build``, or one that needs no training, by ``rule``.

    Attributes:
        name: Name on the command line, in tables and in the names of result files.
        build: Makes the untrained model from an environment, hyper-parameters and a seed.
        rule: Makes a policy for a batch of sessions.
        settings: ``n_envs`` and the arguments of ``build`` and ``wrap`` that differ from the
            algorithm's defaults or are :class:`Searched`.
        env_options: Options of the environment that the agent needs.
        purifier: Name of the purifier of observations; ``None`` for the raw state.
        fit: Fits another object for ``wrap`` to the log, before training; called with the data, a
            seed, and whether to show progress.
        restore: Reads the fitted object from the file that its ``save`` wrote; ``None`` if only the
            training needs it, which keeps no file then.
        report: Key of a result's ``train`` block for the fitted object's ``report``, if any.
        wrap: Wraps the bare environment; called with it, the fitted object, hyper-parameters, and
            whether it is for training.
        wrapper_options: Names of hyper-parameters for ``wrap`` instead of ``build``.
        offline: Whether the agent learns from the log and plays no training sessions.
        suits: Tells whether a suite plays the agent on some data by default.
        label: Name in the paper's tables; empty if the paper does not have the method.
        tables: Numbers of the paper's tables with this agent.
        reference: Publication of the method.
        controls: Names of agents to compare with, seed by seed.

    Raises:
        ConfigError: The name does not fit into file names, there are both ``build`` and ``rule`` or
            neither, or a setting is missing.
    """

    name: str
    _: KW_ONLY
    build: Build | None = None
    rule: Callable[[SessionBatch], Policy] | None = None
    settings: Options = field(default_factory=dict)
    env_options: dict[str, str] = field(default_factory=dict)
    purifier: str | None = None
    fit: Callable[[Dataset, int, bool], Any] | None = None
    restore: Callable[[Path], Any] | None = load_purifier
    report: str | None = None
    wrap: Wrap = purified
    wrapper_options: tuple[str, ...] = ()
    offline: bool = False
    suits: Callable[[Dataset], bool] = lambda dataset: True
    label: str = ""
    tables: tuple[int, ...] = ()
    reference: str = ""
    controls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name):
            raise ConfigError(
                "An agent's name must be letters, digits and + - . _ alone, for it names files, "
                f"got {self.name!r}."
            )
        if (self.build is None) == (self.rule is None):
            raise ConfigError(f"Agent {self.name} must have either build or rule.")
        needed = {*self.wrapper_options, *(() if self.build is None else ["n_envs"])}
        if missing := needed - self.settings.keys():
            raise ConfigError(f"Agent {self.name} lacks the settings {sorted(missing)}.")

    @property
    def searched(self) -> dict[str, Searched]:
        """Settings that are searched."""
        items = self.settings.items()
        return {name: setting for name, setting in items if isinstance(setting, Searched)}

    @property
    def keeps_fitted(self) -> bool:
        """Tells agents that play with what was fitted before their training."""
        return self.restore is not None and (self.purifier is not None or self.fit is not None)

    @property
    def hyperparams(self) -> dict[str, Any]:
        """Values of the settings."""
        values = {name: setting.value for name, setting in self.searched.items()}
        return {**self.settings, **values}

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """Distributions of the settings that are searched."""
        return {name: setting.distribution for name, setting in self.searched.items()}

    def at(self, **values: Any) -> dict[str, Any]:
        """Settings with other values, in the same search space."""
        searched = self.searched
        moved = {
            name: searched[name]._replace(value=values[name]) for name in values.keys() & searched
        }
        return {**self.settings, **values, **moved}

    def options_for(self, fitted: Any) -> dict[str, str]:
        """Options of the environment: the agent's, and the preference that a purifier reads."""
        reads = getattr(fitted, "reads", None)
        return self.env_options if reads is None else {**self.env_options, "preference": reads}

    def prepare(self, dataset: Dataset, seed: int, progress: bool) -> Any:
        """Fits what ``wrap`` needs: a purifier, an encoder, a world model, or ``None``."""
        if self.purifier is not None:
            return fit_purifier(self.purifier, dataset, seed=seed, progress=progress)
        return None if self.fit is None else self.fit(dataset, seed, progress)


def row_of(value: Any) -> Agent:
    """The row of an agent that needs no training, from its class; a row is its own.

    The class is called with the batch of sessions
    (:class:`~kuaisim_gym.envs.assembly.SessionBatch`) and gives objects with the ``predict`` of
    Stable-Baselines3's models (:class:`~kuaisim_gym.envs.shared.Agent`), which gets observations of
    all sessions. It may have ``name``, in place of its own, and ``env_options``, the options of the
    environment that it plays, such as ``{"action_type": "slate"}``.

    Args:
        value: The class, or an :class:`Agent`.

    Raises:
        TypeError: It is neither, or an algorithm, which needs settings.
        ConfigError: Its name does not fit into file names.
    """
    if isinstance(value, Agent):
        return value
    kind = value if isinstance(value, type) else type(value)
    if kind is not value or not callable(getattr(kind, "predict", None)):
        raise TypeError(
            f"must be a {Agent.__module__}.Agent or a class with `predict`, got "
            f"{kind.__module__}.{kind.__qualname__}: describe the agent by AGENT = Agent(...) and "
            "name that, or name its class."
        )
    if issubclass(kind, BaseAlgorithm):
        raise TypeError(
            f"is an algorithm, which needs settings: describe it by AGENT = Agent(name, "
            f"build=constructor({kind.__name__}, ...), settings=...), and name that."
        )
    options = dict(getattr(kind, "env_options", {}))
    return Agent(getattr(kind, "name", kind.__name__), rule=kind, env_options=options)


def constructor(
    algorithm: type[BaseAlgorithm], policy: str, *policy_options: str, **computed: Computed
) -> Build:
    """A ``build`` that calls an algorithm's constructor.

    Args:
        algorithm: Class of the model.
        policy: Name of its policy.
        *policy_options: Names of hyper-parameters for ``policy_kwargs``. The hyper-parameter
            ``noise_std`` becomes Gaussian exploration noise on all action coordinates.
        **computed: Functions that make further ``policy_kwargs`` from the environment and the
            hyper-parameters, from which they remove those that they use.
    """

    def build(env: VecEnv, hyperparams: dict[str, Any], seed: int) -> BaseAlgorithm:
        options = dict(hyperparams)
        policy_kwargs = {name: options.pop(name) for name in policy_options}
        policy_kwargs |= {name: compute(env, options) for name, compute in computed.items()}
        if policy_kwargs:
            options["policy_kwargs"] = policy_kwargs
        if "noise_std" in options:
            std = np.full(env.action_space.shape or (), options.pop("noise_std"))
            options["action_noise"] = NormalActionNoise(np.zeros_like(std), std)
        return algorithm(policy, env, seed=seed, device="cpu", **options)

    return build
