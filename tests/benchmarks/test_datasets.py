from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import main
from benchmarks.datasets import DatasetStudy, describe, item_totals, r_squared
from benchmarks.origin import Origin
from benchmarks.studies.results import read_result
from kuaisim_gym.data import BehaviourLog, write_csv


def test_totals_by_hand() -> None:
    log = BehaviourLog(
        np.array([0, 0, 1], np.int32), np.array([1, 1, 2], np.int32), np.array([1, 2, 3], np.uint8)
    )
    exposures, reward = item_totals(log, 4)
    assert exposures.tolist() == [0, 2, 1, 0]
    assert reward.tolist() == [0, 1, 1, 0]  # the second row is a long view without a click


def test_r_squared() -> None:
    x = np.array([1.0, 2.0, 3.0, 4.0])
    assert r_squared(x, -2 * x + 1) == pytest.approx(1.0)
    assert r_squared(x, np.array([1.0, -1.0, -1.0, 1.0])) == pytest.approx(0.0)
    assert np.isnan(r_squared(x, np.ones(4)))


def test_the_description_counts_what_is_there(small_rand) -> None:
    one = describe(small_rand, ("factor",))
    rows = one["rows"]
    assert rows["train"]["interactions"] == len(small_rand.log)
    assert rows["test"]["users"] == len(small_rand.test_users)
    assert rows["train, train users alone"]["interactions"] == len(small_rand.train_log)
    assert rows["randomised rows of train users"]["interactions"] == len(small_rand.randomised)
    assert one["rates"]["train"]["is_click"] == pytest.approx(small_rand.log.response.mean())
    click = one["quality"]["factor"]["train"]["is_click"]
    assert 0.5 < click["auc"] < 1
    assert click["calibration_error"] < 0.1
    json.dumps(one, allow_nan=False)  # valid JSON, whatever could not be measured


def test_popularity_earns_totals_not_means(small_rand, small) -> None:
    """The paper's Figure 2 holds for sums, which grow with exposure, and not for rates."""
    for dataset in (small, small_rand):
        facts = describe(dataset, ())["exposure_and_reward"]
        assert facts["r2_total"] > 0.5
        assert facts["r2_mean"] < 0.1


def test_the_command_prints_the_table_and_draws_the_figure(small, tmp_path: Path, capsys) -> None:
    write_csv(small, tmp_path / "data")
    source = f"kuairec={tmp_path / 'data'}"
    assert main(["datasets", "--dataset", source, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert f"| kuairec (real) | train | {small.n_users:,} |" in text
    assert "7,176 / 10,728 / 12,530.8k" in text
    assert "MEAN reward" in text
    written = json.loads((tmp_path / "out" / "datasets_kuairec-modelled.json").read_text())
    assert written["study"] == "datasets"
    assert written["rows"]["test"]["interactions"] == len(small.test)
    assert DatasetStudy.markdown([written]) in text
    figure = tmp_path / "out" / "datasets_exposure_and_reward.png"
    assert figure.read_bytes().startswith(b"\x89PNG")

    # Once more, it is there already; other data under its name are refused.
    path = tmp_path / "out" / "datasets_kuairec-modelled.json"
    path.write_text(json.dumps(written | {"commit": "earlier"}))
    assert main(["datasets", "--dataset", source, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == text
    assert json.loads(path.read_text())["commit"] == "earlier"
    of_no_model = DatasetStudy(Origin("kuairec", str(tmp_path / "data")), ())
    assert not of_no_model.is_complete(path, written)  # of other models, it is made again
    path.write_text(json.dumps(written | {"dataset": {}}))
    assert main(["datasets", "--dataset", source, "--out", str(tmp_path / "out")]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_a_log_of_positives_claims_no_exposures(tmp_path: Path, capsys) -> None:
    rows = [f"{user},{(7 * user + n * n) % 40}\n" for user in range(60) for n in range(9)]
    (tmp_path / "clicks.csv").write_text("user,item\n" + "".join(dict.fromkeys(rows)))
    source = f"table={tmp_path / 'clicks.csv'}"
    assert main(["datasets", "--dataset", source, "--out", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "its log holds positives alone" in text
    (written,) = map(read_result, (tmp_path / "out").glob("*.json"))
    assert written["exposure_and_reward"] == {}
    assert "train" not in written["rates"]
    assert not list((tmp_path / "out").glob("*.png"))


def test_an_unknown_source_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["datasets", "--dataset", "kuairek=somewhere", "--out", str(tmp_path)]) == 2
    assert "Did you mean 'kuairec'" in capsys.readouterr().err
