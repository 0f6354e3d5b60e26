"""Result files: their keys, the worlds that they are about, and reading them."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Callable, Hashable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset
from kuaisim_gym.errors import DataFormatError

RUN = "run"  # the study of a result that names none
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
    """The fields that must agree for two results to be comparable."""

    env: str
    synthetic: bool
    fingerprint: str
    max_len: int

    @property
    def slug(self) -> str:
        """A name for files."""
        data = "synthetic" if self.synthetic else "real"
        return f"{self.env}_{data}-{self.fingerprint[:8]}_T{self.max_len}"

    @property
    def title(self) -> str:
        """A name for headings: no synthetic world may be taken for real data."""
        data = "SYNTHETIC world" if self.synthetic else "real rows"
        return f"{self.env}, {data} {self.fingerprint}, T {self.max_len}"


def world_of(result: Result) -> World:
    """The world of a result."""
    dataset = result["dataset"]
    return World(result["env"], dataset["synthetic"], dataset["fingerprint"], result["max_len"])


def task_of(env: str) -> str:
    """Name of a registered environment's task, a key of ``kuaisim_gym.envs.tasks.TASKS``."""
    return str(ENVIRONMENTS[env]["task"])


def data_block(dataset: Dataset) -> dict[str, Any]:
    """The ``dataset`` block of a result: its data, and whether they are real."""
    return {
        "name": dataset.name,
        "synthetic": dataset.synthetic,
        "fingerprint": dataset.fingerprint,
    }


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
    if "study" not in result:
        _check_keys(path, result, KEYS)
    return result


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
    """All results of one study under a folder, in a stable order; other files are left out.

    Args:
        folder: Searched with all below it.
        study: Name of the study, and of the command that makes it.
        keys: Keys that a result must have.
        identity: Equal for results that measure the same and would be counted twice; ``None`` to
            let all pass.
        subject: What was measured, for the error message.

    Raises:
        DataFormatError: There are none, a file is not a result, or a measurement has two files.
    """
    results: dict[Hashable, tuple[Path, Result]] = {}
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
        if result.get("study", RUN) != study:
            continue
        _check_keys(path, result, keys)
        key = path if identity is None else identity(result)
        if key in results:
            raise DataFormatError(
                f"{results[key][0]} and {path} are the same {subject}, world and seed: one would "
                "count as two seeds. Give a folder that holds one of them."
            )
        results[key] = path, result
    if not results:
        raise DataFormatError(f"There are no results under {folder}; make some with `{study}`.")
    return [result for _, result in results.values()]


def _check_keys(path: Path, result: Result, keys: frozenset[str]) -> None:
    if missing := keys - result.keys():
        raise DataFormatError(f"{path} lacks the key(s) {sorted(missing)} of a result.")


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of the code that runs, ``-dirty`` where it differs, or ``"unknown"``."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        process = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return process.stdout.strip()

    try:
        code = ("kuaisim_gym", "dsrm_agents", "benchmarks/*.py")  # in all folders of it
        changed = git("status", "--porcelain", "--", *(f":/{path}" for path in code))
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
