"""Export of trained agents and purifiers as ONNX graphs, of their deterministic path alone.

What draws is left out: nodes that sample draw the same in every run of ONNX Runtime.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from dsrm_agents.dsrm.purifier import FittedPurifier, Purifier, load_purifier
from dsrm_agents.hrl.policies import HierarchicalPolicy
from kuaisim_gym.disk import check_writable, write_atomically
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.lazy import check_extra
from kuaisim_gym.precision import single_precision

POLICY, PURIFIER = "policy.onnx", "purifier.onnx"


class SlateGraph(nn.Module):
    """Slates and scores of a :class:`~dsrm_agents.hrl.policies.HierarchicalPolicy`.

    Args:
        policy: The policy; the dial stays as it stands.

    Attributes:
        inputs: Names of the arguments of :meth:`forward`.
        outputs: Names of what it returns.
    """

    inputs = ("state", "exposed")
    outputs = ("slates", "scores")

    def __init__(self, policy: HierarchicalPolicy) -> None:
        super().__init__()
        self.policy = policy
        self.dialled = policy.worker.is_dialled

    def example(self, observation_space: spaces.Space[Any]) -> tuple[Tensor, ...]:
        """Observations of two users who have just arrived."""
        assert isinstance(observation_space, spaces.Dict)
        exposed = observation_space["exposed"].shape or ()
        return torch.zeros(2, self.policy.state_dim), torch.full((2, *exposed), -1)

    def forward(self, state: Tensor, exposed: Tensor) -> tuple[Tensor, Tensor]:
        """(N, d) float32 and (N, room) int64 to (N, K) int64 slates and (N, n_items) scores."""
        observed = {"state": state, "exposed": exposed}
        return self.policy.best(observed, self.policy.manager(state), self.dialled)


class ActionGraph(nn.Module):
    """Actions of PPO or A2C on state vectors, cut at the bounds of the space.

    Args:
        policy: Stable-Baselines3's policy.
        space: Its action space.

    Attributes:
        inputs: Names of the arguments of :meth:`forward`.
        outputs: Names of what it returns.
    """

    inputs = ("state",)
    outputs = ("actions",)
    low: Tensor
    high: Tensor

    def __init__(self, policy: ActorCriticPolicy, space: spaces.Box) -> None:
        super().__init__()
        self.policy = policy
        self.register_buffer("low", torch.as_tensor(space.low))
        self.register_buffer("high", torch.as_tensor(space.high))

    def example(self, observation_space: spaces.Space[Any]) -> tuple[Tensor, ...]:
        """Observations of two users."""
        return (torch.zeros(2, *(observation_space.shape or ())),)

    def forward(self, state: Tensor) -> Tensor:
        """(N, d) float32 to (N, m) float32: the policy's mean."""
        policy = self.policy
        features: Any = policy.extract_features(state, policy.pi_features_extractor)
        mean = policy.action_net(policy.mlp_extractor.forward_actor(features))
        return torch.minimum(torch.maximum(mean, self.low), self.high)


@single_precision()
def export_onnx(
    agent: BaseAlgorithm, folder: str | Path, purifier: Purifier | str | Path | None = None
) -> dict[str, Path]:
    """Writes an agent's policy, and the purifier before it, as ONNX graphs for any runtime.

    The graphs take any number of users, a row each: ``purifier.onnx`` the preference that the
    environment shows (``"states"``) to ``"preferences"``, which take its place in the state;
    ``policy.onnx`` the ``"state"``, and for a :class:`~dsrm_agents.HierarchicalPPO` the positions
    of the items ``"exposed"``, -1 padded, to ``"slates"`` and the ``"scores"`` of all items, or for
    PPO and A2C over scorers to ``"actions"``, by which ``catalogue.known`` ranks items.

    Args:
        agent: A HierarchicalPPO whose manager decides at every step, or PPO or A2C with state
            vectors and continuous actions. Its dial is exported as it stands.
        folder: Folder of the files, which is made if it is not there.
        purifier: The purifier, or its file; ``None`` for none.

    Returns:
        Paths of the files, by ``"policy"`` and ``"purifier"``.

    Raises:
        ImportError: The extra ``onnx`` is not installed.
        ConfigError: The agent or the purifier cannot be exported, for the reason that is given.
        DiskSpaceError: The disk is full.
        StorageError: The folder cannot be written for another reason.
    """
    check_extra("export_onnx", "onnx", "onnx", "onnxscript")
    folder, graph = Path(folder), _policy_graph(agent)
    check_writable(folder / POLICY)
    if isinstance(purifier, (str, Path)):
        purifier = load_purifier(purifier)
    if purifier is not None and not isinstance(purifier, FittedPurifier):
        raise ConfigError(
            f"A purifier is exported if it is a network of fit_purifier, got "
            f"{type(purifier).__name__}: export yours by torch.onnx.export."
        )
    paths = {"policy": folder / POLICY}
    example = graph.example(agent.observation_space)
    _write(paths["policy"], graph, example, graph.inputs, graph.outputs)
    if purifier is not None:
        paths["purifier"] = folder / PURIFIER
        example = (torch.zeros(2, purifier.config.width),)
        _write(paths["purifier"], purifier, example, ("states",), ("preferences",))
    return paths


def _policy_graph(agent: Any) -> SlateGraph | ActionGraph:
    """The graph of an agent.

    Raises:
        ConfigError: There is none for it.
    """
    if not isinstance(agent, BaseAlgorithm):
        raise ConfigError(
            f"export_onnx() exports Stable-Baselines3 models, got {type(agent).__name__}."
        )
    policy, reason = agent.policy, ""
    if isinstance(policy, HierarchicalPolicy):
        if policy.catalogue.changes:
            reason = "its catalogue changes from day to day, and a graph has one"
        elif policy.decision_period == 1:
            return SlateGraph(policy.cpu().eval())
        else:
            reason = "its manager decides every few steps alone, and a graph remembers nothing"
    elif type(policy) is not ActorCriticPolicy:
        reason = "its policy is of another kind"
    elif not isinstance(agent.observation_space, spaces.Box):
        reason = "it reads no state vector"
    elif not isinstance(agent.action_space, spaces.Box) or policy.squash_output:
        reason = "its actions are no scorers"
    else:
        return ActionGraph(policy.cpu().eval(), agent.action_space)
    raise ConfigError(
        f"{type(agent).__name__} with {type(policy).__name__} cannot be exported: {reason}. "
        "Export a HierarchicalPPO that decides at every step, or PPO or A2C over scorers; "
        "Recommender serves others in Python."
    )


def _write(
    path: Path,
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> None:
    """Exports a module whose arguments have a row for each user; completely or not at all."""
    users = torch.export.Dim("users")
    with torch.no_grad():
        program = torch.onnx.export(
            module,
            example,
            dynamo=True,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: users} for _ in example),
            custom_translation_table=_translations(),
            external_data=False,
            verbose=False,
        )
    assert program is not None
    program.optimize()
    model = program.model_proto
    free = [entry.type.tensor_type.shape.dim[0].dim_param for entry in model.graph.input]
    assert all(free), f"{path.name} takes a fixed number of users"
    write_atomically(path, model.SerializeToString())


def _translations() -> dict[Any, Any]:
    """Operators that the exporter does not know: a stable sort is ONNX's TopK of all values."""
    from onnxscript import opset18 as op

    def stable_sort(
        values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False
    ) -> Any:
        count = op.Shape(values, start=dim, end=dim + 1 if dim != -1 else None)
        return op.TopK(values, count, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}
