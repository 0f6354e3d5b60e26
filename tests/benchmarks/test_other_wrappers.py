"""The page of other people's wrappers: its table is what playing gives today."""

from __future__ import annotations

import shutil
from pathlib import Path

import gymnasium as gym
import pytest
from gymnasium.vector import AutoresetMode

from benchmarks.wrappers import END, MARK, WAYS, main, verdict

PAGE = Path(__file__).parents[2] / "docs" / "wrappers.md"


def test_the_page_is_what_playing_gives(tmp_path: Path) -> None:
    """Gymnasium 1.4.0; another version may do otherwise."""
    if gym.__version__ != "1.4.0":
        pytest.skip(f"the page is of Gymnasium 1.4.0, not {gym.__version__}")
    copy = tmp_path / "wrappers.md"
    shutil.copy(PAGE, copy)
    text = PAGE.read_text(encoding="utf-8")
    table = text.partition(MARK)[2].partition(END)[0]
    copy.write_text(text.replace(table, "\n"), encoding="utf-8")
    main(copy)
    assert copy.read_text(encoding="utf-8") == text


def test_verdicts_tell_refusals_from_failures(small) -> None:
    mode = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    assert verdict(WAYS["no wrapper"], small, mode) == "yes"

    class Late(gym.vector.VectorWrapper):
        def step(self, actions):
            raise KeyError("in the middle")

    def refuses(env):
        raise TypeError("at once")

    def made(wrapper):
        return lambda options: wrapper(WAYS["no wrapper"](options))

    assert verdict(made(Late), small, mode) == "fails (`KeyError`)"
    assert verdict(made(refuses), small, mode) == "refused (`TypeError`)"
