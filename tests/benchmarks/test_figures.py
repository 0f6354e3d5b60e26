from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.estimates.states import WEIGHTS
from benchmarks.figures import command, policies, sensitivity, states, studies
from benchmarks.reports.plots import means_and_halves, save_small
from benchmarks.studies.processes import Workers
from benchmarks.studies.results import METRICS, read_result, read_results
from benchmarks.studies.study import run_studies, run_study
from kuaisim_gym.errors import ConfigError

HEADER = {"study", "env", "max_len", "dataset", "versions", "commit"}


@pytest.fixture
def tiny(small, small_rand, quick_fit, monkeypatch) -> None:
    """Small worlds instead of the full ones, and fits of a few updates."""
    worlds = {"kuairec": small, "kuairand": small_rand}
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: worlds[name])
    for module in (policies, states, sensitivity):
        monkeypatch.setattr(module, "fit_purifier", quick_fit)


def draw(folder: Path, *arguments: str) -> list[Path]:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    common = ["--results", str(folder), "--jobs", "1", "--sessions", "10", "--seeds", "1", "2"]
    command.main(parser.parse_args([*common, *arguments]))
    return sorted(folder.rglob("*.png"))


def found(folder: Path, kind: str) -> dict[str, dict]:
    return {path.name: read_result(path) for path in sorted(folder.rglob(f"{kind}_*.json"))}


def is_small_png(path: Path) -> bool:
    content = path.read_bytes()
    return content.startswith(b"\x89PNG") and len(content) < 200_000


def test_the_options_have_the_papers_values() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    options = parser.parse_args(["--results", "somewhere"])
    assert options.only == [2, 3, 4, 6]
    assert (options.episodes, options.sessions, options.seeds) == (5000, 1000, [11, 15, 19])
    assert options.steps == [5, 10, 20, 30, 100, 500]
    with pytest.raises(SystemExit):
        parser.parse_args(["--results", "somewhere", "--only", "5"])


def test_figure_2_leaves_the_other_commands_figure_alone(tiny, tmp_path: Path, capsys) -> None:
    other = tmp_path / "figures" / "datasets_exposure_and_reward.png"
    other.parent.mkdir()
    other.write_bytes(b"kept")
    files = draw(tmp_path, "--only", "2")
    assert [file.name for file in files] == [other.name, "figure2.png"]
    assert other.read_bytes() == b"kept"
    assert is_small_png(files[1])
    assert capsys.readouterr().out.strip() == str(files[1])


def test_figure_3_sets_raw_beside_purified_states(tiny, small, tmp_path: Path) -> None:
    learned = []
    for agent in policies.PPO.values():
        for seed in (1, 2):
            dataset = {"name": "kuairec", "synthetic": True, "fingerprint": small.fingerprint}
            values = dict.fromkeys(METRICS, 0.5)
            learned.append(
                {"agent": agent, "env": studies.ENV, "max_len": studies.MAX_LEN, "seed": seed,
                 "slate_size": 10, "dataset": dataset,
                 "train": {"episodes": 1, "steps": 1, "seconds": 1.0},
                 "eval": {"sessions": 10}, "metrics": values,
                 "versions": {}, "commit": ""}
            )  # fmt: skip
    for number, result in enumerate(learned[:-1]):
        (tmp_path / f"{number}.json").write_text(json.dumps(result))
    with pytest.raises(ConfigError, match=r"lacks results.*: ppo\+blank seed 2\. Make them"):
        draw(tmp_path, "--only", "3")
    assert not (tmp_path / "figures").exists()  # refused before any work
    (tmp_path / "last.json").write_text(json.dumps(learned[-1]))
    (figure,) = draw(tmp_path, "--only", "3")
    assert figure.name == "figure3.png"
    assert is_small_png(figure)
    made = found(tmp_path, "policies")
    assert len(made) == (len(policies.BETAS) + 1) * len(policies.LABELS) * 2
    own = {"dnair-style": {"beta"}, "similarity+quota": {"weight", "train"}}
    for one in made.values():
        assert one.keys() == HEADER | own[one["policy"]] | {
            "policy", "state", "seed", "sessions", "eval", "metrics",
        }  # fmt: skip
        assert one["dataset"]["synthetic"] is True
        assert {"len", "r_each", "r_cum", "ad", "slate_ad", "longtail_share"} <= one[
            "metrics"
        ].keys()
    groups = policies.bars(list(made.values()), learned)
    assert len(groups) == len(policies.BETAS) + 2
    assert all(len(seeds) == 2 for group in groups.values() for seeds in group.values())
    assert "SYNTHETIC" in policies.draw(groups).get_suptitle()
    assert len(read_results(tmp_path)) == len(learned)  # studies are no rows of the tables


def test_the_weight_of_similarity_is_chosen_on_the_train_simulator(tiny) -> None:
    found = policies.SimilarityStudy("raw", seed=1, sessions=10).make(Path())
    lengths = found["train"]["len_by_weight"]
    assert list(lengths) == [f"{weight:g}" for weight in WEIGHTS]
    assert lengths[f"{found['weight']:g}"] == max(lengths.values())


def test_figure_4_has_the_probes_in_its_captions(tiny, small, tmp_path: Path) -> None:
    (file,) = draw(tmp_path, "--only", "4")
    assert is_small_png(file)
    ((_, study),) = found(tmp_path, "states").items()
    assert study.keys() == HEADER | {"seed", "popularity", "interest", "places", "probes"}
    places = {state: np.array(study["places"][state]) for state in states.LABELS}
    assert all(place.shape == (len(study["interest"]), 2) for place in places.values())
    assert not np.allclose(places["raw"], places["dsrm"])
    figure = states.draw(study)
    captions = [axes.get_xlabel() for axes in figure.axes if "leakage" in axes.get_xlabel()]
    assert len(captions) == 2
    for caption, state in zip(captions, states.LABELS, strict=True):
        assert f"{study['probes'][state]['leakage_r2']:.2f}" in caption
        assert f"{study['probes'][state]['interest_accuracy']:.2f}" in caption
    assert "SYNTHETIC" in figure.get_suptitle()


def test_figure_6_goes_on_where_it_stopped(tiny, tmp_path: Path) -> None:
    arguments = ("--only", "6", "--episodes", "20", "--seeds", "2", "--steps", "2", "4")
    (file,) = draw(tmp_path, *arguments)
    assert file.name == "figure6.png"
    assert is_small_png(file)
    made = found(tmp_path, "sensitivity")
    assert sorted(one["diffusion_steps"] for one in made.values()) == [2, 4]
    for one in made.values():
        assert one.keys() == HEADER | {
            "policy", "diffusion_steps", "seed", "episodes", "sessions", "fit", "probes", "train",
            "eval", "metrics", "similarity",
        }  # fmt: skip
        assert one["fit"].keys() == {"seconds", "states_per_second"}
        assert {"cosine", "leakage_r2"} <= one["probes"].keys()
        assert {"len", "r_cum", "r_each", "ad"} <= one["metrics"].keys()
        assert one["train"]["episodes"] >= 20
    folder = tmp_path / "figures"
    times = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    gone = folder / "sensitivity_K4_seed2.json"
    before = gone.read_text()
    gone.unlink()
    draw(tmp_path, *arguments)
    again = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert again.keys() == times.keys()
    assert [path for path in times if times[path] != again[path]] == [gone]
    old, new = json.loads(before), read_result(gone)
    assert (old["metrics"], old["probes"]) == (new["metrics"], new["probes"])
    with pytest.raises(ConfigError, match="wanted {'episodes': 30}, found {'episodes': 20}"):
        draw(tmp_path, *arguments, "--episodes", "30")
    assert "SYNTHETIC" in sensitivity.draw(list(made.values())).get_suptitle()


def test_a_study_of_another_world_is_refused(tiny, tmp_path: Path) -> None:
    study = policies.NoveltyStudy("raw", 0.4, seed=1, sessions=10)
    run_study(study, tmp_path)
    (path,) = tmp_path.glob("*.json")
    other = read_result(path)
    other["dataset"]["fingerprint"] = "0" * 16
    path.write_text(json.dumps(other))
    with pytest.raises(ConfigError, match="other data or settings: wanted {'dataset'"):
        run_study(study, tmp_path)


def test_a_purified_policy_differs_by_its_state_alone(tiny) -> None:
    raw, same = (
        policies.NoveltyStudy(state, 0.1, seed=1, sessions=10).make(Path())["metrics"]
        for state in ("raw", "linear")
    )
    assert raw.keys() == same.keys()
    assert raw != same


def test_single_seeds_have_no_interval(tmp_path: Path) -> None:
    mean, half = means_and_halves([[1.0], [1.0, 3.0]])
    np.testing.assert_array_equal(mean, [1.0, 2.0])
    assert np.isnan(half[0])
    assert half[1] > 0
    one = [{"len": 3.0, "r_each": 0.5, "ad": 0.1}]
    figure = policies.draw({"DNaIR-style": {"raw": one, "dsrm": one}})
    assert is_small_png(save_small(figure, tmp_path / "one.png"))


@dataclass(frozen=True)
class Quick(studies.FigureStudy):
    """A study that is done at once."""

    kind = "quick"
    world_seed = 0

    seed: int

    @property
    def label(self) -> str:
        return str(self.seed)

    def make(self, path: Path) -> dict[str, Any]:
        return {"users": self.load().n_users}


def test_other_processes_make_studies(world, tmp_path: Path) -> None:
    (path,) = run_studies([Quick(3)], tmp_path, partial(Workers, 2, 1))
    made = read_result(path)
    assert (made["study"], made["seed"], made["users"]) == ("quick", 3, world.n_users)
    assert made["dataset"]["fingerprint"] == world.fingerprint
