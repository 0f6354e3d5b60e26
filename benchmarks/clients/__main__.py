"""Command line: ``python -m benchmarks.clients [NAME ...]``."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
import venv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

SCRIPTS = {
    file.stem: file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem[0] != "_"
}
ROOT = Path(__file__).parents[2]
METADATA = re.compile(r"^# /// script$\s(?P<toml>(^#(| .*)$\s)+)^# ///$", re.MULTILINE)
SOURCES = (
    "kuaisim_gym", "dsrm_agents", "benchmarks", "setup.py", "setup.cfg", "pyproject.toml",
    "README.md", "LICENSE",
)  # fmt: skip


def metadata(script: Path) -> dict[str, Any]:
    """The inline metadata of a script: ``dependencies``, and ``tool.clients``."""
    head = METADATA.search(script.read_text(encoding="utf-8"))
    if head is None:
        raise ValueError(f"{script.name} names no packages: it needs a '# /// script' block.")
    return tomllib.loads(re.sub(r"^# ?", "", head["toml"], flags=re.MULTILINE))


def build(folder: Path) -> Path:
    """Builds this package's wheel in a folder, from a copy, which leaves the sources alone."""
    copy = folder / "sources"
    copy.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "-w", str(folder), str(copy)], check=True)
    return next(folder.glob("*.whl"))


def install(python: Path, wheel: Path, needs: dict[str, Any]) -> None:
    """Installs a client and this package beside a Python.

    Raises:
        subprocess.CalledProcessError: pip cannot.
    """
    options = needs.get("tool", {}).get("clients", {})
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pinned = ["-c", str(ROOT / "constraints.txt")] if options.get("constraints", True) else []
    extras = f"[{','.join(options['extras'])}]" if "extras" in options else ""
    packages = [f"{wheel}{extras}", *needs["dependencies"]]
    alone = options.get("without-dependencies", [])
    runs = [[*pip, *pinned, *packages], [*pip, "--no-deps", "--force-reinstall", str(wheel)]]
    if alone:
        runs.append([*pip, "--no-deps", *alone])
    for command in runs:
        subprocess.run(command, check=True, capture_output=True, text=True)


def check(name: str, wheel: Path, folder: Path) -> str | None:
    """Installs a client, and runs its script.

    Args:
        name: A key of ``SCRIPTS``.
        wheel: This package.
        folder: Place of the virtual environment, which is made where there is none.

    Returns:
        ``None``, or the end of the output of the command that failed.
    """
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists():
        venv.create(folder / "venv", with_pip=True)
    with tempfile.TemporaryDirectory() as work:
        # -I: neither PYTHONPATH, nor this folder, whose modules have the names of the clients.
        command = [str(python), "-I", str(SCRIPTS[name])]
        try:
            install(python, wheel, metadata(SCRIPTS[name]))
            process = subprocess.run(command, check=True, capture_output=True, text=True, cwd=work)
            for line in process.stdout.splitlines():
                if line.startswith("|"):  # rows of the table in docs/wrappers.md
                    print(line, flush=True)
        except subprocess.CalledProcessError as error:
            return "\n".join((error.stdout + error.stderr).splitlines()[-20:])
    return None


def run(names: Iterable[str], folder: Path) -> int:
    """Checks clients one after another, and prints a line for each.

    Returns:
        How many failed.
    """
    failures = 0
    with tempfile.TemporaryDirectory() as build_folder:
        wheel = build(Path(build_folder))
        for name in names:
            begin = time.monotonic()
            failure = check(name, wheel, folder / name)
            versions = ", ".join(metadata(SCRIPTS[name])["dependencies"])
            verdict = "works" if failure is None else "FAILS"
            print(f"{name}: {verdict}, {time.monotonic() - begin:.0f} s ({versions})", flush=True)
            if failure is not None:
                print(failure, flush=True)
                failures += 1
    return failures


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status is 1 if a client failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SCRIPTS)}; all")
    parser.add_argument("--folder", type=Path, help="keeps the virtual environments there")
    args = parser.parse_args(arguments)
    if not (ROOT / "setup.py").exists():
        parser.error("the sources to be tried are not here: run it in the folder of the repository")
    unknown = sorted(set(args.names) - SCRIPTS.keys())
    if unknown:
        parser.error(f"NAME must be one of {', '.join(SCRIPTS)}, got {', '.join(unknown)}")
    names = args.names or list(SCRIPTS)
    if args.folder is not None:
        return int(run(names, args.folder.resolve()) > 0)
    with tempfile.TemporaryDirectory() as folder:
        return int(run(names, Path(folder)) > 0)


if __name__ == "__main__":
    sys.exit(main())
