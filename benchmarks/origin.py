"""Origins of data: what ``--dataset`` and ``--dataset-seed`` name, and how results call it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kuaisim_gym import ENVIRONMENTS
from kuaisim_gym.config import check_choice, check_whole
from kuaisim_gym.data import SOURCES, Dataset
from kuaisim_gym.envs.options import shared_dataset
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.registration import import_named, registered

TABLE = "table"  # the one source that files in TOML describe
FULL = 0.99  # share of known answers from which on a test table counts as fully observed
FIRST_VERSION = 2  # of the data in results that name none


@dataclass(frozen=True)
class Origin:
    """The origin of a dataset.

    Attributes:
        source: Name of a source.
        path: Folder or archive of its files; ``None`` for its synthetic world.
        seed: Seed of the synthetic world.

    Raises:
        ConfigError: The source is unknown, or files go with another seed than 0.
    """

    source: str
    path: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("dataset", self.source, SOURCES)
        check_whole("dataset_seed", self.seed, 0)
        if self.path is not None and self.seed:
            raise ConfigError(
                f"dataset_seed chooses a synthetic world, but {self.path} holds files: leave one "
                "of them out."
            )

    def load(self) -> Dataset:
        """The data, one object for consecutive calls in this process."""
        return shared_dataset(self.source, self.path, self.seed)

    def block(self) -> dict[str, Any]:
        """The ``dataset`` block of a result."""
        return data_block(self.load(), self.seed)

    @property
    def label(self) -> str:
        """Name and answers, as in file names; the seed too, if it is not 0."""
        return data_label(self.block())


def find_origin(text: str | None, env: str, seed: int = 0) -> Origin:
    """The origin that the command line describes.

    Args:
        text: ``NAME=PATH``, files of a source; ``NAME``, its synthetic world; ``PATH``, files of
            the environment's own source (``./NAME`` where a folder is called like a source); or
            ``None``, the synthetic world of that source. A name may be ``module:NAME``. Tables
            whose reading needs options are described by a file, ``table=DATASET.toml`` or
            ``DATASET.toml`` alone, see :func:`~kuaisim_gym.data.custom.settings.read_settings`.
        env: A registered environment id, or ``module:id``.
        seed: Seed of the synthetic world.

    Raises:
        ConfigError: The environment or the source is unknown, or files go with a seed.
    """
    usual = registered(env)["name"]
    source, path = _parts(text)
    return Origin(usual if source is None else import_named(source), path, seed)


def check_played(origin: Origin, env: str) -> None:
    """Checks that an environment plays data of a source.

    Raises:
        ConfigError: It does not; the message names the environments that do.
    """
    usual = registered(env)["name"]
    source = SOURCES.get(usual)
    if origin.source == usual or source is None or source.plays_any:
        return
    names = {name: row["name"] for name, row in ENVIRONMENTS.items()}
    able = [
        name
        for name, played in names.items()
        if played == origin.source or (played in SOURCES and SOURCES[played].plays_any)
    ]
    raise ConfigError(
        f"{env} simulates {usual}, but the dataset is of {origin.source}: leave env out, or choose "
        f"one of {able}."
    )


def env_for(text: str | None, default: str) -> str:
    """The environment where ``--env`` names none: the first of the source that ``text`` names.

    A source without one of its own is played by the first that plays any dataset.
    """
    name, _ = _parts(text)
    if name is None:
        return default
    source = Origin(import_named(name)).source
    names = {env: row["name"] for env, row in ENVIRONMENTS.items()}
    usual_envs = [env for env, usual in names.items() if usual == source]
    any_data = [env for env, usual in names.items() if SOURCES[usual].plays_any]
    return (usual_envs + any_data)[0]


def source_in(text: str | None) -> str | None:
    """The source that a description names, without the place of its files."""
    source, _ = _parts(text)
    return source


def _parts(text: str | None) -> tuple[str | None, str | None]:
    """Source and path of a description; ``None`` for the environment's own source, or no path."""
    if text is None:
        return None, None
    name, sign, path = text.partition("=")
    if sign and not Path(text).exists():
        return name, path
    if _names_source(text):
        return text, None
    return (TABLE if Path(text).suffix == ".toml" else None), text


def _names_source(text: str) -> bool:
    """Tells a source, ``module:NAME`` or a registered one, from a path."""
    return text in SOURCES or (
        bool(re.fullmatch(r"[\w.]+:[\w.-]+", text)) and not Path(text).exists()
    )


def answers_of(dataset: Dataset) -> str:
    """Kind of the test simulator's answers: ``"synthetic"``, ``"real"`` or ``"modelled"``.

    They are real where practically all of them are looked up in test rows, and modelled where a
    model of the test rows gives them, were it only beside the rows.
    """
    if dataset.synthetic:
        return "synthetic"
    if dataset.test.is_draw:
        return "modelled"
    cells = len(dataset.test.distinct_users) * dataset.n_items
    return "real" if dataset.pools or len(dataset.test) >= FULL * cells else "modelled"


def data_block(dataset: Dataset, seed: int = 0) -> dict[str, Any]:
    """The ``dataset`` block of a result.

    Args:
        dataset: The data.
        seed: Seed of the synthetic world.
    """
    names = ("name", "source", "synthetic", "fingerprint")
    block: dict[str, Any] = {name: getattr(dataset, name) for name in names}
    block["answers"] = answers_of(dataset)
    if dataset.synthetic and dataset.source in SOURCES:
        block |= {"seed": seed, "version": SOURCES[dataset.source].version}
    return block


def data_label(block: dict[str, Any]) -> str:
    """Name and answers of a ``dataset`` block, as in file names; a seed other than 0 too."""
    seed = f"-{block['seed']}" if block.get("seed") else ""
    return re.sub(r"[^\w.+-]+", "-", f"{block['name']}-{block['answers']}{seed}")


def is_older(block: dict[str, Any]) -> bool:
    """Tells a synthetic world that an earlier version of its generator made."""
    source = SOURCES.get(block.get("source", block["name"]))
    present = block.get("version", FIRST_VERSION)
    return bool(block["synthetic"]) and source is not None and present < source.version
