"""A dataset of one's own: a class in a module that the package has never heard of."""

from __future__ import annotations

import ast
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest

from benchmarks.__main__ import main as benchmarks
from benchmarks.datasets import DatasetStudy
from benchmarks.origin import Origin
from benchmarks.purify.study import PurifyStudy, World
from kuaisim_gym import ENVIRONMENTS, build_simulator, load_dataset, register
from kuaisim_gym.data import (
    SOURCES,
    BehaviourLog,
    Dataset,
    Interactions,
    Source,
    WatchLog,
    write_csv,
)
from kuaisim_gym.data.__main__ import main
from kuaisim_gym.data.cache import cache_info
from kuaisim_gym.data.download import archives, download
from kuaisim_gym.data.feedback import FEEDBACK
from kuaisim_gym.data.files import DataFiles, Layout, find_files
from kuaisim_gym.data.source import PublishedArchive, Writer
from kuaisim_gym.data.writer import table_writer
from kuaisim_gym.envs.single import KuaiEnv
from kuaisim_gym.envs.vector import KuaiVectorEnv
from kuaisim_gym.errors import ConfigError, DatasetNotFoundError
from kuaisim_gym.simulator.response import TableModel

PACKAGE = Path(__file__).parents[2] / "kuaisim_gym"
N_USERS, N_ITEMS = 30, 20


@dataclasses.dataclass(frozen=True, eq=False)
class StarLog(Interactions):
    """One to five stars; four count as a full response of 0.75."""

    behaviours = ("liked",)
    link = "identity"
    is_draw = False
    calibration = "calibrated"

    stars: np.ndarray

    def _behaviour(self, index: int) -> np.ndarray:
        return ((self.stars - 1) / 4).astype(np.float32)

    def _check_feedback(self, label: str) -> None:
        assert self.stars.min() >= 1


def star_world(rng: np.random.Generator, synthetic: bool) -> Dataset:
    users, items = np.divmod(np.arange(N_USERS * N_ITEMS, dtype=np.int32), N_ITEMS)
    log = StarLog(users, items, rng.integers(1, 6, len(users)).astype(np.int8))
    is_test = (users < 10) & (rng.random(len(users)) < 0.5)
    return Dataset(
        name="stars",
        synthetic=synthetic,
        user_ids=np.arange(N_USERS, dtype=np.int64) + 100,
        item_ids=np.arange(N_ITEMS, dtype=np.int64) + 500,
        n_items=N_ITEMS,
        log=log.take(~is_test),
        test=log.take(is_test),
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUAISIM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def stars() -> Iterator[type[Source]]:
    """A source, known from the moment that its class is defined."""

    class Stars(Source):
        name = "stars"
        archives = (PublishedArchive("stars-small", "stars", 7, "Stars.zip", None, 10, 20),)
        published: ClassVar = {"train": ("30", "20", "0.5k")}
        reads = 0

        def find(self, path: str | Path) -> DataFiles:
            return find_files(path, [Layout("Stars", ("events",))])

        def read(self, files: DataFiles) -> Dataset:
            type(self).reads += 1
            rows = np.loadtxt(files.tables["events"][0], int, delimiter=",", skiprows=1)
            users, items, stars, is_test = rows.T
            user_ids, users = np.unique(users, return_inverse=True)
            item_ids, items = np.unique(items, return_inverse=True)
            log = StarLog(users.astype(np.int32), items.astype(np.int32), stars.astype(np.int8))
            return Dataset(
                name=self.name,
                synthetic=False,
                user_ids=user_ids,
                item_ids=item_ids,
                n_items=len(item_ids),
                log=log.take(is_test == 0),
                test=log.take(is_test == 1),
            )

        def synthetic(self, seed: int) -> Dataset:
            return star_world(np.random.default_rng(seed), synthetic=True)

        def write(self, dataset: Dataset) -> dict[str, Writer]:
            rows = dataset.log.merged(dataset.test)
            is_test = np.repeat([0, 1], [len(dataset.log), len(dataset.test)])
            users = np.concatenate([dataset.log.users, dataset.test.users])
            columns = {
                "user": dataset.user_ids[rows.users],
                "item": dataset.item_ids[rows.items],
                "stars": rows.columns["stars"],
                "is_test": is_test[np.argsort(users, kind="stable")],
            }
            return {"events": table_writer(columns)}

    yield Stars
    del SOURCES["stars"]


def test_its_synthetic_world_is_built_once(stars, is_mapped) -> None:
    first, second = load_dataset("stars", seed=3), load_dataset("stars", seed=3)
    assert [entry.key for entry in cache_info()] == ["stars-synthetic-v3-seed3"]
    assert first.synthetic
    assert isinstance(second.log, StarLog)
    assert is_mapped(second.log.stars)
    assert first.fingerprint == second.fingerprint == stars().synthetic(3).fingerprint
    assert load_dataset("stars", seed=4).fingerprint != first.fingerprint
    stars.version = 9  # another world under the same seed
    load_dataset("stars", seed=3)
    assert "stars-synthetic-v9-seed3" in [entry.key for entry in cache_info()]


def test_its_files_are_written_found_and_read_once(stars, tmp_path: Path) -> None:
    world = load_dataset("stars")
    write_csv(world, tmp_path / "csv")
    assert [file.name for file in (tmp_path / "csv").iterdir()] == ["events.csv"]
    for _ in range(2):
        dataset = load_dataset("stars", tmp_path / "csv")
    assert stars.reads == 1
    assert not dataset.synthetic
    for table, other in ((dataset.log, world.log), (dataset.test, world.test)):
        for name, column in table.columns.items():
            np.testing.assert_array_equal(column, other.columns[name])
    with pytest.raises(DatasetNotFoundError, match=r"Expected the files of Stars \(events\)"):
        load_dataset("stars", tmp_path / "nowhere")


def test_its_environments_play(stars) -> None:
    env = KuaiEnv("stars", slate_size=2)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    env.step(env.action_space.sample())
    vector = KuaiVectorEnv(4, name="stars", split="train", action_type="slate", slate_size=2)
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())
    gym.register("Stars-v0", "kuaisim_gym.envs.single:KuaiEnv", kwargs={"name": "stars"})
    try:
        made = gym.make("Stars-v0", disable_env_checker=True)
        made.reset(seed=0)
        made.step(made.action_space.sample())
    finally:
        del gym.registry["Stars-v0"]


def test_its_feedback_answers_the_simulators_questions(stars) -> None:
    """No draws: the test simulator looks responses up. Shares: they cannot be balanced."""
    dataset = load_dataset("stars")
    simulator = build_simulator(dataset, "test")
    assert isinstance(simulator.model, TableModel)
    assert simulator.model.behaviours == ("liked",)
    test = dataset.test
    ids = dataset.user_ids[test.users], dataset.item_ids[test.items]
    np.testing.assert_array_equal(simulator.probability(*ids), test.response)
    train = build_simulator(dataset, "train")
    assert train.model.behaviours == ("liked",)
    assert not train.model.logistic
    with pytest.raises(ConfigError, match="stars's responses are shares"):
        build_simulator(dataset, "train", calibration="balanced")
    with pytest.raises(ConfigError, match=r"fusion.* stars has one"):
        KuaiEnv("stars", action_type="fusion")
    with pytest.raises(IndexError, match="0 to 0, got 1"):
        dataset.log.behaviour(1)


def described(models: tuple[str, ...] = ()) -> dict[str, Any]:
    study = DatasetStudy(Origin("stars"), models)
    return json.loads(json.dumps(study.header() | study.make(Path())))


def test_the_benchmark_describes_it_beside_the_published_figures(stars) -> None:
    text = DatasetStudy.markdown([described(models=("factor",))])
    assert "| stars (SYNTHETIC) | train | 30 | 20 | " in text
    assert "| 30 / 20 / 0.5k |" in text
    del stars.published
    assert "| stars (SYNTHETIC) | train |" in text


def test_a_result_of_a_source_that_is_not_imported_still_prints(stars) -> None:
    description = described()
    SOURCES["other"] = SOURCES.pop("stars")
    try:
        assert "| stars (SYNTHETIC) | train | 30 | 20 | " in DatasetStudy.markdown([description])
        assert "0.5k" not in DatasetStudy.markdown([description])
    finally:
        SOURCES["stars"] = SOURCES.pop("other")


def test_its_archives_can_be_downloaded(stars, capsys) -> None:
    assert archives()["stars-small"].dataset == "stars"
    with pytest.raises(SystemExit):
        main(["download", "--help"])
    assert "stars-small" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="Did you mean 'stars-small'"):
        download("stars-smal")


def test_the_nearest_name_is_told(stars) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'stars'"):
        load_dataset("star")
    with pytest.raises(ConfigError, match="Did you mean 'kuairec'"):
        load_dataset("kuairek")


def test_what_a_source_does_not_have_is_refused_and_who_has_it_is_told(tmp_path: Path) -> None:
    class Bare(Source):
        name = "bare"

    try:
        with pytest.raises(ConfigError, match=r"bare has no synthetic world; give the path.*'kuai"):
            load_dataset("bare")
        with pytest.raises(ConfigError, match="bare has no files to read; leave out path"):
            load_dataset("bare", tmp_path)
        renamed = dataclasses.replace(star_world(np.random.default_rng(0), True), source="bare")
        with pytest.raises(ConfigError, match=r"no published format.*\['kuairand', 'kuairec'"):
            write_csv(renamed, tmp_path)
        with pytest.raises(ConfigError, match="bare has no files"):
            Bare().read(DataFiles(tmp_path, Layout("Bare", ()), {}))
    finally:
        del SOURCES["bare"]
    with pytest.raises(ConfigError, match="dataset must be one of"):
        write_csv(renamed, tmp_path)


def test_a_name_belongs_to_one_class() -> None:
    with pytest.raises(ConfigError, match=r"'kuairec' of .*Other belongs to .*KuaiRec"):

        class Other(Source):
            name = "kuairec"

    mine = WatchLog
    with pytest.raises(ConfigError, match=r"'WatchLog' .*belongs to kuaisim_gym"):
        type("WatchLog", (Interactions,), {"__module__": __name__})
    assert FEEDBACK["WatchLog"] is mine


@pytest.mark.parametrize("name", ["", "a b", "a=b", "a/b", "my:a", "-a", 3, None, "a\n"])
def test_a_source_needs_a_name_that_files_can_have(name) -> None:
    before = dict(SOURCES)
    with pytest.raises(ConfigError, match=r"The name of .*Mine must be letters, .* got "):
        type("Mine", (Source,), {"name": name})
    assert before == SOURCES


@pytest.mark.parametrize("version", [0, "4", 1.5, None, True])
def test_a_source_needs_a_version_that_can_be_raised(version) -> None:
    with pytest.raises(ConfigError, match="Mine.version must be an integer of at least 1"):
        type("Mine", (Source,), {"name": "mine", "version": version})
    assert "mine" not in SOURCES


def test_a_module_that_is_run_again_replaces_its_class(stars) -> None:
    names = {"__module__": stars.__module__, "__qualname__": stars.__qualname__, "name": "stars"}
    again = type("Stars", (Source,), names)
    assert SOURCES["stars"] is again
    assert SOURCES["stars"].published == {}


def test_rows_of_another_feedback_are_not_written_as_the_sources(tmp_path: Path) -> None:
    stars = star_world(np.random.default_rng(0), synthetic=True)
    with pytest.raises(ConfigError, match="watch ratios of KuaiRec, got a StarLog"):
        write_csv(dataclasses.replace(stars, source="kuairec"), tmp_path)
    rows = np.array([0], np.int32)
    ids = np.array([1], np.int64)  # 1 is a test user by its hash
    watched = WatchLog(rows, rows, np.ones(1, np.float32))
    one = Dataset("kuairand", True, ids, ids, 1, watched, watched)
    with pytest.raises(ConfigError, match="behaviours of KuaiRand, got a WatchLog"):
        write_csv(one, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_commands_find_it_by_its_module(stars, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "my_stars", ModuleType("my_stars"))
    assert benchmarks(["datasets", "--dataset", "my_stars:stars", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "datasets_stars-synthetic.json").read_text())
    assert result["exposure_and_reward"]["r2_total"] is None  # all items were shown equally often
    assert benchmarks(["datasets", "--dataset", "your_stars:stars", "--out", str(tmp_path)]) == 2
    register("Stars-v0", "stars")
    try:
        study = PurifyStudy("ridge", World("my_stars:Stars-v0", 3))
        assert study.name == "ridge_Stars-v0_stars-synthetic_seed3"
        assert study.header()["dataset"]["name"] == "stars"
    finally:
        del ENVIRONMENTS["Stars-v0"], gym.registry["Stars-v0"]


@pytest.mark.parametrize("feedback", [WatchLog, BehaviourLog])
def test_every_feedback_type_answers_every_question(feedback: type[Interactions]) -> None:
    assert feedback.behaviours
    assert feedback.link in ("identity", "logistic")
    assert feedback.is_draw == (feedback is BehaviourLog)
    assert feedback.calibration == ("balanced" if feedback.link == "logistic" else "calibrated")


def test_nobody_asks_which_dataset_or_feedback_it_is() -> None:
    """Outside a dataset's own modules no branch is taken on a source's name or a feedback type."""
    types = {"Interactions", *FEEDBACK}
    for file in PACKAGE.rglob("*.py"):
        if file.stem.startswith(("kuairec", "kuairand")):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Compare):
                words = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
                assert not {"kuairec", "kuairand"}.intersection(map(str, words)), file
            if isinstance(node, ast.Call) and ast.unparse(node.func) in (
                "isinstance",
                "issubclass",
            ):
                named = {one.id for one in ast.walk(node.args[1]) if isinstance(one, ast.Name)}
                assert not types & named, f"{file}: {ast.unparse(node)}"
