"""Files of tensors: the same bytes for the same content, and one error for all that is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.tensors import TensorFile, digest_of, open_tensors, save_tensors

ARRAYS = {
    "weights": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "scalar": np.array(2.5),
    "empty": np.zeros((0, 4), np.float32),
    "flags": np.array([True, False, True]),
    "steps": np.arange(10)[::3],
    "columns": np.arange(6, dtype=np.int32).reshape(2, 3).T,
}
HEADER = {"kind": "é", "config": "{}", "seed": "3", "report": "[]", "behaviours": '["click"]'}


def read(path: Path, format_name: str = "f-1") -> TensorFile:
    with open_tensors(path, format_name, "model") as file:
        return file


def test_content_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    save_tensors(path, "f-1", ARRAYS, **HEADER)
    file = read(path)
    assert file.header == HEADER | {"format": "f-1"}
    assert file.arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert file.arrays[name].dtype == array.dtype and file.arrays[name].flags.writeable
        np.testing.assert_array_equal(file.arrays[name], array)
    with safe_open(path, "np") as plain:  # any reader of safetensors can
        assert plain.metadata() == file.header
    assert [entry.name for entry in path.parent.iterdir()] == ["file"]


def test_the_same_content_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    contents = set()
    for _ in range(8):  # safetensors orders five texts at random: one chance in 120 each time
        save_tensors(tmp_path / "file", "f-1", ARRAYS, **HEADER)
        contents.add((tmp_path / "file").read_bytes())
        save_tensors(
            tmp_path / "file",
            "f-1",
            dict(reversed(ARRAYS.items())),
            **dict(reversed(HEADER.items())),
        )
        contents.add((tmp_path / "file").read_bytes())
    assert len(contents) == 1
    code = (
        "import sys, tests.test_tensors as t; "
        "t.save_tensors(sys.argv[1], 'f-1', t.ARRAYS, **t.HEADER)"
    )
    for hash_seed in ("0", "1", "2"):
        path, environment = tmp_path / hash_seed, os.environ | {"PYTHONHASHSEED": hash_seed}
        root = Path(__file__).parents[1]
        subprocess.run([sys.executable, "-c", code, path], check=True, env=environment, cwd=root)
        assert path.read_bytes() in contents


def test_missing_torn_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(CheckpointError, match="file cannot be read as a model"):
        read(path)
    save_tensors(path, "f-1", ARRAYS)
    whole = path.read_bytes()
    for length in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="file cannot be read as a model"):
            read(path)
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="not a model of this version: expected .*f-2.*f-1"):
        read(path, "f-2")
    save_file({"x": np.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="expected format 'f-1', got None"):
        read(path)


@pytest.mark.parametrize(
    "rebuild",
    [
        lambda file: file.header["absent"],
        lambda file: json.loads(file.header["kind"]),
        lambda file: file.arrays["weights"].reshape(5),
        lambda file: int(**file.header),
    ],
)
def test_values_that_do_not_fit_are_damage(tmp_path: Path, rebuild) -> None:
    save_tensors(tmp_path / "file", "f-1", ARRAYS, **HEADER)
    damaged = pytest.raises(CheckpointError, match="file is a damaged model")
    with damaged, open_tensors(tmp_path / "file", "f-1", "model") as file:
        rebuild(file)
    foreign = pytest.raises(CheckpointError, match="^of another dataset$")
    with foreign, open_tensors(tmp_path / "file", "f-1", "model"):
        raise CheckpointError("of another dataset")


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 1e38, -1e38], ids=repr)
def test_numbers_from_which_networks_make_nan_are_refused_by_name(tmp_path: Path, number) -> None:
    """Wherever they stand, in files of others and before they are written."""
    for dtype in (np.float32, np.float64):
        arrays = {"whole": np.ones(3, dtype), "layer.weight": np.ones((2, 3), dtype)}
        arrays["layer.weight"][1, 2] = number
        save_file(arrays, tmp_path / "file", {"format": "f-1"})
        message = "file is a damaged model: layer.weight must hold finite numbers of at most 1e.12"
        with pytest.raises(CheckpointError, match=f"{message}"):
            read(tmp_path / "file")
        with pytest.raises(CheckpointError, match="cannot be written to .*: layer.weight must"):
            save_tensors(tmp_path / "new", "f-1", arrays)
        assert not (tmp_path / "new").exists()


def test_large_integers_are_no_absurd_numbers(tmp_path: Path) -> None:
    arrays = {"steps": np.array([2**62]), "large": np.array([1e12, -1e12], np.float32)}
    save_tensors(tmp_path / "file", "f-1", arrays)
    assert read(tmp_path / "file").arrays["steps"].tolist() == [2**62]


def test_digests_are_of_bytes_in_order() -> None:
    one, two = np.arange(3, dtype=np.int32), np.arange(6).reshape(2, 3).T
    expected = hashlib.blake2b(one.tobytes() + two.tobytes(), digest_size=8).hexdigest()
    assert digest_of([one, two]) == expected
    assert digest_of([two, one]) != expected
