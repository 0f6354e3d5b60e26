"""The runner of other people's software; what it installs is not installed here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.clients import __main__ as clients

FAKE = """# /// script
# dependencies = ["fake==1"]
#
# [tool.clients]
# constraints = false
# ///
import os
print("it says", os.getcwd() != {folder!r})
raise SystemExit({status})
"""


@pytest.mark.parametrize("name", clients.SCRIPTS)
def test_every_client_is_pinned_and_installed_by_itself(name: str) -> None:
    needs = clients.metadata(clients.SCRIPTS[name])
    own = needs.get("tool", {}).get("clients", {})
    assert own.keys() <= {"extras", "constraints", "without-dependencies"}
    packages = [*needs["dependencies"], *own.get("without-dependencies", [])]
    assert packages
    for package in packages:
        assert re.fullmatch(r"[\w-]+(\[[\w,]+\])?==[\d.]+", package), package


def test_a_script_without_packages_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "none.py"
    script.write_text("import json\n")
    with pytest.raises(ValueError, match="none.py names no packages"):
        clients.metadata(script)


@pytest.mark.parametrize("status", [0, 3])
def test_a_client_that_fails_is_shown_and_told_by_the_status(
    tmp_path: Path, monkeypatch, capsys, status: int
) -> None:
    script = tmp_path / "fake.py"
    script.write_text(FAKE.format(folder=str(tmp_path), status=status))
    python = tmp_path / "envs" / "fake" / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    installed = []
    monkeypatch.setattr(clients, "SCRIPTS", {"fake": script})
    monkeypatch.setattr(clients, "build", lambda folder: folder / "ours.whl")
    monkeypatch.setattr(clients, "install", lambda *arguments: installed.append(arguments[2]))
    assert clients.main(["fake", "--folder", str(tmp_path / "envs")]) == (status > 0)
    assert installed == [{"dependencies": ["fake==1"], "tool": {"clients": {"constraints": False}}}]
    told = capsys.readouterr().out
    assert re.match(rf"fake: {'FAILS' if status else 'works'}, \d+ s \(fake==1\)\n", told)
    assert ("it says True" in told) == (status > 0)


def test_the_commands_of_an_installation(tmp_path: Path, monkeypatch) -> None:
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda command, **options: ran.append(command[3:]))
    options = {"extras": ["agents"], "without-dependencies": ["other==2"]}
    needs = {"dependencies": ["fake==1"], "tool": {"clients": options}}
    clients.install(Path("python"), Path("ours.whl"), needs)
    pinned, again, alone = (command[3:] for command in ran)
    assert pinned[0] == "-c" and pinned[2:] == ["ours.whl[agents]", "fake==1"]
    assert again[-1] == "ours.whl" and "--no-deps" in again
    assert alone == ["--no-deps", "other==2"]


def test_an_installed_package_has_no_sources_to_try(tmp_path: Path, monkeypatch, capsys) -> None:
    assert all((clients.ROOT / name).exists() for name in (*clients.SOURCES, "constraints.txt"))
    monkeypatch.setattr(clients, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        clients.main(["minari"])
    assert "in the folder of the repository" in capsys.readouterr().err


def test_an_unknown_client_is_told_the_known_ones(capsys) -> None:
    with pytest.raises(SystemExit):
        clients.main(["nothing"])
    assert f"must be one of {', '.join(clients.SCRIPTS)}, got nothing" in capsys.readouterr().err
