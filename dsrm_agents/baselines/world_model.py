"""Expected responses and their uncertainty by a log: an ensemble of Gaussian factor models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm.auto import tqdm

from kuaisim_gym.config import check_whole
from kuaisim_gym.data.dataset import TrainingData
from kuaisim_gym.precision import single_precision
from kuaisim_gym.simulator.positives import answers_behind
from kuaisim_gym.tensors import digest_of

MEMBERS = 5
RANK = 8
EPOCHS = 6
BATCH = 16_384  # rows, at most; every member has weights of its own for them
BATCHES = 40  # of an epoch, at least
LEARNING_RATE = 0.03  # of Adam, at the start; it falls to zero in a straight line
PRIOR_DEVIATION = 0.14  # of effects, factors and log-variances
START = 0.1  # standard deviation of the factors that a member starts from
LEAST_LOG_VARIANCE = -7.0  # .03 squared: answers that never vary would be endlessly sure

FloatArray = NDArray[np.float32]
Rows = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True, eq=False)
class WorldModel:
    """M models of the response to an item, each a mean and a variance.

    Member k predicts ``N(mu, exp(s))`` with ``mu = m_k + b_u + b_i + <p_u, q_i>`` and ``s = s_k +
    c_u + c_i``. It minimises the negative log-likelihood of the log's rows, under exponential
    weights of its own (the Bayesian bootstrap), and of a Gaussian prior; that of log-variances is
    centred on draws of the member. Where rows are few members disagree, and where answers are
    noisy all of them say so: both raise the largest variance. The paper's members are deep
    factorisation machines with features of users and items.

    Attributes:
        users: (n_users, M, 2 + d) float32: ``b_u``, ``c_u`` and ``p_u``.
        items: (n_all_items, M, 2 + d) float32: ``b_i``, ``c_i`` and ``q_i``.
        level: (M, 2) float32: ``m_k`` and ``s_k``.
    """

    users: FloatArray
    items: FloatArray
    level: FloatArray

    def __post_init__(self) -> None:
        for array in (self.users, self.items, self.level):
            array.setflags(write=False)

    def predict(
        self, users: NDArray[np.integer], items: NDArray[np.integer]
    ) -> tuple[FloatArray, FloatArray]:
        """Mean response over the members, and the largest of their variances.

        Args:
            users: Positions in the dataset.
            items: Positions, broadcastable with ``users``.

        Returns:
            The mean response in [0, 1] and ``P_U = max_k Var_k``, in squared units of the
            response; float32 of the broadcast shape.
        """
        of_user, of_item = self.users[users], self.items[items]
        mean, log_variance = np.moveaxis(self.level + of_user[..., :2] + of_item[..., :2], -1, 0)
        mean = mean + np.einsum("...d,...d->...", of_user[..., 2:], of_item[..., 2:])
        uncertainty = np.exp(np.maximum(log_variance, LEAST_LOG_VARIANCE).max(axis=-1))
        return np.clip(mean.mean(axis=-1), 0.0, 1.0), uncertainty

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the content."""
        return digest_of([self.users, self.items, self.level])


@single_precision()
def fit_world_model(
    data: TrainingData, members: int = MEMBERS, seed: int = 0, progress: bool = False
) -> WorldModel:
    """Fits all members at once: they read the same rows, with weights of their own.

    Args:
        data: Only ``train_log`` is read; of positives alone, beside drawn negatives, see
            :func:`~kuaisim_gym.simulator.positives.answers_behind`. Users without rows in it become
            the average of those that have some; items without rows stay at the prior, where members
            disagree most.
        members: M, at least 1.
        seed: Of the members' starting points and weights, and of the order of rows.
        progress: Whether to show a progress bar.

    Returns:
        The model.

    Raises:
        ConfigError: ``members`` is no positive integer.
    """
    check_whole("members", members, 1)
    log, generator = answers_behind(data, seed), torch.Generator().manual_seed(seed)
    users, items = (torch.from_numpy(np.array(column)) for column in (log.users, log.items))
    response = torch.from_numpy(np.array(log.response))
    weights = torch.empty(len(log), members).exponential_(generator=generator)
    ensemble = _Ensemble((data.n_users, data.n_all_items), members, response, generator)

    size = min(BATCH, -(-len(log) // BATCHES))
    batches = -(-len(log) // size)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, EPOCHS * batches)
    with tqdm(total=EPOCHS, desc="World model", unit="epoch", disable=not progress) as bar:
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(log), generator=generator).split(size):
                loss = ensemble.loss((users[rows], items[rows], response[rows], weights[rows]))
                optimizer.zero_grad()
                (loss / len(rows) + ensemble.prior() / len(log)).backward()
                optimizer.step()
                schedule.step()
            bar.update()
    of_users, of_items, level = (weight.detach().numpy() for weight in ensemble.parameters())
    of_users, of_items = (rows.reshape(len(rows), members, -1) for rows in (of_users, of_items))
    logged = np.bincount(log.users, minlength=len(of_users)) > 0
    of_users[~logged] = of_users[logged].mean(axis=0)
    return WorldModel(of_users, of_items, level)


class _Ensemble(torch.nn.Module):
    """The parameters of all members, side by side so that a row is gathered once for all of them.

    Args:
        size: Number of users and of items.
        members: M.
        response: (n_rows,) where the levels start.
        generator: Draws where factors and log-variances start.
    """

    def __init__(
        self, size: tuple[int, int], members: int, response: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        deviation = torch.tensor([0.0, PRIOR_DEVIATION, *[START] * RANK])
        drawn = [torch.randn(n, members, 2 + RANK, generator=generator) * deviation for n in size]
        self.users, self.items = (torch.nn.Parameter(draws.flatten(1)) for draws in drawn)
        variance = response.var(correction=0).clamp_min(math.exp(LEAST_LOG_VARIANCE))
        level = torch.stack([response.mean(), variance.log()])
        self.level = torch.nn.Parameter(level.tile(members, 1))
        # Anchored ensembling (Pearce et al., AISTATS 2020), of the log-variances alone: factors
        # pulled to draws would predict worse.
        anchored = (torch.arange(2 + RANK) == 1).float()
        self._anchors = [(draws * anchored).flatten(1) for draws in drawn]

    def loss(self, rows: Rows) -> Tensor:
        """Negative log-likelihood, up to a constant, summed over members and rows."""
        users, items, response, weights = rows
        shape = (len(users), len(self.level), -1)
        of_user = functional.embedding(users, self.users).view(shape)
        of_item = functional.embedding(items, self.items).view(shape)
        added = self.level + of_user[..., :2] + of_item[..., :2]
        mean = added[..., 0] + (of_user[..., 2:] * of_item[..., 2:]).sum(dim=-1)
        log_variance = added[..., 1].clamp_min(LEAST_LOG_VARIANCE)
        error = (response[:, None] - mean) ** 2
        return 0.5 * (weights * (error * (-log_variance).exp() + log_variance)).sum()

    def prior(self) -> Tensor:
        """Negative log-density of all parameters but the levels, up to a constant."""
        pairs = zip((self.users, self.items), self._anchors, strict=True)
        distance = torch.stack([(weight - anchor).square().sum() for weight, anchor in pairs])
        return distance.sum() / (2.0 * PRIOR_DEVIATION**2)
