"""The README's Python runs as printed, with smaller budgets."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SMALLER = {
    "learn(50_000)": "learn(64 * 32)",
    'fit_purifier("mlp", train.dataset)': 'fit_purifier("mlp", train.dataset, updates=5)',
    "fit_dsrm(train.dataset)": "fit_dsrm(train.dataset, updates=5)",
    "500": "50",
}


def test_there_is_an_example_of_each_kind() -> None:
    assert len(BLOCKS) == 7


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs(number: int, tmp_path: Path, request) -> None:
    code = BLOCKS[number]
    if "path/to/KuaiRec/data" in code:
        folder = request.getfixturevalue("real_folder")
        code = code.replace("path/to/KuaiRec/data", str(folder))
    for text, smaller in SMALLER.items():
        code = code.replace(text, smaller)
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_its_table_and_those_beside_the_results_are_of_the_results() -> None:
    from benchmarks.report import report
    from benchmarks.results import read_results
    from benchmarks.tables import summary

    results = Path(__file__).parents[1] / "benchmarks" / "results"
    assert summary(read_results(results)) in README
    assert report(results) == (results / "README.md").read_text(encoding="utf-8")
