"""Slates from shortlists: exactness against all items, and as a distribution of their own."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from dsrm_agents import HierarchicalPolicy, HierarchicalPPO, make_vec_env
from dsrm_agents.common.bounds import SlateBounds
from dsrm_agents.hrl.shortlists import ShortlistedSlates, Shortlists
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator.catalogue import Catalogue

STATE, SIZE, ROOM = 8, 4, 12


def made(n_items, shortlist, features=False, worker="constrained"):
    """A policy over a catalogue of random items, the same for the same size."""
    rng = np.random.default_rng(n_items)
    embedding = rng.standard_normal((n_items, 5), dtype=np.float32)
    catalogue = Catalogue(embedding, rng.integers(1, 1000, n_items))
    observed = spaces.Dict(
        {
            "state": spaces.Box(-8.0, 8.0, (STATE,)),
            "exposed": spaces.Box(-1, n_items - 1, (ROOM,), dtype=np.int32),
        }
    )
    wide = np.hstack([embedding, embedding**2]) if features else None
    torch.manual_seed(3)
    return HierarchicalPolicy(
        observed,
        spaces.MultiDiscrete([n_items] * SIZE),
        lambda _: 1e-2,
        catalogue,
        worker=worker,
        item_features=wide,
        shortlist=shortlist,
    )


def seen(n_items, n=6):
    """Observations of sessions that have shown 0 to ROOM items."""
    rng = np.random.default_rng(5)
    exposed = np.full((n, ROOM), -1)
    for row, items in enumerate(exposed):
        items[: 2 * row] = rng.choice(n_items, 2 * row, replace=False)
    state = rng.standard_normal((n, STATE), dtype=np.float32)
    return {"state": torch.as_tensor(state), "exposed": torch.as_tensor(exposed)}


def decided(policy, obs, deterministic=False):
    torch.manual_seed(7)
    with torch.no_grad():
        return policy.decide(obs, deterministic=deterministic)


def gradients(policy, obs, decision):
    """Of the decision's log-probability, by the worker's weights."""
    again = policy.evaluate_decision(
        obs, decision.control, decision.slates, decision.bounds, decision.shortlist
    )
    policy.zero_grad()
    again.choice_log_prob.sum().backward()
    return again.choice_log_prob, [
        weights.grad for weights in policy.worker.parameters() if weights.grad is not None
    ]


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("worker", ["constrained", "unconstrained"])
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_shortlist_of_all_items_is_the_worker_without_one(features, worker, deterministic):
    n_items = 300
    whole, short = (made(n_items, size, features, worker) for size in (None, n_items))
    obs = seen(n_items)
    exact, listed = (decided(policy, obs, deterministic) for policy in (whole, short))
    assert exact.slates.tolist() == listed.slates.tolist()
    torch.testing.assert_close(exact.choice_log_prob, listed.choice_log_prob, rtol=1e-4, atol=1e-5)
    assert exact.shortlist.shape == (6, 0) and listed.shortlist.shape == (6, n_items)
    of_whole, of_short = (
        gradients(policy, obs, decision) for policy, decision in ((whole, exact), (short, listed))
    )
    torch.testing.assert_close(of_whole[0], of_short[0], rtol=1e-4, atol=1e-5)
    for one, other in zip(of_whole[1], of_short[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_shortlists_hold_the_best_items_that_may_be_shown():
    n_items, size = 300, 20
    policy = made(n_items, size)
    obs = seen(n_items)
    decision = decided(policy, obs)
    scores = policy.item_scores(obs)  # of the best z; order within a group is that of any z
    for row, columns in enumerate(decision.shortlist):
        assert (columns < n_items).all() and len(columns.unique()) == 2 * size
        listed = policy.worker.items.item_of_column[columns]
        exposed = obs["exposed"][row]
        for items, group in zip(listed.split(size), (True, False), strict=True):
            left = [
                item
                for item in scores[row].argsort(descending=True).tolist()
                if policy.catalogue.popular[item] == group and item not in exposed
            ]
            assert len(set(items.tolist()) & set(left[:size])) >= size - 1  # a share of the reach
        assert set(decision.slates[row].tolist()) <= set(listed.tolist())


@pytest.mark.parametrize("least,most", [((0, 0), (2, 2)), ((1, 1), (1, 1)), ((0, 1), (1, 2))])
def test_probabilities_of_all_slates_of_a_shortlist_sum_to_one(least, most):
    rng = np.random.default_rng(1)
    key = torch.as_tensor(np.vstack([rng.standard_normal((12, 3)), np.zeros((1, 3))])).float()
    shortlist = torch.tensor([[0, 2, 12, 5, 6, 11]])  # columns 5 on are of the second group
    bounds = SlateBounds(torch.tensor([least]), torch.tensor([most]))
    query = torch.as_tensor(rng.standard_normal((1, 3))).float()
    slates = ShortlistedSlates(query, key, shortlist, (0, 3), bounds, 2)
    total = 0.0
    for pair in permutations((0, 2, 5, 6, 11), 2):
        counts = sum(item < 5 for item in pair), sum(item >= 5 for item in pair)
        allowed = all(map(lambda low, n, high: low <= n <= high, least, counts, most))
        if allowed:
            total += float(slates.log_prob(torch.tensor([pair])).sum().exp())
    assert total == pytest.approx(1.0, abs=1e-5)
    drawn = ShortlistedSlates(
        query.expand(500, -1), key, shortlist.expand(500, -1), (0, 3),
        SlateBounds(*(bound.expand(500, -1) for bound in bounds)), 2,
    )  # fmt: skip
    columns, log_prob = drawn.sample()
    assert 12 not in columns and set(columns.flatten().tolist()) <= {0, 2, 5, 6, 11}
    torch.testing.assert_close(drawn.log_prob(columns), log_prob, rtol=1e-4, atol=1e-5)


def test_an_item_that_is_not_listed_is_refused():
    policy = made(300, 20)
    obs = seen(300)
    decision = decided(policy, obs)
    outside = decision.slates.clone()
    listed = policy.worker.items.item_of_column[decision.shortlist[0]].tolist()
    outside[0, 0] = next(item for item in range(300) if item not in listed)
    with pytest.raises(ConfigError, match="not on its session's shortlist"):
        policy.evaluate_decision(
            obs, decision.control, outside, decision.bounds, decision.shortlist
        )


def test_a_shortlist_holds_a_slate():
    with pytest.raises(ConfigError, match="shortlist must be an integer of at least 4"):
        made(300, SIZE - 1)


def test_closed_columns_come_last():
    shortlists = Shortlists(3, (0, 4), 9)
    shortlists.index(torch.arange(9.0)[:, None], 0)
    closed = torch.zeros(1, 10, dtype=torch.bool)
    closed[0, [0, 3, 7, 8]] = True
    nothing = torch.tensor([[9]])
    assert shortlists.find(torch.ones(1, 1), nothing, closed).tolist() == [[9, 1, 2, 4, 5, 6]]
    shown = torch.tensor([[9, 8, 8]])
    open_ = torch.zeros(1, 0, dtype=torch.bool)
    assert shortlists.find(torch.ones(1, 1), shown, open_).tolist() == [[1, 2, 3, 5, 6, 7]]


@pytest.mark.parametrize("features", [False, True])
def test_lists_follow_the_weights(features):
    policy = made(300, 20, features)
    obs = seen(300)
    before = decided(policy, obs).shortlist
    with torch.no_grad():
        policy.worker.items.projection.weight.neg_()
    after = decided(policy, obs).shortlist
    assert not torch.equal(before, after)
    fresh = made(300, 20, features)
    fresh.load_state_dict(policy.state_dict())
    assert torch.equal(decided(fresh, obs).shortlist, after)


@pytest.mark.parametrize("options", [{}, {"catalogue": "dynamic"}])
def test_an_agent_trains_on_shortlists(options):
    env = make_vec_env("KuaiRec-Fair-v0", 4, seed=1, action_type="slate",
                       observation_type="dict", max_len=4, **options)  # fmt: skip
    model = HierarchicalPPO(
        "HierarchicalPolicy", env, n_steps=4, batch_size=8, seed=2, ent_coef=0.01,
        policy_kwargs={"shortlist": 30},
    )  # fmt: skip
    model.learn(32)
    batch = model.rollout_buffer.samples()
    assert batch.shortlist.shape == (16, 60)
    columns = model.policy.worker.items.column_of_item[batch.slates[0]]
    assert len(columns) == 10
    slates, _ = model.predict(env.reset(), deterministic=True)
    assert slates.shape == (4, 10)
