"""Tables of the study: means and 95 % intervals over seeds, and differences paired by seed."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.pareto.study import DIAL, FLAT, RETRAINED, STUDY, SWEEP
from benchmarks.results import Result, World, read_parts, world_of
from benchmarks.statistics import mean_and_ci95
from kuaisim_gym.errors import DataFormatError

KEYS = frozenset(
    {"study", "kind", "settings", "agent", "env", "max_len", "seed", "dataset", "episodes",
     "sessions", "points", "train", "versions", "commit"}
)  # fmt: skip
SHARE, WORTH = "longtail_share", "r_each"
COLUMNS = {"len": "Len", WORTH: "R_each", "ad": "AD"}
_DIGITS = {"len": 2}

Metrics = dict[int, dict[str, float]]  # by seed


class Study(NamedTuple):
    """What there is of one world.

    Attributes:
        title: Says what the data are.
        note: How much was trained and played.
        points: Metrics by kind and setting; ``None`` is the setting of a dial nobody touched.
    """

    title: str
    note: str
    points: dict[str, dict[float | None, Metrics]]

    def settings(self, kind: str) -> list[float]:
        """Those of a kind that are numbers, ascending."""
        return sorted(setting for setting in self.points[kind] if setting is not None)


def read_studies(folder: Path) -> dict[World, Study]:
    """All results of the study under a folder, finished or not; other files are left out.

    Raises:
        DataFormatError: There are none, one is damaged or there twice, or they do not compare.
    """
    parts: dict[World, list[Result]] = defaultdict(list)
    for _, result in read_parts(folder, STUDY, KEYS):
        parts[world_of(result)].append(result)
    return {world: _study(world, parts[world]) for world in sorted(parts)}


def _study(world: World, parts: list[Result]) -> Study:
    env, synthetic, fingerprint, max_len = world
    title = f"{env}, {'SYNTHETIC world' if synthetic else 'real rows'} {fingerprint}, T {max_len}"
    sizes = {(part["episodes"], part["sessions"]) for part in parts}
    if len(sizes) > 1:
        raise DataFormatError(
            f"Results of {title} differ in (training sessions, test sessions): {sorted(sizes)}. "
            "Give a folder that holds one of them."
        )
    points: dict[str, dict[float | None, Metrics]] = {
        kind: {} for kind in (DIAL, RETRAINED, FLAT, SWEEP)
    }
    for part in parts:
        for point in part["points"]:
            seeds = points[part["kind"]].setdefault(point["setting"], {})
            if part["seed"] in seeds:
                raise DataFormatError(
                    f"Results of {title} hold {part['kind']} {point['setting']}, seed "
                    f"{part['seed']}, twice. Give a folder that holds one of them."
                )
            seeds[part["seed"]] = point["metrics"]
    ((episodes, sessions),) = sizes
    note = f"{episodes:,} training sessions, {sessions:,} test sessions a seed"
    return Study(title, note, points)


def markdown(studies: dict[World, Study]) -> str:
    """The tables of every world: the dial, and the agents without one."""
    return "\n".join(_tables(study) for study in studies.values())


def _tables(study: Study) -> str:
    lines = [f"### {study.title}", ""]
    if study.points[DIAL]:
        lines += [*_dial_table(study), "", verdict(study), ""]
    for kind, title in ((FLAT, "flat, penalty"), (SWEEP, "MOFIR, weight of utility")):
        if study.points[kind]:
            lines += [*_table(study, kind, title), ""]
    note = (
        f"± is a 95 % interval over seeds; {study.note}. Distance: the largest of a seed. "
        "Differences are paired by seed: the same test sessions."
    )
    return "\n".join([*lines, note, ""])


def _dial_table(study: Study) -> list[str]:
    names = ["target", "seeds", "long tail", "distance", *COLUMNS.values(),
             "R_each, retrained", "dial - retrained"]  # fmt: skip
    rows = [names, ["--:"] * len(names)]
    for target in study.settings(DIAL):
        seeds, retrained = study.points[DIAL][target], study.points[RETRAINED].get(target, {})
        rows.append([
            f"{target:g}", str(len(seeds)), cell(seeds, SHARE), f"{distance(study, target):.3f}",
            *(cell(seeds, name) for name in COLUMNS), cell(retrained, WORTH),
            _interval(differences(study, target), "+"),
        ])  # fmt: skip
    if own := study.points[DIAL].get(None):
        cells = [cell(own, SHARE), "", *(cell(own, name) for name in COLUMNS)]
        rows.append(["its own choice", str(len(own)), *cells, "", ""])
    return [f"| {' | '.join(row)} |" for row in rows]


def _table(study: Study, kind: str, title: str) -> list[str]:
    names = [title, "seeds", "long tail", *COLUMNS.values()]
    rows = [names, ["--:"] * len(names)]
    for setting in study.settings(kind):
        seeds = study.points[kind][setting]
        cells = [cell(seeds, SHARE), *(cell(seeds, name) for name in COLUMNS)]
        rows.append([f"{setting:g}", str(len(seeds)), *cells])
    return [f"| {' | '.join(row)} |" for row in rows]


def verdict(study: Study) -> str:
    """In words: whether the dial does what it says, and what it costs."""
    targets = study.settings(DIAL)
    return " ".join([*_obedience(study, targets), *_cost(study, targets)])


def _obedience(study: Study, targets: list[float]) -> list[str]:
    """Whether measured shares follow the targets."""
    if not targets:
        return []
    broken = [
        f"from target {low:g} to {high:g} seed {seed}'s goes from {before:.3f} to {after:.3f}"
        for low, high in pairwise(targets)
        for seed, before, after in _shares(study, low, high)
        if after <= before
    ]
    sentence = "Measured long-tail shares are monotone: they rise with every target in every seed"
    if broken:
        sentence = f"Measured long-tail shares are not monotone: {'; '.join(broken)}"
    farthest = max(targets, key=lambda target: distance(study, target))
    return [
        f"{sentence}.",
        f"The largest distance from a target is {distance(study, farthest):.3f}, at {farthest:g}.",
    ]


def _cost(study: Study, targets: list[float]) -> list[str]:
    """What not training for each target loses."""
    losses = {target: [-value for value in differences(study, target)] for target in targets}
    means = {target: mean_and_ci95(values)[0] for target, values in losses.items() if values}
    if not means:
        return []
    worst = max(means, key=means.__getitem__)
    found = f"is {_interval(losses[worst])}, at target {worst:g}"
    if means[worst] <= 0:
        found = "is none: at no target is its mean lower"
    return [f"The dial's largest loss of R_each against the retrained agent {found}."]


def distance(study: Study, target: float) -> float:
    """How far a measured long-tail share is from the target, in the seed where it is farthest."""
    return max(abs(one[SHARE] - target) for one in study.points[DIAL][target].values())


def differences(study: Study, target: float) -> list[float]:
    """R_each of the dial less that of the agent trained for the target, of each seed with both."""
    dial, retrained = study.points[DIAL][target], study.points[RETRAINED].get(target, {})
    return [dial[seed][WORTH] - retrained[seed][WORTH] for seed in sorted(dial.keys() & retrained)]


def _shares(study: Study, low: float, high: float) -> list[tuple[int, float, float]]:
    """(seed, share at one target, share at the other)."""
    before, after = study.points[DIAL][low], study.points[DIAL][high]
    both = sorted(before.keys() & after)
    return [(seed, before[seed][SHARE], after[seed][SHARE]) for seed in both]


def cell(seeds: Metrics, name: str) -> str:
    """A metric's mean and interval over seeds, empty where there is none."""
    return _interval([one[name] for one in seeds.values()], digits=_DIGITS.get(name, 3))


def _interval(values: list[float], sign: str = "", digits: int = 3) -> str:
    if not values:
        return ""
    mean, half = mean_and_ci95(values)
    spread = f" ± {half:.{digits}f}" if len(values) > 1 else ""
    return f"{mean:{sign}.{digits}f}{spread}"
