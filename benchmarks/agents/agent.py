"""One agent of the benchmark: how it is made, tuned, wrapped, named and compared."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import PurifyVecEnv, fit_purifier
from dsrm_agents.dsrm.purifier import Purifier
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
    """A hyper-parameter that ``python -m benchmarks tune`` draws from a distribution."""

    value: float
    distribution: BaseDistribution


def log_uniform(low: float, high: float, *, value: float) -> Searched:
    """A number from ``low`` to ``high``, searched by orders of magnitude."""
    return Searched(value, FloatDistribution(low, high, log=True))


def uniform(low: float, high: float, *, value: float) -> Searched:
    """A number from ``low`` to ``high``."""
    return Searched(value, FloatDistribution(low, high))


def one_of(*choices: float, value: float) -> Searched:
    """A number out of some."""
    return Searched(value, CategoricalDistribution(choices))


def purified(
    env: VecEnv, purifier: Purifier | None, options: Options | None = None, training: bool = False
) -> VecEnv:
    """A ``wrap`` that puts a purifier, if there is one, between environment and agent."""
    return env if purifier is None else PurifyVecEnv(env, purifier)


@dataclass(frozen=True, eq=False)
class Agent:
    """An agent that is trained, by ``build``, or one that needs no training, by ``rule``.

    Attributes:
        name: On the command line, in tables and in the names of result files.
        build: Makes the untrained model of an environment, hyper-parameters and a seed.
        rule: Makes a policy of the sessions that it will act in; nothing is fitted for it.
        settings: ``n_envs`` and the arguments of ``build`` and ``wrap`` that differ from the
            algorithm's defaults or are :class:`Searched`.
        env_options: Options of the environment that the agent needs.
        purifier: Name of the purifier that observations go through; ``None`` for the raw state.
        fit: Fits to the log, before training, what ``wrap`` needs instead of a purifier; called
            with the data, a seed, and whether to show progress.
        report: Key of a result's ``train`` block for the fitted object's ``report``, if any.
        wrap: Wraps the bare environment; called with it, the fitted object, hyper-parameters, and
            whether it is for training.
        wrapper_options: Names of the hyper-parameters that are for ``wrap``, not for ``build``.
        offline: Whether it learns from the log and plays no training sessions.
        suits: Whether a suite plays it on some data without being told to.
        label: Its name in the paper's tables; empty if it is no method of the paper.
        tables: Numbers of the paper's tables that it stands in.
        reference: Publication of the method.
        controls: Names of the agents that it is compared with, seed by seed.

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
    def hyperparams(self) -> dict[str, Any]:
        """Values of the settings."""
        items = self.settings.items()
        return {name: item.value if isinstance(item, Searched) else item for name, item in items}

    @property
    def space(self) -> dict[str, BaseDistribution]:
        """Distributions of the settings that are searched."""
        items = self.settings.items()
        return {name: item.distribution for name, item in items if isinstance(item, Searched)}

    def at(self, **values: Any) -> dict[str, Any]:
        """Settings with other values, in the same search space."""
        space = self.space
        searched = {name: Searched(values[name], space[name]) for name in values.keys() & space}
        return {**self.settings, **values, **searched}

    def prepare(self, dataset: Dataset, seed: int, progress: bool) -> Any:
        """Fits what ``wrap`` needs: a purifier, an encoder, a world model, or ``None``."""
        if self.purifier is not None:
            return fit_purifier(self.purifier, dataset, seed=seed, progress=progress)
        return None if self.fit is None else self.fit(dataset, seed, progress)


def constructor(
    algorithm: type[BaseAlgorithm], policy: str, *policy_options: str, **computed: Computed
) -> Build:
    """A ``build`` that calls an algorithm's constructor.

    Args:
        algorithm: Class of the model.
        policy: Name of its policy.
        *policy_options: Names of the hyper-parameters that go into ``policy_kwargs``. Another,
            ``noise_std``, becomes Gaussian exploration noise on all action coordinates.
        **computed: Functions that make further ``policy_kwargs`` of the environment and of the
            hyper-parameters, of which they take theirs away.
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
