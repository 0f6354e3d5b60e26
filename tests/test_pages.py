"""The Python of README and of the pages of docs runs as printed, with smaller budgets."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/agents.md", "docs/data.md", "docs/environments.md",
         "docs/serving.md")  # fmt: skip
# A README that is longer is not read.
MOST_BYTES = 9_000


def blocks(page: str) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


# A block that stands on several pages runs once.
BLOCKS = {code: f"{page}-{n}" for page in PAGES for n, code in enumerate(blocks(page))}
SMALLER = {
    "learn(50_000)": "learn(64 * 32)",
    "learn(100_000)": "learn(64 * 32)",
    'fit_purifier("mlp", train.dataset)': 'fit_purifier("mlp", train.dataset, updates=5)',
    "fit_dsrm(train.dataset)": "fit_dsrm(train.dataset, updates=5)",
    "500": "50",
}


def write_movies(folder: Path) -> None:
    """Files of the form of MovieLens."""
    folder.mkdir(parents=True)
    ratings = [f"{n % 40},{n * 7 % 60},{n * 3 % 10 / 2 + 0.5},{n}\n" for n in range(900)]
    movies = [f'{movie},"Film {movie}, The",Drama|Crime\n' for movie in range(60)]
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(ratings))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + "".join(movies))


def test_readme_is_short_and_its_pages_have_examples() -> None:
    assert len(README.encode()) <= MOST_BYTES
    assert all(blocks(page) for page in PAGES)


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("code", BLOCKS, ids=BLOCKS.values())
def test_an_example_runs(code: str, tmp_path: Path, request, monkeypatch, capsys) -> None:
    # The import registers the ids: here an example would run without it.
    assert re.search(r"^(import|from) (kuaisim_gym|dsrm_agents)\b", code, re.MULTILINE)
    if "path/to/KuaiRec/data" in code:
        folder = request.getfixturevalue("real_folder")
        code = code.replace("path/to/KuaiRec/data", str(folder))
    if "path/to/ml-latest-small" in code:
        write_movies(tmp_path / "path" / "to" / "ml-latest-small")
    for text, smaller in SMALLER.items():
        code = code.replace(text, smaller)
    monkeypatch.chdir(tmp_path)
    Path("example.py").write_text(code, encoding="utf-8")
    runpy.run_path("example.py", run_name="__main__")
    assert capsys.readouterr().out.strip()


def test_the_session_in_readme_is_the_one_of_its_first_example(tmp_path: Path, capsys) -> None:
    picture = re.search(r"```\n(step .*?)```", README, re.DOTALL)
    assert picture is not None
    code = next(code for code in BLOCKS if "env.render()" in code)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")
    shown = [line for line in picture[1].splitlines() if line.strip() != "..."]
    assert [line for line in capsys.readouterr().out.splitlines() if line in shown] == shown


def test_a_recommendation_takes_ten_lines() -> None:
    code = next(code for code in blocks("docs/serving.md") if "Recommender" in code)
    assert len([line for line in code.splitlines() if line]) <= 10


def test_links_of_the_pages_lead_somewhere() -> None:
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("findings/*.md")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_tables_of_the_pages_are_of_the_results() -> None:
    from benchmarks.report import report
    from benchmarks.results import read_results
    from benchmarks.tables import ladder, summary

    folder = ROOT / "benchmarks" / "results"
    results = read_results(folder)
    assert ladder(results) in README
    assert summary(results) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for reported in (folder, ROOT / "benchmarks" / "fresh_worlds"):
        assert report(reported) == (reported / "README.md").read_text(encoding="utf-8")
