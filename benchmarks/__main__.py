"""Command line: ``python -m benchmarks COMMAND``; ``--help`` names the commands."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import datasets, paper, stability, tuning
from benchmarks import report as all_tables
from benchmarks.figures import command as figures
from benchmarks.pareto import command as pareto
from benchmarks.plots import plot_all
from benchmarks.purify import report, study
from benchmarks.registry import AGENTS, agents_for, task_of
from benchmarks.results import read_result, read_results
from benchmarks.run import Run, run
from benchmarks.suite import expand, run_all
from benchmarks.tables import markdown, summary
from dsrm_agents.baselines.reference import REFERENCES
from kuaisim_gym import ENVIRONMENTS, load_dataset
from kuaisim_gym.config import RESPONSE_MODELS, SessionConfig
from kuaisim_gym.envs.assembly import shared_dataset
from kuaisim_gym.envs.tasks import TASKS
from kuaisim_gym.errors import ConfigError, KuaiSimError

# The slow ones first: two processes then finish together.
DEMO_AGENTS = ("dsrm-hrl", "hrl", "td3", "ppo", "a2c", *REFERENCES)
DEMO_EPISODES, SMOKE_EPISODES = 3000, 64


def _count(text: str) -> int:
    """An integer of at least one."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--env", choices=tuple(ENVIRONMENTS), help=f"default: {Run.env}")
    shared.add_argument("--dataset", metavar="PATH", help="folder of real data; default: synthetic")
    shared.add_argument("--episodes", type=int, default=20_000, help="training sessions")
    shared.add_argument("--sessions", type=int, default=1000, help="evaluation sessions")
    shared.add_argument("--threads", type=_count, default=1, help="torch threads a process")
    shared.add_argument("--out", type=Path, required=True, help="folder of the result files")
    shared.add_argument(
        "--tensorboard", type=Path, metavar="DIR", help="log training for TensorBoard there"
    )

    one = commands.add_parser("run", parents=[shared], help="one agent, one seed")
    one.add_argument("--agent", required=True, choices=AGENTS)
    one.add_argument("--max-len", type=int, help="default: 30, or what the task has")
    one.add_argument("--seed", type=int, default=11)

    many = commands.add_parser("suite", parents=[shared], help="agents x lengths x seeds")
    many.add_argument(
        "--table",
        type=int,
        choices=tuple(paper.TABLES),
        help="all runs of one of the paper's tables, on both synthetic worlds; then the table",
    )
    many.add_argument(
        "--agents", nargs="+", choices=AGENTS, help="default: all that the data allow"
    )
    many.add_argument("--max-len", type=int, nargs="+", help="default: 30, or what the task has")
    many.add_argument("--seeds", type=int, nargs="+", default=list(paper.SEEDS))
    many.add_argument("--jobs", type=_count, default=2, help="processes side by side")

    search = commands.add_parser(
        "tune", parents=[shared], help="search an agent's hyper-parameters on the train simulator"
    )
    search.add_argument("agent", metavar="AGENT", choices=tuple(tuning.SPACES))
    search.add_argument("--max-len", type=int, help="default: 30")
    search.add_argument("--trials", type=_count, default=20, help="those already there included")
    search.add_argument("--seed", type=int, default=0)

    demo = commands.add_parser("demo", help="every agent once on the synthetic world, small")
    demo.add_argument("--smoke", action="store_true", help="just enough to see that it runs")
    demo.add_argument("--jobs", type=_count, default=2)
    demo.add_argument("--out", type=Path, default=Path("results/demo"))

    facts = commands.add_parser("datasets", help="what the data are: Table 1 and Figure 2")
    facts.add_argument(
        "--dataset",
        metavar="NAME[=PATH]",
        action="append",
        default=[],
        help="kuairec=DIR for real data, kuairec for the synthetic world; default: both worlds",
    )
    facts.add_argument("--models", nargs="+", default=["factor"], choices=RESPONSE_MODELS)
    facts.add_argument("--out", type=Path, required=True, help="folder of the JSON and PNG files")

    states = commands.add_parser("purify", help="what purifiers remove and keep: worlds x seeds")
    states.add_argument("--envs", nargs="+", choices=study.ENVS, help="default: what there is")
    states.add_argument("--seeds", type=int, nargs="+", default=[11, 15, 19])
    states.add_argument("--purifiers", nargs="+", choices=study.STUDIED, help="default: what fits")
    states.add_argument("--dataset", metavar="PATH", help="folder of real data; default: synthetic")
    states.add_argument(
        "--events",
        type=_count,
        nargs="+",
        default=[],
        metavar="N",
        help="synthetic KuaiRec worlds with N logged rows a user instead of the usual ones",
    )
    states.add_argument("--propensity", type=float, help="power of inverse propensities in targets")
    states.add_argument("--updates", type=_count, help="gradient steps a fit; default: as tuned")
    states.add_argument("--jobs", type=_count, default=2, help="worlds side by side")
    where = states.add_mutually_exclusive_group(required=True)
    where.add_argument("--out", type=Path, help="folder of the result files")
    where.add_argument("--table", type=Path, metavar="DIR", help="only print the tables of DIR")

    drawn = commands.add_parser("figures", help="the paper's figures about purification")
    figures.add_arguments(drawn)
    dial = commands.add_parser("pareto", help="one agent's fairness dial beside retrained agents")
    pareto.add_arguments(dial)
    curves = commands.add_parser("stability", help="how steadily agents learn, from run results")
    stability.add_arguments(curves)

    for name, text in (
        ("table", "print the tables"),
        ("plot", "write the figures as PNG"),
        ("report", "write all tables into DIR/README.md"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("folder", type=Path, metavar="DIR")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        COMMANDS[options.command](options)
    except KuaiSimError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    print(run(_one(options), options.out, tensorboard=options.tensorboard))


def _tune(options: argparse.Namespace) -> None:
    path = tuning.tune(_one(options), options.trials, options.out)
    print(tuning.markdown(read_result(path)), path, sep="\n\n")


def _one(options: argparse.Namespace) -> Run:
    """The one run that the options of ``run`` and ``tune`` are about, in this process."""
    torch.set_num_threads(options.threads)
    env = options.env or Run.env
    max_len = _usual_max_len(env) if options.max_len is None else options.max_len
    return _base(options, env, options.agent, max_len, options.seed)


def _usual_max_len(env: str) -> int:
    usual: int = TASKS[task_of(env)].defaults.get("max_len", SessionConfig.max_len)
    return usual


def _suite(options: argparse.Namespace) -> None:
    if options.table is None:
        envs = [options.env or Run.env]
        name = ENVIRONMENTS[envs[0]]["name"]
        agents = options.agents or agents_for(shared_dataset(name, options.dataset, 0))
        lengths = options.max_len or [_usual_max_len(envs[0])]
    else:
        _refuse_beside_table(options)
        agents, lengths = paper.agents_of(options.table), paper.MAX_LENS
        envs = list(paper.ENVS.values())
    runs = []
    for env in envs:
        base = _base(options, env, agents[0], lengths[0], options.seeds[0])
        runs += expand(base, agents, lengths, options.seeds)
    run_all(runs, options.out, options.jobs, options.threads, options.tensorboard)
    if options.table is not None:
        print(paper.markdown(read_results(options.out), (options.table,)))


def _refuse_beside_table(options: argparse.Namespace) -> None:
    """A table says what runs it consists of; seeds and sizes are anybody's choice."""
    given = {
        "--agents": options.agents,
        "--env": options.env,
        "--max-len": options.max_len,
        "--dataset": options.dataset,
    }
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--table {options.table} fixes {name}: leave that out.")


def _base(options: argparse.Namespace, env: str, agent: str, max_len: int, seed: int) -> Run:
    return Run(
        agent=agent,
        env=env,
        dataset=options.dataset,
        max_len=max_len,
        seed=seed,
        episodes=options.episodes,
        sessions=options.sessions,
    )


def _datasets(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    pairs = [source.partition("=") for source in options.dataset or paper.ENVS]
    loaded = [load_dataset(name, path if given else None) for name, given, path in pairs]
    descriptions = [datasets.describe(dataset, tuple(options.models)) for dataset in loaded]
    print(datasets.markdown(descriptions))
    for description in descriptions:
        print(datasets.write_description(options.out, description))
    print(datasets.plot(loaded, options.out))


def _purify(options: argparse.Namespace) -> None:
    if options.table is None:
        worlds = study.plan(
            options.envs,
            options.seeds,
            options.purifiers,
            dataset=options.dataset,
            events=options.events,
            updates=options.updates,
            propensity=options.propensity,
        )
        study.run_all(worlds, options.out, options.jobs)
    print(report.markdown(report.read_studies(options.table or options.out)))


def _demo(options: argparse.Namespace) -> None:
    load_dataset("kuairec")  # built once, before the processes need it
    episodes, sessions = (SMOKE_EPISODES, 100) if options.smoke else (DEMO_EPISODES, 1000)
    # A demo always runs, and overwrites nothing.
    out = options.out / time.strftime("%Y-%m-%dT%H-%M-%S")
    base = Run("random", episodes=episodes, sessions=sessions)
    runs = expand(base, DEMO_AGENTS, [base.max_len], [base.seed])
    run_all(runs, out, options.jobs, threads=1)
    results = read_results(out)
    print(markdown(results))
    print(*plot_all(results, out), sep="\n")


def _table(options: argparse.Namespace) -> None:
    results = read_results(options.folder)
    parts = (paper.markdown(results), summary(results), markdown(results))
    print(*filter(None, parts), sep="\n\n")


def _plot(options: argparse.Namespace) -> None:
    print(*plot_all(read_results(options.folder), options.folder), sep="\n")


def _report(options: argparse.Namespace) -> None:
    print(all_tables.write(options.folder))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "run": _run,
    "suite": _suite,
    "tune": _tune,
    "demo": _demo,
    "datasets": _datasets,
    "purify": _purify,
    "figures": figures.main,
    "pareto": pareto.main,
    "stability": stability.main,
    "table": _table,
    "plot": _plot,
    "report": _report,
}


if __name__ == "__main__":
    sys.exit(main())
