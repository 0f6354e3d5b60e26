"""DSRM, its student and its controls: what they learn, and that they are kept and found again."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dsrm_agents import DSRM, Student, distil, fit_dsrm, fit_purifier, load_purifier
from dsrm_agents.dsrm.fit import KINDS, PURIFIERS
from dsrm_agents.dsrm.objective import LossConfig, Objective, partners_of
from dsrm_agents.dsrm.probes import (
    cosine,
    identity_check,
    popularity_leakage,
    probe,
    probe_data,
)
from dsrm_agents.dsrm.purifier import FittedPurifier
from dsrm_agents.dsrm.targets import build_pairs
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
        assert type(loaded) is KINDS[purifier.kind]
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
    kind = KINDS["dsrm" if name == "student" else name]
    owner, method = (Student, "end") if name == "student" else (kind, "loss")
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


@pytest.fixture(scope="module")
def objective(small):
    """A function that gives the gradient of a purifier's loss, with some terms."""
    pairs = build_pairs(small.training, preference_encoder(small))
    purifier = fit_purifier("mlp", small, updates=1).train()
    target = torch.from_numpy(pairs.target)
    rows = torch.arange(64)

    def gradient(weight: float = 1.0, **losses) -> torch.Tensor:
        weighted = dataclasses.replace(pairs, weight=pairs.weight * np.float32(weight))
        torch.manual_seed(0)
        one = Objective(purifier, weighted, target, LossConfig(**losses))
        purifier.zero_grad()
        one(rows).backward()
        return torch.cat([value.grad.ravel() for value in purifier.parameters()]).clone()

    return gradient


@pytest.mark.parametrize(
    "term",
    [
        {"cosine": 0.5},
        {"independence": 0.5},
        {"independence": 0.5, "measure": "adversarial"},
        {"contrastive": 0.1},
    ],
)
def test_every_loss_term_counts_by_its_weight(objective, term) -> None:
    plain, once = objective(), objective(**term)
    twice = objective(**{k: 2 * v if isinstance(v, float) else v for k, v in term.items()})
    assert (once - plain).norm() > 1e-3 * plain.norm()
    torch.testing.assert_close(twice - plain, 2 * (once - plain), rtol=1e-2, atol=1e-4)


def test_a_pair_counts_by_its_weight(objective) -> None:
    assert objective(weight=0.0).norm() == 0
    torch.testing.assert_close(objective(weight=2.0), 2 * objective())


def test_partners_are_other_rows_of_the_same_user() -> None:
    user = np.array([3, 1, 3, 2, 1, 3])
    partner = partners_of(user)
    np.testing.assert_array_equal(user[partner], user)
    assert (partner != np.arange(6))[user != 2].all()
    assert partner[3] == 3


@pytest.mark.parametrize(
    "options",
    [
        {"diffusion_steps": 5},
        {"prediction": "x0"},
        {"prediction": "noise"},
        {"start": "state"},
        {"start": "state", "start_step": 7},
        {"guidance": 1.0},
        {"condition_dropout": 0.0},
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
    config = json.dumps({"dim": 32})
    for kind, message in (("foreign", "unknown kind"), ("dsrm", "damaged")):
        metadata = {"format": FittedPurifier.format, "kind": kind, "config": config}
        save_file({"x": torch.zeros(1)}, tmp_path / "bad", metadata)
        with pytest.raises(CheckpointError, match=message):
            load_purifier(tmp_path / "bad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "debias"}, "Did you mean 'debiased'"),
        ({"hidden": 9.5}, "hidden must be an integer"),
        ({"diffusion_steps": 0}, "diffusion_steps"),
        ({"prediction": "y"}, "prediction"),
        ({"start": "nois"}, "Did you mean 'noise'"),
        ({"start_step": 3}, "start_step"),
        ({"start": "state", "start_step": 21}, "start_step"),
        ({"condition_dropout": 1.0}, "condition_dropout"),
        ({"guidance": 1.0, "condition_dropout": 0.0}, "guidance"),
        ({"updates": -5}, "updates"),
        ({"batch_size": 0}, "batch_size"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"seed": -1}, "seed"),
        ({"seed": True}, "seed"),
        ({"blind": -1}, "blind"),
        ({"blind": 4}, "blind must be at most 3"),
        ({"hidden": 0}, "hidden"),
        ({"cosine": -1.0}, "cosine"),
        ({"measure": "hsci"}, "Did you mean 'hsic'"),
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
    for name, option in (("linear", "updates"), ("ridge", "cosine"), ("dae", "beta")):
        with pytest.raises(ConfigError, match=f"An option of {name}"):
            fit_purifier(name, small, **{option: 3})


def test_a_teacher_is_distilled_on_its_own_data(small, small_rand, dsrm) -> None:
    with pytest.raises(ConfigError, match="distil it on its own"):
        distil(dsrm, small_rand)
