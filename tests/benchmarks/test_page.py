"""The page of a report: complete, well-formed, and by itself."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.reports import page

VOID = {"meta", "img", "br"}
SIZES = ("--max-len", "6", "--episodes", "64", "--sessions", "20")


class Strict(HTMLParser):
    """Checks that elements nest, and keeps what they refer to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.count: dict[str, int] = {}
        self.targets: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.count[tag] = self.count.get(tag, 0) + 1
        assert len({name for name, _ in attributes}) == len(attributes)
        for name, value in attributes:
            assert not name.startswith("on")
            if name in ("src", "href", "srcset", "data", "action", "poster"):
                self.targets.append(value or "")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def written(small, tmp_path_factory) -> tuple[Path, str]:
    """A page of three runs, two agents of which are kept, and the folder of them."""
    patch = pytest.MonkeyPatch()
    patch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    patch.setattr(page, "SESSIONS", 20)
    folder = tmp_path_factory.mktemp("runs")
    for seed in ("11", "15"):
        assert main(["train", "hrl", *SIZES, "--seed", seed, "--out", str(folder)]) == 0
    suite = ["suite", "--agents", "quality+quota", "--seeds", "11", "15", "--jobs", "1", *SIZES]
    assert main([*suite, "--out", str(folder)]) == 0
    file = folder / "page.html"
    assert main(["report", str(folder), "--html", str(file)]) == 0
    patch.undo()
    return folder, file.read_text(encoding="utf-8")


def test_a_page_holds_all_and_refers_to_nothing(written: tuple[Path, str]) -> None:
    _, text = written
    parsed = Strict(text)
    titles = re.findall(r"<h2>(.*?)</h2>", text)
    assert titles == [
        "Results",
        "Learning curves, and session length over balance",
        "The fairness dial",
        "A session",
        "Settings and versions",
    ]
    assert parsed.count["table"] == 2
    assert parsed.count["img"] == 4  # curves, plane, dial, session
    assert not {"script", "link", "iframe", "object", "base"} & parsed.count.keys()
    assert len(parsed.targets) == 4
    for target in parsed.targets:
        kind, _, data = target.partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data, validate=True).startswith(b"\x89PNG")
    assert not re.search(r"url\(|@import|https?:|//", re.sub(r'src="[^"]*"', "", text))
    words = " ".join(parsed.words)
    longest = "Longest sessions of a learned agent: hrl"
    for shown in ("quality+quota", longest, "numpy", "± ", "over after", "SYNTHETIC"):
        assert shown in words
    assert len(re.findall(r"<tr><td>hrl</td><td>KuaiRec-Fair-v0</td>", text)) == 2


def test_names_of_data_are_no_markup(written: tuple[Path, str]) -> None:
    folder, _ = written
    runs = page.runs_of([folder])
    first, *_ = runs
    runs[first] = runs[first] | {"agent": "<b>&me"}
    runs = {first.with_name("gone.json"): runs[first]}
    text = page.page_of(runs)
    Strict(text)
    assert "&lt;b&gt;&amp;me" in text
    assert "<b>" not in text
    assert "No run has kept its agent" in text


def test_paths_without_runs_are_refused(tmp_path: Path, capsys) -> None:
    html = ["--html", str(tmp_path / "page.html")]
    (tmp_path / "study.json").write_text('{"study": "purify"}')
    for path, message in (
        (tmp_path, "holds no result of a run"),
        (tmp_path / "study.json", "holds no result of a run"),
        (tmp_path / "no", "is not there"),
    ):
        assert main(["report", str(path), *html]) == 2
        assert message in capsys.readouterr().err
    assert main(["report", str(tmp_path / "study.json")]) == 2
    assert "or add --html" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@pytest.mark.skipif(not any(map(shutil.which, BROWSERS)), reason="no browser is installed")
def test_a_browser_shows_the_page(written: tuple[Path, str], tmp_path: Path) -> None:
    _, text = written
    browser = next(filter(None, map(shutil.which, BROWSERS)))
    # A copy that says of itself which pictures were drawn, and whether anything was fetched.
    probe = (
        "<script>addEventListener('load', () => { document.body.dataset.drawn = "
        "[...document.images].filter(x => x.complete && x.naturalWidth > 100).length; "
        "document.body.dataset.fetched = performance.getEntriesByType('resource')"
        ".filter(x => !x.name.startsWith('data:')).length; })</script>"
    )
    file = tmp_path / "probe.html"
    file.write_text(text.replace("</body>", f"{probe}</body>"), encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user",
         "--virtual-time-budget=5000", "--dump-dom", file.as_uri()],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert 'data-drawn="4"' in done.stdout
    assert 'data-fetched="0"' in done.stdout
    assert done.stdout.count("<section>") == 5
