"""Values of the paper."""

from __future__ import annotations

from .. import paper
from .evidence import Evidence
from .language import choice, value


@value("published", "METRIC METHOD DATASET T")
def _published(evidence: Evidence, measure: str, method: str, dataset: str, max_len: int) -> str:
    """The paper's mean ± standard deviation."""
    figures = paper.published(dataset, max_len)
    if method not in figures or measure not in figures[method]:
        worlds = "kuairec or kuairand, T = 30 or 50"
        raise ValueError(f"a published figure: len, r_each, r_cum or ad of {worlds}")
    return figures[method][measure]


@value("published-seconds", "METHOD")
def _published_seconds(evidence: Evidence, method: str) -> str:
    """The paper's training seconds."""
    return f"{paper.TRAINING_SECONDS[choice(paper.TRAINING_SECONDS)(method, evidence)]:,}"


@value("published-times", "METHOD METHOD")
def _published_times(evidence: Evidence, method: str, control: str) -> str:
    """The ratio of two methods' training seconds in the paper."""
    read = choice(paper.TRAINING_SECONDS)
    first, second = (paper.TRAINING_SECONDS[read(name, evidence)] for name in (method, control))
    return f"{first / second:.1f}"
