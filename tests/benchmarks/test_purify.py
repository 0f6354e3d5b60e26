from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.purify import report, study
from benchmarks.purify.report import ORACLE, markdown, read_studies, studied
from benchmarks.purify.study import ENVS, KUAIREC, PurifyStudy, World, plan
from benchmarks.studies.results import read_results
from benchmarks.studies.study import run_studies
from dsrm_agents import fit_purifier
from dsrm_agents.dsrm import measures
from dsrm_agents.dsrm.pairs import TargetConfig
from dsrm_agents.dsrm.probes import probe, probe_data
from kuaisim_gym.data import SOURCES, write_csv
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError, DataFormatError

STUDIED = studied()
NEED_TRUTH = {"cosine", "interest_accuracy", "recall20", "recall20_longtail"}
METRICS = NEED_TRUTH | {
    "leakage_r2", "leakage_mlp", "leakage_floor", "leakage_mlp_floor", "effective_rank",
    "cosine_to_raw", "discriminability", "response_r2", "n_users",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_worlds(small, small_rand, monkeypatch) -> None:
    """Both worlds and those with other numbers of events, small; real data as they are.

    Floors of probes are of one shuffle, because their networks take most of the time.
    """
    monkeypatch.setattr(measures, "SHUFFLES", 1)
    monkeypatch.setattr(TargetConfig.__init__, "__defaults__", ("belief", 64))
    worlds = {"kuairec": small, "kuairand": small_rand}
    load = origin.shared_dataset
    monkeypatch.setattr(
        origin,
        "shared_dataset",
        lambda name, path, seed: worlds[name] if path is None else load(name, path, seed),
    )
    sizes = {"n_users": 400, "n_test_users": 80, "n_items": 240, "n_categories": 6}
    monkeypatch.setattr(
        study,
        "synthetic_kuairec",
        lambda seed, config: synthetic_kuairec(seed, replace(config, **sizes)),
    )


@pytest.fixture(autouse=True)
def fresh_worlds() -> None:
    """No data of another test."""
    study._load.cache_clear()
    study._probe_data.cache_clear()


def quick(
    env: str = KUAIREC, purifiers: tuple[str, ...] = STUDIED, updates: int = 5, **options: Any
) -> list[PurifyStudy]:
    return [PurifyStudy(name, World(env, 11, **options), updates) for name in purifiers]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def measured(results: list[Path]) -> dict[str, dict[str, float]]:
    return {path.name: read(path)["metrics"] for path in results}


def test_all_that_says_something_is_studied() -> None:
    assert studied() == (
        "identity", "centre", "linear", "ridge", "ridge-pooled", "mlp", "dae", "vae", "dsrm",
        "dsrm-literal", "student", "oracle-regression",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("env", "names"), [(KUAIREC, STUDIED), (ENVS[1], ("identity", "dsrm", "student", ORACLE))]
)
def test_a_world_gives_one_result_a_purifier(env, names, small, small_rand, tmp_path: Path) -> None:
    paths = run_studies(quick(env, names), tmp_path)
    label = f"{env}_{'kuairec' if env == KUAIREC else 'kuairand'}-synthetic_seed11"
    assert [path.name for path in paths] == [f"{name}_{label}.json" for name in names]
    assert sorted(paths) == sorted(tmp_path.iterdir())
    dataset = small if env == KUAIREC else small_rand
    users_with_rows = len(np.unique(dataset.log.users))
    for name, path in zip(names, paths, strict=True):
        result = read(path)
        assert result.keys() == report.KEYS
        assert result["study"] == "purify"
        assert (result["purifier"], result["env"], result["seed"]) == (name, env, 11)
        assert result["dataset"] == {
            "name": dataset.name,
            "source": dataset.name,
            "synthetic": True,
            "answers": "synthetic",
            "seed": 11,
            "version": SOURCES[dataset.name].version,
            "fingerprint": dataset.fingerprint,
            "split_by": "user",
            "events_per_user": pytest.approx(len(dataset.log) / users_with_rows),
        }
        assert result["metrics"].keys() == METRICS
        assert result["options"] == {"updates": 5}
        assert result["events"] is None
        assert result["fit_seconds"] >= 0
        assert {"python", "numpy", "torch"} <= result["versions"].keys()
    identity = read(paths[0])["metrics"]
    assert identity["cosine_to_raw"] == pytest.approx(1)
    json.dumps([read(path) for path in paths], allow_nan=False)


def test_results_are_those_of_the_purifiers(small, tmp_path: Path) -> None:
    """The student's too, though its teacher is not fitted a second time."""
    names = ("linear", "dsrm", "student")
    paths = run_studies(quick(purifiers=names), tmp_path)
    data = probe_data(small)
    for name, path in zip(names, paths, strict=True):
        purifier = fit_purifier(
            name, small, seed=11, **({} if name == "linear" else {"updates": 5})
        )
        assert read(path)["metrics"] == probe(purifier.denoise, data, purifier.reads)


def brief_probe(denoise, data, reads) -> dict[str, float]:
    """Tells purifiers apart in no time."""
    return {"mean": float(denoise(data.states[reads].copy()).mean())}


def test_a_killed_study_goes_on_where_it_was(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(study, "probe", brief_probe)
    world = quick(purifiers=("identity", "linear", "dsrm", "student", ORACLE))
    whole = measured(run_studies(world, tmp_path / "whole"))
    assert len({tuple(metrics.values()) for metrics in whole.values()}) == 5
    out, done = tmp_path / "killed", []

    def probe_until_killed(denoise, data, reads) -> dict[str, float]:
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(denoise)
        return brief_probe(denoise, data, reads)

    with monkeypatch.context() as patch:
        patch.setattr(study, "probe", probe_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run_studies(world, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 3
    # The teacher is fitted again, its result is not written again.
    paths = run_studies(world, out)
    assert measured(paths) == whole
    assert sorted(out.iterdir()) == sorted(paths)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_nothing_is_fitted_or_probed_where_all_is_there(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(study, "probe", brief_probe)
    world = quick(purifiers=("identity", "linear"))
    paths = run_studies(world, tmp_path)
    for name in ("fit_purifier", "probe_data"):
        monkeypatch.setattr(study, name, None)
    assert run_studies(world, tmp_path) == paths


def test_results_of_other_data_or_settings_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(study, "probe", brief_probe)
    names = ("identity", "linear")
    world = quick(purifiers=names)
    path = run_studies(world, tmp_path)[1]
    with pytest.raises(ConfigError, match=r"wanted .*'updates': 6.* found .*5.*Remove it or"):
        run_studies(quick(purifiers=names, updates=6), tmp_path)
    path.write_text(json.dumps(read(path) | {"dataset": {}}))
    with pytest.raises(ConfigError, match=r"linear_KuaiRec.*other data or settings.*fingerprint"):
        run_studies(world, tmp_path)
    path.write_text('{"study": "datasets"}')
    with pytest.raises(ConfigError, match="'purify'"):
        run_studies(world, tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        run_studies(world, path)


def test_options_reach_the_purifiers_that_they_concern() -> None:
    given = {"updates": 5}
    for name, options in (("dsrm", given), ("ridge", {}), ("linear", {}), (ORACLE, given)):
        fit = PurifyStudy(name, World(KUAIREC, 11), updates=5)
        assert fit.fit_options == options
        assert fit.options == fit.header()["options"] == given  # the same for all of a study


def test_other_numbers_of_events_are_worlds_of_their_own(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(study, "probe", brief_probe)
    results = []
    for events in (20, 40):
        (path,) = run_studies(quick(purifiers=("identity",), events=events), tmp_path)
        assert path.name == f"identity_{KUAIREC}_kuairec-synthetic_events{events}_seed11.json"
        results.append(read(path))
        assert results[-1]["events"] == events
    one, two = (result["dataset"] for result in results)
    assert one["fingerprint"] != two["fingerprint"]
    assert one["events_per_user"] < 30 < two["events_per_user"] < 50


def test_real_rows_have_no_truth_and_seeds_vary_the_fit(small, tmp_path: Path, capsys) -> None:
    """The command itself, in processes, and once more where it is done already."""
    write_csv(small, tmp_path / "data")
    out = tmp_path / "out"
    command = ["purify", "--dataset", str(tmp_path / "data"), "--seeds", "11", "15",
               "--purifiers", "identity", "mlp", "--updates", "5", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"### {KUAIREC}, kuairec (real rows, " in text
    assert "| identity | 2 | " in text
    files = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert {path.name for path in files} == {
        f"{name}_{KUAIREC}_kuairec-modelled_seed{seed}.json"
        for name in ("identity", "mlp")
        for seed in (11, 15)
    }
    results = {path.name: read(path) for path in files}
    assert all(one["metrics"].keys() == METRICS - NEED_TRUTH for one in results.values())
    assert not any(one["dataset"]["synthetic"] for one in results.values())
    first, second = (
        results[f"identity_{KUAIREC}_kuairec-modelled_seed{seed}.json"] for seed in (11, 15)
    )
    assert first["metrics"] == pytest.approx(second["metrics"], abs=1e-5)  # but for the scale
    first, second = (
        results[f"mlp_{KUAIREC}_kuairec-modelled_seed{seed}.json"] for seed in (11, 15)
    )
    assert first["metrics"] != second["metrics"]
    data = str(tmp_path / "data")
    run_studies(plan(None, [11, 15], ["identity", "mlp"], dataset=data, updates=5), out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == files
    assert main(["purify", "--table", str(out)]) == 0
    assert capsys.readouterr().out == text


def worlds_of(studies: list[PurifyStudy]) -> dict[World, tuple[str, ...]]:
    """The purifiers of each world, in their order."""
    worlds: dict[World, tuple[str, ...]] = {}
    for one in studies:
        worlds[one.world] = (*worlds.get(one.world, ()), one.purifier)
    return worlds


def test_a_study_is_planned() -> None:
    studies = plan(None, [11, 15])
    worlds = worlds_of(studies)
    assert [(world.env, world.seed) for world in worlds] == [(e, s) for e in ENVS for s in (11, 15)]
    assert set(worlds.values()) == {STUDIED}
    assert [one.world for one in studies] == [world for world in worlds for _ in STUDIED]
    assert all(one.options == {} for one in studies)

    worlds = worlds_of(plan(None, [11], events=[60, 120, 200]))
    assert [(world.env, world.events) for world in worlds] == [
        (KUAIREC, 60),
        (KUAIREC, None),  # the usual number: the usual world
        (KUAIREC, 200),
    ]
    assert SyntheticConfig().events_per_user == 120
    assert set(worlds.values()) == {
        ("identity", "centre", "linear", "ridge", "mlp", "dsrm", ORACLE)
    }

    ((world, names),) = worlds_of(plan(None, [11, 11], dataset="somewhere")).items()  # once
    assert world.env == KUAIREC
    assert names == STUDIED[:-1]  # what needs the truth is left out
    ((world, names),) = worlds_of(plan([ENVS[1]], [11], ["mlp"], dataset="somewhere")).items()
    assert (world.env, names) == (ENVS[1], ("mlp",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"envs": ENVS, "dataset": "here"}, "one dataset"),
        ({"dataset": "here", "purifiers": [ORACLE]}, "true preferences"),
        ({"dataset": "here", "events": [60]}, "synthetic world"),
        ({"envs": [ENVS[1]], "events": [60]}, "synthetic world"),
        ({"purifiers": ["dsmr"]}, "Did you mean 'dsrm'"),
        ({"envs": ["KuaiRec-v0"]}, "Did you mean 'KuaiRec-Fair-v0'"),
        ({"seeds": [-1]}, "at least 0"),
    ],
)
def test_what_does_not_go_together_is_refused(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**{"envs": None, "seeds": [11], **arguments})


def test_mistakes_end_with_a_sentence(tmp_path: Path, capsys) -> None:
    missing = ["--dataset", str(tmp_path / "no"), "--seeds", "11"]
    assert main(["purify", *missing, "--out", str(tmp_path)]) == 2
    assert "not there" in capsys.readouterr().err
    assert main(["purify", "--table", str(tmp_path)]) == 2
    assert "There are no results" in capsys.readouterr().err
    for bad in ([], ["--out", "a", "--table", "b"], ["--out", "a", "--events", "0"]):
        with pytest.raises(SystemExit):
            main(["purify", *bad])


# Tables, from results made by hand


def result(purifier: str, seed: int, **changes: Any) -> dict[str, Any]:
    metrics = {
        "leakage_r2": 0.5, "leakage_mlp": 0.25, "leakage_floor": -0.01,
        "leakage_mlp_floor": -0.02, "interest_accuracy": 0.4,
        "cosine": 0.3, "recall20": 0.125, "recall20_longtail": 0.0625, "effective_rank": 10.0,
        "cosine_to_raw": 1.0, "discriminability": 0.75, "response_r2": 0.0123,
        "n_users": 1411.0,
    }  # fmt: skip
    dataset = {
        "name": "kuairec",
        "synthetic": True,
        "fingerprint": f"world{seed}",
        "split_by": "user",
        "events_per_user": 119.6,
    }
    made: dict[str, Any] = {
        "study": "purify",
        "purifier": purifier,
        "env": KUAIREC,
        "seed": seed,
        "events": None,
        "dataset": dataset,
        "options": {},
        "metrics": metrics,
        "fit_seconds": 12.0,
        "versions": {},
        "commit": "unknown",
    }
    for name, value in changes.items():
        if isinstance(value, dict):
            made[name] = made[name] | value
        else:
            made[name] = value
    return made


def with_cosines(**cosines: tuple[float, ...]) -> list[dict[str, Any]]:
    """One result a purifier and seed, seeds in the order given."""
    return [
        result(purifier.replace("_", "-"), seed, metrics={"cosine": value})
        for purifier, values in cosines.items()
        for seed, value in zip((11, 15, 19), values, strict=False)
    ]


def cells(table: str, *start: str) -> list[str]:
    """The one row that starts with these cells."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if tuple(row[: len(start)]) == start]
    return row


def test_means_and_intervals_by_hand() -> None:
    results = [
        result("dsrm", 11, metrics={"leakage_r2": 0.1}, fit_seconds=10.0),
        result("dsrm", 15, metrics={"leakage_r2": 0.2}, fit_seconds=20.0),
        result("dsrm", 19, metrics={"leakage_r2": 0.3}, fit_seconds=30.0),
    ]
    table = markdown(results)
    assert table.startswith(f"### {KUAIREC}, kuairec (OLDER SYNTHETIC worlds, one a seed)\n")
    row = cells(table, "dsrm")
    # Standard deviation 0.1, three values: 4.303 * 0.1 / sqrt(3) = 0.248.
    assert row[1:3] == ["3", "0.200 ± 0.248"]
    assert row[3:5] == ["0.250 ± 0.000", "0.300 ± 0.000"]
    assert row[-1] == "20 ± 25"
    header = cells(table, "purifier")
    assert header[2:] == list(report.COLUMNS.values())
    assert len(row) == len(header)
    assert row[header.index("response R²")] == "0.0123 ± 0.0000"
    assert row[header.index("effective rank")] == "10.0 ± 0.0"
    assert "1,411 test users a seed. Leakage" in table
    assert "shuffled labels is -0.010 (ridge) and -0.020 (MLP)" in table


def test_differences_are_taken_world_by_world() -> None:
    table = markdown(with_cosines(dsrm=(0.5, 0.7), identity=(0.3, 0.4)))
    # Differences 0.2 and 0.3: standard deviation 0.0707, 12.706 * 0.0707 / sqrt(2) = 0.635.
    assert "* dsrm less identity, world by world: leakage R² (MLP) +0.000 ± 0.000, " in table
    assert "cosine +0.250 ± 0.635" in table
    assert "less mlp" not in table


def test_real_rows_leave_blanks() -> None:
    real = {"synthetic": False, "fingerprint": "beef"}
    results = [result(name, 11, dataset=real) for name in ("identity", "dsrm")]
    for one in results:
        for name in NEED_TRUTH:
            del one["metrics"][name]
    table = markdown(results)
    assert "not held out" not in table
    for one in results:
        one["dataset"]["split_by"] = "cell"
    assert "test users a seed, not held out: " in markdown(results)
    assert table.startswith(f"### {KUAIREC}, kuairec (real rows, beef, the same for all seeds)\n")
    assert "SYNTHETIC" not in table
    blank = dict(zip(cells(table, "purifier"), cells(table, "dsrm"), strict=True))
    empty = {name for name, cell in blank.items() if not cell}
    assert empty == {report.COLUMNS[name] for name in NEED_TRUTH}


def test_events_have_a_table_of_their_own() -> None:
    results = with_cosines(identity=(0.2,), dsrm=(0.4,), vae=(0.3,), oracle_regression=(0.6,))
    for events, cosines in ((200, (0.3, 0.5, 0.7)), (60, (0.1, 0.2, 0.5))):
        for name, value in zip(("identity", "dsrm", ORACLE), cosines, strict=True):
            dataset = {"fingerprint": f"world{events}", "events_per_user": events + 0.2}
            changes = {"metrics": {"cosine": value}, "events": events, "dataset": dataset}
            results.append(result(name, 11, **changes))
    text = markdown(results)
    titles = [line for line in text.splitlines() if line.startswith("###")]
    usual = f"### {KUAIREC}, kuairec (OLDER SYNTHETIC worlds, one a seed)"
    assert titles == [
        usual,
        f"{usual}, by logged rows of a user",
    ]
    table = text[text.index(titles[-1]) :]
    assert cells(table, "60", "dsrm") == ["60", "dsrm", "1", "0.200", "0.500"]
    assert cells(table, "120", "dsrm") == ["120", "dsrm", "1", "0.400", "0.500"]
    assert cells(table, "200", ORACLE)[-2:] == ["0.700", "0.500"]
    rows = [line.split(" | ")[0] for line in table.splitlines() if line.startswith("| ")]
    assert rows == ["| rows", *["| 60"] * 3, *["| 120"] * 3, *["| 200"] * 3]
    assert "vae" not in table


def test_settings_are_not_mixed() -> None:
    tuned, brief = result("dsrm", 11), result("dsrm", 11, options={"updates": 5})
    titles = [line for line in markdown([tuned, brief]).splitlines() if line.startswith("###")]
    assert len(titles) == 2
    assert titles[1].endswith(", updates=5")
    other = result("identity", 11, dataset={"fingerprint": "another"})
    with pytest.raises(DataFormatError, match="different worlds, world11 and another"):
        markdown([tuned, other])


def test_reading_takes_this_study_alone(tmp_path: Path) -> None:
    one = result("dsrm", 11)
    (tmp_path / "one.json").write_text(json.dumps(one))
    (tmp_path / "other.json").write_text('{"study": "datasets"}')
    assert read_studies(tmp_path) == [one]
    with pytest.raises(DataFormatError, match="There are no results"):
        read_results(tmp_path)  # of runs
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "one.json").write_text(json.dumps(one))
    with pytest.raises(DataFormatError, match="the same purifier, world and seed"):
        read_studies(tmp_path)
    del one["metrics"]
    (tmp_path / "again" / "one.json").write_text(json.dumps(one))
    with pytest.raises(DataFormatError, match="lacks"):
        read_studies(tmp_path)
