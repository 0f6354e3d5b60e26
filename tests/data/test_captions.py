"""Captions and categories of KuaiRec's videos: a file that common readers read wrongly."""

from __future__ import annotations

import csv
import gzip
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data.captions import CAPTIONS, LEVELS, TEXT, pairs_of, read_captions
from kuaisim_gym.data.coding import Positions
from kuaisim_gym.data.dataset import Features
from kuaisim_gym.data.files import DataFiles, Layout
from kuaisim_gym.data.tables import open_tables
from kuaisim_gym.errors import ConfigError, DataFormatError, DatasetNotFoundError

HEADER = (
    "video_id,manual_cover_text,caption,topic_tag,first_level_category_id,"
    "first_level_category_name,second_level_category_id,second_level_category_name,"
    "third_level_category_id,third_level_category_name\n"
)


def read(file: Path, ids: np.ndarray) -> tuple[Features, dict[str, int]]:
    notes: dict[str, int] = {}
    files = DataFiles(file.parent, Layout("captions", (CAPTIONS,)), {CAPTIONS: (file,)})
    with open_tables() as tables:
        return read_captions(tables, files, Positions(ids), notes), notes


def test_all_rows_of_the_real_file(real_data) -> None:
    """10,728 videos; -124 or UNKNOWN in 40, 3,583 and 6,832 of them."""
    file = real_data("kuairec_real") / f"{CAPTIONS}.csv"
    features, notes = read(file, np.arange(10_728))
    assert notes == {
        f"{CAPTIONS}.carriage_returns_in_cells": 4,
        f"{CAPTIONS}.first_level_category.missing": 40,
        f"{CAPTIONS}.second_level_category.missing": 3_583,
        f"{CAPTIONS}.third_level_category.missing": 6_832,
    }
    content = file.read_bytes().decode().replace("\r", " ")
    rows = list(csv.DictReader(content.split("\n")[:-1], strict=True))
    assert len(rows) == 10_728
    for level in LEVELS:
        names, codes = features.values[level], features.codes[level]
        expected = [row[f"{level}_id"].replace("-124", "") for row in rows]
        assert [names[code] for code in codes[:, 0]] == expected
    texts = [
        " ".join(row[name] for name in ("manual_cover_text", "caption", "topic_tag")
                 if row[name] != "UNKNOWN") for row in rows
    ]  # fmt: skip
    counts = Counter(pair for text in texts for pair in pairs_of(text))
    known = {pair for pair, count in counts.items() if count >= 20}
    assert set(features.values[TEXT]) == known | {""}
    for video in (0, 1, 1378, 10_727):
        codes = features.codes[TEXT][video]
        found = [features.values[TEXT][code] for code in codes if code]
        assert found == [pair for pair in pairs_of(texts[video]) if pair in known]


def test_a_small_file(tmp_path: Path) -> None:
    """Returns in and outside of quotes, commas in quotes, and a second row of one video."""
    rows = [
        '7,UNKNOWN,"a, b\r\ncd",[],1,x,2,y,-124,UNKNOWN\n',
        "8,UNKNOWN,ab\rcd,[],3,x,-124,UNKNOWN,-124,UNKNOWN\n",
        "7,UNKNOWN,later,[],9,x,2,y,-124,UNKNOWN\n",
    ]
    for form in ("csv", "csv.gz"):
        file = tmp_path / f"{CAPTIONS}.{form}"
        content = (HEADER + "".join(rows)).encode()
        file.write_bytes(gzip.compress(content) if form == "csv.gz" else content)
        features, notes = read(file, np.array([7, 8, 9]))
        assert features.values[LEVELS[0]] == ("", "1", "3", "9")
        assert features.codes[LEVELS[0]].tolist() == [[1], [2], [0]]
        assert features.codes[LEVELS[1]].tolist() == [[1], [0], [0]]
        assert LEVELS[2] not in features.codes and TEXT not in features.codes
        assert notes[f"{CAPTIONS}.carriage_returns_in_cells"] == 1
        file.unlink()
    file = tmp_path / f"{CAPTIONS}.csv"
    file.write_text(HEADER + rows[1].replace(",[],", ","))
    with pytest.raises(DataFormatError, match=f"^{re.escape(str(file))}"):  # not a copy's name
        read(file, np.array([8]))


def test_pairs_of_letters() -> None:
    assert pairs_of("快手 快手热! AbB, x [1人]") == [
        "快手", "手热", "ab", "bb", "1人",
    ]  # fmt: skip
    assert pairs_of("UNKNOWN"[:1]) == [] == pairs_of("[]...~\r")


def test_captions_are_read_on_request(real_data, like_world, tmp_path: Path) -> None:
    """The world without them stays what it was, wherever the file is."""
    folder = real_data("kuairec_real")
    captioned = load_dataset("kuairec-like", folder, captions=True)
    assert list(like_world.item_features.codes) == ["category"]
    assert list(captioned.item_features.codes) == ["category", *LEVELS, TEXT]
    np.testing.assert_array_equal(captioned.log.items, like_world.log.items)
    assert captioned.fingerprint != like_world.fingerprint
    assert load_dataset("kuairec-like", folder, captions=False).fingerprint == (
        like_world.fingerprint
    )
    with pytest.raises(ConfigError, match="no captions: give path"):
        load_dataset("kuairec", captions=True)
    with pytest.raises(ConfigError, match="must be True or False, got 1"):
        load_dataset("kuairec-like", folder, captions=1)
    for name in ("big_matrix_watch_ratio_ge_2", "small_matrix_watch_ratio_ge_2"):
        shutil.copy(folder / f"{name}.csv", tmp_path)
    shutil.copy(folder / "small_matrix_rows.csv", tmp_path)
    with pytest.raises(DatasetNotFoundError, match=CAPTIONS):
        load_dataset("kuairec-like", tmp_path, captions=True)
