from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.agents import agent
from benchmarks.pareto import plot, report, study
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from benchmarks.studies.study import result_path, run_study
from kuaisim_gym.errors import ConfigError, DataFormatError

HEADER = {"study", "kind", "settings", "agent", "env", "max_len", "seed", "dataset", "episodes",
          "sessions"}  # fmt: skip


@pytest.fixture
def tiny(small, quick_fit, monkeypatch) -> None:
    """A small world instead of the full one, and fits of a few updates."""
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    monkeypatch.setattr(
        agent,
        "fit_purifier",
        lambda name, dataset, progress, **options: quick_fit(name, dataset, **options),
    )


def pareto(out: Path, *more: str) -> int:
    sizes = ["--seeds", "3", "--episodes", "16", "--sessions", "16", "--max-len", "12"]
    settings = ["--jobs", "1", "--targets", "0.2", "0.8", "--out", str(out)]
    return main(["pareto", *sizes, *settings, *more])


def found(folder: Path) -> dict[str, dict]:
    return {path.name: read_result(path) for path in sorted(folder.glob("*.json"))}


def part(kind: str, seed: int, shares: dict[float | None, float], worth: float, **more) -> dict:
    """A result whose R_each is the same at every setting."""
    points = [
        {
            "setting": setting,
            "metrics": {"longtail_share": share, "r_each": worth, "len": 20.0, "ad": 0.1},
        }
        for setting, share in shares.items()
    ]
    dataset = {"name": "kuairec", "synthetic": True, "fingerprint": "0" * 16}
    return {
        "study": "pareto", "kind": kind, "settings": [], "agent": "", "env": "KuaiRec-Fair-v0",
        "max_len": 30, "seed": seed, "dataset": dataset, "episodes": 100, "sessions": 50,
        "points": points, "train": {}, "versions": {}, "commit": "",
    } | more  # fmt: skip


def read(folder: Path, *parts: dict) -> report.Front:
    for number, one in enumerate(parts):
        (folder / f"{number}.json").write_text(json.dumps(one))
    (only,) = report.fronts(report.read_studies(folder))
    return only


def rows(text: str) -> dict[str, list[str]]:
    """Cells by the first one."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {line[0]: line[1:] for line in lines}


def test_every_training_is_a_part_and_none_is_made_twice(
    tiny, small, tmp_path: Path, capsys, monkeypatch
) -> None:
    more = ("--retrained-targets", "0.8", "--penalties", "0", "2", "--preferences", "0.1", "0.9")
    assert pareto(tmp_path, *more) == 0
    printed = capsys.readouterr().out
    made = found(tmp_path)
    world = "KuaiRec-Fair-v0_kuairec-synthetic_T12_seed3.json"
    kinds = ("dial", "flat0", "flat2", "retrained0.8", "sweep")
    assert list(made) == [f"pareto_{kind}_{world}" for kind in kinds]
    for one in made.values():
        assert one.keys() == HEADER | {"points", "train", "versions", "commit"}
        assert one["dataset"]["fingerprint"] == small.fingerprint
        assert one["train"]["episodes"] >= 16
        assert {"len", "r_each", "r_cum", "ad", "q", "longtail_share"} <= (
            one["points"][0]["metrics"].keys()
        )
    dial = {one["setting"]: one["metrics"] for one in made[f"pareto_dial_{world}"]["points"]}
    assert list(dial) == [None, 0.2, 0.8]
    for target in (0.2, 0.8):  # the dial was turned, and not only written down
        assert dial[target]["longtail_share"] == pytest.approx(target, abs=0.05)
    (retrained,) = made[f"pareto_retrained0.8_{world}"]["points"]
    assert retrained["setting"] == 0.8
    assert retrained["metrics"]["longtail_share"] == pytest.approx(0.8, abs=0.05)
    sweep = {one["setting"]: one["metrics"] for one in made[f"pareto_sweep_{world}"]["points"]}
    assert list(sweep) == [0.1, 0.9]
    assert made[f"pareto_sweep_{world}"]["agent"] == "mofir"
    (png,) = tmp_path.glob("*.png")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert str(png) in printed
    assert rows(printed).keys() >= {"0.2", "0.8", "its own choice", "0", "2", "0.1", "0.9"}

    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    gone = tmp_path / f"pareto_flat2_{world}"
    gone.unlink()
    assert pareto(tmp_path, *more) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert [path for path in times if times[path] != again[path]] == [gone]
    # Trained and played as before, in any company.
    assert read_result(gone)["points"] == made[gone.name]["points"]

    monkeypatch.setattr(study, "train_agent", None)
    assert pareto(tmp_path, *more) == 0  # there is nothing to train
    capsys.readouterr()
    assert main(["pareto", "--table", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() in printed
    assert main(["table", str(tmp_path)]) == 2  # a study, which is no result of a run


def test_other_data_and_settings_are_refused_before_any_training(
    tiny, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(study, "train_agent", None)
    base = Run("dsrm-hrl", max_len=12, episodes=16, sessions=16)
    *_, last = study.plan(base, [3], [0.2, 0.8], [], [0.0])  # the others would have to be made
    header = last.header()
    path = result_path(last, tmp_path)
    for change in ({"dataset": {**header["dataset"], "fingerprint": "0" * 16}}, {"episodes": 17}):
        path.write_text(json.dumps(header | change))
        assert pareto(tmp_path, "--retrained-targets", "--penalties", "0") == 2
        assert "other data or settings: wanted" in capsys.readouterr().err
    assert pareto(path) == 2
    assert "is a file" in capsys.readouterr().err


def test_settings_that_make_no_sense_are_refused(tmp_path: Path, capsys) -> None:
    for wrong in (["--targets", "1.2"], ["--retrained-targets", "-0.1"], ["--penalties", "-1"],
                  ["--preferences", "1.5"], ["--targets", "nan"], ["--penalties", "inf"],
                  ["--sessions", "0"], ["--env", "KuaiRand-Request-v0"]):  # fmt: skip
        assert pareto(tmp_path, *wrong) == 2
        assert "must be" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pareto(tmp_path, "--table", str(tmp_path))
    with pytest.raises(ConfigError, match="env must be one of"):
        study.plan(Run("dsrm-hrl", "KuaiRand-Request-v0"), [1], [0.5], [], [])


def test_an_agent_is_retrained_with_its_dial_turned(tiny, tmp_path: Path, monkeypatch) -> None:
    seen = []

    def train(spec, dataset, purifier, progress, overrides, prepare):
        class Policy:
            def set_fairness(self, target) -> None:
                seen.append(target)

        class Agent:
            policy = Policy()

        if prepare is not None:
            prepare(Agent())
        seen.append((spec.agent, overrides))
        raise KeyboardInterrupt  # what follows is not what this is about

    monkeypatch.setattr(study, "train_agent", train)
    base = Run("dsrm-hrl", max_len=12, episodes=16, sessions=16)
    for one in study.plan(base, [3], [0.2, 0.8], [0.6], [4.0]):
        with pytest.raises(KeyboardInterrupt):
            run_study(one, tmp_path)
    assert seen == [("dsrm-hrl", {}), 0.6, ("dsrm-hrl", {}), ("flat", {"fairness_coef": 4.0})]


def test_a_plan_has_every_part_once_in_any_order() -> None:
    base = Run("dsrm-hrl")
    parts = study.plan(base, [11, 15, 11], [0.8, 0.2, 0.8], [0.2], [1.0, 0.0], [0.9, 0.1])
    assert parts == study.plan(base, [11, 15], [0.2, 0.8], [0.2, 0.2], [0.0, 1.0], [0.1, 0.9])
    kinds = [(one.kind, one.settings, one.run.seed) for one in parts]
    assert kinds == [
        ("dial", (0.2, 0.8), 11), ("dial", (0.2, 0.8), 15),
        ("retrained", (0.2,), 11), ("retrained", (0.2,), 15),
        ("flat", (0.0,), 11), ("flat", (0.0,), 15), ("flat", (1.0,), 11), ("flat", (1.0,), 15),
        ("sweep", (0.1, 0.9), 11), ("sweep", (0.1, 0.9), 15),
    ]  # fmt: skip


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    # 0.50 - 0.51, 0.60 - 0.63 and 0.70 - 0.72; the fourth seed has no partner.
    dial = [part("dial", seed, {0.3: 0.3, 0.5: 0.5}, worth)
            for seed, worth in ((1, 0.5), (2, 0.6), (3, 0.7), (4, 9.0))]  # fmt: skip
    retrained = [part("retrained", seed, {0.3: 0.3}, worth)
                 for seed, worth in ((1, 0.51), (2, 0.63), (3, 0.72))]  # fmt: skip
    found = read(tmp_path, *dial, *retrained)
    np.testing.assert_allclose(report.differences(found, 0.3), [-0.01, -0.03, -0.02])
    assert report.differences(found, 0.5) == []
    text = report.tables(found)
    # Mean -0.02, standard deviation 0.01, three values: 4.303 * 0.01 / sqrt(3).
    assert rows(text)["0.3"][-2:] == ["0.620 ± 0.262", "-0.020 ± 0.025"]
    assert rows(text)["0.5"][1:3] == ["0.500 ± 0.000", "0.000"]
    assert "loss of R_each against the retrained agent is 0.020 ± 0.025, at target 0.3." in text


def test_a_dial_that_is_nowhere_worse_loses_nothing(tmp_path: Path) -> None:
    found = read(tmp_path, part("dial", 1, {0.3: 0.3}, 0.5), part("retrained", 1, {0.3: 0.3}, 0.4))
    assert "is none: at no target is its mean lower." in report.verdict(found)


def test_the_verdict_says_whether_shares_follow_their_targets(tmp_path: Path) -> None:
    follows = {None: 0.9, 0.3: 0.32, 0.5: 0.49, 0.7: 0.7}
    found = read(tmp_path, part("dial", 1, follows, 0.5), part("dial", 2, follows, 0.5))
    said = report.verdict(found)
    assert "are monotone: they rise with every target in every seed." in said
    assert "The largest distance from a target is 0.020, at 0.3." in said
    assert "largest loss" not in said  # nothing was retrained

    # Seed 2 alone fails, which a mean over seeds would hide.
    stuck = {0.3: 0.4, 0.5: 0.4, 0.7: 0.65}
    found = read(tmp_path, part("dial", 1, follows, 0.5), part("dial", 2, stuck, 0.5))
    said = report.verdict(found)
    assert "not monotone: from target 0.3 to 0.5 seed 2's goes from 0.400 to 0.400." in said
    assert "The largest distance from a target is 0.100, at 0.3." in said
    assert report.distance(found, 0.7) == pytest.approx(0.05)


def test_flat_agents_have_a_table_of_their_own(tmp_path: Path) -> None:
    found = read(tmp_path, part("flat", 1, {0.5: 0.45}, 0.5), part("flat", 2, {0.5: 0.55}, 0.7))
    text = report.tables(found)
    assert rows(text)["0.5"][:4] == ["2", "0.500 ± 0.635", "20.00 ± 0.00", "0.600 ± 1.271"]
    assert "monotone" not in text
    assert "SYNTHETIC" in text
    assert "100 training sessions, 50 test sessions a seed" in text


def test_what_does_not_compare_is_not_put_together(tmp_path: Path) -> None:
    one = part("flat", 1, {0.5: 0.5}, 0.5)
    for other, message in (
        (part("flat", 2, {0.5: 0.5}, 0.5, episodes=200), "differ in"),
        (part("flat", 1, {0.5: 0.5}, 0.5), "flat 0.5, seed 1, twice"),
    ):
        with pytest.raises(DataFormatError, match=message):
            read(tmp_path, one, other)
    del other["points"]
    with pytest.raises(DataFormatError, match="lacks the key"):
        read(tmp_path, one, other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataFormatError, match="no results under"):
        report.read_studies(tmp_path / "empty")


def test_the_figure_shows_what_there_is(tmp_path: Path) -> None:
    parts = [part("dial", seed, {None: 0.5, 0.3: 0.3, 0.7: 0.7}, 0.5) for seed in (1, 2)]
    parts += [part("retrained", 1, {0.3: 0.3}, 0.6), part("flat", 1, {0.5: 0.4}, 0.4)]
    figure = plot.draw(read(tmp_path, *parts))
    assert "SYNTHETIC" in figure.get_suptitle()
    first = figure.axes[0]
    drawn = {box.get_label(): box.lines[0].get_xdata().tolist() for box in first.containers}
    assert drawn == {
        "one agent, its dial turned": [0.3, 0.7],
        "its manager's own choice": [0.5],
        "trained for each target": [0.3],
        "flat, by penalty": [0.4],
    }
    assert [text.get_text() for text in first.texts] == ["0.5"]
    real = part("flat", 1, {0.5: 0.4}, 0.4)
    real["dataset"]["synthetic"] = False
    for path in tmp_path.glob("*.json"):
        path.unlink()
    assert "MODELLED answers" in plot.draw(read(tmp_path, real)).get_suptitle()
