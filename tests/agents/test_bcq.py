"""Batch-constrained Q-learning: from the log alone, and within what it supports."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.bcq import BCQ
from dsrm_agents.baselines.discrete_bcq import DiscreteBCQ
from dsrm_agents.baselines.logged import Decisions, LoggedTransitions, transitions_of
from kuaisim_gym.data import WatchLog
from kuaisim_gym.envs.offline import Episode, logged_episodes
from kuaisim_gym.errors import CheckpointError, ConfigError

KINDS = [DiscreteBCQ, BCQ]
D = 13
GROUPS = np.arange(24).reshape(2, 12)  # what is logged in either of two contexts
PAYING = GROUPS[:, 5]


def sessions(dataset, split: str = "train", n: int = 4, **options):
    given = {"action_type": "slate", "observation_type": "dict", "max_len": 5} | options
    return make_vec_env("KuaiRec-Fair-v0", n, split, 3, dataset=dataset, **given)


def make(kind, env, **options):
    given = {"seed": 0, "device": "cpu", "batch_size": 64} | options
    if kind is BCQ:
        given["policy_kwargs"] = {"n_candidates": 100, "hidden": 64} | given.get(
            "policy_kwargs", {}
        )
    return kind(f"{kind.__name__}Policy", env, **given)


def context(which: int, rows: int) -> np.ndarray:
    states = np.zeros((rows, D), dtype=np.float32)
    states[:, 0] = 2 * which - 1
    return states


def observations(which: int, env, shown=()) -> dict[str, np.ndarray]:
    """What one session shows in a context, in which some items were shown."""
    parts = {
        name: np.zeros((1, *part.shape), dtype=part.dtype)
        for name, part in env.observation_space.spaces.items()
    }
    exposed = np.full_like(parts["exposed"], -1)
    exposed[0, : len(shown)] = shown
    return {**parts, "state": context(which, 1), "exposed": exposed}


@pytest.fixture(scope="module")
def two_contexts() -> LoggedTransitions:
    """In each context, one of twelve items pays; another is shown more often."""
    rng = np.random.default_rng(0)
    shares = np.full(12, 0.035)
    shares[[2, 5]] = 0.4, 0.25

    def episode(which: int) -> Episode:
        items = rng.choice(GROUPS[which], 10, p=shares)
        paid = (items == PAYING[which]).astype(np.float64)
        never = np.zeros(10, dtype=bool)
        return Episode(context(which, 11), items, paid, never, np.arange(10) == 9)

    return LoggedTransitions(episode(number % 2) for number in range(400))


@pytest.fixture(scope="module", params=KINDS)
def learned(request, small, two_contexts):
    """An agent that has learned from the two contexts."""
    agent = make(request.param, sessions(small), learning_rate=3e-3, gamma=0.5, tau=0.02)
    agent.transitions = two_contexts
    return agent.learn(64 * 400)


def test_a_log_is_cut_into_decisions_with_what_followed(small) -> None:
    log = LoggedTransitions(logged_episodes(small, max_len=7, users=small.train_users[:9]))
    episodes = list(logged_episodes(small, max_len=7, users=small.train_users[:9]))
    assert len(log) == sum(len(one) for one in episodes)
    drawn = log.sample(4000, np.random.default_rng(0), torch.device("cpu"))
    # State, item, reward and next state: two users may start with the same item.
    known = {
        (
            one.observations[t].tobytes(),
            int(one.actions[t]),
            float(np.float32(one.rewards[t])),
            one.observations[t + 1].tobytes(),
        )
        for one in episodes
        for t in range(len(one))
    }
    seen = set()
    for state, item, reward, following, lasting in zip(*drawn, strict=True):
        transition = (state.numpy().tobytes(), int(item), float(reward))
        seen.add((*transition, following.numpy().tobytes()))
        assert lasting == 1  # the log ends nobody's session
    assert seen == known


def test_where_a_session_ended_nothing_is_to_come() -> None:
    ends = np.array([False, True])
    log = LoggedTransitions([Episode(context(0, 3), np.arange(2), np.ones(2), ends, ~ends & False)])
    drawn = log.sample(100, np.random.default_rng(0), torch.device("cpu"))
    np.testing.assert_array_equal(drawn.lasting, 1 - drawn.items)


def test_reading_stops_at_enough_decisions(small) -> None:
    assert 100 <= len(LoggedTransitions(logged_episodes(small), most=100)) < 130
    with pytest.raises(ConfigError, match="at least one episode"):
        LoggedTransitions([])


def test_the_log_is_that_of_the_environments_users(small) -> None:
    users = small.train_users[:5]
    log = transitions_of(sessions(small, users=users), np.random.default_rng(0))
    assert len(log) == np.isin(small.log.users, users).sum()
    with pytest.raises(ConfigError, match="train users"):
        transitions_of(sessions(small, "test"), np.random.default_rng(0))


def of_three(lasting: float = 1.0) -> Decisions:
    return Decisions(
        torch.zeros(1, D),
        torch.tensor([0]),
        torch.tensor([0.25]),
        torch.zeros(1, D),
        torch.tensor([lasting]),
    )


def outputs(network, values: list[float], rest: float) -> None:
    """Makes an item network say the same of every state."""
    with torch.no_grad():
        network.vectors.zero_()
        network.level[-1].weight.zero_()
        network.offsets.fill_(rest)
        network.offsets[:3] = torch.tensor(values)


@pytest.mark.parametrize(
    ("threshold", "value"),
    [(0.3, 20.0), (0.0, 30.0), (1.0, 10.0)],  # items 0 and 1, all three, and 0 are supported
)
def test_the_discrete_target_by_hand(small, threshold: float, value: float) -> None:
    agent = make(DiscreteBCQ, sessions(small), threshold=threshold, gamma=0.9)
    outputs(agent.policy.imitation, np.log([1.0, 0.5, 0.1]).tolist(), rest=-50.0)
    outputs(agent.policy.online, [1.0, 2.0, 3.0], rest=-9.0)
    outputs(agent.policy.target, [10.0, 20.0, 30.0], rest=99.0)  # never asked for the best
    assert agent.targets(of_three()).item() == pytest.approx(0.25 + 0.9 * value)
    assert agent.targets(of_three(lasting=0.0)).item() == pytest.approx(0.25)


def test_the_discrete_losses_by_hand(small) -> None:
    agent = make(DiscreteBCQ, sessions(small), gamma=0.9, logit_penalty=0.5)
    policy = agent.policy
    policy.counts[:3] = torch.tensor([1.0, 2.0, 1.0])  # and nothing else was ever logged
    outputs(policy.imitation, np.log([1.0, 0.5, 2.0]).tolist(), rest=0.0)
    outputs(policy.online, [1.0, 2.0, 3.0], rest=0.0)
    outputs(policy.target, [0.0, 0.0, 5.0], rest=0.0)
    losses = {name: one.item() for name, one in agent.losses(of_three()).items()}
    assert losses["value"] == pytest.approx(abs(0.25 + 0.9 * 5.0 - 1.0) - 0.5)
    assert losses["imitation"] == pytest.approx(-np.log(1 / 4))  # of 1, 2 * 0.5 and 1 * 2
    assert losses["logit"] == pytest.approx(0.5 * 2 * np.log(2) ** 2 / 240)


def test_the_continuous_target_weighs_the_critics(small) -> None:
    agent = make(BCQ, sessions(small), gamma=0.9, minimum_weight=0.75)
    with torch.no_grad():
        for critic, value in zip(agent.policy.target.critics, (2.0, 6.0), strict=True):
            critic[-1].weight.zero_()
            critic[-1].bias.fill_(value)
    assert agent.targets(of_three()).item() == pytest.approx(0.25 + 0.9 * (0.75 * 2 + 0.25 * 6))
    assert agent.targets(of_three(lasting=0.0)).item() == pytest.approx(0.25)


def test_the_perturbation_alone_climbs_the_critic(small) -> None:
    agent = make(BCQ, sessions(small))
    (-agent._perturbed_value(torch.randn(8, D)).mean()).backward()
    moved = {name for name, one in agent.policy.named_parameters() if one.grad is not None}
    assert moved
    assert all(name.startswith("online.perturbation") for name in moved)


def test_it_shows_what_pays_in_each_context(learned) -> None:
    for which in (0, 1):
        slate, _ = learned.predict(observations(which, learned.env), deterministic=True)
        assert slate[0, 0] == PAYING[which]


def test_imitation_shows_what_was_shown(small, two_contexts) -> None:
    agent = make(DiscreteBCQ, sessions(small), threshold=1.0, learning_rate=3e-3)
    agent.transitions = two_contexts
    agent.learn(64 * 200)
    for which in (0, 1):
        slate, _ = agent.predict(observations(which, agent.env), deterministic=True)
        assert slate[0, 0] == GROUPS[which, 2] != PAYING[which]


def test_slates_stay_within_the_support_of_the_context(learned) -> None:
    for which in (0, 1):
        slate, _ = learned.predict(observations(which, learned.env), deterministic=True)
        assert len(set(slate[0])) == 10
        # Generated actions know the context; the items next nearest to them, only that they
        # were logged.
        first = 2 if isinstance(learned, BCQ) else 10
        most = 3 if isinstance(learned, BCQ) else 10
        assert np.isin(slate[0, :most], GROUPS[which]).sum() >= first
        left = observations(which, learned.env, shown=GROUPS[which][:10])
        slate, _ = learned.predict(left, deterministic=True)
        assert np.isin(slate, GROUPS).all()
        assert not np.isin(slate, GROUPS[which][:10]).any()
        if isinstance(learned, DiscreteBCQ):  # those left come before the other context's
            assert set(slate[0, :2]) == set(GROUPS[which][10:])


def test_without_the_constraint_the_same_values_leave_the_support(small, two_contexts) -> None:
    agent = make(DiscreteBCQ, sessions(small), threshold=0.0, learning_rate=3e-3, gamma=0.5)
    agent.transitions = two_contexts
    agent.learn(64 * 400)
    for which in (0, 1):
        slate, _ = agent.predict(observations(which, agent.env), deterministic=True)
        assert not np.isin(slate, GROUPS[which]).all()


@pytest.mark.parametrize("learned", [BCQ], indirect=True)
def test_generated_actions_are_those_that_were_logged(learned) -> None:
    policy = learned.policy
    for which in (0, 1):
        logged = policy.vectors[GROUPS[which]]
        state = torch.as_tensor(context(which, 12))
        with torch.no_grad():
            made = policy.generate(policy.online, state[:1], policy.latents[None])[0]
            again, _ = policy.vae(state, logged, torch.zeros(12, policy.vae.latent_dim))
        length = policy.vectors.shape[1] ** 0.5
        torch.testing.assert_close(made.norm(dim=1), torch.full((100,), length))
        random = torch.randn(100, policy.vectors.shape[1])
        random *= length / random.norm(dim=1, keepdim=True)
        to_logged, by_chance = (
            torch.cdist(one, logged).amin(dim=1).mean() for one in (made, random)
        )
        assert to_logged < 0.8 * by_chance
        # A reconstruction is nearer to its own action than a guess that knows the state alone.
        error = (again - logged).square().mean()
        assert error < 0.5 * (logged - logged.mean(dim=0)).square().mean()


@pytest.mark.parametrize("learned", [BCQ], indirect=True)
@pytest.mark.parametrize("deterministic", [True, False])
def test_generated_actions_stand_for_items_not_yet_shown(learned, deterministic: bool) -> None:
    shown = torch.as_tensor(GROUPS[:, :9])
    states = torch.as_tensor(np.concatenate([context(0, 1), context(1, 1)]))
    values, supported, likelihood = learned.policy.judge(states, shown, deterministic)
    for which in (0, 1):
        hidden = torch.zeros(240, dtype=torch.bool).index_fill(0, shown[which], True)
        assert supported[which].any() and not supported[which, hidden].any()
        torch.testing.assert_close(likelihood[which] == -torch.inf, hidden)
        # A supported item has the first critic's value of its own vector.
        vectors = learned.policy.vectors[supported[which]]
        pairs = states[which].expand(len(vectors), -1), vectors
        torch.testing.assert_close(
            values[which, supported[which]], learned.policy.online.values(*pairs)[0]
        )


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_of_few_items_is_all_that_is_shown(small, kind) -> None:
    log = small.log
    few = log.items % 4 == 0  # sixty items
    rows = WatchLog(log.users[few], log.items[few], log.watch_ratio[few])
    dataset = dataclasses.replace(small, log=rows, truth=None)
    agent = make(kind, sessions(dataset)).learn(64 * 30)
    record = evaluate(agent, sessions(dataset, "test", 16, abandonment="none"), 16)
    assert record.length.max() > 2
    for slates, length in zip(record.slates, record.length, strict=True):
        shown = slates[:length].ravel()
        assert len(np.unique(shown)) == len(shown)  # nothing twice
        assert (shown % 4 == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_are_the_same_after_loading(small, tmp_path, kind) -> None:
    agent = make(kind, sessions(small)).learn(64 * 10)
    agent.save(tmp_path / "agent")
    again = kind.load(tmp_path / "agent", device="cpu")
    assert again.transitions is None
    env = sessions(small, "test", 8)
    seen = env.reset()
    slates, _ = agent.predict(seen, deterministic=True)
    np.testing.assert_array_equal(again.predict(seen, deterministic=True)[0], slates)
    single = {name: part[3] for name, part in seen.items()}
    alone, _ = agent.predict(single, deterministic=True)
    np.testing.assert_array_equal(alone, slates[3])  # whatever it stands beside
    again.set_env(sessions(small))
    again.learn(64 * 2, reset_num_timesteps=False)
    assert again.num_timesteps == 64 * 12


@pytest.mark.parametrize("kind", KINDS)
def test_a_schedule_of_the_learning_rate_is_followed(small, two_contexts, kind) -> None:
    agent = make(kind, sessions(small), learning_rate=lambda left: 1e-3 * left)
    agent.transitions = two_contexts
    rates = []

    def note(local, _) -> bool:
        rates.append([group["lr"] for group in agent.optimizer.param_groups])
        return True

    agent.learn(64 * 4, callback=note)
    expected = [[1e-3 * left] * len(rates[0]) for left in (1.0, 0.75, 0.5, 0.25)]
    np.testing.assert_allclose(rates, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_learns_the_same(small, kind) -> None:
    one, other = (make(kind, sessions(small)).learn(64 * 5) for _ in range(2))
    for name, value in one.policy.state_dict().items():
        torch.testing.assert_close(other.policy.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_learning_never_steps_the_environment_and_can_be_stopped(small, kind, monkeypatch) -> None:
    env = sessions(small)
    monkeypatch.setattr(env, "step_wait", None)
    calls: list[int] = []

    def stop_at_three(local_names, global_names) -> bool:
        assert local_names["infos"] == []
        calls.append(local_names["self"].num_timesteps)
        return len(calls) < 3

    agent = make(kind, env).learn(64 * 10, stop_at_three)
    assert calls == [64, 128, 192]
    assert agent.num_timesteps == 192


def test_wrong_options_are_refused(small, small_rand) -> None:
    env = sessions(small)
    with pytest.raises(ConfigError, match=r"threshold must lie in \[0, 1\], got 1.5"):
        make(DiscreteBCQ, env, threshold=1.5)
    with pytest.raises(ConfigError, match=r"minimum_weight must lie in \[0, 1\]"):
        make(BCQ, env, minimum_weight=-1.0)
    with pytest.raises(ConfigError, match="n_candidates"):
        make(BCQ, env, policy_kwargs={"n_candidates": 0})
    with pytest.raises(ConfigError, match="batch_size"):
        make(BCQ, env, batch_size=0)
    for kind in KINDS:
        with pytest.raises(ConfigError, match=f"{kind.__name__} needs observation_type='dict'"):
            make(kind, sessions(small, observation_type="state"))
    other = make_vec_env(
        "KuaiRand-Fair-v0",
        4,
        dataset=small_rand,
        action_type="slate",
        observation_type="dict",
        max_len=5,
    )
    agent = make(DiscreteBCQ, env)
    with pytest.raises(CheckpointError, match="other items"):
        agent.set_env(other)
    assert agent.env is env
    with pytest.raises(ConfigError, match="train users"):
        make(DiscreteBCQ, sessions(small, "test")).learn(64)


@pytest.mark.parametrize("kind", [BCQ, DiscreteBCQ])
def test_a_policy_alone_is_the_same_after_loading(small, tmp_path, kind) -> None:
    policy = make(kind, sessions(small)).policy
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", device="cpu")
    observation = sessions(small).reset()
    for one in (policy, loaded):
        one.set_training_mode(False)
    np.testing.assert_array_equal(
        loaded.predict(observation, deterministic=True)[0],
        policy.predict(observation, deterministic=True)[0],
    )
