"""Files of networks: none with numbers that make NaN is worn, and equal ones are equal bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from dsrm_agents import (
    Codebook,
    PurifyVecEnv,
    fit_encoder,
    fit_purifier,
    load_purifier,
    make_vec_env,
)
from dsrm_agents.dsrm.purifier import PURIFIERS, recipe_of
from dsrm_agents.encoders.states import StateEncoder
from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.simulator import build_simulator
from kuaisim_gym.simulator.response import FactorModel
from tests.attack.calls import codebook_of, small_world

ROOT = Path(__file__).parents[2]


def fitted(name: str = "dsrm", seed: int = 1):
    learns = "updates" in recipe_of(name).purifier.options()
    few = {"updates": 2, "batch_size": 16} if learns else {}
    return fit_purifier(name, small_world(False), sessions=8, seed=seed, progress=False, **few)


def spoiled(path: Path, number: float) -> list[str]:
    """Spoils each tensor of floats of a file in turn; gives the names, one file each."""
    with safe_open(path, "np") as file:
        header = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}
    names = [name for name, array in arrays.items() if array.dtype.kind == "f" and array.size]
    for name in names:
        array = arrays[name].copy()
        array.flat[array.size // 2] = number
        save_file({**arrays, name: array}, path.with_name(name), header)
    return names


FILES = {
    **{name: (lambda name=name: fitted(name), load_purifier) for name in PURIFIERS},
    "state encoder": (
        lambda: fit_encoder(small_world(False), updates=1, batch_size=8, progress=False),
        StateEncoder.load,
    ),
    "codebook": (lambda: codebook_of(small_world(False)), Codebook.load),
    "factor model": (
        lambda: build_simulator(small_world(False), "train").model,
        FactorModel.load,
    ),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e38], ids=repr)
def test_a_file_with_a_number_that_makes_nan_is_refused_by_its_tensor(
    tmp_path: Path, kind: str, number: float
) -> None:
    make, load = FILES[kind]
    make().save(tmp_path / "file")
    load(tmp_path / "file")
    names = spoiled(tmp_path / "file", number)
    assert names
    for name in names:
        with pytest.raises(CheckpointError, match=f"{name} is a damaged .*: {name} must hold"):
            load(tmp_path / name)


def test_a_hostile_purifier_is_not_worn(tmp_path: Path) -> None:
    fitted().save(tmp_path / "file")
    spoiled(tmp_path / "file", np.nan)
    env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=small_world(False), preference="parts")
    with pytest.raises(CheckpointError, match="output_map must hold finite numbers"):
        PurifyVecEnv(env, tmp_path / "output_map")


def test_equal_purifiers_are_equal_bytes(tmp_path: Path) -> None:
    """Saved twice, loaded and saved, fitted twice, and in processes whose hashes differ."""
    purifier = fitted()
    purifier.save(tmp_path / "a")
    purifier.save(tmp_path / "b")
    load_purifier(tmp_path / "a").save(tmp_path / "c")
    fitted().save(tmp_path / "d")
    code = "import sys, tests.agents.test_tensor_files as t; t.fitted().save(sys.argv[1])"
    other_hashes = "77" if os.environ.get("PYTHONHASHSEED") != "77" else "1"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "e"],
        check=True,
        env=os.environ | {"PYTHONHASHSEED": other_hashes},
        cwd=ROOT,
    )
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert len(contents) == 5 and len(set(contents.values())) == 1
    fitted(seed=2).save(tmp_path / "other")
    assert (tmp_path / "other").read_bytes() != contents["a"]
