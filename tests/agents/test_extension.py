"""Agents on larger catalogues: the same law of earlier items, and new ones by their rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dsrm_agents import (
    HSRL,
    Codebook,
    HierarchicalPPO,
    evaluate,
    extend,
    item_features,
    make_vec_env,
)
from dsrm_agents.common.extension import _check_axes, _mapped
from kuaisim_gym.data.dataset import Dataset, Labels
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.simulator import Catalogue, load_catalogue

ENV, K, EARLIER = "KuaiRec-Fair-v0", 6, 190
SLATES = {"observation_type": "dict", "action_type": "slate", "max_len": 4, "slate_size": K}


def first_items(dataset: Dataset, n: int) -> Dataset:
    """The dataset as it was when its first items were all there were."""
    labels = dataset.item_groups.items()
    return replace(
        unlogged(dataset, n),
        item_ids=dataset.item_ids[:n],
        n_items=n,
        test=dataset.test.take(dataset.test.items < n),
        item_features=dataset.item_features.head(n),
        item_groups={name: Labels(column.codes[:n], column.values) for name, column in labels},
        truth=None,
    )


def unlogged(dataset: Dataset, n: int) -> Dataset:
    """All items, of which nobody has logged those behind the first."""
    return replace(dataset, log=dataset.log.take(dataset.log.items < n))


@pytest.fixture(scope="module")
def earlier(small) -> Dataset:
    return first_items(small, EARLIER)


@pytest.fixture(scope="module")
def later(small) -> Dataset:
    return unlogged(small, EARLIER)


def environment(dataset: Dataset, n: int = 8, split: str = "train", **options: Any):
    return make_vec_env(ENV, n, split, seed=3, dataset=dataset, **SLATES | options)


AGENTS = {
    "hsrl": (HSRL, {}),
    "hsrl+quota": (HSRL, {"fairness": 1.0}),
    "constrained": (HierarchicalPPO, {}),
    "unconstrained": (HierarchicalPPO, {"worker": "unconstrained"}),
    "band": (HierarchicalPPO, {"worker": "band"}),
}


def agent(name: str, env, **policy_kwargs: Any):
    kind, options = AGENTS[name]
    alias = next(iter(kind.policy_aliases))
    return kind(
        alias, env, n_steps=8, batch_size=64, seed=1, device="cpu", learning_rate=0.01,
        policy_kwargs={**options, **policy_kwargs},
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(earlier) -> dict[str, Any]:
    return {name: agent(name, environment(earlier)).learn(3 * 64) for name in AGENTS}


def tensors(observation: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(part) for name, part in observation.items()}


def without_new_items(observation, n_items: int) -> dict[str, torch.Tensor]:
    """The observation of sessions that may show earlier items alone."""
    new = np.tile(np.arange(EARLIER, n_items), (len(observation["state"]), 1))
    return tensors(observation | {"exposed": np.hstack([observation["exposed"], new])})


# The law


@pytest.mark.parametrize("name", ["hsrl", "hsrl+quota"])
def test_where_no_new_item_may_be_shown_semantic_slates_have_their_probabilities(
    trained, later, name: str
) -> None:
    model = trained[name]
    # The popular fifth grows with the catalogue: the groups that the agent has are given to it.
    groups = model.policy.groups
    labels = np.append(groups.labels, np.zeros(later.n_items - EARLIER, dtype=groups.labels.dtype))
    kept = replace(groups, labels=labels)
    larger = extend(model, environment(later), policy_kwargs={"groups": kept})
    observation = model.env.reset()
    slates, _ = model.predict(observation)
    hidden = without_new_items(observation, later.n_items)
    with torch.no_grad():
        before = model.policy.evaluate_actions(tensors(observation), torch.as_tensor(slates))
        after = larger.policy.evaluate_actions(hidden, torch.as_tensor(slates))
    for expected, same in zip(before, after, strict=True):
        torch.testing.assert_close(same, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", list(AGENTS))
def test_scores_of_earlier_items_differ_as_before(trained, later, name: str) -> None:
    model = trained[name]
    larger = extend(model, environment(later))
    observation = model.env.reset()
    hidden = without_new_items(observation, later.n_items)
    with torch.no_grad():
        before = model.policy.item_scores(tensors(observation))
        after = larger.policy.item_scores(hidden)[:, :EARLIER]
    if name == "hsrl+quota":  # an item's id begins with its group, and some have others now
        same = model.policy.groups.labels == larger.policy.groups.labels[:EARLIER]
        assert 0 < (~same).sum() < 20
        return
    ratio = after - before
    assert before.std(dim=1).min() > 0.1
    torch.testing.assert_close(ratio - ratio[:, :1], torch.zeros_like(ratio), atol=2e-4, rtol=0.0)


@pytest.mark.parametrize("name", list(AGENTS))
def test_weights_are_taken_over_and_the_model_stays(trained, later, name: str) -> None:
    model = trained[name]
    fingerprint = model.policy.catalogue.fingerprint
    larger = extend(model, environment(later, n=4))
    assert type(larger) is type(model) and larger.n_envs == 4
    assert larger.num_timesteps == model.num_timesteps
    pairs = zip(model.policy.parameters(), larger.policy.parameters(), strict=True)
    assert all(torch.equal(own, other) and own is not other for own, other in pairs)
    assert model.policy.catalogue.fingerprint == fingerprint
    assert model.policy.catalogue.n_items == EARLIER < larger.policy.catalogue.n_items
    state = larger.policy.optimizer.state_dict()["state"]
    assert all(torch.equal(row["exp_avg"], state[key]["exp_avg"])
               for key, row in model.policy.optimizer.state_dict()["state"].items())  # fmt: skip


# New items


@pytest.mark.parametrize("name", list(AGENTS))
def test_it_shows_new_items_learns_and_comes_back_from_its_file(
    trained, later, tmp_path, name: str
) -> None:
    env = environment(later)
    larger = extend(trained[name], env)
    sessions = evaluate(larger, environment(later, 16, "test"), 64, deterministic=False)
    assert 0.0 < (sessions.slates >= EARLIER).mean() < 0.8
    before = [parameter.clone() for parameter in larger.policy.parameters()]
    larger.learn(64, reset_num_timesteps=False)
    assert larger.num_timesteps == 4 * 64
    assert not all(map(torch.equal, before, larger.policy.parameters()))
    larger.save(tmp_path / "agent")
    observation = env.reset()
    expected, _ = larger.predict(observation, deterministic=True)
    for options in ({}, {"env": environment(later)}):
        loaded = type(larger).load(tmp_path / "agent", device="cpu", **options)
        catalogue = loaded.policy.catalogue
        assert catalogue.fingerprint == larger.policy.catalogue.fingerprint
        np.testing.assert_array_equal(catalogue.known, larger.policy.catalogue.known)
        np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.learn(24)
    loaded.set_env(env)


@pytest.mark.parametrize("name", ["hsrl", "constrained"])
def test_new_items_are_scored_by_their_rows(trained, earlier, later, name: str) -> None:
    """New items with the rows of earlier ones are worth what those are."""
    model = trained[name]
    known, m = model.policy.catalogue, later.n_items - EARLIER
    twins = np.random.default_rng(0).permutation(EARLIER)[:m]
    env = environment(later)
    larger = extend(model, env, embedding=known.item_embedding[twins])
    scores = larger.policy.item_scores(tensors(env.reset())).detach()
    if name == "constrained":
        torch.testing.assert_close(scores[:, EARLIER:], scores[:, twins])
        return
    codebook: Codebook = larger.policy.codebook
    assert codebook.begins_with(model.policy.codebook)
    # Where an earlier item has its nearest codes, its twin has them, too. Nobody has logged the
    # twin, so that their popularity differs.
    known = larger.policy.catalogue.known
    nearest = codebook.encode(known)
    np.testing.assert_array_equal(codebook.tokens[EARLIER:], nearest[EARLIER:])
    np.testing.assert_array_equal(known[EARLIER:, :-1], known[twins, :-1])
    spread = scores[:, EARLIER:].std(dim=1)
    assert np.corrcoef(scores[0, EARLIER:], scores[0, twins])[0, 1] > 0.5 and spread.min() > 0.1


def test_new_rows_are_in_the_agent_s_units(trained, later) -> None:
    """What the larger catalogue's rows are multiplied by and moved by is undone."""
    model = trained["hsrl"]
    env = environment(later)
    larger = extend(model, env)
    expected = env.batch.catalogue.item_embedding
    rows = larger.policy.catalogue.item_embedding
    np.testing.assert_array_equal(rows[:EARLIER], model.policy.catalogue.item_embedding)
    slope, level = np.polyfit(expected[:EARLIER, 0], rows[:EARLIER, 0], 1)
    assert abs(slope - 1.0) > 0.02
    np.testing.assert_allclose(rows[EARLIER:, 0], level + slope * expected[EARLIER:, 0], atol=0.02)
    alone = load_catalogue(model.env.batch.dataset)
    np.testing.assert_array_equal(larger.policy.catalogue.known[:EARLIER], alone.known)
    popular = larger.policy.catalogue.popular
    np.testing.assert_array_equal(popular, env.batch.catalogue.popular)


def test_extensions_follow_one_another(trained, small, later) -> None:
    model = trained["hsrl"]
    between = first_items(later, 215)
    twice = extend(extend(model, environment(between)), environment(later))
    once = extend(model, environment(later))
    assert twice.policy.codebook.begins_with(model.policy.codebook)
    rows, expected = (one.policy.catalogue.known for one in (twice, once))
    np.testing.assert_array_equal(rows[:EARLIER], expected[:EARLIER])
    assert np.abs(rows - expected).max() < 0.35  # standard deviations
    same = (twice.policy.codebook.tokens == once.policy.codebook.tokens).all(axis=1)
    assert same.mean() > 0.9


def test_a_tower_of_features_takes_the_features_of_new_items(earlier, later) -> None:
    features = item_features(later)
    model = agent("constrained", environment(earlier), item_features=features[:EARLIER]).learn(64)
    env = environment(later)
    larger = extend(model, env, policy_kwargs={"item_features": features})
    observation = tensors(env.reset())
    exposures = env.batch.catalogue.exposures[EARLIER:]
    described = torch.as_tensor(features[EARLIER:])
    new = larger.policy.item_scores(observation)[:, EARLIER:]
    torch.testing.assert_close(new, model.policy.score_items(observation, described, exposures))
    for wrong, message in (
        ({}, "item_features of its items: one of shape .* got none"),
        ({"item_features": features[:-1]}, "got shape"),
        ({"item_features": features + 1.0}, "must be those that the agent was made with"),
    ):
        with pytest.raises(ConfigError, match=message):
            extend(model, env, policy_kwargs=wrong)


def test_a_prior_of_one_s_own_goes_on_for_new_items(earlier, later) -> None:
    quality = np.linspace(-1.0, 1.0, later.n_items)
    model = agent("hsrl", environment(earlier), item_quality=quality[:EARLIER])
    with pytest.raises(ConfigError, match="item_quality of its items"):
        extend(model, environment(later))
    larger = extend(model, environment(later), policy_kwargs={"item_quality": quality})
    weight = larger.policy.trie.weight.numpy()[:-1]
    np.testing.assert_allclose(np.log(weight / weight[0]), 4.0 * (quality + 1.0), atol=1e-6)


# Coordinates


def catalogue_of(rows: np.ndarray) -> Catalogue:
    return Catalogue(rows.astype(np.float32), np.arange(len(rows)))


def test_units_and_origin_of_a_larger_catalogue_are_undone() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3)) * [1.0, 0.3, 0.001]
    slopes = np.array([[2.0, 0.1, 0.0], [0.0, 1.5, 0.0], [9.0, -7.0, -1.0]])
    known, larger = catalogue_of(rows[:40]), catalogue_of(rows @ slopes + [1.0, -2.0, 0.5])
    _check_axes(known, larger)  # the last column is too narrow to tell of a taste
    np.testing.assert_allclose(_mapped(known, larger), rows[40:], atol=1e-4)
    turned = catalogue_of(rows * [1.0, -1.0, 1.0])
    message = r"Column 1 of .* correlation of -1\.00 .* over the 40 earlier items"
    with pytest.raises(ConfigError, match=message):
        _check_axes(known, turned)
    with pytest.raises(ConfigError, match="Column 0 of"):
        _check_axes(known, catalogue_of(rows[::-1]))
    with pytest.raises(ConfigError, match=r"Column 0 of .* correlation of 0\.00"):
        _check_axes(known, catalogue_of(rows * [0.0, 1.0, 1.0]))
    with pytest.raises(ConfigError, match="5 items are too few to compare 3 columns"):
        _check_axes(catalogue_of(rows[:5]), larger)


def test_scales_are_those_of_the_first_catalogue() -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(30, 3)).astype(np.float32)
    known = Catalogue(rows[:20], rng.integers(9, 99, 20))
    exposures = np.append(known.exposures, np.zeros(10, dtype=np.int64))
    between = known.extended(rows[20:25], Catalogue(rows[:25], exposures[:25]))
    larger = between.extended(rows[25:], Catalogue(rows + 1.0, exposures))
    mean, spread = rows[:20].astype(float).mean(0), rows[:20].astype(float).std(0)
    np.testing.assert_allclose(larger.standardised, (rows - mean) / spread, atol=1e-6)
    logs = np.log1p(known.exposures)
    expected = (np.log1p(exposures) - logs.mean()) / logs.std()
    np.testing.assert_allclose(larger.log_popularity, expected, atol=1e-6)
    np.testing.assert_array_equal(larger.known[:20], known.known)
    assert larger.is_of(Catalogue(rows + 1.0, exposures)) and larger.is_of(larger)
    assert not larger.is_of(known) and not known.is_of(larger) and known.is_of(known)
    others = {one.fingerprint for one in (known, between, larger, Catalogue(rows, exposures))}
    assert len(others) == 4


# Refusals


@pytest.mark.parametrize("name", ["hsrl", "band"])
def test_a_larger_environment_is_refused_with_the_way_to_it(
    trained, later, tmp_path, name: str
) -> None:
    model, env = trained[name], environment(later)
    with pytest.raises(CheckpointError, match=r"dsrm_agents\.extend\(model, env\)"):
        model.set_env(env)
    model.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match=r"dsrm_agents\.extend\(model, env\)"):
        type(model).load(tmp_path / "agent", env=env)
    loaded = type(model).load(tmp_path / "agent")
    assert extend(loaded, env).policy.catalogue.n_items == later.n_items


def test_other_items_and_other_axes_are_refused(trained, small, earlier, later, tmp_path) -> None:
    model = trained["hsrl"]
    model.save(tmp_path / "agent")
    with pytest.raises(ConfigError, match="knows 190 items, and the new environment has 100"):
        extend(model, environment(first_items(small, 100)))
    swapped = replace(later, item_ids=later.item_ids[np.r_[1, 0, 2 : later.n_items]])
    with pytest.raises(ConfigError, match="Item 0 is at position 0 for this HSRL, and item 1 in"):
        extend(model, environment(swapped))
    items = (EARLIER - 1 - later.log.items).astype(np.int32)
    mirrored = replace(later, log=replace(later.log, items=items))
    for one in (model, HSRL.load(tmp_path / "agent")):
        with pytest.raises(ConfigError, match="has 9 columns, the agent's 5.* embedding="):
            extend(one, environment(mirrored))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preference": "parts"}, "reads 9 numbers of a user, the new environment shows 28"),
        ({"catalogue": "dynamic"}, "trained on a fixed catalogue, .* is dynamic"),
        ({"groups": "category"}, "balances the groups long tail, popular, .* the groups= that"),
    ],
)
def test_environments_of_another_kind_are_refused(trained, later, options, message) -> None:
    env_id = "KuaiRec-Dynamic-v0" if "catalogue" in options else ENV
    env = make_vec_env(env_id, 4, dataset=later, **SLATES | options)
    with pytest.raises(ConfigError, match=message):
        extend(trained["hsrl"], env)


def test_other_agents_rows_and_codebooks_are_refused(trained, earlier, later) -> None:
    model, env, m = trained["hsrl"], environment(later), later.n_items - EARLIER
    d = model.policy.catalogue.embedding.shape[1]
    for wrong in (np.zeros((m, d - 1)), np.zeros((m + 1, d)), np.full((m, d), np.nan)):
        with pytest.raises(ConfigError, match=rf"finite numbers of shape \({m}, {d}\)"):
            extend(model, env, embedding=wrong)
    for words in ("x", [[0.0], [1.0, 2.0]]):
        with pytest.raises(ConfigError, match="finite numbers of shape"):
            extend(model, env, embedding=words)
    own = Codebook.fit(load_catalogue(later).known)
    with pytest.raises(ConfigError, match="the policy's own codes and ids"):
        extend(model, env, policy_kwargs={"codebook": own})
    other = PPO("MultiInputPolicy", environment(earlier))
    with pytest.raises(ConfigError, match="PPO must be trained anew"):
        extend(other, env)
