"""Base of Stable-Baselines3 policies that draw slates with networks of their design."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import Schedule

from dsrm_agents.common.catalogue import check_item_spaces
from kuaisim_gym.config import check_choice
from kuaisim_gym.precision import check_single_precision
from kuaisim_gym.simulator.catalogue import Catalogue
from kuaisim_gym.simulator.groups import Groups

# ActorCriticPolicy's other options (net_arch, log_std_init, ...) are of networks not used here.
PASSED_ON = ("use_sde", "optimizer_class", "optimizer_kwargs")


class SlateActorCritic(ActorCriticPolicy):
    """An actor-critic over slates; a subclass makes its modules and its optimiser in ``_build``.

    Args:
        observation_space: Dict with ``"state"`` and ``"exposed"``.
        action_space: MultiDiscrete, one item position a slot.
        lr_schedule: Learning rate.
        options: The subclass's constructor arguments, which are saved with the policy.
        **kwargs: Passed on to the base class, see ``PASSED_ON``.

    Attributes:
        state_dim: d, numbers in a state.
        slate_size: K.
        item_module: The module whose buffers describe the items one by one.
        item_options: Options that describe them, arrays with a row for each.

    Raises:
        ConfigError: The spaces are others, or an option is unknown.
    """

    item_module: ClassVar[str]
    item_options: ClassVar[tuple[str, ...]] = ()
    catalogue: Catalogue
    groups: Groups

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        options: dict[str, Any],
        **kwargs: Any,
    ) -> None:
        name = type(self).__name__
        check_single_precision(name)
        self.state_dim, self.slate_size = check_item_spaces(name, observation_space, action_space)
        for option in kwargs:
            check_choice(f"An option of {name}", option, PASSED_ON)
        self._options = options
        kwargs["features_extractor_class"] = FlattenExtractor
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        names = ("observation_space", "action_space", "lr_schedule", *PASSED_ON[1:])
        return {name: parameters[name] for name in names} | self._options

    def larger_options(self, catalogue: Catalogue) -> dict[str, Any]:
        """Options, beside catalogue and groups, of the same policy for further items.

        Args:
            catalogue: That of this policy, extended.
        """
        return {}

    def take_weights(self, policy: SlateActorCritic) -> None:
        """Takes over all parameters and buffers of a policy, but for those of single items.

        Args:
            policy: Of the same class and options, for as many items or fewer.
        """
        of_items = [
            f"{self.item_module}.{name}"
            for name, _ in self.get_submodule(self.item_module).named_buffers()
        ]
        state = policy.state_dict().items()
        weights = {name: tensor for name, tensor in state if name not in of_items}
        self.load_state_dict(self.state_dict() | weights)
        self.optimizer.load_state_dict(policy.optimizer.state_dict())

    def _optimise(self, groups: list[dict[str, Any]]) -> None:
        """Makes the optimiser of groups of parameters."""
        options = dict(self.optimizer_kwargs)
        if self.optimizer_class is torch.optim.Adam and "foreach" not in options:
            # One kernel a tensor takes a quarter of the time: these networks are small.
            options.setdefault("fused", True)
        self.optimizer = self.optimizer_class(groups, **options)
