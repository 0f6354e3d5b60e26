"""The ``ab`` command: tests between policies on simulated users."""

from __future__ import annotations

import copy
import re
import runpy
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.ab import report
from benchmarks.ab.calibration import drawn_tests, false_positives, power_table, spread_of
from benchmarks.ab.interference import InterferenceStudy
from benchmarks.ab.sessions import (
    METRICS,
    Outcomes,
    SplitPolicy,
    find_arm,
    mixed,
    outcomes_of,
    treated_users,
)
from benchmarks.ab.study import AbStudy
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from benchmarks.studies.study import run_study
from dsrm_agents import evaluate, make_vec_env
from dsrm_agents.experiments import SequentialTest, assign
from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec
from kuaisim_gym.errors import ConfigError, DataFormatError

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results" / "ab"
ARMS = ("quality+quota", "filter")


@pytest.fixture
def wide(monkeypatch) -> None:
    """A small world, instead of the full one, with enough users for two arms."""
    config = SyntheticConfig(
        n_users=400, n_test_users=240, n_items=600, events_per_user=30, n_categories=6
    )
    world = synthetic_kuairec(seed=3, config=config)
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: world)


def noise(seed: int, effect: float = 0.0, n_users: int = 80) -> Outcomes:
    """Three sessions of each user, whose steps are users' levels and noise."""
    rng = np.random.default_rng(seed)
    users = np.tile(np.arange(n_users), 3)
    steps = 10 + rng.normal(0, 1, n_users)[users] + rng.normal(0, 1, len(users)) + effect
    columns = dict.fromkeys(
        ("sessions", "reward", "exposures", "popular", "longtail"), 0 * steps + 1
    )
    return Outcomes(users, columns | {"steps": steps})


# Sessions


def environment(small, n: int = 30):
    return make_vec_env(
        "KuaiRec-Fair-v0", n, "test", 5, dataset=small, max_len=4, slate_size=6, action_type="slate"
    )


def test_what_a_test_sees_adds_up_to_the_metrics(small) -> None:
    env = environment(small)
    sessions = evaluate(find_arm("random").rule(env.batch), env, 60)
    outcomes, metrics = outcomes_of(sessions, env.batch), env.batch.summarise(sessions)
    for name, metric in METRICS.items():
        assert outcomes.value(metric) == pytest.approx(metrics[name])
    popular = outcomes.columns["popular"].sum() / outcomes.columns["exposures"].sum()
    assert abs(2 * popular - 1) == pytest.approx(metrics["ad"])


def test_arms_on_one_platform_are_those_of_two_where_nothing_changes(small) -> None:
    """Each session of a split policy is, to the last bit, that of its user's arm alone."""
    alone = []
    for arm in ARMS:
        env = environment(small)
        alone.append(evaluate(find_arm(arm).rule(env.batch), env, 60))
    env = environment(small)
    treated = treated_users(env.batch, "x", 1)
    rules = [find_arm(arm).rule(env.batch) for arm in ARMS]
    together = evaluate(SplitPolicy(env.batch, rules, treated), env, 60)
    rows = treated[together.users]
    assert 10 < rows.sum() < 50
    assert not (alone[0].slates == alone[1].slates).all()
    for name in ("users", "slates", "responses", "rewards", "length"):
        control, treatment = (getattr(sessions, name) for sessions in alone)
        mask = rows.reshape(-1, *(1,) * (control.ndim - 1))
        assert (getattr(together, name) == np.where(mask, treatment, control)).all()
    control, treatment = (outcomes_of(sessions, env.batch) for sessions in alone)
    both, seen = mixed(control, treatment, rows), outcomes_of(together, env.batch)
    assert all((both.columns[name] == seen.columns[name]).all() for name in seen.columns)
    with pytest.raises(DataFormatError, match="the same users"):
        mixed(control, treatment._replace(users=treatment.users + 1), rows)


def test_another_seed_and_another_salt_assign_anew(small) -> None:
    batch = environment(small).batch
    first = treated_users(batch, "x", 1)
    assert (first == assign(small.user_ids, "x-1")).all()
    for other in (treated_users(batch, "x", 2), treated_users(batch, "y", 1)):
        assert 0.3 < (first == other).mean() < 0.7


def test_arms_need_no_training() -> None:
    assert find_arm("popularity+quota").name == "popularity+quota"
    with pytest.raises(ConfigError, match="needs no training, got 'ppo'"):
        find_arm("ppo")
    with pytest.raises(ConfigError, match="agent must be one of"):
        AbStudy(Run("random"), ("filter+quota", "nobody"))


# Errors and power


def test_drawn_users_bring_all_their_sessions_and_have_one_arm() -> None:
    arms = noise(1), noise(1, effect=100.0)
    picks = []
    for sessions, treated in drawn_tests(arms, 2, 50, "x", 2):
        assert len(sessions.users) == 150 and sorted(set(sessions.users)) == [*range(50)]
        assert ((sessions.columns["steps"] > 50) == treated).all()
        for user in range(50):
            rows = sessions.users == user
            assert len(set(treated[rows])) == 1
            steps = np.sort(sessions.columns["steps"][rows] - 100.0 * treated[rows])
            drawn = [
                one for one in range(80)
                if np.allclose(np.sort(arms[0].columns["steps"][arms[0].users == one]), steps)
            ]  # fmt: skip
            picks += drawn
        assert (np.diff(sessions.users) < 0).any()  # users come back
    assert len(picks) == 100 and 45 < len(set(picks)) < 80


def test_false_positives_are_counted_at_every_look() -> None:
    control = noise(3, n_users=140)
    effects = dict.fromkeys(METRICS, 0.3)
    shares = false_positives(control, effects, 120, "x", 4)
    assert shares["len"]["fixed"] <= 0.12 < shares["len"]["peeked"]
    assert shares["len"]["sequential"] <= 0.055
    assert set(shares["r_cum"].values()) == {0.0}  # all rewards are equal
    # An assignment that is not random is found out: the same users are always treated.
    first = next(drawn_tests((control, control), 1, 140, "x", 4))
    assert first[0].compared(METRICS["len"], first[1]).users[-1].sum() == 140


def test_measured_power_is_the_computed_one() -> None:
    arms, pilot = (noise(5, n_users=300), noise(5, 0.5, n_users=300)), noise(5, n_users=300)
    test = SequentialTest.planned(0.5, least_users=10)
    spread = spread_of(pilot, METRICS["len"], "x")
    assert spread == pytest.approx(1 + 1 / 3, rel=0.2)  # of a user, and of three sessions
    for row in power_table(arms, METRICS["len"], spread, test, 40, "x", 6):
        assert row["measured"] == pytest.approx(row["computed"], abs=0.1)
        assert row["sequential"] < row["measured"]
    assert power_table((pilot, pilot), METRICS["len"], spread, test, 60, "x", 6) == []


# The command


def command(out: Path, *more: str) -> int:
    sizes = ["--sessions", "600", "--max-len", "5", "--tests", "5", "--jobs", "1"]
    arms = ["--arms", "quality+quota", "popularity"]
    return main(["ab", *arms, *sizes, "--out", str(out), *more])


def test_one_command_tests_draws_and_writes_a_page(wide, tmp_path: Path, capsys) -> None:
    assert command(tmp_path, "--metric", "R_each") == 0
    printed = capsys.readouterr().out
    (path,) = tmp_path.glob("*.json")
    result = read_result(path)
    (figure,), (page,) = tmp_path.glob("*.png"), tmp_path.glob("*.md")
    assert [str(figure), str(page)] == printed.strip().splitlines()[-2:]
    assert figure.read_bytes().startswith(b"\x89PNG")
    text = page.read_text(encoding="utf-8")
    assert report.verdict(result) in text and report.verdict(result) in printed
    assert f"]({figure.name})" in text and "SYNTHETIC" in text
    looks = result["path"]
    ends = [np.array(looks[n]) for n in ("low", "fixed_low", "effect", "fixed_high", "high")]
    assert all((lower < upper).all() for lower, upper in pairwise(ends))
    assert looks["sessions"][-1] == 600
    assert result["guardrails"]["ad"]["treatment"] == 1.0  # all exposures are of popular items
    assert result["guardrails"]["ad"]["control"] == 0.0
    assert result["guardrails"]["ad"]["verdict"] == "broken"
    assert "guardrails: AD and worst tenth of users broken" in report.verdict(result)
    stamp = path.stat().st_mtime_ns
    assert command(tmp_path, "--metric", "r_each") == 0
    assert path.stat().st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="other data or settings"):
        run_study(
            AbStudy(Run("random", max_len=5, sessions=600), (ARMS[0], "popularity"), "r_each"),
            tmp_path,
        )


def test_too_few_users_give_no_interval_and_no_verdict(wide, tmp_path: Path) -> None:
    study = AbStudy(Run("random", max_len=4, sessions=60), ARMS, tests=0)
    result = read_result(run_study(study, tmp_path))
    assert result["test"]["always_valid"] == {"low": None, "high": None}
    assert result["path"]["sessions"] == [] and "power" not in result
    assert "too few users for an interval" in report.verdict(result)
    ends = {"low": None, "high": None, "verdict": "open"}
    assert result["guardrails"]["worst"].items() >= ends.items()
    assert result["guardrails"]["ad"]["verdict"] == "open"
    assert "| open (-1.000 to +1.000) | open (too few users) |" in report.markdown([result])
    assert report.write_pages([result], tmp_path)[0].exists()


def test_tests_of_hardly_a_session_are_refused(wide, tmp_path: Path) -> None:
    """Early by their number; by their users where these are too few, whatever the number."""
    for sessions in (1, 3):
        with pytest.raises(ConfigError, match=f"--sessions must be .* 20, got {sessions}"):
            AbStudy(Run("random", max_len=3, sessions=sessions), ARMS, tests=2)
    alone = noise(1, n_users=1)
    with pytest.raises(ConfigError, match="two users in each arm, got .* raise --sessions"):
        spread_of(alone, METRICS["len"], "x")
    platform = InterferenceStudy(
        Run("random", "KuaiRec-Dynamic-v0", max_len=3), days=1, first=1, per_day=1
    )
    with pytest.raises(ConfigError, match="in 1 sessions: raise --per-day or --days"):
        run_study(platform, tmp_path)


def test_platforms_share_items_and_differ_in_popularity(wide, tmp_path: Path, capsys) -> None:
    sizes = ["--days", "5", "--first", "3", "--per-day", "32", "--max-len", "5", "--jobs", "1"]
    options = ["ab", "--env", "KuaiRec-Dynamic-v0", "--arms", "popularity+quota", "filter+quota"]
    assert main([*options, *sizes, "--seeds", "1", "2", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    first, _ = report.read_studies(tmp_path)
    effect, _ = first["test"]["len"]
    control, treatment = first["together"]
    assert effect == pytest.approx(treatment["len"] - control["len"])
    assert len(set(first["concentration"])) == 3
    assert "| popularity+quota -> filter+quota | Len | 2 |" in printed
    assert "long tail" not in printed  # both arms are at the same quota
    with pytest.raises(ConfigError, match="first must be|days must be"):
        InterferenceStudy(Run("random", "KuaiRec-Dynamic-v0"), days=3, first=4)


# The report


def judged(effect: float, low: float, high: float, ad: str = "kept", worst: str = "kept"):
    rail = {"control": 0.0, "treatment": 0.0, "low": 0.0, "high": 0.0, "margin": 0.05}
    return {
        "study": "ab", "arms": ["old", "new"], "metric": "len", "sessions": 900,
        "test": {
            "users": [50, 52], "imbalance_p": 0.8, "control": 10.0, "treatment": 10.0 + effect,
            "always_valid": {"low": low, "high": high},
            "decided": None if low <= 0 <= high else 300, "decided_users": 90,
        },
        "guardrails": {"ad": rail | {"verdict": ad}, "worst": rail | {"verdict": worst}},
    }  # fmt: skip


def test_verdicts() -> None:
    ship = report.verdict(judged(0.5, 0.2, 0.8))
    assert ship == (
        "**Ship *new*** (*new* against *old*): Len is higher by 0.500 (always-valid 95 % interval "
        "+0.200 to +0.800), decided after 300 of 900 sessions; guardrails: AD and worst tenth of "
        "users kept."
    )
    cases = {
        "Keep *old*": [(0.5, 0.2, 0.8, "broken"), (-0.5, -0.8, -0.2), (0.1, -0.2, 0.4)],
        "Go on testing": [(0.5, 0.2, 0.8, "open"), (0.1, -0.2, 0.4, "kept", "open")],
    }
    for choice, tests in cases.items():
        for values in tests:
            assert report.verdict(judged(*values)).startswith(f"**{choice}**"), values
    lost = copy.deepcopy(judged(0.5, 0.2, 0.8))
    lost["test"]["imbalance_p"] = 1e-5
    assert report.verdict(lost).startswith("**Discard the test**: 52 of 102 users")


def platform(seed: int, alone: tuple[float, float], together: tuple[float, float], variance: float):
    def values(number: float) -> dict[str, float]:
        return {"len": number, "r_each": 0.5, "r_cum": 0.5, "longtail_share": 0.5}

    effect = together[1] - together[0]
    return {
        "study": report.INTERFERENCE, "arms": ["old", "new"], "env": "KuaiRec-Dynamic-v0",
        "max_len": 30, "seed": seed, "days": 9, "first": 2, "per_day": 8,
        "dataset": {"name": "kuairec", "synthetic": True, "fingerprint": "0" * 16},
        "alone": [values(number) for number in alone],
        "together": [values(number) for number in together],
        "test": {name: [effect if name == "len" else 0.0, variance] for name in METRICS},
        "concentration": [0.1, 0.2, 0.3],
    }  # fmt: skip


def test_bias_is_the_test_less_whole_platforms() -> None:
    rows = [
        platform(1, (10.0, 14.0), (11.0, 14.0), 0.25),  # 1 of .98 away
        platform(2, (10.0, 14.0), (11.0, 14.0), 0.27),  # 1 of 1.02
    ]
    text = report.markdown(rows)
    assert (
        "| old -> new | Len | 2 | +4.000 ± 0.000 | +3.000 ± 0.000 | -1.000 ± 0.000 | 1 of 2 |"
        in text
    )
    assert "| +1.000 ± 0.000 | +0.000 ± 0.000 |" in text
    with pytest.raises(DataFormatError, match=r"sessions a day\): \[\(2, 9, 8\), \(2, 10, 8\)\]"):
        report.markdown([*rows, rows[0] | {"days": 10, "arms": ["old", "newer"]}])


# What is committed


def test_the_committed_pages_are_of_their_results() -> None:
    for row in report.read_studies(RESULTS):
        if row["study"] == "ab":
            written = (RESULTS / f"{report.slug(row)}.md").read_text(encoding="utf-8")
            assert written == report.page(row, f"{report.slug(row)}.png")


def test_committed_tests_keep_their_promises() -> None:
    tests = [row for row in report.read_studies(RESULTS) if row["study"] == "ab"]
    assert len(tests) >= 3
    for row in tests:
        assert row["tests"] >= 1000 and not row["commit"].endswith("-dirty")
        assert all(shares["sequential"] <= 0.055 for shares in row["false_positives"].values())
        assert len(row["power"]) == 3
        assert all(abs(size["measured"] - size["computed"]) <= 0.03 for size in row["power"])


def test_numbers_in_the_text_are_of_the_results() -> None:
    page = (ROOT / "docs" / "ab_tests.md").read_text(encoding="utf-8")
    text = " ".join(page.split("<!-- ab -->")[0].split())
    results = report.read_studies(RESULTS)
    tests = [row for row in results if row["study"] == "ab"]
    counted = [row["false_positives"][name] for row in tests for name in ("len", "r_each", "r_cum")]
    once, often, always = (
        f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"
        for shares in ([row[kind] for row in counted] for kind in counted[0])
    )
    assert f"finds a difference in {once} of the tests" in text
    assert f"it does in {often} of them at some time, the sequential test in {always}." in text
    late = [100 * row["power"][-1]["sequential"] for row in tests]
    assert f"it has decided {min(late):.0f} to {max(late):.0f} % of the tests" in text
    sizes = [size for row in tests for size in row["power"]]
    off = max(abs(size["measured"] - size["computed"]) for size in sizes)
    assert len(sizes) == 9 and f"within {100 * off:.1f} points at nine sample sizes" in text
    (filtered,) = (row for row in tests if row["arms"] == ["filter+quota", "filter"])
    assert filtered["test"]["always_valid_p"] < 0.05 < filtered["guardrails"]["ad"]["low"]
    assert f"leave {-filtered['others']['len']['effect']:.1f} steps earlier" in text
    arms = ["popularity+quota", "filter+quota"]
    rows = [row for row in results if row["study"] == report.INTERFERENCE and row["arms"] == arms]
    apart, tested, gain = (
        np.mean([value(row) for row in rows])
        for value in (
            lambda row: row["alone"][1]["len"] - row["alone"][0]["len"],
            lambda row: row["test"]["len"][0],
            lambda row: row["together"][0]["len"] - row["alone"][0]["len"],
        )
    )
    assert f"its sessions are {gain:.1f} steps longer than on a platform of its own" in text
    assert f"worth {tested:.1f} steps; to a platform it is worth {apart:.1f}" in text
    assert len(rows) == 5 and not any(report.covers(row, "len") for row in rows)


def test_the_example_of_the_page_runs(tmp_path: Path, capsys) -> None:
    text = (ROOT / "docs" / "ab_tests.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "example.py").write_text(code, encoding="utf-8")
    runpy.run_path(str(tmp_path / "example.py"), run_name="__main__")
    assert capsys.readouterr().out.strip()
