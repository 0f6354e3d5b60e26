"""The paper's tables: methods, published figures, and figures of this benchmark."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.data import SOURCES

from .agents import AGENTS
from .formatting import TitledTable, interval
from .origin import FIRST_VERSION
from .studies.results import Result

_CAPTIONS = {2: "Overall performance", 3: "Ablation"}
_AGENTS = [agent for agent in AGENTS.values() if agent.tables]
# Names of agents by the paper's names, in its order.
METHODS = {agent.label: agent.name for agent in sorted(_AGENTS, key=lambda agent: agent.tables[-1])}
TABLES = {
    table: tuple(agent.label for agent in _AGENTS if table in agent.tables) for table in _CAPTIONS
}
DENOISED = tuple(agent.name for agent in _AGENTS if agent.report == "encoder")
# The first environment of each dataset with published figures.
ENVS = {
    name: next(env for env, options in ENVIRONMENTS.items() if options["name"] == name)
    for name in dict.fromkeys(options["name"] for options in ENVIRONMENTS.values())
    if SOURCES[name].published
}
MAX_LENS = (30, 50)
SEEDS = (11, 15, 19)
# Table 4: 20,000 episodes on KuaiRec, T = 30, on hardware that the paper does not name.
TRAINING_SECONDS = {
    "A2C": 7512, "DNaIR": 5935, "SAC4IR": 6755, "HRL": 8463, "HRL+RCE": 29919, "DSRM-HRL": 15909,
}  # fmt: skip
WORLDS = tuple(product(ENVS.values(), MAX_LENS))
_MEASURES = {"len": ("Len", 2), "r_each": ("R_each", 3), "r_cum": ("R_cum", 2), "ad": ("AD", 3)}

Runs = dict[tuple[str, int, str], list[Result]]  # by environment, length and agent


def agents_of(table: int) -> tuple[str, ...]:
    """Names of the agents in Table 2 or 3."""
    return tuple(METHODS[method] for method in TABLES[table])


def published(dataset: str, max_len: int) -> dict[str, dict[str, str]]:
    """Published figures for a dataset and a session length, by method and metric.

    Args:
        dataset: ``"kuairec"`` or ``"kuairand"``.
        max_len: T.

    Returns:
        Mean ± standard deviation, as printed; empty for a world that is not in the paper.
    """
    return {
        row["method"]: {
            name: " ± ".join(f"{float(row[f'{name}_{of}']):.{digits}f}" for of in ("mean", "std"))
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
    """Markdown of :func:`comparisons`."""
    return "\n\n".join(table.markdown() for table in comparisons(results, tables))


def comparisons(
    results: list[Result], tables: Iterable[int] = tuple(TABLES)
) -> Iterator[TitledTable]:
    """Tables of synthetic worlds next to published figures, without tables that have no runs.

    Args:
        results: Results of runs.
        tables: Keys of ``TABLES``; the table of the denoising losses and Table 4 always follow.
    """
    runs: Runs = {}
    # One world for each environment: agents were tuned on seed 0.
    worlds = [
        result
        for result in results
        if result["env"] in ENVS.values()
        and result["dataset"]["synthetic"]
        and not result["dataset"].get("seed")
    ]
    newest = {env: max(_version(run) for run in worlds if run["env"] == env)
              for env in {run["env"] for run in worlds}}  # fmt: skip
    for result in worlds:
        if _version(result) == newest[result["env"]]:
            key = result["env"], result["max_len"], result["agent"]
            runs.setdefault(key, []).append(result)
    present = {env: SOURCES[name].version for name, env in ENVS.items()}
    is_older = any(version < present[env] for env, version in newest.items())
    kind = f"{'OLDER ' if is_older else ''}SYNTHETIC worlds"
    made = [*(_comparison(table, runs, kind) for table in tables), _left_out(runs, kind)]
    yield from (table for table in [*made, _seconds(runs, kind)] if table.rows)


def _version(result: Result) -> int:
    """The version of the data; 0 of data from files."""
    block = result["dataset"]
    return int(block.get("version", FIRST_VERSION)) if block["synthetic"] else 0


def _comparison(table: int, runs: Runs, kind: str) -> TitledTable:
    """One of the paper's tables; without rows where none of its methods has a run."""
    rows = []
    is_made = bool(_methods_run(runs, TABLES[table]))
    for (dataset, env), max_len in product(ENVS.items() if is_made else (), MAX_LENS):
        reference = published(dataset, max_len)
        for method in TABLES[table]:
            cells = [f"{dataset}, T = {max_len}", method]
            results = runs.get((env, max_len, METHODS[method]), [])
            for name, (_, digits) in _MEASURES.items():
                values = [run["metrics"][name] for run in results]
                cells += [interval(values, digits), reference[method][name]]
            rows.append(cells)
    columns = [column for label, _ in _MEASURES.values() for column in (label, "published")]
    agents = [AGENTS[METHODS[method]] for method in TABLES[table]]
    sources = [f"{agent.label} ({agent.reference})" for agent in agents]
    note = (
        "Ours: mean ± 95 % interval over seeds, on synthetic worlds that are calibrated to the "
        "data. Published: mean ± standard deviation, in the paper's own simulator, where R has "
        f"another scale. Rows compare within a column, not across. Methods: {', '.join(sources)}."
    )
    title = f"Table {table}: {_CAPTIONS[table]}, {kind} beside the published figures"
    return TitledTable(title, ["world", "method", *columns], rows, [note], "llr")


def _methods_run(runs: Runs, methods: Iterable[str]) -> list[str]:
    """Methods that have a run in one of the paper's worlds."""
    return [name for name in methods if any((*world, METHODS[name]) in runs for world in WORLDS)]


def _left_out(runs: Runs, kind: str) -> TitledTable:
    """Shares of the positive responses that denoising losses leave out, by group."""
    rows = []
    for (dataset, env), agent in product(ENVS.items(), DENOISED):
        # The encoder does not depend on T: a seed has the same encoder for all lengths.
        reports = {
            run["seed"]: run["train"]["encoder"]
            for max_len in MAX_LENS
            for run in runs.get((env, max_len, agent), [])
        }
        if reports:
            names = ("auc", "left_out", "left_out_popular", "left_out_longtail")
            values = ([report[name] for report in reports.values()] for name in names)
            rows.append([dataset, agent, *map(interval, values)])
    note = (
        "Mean ± 95 % interval over seeds. T-CE: the share dropped, of the last quarter of the "
        "updates; R-CE: one less the mean weight; BOD, whose weights have no scale of their own: "
        "how far a group's mean weight is below that of all. AUC: next answers of held-out users; "
        "BOD learns to rank against items never met instead."
    )
    title = f"What denoising losses leave out of the positive answers, {kind}"
    header = ["world", "agent", "AUC", "all", "popular", "long tail"]
    return TitledTable(title, header, rows, [note], "llr")


def _seconds(runs: Runs, kind: str) -> TitledTable:
    rows = []
    for method in _methods_run(runs, METHODS):
        trains = (runs.get((*world, METHODS[method]), []) for world in WORLDS)
        seconds = TRAINING_SECONDS.get(method)
        rows.append([method, *map(mean_seconds, trains), f"{seconds:,}" if seconds else ""])
    titles = [f"{env.removesuffix('-Fair-v0')}, T = {max_len}" for env, max_len in WORLDS]
    note = (
        "Ours: mean over seeds of the processor seconds of one process on one core, what is fitted "
        "before training included; with *, wall-clock seconds, with other processes beside it."
    )
    title = f"Table 4: training seconds, {kind} beside the published figures"
    header = ["method", *titles, "published (KuaiRec, T = 30)"]
    return TitledTable(title, header, rows, [note])


def mean_seconds(runs: list[Result]) -> str:
    """Mean training seconds over seeds, empty without runs; elapsed ones, of older code, with *."""
    if not runs:
        return ""
    mark = "" if all("processor_seconds" in run["train"] for run in runs) else "*"
    seconds = [run["train"]["seconds" if mark else "processor_seconds"] for run in runs]
    return f"{sum(seconds) / len(seconds):,.0f}{mark}"
