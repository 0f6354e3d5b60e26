"""Result files: their keys, the worlds that they describe, and how they are read."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import kuaisim_gym.envs.tasks  # noqa: F401  # registers the tasks
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import SessionConfig, check_choice
from kuaisim_gym.envs.assembly import TASKS, SessionBatch
from kuaisim_gym.errors import DataFormatError, unknown_option
from kuaisim_gym.registration import registered
from kuaisim_gym.version import __version__

from ..origin import data_label, is_older

RUN = "run"  # the study of results that name no study
METRICS = (
    "len", "r_each", "r_cum", "q", "ad", "slate_ad", "longtail_share", "gini", "coverage",
)  # fmt: skip
LESS_IS_BETTER = frozenset({"ad", "slate_ad", "q", "gini"})  # of metrics
KEYS = frozenset(
    {"agent", "env", "max_len", "slate_size", "seed", "dataset", "train", "eval", "metrics",
     "versions", "commit"}
)  # fmt: skip

# Kinds of the values of a run's result.
_KINDS: dict[str, type | tuple[type, ...]] = {
    "agent": str, "env": str, "max_len": int, "slate_size": int, "seed": int, "metrics": dict,
    "dataset.name": str, "dataset.synthetic": bool, "dataset.fingerprint": str,
    "train.episodes": int, "train.steps": int, "train.seconds": (int, float),
    "eval.sessions": int,
}  # fmt: skip

PACKAGES = ("numpy", "torch", "gymnasium", "stable-baselines3")

Result = dict[str, Any]


# What results call the answers of the test simulator, by their kind.
ANSWERS = {
    "synthetic": "SYNTHETIC world",
    "real": "REAL answers",
    "modelled": "MODELLED answers",
}


class World(NamedTuple):
    """Fields that agree in comparable results.

    Attributes:
        env: The environment.
        dataset: The dataset's own name.
        answers: A key of :data:`ANSWERS`.
        seed: Seed of a synthetic world, 0 for data from files.
        is_older: Whether an earlier version of the generator made the world.
        fingerprint: Of the data.
        max_len: T, the longest session.
        slate_size: K, items in a slate.
    """

    env: str
    dataset: str
    answers: str
    seed: int
    is_older: bool
    fingerprint: str
    max_len: int
    slate_size: int = SessionConfig.slate_size

    @property
    def task(self) -> type[SessionBatch]:
        """The environment's task."""
        return task_of(self.env)

    @property
    def rank(self) -> tuple[bool, World]:
        """A key for sorting: today's worlds come before those of earlier generators."""
        return self.is_older, self

    @property
    def slug(self) -> str:
        """Name of the world in file names."""
        env = self.env.rpartition(":")[2]
        block = {"name": self.dataset, "answers": self.answers, "seed": self.seed}
        return (
            f"{env}_{data_label(block)}-{self.fingerprint[:8]}_T{self.max_len}{self._width('_K')}"
        )

    @property
    def data(self) -> str:
        """A phrase for headings: no synthetic world may be taken for real data."""
        seed = f" {self.seed}" if self.seed else ""
        return f"{'OLDER ' if self.is_older else ''}{ANSWERS[self.answers]}{seed}"

    @property
    def title(self) -> str:
        """Name of the world in headings."""
        data = f"{self.dataset} ({self.data}, {self.fingerprint})"
        return f"{self.env}, {data}, T {self.max_len}{self._width(', K ')}"

    @property
    def short_title(self) -> str:
        """Name of the world above a column; environments with the paper's rule go unnamed."""
        env = "" if self.env.endswith("-Fair-v0") else f"{self.env}, "
        return f"{env}{self.dataset} ({self.data}), T = {self.max_len}{self._width(', K = ')}"

    def _width(self, label: str) -> str:
        """The size of slates under a label, if it is not the usual one."""
        return "" if self.slate_size == SessionConfig.slate_size else f"{label}{self.slate_size}"


def world_of(result: Result) -> World:
    """The world of a result."""
    block = result["dataset"]
    # Results of older code do not say it: looked-up rows stood beside a model's.
    answers = block.get("answers", "synthetic" if block["synthetic"] else "modelled")
    return World(
        result["env"], block["name"], answers, block.get("seed", 0), is_older(block),
        block["fingerprint"], result["max_len"],
        result.get("slate_size", SessionConfig.slate_size),
    )  # fmt: skip


def in_order(results: Iterable[Result]) -> list[Result]:
    """Results world by world: today's worlds first, those of earlier generators last."""
    return sorted(results, key=lambda result: world_of(result).rank)


def task_of(env: str) -> type[SessionBatch]:
    """The task of a registered environment: its metrics and defaults are attributes."""
    return TASKS[check_choice("task", registered(env)["task"], TASKS)]


def check_session_env(env: str) -> None:
    """Checks that the sessions of an environment are as long as users stay.

    Raises:
        ConfigError: They are not, or the environment is unknown.
    """
    if task_of(env) is not SessionBatch:
        names = [name for name in ENVIRONMENTS if task_of(name) is SessionBatch]
        raise unknown_option("env", env, names)


def direction(metric: str) -> int:
    """1 for a metric that is better where it is more, -1 for one that is better where less."""
    return -1 if metric in LESS_IS_BETTER else 1


def without_nan(values: Mapping[str, float]) -> dict[str, float | None]:
    """The values; ``None`` replaces NaN, which JSON does not have."""
    return {name: None if math.isnan(value) else value for name, value in values.items()}


def read_result(path: Path) -> Result:
    """Reads one result file, of a run or of a study.

    Raises:
        DataFormatError: It is not a result.
    """
    try:
        result: Result = json.loads(
            path.read_text(encoding="utf-8"), parse_constant=lambda name: _refuse(path, name)
        )
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise DataFormatError(
            f"{path} is not a JSON file: {error}. Remove it, or make it again."
        ) from error
    if not isinstance(result, dict) or ("agent" not in result and "study" not in result):
        raise DataFormatError(f"{path} is no result: it names neither agent nor study.")
    return result if "study" in result else _as_run(path, result)


def _refuse(path: Path, name: str) -> None:
    raise DataFormatError(f"{path} holds {name}, which no result has. Remove it, or make it again.")


def _as_run(path: Path, result: Result) -> Result:
    """The result of a run, which is refused if it lacks keys or a value is of another kind."""
    _with_keys(path, result, KEYS)
    wrong = [name for name, kind in _KINDS.items() if not _is(kind, _value(result, name))]
    wrong += [
        f"metrics.{name}"
        for name, value in _value(result, "metrics", {}).items()
        if not _is((int, float), value)
    ]
    if _value(result, "dataset.answers", "synthetic") not in ANSWERS:
        wrong.append("dataset.answers")
    if wrong:
        found = {name: _value(result, name) for name in wrong}
        raise DataFormatError(
            f"{path} is no result of a run, for it has {found}. Remove it, or make it again."
        )
    return result


def _value(result: Result, name: str, default: Any = None) -> Any:
    """The value at a path of keys; the default where there is none."""
    value: Any = result
    for key in name.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return default if value is None else value


def _is(kind: type | tuple[type, ...], value: object) -> bool:
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def run_of(result: Result) -> Hashable:
    """World, agent and seed of a run's result."""
    return world_of(result), result["agent"], result["seed"]


def read_results(
    folder: Path,
    study: str = RUN,
    keys: frozenset[str] = KEYS,
    identity: Callable[[Result], Hashable] | None = run_of,
    subject: str = "agent",
) -> list[Result]:
    """Results of one study in a folder and its subfolders, in a stable order.

    Args:
        folder: The folder.
        study: Name of the study, and of the command that makes it.
        keys: Keys that a result must have.
        identity: Equal for results of the same measurement; ``None`` to skip that check.
        subject: The subject of a measurement, for the error message.

    Raises:
        DataFormatError: There are none, a file is not a result, or a measurement has two files.
    """
    results: dict[Hashable, tuple[Path, Result]] = {}
    for path, result in read_folder(folder):
        if result.get("study", RUN) != study:
            continue
        key = path if identity is None else identity(result)
        if key in results:
            raise DataFormatError(
                f"{results[key][0]} and {path} are the same {subject}, world and seed: one would "
                "count as two seeds. Give a folder that holds one of them."
            )
        results[key] = path, _with_keys(path, result, keys)
    if not results:
        where = f"There are no results under {folder}" if folder.exists() else f"No folder {folder}"
        command = "train" if study == RUN else study
        raise DataFormatError(f"{where}; make some with `kuaisim {command}`.")
    return [result for _, result in results.values()]


def read_folder(folder: Path) -> Iterator[tuple[Path, Result]]:
    """Files and results of all studies in a folder and its subfolders, in a stable order.

    Raises:
        DataFormatError: A file is not a result.
    """
    for path in sorted(folder.rglob("*.json")):
        yield path, read_result(path)


def studies_in(folder: Path) -> frozenset[str]:
    """Names of the studies that have results in a folder and its subfolders.

    Raises:
        DataFormatError: A file is not a result.
    """
    return frozenset(result.get("study", RUN) for _, result in read_folder(folder))


def _with_keys(path: Path, result: Result, keys: frozenset[str]) -> Result:
    """The result, which is refused if it lacks keys."""
    if missing := keys - result.keys():
        raise DataFormatError(f"{path} lacks the key(s) {sorted(missing)} of a result.")
    return result


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages that affect a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of the running code, with ``-dirty`` if files differ, or its release."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # else it is another's repository
        code = (":/kuaisim_gym", ":/dsrm_agents", ":/benchmarks/*.py")  # also in subfolders
        changed = git("status", "--porcelain", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"release {__version__}"
