"""Tables of any origin as datasets: ``load_dataset("table", log=...)``."""

from __future__ import annotations

import gzip
import re
import time
from pathlib import Path

import duckdb
import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

import kuaisim_gym  # noqa: F401  (registers the environments)
from kuaisim_gym import load_dataset
from kuaisim_gym.data import Dataset, LabelLog, PositiveLog, ResponseLog, write_csv
from kuaisim_gym.data.__main__ import main
from kuaisim_gym.data.coding import most_values
from kuaisim_gym.data.custom import inputs
from kuaisim_gym.data.custom import source as sources
from kuaisim_gym.data.custom.source import TableSource
from kuaisim_gym.data.split import id_bits, mixed, uniform
from kuaisim_gym.errors import (
    ConfigError,
    DataFormatError,
    DatasetNotFoundError,
    KuaiSimError,
)

LOG = pd.DataFrame(
    {
        "user_id": [7, 7, 7, 3, 3, 5],
        "item_id": [20, 10, 30, 10, 20, 40],
        "rating": [1, 5, 3, 2, 4, 5],
        "timestamp": [3, 1, 2, 9, 8, 1],
    }
)
TEST = pd.DataFrame({"user_id": [3, 5], "item_id": [30, 20], "rating": [5, 2]})


def load(log=LOG, test=TEST, **options) -> Dataset:
    options = {"rating_map": (1, 5), "name": "shop", **options}
    return load_dataset("table", log=log, test=test, **options)


def cells(dataset: Dataset, table: str = "log") -> list[tuple[object, object, float]]:
    """Rows in order, by the data's own ids."""
    rows = getattr(dataset, table)
    ids = dataset.user_ids[rows.users].tolist(), dataset.item_ids[rows.items].tolist()
    return list(zip(*ids, rows.response.tolist(), strict=True))


# ---- answers ----


def test_ratings_are_spread_over_responses_in_the_order_of_time() -> None:
    shop = load()
    assert isinstance(shop.log, ResponseLog) and isinstance(shop.test, ResponseLog)
    assert shop.user_ids.tolist() == [3, 5, 7]
    assert shop.item_ids.tolist() == [20, 30, 10, 40]  # the catalogue of given test rows first
    assert shop.n_items == 2
    expected = [(3, 20, 0.75), (3, 10, 0.25), (5, 40, 1.0)]
    assert cells(shop) == [*expected, (7, 10, 1.0), (7, 30, 0.5), (7, 20, 0.0)]
    assert cells(shop, "test") == [(3, 30, 1.0), (5, 20, 0.25)]
    assert (shop.name, shop.source, shop.synthetic) == ("shop", "table", False)
    assert "train and test split by given test rows" in shop.description
    assert shop.user_ids[shop.train_users].tolist() == [7]


def test_the_catalogue_can_be_all_items() -> None:
    shop = load(catalogue="all")
    assert (shop.item_ids.tolist(), shop.n_items) == ([10, 20, 30, 40], 4)


def test_ratings_from_a_threshold_on_are_positive() -> None:
    shop = load(rating_map=None, positive_from=3)
    assert isinstance(shop.log, LabelLog)
    assert [response for *_, response in cells(shop)] == [1, 0, 1, 1, 1, 0]
    assert [response for *_, response in cells(shop, "test")] == [1, 0]


def test_responses_and_labels() -> None:
    answers = pd.DataFrame({"User": [1, 1], "Item": [1, 2], "Response": [0.25, 1]})
    unbiased = pd.DataFrame({"User": [2, 2], "Item": [1, 2], "Response": [0.5, 0]})
    shop = load(answers, unbiased, rating_map=None)
    assert cells(shop) == [(1, 1, 0.25), (1, 2, 1)]
    labels = {"columns": {"label": "Response"}, "rating_map": None}
    shop = load(answers.assign(Response=[True, False]), unbiased.round(), **labels)
    assert isinstance(shop.log, LabelLog)
    assert cells(shop) == [(1, 1, 1), (1, 2, 0)]
    assert shop.popularity == "exposures"


def test_rows_without_an_answer_are_positives_beside_labels() -> None:
    log = LOG.drop(columns="rating")
    labels = TEST.rename(columns={"rating": "label"}).assign(label=[1, 0])
    shop = load(log, labels, rating_map=None)
    assert isinstance(shop.log, PositiveLog) and isinstance(shop.test, LabelLog)
    assert (shop.popularity, set(shop.log.response)) == ("positives", {1.0})
    assert shop.test.response.tolist() == [1, 0]
    ignored = load(LOG, labels, columns={"rating": None}, rating_map=None)
    assert ignored.fingerprint == shop.fingerprint


# ---- forms of tables ----


def as_frame(frame: pd.DataFrame, folder: Path, name: str) -> object:
    return frame


def as_csv(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.to_csv(folder / f"{name}.csv", index=False)
    return folder / f"{name}.csv"


def as_gz(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.to_csv(folder / f"{name}.csv.gz", index=False)
    return str(folder / f"{name}.csv.gz")


def as_tsv(frame: pd.DataFrame, folder: Path, name: str) -> object:
    frame.to_csv(folder / f"{name}.tsv", index=False, sep="\t")
    return folder / f"{name}.tsv"


def as_parquet(frame: pd.DataFrame, folder: Path, name: str) -> object:
    file = folder / f"{name}.parquet"
    with duckdb.connect() as connection:
        connection.register("frame", frame)
        connection.execute(f"COPY (SELECT * FROM frame) TO '{file}' (FORMAT parquet)")
    return file


def as_parts(frame: pd.DataFrame, folder: Path, name: str) -> object:
    return [as_csv(frame[:1], folder, f"{name}_1"), as_csv(frame[1:], folder, f"{name}_2")]


FORMS = [as_frame, as_csv, as_gz, as_tsv, as_parquet, as_parts]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("text_ids", [False, True], ids=["whole", "text"])
def test_all_forms_of_a_table_are_the_same_dataset(tmp_path: Path, form, text_ids) -> None:
    log, test = LOG, TEST
    if text_ids:
        log, test = (x.assign(user_id=x.user_id.map("u-{}".format)) for x in (log, test))
    expected = load(log, test)
    assert expected.user_ids.tolist() == (["u-3", "u-5", "u-7"] if text_ids else [3, 5, 7])
    shop = load(form(log, tmp_path, "log"), form(test, tmp_path, "test"))
    assert shop.fingerprint == expected.fingerprint
    again = load(form(log, tmp_path, "log"), form(test, tmp_path, "test"))
    assert (again.fingerprint, again.notes) == (shop.fingerprint, shop.notes)


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        stem, _, ending = name.rpartition("_")
        (folder / f"{stem.replace('__', '.')}.{ending}").write_text(text, encoding="utf-8")
    return folder


INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\tprice:float\n"


def test_a_folder_of_recbole(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "ml",
        ml_inter=INTER + 'a\t1\t1\t30.5\na\t2\t5\t1\nb\t1\t3\t4\nb\t"x\t4\t5\n',
        ml_item=ITEM + '1\tA "b\t1995\tDrama Crime\t2.5\n"x\tC\t1996\tDrama\t\n',
        ml_user="user_id:token\tage:token\nb\t33\n",
    )
    shop = load_dataset("table", folder, rating_map=(1, 5), test_share=0.5, history_share=0)
    assert shop.name == "ml"
    assert shop.item_ids.tolist() == ['"x', "1", "2"]
    features = shop.item_features
    assert features.values["class"] == ("", "Crime", "Drama")
    assert features.codes["class"].tolist() == [[2, 0], [2, 1], [0, 0]]
    assert features.values["release_year"] == ("", "1995", "1996")
    np.testing.assert_equal(features.numbers["price"], [np.nan, 2.5, np.nan])
    assert shop.user_features.values["age"] == ("", "33")
    by_file = load_dataset("table", log=folder / "ml.inter", rating_map=(1, 5), test_share=0.5)
    assert by_file.item_features.values == features.values


def test_recbole_s_own_split(tmp_path: Path) -> None:
    head = "user_id:token\titem_id:token\n"
    folder = write(
        tmp_path / "ml",
        ml__train_inter=head + "1\t1\n1\t2\n",
        ml__valid_inter=head + "2\t2\n",
        ml__test_inter=head + "2\t1\n1\t3\n",
    )
    shop = load_dataset("table", folder)
    assert cells(shop) == [(1, 1, 1), (1, 2, 1), (2, 2, 1)]
    assert cells(shop, "test") == [(1, 3, 1), (2, 1, 1)]


def test_a_folder_of_files_with_telling_names(tmp_path: Path) -> None:
    write(
        tmp_path,
        ratings_csv="userId,movieId,rating,timestamp\n1,1,4,10\n1,2,5,11\n2,1,1,12\n2,2,3,13\n",
        movies_csv="movieId,title,genres\n1,A,Crime|Drama\n2,B,Drama\n",
        links_csv="movieId\n1\n",
    )
    genres = {"item_features": {"genres": "|"}}
    shop = load_dataset("table", tmp_path, rating_map=(1, 5), name="films", **genres)
    assert shop.item_features.codes["genres"].tolist() == [[1, 2], [2, 0]]
    write(tmp_path, log_csv="user,item\n1,1\n")
    with pytest.raises(DataFormatError, match=r"several files that could be log: \['log.csv'"):
        load_dataset("table", tmp_path)


def packed(folder: Path) -> Path:
    """The same folder, each of its files compressed."""
    for file in list(folder.iterdir()):
        (folder / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    return folder


def test_compressed_tables_are_read_as_all_others(tmp_path: Path) -> None:
    """Each optional one, too."""
    named = write(
        tmp_path / "named",
        log_csv="user,item\n1,1\n1,2\n",
        test_csv="user,item\n2,1\n2,2\n",
        items_csv="item,genre\n1,Crime\n2,Drama\n",
        users_tsv="user\tage\n1\t33\n2\t44\n",
    )
    atomic = write(
        tmp_path / "atomic",
        atomic_inter="user_id:token\titem_id:token\n1\t1\n1\t2\n",
        atomic__test_inter="user_id:token\titem_id:token\n2\t1\n2\t2\n",
        atomic_item="item_id:token\tgenre:token\n1\tCrime\n2\tDrama\n",
        atomic_user="user_id:token\tage:token\n1\t33\n2\t44\n",
    )
    for folder in (named, atomic):
        expected = load_dataset("table", folder)
        dataset = load_dataset("table", packed(folder))
        assert dataset.fingerprint == expected.fingerprint
        assert list(dataset.item_features.codes) == ["genre"]
        assert list(dataset.user_features.codes) == ["age"]
        assert cells(dataset, "test") == [(2, 1, 1), (2, 2, 1)]


HEAD = "user_id:token\titem_id:token\n"


@pytest.mark.parametrize("twin", ["ml.inter.gz", "ml.item.gz", "ml.train.inter", "ml.valid.inter"])
def test_of_two_files_of_one_table_none_is_chosen(tmp_path: Path, twin: str) -> None:
    folder = write(tmp_path / "ml", ml_inter=HEAD + "1\t1\n", ml_item="item_id:token\n1\n")
    (folder / twin).write_text(HEAD)
    other = "ml.item" if "item" in twin else "ml.inter"
    for path in (folder, folder / "ml.inter"):
        with pytest.raises(DataFormatError, match=f"holds {other} and {twin}. Remove one"):
            load_dataset("table", path)


def test_what_is_called_as_a_table_but_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, log_csv="user,item\n1,1\n1,2\n")
    (tmp_path / "items.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataFormatError, match="items.csv is a dead link; expected a file"):
        load_dataset("table", tmp_path)
    write(tmp_path / "ml", ml_inter=HEAD + "1\t1\n")
    (tmp_path / "ml" / "ml.user").mkdir()
    with pytest.raises(DataFormatError, match="ml.user is a folder; expected a file"):
        load_dataset("table", tmp_path / "ml")


def test_tables_in_forms_that_are_not_read_are_named(tmp_path: Path, caplog) -> None:
    folder = write(tmp_path / "ml", ratings_csv="user,item\n1,1\n1,2\n2,1\n2,2\n", users_dat="1")
    write(folder, movies_json="1", notes_dat="1", log_txt="1")
    load_dataset("table", folder, test_share=0.5)
    for name in ("users.dat", "movies.json"):
        assert f"{folder / name} is not read: expected one of .csv, .tsv" in caplog.text
    assert "notes.dat" not in caplog.text
    assert "log.txt" not in caplog.text  # there is another one
    lines = "\n".join(TableSource().inspect(folder))
    assert "unread:  users.dat; expected one of" in lines


def test_descriptions_nested_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "shop.toml").write_text("log = " + "[" * 3000)
    with pytest.raises(DataFormatError, match="shop.toml is no well-formed TOML file"):
        load_dataset("table", tmp_path / "shop.toml")


def test_compressed_tables_may_have_several_members_but_no_tail(tmp_path: Path) -> None:
    rows = (b"user,item\n1,1\n", b"1,2\n2,", b"1\n2,2\n")
    file = tmp_path / "log.csv.gz"
    file.write_bytes(b"".join(map(gzip.compress, rows)))
    assert load_dataset("table", file, test_share=0.5).n_users == 2
    for tail, why in ((bytes(512), "bytes behind its end"), (b"junk", "cannot be unpacked")):
        file.write_bytes(b"".join(map(gzip.compress, rows)) + tail)
        with pytest.raises(DataFormatError, match=why):
            load_dataset("table", file, test_share=0.5)


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "shop\udcff", log_csv="user,item\n1,1\n1,2\n2,1\n2,2\n")
    with pytest.raises(KuaiSimError, match="cannot be read .*surrogates not allowed"):
        load_dataset("table", folder, name="shop")


def test_a_list_of_values_has_an_end(tmp_path: Path) -> None:
    """Codes are dense: one cell of 100,000 values would make as many columns."""
    log = pd.DataFrame({"user": [1, 1, 2, 2], "item": [1, 2, 1, 2]})
    for length in (1000, 1001):
        cell = "|".join(map(str, range(length)))
        items = pd.DataFrame({"item": [3, 1, 2], "tags": ["x", "a|b", cell]})
        options = {"log": log, "items": items, "item_features": {"tags": "|"}, "test_share": 0.5}
        if length == 1000:
            dataset = load_dataset("table", **options)
            assert dataset.item_features.codes["tags"].shape == (2, 1000)
            continue
        match = r"data row 3, column 'tags': expected at most 1000 values .* by '\|', got '0\|1\|2"
        with pytest.raises(DataFormatError, match=match) as caught:
            load_dataset("table", **options)
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("n", "most"), [(1, 1000), (2**18, 1000), (2**20, 256), (2**22, 64), (2**30, 64)]
)
def test_lists_may_take_a_gigabyte_or_64_values_each(n: int, most: int) -> None:
    assert most_values(n) == most


def test_tables_that_change_while_they_are_read_give_no_dataset(tmp_path, monkeypatch) -> None:
    text = "user,item\n1,1\n1,2\n2,1\n2,2\n"
    folder = write(tmp_path / "shop", log_csv=text)
    note = sources.add_note  # which is called between the files and the end

    def note_slowly(*arguments: object) -> None:
        write(folder, log_csv=text + "3,1\n")
        note(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(sources, "add_note", note_slowly)
        with pytest.raises(DataFormatError, match="changed while it was read"):
            load_dataset("table", folder, test_share=0.5)
    assert load_dataset("table", folder, test_share=0.5).n_users == 3


# ---- ids ----


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["1", "2.0", "10"], [1, 2, 10]),
        ([1.0, 2.0, 10.0], [1, 2, 10]),
        ([2**62, 5, -1], [-1, 5, 2**62]),
        (["1", "02", "10"], ["02", "1", "10"]),
        ([" b", "a ", "é"], ["a", "b", "é"]),
        ([1.5, 2.0, 3.0], ["1.5", "2.0", "3.0"]),
    ],
)
def test_ids_are_whole_numbers_where_all_are(ids, expected) -> None:
    log = pd.DataFrame({"user": ids, "item": [1, 2, 3]})
    shop = load_dataset("table", log=log, test_share=0.5)
    assert shop.user_ids.tolist() == expected
    kind = "i" if isinstance(expected[0], int) else "U"
    assert shop.user_ids.dtype.kind == kind


def test_text_ids_in_all_interfaces(tmp_path: Path) -> None:
    from kuaisim_gym import build_simulator
    from kuaisim_gym.errors import UnknownIdError

    shop = load_dataset("table", log=many(text=True), rating_map=(1, 5), name="shop")
    simulator = build_simulator(shop, "train")
    user, item = shop.user_ids[3], shop.item_ids[2]
    alone = simulator.probability(user, item)
    pairs = simulator.probability(shop.user_ids[:4, None], shop.item_ids[None, :3])
    assert pairs.shape == (4, 3)
    assert pairs[3, 2] == pytest.approx(float(alone), abs=1e-6)
    with pytest.raises(UnknownIdError, match="user id nobody is not in the dataset"):
        simulator.probability("nobody", item)
    with pytest.raises(UnknownIdError, match="Expected string user ids, got an array of int"):
        simulator.probability(3, item)
    env = gym.make("Recommendation-Fair-v0", dataset=shop, render_mode="ansi")
    _, info = env.reset(seed=1)
    assert info["user_id"] in shop.user_ids.tolist()
    env.step(env.action_space.sample())
    assert f"user {info['user_id']}" in str(env.render())
    envs = gym.make_vec("Recommendation-Fair-v0", num_envs=3, dataset=shop)
    _, infos = envs.reset(seed=1)
    assert infos["user_id"][0] == info["user_id"]
    assert envs.world == "shop (real)"
    with pytest.raises(ConfigError, match="table has no published format to write"):
        write_csv(shop, tmp_path)


# ---- duplicated, missing, contradictory rows ----


def test_the_last_row_of_a_pair_stays_and_the_others_are_counted() -> None:
    log = pd.DataFrame(
        {
            "user": [1, 1, 1, 1, 2, 2],
            "item": [5, 5, 5, 6, 5, 5],
            "response": [0.1, 0.2, 0.9, 0.3, 0.4, 0.4],
            "time": [3, 9, np.nan, 1, 4, 5],
        }
    )
    test = pd.DataFrame({"user": [2], "item": [6], "response": [1.0]})
    shop = load(log, test, rating_map=None, catalogue="all")
    assert [(user, item) for user, item, _ in cells(shop)] == [(1, 6), (1, 5), (2, 5)]
    np.testing.assert_allclose(shop.log.response, [0.3, 0.2, 0.4])
    assert shop.notes["log.contradictory_rows_dropped"] == 2
    assert shop.notes["log.repeated_rows_dropped"] == 1
    assert shop.notes["log.rows_without_time"] == 1
    timeless = load(log.drop(columns="time"), test, rating_map=None, catalogue="all")
    np.testing.assert_allclose(timeless.log.response, [0.9, 0.3, 0.4])


def test_incomplete_rows_and_rows_of_test_cells_are_dropped_and_counted() -> None:
    log = pd.DataFrame(
        {
            "user": ["a", None, "b", " ", "b", "a"],
            "item": [1, 1, None, 2, 2, 2],
            "label": [1, 1, 1, 1, None, 0],
        }
    )
    test = pd.DataFrame({"user": ["a", "b"], "item": [2, 1], "label": [1, 0]})
    shop = load(log, test, rating_map=None)
    assert cells(shop) == [("a", 1, 1)]
    names = ("rows_without_user", "rows_without_item", "rows_without_answer")
    assert [shop.notes[f"log.{name}"] for name in names] == [2, 1, 1]
    assert shop.notes["log.rows_of_test_cells_dropped"] == 1


# ---- splits ----


def many(users: int = 40, items: int = 30, per_user: int = 12, text: bool = False) -> pd.DataFrame:
    generator = np.random.default_rng(7)
    rows = [
        (user, item)
        for user in range(users)
        for item in generator.choice(items, min(per_user, items), replace=False)
    ]
    log = pd.DataFrame(rows, columns=["user", "item"])
    log["rating"] = generator.integers(1, 6, len(log))
    log["time"] = generator.permutation(len(log))
    if text:
        log["user"], log["item"] = log.user.map("user {}".format), log.item.map("i{}".format)
    return log


def test_a_split_by_user_follows_the_id_alone() -> None:
    log = many()
    options = {"rating_map": (1, 5), "test_share": 0.3}
    shop = load_dataset("table", log=log, **options)
    share = uniform(mixed(id_bits(shop.user_ids))) < 0.3
    assert shop.test_users.tolist() == np.flatnonzero(share).tolist()
    assert 4 <= len(shop.test_users) <= 20
    assert shop.split_by == "user"
    assert "split by user (a hash of the id makes 30% test users; the first 50%" in shop.description
    for user in shop.test_users:  # the earlier half stays in the log
        logged = log[log.user == user].sort_values("time").item.tolist()
        history = shop.log.items[shop.log.users == user].tolist()
        assert (history, shop.test.items[shop.test.users == user].tolist()) == (
            logged[:6],
            logged[6:],
        )
    others = log[log.user != shop.test_users[0]]
    fewer = load_dataset("table", log=others.sample(frac=1, random_state=1), **options)
    ids = set(fewer.user_ids[fewer.test_users].tolist())
    assert ids == set(shop.test_users.tolist()) - {int(shop.test_users[0])}


def test_without_times_the_test_rows_do_not_depend_on_the_order_of_rows() -> None:
    log = many().drop(columns="time")
    options = {"rating_map": (1, 5), "history_share": 0.25}
    shop = load_dataset("table", log=log, **options)
    mixed_up = load_dataset("table", log=log.sample(frac=1, random_state=1), **options)
    assert sorted(cells(shop, "test")) == sorted(cells(mixed_up, "test"))
    counts = np.bincount(shop.test.users)[shop.test_users]
    assert counts.tolist() == [9] * len(shop.test_users)  # 12 rows, of which 3 are history
    assert "25% of their rows, chosen by a hash, stay in the log" in shop.description
    none = load_dataset("table", log=log, rating_map=(1, 5), history_share=0)
    assert not np.isin(none.log.users, none.test_users).any()


def test_a_split_by_time() -> None:
    log = many()
    shop = load_dataset("table", log=log, rating_map=(1, 5), split="time", test_share=0.25)
    late = log[log.time >= 359]  # of 480 moments, by a quantile that is itself a moment
    expected = {(row.user, row.item, (row.rating - 1) / 4) for row in late.itertuples()}
    assert set(cells(shop, "test")) == expected
    assert abs(len(shop.test) - 0.25 * len(log)) <= 1
    at = load_dataset("table", log=log, rating_map=(1, 5), split="time", split_time=400)
    assert len(at.log) == 400 and len(at.test) == len(log) - 400
    assert "split by time (rows from 400 on)" in at.description


def test_dates_are_times(tmp_path: Path) -> None:
    log = many()
    dates = log.assign(time=pd.Timestamp("2024-01-01") + pd.to_timedelta(log.time, "h"))
    options = {"rating_map": (1, 5), "split": "time", "split_time": "2024-01-11"}
    shop = load_dataset("table", log=dates, name="x", **options)
    assert len(shop.log) == 240
    zoned = dates.assign(time=dates.time.dt.tz_localize("UTC"))
    texts = dates.assign(time=dates.time.dt.strftime("%Y-%m-%d %H:%M:%S"))
    for frame in (zoned, texts):
        again = load_dataset("table", log=frame, name="x", **options)
        assert again.fingerprint == shop.fingerprint
    again = load_dataset("table", log=as_csv(dates, tmp_path, "x"), **options)
    assert again.fingerprint == shop.fingerprint


# ---- features, groups, exposures ----

ITEMS = pd.DataFrame(
    {
        "item": [10, 20, 30, 30, 99],
        "author": ["ann", "bo", None, "x", "y"],
        "tags": ["b, a,b", "", "a", "z", "z"],
        "length": [1.5, np.nan, 3.0, 4.0, 5.0],
        "exposures": [7, 0, 2, 3, 50],
        "propensity": [0.5, 0.1, 0.2, 0.4, 0.3],
    }
)


def test_features_exposures_and_groups_of_items() -> None:
    kinds = {"tags": ",", "length": "number"}
    shop = load(items=ITEMS, item_features=kinds, groups=["author"], catalogue="all")
    assert shop.item_features.values == {"tags": ("", "a", "b", "z")}
    assert shop.item_features.codes["tags"].tolist() == [[2, 1], [0, 0], [1, 0], [0, 0]]
    np.testing.assert_equal(shop.item_features.numbers["length"], [1.5, np.nan, 3, np.nan])
    assert shop.item_groups["author"].codes.tolist() == [1, 2, 0, 0]
    assert shop.item_groups["author"].values == ("", "ann", "bo")
    assert shop.show_counts.tolist() == [7, 0, 5, 0]
    assert shop.popularity == "exposures"
    assert shop.notes["item_features.rows_of_unknown_ids_dropped"] == 1
    assert shop.notes["item_features.repeated_rows_dropped"] == 1
    assert shop.notes["exposures.items_without_a_number"] == 1  # item 40 has no row
    assert shop.notes["exposures.items_with_more_log_rows_than_exposures"] == 1  # item 20
    by_propensity = load(items=ITEMS.drop(columns="exposures"), catalogue="all")
    assert by_propensity.show_counts.tolist() == [2, 0, 1, 0]  # times three users, rounded to even


def test_exposures_of_rows_are_summed() -> None:
    shop = load(LOG.assign(impressions=[1, 2, 3, 4, 5, 6]), catalogue="all")
    assert shop.show_counts.tolist() == [2 + 4, 1 + 5, 3, 6]


def test_positives_can_be_counted_in_place_of_exposures() -> None:
    shop = load(items=ITEMS, catalogue="all", popularity="positives")
    assert shop.show_counts.tolist() == [7, 0, 5, 0]
    assert shop.training.popularity_counts.tolist() == [1, 0, 1, 0]  # user 7's, the train user


def test_kinds_of_features_that_nobody_declares(tmp_path: Path) -> None:
    items = pd.DataFrame(
        {
            "item": range(30),
            "title": [f"Film {i}" for i in range(30)],
            "genre": ["Drama", "Crime"] * 15,
            "length": np.linspace(1, 2, 30),
            "stars": [1, 2, 3] * 10,
        }
    )
    options = {"log": many(), "rating_map": (1, 5), "name": "shop"}
    shop = load_dataset("table", items=items, **options)
    assert list(shop.item_features.numbers) == ["length"]
    assert shop.item_features.values == {"genre": ("", "Crime", "Drama"), "stars": ("", *"123")}
    assert shop.notes["item_features.title.left_out"] == 1
    by_file = load_dataset("table", items=as_csv(items, tmp_path, "items"), **options)
    assert by_file.fingerprint == shop.fingerprint


# ---- environments ----


def test_sessions_over_the_items_that_a_user_answered() -> None:
    options = {"rating_map": (1, 5), "name": "shop", "pools": True}
    shop = load_dataset("table", log=many(per_user=24), **options)
    assert shop.pools
    assert play(shop, split="test", slate_size=2, max_len=5) >= 2


FEEDBACKS = {
    "response": {"rating_map": (1, 5)},
    "label": {"positive_from": 4},
    "positives": {"columns": {"rating": None}},
}


def play(dataset: Dataset, env_id: str = "Recommendation-Fair-v0", **options) -> int:
    """Number of steps of a random session."""
    env = gym.make(env_id, dataset=dataset, **options)
    env.action_space.seed(1)
    env.reset(seed=1)
    assert env.unwrapped.world.startswith(f"{dataset.name} (real")
    for step in range(1, 31):
        state, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert np.isfinite(state).all() and 0 <= reward <= 1
        if terminated or truncated:
            return step
    raise AssertionError("The session did not end.")


@pytest.mark.parametrize("feedback", FEEDBACKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_environments_play_any_table(feedback, split) -> None:
    shop = load_dataset("table", log=many(), name="my shop", **FEEDBACKS[feedback])
    assert play(shop, split=split) >= 5
    assert play(shop, "Recommendation-v0", split=split, action_type="slate") >= 5


def test_environments_of_any_data_take_published_worlds_too(small) -> None:
    env = gym.make("Recommendation-Fair-v0", dataset=small)
    assert env.unwrapped.world == "kuairec (synthetic)"
    shop = load_dataset("table", log=many(), rating_map=(1, 5), name="shop")
    with pytest.raises(ConfigError, match=r"simulates kuairec, got a dataset of table. Recomm"):
        gym.make("KuaiRec-Fair-v0", dataset=shop)
    with pytest.raises(ConfigError, match=r"There is no table to read: give the log"):
        gym.make("Recommendation-Fair-v0")


@pytest.mark.parametrize(
    "log",
    [
        many(5, 12, 6),
        many(2, 2, 2),
        many().assign(rating=5),
        many().assign(rating=1),
        many(30, 12, 12),
        many(3, 30, 1),
    ],
    ids=["5 users, 12 items", "2 users, 2 items", "all 1", "all 0", "every cell", "1 row a user"],
)
@pytest.mark.parametrize("feedback", FEEDBACKS)
def test_small_and_constant_tables_play(log, feedback) -> None:
    shop = load_dataset("table", log=log, name="shop", **FEEDBACKS[feedback])
    for split in ("train", "test"):
        env = gym.make("Recommendation-Fair-v0", dataset=shop, split=split)
        slate = env.unwrapped.batch.config.slate_size
        assert slate == min(10, max(1, shop.n_items // 10))
        assert play(shop, split=split) >= 2


def test_sizes_that_cannot_be_are_refused_early() -> None:
    shop = load_dataset("table", log=many(5, 12, 6), rating_map=(1, 5), name="shop")
    with pytest.raises(ConfigError, match=r"slate_size must be at most the catalogue's \d+ items"):
        gym.make("Recommendation-Fair-v0", dataset=shop, slate_size=20)
    with pytest.raises(ConfigError, match="One user alone cannot be split by user"):
        load_dataset("table", log=many(1, 12, 6), rating_map=(1, 5))
    alone = load_dataset("table", log=many(1, 12, 6), rating_map=(1, 5), split="time", name="x")
    assert alone.split_by == "cell"
    assert play(alone, split="test") >= 2
    with pytest.raises(DataFormatError, match=r"catalogue holds 1 item\(s\); at least 2"):
        load(test=TEST[:1])


def test_a_log_without_a_row_of_the_catalogue_plays() -> None:
    test = pd.DataFrame({"user_id": [3, 3, 5], "item_id": [71, 72, 73], "rating": [5, 2, 1]})
    shop = load(LOG, test)
    assert shop.item_ids[: shop.n_items].tolist() == [71, 72, 73]
    assert play(shop, split="train") >= 2
    assert play(shop, split="test") >= 2


# ---- bad input ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rating_map": None},
            r"has ratings in the column 'rating'; say what they mean: rating_map",
        ),
        ({"rating_map": (5, 1)}, r"rating_map must be two ratings, .* got \(5, 1\)"),
        ({"positive_from": 3}, "Give rating_map or positive_from, not both"),
        ({"positive_from": "3", "rating_map": None}, "positive_from must be a finite number"),
        ({"ratingmap": 3}, r"Did you mean 'rating_map'\?"),
        ({"split": "users"}, r"split must be one of .* Did you mean 'user'\?"),
        ({"split": "user"}, "divides the log, but test rows are given too"),
        ({"split": "given", "test": None}, "split='given' needs the test rows"),
        ({"test": None, "test_share": 0}, "test_share must be a number above 0 and below 1, got 0"),
        ({"history_share": 1.0}, "history_share must be a number of at least 0 and below 1"),
        ({"split_time": "soon", "split": "time", "test": None}, "a date such as '2024-05-31'"),
        ({"columns": {"users": "x"}}, r"columns: a role must be one of .* Did you mean 'user'\?"),
        ({"columns": {"user": "x"}}, r"'user' is the column 'x', but the tables have"),
        ({"name": "kuairec"}, "name must be a text that names your data"),
        ({"name": " "}, "name must be a text that names your data"),
        ({"popularity": "counts"}, "popularity must be one of"),
        ({"groups": "author"}, "groups must be a list"),
        ({"groups": ["author"]}, "are columns of items=, not given"),
        ({"items": ITEMS, "groups": ["autor"]}, "groups names the column 'autor', but"),
        ({"items": ITEMS, "item_features": {"x": "number"}}, "item_features names the column 'x'"),
        ({"item_features": {"x": "number"}}, "are columns of a table that is not given"),
        ({"log": 5}, "log must be a pandas DataFrame, a file"),
        ({"log": None}, "There is no table to read"),
        ({"pools": 1}, "pools must be True or False, got 1"),
        ({"positive_rate": 1}, "positive_rate must be a number above 0 and below 1, got 1"),
        ({"catalogue": "test", "test": None}, "catalogue='test' needs test rows"),
        ({"columns": {"rating": None}}, "rating_map is for ratings, but .* no column of ratings"),
        ({"split_time": 5, "test": None}, "split_time is for split='time', got split=None"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load(**options)


def test_other_sources_take_no_options_of_tables() -> None:
    with pytest.raises(ConfigError, match="kuairand takes no options beside path and seed"):
        load_dataset("kuairand", log=LOG)
    assert load_dataset(name="kuairand").name == "kuairand"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rating": [1, 5, 3, 2, 4, 6]},
            r"data row 6, column 'rating': expected a rating in \[1, 5\]",
        ),
        (
            {"rating": [1, "good", 3, 2, 4, 5]},
            r"data row 2, column 'rating': .* got 'good' \(1 such",
        ),
        ({"rating": [1, np.inf, 3, 2, 4, 5]}, r"data row 2, column 'rating': .* got 'inf'"),
        ({"rating": [None] * 6}, "has no complete row"),
        (
            {"timestamp": ["1", "x", "2", "3", "4", "5"]},
            r"data row 2, column 'timestamp': expected",
        ),
        (
            {"timestamp": ["2024-01-01", "2024-13-01", "2024-02-01"] * 2},
            r"data row 2, column 'timestamp': expected a date .* got '2024-13-01' \(2 such",
        ),
        ({"user_id": ["x" * 300] * 6}, "an id of a user has 300 characters"),
        ({"stars": [1] * 6}, r"several columns for 'rating': \['rating', 'stars'\]"),
        ({"label": [1] * 6}, r"several columns of answers: \['rating', 'label'\]"),
        (
            {"impressions": [1, 2, 3, -4, 5, 6]},
            "column 'impressions': expected a count of at least 0",
        ),
    ],
)
@pytest.mark.parametrize("form", [as_frame, as_csv])
def test_bad_cells_are_named_by_row_column_and_value(tmp_path, form, changes, message) -> None:
    log = form(LOG.assign(**changes), tmp_path, "log")
    with pytest.raises(DataFormatError, match=message):
        load(log)


def test_bad_tables_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataFormatError, match=r"has no column of items; it has \['user_id', 'rating"
    ):
        load(LOG[["user_id", "rating"]])
    with pytest.raises(DataFormatError, match=r"labels?.*LabelLog rows|LabelLog rows"):
        load(test=TEST.rename(columns={"rating": "label"}).assign(label=1))
    with pytest.raises(DataFormatError, match="has no rows"):
        load(LOG[:0])
    with pytest.raises(DatasetNotFoundError, match=r"nothing.csv is not there"):
        load(tmp_path / "nothing.csv")
    (tmp_path / "x.xlsx").write_text("x")
    with pytest.raises(ConfigError, match=r"told by its name's ending"):
        load(tmp_path / "x.xlsx")
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(DataFormatError, match=r"x.parquet is not a readable Parquet file"):
        load(tmp_path / "x.parquet")
    (tmp_path / "x.inter").write_text("user_id\titem_id\n1\t2\n")
    with pytest.raises(DataFormatError, match=r"expected a header such as user_id:token"):
        load(tmp_path / "x.inter")
    packed = gzip.compress(b"user_id,item_id,rating\n" + b"1,2,3\n" * 9999)
    (tmp_path / "x.csv.gz").write_bytes(packed[:-20])
    with pytest.raises(DataFormatError, match=r"x.csv.gz cannot be unpacked"):
        load(tmp_path / "x.csv.gz")
    untimed = {"log": LOG.assign(timestamp=np.nan), "rating_map": (1, 5), "split": "time"}
    with pytest.raises(DataFormatError, match="leaves no test rows"):
        load_dataset("table", **untimed)
    with pytest.raises(DataFormatError, match=r"has no column of times; .* time, timestamp, date"):
        load(LOG.drop(columns="timestamp"), None, split="time")
    with pytest.raises(DataFormatError, match="leaves no log rows"):
        load_dataset("table", log=LOG, rating_map=(1, 5), split="time", split_time=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DatasetNotFoundError, match="holds no log: expected a file called log"):
        load_dataset("table", empty)


def test_lists_in_cells_are_refused(tmp_path: Path) -> None:
    lists = LOG.assign(item_id=[[item] for item in LOG.item_id])
    for form in (as_frame, as_parquet):
        with pytest.raises(DataFormatError, match="column 'item_id': expected one value in a cell"):
            load(form(lists, tmp_path, "log"))


def test_duplicate_columns_of_a_frame_are_refused() -> None:
    frame = LOG.set_axis(["user_id", "item_id", "rating", "rating"], axis=1)
    with pytest.raises(DataFormatError, match="repeats a column"):
        inputs.make_input(frame, "log")


def test_a_hundred_thousand_rows_are_soon_played(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    generator = np.random.default_rng(3)
    log = {
        "user": generator.integers(0, 5000, 100_000),
        "item": generator.integers(0, 2000, 100_000),
    }
    log |= {"rating": generator.integers(1, 6, 100_000), "time": np.arange(100_000)}
    file = as_csv(pd.DataFrame(log), tmp_path, "log")
    start = time.process_time()
    shop = load_dataset("table", log=file, rating_map=(1, 5))
    env = gym.make("Recommendation-Fair-v0", dataset=shop)
    env.reset(seed=1)
    env.step(env.action_space.sample())
    assert time.process_time() - start < 10


# ---- the command ----


def test_check_says_what_it_found_and_what_it_read(tmp_path: Path, capsys) -> None:
    as_csv(LOG, tmp_path, "ratings")
    as_csv(ITEMS, tmp_path, "items")
    assert main(["check", str(tmp_path), "--rating-map", "1", "5", "--name", "shop"]) == 0
    out = capsys.readouterr().out
    for text in (
        "your own data, called 'shop'",
        "ratings.csv; user = user_id, item = item_id, rating = rating, time = timestamp",
        "items.csv; item = item, exposures = exposures, propensity = propensity",
        "features: author, tags, length",
        "missing: users, which is optional; users have no features",
        "read:    shop (real): 3 users",
        "popular: counted by exposures",
        "item_features.rows_of_unknown_ids_dropped: 1",
        "rating_map=(1.0, 5.0)",
    ):
        assert text in out


def test_check_says_what_stands_for_answers_exposures_and_features(tmp_path: Path, capsys) -> None:
    rows = [{"user": n % 4, "item": n // 4} for n in range(40)]
    log = as_csv(pd.DataFrame(rows), tmp_path, "log")
    assert main(["check", str(log)]) == 0
    out = capsys.readouterr().out
    assert "no column of answers: every row is a positive" in out
    assert "popular: counted by positives\n" in out
    assert main(["check", str(as_csv(pd.DataFrame(rows).assign(label=1), tmp_path, "log"))]) == 0
    out = capsys.readouterr().out
    assert "every row is a positive" not in out
    assert "popular: counted by exposures, the rows of the train log\n" in out
    items = pd.DataFrame({"item": range(10), "kind": list("ab") * 5, "author": 1, "title": "x"})
    source = TableSource(
        log=log, items=items, item_features={"kind": "category"}, groups=["author"]
    )
    lines = source.inspect(None)
    assert "         features: kind" in lines and "         groups: author" in lines
    assert "         not read: title" in lines


def test_check_refuses_bad_data_in_a_sentence(tmp_path: Path, capsys) -> None:
    as_csv(LOG.assign(rating=9), tmp_path, "ratings")
    assert main(["check", str(tmp_path), "--rating-map", "1", "5"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert "ratings.csv, data row 1, column 'rating'" in error
    assert main(["check", str(tmp_path)]) == 2
    assert "say what they mean: rating_map" in capsys.readouterr().err


def test_check_of_published_files(real_folder: Path, tmp_path: Path, capsys) -> None:
    assert main(["check", str(real_folder)]) == 0
    out = capsys.readouterr().out
    assert "source:  kuairec, the files of KuaiRec" in out
    assert "missing: user_features.csv, which is optional" in out
    (tmp_path / "big_matrix.csv").write_text("user_id,video_id,watch_ratio\n1,1,1\n")
    assert main(["check", str(tmp_path)]) == 2
    assert "small_matrix.csv is missing" in capsys.readouterr().err


def test_check_of_several_datasets_says_what_to_choose(tmp_path: Path, capsys) -> None:
    rows = "user_id,video_id,watch_ratio\n1,1,1\n2,1,1\n1,2,0\n2,2,1\n"
    (tmp_path / "big_matrix.csv").write_text(rows)
    (tmp_path / "small_matrix.csv").write_text(rows)
    as_csv(LOG, tmp_path, "ratings")
    assert main(["check", str(tmp_path), "--rating-map", "1", "5"]) == 2
    error = capsys.readouterr().err
    assert "holds the files of several datasets (kuairec: " in error
    assert "ratings.csv" in error and "--source kuairec or table" in error
    options = ["--source", "table", "--rating-map", "1", "5", "--name", "shop"]
    assert main(["check", str(tmp_path), *options]) == 0
    assert "read:    shop (real)" in capsys.readouterr().out
    above = tmp_path.parent / "above"
    (above / "a").mkdir(parents=True)
    as_csv(LOG, above / "a", "ratings")
    assert main(["check", str(above)]) == 2
    assert re.search(r"holds no log, but folders in it do: \[.*a'\]", capsys.readouterr().err)
    as_csv(LOG, above / "a", "log")
    assert main(["check", str(above / "a")]) == 2
    assert "several files that could be log: ['log.csv', 'ratings.csv']" in capsys.readouterr().err


def test_check_prints_no_count_of_what_did_not_occur(real_folder: Path, capsys) -> None:
    assert main(["check", str(real_folder)]) == 0
    out = capsys.readouterr().out
    assert "log_only_items: 182" in out
    assert ": 0\n" not in out


TOML = 'log = "ratings.csv"\nrating_map = [1, 5]\nname = "shop"\n'


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("log =", DataFormatError, "is no well-formed TOML file"),
        (TOML + "rating_mab = 1", ConfigError, r"x.toml: an option must be .*mean 'rating_map'"),
        (TOML.replace('"ratings.csv"', "3"), DataFormatError, "log must be a path, or a list"),
        (TOML.replace('"ratings.csv"', "[]"), DataFormatError, "log must be a path, or a list"),
        (TOML.replace("ratings", "no"), DatasetNotFoundError, "no.csv is not there"),
        (TOML.replace("[1, 5]", "5"), ConfigError, "rating_map must be two ratings"),
        ('name = "shop"', ConfigError, "There is no table to read"),
        (TOML.replace("rating_map = [1, 5]", ""), ConfigError, "say what they mean: rating_map"),
    ],
)
def test_a_file_that_describes_no_dataset_is_refused(tmp_path, text, error, message) -> None:
    as_csv(LOG, tmp_path, "ratings")
    (tmp_path / "x.toml").write_text(text)
    with pytest.raises(error, match=message):
        load_dataset("table", tmp_path / "x.toml")


def test_a_file_that_describes_a_dataset_holds_all_options(tmp_path: Path) -> None:
    as_csv(LOG, tmp_path, "ratings")
    (tmp_path / "x.toml").write_text(TOML + 'columns = {time = ""}\nsplit = "user"\n')
    shop = load_dataset("table", tmp_path / "x.toml")
    expected = load_dataset(
        "table", log=LOG, rating_map=(1, 5), name="shop", columns={"time": None}
    )
    assert shop.fingerprint == expected.fingerprint
    with pytest.raises(ConfigError, match=r"holds all options .* write \['test_share'\] into it"):
        load_dataset("table", tmp_path / "x.toml", test_share=0.5)
    with pytest.raises(DatasetNotFoundError, match=r"y.toml is missing"):
        load_dataset("table", tmp_path / "y.toml")
