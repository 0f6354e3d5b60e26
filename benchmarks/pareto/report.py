"""Tables of the pareto study: means and 95 % intervals over seeds, and paired differences."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from kuaisim_gym.errors import DataFormatError

from ..formatting import interval, markdown_table, mean_and_ci95, section
from ..studies.results import Result, World, read_results, world_of

STUDY = "pareto"
DIAL, RETRAINED, FLAT, SWEEP = "dial", "retrained", "flat", "sweep"
KEYS = frozenset(
    {"study", "kind", "settings", "agent", "env", "max_len", "seed", "dataset", "episodes",
     "sessions", "points", "train", "versions", "commit"}
)  # fmt: skip
SHARE, REWARD = "longtail_share", "r_each"
COLUMNS = {SHARE: "long tail", "len": "Len", REWARD: "R_each", "ad": "AD"}
_DIGITS = {"len": 2}

Metrics = dict[int, dict[str, float]]  # by seed


class Front(NamedTuple):
    """All results of one world.

    Attributes:
        world: The world.
        note: Numbers of training and test sessions.
        points: Metrics by kind and setting; ``None`` is the setting of an untouched dial.
    """

    world: World
    note: str
    points: dict[str, dict[float | None, Metrics]]

    def settings(self, kind: str) -> list[float]:
        """Numeric settings of a kind, ascending."""
        return sorted(setting for setting in self.points[kind] if setting is not None)


def read_studies(folder: Path) -> list[Result]:
    """Results of the study in a folder and its subfolders.

    Raises:
        DataFormatError: There are none, or one is damaged.
    """
    return read_results(folder, STUDY, KEYS, identity=None)


def fronts(results: list[Result]) -> list[Front]:
    """Results by world.

    Raises:
        DataFormatError: A point has two results, or results cannot be compared.
    """
    worlds: dict[World, list[Result]] = defaultdict(list)
    for result in results:
        worlds[world_of(result)].append(result)
    return [_front(world, worlds[world]) for world in sorted(worlds, key=lambda world: world.rank)]


def _front(world: World, results: list[Result]) -> Front:
    sizes = {(result["episodes"], result["sessions"]) for result in results}
    if len(sizes) > 1:
        raise DataFormatError(
            f"Results of {world.title} differ in (training sessions, test sessions): "
            f"{sorted(sizes)}. Give a folder that holds one of them."
        )
    points: dict[str, dict[float | None, Metrics]] = {
        kind: {} for kind in (DIAL, RETRAINED, FLAT, SWEEP)
    }
    for result in results:
        for point in result["points"]:
            seeds = points[result["kind"]].setdefault(point["setting"], {})
            if result["seed"] in seeds:
                raise DataFormatError(
                    f"Results of {world.title} hold {result['kind']} {point['setting']}, seed "
                    f"{result['seed']}, twice. Give a folder that holds one of them."
                )
            seeds[result["seed"]] = point["metrics"]
    ((episodes, sessions),) = sizes
    note = f"{episodes:,} training sessions, {sessions:,} test sessions a seed"
    return Front(world, note, points)


def markdown(results: list[Result]) -> str:
    """Tables of all worlds: of the dial, and of agents without a dial."""
    return "\n\n".join(map(tables, fronts(results))) + "\n"


def tables(front: Front) -> str:
    """Tables of one world."""
    blocks = [_dial_table(front), verdict(front)] if front.points[DIAL] else []
    for kind, title in ((FLAT, "flat, penalty"), (SWEEP, "MOFIR, weight of utility")):
        if front.points[kind]:
            points = front.points[kind]
            rows = [[f"{value:g}", *_cells(points[value])] for value in front.settings(kind)]
            blocks.append(markdown_table([title, "seeds", *COLUMNS.values()], rows, "r"))
    note = (
        f"± is a 95 % interval over seeds; {front.note}. Distance: the largest of a seed. "
        "Differences are paired by seed: the same test sessions."
    )
    return section(front.world.title, *blocks, note)


def _dial_table(front: Front) -> str:
    share, *columns = COLUMNS.values()
    header = ["target", "seeds", share, "distance", *columns, "R_each, retrained",
              "dial - retrained"]  # fmt: skip
    rows = []
    for target in front.settings(DIAL):
        seeds, share, *cells = _cells(front.points[DIAL][target])
        retrained = front.points[RETRAINED].get(target, {})
        rows.append([
            f"{target:g}", seeds, share, f"{distance(front, target):.3f}", *cells,
            _cell(retrained, REWARD), interval(differences(front, target), sign="+"),
        ])  # fmt: skip
    if None in front.points[DIAL]:
        seeds, share, *cells = _cells(front.points[DIAL][None])
        rows.append(["its own choice", seeds, share, "", *cells, "", ""])
    return markdown_table(header, rows, "r")


def _cells(metrics: Metrics) -> list[str]:
    """The number of seeds, and means and intervals over them."""
    return [str(len(metrics)), *(_cell(metrics, name) for name in COLUMNS)]


def _cell(metrics: Metrics, name: str) -> str:
    return interval([values[name] for values in metrics.values()], _DIGITS.get(name, 3))


def verdict(front: Front) -> str:
    """Sentences on the accuracy of the dial and on its cost."""
    targets = front.settings(DIAL)
    return " ".join([*_obedience(front, targets), *_cost(front, targets)])


def _obedience(front: Front, targets: list[float]) -> list[str]:
    """Sentences on measured shares and their targets."""
    if not targets:
        return []
    dial = front.points[DIAL]
    violations = [
        f"from target {low:g} to {high:g} seed {seed}'s goes from {before:.3f} to {after:.3f}"
        for low, high in pairwise(targets)
        for seed, before, after in _pairs(dial[low], dial[high], SHARE)
        if after <= before
    ]
    sentence = "Measured long-tail shares are monotone: they rise with every target in every seed"
    if violations:
        sentence = f"Measured long-tail shares are not monotone: {'; '.join(violations)}"
    farthest = max(targets, key=lambda target: distance(front, target))
    return [
        f"{sentence}.",
        f"The largest distance from a target is {distance(front, farthest):.3f}, at {farthest:g}.",
    ]


def _cost(front: Front, targets: list[float]) -> list[str]:
    """The loss of not training for each target."""
    losses = {target: [-value for value in differences(front, target)] for target in targets}
    means = {target: mean_and_ci95(values)[0] for target, values in losses.items() if values}
    if not means:
        return []
    worst = max(means, key=means.__getitem__)
    size = f"{interval(losses[worst])}, at target {worst:g}"
    if means[worst] <= 0:
        size = "none: at no target is its mean lower"
    return [f"The dial's largest loss of R_each against the retrained agent is {size}."]


def distance(front: Front, target: float) -> float:
    """Largest distance over seeds between measured long-tail share and target."""
    return max(abs(values[SHARE] - target) for values in front.points[DIAL][target].values())


def differences(front: Front, target: float) -> list[float]:
    """R_each of the dial less that of the retrained agent, by seed."""
    dial, retrained = front.points[DIAL][target], front.points[RETRAINED].get(target, {})
    return [reward - baseline for _, reward, baseline in _pairs(dial, retrained, REWARD)]


def _pairs(first: Metrics, second: Metrics, name: str) -> list[tuple[int, float, float]]:
    """Common seeds, with a metric at two points."""
    seeds = sorted(first.keys() & second.keys())
    return [(seed, first[seed][name], second[seed][name]) for seed in seeds]
