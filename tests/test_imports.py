"""The import rules of the project, enforced by reading the code."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("kuaisim_gym", "dsrm_agents", "benchmarks")
RENAMED = "benchmarks"  # installed as kuaisim_benchmarks
NETWORKS = ("kuaisim_gym.precision", "kuaisim_gym.simulator.sequential")  # which need torch
LAYERS = {
    "errors": 0,
    "lazy": 0,
    "precision": 1,
    "metrics": 1,
    "randomness": 0,
    "registration": 2,
    "registry": 1,
    "version": 0,
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
            folders = file.relative_to(ROOT).parent.parts if node.level else ()
            assert not folders or folders[0] == RENAMED, f"{file}: relative import"
            parts = [*folders[: len(folders) - node.level + 1], *filter(None, [node.module])]
            names |= {".".join([*parts, alias.name]) for alias in node.names}
    return names


def layer(module: str) -> int | None:
    """Height of a module in the environment package; the lowest is zero."""
    parts = module.split(".")
    if parts[0] != "kuaisim_gym" or len(parts) < 2:
        return None
    return LAYERS.get(parts[1])


def imports_of(files: Iterable[Path], root: Path) -> dict[str, set[str]]:
    """The modules that each module imports, at any place of its file.

    A name imported from a package stands for the submodule of that name, if there is one, and
    otherwise for the package's own ``__init__.py``.
    """
    named = {
        ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }
    graph: dict[str, set[str]] = {}
    for module, file in named.items():
        targets = {name if name in named else name.rpartition(".")[0] for name in imported(file)}
        graph[module] = targets & named.keys()
    return graph


def cycle_of(graph: dict[str, set[str]]) -> list[str]:
    """Modules that import one another in a circle; none if there is no circle."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_file_imports_itself_through_others() -> None:
    files = [file for package in PACKAGES for file in (ROOT / package).rglob("*.py")]
    graph = imports_of(files, ROOT)
    assert len(graph) > 100
    assert cycle_of(graph) == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import house.b", "import house.a"),
        ("from house.b import name", "from house.a import name"),
        ("from house import b", "from house import a"),
        ("from house.b import name", "def late():\n    from house.a import name"),
        ("from house.b import name", "if TYPE_CHECKING:\n    from house.a import name"),
        ("from house import name", ""),  # of __init__.py, which imports a
    ],
)
def test_the_finder_sees_a_planted_cycle(tmp_path: Path, first: str, second: str) -> None:
    house = tmp_path / "house"
    house.mkdir()
    for name, text in {"__init__": "from house.a import x", "a": first, "b": second}.items():
        (house / f"{name}.py").write_text(text + "\n")
    cycle = cycle_of(imports_of(house.glob("*.py"), tmp_path))
    assert set(cycle) == ({"house.a", "house.b"} if second else {"house", "house.a"})
    (house / "a.py").write_text("import json\n")
    assert cycle_of(imports_of(house.glob("*.py"), tmp_path)) == []


@pytest.mark.parametrize(("module", "file"), modules("kuaisim_gym"))
def test_environment_package_imports_one_way(module: str, file: Path) -> None:
    own = layer(module)
    forbidden = {"stable_baselines3", "torch", "dsrm_agents", "benchmarks"}
    if module.startswith(NETWORKS):
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


@pytest.mark.parametrize(("module", "file"), modules(RENAMED))
def test_the_renamed_package_does_not_name_itself(module: str, file: Path) -> None:
    """It has two names: a file that imports one of them would load a second copy."""
    if file.parent.name == "clients" and file.name != "__main__.py":
        return  # a script for an environment of its own, which the wheel is installed in
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [str(node.module)]
        assert not {name.split(".")[0] for name in names} & {RENAMED, "kuaisim_benchmarks"}


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


def loaded(code: str, *names: str) -> set[str]:
    """Those of some modules that a new process has loaded when the code is through."""
    report = f"\nimport sys\nprint(*(name for name in {names} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


HEAVY = ("torch", "pandas", "scipy", "sklearn", "numba", "stable_baselines3")


@pytest.mark.parametrize("packages", ["kuaisim_gym", "dsrm_agents", "kuaisim_gym, dsrm_agents"])
def test_importing_the_packages_is_light(packages: str) -> None:
    assert loaded(f"import {packages}", *HEAVY) == set()


def test_playing_and_training_load_neither_statistics_nor_scikit_learn() -> None:
    """They take most of a second, and no environment or agent needs them."""
    code = "import dsrm_agents\nfor name in dsrm_agents.__all__: getattr(dsrm_agents, name)"
    assert loaded(code, "torch", "pandas", "scipy.stats", "scipy.optimize", "sklearn") == {"torch"}


def test_importing_the_agents_registers_the_environments() -> None:
    code = "import gymnasium, dsrm_agents\nassert gymnasium.spec('KuaiRec-Fair-v0')"
    assert loaded(code, "kuaisim_gym") == {"kuaisim_gym"}
