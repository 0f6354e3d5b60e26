"""The command that audits simple policies."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import exposure
from benchmarks.__main__ import main
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from kuaisim_gym import SessionBatch
from kuaisim_gym.errors import DataFormatError
from kuaisim_gym.metrics import EXPOSURE_METRICS


@pytest.fixture
def brief(small, monkeypatch) -> None:
    """Two policies on a small world."""
    monkeypatch.setattr(Run, "load", lambda spec: small)
    names = ("random", "popularity")
    monkeypatch.setattr(exposure, "POLICIES", {name: exposure.POLICIES[name] for name in names})


def test_a_figure_and_tables_of_every_metric(brief, tmp_path: Path, capsys) -> None:
    options = ["--seeds", "1", "2", "--sessions", "30", "--max-len", "4", "--jobs", "1"]
    assert main(["exposure", "--out", str(tmp_path), *options]) == 0
    *tables, figure = capsys.readouterr().out.strip().splitlines()
    assert Path(figure).parent == tmp_path
    assert Path(figure).read_bytes().startswith(b"\x89PNG")
    studies = exposure.read_studies(tmp_path)
    assert len(studies) == 4
    names = {metric.name for metric in EXPOSURE_METRICS}
    for study in studies:
        assert study["metrics"].keys() == names | {f"{name}_ci95" for name in names}
    header = next(line for line in tables if line.startswith("| policy | group AD"))
    assert header.count("|") == len(names) + 2
    popularity = next(line for line in tables if line.startswith("| popularity | 1.000"))
    assert popularity.count("±") == len(names)
    assert any("taste: high" in line for line in tables)
    assert "SYNTHETIC" in tables[0]
    assert main(["exposure", "--table", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip().splitlines() == tables


def test_classes_without_sessions_are_left_empty(brief, tmp_path, capsys, monkeypatch) -> None:
    whole = SessionBatch.summarise_users
    nobody = dict.fromkeys(("len_taste_low", "r_each_taste_low"), float("nan"))
    monkeypatch.setattr(SessionBatch, "summarise_users", lambda *given: whole(*given) | nobody)
    options = ["--seeds", "1", "2", "--sessions", "30", "--max-len", "4", "--jobs", "1"]
    assert main(["exposure", "--out", str(tmp_path), *options]) == 0
    assert exposure.read_studies(tmp_path)[0]["users"]["len_taste_low"] is None
    table = capsys.readouterr().out.partition("| policy | activity")[2]
    (row,) = (line for line in table.splitlines() if line.startswith("| popularity"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [not cell for cell in cells] == [False] * 4 + [True] + [False] * 2


def test_panels_are_ten_of_the_metrics() -> None:
    names = [metric.name for metric in EXPOSURE_METRICS]
    assert len(set(exposure.PANELS)) == 10
    assert set(exposure.PANELS) <= set(names)
    assert len(set(names)) == len(names)


def test_exposures_of_a_policy_that_is_not_shown_are_refused(tmp_path: Path) -> None:
    committed = Path(__file__).parents[2] / "benchmarks" / "results" / "exposure"
    for path in committed.glob("exposure_random_*seed11.json"):
        (tmp_path / path.name).write_text(path.read_text().replace('"random"', '"mine"'))
    with pytest.raises(DataFormatError, match="holds exposures of mine: expected policies of rand"):
        exposure.read_studies(tmp_path)


def test_another_study_is_not_taken_for_it(brief, tmp_path: Path, capsys) -> None:
    options = ["--seeds", "1", "--max-len", "4", "--jobs", "1", "--out", str(tmp_path)]
    assert main(["exposure", *options, "--sessions", "30"]) == 0
    assert main(["exposure", *options, "--sessions", "40"]) == 2
    assert "other data or settings" in capsys.readouterr().err
    (path, *_) = sorted(tmp_path.glob("*.json"))
    assert read_result(path)["sessions"] == 30
