"""Weights of saved agents, read from files that nobody vouches for."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm

from dsrm_agents import HSRL, HierarchicalPPO, load_weights, make_vec_env
from kuaisim_gym.errors import CheckpointError, ConfigError

SLATES = {"observation_type": "dict", "action_type": "slate"}
ALGORITHMS: dict[str, tuple[type[BaseAlgorithm], str, dict[str, Any], dict[str, Any]]] = {
    "ppo": (PPO, "MlpPolicy", {}, {"n_steps": 8}),
    "a2c": (A2C, "MlpPolicy", {}, {}),
    "sac": (SAC, "MlpPolicy", {}, {"buffer_size": 100}),
    "td3": (TD3, "MlpPolicy", {}, {"buffer_size": 100}),
    "dqn": (DQN, "MlpPolicy", {"action_type": "discrete"}, {"buffer_size": 100}),
    "maskable": (MaskablePPO, "MlpPolicy", {"action_type": "discrete"}, {"n_steps": 8}),
    "hrl": (HierarchicalPPO, "HierarchicalPolicy", SLATES, {"n_steps": 8}),
    "hsrl": (HSRL, "HSRLPolicy", SLATES, {"n_steps": 8, "policy_kwargs": {"fairness": 0.5}}),
}


@pytest.fixture
def make(small) -> Callable[..., Any]:
    def make_agent(kind: str, seed: int, dataset=small, **options: Any) -> Any:
        algorithm, policy, env_options, arguments = ALGORITHMS[kind]
        env = make_vec_env("KuaiRec-Fair-v0", 2, dataset=dataset, max_len=6, **env_options)
        return algorithm(policy, env, seed=seed, device="cpu", **arguments | options)

    return make_agent


def weights(agent: BaseAlgorithm) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in agent.policy.state_dict().items()}


def differing(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that differ; NaN is equal to NaN."""
    assert one.keys() == two.keys()
    return [name for name in one if not np.array_equal(one[name], two[name], equal_nan=True)]


class Marker:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def changed(path: Path, member: str, content: bytes | None) -> Path:
    """The archive with one member replaced, or left out."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    del members[member]
    with zipfile.ZipFile(path, "w") as archive:
        for name, kept in members.items():
            archive.writestr(name, kept)
        if content is not None:
            archive.writestr(member, content, zipfile.ZIP_DEFLATED)
    return path


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_weights_come_over_and_nothing_else(kind: str, make, tmp_path: Path) -> None:
    source, agent = make(kind, 1), make(kind, 2, learning_rate=0.5)
    assert differing(weights(source), weights(agent))
    source.save(tmp_path / "agent")
    load_weights(agent, tmp_path / "agent")  # Stable-Baselines3 has added .zip
    assert not differing(weights(source), weights(agent))
    assert (agent.learning_rate, agent.seed) == (0.5, 2)
    observation = agent.env.reset()
    for chosen, expected in zip(
        agent.predict(observation, deterministic=True),
        source.predict(observation, deterministic=True),
        strict=True,
    ):
        np.testing.assert_array_equal(chosen, expected)


def test_a_pickle_among_the_arguments_is_not_run(make, tmp_path: Path) -> None:
    source, agent = make("ppo", 1), make("ppo", 2)
    path, marker = tmp_path / "agent.zip", tmp_path / "was-run"
    source.save(path)
    bad = base64.b64encode(pickle.dumps(Marker(marker))).decode()
    changed(path, "data", json.dumps({"gamma": {":type:": "", ":serialized:": bad}}).encode())
    load_weights(agent, path)
    assert not differing(weights(source), weights(agent))
    assert not marker.exists()
    with pytest.raises(Exception):  # noqa: B017  # whatever it makes of the rest
        PPO.load(path)
    assert marker.exists()  # Stable-Baselines3 does run it


def test_a_pickle_among_the_weights_is_refused_and_not_run(make, tmp_path: Path) -> None:
    agent, marker = make("ppo", 2), tmp_path / "was-run"
    path, before = tmp_path / "agent.zip", weights(agent)
    make("ppo", 1).save(path)
    state = {**before, "log_std": Marker(marker)}
    for content in (saved(state), saved(Marker(marker)), pickle.dumps(Marker(marker))):
        changed(path, "policy.pth", content)
        with pytest.raises(CheckpointError, match="does not hold the weights of this PPO"):
            load_weights(agent, path)
        assert not marker.exists()
    assert not differing(weights(agent), before)
    torch.load(io.BytesIO(saved(state)), weights_only=False)["log_std"].close()
    assert marker.exists()


def edited(agent: BaseAlgorithm, name: str, change: Callable[[torch.Tensor], Any]) -> bytes:
    state = weights(agent)
    state[name] = change(state[name])
    return saved(state)


BAD_TENSORS: dict[str, tuple[str, Callable[[torch.Tensor], Any], str]] = {
    "nan": ("log_std", lambda x: x * torch.nan, "log_std is not finite"),
    "one infinity": ("action_net.bias", lambda x: x - 1 / x.new_tensor(0), "not finite"),
    "shape": ("log_std", lambda x: x[:-1], r"log_std is \[\d+\] torch.float32, expected \[\d+\]"),
    "broadcast": ("log_std", lambda x: x[:1].expand(2**40), "log_std is"),
    "dtype": ("log_std", torch.Tensor.double, "torch.float64, expected"),
    "sparse": ("log_std", torch.Tensor.to_sparse, "no plain tensor"),
    "meta": ("log_std", lambda x: x.to("meta"), "no plain tensor"),
    "number": ("log_std", lambda _: 3.0, "no table of tensors"),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_tensors_that_do_not_fit_are_refused(case: str, make, tmp_path: Path) -> None:
    name, change, why = BAD_TENSORS[case]
    agent, path = make("ppo", 2), tmp_path / "agent.zip"
    agent.save(path)
    before = weights(agent)
    changed(path, "policy.pth", edited(make("ppo", 1), name, change))
    with pytest.raises(CheckpointError, match=why):
        load_weights(agent, path)
    assert not differing(weights(agent), before)


def test_names_that_do_not_fit_are_refused(make, tmp_path: Path) -> None:
    agent, path = make("ppo", 2), tmp_path / "agent.zip"
    agent.save(path)
    state = weights(agent)
    state["log_sdt"] = state.pop("log_std")
    for content, why in (
        (saved(state), r"lacks \['log_std'\], and has \['log_sdt'\]"),
        (saved([1, 2]), "no table of tensors"),
        (saved({}), "lacks"),
        (None, "policy.pth"),
        (b"", "not a zip file"),
        (saved(weights(agent))[:-900], "zip"),
    ):
        agent.save(path)
        changed(path, "policy.pth", content)
        with pytest.raises(CheckpointError, match=why):
            load_weights(agent, path)


def test_files_that_unpack_to_more_than_the_agent_are_refused(make, tmp_path: Path) -> None:
    agent, path = make("ppo", 2), tmp_path / "agent.zip"
    agent.save(path)
    changed(path, "policy.pth", bytes(2**25))
    with pytest.raises(CheckpointError, match="has 33554432 bytes, at most"):
        load_weights(agent, path)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(2**25))
    agent.save(path)
    changed(path, "policy.pth", bomb.getvalue())
    with pytest.raises(CheckpointError, match="unpacks to 33554432 bytes, at most"):
        load_weights(agent, path)


def test_agents_of_another_kind_or_catalogue_are_refused(make, tmp_path: Path) -> None:
    path = tmp_path / "agent.zip"
    make("ppo", 1).save(path)
    with pytest.raises(CheckpointError, match=r"of this SAC: .*policy.pth lacks \['actor"):
        load_weights(make("sac", 2), path)
    agent = make("hrl", 2)
    name = next(n for n in weights(agent) if n.endswith("item_of_column"))
    agent.save(path)
    changed(path, "policy.pth", edited(agent, name, lambda order: order.flip(0)))
    with pytest.raises(CheckpointError, match="item_of_column numbers other items"):
        load_weights(make("hrl", 3), path)


def test_a_dial_comes_over_set_or_not(make, tmp_path: Path) -> None:
    """Its buffer is NaN until it is set."""
    path, agent = tmp_path / "agent.zip", make("hrl", 2)
    for source in (make("hrl", 1), make("hrl", 1)):
        source.save(path)
        load_weights(agent, path)
        assert not differing(weights(source), weights(agent))
        agent.policy.set_fairness(0.5)
        source.policy.set_fairness(0.6)
        source.save(path)
        load_weights(agent, path)
        assert not differing(weights(source), weights(agent))


def test_what_is_no_agent_and_what_is_no_file(make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected an agent of Stable-Baselines3"):
        load_weights(torch.nn.Linear(1, 1), tmp_path / "agent.zip")  # type: ignore[arg-type]
    agent = make("ppo", 2)
    (tmp_path / "text.zip").write_text("no zip")
    for name in ("absent.zip", "text.zip", "."):
        with pytest.raises(CheckpointError, match="does not hold the weights"):
            load_weights(agent, tmp_path / name)
