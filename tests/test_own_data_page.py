"""The page about one's own data: its examples run, and its table is of the roles that there are."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import duckdb
import gymnasium as gym
import pandas as pd
import pytest

from kuaisim_gym import load_dataset
from kuaisim_gym.data.__main__ import main
from kuaisim_gym.data.custom.columns import RECOGNISED

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "own_data.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of the form of MovieLens, and those of a shop."""
    monkeypatch.chdir(tmp_path)
    movies = tmp_path / "ml-latest-small"
    movies.mkdir()
    rows = [f"{n % 40},{n * 7 % 60},{n * 3 % 10 / 2 + 0.5},{n}\n" for n in range(900)]
    (movies / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    titles = [f'{n},"Film {n}, The",{("Crime", "Drama|Crime")[n % 2]}\n' for n in range(60)]
    (movies / "movies.csv").write_text("movieId,title,genres\n" + "".join(titles))
    (movies / "links.csv").write_text("movieId,imdbId\n1,1\n")
    ids = pd.DataFrame({"user": [1, 1, 2, 3], "item": [1, 2, 3, 1]})
    duckdb.from_df(ids.assign(label=[0, 1, 1, 0])).to_parquet("random.parquet")
    pd.DataFrame({"item": [1, 2, 3], "kind": list("aba")}).to_csv(tmp_path / "items.csv.gz")
    return tmp_path


def test_its_examples_run(folder: Path, capsys) -> None:
    frame = pd.DataFrame({"user": [1, 2, 2, 4], "item": [3, 1, 2, 2]})
    assert len(PYTHON) == 3
    (folder / "example.py").write_text("\n".join(PYTHON))
    names = runpy.run_path("example.py", {"frame": frame})
    line = capsys.readouterr().out
    assert line.startswith("movies (real): 40 users (") and "60 items" in line
    assert "movies (real" in line.removeprefix("movies (real)")
    assert names["shop"].item_features.values["kind"] == ("", "a", "b")  # of a compressed table
    assert names["env"].unwrapped.groups.names == ("Crime", "Drama")
    env = names["env"]
    env.reset(seed=1)
    env.step(env.action_space.sample())


def test_its_file_of_options_is_the_same_dataset(folder: Path, capsys) -> None:
    (text,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    (folder / "movies.toml").write_text(text)
    described = load_dataset("table", "movies.toml")
    options = {"item_features": {"genres": "|"}, "columns": {"time": None}, "name": "movies"}
    expected = load_dataset("table", "ml-latest-small", rating_map=(0.5, 5), **options)
    assert described.fingerprint == expected.fingerprint
    env = gym.make("Recommendation-Fair-v0", dataset="movies.toml")
    assert env.unwrapped.world.startswith("movies (real")
    assert main(["check", "movies.toml"]) == 0
    assert "load it: load_dataset('table', 'movies.toml')" in capsys.readouterr().out


def test_its_command_says_what_is_there(folder: Path, capsys) -> None:
    (command,) = re.findall(r"^ {4}python -m kuaisim_gym.data (check .*)$", PAGE, re.MULTILINE)
    assert main(command.split()) == 0
    out = capsys.readouterr().out
    assert "rating = rating, time = timestamp" in out and "features: title, genres" in out
    assert ": 0\n" not in out


def test_its_table_names_exactly_the_recognised_columns() -> None:
    rows = re.findall(r"^\| (\w+) \| ([\w, ]+) \|", PAGE, re.MULTILINE)
    names = {role: tuple(re.findall(r"[a-z]+", cell.replace("_", ""))) for role, cell in rows[1:]}
    assert names == RECOGNISED


def test_its_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!http)([^)#]+)", PAGE):
        assert (DOCS / link).exists(), link
