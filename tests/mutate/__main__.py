"""Faults put into the packages one by one, each of which some test should see.

``python -m tests.mutate MODULE ...`` or ``--packages --sample 200 --seed 1``. Sources stay as they
are: faults are made in a copy of the tree. A fault is shown to the tests that call the function it
is in, the most specific ones first, among those of the test files nearest to the module; what these
call is recorded when it is first needed, and again where a test file has changed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tests.mutate.mutants import Mutant, mutants
from tests.mutate.near import made_into_machine_code, nearest_tests
from tests.mutate.record import PACKAGES, Recorder

ROOT = Path.cwd()
FIRST = 30  # tests of a file shown alone, before the others: most faults need no more
ALIEN = ("benchmarks/clients/", "benchmarks/examples/rllib_ppo.py")  # run in environments of theirs
NO_BUILDERS = ("kuaisim_gym/envs/", "kuaisim_gym/metrics/")  # of what is kept on the disk
PRELOADED = "torch stable_baselines3 numba pandas duckdb scipy.optimize sklearn matplotlib.pyplot"

Record = dict[str, dict[str, Any]]  # of each test: seconds, calls, whether it failed


def digest(file: Path) -> str:
    """Hexadecimal digits of a file's bytes."""
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def copied(folder: Path) -> Path:
    """A copy of the tree, times of files and compiled code included."""
    copy = folder / "tree"
    left_out = shutil.ignore_patterns(".git", ".venv", "_build", ".mutate", ".mypy_cache")
    shutil.copytree(ROOT, copy, ignore=left_out, symlinks=True)
    return copy


def concerned(path: str, mutant: Mutant, record: Record, budget: float) -> list[str]:
    """Tests to show a mutant to, the most specific and quickest ones first.

    Args:
        path: Its module.
        mutant: One of the module's.
        record: The tests of a file.
        budget: Seconds that the tests took when they were recorded.
    """
    function = f"{path}:{mutant.function}"
    unseen = not mutant.function or made_into_machine_code(path)  # at import, or by no interpreter
    found = {name for name, test in record.items() if unseen or function in test["calls"]}
    cost = {name: record[name]["seconds"] + 0.05 for name in found}
    chosen, total = [], 0.0
    for name in sorted(found, key=lambda name: (cost[name] * len(record[name]["calls"]), name)):
        if total + cost[name] <= budget:
            chosen.append(name)
            total += cost[name]
    return chosen


class Chosen:
    """Pytest plugin that runs some tests, in an order of ours, and notes which one failed."""

    def __init__(self, tests: list[str], out: Path) -> None:
        self.rank = {name: rank for rank, name in enumerate(tests)}
        self.out = out

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        ours = [item for item in items if item.nodeid in self.rank]
        items[:] = sorted(ours, key=lambda item: self.rank[item.nodeid])

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.out.write_text(report.nodeid)


def run_tests(copy: Path, file: str, plugin: object, cache: Path, limit: float) -> int:
    """Runs tests in a copy of the tree, in a fork of this process, which has loaded the libraries.

    Args:
        copy: The copy.
        file: A test file.
        plugin: Of pytest, which notes what the tests show.
        cache: Place of worlds and models.
        limit: Seconds that they may take.

    Returns:
        Pytest's exit status, or that of SIGKILL where time was up.
    """
    process = os.fork()
    if process == 0:
        os.setsid()
        with contextlib.suppress(BaseException):
            os.chdir(copy)
            log = os.open(copy.parent / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            here = {str(ROOT), ""}
            sys.path[:] = [str(copy), *(path for path in sys.path if path not in here)]
            os.environ |= {"PYTHONPATH": str(copy), "KUAISIM_TEST_CACHE": str(cache)}
            for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
                del sys.modules[name]
            import pytest

            options = ["-x"] if isinstance(plugin, Chosen) else []
            options += ["-q", "-p", "no:cacheprovider", f"--basetemp={copy.parent / 'pytest'}"]
            os._exit(pytest.main([*options, file], plugins=[plugin]))
        os._exit(1)
    end = time.monotonic() + limit
    ended, status = os.waitpid(process, os.WNOHANG)
    while not ended and time.monotonic() < end:
        time.sleep(0.05)
        ended, status = os.waitpid(process, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)  # processes that the tests left, too
    if not ended:
        _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


class Tree:
    """A copy of the tree that holds one mutant at a time.

    Args:
        folder: An empty one, for the copy.
        known_file: Where what tests call is kept from run to run.
        longest: Seconds that the tests of a file are recorded for; later ones are never shown.
    """

    def __init__(self, folder: Path, known_file: Path, longest: float) -> None:
        self.folder, self.known_file, self.longest = folder, known_file, longest
        self.known = json.loads(known_file.read_text()) if known_file.exists() else {}
        self.copy = copied(folder)
        self.warm = folder / "warm"  # worlds and models, made by sources without faults
        self.warm.mkdir()
        self.cold = folder / "cold"

    def _machine_code(self) -> dict[Path, bytes]:
        files = (file for package in PACKAGES for file in (self.copy / package).rglob("*.nb[ic]"))
        return {file: file.read_bytes() for file in files}

    @contextlib.contextmanager
    def holding(self, path: str, mutant: Mutant) -> Iterator[None]:
        """Puts a mutant in, and the source and its machine code back."""
        file = self.copy / path
        source, times = file.read_bytes(), file.stat()
        compiled = self._machine_code() if made_into_machine_code(path) else {}
        file.write_bytes(mutant.applied(source))
        for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
            stale.unlink()
        try:
            yield
        finally:
            file.write_bytes(source)
            os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
            for stale in (file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"):
                stale.unlink()
            if compiled:
                for code in self._machine_code().keys() - compiled.keys():
                    code.unlink()
                for code, content in compiled.items():
                    code.write_bytes(content)

    def record(self, name: str) -> Record:
        """The tests of a file that pass; where it is new, they are run to see what they call."""
        file = self.copy / name
        if name not in self.known or self.known[name]["digest"] != digest(file):
            out = self.folder / "record.json"
            out.write_text("{}")
            run_tests(self.copy, name, Recorder(self.copy, out), self.warm, self.longest)
            tests = json.loads(out.read_text())
            if not tests:
                raise RuntimeError(
                    f"No test of {name} ended within {self.longest} s: see --longest."
                )
            self.known[name] = {"digest": digest(file), "tests": tests}
            self.known_file.write_text(json.dumps(self.known))
        tests = self.known[name]["tests"]
        return {name: test for name, test in tests.items() if not test["failed"]}

    def tried(self, path: str, mutant: Mutant, budget: float) -> dict[str, Any]:
        """The verdict on a mutant: ``survived``, ``caught`` or ``hung``, and by which test."""
        result, failed, begin, n_tests = "no tests", "", time.monotonic(), 0
        shutil.rmtree(self.cold, ignore_errors=True)
        self.cold.mkdir()
        for name in nearest_tests(path):
            record = self.record(name)
            tests = concerned(path, mutant, record, budget)
            budget -= sum(record[test]["seconds"] for test in tests)
            n_tests += len(tests)
            with self.holding(path, mutant):
                for part in filter(None, (tests[:FIRST], tests[FIRST:])):
                    result, failed = self.shown(path, part, record)
                    if result != "survived":
                        break
            if result in ("caught", "hung"):
                break
        seconds = round(time.monotonic() - begin, 1)
        return {"result": result, "test": failed, "n_tests": n_tests, "seconds": seconds}

    def shown(self, path: str, tests: list[str], record: Record) -> tuple[str, str]:
        """The result of some tests of a file, and the one that failed."""
        out = self.folder / "failed.txt"
        out.write_text("at import")
        limit = 60 + 5 * sum(record[test]["seconds"] for test in tests)
        limit += 180 * made_into_machine_code(path)
        file, plugin = tests[0].partition("::")[0], Chosen(tests, out)
        status = run_tests(self.copy, file, plugin, self._cache(path), limit)
        if not status:
            return "survived", ""
        return "hung" if status == -signal.SIGKILL else "caught", out.read_text()

    def _cache(self, path: str) -> Path:
        """Place of worlds and models: one of its own for a fault that may change them."""
        harmless = not path.startswith("kuaisim_gym/") or path.startswith(NO_BUILDERS)
        return self.warm if harmless else self.cold


def modules(names: list[str]) -> list[str]:
    """Paths of modules, from paths or dotted names; all of the packages for none."""
    if names:
        paths = [name if name.endswith(".py") else f"{name.replace('.', '/')}.py" for name in names]
        return [path if Path(path).exists() else path[:-3] + "/__init__.py" for path in paths]
    files = (file for package in PACKAGES for file in sorted(Path(package).rglob("*.py")))
    return [path for path in map(Path.as_posix, files) if not path.startswith(ALIEN)]


def drawn(paths: list[str], sample: int | None, seed: int) -> list[tuple[str, Mutant]]:
    """Mutants of modules: all, or a sample in which each line counts alike."""
    sources = {path: Path(path).read_bytes() for path in paths}
    found = {path: mutants(source) for path, source in sources.items()}
    if sample is None:
        return [(path, mutant) for path in paths for mutant in found[path]]
    generator = random.Random(seed)
    weights = [sources[path].count(b"\n") * bool(found[path]) for path in paths]
    total = min(sample, sum(map(len, found.values())))
    chosen: dict[tuple[str, Mutant], None] = {}
    while len(chosen) < total:
        path = generator.choices(paths, weights)[0]
        chosen[path, generator.choice(found[path])] = None
    return list(chosen)


def survivors(results: Iterable[dict[str, Any]]) -> Iterator[tuple[str, Mutant]]:
    """Mutants that no test has seen, wherever they stand in the sources of today."""
    for result in results:
        if result["result"] in ("survived", "no tests"):
            alike = [
                mutant
                for mutant in mutants(Path(result["path"]).read_bytes())
                if all(
                    getattr(mutant, key) == result[key] for key in ("function", "before", "after")
                )
            ]
            if alike:
                yield (
                    result["path"],
                    min(alike, key=lambda mutant: abs(mutant.line - result["line"])),
                )


def table(results: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines that say how many were caught, and what survived."""
    results = list(results)
    numbers = Counter(result["result"] for result in results)
    for result in results:
        if result["result"] in ("survived", "no tests"):
            before, after = (" ".join(result[key].split())[:70] for key in ("before", "after"))
            yield f"{result['path']}:{result['line']}: {before}  ->  {after}  ({result['result']})"
    caught = numbers["caught"] + numbers["hung"]
    yield f"tried {len(results)}, caught {caught} (of which {numbers['hung']} hung)"
    yield ", ".join(f"{name} {number}" for name, number in sorted(numbers.items()))


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutate", description=__doc__)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="path or dotted name")
    parser.add_argument("--packages", action="store_true", help="all modules")
    parser.add_argument("--sample", type=int, help="number of mutants drawn; all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--lines", type=int, nargs="*", help="mutants of these lines alone")
    parser.add_argument("--again", action="store_true", help="only those that survived in --out")
    parser.add_argument("--budget", type=float, default=120, help="seconds of tests for a mutant")
    parser.add_argument("--longest", type=float, default=900, help="seconds to record a file for")
    parser.add_argument("--out", type=Path, help="results, one a line; goes on where it ended")
    args = parser.parse_args(arguments)
    if bool(args.modules) == args.packages:
        parser.error("give modules, or --packages")
    for library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(library, "1")
    folder = ROOT / ".mutate"
    folder.mkdir(exist_ok=True)
    paths = modules(args.modules)
    out = (args.out or folder / f"{args.seed}.jsonl").resolve()
    results: dict[str, dict[str, Any]] = {}
    if out.exists():
        results = {r["key"]: r for r in map(json.loads, out.read_text().splitlines())}
    for name in PRELOADED.split():
        with contextlib.suppress(ImportError):
            __import__(name)
    shown = {}
    with tempfile.TemporaryDirectory() as scratch, out.open("a") as file:
        tree = Tree(Path(scratch), folder / "tests.json", args.longest)
        os.chdir(tree.copy)  # what is edited meanwhile is of no account
        waiting = drawn(paths, args.sample, args.seed)
        for path, mutant in list(survivors(results.values())) if args.again else waiting:
            if args.lines and mutant.line not in args.lines:
                continue
            key = f"{path}:{mutant.line} {mutant.function} {mutant.span[0]} {mutant.after}"
            if key not in results or args.again:
                fault = {"key": key, "path": path, **dataclasses.asdict(mutant)}
                results[key] = {**fault, **tree.tried(path, mutant, args.budget)}
                file.write(json.dumps(results[key]) + "\n")
                file.flush()
            shown[key] = results[key]
            print(
                f"{len(shown)}: {results[key]['result']} {key} ({results[key]['test']})", flush=True
            )
    print(*table(shown.values()), sep="\n")


if __name__ == "__main__":
    main()
