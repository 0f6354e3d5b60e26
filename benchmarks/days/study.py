"""The ``days`` command: agents on a platform whose items come and go.

An agent is trained on the first days of a platform of train users, which go by once. It then plays
the platform of test users from the first day to the last: frozen, and once more while it goes on
learning from the train users of the same day. Items come and go on the same days of all these
platforms, and on others for each seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from dsrm_agents import make_vec_env
from dsrm_agents.common.stateless import batch_of
from kuaisim_gym.config import check_whole
from kuaisim_gym.data import Dataset
from kuaisim_gym.metrics import Sessions
from kuaisim_gym.metrics.newcomers import daily
from kuaisim_gym.simulator.lifecycle import Lifecycle, before_first_day

from ..agents import Agent, find_agent
from ..commands import add_dataset_seed, add_jobs, add_out_or_table, count
from ..paper import SEEDS
from ..runs.judging import first_test_seed
from ..runs.record import TrainingRecord
from ..runs.settings import SEED_RANGE, Run, env_options
from ..studies.backends import results_of
from ..studies.results import Result, check_session_env, without_nan
from ..studies.study import Study
from .platforms import SPARE_DAYS, mean_reward, platform_of, play_days, stocks
from .plot import plot_all
from .report import METRICS, ORACLE, SIZES, STOCKS, STUDY, markdown, read_studies

# The oracle knows new items, too: what it earns more is the others' regret.
AGENTS = (
    "random", "popularity", "quality+quota", "filter+quota", "thompson+quota", ORACLE, "ppo",
    "maskable-ppo", "hrl", "dsrm-hrl", "hsrl", "hsrl+dsrm",
)  # fmt: skip
ENVS = ("KuaiRec-Dynamic-v0", "KuaiRand-Dynamic-v0")
STOCK_SESSIONS, STOCK_STEPS = 1000, 5


@dataclass(frozen=True)
class DaysStudy(Study):
    """An agent of one seed.

    Attributes:
        agent: As :func:`~benchmarks.agents.find_agent` takes it.
        env: An environment whose catalogue changes.
        seed: Seed of training, timetable and sessions.
        days: The last day.
        train_days: The last day of training.
        train_sessions: Sessions a day of the train users.
        sessions: Sessions a day of the test users, all played at once.
        trials: Rows of each newcomer that the log has when it comes.
        continual: Whether the agent is played once more while it goes on learning.
        dataset_seed: Seed of the synthetic world.
    """

    agent: str
    env: str = ENVS[0]
    seed: int = SEEDS[0]
    days: int = 30
    train_days: int = 10
    train_sessions: int = 512
    sessions: int = 64
    trials: int = 0
    continual: bool = True
    dataset_seed: int = 0

    markdown = staticmethod(markdown)

    def __post_init__(self) -> None:
        check_session_env(self.env)
        check_whole("train_days", self.train_days, 1)
        check_whole("days", self.days, self.train_days + 1)
        check_whole("train_sessions", self.train_sessions, 1)
        check_whole("sessions", self.sessions, 1)
        check_whole("trials", self.trials, 0)

    @property
    def run(self) -> Run:
        """World and seed, as of a run, whose numbers of sessions are not used."""
        return Run(self.agent, self.env, seed=self.seed, dataset_seed=self.dataset_seed)

    @property
    def name(self) -> str:
        trials = f"_trials{self.trials}" if self.trials else ""
        return f"{STUDY}_{find_agent(self.agent).name}_{self.run.world}{trials}_seed{self.seed}"

    def header(self) -> Result:
        sizes = {name: getattr(self, name) for name in SIZES}
        return {"study": STUDY, **self.run.header(), **sizes}

    def make(self, path: Path) -> Result:
        world, agent = _World(self), find_agent(self.agent)
        if agent.build is None:
            return {"frozen": world.play(None), "stocks": world.play_stocks(None)}
        env, hyperparams = world.train_env(1)
        model = agent.build(env, hyperparams, self.seed)
        record = TrainingRecord(self.train_days * self.train_sessions, progress=False)
        model.learn(record.episodes * self.run.max_len, record)
        result = {"frozen": world.play(model), "stocks": world.play_stocks(model)}
        if self.continual:
            result["continual"] = world.play(model, world.lessons(model))
        return result


class _World:
    """The platforms of a study, all with the same items on the same days.

    Args:
        study: The settings.
    """

    def __init__(self, study: DaysStudy) -> None:
        self.study, self.run = study, study.run
        self.agent: Agent = find_agent(study.agent)
        self.dataset: Dataset = self.run.load()
        self.fitted: Any = None
        if self.agent.build is not None:
            known, _ = before_first_day(self.dataset, self._lifecycle((1, study.days), None))
            self.fitted = self.agent.prepare(known, study.seed, False)

    def train_env(self, first: int) -> tuple[VecEnv, dict[str, Any]]:
        """The platform of train users from some day on, and the hyper-parameters of the model."""
        hyperparams = dict(self.agent.hyperparams)
        n_envs = hyperparams.pop("n_envs")
        options = {name: hyperparams.pop(name) for name in self.agent.wrapper_options}
        sessions = self.study.train_sessions
        env = self._env("train", n_envs, self._lifecycle((first, self._end), sessions))
        env.seed(self.study.seed * SEED_RANGE + first)
        return self.agent.wrap(env, self.fitted, options, True), hyperparams

    def lessons(self, model: BaseAlgorithm) -> Callable[[int], None]:
        """A function that lets a model learn, up to the beginning of a day."""
        assert isinstance(model, OnPolicyAlgorithm)
        env, _ = self.train_env(self.study.train_days + 1)
        model.set_env(env)
        platform = platform_of(env)

        def learn(day: int) -> None:
            while platform.day < day:
                model.learn(model.n_steps * env.num_envs, reset_num_timesteps=False)

        return learn

    def play(self, model: BaseAlgorithm | None, follow: Callable[[int], None] | None = None) -> Any:
        """Plays all days, and measures those after training, and each day."""
        study = self.study
        env = self._test_env(study.sessions, study.sessions)
        played = play_days(self._policy(model, env), env, study.days, follow)
        later = np.flatnonzero(played.began > study.train_days)
        batch, timetable = batch_of(env, STUDY), platform_of(env).timetable
        sessions = played.sessions.take(later)
        metrics = batch.summarise(sessions)
        by_day = daily(played.sessions, timetable)
        days = slice(0, study.days)
        return {
            "sessions": len(later),
            "metrics": without_nan({name: metrics[name] for name in METRICS}),
            "newborn": without_nan(_newborn(sessions, timetable.born > study.train_days)),
            "daily": {
                **{name: getattr(by_day, name)[days].tolist() for name in by_day._fields},
                "concentration": played.concentration,
            },
        }

    def play_stocks(self, model: BaseAlgorithm | None) -> dict[str, float]:
        """Mean reward on stocks of one size that are there halfway from training to the end."""
        env, study = self._test_env(STOCK_SESSIONS, None), self.study
        policy, halfway = self._policy(model, env), (study.train_days + study.days) // 2
        kinds = stocks(platform_of(env).timetable, halfway, study.train_days)
        size, rng = min(map(len, kinds.values())), np.random.default_rng(study.seed)
        rewards: dict[str, float] = {"size": size}
        for kind in STOCKS:
            stock = np.sort(rng.choice(kinds[kind], size, replace=False))
            rewards[kind] = mean_reward(policy, env, stock, STOCK_STEPS)
        return rewards

    @property
    def _end(self) -> int:
        return self.study.days + SPARE_DAYS

    def _lifecycle(self, days: tuple[int, int], sessions: int | None) -> Lifecycle:
        """The same timetable, whatever the days that are played."""
        usual, n_items = Lifecycle(), self.dataset.n_items
        later = n_items - round(usual.initial * n_items)
        return Lifecycle(
            days=days,
            sessions_per_day=sessions,
            arrivals=max(later, 1) / self.study.days,
            trials=self.study.trials,
            seed=self.study.seed,
        )

    def _test_env(self, n_envs: int, sessions: int | None) -> VecEnv:
        env = self._env("test", n_envs, self._lifecycle((1, self._end), sessions))
        env.seed(first_test_seed(self.run))
        return self.agent.wrap(env, self.fitted, self.agent.hyperparams, False)

    def _env(self, split: str, n_envs: int, lifecycle: Lifecycle) -> VecEnv:
        options = env_options(self.run, self.agent, self.fitted)
        return make_vec_env(
            self.run.env, n_envs, split, dataset=self.dataset, catalogue=lifecycle, **options
        )

    def _policy(self, model: BaseAlgorithm | None, env: VecEnv) -> Any:
        return model if self.agent.rule is None else self.agent.rule(batch_of(env, STUDY))


def _newborn(sessions: Sessions, newborn: NDArray[np.bool_]) -> dict[str, float]:
    """Share of exposures that some items had, and their mean response."""
    shown = sessions.slates >= 0
    new = newborn[sessions.slates[shown]]
    responses = sessions.responses[shown][new]
    reward = float(responses.mean(dtype=np.float64)) if new.any() else float("nan")
    return {"share": float(new.mean()), "reward": reward}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add = parser.add_argument
    add("--agents", nargs="+", default=list(AGENTS), metavar="AGENT", help="rows of the table")
    add("--env", nargs="+", default=list(ENVS), help="environments whose catalogue changes")
    add_dataset_seed(parser)
    add(
        "--seeds",
        type=int,
        nargs="+",
        default=list(SEEDS),
        help="each of an agent, its sessions and the arrivals",
    )
    for name, text in (
        ("days", "last day"),
        ("train_days", "last day of training"),
        ("train_sessions", "sessions a day of train users"),
        ("sessions", "sessions a day of test users"),
    ):
        default = getattr(DaysStudy, name)
        flag = f"--{name.replace('_', '-')}"
        add(flag, type=count, default=default, metavar="N", help=text)
    text = "rows of each newcomer that the log has when it comes"
    add("--trials", type=int, default=DaysStudy.trials, metavar="N", help=text)
    text = "play agents once more while they go on learning; --no-continual: frozen alone"
    action = argparse.BooleanOptionalAction
    add("--continual", action=action, default=DaysStudy.continual, help=text)
    add_jobs(parser)
    add_out_or_table(parser)


def main(options: argparse.Namespace) -> None:
    """Makes the missing studies, prints the tables and draws the figures.

    Raises:
        ConfigError: A setting is out of range, or a result has other settings.
        DataFormatError: The folder holds no results, or results that cannot be compared.
    """

    def planned() -> Iterable[Study]:
        settings = (*SIZES, "continual", "dataset_seed")
        sizes = {name: getattr(options, name) for name in settings}
        for env in options.env:
            for seed in options.seeds:
                for agent in options.agents:
                    yield DaysStudy(agent, env, seed, **sizes)

    results = results_of(options, planned, read_studies, markdown)
    if options.table is None:
        print(*plot_all(results, options.out), sep="\n")
