"""The extras: each is tried alone by ``tests/check_extras.py``, which installs software."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

from tests.check_extras import COMMANDS, PROGRAMS

ROOT = Path(__file__).parents[1]


def extras() -> dict[str, str]:
    """Requirements of each extra, one a line."""
    parser = configparser.ConfigParser(inline_comment_prefixes=("#",))
    parser.read(ROOT / "setup.cfg")
    return dict(parser["options.extras_require"])


def test_every_extra_is_tried_alone() -> None:
    assert set(PROGRAMS) - {"", "bench,ray"} == set(extras())
    for name, program in PROGRAMS.items():
        assert program or name in COMMANDS
        compile(program, name, "exec")


def test_pages_name_extras_that_exist() -> None:
    """Those of pip commands, in pages, docstrings and errors."""
    named = set()
    for folder in ("docs", "kuaisim_gym", "dsrm_agents", "benchmarks"):
        for file in [*(ROOT / folder).rglob("*.md"), *(ROOT / folder).rglob("*.py")]:
            for group in re.findall(r"kuaisim-gym\[([a-z,]+)\]", file.read_text()):
                named |= set(group.split(","))
    assert {"agents", "bench", "minari", "ray"} <= named <= set(extras())


def test_minari_comes_with_what_its_storages_import() -> None:
    """Minari 0.5.4 imports Pillow in all of dataset/_storages, and h5py and pyarrow in some."""
    assert "minari[arrow,hdf5]" in extras()["minari"] and "pillow" in extras()["minari"]
