"""KuaiRec and KuaiRand simulators with fairness-aware abandonment, as Gymnasium environments.

>>> import gymnasium as gym
>>> import kuaisim_gym
>>> env = gym.make("KuaiRec-Fair-v0")

The public names are those of ``__all__``; ``docs/kuaisim_gym.md`` describes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    DataFormatError,
    DatasetNotFoundError,
    DiskSpaceError,
    DownloadError,
    InvalidActionError,
    KuaiSimError,
    NoPreferenceError,
    ResetNeededError,
    StorageError,
    UnexpectedOptionError,
    UnknownIdError,
)
from kuaisim_gym.lazy import lazy_names
from kuaisim_gym.metrics import (
    Audit,
    Merit,
    Sessions,
    summarise,
    summarise_exposure,
    summarise_requests,
    summarise_retention,
    summarise_users,
)
from kuaisim_gym.registration import ENVIRONMENTS, register
from kuaisim_gym.version import __version__

if TYPE_CHECKING:
    from kuaisim_gym.data import Dataset, load_dataset
    from kuaisim_gym.envs.assembly import SessionBatch
    from kuaisim_gym.envs.offline import Episode, collect_episodes, logged_episodes, write_minari
    from kuaisim_gym.envs.single import KuaiEnv, KuaiRequestEnv, KuaiRetentionEnv
    from kuaisim_gym.envs.vector import KuaiVectorEnv
    from kuaisim_gym.simulator import Simulator, build_simulator
    from kuaisim_gym.simulator.catalogue import Catalogue
    from kuaisim_gym.simulator.groups import Groups, find_groups, popularity_groups
    from kuaisim_gym.simulator.rule_examples import CategoryBoredom, ProviderQuota
    from kuaisim_gym.simulator.rules import Rule, RuleWorld, SessionStep

# Imported when they are used: these modules load pandas and SciPy.
_MODULES, __getattr__ = lazy_names(
    __name__,
    {
        "data": ("Dataset", "load_dataset"),
        "envs.assembly": ("SessionBatch",),
        "envs.offline": ("Episode", "collect_episodes", "logged_episodes", "write_minari"),
        "envs.single": ("KuaiEnv", "KuaiRequestEnv", "KuaiRetentionEnv"),
        "envs.vector": ("KuaiVectorEnv",),
        "simulator": ("Simulator", "build_simulator"),
        "simulator.catalogue": ("Catalogue",),
        "simulator.groups": ("Groups", "find_groups", "popularity_groups"),
        "simulator.rule_examples": ("CategoryBoredom", "ProviderQuota"),
        "simulator.rules": ("Rule", "RuleWorld", "SessionStep"),
    },
)

__all__ = [
    "ENVIRONMENTS", "Audit", "BusyError", "Catalogue", "CategoryBoredom", "CheckpointError",
    "ConfigError", "DataFormatError", "Dataset", "DatasetNotFoundError", "DiskSpaceError",
    "DownloadError", "Episode", "Groups", "InvalidActionError", "KuaiEnv", "KuaiRequestEnv",
    "KuaiRetentionEnv", "KuaiSimError", "KuaiVectorEnv", "Merit", "NoPreferenceError",
    "ProviderQuota", "ResetNeededError", "Rule", "RuleWorld", "SessionBatch", "SessionConfig",
    "SessionStep", "Sessions", "Simulator", "StorageError", "UnexpectedOptionError",
    "UnknownIdError", "__version__", "build_simulator", "collect_episodes", "find_groups",
    "load_dataset", "logged_episodes", "popularity_groups", "register", "summarise",
    "summarise_exposure", "summarise_requests", "summarise_retention", "summarise_users",
    "write_minari",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
