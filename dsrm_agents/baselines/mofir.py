"""MOFIR: one agent for all trade-offs between utility and fairness.

Ge et al., "Toward Pareto Efficient Fairness-Utility Trade-off in Recommendation through
Reinforcement Learning", WSDM 2022. In this module a preference w is over the two objectives; the
user's preference state is separate: it is the remainder of the observation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from stable_baselines3.common.utils import polyak_update
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn
from stable_baselines3.td3.policies import TD3Policy
from torch import Tensor, nn

from dsrm_agents.baselines.slates import last_slates
from dsrm_agents.common.networks import SinglePrecision, descend
from dsrm_agents.common.stateless import batch_of
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision

OBJECTIVES = ("utility", "fairness")

_N = len(OBJECTIVES)
_STREAM = 1  # of draws of w: SB3 seeds the action space alike, whose draws must be others
_DECIDED = ("replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "n_steps")

FloatArray = NDArray[np.float32]


class PreferenceVecEnv(VecEnvWrapper):
    """Gives every session a preference w over [utility, fairness], and steps a reward for each.

    w lies on the simplex, is appended to the observations and stays for the session. The two
    rewards of a step, ``infos[i]["reward_vector"]``, are float32 of shape (2,):

    * utility: the environment's own reward, the slate's mean response in [0, 1];
    * fairness: the share of the slate's items that are not of the popular group, in [0, 1].

    The reward returned is ``w . r``. It is for logs and for other algorithms: an agent that learns
    from it alone scalarises the objectives.

    Args:
        venv: Of :func:`dsrm_agents.make_vec_env` with vectors for observations and actions
            (``observation_type="state"``, ``action_type="scorer"`` or ``"shares"``), purified or
            not.
        preference: The weight of utility in every session, in [0, 1]; ``None`` draws it uniformly
            for each, from a generator of the slot's own. Slot i is seeded ``seed + i``; the seed is
            0 until :meth:`seed` says otherwise.

    Raises:
        ConfigError: ``preference`` lies outside [0, 1], or the spaces are others.
    """

    def __init__(self, venv: VecEnv, preference: float | None = None) -> None:
        if preference is not None and not 0.0 <= preference <= 1.0:
            raise ConfigError(
                f"preference is the weight of utility, in [0, 1] or None, got {preference}."
            )
        batch = batch_of(venv, "PreferenceVecEnv")
        space = venv.observation_space
        if not (isinstance(space, spaces.Box) and isinstance(batch.action_space, spaces.Box)):
            raise ConfigError(
                'Preferences need observation_type="state" and actions that are vectors beneath '
                f'them, as of action_type="scorer", got {batch.encoder.observation_type!r} and '
                f"{batch.action_type!r}."
            )
        low, high = np.append(space.low, np.zeros(_N)), np.append(space.high, np.ones(_N))
        super().__init__(venv, spaces.Box(low.astype(np.float32), high.astype(np.float32)))
        self.preference = preference
        self._batch = batch
        self._popular = batch.catalogue.popular
        self._w: FloatArray = np.zeros((venv.num_envs, _N), dtype=np.float32)
        self._reseed(0)

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Seeds slot i with ``seed + i``, its draws of w included, from the next reset on."""
        seeds = list(self.venv.seed(seed))
        self._reseed(int(seeds[0] or 0))
        return seeds

    def reset(self) -> VecEnvObs:
        """First observations, each with a new w."""
        observations = self.venv.reset()
        self._draw(range(self.num_envs))
        return self._with_w(observations)

    def observe(self) -> VecEnvObs:
        """The latest observations with their w, without a step."""
        inner: Any = self.venv
        return self._with_w(inner.observe())

    def step_async(self, actions: NDArray[Any]) -> None:
        """Acts on the items that are popular now: with the step a new day may begin."""
        self._popular = self._batch.catalogue.popular
        self.venv.step_async(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Adds the rewards, and w to the observations: the old one where they end a session."""
        observations, utility, dones, infos = self.venv.step_wait()
        popular = self._popular[last_slates(self._batch, dones, infos)]
        rewards = np.column_stack([utility, 1.0 - popular.mean(axis=1)]).astype(np.float32)
        for info, reward in zip(infos, rewards, strict=True):
            info["reward_vector"] = reward
        scalar = (self._w * rewards).sum(axis=1)
        ended = np.flatnonzero(dones).tolist()
        for slot in ended:
            last = infos[slot]["terminal_observation"]
            infos[slot]["terminal_observation"] = np.append(last, self._w[slot])
        self._draw(ended)
        return self._with_w(observations), scalar, dones, infos

    def _reseed(self, seed: int) -> None:
        slots = range(self.num_envs)
        self._generators = [np.random.default_rng([seed + slot, _STREAM]) for slot in slots]

    def _draw(self, slots: Iterable[int]) -> None:
        for slot in slots:
            drawn = self.preference
            utility = self._generators[slot].random() if drawn is None else drawn
            self._w[slot] = utility, 1.0 - utility

    def _with_w(self, observations: VecEnvObs) -> FloatArray:
        return np.column_stack([cast(FloatArray, observations), self._w])


class VectorCritic(ContinuousCritic):
    """Q(s, a, w) in R^2, a value for each objective; w is part of the observation.

    Takes the arguments of SB3's ``ContinuousCritic``.

    Raises:
        ConfigError: ``n_critics`` is not 1.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.n_critics != 1:
            raise ConfigError(
                f"MOFIR learns with one critic, got n_critics={self.n_critics}: leave it out."
            )
        network = cast(nn.Sequential, self.q_networks[0])
        network[-1] = nn.Linear(cast(nn.Linear, network[-1]).in_features, _N)


class MOFIRPolicy(TD3Policy):
    """SB3's deterministic actor mu(s, w) with a vector critic; takes ``TD3Policy``'s arguments."""

    critic: VectorCritic
    critic_target: VectorCritic

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> VectorCritic:
        """Makes a vector critic."""
        options = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return VectorCritic(**options).to(self.device)


class VectorReplayBuffer(ReplayBuffer):
    """SB3's replay buffer with (B, 2) rewards; takes its arguments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rewards = np.zeros((*self.rewards.shape, _N), dtype=np.float32)

    def add(
        self,
        obs: NDArray[Any],
        next_obs: NDArray[Any],
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores a step of all slots with the reward vectors of its infos, not with ``reward``.

        Raises:
            ConfigError: There are none.
        """
        if "reward_vector" not in infos[0]:
            raise ConfigError(
                "MOFIR learns from reward vectors, and this environment gives none: wrap it in a "
                "PreferenceVecEnv."
            )
        vectors = np.stack([info["reward_vector"] for info in infos])
        super().add(obs, next_obs, action, vectors, done, infos)

    def _get_samples(
        self, batch_inds: NDArray[Any], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        # SB3 makes one column of all rewards, transition by transition.
        return samples._replace(rewards=samples.rewards.view(-1, _N))


class MOFIR(SinglePrecision, DDPG):
    """Multi-objective DDPG with a conditioned network; one agent serves every preference w.

    The problem is a multi-objective Markov decision process: rewards r in R^2, and w on the
    simplex, drawn for each session. Actor mu(s, w) and critic Q(s, a, w) in R^2 are conditioned on
    w. Each transition (s, a, r, s', d) of a minibatch is replayed twice, with the w that it was
    acted with and with a w_j that another was (the conditioned network of Abels et al., "Dynamic
    Weights in Multi-Objective Deep Reinforcement Learning", ICML 2019)::

        y_w  = r + gamma (1 - d) Q'(s', mu'(s', w), w)
        L    = mean of (|y_w - Q(s, a, w)|^2 + |y_wj - Q(s, a, w_j)|^2) / 2

    The actor ascends ``w^T Q(s, mu(s, w), w) - action_l2 * mean(mu^2)``, averaged over both
    preferences too.

    A Pareto front from one training::

        env = make_vec_env("KuaiRec-Fair-v0", 32, action_type="scorer")
        agent = MOFIR("MlpPolicy", PreferenceVecEnv(env), seed=0)
        agent.learn(100_000)
        for w in (0.1, 0.5, 0.9):
            env = make_vec_env("KuaiRec-Fair-v0", 50, "test", seed=0, action_type="scorer")
            sessions = evaluate(agent, PreferenceVecEnv(env, preference=w), 500)

    Deviations: the environment's linear scorer ranks items by their log popularity beside their
    embedding; rewards are means over the slate, so that both lie in [0, 1]; replay is uniform, not
    diverse; the state is the environment's, not an encoder's that is learned along; long actions
    cost something (as in Andrychowicz et al., "Hindsight Experience Replay", NeurIPS 2017). The
    length of a scorer changes no ranking, so nothing else keeps it from the corners of the box,
    where the actor saturates and w has no say any more.

    Args:
        policy: ``"MlpPolicy"`` or a subclass of :class:`MOFIRPolicy`.
        env: A :class:`PreferenceVecEnv`, or another that ends observations with w and gives
            ``"reward_vector"`` in its infos.
        action_l2: Weight of the mean square of an action's coordinates.
        **options: DDPG's; ``replay_buffer_class``, ``replay_buffer_kwargs``,
            ``optimize_memory_usage`` and ``n_steps`` are decided here.

    Raises:
        ConfigError: One of those is set; the policy has several critics; the environment is wrapped
            in a VecNormalize, or, when learning, gives no reward vectors.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"MlpPolicy": MOFIRPolicy}

    def __init__(
        self,
        policy: str | type[MOFIRPolicy],
        env: GymEnv | str,
        action_l2: float = 1.0,
        _init_setup_model: bool = True,
        **options: Any,
    ) -> None:
        if not action_l2 >= 0:
            raise ConfigError(f"action_l2 must be at least 0, got {action_l2}.")
        self.action_l2 = action_l2
        refused = [option for option in _DECIDED if option in options]
        if refused:
            raise ConfigError(f"MOFIR decides on {', '.join(refused)} by itself: leave it out.")
        super().__init__(
            policy,
            env,
            # Not the paper's diverse replay, which keeps sessions of rare preferences: here every
            # session draws its w uniformly, so that none is rare.
            replay_buffer_class=VectorReplayBuffer,
            _init_setup_model=_init_setup_model,
            **options,
        )

    @single_precision()
    def _setup_model(self) -> None:
        if self._vec_normalize_env is not None:
            raise ConfigError(
                "MOFIR weighs its values with the w that it observes, which VecNormalize would "
                "change: leave VecNormalize out; states are standardised anyway."
            )
        super()._setup_model()

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Updates critic, actor and targets."""
        self.policy.set_training_mode(True)
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])
        losses = []
        for _ in range(gradient_steps):
            assert self.replay_buffer is not None
            samples = relabelled(self.replay_buffer.sample(batch_size))
            critic_loss = self._critic_loss(samples)
            descend(self.critic.optimizer, critic_loss)
            actor_loss = self._actor_loss(samples.observations)
            descend(self.actor.optimizer, actor_loss)
            self._follow()
            losses.append((critic_loss.item(), actor_loss.item()))
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, loss in zip(("critic", "actor"), np.mean(losses, axis=0), strict=True):
            self.logger.record(f"train/{name}_loss", float(loss))

    def targets(self, samples: ReplayBufferSamples) -> Tensor:
        """(B, 2): y, component by component."""
        with torch.no_grad():
            following = samples.next_observations
            values: Tensor = self.critic_target(following, self.actor_target(following))[0]
        return samples.rewards + self.gamma * (1.0 - samples.dones) * values

    def _critic_loss(self, samples: ReplayBufferSamples) -> Tensor:
        values: Tensor = self.critic(samples.observations, samples.actions)[0]
        return (self.targets(samples) - values).square().sum(dim=1).mean()

    def _actor_loss(self, observations: Tensor) -> Tensor:
        """Actor loss: negative scalarised Q-value plus the action penalty."""
        actions = self.actor(observations)
        values = self.critic.q1_forward(observations, actions)
        worth = (observations[:, -_N:] * values).sum(dim=1)
        return torch.as_tensor(self.action_l2 * actions.square().mean() - worth.mean())

    def _follow(self) -> None:
        """Moves the targets."""
        polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
        polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
        # Of a features extractor with batch normalisation: copied, as SB3 does.
        polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
        polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)


def relabelled(samples: ReplayBufferSamples) -> ReplayBufferSamples:
    """A minibatch twice: with the preferences of its transitions, then with relabelled ones.

    A transition's w_j is its neighbour's w. Minibatches are drawn independently, so that this is a
    draw from the preferences in the buffer.

    Args:
        samples: B transitions.

    Returns:
        2B transitions.
    """
    neighbours = samples.observations[:, -_N:].roll(1, dims=0)

    def twice(observations: Tensor) -> Tensor:
        return torch.cat([observations, torch.cat([observations[:, :-_N], neighbours], dim=1)])

    return samples._replace(
        observations=twice(samples.observations),
        actions=samples.actions.repeat(2, 1),
        next_observations=twice(samples.next_observations),
        dones=samples.dones.repeat(2, 1),
        rewards=samples.rewards.repeat(2, 1),
    )
