"""The report: all studies of a folder in one file, today's worlds first, older ones called so."""

from __future__ import annotations

import json
import re
from pathlib import Path
from shutil import copy

import pytest

from benchmarks.__main__ import main
from benchmarks.ab import report as ab
from benchmarks.formatting import NOT_MADE
from benchmarks.origin import FIRST_VERSION
from benchmarks.prose import Evidence
from benchmarks.reports.report import STUDIES, evidence_in, renewed, renewed_page, report
from kuaisim_gym.data import SOURCES
from kuaisim_gym.errors import ConfigError, DataFormatError
from tests.benchmarks.handmade import RUNS

ROOT = Path(__file__).parents[2]
METRICS = ("len", "r_each", "r_cum", "q", "ad", "slate_ad", "longtail_share", "gini", "coverage")
TODAY = {"name": "kuairec", "source": "kuairec", "synthetic": True, "fingerprint": "t" * 16,
         "answers": "synthetic", "seed": 0, "version": SOURCES["kuairec"].version}  # fmt: skip
OLDER = {**TODAY, "fingerprint": "o" * 16, "version": 2}
LIKE = {"name": "kuairec-like", "source": "kuairec-like", "synthetic": False,
        "fingerprint": "l" * 16, "answers": "real"}  # fmt: skip
POOL = {**LIKE, "name": "kuairand-pool", "source": "kuairand-pool", "fingerprint": "p" * 16}


def write(folder: Path, *results: dict) -> None:
    for number, result in enumerate(results, len(list(folder.iterdir()))):
        (folder / f"{number}.json").write_text(json.dumps(result))


def run(agent: str, dataset: dict, max_len: int = 30, slate_size: int = 10, **train) -> dict:
    values = dict.fromkeys(METRICS, 0.5)
    metrics = values | {f"{name}_ci95": 0.1 for name in values}
    return {
        "agent": agent, "env": "KuaiRec-Fair-v0", "max_len": max_len, "seed": 11,
        "slate_size": slate_size, "dataset": dataset, "metrics": metrics,
        "eval": {"sessions": 10}, "versions": {}, "commit": "c",
        "train": {"seconds": 0.0, "episodes": 5003, "steps": 0, "curve": [], **train},
    }  # fmt: skip


def study(name: str, dataset: dict, **content) -> dict:
    return {"study": name, "env": "KuaiRec-Fair-v0", "max_len": 30, "seed": 11,
            "dataset": dataset, **content}  # fmt: skip


def cost(dataset: dict) -> dict:
    row = {"policy": "quality", "slates": "quota", "len": 20.0, "r_each": 0.5, "q": 0.0, "ad": 0.0,
           "longtail_share": 0.5, "d_r": -0.1, "d_r_ci95": 0.0, "d_len": 0.0,
           "d_len_ci95": 0.0}  # fmt: skip
    rows = [row, {**row, "slates": "any, no rule"}]
    return study("cost", dataset, popularity="positives", sessions=10, policies=["quality"],
                 rows=rows)  # fmt: skip


def labels(dataset: dict) -> dict:
    numbers = dict.fromkeys(
        (f"{d}{name}{half}" for d in ("", "d_") for name in ("gauc", "top_quarter")
         for half in ("", "_ci95")), 0.25
    )  # fmt: skip
    return study("labels", dataset, ranking="references", users=3, left_out=1, labels=30, rate=0.1,
                 rows={"quality": numbers})  # fmt: skip


def headings(text: str) -> list[str]:
    return re.findall(r"^###? (.*)$", text, re.MULTILINE)


def test_reference_rows_alone_make_a_report(tmp_path: Path, capsys) -> None:
    write(tmp_path, run("random", TODAY), run("quality+quota", TODAY))
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split() == [
        str(tmp_path / name)
        for name in ("README.md", "front_KuaiRec-Fair-v0_kuairec-synthetic-tttttttt_T30.png")
    ]
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert headings(text) == [
        "Whole sessions at a glance", "Agents",
        f"KuaiRec-Fair-v0, kuairec (SYNTHETIC world, {'t' * 16}), T 30", "Who is not dominated",
        f"KuaiRec-Fair-v0, kuairec (SYNTHETIC world, {'t' * 16}), T 30",
    ]  # fmt: skip


def test_today_s_worlds_come_first_with_their_own_names_and_answers(tmp_path: Path) -> None:
    write(
        tmp_path,
        run("a2c", OLDER, steps=1),
        *(run("random", block, max_len) for block in (OLDER, TODAY, LIKE) for max_len in (50, 30)),
        run("random", POOL, 20, 2),
    )
    text = report(tmp_path)
    glance = text.split("## Agents")[0]
    (header,) = re.findall(r"^\| Len, R_each .*$", glance, re.MULTILINE)
    assert header.strip("| ").split(" | ")[1:] == [
        "kuairand-pool (REAL answers), T = 20, K = 2",
        "kuairec (SYNTHETIC world), T = 30",
        "kuairec-like (REAL answers), T = 30",
        "kuairec (SYNTHETIC world), T = 50",
        "kuairec-like (REAL answers), T = 50",
    ]  # the older world has been replaced
    tables = text.split("## Agents")[1].split("## Who is not dominated")[0]
    titles = [title for title in headings(tables) if "T " in title]
    assert ["OLDER" in title for title in titles] == [False] * 5 + [True] * 2


def test_all_studies_stand_in_it_and_older_worlds_are_called_so(tmp_path: Path) -> None:
    made = [make(block) for make in (cost, labels) for block in (OLDER, TODAY)]
    write(tmp_path, *made)
    found = headings(report(tmp_path))
    assert found == [
        "The cost of balance",
        "What a quota costs",
        f"Cost of balance: KuaiRec-Fair-v0, kuairec (SYNTHETIC world, {'t' * 16}), T 30, "
        "groups by positives",
        f"Cost of balance: KuaiRec-Fair-v0, kuairec (OLDER SYNTHETIC world, {'o' * 16}), T 30, "
        "groups by positives",
        "Rankings by labels",
        f"Rankings by SYNTHETIC labels: kuairec ({'t' * 16})",
        f"Rankings by OLDER SYNTHETIC labels: kuairec ({'o' * 16})",
    ]


def test_no_committed_result_is_of_an_older_world() -> None:
    results = Path(__file__).parents[2] / "benchmarks"
    blocks = (json.loads(path.read_text()).get("dataset") for path in results.rglob("*.json"))
    older = [
        block
        for block in blocks
        if isinstance(block, dict)
        and block["synthetic"]
        and block.get("version", FIRST_VERSION) < SOURCES[block["name"]].version
    ]
    assert older == []
    assert "OLDER" not in report(results / "results")
    assert len(STUDIES) == len({name for _, name, *_ in STUDIES})


def test_a_folder_without_results_is_refused(tmp_path: Path, capsys) -> None:
    with pytest.raises(DataFormatError, match="There are no results under"):
        report(tmp_path)
    assert main(["report", str(tmp_path)]) == 2
    assert not (tmp_path / "README.md").exists()


def test_pages_are_renewed_by_the_command_and_faults_name_the_page(tmp_path: Path, capsys) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    write(results, run("random", TODAY), cost(TODAY))
    page.write_text(
        "Len <!-- = len random kuairec 30 -->9<!-- / -->, cost "
        "<!-- = cost quality kuairec 30 positives -->9<!-- / -->\n"
        "<!-- front -->\n9\n<!-- /front -->\n"
    )
    assert main(["report", str(results), "--pages", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "30 -->0.50<!--" in text
    assert "positives -->20.0 ± 0.0 %<!--" in text
    assert "| kuairec (SYNTHETIC world), T = 30 | 1 of 1 | random |" in text
    page.write_text("Len <!-- = len rnadom kuairec 30 -->9<!-- / -->\n")
    capsys.readouterr()
    assert main(["report", str(results), "--pages", str(page)]) == 2
    assert f"{page}: in <!-- = len rnadom kuairec 30 --> expected an agent" in (
        capsys.readouterr().err
    )
    assert "-->9<!--" in page.read_text(encoding="utf-8")


def test_only_a_study_that_there_is_can_be_not_made(tmp_path: Path, capsys) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    write(results, run("random", TODAY), study("speed: more", TODAY, seconds=3.0))
    page.write_text(
        "Len <!-- = study sensitivity metrics.len diffusion_steps=5 -->9<!-- / -->, reward "
        "<!-- = study halves metrics.r_each -->9<!-- / -->, <!-- = study 'speed: more' seconds -->"
        "9<!-- / -->\n"
    )
    assert main(["report", str(results), "--pages", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert (text.count("-->not made<!--"), text.count("-->3.000<!--")) == (2, 1)
    page.write_text("Len <!-- = study sensitivty metrics.len diffusion_steps=5 -->9<!-- / -->\n")
    capsys.readouterr()
    assert main(["report", str(results), "--pages", str(page)]) == 2
    error = capsys.readouterr().err
    assert "expected a study instead of 'sensitivty': one of ab, cost" in error
    assert "sensitivity, speed: more" in error


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x <!--= count runs all-->9<!--/-->", "is no pair"),
        ("x <!-- = count runs all -->9\n\nlost?\n<!-- / -->", "is no pair"),
        ("<!-- missing -->\nold\n", "<!-- missing --> and <!-- /missing --> once"),
        ("<!-- missing -->\nold\n<!-- /mising -->\n", "once, each in a line"),
        ("<!-- missing -->\nold\n<!-- /missing -->\n" * 2, "once, each in a line"),
        (" <!-- missing -->\nold\n<!-- /missing -->\n", "once, each in a line"),
        ("<!-- fronts -->\nold\n<!-- /fronts -->\n", "<!-- fronts --> is no table"),
        (
            "<!-- front -->\n<!-- missing -->\nold\n<!-- /missing -->\n<!-- /front -->\n",
            "<!-- missing --> is inside <!-- front -->",
        ),
    ],
)
def test_a_mark_that_would_stay_as_it_is_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        renewed(text, Evidence(RUNS), "page.md")


def test_a_table_may_be_empty_and_lines_end_as_they_did(tmp_path: Path) -> None:
    assert "hrl" in renewed("<!-- winners -->\n<!-- /winners -->\n", Evidence(RUNS), "page.md")
    page = tmp_path / "page.md"
    page.write_bytes(b"Len\r\n<!-- winners -->\r\nold\r\n<!-- /winners -->\r\nend\r\n")
    content = renewed_page(page, Evidence(RUNS))
    assert b"old" not in content and content.count(b"\r\n") == content.count(b"\n") > 4


def test_tables_of_studies_that_are_not_made_say_so(tmp_path: Path) -> None:
    write(tmp_path, run("random", TODAY))
    names = ("ab", "cost", "days", "estimates", "ope", "ope-verdict", "panels", "searches")
    page = "".join(f"<!-- {name} -->\nold\n<!-- /{name} -->\n" for name in names)
    assert renewed(page, evidence_in(tmp_path), "page.md") == page.replace("old", NOT_MADE)


def test_platforms_without_a_test_are_results_of_tests(tmp_path: Path) -> None:
    committed = ROOT / "benchmarks" / "results" / "ab"
    files = [path for path in committed.glob("*.json") if "interference" in path.name]
    for path in files:
        copy(path, tmp_path)
    assert len(files) > 1
    table = ab.markdown(ab.read_studies(tmp_path)).strip()
    page = renewed("<!-- ab -->\nold\n<!-- /ab -->\n", evidence_in(tmp_path), "page.md")
    assert page == f"<!-- ab -->\n{table}\n<!-- /ab -->\n"
    assert table in report(tmp_path)


def test_pages_are_written_all_or_none(tmp_path: Path, capsys) -> None:
    results, page = tmp_path / "results", tmp_path / "page.md"
    results.mkdir()
    write(results, run("random", TODAY))
    page.write_text("<!-- winners -->\nold\n<!-- /winners -->\n")
    (tmp_path / "latin.md").write_bytes(b"\xe9")
    for other in ("no.md", ".", "latin.md"):
        command = ["report", str(results), "--pages", str(page), str(tmp_path / other)]
        assert main(command) == 2
        assert "--pages names pages of UTF-8 text" in capsys.readouterr().err
        assert "old" in page.read_text()
        assert not (results / "README.md").exists()
