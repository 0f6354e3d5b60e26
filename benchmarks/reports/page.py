"""One page of HTML on some runs, which needs no other file and no network.

It holds their tables, learning curves, the plane of session length and balance, the fairness dial
and a session of each agent that a run has kept, and the settings and versions of all runs.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from html import escape
from itertools import starmap
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from kuaisim_gym.errors import ConfigError, DataFormatError

from ..formatting import TitledTable
from ..runs.judging import judged
from ..runs.kept import agent_file
from ..runs.play import replays
from ..runs.players import Player, load_player
from ..studies.results import RUN, Result, read_folder, read_result, world_of
from .plots import as_png, figures_of, png_of
from .tables import by_world, world_table

TARGETS = (0.3, 0.4, 0.5, 0.6, 0.7)  # long-tail shares that a dial is set to
SESSIONS = 200  # played at each of them
SHOWN = 4  # agents of whom a session is shown, at most

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto;
  padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .15rem .6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, .text td { text-align: left; }
.numbers td { white-space: nowrap; }
.wide { overflow-x: auto; }
img { max-width: 100%; height: auto; }
pre { font-size: 12px; overflow-x: auto; }
"""


def runs_of(paths: Iterable[Path]) -> dict[Path, Result]:
    """Results of runs by file, of files and of folders with their subfolders.

    Raises:
        DataFormatError: There are none, a file is no result of a run, or is not there.
    """
    runs: dict[Path, Result] = {}
    for path in paths:
        if path.is_dir():
            found = {file: run for file, run in read_folder(path) if run.get("study", RUN) == RUN}
        elif path.is_file():
            found = {path: read_result(path)}
        else:
            raise DataFormatError(f"{path} is not there: name result files, or their folder.")
        if not found or any("agent" not in run or "metrics" not in run for run in found.values()):
            raise DataFormatError(f"{path} holds no result of a run; make one with `train`.")
        runs |= found
    return runs


def page_of(runs: Mapping[Path, Result]) -> str:
    """The page.

    Args:
        runs: Results by file. An agent that is kept beside the file is played again.

    Raises:
        CheckpointError: A kept agent is damaged.
        ConfigError: A kept agent cannot be imported.
    """
    sections = [
        ("Results", _tables(runs)),
        ("Learning curves, and session length over balance", _figures(runs)),
        *_played(runs),
        ("Settings and versions", _settings(runs)),
    ]
    body = "\n".join(
        f"<section>\n<h2>{escape(title)}</h2>\n{content}\n</section>" for title, content in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>kuaisim runs</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<h1>kuaisim: {len(runs)} run{'s' * (len(runs) > 1)}</h1>\n{body}\n"
        "</body>\n</html>\n"
    )


def _tables(runs: Mapping[Path, Result]) -> str:
    worlds = by_world(list(runs.values()))
    return "\n".join(map(_table, starmap(world_table, worlds.items())))


def _table(table: TitledTable, kind: str = "numbers") -> str:
    title = f"<h3>{escape(table.title)}</h3>\n" if table.title else ""
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "\n".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in table.rows
    )
    notes = "\n".join(
        f"<p>{'<br>'.join(map(escape, note.splitlines()))}</p>" for note in table.notes if note
    )
    return (
        f'{title}<div class="wide"><table class="{kind}">\n<thead><tr>{header}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}"
    )


def _figures(runs: Mapping[Path, Result]) -> str:
    return "\n".join(
        _image(png_of(figure), f"{name}, {world.title}")
        for world, agents in by_world(list(runs.values())).items()
        for name, figure in figures_of(world, agents)
        if figure.axes[0].has_data()  # nobody has learned where there are no curves
    )


def _image(png: bytes, text: str) -> str:
    data = base64.b64encode(png).decode()
    return f'<p><img alt="{escape(text)}" src="data:image/png;base64,{data}"></p>'


def _played(runs: Mapping[Path, Result]) -> Iterator[tuple[str, str]]:
    """Sections of the agents that are kept, one seed of each."""
    files: dict[Any, Path] = {}
    for file, run in runs.items():
        if agent_file(file).is_file():
            files.setdefault((world_of(run), run["agent"]), file)
    players = {}
    for file in list(files.values())[:SHOWN]:
        players[f"{runs[file]['agent']}, {world_of(runs[file]).title}"] = load_player(file)
    dials = {name: player for name, player in players.items() if _has_dial(player)}
    if dials:
        text = (
            "<p>One trained agent at several long-tail shares of its slates, without training; "
            f"bars are 95 % intervals over {SESSIONS} sessions.</p>"
        )
        yield "The fairness dial", "\n".join([text, *starmap(_dial, dials.items())])
    if players:
        yield "A session", "\n".join(starmap(_session, players.items()))
    else:
        yield "A session", "<p>No run has kept its agent: <code>kuaisim train</code> does.</p>"


def _has_dial(player: Player) -> bool:
    """Tells whether the long-tail share of an agent's slates can be set."""
    policy: Any = None if player.model is None else player.model.policy
    if not hasattr(policy, "set_fairness"):
        return False
    try:
        policy.set_fairness(TARGETS[0])
    except ConfigError:  # its worker is unconstrained, or its groups are others
        return False
    policy.set_fairness(None)
    return True


def _dial(name: str, player: Player) -> str:
    few = player._replace(spec=replace(player.spec, sessions=SESSIONS))
    assert player.model is not None
    policy: Any = player.model.policy
    points = []
    for share in TARGETS:
        policy.set_fairness(share)
        points.append(judged(few.play(), few.spec)["metrics"])
    policy.set_fairness(None)  # gives the choice back
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (metric, label) in zip(
        figure.subplots(1, 2), (("len", "Len, test"), ("ad", "AD (0 is balanced)")), strict=True
    ):
        values, halves = ([point[key] for point in points] for key in (metric, f"{metric}_ci95"))
        axes.errorbar(TARGETS, values, halves, marker="o", capsize=2)
        axes.set_xlabel("long-tail share that is set")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    figure.suptitle(name, fontsize="medium")
    return _image(png_of(figure), f"dial of {name}")


def _session(name: str, player: Player) -> str:
    """The last picture of a session, which holds all its steps, and its text."""
    alone = player._replace(spec=replace(player.spec, sessions=1))
    *_, frame = next(replays(alone, render_mode="rgb_array"))
    *_, text = next(replays(alone))
    picture = _image(as_png(Image.fromarray(frame)), f"a session of {name}")
    return (
        f"<h3>{escape(name)}</h3>\n{picture}\n"
        f"<details><summary>as text</summary><pre>{escape(text)}</pre></details>"
    )


def _settings(runs: Mapping[Path, Result]) -> str:
    names = ("agent", "env", "max_len", "slate_size", "seed")
    rows = []
    for run in runs.values():
        sizes = [run["train"]["episodes"], run["eval"]["sessions"]]
        blocks = (
            ", ".join(f"{name} {value}" for name, value in run[block].items())
            for block in ("dataset", "versions")
        )
        cells = [*(run.get(name, "") for name in names), *sizes, *blocks, run["commit"]]
        rows.append([str(cell) for cell in cells])
    header = [*names, "training sessions", "test sessions", "data", "versions", "code"]
    return _table(TitledTable("", header, rows), "text")
