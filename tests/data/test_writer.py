from __future__ import annotations

import csv
import dataclasses
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data import BehaviourLog, Dataset, Features, WatchLog, write_csv
from kuaisim_gym.data.kuairand import RANDOM, STANDARD
from kuaisim_gym.data.source import Writer, find_source
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.data.synthetic import KuaiRandConfig, synthetic_kuairand
from kuaisim_gym.errors import ConfigError, StorageError


def assert_same(one: Dataset, other: Dataset) -> None:
    """Everything but the flag, the truth and the notes."""
    assert (one.name, one.n_items) == (other.name, other.n_items)
    np.testing.assert_array_equal(one.user_ids, other.user_ids)
    np.testing.assert_array_equal(one.item_ids, other.item_ids)
    for part in ("log", "test", "randomised"):
        left, right = getattr(one, part), getattr(other, part)
        assert type(left) is type(right), part
        if left is not None:
            for name, column in left.columns.items():
                assert column.dtype == right.columns[name].dtype
                np.testing.assert_array_equal(column, right.columns[name], err_msg=f"{part} {name}")
    for part in ("user_features", "item_features"):
        left, right = getattr(one, part), getattr(other, part)
        assert left.codes.keys() == right.codes.keys(), part
        assert dict(left.values) == dict(right.values)
        for name, codes in left.codes.items():
            assert codes.dtype == right.codes[name].dtype
            np.testing.assert_array_equal(codes, right.codes[name], err_msg=name)
        assert left.numbers.keys() == right.numbers.keys(), part
        for name, numbers in left.numbers.items():
            np.testing.assert_array_equal(numbers, right.numbers[name], err_msg=name)
    for part in ("show_counts", "friends"):
        left, right = getattr(one, part), getattr(other, part)
        assert (left is None) == (right is None), part
        if left is not None:
            np.testing.assert_array_equal(left, right)


def grouped(rng: np.random.Generator, users: np.ndarray, n: int) -> np.ndarray:
    """n rows' users, each of them at least once, ascending."""
    return np.sort(np.concatenate([users, rng.choice(users, n - len(users))])).astype(np.int32)


def features(rng: np.random.Generator, n: int, **values: tuple[str, ...]) -> Features:
    """Random codes, each value in use, some missing."""
    codes = {
        name: rng.permutation(np.arange(n) % len(known)).astype(np.int32)[:, None]
        for name, known in values.items()
    }
    return Features(codes, values, {})


def small_kuairec() -> Dataset:
    rng = np.random.default_rng(5)
    n_users, n_items, n_all = 30, 12, 20
    cells = rng.permutation(n_users * n_all)
    user, item = cells // n_all, cells % n_all
    in_test = (user >= 20) & (item < n_items)
    log, test = cells[~in_test][:300], cells[in_test]
    watch = rng.lognormal(size=len(cells)).astype(np.float32)
    watch[:6] = [0, np.finfo(np.float32).max, np.finfo(np.float32).tiny, 1e-45, 573.5, 1 / 3]

    def rows(some: np.ndarray) -> WatchLog:
        order = np.argsort(some // n_all, kind="stable")
        some = some[order]
        return WatchLog(
            (some // n_all).astype(np.int32),
            (some % n_all).astype(np.int32),
            watch[: len(some)].copy(),
        )

    degree = ("", "30day_retention", 'full, "odd" one', "é")
    users = features(rng, n_users, user_active_degree=degree, onehot_feat4=("", "2.0", "10.0"))
    items = Features(
        {"category": np.array([[1, 3], [2, 0], [0, 0], [3, 2]] * 5, np.int32)},
        {"category": ("", "2", "9", "27")},
    )
    numbers = {"fans_user_num": rng.integers(0, 9, n_users).astype(np.float64)}
    numbers["fans_user_num"][3] = np.nan
    return Dataset(
        name="kuairec",
        synthetic=True,
        user_ids=np.sort(rng.choice(10**9, n_users, replace=False)),
        item_ids=np.concatenate([np.arange(n_items) * 3, np.arange(n_all - n_items) * 3 + 1]),
        n_items=n_items,
        log=rows(log),
        test=rows(test),
        user_features=dataclasses.replace(users, numbers=numbers),
        item_features=items,
        show_counts=rng.integers(0, 2**40, n_all),
        friends=np.array([[0, 3], [0, 29], [7, 0]], np.int32),
    )


def small_kuairand() -> Dataset:
    rng = np.random.default_rng(6)
    n_users, n_items, n_all = 40, 15, 18
    user_ids = np.sort(rng.choice(2**40, n_users, replace=False))
    logged = np.arange(n_users - 1)  # the last is in the user file alone
    side = is_test_user(user_ids)[logged]

    def rows(users: np.ndarray, n: int, n_items: int) -> BehaviourLog:
        items = np.concatenate([np.arange(n_items), rng.integers(0, n_items, n)])[:n]
        return BehaviourLog(
            grouped(rng, users, n),
            rng.permutation(items).astype(np.int32),
            rng.integers(0, 128, n).astype(np.uint8),
        )

    tags = np.zeros((n_all, 2), np.int32)
    tags[:n_items] = [[1, 2], [2, 0], [0, 0], [3, 1], [2, 3]] * 3
    duration = np.full(n_all, np.nan)
    duration[: n_items - 1] = rng.integers(1, 10**6, n_items - 1)
    return Dataset(
        name="kuairand",
        synthetic=True,
        user_ids=user_ids,
        item_ids=np.concatenate([np.arange(n_items) * 2, np.arange(n_all - n_items) * 2 + 1]),
        n_items=n_items,
        log=rows(logged, 400, n_all),
        test=rows(logged[side], 200, n_items),
        randomised=rows(logged[~side], 200, n_items),
        user_features=features(
            rng, n_users, user_active_degree=("", "a", "b"), is_live_streamer=("", "-124", "0", "1")
        ),
        item_features=Features(
            {"tag": tags}, {"tag": ("", "2", "10", "65")}, {"video_duration": duration}
        ),
    )


@pytest.mark.parametrize("make", [small_kuairec, small_kuairand])
def test_what_is_written_reads_back_the_same(tmp_path: Path, make) -> None:
    dataset = make()
    write_csv(dataset, tmp_path / "new" / "folder")
    again = load_dataset(dataset.name, tmp_path / "new" / "folder")
    assert_same(dataset, again)
    assert not again.synthetic
    assert not [file for file in (tmp_path / "new" / "folder").iterdir() if file.suffix != ".csv"]


@pytest.mark.parametrize("name", ["small", "small_rand", "world", "rand_world"])
def test_synthetic_worlds_read_back_the_same(name: str, request, tmp_path: Path) -> None:
    """Small ones, and both at full size."""
    world = request.getfixturevalue(name)
    write_csv(world, tmp_path)
    assert_same(world, load_dataset(world.name, tmp_path))


def test_optional_parts_are_written_only_where_there_are_any(tmp_path: Path) -> None:
    bare = dataclasses.replace(
        small_kuairec(),
        user_features=Features(),
        item_features=Features(),
        show_counts=None,
        friends=None,
    )
    write_csv(bare, tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["big_matrix.csv", "small_matrix.csv"]
    assert_same(bare, load_dataset("kuairec", tmp_path))


def test_real_rows_read_back_the_same(real, tmp_path: Path) -> None:
    write_csv(real, tmp_path)
    assert load_dataset("kuairec", tmp_path).fingerprint == real.fingerprint


def first(file: Path) -> dict[str, str]:
    with file.open(encoding="utf-8", newline="") as lines:
        return next(csv.DictReader(lines))


def test_all_published_columns_are_there_and_agree(tmp_path: Path) -> None:
    rec, rand = tmp_path / "rec", tmp_path / "rand"
    write_csv(small_kuairec(), rec)
    row = first(rec / "small_matrix.csv")
    assert list(row) == [
        *("user_id", "video_id", "play_duration", "video_duration"),
        *("time", "date", "timestamp", "watch_ratio"),
    ]
    assert row["time"].startswith("2020-07-") and row["date"] == row["time"][:10].replace("-", "")
    write_csv(small_kuairand(), rand)
    row = first(rand / "log_random_4_22_to_5_08_pure.csv")
    assert list(row)[:5] == ["user_id", "video_id", "date", "hourmin", "time_ms"]
    assert list(row)[-3:] == ["is_profile_enter", "is_rand", "tab"]
    assert len(row) == 19 and row["is_rand"] == "1" and row["date"].startswith("2022")
    for name, date in (("4_08_to_4_21", "202204"), ("4_22_to_5_08", "20220")):
        row = first(rand / f"log_standard_{name}_pure.csv")
        assert row["is_rand"] == "0" and row["date"].startswith(date)
    assert len(first(rand / "user_features_pure.csv")) == 31
    assert len(first(rand / "video_features_basic_pure.csv")) == 12


def clock_of(file: Path, separator: str = ",") -> dict[str, float]:
    """Shares of rows by what ``date`` and ``hourmin`` say, next to ``time_ms`` in UTC+8."""
    log = pd.read_csv(file, sep=separator)
    local = pd.to_datetime(log["time_ms"] + 8 * 3_600_000, unit="ms")
    ahead = pd.to_datetime(log["date"].astype(str)) + pd.to_timedelta(log["hourmin"] // 100, "h")
    ahead = (ahead - local.dt.floor("h")) / pd.Timedelta("1h")
    minute = local.dt.minute + local.dt.second / 60
    keys = ["user_id", "video_id", "time_ms"]
    return {
        "whole hours": (log["hourmin"] % 100 == 0).mean(),
        "next hour": (ahead == 1).mean(),
        "next hour from minute 53": (ahead[minute >= 53] >= 1).mean(),
        "next hour before minute 40": (ahead[minute < 40] == 1).mean(),
        "this hour or the next": ahead.isin([0, 1]).mean(),
        "rows at 23 h of the next day": ((ahead == 1) & (local.dt.hour == 23)).sum(),
        "repeated": log.duplicated(keys).mean(),
    }


def test_written_clocks_are_as_odd_as_real_ones(real_data, tmp_path: Path) -> None:
    """KuaiRand's standard log names the next hour in 17.8 % of rows, the random one in none."""
    real = clock_of(real_data("kuairand_real") / "log_standard_27k_liked_or_hated.tsv", "\t")
    assert real["whole hours"] == 1 and real["rows at 23 h of the next day"] == 311
    assert real["next hour"] == pytest.approx(0.178, abs=5e-4)
    assert real["next hour from minute 53"] == 1
    assert real["repeated"] == 124 / 41_828
    shown = clock_of(real_data("kuairand_real") / "log_random_1k_first_161_rows.csv")
    assert (shown["whole hours"], shown["next hour"], shown["repeated"]) == (1, 0, 0)

    config = KuaiRandConfig(
        n_users=400, n_items=400, n_categories=4, logged_per_user=40, random_per_user=5
    )
    write_csv(synthetic_kuairand(1, config), tmp_path / "files")
    for name in STANDARD:
        written = clock_of(tmp_path / "files" / f"{name}_pure.csv")
        assert written["whole hours"] == written["this hour or the next"] == 1
        assert written["next hour from minute 53"] == 1
        assert written["rows at 23 h of the next day"] > 20
        # Made-up times of users with as many rows are the same: fewer moments than rows.
        assert written["next hour"] == pytest.approx(real["next hour"], abs=0.03)
        assert written["next hour before minute 40"] == pytest.approx(0.006, abs=0.006)
        assert written["repeated"] == pytest.approx(real["repeated"], abs=0.002)
        assert written["repeated"] > 0
    written = clock_of(tmp_path / "files" / f"{RANDOM}_pure.csv")
    assert (written["whole hours"], written["next hour"], written["repeated"]) == (1, 0, 0)


def test_folders_that_hold_anything_are_left_alone(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match=r"absent or empty, but .*data holds thesis\.tex"):
        write_csv(small_kuairec(), folder)
    (tmp_path / "data.lock").touch()  # of a call that was killed at its very end
    with pytest.raises(ConfigError, match="absent or empty"):
        write_csv(small_kuairec(), folder)
    assert files_in(tmp_path) == ["data/thesis.tex"]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ConfigError, match="another folder than the one of work"):
        write_csv(small_kuairec(), ".")
    (tmp_path / "link").symlink_to(tmp_path / "here", target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    write_csv(small_kuairec(), tmp_path / "link")
    assert (tmp_path / "here" / "big_matrix.csv").exists()
    with pytest.raises(StorageError, match="thesis.tex.* cannot be written"):
        write_csv(small_kuairec(), folder / "thesis.tex" / "data")


class Killed(BaseException):
    """What nothing catches."""


def die_in(write: Writer, file: Path) -> None:
    """Ends in the middle of a file."""
    write(file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    raise Killed


@pytest.mark.parametrize("make", [small_kuairec, small_kuairand])
def test_killed_at_any_file_it_can_be_called_again(tmp_path: Path, monkeypatch, make) -> None:
    """Of a killed process nothing is tidied up: here neither, by a tidying that does nothing."""
    dataset, target = make(), tmp_path / "data"
    write_csv(dataset, tmp_path / "whole")
    names = files_in(tmp_path / "whole")
    source = find_source(dataset.source)
    for place in range(len(names)):
        writers = dict(source.write(dataset))
        name = list(writers)[place]
        writers[name] = partial(die_in, writers[name])
        with monkeypatch.context() as dying:
            dying.setattr(type(source), "write", lambda *_, writers=writers: writers)
            dying.setattr("kuaisim_gym.disk.remove", lambda _: None)
            with pytest.raises(Killed):
                write_csv(dataset, target)
        assert not target.exists()
        (tmp_path / "data.lock").touch()
        write_csv(dataset, target)
        assert files_in(tmp_path) == [
            f"{one}/{name}" for one in ("data", "whole") for name in names
        ]
        for name in names:
            assert (target / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        shutil.rmtree(target)


def files_in(folder: Path) -> list[str]:
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.is_file())


def test_users_on_the_wrong_side_are_refused(tmp_path: Path) -> None:
    dataset = small_kuairand()
    swapped = dataclasses.replace(dataset, test=dataset.randomised, randomised=dataset.test)
    with pytest.raises(ConfigError, match="would be on the other side"):
        write_csv(swapped, tmp_path)
