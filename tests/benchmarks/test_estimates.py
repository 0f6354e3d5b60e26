"""State estimates in front of one policy: pairing, the choice of weights, and the command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import origin
from benchmarks.__main__ import main
from benchmarks.estimates import states, study
from benchmarks.estimates.report import by_world, differences, markdown, read_studies, summary
from benchmarks.estimates.states import (
    ESTIMATES,
    WEIGHTS,
    choosing_users,
    find_estimate,
    make_ready,
    play_estimate,
)
from benchmarks.estimates.study import FRESH, EstimateStudy, plan
from benchmarks.runs.judging import play
from benchmarks.runs.settings import Run
from benchmarks.studies.results import read_result
from dsrm_agents.dsrm.purifier import PURIFIERS
from kuaisim_gym.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def tiny(small, monkeypatch) -> None:
    monkeypatch.setattr(origin, "shared_dataset", lambda name, path, seed: small)
    monkeypatch.setattr(states, "CHOICE_SESSIONS", 40)


def result(subject: str, seed: int, lengths: list[int], world: int = 101) -> dict:
    block = {"name": "kuairec", "source": "kuairec", "synthetic": True, "seed": world,
             "answers": "synthetic", "version": 3, "fingerprint": f"f{world}"}  # fmt: skip
    metrics = {"len": float(np.mean(lengths)), "r_each": 0.5, "q": 0.0, "ad": 0.0}
    return {"study": "estimates", "subject": subject, "env": "KuaiRec-Fair-v0", "max_len": 30,
            "seed": seed, "dataset": block, "sessions": len(lengths), "metrics": metrics,
            "lengths": lengths, "users": [10 * seed + n for n in range(len(lengths))]}  # fmt: skip


def test_differences_are_those_of_the_same_sessions() -> None:
    (rows,) = by_world(
        [
            result("raw", 1, [10, 12]),
            result("raw", 2, [9, 9]),
            result("belief", 1, [11, 12]),
            result("belief", 2, [9, 12]),
            result("belief", 3, [30, 30]),  # without a partner
        ]
    ).values()
    found = differences(rows, "belief", "raw")
    np.testing.assert_array_equal(found.steps, [1, 0, 0, 3])
    np.testing.assert_array_equal(found.users, [10, 11, 20, 21])
    np.testing.assert_array_equal(differences(rows, "raw", "belief").steps, [-1, 0, 0, -3])
    assert str(differences(rows, "raw", "raw")) == str(differences(rows, "raw", "dsrm")) == ""
    text = markdown([row for by_seed in rows.values() for row in by_seed.values()])
    # 1, 0, 0, 3: mean 1, standard deviation 1.414, over the root of four, times 3.182.
    assert "| belief | 3 | 17.33 | 0.500 | 0.000 | 0.000 |  | +1.000 ± 2.250 |  |" in text
    assert "| raw | 2 | 10.00 | 0.500 | 0.000 | 0.000 |  |  | -1.000 ± 2.250 |" in text


def test_the_summary_is_over_worlds() -> None:
    lengths = {101: ([10, 10], [11, 12]), 102: ([10, 10], [10, 11]), 103: ([10, 10], [10, 10])}
    results = [
        result(subject, 1, sample, world)
        for world, pair in lengths.items()
        for subject, sample in zip(("raw", "belief"), pair, strict=True)
    ]
    table = summary(by_world(results)).splitlines()
    assert table[0] == (
        "| estimate | kuairec (SYNTHETIC world), T = 30, 3 world(s), less raw "
        "| kuairec (SYNTHETIC world), T = 30, 3 world(s), less belief |"
    )
    # Means 1.5, .5 and 0: standard deviation .764, over the root of three, times 4.303.
    assert table[2:] == ["| raw |  | -0.667 ± 1.897 |", "| belief | +0.667 ± 1.897 |  |"]


def test_sessions_are_the_same_for_all_estimates(small) -> None:
    spec = Run("random", max_len=8, sessions=60)
    users = [
        play_estimate(name, spec, small)[0].sessions.users for name in ("belief", "belief-log")
    ]
    np.testing.assert_array_equal(*users)
    assert set(users[0]) <= set(small.test_users)


def test_a_weight_is_chosen_on_some_train_users_alone(small, monkeypatch) -> None:
    asked = []

    def spy(*arguments, split: str = "test", users=None):
        played = play(*arguments, split=split, users=users)
        asked.append((split, set(played.sessions.users.tolist())))
        return played

    monkeypatch.setattr(states, "play", spy)
    ready = make_ready("raw", Run("random", max_len=8, sessions=60), small)
    chosen = set(choosing_users(small).tolist())
    assert len(chosen) == len(small.train_users) // 10
    assert not chosen & set(small.test_users.tolist())
    assert len(asked) == len(WEIGHTS)
    assert all(split == "train" and users <= chosen for split, users in asked)
    assert ready.lengths.keys() == set(WEIGHTS)
    assert ready.lengths[ready.weight] == max(ready.lengths.values())
    asked.clear()
    assert make_ready("belief", Run("random", max_len=8, sessions=60), small).weight == 1.0
    assert not asked  # there is nothing to choose


def test_a_purifier_stands_in_front_of_the_policy(small) -> None:
    spec = Run("random", max_len=8, sessions=60)
    played, ready = play_estimate("ridge", spec, small)
    assert ready.purifier.fingerprint == small.fingerprint
    assert ready.weight == 1.0
    assert make_ready("linear", spec, small).lengths.keys() == set(WEIGHTS)  # no belief
    assert played.sessions.length.mean() > 1
    # A state that says nothing ranks by quality alone, and so does the weight 0.
    blank, _ = play_estimate("blank", spec, small)
    quality = play(make_ready("belief", spec, small)._replace(weight=0.0).agent(), spec, small,
                   None, None)  # fmt: skip
    np.testing.assert_array_equal(blank.sessions.slates, quality.sessions.slates)


def test_the_command_compares_estimates_and_agents(tmp_path: Path, capsys) -> None:
    command = ["estimates", "--envs", "KuaiRec-Fair-v0", "--dataset-seeds", "0", "--max-len", "8",
               "--seeds", "1", "--sessions", "40", "--estimates", "raw", "belief", "--agents",
               "filter+quota", "hrl", "--episodes", "32", "--jobs", "1",
               "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    printed = capsys.readouterr().out
    names = {path.name.split("_")[1] for path in tmp_path.iterdir()}
    assert names == {"raw", "belief", "filter+quota", "hrl"}
    results = {row["subject"]: row for row in read_studies(tmp_path)}
    assert all(len(row["lengths"]) == 40 for row in results.values())
    assert results["hrl"]["episodes"] == 32
    # The policy on beliefs is the reference row, but for near-ties.
    ours, row = (results[name]["metrics"]["len"] for name in ("belief", "filter+quota"))
    assert ours == pytest.approx(row, abs=0.11)
    assert f"{results['raw']['weight']:g}" in results["raw"]["train_len_by_weight"]
    assert "### State estimates: KuaiRec-Fair-v0, kuairec (SYNTHETIC world" in printed
    assert markdown(read_studies(tmp_path)) in printed


def test_a_stopped_study_goes_on(tmp_path: Path, monkeypatch, capsys) -> None:
    command = ["estimates", "--envs", "KuaiRec-Fair-v0", "--dataset-seeds", "0", "--max-len", "8",
               "--seeds", "1", "2", "--sessions", "40", "--estimates", "belief-log", "belief",
               "--jobs", "1", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    files = sorted(tmp_path.iterdir())
    assert len(files) == 4
    kept = {path: path.stat().st_mtime_ns for path in files[1:]}
    content = read_result(files[0])
    files[0].unlink()
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in files[1:]} == kept
    assert read_result(files[0])["lengths"] == content["lengths"]
    capsys.readouterr()
    monkeypatch.setattr(study, "play_estimate", None)
    assert main(command) == 0  # nothing to do
    assert main([*command, "--sessions", "41"]) == 2
    assert "other data or settings" in capsys.readouterr().err


def test_worlds_are_fresh_unless_they_are_named() -> None:
    assert FRESH == (101, 102, 103)
    studies = plan([Run("random")], agents=("filter+band",))
    assert [one.subject for one in studies] == [*ESTIMATES, "filter+band"]
    assert len(plan([Run("random")], ("belief", "belief"))) == 1


def test_unknown_estimates_are_refused() -> None:
    assert find_estimate("ridge").purifier in PURIFIERS
    with pytest.raises(ConfigError, match="purifier must be one of"):
        find_estimate("best")
    with pytest.raises(ConfigError, match="of an estimate or of an agent"):
        EstimateStudy(Run("random"), "raw", "hrl")
    with pytest.raises(ConfigError, match="of an estimate or of an agent"):
        EstimateStudy(Run("random"))
    with pytest.raises(ConfigError, match="sessions must be"):
        EstimateStudy(Run("random", sessions=1), "raw")
    with pytest.raises(ConfigError, match="env must be one of"):
        EstimateStudy(Run("random", "KuaiRand-Retention-v0"), "raw")
