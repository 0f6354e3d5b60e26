"""The ``captions`` command: what KuaiRec's captions and categories say of answers.

The response model of the fully observed answers is fitted with and without them, and asked for
cells that it has not seen: of videos that it knows, and of videos that nobody has answered.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from kuaisim_gym.config import check_whole
from kuaisim_gym.data import Dataset, Interactions, load_dataset
from kuaisim_gym.data.captions import LEVELS, TEXT
from kuaisim_gym.data.dataset import Features
from kuaisim_gym.simulator.fit import fit_factor_model
from kuaisim_gym.simulator.response import FactorModel

from .commands import place
from .formatting import interval, markdown_table
from .origin import data_block
from .paper import SEEDS
from .studies.results import Result, read_result
from .studies.study import Study, run_studies

STUDY = "captions"
FIELDS = {  # features of the videos that a model is given
    "none": (),
    "categories": ("category",),
    "three levels": LEVELS,
    "text": (TEXT,),
    "all": ("category", *LEVELS, TEXT),
}
USUAL = "categories"  # what item_categories.csv says, in all worlds of KuaiRec
CELLS = 0.1  # of all, that a model is fitted to or judged by
COLD, HELD_OUT = 0.2, 0.2  # of the videos, and of the cells of the others
MEASURES = {
    "warm_loss": "log-loss, known videos",
    "cold_loss": "log-loss, new videos",
    "cold_rank": "rank correlation, new videos",
}


@cache
def captioned(path: str) -> Dataset:
    """The likes of KuaiRec with captions, one object for all studies in this process."""
    return load_dataset("kuairec-like", path, captions=True)


@dataclass(frozen=True)
class CaptionStudy(Study):
    """Errors of response models that know some features of the videos, or none.

    Attributes:
        path: Folder of the files of ``"kuairec-like"``, captions among them.
        seed: Of the cells and the videos that are held out, the same for all features.
    """

    path: str
    seed: int

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, 0)

    @property
    def name(self) -> str:
        return f"captions_seed{self.seed}"

    def header(self) -> Result:
        return {"study": STUDY, "dataset": data_block(captioned(self.path), 0), "seed": self.seed}

    def make(self, path: Path) -> Result:
        dataset = captioned(self.path)
        return {
            "errors": {name: errors(dataset, fields, self.seed) for name, fields in FIELDS.items()}
        }

    @staticmethod
    def markdown(results: list[Result]) -> str:
        """Means over seeds of each measure, and its difference from the usual features."""
        rows = []
        for fields in FIELDS:
            cells = []
            for measure in MEASURES:
                values, usual = (
                    np.array([result["errors"][name][measure] for result in results])
                    for name in (fields, USUAL)
                )
                difference = "" if fields == USUAL else interval((values - usual).tolist(), 4)
                cells += [f"{values.mean():.4f}", difference]
            rows.append([fields, *cells])
        header = [title for name in MEASURES.values() for title in (name, f"less {USUAL}'")]
        return markdown_table(["features of videos", *header], rows)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--dataset", required=True, metavar="DIR", help="files of kuairec-like, with captions")
    add("--seeds", type=int, nargs="+", default=SEEDS, help="of what is held out")
    add("--out", type=place, required=True, metavar="DIR", help="folder of the results")


def main(options: argparse.Namespace) -> None:
    """Fits the models that have no result yet, and prints the table."""
    studies = [CaptionStudy(options.dataset, seed) for seed in options.seeds]
    paths = run_studies(studies, options.out)
    print(CaptionStudy.markdown([read_result(path) for path in paths]))


def errors(dataset: Dataset, fields: tuple[str, ...], seed: int) -> Result:
    """Fits a model of the test answers to some cells, and judges it by others.

    Args:
        dataset: With fully observed answers of its test users.
        fields: Item features that the model knows.
        seed: Of what is held out.

    Returns:
        ``warm_loss`` and ``cold_loss``, the mean log-loss of held-out cells of known and of new
        videos; ``cold_rank``, Spearman's correlation, over new videos, of the predicted and the
        true rate of likes; and ``rows``, to which the model was fitted.
    """
    rng = np.random.default_rng(seed)
    test, size = dataset.test, (dataset.n_users, len(dataset.item_ids))
    cold = rng.random(dataset.n_items) < COLD
    cells = test.take(rng.random(len(test)) < CELLS)
    is_new, is_held_out = cold[cells.items], rng.random(len(cells)) < HELD_OUT
    train = cells.take(~is_new & ~is_held_out)
    all_features = dataset.item_features
    features = Features(
        {f: all_features.codes[f] for f in fields}, {f: all_features.values[f] for f in fields}
    )
    model = fit_factor_model(train, train, dataset.user_features, features, size)
    predicted = [
        float(model.probability(dataset.test_users, item).mean())
        for item in np.flatnonzero(cold)[:, None]
    ]
    positives, answers = (
        np.bincount(test.items, weights, dataset.n_items)[cold] for weights in (test.response, None)
    )
    chance = not np.ptp(predicted)
    return {
        "rows": len(train),
        "warm_loss": _log_loss(model, cells.take(~is_new & is_held_out)),
        "cold_loss": _log_loss(model, cells.take(is_new)),
        "cold_rank": 0.0 if chance else float(spearmanr(predicted, positives / answers)[0]),
    }


def _log_loss(model: FactorModel, rows: Interactions) -> float:
    probability = np.clip(model.probability(rows.users, rows.items), 1e-6, 1 - 1e-6)
    answer = rows.response
    likelihood = answer * np.log(probability) + (1 - answer) * np.log1p(-probability)
    return float(-likelihood.mean(dtype=np.float64))
