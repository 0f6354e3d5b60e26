"""The synthetic worlds hold what real rows say, by the same statistics of as many rows.

Each fact is computed on the real rows where they are at hand, which verifies the figure of the
table, and on three worlds of each kind, which must lie within the tolerance beside it. Run as a
program, the module prints the tables of ``docs/synthetic_worlds.md``.

Real KuaiRec: positives (a watch ratio of at least 2) of the big log, all such cells of 971 users of
the fully observed matrix, and the watch ratios of 73 of each one's cells. Real KuaiRand: clicks of
the standard log, as their republisher filtered them, and the random log of 7 of 10 users.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.sparse.linalg import svds
from scipy.stats import spearmanr

from kuaisim_gym.data import BehaviourLog, Dataset, Interactions, WatchLog
from kuaisim_gym.data.synthetic import (
    KuaiRandConfig,
    SyntheticConfig,
    synthetic_kuairand,
    synthetic_kuairec,
)

SEEDS = (0, 1, 2)
PAGE = Path(__file__).parents[2] / "docs" / "synthetic_worlds.md"
USERS = 971  # of the real matrix
CELLS = 73  # whose watch ratio is at hand, of each of them

# Fact: figure of the real rows, tolerance of a synthetic world.
KUAIREC = {
    "positives and rate, Spearman": (0.718, 0.05),
    "positives and response, Spearman": (0.631, 0.05),
    "rate, top fifth by positives": (0.106, 0.012),
    "rate, other videos": (0.032, 0.007),
    "response, top fifth by positives": (0.845, 0.02),
    "response, other videos": (0.661, 0.02),
    "response, fifth 1": (0.43, 0.05),
    "response, fifth 2": (0.66, 0.04),
    "response, fifth 3": (0.756, 0.03),
    "response, fifth 4": (0.793, 0.03),
    "positives a user, quantile 0.05": (19, 5),
    "positives a user, quantile 0.25": (45, 13),
    "positives a user, quantile 0.5": (98, 25),
    "positives a user, quantile 0.75": (222.5, 25),
    "positives a user, quantile 0.95": (460, 60),
    "variance of positives explained by effects": (0.128, 0.015),
    "variance of positives explained by effects and rank 8": (0.165, 0.015),
    "watch ratio, quantile 0.01": (0.017, 0.001),
    "watch ratio, quantile 0.05": (0.097, 0.004),
    "watch ratio, quantile 0.1": (0.182, 0.006),
    "watch ratio, quantile 0.25": (0.467, 0.014),
    "watch ratio, quantile 0.5": (0.779, 0.02),
    "watch ratio, quantile 0.75": (1.137, 0.02),
    "watch ratio, quantile 0.9": (1.586, 0.03),
    "watch ratio, quantile 0.95": (1.994, 0.06),
    "watch ratio, quantile 0.99": (3.670, 0.2),
    "response, mean": (0.697, 0.01),
    "response, s.d.": (0.314, 0.01),
    "response of a user, s.d. of means": (0.079, 0.008),
    "response of a video, mean of means": (0.700, 0.015),
    "response of a video, s.d. of means": (0.214, 0.025),
    "response of a video, quantile 0.25 of means": (0.620, 0.05),
    "response of a video, quantile 0.5 of means": (0.759, 0.03),
    "response of a video, quantile 0.75 of means": (0.851, 0.03),
    "variance of responses explained by effects": (0.51, 0.04),
    "variance of responses that rank 8 adds": (0.0, 0.005),
}
KUAIRAND = {
    "clicks and random rate, Spearman": (0.402, 0.05),
    "clicks on the top fifth": (0.738, 0.03),
    "random rate, top fifth by clicks": (0.293, 0.025),
    "random rate, other videos": (0.198, 0.015),
    "random rate": (0.216, 0.015),
}


def top_fifth(counts: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The fifth of all positions with the largest counts."""
    top = np.zeros(len(counts), dtype=bool)
    top[np.argsort(-counts, kind="stable")[: round(len(counts) / 5)]] = True
    return top


def thinned(counts: NDArray[np.integer], rows: int) -> NDArray[np.integer]:
    """How many rows of each video are left when only so many are drawn of all."""
    rng = np.random.default_rng(0)
    return rng.multivariate_hypergeometric(counts, rows, method="marginals")


def first_rows(keys: NDArray[np.integer], n: int, rows: int) -> NDArray[np.intp]:
    """(m, rows) positions of the first rows of each of n keys that has so many."""
    order = np.argsort(keys, kind="stable")
    counts = np.bincount(keys, minlength=n)
    starts = (np.cumsum(counts) - counts)[counts >= rows]
    return order[starts[:, None] + np.arange(rows)]


def explained(liked: NDArray[np.bool_]) -> tuple[float, float]:
    """Share of the variance of held-out answers: user and video effects, and rank 8 added."""
    held_out = np.random.default_rng(0).random(liked.shape) < 0.1
    seen = ~held_out
    away = liked - liked[seen].mean()
    user, item = np.zeros((len(away), 1)), np.zeros((1, away.shape[1]))
    for _ in range(2):
        user = np.where(seen, away - item, 0).sum(1, keepdims=True) / seen.sum(1, keepdims=True)
        item = np.where(seen, away - user, 0).sum(0, keepdims=True) / seen.sum(0, keepdims=True)
    effects = away - user - item
    left, scale, right = svds(np.where(seen, effects, 0).astype(np.float32), k=8, random_state=0)
    ranked = effects - (left * scale) @ right
    total = np.sum(away[held_out] ** 2)
    errors = [float(np.sum(error[held_out] ** 2) / total) for error in (effects, ranked)]
    return 1 - errors[0], 1 - errors[1]


def predict(
    fit: Interactions, check: Interactions, sizes: tuple[int, int], ridge: float | None
) -> np.ndarray:
    """Responses by alternating ridge regressions: effects, then factors unless ridge is None."""
    response = fit.response.astype(np.float64)
    mean, pulls = response.mean(), (9.0, 1.2)
    fit_sides, check_sides = (fit.users, fit.items), (check.users, check.items)
    effects = [np.zeros(size) for size in sizes]
    for _ in range(6):
        for side in (1, 0):
            rest = response - mean - effects[1 - side][fit_sides[1 - side]]
            rows = np.bincount(fit_sides[side], minlength=sizes[side])
            effects[side] = np.bincount(fit_sides[side], rest, sizes[side]) / (rows + pulls[side])
    predicted = mean + sum(effects[side][check_sides[side]] for side in (0, 1))
    if ridge is None:
        return predicted
    rest = response - mean - sum(effects[side][fit_sides[side]] for side in (0, 1))
    rank = 8
    factors = [np.zeros((sizes[0], rank)), np.zeros((sizes[1], rank))]
    factors[1] = np.random.default_rng(0).standard_normal((sizes[1], rank)) / np.sqrt(rank)
    for _ in range(6):
        for side in (0, 1):
            others = factors[1 - side][fit_sides[1 - side]]
            gram = np.tile(ridge * np.eye(rank), (sizes[side], 1, 1))
            np.add.at(gram, fit_sides[side], others[:, :, None] * others[:, None, :])
            target = np.zeros((sizes[side], rank))
            np.add.at(target, fit_sides[side], others * rest[:, None])
            factors[side] = np.linalg.solve(gram, target[..., None])[..., 0]
    products = factors[0][check.users] * factors[1][check.items]
    return predicted + products.sum(axis=1)


def explained_responses(cells: Interactions, sizes: tuple[int, int]) -> tuple[float, float]:
    """Share of the variance of held-out responses: by effects, and how much rank 8 adds."""
    held_out = np.random.default_rng(1).random(len(cells)) < 0.12
    fit, check = cells.take(~held_out), cells.take(held_out)
    errors = [np.mean((predict(fit, check, sizes, ridge) - check.response) ** 2)
              for ridge in (None, 8.0)]  # fmt: skip
    variance = check.response.var()
    return 1 - errors[0] / variance, (errors[0] - errors[1]) / variance


def watch_facts(
    positives: NDArray[np.integer], liked: NDArray[np.bool_], cells: WatchLog
) -> dict[str, float]:
    """Facts of KuaiRec.

    Args:
        positives: (n_items,) positives of each video in the log.
        liked: (n_users, n_items), all answers: whether the watch ratio is at least 2.
        cells: Watch ratios of cells of the same matrix, in random order.
    """
    # The real log has fifteen times the synthetic positives, and a smaller sampling error.
    counts, rate, response = thinned(positives, 40_000), liked.mean(axis=0), cells.response
    top = top_fifth(counts)
    fifth = np.empty(len(counts), dtype=int)
    fifth[np.argsort(counts, kind="stable")] = 1 + np.arange(len(counts)) * 5 // len(counts)
    of_video = first_rows(cells.items, len(counts), 20)
    of_user = first_rows(cells.users, len(liked), CELLS)
    video_means = response[of_video].mean(axis=1)
    effects, ranked = explained(liked)
    response_effects, response_rank = explained_responses(cells.take(of_user.ravel()), liked.shape)
    a_user = liked.sum(axis=1)
    quantiles = {
        "positives a user, quantile {}": (a_user, (0.05, 0.25, 0.5, 0.75, 0.95)),
        "watch ratio, quantile {}": (
            cells.watch_ratio, (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99)
        ),
        "response of a video, quantile {} of means": (video_means, (0.25, 0.5, 0.75)),
    }  # fmt: skip
    facts = {
        "positives and rate, Spearman": spearmanr(counts, rate).statistic,
        "positives and response, Spearman": spearmanr(
            counts[cells.items[of_video[:, 0]]], video_means
        ).statistic,
        "rate, top fifth by positives": rate[top].mean(),
        "rate, other videos": rate[~top].mean(),
        "response, top fifth by positives": response[top[cells.items]].mean(),
        "response, other videos": response[~top[cells.items]].mean(),
        "variance of positives explained by effects": effects,
        "variance of positives explained by effects and rank 8": ranked,
        "response, mean": response.mean(),
        "response, s.d.": response.std(),
        "response of a user, s.d. of means": response[of_user].mean(axis=1).std(),
        "response of a video, mean of means": video_means.mean(),
        "response of a video, s.d. of means": video_means.std(),
        "variance of responses explained by effects": response_effects,
        "variance of responses that rank 8 adds": response_rank,
    }
    for number in range(1, 5):
        facts[f"response, fifth {number}"] = response[fifth[cells.items] == number].mean()
    for name, (values, levels) in quantiles.items():
        for level in levels:
            facts[name.format(level)] = np.quantile(values, level)
    return {name: float(value) for name, value in facts.items()}


def filtered(
    users: NDArray[np.integer], items: NDArray[np.integer], least: int = 6
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Rows of users and of items with so many rows each, as those of the real file are."""
    while True:
        enough = (np.bincount(users)[users] >= least) & (np.bincount(items)[items] >= least)
        if enough.all():
            return users, items
        users, items = users[enough], items[enough]


def click_facts(
    clicks: tuple[NDArray[np.integer], NDArray[np.integer]],
    random: tuple[NDArray[np.integer], NDArray[np.integer]],
    clicked: NDArray[np.bool_],
) -> dict[str, float]:
    """Facts of KuaiRand.

    Args:
        clicks: Users and videos of the standard log's clicks.
        random: Users and videos of the random log.
        clicked: (n,) whether these were clicked.
    """
    users, items = filtered(*clicks)
    n = 1 + max(items.max(), random[1].max())
    counts = np.bincount(items, minlength=n)
    among = np.isin(random[0], users) & (counts[random[1]] > 0)
    shown, clicked = random[1][among], clicked[among]
    videos = np.flatnonzero(counts)
    top = np.zeros(n, dtype=bool)
    top[videos[top_fifth(counts[videos])]] = True
    exposures = np.bincount(shown, minlength=n)
    both = (counts > 0) & (exposures > 0)
    rate = np.bincount(shown, clicked, n)[both] / exposures[both]
    facts = {
        "clicks and random rate, Spearman": spearmanr(counts[both], rate).statistic,
        "clicks on the top fifth": counts[top].sum() / counts.sum(),
        "random rate, top fifth by clicks": clicked[top[shown]].mean(),
        "random rate, other videos": clicked[~top[shown]].mean(),
        "random rate": clicked.mean(),
    }
    return {name: float(value) for name, value in facts.items()}


def facts_of_kuairec(world: Dataset) -> dict[str, float]:
    assert isinstance(world.test, WatchLog) and isinstance(world.train_log, WatchLog)
    is_positive = world.train_log.watch_ratio >= 2
    positives = np.bincount(world.train_log.items[is_positive], minlength=world.n_items)
    test = world.test.take(world.test.users < USERS)
    test = test.take(np.random.default_rng(0).permutation(len(test)))
    liked = np.zeros((USERS, world.n_items), dtype=bool)
    for table in (test, world.log.take(world.log.users < USERS)):
        assert isinstance(table, WatchLog)
        liked[table.users, table.items] = table.watch_ratio >= 2
    return watch_facts(positives, liked, test)


def facts_of_kuairand(world: Dataset) -> dict[str, float]:
    assert isinstance(world.log, BehaviourLog)
    is_click = world.log.behaviour(0) > 0
    here = np.random.default_rng(0).random(world.n_users) < 0.7
    tables = [table.take(here[table.users]) for table in (world.test, world.randomised)]
    users, items = (np.concatenate([getattr(table, column) for table in tables])
                    for column in ("users", "items"))  # fmt: skip
    clicked = np.concatenate([table.behaviour(0) for table in tables]) > 0
    return click_facts(
        (world.log.users[is_click], world.log.items[is_click]), (users, items), clicked
    )


@pytest.fixture(scope="module", params=SEEDS)
def kuairec(request: pytest.FixtureRequest) -> tuple[int, dict[str, float]]:
    seed = request.param
    world = synthetic_kuairec(seed) if seed else request.getfixturevalue("world")
    return seed, facts_of_kuairec(world)


@pytest.fixture(scope="module", params=SEEDS)
def kuairand(request: pytest.FixtureRequest) -> tuple[int, dict[str, float]]:
    seed = request.param
    world = synthetic_kuairand(seed) if seed else request.getfixturevalue("rand_world")
    return seed, facts_of_kuairand(world)


def misses(facts: dict[str, float], table: dict[str, tuple[float, float]]) -> dict[str, object]:
    """Facts that lie further from the real figure than the table allows."""
    assert facts.keys() == table.keys()
    return {
        name: (facts[name], *limits)
        for name, limits in table.items()
        if not abs(facts[name] - limits[0]) <= limits[1]
    }


def shown(value: float) -> str:
    """The figure as the page of the documentation prints it."""
    return f"{value:.4g}" if value >= 1 else f"{round(value, 3) + 0.0:.3f}"


def page() -> dict[str, list[str]]:
    """Cells after the first, by fact, of the tables of the documentation."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row[1:] for row in cells if row[0] in KUAIREC | KUAIRAND}


def check_page(seed: int, facts: dict[str, float]) -> None:
    for name, value in facts.items():
        printed = float(page()[name][2 + SEEDS.index(seed)])
        assert printed == pytest.approx(value, rel=0.01, abs=0.002), name


def test_kuairec(kuairec: tuple[int, dict[str, float]]) -> None:
    seed, facts = kuairec
    assert not misses(facts, KUAIREC)
    check_page(seed, facts)


def test_kuairand(kuairand: tuple[int, dict[str, float]]) -> None:
    seed, facts = kuairand
    assert not misses(facts, KUAIRAND)
    check_page(seed, facts)


def test_the_page_prints_the_figures_and_tolerances_of_all_facts() -> None:
    assert page().keys() == (KUAIREC | KUAIRAND).keys()
    for name, limits in (KUAIREC | KUAIRAND).items():
        assert page()[name][:2] == [f"{number:g}" for number in limits], name


def test_the_page_prints_the_chosen_parameters() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| (\S+) \|", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == 5
    for name, *printed in rows:
        configs = (SyntheticConfig(), KuaiRandConfig())
        values = [str(getattr(config, name, "-")).removeprefix("0") for config in configs]
        assert values == printed, name


def real_columns(folder: Path, file: str, *columns: str) -> list[np.ndarray]:
    if not (folder / file).is_file():
        pytest.skip(f"no real rows at {folder / file}")
    table = pd.read_csv(folder / file, usecols=columns)
    return [table[column].to_numpy() for column in columns]


def test_figures_of_real_kuairec(real_folder: Path) -> None:
    folder, pair = real_folder.parent / "kuairec_real", ("user_id", "video_id")
    positive = real_columns(folder, "big_matrix_watch_ratio_ge_2.csv", "video_id")[0]
    user, video = real_columns(folder, "small_matrix_watch_ratio_ge_2.csv", *pair)
    *cell, watch_ratio = real_columns(folder, "small_matrix_rows.csv", *pair, "watch_ratio")
    users, videos = np.union1d(user, cell[0]), np.union1d(video, cell[1])
    assert len(users) == USERS
    positive = np.searchsorted(videos, positive[np.isin(positive, videos)])
    liked = np.zeros((len(users), len(videos)), dtype=bool)
    liked[np.searchsorted(users, user), np.searchsorted(videos, video)] = True
    order = np.random.default_rng(0).permutation(len(watch_ratio))
    cells = WatchLog(
        np.searchsorted(users, cell[0])[order].astype(np.int32),
        np.searchsorted(videos, cell[1])[order].astype(np.int32),
        watch_ratio[order].astype(np.float32),
    )
    facts = watch_facts(np.bincount(positive, minlength=len(videos)), liked, cells)
    assert not misses(facts, {name: (figure, 0.02 * figure + 0.002)
                              for name, (figure, _) in KUAIREC.items()})  # fmt: skip


def test_figures_of_real_kuairand(real_folder: Path) -> None:
    folder, pair = real_folder.parent / "kuairand_real", ("user_id", "video_id")
    clicks = real_columns(folder, "standard_log_clicks_remapped.csv", *pair)
    users, items, clicked = real_columns(
        folder, "random_log_clicks_remapped.csv", *pair, "is_click"
    )
    assert len(filtered(*clicks)[0]) == len(clicks[0])  # the real file is filtered already
    facts = click_facts((clicks[0], clicks[1]), (users, items), clicked > 0)
    assert not misses(facts, {name: (figure, 0.005) for name, (figure, _) in KUAIRAND.items()})


if __name__ == "__main__":  # prints the tables of the page
    for limits, make, measure in (
        (KUAIREC, synthetic_kuairec, facts_of_kuairec),
        (KUAIRAND, synthetic_kuairand, facts_of_kuairand),
    ):
        worlds = [measure(make(seed)) for seed in SEEDS]
        for fact, (figure, tolerance) in limits.items():
            cells = " | ".join(shown(facts[fact]) for facts in worlds)
            sys.stdout.write(f"| {fact} | {figure:g} | {tolerance:g} | {cells} |\n")
