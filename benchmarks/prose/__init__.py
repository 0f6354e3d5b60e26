"""Values inside the prose of pages, made from results.

A page holds ``<!-- = EXPRESSION -->value<!-- / -->``, and :func:`filled` writes the value anew. An
expression is the name of a value and its arguments, parted by blanks::

    len dsrm-hrl kuairec 30          # mean ± 95 % interval over seeds
    gain len dsrm-hrl hrl kuairec 30 # the same of a difference, seed by seed
    study labels rows.filter.gauc dataset.name=kuairand-pool    # a study beside the runs

:data:`VALUES` holds all values. Only today's worlds count; a value without its runs
reads *not made*, one of agents that were trained or judged for other numbers of sessions *not
comparable*.
"""

from __future__ import annotations

from . import published, runs, studies  # they register their values
from .evidence import Evidence
from .language import VALUES, filled, value, value_of

__all__ = [
    "VALUES", "Evidence", "filled", "published", "runs", "studies", "value", "value_of",
]  # fmt: skip
