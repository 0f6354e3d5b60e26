"""Damage to the cache: every file of its entries, in every way, is to be noticed and mended.

An entry holds if the next load gives what was stored, with one warning, and the load after that
finds nothing wrong.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from kuaisim_gym import load_dataset
from kuaisim_gym.data import cache, write_csv
from kuaisim_gym.data.storage import to_arrays
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.simulator.build import assess, load_catalogue, load_preferences
from tests.attack.counts import Counts

Damage = Callable[[Path, np.random.Generator], None]
Load = Callable[[], cache.Arrays]

WORLD = SyntheticConfig(n_users=40, n_test_users=10, n_items=60, events_per_user=12, n_categories=4)


def _content(file: Path) -> NDArray[np.uint8]:
    return np.fromfile(file, np.uint8)


def _empty(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(b"")


def _missing(file: Path, rng: np.random.Generator) -> None:
    file.unlink()


def _truncated(file: Path, rng: np.random.Generator) -> None:
    os.truncate(file, rng.integers(1, file.stat().st_size))


def _longer(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(file.read_bytes() + rng.bytes(8))


def _flip(file: Path, rng: np.random.Generator, first: int, last: int) -> None:
    content = _content(file)
    content[rng.integers(first, max(last, first + 1))] ^= np.uint8(1 << rng.integers(8))
    content.tofile(file)


def _header_bit(file: Path, rng: np.random.Generator) -> None:
    _flip(file, rng, 0, min(128, file.stat().st_size))


def _data_bit(file: Path, rng: np.random.Generator) -> None:
    size = file.stat().st_size
    _flip(file, rng, min(128, size - 1), size)


def _block(file: Path, rng: np.random.Generator) -> None:
    """A disk's block of zeros, or of ones where it was zero."""
    content = _content(file)
    start = rng.integers(min(128, len(content) - 1), len(content))
    block = content[start : start + 4096]
    block[:] = 0 if block.any() else 255
    content.tofile(file)


def _reshaped(file: Path, rng: np.random.Generator) -> None:
    np.save(file, np.load(file)[..., None])


def _retyped(file: Path, rng: np.random.Generator) -> None:
    array = np.load(file)
    np.save(file, array.astype("U20" if array.dtype.kind == "U" else np.complex64))


def _in_columns(file: Path, rng: np.random.Generator) -> None:
    """The header alone says that the array's first axis is the fastest."""
    content = file.read_bytes()
    file.write_bytes(content.replace(b"'fortran_order': False", b"'fortran_order': True "))


def _swapped(file: Path, rng: np.random.Generator) -> None:
    others = [
        other
        for other in sorted(file.parent.glob("*.npy"))
        if other.read_bytes() != file.read_bytes()
    ]
    if not others:
        return _longer(file, rng)
    other = others[rng.integers(len(others))]
    mine = file.read_bytes()
    file.write_bytes(other.read_bytes())
    other.write_bytes(mine)


def _extra(file: Path, rng: np.random.Generator) -> None:
    file.with_name(f"{file.stem}.2.npy").write_bytes(file.read_bytes())


def _garbage(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(rng.bytes(100))


def _nested(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(b"[" * 100_000)


def _other_version(file: Path, rng: np.random.Generator) -> None:
    content = cache.unsealed(file.read_bytes())
    file.write_bytes(cache.sealed(content | {"format": content["format"] + 1}))


def _of_another_entry(file: Path, rng: np.random.Generator) -> None:
    file.write_bytes(cache.sealed({"format": 1, "files": {"a.npy": "0" * 32}}))


def _one_name_fewer(file: Path, rng: np.random.Generator) -> None:
    """The manifest forgets a file, and the file is gone: its checksum alone can tell."""
    content = json.loads(file.read_bytes())
    name = sorted(content["content"]["files"])[0]
    del content["content"]["files"][name]
    file.write_text(json.dumps(content))
    (file.parent / name).unlink()


ARRAY_DAMAGES: tuple[Damage, ...] = (
    _empty, _missing, _truncated, _longer, _header_bit, _data_bit, _block, _reshaped, _retyped,
    _in_columns, _swapped, _extra,
)  # fmt: skip
MANIFEST_DAMAGES: tuple[Damage, ...] = (
    _empty, _missing, _truncated, _header_bit, _garbage, _nested, _other_version,
    _of_another_entry, _one_name_fewer,
)  # fmt: skip


def damages(entry: Path) -> list[tuple[Path, Damage]]:
    """Every file of an entry with every damage to it."""
    manifest = entry / "manifest.json"
    files = [(file, damage) for file in sorted(entry.glob("*.npy")) for damage in ARRAY_DAMAGES]
    return files + [(manifest, damage) for damage in MANIFEST_DAMAGES]


def attempt(load: Load, file: Path, damage: Damage, rng: np.random.Generator) -> str | None:
    """Damages a file of an entry and loads it.

    Args:
        load: Loads what the entry holds, and builds it if it must.
        file: The file.
        damage: What happens to it.
        rng: Draws the place.

    Returns:
        What went wrong; ``None`` if nothing did.
    """
    wanted = {name: array.copy() for name, array in load().items()}
    _renew(file.parent)
    before = file.read_bytes()
    damage(file, rng)
    if file.exists() and file.read_bytes() == before and damage is not _extra:
        return None  # the damage leaves this file as it is
    label = f"{file.parent.name}/{file.name}{damage.__name__}"
    try:
        with warnings_of_the_cache() as told:
            again = load()
        with warnings_of_the_cache() as told_later:
            load()
    except Exception as error:  # whatever it is: the user would see it
        return f"{label}: {type(error).__name__}: {error}"
    if not same(wanted, again):
        return f"{label}: other arrays, without an error"
    if len(told) != 1 or told_later:
        return f"{label}: {len(told)} warnings, then {len(told_later)}"
    return None


def _renew(folder: Path) -> None:
    """Puts a copy in the folder's place: who has its files mapped is not to see the damage."""
    copy = folder.with_name(f"{folder.name}.copy")
    shutil.copytree(folder, copy)
    shutil.rmtree(folder)
    copy.rename(folder)


def same(one: cache.Arrays, other: cache.Arrays) -> bool:
    """Whether arrays have equal names, types, shapes and bytes."""
    return one.keys() == other.keys() and all(
        (one[name].dtype, one[name].shape) == (other[name].dtype, other[name].shape)
        and one[name].tobytes() == other[name].tobytes()
        for name in one
    )


@contextmanager
def warnings_of_the_cache() -> Iterator[list[str]]:
    """The warnings that the cache logs in this block."""
    told: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage())

    listener = Listener(logging.WARNING)
    logger = logging.getLogger(cache.__name__)
    logger.addHandler(listener)
    try:
        yield told
    finally:
        logger.removeHandler(listener)


def loads(folder: Path) -> dict[str, Load]:
    """Loads of what the cache holds of a small world, by the beginning of their keys.

    Args:
        folder: Gets the world's files.
    """
    world = synthetic_kuairec(seed=3, config=WORLD)
    write_csv(world, folder)
    dataset = load_dataset("kuairec", folder)

    def arrays(owner: object) -> cache.Arrays:
        return {name: value for name, value in vars(owner).items() if hasattr(value, "dtype")}

    return {
        "kuairec-": lambda: to_arrays(load_dataset("kuairec", folder)),
        "catalogue-": lambda: arrays(load_catalogue.__wrapped__(dataset)),
        "preferences-": lambda: arrays(load_preferences.__wrapped__(dataset)),
        "assess-": lambda: arrays(assess(dataset, "train")),
    }


def damaged_entries(n: int, seed: int) -> Counts:
    """Damages files of worlds, fits and their manifests, one at a time, and loads them.

    Args:
        n: Number of damages, of all kinds in turns.
        seed: Draws files and places.

    Returns:
        What held: the same content as before, after one warning.
    """
    rng = np.random.default_rng(seed)
    counts = Counts()
    with TemporaryDirectory() as temporary:
        root = Path(temporary)
        with mock.patch.dict(os.environ, KUAISIM_CACHE=str(root / "cache")):
            tries: list[tuple[Load, Path, Damage]] = []
            for name, load in loads(root / "files").items():
                load()
                entry = min(cache.cache_dir().glob(f"{name}*.arrays"))
                tries += [(load, file, damage) for file, damage in damages(entry)]
            rng.shuffle(tries)  # type: ignore[arg-type]  # a list will do
            for load, file, damage in itertools.islice(itertools.cycle(tries), n):
                counts.note(attempt(load, file, damage, rng))
    return counts
