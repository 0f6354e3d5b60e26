"""Files of tensors: the same bytes for the same content, and one error for all that is wrong."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file

from kuaisim_gym.errors import CheckpointError
from kuaisim_gym.tensors import TensorFile, digest_of, open_tensors, save_tensors
from tests.test_imports import imported

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


@st.composite
def views(draw: st.DrawFn) -> NDArray[Any]:
    """Arrays of 0 to 3 dimensions, empty ones too, in any order of memory: C, Fortran, cut, turned
    round, transposed, repeated, of foreign bytes."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    dtype = draw(st.sampled_from(["<f4", ">f4", "f8", "f2", "i4", ">i8", "u1", "?"]))
    order = draw(st.sampled_from(["C", "F"]))
    count = int(np.prod(shape, dtype=int))
    numbers = np.arange(count) % 7 > 2 if dtype == "?" else np.arange(count)
    array = np.array(numbers.reshape(shape), dtype, order=order)
    for axis in range(array.ndim):
        step = draw(st.sampled_from([1, 2, -1, -3]))
        array = array[(slice(None),) * axis + (slice(None, None, step),)]
    array = array.transpose(draw(st.permutations(range(array.ndim))))
    return np.broadcast_to(array, (2, *array.shape)) if draw(st.booleans()) else array


@settings(deadline=None, max_examples=60)
@given(arrays=st.lists(views(), min_size=1, max_size=3))
def test_arrays_come_back_in_any_order_of_memory(tmp_path_factory, arrays: list) -> None:
    """Equal content is equal bytes, whatever the strides; safetensors alone writes the memory."""
    path = tmp_path_factory.mktemp("views") / "file"
    named = {str(number): array for number, array in enumerate(arrays)}
    save_tensors(path, "f-1", named)
    written = path.read_bytes()
    back = read(path).arrays
    for name, array in named.items():
        assert back[name].dtype == array.dtype.newbyteorder("=")
        assert back[name].shape == array.shape
        np.testing.assert_array_equal(back[name], array)
    save_tensors(path, "f-1", back)
    assert path.read_bytes() == written


def test_every_tensor_is_written_by_one_function() -> None:
    """No other module of the packages imports safetensors."""
    root = Path(__file__).parents[1]
    importing = [
        str(file.relative_to(root))
        for folder in ("kuaisim_gym", "dsrm_agents", "benchmarks")
        for file in sorted((root / folder).rglob("*.py"))
        if any(name.split(".")[0] == "safetensors" for name in imported(file))
    ]
    assert importing == ["kuaisim_gym/tensors.py"]


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
    for dtype in (np.float16, np.float32, np.float64):
        if np.isfinite(number) and dtype == np.float16:
            continue  # it holds no such number
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
