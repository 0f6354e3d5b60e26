"""The page about metrics: its example runs, and its table is of the metrics that there are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from benchmarks.exposure import PANELS, by_policy, example, read_studies
from kuaisim_gym.metrics import EXPOSURE_METRICS

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")


def test_its_example_runs(small, tmp_path: Path, capsys) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    script = tmp_path / "example.py"
    script.write_text(code.replace('"test", action', '"test", dataset=small, action'))
    runpy.run_path(str(script), {"small": small})
    summary, intervals = capsys.readouterr().out.splitlines()
    for metric in EXPOSURE_METRICS:
        assert f"'{metric.name}': " in summary
        assert f"'{metric.name}': " in intervals


def test_its_table_defines_exactly_the_metrics() -> None:
    rows = re.findall(r"^\| +(\d*) ?\|.*?\|(.*?)\|.*?\|(.*?)\|$", PAGE, re.MULTILINE)
    keys = {key: goal.strip() for _, cell, goal in rows for key in re.findall(r"`(\w+)`", cell)}
    assert list(keys) == [metric.name for metric in EXPOSURE_METRICS]
    numbered = [number for number, *_ in rows if number]
    assert numbered == [str(n) for n in range(1, len(PANELS) + 1)]
    for metric in EXPOSURE_METRICS:
        if keys[metric.name]:
            assert float(keys[metric.name]) == metric.goal


def test_its_links_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)", PAGE)
    assert len(links) >= 3
    for link in links:
        assert (DOCS / link).exists(), link


def test_its_figure_is_of_the_newest_results() -> None:
    worlds = by_policy(read_studies(DOCS.parent / "benchmarks" / "results" / "exposure"))
    (world,) = (one for one, runs in worlds.items() if runs is example(worlds))
    (figure,) = re.findall(r"!\[Ten metrics\]\((.*?)\)", PAGE)
    assert Path(figure).name == f"exposure_{world.slug}.png"


def test_no_number_of_what_it_says_of_disagreement_is_by_hand() -> None:
    text = PAGE.split("## Where they disagree")[1].split("## How")[0]
    by_hand = re.sub(r"<!-- = .*? -->.*?<!-- / -->", "", text)
    assert re.findall(r"(?<![\w.])\d*\.\d+", by_hand) == []
    assert text.count("<!-- = exposure ") > 20
