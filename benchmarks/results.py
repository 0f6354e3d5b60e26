"""Result files: what a run writes, and what tables and plots read."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.errors import ConfigError, DataFormatError

METRICS = (
    "len", "r_each", "r_cum", "q", "ad", "slate_ad", "longtail_share", "gini", "coverage",
)  # fmt: skip
KEYS = frozenset(
    {"agent", "env", "max_len", "slate_size", "seed", "dataset", "train", "eval", "metrics",
     "versions", "commit"}
)  # fmt: skip

Result = dict[str, Any]


World = tuple[str, bool, str, int]  # env, synthetic, fingerprint, max_len


def world_of(result: Result) -> World:
    """What must agree for two results to be comparable."""
    dataset = result["dataset"]
    return result["env"], dataset["synthetic"], dataset["fingerprint"], result["max_len"]


def task_of(env: str) -> str:
    """The task of a registered environment: a key of the environments' tasks."""
    return str(ENVIRONMENTS[env].get("task", "session"))


def data_block(dataset: Dataset) -> dict[str, Any]:
    """The ``dataset`` block of a result: what it was made with, and whether that is real."""
    return {
        "name": dataset.name,
        "synthetic": dataset.synthetic,
        "fingerprint": dataset.fingerprint,
    }


def result_path(out: Path, result: Result) -> Path:
    """Where a run's result lies: one file for each agent, environment, length, data and seed."""
    world = "synthetic" if result["dataset"]["synthetic"] else "real"
    name = f"{result['agent']}_{result['env']}_{world}_T{result['max_len']}_seed{result['seed']}"
    return out / f"{name}.json"


def write_result(out: Path, result: Result) -> Path:
    """Writes one result, whole or not at all."""
    path = result_path(out, result)
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


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
    missing = KEYS - result.keys()
    if "study" not in result and missing:
        raise DataFormatError(f"{path} lacks the key(s) {sorted(missing)} of a result.")
    return result


def already_there(path: Path, header: Result) -> bool:
    """Whether the result of a study, with this header, is there already.

    Raises:
        ConfigError: What is there is the result of other data or settings.
    """
    if not path.exists():
        return False
    check_same(path, header, read_result(path))
    return True


def check_same(path: Path, header: Result, there: Mapping[str, Any]) -> None:
    """Refuses to take what a file holds for the study that has this header.

    Raises:
        ConfigError: What is there is the result of other data or settings.
    """
    found = {name: there.get(name) for name in header}
    different = [name for name in header if found[name] != header[name]]
    if different:
        wanted = {name: header[name] for name in different}
        found = {name: found[name] for name in different}
        raise ConfigError(
            f"{path} holds the result of other data or settings: wanted {wanted}, found {found}. "
            "Remove it or choose another folder."
        )


def read_results(folder: Path) -> list[Result]:
    """All run results under a folder, in a stable order; studies are left out.

    Raises:
        DataFormatError: There are none, a file is not a result, or one run is there twice.
    """
    results = []
    seen: dict[tuple[object, ...], Path] = {}
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
        if "study" in result:
            continue
        run = (*world_of(result), result["agent"], result["seed"])
        if run in seen:
            raise DataFormatError(
                f"{seen[run]} and {path} are the same agent, world and seed: one would count as "
                "two seeds. Give a folder that holds one of them."
            )
        seen[run] = path
        results.append(result)
    if not results:
        raise DataFormatError(f"There are no results under {folder}; make some with `run`.")
    return results


def read_parts(folder: Path, study: str, keys: frozenset[str]) -> list[tuple[Path, Result]]:
    """The results of one study under a folder, in a stable order; other files are left out.

    Args:
        folder: Searched with all below it.
        study: Name of the study, and of the command that makes it.
        keys: What each result must have.

    Raises:
        DataFormatError: There are none, or one is damaged.
    """
    parts = []
    for path in sorted(folder.rglob("*.json")):
        result = read_result(path)
        if result.get("study") != study:
            continue
        if missing := keys - result.keys():
            raise DataFormatError(f"{path} lacks the key(s) {sorted(missing)} of a result.")
        parts.append((path, result))
    if not parts:
        raise DataFormatError(f"There are no results under {folder}; make some with `{study}`.")
    return parts


def versions(
    packages: Iterable[str] = ("numpy", "torch", "gymnasium", "stable-baselines3"),
) -> dict[str, str]:
    """Versions of Python and of what decides a result."""
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def commit() -> str:
    """The commit of the code that runs, ``-dirty`` where it differs, or ``"unknown"``."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        code = ("kuaisim_gym", "dsrm_agents", "benchmarks/*.py")  # in all folders of it
        changed = git("status", "--porcelain", "--", *(f":/{part}" for part in code))
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
