"""Attacks: ``python -m tests.attack [NAME ...] [--n N | --full | --smoke] [--out FILE.json]``.

Kills at random moments, damage, full and read-only disks, mutated files, odd calls, lost nodes of
Ray, and a soak. It prints how many tries of each held, and what was lost; the exit status is 1 if
anything was.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from benchmarks.formatting import markdown_table
from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import ConfigError
from tests.attack.counts import Counts


@dataclass(frozen=True)
class Attack:
    """An attack and its sizes.

    Attributes:
        function: Its module and function, which takes a number of tries and a seed.
        part: Tries that are kept together, as one call with a seed of its own.
        usual: Tries by default.
        full: Tries of ``--full``.
        smoke: Tries of ``--smoke``.
        needs: A package that it needs beside those of all: it is left out where that is missing,
            unless it is named.
    """

    function: str
    part: int
    usual: int
    full: int
    smoke: int
    needs: str = "kuaisim_gym"

    def run(self, tries: int, seed: int) -> Counts:
        """Makes some tries."""
        module, function = self.function.split(":")
        counts = getattr(import_module(f"tests.attack.{module}"), function)(tries, seed)
        assert isinstance(counts, Counts)
        return counts

    def parts(self, n: int) -> Iterator[int]:
        """Tries of each part of n."""
        yield from [self.part] * (n // self.part)
        if n % self.part:
            yield n % self.part


ATTACKS = {
    "calls": Attack("calls:random_calls", 1000, 5000, 22_000, 60),
    "entries": Attack("entries:damaged_entries", 100, 200, 1000, 6),
    "tables": Attack("tables:mutated_tables", 250, 500, 5000, 6),
    "full": Attack("disks:full_disks", 22, 44, 220, 1),
    "read-only": Attack("disks:read_only", 22, 22, 22, 1),
    "lives": Attack("lives:killed", 10, 20, 100, 1),
    "commands": Attack("kills:killed_commands", 38, 38, 380, 0),
    "cluster": Attack("cluster:killed_clusters", 18, 18, 90, 0, "ray"),
    "soak": Attack("soak:soak", 1 << 20, 1, 10, 0),
}


def main(arguments: list[str] | None = None) -> int:
    """Runs attacks; returns 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=f"{', '.join(ATTACKS)}; default: all")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--n", type=int, help="tries of each attack; minutes of the soak")
    size.add_argument("--full", action="store_true", help="as many as take hours")
    size.add_argument("--smoke", action="store_true", help="a few, to see that it works")
    add("--minutes", type=int, help="of the soak")
    add("--out", type=Path, help="JSON file of finished parts, which are not done again")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(ATTACKS):
        parser.error(f"unknown attacks {sorted(unknown)}; there are {', '.join(ATTACKS)}")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # no process or disk is left behind
    found = {}
    possible = [name for name, attack in ATTACKS.items() if find_spec(attack.needs) is not None]
    for name in options.names or possible:
        found[name] = _counts(name, _tries(name, options), options.out)
    header = ["attack", "tried", "held", "lost"]
    rows = [[name, *map(str, (each.tried, each.held, len(each.lost)))]
            for name, each in found.items()]  # fmt: skip
    print(markdown_table(header, rows, "lrrr"))
    for name, each in found.items():
        for text in each.lost:
            print(f"\n{name}: {text}")
    return int(any(each.lost for each in found.values()))


def _tries(name: str, options: argparse.Namespace) -> int:
    attack = ATTACKS[name]
    if name == "soak" and options.minutes is not None:
        return int(options.minutes)
    if options.n is not None:
        return int(options.n)
    return attack.full if options.full else attack.smoke if options.smoke else attack.usual


def _counts(name: str, n: int, out: Path | None) -> Counts:
    """Makes the parts of an attack that are missing in a file, and adds all up."""
    total = Counts()
    for seed, tries in enumerate(ATTACKS[name].parts(n)):
        key, kept = f"{name}, {tries} tries, seed {seed}", _read(out)
        if key not in kept:
            print(f"{key} ...", file=sys.stderr, flush=True)
            kept[key] = asdict(ATTACKS[name].run(tries, seed))
            if out is not None:
                write_atomically(out, (json.dumps(kept, indent=1) + "\n").encode())
        total += Counts(**kept[key])
    return total


def _read(out: Path | None) -> dict[str, dict[str, object]]:
    if out is None or not out.exists():
        return {}
    kept = json.loads(out.read_text(encoding="utf-8"))
    if not isinstance(kept, dict):
        raise ConfigError(f"{out} holds no parts of an attack: name another file.")
    return kept


if __name__ == "__main__":
    sys.exit(main())
