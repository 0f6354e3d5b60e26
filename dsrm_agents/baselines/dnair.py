"""DNaIR: a deep Q-network rewarded for novelty of quality, which now and then picks unlike items.

Shi et al., "Relieving Popularity Bias in Interactive Recommendation: A Diversity-Novelty-Aware
Reinforcement Learning Approach", TOIS 2024.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, PyTorchObs, Schedule
from torch import Tensor
from torch.nn import functional

from dsrm_agents.baselines.cooccurrence import neighbours
from dsrm_agents.baselines.items import ItemNetwork, SlatePolicy, unexposed
from dsrm_agents.baselines.novelty import BETA, GOOD, item_novelty, item_quality
from dsrm_agents.baselines.slate_learning import SlateOffPolicyAlgorithm, SlateSamples
from dsrm_agents.common.catalogue import ids_of, state_and_unavailable
from dsrm_agents.common.networks import descend, follow
from kuaisim_gym.config import check_whole
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.catalogue import Catalogue

SIMILAR = 100  # M


class DNaIRPolicy(SlatePolicy):
    """Q-values of all items, and DSAG, the diversity-aware stochastic action generator.

    DSAG fills a slate pick by pick. With probability epsilon it takes the item of the highest Q
    among the M items most similar to the last that the user liked (answered with at least
    ``GOOD``), otherwise any item of the rest; items shown or picked before count as neither. The
    chance belongs to the method, and is all its exploration: ``deterministic`` changes nothing,
    and evaluations are repeatable by the seed.

    The paper's similar items are those of the last item in the state, which moves on only for a
    positive reward, and starts with the user's logged items. Observations do not name those:
    until a session's user likes something, the M items of the highest Q take their place.

    Args:
        observation_space: That of ``observation_type="dict"``.
        action_space: That of ``action_type="slate"``.
        lr_schedule: Learning rate by the share of training that is left.
        catalogue: The items.
        neighbours: (n_items, m) int32, each item's most similar others, best first, as
            :func:`~dsrm_agents.baselines.cooccurrence.neighbours` gives them. M of them are left
            at any time of a session if m is M and the items of a whole session together.
        similar: M.
        epsilon: Chance that a pick is of the similar items.
        hidden: Width of the Q-network's two hidden layers.
        seed: Of DSAG's draws; ``None`` for an arbitrary one.
        **kwargs: Passed on to the base class.

    Attributes:
        generator: Source of DSAG's draws; ``generator.manual_seed`` begins them anew.

    Raises:
        ConfigError: ``similar`` is no positive integer, ``epsilon`` is no probability, or the
            spaces are others.
    """

    neighbours: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        catalogue: Catalogue,
        neighbours: NDArray[np.int32],
        similar: int = SIMILAR,
        epsilon: float = 0.95,
        hidden: int = 128,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(observation_space, action_space, catalogue, **kwargs)
        if not 0 <= epsilon <= 1:
            raise ConfigError(f"epsilon must be a probability, in [0, 1], got {epsilon}.")
        self.similar = check_whole("similar", similar, 1)
        self.epsilon = epsilon
        self.hidden = hidden
        self.seed = seed
        # Not part of the weights: the constructor's arguments hold it.
        self.register_buffer("neighbours", torch.as_tensor(neighbours), persistent=False)
        self.q_net = ItemNetwork(catalogue, self.state_dim, hidden)
        self.q_net_target = deepcopy(self.q_net).requires_grad_(False)
        self.optimizer = self.optimizer_class(
            self.q_net.parameters(),
            lr=lr_schedule(1),  # type: ignore[call-arg]
            **self.optimizer_kwargs,
        )
        self.generator = torch.Generator()
        self.generator.seed() if seed is None else self.generator.manual_seed(seed)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "lr_schedule": self._dummy_schedule,  # of no use to a loaded policy
            "neighbours": self.neighbours.cpu().numpy(),
            "similar": self.similar,
            "epsilon": self.epsilon,
            "hidden": self.hidden,
            "seed": self.seed,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }

    def scores(self, state: Tensor, exposed: Tensor, deterministic: bool) -> Tensor:
        """(n, n_items) Q-values."""
        values: Tensor = self.q_net(state)
        return values

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> Tensor:
        assert isinstance(observation, dict)
        state, exposed = state_and_unavailable(observation, self.catalogue.n_items)
        liked = last_liked(ids_of(observation, "exposed"), observation["responses"])
        return self.generate(self.scores(state, exposed, deterministic), exposed, liked)

    def generate(self, values: Tensor, exposed: Tensor, liked: Tensor) -> Tensor:
        """DSAG.

        Args:
            values: (n, n_items) float32, Q-values.
            exposed: (n, room) int64 item positions, -1 padded.
            liked: (n,) int64, the item that others are to be similar to, -1 where there is none.

        Returns:
            (n, K) int64 distinct unexposed items, in the order of picking.
        """
        values = unexposed(values, exposed)
        picked = values.isneginf()
        near = self._near(values, liked)
        near_values = values.gather(1, near)
        chance = torch.rand(len(values), self.slate_size, generator=self.generator)
        diverse = (chance >= self.epsilon).to(values.device)
        slates = torch.empty_like(diverse, dtype=torch.int64)
        for pick in range(self.slate_size):
            free = ~picked.gather(1, near)
            similar = free & (free.cumsum(1) <= self.similar)
            best = near_values.masked_fill(~similar, -torch.inf).argmax(1, keepdim=True)
            items = near.gather(1, best)
            rows = diverse[:, pick].nonzero().squeeze(1)
            if len(rows):
                distant = (~picked[rows]).scatter(1, near[rows], (free & ~similar)[rows])
                items[rows] = self._any_of(distant, items[rows])
            slates[:, pick : pick + 1] = items
            picked.scatter_(1, items, True)
        return slates

    def _near(self, values: Tensor, liked: Tensor) -> Tensor:
        """(n, m) int64 items by falling similarity, or by falling value where none was liked."""
        near = self.neighbours[liked.clamp(min=0)].long()
        none = liked < 0
        if none.any():
            near[none] = values[none].topk(near.shape[1], dim=1).indices
        return near

    def _any_of(self, candidates: Tensor, fallback: Tensor) -> Tensor:
        """(n, 1) items drawn uniformly from a row's candidates, or the fallback without any.

        Args:
            candidates: (n, n_items) bool.
            fallback: (n, 1) int64.
        """
        draws = torch.rand(candidates.shape, generator=self.generator).to(candidates.device)
        drawn = draws.masked_fill_(~candidates, -1.0).argmax(1, keepdim=True)
        return torch.where(candidates.any(1, keepdim=True), drawn, fallback)


def last_liked(exposed: Tensor, responses: Tensor) -> Tensor:
    """(n,) the last item of each session that was answered with at least ``GOOD``, or -1.

    Args:
        exposed: (n, room) int64 item positions in the order shown, -1 padded.
        responses: (n, room) float32, 0 padded.
    """
    good = (exposed >= 0) & (responses >= GOOD)
    order = torch.arange(1, exposed.shape[1] + 1, device=exposed.device)
    latest, column = (good * order).max(1)
    items = exposed.gather(1, column[:, None]).squeeze(1)
    return torch.where(latest > 0, items, -1)


def gated_novelty(data: TrainingData, exposures: NDArray[np.integer]) -> NDArray[np.float32]:
    """(n_items,) float32 quality times novelty: rare items are worth something if they are good.

    Args:
        data: Its train log gives qualities.
        exposures: (n_items,) numbers of times that items were shown.
    """
    worth = item_quality(data) * item_novelty(exposures)
    return np.asarray(worth, dtype=np.float32)


class DNaIR(SlateOffPolicyAlgorithm):
    """DNaIR; saves, loads and predicts as any SB3 algorithm.

    An item is worth what it was answered, and its novelty as far as its quality goes::

        r_k = response_k + beta * quality_k * novelty_k
        y_k = r_k + gamma * (1 - done) * max_a Q'(s', a),    a over what is still unexposed

    with :func:`~dsrm_agents.baselines.novelty.item_quality`, the posterior mean of an item's good
    responses in the log, and :func:`~dsrm_agents.baselines.novelty.item_novelty`,
    ``1 / log10(popularity + 1.1)``. Q follows y by Huber's loss, Q' follows Q softly.

    Deviations from the paper:

    * Relevance is the simulator's response, in place of the co-occurrence with the last ten items:
      here users answer.
    * The state is the environment's, not the last ten positively rewarded items; DSAG alone goes
      by the last liked item, and starts otherwise, see :class:`DNaIRPolicy`.
    * A slate is K choices in one state with one bootstrap, and one network serves all users.
    * Nothing is charged for repeats, for nothing is ever repeated.

    Novelty lies in 3.1 .. 24.2 by definition and responses in [0, 1]: at the paper's ``beta=0.4``,
    which faced relevances summed over ten items, novelty decides nearly alone. ``beta`` needs to be
    tuned to the responses.

    Args:
        policy: ``"DNaIRPolicy"`` or a subclass.
        env: An environment with ``observation_type="dict"`` and ``action_type="slate"``, such as
            :func:`dsrm_agents.make_vec_env` makes, purified or not. Its train log gives qualities
            and neighbours. Its reward is not read.
        beta: Weight of novelty, the paper's by default; 0 for relevance alone.
        **kwargs: Of :class:`~dsrm_agents.baselines.slate_learning.SlateOffPolicyAlgorithm`. In
            ``policy_kwargs``: ``similar``, ``epsilon`` and ``hidden`` of :class:`DNaIRPolicy`.

    Attributes:
        gated_novelty: (n_items,) float32, quality times novelty.

    Raises:
        ConfigError: ``beta`` is negative, the environment has no catalogue or other spaces, or an
            option of the policy is out of range.
        CheckpointError: The environment shows other items than the agent was built for.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {"DNaIRPolicy": DNaIRPolicy}
    policy: DNaIRPolicy

    def __init__(
        self,
        policy: str | type[DNaIRPolicy],
        env: GymEnv | str,
        beta: float = BETA,
        **kwargs: Any,
    ) -> None:
        if not beta >= 0:
            raise ConfigError(f"beta must be at least 0, got {beta}.")
        self.beta = beta
        self.gated_novelty: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        super().__init__(policy, env, **kwargs)

    @single_precision()
    def _setup_model(self) -> None:
        self._take_catalogue()
        if "neighbours" not in self.policy_kwargs:
            self._read_log()
        super()._setup_model()

    def _read_log(self) -> None:
        """Takes qualities and neighbours from the train log, once: saved agents have them."""
        assert self.env is not None
        assert isinstance(self.observation_space, spaces.Dict)
        data: TrainingData = self.env.get_attr("batch")[0].dataset.training
        self.gated_novelty = gated_novelty(data, self.policy_kwargs["catalogue"].exposures)
        room = self.observation_space["exposed"].shape or (0,)
        similar = check_whole("similar", self.policy_kwargs.get("similar", SIMILAR), 1)
        self.policy_kwargs["neighbours"] = neighbours(data, similar + room[0])
        self.policy_kwargs["seed"] = self.seed

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.policy.optimizer]

    def _update(self, batch: SlateSamples) -> dict[str, float]:
        policy = self.policy
        values = policy.q_net.of(batch.states, batch.slates)
        loss = functional.smooth_l1_loss(values, self.targets(batch))
        descend(policy.optimizer, loss)
        follow(policy.q_net_target, policy.q_net, self.tau)
        return {"loss": loss.item()}

    @torch.no_grad()
    def targets(self, batch: SlateSamples) -> Tensor:
        """(n, K) float32: y of every item of the slates."""
        ahead = unexposed(self.policy.q_net_target(batch.next_states), batch.next_exposed)
        best = ahead.amax(1, keepdim=True).nan_to_num(neginf=0.0)  # all may have been shown
        following = (1.0 - batch.dones) * best
        return self.rewards(batch.slates, batch.responses) + self.gamma * following

    def rewards(self, slates: Tensor, responses: Tensor) -> Tensor:
        """(n, K) float32 rewards of (n, K) items by what they were answered."""
        worth = torch.as_tensor(self.gated_novelty, device=slates.device)
        return responses + self.beta * worth[slates]

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy", "policy.optimizer"], []
