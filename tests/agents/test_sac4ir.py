from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.logger import Logger

from dsrm_agents import PurifyVecEnv, evaluate, fit_purifier, make_vec_env
from dsrm_agents.baselines.items import ItemNetwork, ItemNetworks
from dsrm_agents.baselines.sac4ir import (
    CRITICS,
    SAC4IR,
    SAC4IRPolicy,
    SoftValue,
    first_coefficient,
    hide,
    rarity,
)
from dsrm_agents.baselines.slate_learning import SlateSamples
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.metrics import summarise
from kuaisim_gym.simulator.catalogue import Catalogue

SLATES = {"observation_type": "dict", "action_type": "slate"}


def sessions(dataset, n: int = 16, seed: int = 0, **options):
    given = {**SLATES, "max_len": 6, **options}
    return make_vec_env("KuaiRec-Fair-v0", n, "train", seed, dataset=dataset, **given)


def agent(dataset, env=None, **options) -> SAC4IR:
    defaults = {"learning_starts": 160, "batch_size": 64, "policy_kwargs": {"hidden": 64}}
    env = sessions(dataset) if env is None else env
    return SAC4IR("SAC4IRPolicy", env, seed=0, device="cpu", **(defaults | options))


def tiny(logits, critics=None, size: int = 2) -> SAC4IRPolicy:
    """A policy over a few items whose networks give the same numbers in every state."""
    n = len(logits)
    observation_space = spaces.Dict(
        state=spaces.Box(-1.0, 1.0, (2,)),
        exposed=spaces.Box(-1, n - 1, (2 * size,), dtype=np.int32),
        responses=spaces.Box(0.0, 1.0, (2 * size,)),
    )
    catalogue = Catalogue(np.eye(n, 2, dtype=np.float32), np.arange(n))
    slates = spaces.MultiDiscrete([n] * size)
    policy = SAC4IRPolicy(observation_space, slates, lambda _: 1e-3, catalogue, hidden=4)
    for networks in (policy.networks, policy.target_critics):
        torch.nn.init.zeros_(networks.vectors)
        torch.nn.init.zeros_(networks.level.weights[-1])
    with torch.no_grad():
        policy.networks.offsets[0] = torch.tensor(logits)
        if critics is not None:
            policy.target_critics.offsets[:, 0] = torch.tensor(critics)
    return policy


def one_state(*exposed: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 2), torch.tensor([[*exposed, *[-1] * (4 - len(exposed))]])


# The policy


def test_probabilities_and_entropy_by_hand() -> None:
    policy = tiny(np.log([1.0, 2.0, 3.0, 4.0]).tolist())
    probs, entropy = policy.distribution(*one_state(3, 0))
    np.testing.assert_allclose(probs, [[0.0, 0.4, 0.6, 0.0]], rtol=1e-6)
    assert (probs[0, [0, 3]] == 0).all()
    assert float(probs.sum()) == pytest.approx(1)
    assert entropy.item() == pytest.approx(-(0.4 * np.log(0.4) + 0.6 * np.log(0.6)))
    # dH / dlogit_i = -p_i (log p_i + H).
    logits = hide(policy.logits(one_state()[0]), one_state(3, 0)[1])
    alpha = torch.tensor(1.0)
    gradient = SoftValue.of(logits, torch.zeros_like(logits), alpha).gradient(alpha)[0]
    np.testing.assert_allclose(
        gradient[[1, 2]],
        [-0.4 * (np.log(0.4) + entropy.item()), -0.6 * (np.log(0.6) + entropy.item())],
        rtol=1e-4,
    )
    assert gradient[[0, 3]].tolist() == [0, 0]


def test_draws_are_plackett_luce_among_the_unexposed() -> None:
    weight = np.array([1.0, 2.0, 3.0, 4.0])
    policy = tiny(np.log(weight).tolist())
    torch.manual_seed(0)
    n = 20_000
    exposed = np.tile(np.array([2, -1, -1, -1], np.int32), (n, 1))
    seen = {
        "state": np.zeros((n, 2), np.float32),
        "exposed": exposed,
        "responses": np.zeros((n, 4), np.float32),
    }
    slates, _ = policy.predict(seen)
    for first, second in itertools.permutations([0, 1, 3], 2):
        p = weight[first] / 7 * weight[second] / (7 - weight[first])
        found = np.mean((slates == [first, second]).all(axis=1))
        assert found == pytest.approx(p, abs=4.5 * np.sqrt(p * (1 - p) / n))
    assert not (slates == 2).any()
    best, _ = policy.predict(seen, deterministic=True)
    assert best.tolist() == [[3, 1]] * n


def test_predictions_single_and_batched(small) -> None:
    model, env = agent(small), sessions(small, n=4)
    observation = env.reset()
    for _ in range(4):
        best, hidden = model.predict(observation, deterministic=True)
        one, _ = model.predict({k: v[2] for k, v in observation.items()}, deterministic=True)
        assert one.tolist() == best[2].tolist()
        assert hidden is None
        slates, _ = model.predict(observation)
        assert (slates != best).any()
        for slate, exposed in zip(slates, observation["exposed"], strict=True):
            assert len(set(slate)) == 10
            assert not set(slate) & set(exposed)
        observation, _, _, _ = env.step(slates)


# What is learned


def test_rarity_is_the_rank_of_exposure() -> None:
    assert rarity(np.array([5, 100, 0, 7, 50])).tolist() == [0.75, 0, 1, 0.5, 0.25]
    assert rarity(np.array([3, 3, 9])).tolist() == [0.75, 0.75, 0]
    assert rarity(np.array([4, 4])).tolist() == [0.5, 0.5]
    assert rarity(np.array([4])).tolist() == [1]


def test_the_closed_gradient_is_that_of_autograd() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3.0 * torch.randn(7, 40, generator=generator, dtype=torch.float64)
    q = torch.randn(7, 40, generator=generator, dtype=torch.float64)
    exposed = torch.stack([torch.randperm(40, generator=generator)[:9] for _ in range(7)])
    exposed[3, 4:] = -1
    alpha, hidden = torch.tensor(0.7, dtype=torch.float64), torch.zeros(7, 40, dtype=torch.bool)
    for row, items in enumerate(exposed.tolist()):
        hidden[row, [item for item in items if item >= 0]] = True
    given = logits.clone().requires_grad_(True)
    log_probs = given.masked_fill(hidden, -torch.inf).log_softmax(dim=1)
    probs, finite = log_probs.exp(), log_probs.masked_fill(hidden, 0.0)
    entropy = -(probs * finite).sum(1)
    value = (probs * q).sum(1) + alpha * entropy
    value.sum().backward()
    soft = SoftValue.of(hide(logits, exposed), q, alpha)
    torch.testing.assert_close(soft.value, value.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(soft.entropy, entropy.detach(), rtol=1e-12, atol=1e-12)
    gradient = soft.gradient(alpha)
    torch.testing.assert_close(gradient, given.grad, rtol=1e-9, atol=1e-9)
    assert (gradient[hidden] == 0).all()


def test_targets_by_hand(small) -> None:
    model = agent(small, ent_coef=0.5, gamma=0.8, novelty_coef=0.2)
    model.policy = tiny(np.log([1.0, 2.0, 3.0]).tolist(), [[1.0, 5.0, 4.0], [2.0, 3.0, 6.0]])
    model.r_pop = torch.tensor([1.0, 0.5, 0.0])
    states = torch.zeros(3, 2)
    shown = torch.tensor([[-1, -1, -1, -1]] * 3)
    after = torch.tensor([[0, -1, -1, -1], [2, 0, -1, -1], [0, -1, -1, -1]])
    batch = SlateSamples(
        states,
        shown,
        torch.tensor([[0, 1], [2, 0], [1, 2]]),
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]),
        states,
        after,
        torch.tensor([[0.0], [0.0], [1.0]]),
    )
    entropy = -(0.4 * np.log(0.4) + 0.6 * np.log(0.6))
    two_left = 0.4 * 3 + 0.6 * 4 + 0.5 * entropy  # the worse critic's 3 and 4
    one_left = 3.0  # and nothing to choose
    expected = [
        [1.2 + 0.8 * two_left, 0.1 + 0.8 * two_left],
        [0.0 + 0.8 * one_left, 1.2 + 0.8 * one_left],
        [1.1, 1.0],  # the user has left
    ]
    np.testing.assert_allclose(model.targets(batch), expected, rtol=1e-5)
    np.testing.assert_allclose(
        model.target_entropy(after), 0.6 * np.log([2.0, 1.0, 2.0]), atol=1e-6
    )


@pytest.mark.parametrize(("peak", "falls"), [(0.0, True), (20.0, False)])
def test_alpha_goes_against_the_entropy(small, peak: float, falls: bool) -> None:
    model = agent(small, learning_starts=10**6)
    model.learn(160)
    with torch.no_grad():
        model.policy.networks.offsets[0, 0, :40:4] = (
            peak  # so likely that hardly another item is shown
        )
    before = model.current_ent_coef().item()
    model.train(gradient_steps=5, batch_size=64)
    figures = model.logger.name_to_value
    assert (figures["train/excess_entropy"] > 0) == falls
    assert (model.current_ent_coef().item() < before) == falls


def test_a_constant_alpha_stays(small) -> None:
    model = agent(small, ent_coef=0.3)
    model.learn(320)
    assert model.current_ent_coef().item() == pytest.approx(0.3)
    assert model.ent_coef_optimizer is None


def test_the_actor_moves_to_what_the_critics_value(small) -> None:
    model = agent(small, learning_starts=10**6, ent_coef=0.0, learning_rate=1e-2)
    model.learn(160)
    with torch.no_grad():
        model.policy.networks.offsets[CRITICS, 0, 7] = 30.0
    batch = model.replay_buffer.sample(64)
    batch = batch._replace(exposed=torch.full_like(batch.exposed, -1))
    before, _ = model.policy.distribution(batch.states, batch.exposed)
    for _ in range(20):
        model._update(batch)
    after, _ = model.policy.distribution(batch.states, batch.exposed)
    assert (after[:, 7] > 2 * before[:, 7]).all()


def test_targets_follow_the_critics_slowly(small) -> None:
    model = agent(small, tau=0.25)
    model.learn(176)
    critics, targets = model.policy.networks, model.policy.target_critics
    online, target = critics.offsets[CRITICS].clone(), targets.offsets.clone()
    model.train(1, 64)
    moved = critics.offsets[CRITICS]
    torch.testing.assert_close(targets.offsets, 0.75 * target + 0.25 * moved)
    assert (moved != online).any()


class PlainUpdates:
    """The algorithm as it is described: networks one by one, losses, autograd, an Adam for each."""

    def __init__(self, model: SAC4IR) -> None:
        self.model, self.hidden = model, model.policy.hidden
        self.actor, *self.critics = self.networks(model.policy.networks)
        self.targets = self.networks(model.policy.target_critics)
        self.optimizers = [
            torch.optim.Adam(network.parameters(), lr=model.learning_rate)
            for network in (self.actor, *self.critics)
        ]
        self.log_alpha = model.log_ent_coef.detach().clone().requires_grad_()
        self.alpha_optimizer = torch.optim.Adam([self.log_alpha], lr=model.ent_coef_lr)

    def networks(self, stacked: ItemNetworks) -> list[ItemNetwork]:
        """Each of the stacked networks, as one of its own."""
        found = []
        for index in range(len(stacked.vectors)):
            one = ItemNetwork(self.model.policy.catalogue, self.model.policy.state_dim, self.hidden)
            one.to(torch.float64)
            with torch.no_grad():
                one.vectors.copy_(stacked.vectors[index].T)
                one.offsets.copy_(stacked.offsets[index, 0])
                for name in ("query", "level"):
                    of_all = getattr(stacked, name)
                    for depth, layer in enumerate(getattr(one, name)[::2]):
                        layer.weight.copy_(of_all.weights[depth][index].T)
                        layer.bias.copy_(of_all.biases[depth][index, 0])
            found.append(one)
        return found

    def policy(self, states, exposed):
        """Log-probabilities of all items, and which are exposed."""
        logits = self.actor(states)
        gone = torch.zeros_like(logits, dtype=torch.bool)
        for row, items in enumerate(exposed.tolist()):
            gone[row, [item for item in items if item >= 0]] = True
        return logits.masked_fill(gone, -torch.inf).log_softmax(dim=1), gone

    def value(self, states, exposed, critics, alpha):
        """Soft values and entropies."""
        log_probs, gone = self.policy(states, exposed)
        probs, log_probs = log_probs.exp(), log_probs.masked_fill(gone, 0.0)
        worst = torch.minimum(*(critic(states) for critic in critics))
        entropy = -(probs * log_probs).sum(1)
        return (probs * worst).sum(1) + alpha * entropy, entropy

    def update(self, batch: SlateSamples) -> dict[str, float]:
        model, alpha = self.model, self.log_alpha.detach().exp()
        with torch.no_grad():
            after, _ = self.value(batch.next_states, batch.next_exposed, self.targets, alpha)
            rewards = batch.responses + model.novelty_coef * model.r_pop[batch.slates]
            targets = rewards + model.gamma * (1 - batch.dones) * after[:, None]
        of_slates = [critic(batch.states).gather(1, batch.slates) for critic in self.critics]
        critic_loss = sum((q - targets).square().mean() for q in of_slates)
        value, entropy = self.value(batch.states, batch.exposed, self.critics, alpha)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        critic_loss.backward(inputs=[w for critic in self.critics for w in critic.parameters()])
        (-value.mean()).backward(inputs=list(self.actor.parameters()))
        for optimizer in self.optimizers:
            optimizer.step()
        excess = (entropy.detach() - model.target_entropy(batch.exposed)).mean()
        self.alpha_optimizer.zero_grad()
        (self.log_alpha * excess).backward()
        self.alpha_optimizer.step()
        with torch.no_grad():
            for target, critic in zip(self.targets, self.critics, strict=True):
                for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                    slow += model.tau * (fast - slow)
        return {
            "entropy": entropy.mean().item(),
            "excess_entropy": excess.item(),
            "ent_coef": alpha.item(),
            "critic_loss": critic_loss.item(),
            "actor_loss": -value.mean().item(),
        }


def doubled(batch: SlateSamples) -> SlateSamples:
    """The same with 64-bit numbers, which tell rounding from a difference."""
    return SlateSamples(*(one.double() if one.is_floating_point() else one for one in batch))


def test_updates_are_those_of_the_plain_algorithm(small) -> None:
    model = agent(small, learning_starts=10**6, novelty_coef=0.3)
    model.learn(160)
    model.policy.double()
    model.r_pop, model.log_ent_coef.data = model.r_pop.double(), model.log_ent_coef.data.double()
    plain = PlainUpdates(model)
    for _ in range(5):
        batch = doubled(model.replay_buffer.sample(64))
        found, expected = model._update(batch), plain.update(batch)
        assert found.keys() == expected.keys()
        for name, figure in expected.items():
            assert found[name] == pytest.approx(figure, rel=1e-6), name
    torch.testing.assert_close(model.log_ent_coef, plain.log_alpha, rtol=1e-6, atol=1e-6)
    online = plain.networks(model.policy.networks)
    slow = plain.networks(model.policy.target_critics)
    pairs = [*zip(online, (plain.actor, *plain.critics), strict=True)]
    pairs += zip(slow, plain.targets, strict=True)
    start = agent(small, learning_starts=10**6).policy.networks.vectors[0].T
    assert (pairs[0][1].vectors - start).abs().max() > 1e-4
    for ours, theirs in pairs:
        for (name, weight), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(weight, other, rtol=1e-6, atol=1e-6, msg=name)


# Training


@pytest.fixture(scope="module")
def trained(small):
    """Agents by (target_entropy_ratio, novelty_coef), trained once each."""
    made: dict[tuple[float, float], SAC4IR] = {}

    def train(ratio: float, novelty: float = 0.0) -> SAC4IR:
        key = (ratio, novelty)
        if key not in made:
            model = agent(
                small,
                target_entropy_ratio=ratio,
                novelty_coef=novelty,
                buffer_size=1600,  # of late, so that the replay's states are like fresh ones
                learning_rate=2e-3,
                ent_coef_lr=1e-2,
            )
            made[key] = model.learn(19_200)  # the temperature swings less by then
        return made[key]

    return train


def figures(model, small, deterministic: bool = True):
    env = sessions(small, n=50, seed=70)
    return summarise(evaluate(model, env, 200, deterministic), env.catalogue.popular)


@pytest.mark.parametrize("ratio", [0.5, 0.8])
def test_the_entropy_over_items_meets_its_target(small, trained, ratio: float) -> None:
    model, env = trained(ratio), sessions(small, n=60, seed=900)
    observation, found = env.reset(), []
    for _ in range(6):
        exposed = torch.as_tensor(observation["exposed"]).long()
        with torch.no_grad():
            _, entropy = model.policy.distribution(torch.as_tensor(observation["state"]), exposed)
        found.append((entropy / (240 - (exposed >= 0).sum(dim=1)).log()).mean().item())
        observation, _, _, _ = env.step(model.predict(observation)[0])
    assert np.mean(found) == pytest.approx(ratio, abs=0.08)


def test_it_learns_what_users_like(small, trained) -> None:
    by_chance = figures(agent(small), small, deterministic=False)["r_each"]
    learned = figures(trained(0.5), small)["r_each"]
    assert learned > by_chance + 0.15


def test_novelty_is_paid_for_the_long_tail(small, trained) -> None:
    shares = [
        figures(trained(0.8, novelty), small, deterministic=False)["longtail_share"]
        for novelty in (0.0, 1.0)
    ]
    assert shares[1] > shares[0] + 0.05


def test_it_goes_on_where_it_was_saved(small, tmp_path) -> None:
    model = agent(small)
    model.learn(480)
    model.save(tmp_path / "agent")
    model.policy.save(tmp_path / "policy")
    observation = sessions(small, seed=5).reset()
    expected, _ = model.predict(observation, deterministic=True)
    loaded = SAC4IR.load(tmp_path / "agent", env=sessions(small), device="cpu")
    for one in (loaded, SAC4IRPolicy.load(tmp_path / "policy", device="cpu")):
        np.testing.assert_array_equal(one.predict(observation, deterministic=True)[0], expected)
    assert loaded.current_ent_coef() == model.current_ent_coef() != 0.1
    torch.testing.assert_close(loaded.r_pop, model.r_pop)
    # The same batches from here on give the same weights: the optimisers' moments are kept too.
    batch = model.replay_buffer.sample(64)
    for one in (model, loaded):
        for _ in range(3):
            one._update(batch)
    for ours, theirs in zip(model.policy.parameters(), loaded.policy.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(loaded.log_ent_coef, model.log_ent_coef)
    loaded.learn(160, reset_num_timesteps=False)
    assert loaded.num_timesteps == 640


def test_a_constant_alpha_is_saved(small, tmp_path) -> None:
    agent(small, ent_coef=0.25).save(tmp_path / "agent")
    assert SAC4IR.load(tmp_path / "agent").current_ent_coef().item() == 0.25


def test_training_is_logged_and_can_be_stopped(small) -> None:
    model, steps, figures = agent(small, gradient_steps=3), [], []
    model.set_logger(Logger(folder=None, output_formats=[]))
    update = model._update
    model._update = lambda batch: figures.append(update(batch)) or figures[-1]

    def stop(local, _) -> bool:
        steps.append(len(local["infos"]))
        return len(steps) < 20

    model.learn(10**6, callback=stop)
    assert len(steps) == 20
    names = ("entropy", "excess_entropy", "ent_coef", "critic_loss", "actor_loss")
    assert len(figures) % 3 == 0
    for name in names:  # of the last three updates
        mean = np.mean([one[name] for one in figures[-3:]])
        assert model.logger.name_to_value[f"train/{name}"] == pytest.approx(mean)


def test_it_trains_behind_a_purifier(small) -> None:
    env = PurifyVecEnv(sessions(small), fit_purifier("linear", small))
    model = agent(small, env)
    model.learn(320)
    assert model._n_updates > 0


# Errors


@pytest.mark.parametrize("bad", ["manual", "auto_", "auto_x", "auto_0", "0.1", -1.0, np.nan])
def test_other_temperatures_are_refused(bad) -> None:
    with pytest.raises(ConfigError, match="ent_coef must be"):
        first_coefficient(bad)


def test_temperatures() -> None:
    assert first_coefficient("auto") == (1.0, True)
    assert first_coefficient("auto_0.05") == (0.05, True)
    assert first_coefficient(0) == (0.0, False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_entropy_ratio": 0.0}, "target_entropy_ratio must lie between"),
        ({"target_entropy_ratio": 1.0}, "target_entropy_ratio must lie between"),
        ({"novelty_coef": -0.1}, "novelty_coef must be a finite number"),
        ({"novelty_coef": np.inf}, "novelty_coef must be a finite number"),
        ({"ent_coef": "soft"}, "ent_coef must be"),
    ],
)
def test_options_out_of_range_are_refused(small, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agent(small, **options)


def test_other_spaces_are_refused(small) -> None:
    with pytest.raises(ConfigError, match="SAC4IR needs observation_type='dict'"):
        agent(small, sessions(small, observation_type="state"))
