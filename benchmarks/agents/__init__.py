"""Agents of the benchmark: a row describes an agent completely.

A module of this package holds the rows of a family as ``AGENTS`` and is discovered automatically: a
new agent needs two files, its algorithm and its rows; a variant of an agent is one more row. Agents
of other packages are named by module and attribute, an agent without training by its class
(``benchmarks/examples/own_agent.py`` is one)::

    # mypackage/my.py
    from kuaisim_benchmarks.agents import Agent, constructor
    AGENT = Agent("mine", build=constructor(MyAlgorithm, "MlpPolicy"), settings={"n_envs": 64})

    kuaisim train mypackage.my:AGENT
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from pkgutil import iter_modules, resolve_name

from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import ConfigError, unknown_option

from .agent import Agent, constructor, log_uniform, one_of, row_of, uniform

__all__ = ["AGENTS", "Agent", "agents_for", "constructor", "find_agent", "log_uniform", "one_of",
           "uniform"]  # fmt: skip

# Families in the order of result tables; further families follow by name.
ORDER = ("references", "sb3", "baselines", "hrl", "hsrl")


def _discover() -> Iterable[Agent]:
    families = sorted(module.name for module in iter_modules(__path__))
    families.sort(key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    for name in families:
        yield from getattr(import_module(f"{__name__}.{name}"), "AGENTS", ())


def by_name(agents: Iterable[Agent]) -> dict[str, Agent]:
    """Rows by their names.

    Raises:
        ConfigError: Two have the same name.
    """
    rows: dict[str, Agent] = {}
    for agent in agents:
        if rows.setdefault(agent.name, agent) is not agent:
            raise ConfigError(f"Two agents have the name {agent.name!r}: rename one of them.")
    return rows


AGENTS = by_name(_discover())
# Options of the environment that are an agent's: what it sees and does. All others are the world's.
OWN_OPTIONS = frozenset(
    {"action_type", "observation_type", "history_len", "preference", "evidence"}
)


def find_agent(name: str) -> Agent:
    """The agent with a registered name, or a user's agent as ``module:attribute``.

    The attribute is an :class:`Agent`, or a class with the interface of agents, see
    :func:`~benchmarks.agents.agent.row_of`.

    Raises:
        ConfigError: There is none, it cannot be imported, it is neither, or it has the name of an
            agent of the benchmark.
    """
    if name in AGENTS:
        return AGENTS[name]
    if ":" not in name:
        error = unknown_option("agent", name, AGENTS)
        raise ConfigError(f"{error} An agent of yours is named like mypackage.my:AGENT.")
    try:
        agent = row_of(resolve_name(name))
    except ConfigError as error:  # a ValueError that says all
        raise ConfigError(f"{name}: {error}") from error
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"agent must name a module that can be imported and an attribute of it, like "
            f"mypackage.my:AGENT, got {name!r}: {error}. Check the spelling and PYTHONPATH."
        ) from error
    except TypeError as error:
        raise ConfigError(f"{name} {error}") from error
    if foreign := sorted(agent.env_options.keys() - OWN_OPTIONS):
        raise ConfigError(
            f"{name} has env_options {foreign}, which are the world's or the run's: an agent may "
            f"choose {sorted(OWN_OPTIONS)}."
        )
    if AGENTS.get(agent.name, agent) is not agent:
        raise ConfigError(f"{name} has the name of the benchmark's {agent.name}: rename it.")
    return agent


def agents_for(dataset: Dataset) -> list[str]:
    """Names of the agents that a suite plays on some data by default."""
    return [name for name, agent in AGENTS.items() if agent.suits(dataset)]
