"""The ``days`` command: a platform that is played day by day."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.days import report
from benchmarks.days.platforms import mean_reward, platform_of, play_days, stocks
from benchmarks.days.study import DaysStudy
from benchmarks.studies.results import read_result
from benchmarks.studies.study import run_study
from dsrm_agents import make_vec_env
from dsrm_agents.baselines.bands import Quota
from dsrm_agents.baselines.exploring import ExploringFilter
from dsrm_agents.baselines.reference import make_reference
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError, DataFormatError
from kuaisim_gym.simulator.lifecycle import Lifecycle, Timetable, before_first_day

ROOT = Path(__file__).parents[2]
ENV = "KuaiRec-Dynamic-v0"
LIFE = {"days": (1, 14), "sessions_per_day": 16, "arrivals": 20.0, "lifetime": 30.0}


def environment(small, n: int = 8, **options):
    settings = {"max_len": 4, "slate_size": 6, "action_type": "slate", "catalogue": LIFE} | options
    return make_vec_env(ENV, n, "test", 5, dataset=small, **settings)


def random_rule(env):
    return make_reference("random", env.batch)


@pytest.fixture
def wide(monkeypatch) -> None:
    """A small world, instead of the full one, with items for sessions of full length."""
    config = SyntheticConfig(
        n_users=300, n_test_users=60, n_items=1000, events_per_user=40, n_categories=6
    )
    world = synthetic_kuairec(seed=3, config=config)
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: world)


def command(out: Path, *more: str) -> int:
    sizes = ["--days", "4", "--train-days", "2", "--train-sessions", "64", "--sessions", "8"]
    return main(["days", "--env", ENV, "--seeds", "3", "--jobs", "1", *sizes, "--out", str(out),
                 *more])  # fmt: skip


# The days


def test_all_sessions_that_began_by_the_last_day_are_played_to_their_end(small) -> None:
    env, heard = environment(small), []
    played = play_days(random_rule(env), env, 4, heard.append)
    # Slots that end together begin together, so that a day can have a few sessions more than 16.
    counts = np.bincount(played.began, minlength=5)
    assert counts[0] == 0 and (counts[1:] >= 16).all() and len(counts) == 5
    assert heard == [1, 2, 3, 4] and len(played.concentration) == 4
    assert len(played.sessions) == counts.sum()
    first = played.sessions.slates[:, 0, 0]
    born = platform_of(env).timetable.born[first]
    # What is shown first was there on the day that the session began.
    assert (born + played.sessions.ages[:, 0, 0] == played.began).all()


def test_the_model_is_told_of_a_day_before_it_acts_on_it(small) -> None:
    env = environment(small)
    rule, seen = random_rule(env), []

    class Watching:
        def predict(self, *given, **options):
            seen.append(platform_of(env).day)
            return rule.predict(*given, **options)

    play_days(Watching(), env, 3, lambda day: seen.append(-day))
    for day in (1, 2, 3):
        assert seen.index(-day) < seen.index(day)
        assert all(earlier < day for earlier in seen[: seen.index(-day)])


def test_a_fixed_catalogue_has_no_days(small) -> None:
    env = environment(small, catalogue="fixed")
    with pytest.raises(ConfigError, match="a catalogue that changes"):
        play_days(random_rule(env), env, 3)


def test_stocks_are_told_apart_by_birth() -> None:
    born = np.array([0, 0, 1, 4, 5, 6, 9])
    gone = np.array([9, 3, 9, 9, 9, 9, 9])
    kinds = stocks(Timetable(born, gone), day=6, learned=4)
    assert {name: items.tolist() for name, items in kinds.items()} == {
        "logged": [0], "met": [2, 3], "newborn": [4, 5],
    }  # fmt: skip


def test_a_stock_alone_is_shown_and_rewarded(small) -> None:
    env = environment(small, n=200, catalogue=LIFE | {"sessions_per_day": 10**6})
    answers = env.batch.simulator.expected.probability(
        env.batch.simulator.users[:, None], np.arange(small.n_items)[None]
    ).mean(axis=0)
    order = np.argsort(answers)
    rewards = [mean_reward(random_rule(env), env, stock, 3) for stock in (order[:60], order[-60:])]
    expected = [answers[order[:60]].mean(), answers[order[-60:]].mean()]
    assert rewards == pytest.approx(expected, abs=0.03) and expected[1] - expected[0] > 0.2
    slates = env.batch.core.state.slates
    assert set(slates[slates >= 0].tolist()) <= set(order[-60:].tolist())


# The command


def test_one_command_trains_plays_and_draws(wide, tmp_path: Path, tmp_path_factory, capsys) -> None:
    agents = ["random", "filter+quota", report.ORACLE, "hrl"]
    assert command(tmp_path, "--agents", *agents) == 0
    printed = capsys.readouterr().out
    results = {path.name: read_result(path) for path in sorted(tmp_path.glob("*.json"))}
    assert len(results) == 4
    hrl = results[f"days_hrl_{ENV}_kuairec-synthetic_T30_seed3.json"]
    for mode in report.MODES:
        assert len(hrl[mode]["daily"]["gini"]) == 4
        assert hrl[mode]["metrics"]["len"] >= 1
    # It has gone on learning, and acts differently.
    assert hrl["frozen"]["metrics"] != hrl["continual"]["metrics"]
    assert "continual" not in results[f"days_random_{ENV}_kuairec-synthetic_T30_seed3.json"]
    assert "| hrl, continual | 1 |" in printed
    assert len([*tmp_path.glob("*.png")]) == 1
    apart = tmp_path_factory.mktemp("frozen")
    assert command(apart, "--agents", "hrl", "--no-continual") == 0
    (frozen,) = map(read_result, apart.glob("*.json"))
    assert frozen["frozen"]["metrics"] == hrl["frozen"]["metrics"] and "continual" not in frozen
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert command(tmp_path, "--agents", *agents) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    with pytest.raises(ConfigError, match="other data or settings"):
        run_study(DaysStudy("random", ENV, 3, days=5, train_days=2), tmp_path)


def made(agent: str, seed: int, reward: float, **stocks: float) -> dict:
    """A result of a few numbers."""
    names = dict.fromkeys(report.METRICS, 0.5) | {"r_each": reward, "first_exposure": None}
    daily = {name: [0.1, reward] for name in ("concentration", "gini", "new_share", "reward")}
    dataset = {"name": "kuairec", "synthetic": True, "fingerprint": "0" * 16}
    return {
        "study": "days", "agent": agent, "env": ENV, "max_len": 30, "seed": seed,
        "dataset": dataset, "days": 2, "train_days": 1, "train_sessions": 8, "sessions": 4,
        "trials": 0, "frozen": {"metrics": names, "daily": daily}, "stocks": stocks,
        "versions": {}, "commit": "",
    }  # fmt: skip


def test_leads_are_over_chance_in_units_of_the_oracles() -> None:
    results = [
        made("random", 1, 0.4, logged=0.2, met=0.3, newborn=0.4),
        made("mine", 1, 0.6, logged=0.5, met=0.5, newborn=0.5),
        made(report.ORACLE, 1, 0.9, logged=0.8, met=0.7, newborn=0.8),
    ]
    (days,) = report.worlds(results)
    assert days.lead("mine", "logged") == pytest.approx([0.5])
    assert days.lead("mine", "met") == pytest.approx([0.5])
    assert days.lead("mine", "newborn") == pytest.approx([0.25])
    assert days.regret("mine", "frozen") == pytest.approx([0.3])
    text = report.tables(days)
    assert "| mine | 50.0 | 50.0 | 25.0 | 50 % |" in text
    assert "| mine | 0.100 | 0.600 | +0.500 | 0.600 |" in text
    other = made("mine", 2, 0.6, logged=0.5, met=0.5, newborn=0.5) | {"days": 3}
    with pytest.raises(DataFormatError, match="differ in days"):
        report.worlds([*results, other])


# Items that sessions teach


def test_answers_teach_what_newcomers_are_worth(small) -> None:
    env = environment(small, n=64, catalogue=LIFE | {"sessions_per_day": 64}, max_len=10)
    explorer = ExploringFilter(env.batch, Quota(env.batch))
    before = explorer.offsets[1].copy()
    played = play_days(explorer, env, 6)
    newcomers = platform_of(env).timetable.born >= 1
    mean, variance = explorer.offsets
    counts = np.bincount(
        played.sessions.slates[played.sessions.slates >= 0], minlength=small.n_items
    )
    often = newcomers & (counts >= 30)
    assert often.sum() > 20
    assert (variance[often] < before[often] / 3).all()
    assert (variance[counts == 0] == before[counts == 0]).all()
    answers = env.batch.simulator.expected.probability(
        env.batch.simulator.users[:, None], np.arange(small.n_items)[None]
    ).mean(axis=0)
    first = env.batch.belief().model.quality[: small.n_items]  # what features say
    know = [np.corrcoef(score[often], answers[often])[0, 1] for score in (first, first + mean)]
    assert know[0] < 0.3 and know[1] > 0.6


def test_one_answer_is_the_textbooks_update(small) -> None:
    env = environment(small, n=1, slate_size=2, catalogue=LIFE | {"sessions_per_day": 9})
    explorer = ExploringFilter(env.batch, Quota(env.batch))
    observation = env.reset()
    prior = 1.0 / explorer.offsets[1]
    slates, _ = explorer.predict(observation)
    model, belief = env.batch.belief().model, env.batch.belief()
    taste = model.vectors[slates[0]] @ belief.mean[0, 1:]
    score = model.quality[slates[0]] + belief.mean[0, 0] + taste
    p, slope = model.expected(score), model.slope(score)
    observation, *_ = env.step(slates)
    answers = env.batch.core.state.responses[0, 0]
    explorer.predict(observation)
    noise = p * (1 - p) / slope**2
    precision = prior[slates[0]] + 1 / noise
    assert explorer.offsets[1][slates[0]] == pytest.approx(1 / precision)
    assert explorer.offsets[0][slates[0]] == pytest.approx(
        (answers - p) / slope / noise / precision
    )


def test_a_platform_that_opens_anew_is_learned_anew(small) -> None:
    env = environment(small, n=8, catalogue=LIFE | {"sessions_per_day": 8, "days": (1, 2)})
    explorer = ExploringFilter(env.batch, Quota(env.batch))
    first = explorer.offsets[1].copy()
    observation = env.reset()
    for _ in range(3):
        observation, *_ = env.step(explorer.predict(observation)[0])
    assert (explorer.offsets[1] < first).any()
    env.seed(9)
    explorer.predict(env.reset())
    assert (explorer.offsets[1] == first).all() and not explorer.offsets[0].any()


# Trials


def test_trials_are_rows_of_each_newcomer_and_no_more(small) -> None:
    settings = {"seed": 2, "arrivals": 10.0, "days": (1, 9)}
    none, timetable = before_first_day(small, Lifecycle(**settings))
    tried, same = before_first_day(small, Lifecycle(**settings, trials=3))
    assert (same.born == timetable.born).all()
    newcomers, rows = timetable.born >= 1, np.bincount(small.log.items, minlength=small.n_items)
    logged = np.bincount(none.log.items, minlength=small.n_items)
    counts = np.bincount(tried.log.items, minlength=small.n_items)
    assert not logged[newcomers].any()
    assert (counts[newcomers] == np.minimum(rows, 3)[newcomers]).all()
    assert (counts[~newcomers] == rows[~newcomers]).all()
    other, _ = before_first_day(small, Lifecycle(**settings | {"seed": 3}, trials=3))
    assert other.fingerprint != tried.fingerprint
    with pytest.raises(ConfigError, match="trials"):
        Lifecycle(trials=-1)
