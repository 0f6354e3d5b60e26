"""The price of balance, paired over sessions."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest

from benchmarks import cost, origin
from benchmarks.__main__ import main
from benchmarks.cost import FREE, CostStudy, compare, draw, read_studies, summary
from benchmarks.estimates import states
from benchmarks.runs.settings import Run
from benchmarks.studies import backends
from benchmarks.studies.results import in_order, read_result
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions

ROOT = Path(__file__).parents[2]


@pytest.fixture
def tiny(small, monkeypatch) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)


def sessions(lengths: list[int], rewards: list[list[float]]) -> Sessions:
    n, longest = len(lengths), max(map(len, rewards))
    padded = np.array([[*row, *[0.0] * (longest - len(row))] for row in rewards])
    slates = np.zeros((n, longest, 1), dtype=np.int32)
    penalised = np.zeros((n, longest), dtype=bool)
    users = np.arange(n, dtype=np.int32)
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
               "--sessions", "60", "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "### Cost of balance: KuaiRec-Fair-v0, kuairec (SYNTHETIC world" in printed
    path = tmp_path / "cost_exposures_KuaiRec-Fair-v0_kuairec-synthetic_T8_seed11.json"
    by_positives = Path(str(path).replace("exposures", "positives"))
    assert set(tmp_path.glob("*.json")) == {path, by_positives}
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
    # Positives are better than exposures are: other groups, other costs, and another ranking.
    others = {(row["policy"], row["slates"]): row for row in read_result(by_positives)["rows"]}
    assert others["popularity", FREE]["r_each"] > rows["popularity", FREE]["r_each"]
    assert others["expected-oracle", FREE]["r_each"] == rows["expected-oracle", FREE]["r_each"]
    assert others["expected-oracle", "quota"]["d_r"] != rows["expected-oracle", "quota"]["d_r"]
    assert CostStudy.markdown(read_studies(tmp_path)) in printed
    before = path.stat().st_mtime_ns
    assert main(command) == 0  # nothing to do
    assert path.stat().st_mtime_ns == before
    assert main([*command, "--seed", "12"]) == 0
    capsys.readouterr()
    assert main([*command, "--sessions", "61"]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_state_estimates_are_priced_and_drawn(tiny, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(states, "CHOICE_SESSIONS", 40)
    command = ["cost", "--max-len", "8", "--policies", "raw", "belief", "filter", "--sessions",
               "60", "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    assert str(tmp_path / "cost.png") in capsys.readouterr().out
    assert (tmp_path / "cost.png").stat().st_size > 1000
    results = read_studies(tmp_path)
    for result in results:
        rows = {(row["policy"], row["slates"]): row for row in result["rows"]}
        assert len(rows) == 3 * 4
        # The ranking policy on beliefs is the filter, whatever the slates are, but for near-ties.
        for slates in ("any", "quota", "band", FREE):
            ours, row = rows["belief", slates], rows["filter", slates]
            assert ours["len"] == pytest.approx(row["len"], abs=0.1)
            assert ours["r_each"] == pytest.approx(row["r_each"], abs=0.01)
        assert rows["raw", "quota"]["longtail_share"] == 0.5
    (head, *_) = summary(results).splitlines()
    assert head == "| world, groups by | raw | filter | belief |"
    figure = draw(results)
    assert len(figure.axes) == len(results) == 2
    for axes, result in zip(figure.axes, in_order(results), strict=True):
        assert [label.get_text() for label in axes.get_xticklabels()] == ["raw state", "belief"]
        free = {row["policy"]: row["r_each"] for row in result["rows"] if row["slates"] == FREE}
        assert [bar.get_height() for bar in axes.patches[:2]] == [free["raw"], free["filter"]]


def test_the_summary_has_a_row_for_each_world_and_count() -> None:
    def result(dataset: dict, popularity: str, share: float, *more: str) -> dict:
        rows = [
            {"policy": "quality", "slates": FREE, "r_each": 0.5, "d_r": 0.0, "d_r_ci95": 0.0},
            {"policy": "quality", "slates": "quota", "d_r": 0.5 * share, "d_r_ci95": 0.005},
        ]
        return {"study": "cost", "env": "KuaiRec-Fair-v0", "max_len": 30, "dataset": dataset,
                "popularity": popularity, "seed": 1, "policies": [*more, "quality"],
                "rows": rows}  # fmt: skip

    block = {"name": "kuairec", "source": "kuairec", "synthetic": True, "answers": "synthetic"}
    older = result({**block, "fingerprint": "a", "version": 2}, "exposures", -0.5, "truth")
    real = {"name": "kuairec-like", "source": "kuairec-like", "synthetic": False,
            "answers": "real", "fingerprint": "b"}  # fmt: skip
    table = summary([older, result(real, "positives", 0.25)]).splitlines()
    assert table[0] == "| world, groups by | quality | truth |"
    assert table[2:] == [
        "| kuairec-like (REAL answers), T = 30, by positives | +25.0 ± 1.0 % |  |",
        "| kuairec (OLDER SYNTHETIC world), T = 30, by exposures | -50.0 ± 1.0 % |  |",
    ]


def test_all_worlds_of_the_quick_table_are_priced(
    small, small_rand, small_positive, tmp_path: Path, monkeypatch, capsys
) -> None:
    worlds = {"kuairec": small, "kuairand": small_rand}
    monkeypatch.setattr(
        origin, "shared_dataset", lambda name, path, seed: worlds.get(name, small_positive)
    )
    asked: list[CostStudy] = []
    monkeypatch.setattr(backends, "run_studies", lambda studies, *rest: asked.extend(studies))
    monkeypatch.setattr(cost, "read_studies", lambda folder: [])
    monkeypatch.setattr(cost, "draw", lambda results: None)
    monkeypatch.setattr(cost, "save_small", lambda figure, path: path)
    for folder in ("kuairec_real", "kuairand_real"):
        (tmp_path / folder).mkdir()
    command = ["cost", "--all-worlds", "--out", str(tmp_path)]
    assert main([*command, "--real", str(tmp_path)]) == 0
    made = {(one.spec.origin.source, one.spec.max_len, one.popularity) for one in asked}
    synthetic = set(product(("kuairec", "kuairand"), (30, 50), ("exposures", "positives")))
    like = product(("kuairec-like", "kuairec-watch", "kuairand-click"), (30, 50), ("positives",))
    assert made == synthetic | set(like) | {("kuairand-pool", 20, "positives")}
    assert len(asked) == len(made)
    assert {one.spec.slate_size for one in asked if one.spec.max_len == 20} == {2}
    assert all(("truth" in one.policies) == ("kuai" in one.spec.dataset and
               one.spec.dataset in worlds) for one in asked)  # fmt: skip
    asked.clear()
    assert main([*command, "--max-len", "30"]) == 0
    assert {one.spec.max_len for one in asked} == {30}
    capsys.readouterr()
    for options, message in (
        (["--all-worlds", "--env", "KuaiRec-v0"], "--all-worlds fixes --env"),
        (
            ["--all-worlds", "--max-len", "7"],
            "none of the worlds, whose longest sessions are 30, 50.",
        ),
        (["--real", str(tmp_path)], "--real names worlds of --all-worlds"),
    ):
        assert main(["cost", *options, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_what_has_no_price_is_refused() -> None:
    with pytest.raises(ConfigError, match="env must be one of"):
        CostStudy(Run("random", "KuaiRand-Retention-v0"))
    with pytest.raises(ConfigError, match="sessions must be"):
        CostStudy(Run("random", sessions=1))
    with pytest.raises(ConfigError, match="popularity must be one of"):
        CostStudy(Run("random"), "clicks")
    with pytest.raises(ConfigError, match="policies must be one of"):
        CostStudy(Run("random"), policies=("best",))
