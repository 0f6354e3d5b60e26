"""The Pareto front: who dominates whom, from points made by hand."""

from __future__ import annotations

from pathlib import Path

from benchmarks.prose import Evidence
from benchmarks.reports import front
from benchmarks.studies.results import METRICS, Result
from tests.benchmarks.handmade import LIKE, TODAY, result

# Len, R_each and AD.
PLACES = {
    "random": (10.0, 0.4, 0.6),
    "popularity": (10.0, 0.9, 1.0),  # the highest reward
    "ppo": (12.0, 0.5, 0.3),
    "hrl": (20.0, 0.7, 0.1),
    "dsrm-hrl": (20.0, 0.7, 0.0),
    "filter+quota": (20.0, 0.7, 0.0),  # a twin dominates nobody's twin
    "expected-oracle+quota": (25.0, 1.0, 0.0),
}


def run(agent: str, place: tuple[float, float, float], seed: int, block: Result) -> Result:
    made = result(agent, seed, place[0], block)
    made["metrics"] |= {"r_each": place[1], "ad": place[2]}
    return made


def runs(block: Result = TODAY) -> list[Result]:
    return [run(agent, place, seed, block) for agent, place in PLACES.items() for seed in (11, 15)]


def dial(*settings: tuple[float | None, float, float, float]) -> Result:
    points = [
        {"setting": share, "metrics": dict.fromkeys(METRICS, 0.5)
         | {"len": length, "r_each": reward, "ad": ad}}
        for share, length, reward, ad in settings
    ]  # fmt: skip
    return {
        "study": "pareto", "kind": "dial", "agent": "dsrm-hrl", "env": "KuaiRec-Fair-v0",
        "max_len": 30, "seed": 11, "dataset": TODAY, "episodes": 20_000, "sessions": 1000,
        "points": points,
    }  # fmt: skip


def test_only_agents_dominate_and_are_dominated() -> None:
    agents = next(iter(Evidence(runs()).worlds.values()))
    points = front.points_of(agents)
    beaten = front.dominators(points)
    assert "expected-oracle+quota" not in beaten
    assert beaten["filter+quota"] == beaten["dsrm-hrl"] == beaten["popularity"] == []
    assert set(beaten["hrl"]) == {"dsrm-hrl", "filter+quota"}
    assert set(beaten["random"]) == {"ppo", "hrl", "dsrm-hrl", "filter+quota"}
    names = [point.name for point in front.front(points)]
    assert set(names[:2]) == {"filter+quota", "dsrm-hrl"}
    assert names[2:] == ["popularity"]


def test_the_table_has_the_front_and_the_ceiling_of_each_world() -> None:
    lines = front.fronts(Evidence([*runs(), *runs(LIKE)])).splitlines()
    assert lines[2].startswith("| kuairec (SYNTHETIC world), T = 30 | 3 of 6 | ")
    assert lines[5] == (
        "|  |  | *expected-oracle+quota* (ceiling) | 25.00 ± 0.00 | 1.000 ± 0.000 | 0.000 ± 0.000 |"
    )
    assert lines[6].startswith("| kuairec-like (REAL answers), T = 30 | 3 of 6 | ")
    tables = front.tables(Evidence(runs()))
    assert "| hrl | 20.00 ± 0.00 | 0.700 ± 0.000 | 0.100 ± 0.000 | filter+quota and 1 more |" in (
        tables.replace("dsrm-hrl and 1", "filter+quota and 1")
    )
    assert "| popularity | 10.00 ± 0.00 | 0.900 ± 0.000 | 1.000 ± 0.000 | **nobody** |" in tables
    assert "| 0.000 ± 0.000 | ceiling |" in tables
    assert front.tables(Evidence([])) == ""


def test_settings_of_a_dial_take_part() -> None:
    study = dial((None, 99.0, 0.9, 0.0), (0.4, 15.0, 0.8, 0.2), (0.6, 15.0, 0.6, 0.2))
    evidence = Evidence(runs(), lambda name: [study] if name == "pareto" else [])
    ((_, points),) = front.worlds(evidence)
    beaten = front.dominators(points)
    assert beaten["dsrm-hrl, dial at 0.4"] == []
    assert "dsrm-hrl, dial at 0.4" in beaten["dsrm-hrl, dial at 0.6"]
    assert [point.name for point in points if point.is_dial] == [
        "dsrm-hrl, dial at 0.4",
        "dsrm-hrl, dial at 0.6",
    ]  # its own choice is the agent itself
    figure = front.draw(next(iter(evidence.worlds)), points)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert sorted(labels) == sorted(point.name for point in points)
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["popularity"].get_markeredgecolor() == "black"
    assert lines["random"].get_markerfacecolor() == "none"
    assert lines["expected-oracle+quota"].get_marker() == "*"
    assert lines["dsrm-hrl, dial at 0.4"].get_marker() == "s"


def test_figures_are_of_synthetic_worlds_with_short_sessions(tmp_path: Path) -> None:
    longer = [made | {"max_len": 50} for made in runs()]
    paths = front.draw_all(Evidence([*runs(), *runs(LIKE), *longer]), tmp_path)
    assert [path.name for path in paths] == [
        "front_KuaiRec-Fair-v0_kuairec-synthetic-tttttttt_T30.png"
    ]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
