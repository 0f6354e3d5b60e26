"""Tables of the purification study: mean and 95 % interval over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dsrm_agents.dsrm.purifier import PURIFIERS
from kuaisim_gym.errors import DataFormatError

from ..formatting import interval, markdown_table, section
from ..origin import is_older
from ..studies.results import Result, read_results

STUDY = "purify"
ORACLE = "oracle-regression"
KEYS = frozenset(
    {"study", "purifier", "env", "seed", "events", "dataset", "options", "metrics", "fit_seconds",
     "versions", "commit"}
)  # fmt: skip
SECONDS = "fit_seconds"  # a column besides the metrics
COLUMNS = {
    "leakage_r2": "leakage R² (ridge)",
    "leakage_mlp": "leakage R² (MLP)",
    "cosine": "cosine",
    "interest_accuracy": "interest accuracy",
    "recall20": "recall@20",
    "recall20_longtail": "tail recall@20",
    "effective_rank": "effective rank",
    "discriminability": "discriminability",
    "cosine_to_raw": "cosine to raw",
    "response_r2": "response R²",
    SECONDS: "fit s",
}
SUBJECT, CONTROLS = "dsrm", ("identity", "centre", "linear", "ridge", "mlp")
WITH_EVENTS = (*CONTROLS, SUBJECT, ORACLE)  # studied in worlds with other numbers of events
PAIRED = ("leakage_mlp", "cosine", "interest_accuracy", "recall20_longtail", "discriminability")
EVENT_COLUMNS = ("cosine", "leakage_r2")
_DIGITS = {"effective_rank": 1, "response_r2": 4, SECONDS: 0}


class Kind(NamedTuple):
    """The worlds of a table, which differ only in their seeds."""

    env: str
    real_data: str  # the fingerprint; "" for synthetic worlds, which differ by seed
    options: str
    events: int  # 0 for the default number


Rows = dict[str, dict[int, Result]]  # purifier, seed


def studied() -> tuple[str, ...]:
    """Names of all registered purifiers of informative states, the one told the truth last."""
    return (*(name for name in PURIFIERS if name not in ("blank", ORACLE)), ORACLE)


def read_studies(folder: Path) -> list[Result]:
    """Results of the study in a folder and its subfolders, in a stable order.

    Raises:
        DataFormatError: There are none, one is damaged, or a fit has two files.
    """
    return read_results(
        folder, STUDY, KEYS, lambda fit: (_kind(fit), fit["purifier"], fit["seed"]), "purifier"
    )


def markdown(results: list[Result]) -> str:
    """All tables: one for each kind of worlds, and a short one by number of events.

    Raises:
        DataFormatError: One seed has results of two worlds.
    """
    kinds: dict[Kind, Rows] = defaultdict(lambda: defaultdict(dict))
    order = {name: number for number, name in enumerate(studied())}
    for result in sorted(results, key=lambda fit: order.get(fit["purifier"], len(order))):
        kinds[_kind(result)][result["purifier"]][result["seed"]] = result
    tables = []
    by_events: dict[Kind, dict[Kind, Rows]] = defaultdict(dict)
    for kind, rows in sorted(kinds.items()):
        _check_one_world_a_seed(rows)
        by_events[kind._replace(events=0)][kind] = rows
        if not kind.events:
            tables.append(_table(kind, rows))
    tables += [
        _events_table(worlds) for worlds in by_events.values() if any(k.events for k in worlds)
    ]
    return "\n\n".join(tables) + "\n"


def _kind(result: Result) -> Kind:
    dataset, options = result["dataset"], result["options"]
    return Kind(
        result["env"],
        "" if dataset["synthetic"] else dataset["fingerprint"],
        ", ".join(f"{name}={options[name]}" for name in sorted(options)),
        result["events"] or 0,
    )


def _check_one_world_a_seed(rows: Rows) -> None:
    """Raises :class:`DataFormatError` for purifiers of different worlds under one seed."""
    worlds: dict[int, Result] = {}
    for runs in rows.values():
        for seed, result in runs.items():
            first = worlds.setdefault(seed, result)
            digests = [fit["dataset"]["fingerprint"] for fit in (result, first)]
            if digests[0] != digests[1]:
                raise DataFormatError(
                    f"{result['purifier']} and {first['purifier']} of {result['env']}, seed "
                    f"{seed}, are of different worlds, {' and '.join(digests)}. Run one of them "
                    "again."
                )


def _table(kind: Kind, rows: Rows) -> str:
    metrics = [result["metrics"] for runs in rows.values() for result in runs.values()]
    ridge, mlp = (
        np.mean([values[name] for values in metrics])
        for name in ("leakage_floor", "leakage_mlp_floor")
    )
    users = ", ".join(f"{n:,.0f}" for n in sorted({values["n_users"] for values in metrics}))
    held_out = ""
    if _dataset(rows)["split_by"] == "cell":
        held_out = ", not held out: the data are split by cell, and purifiers were fitted on them"
    note = (
        f"± is a 95 % interval over seeds; {users} test users a seed{held_out}. Leakage of "
        f"shuffled labels is {ridge:.3f} (ridge) and {mlp:.3f} (MLP)."
    )
    differences = [
        _difference(rows, control) for control in CONTROLS if {SUBJECT, control} <= rows.keys()
    ]
    cells = [[purifier, *_cells(rows, purifier, COLUMNS)] for purifier in rows]
    table = markdown_table(["purifier", "seeds", *COLUMNS.values()], cells)
    return section(_title(kind, rows), table, note, "\n".join(differences))


def _difference(rows: Rows, control: str) -> str:
    """DSRM less a control in the same worlds: properties of the worlds cancel out."""
    subjects, controls = rows[SUBJECT], rows[control]
    pairs = [
        (subjects[seed]["metrics"], controls[seed]["metrics"])
        for seed in sorted(subjects.keys() & controls.keys())
    ]
    differences = {
        COLUMNS[name]: [x[name] - y[name] for x, y in pairs if name in x] for name in PAIRED
    }
    text = ", ".join(
        f"{title} {interval(values, sign='+')}" for title, values in differences.items() if values
    )
    return f"* {SUBJECT} less {control}, world by world: {text}."


def _events_table(worlds: dict[Kind, Rows]) -> str:
    """Worlds of one study by the length of their logs, with the purifiers of all lengths."""
    kind, rows = next(iter(worlds.items()))
    shown = {purifier for kind, rows in worlds.items() if kind.events for purifier in rows}
    cells = [
        [f"{_events(rows):.0f}", purifier, *_cells(rows, purifier, EVENT_COLUMNS)]
        for rows in sorted(worlds.values(), key=_events)
        for purifier in rows
        if purifier in shown
    ]
    header = ["rows", "purifier", "seeds", *(COLUMNS[name] for name in EVENT_COLUMNS)]
    return section(
        f"{_title(kind._replace(events=0), rows)}, by logged rows of a user",
        markdown_table(header, cells, "rlr"),
        "Rows: the mean over users, as measured.",
    )


def _title(kind: Kind, rows: Rows) -> str:
    older = "OLDER " if is_older(_dataset(rows)) else ""
    data = f"{older}SYNTHETIC worlds, one a seed"
    if kind.real_data:
        data = f"real rows, {kind.real_data}, the same for all seeds"
    events = f"{kind.events} logged rows a user" if kind.events else ""
    title = f"{kind.env}, {_dataset(rows)['name']} ({data})"
    return ", ".join(filter(None, [title, events, kind.options]))


def _dataset(rows: Rows) -> dict[str, Any]:
    """The ``dataset`` block of any result; name and split are the same in all."""
    result = next(iter(next(iter(rows.values())).values()))
    return dict(result["dataset"])


def _events(rows: Rows) -> float:
    """Mean logged rows per user, over the worlds of all seeds."""
    by_seed = {seed: result for runs in rows.values() for seed, result in runs.items()}
    events = [result["dataset"]["events_per_user"] for result in by_seed.values()]
    return float(np.mean(events))


def _cells(rows: Rows, purifier: str, columns: Iterable[str]) -> list[str]:
    """The number of seeds, then mean and interval of columns; empty without measurements."""
    values = ((_values(rows, purifier, name), _DIGITS.get(name, 3)) for name in columns)
    return [str(len(rows[purifier])), *starmap(interval, values)]


def _values(rows: Rows, purifier: str, column: str) -> list[float]:
    """Values of a column, one per seed, where it has been measured."""
    runs = rows[purifier]
    if column == SECONDS:
        return [result[SECONDS] for result in runs.values()]
    return [result["metrics"][column] for result in runs.values() if column in result["metrics"]]
