"""Values inside the prose of pages, made from results.

A page holds ``<!-- = EXPRESSION -->value<!-- / -->``, and :func:`filled` writes the value anew. An
expression is the name of a value and its arguments, parted by blanks::

    len dsrm-hrl kuairec 30          # mean ± 95 % interval over seeds
    gain len dsrm-hrl hrl kuairec 30 # the same of a difference, seed by seed
    study labels rows.filter.gauc dataset.name=kuairand-pool    # a study beside the runs

:data:`VALUES` holds all values. Only today's worlds count; a value without its runs is
:data:`NOT_MADE`.
"""

from __future__ import annotations

from . import published, runs, studies  # they register their values
from .comparisons import (
    BEST,
    OURS,
    VERDICTS,
    best_published,
    differences,
    is_better,
    share,
    sign_of,
)
from .evidence import Evidence
from .language import NOT_MADE, VALUES, filled, value, value_of

__all__ = [
    "BEST", "NOT_MADE", "OURS", "VALUES", "VERDICTS", "Evidence", "best_published", "differences",
    "filled", "is_better", "published", "runs", "share", "sign_of", "studies", "value", "value_of",
]  # fmt: skip
