"""The site: how-tos run as printed, with smaller budgets, and pages show what the code says."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.studies.results import read_results, world_of
from dsrm_agents.baselines.reference import CEILING
from kuaisim_gym.metrics import summaries

DOCS = Path(__file__).parents[1] / "docs"
_SPEC = importlib.util.spec_from_file_location("fill", DOCS / "fill.py")
assert _SPEC is not None
assert _SPEC.loader is not None
fill = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(fill)
HOWTOS = sorted((DOCS / "howto").glob("*.md"))
MOST_LINES = 10  # of a how-to's program, blank lines left out
SMALLER = {
    "learn(50_000": "learn(64 * 32",
    "eval_freq=50": "eval_freq=20",
    "sessions=500": "sessions=50",
}


@pytest.mark.parametrize("page", HOWTOS, ids=[page.stem for page in HOWTOS])
def test_a_howto_runs(page: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= MOST_LINES
    for text, smaller in SMALLER.items():
        code = code.replace(text, smaller)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    runpy.run_path("example.py", run_name="__main__")
    assert capsys.readouterr().out.strip() or list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["kuaisim_gym", "dsrm_agents", "kuaisim_gym.metrics"])
def test_the_reference_has_every_public_name(package: str) -> None:
    page = (DOCS / "api" / f"{package.rpartition('.')[2]}.md").read_text(encoding="utf-8")
    module = importlib.import_module(package)
    named = set(re.findall(r"^   (\w+)$", page, re.MULTILINE)) | set(re.findall(r"`(\w+)`", page))
    public = {name for name in module.__all__ if callable(getattr(module, name))}
    types = {"BoolArray", "FloatArray"}  # names of NumPy's
    assert public - types <= named
    assert all(hasattr(module, name) for name in named)


def test_the_glossary_has_every_metric_of_the_summaries() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    for title, keys in {
        "whole sessions": summaries.summarise,
        "single lists": summaries.summarise_requests,
        "returns": summaries.summarise_retention,
    }.items():
        section = text.split(f"## Metrics of {title}")[1].split("\n## ")[0]
        named = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert named == re.findall(r'^        "(\w+)": ', inspect.getsource(keys), re.MULTILINE)


def test_the_glossary_s_examples_are_of_the_results() -> None:
    text = (DOCS / "glossary.md").read_text(encoding="utf-8")
    means: dict[str, list[float]] = {}
    for run in read_results(DOCS.parent / "benchmarks" / "results"):
        if run["env"] == "KuaiRec-Fair-v0" and run["max_len"] == 30 and not world_of(run).is_older:
            for key in ("len", "q", "ad"):
                means.setdefault(f"{run['agent']} {key}", []).append(run["metrics"][key])
    mean = {name: np.mean(values) for name, values in means.items()}
    assert f"random {mean['random len']:.0f}, the ceiling {mean[f'{CEILING} len']:.0f}," in text
    assert f"| 0; random {mean['random q']:.2f} |".replace("0.", ".") in text
    assert f"not of single items; random {mean['random ad']:.1f} |".replace("0.", ".") in text


def test_films_are_small_and_on_the_pages_of_their_environments() -> None:
    films = sorted((DOCS / "images").glob("*.gif"))
    assert len(films) == 5
    for path in films:
        assert path.stat().st_size < 400_000
        page = DOCS / "environments" / f"{path.stem.split('-')[path.stem.count('-')]}.md"
        page = page if page.exists() else DOCS / "environments" / f"{path.stem.split('-')[0]}.md"
        assert f"(../images/{path.name})" in page.read_text(encoding="utf-8")
        with Image.open(path) as image:
            assert image.n_frames >= 10


def test_comments_of_pages_become_what_they_name() -> None:
    docstring = fill.filled("<!-- docstring kuaisim_gym:KuaiRequestEnv; Rewards -->", "page")
    assert docstring.startswith("## Rewards\nThe list-wise reward, in [0, 1]")
    assert "## Starting State" not in docstring
    assert "`fairness_coef=1.6`" in fill.filled("<!-- settings hrl -->", "page")
    table = fill.filled("<!-- results random -->", "page")
    assert re.search(r"^\| Len \| random \|$", table, re.MULTILINE)
    assert re.search(r"^\| kuairec \(SYNTHETIC world\), T = 30 \| 13.82 ± 0.07 \|$", table, re.M)
    assert "OLDER" not in table
    rows = fill.filled("<!-- findings ../findings -->", "surprises").splitlines()[2:]
    assert len(rows) == len(list((DOCS.parent / "findings").glob("*.sh")))
    assert all(cell.strip() for row in rows for cell in row.split(" | "))
    (seeds,) = (row for row in rows if "(`sb3-neighbouring-seeds.sh`)" in row)
    assert seeds.startswith("| Runs of Stable-Baselines3 with seeds 1, 2, 3") and "common/" in seeds
    linked = fill.filled("<!-- file ../CONTRIBUTING.md -->", "contributing")
    assert linked.startswith("# Contributing")
    assert fill.filled("[a](../../CHANGELOG.md#x)", "howto/sb3") == "[a](../changelog.md#x)"
    assert (DOCS / "contributing.md").read_text(encoding="utf-8").strip().startswith("<!-- file")
