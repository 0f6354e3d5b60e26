"""The faults that ``python -m tests.mutate`` makes, and the tests that it shows them to."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutate import __main__ as module
from tests.mutate.__main__ import concerned, drawn, modules, survivors, table
from tests.mutate.mutants import mutants
from tests.mutate.near import imports


def after(text: str) -> list[str]:
    """Texts with one fault each."""
    return [mutant.applied(text.encode()).decode() for mutant in mutants(text.encode())]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a < b", ["(a <= b)", "(a >= b)"]),
        ("a - b * c", ["(a + b * c)", "a - (b / c)"]),
        ("a and not b", ["(a or not b)", "a and b"]),
        ("x is None", ["(x is not None)"]),
        ("f(0, -2, True)", ["f(1, -2, True)", "f(0, 2, True)", "f(0, -3, True)", "f(0, -1, True)",
                            "f(0, -2, False)"]),
        ("a if b else 'c'", ["(a if not b else 'c')"]),
        ("np.min(a).mean()", ["np.min(a).sum()", "np.max(a).mean()"]),
        ("f'{a + 1}'", []),
        ("'é' + x", ["('é' - x)"]),
    ],
)  # fmt: skip
def test_faults_of_expressions(text: str, expected: list[str]) -> None:
    assert after(f"v = {text}\n") == [f"v = {one}\n" for one in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x += y", ["x -= y", "pass"]),
        ("self.x = y", ["pass"]),
        ("x = y", []),
        ("f(x)", ["pass"]),
        ("logger.info(x)", []),
        ("raise E", ["pass"]),
        ("return x", ["return None"]),
        ("return", []),
        ("return None", []),
        ("break", ["continue"]),
        ("if x: break", ["if (not x): break", "if x: continue"]),
        ("'Docstring.'", []),
        ("x: int = y", []),
    ],
)
def test_faults_of_statements(text: str, expected: list[str]) -> None:
    def whole(line: str) -> str:
        return f"def f():\n    while x:\n        {line}\n"

    assert after(whole(text)) == [whole(line) for line in expected]


def test_a_fault_knows_its_line_and_its_outermost_function() -> None:
    text = b"A = 0\nclass C:\n    B = 0\n    def f(self):\n        return [x + y for x in z]\n"
    found = [(one.line, one.function, one.after) for one in mutants(text)]
    assert found == [
        (1, "", "1"), (3, "", "1"), (5, "C.f", "return None"), (5, "C.f", "(x - y)"),
    ]  # fmt: skip


def test_samples_are_drawn_by_seed_and_every_fault_is_a_module() -> None:
    paths = ["kuaisim_gym/ranking.py", "kuaisim_gym.lazy", "kuaisim_gym.metrics"]
    assert modules(paths) == [
        "kuaisim_gym/ranking.py", "kuaisim_gym/lazy.py", "kuaisim_gym/metrics/__init__.py",
    ]  # fmt: skip
    paths = modules(paths)
    sample = drawn(paths, 20, 5)
    assert len(set(sample)) == 20 and sample == drawn(paths, 20, 5) != drawn(paths, 20, 6)
    assert set(drawn(paths, 10**6, 5)) == set(drawn(paths, None, 0))
    for path, mutant in drawn(paths, None, 0):
        ast.parse(mutant.applied(Path(path).read_bytes()))


def test_names_are_traced_to_the_modules_that_define_them() -> None:
    found = imports("tests/agents/test_hsrl.py")  # from dsrm_agents import HSRL
    assert {"dsrm_agents/hsrl/hsrl.py", "dsrm_agents/hsrl/network.py"} <= found
    assert "benchmarks/agents/agent.py" in imports("benchmarks/agents/hrl.py")  # from .agent
    assert "benchmarks/formatting.py" in imports("benchmarks/pareto/report.py")  # from ..formatting


def test_the_most_specific_tests_are_shown_first_within_the_budget(monkeypatch) -> None:
    monkeypatch.setattr(module, "made_into_machine_code", lambda path: False)
    (mutant,) = mutants(b"def f():\n    return x\n")
    record = {
        "wide": {"seconds": 0.0, "calls": ["m.py:f", *map(str, range(99))]},
        "narrow": {"seconds": 0.0, "calls": ["m.py:f"]},
        "slow": {"seconds": 9.0, "calls": ["m.py:f"]},
        "another": {"seconds": 0.0, "calls": ["m.py:g"]},
    }
    assert concerned("m.py", mutant, record, 5.0) == ["narrow", "wide"]
    assert concerned("m.py", mutant, record, 50.0) == ["narrow", "wide", "slow"]


def test_calls_are_recorded_test_by_test_with_those_of_shared_fixtures(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").touch()
    (tmp_path / "benchmarks" / "made.py").write_text(
        "def one(): return [two() for _ in '12']\ndef two(): pass\nclass C:\n  def m(self): pass\n"
    )
    (tmp_path / "test_made.py").write_text(
        "import pytest\nfrom benchmarks import made\n"
        "@pytest.fixture(scope='module')\ndef shared(): made.C().m()\n"
        "def test_a(shared): made.one()\ndef test_b(shared): pass\n"
        "def test_c(): assert made.two()\n"
    )
    (tmp_path / "conftest.py").write_text(
        "from pathlib import Path\nfrom tests.mutate.record import Recorder\n"
        "def pytest_configure(config):\n"
        "  config.pluginmanager.register(Recorder(Path.cwd(), Path('record.json')))\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    places = {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, cwd=tmp_path, env=os.environ | places, capture_output=True, check=False)
    record = json.loads((tmp_path / "record.json").read_text())
    path = "benchmarks/made.py:"
    assert {
        name.partition("::")[2]: [call.removeprefix(path) for call in test["calls"]]
        for name, test in record.items()
    } == {"test_a": ["C.m", "one", "two"], "test_b": ["C.m"], "test_c": ["two"]}
    assert [test["failed"] for test in record.values()] == [False, False, True]


def test_survivors_are_found_again_where_lines_have_moved() -> None:
    path = "kuaisim_gym/lazy.py"
    mutant = mutants(Path(path).read_bytes())[0]
    result = {
        "path": path, "result": "survived", "line": mutant.line + 7, "function": mutant.function,
        "before": mutant.before, "after": mutant.after,
    }  # fmt: skip
    assert list(survivors([result, result | {"result": "caught"}])) == [(path, mutant)]
    assert list(survivors([result | {"before": "gone"}])) == []
    assert list(table([result, result | {"result": "hung"}]))[1:] == [
        "tried 2, caught 1 (of which 1 hung)", "hung 1, survived 1",
    ]  # fmt: skip
