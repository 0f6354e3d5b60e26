"""Tables of the purification study: mean and 95 % interval over seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.formatting import interval, markdown_table, section
from benchmarks.results import Result, read_results
from kuaisim_gym.errors import DataFormatError

STUDY = "purify"
ORACLE = "oracle-regression"
STUDIED = (
    "identity", "linear", "ridge", "mlp", "dae", "vae", "dsrm", "dsrm-literal", "student", ORACLE,
)  # fmt: skip
KEYS = frozenset(
    {"study", "purifier", "env", "seed", "events", "dataset", "options", "metrics", "fit_seconds",
     "versions", "commit"}
)  # fmt: skip
SHARE, SECONDS = "share", "fit_seconds"  # columns that are no metrics
COLUMNS = {
    "leakage_r2": "leakage R² (ridge)",
    "leakage_mlp": "leakage R² (MLP)",
    "cosine": "cosine",
    SHARE: "share of attainable gain",
    "interest_accuracy": "interest accuracy",
    "recall20": "recall@20",
    "recall20_longtail": "tail recall@20",
    "effective_rank": "effective rank",
    "discriminability": "discriminability",
    "cosine_to_input": "cosine to input",
    "response_r2": "response R²",
    SECONDS: "fit s",
}
FLOOR_MLP = "leakage_mlp_floor"
DSRM, COMPARED = "dsrm", ("identity", "linear", "ridge", "mlp")
PAIRED = ("leakage_mlp", "cosine", "interest_accuracy", "recall20_longtail", "discriminability")
EVENT_COLUMNS = ("cosine", "leakage_r2", SHARE)
_DIGITS = {"effective_rank": 1, "response_r2": 4, SECONDS: 0}


class Kind(NamedTuple):
    """The subject of a table: worlds that differ in their seeds alone."""

    env: str
    real_data: str  # their fingerprint; "" for synthetic worlds, of which every seed has its own
    options: str
    events: int  # 0 for the usual number


Rows = dict[str, dict[int, Result]]  # purifier, seed


def read_studies(folder: Path) -> list[Result]:
    """All results of the study under a folder, in a stable order; other files are left out.

    Raises:
        DataFormatError: There are none, one is damaged, or a fit has two files.
    """

    def fit(result: Result) -> Hashable:
        return _kind(result), result["purifier"], result["seed"]

    return read_results(folder, STUDY, KEYS, fit, "purifier")


def markdown(results: list[Result]) -> str:
    """All tables: one for each kind of worlds, and a short one over the numbers of events.

    Raises:
        DataFormatError: One seed has results of two worlds.
    """
    kinds: dict[Kind, Rows] = defaultdict(lambda: defaultdict(dict))
    order = {name: number for number, name in enumerate(STUDIED)}
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
    """Refuses to compare purifiers across worlds."""
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
    cells = [
        [purifier, str(len(runs)), *(_cell(rows, purifier, column) for column in COLUMNS)]
        for purifier, runs in rows.items()
    ]
    metrics = [result["metrics"] for runs in rows.values() for result in runs.values()]
    ridge, mlp = (
        np.mean([values[name] for values in metrics]) for name in ("leakage_floor", FLOOR_MLP)
    )
    users = ", ".join(f"{n:,.0f}" for n in sorted({values["n_users"] for values in metrics}))
    held_out = ""
    if _dataset(rows)["split_by"] == "cell":
        held_out = ", not held out: the data are split by cell, and purifiers were fitted on them"
    note = (
        f"± is a 95 % interval over seeds; {users} test users a seed{held_out}. Leakage of "
        f"shuffled labels is {ridge:.3f} (ridge) and {mlp:.3f} (MLP)."
    )
    if not kind.real_data:
        note += (
            " Share of attainable gain: what of the cosine between the identity and "
            f"{ORACLE}, which reads the truth, a purifier gains."
        )
    differences = [
        _difference(rows, DSRM, control) for control in COMPARED if {DSRM, control} <= rows.keys()
    ]
    table = markdown_table(["purifier", "seeds", *COLUMNS.values()], cells)
    return section(_title(kind, rows), table, note, "\n".join(differences))


def _difference(rows: Rows, purifier: str, control: str) -> str:
    """One purifier less another in the same worlds: what worlds have in common cancels."""
    pairs = [
        (rows[purifier][seed]["metrics"], rows[control][seed]["metrics"])
        for seed in sorted(rows[purifier].keys() & rows[control].keys())
    ]
    differences = {
        COLUMNS[name]: [x[name] - y[name] for x, y in pairs if name in x] for name in PAIRED
    }
    text = ", ".join(
        f"{title} {interval(values, sign='+')}" for title, values in differences.items() if values
    )
    return f"* {purifier} less {control}, world by world: {text}."


def _events_table(worlds: dict[Kind, Rows]) -> str:
    """One study's worlds by the length of the logs; of the usual world the purifiers of all."""
    kind, rows = next(iter(worlds.items()))
    shown = {purifier for kind, rows in worlds.items() if kind.events for purifier in rows}
    cells = [
        [
            f"{_events(rows):.0f}", purifier, str(len(runs)),
            *(_cell(rows, purifier, column) for column in EVENT_COLUMNS),
        ]
        for rows in sorted(worlds.values(), key=_events)
        for purifier, runs in rows.items()
        if purifier in shown
    ]  # fmt: skip
    header = ["rows", "purifier", "seeds", *(COLUMNS[name] for name in EVENT_COLUMNS)]
    return section(
        f"{_title(kind._replace(events=0), rows)}, by logged rows of a user",
        markdown_table(header, cells, "rlr"),
        "Rows: the mean over users, as measured.",
    )


def _title(kind: Kind, rows: Rows) -> str:
    data = "SYNTHETIC worlds, one a seed"
    if kind.real_data:
        data = f"real rows, {kind.real_data}, the same for all seeds"
    events = f"{kind.events} logged rows a user" if kind.events else ""
    title = f"{kind.env}, {_dataset(rows)['name']} ({data})"
    return ", ".join(filter(None, [title, events, kind.options]))


def _dataset(rows: Rows) -> dict[str, Any]:
    """Of any of the results; name and split are the same in all."""
    result = next(iter(next(iter(rows.values())).values()))
    return dict(result["dataset"])


def _events(rows: Rows) -> float:
    """Mean logged rows of a user, over the seeds' worlds."""
    by_seed = {seed: result for runs in rows.values() for seed, result in runs.items()}
    events = [result["dataset"]["events_per_user"] for result in by_seed.values()]
    return float(np.mean(events))


def _cell(rows: Rows, purifier: str, column: str) -> str:
    """Mean and interval; blank where nothing was measured."""
    return interval(_values(rows, purifier, column), _DIGITS.get(column, 3))


def _values(rows: Rows, purifier: str, column: str) -> list[float]:
    """One value a seed, of those seeds that have one."""
    runs = rows[purifier]
    if column == SHARE:
        shares = (_share(rows, purifier, seed) for seed in runs)
        return [share for share in shares if share is not None]
    if column == SECONDS:
        return [result[SECONDS] for result in runs.values()]
    return [result["metrics"][column] for result in runs.values() if column in result["metrics"]]


def _share(rows: Rows, purifier: str, seed: int) -> float | None:
    """Position between the identity's cosine, 0, and the upper bound's, 1, in one world."""
    cosines = []
    for name in (purifier, "identity", ORACLE):
        result = rows.get(name, {}).get(seed)
        if result is None or "cosine" not in result["metrics"]:
            return None
        cosines.append(result["metrics"]["cosine"])
    cosine, least, most = cosines
    return None if most == least else float((cosine - least) / (most - least))
