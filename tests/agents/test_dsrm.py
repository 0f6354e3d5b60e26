"""DSRM, its student and its controls: what they learn, and that they are kept and found again."""

from __future__ import annotations

import dataclasses
import json
from typing import ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmarks import origin
from benchmarks.purify import report, study
from benchmarks.studies.study import run_studies
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
from dsrm_agents.dsrm.measures import cosine, popularity_leakage
from dsrm_agents.dsrm.pairs import Examples, log_parts
from dsrm_agents.dsrm.probes import probe, probe_data
from dsrm_agents.dsrm.purifier import PURIFIERS, FittedPurifier
from dsrm_agents.dsrm.training import TrainRun
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.simulator.build import load_preferences


@pytest.fixture(scope="module")
def shown(small) -> dict[str, np.ndarray]:
    """What sessions of some users show at the start, by what purifiers read."""
    encoder = preference_encoder(small)
    parts = log_parts(encoder, small.log, small.train_users[:64])
    return {"parts": parts, "pooled": encoder.pooled(parts)}


@pytest.fixture(scope="module")
def states(shown) -> np.ndarray:
    return shown["parts"]


@pytest.fixture(scope="module")
def fitted(world) -> dict[str, FittedPurifier]:
    names = ("identity", "centre", "linear", "ridge-pooled", "ridge", "mlp")
    teacher = fit_dsrm(world, seed=0)
    purifiers = {"dsrm": teacher, "student": distil(teacher, world)}
    return {name: fit_purifier(name, world) for name in names} | purifiers


@pytest.fixture(scope="module")
def measured(world, fitted) -> dict[str, dict[str, float]]:
    """Purifiers of the full world, as found on users that none of them was fitted on."""
    data = probe_data(world)
    names = ("identity", "linear", "dsrm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "SHUFFLES", 1)  # nothing is asked of the floors here
        return {name: probe(fitted[name].denoise, data, fitted[name].reads) for name in names}


def errors(world, fitted) -> dict[str, float]:
    """Share of what beliefs about unseen users' rankings say that purifiers of their logs miss."""
    encoder, users = preference_encoder(world), world.test_users
    parts = log_parts(encoder, world.log, users)
    belief, vectors = load_preferences(world).mean[users, 1:], encoder.embedding[:, 1:].T
    aim = belief @ vectors
    return {
        name: float(
            ((purifier.denoise({"parts": parts, "pooled": encoder.pooled(parts)}[purifier.reads])[
                :, 1:
            ] @ vectors - aim) ** 2).mean() / (aim**2).mean()
        )
        for name, purifier in fitted.items()
    }  # fmt: skip


def test_purifiers_come_near_to_the_belief_of_unseen_users(world, fitted) -> None:
    missed = errors(world, fitted)
    assert missed["dsrm"] < 0.05
    assert missed["student"] < missed["dsrm"] + 0.01
    assert missed["mlp"] < 0.06
    assert missed["ridge"] < 0.15
    for name in ("identity", "centre", "linear", "ridge-pooled", "ridge"):
        assert missed["dsrm"] < 0.8 * missed[name] < 0.2


def test_dsrm_loses_the_popularity_and_keeps_the_taste(measured) -> None:
    raw, purified = measured["identity"], measured["dsrm"]
    assert raw["leakage_r2"] > 0.08
    assert purified["leakage_r2"] < 0.2 * raw["leakage_r2"]
    assert purified["leakage_mlp"] < 0.2 * raw["leakage_mlp"]
    assert purified["cosine"] > raw["cosine"]
    assert purified["recall20_longtail"] > raw["recall20_longtail"] - 0.005
    assert purified["discriminability"] > raw["discriminability"]


def test_erasing_popularity_loses_taste(measured) -> None:
    assert measured["linear"]["leakage_r2"] < 0.02
    assert measured["linear"]["cosine"] < measured["identity"]["cosine"]


def test_a_blind_purifier_tells_no_popularity_linearly(small, shown) -> None:
    examples = Examples(small)
    blind = fit_dsrm(small, blind=2, updates=200)
    clean = blind.denoise(examples.observed("parts"))
    for label in examples.popularity[:, :2].T:
        design = np.column_stack([clean, np.ones(len(clean))])
        rest = label - design @ np.linalg.lstsq(design, label, rcond=None)[0]
        assert rest.var() > 0.97 * label.var()


def test_drawn_preferences_are_as_certain_as_beliefs(world) -> None:
    purifier = fit_dsrm(world, source="draw")
    users = world.test_users[:200]
    parts = torch.from_numpy(log_parts(preference_encoder(world), world.log, users))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        draws = torch.stack([purifier.draw(parts, eta=1.0, generator=generator) for _ in range(24)])
    model = load_preferences(world)
    spread = np.sqrt(np.einsum("nii->ni", model.covariance[users]).mean(axis=0))
    found = draws.std(dim=0).square().mean(dim=0).sqrt().numpy()
    np.testing.assert_allclose(found[1:], spread[1:], rtol=0.25)
    assert np.corrcoef(draws.mean(dim=0)[:, 1].numpy(), model.mean[users, 1])[0, 1] > 0.97


def test_the_raw_state_is_scaled_to_beliefs_by_their_slope_on_it(small) -> None:
    examples, purifier = Examples(small), fit_purifier("identity", small)
    raw, belief = examples.observed("pooled")[:, 1:], examples.evidence.mean[:, 1:]
    weight = examples.encoder.embedding[: small.n_items, 1:].var(axis=0)
    factor = ((raw * belief) @ weight).sum() / ((raw**2) @ weight).sum()
    states = examples.observed("pooled")[:50]
    np.testing.assert_allclose(
        purifier.denoise(states), np.clip(factor * states, -10, 10), atol=1e-4
    )


def test_states_are_centred_by_the_lengths_of_log_and_session(small) -> None:
    examples, purifier = Examples(small), fit_purifier("centre", small)
    parts = examples.observed("parts")
    lengths = np.column_stack([np.ones(len(parts)), parts[:, -4:]])
    pooled = examples.observed("pooled")
    rest = pooled - lengths @ np.linalg.lstsq(lengths, pooled, rcond=None)[0]
    clean = purifier.denoise(parts)
    factor = (clean * rest).sum() / (rest**2).sum()
    np.testing.assert_allclose(clean, np.clip(factor * rest, -10, 10), atol=2e-3)
    with pytest.raises(ConfigError, match="centre needs reads='parts', got 'pooled'"):
        fit_purifier("centre", small, reads="pooled")


def test_the_literal_mode_is_the_identity(world, fitted) -> None:
    """In units of beliefs, as far as it is fitted; its optimum, where it predicts clean states."""
    encoder, users = preference_encoder(world), world.test_users
    states = encoder.encode(encoder.history_sum[users], encoder.history_weight[users])
    raw, origin = fitted["identity"].denoise(states), np.zeros(states.shape[1])
    literal = fit_dsrm(world, "literal", updates=1000).denoise(states)
    assert cosine(literal, raw, origin, origin) > 0.99
    optimum = fit_dsrm(world, "literal", updates=1000, prediction="x0").denoise(states)
    assert cosine(optimum, raw, origin, origin) > 0.999
    label = probe_data(world).popularity
    assert popularity_leakage(optimum, label) > 0.9 * popularity_leakage(raw, label)


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_purifier_is_fitted_kept_and_found_again(
    small, shown, quick_fit, tmp_path, name
) -> None:
    purifier = quick_fit(name, small, seed=2)
    states = shown[purifier.reads]
    purified = purifier.denoise(states)
    assert purified.shape == shown["pooled"].shape
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


@pytest.mark.parametrize("name", ["ridge", "mlp", "dsrm", "student", "dae"])
def test_what_learns_from_pairs_reads_either(small, shown, quick_fit, name) -> None:
    for reads, states in shown.items():
        purifier = quick_fit(name, small, reads=reads)
        assert purifier.reads == reads
        assert purifier.denoise(states).shape == shown["pooled"].shape


@pytest.mark.parametrize("name", ["identity", "centre", "linear", "ridge", "dsrm"])
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
    monkeypatch.setattr(TrainRun.__init__, "__defaults__", ("", None, 25, None))  # the interval
    options = {"updates": 60 if name == "student" else 30}  # whose student takes half of them
    whole = fit_purifier(name, small, **options)
    calls = 0
    owner, method = (Student, "end") if name == "student" else (PURIFIERS[name].purifier, "loss")
    original = getattr(owner, method)

    def failing(self, *arguments):
        nonlocal calls
        calls += 1
        if calls == 27:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(owner, method, failing)
    with pytest.raises(KeyboardInterrupt):
        fit_purifier(name, small, checkpoint=tmp_path / "progress", **options)
    assert (tmp_path / "progress").is_file()
    calls = 1000
    resumed = fit_purifier(name, small, checkpoint=tmp_path / "progress", **options)
    assert resumed.digest == whole.digest
    assert 1000 < calls < 1010  # it went on from the last checkpoint
    with pytest.raises(CheckpointError, match="another fit"):
        fit_purifier(name, small, seed=1, checkpoint=tmp_path / "progress", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"diffusion_steps": 5},
        {"prediction": "x0"},
        {"prediction": "noise"},
        {"blind": 1},
        {"blind": 3},
        {"source": "draw"},
        {"sessions": 40},
    ],
)
def test_every_option_of_the_diffusion_works(small, dsrm, states, tmp_path, options) -> None:
    other = fit_dsrm(small, updates=30, seed=1, **{"sessions": 64, **options})
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
    with pytest.raises(ConfigError, match=r"\(N, 40\), as .* preference='parts', got \(64, 5\)"):
        dsrm.denoise(states[:, :5])
    with pytest.raises(ConfigError, match="finite"):
        dsrm.denoise(np.full((1, 40), np.nan, np.float32))


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
        ("foreign", '{"dim": 9}', "unknown kind"),
        ("dsrm", '{"dim": 9}', "damaged"),
        ("dsrm", "3", "damaged"),
    ):
        metadata = {"format": FittedPurifier.format, "kind": kind, "config": config}
        save_file({"x": torch.zeros(1)}, tmp_path / "bad", metadata)
        with pytest.raises(CheckpointError, match=message):
            load_purifier(tmp_path / "bad")


def test_files_of_the_version_before_are_refused(dsrm, tmp_path) -> None:
    config = json.dumps({"dim": 32, "prediction": "v", "diffusion_steps": 20})
    metadata = {"format": "dsrm-purifier-1", "kind": "dsrm", "config": config}
    save_file(dsrm.state_dict(), tmp_path / "earlier", metadata)
    with pytest.raises(CheckpointError, match="is not a purifier of this version"):
        load_purifier(tmp_path / "earlier")


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
    recipes = {"shrinkage": {"reads": "pooled"}, "shrinkage-blind": {"reads": "pooled", "blind": 3}}
    config_class = ShrinkageConfig

    def __init__(self, config):
        super().__init__(config)
        self.register_buffer("factor", torch.ones(config.dim))

    def learn(self, condition, target, run):
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
    purifier = fit_purifier("of_a_user:shrinkage", small, sessions=40)
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
    dim = purifier.config.dim
    expected = np.concatenate([purifier.denoise(raw[None, :dim])[0], raw[dim:]])
    for seen in (single.reset(seed=8)[0], vector.reset(seed=8)[0][0], sb3.reset()[0]):
        np.testing.assert_allclose(seen, expected, atol=1e-5)

    monkeypatch.setattr(origin, "shared_dataset", lambda *_: small)
    monkeypatch.setattr(measures, "SHUFFLES", 1)
    purify_study = study.PurifyStudy("of_a_user:shrinkage", study.World(study.KUAIREC, 3))
    result = json.loads(run_studies([purify_study], tmp_path / "results")[0].read_text())
    assert result["purifier"] == "shrinkage"
    again = fit_purifier("shrinkage", small, seed=3)
    assert result["metrics"] == probe(again.denoise, probe_data(small), again.reads)
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
        ({"sesions": 3}, "Did you mean 'sessions'"),
        ({"reads": "belief"}, "reads must be one of"),
        ({"source": "identity"}, 'reads="pooled"'),
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
