"""Logs of KuaiRand-27K's shape: the files, the figures that are made of measurements."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import large
from benchmarks.speed.large_files import PUBLISHED, Shape, videos_of, write_large_files
from kuaisim_gym import load_dataset


def test_videos_grow_as_from_the_small_to_the_large_publication() -> None:
    for _, videos, rows in PUBLISHED.values():
        assert videos_of(rows) == videos
    users, _, rows = PUBLISHED["27k"]
    whole = Shape.of_rows(rows)
    assert whole.users == pytest.approx(users, abs=1)
    assert Shape.of_rows(30_000_000).rows == whole.rows  # of a user


def test_the_files_have_the_shape(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    shape = Shape(users=20, rows=90, videos=400, random_rows=30, catalogue=40)
    files = write_large_files(shape, tmp_path)
    assert len(files) == 7 and all(file.is_file() for file in files)
    dataset = load_dataset("kuairand", tmp_path)
    assert dataset.n_users == 20 and dataset.n_items == 40
    assert dataset.n_all_items == 400  # each is logged or in the catalogue
    log, random = dataset.log, dataset.test.merged(dataset.randomised)
    assert np.bincount(log.users).tolist() == [90] * 20 and len(random) == 20 * 30
    counts = np.bincount(log.items, minlength=400)
    assert counts[40:].min() >= 1 and counts.max() > 5 * counts.mean()
    # Ids say nothing of popularity, and users' tastes tell of their answers.
    ids = dataset.item_ids.astype(float)
    assert abs(np.corrcoef(ids, counts)[0, 1]) < 0.2
    assert not dataset.notes.keys() - {"log_only_items"}


def test_growth_is_that_of_the_smallest_and_a_line_leads_to_the_whole() -> None:
    total = PUBLISHED["27k"][2]
    sizes = [
        {"rows": 10_000_000, "load_s": 20.0, "fit_s": 10.0, "MB_peak": 1000.0},
        {"rows": 20_000_000, "load_s": 40.0, "fit_s": 20.0, "MB_peak": 1500.0},
    ]
    first, second, whole = large.growth(sizes)
    assert (first["s_a_million_rows"], second["of_the_first"]) == (3.0, 1.0)
    assert whole["load_and_fit_s"] == pytest.approx(3e-6 * total)
    assert whole["MB_peak"] == pytest.approx(500.0 + 5e-5 * total)
    assert len(large.growth(sizes[:1])) == 1


def test_the_stages_of_a_log_are_measured(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    row = large.write(large.QUICK[0], tmp_path) | large.measure(large.QUICK[0], tmp_path)
    assert row["rows"] == 720 and row["videos"] == 300
    assert 40 <= row["videos_kept"] < 300 and row["rows_kept"] < 720
    assert row["MB_peak"] == max(row[f"{stage}_MB"] for stage in large.STAGES)
    assert all(row[f"{stage}_s"] > 0 for stage in large.STAGES) and row["steps"] >= 1
