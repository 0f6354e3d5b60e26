"""Builds the distribution, installs its wheel into a new environment, and tries it there.

    python tests/check_package.py    # or: make package-check

It takes minutes and the network, so that the test suite leaves it out. Nothing of the clone can be
imported where the wheel is tried.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT)]

from test_pages import SMALLER, blocks, write_movies  # noqa: E402

import kuaisim_gym  # noqa: E402

NAMES = {
    "kuaisim_gym": "kuaisim_gym",
    "dsrm_agents": "dsrm_agents",
    "benchmarks": "kuaisim_benchmarks",
}
IN_SDIST = ("kuaisim_gym", "dsrm_agents", "benchmarks", "docs", "findings", "tests", "CHANGELOG.md",
            "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md",
            "constraints.txt", "pyproject.toml", "setup.cfg", "setup.py")  # fmt: skip
COMMANDS = (
    "--version",
    "data cache --info",
    "train ppo KuaiRec-Fair-v0 --max-len 5 --episodes 64 --sessions 50",
    "suite --agents random quality+quota --max-len 5 --seeds 11 --sessions 50 --jobs 1",
    "evaluate {run} --sessions 100",
    "evaluate kuaisim_benchmarks.examples.own_agent:HalfAndHalf --max-len 5 --sessions 50",
    "play {run}",
    "release results --agents ppo --out release",
    "play ppo --max-len 5 --release release --no-train",
    "table results --format latex",
    "table results --format csv",
    "report results --html report.html",
)
RELEASED = "/released/agents/"
RUN = "results/ppo_KuaiRec-Fair-v0_kuairec-synthetic_T5_seed11.json"


def main() -> None:
    """Runs all checks; the first that fails ends it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tag", help="git tag that must name the version, such as v0.1.0")
    parser.add_argument("--dist", type=Path, help="where the files go; default: nowhere")
    options = parser.parse_args()
    if options.tag not in (None, f"v{kuaisim_gym.__version__}"):
        sys.exit(f"The tag {options.tag} is not of the version {kuaisim_gym.__version__}.")
    with tempfile.TemporaryDirectory(prefix="kuaisim-package-") as folder:
        dist = build(Path(folder), options.dist)
        check_contents(dist)
        try_wheel(Path(folder), next(dist.glob("*.whl")))
    say("The package is complete and works.")


def build(folder: Path, dist: Path | None) -> Path:
    """Builds sdist and, from it, wheel; the folder that they are in."""
    python = environment(folder / "tools", "build", "twine")
    dist = folder / "dist" if dist is None else dist.resolve()
    run(python, "-m", "build", "--outdir", dist, ROOT)
    run(python, "-m", "twine", "check", "--strict", *dist.iterdir())
    return dist


def check_contents(dist: Path) -> None:
    """Compares the archives with the files that git knows."""
    command = ["git", "-C", str(ROOT), "ls-files", "--", *IN_SDIST]
    files = subprocess.check_output(command, text=True).splitlines()
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    if missing := set(files) - held:
        sys.exit(f"The sdist lacks {sorted(missing)}.")
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    modules = {
        "/".join([NAMES[name.split("/")[0]], *name.split("/")[1:]])
        for name in files
        if name.split("/")[0] in NAMES
        and (name.endswith((".py", "py.typed", "published.csv")) or RELEASED in name)
    }
    if different := modules ^ held:
        sys.exit(f"The wheel and the packages differ by {sorted(different)}.")


def try_wheel(folder: Path, wheel: Path) -> None:
    """Runs README's Python and the commands with the installed wheel, outside of the clone."""
    python = environment(folder / "env", "-c", ROOT / "constraints.txt", f"{wheel}[bench]")
    place = folder / "place"
    write_movies(place / "path" / "to" / "ml-latest-small")
    for number, code in enumerate(blocks("README.md")):
        for text, smaller in SMALLER.items():
            code = code.replace(text, smaller)
        say(f"README, example {number + 1}")
        run(python, "-c", code, cwd=place)
    for command in COMMANDS:
        say(f"kuaisim {command}")
        run(python.with_name("kuaisim"), *command.format(run=RUN).split(), cwd=place)


def say(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def environment(folder: Path, *requirements: object) -> Path:
    """The Python of a new virtual environment with some packages."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", *requirements)
    return python


def run(*command: object, cwd: Path | None = None) -> None:
    """Runs a command that knows nothing of the clone, or ends this program."""
    variables = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env=variables, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout}\n{done.stderr}")


if __name__ == "__main__":
    main()
