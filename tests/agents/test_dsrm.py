"""DSRM, its student and its controls: what they learn, and that they are kept and found again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import origin
from benchmarks.purify import report, study
from benchmarks.study import run_studies
from dsrm_agents import (
    DSRM,
    PurifyObservation,
    PurifyVecEnv,
    PurifyVectorObservation,
    Student,
    distil,
    fit_dsrm,
    fit_purifier,
    load_purifier,
    make_vec_env,
)
from dsrm_agents.dsrm import measures
from dsrm_agents.dsrm.measures import cosine, identity_check, popularity_leakage
from dsrm_agents.dsrm.pairs import build_pairs
from dsrm_agents.dsrm.probes import probe, probe_data
from dsrm_agents.dsrm.purifier import PURIFIERS, FittedPurifier
from dsrm_agents.dsrm.training import TrainConfig, TrainRun
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def states() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def measured(world) -> dict[str, dict[str, float]]:
    """Purifiers of the full world, as found on users that none of them was fitted on."""
    data = probe_data(world)
    teacher = fit_dsrm(world, seed=0)
    fitted = {
        "identity": fit_purifier("identity", world),
        "linear": fit_purifier("linear", world),
        "dsrm": teacher,
        "student": distil(teacher, world),
        "oracle-regression": fit_purifier("oracle-regression", world),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "SHUFFLES", 1)  # nothing is asked of the floors here
        return {name: probe(purifier.denoise, data) for name, purifier in fitted.items()}


def test_dsrm_removes_popularity_and_comes_nearer_to_the_true_preference(measured) -> None:
    raw, purified, bound = (measured[name] for name in ("identity", "dsrm", "oracle-regression"))
    assert raw["leakage_r2"] > 0.6
    assert purified["leakage_r2"] < 0.25 * raw["leakage_r2"]
    assert purified["leakage_mlp"] < 0.25 * raw["leakage_mlp"]
    gain = (purified["cosine"] - raw["cosine"]) / (bound["cosine"] - raw["cosine"])
    assert gain > 0.5
    assert purified["recall20_longtail"] > raw["recall20_longtail"] + 0.01
    assert purified["interest_accuracy"] > raw["interest_accuracy"]
    assert purified["effective_rank"] > 0.7 * bound["effective_rank"]
    assert purified["discriminability"] > raw["discriminability"]


def test_erasing_popularity_alone_brings_nobody_nearer(measured) -> None:
    assert measured["linear"]["leakage_r2"] < 0.1
    assert measured["linear"]["cosine"] < measured["identity"]["cosine"] + 0.05


def test_the_student_loses_little_of_the_gain(measured) -> None:
    raw, teacher, student = (measured[n]["cosine"] for n in ("identity", "dsrm", "student"))
    assert student > raw + 0.9 * (teacher - raw)
    assert measured["student"]["leakage_r2"] < 0.25 * measured["identity"]["leakage_r2"]


def in_brief(purifier, data) -> dict[str, float]:
    """What costs least of a probe."""
    states, reference = purifier.denoise(data.states), purifier.denoise(data.reference)
    truth, centre = data.causes.preference, reference.mean(axis=0)
    return {
        **identity_check(data.states, states),
        "leakage_r2": popularity_leakage(states, data.popularity),
        "cosine": cosine(states, truth, centre, np.zeros(states.shape[1])),
    }


def test_the_literal_mode_is_the_identity(world) -> None:
    found = in_brief(fit_dsrm(world, "literal"), probe_data(world))
    assert found["cosine_to_input"] > 0.98
    assert found["r2"] > 0.9
    assert found["leakage_r2"] > 0.6


def test_the_literal_optimum_is_the_identity(rand_world) -> None:
    """Predicting the clean state instead of the noise, which has the same optimum, gets there."""
    literal = fit_dsrm(rand_world, "literal", prediction="x0")
    assert in_brief(literal, probe_data(rand_world))["r2"] > 0.98


def test_unbiased_rows_teach_the_true_preference(rand_world) -> None:
    data = probe_data(rand_world)
    raw, purified = (in_brief(fit_purifier(n, rand_world), data) for n in ("identity", "dsrm"))
    assert purified["cosine"] > raw["cosine"] + 0.1
    assert purified["leakage_r2"] < 0.25 * raw["leakage_r2"]


def test_the_teacher_of_full_users_can_be_given_up_test_users(world) -> None:
    given = world.with_unbiased_users(700)
    data = probe_data(given)
    raw, purified = (in_brief(fit_purifier(n, given), data) for n in ("identity", "dsrm"))
    assert purified["cosine"] > raw["cosine"] + 0.1


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_purifier_is_fitted_kept_and_found_again(
    small, states, quick_fit, tmp_path, name
) -> None:
    purifier = quick_fit(name, small, seed=2)
    purified = purifier.denoise(states)
    assert purified.shape == states.shape
    assert purified.dtype == np.float32
    assert np.abs(purified).max() <= 10
    again = quick_fit(name, small, seed=2).denoise(states)
    np.testing.assert_array_equal(purified, again)
    alone = np.concatenate([purifier.denoise(state[None]) for state in states])
    np.testing.assert_allclose(purified, alone, atol=1e-4)
    path = tmp_path / "purifier.safetensors"
    purifier.save(path)
    for loaded in (load_purifier(path), type(purifier).load(path)):
        assert type(loaded) is PURIFIERS[name].purifier
        assert loaded.config == purifier.config
        assert loaded.digest == purifier.digest
        np.testing.assert_array_equal(loaded.denoise(states), purified)


def test_the_identity_changes_nothing(small, states) -> None:
    np.testing.assert_allclose(fit_purifier("identity", small).denoise(states), states, atol=1e-6)


@pytest.mark.parametrize("name", ["dsrm", "mlp", "vae"])
def test_agents_meet_states_of_the_size_they_know(small, name) -> None:
    encoder, users = preference_encoder(small), small.train_users
    raw = encoder.encode(encoder.history_sum[users], encoder.history_weight[users])
    purified = fit_purifier(name, small, updates=200).denoise(raw)
    assert np.square(purified).mean() == pytest.approx(raw.var(axis=0).mean(), rel=0.05)
    np.testing.assert_allclose(purified.mean(axis=0), 0, atol=0.05)


@pytest.mark.parametrize("name", [name for name in PURIFIERS if name != "oracle-regression"])
@pytest.mark.parametrize("dataset", ["small", "small_rand"])
def test_no_test_user_is_read(request, quick_fit, dataset, name) -> None:
    """What test users logged or answered changes no weight."""
    data = request.getfixturevalue(dataset)
    rng = np.random.default_rng(0)
    column = "watch_ratio" if dataset == "small" else "flags"

    def answered_otherwise(table, rows):
        values = getattr(table, column).copy()
        values[rows] = rng.permutation(values[rows])
        return dataclasses.replace(table, **{column: values})

    mine = np.isin(data.log.users, data.test_users)
    other = dataclasses.replace(
        data,
        log=answered_otherwise(data.log, mine),
        test=answered_otherwise(data.test, slice(None)),
        truth=None,
    )
    assert quick_fit(name, data).digest == quick_fit(name, other).digest


def test_no_global_seeding(small, states) -> None:
    before = torch.get_rng_state()
    one = fit_dsrm(small, updates=20, seed=4).denoise(states)
    assert torch.equal(before, torch.get_rng_state())
    assert np.any(one != fit_dsrm(small, updates=20, seed=5).denoise(states))


@pytest.mark.parametrize("name", ["dsrm", "student", "vae"])
def test_an_interrupted_fit_resumes_to_the_same_weights(small, tmp_path, monkeypatch, name) -> None:
    options = {"updates": 300}
    whole = fit_purifier(name, small, **options)
    calls = 0
    owner, method = (Student, "end") if name == "student" else (PURIFIERS[name].purifier, "loss")
    original = getattr(owner, method)

    def failing(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 260:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, failing)
    with pytest.raises(KeyboardInterrupt):
        fit_purifier(name, small, checkpoint=tmp_path / "progress", **options)
    assert (tmp_path / "progress").is_file()
    calls = 1000
    resumed = fit_purifier(name, small, checkpoint=tmp_path / "progress", **options)
    assert resumed.digest == whole.digest
    assert calls < 1100  # it went on from the last checkpoint
    with pytest.raises(CheckpointError, match="another fit"):
        fit_purifier(name, small, seed=1, checkpoint=tmp_path / "progress", **options)


def test_a_pair_counts_by_its_weight(small, monkeypatch) -> None:
    pairs = build_pairs(small.training, preference_encoder(small))
    purifier = fit_purifier("mlp", small, updates=1)
    condition = purifier.condition(torch.from_numpy(pairs.observed))
    losses = []
    monkeypatch.setattr(
        "dsrm_agents.dsrm.purifier.train", lambda module, loss, n_rows, run: losses.append(loss)
    )

    def gradient(factor: float) -> torch.Tensor:
        weight = factor * torch.from_numpy(pairs.weight)
        purifier.learn(condition, torch.from_numpy(pairs.target), weight, TrainRun(TrainConfig()))
        purifier.zero_grad()
        losses[-1](torch.arange(64)).backward()
        return torch.cat([value.grad.ravel() for value in purifier.parameters()]).clone()

    assert gradient(0.0).norm() == 0
    assert gradient(1.0).norm() > 0
    torch.testing.assert_close(gradient(2.0), 2 * gradient(1.0))


@pytest.mark.parametrize(
    "options",
    [
        {"diffusion_steps": 5},
        {"prediction": "x0"},
        {"prediction": "noise"},
        {"blind": 0},
        {"blind": 3},
    ],
)
def test_every_option_of_the_diffusion_works(small, dsrm, states, tmp_path, options) -> None:
    other = fit_dsrm(small, updates=30, seed=1, **options)
    assert np.any(other.denoise(states) != dsrm.denoise(states))
    other.save(tmp_path / "x")
    np.testing.assert_array_equal(DSRM.load(tmp_path / "x").denoise(states), other.denoise(states))


def test_drawn_states_scatter_and_served_ones_do_not(dsrm, states) -> None:
    observed = torch.from_numpy(states)
    with torch.inference_mode():
        for eta in (0.0, 1.0):
            one, same, other = (
                dsrm.draw(observed, eta=eta, generator=torch.Generator().manual_seed(seed))
                for seed in (1, 1, 2)
            )
            assert torch.equal(one, same)
            assert (one - other).abs().mean() > 0.1
    np.testing.assert_array_equal(dsrm.denoise(states), dsrm.denoise(states))


def test_bad_states_are_refused(dsrm, states) -> None:
    with pytest.raises(ConfigError, match=r"\(N, 32\)"):
        dsrm.denoise(states[:, :5])
    with pytest.raises(ConfigError, match="finite"):
        dsrm.denoise(np.full((1, 32), np.nan, np.float32))


def test_damaged_checkpoints_are_reported(dsrm, tmp_path) -> None:
    path = tmp_path / "dsrm.safetensors"
    dsrm.save(path)
    with pytest.raises(CheckpointError, match="cannot be read as a purifier: .*missing"):
        DSRM.load(tmp_path / "missing")
    (tmp_path / "torn").write_bytes(path.read_bytes()[:500])
    with pytest.raises(CheckpointError, match="cannot be read as a purifier"):
        load_purifier(tmp_path / "torn")
    save_file({"x": torch.zeros(1)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="is not a purifier of this version"):
        load_purifier(tmp_path / "other")
    with pytest.raises(CheckpointError, match="kind 'dsrm', expected 'student'"):
        Student.load(path)
    for kind, config, message in (
        ("foreign", '{"dim": 32}', "unknown kind"),
        ("dsrm", '{"dim": 32}', "damaged"),
        ("dsrm", "3", "damaged"),
    ):
        metadata = {"format": FittedPurifier.format, "kind": kind, "config": config}
        save_file({"x": torch.zeros(1)}, tmp_path / "bad", metadata)
        with pytest.raises(CheckpointError, match=message):
            load_purifier(tmp_path / "bad")


@pytest.mark.parametrize("name", ["dsrm", "student"])
def test_checkpoints_with_options_that_are_gone_load_where_these_change_nothing(
    small, states, quick_fit, tmp_path, name
) -> None:
    purifier = quick_fit(name, small)
    earlier = {"start": "noise", "start_step": None, "condition_dropout": 0.1, "guidance": 0.0}

    def saved(**changes) -> Path:
        config = dataclasses.asdict(purifier.config) | earlier | changes
        metadata = {"format": FittedPurifier.format, "kind": name, "config": json.dumps(config)}
        save_file(purifier.state_dict(), tmp_path / "earlier", metadata)
        return tmp_path / "earlier"

    loaded = load_purifier(saved())
    assert loaded.config == purifier.config
    np.testing.assert_array_equal(loaded.denoise(states), purifier.denoise(states))
    for changes in ({"guidance": 1.0}, {"start": "state", "start_step": 7}):
        with pytest.raises(CheckpointError, match=f"fit it again with fit_purifier\\('{name}'"):
            load_purifier(saved(**changes))
    with pytest.raises(CheckpointError, match="damaged"):
        load_purifier(saved(never="heard of"))


@pytest.fixture
def registry():
    """The registry, restored after the test."""
    before = dict(PURIFIERS)
    yield PURIFIERS
    PURIFIERS.clear()
    PURIFIERS.update(before)


OF_A_USER = """
from dataclasses import dataclass

import torch

from dsrm_agents.dsrm.purifier import PairedPurifier, PurifierConfig


@dataclass(frozen=True)
class ShrinkageConfig(PurifierConfig):
    most: float = 2.0


class Shrinkage(PairedPurifier):
    kind = "shrinkage"
    recipes = {"shrinkage-blind": {"blind": 3}}
    config_class = ShrinkageConfig

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("factor", torch.ones(config.dim))

    def learn(self, condition, target, weight, run):
        factor = (condition * target).mean(dim=0) / condition.square().mean(dim=0).clamp_min(1e-6)
        self.factor.copy_(factor.clamp(max=self.config.most))

    def clean(self, condition, states):
        return condition * self.factor
"""


def test_a_purifier_of_ones_own_needs_its_own_file_alone(
    small, tmp_path, monkeypatch, registry
) -> None:
    """Fitted, saved, loaded, in all three wrappers and in the study, by name."""
    (tmp_path / "of_a_user.py").write_text(OF_A_USER)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="purifier"):
        fit_purifier("shrinkage", small)
    purifier = fit_purifier("of_a_user:shrinkage", small, views=2)
    assert 0 < purifier.factor.abs().min() < purifier.factor.max() <= 2.0
    tight = fit_purifier("shrinkage", small, most=0.01)  # registered by now
    assert tight.factor.max() <= 0.01
    assert fit_purifier("shrinkage-blind", small).config.blind == 3
    with pytest.raises(ConfigError, match="An option of shrinkage"):
        fit_purifier("shrinkage", small, updates=3)
    with pytest.raises(ConfigError, match="name 'shrinkage' of .* belongs to"):

        class Other(FittedPurifier):
            kind = "shrinkage"

    registered = dict(PURIFIERS)
    with pytest.raises(ConfigError, match="name 'ridge' of .* belongs to"):

        class Third(FittedPurifier):
            kind = "third"
            recipes: ClassVar = {"ridge": {}}

    assert registered == PURIFIERS

    path = tmp_path / "shrinkage.safetensors"
    purifier.save(path)
    loaded = load_purifier(path)
    assert (type(loaded), loaded.digest) == (type(purifier), purifier.digest)

    options = {"dataset": small, "max_len": 4}
    single = PurifyObservation(gym.make("KuaiRec-Fair-v0", **options), path)
    vector = PurifyVectorObservation(gym.make_vec("KuaiRec-Fair-v0", 1, **options), path)
    sb3 = PurifyVecEnv(make_vec_env("KuaiRec-Fair-v0", 1, seed=8, **options), path)
    raw = gym.make("KuaiRec-Fair-v0", **options).reset(seed=8)[0]
    expected = np.concatenate([purifier.denoise(raw[None, :32])[0], raw[32:]])
    for seen in (single.reset(seed=8)[0], vector.reset(seed=8)[0][0], sb3.reset()[0]):
        np.testing.assert_allclose(seen, expected, atol=1e-5)

    monkeypatch.setattr(origin, "shared_dataset", lambda *_: small)
    monkeypatch.setattr(measures, "SHUFFLES", 1)
    purify_study = study.PurifyStudy("of_a_user:shrinkage", study.World(study.KUAIREC, 3))
    result = json.loads(run_studies([purify_study], tmp_path / "results")[0].read_text())
    assert result["purifier"] == "shrinkage"
    assert result["metrics"] == probe(
        fit_purifier("shrinkage", small, seed=3).denoise, probe_data(small)
    )
    assert "shrinkage" in report.studied()
    assert "| shrinkage | 1 |" in report.markdown([result])


def test_a_module_that_is_not_there_is_reported(small) -> None:
    with pytest.raises(ConfigError, match="nowhere:toy cannot be imported"):
        fit_purifier("nowhere:toy", small)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "debias"}, "Did you mean 'debiased'"),
        ({"hidden": 9.5}, "hidden must be an integer"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"prediction": "y"}, "prediction"),
        ({"start": "noise"}, "An option of dsrm"),
        ({"updates": -5}, "updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"blind": -1}, "blind"),
        ({"blind": 4}, "blind must be at most 3"),
        ({"hidden": 0}, "hidden"),
        ({"veiws": 3}, "Did you mean 'views'"),
        ({"dim": 5}, "dim"),
    ],
)
def test_impossible_options_are_refused(small, options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        fit_dsrm(small, **options)


def test_unknown_purifiers_and_missing_truths_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'linear'"):
        fit_purifier("liner", small)
    with pytest.raises(ConfigError, match="synthetic world"):
        fit_purifier("oracle-regression", dataclasses.replace(small, truth=None))
    for name, option in (("linear", "updates"), ("ridge", "ema"), ("dae", "beta")):
        with pytest.raises(ConfigError, match=f"An option of {name}"):
            fit_purifier(name, small, **{option: 3})


def test_a_teacher_is_distilled_on_its_own_data(small, small_rand, dsrm) -> None:
    with pytest.raises(ConfigError, match="distil it on its own"):
        distil(dsrm, small_rand)
