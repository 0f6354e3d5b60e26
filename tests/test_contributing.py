"""The worked examples of CONTRIBUTING.md run as printed, from a package that only they make."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kuaisim_gym

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
CONSOLE = "import sys\nfrom kuaisim_benchmarks.__main__ import console\nsys.exit(console())\n"
SECTIONS = dict(re.findall(r"^### (.+?)\n(.*?)(?=^### |\Z)", TEXT, re.DOTALL | re.MULTILINE))


def blocks(text: str, language: str) -> list[str]:
    """Code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def test_every_kind_of_thing_that_grows_has_a_checklist_and_an_example() -> None:
    assert list(SECTIONS) == [
        "An environment id",
        "A task",
        "A dataset",
        "A purifier",
        "An agent",
        "A row of the benchmark",
        "A study or a command",
    ]
    for name, text in SECTIONS.items():
        assert re.match(r"\n(One|Two|Three) files?: ", text), name
        assert len(re.findall(r"^- \[ \] ", text, re.MULTILINE)) >= 2, name


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example_runs(name: str, tmp_path: Path) -> None:
    package = tmp_path / "mylab"
    package.mkdir()
    (tmp_path / "kuaisim_benchmarks").symlink_to(ROOT / "benchmarks")
    modules = [code for code in blocks(SECTIONS[name], "python") if code.startswith("# mylab/")]
    scripts = [code for code in blocks(SECTIONS[name], "python") if code not in modules]
    commands = "".join(blocks(SECTIONS[name], "sh"))
    assert modules
    assert scripts or commands
    for code in modules:
        (tmp_path / code.splitlines()[0].removeprefix("# ")).write_text(code, encoding="utf-8")
    for script in scripts:
        assert run([sys.executable, "-c", script], tmp_path)
    if commands:
        program = tmp_path / "bin" / "kuaisim"  # as installed, of this very clone
        program.parent.mkdir()
        program.write_text(f"#!{sys.executable}\n{CONSOLE}")
        program.chmod(0o755)
        path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
        assert run(["bash", "-ec", commands], tmp_path, PATH=path)


def run(command: list[str], folder: Path, **variables: str) -> str:
    """The output of a command that succeeds."""
    paths = os.pathsep.join([str(ROOT), str(folder)])
    result = subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, **variables},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"`((?:kuaisim_gym|dsrm_agents|benchmarks|tests)/[\w/.]+)`", TEXT))
    assert len(named) > 8
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_citation_is_of_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {kuaisim_gym.__version__}\n" in citation
