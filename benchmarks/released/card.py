"""Model cards: Markdown on a released agent, of which every number comes from its result."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..formatting import markdown_table
from ..runs.players import Player
from ..studies.results import Result, World, world_of
from .index import Checksum

BESIDE = ("random", "expected-oracle+quota")  # from no knowledge to that of all expected answers
PAPER = "Lu et al., *Fairness Begins with State*, arXiv:2603.03820, 2026"

_LIMITS = """\
* It was trained in a simulator and is judged in one: neither is evidence about real users.
* Balance is between two groups of items, by how often the log shows them, and users are grouped by
  the log, too. How it treats other groups, such as ages, languages or authors, is not measured.
* It knows the items and the users' features of its world alone: other data need another training.
* It is one training with one seed, and others end elsewhere; intervals are over test sessions.
* It must not decide about people, nor serve a platform that has not tested it on its own users."""
_USE = """\
Research and teaching: a strong agent to compare with, a session to look at, a check of an
installation. To recommend to real users, train on their log, and test against what they have."""
_SYNTHETIC = """\
**SYNTHETIC**: a generator made users, items and answers, with the sizes of the published data. No
row is of a person."""
_PUBLISHED = """\
Published data, with {answers} in its test: their authors' pages tell how they came about."""
_LICENCE = "These files: MIT, as the software that made them."
_LICENCE_OF_DATA = """\
 The data that the agent was fitted to are their authors', under a licence of their own (KuaiRec and
KuaiRand: CC BY-SA 4.0)."""
_USERS = """\
*worst* is the worst tenth of sessions; *activity* and *taste* are thirds of the users, by their
rows in the log, and by the popular share of these."""
_LOADING = """\
`RELEASE` is the folder or the address of these files, which are compared with its index first.

```python
from kuaisim_benchmarks.released import load

player = load({arguments}, release="RELEASE")
print(player.play().metrics)
```

    kuaisim play {flags} --release RELEASE
    kuaisim evaluate {flags} --release RELEASE"""


def card_of(
    result: Result, player: Player, files: Mapping[str, Checksum], references: Sequence[Result]
) -> str:
    """The card of an agent.

    Args:
        result: Result of its run.
        player: The agent, ready to play.
        files: Checksums of its other files, by name.
        references: Results of the same world and seed to show beside its own.
    """
    world = world_of(result)
    sections = {
        "What it is": _method(player),
        "World and data": _world(result, world),
        "Training": _training(result, player),
        "How it plays": _metrics(result, world, references),
        "Users": _users(result, references),
        "Intended use": _USE,
        "Limits": _LIMITS,
        "Licence": _LICENCE + ("" if result["dataset"]["synthetic"] else _LICENCE_OF_DATA),
        "Load it": _loading(player),
        "Files": _files(files),
        "Versions": _versions(result),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    return f"# {result['agent']}: {world.title}\n\n{body}\n"


def _method(player: Player) -> str:
    """Names of the method and its parts, with the first paragraphs of their docstrings."""
    agent, model = player.agent, player.model
    assert model is not None
    parts = [type(model), type(model.policy)]
    if player.fitted is not None:
        parts.append(type(player.fitted))
    lines = [f"* `{part.__name__}`: {_summary(part)}" for part in parts]
    reference = PAPER if agent.reference == "the paper" else agent.reference
    name = f"{agent.label} of the paper's tables" if agent.label else f"`{agent.name}`"
    weights = sum(weight.numel() for weight in model.policy.parameters())
    fitted = player.fitted.state_dict() if isinstance(player.fitted, nn.Module) else {}
    size = f"{weights:,} weights"
    if fitted:
        numbers = sum(tensor.numel() for tensor in fitted.values())
        size += f", and {numbers:,} numbers of its `{type(player.fitted).__name__}`"
    return "\n".join([f"{name}, after {reference or 'this package'}; {size}.", "", *lines])


def _summary(kind: type) -> str:
    """The first paragraph of a docstring, as Markdown on one line."""
    text = (inspect.getdoc(kind) or "").split("\n\n")[0]
    return re.sub(r":\w+:`~?(?:\w+\.)*(\w+)`", r"`\1`", " ".join(text.split()))


def _world(result: Result, world: World) -> str:
    block = result["dataset"]
    rows = {
        "environment": world.env,
        "longest session T": world.max_len,
        "items in a slate K": world.slate_size,
        **{name: block[name] for name in ("name", "source", "answers", "fingerprint")},
        **{f"generator's {name}": block[name] for name in ("seed", "version") if name in block},
    }
    text = _SYNTHETIC if block["synthetic"] else _PUBLISHED.format(answers=world.data)
    return f"{text}\n\n{_pairs(rows)}"


def _training(result: Result, player: Player) -> str:
    train = result["train"]
    rows = {
        "training sessions": f"{train['episodes']:,}",
        "steps": f"{train['steps']:,}",
        "seconds": f"{train['seconds']:,.0f}",
        **(
            {"seconds of processors": f"{train['processor_seconds']:,.0f}"}
            if "processor_seconds" in train
            else {}
        ),
        "seed": result["seed"],
        **player.agent.options_for(player.fitted),
        **player.agent.hyperparams,
    }
    return f"On the simulator of the log's train users alone.\n\n{_pairs(rows)}"


def _pairs(rows: Mapping[str, Any]) -> str:
    return markdown_table(["", ""], ([name, str(value)] for name, value in rows.items()), "ll")


def _metrics(result: Result, world: World, references: Sequence[Result]) -> str:
    """Metrics with intervals, beside those of references."""
    runs = [result, *references]
    rows = [
        [title, *(_interval(run["metrics"], name) for run in runs)]
        for name, title in world.task.columns.items()
    ]
    table = markdown_table(["", *(run["agent"] for run in runs)], rows)
    note = (
        f"± are 95 % intervals over {result['eval']['sessions']:,} sessions of test users of seed "
        f"{result['seed']}, whom all columns share."
    )
    missing = [name for name in BESIDE if name not in {run["agent"] for run in references}]
    if missing:
        note += f" There is no result of {' and '.join(missing)} beside it."
    return f"{table}\n\n{note} AD and long tail are of groups of items; an AD of 0 is balance."


def _interval(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.3f} ± {metrics[f'{name}_ci95']:.3f}"


def _users(result: Result, references: Sequence[Result]) -> str:
    """Metrics of groups of users; empty where the result has none."""
    runs = [run for run in (result, *references) if run.get("users")]
    if not result.get("users"):
        return ""
    rows = [[name, *(_number(run["users"].get(name)) for run in runs)] for name in result["users"]]
    table = markdown_table(["", *(run["agent"] for run in runs)], rows)
    return f"{_USERS}\n\n{table}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _loading(player: Player) -> str:
    """Lines of Python and of a shell."""
    spec = player.spec
    real = {} if spec.origin.path is None else {"dataset": f"{spec.origin.source}=DIR"}
    options = {
        **real,
        **({"dataset_seed": spec.dataset_seed} if spec.dataset_seed else {}),
        "max_len": spec.max_len,
        **({} if spec.slate_size is None else {"slate_size": spec.slate_size}),
    }
    words = [spec.agent, spec.env]
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in options.items()]
    options_of_call = (f"{name}={json.dumps(value)}" for name, value in options.items())
    arguments = [*map(json.dumps, words), *options_of_call]
    return _LOADING.format(arguments=", ".join(arguments), flags=" ".join([*words, *flags]))


def _files(files: Mapping[str, Checksum]) -> str:
    rows = [[name, f"{sums.size:,}", f"`{sums.sha256}`"] for name, sums in files.items()]
    return markdown_table(["file", "bytes", "sha256"], rows, "lrl")


def _versions(result: Result) -> str:
    return _pairs({**result["versions"], "code": result["commit"]})
