"""Real worlds: rules of reading by small files, and the real files where they are."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data import LabelLog, PositiveLog, WatchSample
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.errors import ConfigError, DataFormatError, DatasetNotFoundError

BIG, LIKES, ROWS = (
    "big_matrix_watch_ratio_ge_2", "small_matrix_watch_ratio_ge_2", "small_matrix_rows",
)  # fmt: skip
CLICKS, RANDOM = "standard_log_clicks_remapped", "random_log_clicks_remapped"
KUAIREC = {
    BIG: ("user_id,video_id,times", "1,50,1", "1,10,3", "2,20,1", "3,30,2", "4,30,1"),
    LIKES: ("user_id,video_id", "3,10", "3,20", "4,20"),
    ROWS: ("user_id,video_id,watch_ratio", "3,10,2.5", "3,30,0.4", "4,30,1.2", "4,20,3"),
}
FEATURES = {
    "item_categories": ("video_id,feat", '10,"[1, 2]"', "99,[3]"),
    "user_features": ("user_id,user_active_degree,register_days", "1,full_active,9"),
}
TEST_USERS = [user for user in range(40) if is_test_user(np.array([user]))[0]]
A, B = TEST_USERS[:2]
C = next(user for user in range(40) if user not in TEST_USERS)

Files = Mapping[str, tuple[str, ...]]
Write = Callable[[Files], Path]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    def write(files: Files) -> Path:
        for name, lines in files.items():
            (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
        return tmp_path

    return write


def random_files(rows: int = 2) -> dict[str, tuple[str, ...]]:
    """Clicks of users A, B and C, and random rows of all three."""
    shown = [f"{user},{item},{(user + item) % 2}" for user in (A, B, C) for item in range(rows)]
    return {
        CLICKS: ("user_id,video_id", f"{A},100", f"{A},0", f"{B},101", f"{C},101", f"{C},101"),
        RANDOM: ("user_id,video_id,is_click", *shown),
    }


def ids(dataset, table) -> list[tuple[int, int]]:
    users, items = dataset.user_ids[table.users], dataset.item_ids[table.items]
    return list(zip(users.tolist(), items.tolist(), strict=True))


def test_likes_are_looked_up_in_the_complete_matrix(folder: Write) -> None:
    dataset = load_dataset("kuairec-like", folder({**KUAIREC, **FEATURES}))
    assert not dataset.synthetic
    assert dataset.name == dataset.source == "kuairec-like"
    assert dataset.user_ids.tolist() == [1, 2, 3, 4]
    assert dataset.item_ids.tolist() == [10, 20, 30, 50]
    assert dataset.n_items == 3
    # Logged rows of judging users and catalogue videos would leak answers.
    assert isinstance(dataset.log, PositiveLog)
    assert ids(dataset, dataset.log) == [(1, 10), (1, 50), (2, 20)]
    assert dataset.notes["log_rows_dropped_as_test_cells"] == 2
    assert dataset.notes["log_likes_beyond_the_first_of_a_pair"] == 3
    assert isinstance(dataset.test, LabelLog)
    assert ids(dataset, dataset.test) == [(u, i) for u in (3, 4) for i in (10, 20, 30)]
    assert dataset.test.label.tolist() == [1, 1, 0, 0, 1, 0]
    assert dataset.training.popularity_counts.tolist() == [1, 1, 0, 1]
    categories = dataset.item_features
    codes = categories.codes["category"][0]
    assert [categories.values["category"][code] for code in codes] == ["1", "2"]
    assert dataset.user_features.numbers["register_days"][0] == 9.0
    assert dataset.train_users.tolist() == [0, 1]
    assert dataset.randomised is None


@pytest.mark.parametrize("source", ["kuairec-like", "kuairec-watch"])
def test_compressed_tables_are_read_as_all_others(folder: Write, source: str) -> None:
    """Each optional one, too."""
    path = folder({**KUAIREC, **FEATURES})
    expected = load_dataset(source, path)
    for file in list(path.iterdir()):
        (path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    dataset = load_dataset(source, path)
    assert dataset.fingerprint == expected.fingerprint
    assert list(dataset.item_features.codes) == ["category"]
    assert list(dataset.user_features.numbers) == ["register_days"]


def test_watch_ratios_are_a_sample_beside_all_likes(folder: Write) -> None:
    dataset = load_dataset("kuairec-watch", folder(KUAIREC))
    test = dataset.test
    assert isinstance(test, WatchSample)
    assert ids(dataset, test) == [(3, 10), (3, 20), (3, 30), (4, 20), (4, 30)]
    np.testing.assert_allclose(test.watch_ratio, [2.5, 2.0, 0.4, 3.0, 1.2])
    assert test.is_sample.tolist() == [False, False, True, False, True]
    np.testing.assert_allclose(test.response, [1, 1, 0.4, 1, 1])
    with pytest.raises(ConfigError, match="a sample"):
        dataset.with_unbiased_users(1)


def test_a_user_and_a_video_that_the_list_does_not_cover_are_left_out(folder: Write) -> None:
    files = {**KUAIREC, ROWS: (*KUAIREC[ROWS], "2,20,2.2", "3,60,9", "4,60,0.1", "2,30,0.5")}
    dataset = load_dataset("kuairec-like", folder(files))
    assert dataset.user_ids[dataset.test_users].tolist() == [3, 4]
    assert 60 not in dataset.item_ids[: dataset.n_items]
    assert dataset.notes["users_left_out_as_not_in_the_list"] == 1
    assert dataset.notes["videos_left_out_as_not_in_the_list"] == 1
    assert (2, 20) in ids(dataset, dataset.log)  # a train user's row like any


def test_a_sampled_ratio_stands_where_the_list_disagrees(folder: Write) -> None:
    files = {**KUAIREC, ROWS: (*KUAIREC[ROWS], "4,10,2", "3,20,1.9")}
    dataset = load_dataset("kuairec-like", folder(files))
    assert dataset.test.label.tolist() == [1, 0, 0, 1, 1, 0]
    assert dataset.notes["sampled_answers_that_the_list_contradicts"] == 2


def test_random_rows_judge_half_of_the_users_and_teach_of_the_others(folder: Write) -> None:
    dataset = load_dataset("kuairand-click", folder(random_files()))
    assert not dataset.pools
    assert dataset.item_ids.tolist() == [0, 1, 100, 101]
    assert dataset.n_items == 2
    assert ids(dataset, dataset.test) == [(A, 0), (A, 1), (B, 0), (B, 1)]
    assert ids(dataset, dataset.randomised) == [(C, 0), (C, 1)]
    assert dataset.test.label.tolist() == [A % 2, (A + 1) % 2, B % 2, (B + 1) % 2]
    # (A, 0) has a random row: the click would leak its answer.
    assert set(ids(dataset, dataset.log)) == {(A, 100), (B, 101), (C, 101)}
    assert dataset.notes["log_rows_dropped_as_random_rows"] == 1
    assert dataset.notes[f"{CLICKS}_rows_repeated"] == 1
    assert dataset.popularity == "positives"


def test_pools_are_of_test_users_with_enough_rows(folder: Write) -> None:
    files = random_files(80)
    dataset = load_dataset("kuairand-pool", folder({**files, RANDOM: files[RANDOM][:-81]}))
    assert dataset.pools
    assert dataset.user_ids[dataset.test_users].tolist() == [A]
    assert len(dataset.test) == 80
    assert dataset.user_ids[dataset.randomised.distinct_users].tolist() == [B]


@pytest.mark.parametrize(
    ("name", "file", "lines", "message"),
    [
        ("kuairec-like", BIG, ("user_id,video_id", "1,2"), r"lacks the column\(s\) \['times'\]"),
        ("kuairec-like", BIG, ("user_id,video_id,times", "1,2,0"), "column 'times'.*got '0'"),
        ("kuairec-like", BIG, ("user_id,video_id,times", "1,2,1", "1,2,2"), "data row 2.*another"),
        ("kuairec-like", LIKES, ("user_id,video_id", "1,"), "column 'video_id'.*got ''"),
        ("kuairec-like", LIKES, ("user_id,video_id",), "no rows"),
        ("kuairec-watch", ROWS, (KUAIREC[ROWS][0], "3,10,-1"), "column 'watch_ratio'.*'-1'"),
        ("kuairec-watch", ROWS, (KUAIREC[ROWS][0], "3,10,1", "3,10,2"), "data row 2.*another"),
        ("kuairand-click", RANDOM, ("user_id,video_id,is_click", "1,2,2"), "0 or 1, got '2'"),
        ("kuairand-click", RANDOM, ("user_id,video_id,is_click", f"{C},2,1"), "none of its users"),
        ("kuairand-pool", RANDOM, random_files()[RANDOM], "at least 80 rows"),
    ],
)
def test_files_that_break_a_rule_are_refused(
    name: str, file: str, lines: tuple[str, ...], message: str, folder: Write
) -> None:
    files = {**(KUAIREC if "rec" in name else random_files()), file: lines}
    with pytest.raises(DataFormatError, match=message):
        load_dataset(name, folder(files))


@pytest.mark.parametrize("name", ["kuairec-like", "kuairec-watch", "kuairand-pool"])
def test_real_worlds_need_their_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError):
        load_dataset(name, tmp_path)
    with pytest.raises(ConfigError, match="no synthetic world"):
        load_dataset(name)


def test_the_real_likes_are_those_that_were_published(like_world) -> None:
    dataset = like_world
    assert dataset.n_users == 7176
    assert len(dataset.test_users) == 970
    assert dataset.n_items == 3311
    assert len(dataset.log) == 846_254
    assert len(dataset.test) == 970 * 3311
    assert dataset.notes["log_likes_beyond_the_first_of_a_pair"] == 69_419
    # The table of facts of the data: positives a user, and the rate of the popular fifth.
    count = np.bincount(dataset.test.users, dataset.test.response)[dataset.test_users]
    quantiles = np.quantile(count, [0.05, 0.25, 0.5, 0.75, 0.95])
    np.testing.assert_allclose(quantiles, [19, 44, 94, 222, 458], rtol=0.05)
    rate = np.bincount(dataset.test.items, dataset.test.response) / 970
    order = np.argsort(-dataset.training.popularity_counts[:3311], kind="stable")
    assert rate[order[:662]].mean() == pytest.approx(0.106, abs=0.002)
    assert rate[order[662:]].mean() == pytest.approx(0.031, abs=0.002)


def test_real_pools_are_large_enough_for_their_sessions(pool_world) -> None:
    dataset = pool_world
    size = np.bincount(dataset.test.users, minlength=dataset.n_users)[dataset.test_users]
    assert size.min() >= 80
    assert len(dataset.test_users) == 629
    order = np.argsort(-dataset.training.popularity_counts[: dataset.n_items], kind="stable")
    popular = np.zeros(dataset.n_items, dtype=bool)
    popular[order[: round(0.2 * dataset.n_items)]] = True
    count = np.bincount(dataset.test.users, popular[dataset.test.items])[dataset.test_users]
    assert np.quantile(count, 0.05) >= 11  # a typical session's half of 22 items
    assert (is_test_user(dataset.user_ids[dataset.test_users])).all()
    assert not np.isin(dataset.randomised.distinct_users, dataset.test_users).any()
