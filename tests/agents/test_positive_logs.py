"""Every agent of the benchmark on a log of positives alone."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest

from benchmarks.agents import AGENTS, hrl
from dsrm_agents import fit_encoder, make_vec_env
from dsrm_agents.baselines.novelty import item_quality
from dsrm_agents.baselines.world_model import fit_world_model
from dsrm_agents.common.evaluation import next_actions
from dsrm_agents.dsrm.pairs import Examples, TargetConfig, log_parts
from dsrm_agents.dsrm.purifier import PURIFIERS
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.options import preference_encoder
from kuaisim_gym.envs.shared import wants_masks
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.quality import auc

ENV = "KuaiRec-Fair-v0"
STEPS = 40
LEARNED = [name for name, agent in AGENTS.items() if agent.rule is None]
RULES = [name for name, agent in AGENTS.items() if agent.rule is not None]


@pytest.fixture(scope="module")
def pooled(small_positive) -> Dataset:
    """The same world, whose test users can be shown some of the items alone."""
    test = small_positive.test
    chosen = np.random.default_rng(0).random(len(test)) < 0.3
    return dataclasses.replace(small_positive, test=test.take(chosen), pools=True)


def trained(name: str, dataset: Dataset, quick_fit) -> tuple[Any, Any]:
    """The model after a few steps, and what wraps its environments."""
    agent = AGENTS[name]
    hyperparams = agent.hyperparams | {"n_envs": 8}
    if "learning_starts" in hyperparams:
        hyperparams["learning_starts"] = 16
    fitted = None
    if agent.purifier is not None:
        fitted = quick_fit(agent.purifier, dataset)
    elif agent.fit is not None:
        fitted = agent.fit(dataset, 0, False)
    shown = agent.options_for(fitted)
    slate_size = 1 if shown.get("action_type") == "discrete" else 4
    options = {"dataset": dataset, "max_len": 5, "slate_size": slate_size, **shown}
    wrapper = {option: hyperparams.pop(option) for option in agent.wrapper_options}

    def wrapped(split: str, n: int) -> Any:
        return agent.wrap(make_vec_env(ENV, n, split, **options), fitted, wrapper, split == "train")

    assert agent.build is not None
    model = agent.build(wrapped("train", hyperparams.pop("n_envs")), hyperparams, 1)
    return model.learn(STEPS), wrapped


@pytest.mark.parametrize("name", LEARNED)
def test_an_agent_that_suits_learns_and_plays_pools(
    name: str, pooled, quick_fit, monkeypatch
) -> None:
    monkeypatch.setattr(hrl, "fit_encoder", partial(fit_encoder, updates=5))
    if not AGENTS[name].suits(pooled):
        with pytest.raises(ConfigError, match="holds positives alone"):
            trained(name, pooled, quick_fit)
        return
    model, wrapped = trained(name, pooled, quick_fit)
    env = wrapped("test", 20)
    observations, dones = env.reset(), np.ones(20, dtype=bool)
    batch, masked = env.get_attr("batch")[0], wants_masks(model)
    for _ in range(2):
        actions, _ = next_actions(model, env, observations, None, dones, masked=masked)
        observations, _, dones, _ = env.step(actions)
        running = np.flatnonzero(~dones & (batch.core.state.steps > 0))
        for slot in running:
            shown = batch.core.state.slates[slot, : batch.core.state.steps[slot]].ravel()
            user = batch.core.state.users[slot]
            pool = pooled.test.items[pooled.test.users == user]
            assert np.isin(shown, pool).all()
            assert len(np.unique(shown)) == len(shown)


@pytest.mark.parametrize("name", RULES)
def test_a_reference_row_plays(name: str, small_positive) -> None:
    agent = AGENTS[name]
    if not agent.suits(small_positive):
        assert name == "truth+quota"
        return
    env = make_vec_env(ENV, 4, "test", dataset=small_positive, max_len=5, **agent.env_options)
    assert agent.rule is not None
    slates, _ = agent.rule(env.batch).predict(env.reset())
    assert slates.shape == (4, 10)


def test_few_agents_cannot_learn_from_positives() -> None:
    assert {name for name in LEARNED if AGENTS[name].offline} == {"bcq"}


@pytest.mark.parametrize("name", list(PURIFIERS))
def test_every_purifier_is_fitted(name: str, small_positive, quick_fit) -> None:
    try:
        purifier = quick_fit(name, small_positive)
    except ConfigError as error:
        assert "synthetic" in str(error) or "true preferences" in str(error)
        return
    encoder = preference_encoder(small_positive)
    parts = log_parts(encoder, small_positive.log, np.arange(9))
    states = {"parts": parts, "pooled": encoder.pooled(parts)}[purifier.reads]
    assert np.isfinite(purifier.denoise(states)).all()


def test_what_was_shown_was_liked(small_positive) -> None:
    evidence = Examples(small_positive, TargetConfig(sessions=64)).evidence
    dim = evidence.mean.shape[1]
    np.testing.assert_allclose(evidence.parts[:, :dim], evidence.parts[:, dim : 2 * dim], atol=1e-4)
    assert np.isfinite(evidence.mean).all()


@pytest.mark.parametrize("loss", ["ce", "tce", "rce", "bod"])
def test_an_encoder_learns_against_items_that_were_not_met(loss: str, small_positive) -> None:
    encoder = fit_encoder(small_positive, loss, updates=5, batch_size=32)
    assert encoder.report["left_out"] < 1.0


def test_a_world_model_ranks_logged_pairs_above_absent_ones(small_positive) -> None:
    model = fit_world_model(small_positive.training, members=2)
    log = small_positive.train_log
    rng = np.random.default_rng(0)
    absent = rng.integers(0, small_positive.n_items, len(log))
    logged = np.zeros((small_positive.n_users, small_positive.n_all_items), dtype=bool)
    logged[log.users, log.items] = True
    fresh = ~logged[log.users, absent]
    users = np.concatenate([log.users, log.users[fresh]])
    mean, _ = model.predict(users, np.concatenate([log.items, absent[fresh]]))
    assert auc(mean, np.arange(len(users)) < len(log)) > 0.6
    assert 0.02 < mean.mean() < 0.6


def test_quality_of_an_item_grows_with_its_positives(small_positive) -> None:
    quality = item_quality(small_positive.training)
    count = np.bincount(small_positive.train_log.items, minlength=small_positive.n_items)
    order = np.argsort(count, kind="stable")
    assert ((quality > 0) & (quality < 1)).all()
    assert np.corrcoef(np.argsort(order), np.argsort(np.argsort(quality)))[0, 1] > 0.9
