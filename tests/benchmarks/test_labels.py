"""Rankings by labels: measures by hand, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.labels import LabelStudy, labelled_rows, read_studies, summary
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from kuaisim_gym.data import SOURCES
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.quality import UserRanking


def ranking(*auc: float) -> UserRanking:
    values = np.array(auc)
    return UserRanking(np.arange(len(auc), dtype=np.int32), values, values / 2, values, 0)


def test_differences_are_paired_by_user() -> None:
    numbers = summary(ranking(0.9, 0.5, 0.7), ranking(0.8, 0.4, 0.6))
    assert numbers["d_gauc"] == pytest.approx(0.1)
    assert numbers["d_gauc_ci95"] == pytest.approx(0.0, abs=1e-12)
    assert numbers["d_top_quarter"] == pytest.approx(0.05)
    assert numbers["gauc_ci95"] > 0.4


def test_the_command_ranks_what_nobody_chose(
    small_rand, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small_rand)
    command = ["labels", "--dataset", "kuairand", "--jobs", "1", "--out", str(tmp_path)]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "### Rankings by SYNTHETIC labels: kuairand (" in printed
    (path,) = tmp_path.glob("*.json")
    result = read_result(path)
    rows = result["rows"]
    assert set(rows) == {
        "random", "popularity", "quality", "random-rates", "filter", "train-oracle", "truth"
    }  # fmt: skip
    assert rows["popularity"]["d_gauc"] == rows["popularity"]["d_gauc_ci95"] == 0
    # Causes rank better than chance, by more than the interval; chance is about a half.
    assert rows["truth"]["gauc"] - rows["truth"]["gauc_ci95"] > 0.55
    assert abs(rows["random"]["gauc"] - 0.5) < rows["random"]["gauc_ci95"] + 0.02
    assert abs(rows["random"]["top_quarter"] - result["rate"]) < 0.05
    assert result["users"] + result["left_out"] == len(small_rand.test.distinct_users)
    assert LabelStudy.markdown(read_studies(tmp_path)) in printed


def test_agents_are_trained_and_judged_by_their_item_scores(
    small_rand, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small_rand)
    command = ["labels", "--dataset", "kuairand", "--max-len", "6", "--episodes", "64", "--scores",
               "quality", "--agents", "hrl", "a2c", "hsrl+quota", "dnair", "--seeds", "1", "2",
               "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[1:]] == [
        "| popularity", "| quality", "| a2c", "| dnair", "| hrl", "| hsrl+quota"
    ]  # fmt: skip
    assert "| dnair | 6 | 2 | scores no items |  |  |  |" in table
    assert all("| 6 | 2 | 0." in line for line in table if line.startswith(("| hrl", "| a2c")))
    results = {(row["ranking"], row["seed"]): row for row in read_studies(tmp_path)}
    assert len(results) == 1 + 4 * 2
    # Agents that start at the ranking by quality end near it, and taste adds to it from the start.
    quality = results["references", 1]["rows"]["quality"]["gauc"]
    assert results["hsrl+quota", 1]["rows"]["hsrl+quota"]["gauc"] == pytest.approx(
        quality, abs=0.05
    )
    assert results["hrl", 1]["rows"]["hrl"]["gauc"] > quality + 0.05
    assert not list(tmp_path.glob("*.checkpoint"))
    assert main(command) == 0  # nothing to do
    capsys.readouterr()
    assert main([*command, "--episodes", "65"]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_older_worlds_are_called_so_and_come_last() -> None:
    numbers = summary(ranking(0.9, 0.5), ranking(0.8, 0.4))
    block = {"name": "kuairand", "source": "kuairand", "synthetic": True, "answers": "synthetic"}
    older, present = (
        {"study": "labels", "ranking": "references", "env": "KuaiRand-Fair-v0", "max_len": 30,
         "seed": 1, "dataset": {**block, "fingerprint": f"f{version}", "version": version},
         "labels": 30, "rate": 0.5, "users": 2, "left_out": 1, "rows": {"quality": numbers}}
        for version in (2, SOURCES["kuairand"].version)
    )  # fmt: skip
    text = LabelStudy.markdown([older, present])
    titles = [line for line in text.splitlines() if line.startswith("###")]
    assert titles == [
        f"### Rankings by SYNTHETIC labels: kuairand (f{SOURCES['kuairand'].version})",
        "### Rankings by OLDER SYNTHETIC labels: kuairand (f2)",
    ]


def test_what_cannot_be_judged_is_refused(small, tmp_path: Path, monkeypatch, capsys) -> None:
    with pytest.raises(ConfigError, match="test rows of kuairec are shares"):
        labelled_rows(small)
    with pytest.raises(ConfigError, match="scores must be one of"):
        LabelStudy(Run("random"), scores=("expected-oracle",))
    with pytest.raises(ConfigError, match="popularity needs no training"):
        LabelStudy(Run("random"), "popularity")
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    assert main(["labels", "--jobs", "1", "--out", str(tmp_path)]) == 2
    assert "test rows of kuairec are shares" in capsys.readouterr().err
