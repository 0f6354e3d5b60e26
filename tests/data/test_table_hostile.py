"""Tables as clumsy and hostile users have them: they are read rightly, or refused when loaded."""

from __future__ import annotations

from pathlib import Path

import duckdb
import gymnasium as gym
import numpy as np
import pandas as pd
import pytest

import kuaisim_gym  # noqa: F401  (registers the environments)
from kuaisim_gym import load_dataset
from kuaisim_gym.data import Dataset
from kuaisim_gym.data.custom import TableSource
from kuaisim_gym.errors import ConfigError, DataFormatError, KuaiSimError

N_USERS, N_ITEMS = 12, 30


def every_pair() -> pd.DataFrame:
    users, items = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    log = pd.DataFrame({"user": users, "item": items})
    log["rating"], log["time"] = (users + items) % 5 + 1, np.arange(len(log))
    return log[(users * 7 + items) % 3 > 0].reset_index(drop=True)


LOG = every_pair()
ITEMS = pd.DataFrame(
    {
        "item": range(N_ITEMS),
        "author": [f"a{item % 3}" for item in range(N_ITEMS)],
        "length": np.linspace(1, 2, N_ITEMS),
    }
)
TEST = pd.DataFrame({"user": [1, 2, 90], "item": [3, 4, 95], "rating": [1, 2, 3]})


def load(log: object = LOG, **options) -> Dataset:
    defaults = {"rating_map": (1, 5), "name": "shop"}
    return load_dataset("table", log=log, **{**defaults, **options})


def play(dataset: Dataset, **options) -> None:
    """One step of both interfaces on both splits."""
    for split in ("train", "test"):
        env = gym.make("Recommendation-Fair-v0", dataset=dataset, split=split, **options)
        env.reset(seed=1)
        assert env.unwrapped.world.startswith(dataset.name)
        env.action_space.seed(1)
        state, reward, *_ = env.step(env.action_space.sample())
        assert np.isfinite(state).all() and 0 <= reward <= 1
        envs = gym.make_vec(
            "Recommendation-Fair-v0", num_envs=3, dataset=dataset, split=split, **options
        )
        envs.reset(seed=1)
        envs.action_space.seed(1)
        assert np.isfinite(envs.step(envs.action_space.sample())[1]).all()


def cell(column: str, value: object, row: int = 3) -> pd.DataFrame:
    cells = LOG[column].astype(object)
    cells[row] = value
    return LOG.assign(**{column: cells})


def as_type(column: str, dtype: object) -> pd.DataFrame:
    return LOG.assign(**{column: LOG[column].astype(dtype)})


# ---- tables that say the same in another way ----

DATES = pd.Timestamp("2024-01-01") + pd.to_timedelta(LOG.time, "h")
SAME = {
    "shuffled": LOG.sample(frac=1, random_state=1),
    "twice": pd.concat([LOG, LOG]),
    "index of zeros": LOG.set_axis([0] * len(LOG), axis=0),
    "an index that pandas wrote": LOG.assign(**{"Unnamed: 0": range(len(LOG))}),
    "sparse": as_type("rating", pd.SparseDtype(int)).assign(user=LOG.user.astype("Sparse[int]")),
    "categories": LOG.astype(dict.fromkeys(LOG, "category")),
    "nullable": LOG.astype(dict.fromkeys(LOG, "Int64")),
    "texts": LOG.astype(dict.fromkeys(LOG, "string")),
    "objects": LOG.astype(dict.fromkeys(LOG, object)),
    "floats": LOG.astype(dict.fromkeys(LOG, float)),
    "small integers": LOG.astype({"user": "int8", "item": "uint8", "rating": "float16"}),
    "integers and texts": LOG.assign(user=[u if u % 2 else f"{u}.0" for u in LOG.user]),
    "dates": LOG.assign(time=DATES),
    "dates of a zone": LOG.assign(time=DATES.dt.tz_localize("Europe/Berlin")),
    "dates of objects": LOG.assign(time=DATES.astype(object)),
    "texts of dates": LOG.assign(time=DATES.astype(str)),
    "an incomplete row": pd.concat([LOG, LOG[:1].assign(user=None, time=-1)]),
    "columns that only case tells apart": LOG.assign(USER=0, Rowid=1),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_table_in_another_form_is_the_same_dataset(name: str) -> None:
    columns = {"columns": {"user": "user"}} if "USER" in SAME[name] else {}
    dataset = load(SAME[name], **columns)
    assert dataset.fingerprint == load().fingerprint
    assert sum(dataset.notes.values()) > 0 and 0 not in dataset.notes.values()


def test_what_is_dropped_is_counted() -> None:
    noisy = pd.concat([SAME["an incomplete row"], LOG, LOG.assign(rating=6 - LOG.rating)])
    notes = load(noisy).notes
    same = int((LOG.rating == 3).sum())
    assert notes["log.rows_without_user"] == 1
    assert notes["log.repeated_rows_dropped"] == 2 * same
    assert notes["log.contradictory_rows_dropped"] == 2 * (len(LOG) - same)
    assert notes["log_rows"] + notes["test_rows"] == len(LOG)


@pytest.mark.parametrize("form", ["frame", "csv", "parquet"])
def test_ids_of_items_as_floats_are_those_of_the_log(tmp_path: Path, form: str) -> None:
    items = ITEMS.assign(item=ITEMS.item.where(ITEMS.item > 3))  # four gaps make floats of all
    table: object = items
    if form == "csv":
        table = tmp_path / "items.csv"
        items.to_csv(table, index=False)
    if form == "parquet":
        table = tmp_path / "items.parquet"
        duckdb.from_df(items).to_parquet(str(table))
    dataset = load(items=table, groups=["author"])
    assert dataset.item_groups["author"].codes.tolist() == [0] * 4 + [
        item % 3 + 1 for item in range(4, N_ITEMS)
    ]
    assert dataset.notes["item_features.rows_of_unknown_ids_dropped"] == 4
    users = pd.DataFrame({"user": np.arange(N_USERS, dtype=float), "sex": ["f", "m"] * 6})
    assert load(users=users).user_features.codes["sex"].ravel().tolist() == [1, 2] * 6


NAMES = ["id", "rowid", "id_text", "id_position", "AUTHOR", 'x AS "y', 'a"b', "", "select", "c0"]


@pytest.mark.parametrize("form", ["frame", "csv"])
@pytest.mark.parametrize("name", NAMES)
def test_columns_may_have_any_name(tmp_path: Path, form: str, name: str) -> None:
    items = ITEMS.assign(**{name: ["x", "y"] * 15, f"{name}2": np.linspace(5, 6, N_ITEMS)})
    table: object = items[::-1]
    if form == "csv":
        table = tmp_path / "items.csv"
        items[::-1].to_csv(table, index=False)
    features = load(items=table).item_features
    assert features.codes["author"].ravel().tolist() == [1, 2, 3] * 10
    np.testing.assert_allclose(features.numbers[f"{name}2"], np.linspace(5, 6, N_ITEMS))
    if name:
        assert features.codes[name].ravel().tolist() == [1, 2] * 15
    else:  # a column without a name, such as an index, is no feature
        assert name not in features.codes
        assert load(items=table).notes["item_features.columns_without_a_name"] == 1


# ---- tables that cannot be read ----

BAD_CELLS = [
    ("rating", np.inf, "expected a rating in"),
    ("rating", -1, "expected a rating in"),
    ("rating", "good", "got 'good'"),
    ("rating", "nan", "got 'nan'"),
    ("rating", 1 + 2j, "expected a rating in"),
    ("rating", [1], "expected one value in a cell"),
    ("rating", b"x", "expected a rating in"),
    ("rating", "\ud800", "expected a text in UTF-8, got '\\\\ud800'"),
    ("user", "a\x00", "expected a text without NUL characters"),
    ("user", "\ud800", "expected a text in UTF-8"),
    ("item", {"a": 1}, "expected one value in a cell"),
    ("time", "2024-01-01", "expected a time, as a number or a date"),
    ("time", np.inf, "expected a time"),
]


@pytest.mark.parametrize(("column", "value", "message"), BAD_CELLS)
def test_a_bad_cell_is_named(column: str, value: object, message: str) -> None:
    with pytest.raises(DataFormatError, match=f"data row 4, column '{column}': .*{message}"):
        load(cell(column, value))


@pytest.mark.parametrize("word", ["infinity", "-infinity", "epoch", "0044-03-15 (BC)", "now"])
def test_words_are_no_dates(word: str) -> None:
    dates = DATES.astype(str)
    dates[3] = word
    with pytest.raises(DataFormatError, match="data row 4, column 'time': expected a date such as"):
        load(LOG.assign(time=dates))


BAD_TABLES = {
    "dates as answers": (LOG.assign(rating=DATES), "data row 1, column 'rating': expected a rat"),
    "complex answers": (as_type("rating", complex), "column 'rating': expected a rating"),
    "ids that floats round": (LOG.assign(user=LOG.user + 2.0**60), "an id below 2\\*\\*53"),
    "infinite ids": (as_type("user", float).replace({"user": {3.0: np.inf}}), "an id below 2"),
    "ratings and responses": (LOG.assign(response=0.5), "several columns of answers"),
    "one item": (LOG[LOG.item == 1], r"The catalogue holds 1 item\(s\)"),
    "no row": (LOG[:0], "has no rows"),
    "no column": (LOG[[]], "no column of users"),
    # An index of objects: pandas makes none of texts of it where PyArrow is installed.
    "a title that is no text": (
        LOG.set_axis(pd.Index([*LOG.columns[:-1], "\ud800"], dtype=object), axis=1),
        "no text in UTF-8",
    ),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_bad_table_is_refused(name: str) -> None:
    table, message = BAD_TABLES[name]
    with pytest.raises(DataFormatError, match=message):
        load(table)


def test_floats_of_a_parquet_file_that_round_ids_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "log.parquet"
    duckdb.from_df(LOG.assign(user=LOG.user + 2.0**60)).to_parquet(str(file))
    with pytest.raises(DataFormatError, match=r"log.parquet, data row 1, column 'user': .*2\*\*53"):
        load(file)


def test_dates_as_ids_are_texts_in_every_form(tmp_path: Path) -> None:
    log = LOG.assign(user=pd.Timestamp("2024-01-01 10:30") + pd.to_timedelta(LOG.user, "h"))
    log.to_csv(tmp_path / "log.csv", index=False)
    duckdb.from_df(log).to_parquet(str(tmp_path / "log.parquet"))
    ids = [load(table).user_ids for table in (log, tmp_path / "log.csv", tmp_path / "log.parquet")]
    assert ids[0][0] == "2024-01-01 10:30:00"
    assert ids[0].tolist() == ids[1].tolist() == ids[2].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log": [LOG, LOG]}, "a list of the files of one table, got a list of DataFrame"),
        ({"log": {"user": [1]}}, "got dict"),
        ({"name": "x" * 101}, "of one line and at most 100 characters"),
        ({"name": "a\nb"}, "of one line"),
        ({"name": "\ud800"}, "of one line"),
        ({"columns": {"user": 3}}, "columns must map names to texts"),
        ({"columns": None}, "columns must map names to texts"),
        ({"columns": {"user": "user", "item": "user"}}, "two roles, 'user' and 'item'"),
        ({"columns": {"label": "rating", "rating": "rating"}}, "two roles, 'rating' and 'label'"),
        ({"groups": None}, "groups must be a list of columns"),
        ({"groups": 3}, "groups must be a list of columns"),
        ({"groups": {"author": 1}}, "groups must be a list of columns"),
        ({"groups": ["author", "author"]}, "names a column twice"),
        ({"groups": ["item"]}, "'item', which holds ids"),
        ({"groups": ["author"], "item_features": {"author": "category"}}, "is not a feature"),
        ({"item_features": {"item": "category"}}, "is not a feature"),
        ({"item_features": {"author": "categori"}}, "must be 'category', 'number', or the sep"),
        ({"item_features": {"author": ""}}, "must be 'category', 'number', or the separator"),
        ({"item_features": {"author": 3}}, "item_features must map names to texts"),
        ({"positive_rate": 0.3}, "positive_rate is for a log of positives alone"),
        ({"rating_map": (1, 50), "popularity": "positives"}, "there are none: count exposures"),
        ({"test_share": np.float32(2)}, "test_share must be a number above 0 and below 1"),
        ({"pools": np.float64(1)}, "pools must be True or False"),
        ({"split": "time", "split_time": np.datetime64("NaT")}, "split_time must be a number or"),
    ],
)
def test_options_that_cannot_be_are_refused_when_loading(options, message) -> None:
    options = {"items": ITEMS, **options}
    with pytest.raises(ConfigError, match=message):
        load(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": ITEMS.assign(item=ITEMS.item + 500)}, "none of its 30 rows is of items with"),
        ({"items": ITEMS.assign(item="x")}, "its first id is 'x'. Are the ids of one kind"),
        ({"users": pd.DataFrame({"user": ["x"], "a": [1]})}, "none of its 1 rows is of users"),
        ({"items": ITEMS.assign(author=None), "groups": ["author"]}, "no item of the catalogue"),
        ({"items": ITEMS.assign(exposures=0)}, "expected exposures of items, got none: of the 30"),
        ({"items": ITEMS.assign(exposures=np.nan)}, "of the 0 items with a number the largest is"),
        ({"log": LOG.assign(propensity=0.01)}, "the largest is 0.12, which rounds to 0"),
        ({"test": TEST[["user", "item"]]}, "answers must be of one kind"),
        (
            {"test": TEST[["user", "item"]], "rating_map": None, "positive_from": 3},
            "the test table has no column of answers: all of its rows would be yes",
        ),
        ({"test": LOG}, "leaves no log rows"),
        ({"split": "time", "split_time": 999}, "'time' run from 1 to 359: choose another split"),
        (
            {"split": "time", "split_time": "2024-01-01"},
            "run from 1 to 359, as dates from 1970-01-01 00:00 to 1970-01-01 00:05: choose",
        ),
        ({"log": LOG.assign(time=None), "split": "time"}, "whose column 'time' holds no time"),
    ],
)
def test_tables_that_do_not_fit_are_refused(options, message) -> None:
    with pytest.raises(DataFormatError, match=message):
        load(**options)


# ---- exposures ----


def test_exposures_that_are_missing_small_or_fewer_than_the_rows_are_counted() -> None:
    exposures = np.full(N_ITEMS, 100.0)
    exposures[:6] = [np.nan, 0.4, 0.3, 0.0, 1.0, 2.6]
    shop = load(items=ITEMS.assign(exposures=exposures))
    assert shop.show_counts[:6].tolist() == [0, 0, 0, 0, 1, 3]
    assert shop.notes["exposures.items_without_a_number"] == 1
    assert shop.notes["exposures.items_rounded_to_0"] == 2
    rows = np.bincount(shop.log.items, minlength=N_ITEMS)
    assert shop.notes["exposures.items_with_more_log_rows_than_exposures"] == int(
        (rows[1:6] > [0, 0, 0, 1, 3]).sum()
    )
    assert shop.notes["catalogue.items_without_exposures"] == 4
    assert "exposures.items_rounded_to_0" not in load(items=ITEMS.assign(exposures=100)).notes


def test_small_propensities_are_counted() -> None:
    propensity = np.full(N_ITEMS, 0.5)
    propensity[:2] = 0.01
    shop = load(items=ITEMS.assign(propensity=propensity))
    assert shop.show_counts.tolist() == [0, 0] + [6] * 28
    assert shop.notes["exposures.items_rounded_to_0"] == 2


# ---- numbers of NumPy, and the cache ----


def test_numbers_of_numpy_are_numbers() -> None:
    shop = load(test_share=0.5, history_share=0.25)
    scalars = {
        "rating_map": np.array([1, 5]),
        "test_share": np.float32(0.5),
        "history_share": np.float16(0.25),
        "pools": np.bool_(False),
    }
    assert load(**scalars).fingerprint == shop.fingerprint
    options = {"split": "time", "rating_map": None, "positive_from": 3, "split_time": 200}
    plain, numpy = (
        load(**options),
        load(**options | {"positive_from": np.int64(3), "split_time": np.int64(200)}),
    )
    assert plain.fingerprint == numpy.fingerprint
    play(shop, ad_bound=np.float32(0.3), allow_repeats=np.bool_(True), correlation=np.float64(0.1))


def test_one_entry_of_the_cache_for_options_of_equal_value(tmp_path: Path, monkeypatch) -> None:
    from kuaisim_gym.data.cache import cache_info

    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    LOG.to_csv(tmp_path / "log.csv", index=False)
    for share in (0.5, np.float32(0.5)):
        load(tmp_path / "log.csv", test_share=share, rating_map=[1, 5])
    assert len(cache_info()) == 1


def test_another_dataset_from_the_same_tables_needs_another_version() -> None:
    shop = load(items=ITEMS.assign(exposures=9), groups=["author"], catalogue="all")
    assert (TableSource.version, shop.fingerprint) == (4, "d27adcccebd96339"), (
        "Tables are read into another dataset than before: raise TableSource.version, so that no "
        "older entry of a cache is taken for it, and write the new fingerprint here."
    )


# ---- small worlds play ----

WORLDS = {
    "two rows": (pd.DataFrame({"user": [1, 2], "item": [1, 2], "rating": [1, 5]}), {}),
    "one user": (LOG[LOG.user == 3], {"split": "time"}),
    "new users and items": (LOG, {"test": TEST}),
    "new users alone": (LOG, {"test": TEST.assign(user=[90, 91, 92])}),
    "new items alone": (LOG, {"test": TEST.assign(item=[90, 91, 92])}),
    "one row a user": (LOG.groupby("user").head(1), {"history_share": 0}),
    "pools": (LOG, {"pools": True}),
    "positives": (LOG[["user", "item"]], {"rating_map": None, "positive_rate": 0.3}),
    "labels of one value": (LOG, {"rating_map": None, "positive_from": 99}),
    "almost all test users": (LOG, {"test_share": 1 - 1e-9}),
}


@pytest.mark.parametrize("name", WORLDS)
def test_small_worlds_play(name: str) -> None:
    log, options = WORLDS[name]
    play(load(log, **options))


@pytest.mark.parametrize("n_items", [5, 30, 48])
@pytest.mark.parametrize("n_groups", [2, 3, 5])
def test_small_catalogues_serve_several_groups(n_items: int, n_groups: int) -> None:
    """No step is penalised where exposures are as even as whole items can be."""
    users, items = np.divmod(np.arange(8 * n_items), n_items)
    shop = load(pd.DataFrame({"user": users, "item": items, "rating": 3}))
    labels = np.arange(shop.n_items) % n_groups
    env = gym.make(
        "Recommendation-Fair-v0",
        dataset=shop,
        groups=labels,
        action_type="slate",
        allow_repeats=True,
    )
    env.reset(seed=1)
    size = env.unwrapped.batch.config.slate_size
    for step in range(15):
        slate = (np.arange(size) + step * size) % (n_items - n_items % n_groups)
        _, _, terminated, _, info = env.step(slate)
        assert not info["penalised"]
        if terminated:
            break
    play(shop, groups=labels)


def test_groups_that_no_window_can_serve_are_refused() -> None:
    for labels in (np.zeros(N_ITEMS, int), np.arange(N_ITEMS), [0, 1], [np.nan] * N_ITEMS, 3, None):
        with pytest.raises(KuaiSimError, match="roups"):
            gym.make("Recommendation-Fair-v0", dataset=load(), groups=labels)
