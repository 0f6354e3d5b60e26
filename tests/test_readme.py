"""The README's Python runs as printed, with smaller budgets."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
SMALLER = {
    "learn(50_000)": "learn(64 * 32)",
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


def test_there_is_an_example_of_each_kind() -> None:
    assert len(BLOCKS) == 8


@pytest.mark.filterwarnings("error::DeprecationWarning")
@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_an_example_runs(number: int, tmp_path: Path, request, monkeypatch, capsys) -> None:
    code = BLOCKS[number]
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


def test_its_table_and_those_beside_the_results_are_of_the_results() -> None:
    from benchmarks.report import report
    from benchmarks.results import read_results
    from benchmarks.tables import summary

    results = Path(__file__).parents[1] / "benchmarks" / "results"
    assert summary(read_results(results)) in README
    assert report(results) == (results / "README.md").read_text(encoding="utf-8")
