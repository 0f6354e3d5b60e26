"""Agents where the catalogue changes: they follow the day, or refuse by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO

from dsrm_agents import (
    HSRL,
    MOFIR,
    SAC4IR,
    Codebook,
    DiscreteBCQ,
    DNaIR,
    EncodedVecEnv,
    HierarchicalPPO,
    PenalisedVecEnv,
    PreferenceVecEnv,
    PurifyVecEnv,
    Recommender,
    ScorerVecEnv,
    SemanticVecEnv,
    TrainingCheckpoint,
    evaluate,
    export_onnx,
    extend,
    fit_encoder,
    item_features,
    make_vec_env,
    resume,
)
from dsrm_agents.baselines.novelty import make_novelty
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.baselines.slates import last_slates
from dsrm_agents.common.bounds import Band
from dsrm_agents.common.catalogue import flags_of, outside_pool, shown_popular
from dsrm_agents.common.identity import identity_of
from dsrm_agents.hrl.items import ChangingItems, Context, FixedItems
from dsrm_agents.hrl.workers import Worker
from dsrm_agents.hsrl import policies as hsrl_policies
from kuaisim_gym.engine import bits
from kuaisim_gym.envs.tasks import make_batch
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import popularity_groups
from kuaisim_gym.simulator.lifecycle import Lifecycle, before_first_day

ENV, K = "KuaiRec-Dynamic-v0", 10
# As many arrivals a day whatever days are played, so that training and test share a timetable.
LIFE: dict[str, Any] = {"arrivals": 15.0, "sessions_per_day": 16, "lifetime": 30.0, "memory": 0.5}
SLATES = {"observation_type": "dict", "action_type": "slate"}


def environment(dataset, n: int = 8, days=(1, 3), env_id: str = ENV, seed: int = 0, **options):
    options = {"max_len": 3, "slate_size": K, **options}
    options.setdefault("catalogue", LIFE | {"days": days})
    return make_vec_env(env_id, n, seed=seed, dataset=dataset, **options)


def hierarchical(env, worker: str = "constrained", **options):
    policy = {"worker": worker} | options.pop("policy_kwargs", {})
    defaults = {"n_steps": 8, "batch_size": 64, "learning_rate": 3e-3, "seed": 1}
    return HierarchicalPPO(
        "HierarchicalPolicy", env, policy_kwargs=policy, device="cpu", **(defaults | options)
    )


def semantic(env, fairness: float | None) -> HSRL:
    return HSRL(
        "HSRLPolicy", env, n_steps=8, batch_size=64, seed=1, device="cpu",
        policy_kwargs={"fairness": fairness},
    )  # fmt: skip


def tensors(observation) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(part) for name, part in observation.items()}


# Items laid out in both groups


def workers(small, band: bool = False) -> tuple[Worker, Worker, torch.Tensor]:
    """The same worker on both layouts, and the popular items of which the fixed one is made."""
    catalogue = load_catalogue(small)
    rng = np.random.default_rng(0)
    popular = rng.permutation(catalogue.n_items) < 50
    groups = popularity_groups(popular)
    made = []
    for layout in (FixedItems, ChangingItems):
        torch.manual_seed(3)
        target = groups.target[::-1].copy()
        free = Band(target, np.array([2, 2]), np.array([4, 4]), 6) if band else None
        worker = Worker(layout(catalogue, groups), 8, 6, True, target, 0.0, free)
        with torch.no_grad():
            worker.query.weight.copy_(torch.randn(worker.query.weight.shape))
        made.append(worker)
    return made[0], made[1], torch.as_tensor(popular)


def context_of(popular: torch.Tensor, n: int = 7, changing: bool = True) -> Context:
    """Sessions that have shown a few items, and cannot show others."""
    rng = np.random.default_rng(1)
    order = torch.as_tensor(np.stack([rng.permutation(len(popular)) for _ in range(n)]))
    exposed = order[:, :18].clone()
    exposed[::2, 12:] = -1
    outside = torch.zeros(n, len(popular), dtype=torch.bool).scatter_(1, order[:, 18:108], True)
    demand = torch.linspace(0.0, 1.0, n)
    shown = popular.expand(n, -1) if changing else exposed[:, :0]
    state = torch.as_tensor(rng.normal(size=(n, 8)), dtype=torch.float32)
    return Context(state, exposed, outside, shown, torch.ones(n), demand)


@pytest.mark.parametrize("kind", ["demand", "band", "dialled"])
def test_copies_change_nothing_where_groups_stay(small, kind: str) -> None:
    fixed, changing, popular = workers(small, band=kind == "band")
    plain, today = context_of(popular, changing=False), context_of(popular)
    if kind == "dialled":
        for worker in (fixed, changing):
            worker.group_shares.copy_(torch.tensor([0.3, 0.7]))
    bounds, expected = changing.bounds(today), fixed.bounds(plain)
    assert torch.equal(bounds.least, expected.least) and torch.equal(bounds.most, expected.most)
    shown = fixed.items.shown(plain)
    assert torch.equal(changing.items.shown(today), shown)
    assert torch.equal(changing.items.left(today, shown), fixed.items.left(plain, shown))
    best, log_prob, _ = fixed.act(plain, deterministic=True)
    again, same, _ = changing.act(today, deterministic=True)
    assert torch.equal(best, again)
    torch.testing.assert_close(same, log_prob, atol=1e-4, rtol=1e-5)
    drawn, of_draw, drawn_bounds = changing.act(today, deterministic=False)
    torch.testing.assert_close(
        fixed.log_prob(plain, drawn, drawn_bounds), of_draw, atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(changing.entropy(today), fixed.entropy(plain))
    torch.testing.assert_close(changing.drift(today, drawn), fixed.drift(plain, drawn))
    gradients = []
    for worker, context in ((fixed, plain), (changing, today)):
        worker.log_prob(context, drawn).sum().backward()
        gradients.append([worker.query.weight.grad, worker.items.projection.weight.grad])
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-3, rtol=1e-4)


def test_each_session_has_its_own_day(small) -> None:
    _, worker, popular = workers(small)
    context = context_of(popular)
    others = torch.as_tensor(np.random.default_rng(9).random((7, len(popular))) < 0.3)
    others &= ~context.outside
    context = context._replace(popular=others, fairness=torch.ones(7))
    slates, log_prob, bounds = worker.act(context, deterministic=False)
    assert (others.gather(1, slates).sum(dim=1) == 3).all()
    for row in range(7):
        unavailable = torch.cat([context.exposed[row], context.outside[row].nonzero()[:, 0]])
        assert not torch.isin(slates[row], unavailable).any()
        assert len(set(slates[row].tolist())) == 6
    torch.testing.assert_close(worker.log_prob(context, slates, bounds), log_prob)
    # An exposed item that has left counts as shown, and once alone as no longer there.
    gone = context._replace(outside=context.outside[:, :0])
    left = worker.items.left(gone, worker.items.shown(gone))
    n_shown = (context.exposed >= 0).sum(dim=1)
    assert (left.sum(dim=1) == len(popular) - n_shown).all()


def test_popularity_is_that_of_the_observed_day() -> None:
    flags = np.array([[True, False, False], [False, True, True]])
    observation = {"popular": bits.pack(flags)}
    today = Catalogue(np.zeros((3, 2), np.float32), np.array([5, 1, 1]), np.ones(3, dtype=bool))
    slates = np.array([[0, 1], [0, 2]])
    popular = shown_popular(observation, slates, today)
    assert popular.tolist() == [[True, False], [False, True]]
    always = Catalogue(today.embedding, today.exposures)
    assert shown_popular(observation, slates, always).tolist() == [[True, False], [True, False]]


# The hierarchical agent


@pytest.mark.parametrize("worker", ["constrained", "band"])
def test_the_rollout_s_probabilities_are_found_again(small, worker: str) -> None:
    env = environment(small, **SLATES)
    model = hierarchical(env, worker, learning_rate=0.0, policy_kwargs={"decision_period": 2})
    days = []

    def record(*_: Any) -> bool:
        days.append(env.batch.platform.day)
        return True

    model.learn(8 * 8, callback=record)
    assert len(set(days)) > 1
    samples = model.rollout_buffer.samples()
    with torch.no_grad():
        again = model.policy.evaluate_decision(
            samples.observations, samples.control, samples.slates, samples.bounds
        )
        bounds = model.policy.evaluate_decision(
            samples.observations, samples.control, samples.slates
        ).bounds
    torch.testing.assert_close(
        again.choice_log_prob, samples.old_choice_log_prob, atol=1e-3, rtol=1e-4
    )
    assert torch.equal(bounds.least, samples.least) and torch.equal(bounds.most, samples.most)


def test_rewards_are_of_the_day_s_groups(small) -> None:
    """What the algorithm reads off observations is what the platform counted."""
    env = environment(small, **SLATES)
    model = hierarchical(env, n_steps=16)
    batch, seen = env.batch, []
    labels_then: list[Any] = []
    fair = model.fair

    def spy(slates, before, labels=None):
        labels_then.append((slates, labels))
        return fair(slates, before, labels)

    def record(local: dict[str, Any], *_: Any) -> bool:
        rows = np.flatnonzero(~local["dones"])
        steps = batch.core.state.steps[rows] - 1
        seen.append((rows, batch.platform.shown_popular[rows, steps].copy()))
        return True

    model.fair = spy
    model.learn(16 * 8, callback=record)
    assert len(seen) == len(labels_then) and sum(len(rows) for rows, _ in seen) > 20
    stale = 0
    for (rows, popular), (slates, labels) in zip(seen, labels_then, strict=True):
        np.testing.assert_array_equal(labels[rows], popular)
        stale += (model.policy.catalogue.popular[slates[rows]] != popular).sum()
    assert stale > 0  # the first day's groups would have been others


def trained(small, worker: str = "band", **policy):
    env = environment(small, n=16, days=(1, 3), **SLATES)
    model = hierarchical(env, worker, policy_kwargs=policy).learn(16 * 8 * 3)
    return model


@pytest.mark.parametrize("by_features", [False, True])
def test_a_frozen_policy_shows_items_born_after_its_training(small, by_features: bool) -> None:
    policy = {"item_features": item_features(small)} if by_features else {}
    model = trained(small, **policy)
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    test = environment(small, n=16, days=(4, 8), split="test", seed=50, **SLATES)
    timetable = test.batch.platform.timetable
    sessions = evaluate(model, test, 96, deterministic=False)
    shown = sessions.slates[sessions.slates >= 0]
    born_later = timetable.born[shown] > 3
    assert 0.02 < born_later.mean() < 0.98
    assert not sessions.penalised.any()
    assert test.batch.platform.day > 4
    for name, value in model.policy.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, equal_nan=True)


def test_slates_are_halves_of_the_day_s_groups(small) -> None:
    model = trained(small, "constrained")
    with torch.no_grad():
        model.policy.manager[-1].bias[1] = 10.0  # w_fair is 1
    test = environment(small, n=16, days=(4, 8), split="test", seed=50, **SLATES)
    sessions = evaluate(model, test, 96)
    steps = (sessions.slates >= 0).all(axis=2)
    counts = sessions.popular.sum(axis=2)[steps]
    assert len(counts) > 150 and (counts == K // 2).all()
    assert not sessions.penalised.any()
    first_day = model.policy.catalogue.popular
    assert (first_day[sessions.slates].sum(axis=2)[steps] != K // 2).any()


def test_it_learns_on_the_other_platform(small_rand) -> None:
    env = environment(small_rand, env_id="KuaiRand-Dynamic-v0", **SLATES)
    model = hierarchical(env, "band").learn(4 * 64)
    sessions = evaluate(model, env, 32)
    assert env.batch.platform.today != (1, 1) and not sessions.penalised.any()


def test_what_it_has_learned_moves_between_days(small, tmp_path) -> None:
    model = hierarchical(environment(small, **SLATES)).learn(64)
    model.save(tmp_path / "agent")
    later = environment(small, days=(4, 8), **SLATES)
    loaded = HierarchicalPPO.load(tmp_path / "agent", env=later)
    observation = later.reset()
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(loaded.predict(observation, deterministic=True)[0], expected)
    loaded.learn(64)


@pytest.mark.parametrize("kind", ["HSRL", "HierarchicalPPO"])
def test_a_training_goes_on_in_later_days(small, kind: str) -> None:
    env = environment(small, **SLATES)
    model = semantic(env, 1.0) if kind == "HSRL" else hierarchical(env, "band")
    model.learn(2 * 64)
    network = list(model.policy.parameters())
    weights = [parameter.detach().clone() for parameter in network]
    later = environment(small, days=(4, 8), seed=5, **SLATES)
    model.set_env(later)
    days = set()

    def record(*_: Any) -> bool:
        days.add(later.batch.platform.day)
        return True

    model.learn(2 * 64, callback=record, reset_num_timesteps=False)
    assert model.num_timesteps == 4 * 64 and min(days) >= 4
    assert model.get_env() is later
    assert list(map(id, network)) == list(map(id, model.policy.parameters()))
    assert not all(map(torch.equal, weights, model.policy.parameters()))
    assert evaluate(model, later, 16).length.min() > 0


@pytest.mark.parametrize("kind", ["HSRL", "HierarchicalPPO"])
def test_an_extension_by_no_item_is_the_same_agent(small, kind: str) -> None:
    env = environment(small, **SLATES)
    model = semantic(env, 1.0) if kind == "HSRL" else hierarchical(env, "band")
    model.learn(64)
    later = environment(small, n=4, days=(4, 8), **SLATES)
    same = extend(model, later)
    assert same.policy.catalogue.changes
    observation = later.reset()
    expected, _ = model.predict(observation, deterministic=True)
    np.testing.assert_array_equal(same.predict(observation, deterministic=True)[0], expected)
    if kind == "HSRL":
        assert same.policy.codebook.fingerprint == model.policy.codebook.fingerprint
    same.learn(32)


def test_a_training_resumes_in_the_middle_of_days(small, tmp_path) -> None:
    path = tmp_path / "training"
    whole = hierarchical(environment(small, **SLATES))
    whole.learn(4 * 64, TrainingCheckpoint(path, every=2 * 64))
    again = hierarchical(environment(small, **SLATES))
    assert identity_of(again) == identity_of(whole)
    resume(path, again)
    assert 0 < again.num_timesteps < 4 * 64 and again.env.batch.platform.today != (1, 1)
    again.learn(4 * 64 - again.num_timesteps, reset_num_timesteps=False)
    for a, b in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_groups_that_stay_while_items_come_and_go(small) -> None:
    env = environment(small, groups="category", abandonment="none", **SLATES)
    model = hierarchical(env).learn(64)
    observation, left = env.observe(), 0
    for _ in range(24):
        slates, _ = model.predict(observation)
        available = bits.unpack(observation["available"], small.n_items)
        assert np.take_along_axis(available, slates, axis=1).all()
        outside = outside_pool(tensors(observation), small.n_items).numpy()
        for there, shown, further in zip(available, observation["exposed"], outside, strict=True):
            shown, further = set(shown[shown >= 0]), set(np.flatnonzero(further))
            assert not shown & further
            assert shown | further == shown | set(np.flatnonzero(~there))
            left += (~there)[list(shown)].sum()
        observation, *_ = env.step(slates)
    assert left > 0  # in the middle of a session


# Semantic ids


@pytest.mark.parametrize("fairness", [None, 1.0])
def test_hsrl_follows_the_days(small, fairness: float | None) -> None:
    env = environment(small, n=8, **SLATES)
    model = semantic(env, fairness).learn(64)
    test = environment(small, n=8, days=(4, 8), seed=50, **SLATES)
    born, newcomers = test.batch.platform.timetable.born, 0
    observation = test.reset()
    for _ in range(16):
        seen = tensors(observation)
        with torch.no_grad():
            slates, _, log_prob = model.policy(seen, deterministic=False)
            _, same, _ = model.policy.evaluate_actions(seen, slates)
        torch.testing.assert_close(same, log_prob, atol=1e-3, rtol=1e-4)
        chosen = slates.numpy()
        available = bits.unpack(observation["available"], small.n_items)
        popular = bits.unpack(observation["popular"], small.n_items)
        assert np.take_along_axis(available, chosen, axis=1).all()
        for slate, exposed in zip(chosen, observation["exposed"], strict=True):
            assert len(set(slate)) == K and not set(slate) & set(exposed)
        if fairness is not None:
            assert (np.take_along_axis(popular, chosen, axis=1).sum(axis=1) == K // 2).all()
        newcomers += (born[chosen] > 3).sum()
        observation, *_ = test.step(chosen)
    assert newcomers > 0
    scores = model.policy.item_scores(tensors(observation))
    best = scores.argmax(dim=1, keepdim=True).numpy()
    available = bits.unpack(observation["available"], small.n_items)
    assert np.take_along_axis(available, best, axis=1).all()


@pytest.mark.parametrize("fairness", [None, 1.0])
def test_the_day_s_popular_items_are_unpacked_once(small, monkeypatch, fairness) -> None:
    env = environment(small, n=4, **SLATES)
    policy, unpacked = semantic(env, fairness).policy, []

    def spy(observation, name: str, n_items: int) -> torch.Tensor:
        unpacked.append(name)
        return flags_of(observation, name, n_items)

    monkeypatch.setattr(hsrl_policies, "flags_of", spy)
    seen = tensors(env.reset())
    slates = policy(seen)[0]
    calls = (
        lambda: policy(seen),
        lambda: policy.evaluate_actions(seen, slates),
        lambda: policy.evaluate_slates(seen, slates),
        lambda: policy.item_scores(seen),
        lambda: policy.slates(seen),
    )
    for call in calls:
        unpacked.clear()
        call()
        assert unpacked == ([] if fairness is None else ["popular"])


# Rules and scorers


@pytest.mark.parametrize(
    "name", ["random", "popularity", "quality+quota", "filter+quota", "expected-oracle+band"]
)
def test_reference_rows_follow_the_days(small, name: str) -> None:
    split = "test" if "oracle" in name else "train"
    batch = make_batch(
        4, env_id=ENV, dataset=small, split=split, max_len=3, slate_size=K,
        catalogue=LIFE | {"days": (1, 4), "sessions_per_day": 6}, **SLATES,
    )  # fmt: skip
    batch.seed(np.arange(4))
    rule = make_reference(name, batch)
    batch.reset()
    days, later = set(), 0
    for _ in range(30):
        slates = rule.slates(batch.observe())
        today = batch.catalogue
        days.add(batch.platform.day)
        unexposed = batch.core.unexposed()
        popular = today.popular[slates].sum(axis=1)
        if name == "popularity":
            for slate, free in zip(slates, unexposed, strict=True):
                rest = np.setdiff1d(np.flatnonzero(free), slate)
                assert today.exposures[slate].min() >= today.exposures[rest].max()
        if "quota" in name:
            assert (popular == K // 2).all()
        if "band" in name:
            assert ((popular >= 4) & (popular <= 6)).all()
        later += (batch.platform.timetable.born[slates] > 0).sum()
        result = batch.step(slates)
        assert result.answered.all()
        batch.reset(result.done)
    assert len(days) > 2
    assert later > 0 or name in ("popularity", "quality+quota")


def test_a_quota_gives_way_where_the_day_s_popular_items_are_shown(small) -> None:
    batch = make_batch(
        4, env_id=ENV, dataset=small, max_len=6, slate_size=K, step_cost="request",
        catalogue=LIFE | {"days": (1, 2)}, **SLATES,
    )  # fmt: skip
    batch.seed(np.arange(4))
    batch.reset()
    rule, fewest = make_reference("quality+quota", batch), K
    for _ in range(12):
        slates = rule.slates(batch.observe())
        fewest = min(fewest, batch.catalogue.popular[slates].sum(axis=1).min())
        result = batch.step(slates)
        assert result.answered.all()
        batch.reset(result.done)
    assert fewest < K // 2


def test_a_scorer_with_a_quota_ranks_by_today_s_popularity(small) -> None:
    forgetful = LIFE | {"days": (1, 3), "memory": 0.0}
    inner = environment(small, catalogue=forgetful, **SLATES)
    env = ScorerVecEnv(inner, quota=True, fairness_coef=1.0)
    batch = env.batch
    env.reset()
    weights = np.zeros((8, env.action_space.shape[0]), dtype=np.float32)
    for step in range(16):
        # What is shown against the ranking changes it.
        weights[:, -1] = 1.0 if step % 2 else -1.0
        today = batch.catalogue
        unexposed = batch.core.unexposed()
        expected = [
            set(
                np.concatenate(
                    [
                        members[np.argsort(-today.exposures[members], kind="stable")][: K // 2]
                        for members in (
                            np.flatnonzero(free & today.popular),
                            np.flatnonzero(free & ~today.popular),
                        )
                    ]
                ).tolist()
            )
            for free in unexposed
        ]
        _, _, dones, infos = env.step(weights)
        if step % 2:
            slates = last_slates(batch, dones, infos)
            assert [set(slate.tolist()) for slate in slates] == expected
    assert batch.platform.today[0] > 1
    PPO("MultiInputPolicy", env, n_steps=8, batch_size=32, n_epochs=1, seed=0).learn(64)


def test_semantic_actions_name_items_that_are_there(small) -> None:
    inner = environment(small, **SLATES)
    env = SemanticVecEnv(inner, Codebook.fit(inner.batch.catalogue.standardised, levels=2))
    batch, rng, newcomers = inner.batch, np.random.default_rng(0), 0
    env.reset()
    for _ in range(16):
        available = batch.catalogue.available
        tokens = rng.integers(env.action_space.nvec, size=(8, 2))
        _, _, dones, infos = env.step(tokens)
        slates = last_slates(batch, dones, infos)
        assert available[slates].all()
        newcomers += (batch.platform.timetable.born[slates] > 0).sum()
    assert newcomers > 0


def test_mofir_counts_the_day_s_popular_items(small) -> None:
    options = {"action_type": "scorer", "observation_type": "state"}
    env = PreferenceVecEnv(environment(small, **options))
    platform, state = env.get_attr("batch")[0].platform, env.get_attr("batch")[0].core.state
    env.reset()
    rng = np.random.default_rng(0)
    for _ in range(12):
        actions = rng.uniform(-1, 1, (8, *env.action_space.shape)).astype(np.float32)
        _, _, dones, infos = env.step(actions)
        for slot, info in enumerate(infos):
            popular = platform.shown_popular[slot, state.steps[slot] - 1]
            if dones[slot]:
                record = info["record"]
                popular = record.popular[0, record.length[0] - 1]
            assert info["reward_vector"][1] == np.float32(1.0 - popular.mean())
    MOFIR("MlpPolicy", env, learning_starts=16, batch_size=16, seed=0).learn(48)


@pytest.mark.parametrize("action", ["shares", "slate"])
def test_stable_baselines3_trains_on_it(small, action: str) -> None:
    kind = PPO if action == "shares" else MaskablePPO
    env = environment(small, n=4, action_type=action)
    model = kind("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, seed=0, device="cpu")
    model.learn(64)
    sessions = evaluate(model, environment(small, n=4, days=(4, 6), seed=9, action_type=action), 8)
    assert (sessions.ages[sessions.slates >= 0] >= 0).all()


@pytest.mark.parametrize("observation", ["dict", "state"])
def test_purified_observations_keep_the_day(small, quick_fit, observation: str) -> None:
    lifecycle = Lifecycle(**LIFE, days=(1, 3))
    purifier = quick_fit("dsrm", before_first_day(small, lifecycle)[0])
    options = SLATES if observation == "dict" else {"action_type": "shares"}
    env = environment(small, preference=purifier.reads, **options)
    purified = PurifyVecEnv(env, purifier)
    observed = purified.reset()
    if observation == "state":
        assert purified.observation_space.contains(observed[0])
        PPO("MlpPolicy", purified, n_steps=8, batch_size=32, n_epochs=1, device="cpu").learn(64)
        return
    for name in ("available", "popular"):
        np.testing.assert_array_equal(observed[name], env.observe()[name])
    assert purified.observation_space.contains({key: part[0] for key, part in observed.items()})
    hierarchical(purified).learn(64)


def test_an_encoder_reads_items_that_came_after_its_fit(small) -> None:
    known, timetable = before_first_day(small, Lifecycle(**LIFE, days=(1, 3)))
    encoder = fit_encoder(known, "ce", updates=5, batch_size=8)
    env = environment(small, **SLATES)
    encoded = EncodedVecEnv(env, encoder)
    first = encoded.reset()["state"]
    newcomers = np.flatnonzero((timetable.born == 1) & (timetable.gone > 1))
    slates = np.tile(newcomers[:K], (env.num_envs, 1))
    state = encoded.step(slates)[0]["state"]
    preference = env.batch.encoder.preference_slice
    assert (state[:, preference] != first[:, preference]).any(axis=1).all()
    hierarchical(encoded).learn(64)


# Refusals


def refused(agent: str, small) -> None:
    if agent in ("PlannedBand", "BalancedBand"):
        suffix = "+planned-band" if agent == "PlannedBand" else "+balanced-band"
        batch = make_batch(4, env_id=ENV, dataset=small, split="test", max_len=3, slate_size=K)
        make_reference(f"expected-oracle{suffix}", batch)
        return
    env = environment(small, **SLATES)
    if agent == "NoveltyPolicy":
        make_novelty(env.batch)
    elif agent == "PenalisedVecEnv":
        PenalisedVecEnv(env, None)
    elif agent == "fairness='gini'":
        hierarchical(env, fairness="gini")
    else:
        learner = {"DNaIR": DNaIR, "SAC4IR": SAC4IR, "DiscreteBCQ": DiscreteBCQ}[agent]
        learner(next(iter(learner.policy_aliases)), env)


@pytest.mark.parametrize(
    "agent",
    [
        "PlannedBand",
        "BalancedBand",
        "NoveltyPolicy",
        "PenalisedVecEnv",
        "fairness='gini'",
        "DNaIR",
        "SAC4IR",
        "DiscreteBCQ",
    ],
)
def test_those_who_cannot_follow_say_so(small, agent: str) -> None:
    with pytest.raises(ConfigError, match=rf"{agent}.*this catalogue changes"):
        refused(agent, small)


def test_log_popularity_is_not_observed(small) -> None:
    with pytest.raises(ConfigError, match='use "constrained" or "band"'):
        hierarchical(environment(small, **SLATES), "unconstrained")


def test_it_is_neither_served_nor_exported(small, tmp_path) -> None:
    env = environment(small, **SLATES)
    model = hierarchical(env)
    with pytest.raises(ConfigError, match="it acts in its environment alone"):
        Recommender(model, None, env.batch.dataset)
    with pytest.raises(ConfigError, match="it acts in its environment alone"):
        Recommender(make_reference("quality+quota", env.batch), None, env.batch.dataset)
    with pytest.raises(ConfigError, match="its catalogue changes from day to day"):
        export_onnx(model, tmp_path)
