"""Further terms on purified states: direction, independence of a label, identity of a user."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, normalize

from kuaisim_gym.errors import ConfigError

CONSTANT = 1e-8  # mean square of a centred kernel below which nothing varies, rounding apart


def cosine_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean of ``1 - cos`` between rows.

    Args:
        predicted: (B, d).
        target: (B, d).

    Returns:
        Scalar in [0, 2].
    """
    return (1.0 - cosine_similarity(predicted, target, dim=1)).mean()


def hsic(states: Tensor, label: Tensor) -> Tensor:
    """Normalised Hilbert-Schmidt independence criterion of states and a label.

    HSIC (Gretton et al. 2005) of RBF kernels, divided by the root of both self-HSICs as CKA is
    (Kornblith et al. 2019), so that neither rescaling nor shrinking the states changes it. Its
    estimator is the unbiased one (Song et al. 2007): the original's is far above 0 for independent
    states of many dimensions, and would be lowered by spreading the states out.

    Args:
        states: (B, d), B at least 4.
        label: (B,) or (B, m), what the states should not tell.

    Returns:
        Scalar in [0, 1]: 0 means independent; also 0, with a zero gradient, where either is
        constant or the estimate negative.

    Raises:
        ConfigError: Fewer than 4 rows, which the estimator needs.
    """
    if len(states) < 4:
        raise ConfigError(f"HSIC needs at least 4 rows, got {len(states)}.")
    ours = centred_kernel(states)
    theirs = centred_kernel(label.reshape(len(label), -1).to(states.dtype))
    own = ours.square().mean().clamp_min(CONSTANT) * theirs.square().mean().clamp_min(CONSTANT)
    return ((ours * theirs).mean() / own.sqrt()).clamp(0.0, 1.0)


def centred_kernel(x: Tensor) -> Tensor:
    """RBF kernel of the median heuristic, U-centred (Szekely and Rizzo 2014).

    Products of U-centred kernels are the unbiased estimator of HSIC, and an inner product.

    Args:
        x: (B, d), B at least 3.

    Returns:
        (B, B) whose diagonal and whose row and column sums are 0.
    """
    n = len(x)
    x = x - x.mean(dim=0)
    norms = x.square().sum(dim=1)
    distances = (norms[:, None] + norms - 2.0 * x @ x.T).clamp_min(0.0)
    # Half of all pairs may be ties, of a label with few values: their median would be 0.
    width = torch.maximum(distances.median(), 1e-3 * distances.mean()).clamp_min(1e-12).detach()
    off_diagonal = 1.0 - torch.eye(n, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-distances / width) * off_diagonal
    rows = kernel.sum(dim=1) / (n - 2)
    total = kernel.sum() / ((n - 1) * (n - 2))
    return (kernel - rows - rows[:, None] + total) * off_diagonal


def info_nce(
    anchors: Tensor, positives: Tensor, users: Tensor | None = None, temperature: float = 0.1
) -> Tensor:
    """Contrastive loss that keeps users apart (van den Oord, Li and Vinyals 2018).

    Args:
        anchors: (B, d) states.
        positives: (B, d) states of the same users from another part of their histories; the other
            rows are negatives.
        users: (B,) int64, whose states they are: rows of the same user are no negatives of each
            other. ``None`` where all are different.
        temperature: Of the cosines; above 0.

    Returns:
        Scalar of at least 0; ``log B`` where states tell nothing of their users.
    """
    cosines = normalize(anchors, dim=1) @ normalize(positives, dim=1).T
    rows = torch.arange(len(anchors), device=anchors.device)
    if users is not None:
        same = (users[:, None] == users) & (rows[:, None] != rows)
        cosines = cosines.masked_fill(same, -torch.inf)
    return cross_entropy(cosines / temperature, rows)


class Adversary(nn.Module):
    """Predicts a label from states that learn to keep it from being predicted (Ganin 2015).

    Prediction is measured by squared correlation. States would beat a squared error by having the
    label predicted wrongly, with its sign turned, and so would still tell it; no correlation is
    the least they can get here, and the best they can do.

    Args:
        dim: d, of states.
        label_dim: m, of labels.
        hidden: Width of the network.
        strength: What the states' gradient is multiplied by when it is reversed.
    """

    def __init__(
        self, dim: int, label_dim: int = 1, *, hidden: int = 64, strength: float = 1.0
    ) -> None:
        super().__init__()
        self.strength = strength
        self.predict = nn.Sequential(
            nn.Linear(dim, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, label_dim),
        )

    def forward(self, states: Tensor, label: Tensor) -> Tensor:
        """Loss whose minimisation trains the network to predict and the states to prevent it.

        Args:
            states: (B, d).
            label: (B,) or (B, m), in any units.

        Returns:
            Scalar in [0, 1], the share of the labels' variance left unexplained; its gradient
            with respect to the states is reversed.
        """
        # The states' value, with -strength times their gradient.
        turned = (1.0 + self.strength) * states.detach() - self.strength * states
        predicted = self.predict(turned)
        label = label.reshape(predicted.shape)
        correlation = cosine_similarity(
            predicted - predicted.mean(dim=0), label - label.mean(dim=0), dim=0
        )
        return 1.0 - correlation.square().mean()
