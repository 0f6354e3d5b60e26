from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.reports import stability
from benchmarks.studies.results import METRICS, World


def result(
    agent: str, seed: int, lengths: list[float], popular: float = 0.5, ad: float = 0.1, **more
) -> dict:
    """A run whose test sessions are as long as those that ended its training."""
    curve = [
        {"episodes": 10 * (place + 1), "steps": 0, "len": length, "popular_share": popular}
        for place, length in enumerate(lengths)
    ]
    values = dict.fromkeys(METRICS, 0.5) | {"len": lengths[-1], "ad": ad}
    return {
        "agent": agent, "env": "KuaiRec-Fair-v0", "max_len": 30, "seed": seed, "slate_size": 10,
        "dataset": {"name": "kuairec", "synthetic": True, "fingerprint": "0" * 16},
        "train": {"episodes": 100, "steps": 0, "seconds": 1.0, "curve": curve},
        "eval": {"sessions": 10},
        "metrics": values, "versions": {}, "commit": "",
    } | more  # fmt: skip


def write(folder: Path, *results: dict) -> None:
    for number, one in enumerate(results):
        (folder / f"{number}.json").write_text(json.dumps(one))


def test_spreads_over_seeds_and_over_time() -> None:
    first = result("ppo", 1, [0.0] * 8 + [10.0, 12.0], ad=0.1)
    other = result("ppo", 2, [99.0] * 8 + [16.0, 16.0], ad=0.4)
    first["train"]["curve"][-2]["popular_share"] = 0.4  # imbalance 0.2, then 0
    found = stability.spreads([first, other])
    # Two values that differ by d have a deviation of d / sqrt(2).
    half = 0.5**0.5
    assert found["test_len"] == pytest.approx((16 - 12) * half)
    assert found["test_ad"] == pytest.approx(0.3 * half)
    # Of ten points the last two count: one seed's 10 and 12, the other's 16 twice.
    assert found["curve_len"] == pytest.approx((2 * half + 0) / 2)
    assert found["curve_imbalance"] == pytest.approx((0.2 * half + 0) / 2)


def test_imbalance_is_the_same_to_both_sides() -> None:
    for share, wanted in ((0.5, 0.0), (0.75, 0.5), (0.25, 0.5), (1.0, 1.0)):
        assert stability.imbalance({"popular_share": share}) == wanted


@pytest.mark.parametrize(
    ("lengths", "sessions"),
    [
        ([1.0, 5.0, 9.4, 9.5, 8.0, 9.0, 9.0, 9.0, 11.0, 9.0], 40),  # 95 % of 10, and then a fall
        ([20.0, 5.0, 10.0, 10.0, 10.0], 10),  # at once: it fell afterwards
        ([1.0, 1.0, 1.0, 1.0, 10.0], 50),
        ([7.0, 8.0], 20),  # fewer than five points: the last one counts
    ],
)
def test_when_a_curve_has_settled(lengths: list[float], sessions: int) -> None:
    assert stability.sessions_to_settle(result("ppo", 1, lengths)["train"]["curve"]) == sessions


def test_a_table_and_a_figure_of_every_world(tmp_path: Path, capsys) -> None:
    curve = [1.0] * 8 + [10.0, 10.0]
    real = {"name": "kuairec", "synthetic": False, "fingerprint": "f" * 16}
    write(
        tmp_path,
        *(result("ppo", seed, curve) for seed in (1, 2)),
        result("dsrm-hrl", 1, curve),
        result("ppo+dsrm", 1, curve),
        result("ppo", 1, curve, dataset=real),
        result("ppo", 1, curve, env="KuaiRand-Request-v0"),  # whose sessions have one length
        {"study": "pareto"},
    )
    assert main(["stability", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    tables = [line for line in printed.splitlines() if line.startswith("###")]
    assert ["SYNTHETIC" in line for line in tables] == [False, True]
    assert "| ppo | 2 | 0.000 | 0.0000 | 0.000 | 0.0000 | 10.00 ± 0.00 | 90 (90 to 90) |" in printed
    # One seed has no deviation.
    assert "| dsrm-hrl | 1 |  |  | 0.000 | 0.0000 | 10.00 | 90" in printed
    assert "ppo+dsrm" not in printed
    figures = [Path(line) for line in printed.splitlines() if line.endswith(".png")]
    assert [figure.name for figure in figures] == [
        "stability_KuaiRec-Fair-v0_kuairec-modelled-ffffffff_T30.png",
        "stability_KuaiRec-Fair-v0_kuairec-synthetic-00000000_T30.png",
    ]
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)


def test_the_agents_asked_for_are_shown_or_missed(tmp_path: Path, capsys) -> None:
    write(tmp_path, result("ppo", 1, [1.0]), result("ppo+dsrm", 1, [1.0]))
    assert main(["stability", str(tmp_path), "--agents", "ppo+dsrm"]) == 0
    printed = capsys.readouterr().out
    assert "| ppo+dsrm | 1 |" in printed
    assert "| ppo |" not in printed
    assert main(["stability", str(tmp_path), "--agents", "ppo+dsrm", "td3"]) == 2
    assert "no results of td3, but of ppo+dsrm" in capsys.readouterr().err
    assert main(["stability", str(tmp_path), "--agents", "random"]) == 2  # which learns nothing
    assert "no results of random" in capsys.readouterr().err


def test_a_folder_without_such_agents_is_refused(tmp_path: Path, capsys) -> None:
    write(tmp_path, result("ppo+dsrm", 1, [1.0]))
    assert main(["stability", str(tmp_path)]) == 2
    assert "There are no results of dsrm-hrl, hrl" in capsys.readouterr().err


def test_who_plays_no_training_sessions_has_no_curve_to_judge() -> None:
    offline, online = result("bcq", 1, [5.0]), result("ppo", 1, [5.0, 5.0])
    offline["train"]["curve"] = []
    (agents,) = stability.select([offline, online]).values()
    assert set(agents) == {"ppo"}
    assert "bcq" not in stability.markdown(stability.select([offline, online]))


def test_curves_have_the_range_over_seeds_as_bands() -> None:
    world = World("KuaiRec-Fair-v0", "kuairec", "synthetic", 0, False, "0" * 16, 30)
    runs = [result("ppo", seed, [length, 10.0]) for seed, length in ((1, 4.0), (2, 8.0))]
    figure = stability.draw(world, {"ppo": runs})
    assert "SYNTHETIC" in figure.get_suptitle()
    lengths, imbalances = figure.axes
    (line,) = lengths.lines
    assert line.get_xdata().tolist() == [10, 20]
    assert line.get_ydata().tolist() == [6.0, 10.0]
    (band,) = lengths.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (4.0, 10.0)
    assert imbalances.lines[0].get_ydata().tolist() == [0.0, 0.0]
