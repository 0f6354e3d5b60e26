"""Mutated CSV files: they load as a plain reading says, or are refused; nothing in between."""

from __future__ import annotations

import ast
import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from kuaisim_gym.data import Dataset, Features
from kuaisim_gym.data.source import find_source
from kuaisim_gym.data.split import is_test_user
from kuaisim_gym.errors import KuaiSimError
from tests.attack.counts import Counts

KUAIREC = {
    "big_matrix": "user_id,video_id,play_duration,watch_ratio,timestamp\n"
    "1,10,7,0.5,30.5\n1,11,7,2.0,20\n2,10,7,0.25,\n2,99,7,1.0,5\n3,10,7,0.125,9\n1,10,7,0.75,8\n",
    "small_matrix": "user_id,video_id,watch_ratio,timestamp\n2,11,0.75,3\n2,12,1.5,\n4,11,0,1\n",
    "item_categories": 'video_id,feat\n10,[8]\n11,"[27, 9]"\n12,[9]\n',
    "user_features": "user_id,user_active_degree,fans_user_num,fans_user_num_range,onehot_feat4\n"
    '1,full_active,5,"[1,10)",1.0\n2,,6,0,\n3,"a ""b""",7,,2.0\n',
    "item_daily_features": "video_id,date,show_cnt\n10,20200705,4\n11,20200705,6\n10,20200706,7\n",
    "social_network": 'user_id,friend_list\n1,"[2, 3]"\n2,[1]\n',
}
BEHAVIOURS = (
    "is_click",
    "long_view",
    "is_like",
    "is_comment",
    "is_forward",
    "is_follow",
    "is_hate",
)
_LOG = "user_id,video_id,date,time_ms," + ",".join(BEHAVIOURS) + ",is_rand,tab\n"
KUAIRAND = {
    "log_standard_4_08_to_4_21_pure": _LOG
    + "2,20,1,50,1,0,0,0,0,0,0,0,1\n4,21,1,40,0,1,0,0,0,0,0,0,1\n4,22,1,30,0,0,1,0,0,0,0,0,1\n",
    "log_standard_4_22_to_5_08_pure": _LOG
    + "2,20,1,60,0,0,0,1,0,0,0,0,1\n0,20,1,60,0,0,0,0,1,0,0,0,1\n4,23,1,30,0,0,1,0,0,0,1,1,1\n",
    "log_random_4_22_to_5_08_pure": _LOG
    + "0,20,1,50,1,0,0,0,0,0,0,1,1\n2,21,1,40,0,1,0,0,0,0,0,1,1\n1,20,1,30,0,0,1,0,0,0,0,1,1\n",
    "user_features_pure": "user_id,user_active_degree,is_live_streamer,register_days\n"
    "0,full_active,-124,9\n2,30day_retention,1,\n5,,0,7\n",
    "video_features_basic_pure": "video_id,video_type,video_duration,music_type,tag\n"
    '20,NORMAL,5000.0,9.0,"12,65"\n21,AD,,4.0,12\n24,UNKNOWN,1,,\n',
}
ODD_CELLS = [
    *("", " ", "abc", "-1", "0", "1", "2", "1.5", "1e1", "1e300", "1e999", "1e-9", "nan", "inf"),
    *("-0", "+3", "0x10", "1_0", '"', '"1"', '""', '"1', '1"', "é", "\x00", "\t5", "5 ", "2.0"),
    *("9007199254740993", "9007199254740991", "18446744073709551616", "1" * 400, "١", "TRUE"),
    *("[1, 2]", '"[1, 2]"', "[", "[]", '"[1,,2]"', '"[1, [2]]"', "None", "12,65", '"12,65"', ",,"),
    *('"a\nb"', "a\nb", "a\rb", "\ufeff", "#", "\\", "'", ' "1"', "NULL", "65", "20", "10", "4"),
]


class Refused(Exception):
    """The plain reading refuses."""


Row = dict[str, str]


def plain_rows(folder: Path, name: str, required: Iterable[str]) -> list[Row]:
    """A table by the csv module alone."""
    try:
        text = (folder / f"{name}.csv").read_bytes().decode("utf-8-sig")
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise Refused from error
    if "\0" in text or not rows or not rows[0] or len(set(rows[0])) < len(rows[0]):
        raise Refused
    header, body = rows[0], [row for row in rows[1:] if row]
    if not set(required) <= set(header) or any(len(row) != len(header) for row in body):
        raise Refused
    return [dict(zip(header, row, strict=True)) for row in body]


def number(cell: str, *, whole: bool = False, low: float = -1e308, high: float = 1e308) -> float:
    try:
        value = float(cell) if cell.isascii() else np.nan
    except ValueError:
        raise Refused from None
    if not low <= value <= high or (whole and (value % 1 or abs(value) >= 2**53)):
        raise Refused
    return value


def whole(cell: str, low: float = -1e308, high: float = 1e308) -> int:
    return int(number(cell, whole=True, low=low, high=high))


def filled(rows: list[Row]) -> list[Row]:
    if not rows:
        raise Refused
    return rows


def id_list(cell: str) -> list[int]:
    try:
        found = ast.literal_eval(cell.strip())
    except (SyntaxError, ValueError):
        raise Refused from None
    if not isinstance(found, list) or not all(type(one) is int for one in found):
        raise Refused
    if any(abs(one) >= 2**63 for one in found):
        raise Refused
    return found


def first_rows(rows: list[Row], key: str) -> dict[int, Row]:
    found: dict[int, Row] = {}
    for row in rows:
        found.setdefault(whole(row[key]), row)
    return found


def check_features(
    features: Features,
    ids: list[int],
    table: dict[int, Row],
    fields: dict[str, tuple[str, Callable[[str], list[str]]]],
    numbers: Iterable[str],
) -> None:
    """Decodes every code and compares it with the cell it came from."""
    for name, (column, split) in fields.items():
        cells = [table.get(one, {}).get(column, "") for one in ids]
        expected = [split(cell) if cell else [] for cell in cells]
        if name not in features.codes:
            assert not any(row.get(column) for row in table.values())
            continue
        values = features.values[name]
        for codes, texts in zip(features.codes[name].tolist(), expected, strict=True):
            assert [values[code] for code in codes if code] == [as_known(t, values) for t in texts]
    for name in numbers:
        expected = [table.get(one, {}).get(name, "") for one in ids]
        raw = [number(cell) if cell else np.nan for cell in expected]
        if name in features.numbers:
            np.testing.assert_array_equal(features.numbers[name], raw)
        else:
            assert np.isnan(raw).all()


def as_known(text: str, values: tuple[str, ...]) -> str:
    """The value that stands for a text: itself, or another spelling of the same number."""
    if text in values:
        return text
    return next(value for value in values[1:] if float(value) == float(text))


def plain_matrix(folder: Path, name: str) -> tuple[dict[tuple[int, int], float], list[Any]]:
    """By cell its watch ratio, and the cells by user, in the order of time."""
    rows = filled(plain_rows(folder, name, ("user_id", "video_id", "watch_ratio")))
    timed = "timestamp" in rows[0]
    parsed = []
    for place, row in enumerate(rows):
        watch = number(row["watch_ratio"], low=0, high=float(np.finfo(np.float32).max))
        cell = row.get("timestamp", "")
        time = number(cell) if cell else -np.inf
        parsed.append((whole(row["user_id"]), time, place, whole(row["video_id"]), watch))
    parsed.sort(key=lambda row: row[:3])
    cells: dict[tuple[int, int], list[float]] = {}
    for user, _, _, video, watch in parsed:
        if timed:
            cells.pop((user, video), None)
        cells.setdefault((user, video), []).append(watch)
    means = {cell: float(np.float32(np.mean(found))) for cell, found in cells.items()}
    return means, sorted(means, key=lambda cell: cell[0])


def check_kuairec(folder: Path, dataset: Dataset) -> None:
    big, order = plain_matrix(folder, "big_matrix")
    small, small_order = plain_matrix(folder, "small_matrix")
    order = [cell for cell in order if cell not in small]
    catalogue = sorted({video for _, video in small})
    others = sorted({video for _, video in big} - set(catalogue))
    users = sorted({user for user, _ in [*big, *small]})
    assert dataset.user_ids.tolist() == users
    assert dataset.item_ids.tolist() == catalogue + others
    for table, cells, known in ((dataset.log, order, big), (dataset.test, small_order, small)):
        loaded = zip(
            dataset.user_ids[table.users].tolist(),
            dataset.item_ids[table.items].tolist(),
            strict=True,
        )
        assert list(loaded) == cells
        np.testing.assert_allclose(
            table.columns["watch_ratio"], [known[cell] for cell in cells], rtol=1e-6
        )
    items = dataset.item_ids.tolist()

    def there(name: str) -> bool:
        return (folder / f"{name}.csv").exists()

    if there("item_categories"):
        rows = filled(plain_rows(folder, "item_categories", ("video_id", "feat")))
        table = first_rows(rows, "video_id")
        for row in rows:
            if row["feat"]:
                id_list(row["feat"])
        split = {"category": ("feat", lambda cell: list(dict.fromkeys(map(str, id_list(cell)))))}
        check_features(dataset.item_features, items, table, split, ())
    if there("user_features"):
        rows = filled(plain_rows(folder, "user_features", ("user_id",)))
        for row in rows:
            if row.get("fans_user_num"):
                number(row["fans_user_num"])
        names = ("user_active_degree", "fans_user_num_range", "onehot_feat4")
        split = {name: (name, lambda cell: [cell]) for name in names}
        table = first_rows(rows, "user_id")
        check_features(dataset.user_features, users, table, split, ("fans_user_num",))
    assert (dataset.show_counts is not None) == there("item_daily_features")
    if dataset.show_counts is not None:
        counts = dict.fromkeys(items, 0)
        for row in filled(plain_rows(folder, "item_daily_features", ("video_id", "show_cnt"))):
            video, count = whole(row["video_id"]), row["show_cnt"]
            shown = whole(count, low=0) if count else 0
            if video in counts:
                counts[video] += shown
        assert dataset.show_counts.tolist() == list(counts.values())
    assert (dataset.friends is not None) == there("social_network")
    if dataset.friends is not None:
        pairs = set()
        for row in filled(plain_rows(folder, "social_network", ("user_id", "friend_list"))):
            user = whole(row["user_id"])
            pairs |= {(user, friend) for friend in id_list(row["friend_list"])}
        expected = sorted((a, b) for a, b in pairs if a in users and b in users)
        assert dataset.user_ids[dataset.friends].tolist() == [list(pair) for pair in expected]


def plain_log(folder: Path, names: Iterable[str], mark: str) -> list[tuple[int, int, int, int]]:
    """(user, time, video, flags) of the rows that belong in a log."""
    parsed = []
    headers = []
    for name in names:
        rows = plain_rows(folder, name, ("user_id", "video_id", "time_ms", *BEHAVIOURS))
        headers += [set(rows[0])] if rows else []
        for row in rows:
            flags = sum(whole(row[b], 0, 1) << bit for bit, b in enumerate(BEHAVIOURS))
            is_rand = whole(row["is_rand"], 0, 1) if "is_rand" in row else int(mark)
            key = (whole(row["user_id"]), whole(row["time_ms"]), whole(row["video_id"]), flags)
            parsed.append((key, is_rand))
    if not parsed or any(header != headers[0] for header in headers):
        raise Refused
    return [key for key, is_rand in parsed if is_rand == int(mark)]


def merged(rows: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    found: dict[tuple[int, int, int], int] = {}
    for user, time, video, flags in rows:
        found[user, time, video] = found.get((user, time, video), 0) | flags
    kept = [(*key, flags) for key, flags in found.items()]
    return sorted(kept, key=lambda row: row[:2])


def check_kuairand(folder: Path, dataset: Dataset) -> None:
    names = list(KUAIRAND)
    random = plain_log(folder, names[2:3], "1")
    moments = {row[:3] for row in random}
    standard = [row for row in plain_log(folder, names[:2], "0") if row[:3] not in moments]
    user_rows: list[Row] = []
    item_rows: list[Row] = []
    if (folder / f"{names[3]}.csv").exists():
        user_rows = filled(plain_rows(folder, names[3], ("user_id",)))
    if (folder / f"{names[4]}.csv").exists():
        item_rows = filled(plain_rows(folder, names[4], ("video_id",)))
    user_table, item_table = first_rows(user_rows, "user_id"), first_rows(item_rows, "video_id")
    users = sorted({row[0] for row in standard + random} | set(user_table))
    catalogue = sorted({row[2] for row in random} | set(item_table))
    items = catalogue + sorted({row[2] for row in standard} - set(catalogue))
    assert dataset.user_ids.tolist() == users
    assert dataset.item_ids.tolist() == items
    assert dataset.n_items == len(catalogue)
    sides = is_test_user(np.array([row[0] for row in random])).tolist()
    for table, rows in (
        (dataset.log, standard),
        (dataset.test, [row for row, side in zip(random, sides, strict=True) if side]),
        (dataset.randomised, [row for row, side in zip(random, sides, strict=True) if not side]),
    ):
        expected = [(user, video, flags) for user, _, video, flags in merged(rows)]
        if table is None:
            assert not expected
            continue
        loaded = zip(
            dataset.user_ids[table.users].tolist(),
            dataset.item_ids[table.items].tolist(),
            table.columns["flags"].tolist(),
            strict=True,
        )
        assert list(loaded) == expected
    for row in user_rows:
        if row.get("register_days"):
            number(row["register_days"])
    for row in item_rows:
        if row.get("video_duration"):
            number(row["video_duration"])
    one = {
        name: (name, lambda cell: [cell])
        for name in ("user_active_degree", "is_live_streamer", "video_type", "music_type")
    }
    user_fields = {name: one[name] for name in ("user_active_degree", "is_live_streamer")}
    item_fields = {name: one[name] for name in ("video_type", "music_type")}
    item_fields["tag"] = (
        "tag",
        lambda cell: list(dict.fromkeys(part.strip() for part in cell.split(","))),
    )
    for row in item_rows:
        if row.get("tag") and not all(part.strip() for part in row["tag"].split(",")):
            raise Refused
    check_features(dataset.user_features, users, user_table, user_fields, ("register_days",))
    check_features(dataset.item_features, items, item_table, item_fields, ("video_duration",))


def damaged(text: str, rng: np.random.Generator) -> bytes | None:
    """One to three mutations of a file; ``None`` where it is to be missing."""
    content = text.encode()
    for _ in range(rng.integers(1, 4)):
        changed = _mutations(content, rng)
        if changed is None:
            return None
        content = changed
    return content


def _mutations(content: bytes, rng: np.random.Generator) -> bytes | None:
    lines = content.decode("utf-8", errors="replace").split("\n")
    line = int(rng.integers(0, len(lines)))
    fields = lines[line].split(",")
    field = int(rng.integers(0, len(fields)))
    place = int(rng.integers(0, len(content) + 1))
    kind = int(rng.integers(0, 26))
    if kind < 9:  # the commonest damage: one cell
        fields[field] = ODD_CELLS[int(rng.integers(0, len(ODD_CELLS)))]
        lines[line] = ",".join(fields)
    elif kind == 9:
        del fields[field]
        lines[line] = ",".join(fields)
    elif kind == 10:
        lines[line] += ","
    elif kind == 11:
        del lines[line]
    elif kind == 12:
        lines.insert(int(rng.integers(0, len(lines) + 1)), lines[line])
    elif kind == 13:
        lines.insert(line, "")
    elif kind == 14:  # a column of the header takes another's name
        header = lines[0].split(",")
        header[int(rng.integers(0, len(header)))] = header[int(rng.integers(0, len(header)))]
        lines[0] = ",".join(header)
    elif kind == 15:  # two names swapped, so that values stand under the wrong one
        header = lines[0].split(",")
        header[0], header[-1] = header[-1], header[0]
        lines[0] = ",".join(header)
    elif kind == 16:  # two columns swapped with their values
        for at, one in enumerate(lines):
            cells = one.split(",")
            if len(cells) > 1 and '"' not in one:
                cells[0], cells[1] = cells[1], cells[0]
                lines[at] = ",".join(cells)
    elif kind == 17:
        return b"\xef\xbb\xbf" + content
    elif kind == 18:
        return content.replace(b"\n", b"\r\n" if place % 3 else b"\r")
    elif kind == 19:
        return content[:place]
    elif kind == 20:
        return content[:place] + bytes([int(rng.integers(0, 256))]) + content[place + 1 :]
    elif kind == 21:
        return content[:place] + bytes([int(rng.integers(0, 256))]) + content[place:]
    elif kind == 22:
        return b"" if place % 2 else None
    elif kind == 23:
        return content.decode("utf-8", errors="replace").encode(
            "utf-16" if place % 2 else "cp037", "replace"
        )
    elif kind == 24:
        lines[line] = ",".join(f'"{cell}"' for cell in fields)
    else:
        lines[line] = lines[line].swapcase() + "\r" * int(rng.integers(0, 2))
    return "\n".join(lines).encode()


def attempt(name: str, case: int, folder: Path) -> bool:
    """Loads files of which one is mutated.

    Args:
        name: The dataset's source.
        case: Number of the mutation.
        folder: For the files, empty.

    Returns:
        Whether they load, and not whether they are refused.

    Raises:
        AssertionError: They are misread, or load where a plain reading refuses them.
        Exception: They are refused by no error of ours.
    """
    tables, check = (KUAIREC, check_kuairec) if name == "kuairec" else (KUAIRAND, check_kuairand)
    rng, source = np.random.default_rng([case, len(name)]), find_source(name)
    victim = list(tables)[int(rng.integers(0, len(tables)))]
    for table, text in tables.items():
        content = damaged(text, rng) if table == victim else text.encode()
        if content is not None:
            (folder / f"{table}.csv").write_bytes(content)
    try:
        dataset = source.read(source.find(folder))
    except KuaiSimError:
        return False
    try:
        check(folder, dataset)
    except Refused as error:
        raise AssertionError(f"{victim} loads, but a plain reading refuses it") from error
    return True


def mutated_tables(n: int, seed: int) -> Counts:
    """Mutates n sets of files, of both published datasets in turn, and loads them.

    Args:
        n: Number of sets.
        seed: Another seed, other mutations than those of seed 0, with which the tests begin.
    """
    counts = Counts()
    for number in range(n):
        name, case = ("kuairec", "kuairand")[number % 2], seed * 10**6 + number // 2
        with TemporaryDirectory() as folder:
            try:
                attempt(name, case, Path(folder))
            except Exception as error:  # whatever it is, it is not one of ours
                counts.note(f"{name}, case {case}: {type(error).__name__}: {error}")
            else:
                counts.note(None)
    return counts
