from __future__ import annotations

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.agents import AGENTS, Agent
from benchmarks.runs import judging, tuning
from benchmarks.runs import training as learning
from benchmarks.runs.settings import Run
from benchmarks.runs.tuning import read_studies, split_users, summary, tune
from benchmarks.studies.results import read_results
from dsrm_agents import HierarchicalPPO
from dsrm_agents.common.slate_ppo import SlatePPO
from kuaisim_gym.data import SOURCES
from kuaisim_gym.errors import ConfigError, DataFormatError, DiskSpaceError
from tests.attack.forks import files_of_at_most
from tests.benchmarks.handmade import TODAY

SPEC = Run("a2c", max_len=6, seed=0, episodes=300, sessions=40)


@pytest.fixture(autouse=True)
def small_world(small, monkeypatch) -> None:
    """The synthetic world, small; others by their path."""
    load = origin.shared_dataset
    monkeypatch.setattr(
        origin,
        "shared_dataset",
        lambda name, path, seed: small if path is None else load(name, path, seed),
    )


@pytest.fixture
def guess(monkeypatch) -> list[dict[str, Any]]:
    """Trials that train nothing and are worth a function of what they were played with."""
    played: list[dict[str, Any]] = []

    def worth(spec, dataset, purifier, users, params) -> float:
        played.append(dict(params))
        return 10.0 - abs(np.log10(params["learning_rate"]) + 2.2) + params["gamma"]

    monkeypatch.setattr(tuning, "session_length", worth)
    return played


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def trials(path: Path) -> list[tuple[int, dict[str, Any], float]]:
    return [(one["number"], one["params"], one["value"]) for one in read(path)["trials"]]


def test_the_held_out_fifth_is_of_the_train_users(small) -> None:
    training, held_out = split_users(small, 0)
    assert len(held_out) == round(len(small.train_users) / 5)
    assert not set(training) & set(held_out)
    assert sorted([*training, *held_out]) == small.train_users.tolist()
    assert set(split_users(small, 1)[1]) != set(held_out)


def test_a_trial_meets_the_train_simulator_alone(small, tmp_path: Path, monkeypatch) -> None:
    """It trains on some users, is measured on others, and what it varies reaches the agent."""
    made, built = [], []
    make, learner = learning.make_vec_env, AGENTS["a2c"]

    def recorded(*arguments: Any, **options: Any) -> Any:
        made.append(make(*arguments, **options))
        return made[-1]

    def build(env, options, seed) -> Any:
        built.append(options)
        return learner.build(env, options, seed)

    for module in (learning, judging):
        monkeypatch.setattr(module, "make_vec_env", recorded)
    agent = Agent("a2c", build=build, settings=learner.settings)
    monkeypatch.setitem(AGENTS, "a2c", agent)
    path = tune(replace(SPEC, max_len=20), 2, tmp_path, progress=False)
    assert len(made) == 4
    assert {env.batch.simulator.split for env in made} == {"train"}
    training, held_out = split_users(small, SPEC.seed)
    for env, users in zip(made, (training, held_out) * 2, strict=True):
        np.testing.assert_array_equal(env.batch.core.session_users, np.sort(users))
        assert np.isin(env.batch.core.state.users, users).all()
    for options, trial in zip(built, read(path)["trials"], strict=True):
        rest = {name: value for name, value in learner.hyperparams.items() if name != "n_envs"}
        assert options == rest | trial["params"]
    assert len({value for _, _, value in trials(path)}) == 2  # so many sessions tell them apart


def test_the_first_trial_has_the_present_settings(guess, tmp_path: Path, monkeypatch) -> None:
    """Also where they lie outside the space, as no entropy bonus does."""
    agent = replace(AGENTS["a2c"], settings=AGENTS["a2c"].at(ent_coef=0.0))
    monkeypatch.setitem(AGENTS, "a2c", agent)
    result = read(tune(SPEC, 4, tmp_path, progress=False))
    present = {name: agent.hyperparams[name] for name in agent.space}
    assert present["ent_coef"] == 0.0
    assert result["trials"][0]["params"] == guess[0] == present
    assert guess == [trial["params"] for trial in result["trials"]]
    for params in guess[1:]:
        for name, distribution in agent.space.items():
            if isinstance(distribution, FloatDistribution):
                assert distribution.low <= params[name] <= distribution.high
            else:
                assert params[name] in distribution.choices
    assert result["best"]["value"] >= result["trials"][0]["value"]


def test_the_result_says_what_was_done(guess, small, tmp_path: Path) -> None:
    path = tune(SPEC, 3, tmp_path, progress=False)
    assert path.name == "tune_a2c_KuaiRec-Fair-v0_kuairec-synthetic_T6.json"
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{path.stem}.journal", path.name]
    result = read(path)
    assert result.keys() == {
        "study", "agent", "env", "max_len", "dataset", "settings", "space", "fixed", "trials",
        "best", "versions", "commit",
    }  # fmt: skip
    assert (result["study"], result["agent"], result["max_len"]) == ("tune", "a2c", 6)
    assert result["dataset"] == {
        "name": "kuairec", "source": "kuairec", "synthetic": True, "answers": "synthetic",
        "seed": 0, "version": SOURCES["kuairec"].version, "fingerprint": small.fingerprint,
    }  # fmt: skip
    assert result["settings"] == {"episodes": 300, "sessions": 40, "seed": 0}
    assert result["space"]["learning_rate"] == "0.0003 to 0.01, log-uniform"
    assert result["space"]["n_steps"] == "one of 8, 16, 32"
    assert result["fixed"] | result["best"]["params"] == (
        AGENTS["a2c"].hyperparams | result["best"]["params"]
    )
    assert not result["fixed"].keys() & result["space"].keys()
    assert [trial["number"] for trial in result["trials"]] == [0, 1, 2]
    assert all(trial["seconds"] >= 0 for trial in result["trials"])
    best = max(result["trials"], key=lambda trial: trial["value"])
    assert result["best"] == {name: best[name] for name in ("params", "value")}
    assert "optuna" in result["versions"]
    with pytest.raises(DataFormatError, match="There are no results"):  # it is a study
        read_results(tmp_path)


@pytest.mark.parametrize("killed_at", [0, 3, 12])
def test_a_killed_study_goes_on_where_it_was(guess, killed_at, tmp_path: Path, monkeypatch) -> None:
    """Killed in its first trial, among the random ones, and where the model decides."""
    whole = trials(tune(SPEC, 15, tmp_path / "whole", progress=False))
    assert len({params["learning_rate"] for _, params, _ in whole}) == 15
    worth, out, begun = tuning.session_length, tmp_path / "killed", []

    def until_killed(*arguments: Any) -> float:
        if len(begun) == killed_at:
            raise KeyboardInterrupt
        begun.append(arguments)
        return worth(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "session_length", until_killed)
        with pytest.raises(KeyboardInterrupt):
            tune(SPEC, 15, out, progress=False)
    for file in out.glob("*.json"):
        assert trials(file) == whole[:killed_at]
    (journal,) = out.glob("*.journal")
    with journal.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id"')  # torn as by a full disk
    journal.with_suffix(".journal.lock").symlink_to(journal)  # Optuna's lock, held by nobody
    guess.clear()
    assert trials(tune(SPEC, 15, out, progress=False)) == whole
    assert len(guess) == 15 - killed_at


@pytest.mark.parametrize("killed_at", [None, 8])
def test_trials_below_the_median_of_earlier_ones_end_half_way(
    killed_at, tmp_path: Path, monkeypatch
) -> None:
    halves = [5.0, 1.0, 4.0, 2.0, 3.0, 2.9, 3.0, 9.0, 3.1, 2.0]  # medians: 3, then 2.95, 3, ...
    played: list[tuple[float, float | None]] = []

    def values(spec, dataset, purifier, users, params, half_way) -> float:
        if len(played) == killed_at:
            monkeypatch.setattr(tuning, "session_length", values_again)
            raise KeyboardInterrupt
        return values_again(spec, dataset, purifier, users, params, half_way)

    def values_again(spec, dataset, purifier, users, params, half_way) -> float:
        half_way.value = halves[len(played)]
        half_way.is_poor = half_way.value < half_way._least
        played.append((half_way.value, half_way._least))
        return 10.0 + half_way.value

    monkeypatch.setattr(tuning, "session_length", values)
    if killed_at is not None:
        with pytest.raises(KeyboardInterrupt):
            tune(SPEC, 10, tmp_path, progress=False, prune=True)
    result = read(tune(SPEC, 10, tmp_path, progress=False, prune=True))
    assert [least for _, least in played] == [-np.inf] * 5 + [3.0, 2.95, 3.0, 3.0, 3.0]
    found = [(trial["value"], trial.get("pruned", False)) for trial in result["trials"]]
    expected = [(10.0 + half, False) for half in halves]
    expected[5], expected[9] = (2.9, True), (2.0, True)
    assert found == expected
    assert result["best"]["value"] == 19.0
    assert "2 trials ended half-way" in tuning.TuneStudy.markdown([result])
    with pytest.raises(ConfigError, match="prune"):
        tune(SPEC, 12, tmp_path, progress=False)


@pytest.mark.parametrize("least", [-np.inf, np.inf])
def test_half_way_is_half_of_the_sessions(small, least: float) -> None:
    users, seen = split_users(small, 0), []

    def judge(model: Any) -> float:
        seen.append(model.num_timesteps)
        return 4.0

    half_way = tuning.HalfWay(SPEC.episodes, judge, least)
    model, block = learning.train_agent(SPEC, small, None, False, users=users[0], watch=half_way)
    assert seen == [model.num_timesteps] if half_way.is_poor else len(seen) == 1
    sessions = SPEC.episodes // 2 if half_way.is_poor else SPEC.episodes
    assert sessions <= block["episodes"] < sessions + model.n_envs
    assert (half_way.value, half_way.is_poor) == (4.0, least > 4.0)


def test_a_finished_study_is_not_repeated_but_can_be_prolonged(guess, tmp_path: Path) -> None:
    path = tune(SPEC, 2, tmp_path, progress=False)
    before = path.read_bytes()
    assert tune(SPEC, 2, tmp_path, progress=False) == path
    assert path.read_bytes() == before
    assert trials(tune(SPEC, 3, tmp_path, progress=False))[:2] == trials(path)[:2]
    assert len(guess) == 3
    path.with_suffix(".journal").unlink()
    assert tune(SPEC, 3, tmp_path, progress=False) == path
    with pytest.raises(ConfigError, match="put the journal back"):
        tune(SPEC, 4, tmp_path, progress=False)
    assert len(trials(path)) == 3


@pytest.mark.parametrize("left", ["journal", "json"])
@pytest.mark.parametrize("change", [{"seed": 1}, {"episodes": 301}, {"sessions": 41}, "data"])
def test_another_study_is_refused(guess, left, change, tmp_path: Path, monkeypatch) -> None:
    """Whichever of its files is left."""
    from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

    path = tune(SPEC, 1, tmp_path, progress=False)
    (path if left == "journal" else path.with_suffix(".journal")).unlink()
    spec = SPEC
    if change == "data":
        other = synthetic_kuairec(
            5, SyntheticConfig(n_users=100, n_test_users=20, n_items=120, events_per_user=20)
        )
        monkeypatch.setattr(origin, "shared_dataset", lambda *_: other)
    else:
        spec = replace(SPEC, **change)
    with pytest.raises(ConfigError, match="holds the result of other data or settings"):
        tune(spec, 1, tmp_path, progress=False)
    assert len(guess) == 1


def test_purifiers_are_fitted_once(small, quick_fit, tmp_path: Path, monkeypatch) -> None:
    """And wrap the environment in training and in the sessions that count."""
    from benchmarks.agents import agent

    fitted, wrapped = [], []
    learner = AGENTS["dsrm-hrl"]

    def fit(name, dataset, progress, **options) -> Any:
        fitted.append(quick_fit(name, dataset, **options))
        return fitted[-1]

    def recorded(env, purifier, options, training) -> Any:
        wrapped.append((purifier, training))
        return learner.wrap(env, purifier, options, training)

    monkeypatch.setattr(agent, "fit_purifier", fit)
    monkeypatch.setitem(AGENTS, "dsrm-hrl", replace(learner, wrap=recorded))
    spec = Run("dsrm-hrl", max_len=3, seed=0, episodes=1, sessions=4)
    tune(spec, 2, tmp_path, progress=False)
    assert len(fitted) == 1
    assert wrapped == [(fitted[0], True), (fitted[0], False)] * 2


def test_a_scorer_is_rewarded_for_fairness_in_training_alone(
    small, tmp_path: Path, monkeypatch, quick_fit
) -> None:
    from benchmarks.agents import agent, sb3

    made = []

    def fit(name, dataset, progress, **options) -> Any:
        return quick_fit(name, dataset, **options)

    class Recorded(sb3.ScorerVecEnv):
        def __init__(self, *arguments: Any) -> None:
            made.append(arguments[1:])
            super().__init__(*arguments)

    monkeypatch.setattr(agent, "fit_purifier", fit)
    monkeypatch.setattr(sb3, "ScorerVecEnv", Recorded)
    spec = Run("flat", max_len=3, seed=0, episodes=1, sessions=4)
    found = trials(tune(spec, 2, tmp_path, progress=False))
    coefficients = [params["fairness_coef"] for _, params, _ in found]
    assert coefficients[0] == AGENTS["flat"].hyperparams["fairness_coef"] != coefficients[1]
    expected = [coefficients[0], 0.0, coefficients[1], 0.0]
    assert made == [(False, coefficient) for coefficient in expected]


def test_the_command_prints_the_trials_and_a_block_for_the_settings(
    guess, tmp_path: Path, capsys
) -> None:
    command = ["tune", "a2c", "--episodes", "20", "--sessions", "10", "--max-len", "5",
               "--trials", "12", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    result = read(path)
    assert result["settings"] == {"episodes": 20, "sessions": 10, "seed": 0}
    rows = [line for line in printed.splitlines() if line.startswith("|")][2:]
    lengths = [float(row.split("|")[-3]) for row in rows]
    assert len(rows) == 10
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] == pytest.approx(result["best"]["value"], abs=1e-3)
    block = json.loads(printed.split("```json\n")[1].split("```")[0])
    assert block == {"a2c": AGENTS["a2c"].hyperparams | result["best"]["params"]}
    assert printed.endswith(f"\n\n{path}\n")


def test_the_command_tunes_an_agent_on_real_rows(real_folder: Path, tmp_path: Path, capsys) -> None:
    command = ["tune", "a2c", "--dataset", str(real_folder), "--max-len", "5", "--trials", "2",
               "--episodes", "20", "--sessions", "10", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    result = read(tmp_path / "tune_a2c_KuaiRec-Fair-v0_kuairec-modelled_T5.json")
    assert result["dataset"]["synthetic"] is False
    assert all(1 <= trial["value"] <= 5 for trial in result["trials"])


def test_what_cannot_be_tuned_is_refused(tmp_path: Path, capsys) -> None:
    command = ["tune", "a2c", "--out", str(tmp_path)]
    assert main([*command, "--env", "KuaiRand-Retention-v0"]) == 2  # sessions of one length
    assert "env must be one of" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="agent must be one of"):
        tune(Run("random"), 1, tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        tune(SPEC, 1, tmp_path / "file")
    for bad in (["--trials", "0"], ["--seed", "x"]):
        with pytest.raises(SystemExit):
            main([*command, *bad])


@pytest.mark.parametrize("room", [150, 2000, 5000, 7777])
def test_a_full_disk_ends_a_search_which_goes_on_where_there_is_room(
    guess, tmp_path: Path, room: int
) -> None:
    """The journal then ends in the middle of a line."""
    whole = trials(tune(SPEC, 5, tmp_path / "whole", progress=False))
    with files_of_at_most(room), pytest.raises(DiskSpaceError, match="journal cannot be written"):
        tune(SPEC, 5, tmp_path / "full", progress=False)
    assert trials(tune(SPEC, 5, tmp_path / "full", progress=False)) == whole
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "full").iterdir()) == names


def search(**other: Any) -> dict[str, Any]:
    trials = [{"value": value, "seconds": 50.0} for value in (18.5, 19.25, 17.0)]
    return {
        "study": "tune", "agent": "a2c", "env": "KuaiRec-Fair-v0", "max_len": 30, "dataset": TODAY,
        "settings": {"episodes": 4000}, "space": {"n_steps": "one of 8, 16"}, "fixed": {},
        "trials": trials, "best": {"value": 19.25}, **other,
    }  # fmt: skip


def test_a_summary_says_what_searches_cost_and_found() -> None:
    world = "kuairec (SYNTHETIC world), T = 30"
    assert summary([search()]).splitlines()[2:] == [
        f"| *a2c* | {world} | n steps | 3 | 4,000 | 18.50 | 19.25 | 2 |"
    ]


@pytest.mark.parametrize(
    "other",
    [{"trials": []}, {"best": {}}, {"trials": [{"value": None, "seconds": 1.0}]}],
)
def test_a_search_without_lengths_is_refused(other: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tune.json").write_text(json.dumps(search()))
    assert read_studies(tmp_path) == [search()]
    (tmp_path / "tune.json").write_text(json.dumps(search(**other)))
    with pytest.raises(DataFormatError, match="The search of a2c in .* has no length"):
        read_studies(tmp_path)


RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
SEARCHED = sorted(RESULTS.glob("tuning/tune_*.json"))
# Agents whose best trials are not ahead of the first beyond chance.
KEPT = {"dsrm-hrl", "ppo", "ppo+quota"}


def test_the_committed_searches_are_found() -> None:
    assert {path.stem.split("_")[1] for path in SEARCHED} >= {"a2c", "hrl", *KEPT}


@pytest.mark.parametrize("path", SEARCHED, ids=lambda path: path.stem)
def test_agents_have_the_settings_that_the_committed_search_found(path: Path) -> None:
    result = read(path)
    agent = AGENTS[result["agent"]]
    assert result["space"] == {name: one.text for name, one in agent.searched.items()}
    fixed = agent.settings.keys() - agent.searched.keys()
    assert result["fixed"] == {name: agent.settings[name] for name in fixed}
    first, best = result["trials"][0], result["best"]
    if agent.name in KEPT:
        assert best["value"] - first["value"] < 0.05
        best = first
    assert agent.hyperparams == result["fixed"] | {
        name: pytest.approx(value, rel=0.05)  # two digits of it
        for name, value in best["params"].items()
    }


def test_agents_on_estimates_have_the_defaults_of_their_algorithm() -> None:
    signatures = map(inspect.signature, (SlatePPO, HierarchicalPPO))
    defaults = {
        name: one.default for signature in signatures for name, one in signature.parameters.items()
    }
    for name in ("belief-hrl", "dsrm-hrl"):
        found = AGENTS[name].hyperparams
        assert found["n_envs"] == 64
        for option in ("learning_rate", "n_epochs", "clip_range", "manager_gamma", "fairness_coef"):
            assert found[option] == defaults[option], option
