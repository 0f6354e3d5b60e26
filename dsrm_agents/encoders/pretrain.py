"""State encoders by next-response prediction on the train log, with a loss that denoises or not."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from dsrm_agents.common.networks import descend, seeded
from dsrm_agents.encoders import bod  # noqa: F401  registers its objective
from dsrm_agents.encoders.events import LoggedEvents
from dsrm_agents.encoders.history import KINDS
from dsrm_agents.encoders.objectives import Batch, NextResponse, Objective, cross_entropy
from dsrm_agents.encoders.states import CHUNK, StateEncoder, StateEncoderConfig
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.dataset import Dataset, check_dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.quality import auc

LOSSES = tuple(Objective.registry)
POSITIVE = 0.5  # a response from here on is a positive answer
HELD_OUT = 0.1  # of the train users
TESTED = 20_000  # held-out rows at most
REDRAWS = 10  # of negatives that the user has met


@single_precision()
def fit_encoder(
    dataset: Dataset,
    loss: str = "ce",
    kind: str = "gru",
    *,
    history_len: int = 50,
    updates: int = 2000,
    batch_size: int = 256,
    learning_rate: float = 3e-3,
    seed: int = 0,
    progress: bool = True,
) -> StateEncoder:
    """Fits a state encoder on the train users' log.

    An example is a row of the log that is not its user's first: the events before it, its item,
    and whether its response is at least one half. The cross-entropies learn from the answers that
    were logged, where the papers count every interaction as positive and draw negatives. BOD
    learns from the positive rows, each beside one item that the user has not met; in a log of
    positives alone the others take it as the item of half of their examples.

    Args:
        dataset: The data; only what may be learned from is read.
        loss: ``"ce"``; ``"tce"``, whose drop rate grows over the first half of the updates;
            ``"rce"``; or ``"bod"``.
        kind: ``"gru"``, ``"mean"`` or ``"attention"``.
        history_len: H, events in a history.
        updates: Gradient steps, the same for all losses.
        batch_size: Examples a step.
        learning_rate: Of Adam, at the start; it falls to zero along a half cosine.
        seed: Of the held-out users, the initial weights and the batches.
        progress: Whether to show a progress bar.

    Returns:
        The encoder. Its ``report`` holds ``auc`` and ``log_loss`` of next responses of a tenth of
        the users, held out; BOD ranks, so its logits are not calibrated. And the positives left out
        over the last quarter of the updates, ``left_out``, ``left_out_popular`` and
        ``left_out_longtail``: the share dropped by T-CE, and 1 - mean weight of R-CE and BOD.

    Raises:
        ConfigError: An option is impossible, or the log holds too little to learn from.
    """
    check_dataset("fit_encoder(dataset)", dataset)
    check_choice("loss", loss, LOSSES)
    check_choice("kind", kind, KINDS)
    sizes = {"history_len": history_len, "updates": updates, "batch_size": batch_size}
    for name, size in sizes.items():
        check_whole(name, size, 1)
    if not learning_rate > 0:
        raise ConfigError(f"learning_rate must be positive, got {learning_rate}.")
    catalogue, data = load_catalogue(dataset), dataset.training
    users, rng = data.train_users, np.random.default_rng(seed)
    events = LoggedEvents(data.train_log, data.n_users)
    examples = Examples(events, catalogue, history_len, Objective.registry[loss].positives_only)
    held_out = rng.choice(users, round(HELD_OUT * len(users)), replace=False)
    rows, tested = examples.split(held_out)
    if not len(rows):
        raise ConfigError("The train log is too short: no answer to learn from has events before.")
    config = StateEncoderConfig(
        dataset.fingerprint, data.n_all_items, catalogue.embedding.shape[1], kind, history_len, loss
    )
    with seeded(seed):
        encoder = StateEncoder(config, catalogue.embedding)
        model = NextResponse(encoder, catalogue.embedding)
        objective = Objective.registry[loss](model, updates)
    left_out = LeftOut(catalogue)
    bar = tqdm(range(updates), desc=f"Encoder ({loss})", unit="update", disable=not progress)
    optimizer = torch.optim.Adam([weight for weight in model.parameters() if weight.requires_grad])
    for step in bar:
        half_cosine = 0.5 * (1.0 + math.cos(math.pi * step / updates))
        optimizer.param_groups[0]["lr"] = learning_rate * half_cosine
        batch = examples.batch(rng.choice(rows, batch_size), rng)
        value, discount = objective(batch, step)
        descend(optimizer, value)
        if step >= updates - max(1, updates // 4):
            left_out.add(batch, discount)
    model.eval()
    encoder.standardise(*examples.events.last(users, history_len))
    tested = rng.choice(tested, min(TESTED, len(tested)), replace=False)
    encoder.report = held_out_quality(model, examples, tested) | left_out.shares()
    return encoder


class Examples:
    """Rows of a log as examples of what comes after a history.

    Args:
        events: The log.
        catalogue: The items.
        history_len: H.
        positives_only: Whether training rows are the positive ones alone. If not, half of the
            examples of a log of positives alone are of items that the user has not met.

    Attributes:
        events: The log.
        positive: (n,) bool, whether a row's answer is positive.
    """

    def __init__(
        self,
        events: LoggedEvents,
        catalogue: Catalogue,
        history_len: int,
        positives_only: bool = False,
    ) -> None:
        self.events = events
        self._positives_only = positives_only
        self._draws_negatives = not (positives_only or events.has_negatives)
        self.positive = events.responses >= POSITIVE
        self._length = history_len
        self._n_items = len(catalogue.embedding)
        self._met = np.unique(self._pairs(events.users, events.items))

    def split(self, held_out: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that follow another of their user: of the other users, and of those held out."""
        users = self.events.users
        rows = np.flatnonzero(np.arange(len(users)) > self.events.starts[users])
        outside = np.isin(users[rows], held_out)
        trained = ~outside & (self.positive[rows] | (not self._positives_only))
        return rows[trained], rows[outside]

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """The examples of some rows."""
        users = self.events.users[rows]
        items, responses = self.events.before(rows, users, self._length)
        targets, labels = self.events.items[rows].astype(np.int64), self.positive[rows]
        negatives = self._unmet(users, rng)
        if self._draws_negatives:
            replaced = rng.random(len(rows)) < 0.5
            targets, labels = np.where(replaced, negatives, targets), labels & ~replaced
        arrays = (items, responses, targets, labels.astype(np.float32), negatives)
        return Batch(*(torch.from_numpy(array) for array in arrays))

    def _unmet(self, users: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """(B,) int64: an item drawn at random for each user, of those not met if there are some."""
        items = rng.integers(self._n_items, size=len(users))
        for _ in range(REDRAWS):
            pairs = self._pairs(users, items)
            nearest = np.searchsorted(self._met, pairs).clip(max=len(self._met) - 1)
            met = self._met[nearest] == pairs
            if not met.any():
                break
            items[met] = rng.integers(self._n_items, size=np.count_nonzero(met))
        return items

    def _pairs(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.int64]:
        return users.astype(np.int64) * self._n_items + items


class LeftOut:
    """Share of the positive answers that a loss leaves out: of all, and by group of items.

    Args:
        catalogue: Its items are popular or long-tail; items of the log alone are neither.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        n_all, n = len(catalogue.embedding), catalogue.n_items
        self._groups = {
            "left_out": np.ones(n_all, dtype=bool),
            "left_out_popular": np.append(catalogue.popular, np.zeros(n_all - n, dtype=bool)),
            "left_out_longtail": np.append(~catalogue.popular, np.zeros(n_all - n, dtype=bool)),
        }
        self._total: dict[str, float] = dict.fromkeys(self._groups, 0.0)
        self._count: dict[str, int] = dict.fromkeys(self._groups, 0)

    def add(self, batch: Batch, discount: Tensor) -> None:
        """Counts a batch, whose rows are left out to (B,) shares."""
        positive = batch.labels.numpy() > 0
        targets, shares = batch.targets.numpy()[positive], discount.detach().numpy()[positive]
        for name, members in self._groups.items():
            chosen = members[targets]
            self._total[name] += float(shares[chosen].sum())
            self._count[name] += int(chosen.sum())

    def shares(self) -> dict[str, float]:
        """The mean share by group; 0 where there were no positives."""
        return {name: self._total[name] / max(self._count[name], 1) for name in self._groups}


def held_out_quality(
    model: NextResponse, examples: Examples, rows: NDArray[np.int64]
) -> dict[str, float]:
    """``auc`` and ``log_loss`` of the answers of some rows.

    Args:
        model: The predictor.
        examples: The log.
        rows: (n,) row numbers.

    Returns:
        Both, or nothing where all answers are alike.
    """
    labels = examples.positive[rows]
    if labels.all() or not labels.any():
        return {}
    rng = np.random.default_rng(0)
    with torch.inference_mode():
        chunks = np.array_split(rows, -(-len(rows) // CHUNK))
        logits = torch.cat([model(examples.batch(chunk, rng)) for chunk in chunks]).double()
        losses = cross_entropy(logits, torch.from_numpy(labels).double())
    return {"auc": auc(logits.numpy(), labels), "log_loss": float(losses.mean())}
