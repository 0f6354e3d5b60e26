"""DORL: a reward that pays for states after which the logs chose variedly."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from stable_baselines3 import A2C

from dsrm_agents import TrainingCheckpoint, evaluate, make_vec_env, resume
from dsrm_agents.baselines.dorl import ChoiceEntropy, Dorl, PenalisedVecEnv, fit_dorl
from dsrm_agents.baselines.scorer import ScorerVecEnv
from kuaisim_gym.data import Features, TrainingData, WatchLog
from kuaisim_gym.errors import CheckpointError, ConfigError

N = 8


@pytest.fixture(scope="module")
def dorl(small) -> Dorl:
    return fit_dorl(small)


def logged(sequences: list[list[int]], categories: list[list[int]]) -> TrainingData:
    """The items that users were shown in order; the categories of each item, 0 for none."""
    users = np.repeat(np.arange(len(sequences)), [len(one) for one in sequences])
    items = np.concatenate(sequences)
    log = WatchLog(users.astype(np.int32), items.astype(np.int32), np.ones(len(items), np.float32))
    codes = np.array(categories, dtype=np.int32)
    names = tuple("" if code == 0 else str(code) for code in range(codes.max() + 1))
    features, n = Features({"category": codes}, {"category": names}), len(codes)
    train_users = np.arange(len(sequences), dtype=np.int32)
    return TrainingData(
        len(train_users), n, n, log, train_users, log, None, Features(), features, None
    )


def entropy(*counts: int, n_categories: int) -> float:
    shares = np.array(counts) / sum(counts)
    return float(-(shares * np.log(shares)).sum() / math.log(n_categories))


def test_entropies_of_a_log_by_hand() -> None:
    a, b, ab, c = range(4)  # items of category 1, of 2, of both, of 3
    data = logged([[a, b, a, ab, a], [b, a, b, c], [a, ab]], [[1, 0], [2, 0], [1, 2], [3, 0]])
    found = ChoiceEntropy(data)
    # After 1: b, ab, b, ab, which is 2, 1 and 2, 2, 1 and 2. And ab, counted for 1 and 2: a.
    after_1 = entropy(2 + 1, 4, n_categories=3)
    after_2 = entropy(3, 1, n_categories=3)  # a, a, then c; a after ab
    np.testing.assert_allclose(found.after_single, [after_1, after_2, 1.0])  # nothing after 3
    # {1, 2}: a, b -> a; b, a -> ab, b; a, b -> c; a, ab -> a.
    after_12 = entropy(3, 2, 1, n_categories=3)
    # {1, 1}: a, ab -> a alone; {2, 2} never.
    expected = [[1.0, after_12, 1.0], [after_12, 1.0, 1.0], [1.0, 1.0, 1.0]]
    np.testing.assert_allclose(found.after_pair, expected)
    assert found.least == pytest.approx(min(after_1, after_2) + after_12)

    both = (after_1 + after_2) / 2
    np.testing.assert_allclose(found.single, [after_1, after_2, both, 1.0], rtol=1e-6)
    items, before = np.array([[a, ab, ab], [c, b, ab]]), np.array([[-1, b, ab], [a, a, a]])
    pair = [[1.0, (after_12 + 1) / 2, (after_12 + 1) / 2], [1.0, after_12, (1 + after_12) / 2]]
    np.testing.assert_allclose(found(items, before), found.single[items] + pair, rtol=1e-6)


def test_sessions_of_different_users_do_not_follow_one_another() -> None:
    found = ChoiceEntropy(logged([[0, 0, 0], [1, 1], [0, 1]], [[1], [2]]))
    np.testing.assert_allclose(found.after_single, [entropy(2, 1, n_categories=2), 1.0])
    assert (found.after_pair == 1.0).all()


def test_items_without_a_category_have_one_of_their_own() -> None:
    a, none = 0, 1
    found = ChoiceEntropy(logged([[a, a, none, a, none, a]], [[5, 0], [0, 0]]))
    np.testing.assert_allclose(found.after_single, [entropy(1, 2, n_categories=2), 1.0])
    np.testing.assert_allclose(found.single, found.after_single, rtol=1e-6)


def test_data_without_categories_are_refused(small) -> None:
    bare = dataclasses.replace(small, item_features=Features())
    with pytest.raises(
        ConfigError, match="expected the item feature 'category' or 'tag', got none"
    ):
        fit_dorl(bare)


def test_the_bonus_grows_with_how_variedly_logs_went_on(small) -> None:
    narrow, varied = 0, 1  # categories: after the first nearly always itself, then anything
    rng = np.random.default_rng(0)
    category = np.arange(small.n_items) % 4
    members = [np.flatnonzero(category == one) for one in range(4)]
    users, items = [], []
    for user in small.train_users:
        now = narrow if user % 2 else varied
        for _ in range(20):
            users.append(user)
            items.append(rng.choice(members[now]))
            if now == narrow:
                now = narrow if rng.random() < 0.95 else varied
            else:
                now = rng.integers(4) if now == varied else varied
    log = WatchLog(
        np.array(users, np.int32), np.array(items, np.int32), rng.random(len(users)).astype("f4")
    )
    features = Features(
        {"category": category[:, None].astype(np.int32) + 1}, {"category": ("", *"abcd")}
    )
    world = dataclasses.replace(small, log=log, item_features=features, truth=None)
    fitted = fit_dorl(world)
    assert fitted.entropy.after_single[narrow] < 0.3
    assert fitted.entropy.after_single[varied] > 0.9

    def paid(group: np.ndarray, coef: float) -> float:
        env = PenalisedVecEnv(
            make_vec_env("KuaiRec-Fair-v0", 1, seed=0, dataset=world, action_type="slate"),
            fitted,
            entropy_coef=coef,
        )
        env.reset()
        return float(env.step(group[None, :10])[1][0])

    more = [paid(members[varied], coef) - paid(members[narrow], coef) for coef in (0.0, 1.0, 5.0)]
    assert abs(more[0]) < 0.1
    assert more[1] > 0.8
    assert more[2] > 4.0


@pytest.mark.parametrize("action_type", ["scorer", "slate"])
@pytest.mark.parametrize("coefs", [(0.0, 0.0), (3.0, 0.0), (0.5, 2.0), (20.0, 0.0)], ids=str)
def test_rewards_by_hand_over_ends_of_sessions(small, dorl, action_type: str, coefs) -> None:
    inner = make_vec_env(
        "KuaiRec-Fair-v0", N, seed=3, dataset=small, max_len=5, action_type=action_type
    )
    env = PenalisedVecEnv(inner, dorl, *coefs)
    rng, state = np.random.default_rng(0), inner.batch.core.state
    env.reset()
    shown: list[list[int]] = [[] for _ in range(N)]
    ends = repeats = 0
    for _ in range(12):
        users = state.users.copy()
        if action_type == "slate":
            actions = rng.integers(0, 60, (N, 10))  # of so few that some come twice
        else:
            actions = rng.uniform(-1, 1, (N, 10)).astype(np.float32)
        _, rewards, dones, infos = env.step(actions)
        for slot, user in enumerate(users):
            if dones[slot]:
                record = infos[slot]["record"]
                slate = record.slates[0, record.length[0] - 1].tolist()
            else:
                slate = state.slates[slot, state.steps[slot] - 1].tolist()
            parts = []
            for item in slate:
                expected, unsure = dorl.world.predict(np.array(user), np.array(item))
                if item in shown[slot]:
                    expected, repeats = 0.0, repeats + 1
                before = shown[slot][-1] if shown[slot] else -1
                bonus = dorl.entropy(np.array(item), np.array(before)) - dorl.entropy.least
                parts.append(max(0.0, expected - coefs[0] * unsure + coefs[1] * bonus))
                shown[slot].append(item)
            assert rewards[slot] == pytest.approx(np.mean(parts), abs=1e-5)
            if dones[slot]:
                shown[slot], ends = [], ends + 1
        assert rewards.dtype == np.float32
    assert ends >= N
    assert (repeats > 0) == (action_type == "slate")


def test_the_world_is_otherwise_the_same(small, dorl) -> None:
    plain = make_vec_env("KuaiRec-Fair-v0", N, seed=3, dataset=small, max_len=5)
    env = PenalisedVecEnv(
        make_vec_env("KuaiRec-Fair-v0", N, seed=3, dataset=small, max_len=5), dorl
    )
    np.testing.assert_array_equal(env.reset(), plain.reset())
    for actions in np.random.default_rng(1).uniform(-1, 1, (8, N, 11)).astype(np.float32):
        seen, _, dones, infos = env.step(actions)
        expected, _, other_dones, other_infos = plain.step(actions)
        np.testing.assert_array_equal(seen, expected)
        np.testing.assert_array_equal(env.observe(), expected)
        np.testing.assert_array_equal(dones, other_dones)
        for one, other in zip(infos, other_infos, strict=True):
            assert one.get("session") == other.get("session")


def agent(env, **options) -> A2C:
    given = {"n_steps": 8, "seed": 0, "device": "cpu"} | options
    return A2C("MlpPolicy", env, **given)


def test_a2c_learns_to_go_where_choices_were_varied(small, dorl) -> None:
    def entropy_shown(coef: float) -> float:
        options = {"seed": 1, "dataset": small, "max_len": 10}
        env = PenalisedVecEnv(
            make_vec_env("KuaiRec-Fair-v0", 16, **options), dorl, entropy_coef=coef
        )
        model = agent(env, learning_rate=3e-3, gamma=0.5)
        model.learn(12_000)
        played = evaluate(model, make_vec_env("KuaiRec-Fair-v0", 16, **options), 64)
        slates = np.concatenate(
            [one[:n] for one, n in zip(played.slates, played.length, strict=True)]
        )
        return float(dorl.entropy(slates[:, 1:], slates[:, :-1]).mean())

    spread = dorl.entropy.single.std()
    assert entropy_shown(50.0) > entropy_shown(0.0) + spread / 2


def test_training_goes_on_where_it_was_stopped(small, dorl, tmp_path) -> None:
    def fresh(**options) -> A2C:
        given = {"entropy_coef": 2.0} | options
        inner = make_vec_env("KuaiRec-Fair-v0", N, seed=2, dataset=small, max_len=6)
        return agent(PenalisedVecEnv(inner, dorl, **given))

    whole, path = fresh(), tmp_path / "file"
    whole.learn(8 * N * 8)
    fresh().learn(5 * N * 8, TrainingCheckpoint(path, every=4 * N * 8))
    again = fresh()
    resume(path, again)
    assert again.num_timesteps == 4 * N * 8
    again.learn(4 * N * 8, reset_num_timesteps=False)
    for one, other in zip(whole.policy.parameters(), again.policy.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach(), other.detach())
    with pytest.raises(CheckpointError, match="another training"):
        resume(path, fresh(entropy_coef=3.0))


def test_slates_of_a_scorer_are_rewarded_on_either_side_of_it(small, dorl) -> None:
    def sessions():
        options = {"dataset": small, "action_type": "slate", "max_len": 5}
        return make_vec_env("KuaiRec-Fair-v0", N, seed=3, **options)

    inside = ScorerVecEnv(PenalisedVecEnv(sessions(), dorl), quota=True)
    outside = PenalisedVecEnv(ScorerVecEnv(sessions(), quota=True), dorl)
    inside.reset()
    outside.reset()
    for actions in np.random.default_rng(1).uniform(-1, 1, (4, N, 10)):
        np.testing.assert_array_equal(inside.step(actions)[1], outside.step(actions)[1])


def test_kuairand_counts_tags(small_rand) -> None:
    fitted = fit_dorl(small_rand)
    env = PenalisedVecEnv(make_vec_env("KuaiRand-Fair-v0", N, seed=0, dataset=small_rand), fitted)
    agent(env).learn(128)
    assert 0 < fitted.entropy.least < 2


def test_what_cannot_be_is_refused(small, small_rand, dorl) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", N, dataset=small)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="uncertainty_coef must be a finite number"):
            PenalisedVecEnv(env, dorl, uncertainty_coef=bad)
        with pytest.raises(ConfigError, match="entropy_coef must be a finite number"):
            PenalisedVecEnv(env, dorl, entropy_coef=bad)
    other = make_vec_env("KuaiRand-Fair-v0", N, dataset=small_rand)
    with pytest.raises(CheckpointError, match="fitted on dataset"):
        PenalisedVecEnv(other, dorl)
