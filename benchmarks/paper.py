"""The paper's tables: which methods stand in them, what it published, and ours beside that."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path

from benchmarks.results import Result
from benchmarks.statistics import mean_and_ci95
from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import SOURCES

# Names in the paper, in its order, and ours.
METHODS = {
    "A2C": "a2c",
    "TD3": "td3",
    "BCQ": "bcq",
    "MOFIR": "mofir",
    "DORL": "dorl",
    "DNaIR": "dnair",
    "SAC4IR": "sac4ir",
    "FLAT": "flat",
    "HRL": "hrl",
    "HRL+RCE": "hrl+rce",
    "HRL+TCE": "hrl+tce",
    "HRL+BOD": "hrl+bod",
    "DSRM-HRL": "dsrm-hrl",
}
TABLES = {
    2: ("A2C", "TD3", "BCQ", "MOFIR", "DORL", "DNaIR", "SAC4IR", "DSRM-HRL"),
    3: ("FLAT", "HRL", "HRL+RCE", "HRL+TCE", "HRL+BOD", "DSRM-HRL"),
}
DENOISED = ("hrl+ce", "hrl+rce", "hrl+tce", "hrl+bod")  # the first without denoising
# Of each dataset with published figures, the first environment.
ENVS = {
    name: next(env for env, options in ENVIRONMENTS.items() if options["name"] == name)
    for name in dict.fromkeys(options["name"] for options in ENVIRONMENTS.values())
    if SOURCES[name].published
}
MAX_LENS = (30, 50)
SEEDS = (11, 15, 19)
# Table 4: of 20,000 episodes on KuaiRec, T = 30, on hardware that the paper does not name.
TRAINING_SECONDS = {
    "A2C": 7512,
    "DNaIR": 5935,
    "SAC4IR": 6755,
    "HRL": 8463,
    "HRL+RCE": 29919,
    "DSRM-HRL": 15909,
}
_CAPTIONS = {2: "Overall performance", 3: "Ablation"}
_PARTS = ("mean", "std")
_MEASURES = {"len": ("Len", 2), "r_each": ("R_each", 3), "r_cum": ("R_cum", 2), "ad": ("AD", 3)}


def agents_of(table: int) -> tuple[str, ...]:
    """Our names of the methods in Table 2 or 3."""
    return tuple(METHODS[method] for method in TABLES[table])


def published(dataset: str, max_len: int) -> dict[str, dict[str, str]]:
    """What the paper's tables say of a dataset and a length: by method, then by metric.

    Args:
        dataset: ``"kuairec"`` or ``"kuairand"``.
        max_len: T.

    Returns:
        Mean ± standard deviation, as printed; empty for what is not in the paper.
    """
    return {
        row["method"]: {
            name: " ± ".join(f"{float(row[f'{name}_{part}']):.{digits}f}" for part in _PARTS)
            for name, (_, digits) in _MEASURES.items()
        }
        for row in _rows()
        if row["dataset"].lower().removesuffix("-pure") == dataset
        and int(row["max_len"]) == max_len
    }


@lru_cache(maxsize=1)
def _rows() -> list[dict[str, str]]:
    path = Path(__file__).parent / "published.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def markdown(results: list[Result], tables: Iterable[int] = tuple(TABLES)) -> str:
    """Some of the tables, and Table 4: ours on the synthetic worlds beside what was published.

    Args:
        results: Of runs, whatever else is among them.
        tables: Keys of ``TABLES``; what the denoising losses leave out and Table 4 always follow.

    Returns:
        Markdown of what there are runs of; empty where there are none.
    """
    runs = _synthetic(results)
    parts = [*(_comparison(table, runs) for table in tables), _left_out(runs), _seconds(runs)]
    return "\n\n".join(part for part in parts if part)


def _synthetic(results: list[Result]) -> dict[tuple[str, int, str], list[Result]]:
    """Runs on the synthetic worlds by environment, length and agent."""
    runs: dict[tuple[str, int, str], list[Result]] = {}
    for one in results:
        if one["dataset"]["synthetic"]:
            runs.setdefault((one["env"], one["max_len"], one["agent"]), []).append(one)
    return runs


def _comparison(table: int, runs: Mapping[tuple[str, int, str], list[Result]]) -> str:
    if not _methods_run(runs, TABLES[table]):
        return ""
    labels = [label for label, _ in _MEASURES.values()]
    columns = [part for label in labels for part in (label, "published")]
    lines = [
        f"### Table {table}: {_CAPTIONS[table]}, SYNTHETIC worlds beside the published figures",
        "",
        "| world | method | " + " | ".join(columns) + " |",
        "|---|---|" + "--:|" * len(columns),
    ]
    for dataset, env in ENVS.items():
        for max_len in MAX_LENS:
            theirs = published(dataset, max_len)
            for method in TABLES[table]:
                cells = [f"{dataset}, T = {max_len}", method]
                ours = runs.get((env, max_len, METHODS[method]), [])
                for name, (_, digits) in _MEASURES.items():
                    cells += [_interval(ours, name, digits), theirs[method][name]]
                lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([
        *lines,
        "",
        "Ours: mean ± 95 % interval over seeds, on synthetic worlds that are calibrated to the "
        "data. Published: mean ± standard deviation, in the paper's own simulator, where R has "
        "another scale. Rows compare within a column, not across.",
    ])  # fmt: skip


def _methods_run(
    runs: Mapping[tuple[str, int, str], list[Result]], methods: Iterable[str]
) -> list[str]:
    """Those of some methods that have a run in one of the paper's worlds."""
    worlds = [(env, max_len) for env in ENVS.values() for max_len in MAX_LENS]
    return [name for name in methods if any((*world, METHODS[name]) in runs for world in worlds)]


def _interval(runs: list[Result], name: str, digits: int) -> str:
    if not runs:
        return ""
    mean, half = mean_and_ci95([one["metrics"][name] for one in runs])
    return f"{mean:.{digits}f} ± {half:.{digits}f}"


def _left_out(runs: Mapping[tuple[str, int, str], list[Result]]) -> str:
    """What each denoising loss takes from the positives that it learns from, by group."""
    rows = []
    header = [
        "### What denoising losses leave out of the positive answers, SYNTHETIC worlds",
        "",
        "| world | agent | AUC | all | popular | long tail |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for dataset, env in ENVS.items():
        for agent in DENOISED:
            # The encoder knows nothing of T; a seed has the same one for all lengths.
            reports = {
                one["seed"]: one["train"]["encoder"]
                for max_len in MAX_LENS
                for one in runs.get((env, max_len, agent), [])
            }
            if not reports:
                continue
            cells = [dataset, agent]
            for name in ("auc", "left_out", "left_out_popular", "left_out_longtail"):
                mean, half = mean_and_ci95([one[name] for one in reports.values()])
                cells.append(f"{mean:.3f} ± {half:.3f}")
            rows.append("| " + " | ".join(cells) + " |")
    if not rows:
        return ""
    return "\n".join([
        *header,
        *rows,
        "",
        "Mean ± 95 % interval over seeds. T-CE: the share dropped, of the last quarter of the "
        "updates; R-CE: one less the mean weight; BOD, whose weights have no scale of their own: "
        "how far a group's mean weight is below that of all. AUC: next answers of held-out users; "
        "BOD learns to rank against items never met instead.",
    ])  # fmt: skip


def _seconds(runs: Mapping[tuple[str, int, str], list[Result]]) -> str:
    worlds = [(env, max_len) for env in ENVS.values() for max_len in MAX_LENS]
    titles = [f"{env.removesuffix('-Fair-v0')}, T = {max_len}" for env, max_len in worlds]
    lines = [
        "### Table 4: training seconds, SYNTHETIC worlds beside the published figures",
        "",
        "| method | " + " | ".join([*titles, "published (KuaiRec, T = 30)"]) + " |",
        "|---|" + "--:|" * (len(titles) + 1),
    ]
    methods = _methods_run(runs, METHODS)
    if not methods:
        return ""
    for method in methods:
        cells = [method]
        for env, max_len in worlds:
            trains = [one["train"] for one in runs.get((env, max_len, METHODS[method]), [])]
            cells.append(_mean_seconds(trains))
        known = TRAINING_SECONDS.get(method)
        lines.append("| " + " | ".join([*cells, "" if known is None else f"{known:,}"]) + " |")
    return "\n".join([
        *lines,
        "",
        "Ours: mean over seeds of the processor seconds of one process on one core, what is fitted "
        "before training included; with *, wall-clock seconds, with other processes beside it.",
    ])  # fmt: skip


def _mean_seconds(trains: list[Result]) -> str:
    """The mean over seeds; results of older code know the clock on the wall alone."""
    if not trains:
        return ""
    known = [one.get("processor_seconds") for one in trains]
    taken, mark = (known, "") if None not in known else ([one["seconds"] for one in trains], "*")
    return f"{sum(taken) / len(taken):,.0f}{mark}"
