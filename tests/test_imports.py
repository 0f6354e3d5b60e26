"""The import rules of the project, enforced by reading the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NETWORK = "kuaisim_gym.simulator.sequential"  # the one part that needs torch
LAYERS = {
    "errors": 0,
    "metrics": 0,
    "randomness": 0,
    "snapshots": 1,
    "config": 1,
    "rendering": 1,
    "engine": 2,
    "ranking": 3,
    "data": 2,
    "tensors": 3,
    "simulator": 4,
    "observation": 5,
    "envs": 6,
}


def modules(package: str) -> list[tuple[str, Path]]:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    return [(".".join(file.relative_to(ROOT).with_suffix("").parts), file) for file in files]


def imported(file: Path) -> set[str]:
    """Every module that a file names, and every name that it takes from one."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(module: str) -> int | None:
    """Height of a module in the environment package; the lowest is zero."""
    parts = module.split(".")
    if parts[0] != "kuaisim_gym" or len(parts) < 2:
        return None
    return LAYERS.get(parts[1])


@pytest.mark.parametrize(("module", "file"), modules("kuaisim_gym"))
def test_environment_package_imports_one_way(module: str, file: Path) -> None:
    own = layer(module)
    forbidden = {"stable_baselines3", "torch", "dsrm_agents", "benchmarks"}
    if module.startswith(NETWORK):
        forbidden -= {"torch"}
    for name in imported(file):
        assert name.split(".")[0] not in forbidden
        theirs = layer(name)
        if own is not None and theirs is not None and module.split(".")[1] != name.split(".")[1]:
            assert theirs < own, f"{module} imports {name}"


@pytest.mark.parametrize(("module", "file"), modules("dsrm_agents"))
def test_agent_siblings_share_only_common(module: str, file: Path) -> None:
    parts = module.split(".")
    for name in imported(file):
        assert not name.startswith("benchmarks")
        other = name.split(".")
        if other[0] == "dsrm_agents" and len(parts) > 2:
            assert other[1] in {parts[1], "common"}, f"{module} imports {name}"


@pytest.mark.parametrize("name", ["diffusion", "denoiser"])
def test_diffusion_knows_neither_environments_nor_sb3(name: str) -> None:
    names = imported(ROOT / "dsrm_agents" / "dsrm" / f"{name}.py")
    assert not any(
        "stable_baselines3" in one or "envs" in one or "gymnasium" in one for one in names
    )


def test_the_rules_see_what_they_forbid(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("from kuaisim_gym import envs\nimport torch.nn\n")
    assert imported(file) == {"kuaisim_gym.envs", "torch.nn"}
    assert layer("kuaisim_gym.envs") > layer("kuaisim_gym.data.dataset")


def test_importing_the_environments_is_light() -> None:
    code = (
        "import sys, kuaisim_gym; "
        "print([m for m in ('torch', 'pandas', 'scipy', 'stable_baselines3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
