"""What is shown while functions are compiled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("numba")

WORK = """
import numpy as np
from kuaisim_gym.engine.compiled import first_invalid
print(first_invalid(np.ones(1, bool), np.ones(1, bool), np.array([[7]]), 3))
"""


def test_progress_is_shown_once_and_code_is_kept(tmp_path: Path) -> None:
    for expected in (True, False):
        environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", WORK],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        )
        assert done.stdout == "(0, 0)\n"
        assert ("Compiling, once: 1 functions" in done.stderr) == expected
