"""The import rules of the project, enforced by reading the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("config", "errors", "randomness", "data", "simulator", "observation", "envs")


def modules(package: str) -> list[tuple[str, Path]]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return [(".".join(file.relative_to(ROOT).with_suffix("").parts), file) for file in files]


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module or "")
    return names


def layer(module: str) -> int | None:
    parts = module.split(".")
    if parts[0] != "kuaisim_gym" or len(parts) < 2 or parts[1] not in LAYERS:
        return None
    return LAYERS.index(parts[1])


@pytest.mark.parametrize(("module", "file"), modules("kuaisim_gym"))
def test_environment_package_imports_one_way(module: str, file: Path) -> None:
    own = layer(module)
    for name in imported(file):
        assert name.split(".")[0] not in {"stable_baselines3", "torch", "dsrm_agents", "benchmarks"}
        if name.startswith("kuaisim_gym") and module == "kuaisim_gym.metrics":
            pytest.fail(f"metrics imports {name}")
        theirs = layer(name)
        if own is not None and theirs is not None and own != theirs:
            # config and errors stand on one level below everything.
            assert min(own, 2) > theirs or own > theirs or theirs < 2, f"{module} imports {name}"


@pytest.mark.parametrize(("module", "file"), modules("dsrm_agents"))
def test_agent_siblings_share_only_common(module: str, file: Path) -> None:
    parts = module.split(".")
    for name in imported(file):
        assert not name.startswith("benchmarks")
        other = name.split(".")
        if other[0] == "dsrm_agents" and len(parts) > 2 and len(other) > 1:
            assert other[1] in {parts[1], "common"}, f"{module} imports {name}"


@pytest.mark.parametrize("name", ["diffusion", "denoiser"])
def test_diffusion_knows_neither_environments_nor_sb3(name: str) -> None:
    names = imported(ROOT / "dsrm_agents" / "dsrm" / f"{name}.py")
    assert not any(
        "stable_baselines3" in one or "envs" in one or "gymnasium" in one for one in names
    )


def test_importing_the_environments_is_light() -> None:
    code = (
        "import sys, kuaisim_gym; "
        "print([m for m in ('torch', 'pandas', 'scipy', 'stable_baselines3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
