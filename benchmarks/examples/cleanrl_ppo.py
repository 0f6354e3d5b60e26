"""PPO for continuous actions in one file.

    python -m benchmarks.examples.cleanrl_ppo --sessions 20000
    python -m benchmarks.examples.cleanrl_ppo --help

It needs torch, and tensorboard for ``--tensorboard``. When the user leaves (``terminated``), the
value of what follows is zero. When a session is cut (``truncated``, with ``max_steps``), it is the
estimate for the last observation, which Gymnasium's vector environments return as ``final_obs``.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, fields
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Normal

import kuaisim_gym


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Args:
    """All parameters of the algorithm; each is an option of the command line."""

    env_id: str = _option("KuaiRec-Fair-v0", f"one of {', '.join(kuaisim_gym.ENVIRONMENTS)}")
    max_len: int = _option(0, "initial temper of a user; 0 for the environment's own")
    sessions: int = _option(20_000, "training sessions to finish")
    test_sessions: int = _option(1000, "test sessions to evaluate on")
    seed: int = _option(11, "seed of users, answers, weights and exploration")
    num_envs: int = _option(64, "sessions side by side")
    num_steps: int = _option(32, "steps of each slot between two updates")
    learning_rate: float = _option(2e-3, "initial learning rate of Adam; it falls to zero")
    gamma: float = _option(0.95, "discount")
    gae_lambda: float = _option(0.95, "lambda of the generalised advantage estimate")
    epochs: int = _option(8, "passes over a rollout")
    batch_size: int = _option(256, "steps of a minibatch")
    clip: float = _option(0.2, "largest rewarded change of the probability ratio")
    entropy_weight: float = _option(0.0, "weight of the entropy bonus")
    value_weight: float = _option(0.5, "weight of the value loss")
    max_grad_norm: float = _option(0.5, "largest norm of a gradient")
    hidden: int = _option(64, "units of each of the two hidden layers")
    log_std: float = _option(-1.0, "initial log standard deviation of actions")
    tensorboard: str = _option("", "folder for TensorBoard files; none if empty")


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run; lengths of sessions are in steps."""

    agent: Agent
    train_lengths: NDArray[np.int64]  # of finished training sessions, in the order of their ends
    losses: NDArray[np.float64]  # (updates, 3) policy loss, value loss and entropy
    test_lengths: NDArray[np.int64]
    random_lengths: NDArray[np.int64]  # of the test sessions under uniformly drawn actions
    seconds: float  # wall time of the training


class Agent(nn.Module):
    """A Gaussian policy with a learned standard deviation, and a value function."""

    def __init__(self, n_observations: int, n_actions: int, hidden: int, log_std: float) -> None:
        super().__init__()
        self.actor = _mlp(n_observations, n_actions, hidden, last_gain=0.01)
        self.critic = _mlp(n_observations, 1, hidden, last_gain=1.0)
        self.log_std = nn.Parameter(torch.full((n_actions,), log_std))

    def policy(self, observation: Tensor) -> Normal:
        """The distribution of actions, which are clipped to [-1, 1] before a step."""
        return Normal(self.actor(observation), self.log_std.exp())

    def value(self, observation: Tensor) -> Tensor:
        """(n,) estimates of the discounted future reward."""
        value: Tensor = self.critic(observation)
        return value.squeeze(-1)


def _mlp(n_in: int, n_out: int, hidden: int, last_gain: float) -> nn.Sequential:
    layers = [nn.Linear(n_in, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, n_out)]
    for layer, gain in zip(layers, (2**0.5, 2**0.5, last_gain), strict=True):
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def make_envs(args: Args, split: str, num_envs: int, **options: Any) -> VectorEnv:
    """Parallel sessions; a finished slot starts its next session in the same step."""
    if args.max_len:
        options["max_len"] = args.max_len
    options |= {"split": split, "autoreset_mode": AutoresetMode.SAME_STEP}
    return gym.make_vec(args.env_id, num_envs, **options)


@dataclass
class Rollout:
    """Steps of all slots; each field is (num_steps, num_envs, ...)."""

    observations: Tensor  # before the steps
    actions: Tensor  # as drawn, before clipping
    log_probs: Tensor
    values: Tensor
    rewards: Tensor
    next_values: Tensor  # zero where the user left
    ended: Tensor  # terminated or truncated


def advantages(rollout: Rollout, gamma: float, gae_lambda: float) -> Tensor:
    """(num_steps, num_envs) generalised advantage estimates, within sessions."""
    errors = rollout.rewards + gamma * rollout.next_values - rollout.values
    estimate = torch.zeros_like(errors)
    following = torch.zeros_like(errors[0])
    for step in reversed(range(len(errors))):
        continues = 1.0 - rollout.ended[step].float()
        following = errors[step] + gamma * gae_lambda * continues * following
        estimate[step] = following
    return estimate


class Collector:
    """Plays the agent in the environments, one rollout after the other."""

    def __init__(self, envs: VectorEnv, agent: Agent, seed: int) -> None:
        self.envs, self.agent = envs, agent
        self.lengths: list[int] = []  # of finished sessions
        self._observation: Tensor = torch.as_tensor(envs.reset(seed=seed)[0])

    @torch.no_grad()
    def collect(self, num_steps: int) -> Rollout:
        """The next steps of all slots."""
        columns: list[tuple[Tensor, ...]] = []
        value = self.agent.value(self._observation)
        for _ in range(num_steps):
            observation = self._observation
            policy = self.agent.policy(observation)
            action = policy.sample()
            clipped = action.clamp(-1.0, 1.0).numpy()
            next_observation, reward, terminated, truncated, infos = self.envs.step(clipped)
            ended = terminated | truncated
            self._observation = torch.as_tensor(next_observation)
            current_value, value = value, self.agent.value(self._observation)
            # The next observation of a finished slot belongs to its next session. The old session
            # goes on with its final observation if it was cut, and not at all if the user left.
            next_value = value.clone()
            next_value[torch.as_tensor(ended)] = 0.0
            for slot in np.flatnonzero(truncated & ~terminated):
                final = torch.as_tensor(infos["final_obs"][slot])
                next_value[slot] = self.agent.value(final[None])[0]
            if ended.any():
                self.lengths += infos["final_info"]["session"]["len"][ended].tolist()
            columns.append((
                observation, action, policy.log_prob(action).sum(-1), current_value,
                torch.as_tensor(reward, dtype=torch.float32), next_value, torch.as_tensor(ended),
            ))  # fmt: skip
        return Rollout(*(torch.stack(column) for column in zip(*columns, strict=True)))


def update(agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, args: Args) -> Tensor:
    """Improves the agent; returns (3,) means of policy loss, value loss and entropy."""
    advantage = advantages(rollout, args.gamma, args.gae_lambda).flatten()
    target = advantage + rollout.values.flatten()
    observations, actions = rollout.observations.flatten(0, 1), rollout.actions.flatten(0, 1)
    log_probs = rollout.log_probs.flatten()
    losses = []
    for _ in range(args.epochs):
        for rows in torch.randperm(len(target)).split(args.batch_size):
            policy = agent.policy(observations[rows])
            ratio = (policy.log_prob(actions[rows]).sum(-1) - log_probs[rows]).exp()
            scaled = advantage[rows] - advantage[rows].mean()
            scaled = scaled / (advantage[rows].std(unbiased=False) + 1e-8)
            clipped = ratio.clamp(1.0 - args.clip, 1.0 + args.clip)
            policy_loss = -torch.minimum(ratio * scaled, clipped * scaled).mean()
            value_loss = 0.5 * (agent.value(observations[rows]) - target[rows]).square().mean()
            entropy = policy.entropy().sum(-1).mean()
            loss = policy_loss + args.value_weight * value_loss - args.entropy_weight * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
            losses.append(torch.stack([policy_loss, value_loss, entropy]).detach())
    return torch.stack(losses).mean(0)


@torch.no_grad()
def evaluate(agent: Agent | None, envs: VectorEnv, seed: int) -> NDArray[np.int64]:
    """(num_envs,) lengths of the first session of each slot, with the agent's mean actions.

    Without an agent, actions are drawn uniformly.
    """
    observation, _ = envs.reset(seed=seed)
    envs.action_space.seed(seed)
    lengths = np.zeros(envs.num_envs, dtype=np.int64)
    while not lengths.all():
        if agent is None:
            actions = envs.action_space.sample()
        else:
            mean = agent.policy(torch.as_tensor(observation)).mean
            actions = mean.clamp(-1.0, 1.0).numpy()
        observation, _, terminated, truncated, infos = envs.step(actions)
        first = (terminated | truncated) & (lengths == 0)
        if first.any():
            lengths[first] = infos["final_info"]["session"]["len"][first]
    return lengths


def run(args: Args, **options: Any) -> Outcome:
    """Trains on the train simulator, then evaluates on the test simulator.

    Args:
        args: Parameters of the algorithm.
        **options: Further options of the environment, such as ``dataset``.
    """
    torch.manual_seed(args.seed)
    envs = make_envs(args, "train", args.num_envs, **options)
    widths = [
        spaces.flatdim(space) for space in (envs.single_observation_space, envs.single_action_space)
    ]
    agent = Agent(widths[0], widths[1], args.hidden, args.log_std)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    collector = Collector(envs, agent, args.seed)
    writer: Any = None
    if args.tensorboard:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(args.tensorboard)
    losses: list[Tensor] = []
    steps, reported, started = 0, 0, time.perf_counter()
    while len(collector.lengths) < args.sessions:
        left = 1.0 - len(collector.lengths) / args.sessions
        optimizer.param_groups[0]["lr"] = args.learning_rate * left
        rollout = collector.collect(args.num_steps)
        losses.append(update(agent, optimizer, rollout, args))
        steps += args.num_steps * args.num_envs
        recent = float(np.mean(collector.lengths[-500:])) if collector.lengths else 0.0
        if writer is not None:
            writer.add_scalar("train/length", recent, steps)
            writer.add_scalar("train/reward", float(rollout.rewards.mean()), steps)
            for name, loss in zip(("policy", "value", "entropy"), losses[-1], strict=True):
                writer.add_scalar(f"losses/{name}", float(loss), steps)
        if 10 * len(collector.lengths) // args.sessions > reported:
            reported = 10 * len(collector.lengths) // args.sessions
            print(f"{len(collector.lengths):>8,} sessions, {steps:>10,} steps, Len {recent:.2f}")
    seconds = time.perf_counter() - started
    tests = make_envs(args, "test", args.test_sessions, **options)
    test_seed = args.seed + 1_000_000  # far from the seeds of training
    test_lengths, random_lengths = (evaluate(player, tests, test_seed) for player in (agent, None))
    if writer is not None:
        writer.add_scalar("test/length", float(test_lengths.mean()), steps)
        writer.close()
    train_lengths, curves = np.array(collector.lengths), torch.stack(losses).double().numpy()
    return Outcome(agent, train_lengths, curves, test_lengths, random_lengths, seconds)


def parse(arguments: list[str] | None = None) -> Args:
    """Reads the parameters from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.examples.cleanrl_ppo",
        description="PPO in one file, on a recommendation simulator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for option in fields(Args):
        name, default = f"--{option.name.replace('_', '-')}", option.default
        parser.add_argument(name, type=type(default), default=default, help=option.metadata["help"])
    return Args(**vars(parser.parse_args(arguments)))


def main(arguments: list[str] | None = None) -> None:
    """Trains and prints the mean session length on the test simulator."""
    torch.set_num_threads(1)  # networks this small are slower on several
    args = parse(arguments)
    outcome = run(args)
    print(
        f"trained {len(outcome.train_lengths):,} sessions in {outcome.seconds:.0f} s; Len over "
        f"{len(outcome.test_lengths):,} test sessions: {outcome.test_lengths.mean():.2f} "
        f"± {1.96 * outcome.test_lengths.std() / len(outcome.test_lengths) ** 0.5:.2f}, "
        f"under random actions {outcome.random_lengths.mean():.2f}"
    )


if __name__ == "__main__":
    main()
