"""Tables of A/B tests, the page of one test, and the sentence that sums it up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from kuaisim_gym.disk import write_atomically
from kuaisim_gym.errors import DataFormatError

from ..formatting import interval, markdown_table, section
from ..runs.world_study import measurement
from ..studies.results import Result, World, in_order, read_results, studies_in, world_of
from .calibration import BOUND
from .sessions import METRICS

STUDY, INTERFERENCE = "ab", "ab-interference"
KEYS = frozenset(
    {"study", "arms", "metric", "env", "max_len", "seed", "dataset", "sessions", "planned", "test",
     "path", "others", "guardrails", "tests", "versions", "commit"}
)  # fmt: skip
INTERFERENCE_KEYS = frozenset(
    {"study", "arms", "env", "max_len", "seed", "dataset", "days", "first", "per_day", "alone",
     "together", "test", "concentration", "versions", "commit"}
)  # fmt: skip
GUARDRAILS = {"ad": "AD", "worst": "worst tenth of users"}
LEAST_IMBALANCE = 0.001  # a smaller p-value says that users were lost


def read_studies(folder: Path) -> list[Result]:
    """Tests and platforms in a folder and its subfolders.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    present = studies_in(folder)
    results: list[Result] = []
    if INTERFERENCE in present:
        results = read_results(
            folder, INTERFERENCE, INTERFERENCE_KEYS,
            lambda row: (measurement(row), *row["arms"]), "pair of arms",
        )  # fmt: skip
    if STUDY in present or not results:
        results += read_results(
            folder, STUDY, KEYS,
            lambda row: (measurement(row, "metric"), *row["arms"]), "pair of arms",
        )  # fmt: skip
    return results


def markdown(results: Sequence[Result]) -> str:
    """Tables of all tests and platforms, world by world."""
    worlds: dict[World, list[Result]] = defaultdict(list)
    for result in in_order(results):
        worlds[world_of(result)].append(result)
    texts = []
    for world, rows in worlds.items():
        tests = [row for row in rows if row["study"] == STUDY]
        platforms = [row for row in rows if row["study"] == INTERFERENCE]
        texts.append(section(world.title, *_tests(tests), *_platforms(platforms)))
    return "\n\n".join(texts) + "\n"


def _tests(tests: list[Result]) -> Iterable[str]:
    """Tables of tests of one world: effects, false positives, power."""
    if not tests:
        return
    rows = [
        [
            _arms(row), METRICS[row["metric"]].title, str(row["seed"]),
            signed(_effect(row)), _range(row["test"]["fixed"]),
            _range(row["test"]["always_valid"].values()), _decided(row),
            *(_guardrail(row["guardrails"][name]) for name in GUARDRAILS),
        ]
        for row in tests
    ]  # fmt: skip
    header = ["control -> treatment", "metric", "seed", "effect", "fixed 95 %", "always valid",
              "decided after", *GUARDRAILS.values()]  # fmt: skip
    yield markdown_table(header, rows, "lr")
    yield "\n\n".join(verdict(row) for row in tests)
    errors = [row for row in tests if row["tests"]]
    if errors:
        yield markdown_table(
            ["arm against itself", "seed", "tests", "metric", "fixed, looked at once",
             "fixed, after every session", "sequential, after every session"],
            [
                [row["arms"][0], str(row["seed"]), f"{row['tests']:,}", METRICS[name].title,
                 *(f"{100 * shares[kind]:.1f} %" for kind in ("fixed", "peeked", "sequential"))]
                for row in errors
                for name, shares in row["false_positives"].items()
            ],
            "lrrlr",
        )  # fmt: skip
        yield "Share of tests without a difference that find one, at a level of 5 %."
    powers = [(row, point) for row in tests for point in row.get("power", ())]
    if powers:
        yield markdown_table(
            ["control -> treatment", "metric", "seed", "users", "computed power", "measured",
             "difference, points", "sequential"],
            [
                [_arms(row), METRICS[row["metric"]].title, str(row["seed"]), f"{point['users']:,}",
                 f"{100 * point['computed']:.1f} %", f"{100 * point['measured']:.1f} %",
                 f"{100 * (point['measured'] - point['computed']):+.1f}",
                 f"{100 * point['sequential']:.1f} %"]
                for row, point in powers
            ],
            "llr",
        )  # fmt: skip
        yield (
            "Of the fixed test, looked at once, after all sessions of so many users. Sequential: "
            "share of the tests that the sequential one has decided by then."
        )


def _platforms(platforms: list[Result]) -> Iterable[str]:
    """Tables of arms on one platform and on platforms of their own, over seeds.

    Raises:
        DataFormatError: They differ in days or sessions.
    """
    if not platforms:
        return
    pairs: dict[tuple[str, ...], list[Result]] = defaultdict(list)
    for row in platforms:
        pairs[*row["arms"]].append(row)
    sizes = {(row["first"], row["days"], row["per_day"]) for row in platforms}
    if len(sizes) > 1:
        raise DataFormatError(
            f"Platforms differ in (first day, last day, sessions a day): {sorted(sizes)}. Give a "
            "folder that holds one of them."
        )
    ((first_day, last_day, per_day),) = sizes
    rows = []
    for seeds in pairs.values():
        for name, metric in METRICS.items():
            apart = [_apart(row, name) for row in seeds]
            tests = [row["test"][name][0] for row in seeds]
            if not any(apart) and not any(tests):
                continue  # both arms are at the same quota
            bias = [test - alone for test, alone in zip(tests, apart, strict=True)]
            covered = sum(covers(row, name) for row in seeds)
            rows.append([
                _arms(seeds[0]), metric.title, str(len(seeds)), interval(apart, sign="+"),
                interval(tests, sign="+"), interval(bias, sign="+"), f"{covered} of {len(seeds)}",
                *(
                    interval([row["together"][arm][name] - row["alone"][arm][name]
                              for row in seeds], sign="+")
                    for arm in (0, 1)
                ),
            ])  # fmt: skip
    yield markdown_table(
        ["control -> treatment", "metric", "seeds", "whole platforms", "test on one", "bias",
         "in its interval", "control gains", "treatment gains"],
        rows, "llr",
    )  # fmt: skip
    yield (
        f"± is a 95 % interval over seeds. Days {first_day} to {last_day} with {per_day} sessions "
        "a day count. Whole platforms: treatment alone less control "
        "alone, each with a platform to itself. Test on one: the same difference, of users hashed "
        "to arms on one platform. In its interval: seeds in which the test's 95 % interval holds "
        "the difference of whole platforms. Gains: what an arm has on the shared platform over "
        "what it has on its own."
    )
    platforms_of = (
        (label, str(len(seeds)), interval([row["concentration"][index] for row in seeds]))
        for seeds in pairs.values()
        for index, label in enumerate([*seeds[0]["arms"], f"both: {_arms(seeds[0])}"])
    )
    header = ["platform of", "seeds", "Gini of popularity, last day"]
    yield markdown_table(header, dict.fromkeys(platforms_of), "lr")


def covers(row: Result, name: str) -> bool:
    """Tells if the test's fixed interval holds the difference of whole platforms."""
    effect, variance = row["test"][name]
    return bool(abs(effect - _apart(row, name)) <= BOUND * np.sqrt(variance))


def _apart(row: Result, name: str) -> float:
    """The difference of whole platforms."""
    control, treatment = row["alone"]
    return float(treatment[name] - control[name])


def verdict(row: Result) -> str:
    """One test in a sentence, from the always-valid interval and the guardrails."""
    control, treatment = row["arms"]
    test, title = row["test"], METRICS[row["metric"]].title
    ends, effect = test["always_valid"], _effect(row)
    rails = {
        verdict: [label for name, label in GUARDRAILS.items()
                  if row["guardrails"][name]["verdict"] == verdict]
        for verdict in ("kept", "broken", "open")
    }  # fmt: skip
    stated = "; ".join(f"{' and '.join(names)} {state}" for state, names in rails.items() if names)
    evidence = "too few users for an interval"
    if ends["low"] is not None:
        evidence = f"always-valid 95 % interval {_range(ends.values())}"
    if test["imbalance_p"] < LEAST_IMBALANCE:
        return (
            f"**Discard the test**: {test['users'][1]:,} of {sum(test['users']):,} users are in "
            f"the treatment arm (p = {test['imbalance_p']:.1e}), so users were lost."
        )
    if test["decided"] is None:
        sentence = f"no difference in {title} was found ({signed(effect)}, {evidence})"
        choice = f"Keep *{control}*" if not rails["open"] else "Go on testing"
    else:
        direction = "higher" if effect > 0 else "lower"
        sentence = (
            f"{title} is {direction} by {abs(effect):.3f} ({evidence}), decided after "
            f"{test['decided']:,} of {row['sessions']:,} sessions"
        )
        ships = effect > 0 and not rails["broken"] and not rails["open"]
        choice = f"Ship *{treatment}*" if ships else f"Keep *{control}*"
        if effect > 0 and rails["open"] and not rails["broken"]:
            choice = "Go on testing"
    return f"**{choice}** (*{treatment}* against *{control}*): {sentence}; guardrails: {stated}."


def page(row: Result, picture: str) -> str:
    """The report of one test, in Markdown.

    Args:
        row: Its result.
        picture: Name of the figure beside it.
    """
    test, planned, title = row["test"], row["planned"], METRICS[row["metric"]].title
    users = f"{test['users'][0]:,} + {test['users'][1]:,} users"
    facts = [
        ["users", f"{users}, p-value of the split {test['imbalance_p']:.2f}"],
        ["sessions", f"{row['sessions']:,}"],
        [title, f"{test['control']:.3f} -> {test['treatment']:.3f}"],
        ["effect", signed(_effect(row))],
        ["fixed-horizon 95 % interval", f"{_range(test['fixed'])}, p {_p(test['fixed_p'])}"],
        ["always-valid 95 % interval",
         f"{_range(test['always_valid'].values())}, p {_p(test['always_valid_p'])}"],
        ["decided after", _decided(row)],
        ["planned for a difference of",
         f"{signed(planned['effect'])}, with 80 % power: {planned['users']:,} users"],
    ]  # fmt: skip
    rails = [
        [GUARDRAILS[name], f"{rail['control']:.3f}", f"{rail['treatment']:.3f}",
         _range((rail["low"], rail["high"])), f"{rail['margin']:.3f}", rail["verdict"]]
        for name, rail in row["guardrails"].items()
    ]  # fmt: skip
    looks = row["path"]
    chosen = np.unique(np.linspace(0, max(len(looks["sessions"]) - 1, 0), 10).astype(int))
    bounds = [
        [f"{looks['sessions'][look]:,}", signed(looks["effect"][look]),
         _range((looks["fixed_low"][look], looks["fixed_high"][look])),
         _range((looks["low"][look], looks["high"][look]))]
        for look in chosen if looks["sessions"]
    ]  # fmt: skip
    metrics = [
        [METRICS[name].title, signed(further["effect"]), _range(further["interval"])]
        for name, further in row["others"].items()
    ]
    return "\n\n".join([
        f"# {row['arms'][1]} against {row['arms'][0]}, {title}",
        f"{world_of(row).title}, seed {row['seed']}.",
        verdict(row),
        markdown_table(["", ""], facts, "l"),
        f"![Path]({picture})",
        "## Bounds over time",
        markdown_table(["sessions", "effect", "fixed 95 %", "always valid"], bounds, "r"),
        "The test is decided at the first look whose always-valid interval leaves out 0; a later "
        "one may hold it again.",
        "## Guardrails",
        markdown_table(["", "control", "treatment", "loss, always valid", "margin", ""], rails),
        "A loss below 0 is a gain.",
        "## Further metrics",
        markdown_table(["", "effect", "fixed 95 %"], metrics),
    ]) + "\n"  # fmt: skip


def write_pages(results: Sequence[Result], out: Path) -> list[Path]:
    """Writes the page of each test beside its figure, and returns the files."""
    paths = []
    for row in results:
        if row["study"] == STUDY:
            path = out / f"{slug(row)}.md"
            write_atomically(path, page(row, f"{slug(row)}.png").encode())
            paths.append(path)
    return paths


def slug(row: Result) -> str:
    """Name of a test in file names."""
    return f"{STUDY}_{'_'.join(row['arms'])}_{row['metric']}_{world_of(row).slug}_seed{row['seed']}"


def signed(value: float) -> str:
    """A difference with its sign, to three digits behind the point; zero has a plus."""
    return f"{round(value, 3) + 0.0:+.3f}"


def _effect(row: Result) -> float:
    return float(row["test"]["treatment"] - row["test"]["control"])


def _arms(row: Result) -> str:
    return " -> ".join(row["arms"])


def _range(ends: Iterable[float | None]) -> str:
    low, high = ends
    return "" if low is None or high is None else f"{signed(low)} to {signed(high)}"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"


def _decided(row: Result) -> str:
    test = row["test"]
    if test["decided"] is None:
        return "never"
    return f"{test['decided']:,} sessions, {test['decided_users']:,} users"


def _guardrail(rail: Result) -> str:
    if rail["low"] is None:
        return f"{rail['verdict']} (too few users)"
    return f"{rail['verdict']} ({_range((rail['low'], rail['high']))})"
