from __future__ import annotations

import importlib

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from dsrm_agents.encoders.extractor import HistoryExtractor
from dsrm_agents.encoders.history import KINDS, HistoryEncoder, MeanSummary
from kuaisim_gym.errors import ConfigError

N_ITEMS, BEHAVIOURS, ROOM = 30, 2, 8
ORDERED = ("gru", "attention")


def history_space(room: int = ROOM, n_items: int = N_ITEMS, behaviours: int = 1) -> spaces.Dict:
    return spaces.Dict(
        {
            "items": spaces.Box(-1, n_items - 1, (room,), np.int32),
            "responses": spaces.Box(0.0, 1.0, (room * behaviours,), np.float32),
            "context": spaces.Box(0.0, 1.0, (4,), np.float32),
        }
    )


class HistoryBandit(gym.Env):
    """One step a session: the action must be the class of the history that the rule asks for."""

    def __init__(self, rule: str = "last", room: int = ROOM, continuous: bool = False) -> None:
        self.rule = rule
        self.observation_space = history_space(room)
        self.action_space = spaces.Box(-1.0, 1.0, (3,)) if continuous else spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        room = self.observation_space["items"].shape[0]
        n_events = int(self.np_random.integers(4, room + 1))
        items = np.full(room, -1, np.int32)
        responses = np.zeros(room, np.float32)
        items[-n_events:] = self.np_random.integers(N_ITEMS, size=n_events)
        if self.rule == "last":
            self.best = int(items[-1] % 3)
            responses[-n_events:] = self.np_random.integers(2, size=n_events)
        else:  # "liked": the class of the items that were liked
            items[-3:] = self.np_random.permutation(3) + 3 * self.np_random.integers(10, size=3)
            self.best = int(self.np_random.integers(3))
            responses[:] = (items % 3 == self.best) & (items >= 0)
        context = self.np_random.random(4, dtype=np.float32)
        return {"items": items, "responses": responses, "context": context}, {}

    def step(self, action):
        observation = self.observation_space.sample()
        choice = int(np.argmax(action)) if np.ndim(action) else int(action)
        return observation, float(choice == self.best), True, False, {}


def encoder(kind: str, seed: int = 0, **options) -> HistoryEncoder:
    torch.manual_seed(seed)
    return HistoryEncoder(N_ITEMS, BEHAVIOURS, kind, **options)


def histories(n: int = 6, room: int = ROOM, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Histories of 1 to ``room`` events, padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(N_ITEMS, (n, room), generator=generator)
    responses = torch.rand(n, room, BEHAVIOURS, generator=generator)
    padded = torch.arange(room) < room - (1 + torch.arange(n) % room)[:, None]
    return items.masked_fill(padded, -1), responses.masked_fill(padded[:, :, None], 0.0)


# Two layers, so that what padded places pass on to others is seen as well.
@pytest.fixture(params=[(kind, 1) for kind in KINDS] + [("attention", 2)], ids=str)
def net(request) -> HistoryEncoder:
    kind, layers = request.param
    return encoder(kind, layers=layers)


@pytest.mark.parametrize("more", [1, 5, 60])
def test_more_room_changes_nothing(net: HistoryEncoder, more: int) -> None:
    items, responses = histories()
    wider = torch.nn.functional.pad(items, (more, 0), value=-1)
    answers = torch.nn.functional.pad(responses, (0, 0, more, 0))
    torch.testing.assert_close(net(wider, answers), net(items, responses), atol=1e-6, rtol=0)


def test_less_room_changes_nothing(net: HistoryEncoder) -> None:
    items, responses = histories(n=4)
    # At most four events each: the left half is padding.
    cut = net(items[:, ROOM // 2 :], responses[:, ROOM // 2 :])
    torch.testing.assert_close(cut, net(items, responses), atol=1e-6, rtol=0)


@pytest.mark.parametrize("junk", [1.0, 1e6, torch.nan, torch.inf])
def test_what_padding_holds_changes_nothing(net: HistoryEncoder, junk: float) -> None:
    items, responses = histories()
    dirty = responses.masked_fill((items < 0)[:, :, None], junk)
    found = net(items, dirty)
    torch.testing.assert_close(found, net(items, responses), atol=0, rtol=0)
    found.square().sum().backward()
    for parameter in net.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()


def test_the_padding_s_own_row_changes_nothing(net: HistoryEncoder) -> None:
    items, responses = histories()
    before = net(items, responses)
    with torch.no_grad():
        net.items.weight[0] = 7.0
    torch.testing.assert_close(net(items, responses), before, atol=1e-6, rtol=0)


def test_padding_counts_for_nothing_wherever_it_lies(net: HistoryEncoder) -> None:
    items, responses = histories()
    right = [torch.flip(part, [1]) for part in (items, responses)]
    events = [part[real] for part, real in zip(items, items >= 0, strict=True)]
    for row, event in enumerate(events):  # the same events, now followed by their padding
        right[0][row, : len(event)] = event
        right[1][row, : len(event)] = responses[row, ROOM - len(event) :]
    torch.testing.assert_close(net(*right), net(items, responses), atol=1e-6, rtol=0)


def test_a_history_alone_is_as_in_a_batch(net: HistoryEncoder) -> None:
    items, responses = histories(n=20)
    together = net(items, responses)
    for row in range(20):
        alone = net(items[row : row + 1], responses[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=1e-5)


def test_order_counts_for_all_but_the_mean() -> None:
    items, responses = histories(n=1, room=6)
    items[:], responses[:] = torch.arange(6), torch.rand(1, 6, BEHAVIOURS)
    turned = items.flip(1), responses.flip(1)
    # The last event stays where it is: attention must tell the order of the others too.
    swapped = items[:, [1, 0, 2, 3, 4, 5]], responses[:, [1, 0, 2, 3, 4, 5]]
    for kind in KINDS:
        net = encoder(kind)
        before = net(items, responses)
        for changed in (turned, swapped):
            moved = (net(*changed) - before).abs().max()
            assert (moved > 1e-3) if kind in ORDERED else (moved < 1e-6), kind


def test_it_counts_which_item_was_answered_how(net: HistoryEncoder) -> None:
    items = torch.tensor([[3, 4], [3, 4]])
    responses = torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, :, None].expand(-1, -1, BEHAVIOURS)
    one, other = net(items, responses)
    assert (one - other).abs().max() > 1e-3


def test_the_mean_is_not_one_of_sums() -> None:
    torch.manual_seed(0)
    items, answer, real = torch.randn(2, 8), torch.randn(8), torch.ones(1, 2, dtype=torch.bool)
    first, second = (items + answer * torch.eye(2)[place][:, None] for place in (0, 1))
    net = MeanSummary(8, 16)
    assert (net(first[None], real) - net(second[None], real)).abs().max() > 1e-2


def test_empty_histories_are_zero_and_harmless(net: HistoryEncoder) -> None:
    items, responses = histories()
    items[2], responses[2] = -1, 0.0
    found = net(items, responses)
    assert not found[2].any()
    assert found[[0, 1, 3]].any(dim=1).all()
    found.sum().backward()
    net(torch.full((2, 5), -1), torch.rand(2, 5, BEHAVIOURS)).sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_gradients_reach_items_and_answers_but_never_the_padding(net: HistoryEncoder) -> None:
    items, responses = histories()
    net(items, responses).square().sum().backward()
    seen = torch.zeros(N_ITEMS, dtype=torch.bool)
    seen[items[items >= 0]] = True
    gradient = net.items.weight.grad
    assert (gradient[1:].abs().sum(1) > 0).tolist() == seen.tolist()
    assert not gradient[0].any()
    assert net.respond.weight.grad.abs().sum() > 0
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    optimiser.step()
    assert not net.items.weight[0].any()


@pytest.mark.parametrize("freeze", [True, False])
def test_a_given_item_embedding_is_used(freeze: bool) -> None:
    given = np.random.default_rng(0).normal(scale=9.0, size=(N_ITEMS, 12)).astype(np.float32)
    given.setflags(write=False)  # as the catalogue's is
    net = encoder("gru", item_embedding=given, freeze_items=freeze)
    rows = net.items.weight.detach().numpy().copy()
    np.testing.assert_allclose((rows[1:] ** 2).sum(1).mean(), 1.0, rtol=1e-5)
    scale = given[0, 0] / rows[1, 0]
    np.testing.assert_allclose(rows[1:] * scale, given, rtol=1e-5)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.1)
    net(*histories()).square().sum().backward()
    optimiser.step()
    assert (net.items.weight.detach().numpy() == rows).all() == freeze


def test_all_zero_item_embeddings_leave_the_answers_alone() -> None:
    net = encoder("mean", item_embedding=np.zeros((N_ITEMS, 4)))
    assert not net.items.weight.any()
    items, responses = histories()
    found = net(items, responses)
    others = torch.where(items < 0, items, (items + 7) % N_ITEMS)
    torch.testing.assert_close(net(others, responses), found, atol=0, rtol=0)
    assert (net(items, responses.flip(2)) - found).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "gruu"}, "kind must be one of .* Did you mean 'gru'"),
        ({"kind": "gru", "width": 0}, "width must be at least 1, got 0"),
        ({"kind": "attention", "width": 12}, "multiple of twice the 4 heads"),
        ({"kind": "mean", "freeze_items": True}, "freeze_items needs an item_embedding"),
        ({"kind": "mean", "item_embedding": np.ones((N_ITEMS - 1, 4))}, "each of the 30 items"),
        ({"kind": "mean", "item_embedding": np.ones(N_ITEMS)}, "each of the 30 items"),
        ({"kind": "mean", "item_embedding": np.full((N_ITEMS, 2), np.nan)}, "must be finite"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoder(**options)


def test_an_item_out_of_range_is_no_padding() -> None:
    for item in (N_ITEMS, -2):
        with pytest.raises(IndexError):
            encoder("mean")(torch.tensor([[item]]), torch.zeros(1, 1, BEHAVIOURS))


# Inside Stable-Baselines3.


def policy_kwargs(kind: str = "gru", **options) -> dict:
    sizes = {"kind": kind, "embedding_dim": 16, "width": 32}
    return {
        "features_extractor_class": HistoryExtractor,
        "features_extractor_kwargs": sizes | options,
        "net_arch": [32],
    }


def test_features_are_the_encoded_history_and_the_context() -> None:
    extractor = HistoryExtractor(history_space(behaviours=BEHAVIOURS), "mean", width=5)
    items, responses = histories()
    context = torch.rand(6, 4)
    # Float ids, as SB3 makes them.
    flat = responses.flatten(1)
    found = extractor({"items": items.float(), "responses": flat, "context": context})
    assert extractor.features_dim == found.shape[1] == 9
    torch.testing.assert_close(found[:, 5:], context, atol=0, rtol=0)
    torch.testing.assert_close(found[:, :5], extractor.encoder(items, responses))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Box(-1.0, 1.0, (36,)),
        spaces.Dict({"state": spaces.Box(0, 1, (36,)), "exposed": spaces.Box(-1, 9, (5,), int)}),
        spaces.Dict({**history_space(), "more": spaces.Box(0.0, 1.0, (1,))}),
        spaces.Dict({**history_space(), "items": spaces.Box(-1.0, 9.0, (ROOM,))}),
        spaces.Dict({**history_space(), "items": spaces.Box(0, 9, (ROOM,), np.int32)}),
        spaces.Dict({**history_space(), "responses": spaces.Box(0.0, 1.0, (ROOM + 1,))}),
        spaces.Dict({**history_space(), "context": spaces.Discrete(4)}),
    ],
)
def test_other_spaces_are_refused(space: spaces.Space) -> None:
    with pytest.raises(ConfigError, match="with observation_type='history'"):
        HistoryExtractor(space)


ON_POLICY = {"n_steps": 16}
OFF_POLICY = {"learning_starts": 16, "buffer_size": 200, "batch_size": 16}


@pytest.mark.parametrize(
    ("module", "name", "options", "share"),
    [
        ("stable_baselines3", "PPO", ON_POLICY | {"batch_size": 16}, True),
        ("stable_baselines3", "PPO", ON_POLICY | {"batch_size": 16}, False),
        ("stable_baselines3", "A2C", ON_POLICY, True),
        ("stable_baselines3", "A2C", ON_POLICY, False),
        ("stable_baselines3", "SAC", OFF_POLICY, True),
        ("stable_baselines3", "SAC", OFF_POLICY, False),
        ("stable_baselines3", "TD3", OFF_POLICY, True),
        ("stable_baselines3", "TD3", OFF_POLICY, False),
        ("stable_baselines3", "DQN", OFF_POLICY, None),  # a single network shares nothing
        ("sb3_contrib", "QRDQN", OFF_POLICY, None),
    ],
)
def test_every_algorithm_trains_saves_and_loads(
    tmp_path, module: str, name: str, options: dict, share: bool | None
) -> None:
    algorithm = getattr(importlib.import_module(module), name)
    given = np.random.default_rng(0).normal(size=(N_ITEMS, 16))
    kwargs = policy_kwargs(KINDS[len(name) % 3], item_embedding=given, freeze_items=True)
    if share is not None:
        kwargs["share_features_extractor"] = share
    env = make_vec_env(lambda: HistoryBandit(continuous=name in ("SAC", "TD3")), 2, seed=0)
    model = algorithm(
        "MultiInputPolicy", env, policy_kwargs=kwargs, seed=0, device="cpu", **options
    )
    before = {key: value.clone() for key, value in model.policy.state_dict().items()}
    model.learn(64)
    changed = {
        key
        for key, value in model.policy.state_dict().items()
        # Target networks are averages: a rounding error off, even where nothing moves.
        if not torch.allclose(value, before[key], atol=1e-6, rtol=0)
    }
    assert any("encoder.respond" in key for key in changed)
    assert not any("encoder.items" in key for key in changed)
    observation = env.reset()
    answer, _ = model.predict(observation, deterministic=True)
    model.save(tmp_path / "model")
    loaded = algorithm.load(tmp_path / "model", env=env, device="cpu")
    np.testing.assert_array_equal(answer, loaded.predict(observation, deterministic=True)[0])
    loaded.learn(32, reset_num_timesteps=False)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    np.testing.assert_array_equal(answer, policy.predict(observation, deterministic=True)[0])


@pytest.mark.parametrize(
    ("kind", "algorithm", "rule"),
    [
        ("mean", PPO, "liked"),
        ("gru", PPO, "last"),
        ("attention", PPO, "last"),
        ("gru", A2C, "last"),
    ],
)
def test_it_learns_what_the_history_decides(kind: str, algorithm: type, rule: str) -> None:
    env = make_vec_env(lambda: HistoryBandit(rule), 32, seed=0)
    options = {"n_steps": 16, "batch_size": 128} if algorithm is PPO else {"n_steps": 4}
    model = algorithm(
        "MultiInputPolicy",
        env,
        learning_rate=3e-3,
        policy_kwargs=policy_kwargs(kind),
        seed=0,
        device="cpu",
        **options,
    )

    def share_right() -> float:
        test = make_vec_env(lambda: HistoryBandit(rule), 400, seed=1000)
        actions, _ = model.predict(test.reset(), deterministic=True)
        return float(test.step(actions)[1].mean())

    assert share_right() < 0.5  # chance is a third
    model.learn(8_000)
    assert share_right() > 0.9


def test_a_history_of_another_length_is_refused() -> None:
    env = make_vec_env(HistoryBandit, 1)
    model = DQN("MultiInputPolicy", env, policy_kwargs=policy_kwargs(), device="cpu")
    other = make_vec_env(lambda: HistoryBandit(room=ROOM // 2), 4, seed=0).reset()
    with pytest.raises(ConfigError, match="another length"):
        model.predict({name: other[name] for name in ("context", "items", "responses")})


def test_normalised_items_are_refused_and_a_normalised_context_is_not() -> None:
    env = make_vec_env(HistoryBandit, 4, seed=0)
    bad = PPO("MultiInputPolicy", VecNormalize(env), policy_kwargs=policy_kwargs(), n_steps=16)
    with pytest.raises(ConfigError, match="norm_obs_keys"):
        bad.learn(64)
    good = VecNormalize(env, norm_obs_keys=["context"])
    PPO("MultiInputPolicy", good, policy_kwargs=policy_kwargs(), n_steps=8, batch_size=16).learn(32)
