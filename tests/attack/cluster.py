"""A Ray cluster in a box that loses workers, nodes and drivers, and what is left of the work.

Two nodes are processes of this machine, with a cache each and no folder in common with the command.
A try holds if nothing works on for a dead driver, no finished result is made twice, and the results
in the end are those of an undisturbed pool.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import product
from pathlib import Path

from tests.attack.counts import Counts
from tests.attack.kills import (
    LIMIT,
    PATIENCE,
    Process,
    benchmarks,
    command_line,
    differences,
    finish,
    litter,
    started,
)
from tests.attack.sleepers import GOES_ON

COMMANDS = {
    "suite": benchmarks(
        "suite", "--agents", "a2c", "hrl", "--seeds", "11", "15", "--episodes", "500", "--sessions",
        "50",
    ),
    "sleepers": [sys.executable, "-m", "tests.attack.sleepers", "--out", "{out}"],
}  # fmt: skip
WORK = "ray::fulfil"  # command line of a process that makes a study
LATEST = 5.0  # seconds after the first checkpoint
CPUS = 1  # of each node
AGENTS = ("dashboard-agent-grpc", "dashboard-agent-listen", "metrics-export", "runtime-env-agent")
STARTS = 5  # of a node, until it is given up
STRIKES = (
    ("worker", signal.SIGKILL), ("node", signal.SIGKILL), ("driver", signal.SIGKILL),
    ("driver", signal.SIGINT), ("driver", signal.SIGTERM),
)  # fmt: skip
KILLS = [
    (name, of, *blow)
    for name, of, blow in product(COMMANDS, ("box", "own"), STRIKES)
    if blow[0] != "node" or of == "box"
]


def free_port() -> str:
    """A port that nobody listens to."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


class Node:
    """A node of a Ray cluster, as processes of this machine.

    Args:
        folder: Place of its cache and working directory, which is made.
        words: Options of ``ray start``.

    Raises:
        RuntimeError: It does not start.
    """

    def __init__(self, folder: Path, *words: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cache = folder / "cache"
        own = {"KUAISIM_CACHE": str(self.cache)}
        options = ["--num-cpus", str(CPUS), "--object-store-memory", str(128 << 20), "--block"]
        output = folder / "output"
        for _ in range(STARTS):
            # Ray waits 15 s for each agent to name a port, and then gives the node up.
            ports = [word for agent in AGENTS for word in (f"--{agent}-port", free_port())]
            command = [
                sys.executable,
                "-m",
                "ray.scripts.scripts",
                "start",
                *words,
                *options,
                *ports,
            ]
            with output.open("wb") as file:
                self.process = subprocess.Popen(
                    command, cwd=folder, env=os.environ | own, start_new_session=True,
                    stdout=file, stderr=subprocess.STDOUT,
                )  # fmt: skip
            while self.process.poll() is None:
                if "Ray runtime started" in output.read_text(encoding="utf-8"):
                    return
                time.sleep(0.2)
            self.kill()  # what a busy machine did not start in time
        raise RuntimeError(output.read_text(encoding="utf-8"))

    def kill(self) -> None:
        """Ends all its processes at once, as a power cut does."""
        for number in session(self.process.pid):
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self.process.wait()


class Box:
    """A cluster of a head, which drivers are connected to, and a further node.

    Args:
        folder: Place of the nodes' folders.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.nodes = folder, 0
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.head = Node(folder / "head", "--head", "--port", port, "--include-dashboard", "false")
        try:
            self.node = self.add()
        except BaseException:
            self.head.kill()
            raise

    def add(self) -> Node:
        """Starts the further node."""
        self.nodes += 1
        return Node(self.folder / f"node{self.nodes}", "--address", self.address)

    def close(self) -> None:
        """Ends all nodes."""
        for node in (self.node, self.head):
            node.kill()


@contextmanager
def box(folder: Path) -> Iterator[Box]:
    """A cluster, until the block ends, which all processes started meanwhile may use."""
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    before = dict(os.environ)
    os.environ.update(own, RAY_USAGE_STATS_ENABLED="0")
    try:
        cluster = Box(folder)
        try:
            yield cluster
        finally:
            cluster.close()
    finally:
        os.environ.clear()
        os.environ.update(before)


def session(leader: int) -> list[int]:
    """Numbers of the processes of a session; those of Ray overwrite what marks them."""
    numbers = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] != "Z":
                numbers.append(int(folder.name))
    return numbers


def workers(leaders: list[int]) -> list[int]:
    """Numbers of the processes of sessions that make studies."""
    return [
        number
        for leader in leaders
        for number in session(leader)
        if command_line(number).startswith(WORK)
    ]


def saved(out: Path) -> bool:
    """Tells whether a study has saved anything."""
    return any(file.suffix in (".checkpoint", ".json") for file in out.glob("*"))


def leaders_of(process: Process, cluster: Box | None) -> list[int]:
    """Leaders of the sessions whose processes make the studies of a command."""
    nodes = [] if cluster is None else [cluster.head, cluster.node]
    return [process.pid, *(node.process.pid for node in nodes)]


def strike(process: Process, cluster: Box | None, to: str, number: signal.Signals) -> None:
    """Sends a signal to a worker, a node or the driver of a command that is at work."""
    if to == "driver":
        process.send_signal(number)
    elif to == "node":
        assert cluster is not None
        cluster.node.kill()
    else:
        with suppress(ProcessLookupError, IndexError):  # all have just ended
            os.kill(random.choice(workers(leaders_of(process, cluster))), number)


def disturbed(
    name: str, cluster: Box | None, out: Path, moment: float, to: str, number: signal.Signals
) -> list[str]:
    """Strikes a command while it works, and repeats it if it has ended.

    Args:
        name: The command, of :data:`COMMANDS`.
        cluster: The cluster that it uses; ``None`` for one that it starts itself.
        out: Folder of its results.
        moment: Seconds after its first checkpoint.
        to: ``"worker"``, ``"node"`` or ``"driver"``.
        number: The signal.

    Returns:
        What is not as it should be; without the results, which remain to be compared.
    """
    words = ["--backend", "ray"]
    words += ["--jobs", "2"] if cluster is None else ["--address", cluster.address]
    command, faults = [*COMMANDS[name], *words], []
    with started(command, out) as process:
        leaders = leaders_of(process, cluster)
        limit = time.monotonic() + PATIENCE
        while not saved(out) and process.poll() is None and time.monotonic() < limit:
            time.sleep(0.1)
        time.sleep(moment)
        before = {path: path.stat().st_mtime_ns for path in out.glob("*.json")}
        strike(process, cluster, to, number)
        status = process.wait(PATIENCE)
        text = process.text.read_text(encoding="utf-8")
        lost, resumed = (text.count(words) for words in ("has lost its worker", GOES_ON))
        print(f"{lost} lost, {resumed} resumed", file=sys.stderr, flush=True)
        ended = time.monotonic()
        while (
            left := [*session(process.pid), *workers(leaders)]
        ) and time.monotonic() - ended < LIMIT:
            time.sleep(0.05)
        faults += [f"lives on: {line}" for line in map(command_line, left) if line]
        if to != "driver":
            faults += [f"exit status {status}: {text[-1000:]}"] if status else []
        elif number is not signal.SIGKILL and text.count("interrupted") != 1:
            faults.append(f"not one line: {text[-500:]!r}")
    if status:
        finish(command, out)
    faults += [f"{path.name} was made again" for path, changed in before.items()
               if path.stat().st_mtime_ns != changed]  # fmt: skip
    return faults


def killed_clusters(n: int, seed: int) -> Counts:
    """Disturbs n commands on Ray at random moments.

    Args:
        n: Number of commands, all of :data:`KILLS` in turns.
        seed: Of their order and the moments.
    """
    rng, counts, turns = random.Random(seed), Counts(), []
    with tempfile.TemporaryDirectory() as folder, box(Path(folder, "box")) as cluster:
        for number in range(n):
            turns = turns or rng.sample(KILLS, len(KILLS))
            name, of, to, sent = turns.pop()
            whole, out = Path(folder, name), Path(folder, str(number))
            if not whole.exists():
                finish([*COMMANDS[name], "--jobs", "2"], whole)
            moment = rng.uniform(0, LATEST)
            faults = disturbed(name, cluster if of == "box" else None, out, moment, to, sent)
            faults += [f"{file} differs" for file in differences(whole, out)]
            faults += [f"{file} was left" for file in litter(whole, out)]
            story = f"{name}, {of}, {sent.name} to the {to} at {moment:.1f} s: "
            story += "; ".join(faults) or "held"
            print(story, file=sys.stderr, flush=True)
            counts.note(story if faults else None)
            if to == "node":
                cluster.node = cluster.add()
        caches = [node.cache for node in (cluster.head, cluster.node)]
        if n >= len(KILLS) and not all(any(cache.glob("*.arrays")) for cache in caches):
            counts.lost.append("a node has built nothing")
    return counts
