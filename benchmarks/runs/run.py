"""The ``train`` command: a run trains an agent on the train simulator and judges it on the test's.

kuaisim train ppo KuaiRec-Fair-v0
kuaisim play results/ppo_KuaiRec-Fair-v0_kuairec-synthetic_T30_seed11.json
"""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from kuaisim_gym.errors import ConfigError

from ..agents import find_agent
from ..reports.tables import markdown
from ..studies.results import Result, read_result
from ..studies.study import Study, header_difference, run_study
from .judging import judged, play
from .kept import agent_file, keep
from .record import Seconds
from .settings import Run, add_agent_arguments, add_run_arguments, add_session_arguments, spec_of
from .training import train_agent

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunStudy(Study):
    """A run and its result file.

    Training writes a checkpoint next to the result file. An interrupted run continues from it and
    ends with the result of an uninterrupted run, except for the seconds. Off-policy agents write
    no checkpoint and start again.

    Attributes:
        spec: Settings of the run.
        progress: Whether to show progress bars.
        tensorboard: Folder for TensorBoard logs, where the run makes a subfolder named like its
            result; ``None`` for no log.
        keep: Whether to keep the agent beside the result, for the commands ``evaluate`` and
            ``play``.
    """

    spec: Run
    progress: bool = True
    tensorboard: Path | None = None
    keep: bool = False

    markdown = staticmethod(markdown)

    @property
    def name(self) -> str:
        return f"{find_agent(self.spec.agent).name}_{self.spec.world}_seed{self.spec.seed}"

    def header(self) -> Result:
        return self.spec.header()

    def is_complete(self, path: Path, result: Result) -> bool:
        spec, agent, header = self.spec, find_agent(self.spec.agent), self.header()
        expected, actual = (
            {
                **{name: content[name] for name in header},
                "dataset": content["dataset"]["fingerprint"],
            }
            for content in (header, result)
        )
        expected["sessions"], actual["sessions"] = spec.sessions, result["eval"]["sessions"]
        if spec.slate_size is not None:
            expected["slate_size"], actual["slate_size"] = spec.slate_size, result["slate_size"]
        if "row" in result:  # results of older code do not say it
            expected["row"], actual["row"] = _row_of(spec.agent), result["row"]
        if agent.rule is None:
            expected["episodes"], actual["episodes"] = spec.episodes, result["train"]["episodes"]
            # Training ends with the step in which the last session does, and others may end with.
            if 0 <= actual["episodes"] - spec.episodes <= agent.hyperparams["n_envs"]:
                actual["episodes"] = spec.episodes
        if expected != actual:
            raise ConfigError(
                f"{path} holds the result of another run: {header_difference(expected, actual)}. "
                "Remove it or choose another folder."
            )
        return not self.keep or agent_file(path).exists()

    def make(self, path: Path) -> Result:
        spec, agent = self.spec, find_agent(self.spec.agent)
        dataset, fitted, model = spec.load(), None, None
        train: dict[str, Any] = {"episodes": 0, "steps": 0, **Seconds().block(), "curve": []}
        if agent.rule is None:
            started = Seconds.clocks()
            fitted = agent.prepare(dataset, spec.seed, self.progress)
            fitting = Seconds.clocks() - started
            log = None if self.tensorboard is None else self.tensorboard / self.name
            checkpoint = path.with_suffix(".checkpoint")
            model, train = train_agent(
                spec, dataset, fitted, self.progress, checkpoint=checkpoint, log=log
            )
            for name, seconds in fitting.block().items():
                train[name] += seconds  # once, however often the run was interrupted
            if agent.report is not None:
                train[agent.report] = fitted.report
        played = play(agent, spec, dataset, model, fitted)
        result = {
            "slate_size": played.sessions.slates.shape[2],
            "row": _row_of(spec.agent),
            "train": train,
            **judged(played, spec),
            "commits": train.pop("commits", []),
        }
        put_aside(path, result["metrics"])
        if self.keep:  # last: a result beside an agent is complete
            keep(path, asdict(spec), model, fitted)
        return result


def _row_of(name: str) -> Result:
    """A description of an agent: a row of one name can have other settings another day."""
    agent = find_agent(name)
    row = {
        "name": name,
        "settings": agent.hyperparams,
        "env_options": agent.env_options,
        "purifier": agent.purifier,
    }
    plain: Result = json.loads(json.dumps(row, default=lambda value: type(value).__qualname__))
    return plain


def put_aside(path: Path, metrics: Result) -> None:
    """Renames a result whose agent was missing, where training again gave other numbers.

    Args:
        path: The result file, if there is one.
        metrics: The numbers of the new training.
    """
    if path.exists() and read_result(path)["metrics"] != metrics:
        names = (path.with_suffix(f".json.before{number}") for number in count(1))
        earlier = next(name for name in names if not name.exists())
        path.replace(earlier)
        _LOG.warning(
            "Training again gave other numbers than %s, whose agent was missing: that result is "
            "kept as %s.", path, earlier.name,
        )  # fmt: skip


def run(
    spec: Run,
    out: Path,
    progress: bool = True,
    tensorboard: Path | None = None,
    keep: bool = False,
) -> Path:
    """Makes one run, if its result is missing, and returns the result file.

    Raises:
        ConfigError: ``out`` is a file, or holds the result or the checkpoint of a run with other
            settings; or TensorBoard is not installed.
        CheckpointError: The checkpoint is damaged, or of another kind of model.
    """
    return run_study(RunStudy(spec, progress, tensorboard, keep), out)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_agent_arguments(parser)
    add_session_arguments(parser)
    add_run_arguments(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the run and prints the name of its file."""
    torch.set_num_threads(options.threads)
    print(run(spec_of(options), options.out, tensorboard=options.tensorboard, keep=True))
