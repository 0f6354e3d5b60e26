"""The price of balance, paired over sessions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.cost import FREE, CostStudy, compare, read_studies
from benchmarks.results import read_result
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions


@pytest.fixture
def tiny(small, monkeypatch) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)


def sessions(lengths: list[int], rewards: list[list[float]]) -> Sessions:
    n, longest = len(lengths), max(map(len, rewards))
    padded = np.array([[*row, *[0.0] * (longest - len(row))] for row in rewards])
    slates = np.zeros((n, longest, 1), dtype=np.int32)
    penalised = np.zeros((n, longest), dtype=bool)
    users = np.zeros(n, dtype=np.int32)
    return Sessions(np.array(lengths), padded, penalised, slates, slates.astype(np.float32), users)


def test_differences_are_those_of_the_same_session() -> None:
    free = sessions([2, 1], [[0.5, 0.7], [0.2]])
    balanced = sessions([1, 1], [[0.5], [0.1]])
    values = compare(balanced, free)
    assert values["d_len"] == pytest.approx(-0.5)  # -1 and 0
    assert values["d_r"] == pytest.approx(-0.1)  # .5 less .6, and .1 less .2
    assert values["d_r_ci95"] == pytest.approx(0.0, abs=1e-12)
    # Two values, -1 and 0: standard deviation .707, over the root of two, times 12.71.
    assert values["d_len_ci95"] == pytest.approx(6.353, abs=1e-3)


def test_the_command_prices_balance(tiny, tmp_path: Path, capsys) -> None:
    command = ["cost", "--max-len", "8", "--policies", "popularity", "expected-oracle",
               "--sessions", "60", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "### Cost of balance: KuaiRec-Fair-v0, kuairec (SYNTHETIC world" in printed
    (path,) = tmp_path.glob("*.json")
    assert path.name == "cost_KuaiRec-Fair-v0_kuairec-synthetic_seed11.json"
    rows = {(row["policy"], row["slates"]): row for row in read_result(path)["rows"]}
    assert len(rows) == 8
    for policy in ("popularity", "expected-oracle"):
        free, band, quota = (rows[policy, slates] for slates in (FREE, "band", "quota"))
        assert free["d_len"] == free["d_r"] == 0
        assert free["q"] == band["q"] == quota["q"] == 0
        assert rows[policy, "any"]["q"] > 0
        assert rows[policy, "any"]["len"] < quota["len"]
    assert rows["popularity", "quota"]["longtail_share"] == 0.5
    assert rows["popularity", "band"]["longtail_share"] == pytest.approx(0.4)
    oracle = [rows["expected-oracle", slates]["r_each"] for slates in (FREE, "band", "quota")]
    assert oracle == sorted(oracle, reverse=True)
    assert CostStudy.markdown(read_studies(tmp_path)) in printed
    before = path.stat().st_mtime_ns
    assert main(command) == 0  # nothing to do
    assert path.stat().st_mtime_ns == before
    assert main([*command, "--seed", "12"]) == 0
    assert main([*command[:-2], "--sessions", "61", "--out", str(tmp_path)]) == 2


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="env must be one of"):
        CostStudy("KuaiRand-Retention-v0")
    with pytest.raises(ConfigError, match="sessions must be at most 1000"):
        CostStudy("KuaiRec-Fair-v0", sessions=1500)
    with pytest.raises(ConfigError, match="leave one of them out"):
        CostStudy("KuaiRec-Fair-v0", "some/folder", 3)
