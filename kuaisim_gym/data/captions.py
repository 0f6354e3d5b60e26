"""Captions of KuaiRec's videos and three levels of categories, as features of items.

``kuairec_caption_category.csv`` of KuaiRec 2.0 ends its rows with line feeds, and four captions
hold a carriage return without quotes around it. Strict readers find no dialect (DuckDB 2.0.0),
lenient ones read one column and 10,732 rows (the same), or 10,732 rows (pandas 3.1.1). There are
10,728 videos.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from kuaisim_gym.data.coding import Field, Positions, add_note, read_features
from kuaisim_gym.data.dataset import Dataset, Features
from kuaisim_gym.data.files import DataFiles, Layout
from kuaisim_gym.data.source import Source
from kuaisim_gym.data.tables import Column, Tables, opened
from kuaisim_gym.disk import disk_errors
from kuaisim_gym.errors import ConfigError, DataFormatError

CAPTIONS = "kuairec_caption_category"
LEVELS = ("first_level_category", "second_level_category", "third_level_category")
TEXTS = ("manual_cover_text", "caption", "topic_tag")
TEXT = "caption_text"  # the field of the words
LEAST_VIDEOS = 20  # that hold a pair of characters, which is no word of its own otherwise
_NO_CATEGORY, _NO_TEXT = "-124", "UNKNOWN"  # what the file writes for a missing one
_STRAY_RETURN = re.compile(rb"\r(?!\n)")
_LETTERS = re.compile(r"[^\W_]+")


class CaptionedSource(Source):
    """A source of KuaiRec's files, which may read :data:`CAPTIONS`, too.

    The categories are those of the column of ids, and ``"-124"`` is a missing one. The text of a
    video are the pairs of neighbouring characters of cover text, caption and topic tags, Chinese
    having no blanks, that at least :data:`LEAST_VIDEOS` videos have.

    Args:
        captions: Whether to read them; features change the fitted models, and so the world.
    """

    options: ClassVar = ("captions",)

    def __init__(self, captions: bool = False) -> None:
        if not isinstance(captions, bool):
            raise ConfigError(f"captions must be True or False, got {captions!r}.")
        self.captions = captions

    def load(self, path: str | Path | None, seed: int) -> Dataset:
        if path is None and self.captions:
            raise ConfigError(
                "A synthetic world has no captions: give path, or leave out captions."
            )
        return super().load(path, seed)

    def layout(self, layout: Layout) -> Layout:
        """A layout, and the file of captions where it is to be read."""
        if not self.captions:
            return layout
        return replace(layout, required=(*layout.required, CAPTIONS))


def read_captions(
    tables: Tables, files: DataFiles, items: Positions, notes: dict[str, int]
) -> Features:
    """Categories and text of KuaiRec's videos by position; no fields without their file.

    Carriage returns in cells are read as blanks, and counted in ``notes``.

    Raises:
        DataFormatError: The file breaks a rule of :mod:`~kuaisim_gym.data.tables`.
    """
    if CAPTIONS not in files.tables:
        return Features()
    parts = [_in_lines(part, tables.folder, notes) for part in files.tables[CAPTIONS]]
    columns = [Column("video_id")]
    columns += [Column(f"{level}_id", "text", gaps=True) for level in LEVELS]
    columns += [Column(name, "text", gaps=True) for name in TEXTS]
    keep = {"video_id": "video_id"}
    keep |= {level: f"nullif({level}_id, '{_NO_CATEGORY}')" for level in LEVELS}
    words = ", ".join(f"nullif({name}, '{_NO_TEXT}')" for name in TEXTS)
    keep[TEXT] = f"nullif(concat_ws(' ', {words}), '')"
    try:
        table = tables.read(parts, columns, keep, rows="videos")
    except DataFormatError as error:
        text = str(error)
        for part, file in zip(parts, files.tables[CAPTIONS], strict=True):
            text = text.replace(str(part), str(file))  # not the name of the copy
        raise DataFormatError(text) from error
    counts = Counter(
        pair
        for text in tables.texts(f"SELECT {TEXT} FROM {table.sql} WHERE {TEXT} IS NOT NULL")
        for pair in pairs_of(text)
    )
    known = {pair for pair, count in counts.items() if count >= LEAST_VIDEOS}

    def split(text: str) -> list[str]:
        return [pair for pair in pairs_of(text) if pair in known]

    fields = [Field(level) for level in LEVELS] + ([Field(TEXT, split)] if known else [])
    return read_features(tables, table, items, fields, notes, CAPTIONS, skipped=(TEXT,))


def pairs_of(text: str) -> list[str]:
    """Pairs of neighbouring letters or digits of a text, each once, in order; case is ignored."""
    runs = _LETTERS.findall(text.lower())
    return list(dict.fromkeys(run[i : i + 2] for run in runs for i in range(len(run) - 1)))


def joined(*parts: Features) -> Features:
    """All fields of several features of the same items, whose names differ."""
    merged = Features()
    for part in parts:
        merged = Features(
            {**merged.codes, **part.codes},
            {**merged.values, **part.values},
            {**merged.numbers, **part.numbers},
        )
    return merged


def _in_lines(file: Path, folder: Path, notes: dict[str, int]) -> Path:
    """The file, or a copy without carriage returns inside of lines."""
    with opened(file) as source:
        content, count = _STRAY_RETURN.subn(b" ", source.read())
    if not count:
        return file
    add_note(notes, f"{CAPTIONS}.carriage_returns_in_cells", count)
    copy = folder / file.name.removesuffix(".gz")
    with disk_errors(copy):
        copy.write_bytes(content)
    return copy
