"""Served recommendations are the slates that the agent shows in the environment."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import VecNormalize

from dsrm_agents import (
    HSRL,
    SAC4IR,
    Codebook,
    DNaIR,
    EncodedVecEnv,
    HierarchicalPPO,
    HistoryExtractor,
    PurifyVecEnv,
    Recommender,
    ScorerVecEnv,
    SemanticVecEnv,
    fit_encoder,
    make_vec_env,
)
from dsrm_agents.baselines.bands import Composition
from dsrm_agents.baselines.novelty import make_novelty
from dsrm_agents.baselines.reference import make_reference
from dsrm_agents.baselines.similarity import SimilarityPolicy
from kuaisim_gym.errors import CheckpointError, ConfigError, UnknownIdError

ENV, RAND = "KuaiRec-Fair-v0", "KuaiRand-Fair-v0"
SLATES = {"action_type": "slate", "max_len": 9}  # the small world has few popular items
DICT = {"observation_type": "dict", "action_type": "slate"}
USERS = 5


def make_other(dataset):
    """A dataset of the same shape and other rows."""
    return dataclasses.replace(dataset, log=dataset.log.take(np.arange(len(dataset.log)) % 9 > 0))


def disturbed(model):
    """The model with other weights, so that it ranks by more than its start."""
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def hierarchical(env, **policy):
    return disturbed(HierarchicalPPO("HierarchicalPolicy", env, policy_kwargs=policy, seed=1))


def on_policy(kind, env):
    return disturbed(kind("MlpPolicy", env, seed=1))


def off_policy(kind, env, **policy):
    options = {"buffer_size": 50, "learning_starts": 10, "policy_kwargs": policy}
    return disturbed(kind(f"{kind.__name__}Policy", env, seed=1, **options))


AGENTS = {  # options of the environment, and how the agent is made behind its wrapper
    "hrl": (DICT, hierarchical),
    "hrl every third step": (DICT, lambda env: hierarchical(env, decision_period=3)),
    "hrl unconstrained": (DICT, lambda env: hierarchical(env, worker="unconstrained")),
    "belief-hrl": (
        {**DICT, "preference": "belief"}, lambda env: hierarchical(env, worker="band")
    ),
    "belief of the session": (
        {**DICT, "preference": "belief", "evidence": "session"}, hierarchical
    ),
    "longer slates, other groups": (
        {**DICT, "slate_size": 12, "max_len": 9, "groups": "category", "abandonment": "none"},
        hierarchical,
    ),
    "certain answers": ({**DICT, "stochastic_response": False}, hierarchical),
    "repeats": ({**DICT, "allow_repeats": True}, hierarchical),
    "hsrl": (DICT, lambda env: disturbed(HSRL("HSRLPolicy", env, seed=1))),
    "sac4ir": (DICT, lambda env: off_policy(SAC4IR, env)),
    "dnair without its draws": (DICT, lambda env: off_policy(DNaIR, env, epsilon=1.0)),
    "ppo": ({}, lambda env: on_policy(PPO, env)),
    "a2c on parts": ({"preference": "parts"}, lambda env: on_policy(A2C, env)),
    "ppo on beliefs": ({"observation_type": "belief"}, lambda env: on_policy(PPO, env)),
}  # fmt: skip


def played(env, agent, steps, users=None):
    """Yields, before each step of the first sessions, users, histories and the agent's slates."""
    observation, state = env.reset(), None
    batch = env.get_attr("batch")[0]
    ids, size = batch.dataset.item_ids, batch.config.slate_size
    users = batch.dataset.user_ids[batch.core.state.users].tolist()
    histories, running = [[] for _ in users], np.ones(len(users), dtype=bool)
    starts = np.ones(len(users), dtype=bool)
    for _ in range(steps):
        actions, state = agent.predict(observation, state, starts, deterministic=True)
        env.step_async(actions)
        before = observation
        observation, _, starts, infos = env.step_wait()
        shown = batch.core.state
        slates, answers = [], []
        for row in range(len(users)):
            session = infos[row]["record"] if starts[row] else None
            at = (shown.steps[row] if session is None else session.length[0]) - 1
            source = (
                (shown.slates[row], shown.responses[row])
                if session is None
                else (session.slates[0], session.responses[0])
            )
            slates.append(source[0][at])
            answers.append(source[1][at])
        yield running.copy(), users, [list(one) for one in histories], np.array(slates), before
        running &= ~starts
        for history, slate, answer in zip(histories, slates, answers, strict=True):
            history += zip(ids[slate].tolist(), answer.tolist(), strict=True)
            assert len(history) % size == 0


def assert_served_as_played(recommender, env, agent, steps) -> None:
    count = 0
    for running, users, histories, slates, _ in played(env, agent, steps):
        served = recommender.recommend(users, histories)
        ids = recommender.dataset.item_ids
        for row in np.flatnonzero(running):
            assert [item for item, _ in served[row]] == ids[slates[row]].tolist()
            count += 1
    assert count > steps


@pytest.mark.parametrize("name", AGENTS)
def test_a_recommendation_is_the_slate_of_the_environment(small, name: str) -> None:
    options, make = AGENTS[name]
    agent = make(make_vec_env(ENV, 4, "train", 3, dataset=small, **options))
    env = make_vec_env(ENV, USERS, "test", 7, dataset=small, **options)
    assert_served_as_played(Recommender(agent, None, small), env, agent, 8)


@pytest.mark.parametrize("kind", ["hrl", "scorer"])
def test_a_purified_agent_is_served_as_it_plays(small, dsrm, kind: str) -> None:
    options = {"preference": "parts"} | (DICT if kind == "hrl" else {})
    train, env = (
        PurifyVecEnv(make_vec_env(ENV, n, split, 3, dataset=small, **options), dsrm)
        for n, split in ((4, "train"), (USERS, "test"))
    )
    agent = hierarchical(train, worker="band") if kind == "hrl" else on_policy(PPO, train)
    assert_served_as_played(Recommender(agent, dsrm, small), env, agent, 7)


@pytest.mark.parametrize("quota", [True, False])
def test_a_scorer_behind_a_quota_is_served_as_it_plays(small, quota: bool) -> None:
    train, env = (
        ScorerVecEnv(make_vec_env(ENV, n, split, 3, dataset=small, **SLATES), quota)
        for n, split in ((4, "train"), (USERS, "test"))
    )
    agent = on_policy(PPO, train)
    assert_served_as_played(Recommender(agent, None, small), env, agent, 7)


@pytest.mark.parametrize("name", ["filter+quota", "filter+band", "quality", "popularity+quota",
                                  "similarity"])  # fmt: skip
def test_a_rule_is_served_as_it_plays(small, name: str) -> None:
    def make(batch):
        return SimilarityPolicy(batch, 0.5) if name == "similarity" else make_reference(name, batch)

    env = make_vec_env(ENV, USERS, "test", 7, dataset=small, **DICT)
    agent, other = (make(one.batch) for one in (env, make_vec_env(ENV, 2, dataset=small, **DICT)))
    assert_served_as_played(Recommender(other, None, small), env, agent, 7)


@pytest.mark.parametrize("options", [DICT, {**DICT, "preference": "belief"}, {}])
def test_kuairand_is_served_as_it_plays(small_rand, options: dict) -> None:
    make = hierarchical if options else lambda env: on_policy(A2C, env)
    agent = make(make_vec_env(RAND, 4, "train", 3, dataset=small_rand, **options))
    env = make_vec_env(RAND, USERS, "test", 7, dataset=small_rand, **options)
    assert_served_as_played(Recommender(agent, None, small_rand), env, agent, 7)


def test_what_the_recommender_observes_is_what_the_environment_shows(small, dsrm) -> None:
    """Histories, contexts and beliefs are equal to the last bit, and so are scores."""
    for options in (
        {**DICT, "preference": "parts"}, {**DICT, "preference": "belief"}, DICT, {}
    ):  # fmt: skip
        make = hierarchical if options else lambda env: on_policy(PPO, env)
        env = make_vec_env(ENV, USERS, "test", 7, dataset=small, **options)
        agent = make(make_vec_env(ENV, 4, dataset=small, **options))
        recommender = Recommender(agent, None, small)
        sessions = recommender._sessions(USERS, None)
        for running, users, histories, _, before in played(env, agent, 9):
            recommender.recommend(users, histories)
            shown = sessions.observe()
            pairs = [(shown, before)] if not options else [(shown[k], before[k]) for k in before]
            for served, played_ in pairs:
                np.testing.assert_array_equal(served[running], played_[running])


@pytest.fixture(scope="module")
def served(small):
    """A recommender of a hierarchical agent on pooled states."""
    return Recommender(hierarchical(make_vec_env(ENV, 4, dataset=small, **DICT)), None, small)


def ids_of(recommendation) -> list[int]:
    return [item for item, _ in recommendation]


def test_one_user_is_served_as_many_are(small, served) -> None:
    users = small.user_ids[[3, 40, 7]].tolist()
    items = small.item_ids[: small.n_items].tolist()
    histories = [[(item, 1.0) for item in items[n : n + 10 * n]] for n in range(3)]
    together = served.recommend(users, histories)
    apart = [served.recommend(*pair) for pair in zip(users, histories, strict=True)]
    assert list(map(ids_of, together)) == list(map(ids_of, apart))
    for one, other in zip(together, apart, strict=True):
        assert [score for _, score in one] == pytest.approx([s for _, s in other], abs=1e-4)
    assert served.recommend([]) == []
    assert ids_of(served.recommend(np.array(users))[0]) == ids_of(served.recommend(users[0]))


def test_scores_are_the_policys_and_rank_within_groups(small, served) -> None:
    recommendation = served.recommend(small.user_ids[3].item())
    items, scores = zip(*recommendation, strict=True)
    assert len(set(items)) == 10
    assert isinstance(items[0], int) and isinstance(scores[0], float)
    positions = np.searchsorted(small.item_ids[: small.n_items], items)
    popular = make_vec_env(ENV, dataset=small).catalogue.popular[positions]
    for group in (popular, ~popular):
        of_group = np.array(scores)[group]
        assert (np.diff(of_group) <= 0).all()


def test_a_stranger_is_served_by_the_prior_and_then_by_the_session(small) -> None:
    options = {**DICT, "preference": "belief"}
    agent = HierarchicalPPO("HierarchicalPolicy", make_vec_env(ENV, 4, dataset=small, **options))
    recommender = Recommender(agent, None, small)
    stranger, other = int(small.user_ids.max()) + 1, int(small.user_ids.max()) + 9
    first = recommender.recommend(stranger)
    assert first == recommender.recommend(other) == recommender.recommend(None)
    history = [(item, 1.0) for item, _ in first]
    assert ids_of(recommender.recommend(stranger, history)) != ids_of(
        recommender.recommend(stranger, [(item, 0.0) for item, _ in first])
    )
    # The prior is the mean of the train users' given features, and wider than theirs.
    sessions = recommender._sessions(1, None)
    recommender.recommend(stranger)
    belief = sessions.batch.belief()
    train = belief.model.population_mean[small.train_users]
    np.testing.assert_allclose(belief.mean[0], train.mean(axis=0))
    spread = belief.model.population_covariance
    np.testing.assert_allclose(
        belief.covariance[0], spread + np.cov(train.T, bias=True), atol=1e-12
    )


def test_a_stranger_without_history_sits_at_the_origin(small, served) -> None:
    served.recommend(None)
    observed = served._sessions(1, None).observe()
    assert not observed["state"][0, :-4].any()
    np.testing.assert_array_equal(observed["state"][0, -4:], [0.0, 0.5, 0.0, 0.0])


def test_a_slate_that_is_not_full_counts_for_preference_and_exposure(small, served) -> None:
    user, items = small.user_ids[3].item(), small.item_ids[:14].tolist()
    answers = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 1.0]
    events = list(zip(items, answers, strict=True))
    sessions = served._sessions(1, None)
    served.recommend(user, events[:10])
    whole = sessions.observe()
    shown = served.recommend(user, events)
    after = sessions.observe()
    np.testing.assert_array_equal(after["state"][:, -4:], whole["state"][:, -4:])  # the context
    assert (after["state"] != whole["state"]).any()
    assert after["exposed"][0, :15].tolist() == [*range(14), -1]
    assert after["responses"][0, :15].tolist() == [*answers, 0.0]
    assert not set(ids_of(shown)) & set(items)
    # The preference by hand: the response-weighted mean of log and session.
    encoder = make_vec_env(ENV, dataset=small).batch.encoder.encoder
    liked = np.array(answers, dtype=np.float32)
    total = encoder.history_sum[3] + (liked[:, None] * encoder.embedding[:14]).sum(axis=0)
    weight = encoder.history_weight[3] + liked.sum()
    expected = encoder.encode(total[None], np.array([weight], dtype=np.float32))
    np.testing.assert_allclose(after["state"][:, :-4], expected, atol=1e-4)


def test_parts_and_beliefs_know_only_the_items_of_a_slate_that_is_not_full(small) -> None:
    """Three answers tell the same whether their slate is filled or not."""
    items = small.item_ids[:10].tolist()
    for preference in ("parts", "belief"):
        env = make_vec_env(ENV, 4, dataset=small, preference=preference, slate_size=5)
        recommender = Recommender(on_policy(PPO, env), None, small)
        triples = make_vec_env(ENV, 4, dataset=small, preference=preference, slate_size=3)
        other = Recommender(on_policy(PPO, triples), None, small)
        events = [(items[0], 1.0), (items[1], 0.0), (items[2], 1.0)]
        states = []
        for one in (recommender, other):
            one.recommend(small.user_ids[3].item(), events)
            states.append(one._sessions(1, None).observe()[:, :-4])
        np.testing.assert_array_equal(*states)


def test_a_history_longer_than_any_session_goes_on(small) -> None:
    options = {**DICT, "max_len": 4}
    agent = hierarchical(make_vec_env(ENV, 4, dataset=small, **options))
    recommender = Recommender(agent, None, small)
    user, items = small.user_ids[3].item(), small.item_ids[:60].tolist()
    recommended = recommender.recommend(user, [(item, 0.0) for item in items])
    observed = recommender._sessions(1, None).observe()
    assert observed["state"][0, -4] == 0.5  # the second step of four of the second session
    assert observed["exposed"][0, :21].tolist() == [*range(40, 60), -1]
    assert not set(ids_of(recommended)) & set(items[40:])


@pytest.mark.parametrize("name", ["hrl", "hsrl", "sac4ir", "ppo", "a2c on parts"])
def test_excluded_items_are_not_shown_and_change_nothing_else(small, name: str) -> None:
    options, make = AGENTS[name]
    recommender = Recommender(make(make_vec_env(ENV, 4, dataset=small, **options)), None, small)
    user = small.user_ids[3].item()
    free = recommender.recommend(user)
    gone = [item for item, _ in free[:3]]
    limited = recommender.recommend(user, exclude=gone)
    assert not set(gone) & set(ids_of(limited))
    assert set(ids_of(free)) - set(gone) <= set(ids_of(limited))
    assert recommender.recommend(user) == free
    unlike = int(np.setdiff1d(small.item_ids[: small.n_items], ids_of(free))[0])
    assert ids_of(recommender.recommend(user, exclude=[unlike])) == ids_of(free)
    two = recommender.recommend([user, user], exclude=[gone, []])
    assert list(map(ids_of, two)) == [ids_of(limited), ids_of(free)]


def longtail(dataset, recommendation) -> float:
    popular = make_vec_env(ENV, dataset=dataset).catalogue.popular
    positions = [dataset.item_ids.tolist().index(item) for item in ids_of(recommendation)]
    return float((~popular[positions]).mean())


@pytest.mark.parametrize("kind", ["hrl", "scorer", "rule"])
def test_the_dial_sets_the_share_of_the_long_tail(small, kind: str) -> None:
    env = make_vec_env(ENV, 4, dataset=small, **DICT)
    agent = {
        "hrl": lambda: hierarchical(env),
        "scorer": lambda: on_policy(
            PPO, ScorerVecEnv(make_vec_env(ENV, 4, dataset=small, **SLATES), True)
        ),
        "rule": lambda: make_reference("filter+quota", env.batch),
    }[kind]()
    recommender, user = Recommender(agent, None, small), small.user_ids[3].item()
    before = recommender.recommend(user)
    for share in (0.0, 0.3, 0.5, 1.0):
        recommended = recommender.recommend(user, longtail_share=share)
        assert longtail(small, recommended) == pytest.approx(share)
    # Over a session: .25 of ten items is 2 or 3, in turns.
    history, shares = [], []
    for _ in range(4):
        recommended = recommender.recommend(user, history, longtail_share=0.25)
        shares.append(longtail(small, recommended))
        history += [(item, 1.0) for item in ids_of(recommended)]
    assert np.mean(shares) == pytest.approx(0.25)
    assert recommender.recommend(user) == before


def test_a_dial_that_was_set_before_stays_set(small, served) -> None:
    policy = served._server.agent.policy
    policy.set_fairness(0.8)
    try:
        served.recommend(None, longtail_share=0.2)
        assert longtail(small, served.recommend(None)) == pytest.approx(0.8)
    finally:
        policy.set_fairness(None)


def test_agents_that_keep_no_share_say_so(small) -> None:
    makers = {
        "PPO cannot keep": lambda: on_policy(PPO, make_vec_env(ENV, 4, dataset=small)),
        "SimilarityPolicy cannot keep": lambda: SimilarityPolicy(
            make_vec_env(ENV, 4, dataset=small, **DICT).batch, 0.5, Composition
        ),
        "unconstrained worker": lambda: hierarchical(
            make_vec_env(ENV, 4, dataset=small, **DICT), worker="unconstrained"
        ),
    }
    for message, make in makers.items():
        with pytest.raises(ConfigError, match=message):
            Recommender(make(), None, small).recommend(None, longtail_share=0.5)


def test_a_saved_agent_is_served_as_it_was(small, dsrm, tmp_path) -> None:
    options = {**DICT, "preference": "parts", "slate_size": 8, "window": 16, "max_len": 7}
    env = PurifyVecEnv(make_vec_env(ENV, 4, dataset=small, **options), dsrm)
    agent = hierarchical(env, worker="band")
    agent.save(tmp_path / "agent.zip")
    dsrm.save(tmp_path / "dsrm.safetensors")
    loaded = HierarchicalPPO.load(tmp_path / "agent.zip")
    kept = Recommender(agent, dsrm, small)
    again = Recommender(loaded, tmp_path / "dsrm.safetensors", small)
    assert kept.recommend(small.user_ids[3].item()) == again.recommend(small.user_ids[3].item())
    assert again.options["slate_size"] == 8 and again.options["window"] == 16
    scorer = on_policy(PPO, ScorerVecEnv(make_vec_env(ENV, 4, dataset=small, **SLATES),
                                         True))  # fmt: skip
    scorer.save(tmp_path / "scorer.zip")
    loaded = Recommender(PPO.load(tmp_path / "scorer.zip"), None, small)
    assert loaded.recommend(None) == Recommender(scorer, None, small).recommend(None)
    assert longtail(small, loaded.recommend(None)) == 0.5


READS_HISTORIES = {"features_extractor_class": HistoryExtractor}


def tokens_of(env):
    return SemanticVecEnv(env, Codebook.fit(env.catalogue.known, levels=2, codes=16))


REFUSED = {
    "fusion": (
        {"action_type": "fusion"}, lambda env: on_policy(PPO, env), "actions that score no items"
    ),
    "discrete": (
        {"action_type": "discrete"}, lambda env: on_policy(PPO, env), "scores no items"
    ),
    "slots": (
        {**DICT, "slate_size": 2},
        lambda env: PPO("MultiInputPolicy", env), "a policy that scores no items",
    ),
    "tokens": (
        DICT,
        lambda env: PPO("MultiInputPolicy", tokens_of(env)), "a policy that scores no items",
    ),
    "history": (
        {"observation_type": "history"},
        lambda env: PPO("MultiInputPolicy", env, policy_kwargs=READS_HISTORIES),
        "reads no state, but",
    ),
    "normalised": (
        {}, lambda env: on_policy(PPO, VecNormalize(env)), "that VecNormalize has changed"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_refused_with_a_reason(small_rand, name: str) -> None:
    options, make, message = REFUSED[name]
    agent = make(make_vec_env(RAND, 4, dataset=small_rand, **options))
    with pytest.raises(ConfigError, match=message):
        Recommender(agent, None, small_rand)


def test_other_objects_are_refused(small, served) -> None:
    env = make_vec_env(ENV, 2, dataset=small, **DICT)
    for agent, message in (
        ("agent.zip", "got str"),
        (make_novelty(env.batch), "got NoveltyPolicy"),
        (make_reference("train-oracle+quota", env.batch), "knows how users will answer"),
    ):
        with pytest.raises(ConfigError, match=message):
            Recommender(agent, None, small)
    band = make_reference("filter+band", env.batch)
    with pytest.raises(ConfigError, match="A band needs an exposure window of one slate"):
        Recommender(band, None, small, window=20)
    with pytest.raises(ConfigError, match="needs a Dataset, got 'kuairec'"):
        Recommender(served._server.agent, None, "kuairec")
    with pytest.raises(ConfigError, match="must be one of"):
        Recommender(served._server.agent, None, small, slate_length=3)
    encoder = fit_encoder(small, "ce", updates=1, batch_size=8)
    encoded = hierarchical(EncodedVecEnv(env, encoder))
    with pytest.raises(ConfigError, match="history encoder, which is not served"):
        Recommender(encoded, None, small)


def test_another_world_or_purifier_is_refused_unless_one_insists(small, small_rand, dsrm) -> None:
    options = {"preference": "parts"}
    train = make_vec_env(ENV, 4, dataset=small, **options)
    purified, bare = (on_policy(PPO, env) for env in (PurifyVecEnv(train, dsrm), train))
    with pytest.raises(ConfigError, match="behind the purifier 'dsrm', these .* without purifier"):
        Recommender(purified, None, small)
    with pytest.raises(ConfigError, match="trained without purifier, .* behind the purifier"):
        Recommender(bare, dsrm, small)
    other = make_other(small)
    with pytest.raises(CheckpointError, match=r"PPO was trained on kuairec \(synthetic\)"):
        Recommender(bare, None, other)
    assert len(Recommender(bare, None, other, strict=False).recommend(None)) == 10
    rule = make_reference("filter+quota", make_vec_env(ENV, 2, dataset=small, **DICT).batch)
    with pytest.raises(CheckpointError, match="FilterPolicy was trained on"):
        Recommender(rule, None, small_rand)


def test_wrong_requests_say_what_is_wrong(small, served) -> None:
    item = small.item_ids[0].item()
    nowhere = int(small.item_ids.max()) + 1
    for arguments, error, message in (
        ((None, [(nowhere, 1.0)]), UnknownIdError, f"history: .* and {nowhere} is none of them"),
        ((None, [], [nowhere]), UnknownIdError, f"exclude: .* and {nowhere} is none of them"),
        ((None, [("7", 1.0)]), UnknownIdError, "Item ids of kuairec are integers, .* got '7'"),
        (("7",), UnknownIdError, "User ids of kuairec are integers, .* got '7'"),
        ((None, [(item, 1.5)]), ConfigError, f"must lie in .* got 1.5 for item {item}"),
        ((None, [(item, float("nan"))]), ConfigError, "got nan"),
        ((None, [item]), ConfigError, "pairs \\(item_id, response\\)"),
        (([1, 2], [[]]), ConfigError, "an entry for each of the 2 users, .* got 1 entries"),
        ((None, [], [], 1.5), ConfigError, "longtail_share must lie in"),
        ((None, [], small.item_ids[: small.n_items - 9].tolist()), ConfigError, "leave 9 of"),
    ):
        with pytest.raises(error, match=message):
            served.recommend(*arguments)
    log_only = small.item_ids[small.n_items :]
    if len(log_only):
        with pytest.raises(UnknownIdError, match="occurs in its log alone"):
            served.recommend(None, [(log_only[0].item(), 1.0)])


def test_a_user_with_a_pool_is_served_every_item(small_positive) -> None:
    pooled = dataclasses.replace(small_positive, pools=True)
    agent = hierarchical(make_vec_env(ENV, 4, dataset=pooled, **DICT))
    recommender = Recommender(agent, None, pooled)
    user = pooled.user_ids[pooled.test_users[0]].item()
    shown = ids_of(recommender.recommend(user))
    assert len(set(shown)) == len(set(ids_of(recommender.recommend(None)))) == 10
    assert not set(shown[:4]) & set(ids_of(recommender.recommend(user, exclude=shown[:4])))


@pytest.mark.parametrize("kind", ["shares", "scorer"])
def test_excluded_items_stay_away_where_repeats_are_allowed(small, kind: str) -> None:
    """Of an agent whose environment shows items again."""
    env = make_vec_env(
        "KuaiRec-Fair-v0", 2, seed=1, dataset=small, allow_repeats=True, action_type=kind
    )
    agent = PPO("MlpPolicy", env, n_steps=32, batch_size=64, seed=1)
    recommender = Recommender(agent, None, small)
    user = small.user_ids[3].item()
    first = [item for item, _ in recommender.recommend(user)]
    again = [item for item, _ in recommender.recommend(user, [(item, 0.0) for item in first])]
    assert set(again) & set(first)
    assert not {item for item, _ in recommender.recommend(user, exclude=first)} & set(first)
    assert [item for item, _ in recommender.recommend(user)] == first


def test_odd_requests_say_what_is_wrong(small, served) -> None:
    user, item = small.user_ids[0].item(), small.item_ids[0].item()
    recommender = served
    stranger = recommender.recommend(None)
    assert recommender.recommend(2**64) == recommender.recommend(-(2**70)) == stranger
    assert recommender.recommend(np.array(user)) == recommender.recommend(user, None, None)
    with pytest.raises(UnknownIdError, match="ids of kuairec have 64 bits"):
        recommender.recommend(user, [(2**70, 1.0)])
    for options in ({"exclude": 5}, {"history": 5}, {"exclude": "1"}):
        with pytest.raises(ConfigError, match="must be a list, or of a list of users"):
            recommender.recommend(user, **options)
    with pytest.raises(ConfigError, match="exclude must be a list"):
        recommender.recommend([user, user], exclude=[1, 2])
    with pytest.raises(ConfigError, match="a response is text"):
        recommender.recommend(user, [(item, "0.5")])
