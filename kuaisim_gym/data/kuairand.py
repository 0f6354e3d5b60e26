"""KuaiRand as published: standard logs are the biased log, the random log is free of exposure bias.

Source: Gao et al., "KuaiRand: An unbiased sequential recommendation dataset with randomly exposed
videos", CIKM 2022, in its variants Pure, 1K and 27K, which differ in their files' names only. The
loader sorts and writes out of core: memory holds DuckDB's share, a chunk of rows and, where there
are many items, a few arrays over them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym.config import check_choice
from kuaisim_gym.data.coding import (
    USER_FIELDS,
    USER_FLAGS,
    USER_NUMBERS,
    Field,
    Positions,
    merge_features,
    note_counts,
    read_entities,
    read_features,
)
from kuaisim_gym.data.dataset import BehaviourLog, Dataset, Features
from kuaisim_gym.data.sources import Layout, Sources, find_files
from kuaisim_gym.data.tables import (
    Chunk,
    Column,
    ColumnFiles,
    Table,
    Tables,
    open_tables,
    read_header,
    whole_groups,
)
from kuaisim_gym.errors import DataFormatError

VARIANTS = ("pure", "1k", "27k")
STANDARD = ("log_standard_4_08_to_4_21", "log_standard_4_22_to_5_08")
RANDOM = "log_random_4_22_to_5_08"
USER_FEATURES = "user_features"
VIDEO_BASIC, VIDEO_STATISTIC = "video_features_basic", "video_features_statistic"

ITEM_NUMBERS = ("video_duration",)
ITEM_FIELDS = ("video_type", "upload_type", "music_type", "tag")

# Columns of texts or codes; what else the feature files hold is numbers.
_ITEM_TEXTS = (
    *ITEM_FIELDS,
    "author_id",
    "upload_dt",
    "visible_status",
    "music_id",
)
_DOCUMENTED = {
    "user_active_degree": frozenset({"full_active", "high_active", "middle_active", "UNKNOWN"}),
    "video_type": frozenset({"NORMAL", "AD"}),
    **{name: frozenset({"0", "1"}) for name in USER_FLAGS},
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FeatureTables:
    """What KuaiRand's feature files say, without any log.

    Attributes:
        user_ids: (n,) int64, ascending; empty where there is no file of users.
        item_ids: (m,) int64, ascending; likewise.
        users: Features of the users, by position in ``user_ids``.
        items: Features of the videos, by position in ``item_ids``.
        notes: Counts of what was met and how it was handled.
    """

    user_ids: NDArray[np.int64]
    item_ids: NDArray[np.int64]
    users: Features
    items: Features
    notes: dict[str, int] = field(default_factory=dict)


def is_test_user(user_ids: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Which users' random-log rows are the test table: half of all users, always the same.

    The side follows from the id alone, so that it does not depend on the variant, the order of
    rows, or which users a log happens to hold. It is the lowest bit of SplitMix64's output function
    (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014) of the id.

    Args:
        user_ids: Integers of any shape.

    Returns:
        Bools of the same shape.
    """
    bits = np.asarray(user_ids).astype(np.int64).view(np.uint64)
    with np.errstate(over="ignore"):  # it wraps around by design
        bits = bits + np.uint64(0x9E3779B97F4A7C15)
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray((bits ^ (bits >> np.uint64(31))) & np.uint64(1), dtype=bool)


def load_kuairand(path: str | Path) -> Dataset:
    """Reads KuaiRand-Pure, -1K or -27K.

    Rules, each counted in ``Dataset.notes``:

    * The two standard files are one log. A standard row that says ``is_rand`` = 1 is dropped, and
      so is a random row that says 0.
    * Rows of one log with the same user, video and ``time_ms`` are one exposure: the first stays,
      and shows every behaviour that one of them shows. Other repeats of a (user, video) pair are
      repeated exposures and stay.
    * A standard row that also stands in the random log, by user, video and ``time_ms``, is
      dropped: it would leak test answers.
    * A user's rows are sorted by ``time_ms``, equal times by their order in the files.
    * ``test`` is the random log of the users that :func:`is_test_user` chooses, ``randomised``
      that of the other users, ``log`` the standard log of everybody.
    * The catalogue is the videos of the random log and, in KuaiRand-Pure, those of its basic
      feature file, ascending; other logged videos stand behind it, ascending. Users are those
      of the logs and of the user feature file, ascending.
    * Feature files are optional; :func:`~kuaisim_gym.data.coding.read_features` has their rules.

    ``show_counts`` stays ``None``: the platform's statistics cover the weeks of the random log too,
    from which the test table comes, so that popularity is counted in the train log.

    Args:
        path: The archive as downloaded, the folder it was unpacked to, or the one with the files.

    Returns:
        The dataset, with KuaiRand's own ids.

    Raises:
        DatasetNotFoundError: The folder or a required file is missing.
        DataFormatError: A file lacks a column or holds a bad value, which the message names; or
            the random log has no row of a test user.
    """
    return read_kuairand(find_kuairand(path))


def find_kuairand(path: str | Path) -> Sources:
    """Finds a variant's files; see :func:`~kuaisim_gym.data.sources.find_files`."""
    return find_files(path, [_layout(variant, features_only=False) for variant in VARIANTS])


def _layout(variant: str, *, features_only: bool) -> Layout:
    logs = tuple(f"{name}_{variant}" for name in (*STANDARD, RANDOM))
    features = tuple(f"{name}_{variant}" for name in (USER_FEATURES, VIDEO_BASIC))
    statistic = f"{VIDEO_STATISTIC}_{variant}"
    name = f"KuaiRand-{variant.capitalize() if variant == 'pure' else variant.upper()}"
    if features_only:
        return Layout(
            name, (), (*features, statistic), {statistic: 3} if variant == "27k" else None
        )
    return Layout(name, logs, features, dict.fromkeys(logs[:2], 2) if variant == "27k" else None)


def _variant(sources: Sources) -> str:
    return next(iter(sources.tables)).rsplit("_", 1)[1]


def read_kuairand(sources: Sources) -> Dataset:
    """Reads the files that were found; see :func:`load_kuairand`."""
    notes: dict[str, int] = {}
    variant = _variant(sources)

    def files(name: str) -> tuple[Path, ...]:
        return sources.tables.get(f"{name}_{variant}", ())

    with open_tables() as tables:
        random = _read_log(tables, files(RANDOM))
        notes["random_rows_marked_standard_dropped"] = _drop_marked(tables, random, "0")
        standard = _read_log(tables, files(STANDARD[0]) + files(STANDARD[1]))
        notes["standard_rows_marked_random_dropped"] = _drop_marked(tables, standard, "1")
        notes["standard_rows_dropped_as_random_rows"] = _drop_leaked(tables, standard, random)
        users_file = items_file = None
        if files(USER_FEATURES):
            users_file = read_entities(
                tables, files(USER_FEATURES), "user_id", USER_FIELDS, USER_NUMBERS
            )
        if files(VIDEO_BASIC):
            items_file = read_entities(
                tables, files(VIDEO_BASIC), "video_id", ITEM_FIELDS, ITEM_NUMBERS
            )

        user_ids = tables.distinct("user_id", standard, random, users_file)
        pool = (random, items_file) if variant == "pure" else (random,)
        catalogue = tables.distinct("video_id", *pool)
        others = np.setdiff1d(tables.distinct("video_id", standard), catalogue, assume_unique=True)
        notes["log_only_items"] = len(others)
        item_ids = np.concatenate([catalogue, others])
        n_items = len(catalogue)
        del catalogue, others
        users, items = Positions(user_ids), Positions(item_ids)

        log = _read_rows(tables, standard, users, items, "standard", notes)["all"]
        sides = _read_rows(tables, random, users, items, "random", notes)
        if not len(sides["test"]):
            raise DataFormatError(
                f"{random.files[0]}: none of its users is a test user, which half of all users "
                f"are by a hash of their ids; expected rows to test on."
            )
        if not len(log):
            raise DataFormatError(
                f"{standard.files[0]}: no standard row is left; expected some to train on."
            )
        user_features, item_features = Features(), Features()
        if users_file is not None:
            user_features = _features(
                tables, users_file, users, len(user_ids), USER_FIELDS, USER_NUMBERS, notes
            )
        if items_file is not None:
            item_features = _features(
                tables, items_file, items, len(item_ids), ITEM_FIELDS, ITEM_NUMBERS, notes
            )
        dataset = Dataset(
            name="kuairand",
            synthetic=False,
            user_ids=user_ids,
            item_ids=item_ids,
            n_items=n_items,
            log=log,
            test=sides["test"],
            randomised=sides["randomised"] if len(sides["randomised"]) else None,
            user_features=user_features,
            item_features=item_features,
            notes=notes,
        )
    logger.info("Read %s from %s: %s", sources.layout.name, sources.folder, note_counts(notes))
    return dataset


def _read_log(tables: Tables, files: Sequence[Path]) -> Table:
    """A log with its behaviours packed to ``flags``, and ``is_rand`` where the files have it."""
    behaviours = BehaviourLog.BEHAVIOURS
    columns = [Column(name) for name in ("user_id", "video_id", "time_ms")]
    columns += [Column(name, low=0, high=1) for name in behaviours]
    columns += [Column("is_rand", low=0, high=1, required=False)]
    flags = " + ".join(f"({name} << {bit})" for bit, name in enumerate(behaviours))
    keep = {name: name for name in ("user_id", "video_id", "time_ms")}
    keep["flags"] = f"({flags})::UTINYINT"
    if "is_rand" in read_header(files[0]):
        keep["is_rand"] = "is_rand::UTINYINT"
    return tables.read(files, columns, keep, rows="interactions")


def _drop_marked(tables: Tables, log: Table, mark: str) -> int:
    """Drops the rows that do not belong in a log by their own account; returns how many."""
    if "is_rand" not in log.columns:
        return 0
    return _delete(tables, log, f"is_rand = {mark}")


def _drop_leaked(tables: Tables, standard: Table, random: Table) -> int:
    """Drops the standard rows that are random ones too; returns how many."""
    chosen = (
        f"SELECT s.rowid FROM {standard.sql} s SEMI JOIN {random.sql} r "
        f"USING (user_id, video_id, time_ms)"
    )
    return _delete(tables, standard, f"rowid IN ({chosen})")


def _delete(tables: Tables, log: Table, condition: str) -> int:
    clause = f"FROM {log.sql} WHERE {condition}"
    count = tables.count(clause)
    if count:
        tables.execute(f"DELETE {clause}")
    return count


def _read_rows(
    tables: Tables,
    log: Table,
    users: Positions,
    items: Positions,
    label: str,
    notes: MutableMapping[str, int],
) -> dict[str, BehaviourLog]:
    """A log's rows by position: ``"all"`` standard rows, or the two sides of the random ones."""
    dtypes = {"users": np.int32, "items": np.int32, "flags": np.uint8}
    sides = ("all",) if label == "standard" else ("test", "randomised")
    rows = {side: ColumnFiles(tables.folder, f"{label}.{side}", dtypes) for side in sides}
    query = (
        f"SELECT user_id, video_id, time_ms, flags FROM {log.sql} ORDER BY user_id, time_ms, rowid"
    )
    repeated = 0
    for chunk in whole_groups(tables.stream(query), "user_id"):
        before = len(chunk["user_id"])
        chunk = _one_an_exposure(chunk)
        repeated += before - len(chunk["user_id"])
        placed: Chunk = {
            "users": users(chunk["user_id"]),  # type: ignore[arg-type]
            "items": items(chunk["video_id"]),  # type: ignore[arg-type]
            "flags": chunk["flags"],
        }
        if label == "standard":
            rows["all"].append(placed)
            continue
        test = is_test_user(chunk["user_id"])  # type: ignore[arg-type]
        for side, chosen in (("test", test), ("randomised", ~test)):
            rows[side].append({name: column[chosen] for name, column in placed.items()})
    notes[f"{label}_rows_repeated"] = repeated
    if repeated:
        logger.warning("%s: %d repeated row(s) merged.", log.files[0], repeated)
    return {
        side: BehaviourLog(**files.finish())  # type: ignore[arg-type]
        for side, files in rows.items()
    }


def _one_an_exposure(chunk: Chunk) -> Chunk:
    """Merges rows of one user, video and time in rows that are sorted by user and time."""
    tied = (chunk["user_id"][1:] == chunk["user_id"][:-1]) & (
        chunk["time_ms"][1:] == chunk["time_ms"][:-1]
    )
    if not tied.any():
        return chunk
    moment = np.concatenate([[0], np.cumsum(~tied)])  # rows of one user and time share a number
    in_tie = np.concatenate([tied, [False]]) | np.concatenate([[False], tied])
    rows = np.flatnonzero(in_tie)
    rows = rows[np.lexsort((rows, chunk["video_id"][rows], moment[rows]))]
    first = np.ones(len(rows), dtype=bool)
    first[1:] = moment[rows][1:] != moment[rows][:-1]
    first[1:] |= chunk["video_id"][rows][1:] != chunk["video_id"][rows][:-1]
    starts = np.flatnonzero(first)
    flags = np.array(chunk["flags"])
    flags[rows[starts]] = np.bitwise_or.reduceat(flags[rows], starts)
    stay = np.ones(len(flags), dtype=bool)
    stay[rows[~first]] = False
    return {name: column[stay] for name, column in (chunk | {"flags": flags}).items()}


def _features(
    tables: Tables,
    table: Table,
    positions: Positions,
    n: int,
    fields: Sequence[str],
    numbers: Sequence[str],
    notes: MutableMapping[str, int],
) -> Features:
    key = "user_id" if "user_id" in table.columns else "video_id"
    label = table.files[0].stem.rsplit("_part", 1)[0].rsplit("_", 1)[0]
    chosen = [
        Field(name, _tags if name == "tag" else None, _DOCUMENTED.get(name)) for name in fields
    ]
    return read_features(tables, table, key, positions, n, chosen, numbers, notes, label)


def _tags(cell: str) -> list[str]:
    """The tags of a cell such as ``12,65``."""
    tags = [tag.strip() for tag in cell.split(",")]
    if not all(tags):
        raise ValueError("tags such as 12,65")
    return list(dict.fromkeys(tags))


def load_features(
    path: str | Path,
    user_columns: Sequence[str] | None = None,
    item_columns: Sequence[str] | None = None,
) -> FeatureTables:
    """Reads KuaiRand's feature files alone; the logs need not be there.

    Args:
        path: As for :func:`load_kuairand`.
        user_columns: Columns of the user file; by default those that a dataset holds. Only the
            columns that are chosen are parsed.
        item_columns: Columns of the basic and of the statistic file, such as ``show_cnt``; by
            default those of the basic file that a dataset holds. Of the statistic file only the
            header is read unless one of its columns is chosen.

    Returns:
        The features of every user and video in the files.

    Raises:
        ConfigError: A chosen column is in none of the files.
        DatasetNotFoundError: None of the files is there.
        DataFormatError: A file holds a bad value.
    """
    sources = find_files(path, [_layout(variant, features_only=True) for variant in VARIANTS])
    variant = _variant(sources)
    notes: dict[str, int] = {}
    with open_tables() as tables:
        users = _entity_tables(
            tables, sources, [f"{USER_FEATURES}_{variant}"], "user_id", user_columns
        )
        items = _entity_tables(
            tables,
            sources,
            [f"{VIDEO_BASIC}_{variant}", f"{VIDEO_STATISTIC}_{variant}"],
            "video_id",
            item_columns,
        )
        user_ids, user_features = _all_features(tables, users, "user_id", notes)
        item_ids, item_features = _all_features(tables, items, "video_id", notes)
    return FeatureTables(user_ids, item_ids, user_features, item_features, notes)


_Entity = tuple[Table, list[str], list[str]]


def _entity_tables(
    tables: Tables,
    sources: Sources,
    names: Sequence[str],
    key: str,
    chosen: Sequence[str] | None,
) -> list[_Entity]:
    """The tables that hold the chosen columns, each with its fields and numbers."""
    found = [sources.tables[name] for name in names if name in sources.tables]
    headers = [read_header(files[0]) for files in found]
    known = {name for header in headers for name in header if name != key}
    if chosen is not None:
        for name in chosen:
            check_choice("column", name, known)
    defaults = USER_FIELDS + USER_NUMBERS if key == "user_id" else ITEM_FIELDS + ITEM_NUMBERS
    texts = USER_FIELDS if key == "user_id" else _ITEM_TEXTS
    left = list(defaults if chosen is None else dict.fromkeys(chosen))
    entities: list[_Entity] = []
    for number, (files, header) in enumerate(zip(found, headers, strict=True)):
        here = [name for name in left if name in header]
        left = [name for name in left if name not in header]
        if number and not here:
            continue
        fields = [name for name in here if name in texts]
        numbers = [name for name in here if name not in texts]
        entities.append((read_entities(tables, files, key, fields, numbers), fields, numbers))
    return entities


def _all_features(
    tables: Tables, entities: Sequence[_Entity], key: str, notes: MutableMapping[str, int]
) -> tuple[NDArray[np.int64], Features]:
    if not entities:
        return np.empty(0, np.int64), Features()
    ids = tables.distinct(key, *(table for table, _, _ in entities))
    positions = Positions(ids)
    parts: Iterator[Features] = (
        _features(tables, table, positions, len(ids), fields, numbers, notes)
        for table, fields, numbers in entities
    )
    return ids, merge_features(parts)
