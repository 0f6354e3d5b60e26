"""The result table: mean and 95 % interval over seeds, beside the published row."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from benchmarks.paper import METHODS, published
from benchmarks.registry import AGENTS, LEARNERS, task_of
from benchmarks.results import Result, World, world_of
from benchmarks.statistics import mean_and_ci95
from kuaisim_gym.envs.tasks import TASKS

CEILING = "expected-oracle+quota"
CONTROLS = {
    "dsrm-hrl": (
        "quality+quota", "ppo+quota", "flat", "flat+quota", "hrl", "hrl+ce", "hrl+rce", "hrl+tce",
        "hrl+bod", "dsrm-hrl-logged",
    ),
    "hsrl": ("ppo", "hsrl-no-residual", "hsrl-no-token-credit"),
    "hsrl+quota": ("quality+quota", "ppo+quota", "hrl"),
    "hsrl+dsrm": ("hsrl+quota", "dsrm-hrl"),
}  # fmt: skip
_METHOD_OF = {agent: method for method, agent in METHODS.items()}
_DIGITS = {"len": 2, "r_cum": 2, "return_time": 2}


def by_world(results: list[Result]) -> dict[World, dict[str, list[Result]]]:
    """Results by world and agent, agents in the registry's order."""
    worlds: dict[World, dict[str, list[Result]]] = defaultdict(lambda: defaultdict(list))
    known = {agent: place for place, agent in enumerate(AGENTS)}
    for result in sorted(results, key=lambda one: known.get(one["agent"], len(known))):
        worlds[world_of(result)][result["agent"]].append(result)
    return worlds


def markdown(results: list[Result]) -> str:
    """All tables, one for each environment, dataset and session length."""
    return "\n".join(_table(world, agents) for world, agents in sorted(by_world(results).items()))


def summary(results: list[Result]) -> str:
    """One table of whole sessions with fairness: a row an agent, a column a world and a length."""
    worlds = {
        world: agents
        for world, agents in sorted(by_world(results).items())
        if task_of(world[0]) == "session"
    }
    titles = [
        f"{env.removesuffix('-Fair-v0')} {'SYNTHETIC' if synthetic else 'real'}, T = {max_len}"
        for env, synthetic, _, max_len in worlds
    ]
    lines = ["| Len, R_each | " + " | ".join(titles) + " |", "|---|" + "--:|" * len(titles)]
    for agent in AGENTS:
        cells = [_len_and_reward(agents.get(agent, [])) for agents in worlds.values()]
        if any(cells):
            lines.append("| " + " | ".join([agent, *cells]) + " |")
    return "\n".join(lines)


def _len_and_reward(runs: list[Result]) -> str:
    """Both with 95 % intervals over seeds; empty without runs."""
    if not runs:
        return ""
    length, of_length = mean_and_ci95([one["metrics"]["len"] for one in runs])
    reward, of_reward = mean_and_ci95([one["metrics"]["r_each"] for one in runs])
    return f"{length:.2f} ± {of_length:.2f}, {reward:.3f} ± {of_reward:.3f}"


def _table(world: World, agents: dict[str, list[Result]]) -> str:
    env, synthetic, fingerprint, max_len = world
    kind = "SYNTHETIC world" if synthetic else "real rows"
    first = next(iter(agents.values()))[0]
    task = task_of(env)
    columns = TASKS[task].columns
    last = ["Len / ceiling", "train s", "published Len"] if task == "session" else ["train s"]
    lines = [
        f"### {env}, {first['dataset']['name']} ({kind}, {fingerprint}), max_len {max_len}",
        "",
        "| " + " | ".join(["agent", "seeds", *columns.values(), *last]) + " |",
        "|---|--:|" + "--:|" * len([*columns, *last]),
    ]
    lengths = {
        agent: mean_and_ci95([one["metrics"]["len"] for one in runs])[0]
        for agent, runs in agents.items()
    }
    ceiling = lengths.get(CEILING)
    theirs = published(first["dataset"]["name"], max_len) if "-Fair-" in env else {}
    for agent, runs in agents.items():
        cells = [agent, str(len(runs))]
        for name in columns:
            mean, half = mean_and_ci95([one["metrics"][name] for one in runs])
            if len(runs) == 1:
                half = runs[0]["metrics"][f"{name}_ci95"]
            digits = _DIGITS.get(name, 3)
            cells.append(f"{mean:.{digits}f} ± {half:.{digits}f}")
        seconds = np.mean([one["train"]["seconds"] for one in runs])
        trained = f"{seconds:.0f}" if seconds else ""
        if task == "session":
            share = "" if ceiling is None else f"{lengths[agent] / ceiling:.3f}"
            cells += [share, trained, theirs.get(_METHOD_OF.get(agent, ""), {}).get("len", "")]
        else:
            cells.append(trained)
        lines.append("| " + " | ".join(cells) + " |")
    sessions = first["eval"]["sessions"]
    lines += ["", *([*_verdict(lengths), *_paired(agents)] if task == "session" else [])]
    note = (
        f"± is a 95 % interval over seeds (over sessions where there is one seed); {sessions:,} "
        "test sessions a seed."
    )
    if task == "session":
        note += (
            f" Ceiling: {CEILING}. Published: the paper's mean ± standard deviation, measured in "
            "its own simulator, where R has another scale."
        )
    return "\n".join([*lines, note, ""])


def _verdict(lengths: dict[str, float]) -> list[str]:
    """Which learned agent has the longest sessions, and what that is worth."""
    learned = {agent: length for agent, length in lengths.items() if agent in LEARNERS}
    if not learned:
        return []
    longest = max(learned, key=learned.__getitem__)
    shares = [
        f"{learned[longest] / lengths[reference]:.3f} of {reference}"
        for reference in (CEILING, "train-oracle+quota")
        if reference in lengths
    ]
    sentence = f"Longest sessions of a learned agent: {longest}, Len {learned[longest]:.2f}"
    return [", ".join([sentence, *shares]) + ".", ""]


def _paired(agents: dict[str, list[Result]]) -> list[str]:
    """Our agents against their controls: all agents of a seed meet the same users."""
    metrics = {
        agent: {one["seed"]: one["metrics"] for one in runs} for agent, runs in agents.items()
    }
    lines = []
    for agent, control in [(one, other) for one, others in CONTROLS.items() for other in others]:
        ours, theirs = metrics.get(agent, {}), metrics.get(control, {})
        seeds = sorted(ours.keys() & theirs.keys())
        if len(seeds) < 2:
            continue
        differences = []
        for name, label, digits in (("len", "Len", 2), ("r_each", "R_each", 4)):
            mean, half = mean_and_ci95([ours[seed][name] - theirs[seed][name] for seed in seeds])
            differences.append(f"{label} {mean:+.{digits}f} ± {half:.{digits}f}")
        lines.append(f"* {agent} less {control}, seed by seed: {', '.join(differences)}.")
    return [*lines, ""] if lines else []
