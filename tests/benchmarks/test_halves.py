"""Rankings on halves of a real world's users."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.halves import HalfStudy, half_of, read_studies
from benchmarks.labels import judge, score_of
from benchmarks.runs.settings import Run
from kuaisim_gym.errors import ConfigError


def test_halves_share_no_user_and_hold_all(small) -> None:
    first, second = (half_of(small, half) for half in "AB")
    assert not set(first) & set(second)
    np.testing.assert_array_equal(np.sort(np.r_[first, second]), small.test_users)
    assert abs(len(first) - len(second)) <= 1


def test_the_command_reports_a_half(small_positive, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small_positive)
    for folder in ("kuairec_real", "kuairand_real"):
        (tmp_path / folder).mkdir()
    out = tmp_path / "out"
    command = ["halves", "--real", str(tmp_path), "--sources", "kuairec-like", "--max-len", "30",
               "--sessions", "40", "--jobs", "1", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    (result,) = read_studies(out)
    assert (result["half"], result["sessions"]) == ("B", 40)
    rows = {row["row"]: row for row in result["rows"]}
    for suffix in ("+quota", "+band"):
        assert rows[f"popularity{suffix}"]["less_popularity"] == [0.0, 0.0]
        assert rows[f"expected-quality{suffix}"]["less_expected-quality"] == [0.0, 0.0]
        row = rows[f"filter{suffix}"]
        for base, other in (("popularity", suffix), ("popularity+quota", "")):
            difference = row["len"] - rows[base + other]["len"]
            assert row[f"less_{base}"][0] == pytest.approx(difference)
    labels = {row["score"]: row for row in result["labels"]}
    assert labels["popularity"]["less_popularity"] == [0.0, 0.0]
    assert "less_random-rates" not in labels["filter"]  # the data have no randomised rows
    users = half_of(small_positive, "B")
    table = small_positive.test.of_users(users, small_positive.n_users)
    spec = Run("random", "Recommendation-Fair-v0", "kuairec-like", seed=11)
    expected = judge(table, score_of("filter", spec)).gauc
    assert labels["filter"]["gauc"][0] == pytest.approx(expected)
    assert HalfStudy.markdown([result]) in printed
    assert main(command) == 0  # nothing to do
    assert main(["halves", "--table", str(out)]) == 0
    capsys.readouterr()
    assert main([*command, "--sessions", "41"]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_shares_are_no_labels(small, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    made = HalfStudy(Run("random", max_len=6, sessions=10)).make(tmp_path)
    assert made["labels"] == []
    assert made["users"] == len(half_of(small, "B"))


def test_what_is_no_half_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(ConfigError, match="half must be one of"):
        HalfStudy(Run("random"), "C")
    assert main(["halves", "--out", str(tmp_path)]) == 2
    assert "name their folder by --real" in capsys.readouterr().err
    (tmp_path / "kuairec_real").mkdir()
    (tmp_path / "kuairand_real").mkdir()
    command = ["halves", "--real", str(tmp_path), "--max-len", "7", "--out", str(tmp_path)]
    assert main(command) == 2
    assert "choose none of the real worlds" in capsys.readouterr().err
