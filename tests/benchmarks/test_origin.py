"""Data by name, path and seed, and what results call them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import paper
from benchmarks.__main__ import main
from benchmarks.origin import (
    Origin,
    answers_of,
    check_played,
    data_block,
    data_label,
    env_for,
    find_origin,
)
from benchmarks.reports.tables import by_world, markdown, summary, without_replaced
from benchmarks.runs.settings import Run
from benchmarks.studies.results import world_of
from kuaisim_gym.data import SOURCES, write_csv
from kuaisim_gym.errors import ConfigError

ENV = "KuaiRec-Fair-v0"


@pytest.mark.parametrize(
    ("text", "seed", "origin"),
    [
        (None, 0, ("kuairec", None, 0)),
        (None, 7, ("kuairec", None, 7)),
        ("kuairand", 7, ("kuairand", None, 7)),
        ("kuairand=some/folder", 0, ("kuairand", "some/folder", 0)),
        ("some/folder", 0, ("kuairec", "some/folder", 0)),
        ("./kuairand", 0, ("kuairec", "./kuairand", 0)),
        ("table=my.csv", 0, ("table", "my.csv", 0)),
        ("kuaisim_gym.data.kuairand:kuairand", 3, ("kuairand", None, 3)),
    ],
)
def test_names_and_paths_are_told_apart(text: str | None, seed: int, origin: tuple) -> None:
    assert find_origin(text, ENV, seed) == Origin(*origin)


def test_a_path_may_hold_an_equals_sign(tmp_path: Path) -> None:
    folder = tmp_path / "seed=3"
    folder.mkdir()
    assert find_origin(str(folder), ENV) == Origin("kuairec", str(folder))


def test_what_is_no_origin_is_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kuairec'"):
        find_origin("kuairek=folder", ENV)
    with pytest.raises(ConfigError, match="leave one of them out"):
        find_origin("some/folder", ENV, 3)
    with pytest.raises(ConfigError, match="dataset_seed must be an integer of at least 0, got -1"):
        find_origin(None, ENV, -1)
    with pytest.raises(ConfigError, match="leave one of them out"):
        Run("random", dataset="some/folder", dataset_seed=3)


def test_the_data_choose_the_environment_where_nobody_does() -> None:
    assert env_for(None, ENV) == ENV
    assert env_for("some/folder", ENV) == ENV
    assert env_for("kuairand", ENV) == "KuaiRand-Fair-v0"
    assert env_for("kuairand=some/folder", ENV) == "KuaiRand-Fair-v0"
    assert env_for("table=my.csv", ENV) == "Recommendation-Fair-v0"


def test_answers_are_called_what_they_are(small, small_rand) -> None:
    assert answers_of(small) == "synthetic"
    looked_up = replace(small, synthetic=False, truth=None)
    share = len(small.test) / (len(small.test_users) * small.n_items)
    assert answers_of(looked_up) == ("real" if share > 0.99 else "modelled")
    few = replace(looked_up, test=small.test.take(np.arange(len(small.test)) % 2 == 0))
    assert answers_of(few) == "modelled"
    assert answers_of(replace(few, pools=True)) == "real"
    assert answers_of(replace(small_rand, synthetic=False, truth=None)) == "modelled"


def test_labels_say_name_answers_and_seed(small) -> None:
    assert data_label(data_block(small)) == "kuairec-synthetic"
    assert data_label(data_block(small, 7)) == "kuairec-synthetic-7"
    real = replace(small, synthetic=False, truth=None, name="my shop / 1", pools=True)
    block = data_block(real, 0)
    assert data_label(block) == "my-shop-1-real"
    assert block.keys() == {"name", "source", "synthetic", "fingerprint", "answers"}


def test_a_new_world_is_played_under_its_seed(tmp_path: Path, capsys, small, monkeypatch) -> None:
    from benchmarks import origin

    asked = []
    monkeypatch.setattr(origin, "shared_dataset", lambda *asks: asked.append(asks) or small)
    command = ["suite", "--agents", "quality+band", "--seeds", "1", "--sessions", "20", "--jobs",
               "1", "--dataset-seed", "7", "--max-len", "8", "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 0
    assert set(asked) == {("kuairec", None, 7)}
    (path,) = tmp_path.glob("*.json")
    assert path.name == "quality+band_KuaiRec-Fair-v0_kuairec-synthetic-7_T8_seed1.json"
    assert json.loads(path.read_text())["dataset"]["seed"] == 7
    capsys.readouterr()
    assert main(["table", str(tmp_path)]) == 0
    assert "KuaiRec-Fair-v0, kuairec (SYNTHETIC world 7, " in capsys.readouterr().out


def test_a_table_of_one_s_own_is_played_under_its_own_name(tmp_path: Path, capsys) -> None:
    rng = np.random.default_rng(1)
    users, items = (ids.ravel() for ids in np.meshgrid(range(60), range(40)))
    kept = rng.random(len(users)) < 0.5
    shop = pd.DataFrame({"user": users, "item": items, "response": rng.random(len(users))})[kept]
    shop.to_csv(tmp_path / "my-shop.csv", index=False)
    out = tmp_path / "out"
    command = ["run", "--agent", "quality+quota", "--dataset", f"table={tmp_path / 'my-shop.csv'}",
               "--sessions", "10", "--max-len", "4", "--out", str(out)]  # fmt: skip
    assert main(command) == 0
    (path,) = out.glob("*.json")
    name = "quality+quota_Recommendation-Fair-v0_my-shop-modelled_T4_seed11.json"
    assert path.name == name
    capsys.readouterr()
    assert main(["table", str(out)]) == 0
    table = capsys.readouterr().out
    assert "Recommendation-Fair-v0, my-shop (MODELLED answers, " in table
    assert "kuairec" not in table


def test_ratings_are_played_by_a_file_that_says_what_they_mean(tmp_path: Path, capsys) -> None:
    users, items = np.divmod(np.arange(600), 20)
    ratings = pd.DataFrame({"user": users, "item": items, "rating": (users + items) % 5 + 1})
    ratings.to_csv(tmp_path / "ratings.csv", index=False)
    command = ["run", "--agent", "random", "--sessions", "10", "--max-len", "4", "--out",
               str(tmp_path / "out"), "--dataset"]  # fmt: skip
    assert main([*command, f"table={tmp_path / 'ratings.csv'}"]) == 2
    error = capsys.readouterr().err
    assert "say what they mean: rating_map" in error and "table=FILE.toml" in error
    (tmp_path / "stars.toml").write_text('log = "ratings.csv"\nrating_map = [1, 5]\n')
    assert main([*command, f"table={tmp_path / 'stars.toml'}"]) == 0
    (path,) = (tmp_path / "out").glob("*.json")
    assert path.name == "random_Recommendation-Fair-v0_stars-modelled_T4_seed11.json"


def test_an_environment_of_other_data_is_refused_before_any_is_read(tmp_path: Path, capsys) -> None:
    command = ["run", "--agent", "random", "--env", "KuaiRand-Fair-v0", "--dataset", "kuairec",
               "--out", str(tmp_path)]  # fmt: skip
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "KuaiRand-Fair-v0 simulates kuairand, but the dataset is of kuairec" in error
    assert "'KuaiRec-Fair-v0'" in error and "'Recommendation-Fair-v0'" in error
    with pytest.raises(ConfigError, match="simulates kuairec, but the dataset is of table"):
        Run("random", ENV, "table=nowhere.csv")
    with pytest.raises(ConfigError, match="simulates kuairec, but the dataset is of kuairand"):
        Run("random", ENV, "kuairand")
    Run("random", "Recommendation-Fair-v0", "kuairec")


def result(fingerprint: str, **block) -> dict:
    metrics = dict.fromkeys(("len", "r_each", "r_cum", "q", "ad", "slate_ad", "longtail_share",
                             "gini", "coverage"), 0.5)  # fmt: skip
    return {
        "agent": "random", "env": ENV, "max_len": 30, "seed": 11, "eval": {"sessions": 10},
        "metrics": metrics | {f"{name}_ci95": 0.1 for name in metrics},
        "train": {"seconds": 0.0, "steps": 0, "curve": []},
        "dataset": {"name": "kuairec", "synthetic": True, "fingerprint": fingerprint, **block},
    }  # fmt: skip


def test_worlds_of_an_earlier_version_are_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(SOURCES["kuairec"], "version", 3)
    unlabelled, older = result("a" * 16), result("b" * 16, version=2, answers="synthetic", seed=7)
    present = result("c" * 16, version=3, answers="synthetic", seed=0)
    assert [world_of(one).is_older for one in (unlabelled, older, present)] == [True, True, False]
    text = markdown([unlabelled, present])
    assert "### KuaiRec-Fair-v0, kuairec (SYNTHETIC world, cccc" in text
    assert "### KuaiRec-Fair-v0, kuairec (OLDER SYNTHETIC world, aaaa" in text
    assert "not comparable" in text
    # The first stands where the third does now; the second has no successor.
    worlds = without_replaced(by_world([unlabelled, older, present]))
    assert {world.fingerprint[0] for world in worlds} == {"b", "c"}
    assert "T = 30" in summary([present])
    # The paper's tables take the newest version of world 0 alone.
    runs = [{**one, "agent": "a2c"} for one in (unlabelled, older, present)]
    runs[2]["metrics"] = runs[2]["metrics"] | {"len": 12.25}
    assert "| kuairec, T = 30 | A2C | 12.25 |" in paper.markdown(runs)


def test_files_keep_their_name_through_an_environment(small, tmp_path: Path) -> None:
    write_csv(small, tmp_path)
    spec = Run("random", dataset=f"kuairec={tmp_path}", max_len=5)
    assert spec.world.startswith("KuaiRec-Fair-v0_kuairec-")
    assert spec.world.endswith("_T5")
    assert not spec.load().synthetic


def test_a_file_of_options_alone_is_a_table(tmp_path: Path) -> None:
    file = str(tmp_path / "films.toml")
    assert env_for(file, "KuaiRec-Fair-v0") == "Recommendation-Fair-v0"
    alone = find_origin(file, "Recommendation-Fair-v0")
    assert alone == find_origin(f"table={file}", "Recommendation-Fair-v0")
    assert (alone.source, alone.path) == ("table", file)
    with pytest.raises(ConfigError, match="KuaiRec-Fair-v0 simulates kuairec, but the dataset is"):
        check_played(find_origin(file, "KuaiRec-Fair-v0"), "KuaiRec-Fair-v0")
