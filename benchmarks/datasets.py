"""What the data are: Table 1 and Figure 2 of the paper, and how well the response models fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.results import commit, versions
from kuaisim_gym.data import SOURCES, Dataset, Interactions, Source
from kuaisim_gym.data.cache import write_atomically
from kuaisim_gym.simulator.build import assess

MEASURES = {
    "rate": "rate",
    "auc": "AUC",
    "user_auc": "AUC within users",
    "log_loss": "log-loss",
    "calibration_error": "calibration error",
    "mse": "MSE",
}
FEW_ROWS = 5  # an item's mean response over fewer rows is mostly chance


def describe(dataset: Dataset, models: tuple[str, ...]) -> dict[str, Any]:
    """Everything that the tables print, as one JSON object.

    Args:
        dataset: The data.
        models: Response models to assess, on both splits.

    Returns:
        ``study``, ``dataset``, ``rows``, ``exposure_and_reward``, ``quality``, ``versions`` and
        ``commit``.
    """
    log = dataset.train_log
    exposures, reward = item_totals(log, len(dataset.item_ids))
    seen = exposures >= FEW_ROWS
    return {
        "study": "datasets",
        "dataset": {
            "name": dataset.name,
            "synthetic": dataset.synthetic,
            "fingerprint": dataset.fingerprint,
            "split_by": dataset.split_by,
            "notes": dict(dataset.notes),
        },
        "rows": {
            name: counts(table)
            for name, table in (
                ("train", dataset.log),
                ("train, train users alone", log),
                ("randomised rows of train users", dataset.randomised),
                ("test", dataset.test),
            )
            if table is not None
        },
        "rates": {
            name: {
                behaviour: float(table.behaviour(b).mean(dtype=np.float64))
                for b, behaviour in enumerate(dataset.behaviours)
            }
            for name, table in (("train", dataset.log), ("test", dataset.test))
        },
        "exposure_and_reward": {
            "items": int(seen.sum()),
            "r2_total": r_squared(exposures[seen], reward[seen]),
            "r2_mean": r_squared(np.log(exposures[seen]), reward[seen] / exposures[seen]),
        },
        "quality": {
            model: {split: _measured(dataset, split, model) for split in ("train", "test")}
            for model in models
        },
        "versions": versions(),
        "commit": commit(),
    }


def _measured(dataset: Dataset, split: str, model: str) -> dict[str, dict[str, float | None]]:
    """Quality by behaviour; JSON knows no NaN, so what cannot be measured is ``None``."""
    return {
        behaviour: {name: None if np.isnan(value) else value for name, value in values.items()}
        for behaviour, values in assess(dataset, split, model).metrics.items()
    }


def write_description(out: Path, description: dict[str, Any]) -> Path:
    """Writes one description, whole or not at all."""
    world = "synthetic" if description["dataset"]["synthetic"] else "real"
    path = out / f"datasets_{description['dataset']['name']}_{world}.json"
    write_atomically(path, (json.dumps(description, indent=1) + "\n").encode())
    return path


def counts(table: Interactions) -> dict[str, int]:
    """Users, items and rows of a table."""
    users, items = len(table.distinct_users), np.unique(table.items).size
    return {"users": users, "items": items, "interactions": len(table)}


def item_totals(log: Interactions, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Exposures of each item and the sum of its responses, both (n_items,)."""
    exposures = np.bincount(log.items, minlength=n_items)
    return exposures, np.bincount(log.items, log.response, minlength=n_items)


def r_squared(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Share of the variance of y that a line in x explains."""
    if len(x) < 2 or np.std(x) == 0 or np.std(y) == 0:
        return float("nan")
    return float(np.corrcoef(x, y)[0, 1] ** 2)


def markdown(descriptions: list[dict[str, Any]]) -> str:
    """Table 1, the models' quality on held-out rows, and the two readings of Figure 2."""
    lines = [
        "### Table 1: rows",
        "",
        "| dataset | usage | users | items | interactions | published users / items / rows |",
        "|---|---|--:|--:|--:|---|",
    ]
    for one in descriptions:
        source = SOURCES.get(one["dataset"]["name"], Source)
        for usage, size in one["rows"].items():
            published = " / ".join(source.published.get(usage, ()))
            numbers = " | ".join(f"{size[key]:,}" for key in ("users", "items", "interactions"))
            lines.append(f"| {_name(one)} | {usage} | {numbers} | {published} |")
    lines += [
        "",
        "### Response models on rows that they have not seen",
        "",
        "| dataset | model | split | behaviour | " + " | ".join(MEASURES.values()) + " | rows |",
        "|---|---|---|---|" + "--:|" * (len(MEASURES) + 1),
    ]
    for one in descriptions:
        for model, splits in one["quality"].items():
            for split, behaviours in splits.items():
                for behaviour, values in behaviours.items():
                    measured = [values[name] for name in MEASURES]
                    cells = ["" if value is None else f"{value:.4f}" for value in measured]
                    cells = [_name(one), model, split, behaviour, *cells, f"{values['rows']:,.0f}"]
                    lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "### Figure 2: exposure and reward of the train log's items", ""]
    for one in descriptions:
        facts = one["exposure_and_reward"]
        lines.append(
            f"* {_name(one)}, {facts['items']:,} items with at least {FEW_ROWS} rows: exposures "
            f"explain {facts['r2_total']:.2f} of the variance of an item's TOTAL reward, which "
            f"grows with every exposure, but {facts['r2_mean']:.2f} of its MEAN reward."
        )
    return "\n".join(lines)


def plot(datasets: list[Dataset], out: Path) -> Path:
    """Draws Figure 2: an item's exposures against its total and against its mean reward."""
    out.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(9, 3.6 * len(datasets)), layout="constrained")
    grid = figure.subplots(len(datasets), 2, squeeze=False)
    for row, dataset in zip(grid, datasets, strict=True):
        exposures, total = item_totals(dataset.train_log, len(dataset.item_ids))
        seen = exposures >= FEW_ROWS
        exposures, total = exposures[seen], total[seen]
        mean = total / exposures
        kind = "SYNTHETIC" if dataset.synthetic else "real"
        for axes, values, label, r2 in (
            (row[0], total, "total reward", r_squared(exposures, total)),
            (row[1], mean, "mean reward", r_squared(np.log(exposures), mean)),
        ):
            axes.scatter(exposures, values, s=4, alpha=0.3)
            axes.set_xscale("log")
            axes.set_yscale("log" if label == "total reward" else "linear")
            axes.set_xlabel("exposures in the train log")
            axes.set_ylabel(f"{label} of the item")
            axes.set_title(f"{dataset.name} ({kind}): $R^2$ = {r2:.2f}")
            axes.grid(alpha=0.3)
    path = out / "datasets_exposure_and_reward.png"
    figure.savefig(path, dpi=120)
    return path


def _name(description: dict[str, Any]) -> str:
    kind = "SYNTHETIC" if description["dataset"]["synthetic"] else "real"
    return f"{description['dataset']['name']} ({kind})"
