"""DNaIR: co-occurrence, novelty that quality gates, DSAG, and a Q-network that learns."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.baselines.cooccurrence import neighbours
from dsrm_agents.baselines.dnair import DNaIR, DNaIRPolicy, gated_novelty, last_liked
from dsrm_agents.baselines.slate_learning import SlateSamples
from kuaisim_gym.data import WatchLog
from kuaisim_gym.errors import CheckpointError, ConfigError
from kuaisim_gym.metrics import longtail_share, reward_per_step
from kuaisim_gym.simulator.catalogue import Catalogue

N_ITEMS, ROOM, K = 20, 9, 3


def sessions(dataset, slots: int = 16, split: str = "train", **options):
    given = {"observation_type": "dict", "action_type": "slate", "max_len": 5} | options
    return make_vec_env("KuaiRec-Fair-v0", slots, split, seed=3, dataset=dataset, **given)


def agent(env, **options) -> DNaIR:
    given = {"learning_starts": 0, "batch_size": 32, "seed": 0, "device": "cpu"} | options
    return DNaIR("DNaIRPolicy", env, **given)


def watched(small, users, items, ratios):
    """The world with a tiny log instead, all of whose users are train users."""
    log = WatchLog(
        np.array(users, np.int32), np.array(items, np.int32), np.array(ratios, np.float32)
    )
    test = WatchLog(np.array([399], np.int32), np.array([0], np.int32), np.ones(1, np.float32))
    return dataclasses.replace(small, log=log, test=test, truth=None)


def similar_items(count: int = N_ITEMS - 1) -> np.ndarray:
    """Item i is most similar to i + 1, then to i + 2, and so on around a circle."""
    return (np.arange(N_ITEMS)[:, None] + np.arange(1, count + 1)).astype(np.int32) % N_ITEMS


def policy(epsilon: float = 1.0, similar: int = 4, seed: int = 0, **options) -> DNaIRPolicy:
    catalogue = Catalogue(
        np.random.default_rng(1).normal(size=(N_ITEMS, 2)).astype(np.float32), np.arange(N_ITEMS)
    )
    observation = spaces.Dict(
        {
            "state": spaces.Box(-1, 1, (2,)),
            "exposed": spaces.Box(-1, N_ITEMS - 1, (ROOM,), np.int32),
            "responses": spaces.Box(0, 1, (ROOM,)),
        }
    )
    return DNaIRPolicy(
        observation,
        spaces.MultiDiscrete([N_ITEMS] * K),
        lambda _: 1e-3,
        catalogue,
        similar_items(),
        similar=similar,
        epsilon=epsilon,
        seed=seed,
        **options,
    )


def shown(*items: int, n: int = 1) -> torch.Tensor:
    return torch.tensor([[*items, *[-1] * (ROOM - len(items))]]).repeat(n, 1)


# Neighbours


def test_neighbours_by_hand(small) -> None:
    # Users by item: 0 {0, 1, 2}, 1 {0, 1}, 2 {0, 1}, 3 {0, 1, 2, 3}. User 4 has item 2 alone.
    users = [0, 0, 1, 1, 1, 2, 3, 3, 3, 4]
    items = [0, 1, 0, 1, 2, 1, 0, 2, 2, 2]
    data = watched(small, users, items, np.ones(len(users))).training
    # n = [3, 3, 3] and c_01 = 2, c_02 = 2, c_12 = 1: user 3, shown item 2 twice, counts once.
    found = neighbours(data, 2)
    assert found.dtype == np.int32
    assert found.shape == (small.n_items, 2)
    assert found[0].tolist() == [1, 2]  # a tie, by position
    assert found[1].tolist() == [0, 2]
    assert found[2].tolist() == [0, 1]
    assert found[7].tolist() == [0, 1]  # never shown, and similar to none


def test_often_shown_items_are_not_everybody_s_neighbours(small) -> None:
    users = [0, 0, 0, 1, 1, 1, 2, 3, 4, 5]
    items = [0, 1, 2, 0, 1, 2, 1, 1, 1, 1]
    data = watched(small, users, items, np.ones(len(users))).training
    # c_01 = c_02 = 2, but n_1 = 6 and n_2 = 2: cosines 2 / sqrt(12) and 2 / 2.
    assert neighbours(data, 2)[0].tolist() == [2, 1]


def test_neighbours_are_those_of_the_dense_cosine(small) -> None:
    data = small.training
    seen = np.zeros((data.n_users, data.n_items))
    catalogue = data.train_log.items < data.n_items
    seen[data.train_log.users[catalogue], data.train_log.items[catalogue]] = 1
    count = seen.sum(axis=0)
    cosine = (seen.T @ seen) / np.sqrt(np.maximum(np.outer(count, count), 1))
    np.fill_diagonal(cosine, -1)
    found = neighbours(data, 10_000)
    assert found.shape == (data.n_items, data.n_items - 1)
    ranked = np.take_along_axis(cosine, found, axis=1)
    np.testing.assert_allclose(ranked, -np.sort(-cosine, axis=1)[:, :-1], atol=1e-6)
    assert all(len(set(row)) == data.n_items - 1 for row in found.tolist())
    np.testing.assert_array_equal(neighbours(data, 30), found[:, :30])
    with pytest.raises(ConfigError, match="count must be an integer"):
        neighbours(data, 0)


# Rewards and targets


def test_the_worse_of_two_equally_rare_items_is_worth_less(small) -> None:
    # Items 1 and 2 have two rows, item 3 has three; item 1 was liked, item 2 was not.
    users, items = [0, 0, 0, 1, 1, 1, 2], [1, 2, 3, 1, 2, 3, 3]
    data = watched(small, users, items, [0.9, 0.1, 0.9, 0.8, 0.2, 0.9, 0.9]).training
    worth = gated_novelty(data, np.bincount(items, minlength=small.n_items))
    assert worth.dtype == np.float32
    never, rare, often = (1 / np.log10(p + 1.1) for p in (0.0, 2 / 3, 1.0))
    expected = [1 / 2 * never, 3 / 4 * rare, 1 / 4 * rare, 4 / 5 * often]
    np.testing.assert_allclose(worth[:4], expected, rtol=1e-6)
    assert worth[1] > worth[2]


def test_rewards_by_hand(small) -> None:
    model = agent(sessions(small), beta=0.5)
    exposures = model.policy.catalogue.exposures
    np.testing.assert_array_equal(model.gated_novelty, gated_novelty(small.training, exposures))
    model.gated_novelty = np.arange(small.n_items, dtype=np.float32)
    found = model.rewards(torch.tensor([[4, 7], [0, 1]]), torch.tensor([[1.0, 0.0], [0.3, 1.0]]))
    np.testing.assert_allclose(found, [[3.0, 3.5], [0.3, 1.5]])


def test_targets_by_hand(small) -> None:
    model = agent(sessions(small), beta=0.1, gamma=0.5)
    target = model.policy.q_net_target
    with torch.no_grad():  # values that do not depend on the state
        for one in target.parameters():
            one.zero_()
        target.offsets[:] = torch.arange(small.n_items)
    room = torch.full((3, 50), -1)
    seen = room.clone()
    seen[1, :2] = torch.tensor([small.n_items - 1, small.n_items - 2])
    states = torch.zeros(3, model.policy.state_dim)
    slates = torch.tensor([[4, 5]]).repeat(3, 1)
    responses = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    dones = torch.tensor([[0.0], [0.0], [1.0]])
    found = model.targets(SlateSamples(states, room, slates, responses, states, seen, dones))
    reward = np.array([1.0, 0.0]) + 0.1 * model.gated_novelty[[4, 5]]
    best = small.n_items - 1
    expected = np.stack([reward + 0.5 * best, reward + 0.5 * (best - 2), reward])
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_where_everything_was_shown_nothing_follows(small) -> None:
    model = agent(sessions(small))
    states = torch.zeros(1, model.policy.state_dim)
    everything = torch.arange(small.n_items)[None]
    slates, dones = torch.tensor([[4]]), torch.ones(1, 1)
    batch = SlateSamples(states, everything, slates, torch.ones(1, 1), states, everything, dones)
    expected = model.rewards(slates, torch.ones(1, 1))
    for left in (dones, 1 - dones):
        torch.testing.assert_close(model.targets(batch._replace(dones=left)), expected)


# DSAG


def test_the_last_liked_item() -> None:
    exposed = torch.cat([shown(4, 7, 2), shown(4, 7, 2), shown()])
    responses = torch.zeros(3, ROOM)
    responses[0, :3] = torch.tensor([1.0, 0.5, 0.4])
    assert last_liked(exposed, responses).tolist() == [7, -1, -1]


def test_with_certainty_a_pick_is_the_best_of_the_similar_items() -> None:
    # Item 5's similar ones are 6, 7, 8, 9, 10, ...; 7 was shown, so that four are 6, 8, 9, 10.
    values = torch.zeros(1, N_ITEMS)
    values[0, [7, 9, 10, 11, 12, 6]] = torch.tensor([9.0, 5.0, 3.0, 4.0, 8.0, 1.0])
    slate = policy(epsilon=1.0).generate(values, shown(5, 7), torch.tensor([5]))
    # 9 is the best of them, and lets 11 in, which lets 12 in.
    assert slate.tolist() == [[9, 11, 12]]


def test_without_luck_no_pick_is_similar() -> None:
    n = 200
    values = torch.zeros(n, N_ITEMS)
    values[:, 6:10] = 1.0
    slates = policy(epsilon=0.0).generate(values, shown(5, 3, n=n), torch.full((n,), 5))
    rest = set(range(N_ITEMS)) - {5, 3, 6, 7, 8, 9}
    assert set(slates.flatten().tolist()) == rest
    assert all(len(set(slate)) == K for slate in slates.tolist())
    often = torch.bincount(slates.flatten(), minlength=N_ITEMS)[list(rest)]
    np.testing.assert_allclose(often, n * K / len(rest), rtol=0.5)  # any as likely as another


@pytest.mark.parametrize("liked", [5, -1])
def test_epsilon_is_the_share_of_similar_picks(liked: int) -> None:
    n = 3000
    values = -torch.arange(N_ITEMS, dtype=torch.float32).repeat(n, 1)
    slates = policy(epsilon=0.8, similar=4).generate(values, shown(5, n=n), torch.full((n,), liked))
    # Of those not yet shown, the first four after 5; without a liked item, the first four at all.
    near = [6, 7, 8, 9] if liked == 5 else [0, 1, 2, 3]
    share = np.isin(slates[:, 0], near).mean()
    assert abs(share - 0.8) < 0.03
    assert (slates[:, 0][np.isin(slates[:, 0], near)] == near[0]).all()


def test_where_no_other_item_is_left_similar_ones_fill_the_slate() -> None:
    slate = policy(epsilon=0.0, similar=N_ITEMS).generate(
        torch.arange(N_ITEMS)[None].float(), shown(5), torch.tensor([5])
    )
    assert slate.tolist() == [[19, 18, 17]]


def test_slates_are_distinct_and_unexposed_and_repeat_with_the_seed(small) -> None:
    def slates(seed: int) -> np.ndarray:
        env = sessions(small)
        model = agent(env, seed=seed, policy_kwargs={"epsilon": 0.5, "similar": 20})
        observation, made = env.reset(), []
        for _ in range(4):
            slate, _ = model.predict(observation, deterministic=True)
            for row, before in zip(slate, observation["exposed"], strict=True):
                assert len(set(row.tolist()) - set(before.tolist())) == 10
            made.append(slate)
            observation = env.step(slate)[0]
        return np.stack(made)

    np.testing.assert_array_equal(slates(1), slates(1))
    assert (slates(1) != slates(2)).any()


# Learning


@pytest.fixture(scope="module")
def learned(small) -> dict[float, DNaIR]:
    return {
        beta: agent(
            sessions(small, 32),
            beta=beta,
            learning_rate=3e-3,
            learning_starts=1000,
            batch_size=32,
            policy_kwargs={"similar": 60},
        ).learn(8_000)
        for beta in (0.0, 0.4)
    }


def test_it_learns_what_users_like(small, learned) -> None:
    env = sessions(small, 20)
    random = agent(env, learning_starts=10**6, policy_kwargs={"epsilon": 0.0, "similar": 1})
    chance = reward_per_step(evaluate(random, env, 100))
    assert reward_per_step(evaluate(learned[0.0], env, 100)) > chance + 0.1


def test_beta_buys_novelty_of_quality(small, learned) -> None:
    env = sessions(small, 20)
    played = {beta: evaluate(model, env, 100) for beta, model in learned.items()}
    tails = [longtail_share(played[beta], env.batch.catalogue.popular) for beta in (0.0, 0.4)]
    assert tails[1] > tails[0] + 0.05
    worth = learned[0.0].gated_novelty
    paid = [worth[one.slates[one.slates >= 0]].mean() for one in played.values()]
    assert paid[1] > 1.2 * paid[0]


def test_the_target_network_follows_softly(small) -> None:
    model = agent(sessions(small), tau=0.25, batch_size=8).learn(16)
    before = [one.clone() for one in model.policy.q_net_target.parameters()]
    model.train(1, 8)
    for old, new, online in zip(
        before,
        model.policy.q_net_target.parameters(),
        model.policy.q_net.parameters(),
        strict=True,
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * online)


# As any SB3 algorithm


def test_a_saved_agent_predicts_and_learns_on(small, learned, tmp_path) -> None:
    model = learned[0.4]
    model.save(tmp_path / "agent")
    loaded = DNaIR.load(tmp_path / "agent", device="cpu")
    observation = sessions(small).reset()
    for one in (model, loaded):
        one.policy.generator.manual_seed(5)
    expected = model.predict(observation)[0]
    np.testing.assert_array_equal(loaded.predict(observation)[0], expected)
    np.testing.assert_array_equal(loaded.gated_novelty, model.gated_novelty)
    single = {name: part[0] for name, part in observation.items()}
    assert loaded.predict(single, deterministic=True)[0].shape == (10,)
    state = loaded.policy.optimizer.state_dict()["state"]
    assert int(state[0]["step"]) == model._n_updates
    loaded.set_env(sessions(small, 32))
    loaded.learn(256, reset_num_timesteps=False)
    assert loaded._n_updates > model._n_updates


def test_a_saved_policy_predicts_the_same(small, learned, tmp_path) -> None:
    learned[0.0].policy.save(tmp_path / "policy")
    loaded = DNaIRPolicy.load(tmp_path / "policy", device="cpu")
    assert (loaded.similar, loaded.epsilon, loaded.seed) == (60, 0.95, 0)
    observation = sessions(small).reset()
    learned[0.0].policy.generator.manual_seed(0)
    expected = learned[0.0].policy.predict(observation)[0]
    np.testing.assert_array_equal(loaded.predict(observation)[0], expected)


def test_callbacks_see_finished_sessions_and_stop_it(small) -> None:
    class Stop(BaseCallback):
        finished = 0

        def _on_step(self) -> bool:
            self.finished += sum("session" in info for info in self.locals["infos"])
            return self.finished < 20

    callback = Stop()
    model = agent(sessions(small)).learn(10_000, callback=callback)
    assert 20 <= callback.finished < 40
    assert model.num_timesteps < 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -0.1}, "beta must be at least 0, got -0.1"),
        ({"policy_kwargs": {"epsilon": 1.5}}, "epsilon must be a probability.*1.5"),
        ({"policy_kwargs": {"similar": 0}}, "similar must be an integer of at least 1, got 0"),
    ],
)
def test_options_out_of_range_are_refused(small, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(sessions(small), **options)


def test_other_spaces_and_other_items_are_refused(small, small_rand) -> None:
    with pytest.raises(ConfigError, match="DNaIR needs observation_type='dict'"):
        agent(sessions(small, observation_type="state"))
    model = agent(sessions(small))
    rand = make_vec_env(
        "KuaiRand-Fair-v0",
        16,
        dataset=small_rand,
        observation_type="dict",
        action_type="slate",
        max_len=5,
    )
    with pytest.raises(CheckpointError, match="built for other items"):
        model.set_env(rand)
    assert agent(rand, batch_size=8).learn(64)._n_updates > 0
