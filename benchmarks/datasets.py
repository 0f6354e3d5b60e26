"""The ``datasets`` command: Table 1 and Figure 2 of the paper, and quality of response models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from kuaisim_gym.config import RESPONSE_MODELS
from kuaisim_gym.data import SOURCES, Dataset, Interactions, Source
from kuaisim_gym.registration import import_named
from kuaisim_gym.simulator.build import assess

from .commands import add_dataset_seed, place
from .formatting import markdown_table, section
from .origin import Origin, is_older
from .paper import ENVS
from .reports.plots import save_figure
from .studies.results import Result, read_result, without_nan
from .studies.study import Study, run_studies

MEASURES = {
    "rate": "rate", "auc": "AUC", "user_auc": "AUC within users", "log_loss": "log-loss",
    "calibration_error": "calibration error", "mse": "MSE",
}  # fmt: skip
FEW_ROWS = 5  # with fewer rows, an item's mean response is mostly chance


@dataclass(frozen=True)
class DatasetStudy(Study):
    """The description of a dataset.

    Attributes:
        origin: Origin of the data.
        models: Response models to assess, on both splits.
    """

    origin: Origin
    models: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"datasets_{self.origin.label}"

    def load(self) -> Dataset:
        """The data, one object for all studies in this process."""
        return self.origin.load()

    def header(self) -> Result:
        dataset = self.load()
        notes = {"split_by": dataset.split_by, "notes": dict(dataset.notes)}
        return {"study": "datasets", "dataset": self.origin.block() | notes}

    def is_complete(self, path: Path, result: Result) -> bool:
        return super().is_complete(path, result) and set(result["quality"]) == set(self.models)

    def make(self, path: Path) -> Result:
        return describe(self.load(), self.models)

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Table 1, the models' quality on held-out rows, and the two readings of Figure 2."""
        return "\n\n".join([_rows_table(results), _quality_table(results), _readings(results)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add(
        "--dataset", metavar="NAME[=PATH]", action="append", default=[],
        help="kuairec=DIR for real data, kuairec for the synthetic world, mypackage.my:NAME "
        "for your own; default: both worlds",
    )  # fmt: skip
    add_dataset_seed(parser)
    add(
        "--models",
        nargs="+",
        default=["factor"],
        choices=RESPONSE_MODELS,
        help="response models to assess",
    )
    add("--out", type=place, required=True, metavar="DIR", help="folder of the JSON and PNG files")


def main(options: argparse.Namespace) -> None:
    """Describes the datasets, prints the tables, and draws Figure 2."""
    models, seed = tuple(options.models), options.dataset_seed
    names = (name.partition("=") for name in options.dataset or ENVS)
    origins = [
        Origin(import_named(name), path if sign else None, 0 if sign else seed)
        for name, sign, path in names
    ]
    studies = [DatasetStudy(origin, models) for origin in origins]
    paths = run_studies(studies, options.out)
    print(DatasetStudy.markdown([read_result(path) for path in paths]))
    print(*paths, sep="\n")
    datasets = [study.load() for study in studies]
    drawn = [dataset for dataset in datasets if dataset.log.has_negatives]
    if drawn:
        print(save_figure(draw(drawn), options.out / "datasets_exposure_and_reward.png"))


def describe(dataset: Dataset, models: Sequence[str]) -> Result:
    """All numbers of the tables: ``rows``, ``rates``, ``exposure_and_reward`` and ``quality``."""
    tables = {
        "train": dataset.log,
        "train, train users alone": dataset.train_log,
        "randomised rows of train users": dataset.randomised,
        "test": dataset.test,
    }
    return {
        "rows": {name: counts(table) for name, table in tables.items() if table is not None},
        "rates": {
            name: {
                behaviour: float(table.behaviour(b).mean(dtype=np.float64))
                for b, behaviour in enumerate(dataset.behaviours)
            }
            for name, table in (("train", dataset.log), ("test", dataset.test))
            if table.has_negatives
        },
        # Of a log of positives, rows tell the reward alone.
        "exposure_and_reward": explained_reward(dataset) if dataset.log.has_negatives else {},
        "quality": {
            model: {split: _measured(dataset, split, model) for split in ("train", "test")}
            for model in models
        },
    }


def explained_reward(dataset: Dataset) -> Result:
    """Figure 2 in numbers: what exposures explain of the total and of the mean reward of items."""
    exposures, reward = frequent_items(dataset)
    shares = {
        "r2_total": r_squared(exposures, reward),
        "r2_mean": r_squared(np.log(exposures), reward / exposures),
    }
    return {"items": len(exposures), **without_nan(shares)}


def _measured(dataset: Dataset, split: str, model: str) -> dict[str, dict[str, float | None]]:
    """Quality by behaviour."""
    return {
        behaviour: without_nan(values)
        for behaviour, values in assess(dataset, split, model).metrics.items()
    }


def counts(table: Interactions) -> dict[str, int]:
    """Users, items and rows of a table."""
    users, items = len(table.distinct_users), np.unique(table.items).size
    return {"users": users, "items": items, "interactions": len(table)}


def item_totals(log: Interactions, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Exposures of each item and the sum of its responses, both (n_items,)."""
    exposures = np.bincount(log.items, minlength=n_items)
    reward = np.bincount(log.items, log.response, minlength=n_items)
    return exposures.astype(np.int64), reward.astype(np.float64)


def frequent_items(dataset: Dataset) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Exposures and summed responses of items with at least ``FEW_ROWS`` rows in the train log."""
    exposures, reward = item_totals(dataset.train_log, len(dataset.item_ids))
    frequent = exposures >= FEW_ROWS
    return exposures[frequent], reward[frequent]


def r_squared(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Share of the variance of y that is linear in x; NaN where either has no variance."""
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def _rows_table(results: list[Result]) -> str:
    rows = []
    for result in results:
        block = result["dataset"]
        source = SOURCES.get(block.get("source", block["name"]), Source)
        for usage, size in result["rows"].items():
            published = " / ".join(source.published.get(usage, ()))
            numbers = (f"{size[key]:,}" for key in ("users", "items", "interactions"))
            rows.append([_name(result), usage, *numbers, published])
    sizes = ["users", "items", "interactions", "published users / items / rows"]
    header = ["dataset", "usage", *sizes]
    return section("Table 1: rows", markdown_table(header, rows, "llrrrl"))


def _quality_table(results: list[Result]) -> str:
    rows = []
    for result in results:
        for model, splits in result["quality"].items():
            for split, behaviours in splits.items():
                for behaviour, values in behaviours.items():
                    if not values:  # positives alone: nothing tells how good the model is
                        continue
                    measured = (values[name] for name in MEASURES)
                    cells = ("" if value is None else f"{value:.4f}" for value in measured)
                    labels = (_name(result), model, split, behaviour)
                    rows.append([*labels, *cells, f"{values['rows']:,.0f}"])
    header = ["dataset", "model", "split", "behaviour", *MEASURES.values(), "rows"]
    title = "Response models on rows that they have not seen"
    return section(title, markdown_table(header, rows, "llllr"))


def _readings(results: list[Result]) -> str:
    lines = []
    for result in results:
        numbers = result["exposure_and_reward"]
        if not numbers:
            lines.append(
                f"* {_name(result)}: its log holds positives alone, and how often an item was "
                "shown is not known."
            )
            continue
        total, mean = (
            "nothing" if numbers[name] is None else f"{numbers[name]:.2f}"
            for name in ("r2_total", "r2_mean")
        )
        lines.append(
            f"* {_name(result)}, {numbers['items']:,} items with at least {FEW_ROWS} rows: "
            f"exposures explain {total} of the variance of an item's TOTAL reward, which grows "
            f"with every exposure, but {mean} of its MEAN reward."
        )
    return section("Figure 2: exposure and reward of the train log's items", "\n".join(lines))


def draw(datasets: Sequence[Dataset]) -> Figure:
    """Figure 2: exposures of items against their total and mean reward."""
    figure = Figure(figsize=(9, 3.6 * len(datasets)), layout="constrained", dpi=120)
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for row, dataset in zip(grid, datasets, strict=True):
        exposures, total = frequent_items(dataset)
        mean = total / exposures
        kind = "SYNTHETIC" if dataset.synthetic else "real"
        for axes, values, label, scale, r2 in (
            (row[0], total, "total", "log", r_squared(exposures, total)),
            (row[1], mean, "mean", "linear", r_squared(np.log(exposures), mean)),
        ):
            axes.scatter(exposures, values, s=4, alpha=0.3)
            axes.set(xscale="log", xlabel="exposures in the train log", yscale=scale)
            axes.set_ylabel(f"{label} reward of the item")
            axes.set_title(f"{dataset.name} ({kind}): $R^2$ = {r2:.2f}")
            axes.grid(alpha=0.3)
    return figure


def _name(result: Result) -> str:
    block = result["dataset"]
    older = "OLDER " if is_older(block) else ""
    kind = f"{older}SYNTHETIC" if block["synthetic"] else "real"
    seed = f", seed {block['seed']}" if block.get("seed") else ""
    return f"{block['name']} ({kind}{seed})"
