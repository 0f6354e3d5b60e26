"""Trains the sequential response model.

Deviation from KuaiSim: a training example is a user's whole sequence and not one event with the
history before it. Every position of the sequence predicts the responses to the next event, so that
an epoch takes about a hundredth of the transformer's work and all predictions stay causal.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from tqdm.auto import tqdm

from kuaisim_gym.data.dataset import Features
from kuaisim_gym.data.feedback import Interactions
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.sequential.config import SequentialConfig
from kuaisim_gym.simulator.sequential.model import SequentialModel
from kuaisim_gym.simulator.sequential.network import FieldEncoder, SequenceNetwork
from kuaisim_gym.simulator.sequential.sequences import Sequences, batches

# The last events of some users choose the epoch; those users are learned from until then.
VALIDATION_USERS = 0.2
VALIDATION_EVENTS = 0.2
_CLIP = 1.0  # norm of the gradient at most

Positions = NDArray[np.int64]

logger = logging.getLogger(__name__)


@single_precision()
def fit_sequential(
    train: Interactions,
    everyone: Interactions,
    n_users: int,
    n_items_all: int,
    user_features: Features,
    item_features: Features,
    *,
    config: SequentialConfig | None = None,
    seed: int = 0,
    progress: bool = True,
) -> SequentialModel:
    """Fits the model on the train users' rows.

    The loss is the cross-entropy of every behaviour with equal weights, summed; shares of a video
    are soft targets. Deviation from KuaiSim: classes are not balanced here, because balancing
    moves all log-odds of a behaviour by a constant, which a calibrated model can be given later.

    Args:
        train: Rows that are learned from, in each user's order of time.
        everyone: Rows that users' histories consist of in simulation; they move no weight. Users
            without rows in ``train`` are known by their features and histories alone.
        n_users: Number of user positions.
        n_items_all: Number of item positions.
        user_features: Of all users.
        item_features: Of all items.
        config: Sizes and training; the defaults if ``None``.
        seed: Same seed, rows and number of threads, same weights.
        progress: Whether to show a progress bar.

    Returns:
        The model with the weights of the epoch whose held-out loss was least.

    Raises:
        ConfigError: There are no rows to learn from, the seed is negative, or training diverged.
    """
    config = config or SequentialConfig()
    if len(train) == 0:
        raise ConfigError("The sequential response model needs rows to learn from, got none.")
    if seed < 0:
        raise ConfigError(f"seed must be at least 0, got {seed}.")
    # Seeds torch inside the fork only; the caller's random state is as before afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        trainer = _Trainer(
            Sequences.of(train, n_users),
            FieldEncoder(n_users, user_features, config),
            FieldEncoder(n_items_all, item_features, config),
            SequenceNetwork(len(train.behaviours), config),
            np.random.default_rng(seed),
        )
        losses = trainer.run(progress)
    trainer.eval()
    seen_users, seen_items = np.zeros(n_users, dtype=bool), np.zeros(n_items_all, dtype=bool)
    seen_users[train.users], seen_items[train.items] = True, True
    trainer.users.forget_unseen(seen_users)
    trainer.items.forget_unseen(seen_items)
    return SequentialModel(
        train.behaviours,
        trainer.network,
        _encoded(trainer.users, n_users),
        _encoded(trainer.items, n_items_all),
        Sequences.of(everyone, n_users),
        losses,
    )


@torch.no_grad()
def _encoded(encoder: FieldEncoder, n: int) -> Tensor:
    """All n users or items, encoded."""
    return torch.cat([encoder(rows) for rows in torch.arange(n).split(8192)])


class _Trainer(nn.Module):
    """All modules with weights, and the rows that they are fitted to."""

    def __init__(
        self,
        sequences: Sequences,
        users: FieldEncoder,
        items: FieldEncoder,
        network: SequenceNetwork,
        rng: np.random.Generator,
    ) -> None:
        super().__init__()
        self.sequences, self.rng = sequences, rng
        self.users, self.items, self.network = users, items, network
        self.config = network.config
        lengths = sequences.lengths
        checked = (rng.random(len(lengths)) < VALIDATION_USERS) & (lengths > 1)
        held_out = np.where(checked, np.ceil(lengths * VALIDATION_EVENTS), 0).astype(np.int64)
        self._learned = lengths - held_out
        if not checked.any():  # too few rows to spare any: the training loss decides
            checked, held_out = lengths > 0, lengths
        self._first_checked = lengths - held_out
        self._checked = np.flatnonzero(checked)
        rates = sequences.responses.mean(axis=0, dtype=np.float64)
        rates = (rates * lengths.sum() + 0.5) / (lengths.sum() + 1)
        with torch.no_grad():
            network.bias.copy_(torch.from_numpy(np.log(rates / (1 - rates))))

    def run(self, progress: bool) -> tuple[float, ...]:
        """Trains until the held-out loss has stopped falling, and restores the best weights."""
        config = self.config
        optimizer = torch.optim.Adam(self.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, config.decay)
        users = np.flatnonzero(self._learned)
        losses: list[float] = []
        best: dict[str, Tensor] = {}
        with tqdm(
            total=config.epochs * len(users),
            desc="Sequential response model",
            unit="user",
            disable=not progress,
        ) as bar:
            for _ in range(config.epochs):
                self.train()
                for batch in batches(self._learned[users], config.batch_events, self.rng):
                    chosen = users[batch]
                    start = np.zeros(len(chosen), dtype=np.int64)
                    total, count = self._loss(chosen, start, self._learned[chosen])
                    optimizer.zero_grad()
                    (total / count).backward()
                    nn.utils.clip_grad_norm_(self.parameters(), _CLIP)
                    optimizer.step()
                    bar.update(len(chosen))
                schedule.step()
                losses.append(self.held_out())
                bar.set_postfix(held_out=f"{losses[-1]:.4f}")
                if not np.isfinite(losses[-1]):
                    raise ConfigError(
                        f"Training diverged: the held-out loss became {losses[-1]}. Lower "
                        f"learning_rate, which is {config.learning_rate}."
                    )
                since = len(losses) - 1 - int(np.argmin(losses))
                if since == 0:
                    best = {name: value.clone() for name, value in self.state_dict().items()}
                elif since >= config.patience:
                    break
        self.load_state_dict(best)
        logger.info("Held-out loss of the sequential response model by epoch: %s", losses)
        return tuple(losses)

    @torch.inference_mode()
    def held_out(self) -> float:
        """Mean loss of the held-out events, with the earlier events as history."""
        self.eval()
        total, count = 0.0, 0
        lengths = self.sequences.lengths
        for batch in batches(lengths[self._checked], self.config.batch_events):
            chosen = self._checked[batch]
            loss, events = self._loss(chosen, self._first_checked[chosen], lengths[chosen])
            total, count = total + loss.item(), count + events
        return total / count

    def _loss(self, users: Positions, first: Positions, end: Positions) -> tuple[Tensor, int]:
        """Summed loss of the events ``first`` to ``end - 1`` of some users, and their number."""
        rows = self.sequences.padded(users, end)
        distinct, inverse = torch.unique(rows.items, return_inverse=True)
        encoded = self.items(distinct, self._masked(len(distinct)))[inverse]
        counted = torch.arange(rows.items.shape[1]) >= torch.from_numpy(first)[:, None]
        counted &= torch.arange(rows.items.shape[1]) < rows.lengths[:, None]
        network, rate = self.network, self.config.dropout
        events = network.events(functional.dropout(encoded, rate, self.training), rows.responses)
        states = network(network.with_start(events[:, :-1]))  # before each event
        encoded_users = self.users(torch.from_numpy(users), self._masked(len(users)))
        encoded_users = functional.dropout(encoded_users, rate, self.training)
        scores = network.scores(states[counted], encoded_users[torch.nonzero(counted)[:, 0]])
        logits = network.logits(scores, encoded[counted][:, None])[:, 0]
        loss = functional.binary_cross_entropy_with_logits(
            logits, rows.responses[counted], reduction="sum"
        )
        return loss, len(logits)

    def _masked(self, n: int) -> Tensor | None:
        """(n,) bool, users or items whose id is masked; ``None`` outside of training."""
        return torch.rand(n) < self.config.id_dropout if self.training else None
