"""Tables of the purification study: mean and 95 % interval over seeds."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.purify.study import ORACLE, STUDY, studied
from benchmarks.results import Result, read_parts
from benchmarks.statistics import mean_and_ci95
from kuaisim_gym.errors import DataFormatError

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
    """What a table is about: worlds that differ in their seeds alone."""

    env: str
    real_data: str  # their fingerprint; "" for synthetic worlds, of which every seed has its own
    options: str
    events: int  # 0 for the usual number


Rows = dict[str, dict[int, Result]]  # purifier, seed


def read_studies(folder: Path) -> list[Result]:
    """All results of the study under a folder, in a stable order; other files are left out.

    Raises:
        DataFormatError: There are none, one is damaged, or one is there twice.
    """
    results: list[Result] = []
    seen: dict[tuple[object, ...], Path] = {}
    for path, result in read_parts(folder, STUDY, KEYS):
        fit = (_kind(result), result["purifier"], result["seed"])
        if fit in seen:
            raise DataFormatError(
                f"{seen[fit]} and {path} are the same purifier, world and seed. Give a folder that "
                "holds one of them."
            )
        seen[fit] = path
        results.append(result)
    return results


def markdown(results: list[Result]) -> str:
    """All tables: one for each kind of worlds, and a short one over the numbers of events.

    Args:
        results: Of the study; see :func:`read_studies`.

    Raises:
        DataFormatError: One seed has results of two worlds.
    """
    kinds: dict[Kind, Rows] = defaultdict(lambda: defaultdict(dict))
    order = {name: place for place, name in enumerate(studied())}
    for result in sorted(results, key=lambda one: order.get(one["purifier"], len(order))):
        kinds[_kind(result)][result["purifier"]][result["seed"]] = result
    tables = []
    for kind, rows in sorted(kinds.items()):
        _check_one_world_a_seed(rows)
        if not kind.events:
            tables.append(_table(kind, rows))
    studies: dict[Kind, dict[Kind, Rows]] = defaultdict(dict)
    for kind, rows in sorted(kinds.items()):
        studies[kind._replace(events=0)][kind] = rows
    tables += [_events_table(study) for study in studies.values() if any(k.events for k in study)]
    return "\n".join(tables)


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
            other = worlds.setdefault(seed, result)
            ours, theirs = (one["dataset"]["fingerprint"] for one in (result, other))
            if ours != theirs:
                raise DataFormatError(
                    f"{result['purifier']} and {other['purifier']} of {result['env']}, seed "
                    f"{seed}, are of different worlds, {ours} and {theirs}. Run one of them again."
                )


def _table(kind: Kind, rows: Rows) -> str:
    lines = [
        f"### {_title(kind, rows)}",
        "",
        "| " + " | ".join(["purifier", "seeds", *COLUMNS.values()]) + " |",
        "|---|--:|" + "--:|" * len(COLUMNS),
    ]
    for purifier, runs in rows.items():
        cells = [_cell(rows, purifier, column) for column in COLUMNS]
        lines.append("| " + " | ".join([purifier, str(len(runs)), *cells]) + " |")
    every = [result["metrics"] for runs in rows.values() for result in runs.values()]
    ridge, mlp = (
        np.mean([metrics[name] for metrics in every]) for name in ("leakage_floor", FLOOR_MLP)
    )
    users = ", ".join(f"{n:,.0f}" for n in sorted({metrics["n_users"] for metrics in every}))
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
        _difference(rows, DSRM, other) for other in COMPARED if {DSRM, other} <= rows.keys()
    ]
    return "\n".join([*lines, "", note, "", *differences, ""])


def _difference(rows: Rows, purifier: str, other: str) -> str:
    """One purifier less another in the same worlds: what worlds have in common cancels."""
    seeds = rows[purifier].keys() & rows[other].keys()
    found = []
    for name in PAIRED:
        values = [
            rows[purifier][seed]["metrics"][name] - rows[other][seed]["metrics"][name]
            for seed in sorted(seeds)
            if name in rows[purifier][seed]["metrics"]
        ]
        if values:
            mean, half = mean_and_ci95(values)
            found.append(f"{COLUMNS[name]} {mean:+.3f} ± {half:.3f}")
    return f"* {purifier} less {other}, world by world: {', '.join(found)}."


def _events_table(study: dict[Kind, Rows]) -> str:
    """One study's worlds by how long the logs are; of the usual world what the others have too."""
    kind, rows = next(iter(study.items()))
    lines = [
        f"### {_title(kind._replace(events=0), rows)}, by logged rows of a user",
        "",
        "| rows | purifier | seeds | " + " | ".join(COLUMNS[name] for name in EVENT_COLUMNS) + " |",
        "|--:|---|--:|" + "--:|" * len(EVENT_COLUMNS),
    ]
    shown = {purifier for kind, rows in study.items() if kind.events for purifier in rows}
    for rows in sorted(study.values(), key=_events):
        for purifier in (name for name in rows if name in shown):
            cells = [_cell(rows, purifier, column) for column in EVENT_COLUMNS]
            cells = [f"{_events(rows):.0f}", purifier, str(len(rows[purifier])), *cells]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", "Rows: the mean over users, as measured.", ""])


def _title(kind: Kind, rows: Rows) -> str:
    what = "SYNTHETIC worlds, one a seed"
    if kind.real_data:
        what = f"real rows, {kind.real_data}, the same for all seeds"
    return ", ".join(
        [
            f"{kind.env}, {_dataset(rows)['name']} ({what})",
            *([f"{kind.events} logged rows a user"] if kind.events else []),
            *([kind.options] if kind.options else []),
        ]
    )


def _dataset(rows: Rows) -> dict[str, Any]:
    """Of any of the results; name and split are the same in all."""
    result = next(iter(next(iter(rows.values())).values()))
    return dict(result["dataset"])


def _events(rows: Rows) -> float:
    """Mean logged rows of a user, over the seeds' worlds."""
    by_seed = {
        seed: result["dataset"]["events_per_user"]
        for runs in rows.values()
        for seed, result in runs.items()
    }
    return float(np.mean(list(by_seed.values())))


def _cell(rows: Rows, purifier: str, column: str) -> str:
    """Mean and interval; blank where nothing was measured."""
    values = _values(rows, purifier, column)
    if not values:
        return ""
    digits = _DIGITS.get(column, 3)
    mean, half = mean_and_ci95(values)
    return f"{mean:.{digits}f}" + (f" ± {half:.{digits}f}" if len(values) > 1 else "")


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
    """How far from the identity's cosine to the upper bound's, in one world."""
    cosines = []
    for name in (purifier, "identity", ORACLE):
        result = rows.get(name, {}).get(seed)
        if result is None or "cosine" not in result["metrics"]:
            return None
        cosines.append(result["metrics"]["cosine"])
    own, least, most = cosines
    return None if most == least else float((own - least) / (most - least))
