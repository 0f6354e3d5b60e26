"""Networks as policies: chances that sum to one at any step, and draws that a seed repeats."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from dsrm_agents import HSRL, HierarchicalPPO, make_vec_env
from dsrm_agents.ope.logged import Context
from dsrm_agents.ope.networks import NetworkPolicy
from dsrm_agents.ope.propensities import epsilon_random
from dsrm_agents.ope.recording import log_sessions
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError

OPTIONS = {"observation_type": "dict", "action_type": "slate", "max_len": 5, "slate_size": 2}
KIND = {"n_steps": 8, "batch_size": 64, "seed": 3}


@pytest.fixture(scope="module")
def networks(small):
    env = make_vec_env("KuaiRec-Fair-v0", 8, "train", 1, dataset=small, **OPTIONS)
    plain = make_vec_env(
        "KuaiRec-Fair-v0", 8, "train", 1, dataset=small, **OPTIONS | {"observation_type": "state"}
    )
    return {
        "hrl": HierarchicalPPO("HierarchicalPolicy", env, **KIND),
        "band": HierarchicalPPO(
            "HierarchicalPolicy", env, policy_kwargs={"worker": "band"}, **KIND
        ),
        "hsrl": HSRL("HSRLPolicy", env, **KIND),
        "ppo": PPO("MlpPolicy", plain, **KIND),
    }


@pytest.mark.parametrize("name", ["hrl", "band", "hsrl", "ppo"])
def test_networks_tell_the_probabilities_of_their_slates(networks, small, name) -> None:
    model = networks[name]
    policy, env = NetworkPolicy(model), model.get_env()
    torch.manual_seed(0)
    env.reset()
    seen = env.observe() if hasattr(env, "observe") else env.reset()
    one = {key: rows[:1] for key, rows in seen.items()} if isinstance(seen, dict) else seen[:1]
    n = small.n_items
    drawn, log_prob = policy.act(asked(seen, 8), 2, np.random.default_rng(0))
    again = policy.log_prob(asked(seen, 8), drawn)
    assert log_prob == pytest.approx(again, abs=1e-4)
    many = (
        {key: np.repeat(rows, n, axis=0) for key, rows in one.items()}
        if isinstance(one, dict)
        else np.repeat(one, n, axis=0)
    )
    # The chances of all first items, and of all second ones behind the first that was drawn.
    first = np.stack([np.arange(n), (np.arange(n) + 1) % n], axis=1)
    second = np.stack([np.full(n, drawn[0, 0]), np.arange(n)], axis=1)
    of_first = np.exp(policy.log_prob(asked(many, n), first)[:, 0])
    of_second = np.exp(policy.log_prob(asked(many, n), second)[:, 1])
    assert of_first.sum() == pytest.approx(1.0, abs=1e-3)
    assert of_second.sum() == pytest.approx(1.0, abs=1e-3)
    assert np.exp(log_prob[0]) == pytest.approx(
        [of_first[drawn[0, 0]], of_second[drawn[0, 1]]], rel=1e-3
    )


def asked(seen, n: int) -> Context:
    return Context(np.zeros(n, np.int32), np.zeros((n, 0), np.int64), seen)


def test_networks_log_themselves_and_others_are_refused(networks, small) -> None:
    policy = NetworkPolicy(networks["hrl"])
    batch = make_batch(6, "kuairec", dataset=small, split="test", **OPTIONS)
    torch.manual_seed(0)
    logged = log_sessions(batch, policy, 1, observe=True)
    assert logged.log_probs_of(policy) == pytest.approx(logged.log_probs, abs=1e-4)
    with pytest.raises(ConfigError, match="observe=True"):
        log_sessions(batch, policy, 1)
    shares = PPO("MlpPolicy", make_vec_env("KuaiRec-Fair-v0", 2, dataset=small), n_steps=4)
    with pytest.raises(ConfigError, match="draws no items"):
        NetworkPolicy(shares)


@pytest.mark.parametrize("name", ["hrl", "band", "hsrl"])
def test_networks_give_nothing_to_what_a_session_has_shown(networks, small, name) -> None:
    policy, n = NetworkPolicy(networks[name]), small.n_items
    batch = make_batch(20, "kuairec", dataset=small, split="test", **OPTIONS)
    logged = log_sessions(batch, epsilon_random(policy, 0.5, n), 1, observe=True)
    _, rows, context = [*logged.decisions()][2]
    one = Context(
        np.repeat(context.users[:1], n), np.repeat(context.shown[:1], n, axis=0),
        {key: np.repeat(seen[:1], n, axis=0) for key, seen in context.observation.items()},
    )  # fmt: skip
    items, first = np.arange(n), int(logged.slates[rows[0], 2, 0])
    of_first = policy.log_prob(one, np.stack([items, (items + 1) % n], axis=1))[:, 0]
    of_second = policy.log_prob(one, np.stack([np.full(n, first), items], axis=1))[:, 1]
    shown = context.shown[0]
    assert len(shown) == 4 and np.isneginf(of_first[shown]).all()
    assert np.isneginf(of_second[[*shown, first]]).all()
    assert np.exp(of_first).sum() == pytest.approx(1.0, abs=1e-4)
    assert np.exp(of_second).sum() == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("name", ["hrl", "hsrl", "ppo"])
def test_a_seed_repeats_a_networks_log_and_leaves_torch_alone(networks, small, name) -> None:
    policy = NetworkPolicy(networks[name])
    kind = {"observation_type": "state" if name == "ppo" else "dict"}
    batch = make_batch(6, "kuairec", dataset=small, split="test", **OPTIONS | kind)
    state = torch.get_rng_state()
    logs = [log_sessions(batch, policy, seed, observe=True).slates for seed in (1, 1, 2)]
    assert (logs[0] == logs[1]).all() and (logs[0] != logs[2]).any()
    assert torch.equal(state, torch.get_rng_state())


def test_networks_refuse_other_worlds_slates_and_observations(
    networks, small, small_positive
) -> None:
    policy = NetworkPolicy(networks["hrl"])
    assert (policy.n_items, policy.slate_size) == (small.n_items, 2)
    for options, words in (
        ({"slate_size": 3}, "slates of 2 items, and 3|observations of shapes"),
        ({"observation_type": "state"}, "observations of shapes"),
        ({"dataset": None}, "Items must be as many"),
        ({"dataset": small_positive}, "other items"),
    ):
        batch = make_batch(4, "kuairec", split="test", **OPTIONS | {"dataset": small} | options)
        with pytest.raises(ConfigError, match=words):
            log_sessions(batch, policy, 1, observe=True)
