"""Result files: their keys, the worlds that they describe, and how they are read."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Hashable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import kuaisim_gym.envs.tasks  # noqa: F401  # registers the tasks
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import TASKS, SessionBatch
from kuaisim_gym.errors import DataFormatError, unknown_option
from kuaisim_gym.registration import registered

RUN = "run"  # the study of results that name no study
METRICS = (
    "len", "r_each", "r_cum", "q", "ad", "slate_ad", "longtail_share", "gini", "coverage",
)  # fmt: skip
KEYS = frozenset(
    {"agent", "env", "max_len", "slate_size", "seed", "dataset", "train", "eval", "metrics",
     "versions", "commit"}
)  # fmt: skip

PACKAGES = ("numpy", "torch", "gymnasium", "stable-baselines3")

Result = dict[str, Any]


class World(NamedTuple):
    """Fields that agree in comparable results."""

    env: str
    synthetic: bool
    fingerprint: str
    max_len: int

    @property
    def task(self) -> type[SessionBatch]:
        """The environment's task."""
        return task_of(self.env)

    @property
    def slug(self) -> str:
        """Name of the world in file names."""
        data = "synthetic" if self.synthetic else "real"
        env = self.env.rpartition(":")[2]
        return f"{env}_{data}-{self.fingerprint[:8]}_T{self.max_len}"

    @property
    def data(self) -> str:
        """A phrase for headings: no synthetic world may be taken for real data."""
        return "SYNTHETIC world" if self.synthetic else "real rows"

    @property
    def title(self) -> str:
        """Name of the world in headings."""
        return f"{self.env}, {self.data} {self.fingerprint}, T {self.max_len}"


def world_of(result: Result) -> World:
    """The world of a result."""
    dataset = result["dataset"]
    return World(result["env"], dataset["synthetic"], dataset["fingerprint"], result["max_len"])


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


def data_block(dataset: Dataset) -> dict[str, Any]:
    """The ``dataset`` block of a result."""
    return {name: getattr(dataset, name) for name in ("name", "synthetic", "fingerprint")}


def read_result(path: Path) -> Result:
    """Reads one result file, of a run or of a study.

    Raises:
        DataFormatError: It is not a result.
    """
    try:
        result: Result = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataFormatError(f"{path} is not a JSON file: {error}") from error
    if not isinstance(result, dict) or ("agent" not in result and "study" not in result):
        raise DataFormatError(f"{path} is no result: it names neither agent nor study.")
    return result if "study" in result else _with_keys(path, result, KEYS)


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
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
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
        raise DataFormatError(f"There are no results under {folder}; make some with `{study}`.")
    return [result for _, result in results.values()]


def _with_keys(path: Path, result: Result, keys: frozenset[str]) -> Result:
    """The result, which is refused if it lacks keys."""
    if missing := keys - result.keys():
        raise DataFormatError(f"{path} lacks the key(s) {sorted(missing)} of a result.")
    return result


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of packages that affect a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of the running code, with ``-dirty`` if files differ, or ``"unknown"``."""

    def git(*arguments: str) -> str:
        return subprocess.check_output(
            ["git", *arguments], cwd=Path(__file__).parent, stderr=subprocess.DEVNULL, text=True
        ).strip()

    try:
        code = (":/kuaisim_gym", ":/dsrm_agents", ":/benchmarks/*.py")  # also in subfolders
        changed = git("status", "--porcelain", "--", *code)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
