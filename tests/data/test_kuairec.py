from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.files import DataFiles
from kuaisim_gym.data.kuairec import KuaiRec
from kuaisim_gym.errors import ConfigError, DataFormatError, DatasetNotFoundError

HEADER = "user_id,video_id,watch_ratio\n"
BIG = HEADER + "1,10,0.5\n1,11,2.0\n2,10,0.25\n2,99,1.0\n"
SMALL = "user_id,video_id,watch_ratio\n2,11,0.75\n2,12,1.5\n"


def load_uncached(path: Path) -> Dataset:
    source = KuaiRec()
    return source.read(source.find(path))


def folder(tmp_path: Path, big: str = BIG, small: str = SMALL, **others: str) -> Path:
    for name, text in {"big_matrix": big, "small_matrix": small, **others}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_a_golden_folder(tmp_path: Path) -> None:
    dataset = load_dataset("kuairec", folder(tmp_path))
    assert not dataset.synthetic
    assert dataset.user_ids.tolist() == [1, 2]
    # The catalogue is the small matrix's videos; those of the log alone come behind it.
    assert dataset.item_ids.tolist() == [11, 12, 10, 99]
    assert dataset.n_items == 2
    assert dataset.test_users.tolist() == [1]
    assert dataset.train_users.tolist() == [0]
    assert dataset.split_by == "user"
    assert dataset.log.items.tolist() == [2, 0, 2, 3]
    np.testing.assert_allclose(dataset.log.response, [0.5, 1.0, 0.25, 1.0])
    np.testing.assert_allclose(dataset.test.watch_ratio, [0.75, 1.5])


def test_columns_beyond_the_required_are_ignored_in_any_order(tmp_path: Path) -> None:
    big = "play_duration,watch_ratio,video_id,extra,user_id\n9,0.5,10,x,1\n9,0.25,10,y,2\n"
    log = load_dataset("kuairec", folder(tmp_path, big)).log
    (plain := tmp_path / "plain").mkdir()
    lines = "user_id,video_id,watch_ratio\n1,10,9\n2,10,9\n"
    expected = load_dataset("kuairec", folder(plain, lines)).log
    np.testing.assert_array_equal(log.users, expected.users)
    np.testing.assert_array_equal(log.items, expected.items)
    np.testing.assert_allclose(log.watch_ratio, [0.5, 0.25])


def test_the_real_sample(real) -> None:
    assert (len(real.log), len(real.test), len(real.test_users)) == (56_440, 46_563, 1_411)
    assert real.split_by == "cell"
    assert "big_matrix_duplicates" not in real.notes  # what did not occur has no entry
    assert "real" in real.description


def test_duplicates_without_time_become_their_mean(tmp_path: Path, caplog) -> None:
    dataset = load_uncached(folder(tmp_path, BIG + "1,10,1.5\n1,10,1.0\n"))
    row = (dataset.log.users == 0) & (dataset.log.items == 2)
    np.testing.assert_allclose(dataset.log.watch_ratio[row], [1.0])
    assert dataset.notes["big_matrix_duplicates"] == 2
    assert "2 duplicate" in caplog.text


def test_duplicates_with_time_keep_the_last(tmp_path: Path) -> None:
    big = "user_id,video_id,watch_ratio,timestamp\n1,10,0.9,30\n1,10,0.1,20\n1,11,0.5,5\n"
    dataset = load_dataset("kuairec", folder(tmp_path, big))
    np.testing.assert_allclose(dataset.log.watch_ratio, [0.5, 0.9])  # in the order of time


def test_rows_without_a_time_come_before_those_with_one(tmp_path: Path) -> None:
    small = (
        "user_id,video_id,watch_ratio,timestamp\n"
        "2,11,0.1,\n2,12,0.2,7\n2,13,0.3,5\n2,14,0.4,\n2,12,0.5,\n2,11,0.6,\n2,13,0.7,5.0\n"
    )
    dataset = load_dataset("kuairec", folder(tmp_path, small=small))
    assert dataset.item_ids[dataset.test.items].tolist() == [14, 11, 13, 12]
    np.testing.assert_allclose(dataset.test.watch_ratio, [0.4, 0.6, 0.7, 0.2])
    assert dataset.notes["small_matrix_rows_without_time"] == 4
    assert dataset.notes["small_matrix_duplicates"] == 3


def test_users_are_grouped_and_their_rows_sorted_by_time(tmp_path: Path) -> None:
    big = "user_id,video_id,watch_ratio,timestamp\n5,10,1,9\n1,10,2,4\n5,12,3,1\n1,9,4,4\n1,8,5,3\n"
    dataset = load_dataset("kuairec", folder(tmp_path, big))
    assert dataset.user_ids[dataset.log.users].tolist() == [1, 1, 1, 5, 5]
    assert dataset.log.watch_ratio.tolist() == [5, 2, 4, 3, 1]


def test_categories(tmp_path: Path) -> None:
    table = 'video_id,feat\n99,"[27, 9]"\n11,[9]\n12,[]\n5,[8]\n99,[1]\n10,"[9, 9, 100]"\n'
    features = load_dataset("kuairec", folder(tmp_path, item_categories=table)).item_features
    assert features.values["category"] == ("", "1", "8", "9", "27", "100")
    # Items: 11, 12, 10, 99.
    assert features.codes["category"].tolist() == [[3, 0], [0, 0], [3, 5], [4, 3]]


def test_user_features_and_what_is_counted_of_them(tmp_path: Path) -> None:
    table = (
        "user_id,user_active_degree,is_live_streamer,fans_user_num,fans_user_num_range,"
        "register_days,onehot_feat4,onehot_feat5\n"
        '2,full_active,-124,3,"[1,10)",,9.0,\n1,odd,1,5,0,,,\n7,x,0,5,0,,,\n2,again,1,1,0,,,\n'
    )
    dataset = load_dataset("kuairec", folder(tmp_path, user_features=table))
    features = dataset.user_features
    assert features.values["user_active_degree"] == ("", "again", "full_active", "odd", "x")
    assert features.codes["user_active_degree"].tolist() == [[3], [2]]
    assert features.values["is_live_streamer"] == ("", "-124", "0", "1")
    assert features.codes["onehot_feat4"].tolist() == [[0], [1]]
    assert features.numbers["fans_user_num"].tolist() == [5, 3]
    assert "onehot_feat5" not in features.codes  # a column without a value
    assert "register_days" not in features.numbers
    notes = dataset.notes
    assert notes["user_features.repeated_rows_dropped"] == 1
    assert notes["user_features.rows_of_unknown_ids_dropped"] == 1
    assert notes["user_features.is_live_streamer.negative"] == 1
    assert notes["user_features.onehot_feat4.missing"] == 1
    assert notes["user_features.columns_without_values"] == 2


def test_show_counts_are_summed_over_days(tmp_path: Path) -> None:
    table = "video_id,date,show_cnt\n99,20200705,5\n11,20200705,2\n99,20200706,7\n11,1,\n3,1,4\n"
    dataset = load_dataset("kuairec", folder(tmp_path, item_daily_features=table))
    assert dataset.show_counts is not None
    assert dataset.show_counts.tolist() == [2, 0, 0, 12]
    assert dataset.notes["show_counts_videos_without_a_row"] == 2
    assert dataset.notes["show_counts_unknown_videos_dropped"] == 1
    assert dataset.notes["show_counts_missing_cells"] == 1


@pytest.mark.parametrize("rows", ["3,1,4\n99,1,4\n", "11,1,0\n12,1,\n"])
def test_show_counts_of_no_video_of_the_catalogue_are_refused(tmp_path: Path, rows: str) -> None:
    with pytest.raises(
        DataFormatError, match=r"item_daily_features.*'show_cnt': expected .*got none"
    ):
        load_dataset(
            "kuairec", folder(tmp_path, item_daily_features=f"video_id,date,show_cnt\n{rows}")
        )


def test_friends(tmp_path: Path) -> None:
    table = 'user_id,friend_list\n2,"[1, 77]"\n1,[2]\n5,[1]\n2,[1]\n1,[]\n'
    dataset = load_dataset("kuairec", folder(tmp_path, social_network=table))
    assert dataset.friends is not None
    assert dataset.friends.tolist() == [[0, 1], [1, 0]]
    assert dataset.notes["friendships_of_unknown_users_dropped"] == 2
    assert dataset.notes["friendships_repeated"] == 1


@pytest.mark.parametrize(
    ("name", "table", "message"),
    [
        ("item_categories", "video_id,feat\n1,[2]\n2,x\n", "data row 2, column .*list of whole"),
        ("item_categories", 'video_id,feat\n1,"[2, [3]]"\n', "item_categories.csv, data row 1"),
        ("item_categories", "video_id,feat\n1,__import__('os')\n", "list of whole numbers"),
        ("social_network", 'user_id,friend_list\n1,"[2,,3]"\n', "data row 1, column 'friend_list'"),
        ("social_network", "user_id,friend_list\n1,[007]\n", "data row 1"),
        ("social_network", f"user_id,friend_list\n1,[{2**63}]\n", "data row 1"),
        ("social_network", "user_id,friend_list\n1,[1]\n1,\n", "data row 2, column 'friend_list'"),
        ("item_daily_features", "video_id,show_cnt\n1,-3\n", "data row 1, column 'show_cnt'.*'-3'"),
        ("item_daily_features", "video_id,show_cnt\n1,3.5\n", "a whole number of at least 0"),
        ("user_features", "user_id,fans_user_num\n1,many\n", "column 'fans_user_num'.*'many'"),
    ],
)
def test_bad_side_tables_are_refused(tmp_path: Path, name: str, table: str, message: str) -> None:
    with pytest.raises(DataFormatError, match=message):
        load_dataset("kuairec", folder(tmp_path, **{name: table}))


def test_the_cache_gives_the_same_and_follows_the_files(tmp_path: Path, is_mapped) -> None:
    table = "user_id,user_active_degree,fans_user_num\n2,full_active,3\n"
    path = folder(
        tmp_path,
        user_features=table,
        social_network="user_id,friend_list\n1,[2]\n",
        item_daily_features="video_id,show_cnt\n11,4\n",
    )
    built = load_uncached(path)
    first, second = load_dataset("kuairec", path), load_dataset("kuairec", path)
    for dataset in (first, second):
        assert dataset.fingerprint == built.fingerprint
        assert dataset.notes == built.notes
        assert not dataset.synthetic
        assert is_mapped(dataset.log.users)  # not copied
    (path / "social_network.csv").write_text("user_id,friend_list\n2,[1]\n")
    assert load_dataset("kuairec", path).friends.tolist() == [[1, 0]]


def test_test_cells_never_stay_in_the_log(tmp_path: Path) -> None:
    dataset = load_dataset("kuairec", folder(tmp_path, BIG + "2,11,0.9\n"))
    assert dataset.notes["log_rows_dropped_as_test_cells"] == 1
    log = set(zip(dataset.log.users.tolist(), dataset.log.items.tolist(), strict=True))
    test = set(zip(dataset.test.users.tolist(), dataset.test.items.tolist(), strict=True))
    assert not log & test


@pytest.mark.parametrize(
    ("big", "message"),
    [
        ("", "big_matrix.csv is empty"),
        ("user_id,video_id,watch_ratio\n", "no rows"),
        ("user_id,video,watch_ratio\n1,2,3\n", r"lacks the column\(s\) \['video_id'\]"),
        (BIG + "1,12,abc\n", r"data row 5, column 'watch_ratio'.*'abc'"),
        (BIG + "1,12,-0.5\n", r"data row 5, column 'watch_ratio'.*at least 0, got '-0.5'"),
        (BIG + "1,12,\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1,12,inf\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1,12,1e300\n", r"data row 5, column 'watch_ratio'"),
        (BIG + "1.5,12,1\n", r"data row 5, column 'user_id'.*a whole number, got '1.5'"),
        (BIG + "1,,1\n", r"data row 5, column 'video_id'"),
        (BIG + "x,12,1\n", r"data row 5, column 'user_id'.*'x'"),
        (BIG + "1,12\n", "line 6: expected 3 fields, as in the header, got 2"),
        (BIG + "1,12,0.5,7,8\n", "line 6: expected 3 fields, as in the header, got 5"),
        (BIG + '"1",12,0.5,7\n', "line 6: expected 3 fields, as in the header, got 4"),
        ("user_id,video_id,watch_ratio,watch_ratio\n1,12,1,2\n", "repeats a column"),
        (SMALL, "Were the two files confused"),
    ],
)
def test_bad_tables_are_refused_by_file_line_and_value(
    tmp_path: Path, big: str, message: str
) -> None:
    with pytest.raises(DataFormatError, match=message):
        load_dataset("kuairec", folder(tmp_path, big))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="not there"):
        load_dataset("kuairec", tmp_path / "nowhere")
    (tmp_path / "big_matrix.csv").write_text(BIG)
    with pytest.raises(DatasetNotFoundError, match=r"small_matrix\.csv is missing"):
        load_dataset("kuairec", tmp_path)
    with pytest.raises(DatasetNotFoundError, match="is a file of another"):
        load_dataset("kuairec", tmp_path / "big_matrix.csv")


def test_unknown_dataset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kuairec'"):
        load_dataset("kuairek")


def test_compressed_tables_are_read_as_all_others(tmp_path: Path) -> None:
    """Each optional one, too."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    for path in (plain, packed):
        path.mkdir()
    folder(
        plain,
        user_features="user_id,user_active_degree\n2,full_active\n1,odd\n",
        item_categories='video_id,feat\n11,"[3, 4]"\n',
        item_daily_features="video_id,show_cnt\n11,5\n12,9\n",
        social_network='user_id,friend_list\n1,"[2]"\n',
    )
    for file in plain.iterdir():
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    expected, dataset = load_uncached(plain), load_uncached(packed)
    assert dataset.fingerprint == expected.fingerprint
    assert list(dataset.user_features.codes) == ["user_active_degree"]
    assert list(dataset.item_features.codes) == ["category"]
    assert dataset.show_counts is not None and dataset.show_counts.tolist() == [5, 9, 0, 0]
    assert dataset.friends is not None and dataset.friends.tolist() == [[0, 1]]


def test_a_list_of_categories_has_an_end(tmp_path: Path) -> None:
    """Codes are dense: one cell of 100,000 values would make as many columns."""
    for length in (1000, 1001):
        table = f'video_id,feat\n12,[5]\n11,"{list(range(length))}"\n'
        path = folder(tmp_path, item_categories=table)
        if length == 1000:
            codes = load_uncached(path).item_features.codes["category"]
            assert codes.shape == (4, 1000)
            continue
        with pytest.raises(DataFormatError) as caught:
            load_uncached(path)
        message = str(caught.value)
        assert "item_categories.csv, data row 2, column 'feat'" in message
        assert "at most 1000 values in a cell, got 1001: '[0, 1, 2," in message
        assert len(message) < 500


def test_what_files_say_in_another_form_is_not_ignored_silently(tmp_path: Path, caplog) -> None:
    path = folder(tmp_path)
    for name in ("User_Features.parquet", "social_network.csv.bz2", "item_categories.csv.zip"):
        (path / name).write_bytes(b"1")
    (path / "caption_category.parquet").write_bytes(b"1")  # which no source reads
    load_dataset("kuairec", path)
    lines = KuaiRec().inspect(path)
    for name in ("User_Features.parquet", "social_network.csv.bz2", "item_categories.csv.zip"):
        assert f"{path / name} is not read: only .csv and .csv.gz are" in caplog.text
        assert f"unread:  {name}; only .csv and .csv.gz are read" in lines
    assert "caption" not in caplog.text


def test_endings_may_be_in_capitals(tmp_path: Path) -> None:
    path = folder(tmp_path, user_features="user_id,user_active_degree\n2,full_active\n")
    (path / "user_features.csv").rename(path / "user_features.CSV")
    assert list(load_uncached(path).user_features.codes) == ["user_active_degree"]


def test_files_that_change_while_they_are_read_give_no_dataset(tmp_path, monkeypatch) -> None:
    """Else the cache would hold other rows under the digest of the earlier ones."""
    path = folder(tmp_path, BIG + "2,98,0.125\n")
    read = KuaiRec.read

    def read_slowly(self: KuaiRec, files: DataFiles) -> Dataset:
        dataset = read(self, files)
        folder(tmp_path, BIG + "2,98,0.125\n1,99,3.0\n")
        return dataset

    with monkeypatch.context() as patch:
        patch.setattr(KuaiRec, "read", read_slowly)
        with pytest.raises(DataFormatError, match="changed while it was read"):
            load_dataset("kuairec", path)
    assert len(load_dataset("kuairec", path).log) == 6
