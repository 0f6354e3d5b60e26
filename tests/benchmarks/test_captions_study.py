"""What captions are worth: the study, its committed results and the page that shows them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from benchmarks.captions import FIELDS, CaptionStudy, errors
from benchmarks.studies.results import read_result
from kuaisim_gym.data import LabelLog
from kuaisim_gym.data.dataset import Features

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_committed_results() -> None:
    files = sorted((ROOT / "benchmarks" / "results" / "captions").glob("*.json"))
    assert len(files) == 3
    table = CaptionStudy.markdown([read_result(file) for file in files])
    assert table in (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def test_a_feature_that_tells_all_is_found_and_a_random_one_is_not(small_positive) -> None:
    """New items of a world in which the first half of them is liked always, the others never."""
    users, n_items = small_positive.test_users, small_positive.n_items
    test = LabelLog(
        np.repeat(users, n_items),
        np.tile(np.arange(n_items, dtype=np.int32), len(users)),
        np.tile((np.arange(n_items) < n_items // 2).astype(np.uint8), len(users)),
    )
    total = len(small_positive.item_ids)
    codes = {
        "category": (1 + (np.arange(total) < n_items // 2)).astype(np.int32)[:, None],
        "random": np.random.default_rng(0).integers(1, 3, (total, 1)).astype(np.int32),
    }
    features = Features(codes, dict.fromkeys(codes, ("", "no", "yes")))
    dataset = dataclasses.replace(small_positive, test=test, item_features=features)
    told, random, none = (errors(dataset, names, 1) for names in (("category",), ("random",), ()))
    assert told["cold_rank"] > 0.8 > abs(random["cold_rank"]) and none["cold_rank"] == 0
    assert told["cold_loss"] < 0.5 * none["cold_loss"]
    assert none["cold_loss"] == pytest.approx(np.log(2), abs=0.05)
    assert told["rows"] == none["rows"]


def test_differences_are_paired_by_seed() -> None:
    results = [
        {"errors": {name: dict.fromkeys(("warm_loss", "cold_loss", "cold_rank"), seed + number)
                    for number, name in enumerate(FIELDS)}}
        for seed in (0.0, 5.0, 100.0)
    ]  # fmt: skip
    table = CaptionStudy.markdown(results).splitlines()
    assert table[2].split("|")[2:4] == [" 35.0000 ", " -1.0000 ± 0.0000 "]
