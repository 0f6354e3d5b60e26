"""Options of the sequential response model: sizes and training."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kuaisim_gym.errors import ConfigError


@dataclass(frozen=True)
class SequentialConfig:
    """Options of the sequential response model; sizes are KuaiSim's.

    Attributes:
        latent: Width of a field's embedding.
        encoding: Width of an encoded user, item or set of responses; a state is twice as wide.
        layers: Of the transformer.
        heads: Of its attention; they divide twice ``encoding``.
        feedforward: Hidden width of its position-wise networks.
        scorer: Hidden width of the scorer.
        window: Events that one attends to, itself included. Through ``layers`` layers an answer
            depends on the last ``layers * (window - 1) + 1`` events.
        dropout: Rate in training, in [0, 1).
        id_dropout: Share of users and of items whose id is masked in a training batch, in [0, 1):
            what teaches the model to answer for users and items that it knows by features alone.
        learning_rate: Of Adam in the first epoch.
        decay: Factor of the learning rate from one epoch to the next, in (0, 1].
        batch_events: Events in a training batch, padding included.
        epochs: Passes over the rows, at most.
        patience: Epochs without a better held-out loss after which training stops.
    """

    latent: int = 32
    encoding: int = 64
    layers: int = 2
    heads: int = 4
    feedforward: int = 64
    scorer: int = 128
    window: int = 100
    dropout: float = 0.1
    id_dropout: float = 0.1
    learning_rate: float = 2e-3
    decay: float = 0.7
    batch_events: int = 4096
    epochs: int = 6
    patience: int = 2

    def __post_init__(self) -> None:
        for option in fields(self):
            value = getattr(self, option.name)
            is_integer = isinstance(option.default, int)
            types = int if is_integer else (int, float)
            if isinstance(value, bool) or not isinstance(value, types):
                kind = "an integer" if is_integer else "a number"
                raise ConfigError(f"{option.name} must be {kind}, got {value!r}.")
            if is_integer and value < 1:
                raise ConfigError(f"{option.name} must be at least 1, got {value}.")
        for name in ("dropout", "id_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ConfigError(f"{name} must lie in [0, 1), got {getattr(self, name)}.")
        if not self.learning_rate > 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}.")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay must lie in (0, 1], got {self.decay}.")
        if self.width % self.heads:
            raise ConfigError(
                f"heads must divide the state's width {self.width}, got {self.heads}."
            )

    @property
    def width(self) -> int:
        """Width of an event and of a state of the transformer."""
        return 2 * self.encoding

    @property
    def reach(self) -> int:
        """Number of last events that a state depends on."""
        return self.layers * (self.window - 1) + 1
