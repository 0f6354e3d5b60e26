"""Released agents: checked files that play exactly what the trained agent played."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.released import library, load
from benchmarks.released.index import (
    INDEX,
    LARGEST,
    Folder,
    LackingError,
    Site,
    read_entries,
    release_at,
)
from benchmarks.runs.evaluate import evaluated
from benchmarks.runs.kept import agent_file, read_kept
from benchmarks.runs.players import load_player
from benchmarks.runs.run import RunStudy, run
from benchmarks.runs.settings import Run
from benchmarks.runs.training import untrained
from kuaisim_gym import disk
from kuaisim_gym.errors import (
    CheckpointError,
    ConfigError,
    DataFormatError,
    DiskSpaceError,
    DownloadError,
    StorageError,
)

SIZES = {"max_len": 6, "sessions": 20}
FLAGS = ("--max-len", "6", "--sessions", "20")


@pytest.fixture(autouse=True)
def surroundings(worlds, tmp_path: Path, monkeypatch) -> None:
    """Small worlds, a cache of the test's own, no release but the test's, short trainings."""
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv(library.VARIABLE, raising=False)
    monkeypatch.setattr(library, "PACKAGED", tmp_path / "nothing")
    monkeypatch.setattr(library, "EPISODES", 12)


def trained(out: Path, *agents: str, **options: object) -> list[Path]:
    """Result files of runs that keep their agents."""
    settings = {**SIZES, "episodes": 12, **options}
    return [run(Run(agent, **settings), out, progress=False, keep=True) for agent in agents]


def released(tmp_path: Path, *agents: str) -> Path:
    """A release of some agents, with the references of its cards."""
    trained(tmp_path / "results", *agents, "random", "expected-oracle+quota")
    return make(tmp_path, *agents)


def make(tmp_path: Path, *agents: str, name: str = "release") -> Path:
    out = tmp_path / name
    folder = str(tmp_path / "results")
    assert main(["release", folder, "--agents", *agents, "--out", str(out)]) == 0
    return out


def file_of(release: Path, ending: str) -> Path:
    """The one file of a release with an ending, beside its index."""
    (file,) = (file for file in release.glob(f"*{ending}") if file.name != INDEX)
    return file


class Server(ThreadingHTTPServer):
    """Serves a folder, and remembers which files were asked for."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.paths: list[str] = []
        self.status: int | None = None  # of all answers, which end early; or the files
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        if self.server.status is None:
            super().do_GET()
            return
        self.send_response(self.server.status)
        self.send_header("Location", self.path)  # which leads to itself
        self.send_header("Content-Length", "100")
        self.end_headers()
        self.wfile.write(b"x" * 60)  # and no more
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def serve() -> Iterator:
    running: list[Server] = []

    def start(folder: Path) -> Server:
        running.append(Server(folder))
        threading.Thread(target=running[-1].serve_forever, args=(0.02,)).start()
        return running[-1]

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("agent", ["dsrm-hrl", "hrl", "hsrl+quota", "ppo", "td3", "hrl+rce"])
def test_a_released_agent_plays_the_very_sessions_of_its_run(agent, tmp_path, capsys) -> None:
    out = released(tmp_path, agent)
    (path,) = (tmp_path / "results").glob(f"{agent}_*.json")
    result = json.loads(path.read_text())
    again = evaluated(load(agent, release=str(out), **SIZES))
    for block in ("metrics", "exposure", "users"):
        assert again[block] == result[block]
    other = evaluated(load(agent, release=str(out), seed=4, **SIZES))
    assert other["metrics"] != result["metrics"]  # the same agent, with other users
    capsys.readouterr()
    command = ["evaluate", agent, *FLAGS, "--release", str(out), "--format", "csv"]
    assert main(command) == 0
    header, row = capsys.readouterr().out.splitlines()
    cells = dict(zip(header.split(","), row.split(","), strict=True))
    assert float(cells["len"]) == result["metrics"]["len"]
    shutil.rmtree(tmp_path / "results")
    assert main(["play", agent, "--max-len", "6", "--release", str(out)]) == 0
    assert "over after" in capsys.readouterr().out


def test_a_release_is_small_and_holds_no_curve_no_optimiser_and_no_place(tmp_path, small) -> None:
    place = tmp_path / "secret"
    trained(tmp_path / "results", "hrl", dataset=f"kuairec={place}")
    out = make(tmp_path, "hrl")
    assert all(b"secret" not in file.read_bytes() for file in out.iterdir())
    (path,) = (tmp_path / "results").glob("*.json")
    result = json.loads(file_of(out, ".json").read_text())
    original = json.loads(path.read_text())
    assert original["train"]["curve"]
    original["train"]["curve"] = []
    assert result == original
    kept = read_kept(file_of(out, ".json"))
    assert kept.settings["dataset"] == "kuairec"
    assert list(kept.parameters) == ["policy"]
    learned = dict(load_player(path).model.policy.named_parameters())
    policy = kept.parameters["policy"]
    assert all(torch.equal(policy[name], value) for name, value in learned.items())
    further = [value.numel() for name, value in policy.items() if name not in learned]
    assert sum(further) < small.n_items  # no tables of items
    assert load("hrl", release=str(out), dataset="kuairec=elsewhere", **SIZES).play()


def test_weights_that_were_kept_with_their_optimiser_are_taken(tmp_path: Path, small) -> None:
    (path,) = trained(tmp_path, "ppo")
    expected = load_player(path).play().metrics
    model = untrained(Run("ppo", max_len=6), small, None)
    read_kept(path).restore(model)
    content = torch.load(agent_file(path), weights_only=True)
    del content["parameters"]["policy"]["action_net.bias"]
    torch.save(content, agent_file(path))
    with pytest.raises(CheckpointError, match=r"(?s)The weights are not of this PPO: .*action_net"):
        load_player(path)
    torch.save(content | {"parameters": model.get_parameters()}, agent_file(path))
    assert len(read_kept(path).parameters) == 2
    assert load_player(path).play().metrics == expected


def test_the_card_and_the_index_say_what_the_files_say(tmp_path: Path) -> None:
    trained(tmp_path / "results", "random", seed=15)  # neither is of its users
    trained(tmp_path / "results", "random", max_len=7)
    out = released(tmp_path, "dsrm-hrl", "ppo")
    entries = read_entries((out / INDEX).read_bytes(), INDEX)
    assert sorted(entry.header["agent"] for entry in entries.values()) == ["dsrm-hrl", "ppo"]
    listed = {name: sums for entry in entries.values() for name, sums in entry.files.items()}
    assert {file.name for file in out.iterdir()} == {INDEX, *listed}
    for name, (sha256, size) in listed.items():
        content = (out / name).read_bytes()
        assert (sha256, size) == (hashlib.sha256(content).hexdigest(), len(content))
    (name,) = (name for name in entries if name.startswith("dsrm-hrl"))
    card, result = (out / f"{name}.md").read_text(), json.loads((out / f"{name}.json").read_text())
    runs = [
        json.loads(path.read_text())
        for agent in ("dsrm-hrl", "random", "expected-oracle+quota")
        for path in (tmp_path / "results").glob(f"{agent}_*_T6_seed11.json")
    ]
    for metric, title in (("len", "Len"), ("ad", "AD"), ("longtail_share", "long tail")):
        cells = (
            f"{run['metrics'][metric]:.3f} ± {run['metrics'][f'{metric}_ci95']:.3f}" for run in runs
        )
        assert f"| {title} | {' | '.join(cells)} |" in card
    worst = " | ".join(f"{run['users']['len_worst']:.3f}" for run in runs)
    assert f"| len_worst | {worst} |" in card
    for line in (
        f"| training sessions | {result['train']['episodes']} |",
        f"| seconds | {result['train']['seconds']:,.0f} |",
        f"| fingerprint | {result['dataset']['fingerprint']} |",
        "| fairness_coef | 3.5 |",
        f"95 % intervals over {result['eval']['sessions']} sessions",
        f"| torch | {result['versions']['torch']} |",
        f"| code | {result['commit']} |",
    ):
        assert line in card
    for ending in (".agent", ".fitted", ".json"):
        assert f"`{listed[f'{name}{ending}'].sha256}`" in card
    assert "**SYNTHETIC**" in card
    assert "no result of" not in card


def test_the_lines_of_the_card_play_the_agent(tmp_path: Path, capsys) -> None:
    out = released(tmp_path, "ppo")
    card = file_of(out, ".md").read_text()
    python = card.split("```python\n")[1].split("```")[0].replace("RELEASE", str(out))
    assert len(python.strip().splitlines()) <= 4
    capsys.readouterr()
    exec(python.replace("kuaisim_benchmarks", "benchmarks"), {})
    assert "'len':" in capsys.readouterr().out
    (line,) = (line for line in card.splitlines() if line.startswith("    kuaisim play"))
    assert main(line.replace("RELEASE", str(out)).split()[1:]) == 0


def test_the_lines_of_the_page_play_the_agent(tmp_path: Path, monkeypatch, capsys) -> None:
    trained(tmp_path / "results", "dsrm-hrl", max_len=30)
    monkeypatch.setenv(library.VARIABLE, str(make(tmp_path, "dsrm-hrl")))
    page = (Path(__file__).parents[2] / "docs" / "released_agents.md").read_text()
    python = page.split("```python\n")[1].split("```")[0]
    capsys.readouterr()
    exec(python.replace("kuaisim_benchmarks", "benchmarks"), {})
    assert "'len':" in capsys.readouterr().out


def test_equal_runs_make_equal_bytes(tmp_path: Path) -> None:
    out = released(tmp_path, "dsrm-hrl")
    other = make(tmp_path, "dsrm-hrl", name="other")
    contents = [{file.name: file.read_bytes() for file in one.iterdir()} for one in (out, other)]
    assert contents[0] == contents[1]
    assert make(tmp_path, "dsrm-hrl") == out  # over the old one
    assert {file.name: file.read_bytes() for file in out.iterdir()} == contents[0]


@pytest.mark.parametrize("ending", [".agent", ".fitted", ".json", ".md"])
def test_one_flipped_bit_is_refused(ending, tmp_path, serve, capsys, caplog) -> None:
    out = released(tmp_path, "dsrm-hrl")
    file = file_of(out, ending)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged or another one, and is not used"):
        load("dsrm-hrl", release=str(out), **SIZES)
    with pytest.raises(DownloadError, match="Expected a file of sha256"):
        load("dsrm-hrl", release=serve(out).url, **SIZES)
    assert not list((tmp_path / "cache" / "agents").glob("dsrm-hrl*"))
    assert main(["play", "dsrm-hrl", *FLAGS, "--release", str(out)]) == 2
    assert f"error: {file} has sha256" in capsys.readouterr().err
    file.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        load("dsrm-hrl", release=str(out), **SIZES)
    assert not caplog.messages  # nobody begins to train


def test_an_address_is_asked_once(tmp_path: Path, serve, monkeypatch) -> None:
    out = released(tmp_path, "hsrl+quota")
    expected = json.loads(file_of(out, ".json").read_text())["metrics"]
    server = serve(out)
    monkeypatch.setenv(library.VARIABLE, server.url + "/")
    assert load("hsrl+quota", **SIZES).play().metrics.items() <= expected.items()
    assert len(server.paths) == 1 + len(list(out.glob("hsrl*")))
    server.paths.clear()
    load("hsrl+quota", **SIZES)
    assert server.paths == [f"/{INDEX}"]  # whether there is a newer one
    monkeypatch.delenv(library.VARIABLE)
    assert load("hsrl+quota", train=False, **SIZES).play().metrics.items() <= expected.items()


def test_a_newer_release_takes_the_place_of_an_older_one(tmp_path: Path, serve) -> None:
    out = released(tmp_path, "ppo")
    server = serve(out)
    load("ppo", release=server.url, **SIZES)
    first = file_of(out, ".agent").read_bytes()
    shutil.rmtree(tmp_path / "results")
    trained(tmp_path / "results", "ppo", episodes=40)
    make(tmp_path, "ppo")
    load("ppo", release=server.url, **SIZES)
    (fetched,) = (tmp_path / "cache" / "agents").glob("*/*.agent")
    assert fetched.read_bytes() == file_of(out, ".agent").read_bytes() != first


def test_processes_share_what_is_fetched(tmp_path: Path, serve) -> None:
    server = serve(released(tmp_path, "ppo"))
    release = release_at(server.url)
    (entry,) = read_entries(release.read_index(), INDEX).values()
    server.paths.clear()
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(lambda _: release.obtain(entry, tmp_path / "copy"), range(4)))
    assert paths == {tmp_path / "copy" / f"{entry.name}.json"}
    assert sorted(server.paths) == sorted(f"/{name}" for name in entry.files)


def test_without_network_what_was_fetched_plays(tmp_path: Path, serve) -> None:
    server = serve(released(tmp_path, "ppo"))
    expected = load("ppo", release=server.url, **SIZES).play().metrics
    server.shutdown()
    server.server_close()
    metrics = load("ppo", release=server.url, train=False, **SIZES).play().metrics
    assert metrics == expected


@pytest.mark.parametrize("status", [None, 200, 302, 404, 503])
def test_nothing_is_trained_where_a_named_release_cannot_be_reached(
    status, tmp_path, serve, monkeypatch, caplog
) -> None:
    server = serve(tmp_path)
    server.status = status
    if status is None:
        server.shutdown()
        server.server_close()
    monkeypatch.setattr("benchmarks.released.index.BACKOFF", 0.01)
    for release in (server.url, None):  # named by an option, and by the variable
        with pytest.raises(DownloadError, match="nothing is trained in its place") as raised:
            load("hrl", release=release, **SIZES)
        assert server.url in str(raised.value)
        assert "are kept" not in str(raised.value)  # they are not
        monkeypatch.setenv(library.VARIABLE, server.url)
    assert not any("training" in message for message in caplog.messages)
    assert not list((tmp_path / "cache").glob("**/*.part*"))


def test_what_the_cache_gives_in_place_of_a_release_is_told(tmp_path, serve, caplog) -> None:
    server = serve(released(tmp_path, "ppo"))
    load("ppo", release=server.url, **SIZES)
    other = tmp_path / "other"
    trained(tmp_path / "more", "hrl")
    assert main(["release", str(tmp_path / "more"), "--agents", "hrl", "--out", str(other)]) == 0
    assert not caplog.messages
    load("ppo", release=str(other), **SIZES)
    (message,) = caplog.messages
    assert f"{other} has no ppo_" in message
    assert "taking what was fetched or trained before" in message
    load("ppo", **SIZES)
    assert len(caplog.messages) == 1  # where no release is named, it is as usual


def test_a_damaged_copy_is_fetched_or_trained_again(tmp_path: Path, serve, caplog) -> None:
    server = serve(released(tmp_path, "ppo"))
    load("ppo", release=server.url, **SIZES)
    (file,) = (tmp_path / "cache" / "agents").glob("*/*.agent")
    content, index = file.read_bytes(), file.with_name(INDEX).read_bytes()
    file.write_bytes(content[:-1])
    load("ppo", release=server.url, **SIZES)
    assert file.read_bytes() == content
    (message,) = caplog.messages
    assert f"has {len(content) - 1:,} bytes, but {INDEX} says {len(content):,}: fetch" in message
    file.write_bytes(content[::-1])
    with pytest.raises(ConfigError, match="has sha256 .* training it is forbidden"):
        load("ppo", train=False, **SIZES)
    load("ppo", progress=False, **SIZES)
    assert len(caplog.messages) == 2
    assert "has sha256" in caplog.messages[1]
    assert ": training ppo" in caplog.messages[1]
    assert load("ppo", train=False, **SIZES).play()
    file.with_name(INDEX).write_bytes(index[:-9])
    load("ppo", release=server.url, train=False, **SIZES)
    file.with_name(INDEX).write_bytes(b"[")
    load("ppo", progress=False, **SIZES)
    assert "is no index of released agents" in caplog.messages[-1]


def test_wrong_sizes_of_an_index_do_not_reach_the_cache(tmp_path: Path, serve) -> None:
    out = released(tmp_path, "ppo")
    text = (out / INDEX).read_text()
    size = file_of(out, ".agent").stat().st_size
    (out / INDEX).write_text(text.replace(f'"size": {size}', f'"size": {size + 1}'))
    server = serve(out)
    with pytest.raises(CheckpointError, match=f"has {size:,} bytes, but .* says {size + 1:,}"):
        load("ppo", release=str(out), **SIZES)
    with pytest.raises(DownloadError, match=f"with a size in bytes of {size + 1} .* got .* {size}"):
        load("ppo", release=server.url, **SIZES)
    (out / INDEX).write_text(text)
    assert load("ppo", release=server.url, train=False, **SIZES).play()


def test_a_cache_that_cannot_be_written_is_not_called_full(tmp_path, serve, monkeypatch) -> None:
    server = serve(released(tmp_path, "ppo"))
    (tmp_path / "cache").mkdir(exist_ok=True)
    (tmp_path / "cache" / "agents").write_text("no folder")
    free = disk.free_space  # none there, as of /proc
    monkeypatch.setattr(disk, "free_space", lambda path: 0 if "agents" in str(path) else free(path))
    with pytest.raises(StorageError, match="Choose another place") as raised:
        load("ppo", release=server.url, **SIZES)
    assert not isinstance(raised.value, DiskSpaceError)


def test_an_agent_that_is_nowhere_is_trained_once(tmp_path, monkeypatch, caplog, capsys) -> None:
    (path,) = trained(tmp_path / "own", "hrl", sessions=1000)
    expected = json.loads(path.read_text())["metrics"]
    player = load("hrl", max_len=6, progress=False)
    assert player.play().metrics.items() <= expected.items()  # as `kuaisim train` trains
    (message,) = caplog.messages
    assert "holds no release: training hrl, 12 sessions" in message
    assert "\n" not in message
    (folder,) = (one for one in (tmp_path / "cache" / "agents").iterdir() if one.is_dir())
    assert (folder / INDEX).is_file()
    monkeypatch.setattr(RunStudy, "make", None)
    assert main(["play", "hrl", "--max-len", "6", "--seed", "3"]) == 0
    assert "over after" in capsys.readouterr().out
    for world in (["--max-len", "7"], ["--max-len", "6", "--dataset-seed", "1"]):
        assert main(["play", "hrl", *world, "--no-train"]) == 2
        assert "training it is forbidden" in capsys.readouterr().err


def test_what_was_trained_in_an_older_world_is_replaced(tmp_path: Path, caplog) -> None:
    load("ppo", **SIZES, progress=False)
    (index,) = (tmp_path / "cache" / "agents").glob(f"*/{INDEX}")
    text = index.read_text()
    index.write_text(text.replace('"version": 3', '"version": 2'))
    with pytest.raises(ConfigError, match="training it is forbidden"):
        load("ppo", **SIZES, train=False)
    load("ppo", **SIZES, progress=False)
    assert len(caplog.messages) == 2
    assert '"version": 3' in index.read_text()


def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch) -> None:
    write = library.write_release
    monkeypatch.setattr(library, "write_release", None)
    with pytest.raises(TypeError):
        load("ppo", **SIZES, progress=False)
    monkeypatch.setattr(library, "write_release", write)
    monkeypatch.setattr(RunStudy, "make", None)
    assert load("ppo", **SIZES, progress=False).play()
    assert len(list((tmp_path / "cache" / "agents").glob("*.training"))) == 0


def test_agents_of_other_worlds_are_not_taken(tmp_path: Path, capsys) -> None:
    out = released(tmp_path, "ppo")
    for options in (["--max-len", "7"], ["KuaiRand-Fair-v0", "--max-len", "6"]):
        assert main(["play", "ppo", *options, "--release", str(out), "--no-train"]) == 2
        assert f"{out} has no ppo_" in capsys.readouterr().err
    index = (out / INDEX).read_text()
    block = next(iter(json.loads(index)["agents"].values()))
    (out / INDEX).write_text(index.replace(block["dataset"]["fingerprint"], "0" * 16))
    with pytest.raises(ConfigError, match=r"of other data: wanted .*, found .*0000"):
        load("ppo", release=str(out), train=False, **SIZES)


def test_what_is_no_release_is_refused(tmp_path: Path, capsys) -> None:
    for place in (
        "", str(tmp_path), "http://example.org/agents", "ftp://example.org", "https:", "https://",
        "https:///agents", "http://[bad", "https://[::1", "https://example.org:x",
        "https://example.org:99999", "https://example.org:0", "https://example.org/a?b=c",
        "https://example.org/a#b", "https://example.org/a b", "https://me:secret@example.org/a",
        "https://me:secret@[bad", "me:secret@example.org",
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="A release is a folder with") as raised:
            release_at(place)
        assert "secret" not in str(raised.value)
    for place in ("https://example.org", "https://example.org:8443/a/", "http://localhost:80/a"):
        assert release_at(place) == Site(place)
    for agent in ("ppo", "random"):  # a rule plays without, but a mistake is told
        assert main(["play", agent, "--release", ""]) == 2
        assert "A release is a folder with" in capsys.readouterr().err
    sums = {"sha256": "0" * 64, "size": 1}
    header = {"agent": "a", "env": "e", "max_len": 1, "seed": 1, "dataset": {}}

    def index(name: str, *files: str, form: str = "kuaisim-release-1", **other: object) -> bytes:
        block = {**header, "files": dict.fromkeys(files, sums | other)}
        return json.dumps({"format": form, "agents": {name: block}}).encode()

    own = ("a.json", "a.agent", "a.md")
    assert list(read_entries(index("a", *own), INDEX)) == ["a"]
    assert list(read_entries(index("a", *own, "a.fitted", size=LARGEST), INDEX)) == ["a"]
    deep = b'{"format":' + b"[" * 200_000
    nested = index("a", *own).replace(b'"dataset": {}', b'"dataset": {"x": [[]]}')
    for content in (
        b"{", b"[]", deep, nested, index("a", *own, form="other"), index("a", "a.json", "a.md"),
        index("a", "a.json", "a.agent"), index("a", ".json", ".agent", ".md"),
        index("a", *own, "a.sh"), index("a", *own, "../a.md"),
        index("../a", "../a.json", "../a.agent", "../a.md"),
        index("..", "...json", "...agent", "...md"),
        index("index", "index.json", "index.agent", "index.md"),
        *(index("a", *own, size=size) for size in (-1, "x", 1.5, True, None, LARGEST + 1)),
        *(index("a", *own, sha256=digits) for digits in (None, "0" * 63, "g" * 64, "A" * 64)),
        index("a", *own, more=1),
    ):  # fmt: skip
        with pytest.raises(DataFormatError, match="is no index of released agents"):
            read_entries(content, INDEX)
    out = released(tmp_path, "ppo")
    with pytest.raises(LackingError):
        release_at(str(out)).find("hrl", {}, False)
    path = str(file_of(out, ".json"))
    for option in (["--release", str(out)], ["--no-train"]):
        assert main(["play", path, *option]) == 2
        assert "are for agents that are named" in capsys.readouterr().err
    assert main(["play", path]) == 0  # a file of a release is one of a run


def test_a_release_is_made_of_kept_runs_alone(tmp_path: Path, capsys) -> None:
    results, out = tmp_path / "results", tmp_path / "release"
    run(Run("ppo", **SIZES, episodes=12), results, progress=False)
    trained(results, "random")
    trained(results, "hrl", seed=15)

    def refused(*agents: str, to: Path = out) -> str:
        assert main(["release", str(results), "--agents", *agents, "--out", str(to)]) == 2
        assert not (to / INDEX).exists()
        return capsys.readouterr().err

    assert "only `kuaisim train` keeps agents" in refused("ppo")
    assert "random needs no training" in refused("random")
    assert "no run of hrl with seed 11: `kuaisim train hrl --out" in refused("hrl")
    (path,) = results.glob("ppo*.json")
    text = path.read_text()
    path.write_text(text.replace('"version": 3', '"version": 2'))
    assert "no run of ppo with seed 11" in refused("ppo")  # of an older world
    path.write_text(text)
    assert "must not lie in" in refused("ppo", to=results / "release")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    assert "holds other files than a release" in refused("ppo", to=tmp_path / "other")


@pytest.mark.parametrize("index", ["{}", "[", None])
def test_a_folder_that_is_no_release_is_not_removed(index, tmp_path: Path, capsys) -> None:
    trained(tmp_path / "results", "ppo")
    site = tmp_path / "site"
    if index is None:  # a release, with something else in it
        make(tmp_path, "ppo", name="site")
    else:
        site.mkdir()
        (site / INDEX).write_text(index)  # of a web page
        assert release(tmp_path / "results", site) == 2
    (site / "mine.txt").write_text("precious")
    assert release(tmp_path / "results", site) == 2
    assert "holds other files than a release" in capsys.readouterr().err
    assert (site / "mine.txt").read_text() == "precious"
    assert (site / INDEX).exists()


def release(folder: Path, out: Path, agent: str = "ppo") -> int:
    return main(["release", str(folder), "--agents", agent, "--out", str(out)])


def test_a_release_never_removes_the_results_it_is_made_of(tmp_path: Path, capsys) -> None:
    trained(tmp_path / "results", "ppo")
    out = make(tmp_path, "ppo", name="out")
    shutil.move(tmp_path / "results", out / "results")
    assert release(out / "results", out) == 2
    assert "must not hold" in capsys.readouterr().err
    assert list((out / "results").glob("*.agent"))
    assert release(tmp_path / "nothere", tmp_path / "new") == 2
    assert f"{tmp_path / 'nothere'} is not there" in capsys.readouterr().err


def test_a_link_is_followed_to_the_release_that_is_replaced(tmp_path: Path) -> None:
    out = released(tmp_path, "ppo")
    link = tmp_path / "link"
    link.symlink_to(out, target_is_directory=True)
    shutil.rmtree(tmp_path / "results")
    trained(tmp_path / "results", "hrl")
    assert release(tmp_path / "results", link, "hrl") == 0
    assert link.is_symlink()
    assert {file.name.split("_")[0] for file in out.iterdir()} == {INDEX, "hrl"}


def test_an_agent_without_its_purifier_or_with_another_s_is_refused(tmp_path, capsys) -> None:
    path, encoded, plain = trained(tmp_path / "results", "dsrm-hrl", "hrl+rce", "hrl")
    shutil.copy(path.with_suffix(".fitted"), plain.with_suffix(".fitted"))
    with pytest.raises(CheckpointError, match="hrl plays with nothing that is fitted"):
        load_player(plain)
    for file in (path, encoded):
        file.with_suffix(".fitted").unlink()
        with pytest.raises(CheckpointError, match=r"\.fitted is not there"):
            load_player(file)
    assert release(tmp_path / "results", tmp_path / "out", "dsrm-hrl") == 2
    assert not (tmp_path / "out").exists()
    (dorl,) = trained(tmp_path / "results", "dorl")
    assert load_player(dorl).play()  # whose world model is for its training alone


@pytest.mark.parametrize("agent", ["dsrm-hrl", "hrl"])
def test_what_is_loaded_is_what_the_index_lists(agent, tmp_path: Path) -> None:
    out = released(tmp_path, agent)
    index = json.loads((out / INDEX).read_text())
    ((name, block),) = index["agents"].items()
    fitted = out / f"{name}.fitted"
    if agent == "hrl":
        fitted.write_bytes(b"any")
        with pytest.raises(CheckpointError, match="hrl plays with nothing that is fitted"):
            load(agent, release=str(out), train=False, **SIZES)  # which lies there unlisted
        digest = hashlib.sha256(b"any").hexdigest()
        block["files"][fitted.name] = {"sha256": digest, "size": 3}
    else:
        del block["files"][fitted.name]
    (out / INDEX).write_text(json.dumps(index))
    with pytest.raises(DataFormatError, match=rf"lists .* {fitted.name}, but {agent} plays with"):
        load(agent, release=str(out), train=False, **SIZES)


def test_what_is_usual_may_be_said(tmp_path: Path) -> None:
    out = released(tmp_path, "hrl")
    expected = load("hrl", release=str(out), train=False, **SIZES).play().metrics
    same = {"slate_size": 10, "env": "kuaisim_gym:KuaiRec-Fair-v0"}
    assert load("hrl", release=str(out), train=False, **same, **SIZES).play().metrics == expected
    with pytest.raises(ConfigError, match="has no hrl_.*_K9_"):
        load("hrl", release=str(out), train=False, slate_size=9, **SIZES)


def test_settings_of_no_agent_and_of_trainings_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"A setting must be one of .*'max_len'.*'foo'"):
        load("hrl", foo=1)
    with pytest.raises(ConfigError, match=r"'episodes'.* has been trained"):
        load("hrl", episodes=5)


PACKAGED = Path(library.__file__).parent / "agents"


@pytest.mark.skipif(not PACKAGED.is_dir(), reason="this version brings no agents")
def test_the_agents_of_the_package_are_of_today_s_worlds(monkeypatch) -> None:
    monkeypatch.undo()  # the large worlds
    release = Folder(PACKAGED)
    entries = read_entries(release.read_index(), INDEX)
    assert {file.name for file in PACKAGED.iterdir()} == {
        INDEX, *(name for entry in entries.values() for name in entry.files)
    }  # fmt: skip
    assert sum(file.stat().st_size for file in PACKAGED.iterdir()) <= 1_500_000
    for entry in entries.values():
        header = entry.header
        world = {"env": header["env"], "max_len": header["max_len"]}
        player = load(header["agent"], **world, release=str(PACKAGED), train=False, sessions=1)
        assert player.spec.header() == header
        assert player.play().metrics["len"] > 1
