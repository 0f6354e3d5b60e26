"""Rankings by labels: measures by hand, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.labels import LabelStudy, by_user, labelled_rows, read_studies, summary
from benchmarks.results import read_result
from kuaisim_gym.data import LabelLog
from kuaisim_gym.errors import ConfigError


def labels(users: list[int], answers: list[int]) -> LabelLog:
    items = np.arange(len(users), dtype=np.int32)
    return LabelLog(np.array(users, np.int32), items, np.array(answers, np.uint8))


def test_measures_by_hand() -> None:
    # User 3 has ten rows; positives score 10, 7 and 1: of the 7 negatives 9, 8, 6, 5, 4, 3 and 2
    # they beat 7, 5 and none. The two best of them, of which one is positive, are the top quarter.
    answers = [1, 0, 0, 1, 0, 0, 0, 0, 0, 1]
    rows = labels([3] * 10 + [5] * 10 + [7] * 2, answers + [1] * 10 + [0, 1])
    scores = np.array([*range(10, 0, -1), *range(10), 1, 2], dtype=float)
    values = by_user(rows, scores)
    assert values["gauc"].tolist() == [12 / 21]  # user 5 has positives alone, 7 too few rows
    assert values["top_quarter"].tolist() == [0.5]


def test_equal_scores_share_their_places() -> None:
    rows = labels([1] * 12, [1, 1] + [0] * 10)
    equal = by_user(rows, np.zeros(12))
    assert equal["top_quarter"].tolist() == [pytest.approx(1 / 6)]
    assert equal["gauc"].tolist() == [0.5]
    # Two of the three places go to four equal rows, one of which is positive.
    best = by_user(rows, np.array([2, 1, 1, 1, 1] + [0] * 7))["top_quarter"]
    assert best.tolist() == [pytest.approx((1 + 2 / 4) / 3)]


def test_the_order_of_rows_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    rows = labels(np.repeat(np.arange(20), 12).tolist(), rng.integers(0, 2, 240).tolist())
    scores, order = rng.normal(size=240), rng.permutation(240)
    first, second = by_user(rows, scores), by_user(rows.take(order), scores[order])
    for name, values in first.items():
        np.testing.assert_allclose(values, second[name])


def test_differences_are_paired_by_user() -> None:
    values = {"gauc": np.array([0.9, 0.5, 0.7])}
    numbers = summary(values, {"gauc": np.array([0.8, 0.4, 0.6])})
    assert numbers["d_gauc"] == pytest.approx(0.1)
    assert numbers["d_gauc_ci95"] == pytest.approx(0.0, abs=1e-12)
    assert numbers["gauc_ci95"] > 0.4


def test_the_command_ranks_what_nobody_chose(
    small_rand, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small_rand)
    assert main(["labels", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "### Rankings by SYNTHETIC labels: kuairand" in printed
    (path,) = tmp_path.glob("*.json")
    result = read_result(path)
    rows = result["rows"]
    assert set(rows) == {"random", "popularity", "quality", "train-oracle", "truth"}
    assert rows["popularity"]["d_gauc"] == rows["popularity"]["d_gauc_ci95"] == 0
    # Causes rank better than chance, by more than the interval; chance is about a half.
    assert rows["truth"]["gauc"] - rows["truth"]["gauc_ci95"] > 0.55
    assert abs(rows["random"]["gauc"] - 0.5) < rows["random"]["gauc_ci95"] + 0.02
    assert abs(rows["random"]["top_quarter"] - result["rate"]) < 0.05
    assert LabelStudy.markdown(read_studies(tmp_path)) in printed


def test_shares_are_no_labels(small) -> None:
    with pytest.raises(ConfigError, match="test rows of kuairec are shares"):
        labelled_rows(small)
    with pytest.raises(ConfigError, match="scores must be one of"):
        LabelStudy("KuaiRand-Fair-v0", scores=("expected-oracle",))
