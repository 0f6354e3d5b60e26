"""Commands that are killed while they work, and what is left: processes, files, results."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from tests.attack.counts import Counts

ROOT = Path(__file__).parents[2]
MARK = "KUAISIM_KILLED"  # environment variable that a command's processes share
LIMIT = 5.0  # seconds in which all processes of a killed command are gone
SOON = 2.0  # seconds in which a command ends that is told to
PATIENCE = 600.0  # seconds in which an undisturbed command ends
# What differs between equal results: durations, and the code that made them.
VARYING = frozenset({"seconds", "processor_seconds", "fit_seconds", "versions", "commit"})
TARGETS = ("parent", "group", "worker")
STATUSES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@dataclass
class Kill:
    """One kill and what came of it.

    Attributes:
        signal: The signal.
        moment: Seconds after the start.
        to: Who got it: one of :data:`TARGETS`.
        status: Exit status; ``None`` if the command had ended before.
        seconds: From the signal to the end of the process.
        orphans: Command lines of processes that lived on.
        text: What was written on stderr.
    """

    signal: signal.Signals
    moment: float
    to: str = "parent"
    status: int | None = None
    seconds: float = 0.0
    orphans: list[str] = field(default_factory=list)
    text: str = ""

    @property
    def faults(self) -> Iterator[str]:
        """What is not as it should be."""
        if self.orphans:
            yield f"processes lived on: {self.orphans}"
        if self.status is None:
            return
        if "Traceback" in self.text:
            yield f"traceback:\n{self.text}"
        if self.to == "worker":
            if self.status != 2 or self.text.count("error: ") != 1:
                yield f"exit status {self.status}, {self.text!r}"
            return
        if self.status != STATUSES.get(self.signal, -self.signal):
            yield f"exit status {self.status}"
        if self.signal in STATUSES and self.text.count("interrupted") != 1:
            yield f"not one line: {self.text!r}"
        if self.signal in STATUSES and self.seconds > SOON:
            yield f"ended after {self.seconds:.1f} s"


@dataclass
class Outcome:
    """A command that was killed and started again until it was done.

    Attributes:
        kills: Its kills.
        different: Names of result files that differ from an undisturbed run's.
        litter: Names of files that no undisturbed run leaves.
    """

    kills: list[Kill]
    different: list[str]
    litter: list[str]

    @property
    def faults(self) -> list[str]:
        """What is not as it should be; empty if all is."""
        found = [f"{kill.signal.name} at {kill.moment:.1f} s: {fault}"
                 for kill in self.kills for fault in kill.faults]  # fmt: skip
        found += [f"{name} differs" for name in self.different]
        return found + [f"{name} was left" for name in self.litter]


def killed(
    command: list[str],
    out: Path,
    moments: Iterable[float],
    signal: signal.Signals,
    *,
    whole: Path | None = None,
    to: str = "parent",
) -> Outcome:
    """Kills a command at some moments, starts it again until it is done, and compares results.

    Args:
        command: Words of the command; ``{out}`` stands for the folder of its results.
        out: The folder, which is made.
        moments: Seconds after each start at which it is killed.
        signal: The signal.
        whole: Folder of the results of an undisturbed run; made beside ``out`` if absent.
        to: Who gets the signal: the process itself, ``"group"`` for all its processes, as by Ctrl-C
            in a terminal, or ``"worker"`` for one of its workers.

    Returns:
        The kills and what came of them.
    """
    whole = out.with_name(f"{out.name}.whole") if whole is None else whole
    if not whole.exists():
        finish(command, whole)
    kills = [kill(command, out, moment, signal, to) for moment in moments]
    finish(command, out)
    return Outcome(kills, differences(whole, out), litter(whole, out))


def finish(command: list[str], out: Path) -> None:
    """Runs a command to its end.

    Raises:
        RuntimeError: It fails.
    """
    with started(command, out) as process:
        if process.wait(PATIENCE):
            text = process.text.read_text(encoding="utf-8")
            raise RuntimeError(f"{command} failed with {process.returncode}: {text}")


class Process(subprocess.Popen[bytes]):
    """A command in a session of its own, whose processes share a mark.

    Args:
        command: As for :func:`killed`.
        out: As for :func:`killed`.
        text: File for what it writes on stderr.
    """

    def __init__(self, command: list[str], out: Path, text: Path) -> None:
        self.text, self.mark = text, uuid.uuid4().hex
        with text.open("wb") as stderr:
            super().__init__(
                [word.format(out=out) for word in command],
                stdout=subprocess.DEVNULL, stderr=stderr, cwd=ROOT, start_new_session=True,
                preexec_fn=_hear_signals,
                env=os.environ | {MARK: self.mark, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

    def alive(self) -> list[int]:
        """Numbers of all its processes, itself included."""
        mark, numbers = f"{MARK}={self.mark}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):  # it has ended, or is another user's
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    numbers.append(int(folder.name))
        return numbers

    def workers(self) -> list[int]:
        """Numbers of the processes that work for it."""
        return [number for number in self.alive() if "spawn_main" in command_line(number)]


def _hear_signals() -> None:
    """Lets a command hear what its parent may ignore, as one in the background does."""
    for number in STATUSES:
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def started(command: list[str], out: Path) -> Iterator[Process]:
    """Starts a command; what is left of it when the block ends is killed."""
    with tempfile.NamedTemporaryFile() as text:
        process = Process(command, out, Path(text.name))
        try:
            yield process
        finally:
            for number in process.alive():
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            process.wait()


def command_line(number: int) -> str:
    """Words of a process; none if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{number}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    return ""


def kill(
    command: list[str], out: Path, moment: float, number: signal.Signals, to: str = "parent"
) -> Kill:
    """Starts a command, sends it a signal, and looks what lives on.

    The arguments are those of :func:`killed`.
    """
    made = Kill(number, moment, to)
    with started(command, out) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            return made  # it was done before
        if to == "worker":
            workers = process.workers()
            if not workers:  # as while it starts, or at its end
                return made
            os.kill(random.choice(workers), number)
        elif to == "group":
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        sent = time.monotonic()
        process.wait(PATIENCE)
        made.status, made.seconds = process.returncode, time.monotonic() - sent
        while process.alive() and time.monotonic() - sent < LIMIT:
            time.sleep(0.05)
        made.orphans = [command_line(orphan) for orphan in process.alive()]
        made.text = process.text.read_text(encoding="utf-8")
    return made


def litter(whole: Path, out: Path) -> list[str]:
    """Files in the folder of a killed command that an undisturbed one does not leave."""
    expected = {path.relative_to(whole) for path in whole.rglob("*")}
    return sorted(str(path.relative_to(out)) for path in out.rglob("*")
                  if path.relative_to(out) not in expected)  # fmt: skip


def differences(whole: Path, out: Path) -> list[str]:
    """Result files that are not in both folders or not equal, durations and versions aside."""
    names = {path.relative_to(folder) for folder in (whole, out) for path in folder.rglob("*.json")}
    return sorted(str(name) for name in names if content(whole / name) != content(out / name))


def content(path: Path) -> Any:
    """A result but for what varies; ``None`` if it is absent."""

    def steady(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: steady(part) for key, part in value.items() if key not in VARYING}
        return [steady(part) for part in value] if isinstance(value, list) else value

    return steady(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def benchmarks(*words: str) -> list[str]:
    """A command of the benchmark that writes into the folder of results."""
    return [sys.executable, "-m", "benchmarks", *words, "--out", "{out}"]


SMALL = ("--episodes", "1000", "--sessions", "50")
COMMANDS = {
    "train": benchmarks("train", "hrl", *SMALL),
    "suite": benchmarks("suite", "--agents", "a2c", "hrl", "--seeds", "11", "15", *SMALL),
    "tune": benchmarks("tune", "a2c", "--trials", "3", "--episodes", "300", "--sessions", "50"),
    "purify": benchmarks(
        "purify", "--envs", "KuaiRec-Fair-v0", "--seeds", "11", "--purifiers", "identity", "mlp",
        "--updates", "100",
    ),
}  # fmt: skip
LATEST = 12.0  # seconds after the start at which a command is killed
STORM = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


# Who gets which signal: some commands have no workers, and workers hear no Ctrl-C.
KILLS = [
    (name, sent, to)
    for name, sent, to in product(COMMANDS, STORM, TARGETS)
    if to != "worker" or (name in ("suite", "purify") and sent is not signal.SIGINT)
]


def killed_commands(n: int, seed: int) -> Counts:
    """Kills n commands at random moments and repeats them.

    Args:
        n: Number of kills, all of :data:`KILLS` in turns.
        seed: Of their order and the moments.
    """
    rng, counts, turns = random.Random(seed), Counts(), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n):
            turns = turns or rng.sample(KILLS, len(KILLS))
            name, sent, to = turns.pop()
            whole, out = Path(folder, f"{name}.whole"), Path(folder, str(number))
            moment = rng.uniform(0.3, LATEST)
            outcome = killed(COMMANDS[name], out, [moment], sent, to=to, whole=whole)
            story = "; ".join(outcome.faults)
            counts.note(story and f"{name}, {sent.name} to the {to} at {moment:.1f} s: {story}")
    return counts
