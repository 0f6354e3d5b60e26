"""Estimators of slates: how an item's weight depends on the slate it stands in.

All weigh the K answers of a slate; they differ in what they let an answer depend on. The whole
slate (IPS) assumes nothing and has the largest weights; the cascade (RIPS) lets an answer depend on
the items above; the item-position model (IIPS) on the item alone, and has the smallest.
"""

from __future__ import annotations

import numpy as np

from dsrm_agents.ope.estimators import Columns, FloatArray
from kuaisim_gym.config import check_choice

MODELS = ("slate", "cascade", "position")


def item_weights(log_ratio: FloatArray, model: str) -> FloatArray:
    """Weights of a slate's answers.

    Args:
        log_ratio: (..., K) log-probabilities of each item given the slate's earlier ones, the
            evaluated policy's less the logging one's.
        model: ``"slate"``: an answer may depend on the whole slate (IPS); ``"cascade"``: on the
            items up to its own (RIPS, McInerney et al., KDD 2020); ``"position"``: on its item
            alone (IIPS, Li et al., KDD 2018). The last needs marginal probabilities of item and
            place. Where places draw independently they are those given the earlier items; where
            items are drawn without replacement from many, nearly so.

    Returns:
        (..., K) float64.
    """
    check_choice("model", model, MODELS)
    if model == "slate":
        log_ratio = np.broadcast_to(log_ratio.sum(axis=-1, keepdims=True), log_ratio.shape)
    elif model == "cascade":
        log_ratio = np.cumsum(log_ratio, axis=-1)
    return np.asarray(np.exp(log_ratio))


def slate_ips(log_ratio: FloatArray, answers: FloatArray, model: str) -> Columns:
    """IPS, RIPS or IIPS of the sum of a slate's answers, both arguments (n, K)."""
    return Columns((item_weights(log_ratio, model) * answers).sum(axis=1, keepdims=True))


def slate_snips(log_ratio: FloatArray, answers: FloatArray, model: str) -> Columns:
    """The same, the weights of each place divided by their mean."""
    weights, k = item_weights(log_ratio, model), answers.shape[1]
    return Columns(
        np.concatenate([weights, weights * answers], axis=1),
        lambda means: (means[..., k:] / means[..., :k]).sum(axis=-1, keepdims=True),
    )


def pseudo_inverse(present_e: FloatArray, present_b: FloatArray, rewards: FloatArray) -> Columns:
    """The pseudo-inverse estimator of a slate's reward (Swaminathan et al., NeurIPS 2017).

    It lets a reward be any sum over places of what item and place are worth, without seeing the
    answers: the weight is ``1 - K + sum_k p_e / p_b``, which is exact for logging policies that
    draw their places independently.

    Args:
        present_e: (n, K) marginal probabilities of each item at its place, the evaluated policy's.
        present_b: The same of the logging policy.
        rewards: (n,).
    """
    k = present_b.shape[1]
    weight = 1.0 - k + (present_e / present_b).sum(axis=1)
    return Columns((weight * rewards)[:, None])


def cascade_doubly_robust(
    log_ratio: FloatArray, answers: FloatArray, predicted: FloatArray, expected: FloatArray
) -> Columns:
    """Cascade-DR (Kiyohara et al., WSDM 2022).

    Args:
        log_ratio: (n, K), as of :func:`item_weights`.
        answers: (n, K).
        predicted: (n, K) by a model, the sum of the answers from a place on, given the items up to
            it.
        expected: (n, K) the same given the items above it alone, in expectation over the evaluated
            policy's choice.
    """
    weights = item_weights(log_ratio, "cascade")
    before = np.concatenate([np.ones((len(weights), 1)), weights[:, :-1]], axis=1)
    rows = weights * (answers - predicted) + before * expected
    return Columns(rows.sum(axis=1, keepdims=True))
