"""ONNX graphs do what the agents and purifiers do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO

from dsrm_agents import (
    HSRL,
    HierarchicalPPO,
    PurifyVecEnv,
    export_onnx,
    make_vec_env,
)
from dsrm_agents.common.item_scores import item_scores
from kuaisim_gym.errors import ConfigError

ENV = "KuaiRec-Fair-v0"
DICT = {"observation_type": "dict", "action_type": "slate"}


def disturbed(model):
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def run(path, **inputs):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


def graph_inputs(observation, rows=slice(None)):
    if not isinstance(observation, dict):
        return {"state": observation[rows]}
    exposed = observation["exposed"][rows].astype(np.int64)
    return {"state": observation["state"][rows], "exposed": exposed}


@pytest.mark.parametrize(
    ("worker", "share"),
    [("constrained", None), ("constrained", 0.3), ("band", None)],
)
def test_slates_are_those_of_the_agent(small, tmp_path, worker: str, share) -> None:
    env = make_vec_env(ENV, 6, dataset=small, preference="belief", **DICT)
    agent = disturbed(
        HierarchicalPPO("HierarchicalPolicy", env, policy_kwargs={"worker": worker}, seed=1)
    )
    if share is not None:
        agent.policy.set_fairness(share)
    path = export_onnx(agent, tmp_path / "made")["policy"]
    assert path == tmp_path / "made" / "policy.onnx"
    observation = env.reset()
    for _ in range(6):
        slates, _ = agent.predict(observation, deterministic=True)
        found = run(path, **graph_inputs(observation))
        np.testing.assert_array_equal(found["slates"], slates)
        np.testing.assert_allclose(
            found["scores"], item_scores(agent, observation), rtol=1e-4, atol=1e-4
        )
        alone = run(path, **graph_inputs(observation, slice(2, 3)))
        np.testing.assert_array_equal(alone["slates"], slates[2:3])
        observation, *_ = env.step(slates)


@pytest.mark.parametrize("kind", [PPO, A2C])
def test_actions_are_those_of_the_agent(small, tmp_path, kind) -> None:
    env = make_vec_env(ENV, 6, dataset=small)
    agent = disturbed(kind("MlpPolicy", env, seed=1))
    with torch.no_grad():
        agent.policy.action_net.bias[:2] = torch.tensor([9.0, -9.0])  # beyond the bounds
    path = export_onnx(agent, tmp_path)["policy"]
    observation = env.reset()
    for _ in range(3):
        actions, _ = agent.predict(observation, deterministic=True)
        found = run(path, **graph_inputs(observation))["actions"]
        np.testing.assert_allclose(found, actions, rtol=1e-5, atol=1e-6)
        observation, *_ = env.step(actions)
    assert (found[:, :2] == [1.0, -1.0]).all()


@pytest.mark.parametrize("name", ["dsrm", "student", "vae"])
def test_a_purifier_gives_the_same_preferences(small, quick_fit, tmp_path, name: str) -> None:
    steps = {} if name == "vae" else {"diffusion_steps": 3}  # each is a copy of the network
    purifier = quick_fit(name, small, **steps)
    env = make_vec_env(ENV, 6, dataset=small, preference="parts")
    agent = PPO("MlpPolicy", PurifyVecEnv(env, purifier))
    purifier.save(tmp_path / "purifier.safetensors")
    paths = export_onnx(agent, tmp_path, tmp_path / "purifier.safetensors")
    states = env.reset()[:, env.preference_slice]
    for rows in (slice(None), slice(1, 2)):
        found = run(paths["purifier"], states=states[rows])["preferences"]
        np.testing.assert_allclose(found, purifier.denoise(states[rows]), rtol=1e-4, atol=1e-5)


def test_the_same_call_gives_the_same_file(small, tmp_path) -> None:
    agent = PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small), seed=1)
    before = [parameter.clone() for parameter in agent.policy.parameters()]
    first, again = (export_onnx(agent, tmp_path / name)["policy"] for name in ("a", "b"))
    assert first.read_bytes() == again.read_bytes()
    assert all(map(torch.equal, before, agent.policy.parameters()))


def test_what_cannot_be_exported_is_refused_with_a_reason(small, tmp_path) -> None:
    env = make_vec_env(ENV, 2, dataset=small, **DICT)
    scorer = make_vec_env(ENV, 2, dataset=small)
    for agent, message in (
        (HSRL("HSRLPolicy", env), "HSRL with HSRLPolicy cannot be exported: its policy is of"),
        (
            HierarchicalPPO("HierarchicalPolicy", env, policy_kwargs={"decision_period": 2}),
            "its manager decides every few steps alone",
        ),
        (PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small, action_type="discrete")),
         "its actions are no scorers"),
        ("agent.zip", "exports Stable-Baselines3 models, got str"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            export_onnx(agent, tmp_path)

    class Mine:
        reads, fingerprint = "pooled", small.fingerprint

    with pytest.raises(ConfigError, match="a network of fit_purifier, got Mine"):
        export_onnx(PPO("MlpPolicy", scorer), tmp_path, Mine())
    assert not list(tmp_path.iterdir())


def test_without_the_extra_its_name_is_given(small, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"needs onnxscript, .* install 'kuaisim-gym\[onnx\]'"):
        export_onnx(PPO("MlpPolicy", make_vec_env(ENV, 2, dataset=small)), tmp_path)
