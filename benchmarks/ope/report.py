"""Tables of the ope study: estimates beside the truth, and what they are good for."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from dsrm_agents.ope.evaluation import LEAST_ESS, METRICS
from dsrm_agents.ope.sessions import ESTIMATORS

from ..formatting import markdown_table, section
from ..runs.world_study import measurement
from ..studies.results import Result, in_order, read_results, world_of

STUDY = "ope"
KEYS = frozenset({"study", "part", "env", "max_len", "seed", "dataset", "sessions", "rows"})
TITLES = dict(zip(METRICS, ("Len", "R_each", "R_cum", "long tail", "AD"), strict=True))
DIGITS = {"len": 2, "r_cum": 2}
BY_STEPS = ("stepwise, items", "marginalised", "direct", "marginalised doubly robust")
SHOWN = ("per-decision", "doubly robust", "marginalised doubly robust")


def read_studies(folder: Path) -> list[Result]:
    """Results of this study in a folder.

    Raises:
        DataFormatError: There are none, or a measurement has two files.
    """
    return read_results(folder, STUDY, KEYS, _measurement, "part")


def _measurement(result: Result) -> Hashable:
    return measurement(result, "part", "slate_size"), result.get("policy")


def markdown(results: list[Result]) -> str:
    """Tables of all parts, world by world."""
    tables = {
        "pairs": _pairs, "pairs-no-patience": _pairs, "coverage": _coverage, "dial": _dial,
        "replay": _replay,
    }  # fmt: skip
    rank = {part: number for number, part in enumerate(tables)}
    ordered = sorted(in_order(results), key=lambda item: (rank[item["part"]], item["slate_size"]))
    texts = []
    for (part, world), group in groupby(ordered, lambda item: (item["part"], world_of(item))):
        for blocks in tables[part]([*group]):
            texts.append(section(f"{_TITLES[part]}: {world.title}", *blocks))
    return "\n\n".join(texts) + "\n"


_TITLES = {
    "pairs": "Near and far policies",
    "pairs-no-patience": "Near and far policies, and the rule by which users leave is not known",
    "coverage": "Coverage of 95 % intervals",
    "dial": "A dial set by logs alone",
    "replay": "The published random log",
}


def worth(log: dict[str, Any], estimator: str) -> float:
    """Sessions that the weights of an estimator are worth."""
    return float(log["worth"]["marginal" if estimator in BY_STEPS else "sessions"])


def error(row: dict[str, Any], size: str, estimator: str, metric: str) -> float:
    """An estimate less the truth."""
    return float(row["logs"][size]["estimates"][estimator][metric][0] - row["truth"][metric][0])


def tau(result: Result, size: str, estimator: str, metric: str) -> float:
    """Kendall's tau between estimates and truths of the policies that are not near."""
    rows = [row for row in result["rows"] if not row["near"]]
    estimates = [row["logs"][size]["estimates"][estimator][metric][0] for row in rows]
    return float(kendalltau(estimates, [row["truth"][metric][0] for row in rows]).statistic)


def _pairs(results: list[Result]) -> list[list[str]]:
    return [_of_pairs(result) for result in results]


def _of_pairs(result: Result) -> list[str]:
    *_, largest = sizes = list(result["rows"][0]["logs"])
    rows = []
    for row in result["rows"]:
        log = row["logs"][largest]
        lines = [[row["policy"], "truth", "", *(_number(row["truth"][m][0], m) for m in TITLES)]]
        for name in SHOWN:
            value, flag = log["estimates"][name], "" if worth(log, name) >= LEAST_ESS else "refused"
            cells = [_interval(value[m], row["truth"][m], m) for m in TITLES]
            lines.append(["", name, f"{worth(log, name):,.0f} {flag}".strip(), *cells])
        rows += lines
    header = ["policy", "estimator", "worth", *TITLES.values()]
    note = (
        f"{int(largest):,} logged sessions of *{result['logging']}*; truths are of "
        f"{result['sessions']:,} simulated sessions of 400 users. Worth: effective sample size of "
        f"the weights in sessions; below {LEAST_ESS:.0f} the tool refuses, and the numbers show "
        "why. An asterisk: the 95 % interval misses the truth."
    )
    ranks = []
    for name in ESTIMATORS:
        for size in sizes:
            taus = [tau(result, size, name, metric) for metric in TITLES]
            cells = ["" if np.isnan(value) else f"{value:.2f}" for value in taus]
            ranks.append([name, f"{int(size):,}", *cells])
    ranked = markdown_table(["estimator", "log", *TITLES.values()], ranks, "lr")
    six = (
        "Kendall's tau between the true order of the six policies that are not near the log and "
        "the estimated one, whether the tool would refuse or not."
    )
    refusals = "\n".join(
        f"* Log of {case['log']}, policy *{case['policy']}*: {case['says']}"
        for case in result["refused"]
    )
    return [markdown_table(header, rows, "llr"), note, ranked, six, refusals]


def _interval(value: list[float], truth: list[float], metric: str) -> str:
    """An estimate and its interval, marked where it misses a truth that has an error, too."""
    estimate, low, high = value
    half = (high - low) / 2.0
    missed = "*" if abs(estimate - truth[0]) > np.hypot(half, truth[1]) else ""
    return f"{_number(estimate, metric)} ± {_number(half, metric)}{missed}"


def _number(value: float, metric: str) -> str:
    return f"{value:.{DIGITS.get(metric, 3)}f}"


def _coverage(results: list[Result]) -> list[list[str]]:
    rows = []
    for result in sorted(results, key=lambda item: -item["worth"]):
        names = dict.fromkeys(row["intervals"] for row in result["rows"])
        for name in names:
            of_metric = {row["metric"]: row for row in result["rows"] if row["intervals"] == name}
            cells = [
                f"{100 * of_metric[m]['coverage']:.1f} %" if m in of_metric else "" for m in TITLES
            ]
            of_len = of_metric["len"]
            ends = [f"{of_len['bias']:+.3f}", f"{of_len['width']:.3f}"]
            rows.append([result["policy"], f"{result['worth']:,.0f}", name, *cells, *ends])
    header = ["policy", "worth", "intervals", *TITLES.values(), "bias, Len", "width, Len"]
    first = results[0]
    note = (
        f"Share of {first['repetitions']} logs of {first['log_sessions']:,} sessions each of "
        f"*{first['logging']}*, no session in two logs, whose 95 % interval holds the truth, of "
        "200,000 sessions. Worth: mean effective sample size of whole sessions' weights."
    )
    return [[markdown_table(header, rows, "lrl" + "r"), note]]


def _dial(results: list[Result]) -> list[list[str]]:
    return [_of_dial(result) for result in results]


def _of_dial(result: Result) -> list[str]:
    rows = []
    for row in result["rows"]:
        cells = [
            cell
            for metric in ("len", "r_cum", "longtail_share")
            for cell in (
                _interval(row["estimate"][metric], row["truth"][metric], metric)
                if row["estimate"] else "",
                _number(row["truth"][metric][0], metric),
            )
        ]  # fmt: skip
        rows.append(
            [f"{row['share']:g}", row["estimator"] if row["estimate"] else "refused", *cells]
        )
    header = [
        "share",
        "estimator",
        "Len, log",
        "true",
        "R_cum, log",
        "true",
        "long tail, log",
        "true",
    ]
    note = f"{result['log_sessions']:,} logged sessions of *{result['logging']}*. {_choice(result)}"
    return [markdown_table(header, rows, "ll" + "r"), note]


def _choice(result: Result) -> str:
    """A sentence on the share that logs alone choose."""
    answered = [row for row in result["rows"] if row["estimate"]]
    chosen = max(answered, key=lambda row: row["estimate"]["r_cum"][0])
    best = max(result["rows"], key=lambda row: row["truth"]["r_cum"][0])
    lost = best["truth"]["r_cum"][0] - chosen["truth"]["r_cum"][0]
    return (
        f"By R_cum the log chooses a long-tail share of {chosen['share']:g} and the simulator "
        f"{best['share']:g}: the choice costs {lost:.3f} of {best['truth']['r_cum'][0]:.2f}."
    )


def _replay(results: list[Result]) -> list[list[str]]:
    return [_of_replay(result) for result in results]


def _of_replay(result: Result) -> list[str]:
    rows = []
    for row in result["rows"]:
        value, low, high = row["replayed"]
        mean, half = row["simulated"]
        refused = " refused" if row["worth"] < LEAST_ESS else ""
        rows.append([
            row["policy"], f"{row['worth']:,.0f}{refused}", f"{value:.3f} ± {(high - low) / 2:.3f}",
            f"{mean:.3f} ± {half:.3f}", f"{mean - value:+.3f}",
        ])  # fmt: skip
    header = ["policy", "worth", "real clicks, replayed", "simulated", "difference"]
    note = (
        f"Click rate of the first item of a session: {result['log_rows']:,} real rows of "
        f"{result['users']:,} users of KuaiRand's random log, reweighted (self-normalised, "
        f"intervals over users), and {result['sessions']:,} simulated sessions. {_distance(result)}"
    )
    return [markdown_table(header, rows, "lr"), note]


def _distance(result: Result) -> str:
    """A sentence on what the simulator adds to real clicks."""
    answered = [row for row in result["rows"] if row["worth"] >= LEAST_ESS]
    gaps = [row["simulated"][0] - row["replayed"][0] for row in answered]
    return (
        f"Where the log is worth {LEAST_ESS:.0f} rows, the simulator's rates are {min(gaps):+.3f} "
        f"to {max(gaps):+.3f} from the replayed ones."
    )


NEAR_ONE, FAR_ONE, RATIO_ONE = "doubly robust", "marginalised doubly robust", "stepwise, items"


def verdict(results: list[Result]) -> str:
    """A recommendation in sentences, with the figures that it rests on."""
    covered = sorted(
        (result for result in results if result["part"] == "coverage"),
        key=lambda result: -result["worth"],
    )
    pairs = [result for result in results if result["part"].startswith("pairs")]
    lines = []
    for result in covered:
        near, far = (_coverages(result, intervals) for intervals in (NEAR_ONE, FAR_ONE))
        lines.append(
            f"* *{result['policy']}*, worth {result['worth']:.0f} of "
            f"{result['log_sessions']:,} sessions: {_range(near)} of {result['repetitions']} "
            f"intervals of *{NEAR_ONE}* hold the truth, by metric; {_range(far)} of *{FAR_ONE}*."
        )
    patience = {"pairs": "", "pairs-no-patience": ", patience unknown"}
    ranked = "\n".join(
        f"* K = {result['slate_size']}{patience[result['part']]}: Kendall's tau of six policies "
        f"from {int(_largest(result)):,} sessions is {_least_tau(result):.2f} in the worst metric. "
        f"Errors of Len are at most {_worst(result, FAR_ONE, 'len', True):.2f} "
        f"steps where the tool answers, {_worst(result, FAR_ONE, 'len', False):.2f} where it would "
        f"refuse; of R_each by *{RATIO_ONE}* {_worst(result, RATIO_ONE, 'r_each', True):.3f}."
        for result in sorted(pairs, key=lambda result: (result["part"], result["slate_size"]))
    )
    return "\n\n".join(
        [
            f"**Close to the log: *{NEAR_ONE}*.** Its intervals hold nearly what they promise:",
            "\n".join(lines),
            f"**Far from it: *{FAR_ONE}*, to rank and to choose.** Products of ratios are worth "
            "nothing there; states are, at the price of a bias that its intervals do not hold:",
            ranked,
            f"**R_each and long-tail share alone: *{RATIO_ONE}*** needs no history and the "
            "smallest weights; it says nothing of Len and R_cum.",
            *(
                f"**A dial by logs alone.** {_choice(result)}"
                for result in results
                if result["part"] == "dial"
            ),
            *(
                f"**The real random log.** {_distance(result)}"
                for result in results
                if result["part"] == "replay"
            ),
        ]
    )


def _coverages(result: Result, intervals: str) -> list[float]:
    return [row["coverage"] for row in result["rows"] if row["intervals"] == intervals]


def _range(shares: list[float]) -> str:
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"


def _largest(result: Result) -> str:
    """The size of the largest log."""
    sizes: dict[str, Any] = result["rows"][0]["logs"]
    return max(sizes, key=int)


def _least_tau(result: Result) -> float:
    return min(tau(result, _largest(result), FAR_ONE, metric) for metric in TITLES)


def _worst(result: Result, estimator: str, metric: str, answered: bool) -> float:
    """Largest error over the policies of which the tool says something, or of which it does not."""
    size = _largest(result)
    errors = [
        abs(error(row, size, estimator, metric))
        for row in result["rows"]
        if (worth(row["logs"][size], estimator) >= LEAST_ESS) == answered
    ]
    return max(errors, default=0.0)
