from __future__ import annotations

from pathlib import Path

import duckdb
import numpy as np
import pytest

from kuaisim_gym.data import tables as module
from kuaisim_gym.data.tables import Column, ColumnFiles, allocate, open_tables, whole_groups
from kuaisim_gym.errors import DataFormatError, DiskSpaceError, KuaiSimError

WHOLE, NUMBER = Column("a"), Column("b", "number")
TEXT = Column("c", "text", gaps=True, required=False)
HEADER = b"a,b,c\n"


def write(folder: Path, content: bytes, name: str = "x.csv") -> Path:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def read(*files: Path, columns=(WHOLE, NUMBER, TEXT)) -> dict[str, list[object]]:
    with open_tables() as tables:
        table = tables.read(files, columns)
        names = ", ".join(table.columns)
        chunks = list(tables.stream(f"SELECT {names} FROM {table.sql} ORDER BY rowid"))
    return {name: [value for c in chunks for value in c[name].tolist()] for name in table.columns}


@pytest.mark.parametrize(
    "content",
    [
        HEADER + b"1,0.5,x\n2,3,y\n",
        b"\xef\xbb\xbf" + HEADER + b"1,0.5,x\n2,3,y\n",
        HEADER.replace(b"\n", b"\r\n") + b"1,0.5,x\r\n2,3,y\r\n",
        HEADER + b"1,0.5,x\n\n\n2,3,y",
        b'c,"b",a\n"x",5e-1,1.0\n"y",3,"2"\n',
        b"a,unused,b,c\n1,\xc3\xa9,0.5,x\n2,,3,y\n",
        HEADER + b" 1,0.5 ,x\n+2,3.,y\n",
    ],
)
def test_the_same_table_in_many_forms(tmp_path: Path, content: bytes) -> None:
    assert read(write(tmp_path, content)) == {"a": [1, 2], "b": [0.5, 3.0], "c": ["x", "y"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "x.csv is empty; expected a header"),
        (b"\n1,2,3\n", "x.csv is empty"),
        (HEADER, "has a header but no rows"),
        (HEADER + b"\n\n", "has a header but no rows"),
        (b"a,a,b\n1,1,1\n", "repeats a column"),
        (b"a,c\n1,1\n", r"lacks the column\(s\) \['b'\]; it has \['a', 'c'\]"),
        (b'a,b,"c\n1,2,3\n', "x.csv"),
        (b'a,b,"c\nd"\n1,2,3\n', "header of one line"),
        (HEADER + b"1,2\n", "line 2: expected 3 fields, as in the header, got 2"),
        (HEADER + b"1,2,x\n1,2,x,\n", "line 3: expected 3 fields, as in the header, got 4"),
        (HEADER + b"1,2,x\n1,2,x,", "line 3: expected 3 fields, as in the header, got 4"),
        (HEADER + b"1,2,x,9\n", "line 2: expected 3 fields, as in the header, got 4"),
        (HEADER + b"1,2,x\n   \n", "line 3: expected 3 fields"),
        (HEADER + b"1.5,2,x\n", "data row 1, column 'a': expected a whole number, got '1.5'"),
        (HEADER + b"9007199254740993,2,x\n", "column 'a': expected a whole number"),
        (HEADER + b"1e300,2,x\n", "column 'a'"),
        (HEADER + b",2,x\n", "data row 1, column 'a': expected a whole number, got ''"),
        (HEADER + b"1,,x\n", "data row 1, column 'b': expected a finite number, got ''"),
        (HEADER + b"1,nan,x\n1,inf,x\n", r"data row 1, column 'b'.*got 'nan' \(2 such row"),
        (HEADER + b"1,1e999,x\n", "data row 1, column 'b'"),
        (HEADER + b"\n1,1,x\n1,0x10,x\n", "data row 2, column 'b'.*got '0x10'"),
        (HEADER + b"1,2,x\n1,True,x\n", "data row 2, column 'b'.*got 'True'"),
        (HEADER + "1,١,x\n".encode(), "data row 1, column 'b'"),
        (HEADER + b"1,2,x\n1,2,\xff\n", "line 3: expected text in UTF-8, got the byte 0xff"),
        (b"a,b,u\n1,2,x\n1,2,\xff\n", "line 3: expected text in UTF-8"),
        (b"a,b,\xff\n1,2,x\n", "its header cannot be read"),
        (HEADER + b"1,2,x\0\n", "line 2: expected text, got a NUL byte"),
        ("a,b,c\n1,2,x\n".encode("utf-16"), "x.csv"),
        (HEADER + b'1,2,"x\n1,2,y\n', "data row 1: not well-formed"),
        (HEADER + b'1,2,"x"y\n', "data row 1: not well-formed"),
        (HEADER + b'1,2, "x"\n', "line 2: a blank stands before a quote"),
        (HEADER + b"1,2,x\n1,2,y\r\n", "line endings"),
        (HEADER + b"1,2," + b"x" * 3_000_000 + b"\n", "x.csv"),
    ],
)
def test_bad_files_are_refused_by_place_and_value(
    tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(DataFormatError, match=message):
        read(write(tmp_path, content))


@pytest.mark.parametrize("block", [1, 2, 7, 8, 9, 14, 1 << 20])
def test_blocks_end_between_lines(tmp_path: Path, monkeypatch, block: int) -> None:
    """Wherever the border falls, it cuts no character, and a fault's line is counted right."""
    monkeypatch.setattr(module, "_BLOCK", block)
    lines = "1,2,\N{DEVANAGARI OM}\N{DEVANAGARI OM}\n3,4,\N{LATIN SMALL LETTER E WITH ACUTE}\n"
    content = HEADER + 3 * lines.encode()
    names = ["\N{DEVANAGARI OM}" * 2, "\N{LATIN SMALL LETTER E WITH ACUTE}"]
    assert read(write(tmp_path, content))["c"] == 3 * names
    with pytest.raises(DataFormatError, match=r"line 8: expected text in UTF-8, got the byte 0xe0"):
        read(write(tmp_path, content + b"1,2,\xe0\xa5\n5,6,x\n"))
    with pytest.raises(DataFormatError, match=r"line 9: expected text, got a NUL byte"):
        read(write(tmp_path, content + b"1,2,x\n5,6,\0\n"))
    with pytest.raises(DataFormatError, match=r"line 9: expected 3 fields"):
        read(write(tmp_path, content + b"1,2,x\n5,6,x,\n"))


def test_bounds_and_gaps(tmp_path: Path) -> None:
    file = write(tmp_path, b"a,b\n0,\n1,-2.5\n")
    columns = (Column("a", low=0, high=1), Column("b", "number", gaps=True))
    values = read(file, columns=columns)
    assert values["a"] == [0, 1]
    np.testing.assert_array_equal(values["b"], [np.nan, -2.5])
    with pytest.raises(DataFormatError, match="data row 1, column 'b'.*at least -2, got ''"):
        read(file, columns=(Column("b", "number", low=-2),))
    with pytest.raises(DataFormatError, match="data row 2, column 'b'.*at least -2, got '-2.5'"):
        read(file, columns=(Column("b", "number", low=-2, gaps=True),))
    write(tmp_path, b"a,b\n0,\n2,-2.5\n")
    with pytest.raises(DataFormatError, match="data row 2, column 'a': expected 0 or 1, got '2'"):
        read(file, columns=columns)


def test_fractions_that_begin_late_are_neither_rounded_nor_overlooked(tmp_path: Path) -> None:
    """DuckDB guesses types from the first 20,480 rows, and rounds the halves that come later."""
    rows = b"a,b\n" + b"4,4\n" * 30_000
    assert read(write(tmp_path, rows + b"4,3.5\n4,0.5\n"))["b"][-3:] == [4.0, 3.5, 0.5]
    with pytest.raises(DataFormatError, match="data row 30001, column 'a'.*got '3.5'"):
        read(write(tmp_path, rows + b"3.5,4\n"))


def test_whole_numbers_are_exact_up_to_their_limit(tmp_path: Path) -> None:
    most = 2**53 - 1
    assert read(write(tmp_path, f"a\n{most}\n{-most}\n".encode()), columns=(WHOLE,)) == {
        "a": [most, -most]
    }


def test_parts_are_one_table_whatever_the_order_of_their_columns(tmp_path: Path) -> None:
    first = write(tmp_path, b"a,b,c\n1,2,x\n", "x_part1.csv")
    second = write(tmp_path, b"c,a,b\ny,3,4\nz,5,6\n", "x_part2.csv")
    assert read(first, second) == {"a": [1, 3, 5], "b": [2.0, 4.0, 6.0], "c": ["x", "y", "z"]}
    with open_tables() as tables:
        table = tables.read([first, second], [WHOLE])
        assert table.location(0) == f"{first}, data row 1"
        assert table.location(2) == f"{second}, data row 2"
    other = write(tmp_path, b"a,b\n1,2\n", "x_part3.csv")
    with pytest.raises(DataFormatError, match="parts of one table, but x_part3.csv has the col"):
        read(first, other)
    bad = write(tmp_path, b"a,b,c\n1,2,x\nq,2,x\n", "x_part4.csv")
    with pytest.raises(DataFormatError, match=r"x_part4\.csv, data row 2, column 'a'"):
        read(first, bad)


def test_names_of_files_and_columns_may_be_odd(tmp_path: Path) -> None:
    write(tmp_path, b"a\n7\n", "1/x.csv")
    file = write(tmp_path, b'a,A,"b ""c",?\n1,2,3,4\n', "[1] *'?/x.csv")
    assert read(file, columns=(WHOLE, Column('b "c', "text"))[:1]) == {"a": [1]}
    assert read(file, columns=(Column("A"),)) == {"A": [2]}


def test_whole_groups_stay_together() -> None:
    keys = np.repeat([3, 5, 8, 9], [4, 1, 6, 2])
    chunks = [{"k": part, "i": part * 2} for part in np.array_split(keys, 5)]
    groups = list(whole_groups(chunks, "k"))
    np.testing.assert_array_equal(np.concatenate([group["k"] for group in groups]), keys)
    np.testing.assert_array_equal(np.concatenate([group["i"] for group in groups]), keys * 2)
    firsts = [set(group["k"].tolist()) for group in groups]
    assert sum(len(one) for one in firsts) == len(set(keys.tolist()))
    assert list(whole_groups([], "k")) == []


def test_sorting_and_arrays_go_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import kuaisim_gym.data.tables as module

    monkeypatch.setattr(module, "_MEMORY", "20MB")
    monkeypatch.setattr(module, "_IN_MEMORY", 1000)
    rng = np.random.default_rng(0)
    keys, values = rng.integers(0, 1000, 300_000), rng.random(300_000)
    text = "\n".join(f"{k},{v!r},x" for k, v in zip(keys.tolist(), values.tolist(), strict=True))
    file = write(tmp_path, HEADER + text.encode())
    with open_tables() as tables:
        table = tables.read([file], [WHOLE, NUMBER])
        rows = ColumnFiles(tables.folder, "rows", {"a": np.int32, "b": np.float64})
        for chunk in tables.stream(f"SELECT a, b FROM {table.sql} ORDER BY a, rowid"):
            rows.append(chunk)
        columns = rows.finish()
        filled = allocate(tables.folder / "filled.npy", (300_000,), np.float64, np.nan)
        folder = tables.folder
    assert not folder.exists()
    assert isinstance(columns["b"].base, np.memmap) and isinstance(filled.base, np.memmap)
    assert np.isnan(filled).all()
    order = np.argsort(keys, kind="stable")
    np.testing.assert_array_equal(columns["a"], keys[order])
    np.testing.assert_array_equal(columns["b"], values[order])


def test_what_duckdb_cannot_do_is_an_error_of_ours() -> None:
    with open_tables() as tables:
        for act in (tables.execute, tables.texts, tables.column):
            with pytest.raises(KuaiSimError, match="disk space"):
                act("SELECT nothing FROM nowhere")


def test_a_full_disk_is_not_blamed_on_the_file(tmp_path: Path, monkeypatch) -> None:
    file = write(tmp_path, HEADER + b"1,2,x\n")

    class Full:
        def execute(self, _: str) -> None:
            message = "TransactionContext Error: Failed to commit: Could not write file"
            raise duckdb.TransactionException(message)

    with open_tables() as tables:
        monkeypatch.setattr(tables, "_connection", Full())
        with pytest.raises(DiskSpaceError, match="KUAISIM_CACHE"):
            tables.read([file], [WHOLE])


def test_without_a_cache_folder_the_systems_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "file" / "cache"))
    assert read(write(tmp_path, HEADER + b"1,2,x\n"))["a"] == [1]


@pytest.mark.parametrize("grouped", [True, False])
def test_rows_come_in_the_order_of_groups_and_times(
    tmp_path: Path, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing times first, equal ones as in the file; no sort of the table where groups ascend."""
    import kuaisim_gym.data.tables as module

    monkeypatch.setattr(module, "_VECTORS", 1)
    rng = np.random.default_rng(2)
    groups, times = rng.integers(0, 40, 9_000), rng.integers(0, 99, 9_000)
    groups = np.sort(groups) if grouped else groups
    times[groups == 7] = 50
    missing = rng.random(9_000) < 0.1
    cells = np.where(missing, "", times.astype(str))
    file = tmp_path / "a.csv"
    lines = (f"{x},{t},{i}" for i, (x, t) in enumerate(zip(groups, cells, strict=True)))
    file.write_text("x,t,i\n" + "\n".join(lines))
    columns = [Column("x"), Column("t", "number", gaps=True), Column("i")]
    with open_tables() as tables:
        table = tables.read([file], columns)
        asked, stream = [], tables.stream
        monkeypatch.setattr(tables, "stream", lambda query: asked.append(query) or stream(query))
        by_time = list(tables.in_order(table, table.columns, "x", "t"))
        by_file = list(tables.in_order(table, ["x", "i"], "x"))
    assert any("ORDER BY" in query for query in asked) != grouped
    assert len(by_time) > 3
    assert sum(len(set(chunk["x"].tolist())) for chunk in by_time) == 40  # groups stay whole
    expected = np.lexsort((np.arange(9_000), np.where(missing, -1, times), groups))
    np.testing.assert_array_equal(np.concatenate([chunk["i"] for chunk in by_time]), expected)
    expected = np.lexsort((np.arange(9_000), groups))
    np.testing.assert_array_equal(np.concatenate([chunk["i"] for chunk in by_file]), expected)
