"""The Python of README and of the pages of docs runs as printed, with smaller budgets."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from kuaisim_gym import SessionConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "quickstart",
            "agents",
            "data",
            "environments",
            "serving",
            "off_policy_evaluation",
        )
    ),
)
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
    for page in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("findings/*.md")):
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", text):
            path = ROOT / target[1:] if target.startswith("/") else page.parent / target
            assert path.exists(), f"{page.name}: {target}"


def test_pictures_of_readme_can_be_shown_elsewhere() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\((.*?)\)", README)
    assert len(pictures) == 3
    assert all(re.fullmatch(r"/[\w./-]+", path, re.ASCII) for path in pictures)
    names = runpy.run_path(str(ROOT / "docs" / "absolute.py"))
    text = names["absolute"](README, "https://example.org/me/kuaisim-gym")
    targets = re.findall(r"\]\(([^)#]+)", text)
    assert len(targets) == len(re.findall(r"\]\(([^)#]+)", README))
    assert all(target.startswith("https://") for target in targets)
    assert "](https://example.org/me/kuaisim-gym/raw/HEAD/docs/images/kuairec-fair.gif)" in text
    assert "](https://example.org/me/kuaisim-gym/blob/HEAD/docs/data.md)" in text


def test_the_film_of_readme_is_as_long_as_it_says() -> None:
    (steps,) = re.findall(r"!\[A session of (\d+) slates", README)
    with Image.open(ROOT / "docs" / "images" / "kuairec-fair.gif") as film:
        assert film.n_frames == int(steps)


def test_the_world_of_readme_is_the_default_one() -> None:
    env = gym.make("KuaiRec-Fair-v0").unwrapped
    rules = SessionConfig()
    text = README.split("## The world")[1].split("\n## ")[0]
    assert f"**Observation**: {env.observation_space.shape[0]} numbers" in text
    assert f"of T = {rules.max_len}." in text
    assert f"|2s - 1| >= {rules.ad_bound}" in text
    assert (rules.slate_size, rules.exposure_window) == (10, 10)  # "ten", "the last ten"


def test_findings_of_readme_are_of_the_results() -> None:
    from benchmarks.formatting import interval
    from benchmarks.studies.results import read_results, world_of

    text = README.split("## What we found")[1].split("\n## ")[0]
    fresh = read_results(ROOT / "benchmarks" / "fresh_worlds")

    def lengths(env: str, agent: str) -> np.ndarray:
        runs = [run for run in fresh if (run["env"], run["agent"]) == (env, agent)]
        runs = sorted((run["seed"], run["metrics"]["len"]) for run in runs if run["max_len"] == 30)
        return np.array(runs)[:, 1]

    for dataset in ("KuaiRec", "KuaiRand"):
        env = f"{dataset}-Fair-v0"
        share = (lengths(env, "filter+quota") / lengths(env, "expected-oracle+quota")).mean()
        assert f"{share:.3f} ({dataset})".lstrip("0") in text
        gain = interval((lengths(env, "dsrm-hrl") - lengths(env, "raw-hrl")).tolist(), 2)
        assert gain.replace("0.", ".") in text
        for agent in ("mlp-hrl", "filter+quota"):  # "does as much", "adds nothing"
            assert abs((lengths(env, "dsrm-hrl") - lengths(env, agent)).mean()) < 0.05
    likes = {name: lengths("Recommendation-Fair-v0", name) for name in ("dsrm-hrl", "hrl")}
    assert (likes["dsrm-hrl"] - likes["hrl"]).mean() < 0  # "none on the real kuairec-like"
    means: dict[tuple[str, object], list[float]] = {}
    for run in read_results(ROOT / "benchmarks" / "results"):
        world = world_of(run)
        if not world.is_older and "-Fair-" in world.env and run["max_len"] <= 30:
            means.setdefault((run["agent"], world), []).append(run["metrics"]["len"])

    def range_of(*agents: str) -> str:
        values = [np.mean(each) for (agent, _), each in means.items() if agent in agents]
        return f"{min(values):.0f} to {max(values):.0f}"

    assert f"{range_of('ppo', 'a2c')} steps, *quality+quota* {range_of('quality+quota')}" in text
    table = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    row = re.search(r"^\| kuairec-like \(REAL answers\), T = 30, by positives .*$", table, re.M)
    assert row is not None
    costs = [float(cell) for cell in re.findall(r"-([\d.]+) ± ", row[0])]
    assert (
        f"likes {costs[0]:.0f} % of its reward, one by expected answers {costs[-1]:.0f} %" in text
    )


def pages_of_results() -> list[str]:
    """The pages with tables or values of committed results."""
    from benchmarks.reports.report import PAGE_TABLES

    marks = [f"<!-- {name} -->\n" for name in PAGE_TABLES] + ["<!-- / -->"]
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = {page: page.read_text(encoding="utf-8") for page in pages}
    return [
        str(page.relative_to(ROOT))
        for page, text in texts.items()
        if any(mark in text for mark in marks)
    ]


def test_the_command_of_the_pages_names_all_that_have_tables_or_values() -> None:
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for text in (contributing, (ROOT / "docs" / "results.md").read_text(encoding="utf-8")):
        commands = set(re.findall(r"report benchmarks/results --pages (\S+) docs/{(.*?)}.md", text))
        ((first, others),) = commands
        named = {first, *(f"docs/{name}.md" for name in others.split(","))}
        assert named == {*pages_of_results()}


def test_tables_and_values_of_the_pages_are_of_the_results() -> None:
    from benchmarks.reports.report import PAGE_TABLES, evidence_in, renewed, report

    folder = ROOT / "benchmarks" / "results"
    evidence, shown, values = evidence_in(folder), set(), {}
    for page in pages_of_results():
        text = (ROOT / page).read_text(encoding="utf-8")
        assert renewed(text, evidence, page) == text
        stale, values[page] = re.subn(r"(?<= -->)[^<|\n]*(?=<!-- / -->)", "?", text)
        for name in PAGE_TABLES:
            pattern = rf"(?<=<!-- {name} -->\n).*?(?=\n<!-- /{name} -->)"
            stale, tables = re.subn(pattern, "?", stale, flags=re.DOTALL)
            shown |= {name} if tables else set()
        assert stale != text
        assert renewed(stale, evidence, page) == text
    assert shown == set(PAGE_TABLES)
    assert values["docs/results.md"] > 100 and values["docs/metrics.md"] > 20
    for reported in (folder, ROOT / "benchmarks" / "fresh_worlds"):
        assert report(reported) == (reported / "README.md").read_text(encoding="utf-8")
