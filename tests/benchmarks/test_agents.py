"""Rows of the benchmark's agents, and agents that users bring along."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import agents, origin, paper
from benchmarks.__main__ import main
from benchmarks.agents import AGENTS, Agent, by_name, constructor, find_agent
from benchmarks.agents.agent import purified
from benchmarks.runs.settings import Run, weights_of
from dsrm_agents import evaluate, make_vec_env
from kuaisim_gym.errors import ConfigError

TRAINED = [name for name, agent in AGENTS.items() if agent.rule is None]
TOYS = """
from stable_baselines3 import A2C
from benchmarks.agents import Agent, constructor, log_uniform
from benchmarks.agents.sb3 import ppo
from dsrm_agents.baselines.reference import make_reference

LEARNER = Agent(
    "toy-a2c",
    build=constructor(A2C, "MlpPolicy"),
    settings={"n_envs": 4, "learning_rate": log_uniform(1e-4, 1e-2, value=1e-3)},
)
class Rows:
    RULE = Agent("toy-rule", rule=lambda batch: make_reference("random", batch),
                 env_options={"action_type": "slate"})
TWIN = Agent("toy-a2c", rule=Rows.RULE.rule)
PEEKS = Agent("peeks", rule=Rows.RULE.rule, env_options={"max_len": 100, "split": "train"})
class Slash:
    name = "a/b"
    def predict(self, observation, state=None, starts=None, deterministic=True): ...
class Alone:
    def __init__(self, batch): pass
    def predict(self, observation, state=None, starts=None, deterministic=True):
        return observation
TAKEN = Agent("ppo", rule=Rows.RULE.rule)
KNOWN = ppo
NUMBER = 7
"""
SIZES = ("--max-len", "6", "--episodes", "12", "--sessions", "20")


@pytest.fixture
def toys(tmp_path: Path, monkeypatch) -> str:
    """Module of agents that the benchmark has never heard of."""
    package = tmp_path / "modules" / "toypackage"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "toys.py").write_text(TOYS)
    (package / "broken.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(str(package.parent))
    return "toypackage.toys"


def read(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


@pytest.mark.parametrize("name", TRAINED)
def test_an_algorithm_accepts_its_settings(name: str, small) -> None:
    agent = AGENTS[name]
    hyperparams = agent.hyperparams
    assert agent.space
    assert agent.space.keys() <= hyperparams.keys()
    options = {"dataset": small, "max_len": 5, **agent.env_options}
    env = make_vec_env("KuaiRec-Fair-v0", hyperparams.pop("n_envs"), "train", **options)
    wrapper_options = {option: hyperparams.pop(option) for option in agent.wrapper_options}
    if agent.fit is None:  # none of the fitted objects changes what the algorithm accepts
        env = agent.wrap(env, None, wrapper_options, True)
    assert agent.build is not None
    model = agent.build(env, hyperparams, 1)
    assert model.seed == 1
    for option in hyperparams.keys() & {"gamma", "n_steps", "batch_size", "fairness_coef"}:
        assert getattr(model, option) == hyperparams[option]


def test_the_rows_say_where_a_method_comes_from_and_what_it_is_compared_with() -> None:
    for name, agent in AGENTS.items():
        assert name == agent.name
        assert bool(agent.label) == bool(agent.tables)
        assert agent.reference or agent.rule is not None
        assert set(agent.controls) <= AGENTS.keys() - {name}
    labels = [agent.label for agent in AGENTS.values() if agent.label]
    assert len(set(labels)) == len(labels)
    assert set(labels) == paper.published("kuairec", 30).keys()


def test_a_purifier_says_which_preference_it_reads() -> None:
    agent = AGENTS["dsrm-hrl"]
    reader = SimpleNamespace(reads="belief")
    assert agent.options_for(reader) == {**agent.env_options, "preference": "belief"}
    for silent in (None, SimpleNamespace()):
        assert agent.options_for(silent) == agent.env_options
    assert AGENTS["belief-hrl"].options_for(None)["preference"] == "belief"


def test_all_modules_have_rows_and_no_name_stands_in_two() -> None:
    modules = {module.name for module in iter_modules(agents.__path__)} - {"agent"}
    assert modules == set(agents.ORDER)
    families = [import_module(f"benchmarks.agents.{name}").AGENTS for name in agents.ORDER]
    assert [agent.name for family in families for agent in family] == list(AGENTS)


def test_a_new_family_is_one_more_module(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "aardvark.py").write_text(TOYS + "AGENTS = (LEARNER,)\n")
    monkeypatch.setattr(agents, "__path__", [*agents.__path__, str(tmp_path)])
    names = [agent.name for agent in agents._discover()]
    assert names == [*AGENTS, "toy-a2c"]


def test_a_setting_is_moved_within_its_search_space() -> None:
    a2c = AGENTS["a2c"]
    moved = Agent("moved", build=a2c.build, settings=a2c.at(gamma=0.5, n_envs=2, vf_coef=0.1))
    assert moved.space == a2c.space
    assert moved.hyperparams == a2c.hyperparams | {"gamma": 0.5, "n_envs": 2, "vf_coef": 0.1}


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("a/b", {"rule": AGENTS["random"].rule}, "must be letters"),
        ("", {"rule": AGENTS["random"].rule}, "must be letters"),
        ("toy", {}, "either build or rule"),
        ("toy", {"build": AGENTS["a2c"].build, "rule": AGENTS["random"].rule}, "either build or"),
        ("toy", {"build": AGENTS["a2c"].build}, "lacks the settings .'n_envs'"),
        ("toy", {"rule": AGENTS["random"].rule, "wrapper_options": ("x",)}, "lacks the .* .'x'"),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(name: str, row: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Agent(name, **row)


def test_a_user_s_agents_run_and_are_tuned_by_command(toys: str, tmp_path: Path, capsys) -> None:
    learner, rule, out = f"{toys}:LEARNER", f"{toys}:Rows.RULE", str(tmp_path / "out")
    command = ["run", "--agent", learner, "--out", out, "--seed", "1", *SIZES]
    assert main(command) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path.name == "toy-a2c_KuaiRec-Fair-v0_kuairec-synthetic_T6_seed1.json"
    (result,) = read(path.parent).values()
    assert result["agent"] == "toy-a2c"
    assert 12 <= result["train"]["episodes"] <= 16
    written = path.stat().st_mtime_ns

    # In processes of their own, beside an agent of the benchmark; the run above is not repeated.
    suite = ["suite", "--agents", learner, rule, "random", "--seeds", "1", "2", "--jobs", "2"]
    assert main([*suite, "--out", out, *SIZES]) == 0
    assert path.stat().st_mtime_ns == written
    results = read(path.parent)
    assert sorted(result["agent"] for result in results.values()) == sorted(
        2 * ["toy-a2c", "toy-rule", "random"]
    )
    metrics = {(result["agent"], result["seed"]): result["metrics"] for result in results.values()}
    assert metrics["toy-rule", 1] == metrics["random", 1]
    capsys.readouterr()
    assert main(["table", out, "--format", "markdown"]) == 0
    table = capsys.readouterr().out
    assert "| toy-a2c | 2 |" in table  # with its metrics
    glance = table[table.index("| Len, R_each") :]  # after the worlds' tables
    assert "\n| toy-rule | " in glance
    assert table.index("| toy-a2c |") < table.index("| random |")  # one's own come first
    assert "Longest sessions of a learned agent: toy-a2c" in table

    tune = ["tune", learner, "--trials", "2", "--out", str(tmp_path / "tuned"), *SIZES]
    assert main(tune) == 0
    ((name, result),) = read(tmp_path / "tuned").items()
    assert name == "tune_toy-a2c_KuaiRec-Fair-v0_kuairec-synthetic_T6.json"
    assert result["fixed"] == {"n_envs": 4}
    assert [*result["space"]] == ["learning_rate"]
    assert result["trials"][0]["params"] == {"learning_rate": 1e-3}
    assert main(["tune", rule, "--out", out]) == 2
    assert "agent must be one of those with settings to search" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("toypackage.toys:NOBODY", "has no attribute 'NOBODY'"),
        (
            "toypackage.toys:NUMBER",
            "must be a benchmarks.agents.agent.Agent or a class with `predict`, got builtins.int",
        ),
        ("toypackage.nowhere:TOY", "No module named 'toypackage.nowhere'"),
        ("toypackage.broken:TOY", "No module named 'no_such_library'"),
        ("toypackage/toys.py:LEARNER", "agent must name a module"),
        (":LEARNER", "agent must name a module"),
        ("toypackage.toys:TAKEN", "has the name of the benchmark's ppo"),
        ("toypackage.toys", "is named like mypackage.my:AGENT"),
        ("pppo", "Did you mean 'ppo'"),
    ],
)
def test_an_agent_that_is_not_to_be_had_is_refused(
    attribute: str, message: str, toys: str, tmp_path: Path, capsys
) -> None:
    for command in (["run", "--agent"], ["suite", "--agents"], ["tune"]):
        assert main([*command, attribute, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError):
        Run(attribute)


def test_an_agent_chooses_no_rules_of_the_world(toys: str) -> None:
    expected = r"toys:PEEKS has env_options \['max_len', 'split'\], which are the world's"
    with pytest.raises(ConfigError, match=expected):
        find_agent(f"{toys}:PEEKS")


def test_a_name_that_names_no_file_is_refused_in_one_sentence(toys: str) -> None:
    with pytest.raises(ConfigError, match=r"toys:Slash: An agent's name must be .* got 'a/b'\.$"):
        find_agent(f"{toys}:Slash")


def test_actions_without_a_hidden_state_are_refused(toys: str, small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small, max_len=5)
    rule = find_agent(f"{toys}:Alone").rule
    assert rule is not None
    with pytest.raises(ConfigError, match=r"predict\(\) of Alone must return a pair"):
        evaluate(rule(env.batch), env, 2)


def test_two_agents_of_one_name_are_refused(toys: str, tmp_path: Path, capsys) -> None:
    suite = ["suite", "--out", str(tmp_path / "out"), "--agents", f"{toys}:LEARNER"]
    assert main([*suite, f"{toys}:TWIN"]) == 2
    assert "Agents must have different names" in capsys.readouterr().err
    assert find_agent(f"{toys}:KNOWN") is AGENTS["ppo"]


def test_two_rows_of_one_name_are_refused() -> None:
    twin = replace(AGENTS["a2c"], purifier="dsrm")
    with pytest.raises(ConfigError, match="Two agents have the name 'a2c'"):
        by_name([*AGENTS.values(), twin])
    assert by_name(AGENTS.values()) == AGENTS


def test_an_algorithm_gets_noise_and_policy_options_under_its_own_names() -> None:
    calls: list[dict[str, Any]] = []

    def algorithm(policy: str, env: Any, **options: Any) -> None:
        calls.append(options)

    class Env:
        class action_space:
            shape = (2,)

    build = constructor(algorithm, "P", "width", depth=lambda env, options: options.pop("layers"))
    build(Env(), {"width": 8, "layers": 3, "noise_std": 0.5, "gamma": 0.9}, 4)
    (options,) = calls
    assert options.pop("action_noise")._sigma.tolist() == [0.5, 0.5]
    assert options == {
        "policy_kwargs": {"width": 8, "depth": 3}, "gamma": 0.9, "seed": 4, "device": "cpu",
    }  # fmt: skip


def test_no_purifier_leaves_the_environment_as_it_is(small) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", 1, "train", dataset=small)
    assert purified(env, None) is env


OWN = "benchmarks.examples.own_agent:HalfAndHalf"


def test_the_example_of_one_s_own_shows_half_and_half_and_nothing_twice(small) -> None:
    agent = find_agent(OWN)
    assert (agent.name, agent.env_options["action_type"]) == ("half-and-half", "slate")
    env = make_vec_env("KuaiRec-Fair-v0", 20, "test", 1, dataset=small, **agent.env_options)
    assert agent.rule is not None
    sessions = evaluate(agent.rule(env.batch), env, 20)
    popular, exposures = small.popular, env.catalogue.exposures
    for slates, steps in zip(sessions.slates, sessions.length, strict=True):
        shown = slates[:steps]
        assert (popular[shown].sum(axis=1) == 5).all()
        fresh = shown[:9]  # of 48 popular items
        assert len(np.unique(fresh)) == fresh.size
    first = sessions.slates[0, 0]
    assert set(first[:5]) == set(np.argsort(-exposures * popular, kind="stable")[:5])


def test_every_command_with_an_agent_takes_a_class(small, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    sizes = ["--max-len", "5", "--sessions", "20"]
    out = ["--out", str(tmp_path)]
    assert main(["train", OWN, *sizes, *out]) == 0
    suite = ["suite", "--agents", OWN, "--seeds", "11", "12", "--jobs", "1"]
    assert main([*suite, *sizes, *out]) == 0
    assert len(read(tmp_path)) == 2  # the first of which was made before
    capsys.readouterr()
    for command in (["evaluate", "--agent", OWN, *sizes], ["play", OWN, "--max-len", "5"]):
        assert main(command) == 0
        shown = capsys.readouterr().out
        assert "half-and-half" in shown or "over after" in shown
    estimates = ["estimates", "--agents", OWN, "--estimates", "belief", "--dataset-seeds", "0"]
    study = ["--envs", "KuaiRec-Fair-v0", "--seeds", "11", "--jobs", "1", *sizes]
    assert main([*estimates, *study, "--out", str(tmp_path / "estimates")]) == 0
    assert "half-and-half" in capsys.readouterr().out
    assert main(["tune", OWN, *out]) == 2
    assert "agent must be one of those with settings" in capsys.readouterr().err


def test_an_algorithm_without_settings_or_an_object_is_no_agent() -> None:
    with pytest.raises(ConfigError, match="A2C is an algorithm, which needs settings"):
        find_agent("stable_baselines3:A2C")
    with pytest.raises(ConfigError, match=r"a class with `predict`, got builtins\.function"):
        find_agent("dsrm_agents:evaluate")


def test_agents_without_actions_of_their_own_are_over_scorers_or_the_task_s_weights() -> None:
    assert weights_of("KuaiRec-Fair-v0") == weights_of("KuaiRand-Request-v0")
    assert weights_of("KuaiRec-Fair-v0") == {"action_type": "scorer"}
    assert weights_of("KuaiRand-Retention-v0") == {}  # fusion
