from __future__ import annotations

import csv
import gzip
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data import BehaviourLog, Dataset, write_csv
from kuaisim_gym.data.kuairand import ITEM_FIELDS, RANDOM, STANDARD, USER_FIELDS, KuaiRand
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.errors import DataFormatError, DatasetNotFoundError

BEHAVIOURS = (
    "is_click",
    "is_like",
    "is_follow",
    "is_comment",
    "is_forward",
    "is_hate",
    "long_view",
)
HEADER = "user_id,video_id,date,time_ms," + ",".join(BEHAVIOURS) + ",play_time_ms,is_rand\n"
TEST, TRAIN = (np.flatnonzero(is_test_user(np.arange(50)) == side).tolist() for side in (1, 0))


def row(user: int, video: int, time: int, shown: str = "", is_rand: int = 0) -> str:
    bits = ",".join(str(int(name in shown.split())) for name in BEHAVIOURS)
    return f"{user},{video},20220410,{time},{bits},0,{is_rand}\n"


def files(variant: str = "pure") -> dict[str, str]:
    """Two train users, one test user, one user of the feature file alone."""
    a, b, t = TRAIN[0], TRAIN[1], TEST[0]
    random = [
        row(t, 30, 9, "is_click", 1),
        row(a, 20, 8, "long_view", 1),
        row(t, 20, 7, "", 1),
        row(t, 20, 8, "is_hate", 1),
    ]
    return {
        f"log_standard_4_08_to_4_21_{variant}": HEADER
        + row(b, 20, 5, "is_click long_view")
        + row(a, 90, 5, "is_like"),
        f"log_standard_4_22_to_5_08_{variant}": HEADER
        + row(a, 20, 3)
        + row(a, 20, 6, "is_follow is_forward")
        + row(t, 20, 6, "is_comment"),
        f"log_random_4_22_to_5_08_{variant}": HEADER + "".join(random),
        f"user_features_{variant}": "user_id,user_active_degree,is_live_streamer,register_days\n"
        f"{TRAIN[2]},full_active,-124,7\n{a},30day_retention,0,\n",
        f"video_features_basic_{variant}": "video_id,video_type,music_type,tag,video_duration\n"
        '20,NORMAL,9.0,"65,12",5000.0\n40,AD,,,\n30,UNKNOWN,11.0,12,1\n',
    }


def load_uncached(path: Path) -> Dataset:
    source = KuaiRand()
    return source.read(source.find(path))


def folder(tmp_path: Path, tables: dict[str, str]) -> Path:
    for name, text in tables.items():
        (tmp_path / f"{name}.csv").write_text(text)
    return tmp_path


def test_compressed_tables_are_read_as_all_others(tmp_path: Path) -> None:
    """Each optional one, too."""
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir()
    packed.mkdir()
    for file in folder(plain, files()).iterdir():
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    expected, dataset = load_uncached(plain), load_uncached(packed)
    assert dataset.fingerprint == expected.fingerprint
    assert dataset.user_features.codes and dataset.item_features.codes


def test_a_golden_folder(tmp_path: Path) -> None:
    dataset = load_dataset("kuairand", folder(tmp_path, files()))
    a, b, t, alone = TRAIN[0], TRAIN[1], TEST[0], TRAIN[2]
    assert dataset.user_ids.tolist() == sorted([a, b, t, alone])
    # The random log's videos and the basic file's; those of the standard log alone behind.
    assert dataset.item_ids.tolist() == [20, 30, 40, 90]
    assert dataset.n_items == 3
    assert isinstance(dataset.log, BehaviourLog)
    assert dataset.log.behaviours[:2] == ("is_click", "long_view")

    def rows(table: BehaviourLog) -> list[tuple[int, int, str]]:
        names = np.array(table.behaviours)
        return [
            (
                int(dataset.user_ids[user]),
                int(dataset.item_ids[item]),
                " ".join(names[[bool(flag >> bit & 1) for bit in range(7)]]),
            )
            for user, item, flag in zip(table.users, table.items, table.flags, strict=True)
        ]

    expected = {
        a: [(a, 20, ""), (a, 90, "is_like"), (a, 20, "is_forward is_follow")],
        b: [(b, 20, "is_click long_view")],
        t: [(t, 20, "is_comment")],
    }
    assert rows(dataset.log) == [one for user in sorted(expected) for one in expected[user]]
    assert rows(dataset.test) == [(t, 20, ""), (t, 20, "is_hate"), (t, 30, "is_click")]
    assert rows(dataset.randomised) == [(a, 20, "long_view")]
    assert dataset.test_users.tolist() == [dataset.user_ids.tolist().index(t)]
    assert dataset.show_counts is None
    items = dataset.item_features
    assert items.values["tag"] == ("", "12", "65")
    assert items.codes["tag"].tolist() == [[2, 1], [1, 0], [0, 0], [0, 0]]
    assert items.values["music_type"] == ("", "9.0", "11.0")
    np.testing.assert_array_equal(items.numbers["video_duration"], [5000, 1, np.nan, np.nan])
    assert dataset.user_features.values["is_live_streamer"] == ("", "-124", "0")
    notes = dict(dataset.notes)
    assert notes["log_only_items"] == 1
    assert notes["user_features.user_active_degree.undocumented"] == 1
    assert notes["user_features.ids_without_a_row"] == 2
    assert notes["video_features_basic.video_type.undocumented"] == 1
    assert notes["video_features_basic.music_type.missing"] == 1
    assert notes["video_features_basic.ids_without_a_row"] == 1


def test_only_logged_items_count_beyond_pure(tmp_path: Path) -> None:
    tables = files("1k")
    dataset = load_dataset("kuairand", folder(tmp_path, tables))
    assert dataset.item_ids.tolist() == [20, 30, 90]
    assert dataset.n_items == 2
    assert dataset.notes["video_features_basic.rows_of_unknown_ids_dropped"] == 1


def test_27k_comes_in_parts(tmp_path: Path) -> None:
    tables = files("27k")
    for name in [name for name in tables if "standard" in name]:
        lines = tables.pop(name).splitlines(keepends=True)
        tables[f"{name}_part1"] = "".join(lines[:2])
        tables[f"{name}_part2"] = "".join([lines[0], *lines[2:]])
    whole = load_uncached(folder(tmp_path, tables))
    (tmp_path / "pure").mkdir()
    pure = load_uncached(folder(tmp_path / "pure", files("1k")))
    assert whole.fingerprint == pure.fingerprint
    (tmp_path / "log_standard_4_08_to_4_21_27k_part2.csv").unlink()
    with pytest.raises(DatasetNotFoundError, match="21_27k_part2.csv is missing"):
        load_uncached(tmp_path)


def test_feature_files_are_optional(tmp_path: Path) -> None:
    tables = {name: text for name, text in files().items() if "features" not in name}
    dataset = load_dataset("kuairand", folder(tmp_path, tables))
    assert dataset.n_users == 3
    assert dataset.item_ids.tolist() == [20, 30, 90]
    assert not dataset.user_features.codes


def test_what_is_dropped_and_merged_is_counted(tmp_path: Path) -> None:
    tables = files()
    a, t = TRAIN[0], TEST[0]
    first, second, random = list(tables)[:3]
    tables[first] += row(a, 20, 6, "is_click") + row(a, 90, 1, is_rand=1)
    tables[second] += row(t, 20, 7, "is_click") + row(a, 90, 6) + row(a, 20, 6, "is_follow")
    tables[random] += row(a, 30, 8, is_rand=0) + row(t, 30, 9, "is_like", 1)
    dataset = load_dataset("kuairand", folder(tmp_path, tables))
    assert dataset.notes["standard_rows_marked_random_dropped"] == 1
    assert dataset.notes["random_rows_marked_standard_dropped"] == 1
    assert dataset.notes["standard_rows_dropped_as_random_rows"] == 1
    assert dataset.notes["standard_rows_repeated"] == 2
    assert dataset.notes["random_rows_repeated"] == 1
    mine = dataset.log.users == dataset.user_ids.tolist().index(a)
    # At time 6: video 20 from the first file, with what three rows show, then video 90.
    assert dataset.item_ids[dataset.log.items[mine]].tolist() == [20, 90, 20, 90]
    names = np.array(dataset.log.behaviours)
    shown = names[[bool(dataset.log.flags[mine][2] >> bit & 1) for bit in range(7)]]
    assert shown.tolist() == ["is_click", "is_forward", "is_follow"]
    assert dataset.test.behaviour(0).tolist() == [0, 0, 1]
    assert dataset.test.behaviour(2).tolist() == [0, 0, 1]


def test_logs_without_is_rand(tmp_path: Path) -> None:
    tables = files()
    for name in list(tables)[:3]:
        lines = tables[name].splitlines()
        tables[name] = "".join(line.rsplit(",", 1)[0] + "\n" for line in lines)
    (whole := tmp_path / "whole").mkdir()
    found = load_dataset("kuairand", folder(tmp_path, tables))
    expected = load_dataset("kuairand", folder(whole, files()))
    assert len(found.log) == 5
    for name in ("users", "items", "flags"):
        for part in ("log", "test"):
            one, other = (getattr(getattr(data, part), name) for data in (found, expected))
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("number", "text", "message"),
    [
        (0, row(1, 2, 3).replace("0,0\n", "2,0\n", 1), None),
        (0, row(1, 2, 3).replace("3,0", "3,2"), "data row 3, column 'is_click': expected 0 or 1"),
        (1, row(1, 2, 3).replace("1,2,", "1,,"), "data row 4, column 'video_id'"),
        (1, row(1, 2, 3).replace(",3,", ",3.5,"), "column 'time_ms': expected a whole number"),
        (2, row(1, 2, 3, is_rand=3), "column 'is_rand': expected 0 or 1, got '3'"),
        (3, "x,full_active,0,1\n", "user_features_pure.csv, data row 3, column 'user_id'"),
        (4, '50,NORMAL,1,"1,,2",1\n', r"basic_pure.csv, data row 4, column 'tag': expected tags"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, number: int, text: str, message: str | None) -> None:
    tables = files()
    tables[list(tables)[number]] += text
    path = folder(tmp_path, tables)
    if message is None:
        load_dataset("kuairand", path)
        return
    with pytest.raises(DataFormatError, match=message):
        load_dataset("kuairand", path)


def test_a_log_without_test_users_or_standard_rows_is_refused(tmp_path: Path) -> None:
    tables = files()
    first, second, random = list(tables)[:3]
    with pytest.raises(DataFormatError, match="none of its users is a test user"):
        load_uncached(folder(tmp_path, tables | {random: HEADER + row(TRAIN[0], 1, 1, "", 1)}))
    marked = {name: HEADER + row(TRAIN[0], 1, 1, "", 1) for name in (first, second)}
    with pytest.raises(DataFormatError, match="no standard row is left"):
        load_uncached(folder(tmp_path, tables | marked))
    with pytest.raises(DataFormatError, match="Pure in .*1K in "):
        load_uncached(folder(tmp_path, files("1k")))
    with pytest.raises(DatasetNotFoundError, match="KuaiRand-Pure .*or KuaiRand-1K .*or Kuai"):
        load_uncached(tmp_path.parent / "none")


def test_the_sides_of_users() -> None:
    ids = np.arange(27_285)
    side = is_test_user(ids)
    assert abs(side.mean() - 0.5) < 0.01
    np.testing.assert_array_equal(side[::7], is_test_user(ids[::7].astype(np.int32)))
    # Fixed for good: results on KuaiRand depend on it.
    assert np.flatnonzero(side[:24]).tolist() == [0, 1, 3, 7, 11, 12, 13, 15, 16, 17, 21]
    assert is_test_user(np.array([2**40, -5])).shape == (2,)


@pytest.fixture(scope="module")
def sample(real_folder: Path) -> Path:
    return real_folder.parent / "kuairand_sample"


def cells(file: Path) -> dict[str, list[str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))
    return {name: [one[place] for one in rows[1:]] for place, name in enumerate(rows[0])}


@pytest.fixture(scope="module")
def featured(sample: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The real features beside logs of a few rows."""
    names = ("user_features_pure", "video_features_basic_pure")
    real = {name: (sample / f"{name}.csv").read_text(encoding="utf-8") for name in names}
    return load_uncached(folder(tmp_path_factory.mktemp("featured"), files() | real))


def test_the_real_features_are_read_whole(sample: Path, featured: Dataset) -> None:
    assert (featured.n_users, len(featured.item_ids)) == (27_285, 7_583)
    for features, ids, key, file, fields in (
        (featured.user_features, featured.user_ids, "user_id", "user_features", USER_FIELDS),
        (
            featured.item_features,
            featured.item_ids,
            "video_id",
            "video_features_basic",
            ITEM_FIELDS,
        ),
    ):
        plain = cells(sample / f"{file}_pure.csv")
        order = np.argsort(np.array(plain[key], dtype=np.int64))
        np.testing.assert_array_equal(ids, np.array(plain[key], dtype=np.int64)[order])
        assert set(features.codes) == set(fields)
        for name, codes in features.codes.items():
            values = features.values[name]
            decoded = [",".join(values[code] for code in row if code) for row in codes.tolist()]
            assert decoded == [plain[name][place] for place in order], name
        for name, numbers in features.numbers.items():
            raw = [float(plain[name][place] or "nan") for place in order]
            np.testing.assert_array_equal(numbers, raw)


def test_the_real_labels_are_6510_authors_and_a_date_for_every_video(
    sample: Path, featured: Dataset
) -> None:
    plain = cells(sample / "video_features_basic_pure.csv")
    order = np.argsort(np.array(plain["video_id"], dtype=np.int64))
    for name in ("author_id", "upload_dt"):
        labels = featured.item_groups[name]
        decoded = [labels.values[code] for code in labels.codes.tolist()]
        assert decoded == [plain[name][rank] for rank in order], name
        assert name not in {*featured.item_features.codes, *featured.item_features.numbers}
    assert len(featured.item_groups["author_id"].values) - 1 == 6_510
    dates = featured.item_groups["upload_dt"].values
    assert list(dates) == sorted(dates)
    assert (featured.item_groups["upload_dt"].codes > 0).all()


@pytest.mark.parametrize("variant", ["pure", "1k"])
def test_labels_are_of_the_catalogue_and_come_back_from_files(tmp_path: Path, variant: str) -> None:
    tables = files(variant)
    tables[f"video_features_basic_{variant}"] = (
        "video_id,author_id,upload_dt,tag\n"
        "30,12,2022-04-02,1\n20,9,,2\n20,7,2022-04-01,2\n40,,2022-03-30,3\n77,8,2022-04-09,\n"
    )
    dataset = load_uncached(folder(tmp_path, tables))
    # Pure's catalogue holds all described videos, 1K's those of the random log: 20 and 30.
    authors = {20: "9", 30: "12", 40: "", 77: "8"}
    shown = dataset.item_ids[: dataset.n_items].tolist()
    assert shown == ([20, 30, 40, 77] if variant == "pure" else [20, 30])
    labels = dataset.item_groups["author_id"]
    assert [labels.values[code] for code in labels.codes] == [authors[item] for item in shown]
    assert labels.values == (("", "8", "9", "12") if variant == "pure" else ("", "9", "12"))
    assert dataset.item_groups["upload_dt"].codes[0] == 0  # the first row counts, which has none
    assert set(dataset.item_features.codes) == {"tag"}
    if variant == "pure":
        (tmp_path / "again").mkdir()
        write_csv(dataset, tmp_path / "again")
        again = load_uncached(tmp_path / "again")
        for name, labels in dataset.item_groups.items():
            assert again.item_groups[name].values == labels.values
            np.testing.assert_array_equal(again.item_groups[name].codes, labels.codes)
        assert again.fingerprint == dataset.fingerprint


def test_the_real_features_hold_what_is_known_of_them(featured: Dataset) -> None:
    users, items, notes = featured.user_features, featured.item_features, featured.notes
    degree = users.values["user_active_degree"]
    counts = Counter(degree[code] for code in users.codes["user_active_degree"][:, 0])
    assert counts == {
        "full_active": 17_959,
        "high_active": 6_158,
        "middle_active": 2_133,
        "2_14_day_new": 635,
        "low_active": 300,
        "single_low_active": 68,
        "30day_retention": 15,
        "day_new": 11,
        "UNKNOWN": 6,
    }
    assert "-124" in users.values["is_live_streamer"]
    assert items.codes["tag"].shape == (7_583, 3)
    assert len(items.values["tag"]) == 47
    assert notes["user_features.user_active_degree.undocumented"] == 635 + 300 + 68 + 15 + 11
    assert notes["user_features.onehot_feat4.missing"] == 874
    for number in range(12, 18):
        assert notes[f"user_features.onehot_feat{number}.missing"] == 714
    assert notes["video_features_basic.tag.missing"] == 96
    assert notes["video_features_basic.video_duration.missing"] == 239
    assert notes["video_features_basic.music_type.missing"] == 203
    video_type = items.values["video_type"]
    types = Counter(video_type[code] for code in items.codes["video_type"][:, 0])
    assert (types["AD"], types["UNKNOWN"]) == (76, 1)


def test_real_rows_are_read_once_and_by_their_time(real_data, tmp_path: Path) -> None:
    """In the order of ``time_ms``, not of ``hourmin``; 124 rows stand there twice."""
    folder = real_data("kuairand_real")
    rows = pd.read_csv(folder / "log_standard_27k_liked_or_hated.tsv", sep="\t")
    rows = rows.assign(is_like=rows["label"], is_hate=1 - rows["label"], is_rand=0, tab=1)
    shown = pd.read_csv(folder / "log_random_1k_first_161_rows.csv")
    for name, log in zip((*STANDARD, RANDOM), (rows[::2], rows[1::2], shown), strict=True):
        log.to_csv(tmp_path / f"{name}_1k.csv", index=False)
    dataset = load_uncached(tmp_path)
    assert len(dataset.log) == 41_828 - 124
    assert dataset.notes["standard_rows_repeated"] == 124
    pairs = pd.DataFrame({"user": dataset.log.users, "item": dataset.log.items})
    assert pairs.duplicated().sum() == 433 - 124  # shown again at another time
    read = pd.concat([rows[::2], rows[1::2]])  # rows of one moment stay as they are in the files
    first = read.drop_duplicates(["user_id", "video_id", "time_ms"])
    first = first.sort_values(["user_id", "time_ms"], kind="stable")
    np.testing.assert_array_equal(dataset.item_ids[dataset.log.items], first["video_id"])
    by_hour = first.sort_values(["user_id", "date", "hourmin", "time_ms"], kind="stable")
    assert (by_hour["video_id"].to_numpy() != first["video_id"].to_numpy()).any()
    assert len(dataset.test) + len(dataset.randomised or ()) == 161
