"""The page about rules of one's own: its examples are short and run, its tables are complete."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from kuaisim_gym import Rule, SessionStep

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "own_rules.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
MOST_LINES = 10  # of an example


@pytest.fixture
def played(small, tmp_path, capsys):
    """Names and output of the page's examples, one after another, on a small world."""
    code = "\n".join(PYTHON).replace('Fair-v0"', 'Fair-v0", dataset=small')
    (tmp_path / "example.py").write_text(code)
    names = runpy.run_path(str(tmp_path / "example.py"), {"small": small, "np": np})
    return names, capsys.readouterr().out


def test_its_examples_run(played, small) -> None:
    import gymnasium as gym

    names, out = played
    assert out.splitlines()[-1] == "Box(0.0, 1.0, (2,), float64)"
    assert 0.0 <= names["fairness"] <= 1.0
    novelty = names["Novelty"]()
    options = {"dataset": small, "reward": novelty, "action_type": "slate"}
    vector = gym.make_vec("KuaiRec-Fair-v0", num_envs=3, **options)
    vector.reset(seed=1)
    slates = np.tile(np.arange(10), (3, 1))
    assert (vector.step(slates)[1] == 1.0).all()  # nothing was seen before
    assert (vector.step(slates)[1] == 0.0).all()  # and everything now


def test_its_examples_are_short() -> None:
    assert len(PYTHON) == 7
    for code in PYTHON:
        assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES, code


def test_its_tables_name_the_arrays_of_a_step_and_the_hooks_of_a_rule() -> None:
    arrays, hooks = PAGE.split("## Memory")
    assert tuple(re.findall(r"^\| `(\w+)` \|", arrays, re.MULTILINE)) == SessionStep._fields
    named = set(re.findall(r"^\| `(\w+)[`(]", hooks, re.MULTILINE))
    assert named == {name for name in vars(Rule) if not name.startswith("_")}


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (DOCS / link).exists(), link
