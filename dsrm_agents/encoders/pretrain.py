"""State encoders by next-response prediction on the train log, with a loss that denoises or not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor, nn
from tqdm.auto import tqdm

from dsrm_agents.common.networks import descend
from dsrm_agents.encoders.bod import (
    WeightGenerator,
    gradient_disagreement,
    uniformity,
    weighted_alignment,
    weighted_bpr,
)
from dsrm_agents.encoders.events import LoggedEvents
from dsrm_agents.encoders.history import KINDS
from dsrm_agents.encoders.losses import (
    cross_entropy,
    drop_rate,
    reweighted_cross_entropy,
    truncated_cross_entropy,
    trust,
    trusted,
)
from dsrm_agents.encoders.states import CHUNK, StateEncoder, StateEncoderConfig
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data.dataset import Dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator import load_catalogue
from kuaisim_gym.simulator.catalogue import Catalogue

LOSSES = ("ce", "tce", "rce", "bod")
POSITIVE = 0.5  # a response from here on is a positive answer
HELD_OUT = 0.1  # of the train users
TESTED = 20_000  # held-out rows at most
ALIGNMENT, UNIFORMITY = 1.0, 0.5  # weights beside BPR in the inner level of BOD
GENERATOR_RATE = 1e-3  # learning rate of BOD's outer level
REDRAWS = 10  # of negatives that the user has met


class Batch(NamedTuple):
    """Examples: histories and what came next.

    Attributes:
        items: (B, H) int64, -1 where there is no event.
        responses: (B, H) float32.
        targets: (B,) int64, the items that came next.
        labels: (B,) float32, whether the answers were positive.
        negatives: (B,) int64, items that the users have not met.
    """

    items: Tensor
    responses: Tensor
    targets: Tensor
    labels: Tensor
    negatives: Tensor


class NextResponse(nn.Module):
    """Predicts how the next item is answered: logit = <s, e_i> + b_i.

    Args:
        encoder: Makes the states s.
        item_embedding: (n_all_items, d) float32 vectors e_i, which stay as they are.
    """

    vectors: Tensor

    def __init__(self, encoder: StateEncoder, item_embedding: NDArray[np.float32]) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("vectors", torch.from_numpy(item_embedding.copy()))
        self.bias = nn.Parameter(torch.zeros(len(item_embedding)))

    def forward(self, states: Tensor, items: Tensor) -> Tensor:
        """(B, d) states and (B,) int64 items to (B,) logits."""
        return torch.as_tensor((states * self.vectors[items]).sum(dim=1) + self.bias[items])


# Of a batch and the number of updates made: the loss, and how much of each row it leaves out.
Objective = Callable[[Batch, int], tuple[Tensor, Tensor]]


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
    progress: bool = False,
) -> StateEncoder:
    """Fits a state encoder on the train users' log.

    An example is a row of the log that is not its user's first: the events before it, its item,
    and whether its response is at least one half. The cross-entropies learn from the answers that
    were logged, where the papers count every interaction as positive and draw negatives. BOD
    learns from the positive rows, each beside one item that the user has not met.

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
        the users, held out; BOD ranks, so its logits are not calibrated. And what the loss left out
        of the positives, over the last quarter of the updates: ``left_out``,
        ``left_out_popular`` and ``left_out_longtail``, the share dropped by T-CE, one less the
        mean weight of R-CE, and for BOD by how much a group's mean weight is below that of all.

    Raises:
        ConfigError: An option is impossible, or the log holds too little to learn from.
    """
    check_choice("loss", loss, LOSSES)
    check_choice("kind", kind, KINDS)
    sizes = {"history_len": history_len, "updates": updates, "batch_size": batch_size}
    for name, size in sizes.items():
        check_whole(name, size, 1)
    if not learning_rate > 0:
        raise ConfigError(f"learning_rate must be positive, got {learning_rate}.")
    catalogue, data = load_catalogue(dataset), dataset.training
    users, rng = data.train_users, np.random.default_rng(seed)
    examples = Examples(LoggedEvents(data.train_log, data.n_users), catalogue, history_len)
    held_out = rng.choice(users, round(HELD_OUT * len(users)), replace=False)
    rows, tested = examples.split(held_out)
    if loss == "bod":
        rows = rows[examples.positive[rows]]
    if not len(rows):
        raise ConfigError("The train log is too short: no answer to learn from has events before.")
    config = StateEncoderConfig(
        dataset.fingerprint, data.n_all_items, catalogue.embedding.shape[1], kind, history_len, loss
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = StateEncoder(config, catalogue.embedding)
        model = NextResponse(encoder, catalogue.embedding)
        objective = Bod(model) if loss == "bod" else _pointwise(model, loss, max(1, updates // 2))
    left_out = LeftOut(catalogue)
    bar = tqdm(range(updates), desc=f"Encoder ({loss})", unit="update", disable=not progress)
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad])
    for step in bar:
        optimizer.param_groups[0]["lr"] = _half_cosine(learning_rate, step, updates)
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


def _half_cosine(start: float, step: int, updates: int) -> float:
    return start * 0.5 * (1.0 + math.cos(math.pi * step / updates))


class Examples:
    """Rows of a log as examples of what comes after a history.

    Args:
        events: The log.
        catalogue: The items.
        history_len: H.

    Attributes:
        events: The log.
        positive: (n,) bool, whether a row's answer is positive.
    """

    def __init__(self, events: LoggedEvents, catalogue: Catalogue, history_len: int) -> None:
        self.events = events
        self.positive = events.responses >= POSITIVE
        self._length = history_len
        self._n_items = len(catalogue.embedding)
        self._met = np.unique(self._pairs(events.users, events.items))

    def split(self, held_out: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows that follow another of their user: of the other users, and of those held out."""
        users = self.events.users
        rows = np.flatnonzero(np.arange(len(users)) > self.events.starts[users])
        apart = np.isin(users[rows], held_out)
        return rows[~apart], rows[apart]

    def batch(self, rows: NDArray[np.int64], rng: np.random.Generator) -> Batch:
        """The examples of some rows."""
        users = self.events.users[rows]
        items, responses = self.events.before(rows, users, self._length)
        arrays = (
            items,
            responses,
            self.events.items[rows].astype(np.int64),
            self.positive[rows].astype(np.float32),
            self._unmet(users, rng),
        )
        return Batch(*(torch.from_numpy(one) for one in arrays))

    def _unmet(self, users: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int64]:
        """(B,) int64: an item drawn at random for each user, of those not met if there are some."""
        items = rng.integers(self._n_items, size=len(users))
        for _ in range(REDRAWS):
            pairs = self._pairs(users, items)
            places = np.searchsorted(self._met, pairs).clip(max=len(self._met) - 1)
            met = self._met[places] == pairs
            if not met.any():
                break
            items[met] = rng.integers(self._n_items, size=np.count_nonzero(met))
        return items

    def _pairs(self, users: NDArray[np.integer], items: NDArray[np.integer]) -> NDArray[np.int64]:
        return users.astype(np.int64) * self._n_items + items


def _pointwise(model: NextResponse, loss: str, gradual_steps: int) -> Objective:
    """Cross-entropy of the logged answers, truncated, reweighted or plain."""

    def objective(batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        logits = model(model.encoder(batch.items, batch.responses), batch.targets)
        if loss == "tce":
            rate = drop_rate(step, gradual_steps)
            dropped = ~trusted(logits, batch.labels, rate)
            return truncated_cross_entropy(logits, batch.labels, rate), dropped.float()
        if loss == "rce":
            weights = trust(logits, batch.labels)
            return reweighted_cross_entropy(logits, batch.labels), 1.0 - weights
        return cross_entropy(logits, batch.labels).mean(), torch.zeros_like(logits)

    return objective


class Bod:
    """Both levels of BOD, see :mod:`dsrm_agents.encoders.bod`.

    Before each step of the inner level, one of the outer level on the same pairs, to which theta
    has not yet been fitted anew. The gradients that it compares are those of the encoder's head,
    whose rows make one coordinate of the states each; what lies beneath the head is not
    differentiated for it.

    Args:
        model: theta; the item vectors are frozen.
    """

    def __init__(self, model: NextResponse) -> None:
        self.encoder, self.vectors = model.encoder, model.vectors
        self.generator = WeightGenerator(self.vectors.shape[1])
        self.optimizer = torch.optim.Adam(self.generator.parameters(), GENERATOR_RATE)

    def __call__(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """The inner loss, and how much of each positive pair's weight is missing."""
        summary = self.encoder.summary(batch.items, batch.responses)
        pairs = self.vectors[batch.targets], self.vectors[batch.negatives]
        self.outer_step(summary.detach(), *pairs)
        states = self.encoder.head(summary)
        with torch.no_grad():
            weights = self._weights(states, *pairs)
        bpr, alignment = self._losses(states, *pairs, *weights)
        inner = bpr + ALIGNMENT * alignment + UNIFORMITY * uniformity(states)
        return inner, 1.0 - weights[0]

    def outer_step(self, summary: Tensor, positives: Tensor, negatives: Tensor) -> None:
        """Moves phi alone, towards weights under which both objectives agree.

        Args:
            summary: (B, d) input of the head, as data.
            positives: (B, d) item vectors.
            negatives: (B, d) item vectors.
        """
        states = self.encoder.head(summary)
        weights = self._weights(states.detach(), positives, negatives)
        losses = self._losses(states, positives, negatives, *weights)
        disagreement = gradient_disagreement(*losses, self.encoder.head.weight)
        phi = list(self.generator.parameters())
        for parameter, gradient in zip(phi, torch.autograd.grad(disagreement, phi), strict=True):
            parameter.grad = gradient
        self.optimizer.step()

    def _weights(
        self, states: Tensor, positives: Tensor, negatives: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Of both sorts of pairs, in units of the mean of the positive ones.

        Without a unit the outer level lowers all weights together: the smaller the scores of BPR
        are, the less its gradient depends on the pair.
        """
        liked, unseen = self.generator(states, positives), self.generator(states, negatives)
        unit = liked.mean()
        return liked / unit, unseen / unit

    def _losses(
        self,
        states: Tensor,
        positives: Tensor,
        negatives: Tensor,
        positive_weights: Tensor,
        negative_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """BPR_w and Align_w."""
        bpr = weighted_bpr(states, positives, negatives, positive_weights, negative_weights)
        return bpr, weighted_alignment(states, positives, positive_weights)


class LeftOut:
    """How much of the positive answers a loss leaves out: of all, and by group of items.

    Args:
        catalogue: Its items are popular or long-tail; items of the log alone are neither.
    """

    def __init__(self, catalogue: Catalogue) -> None:
        n_all, popular = len(catalogue.embedding), catalogue.popular
        in_catalogue = np.arange(n_all) < catalogue.n_items
        is_popular = np.zeros(n_all, dtype=bool)
        is_popular[: catalogue.n_items] = popular
        self._groups = {
            "left_out": np.ones(n_all, dtype=bool),
            "left_out_popular": is_popular,
            "left_out_longtail": in_catalogue & ~is_popular,
        }
        self._total: dict[str, float] = dict.fromkeys(self._groups, 0.0)
        self._count: dict[str, int] = dict.fromkeys(self._groups, 0)

    def add(self, batch: Batch, discount: Tensor) -> None:
        """Counts a batch, (B,) of whose rows are left out to these shares."""
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
        Both, or nothing where the answers are not of both kinds.
    """
    labels = examples.positive[rows]
    if labels.all() or not labels.any():
        return {}
    parts = []
    with torch.inference_mode():
        for part in np.array_split(rows, -(-len(rows) // CHUNK)):
            batch = examples.batch(part, np.random.default_rng(0))
            parts.append(model(model.encoder(batch.items, batch.responses), batch.targets))
    chances = torch.cat(parts).double().sigmoid().numpy()
    return {
        "auc": float(roc_auc_score(labels, chances)),
        "log_loss": float(log_loss(labels, chances, labels=[False, True])),
    }
