"""PPO's loss over slates by hand, and the figures of an update."""

from __future__ import annotations

import itertools
import math
import statistics
from types import SimpleNamespace

import pytest
import torch

from dsrm_agents import HSRL, HierarchicalPPO, make_vec_env
from dsrm_agents.common.slate_ppo import Losses, SlatePPO, clipped_surrogate
from dsrm_agents.hrl.buffers import HierarchicalSamples
from dsrm_agents.hsrl.hsrl import TokenSamples
from dsrm_agents.hsrl.policies import Evaluation
from dsrm_agents.hsrl.slates import Paths

RATIOS = (0.5, 0.9, 1.1, 1.5)  # below the clip of .2, within it twice, above it
GOOD = (0.5, 0.9, 1.1, 1.2)  # what they are worth where the advantage is 1
BAD = (-0.8, -0.9, -1.1, -1.5)  # and where it is -1


def made(algorithm: type[SlatePPO], small, **options):
    env = make_vec_env(
        "KuaiRec-Fair-v0", 4, "train", 0, dataset=small, observation_type="dict",
        action_type="slate",
    )  # fmt: skip
    given = {"n_steps": 8, "batch_size": 8, "n_epochs": 2, "seed": 0, "device": "cpu"}
    return algorithm(next(iter(algorithm.policy_aliases)), env, **(given | options))


def worth(ratio: float, advantage: float) -> float:
    """Of a draw, under a clip of .2: nothing is won beyond it, and what is lost is lost."""
    if advantage > 0:
        return min(ratio, 1.2) * advantage
    return max(ratio, 0.8) * advantage


def standardised(advantages: list[float]) -> list[float]:
    mean, spread = statistics.fmean(advantages), statistics.pstdev(advantages)
    return [(advantage - mean) / spread for advantage in advantages]


def divergence(ratios) -> float:
    """Schulman's estimate, of draws that count alike."""
    return sum(ratio - 1 - math.log(ratio) for ratio in ratios) / len(ratios)


# By hand


@pytest.mark.parametrize("moved", range(8))
def test_a_ratio_beyond_the_clip_earns_no_more_and_has_no_gradient(moved: int) -> None:
    ratio = torch.ones(8)
    ratio[moved] = (RATIOS * 2)[moved]
    old = torch.linspace(-3.0, -1.0, 8)
    log_prob = (old + ratio.log()).requires_grad_()
    advantages = torch.tensor([3.0] * 4 + [1.0] * 4)  # 1 and -1, once they are standardised
    loss, kl = clipped_surrogate(log_prob, old, advantages, torch.full((8,), 1 / 8), 0.2)
    sign = 1.0 if moved < 4 else -1.0
    value = (GOOD + BAD)[moved]
    assert loss.item() == pytest.approx(-(value - sign) / 8, abs=1e-6)  # the others cancel
    assert kl.item() == pytest.approx(divergence(ratio.tolist()), abs=1e-6)
    loss.backward()
    expected = ratio / 8
    expected[:4] *= -1.0  # descending the loss makes the good ones likelier
    if moved in (3, 4):  # likelier than the clip, and less likely
        expected[moved] = 0.0
    torch.testing.assert_close(log_prob.grad, expected)


def test_weights_count_in_the_mean_the_spread_and_the_sum() -> None:
    ratio = torch.tensor([0.5, 1.5, 7.0])
    weight = torch.tensor([0.25, 0.75, 0.0])  # mean 4, squares 12: standardised, they are these
    good, bad = 6 / math.sqrt(12), -2 / math.sqrt(12)
    found, kl = clipped_surrogate(
        ratio.log() - 2.0, torch.full((3,), -2.0), torch.tensor([10.0, 2.0, 99.0]), weight, 0.2
    )
    assert found.item() == pytest.approx(-(0.25 * 0.5 * good + 0.75 * 1.5 * bad), abs=1e-6)
    assert kl.item() == pytest.approx(
        0.25 * (-0.5 - math.log(0.5)) + 0.75 * (0.5 - math.log(1.5)), abs=1e-6
    )


def test_where_nothing_counts_the_loss_is_nothing() -> None:
    nothing = torch.zeros(3)
    found = clipped_surrogate(torch.tensor([1.0, -1.0, 0.0]), nothing, nothing + 5.0, nothing, 0.2)
    assert [one.item() for one in found] == [0.0, 0.0]


def test_the_levels_losses_add_up_and_entropy_is_a_bonus() -> None:
    losses = Losses(
        torch.tensor([1.0, 20.0]), torch.tensor([300.0, 4000.0]), torch.ones(2), torch.tensor(5.0)
    )
    assert losses.total(0.1, 2.0).item() == pytest.approx(1 + 20 + 30 + 400 - 10)


# The algorithms


def handmade(shape: tuple[int, ...], low: float, high: float) -> torch.Tensor:
    """Numbers of no order, and no two alike."""
    n = math.prod(shape)
    return (low + (high - low) * (torch.arange(n) * 7 % n) / n).view(shape)


@pytest.mark.parametrize("token_credit", [True, False])
@pytest.mark.parametrize("fairness", [None, 0.5])
def test_the_loss_of_tokens_by_hand(small, monkeypatch, fairness, token_credit: bool) -> None:
    """Of two slates of two items of three tokens."""
    model = made(HSRL, small, policy_kwargs={"fairness": fairness}, token_credit=token_credit)
    returns, credit = [1.0, 1.5], [[0.5, -0.5], [0.25, -0.25]]
    old, entropy = handmade((2, 2, 3), -3.0, -1.0), handmade((2, 2, 3), 0.0, 1.0)
    values, token_values = torch.tensor([[1.25], [0.75]]), handmade((2, 2, 3), 0.5, 2.0)
    ratio = torch.tensor(RATIOS * 3).view(2, 2, 3)
    paths = Paths(old + ratio.log(), entropy, torch.empty(0))
    monkeypatch.setattr(model, "_evaluate", lambda batch: Evaluation(paths, values, token_values))
    batch = TokenSamples({}, torch.zeros(2, 2), torch.tensor(credit), old, torch.tensor(returns))
    found = model._losses(batch, 0.2)

    advantages, errors = [], []
    for n, k, d in itertools.product(range(2), range(2), range(3)):
        of_item = returns[n] + credit[n][k]
        known = token_values[n, k, d].item() if token_credit else values[n, 0].item()
        of_group = fairness is not None and d == 0
        advantages.append((returns[n] if of_group else of_item) - known)
        errors.append((of_item - known) ** 2 if token_credit else 0.0)
    parts = map(worth, RATIOS * 3, standardised(advantages))
    assert found.policy.item() == pytest.approx(-statistics.fmean(parts), abs=1e-6)
    of_slates = (0.25**2 + 0.75**2) / 2
    assert found.value.item() == pytest.approx(of_slates + statistics.fmean(errors), abs=1e-6)
    assert found.divergence.item() == pytest.approx(divergence(RATIOS), abs=1e-6)
    assert found.entropy.item() == pytest.approx(entropy.sum().item() / 4)  # of a draw


@pytest.mark.parametrize("ent_coef", [0.0, 0.25])
def test_the_losses_of_two_levels_by_hand(small, monkeypatch, ent_coef: float) -> None:
    """Of four decisions, at one of which the manager held its z, each of two choices."""
    model = made(HierarchicalPPO, small, ent_coef=ent_coef)
    old_control, old_choice = handmade((4,), -3.0, -1.0), handmade((4, 2), -3.0, -1.0)
    control_ratio, choice_ratio = (0.5, 1.1, 7.0, 1.5), RATIOS * 2
    advantages = torch.tensor([[3.0, 1.0], [1.0, -2.0], [99.0, 0.5], [-4.0, 0.25]])
    credit = handmade((4, 2), -1.0, 1.0)
    values, returns = handmade((4, 2), 0.0, 1.0), handmade((4, 2), 3.0, 1.0)
    decision = SimpleNamespace(
        control_log_prob=old_control + torch.tensor(control_ratio).log(),
        choice_log_prob=old_choice + torch.tensor(choice_ratio).view(4, 2).log(),
        values=values,
    )
    monkeypatch.setattr(model.policy, "evaluate_decision", lambda *_: decision)
    monkeypatch.setattr(model.policy, "worker_entropy", lambda *_: torch.tensor([1.0, 4.0]))
    batch = HierarchicalSamples(
        {}, torch.zeros(4, 2), torch.zeros(4, 2), torch.tensor([1.0, 1.0, 0.0, 1.0]), old_control,
        old_choice, credit, advantages, returns, torch.zeros(4, 2), torch.zeros(4, 2),
        torch.zeros(4, 0),
    )  # fmt: skip
    found = model._losses(batch, 0.2)

    decided = [0, 1, 3]
    standard = standardised([advantages[row, 0].item() for row in decided])
    manager = [worth(control_ratio[row], one) for row, one in zip(decided, standard, strict=True)]
    standard = standardised((advantages[:, 1:] + credit).flatten().tolist())
    worker = map(worth, choice_ratio, standard)
    expected = [-statistics.fmean(manager), -statistics.fmean(worker)]
    assert found.policy.tolist() == pytest.approx(expected, abs=1e-6)
    expected = [divergence([0.5, 1.1, 1.5]), divergence(choice_ratio)]
    assert found.divergence.tolist() == pytest.approx(expected, abs=1e-6)
    squares = ((values - returns) ** 2).tolist()
    of_manager = statistics.fmean(squares[row][0] for row in decided)
    of_worker = statistics.fmean(square[1] for square in squares)
    assert found.value.tolist() == pytest.approx([of_manager, of_worker], abs=1e-6)
    assert found.entropy.item() == (2.5 if ent_coef else 0.0)  # a pass over all items, if wanted


@pytest.mark.parametrize("algorithm", [HSRL, HierarchicalPPO])
def test_what_is_logged_is_the_mean_over_an_update_s_minibatches(
    small, monkeypatch, algorithm
) -> None:
    model = made(algorithm, small)
    levels = 2 if algorithm is HierarchicalPPO else 1
    count = itertools.count()
    parameter = next(one for one in model.policy.parameters() if one.requires_grad)

    def losses(batch, clip: float) -> Losses:
        assert clip == pytest.approx(0.3)
        number = float(next(count)) + 0.0 * parameter.sum()
        each = (number + torch.arange(levels)) * torch.ones(levels)
        return Losses(each, each + 100, each + 200, number + 300)

    monkeypatch.setattr(model, "_losses", losses)
    model.learn(32, log_interval=None)
    logged = model.logger.name_to_value
    assert next(count) == 8  # two passes over 32 rows, 8 at a time
    assert logged["train/n_updates"] == 2
    prefixes = ("manager_", "worker_") if levels == 2 else ("",)
    for level, prefix in enumerate(prefixes):
        for name, first in (("policy_loss", 0), ("value_loss", 100), ("approx_kl", 200)):
            assert logged[f"train/{prefix}{name}"] == pytest.approx(first + level + 3.5), name
    if algorithm is HSRL:
        assert logged["train/entropy"] == pytest.approx(303.5)


@pytest.mark.parametrize("algorithm", [HSRL, HierarchicalPPO])
def test_a_schedule_of_the_learning_rate_is_followed(small, algorithm) -> None:
    model = made(algorithm, small, learning_rate=lambda left: 1e-3 * (1 + left))
    scales = getattr(model.policy, "lr_scales", {})
    scales |= {name: number for number, name in enumerate(scales, start=2)}
    model.learn(64, log_interval=None)  # two rollouts; rates are set when one is over
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(1e-3)
    for group in model.policy.optimizer.param_groups:
        assert group["lr"] == pytest.approx(1e-3 * scales.get(group.get("name"), 1.0))
