from __future__ import annotations

import dataclasses
import itertools
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Before NumPy is loaded: test processes side by side must not each take every core.
for _library in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(_library, "1")


def pytest_configure(config: pytest.Config) -> None:
    """A cache of this test session's own, shared by its worker processes, so nothing is stale."""
    if "KUAISIM_TEST_CACHE" not in os.environ:
        os.environ["KUAISIM_TEST_CACHE"] = tempfile.mkdtemp(prefix="kuaisim-test-")
    os.environ["KUAISIM_CACHE"] = os.environ["KUAISIM_TEST_CACHE"]

    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def spaces_draw_alike(monkeypatch) -> None:
    """Spaces that nobody has seeded draw the same in every run of a test, each its own."""
    from gymnasium.spaces import Space

    seeds = itertools.count()

    def np_random(space: Space[Any]) -> Any:
        if space._np_random is None:
            space.seed(next(seeds))
        return space._np_random

    monkeypatch.setattr(Space, "np_random", property(np_random))


@pytest.fixture(scope="session")
def is_mapped() -> Callable[[Any], bool]:
    """Tells whether an array lies in a file that is mapped into memory."""
    import numpy as np

    def check(array: Any) -> bool:
        while isinstance(array, np.ndarray):
            array = array.base
        return isinstance(array, memoryview) and isinstance(array.obj, mmap.mmap)

    return check


@pytest.fixture(scope="session")
def world():
    """The synthetic world at full size."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairec")


@pytest.fixture(scope="session")
def rand_world():
    """The synthetic KuaiRand world at full size."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairand")


@pytest.fixture(scope="session")
def small():
    """A world of the same making, small enough for tests that learn.

    Popular items are no better than others: balance must be learned, and costs little.
    """
    from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

    config = SyntheticConfig(
        n_users=400,
        n_test_users=80,
        n_items=240,
        events_per_user=40,
        n_categories=6,
        quality=0.70,
        user_level=0.20,
        quality_popularity=-0.17,
        popularity_spread=1.34,
    )
    return synthetic_kuairec(seed=3, config=config)


@pytest.fixture(scope="session")
def small_rand():
    """A KuaiRand world small enough for tests that learn."""
    from kuaisim_gym.data.synthetic import KuaiRandConfig, synthetic_kuairand

    config = KuaiRandConfig(
        n_users=400, n_items=240, n_categories=6, logged_per_user=40, random_per_user=30
    )
    return synthetic_kuairand(seed=3, config=config)


@pytest.fixture(scope="session")
def dsrm(small):
    """DSRM of the small world, barely fitted."""
    from dsrm_agents import fit_dsrm

    return fit_dsrm(small, updates=30, sessions=64, seed=1)


@pytest.fixture(scope="session")
def quick_fit():
    """As ``fit_purifier``, with few sessions, and five updates where there are any."""
    from dsrm_agents import fit_purifier
    from dsrm_agents.dsrm.purifier import recipe_of

    def fit(name, dataset, **options):
        learns = "updates" in recipe_of(name).purifier.options()
        few = {"sessions": 64, **({"updates": 5} if learns else {})}
        return fit_purifier(name, dataset, **few, **options)

    return fit


@pytest.fixture(scope="session")
def small_positive(small):
    """The small world as a log of positives alone, judged by labels of all pairs."""
    from kuaisim_gym.data import LabelLog, PositiveLog

    log, test = small.log.take(small.log.response >= 0.7), small.test
    label = (test.response >= 0.7).astype("uint8")
    return dataclasses.replace(
        small,
        log=PositiveLog(log.users, log.items),
        test=LabelLog(test.users, test.items, label),
        truth=None,
        show_counts=None,
        popularity="positives",
    )


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function that finds a folder of real data, or skips the test."""
    default = Path(__file__).parents[2] / "shared" / "data"
    parent = Path(os.environ.get("KUAISIM_TEST_DATA", default))

    def find(name: str) -> Path:
        folder = parent / name
        if not folder.is_dir():
            pytest.skip(f"no real rows at {folder}; set KUAISIM_TEST_DATA to their parent")
        return folder

    return find


@pytest.fixture(scope="session")
def real_folder(real_data) -> Path:
    """Real KuaiRec rows."""
    return real_data("kuairec_sample")


@pytest.fixture(scope="session")
def like_world(real_data):
    """Log of KuaiRec's likes, judged by complete answers."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairec-like", real_data("kuairec_real"))


@pytest.fixture(scope="session")
def watch_world(real_data):
    """Log of KuaiRec's likes, judged by shares watched."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairec-watch", real_data("kuairec_real"))


@pytest.fixture(scope="session")
def pool_world(real_data):
    """Log of KuaiRand's clicks, judged by each user's own random exposures."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairand-pool", real_data("kuairand_real"))


@pytest.fixture(scope="session")
def click_world(real_data):
    """Log of KuaiRand's clicks, judged on all items."""
    from kuaisim_gym import load_dataset

    return load_dataset("kuairand-click", real_data("kuairand_real"))


@pytest.fixture(scope="session")
def real(real_folder: Path):
    from kuaisim_gym import load_dataset

    return load_dataset("kuairec", real_folder)


@pytest.fixture(scope="session")
def with_watch_ratios():
    """A function that gives a dataset other answers, in the log or in the test table."""
    from kuaisim_gym.data import Dataset, Interactions, WatchLog

    def change(dataset: Dataset, *, log=None, test=None) -> Dataset:
        def changed(table: Interactions, watch) -> Interactions:
            return table if watch is None else WatchLog(table.users, table.items, watch)

        return dataclasses.replace(
            dataset, log=changed(dataset.log, log), test=changed(dataset.test, test), truth=None
        )

    return change


@pytest.fixture
def worlds(small, small_rand, monkeypatch, quick_fit) -> None:
    """Small worlds under the names of the large ones, and fits of a few updates."""
    from functools import partial

    from benchmarks import origin
    from benchmarks.agents import agent, hrl

    known = {"kuairec": small, "kuairand": small_rand}
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: known[name])
    monkeypatch.setattr(
        agent,
        "fit_purifier",
        lambda name, dataset, progress, **options: quick_fit(name, dataset, **options),
    )
    monkeypatch.setattr(hrl, "fit_encoder", partial(hrl.fit_encoder, updates=5))
