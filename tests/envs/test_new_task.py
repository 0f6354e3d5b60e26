"""A task of a user: a subclass and an id are all that the shells and the benchmarks need."""

from __future__ import annotations

import argparse
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

import kuaisim_gym
from benchmarks.reports.plots import plot_all
from benchmarks.reports.tables import markdown
from benchmarks.runs.run import add_arguments, run
from benchmarks.runs.settings import Run, spec_of
from benchmarks.studies.results import read_results, task_of
from dsrm_agents import evaluate, make_vec_env
from kuaisim_gym.envs.assembly import TASKS, SessionBatch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import Sessions

ENV = "Toy-v0"


class ToyBatch(SessionBatch, task="toy"):
    """Few short requests, and a context column that tells the best response so far."""

    defaults: ClassVar[dict[str, Any]] = {"max_len": 4, "abandonment": "none"}
    extra_context = ("best",)
    columns: ClassVar[dict[str, str]] = {"best": "best step", "r_each": "R_each"}
    headline = ("best", "largest reward of a step")

    def step(self, actions, slots=None):
        result = super().step(actions, slots)
        rows = np.arange(self.n_sessions)
        self.encoder.set_context(rows, best=self.core.state.rewards.max(axis=1))
        return result

    def session(self, measures=None):
        return super().session(measures) | {"best": self.core.state.rewards.max(axis=1)}

    def summarise(self, sessions: Sessions) -> dict[str, float]:
        return super().summarise(sessions) | {"best": float(sessions.rewards.max())}


@pytest.fixture(scope="module", autouse=True)
def registered():
    kuaisim_gym.register(ENV, "kuairec", "toy", slate_size=3)
    yield
    del kuaisim_gym.ENVIRONMENTS[ENV], gym.registry[ENV], TASKS["toy"]


def test_it_plays_alike_in_every_shell(small) -> None:
    single = gym.make(ENV, dataset=small)
    vector = gym.make_vec(ENV, num_envs=2, dataset=small, autoreset_mode="SameStep")
    shell = make_vec_env(ENV, 2, seed=7, dataset=small)
    observation, _ = single.reset(seed=7)
    observations, seen = vector.reset(seed=7)[0], shell.reset()
    rng, ends = np.random.default_rng(0), 0
    for _ in range(8):
        np.testing.assert_array_equal(observations, seen)
        np.testing.assert_array_equal(observations[0], observation)
        actions = rng.uniform(-1, 1, (2, 11)).astype(np.float32)
        observation, reward, terminated, _, info = single.step(actions[0])
        observations, rewards, over, _, infos = vector.step(actions)
        seen, paid, dones, told = shell.step(actions)
        np.testing.assert_array_equal(paid, rewards.astype(np.float32))
        assert (reward, terminated) == (rewards[0], over[0])
        assert dones.tolist() == over.tolist()
        if terminated:
            ends += 1
            assert info["session"] == told[0]["session"]
            assert info["session"]["best"] == infos["final_info"]["session"]["best"][0]
            assert observation[13] == np.float32(info["session"]["best"])
            observation, _ = single.reset()
            observations[:, 13] = seen[:, 13] = observation[13]  # the toy forgets at no reset
    assert ends > 1
    assert info["slate_responses"].shape == (3,)


def test_it_is_summarised_and_tabulated(small, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("benchmarks.origin.shared_dataset", lambda name, path, seed: small)
    for agent in ("random", "a2c"):
        run(Run(agent, ENV, max_len=4, episodes=64, sessions=40), tmp_path, progress=False)
    results = read_results(tmp_path)
    assert task_of(ENV) is ToyBatch
    for result in results:
        assert {"len", "best", "best_ci95"} <= result["metrics"].keys()
    heading, _, header, _, first, second, *_ = markdown(results).splitlines()
    assert heading.startswith("### Toy-v0, kuairec")
    assert header == "| agent | seeds | best step | R_each | train s |"
    assert first.startswith("| random | 1 | 1.000 ±")
    assert second.startswith("| a2c | 1 | ")
    assert len(plot_all(results, tmp_path)) == 2


def test_the_batch_summarises_what_an_agent_plays(small) -> None:
    env = make_vec_env(ENV, 5, seed=1, dataset=small)

    class Zero:
        def predict(self, observation, state=None, episode_start=None, deterministic=False):
            return np.zeros((5, 11), dtype=np.float32), None

    values = env.batch.summarise(evaluate(Zero(), env, 10))
    assert 0 < values["best"] <= 1
    assert (
        values.keys()
        > kuaisim_gym.summarise(evaluate(Zero(), env, 5), env.catalogue.popular).keys()
    )


def test_a_name_belongs_to_one_task() -> None:
    with pytest.raises(ConfigError, match="name 'session' of .* belongs to .*SessionBatch"):
        type("OtherBatch", (SessionBatch,), {}, task="session")
    assert TASKS["session"] is SessionBatch
    with pytest.raises(TypeError, match="task"):
        type("NamelessBatch", (SessionBatch,), {})


def test_an_id_belongs_to_one_environment() -> None:
    before = {name: dict(row) for name, row in kuaisim_gym.ENVIRONMENTS.items()}
    kuaisim_gym.register(ENV, "kuairec", "toy", slate_size=3)  # its module is executed again
    retention = "kuaisim_gym.envs.single:KuaiRetentionEnv"
    for arguments, options in (
        (("kuairand", "toy"), {"slate_size": 3}),
        (("kuairec",), {"slate_size": 3}),
        (("kuairec", "toy"), {"slate_size": 4}),
        (("kuairec", "toy", retention), {"slate_size": 3}),
    ):
        with pytest.raises(ConfigError, match="Toy-v0 is .*: choose another id"):
            kuaisim_gym.register(ENV, *arguments, **options)
    with pytest.raises(ConfigError, match="CartPole-v1 is .* already"):
        kuaisim_gym.register("CartPole-v1", "kuairec")
    with pytest.raises(ConfigError, match="An environment id must be .* got .no version."):
        kuaisim_gym.register("no version", "kuairec")
    assert before == kuaisim_gym.ENVIRONMENTS
    assert gym.spec(ENV).kwargs == {"env_id": ENV}


def test_an_id_is_found_by_its_module(tmp_path, monkeypatch, small) -> None:
    (tmp_path / "my_ids.py").write_text(
        "import kuaisim_gym\n"
        'kuaisim_gym.register("Module-v0", "kuairec", abandonment="none", max_len=7)\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    try:
        env = make_vec_env("my_ids:Module-v0", 1, dataset=small)
        assert (env.batch.config.max_len, env.batch.config.abandonment) == (7, "none")
        assert gym.make("my_ids:Module-v0", dataset=small).spec.id == "Module-v0"
        options = ["--env", "my_ids:Module-v0", "--agent", "random", "--out", "."]
        parser = argparse.ArgumentParser()
        add_arguments(parser)
        spec = spec_of(parser.parse_args(options))
        assert spec == Run("random", "my_ids:Module-v0", max_len=7)
        assert spec.world == "Module-v0_kuairec-synthetic_T7"
    finally:
        del kuaisim_gym.ENVIRONMENTS["Module-v0"], gym.registry["Module-v0"]
    with pytest.raises(ConfigError, match="no_such_module:Module-v0 cannot be imported"):
        Run("random", "no_such_module:Module-v0")
    with pytest.raises(ConfigError, match="env must be one of .* Did you mean 'KuaiRec-v0'"):
        Run("random", "KuaiRek-v0")


def test_a_class_of_one_task_refuses_ids_of_others(small) -> None:
    with pytest.raises(ConfigError, match="KuaiRetentionEnv fixes its task, 'retention'"):
        kuaisim_gym.KuaiRetentionEnv(env_id=ENV, dataset=small)
    assert kuaisim_gym.KuaiEnv(env_id=ENV, dataset=small).batch.task == "toy"


def test_an_unknown_task_is_refused_when_the_environment_is_made() -> None:
    kuaisim_gym.register("Nothing-v0", "kuairec", "toi")
    try:
        with pytest.raises(ConfigError, match="task must be one of .* Did you mean 'toy'"):
            gym.make("Nothing-v0")
    finally:
        del kuaisim_gym.ENVIRONMENTS["Nothing-v0"], gym.registry["Nothing-v0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("Mine", "kuairec"), "An environment id must be .* got 'Mine'"),
        (("my/Mine-v0", "kuairec"), "An environment id must be"),
        (("my:Mine-v0", "kuairec"), "An environment id must be"),
        (("Mine-v0 ", "kuairec"), "An environment id must be"),
        (("Mine-v", "kuairec"), "An environment id must be"),
        ((7, "kuairec"), "An environment id must be .* got 7"),
        (("Mine-v0", None), "The dataset of Mine-v0 must be .* got None"),
        (("Mine-v0", ""), "The dataset of Mine-v0 must be"),
        (("Mine-v0", "a=b"), "The dataset of Mine-v0 must be"),
        (("Mine-v0", "kuairec", 3), "The task of Mine-v0 must be .* got 3"),
        (
            ("Mine-v0", "kuairec", "session", "Mine"),
            "entry_point of Mine-v0 must be 'module:class'",
        ),
    ],
)
def test_what_is_no_registration_is_refused_and_leaves_nothing(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        kuaisim_gym.register(*arguments)
    assert arguments[0] not in kuaisim_gym.ENVIRONMENTS
    assert arguments[0] not in gym.registry


def test_the_same_registration_again_changes_nothing() -> None:
    labels = np.arange(20) % 2
    try:
        for same in (labels, labels.copy()):
            kuaisim_gym.register("Again-v0", "kuairec", groups=same, target=(0.5, 0.5))
        for other in (labels[1:], 1 - labels, "popularity"):
            with pytest.raises(ConfigError, match="Again-v0 is .*: choose another id"):
                kuaisim_gym.register("Again-v0", "kuairec", groups=other, target=(0.5, 0.5))
        assert kuaisim_gym.ENVIRONMENTS["Again-v0"]["groups"] is not None
    finally:
        del kuaisim_gym.ENVIRONMENTS["Again-v0"], gym.registry["Again-v0"]
