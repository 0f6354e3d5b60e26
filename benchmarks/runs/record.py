"""The record of a training: finished sessions, the learning curve, the time, the log."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger, TensorBoardOutputFormat
from tqdm.auto import tqdm

from kuaisim_gym.disk import check_free_space, disk_errors
from kuaisim_gym.errors import ConfigError

CURVE_POINTS = 50
LOG_MARGIN = 1 << 20  # free bytes that a TensorBoard log asks for


@dataclass(frozen=True)
class Seconds:
    """Durations in seconds."""

    wall: float = 0.0  # elapsed time
    processor: float = 0.0  # processor time of this process

    @classmethod
    def clocks(cls) -> Seconds:
        """Readings of both clocks; only differences mean something."""
        return cls(time.perf_counter(), time.process_time())

    def block(self) -> dict[str, float]:
        """Both durations by their names in results."""
        return {"seconds": self.wall, "processor_seconds": self.processor}

    def __add__(self, seconds: Seconds) -> Seconds:
        return Seconds(self.wall + seconds.wall, self.processor + seconds.processor)

    def __sub__(self, seconds: Seconds) -> Seconds:
        return Seconds(self.wall - seconds.wall, self.processor - seconds.processor)


class TrainingRecord(BaseCallback):
    """Counts finished sessions, records the learning curve, and stops training.

    The points of the curve go to the model's logger as well.

    Args:
        episodes: Sessions after which training stops.
        progress: Whether to show a progress bar.

    Attributes:
        finished: Number of finished sessions.
        curve: Points of the learning curve: means over the sessions since the previous point.
    """

    def __init__(self, episodes: int, progress: bool) -> None:
        super().__init__()
        self.episodes = episodes
        self.finished = 0
        self.curve: list[dict[str, float]] = []
        self._latest: list[dict[str, float]] = []  # finished since the last point
        self._earlier, self._started = Seconds(), Seconds.clocks()
        self._bar = tqdm(total=episodes, desc="Training", unit="session", disable=not progress)

    @property
    def seconds(self) -> Seconds:
        """Time since the start, and that of earlier processes."""
        return self._earlier + Seconds.clocks() - self._started

    def state(self) -> dict[str, Any]:
        """The whole record, for JSON."""
        return {
            "finished": self.finished,
            "curve": self.curve,
            "latest": self._latest,
            "seconds": asdict(self.seconds),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues a record that :meth:`state` has saved."""
        self.finished, self.curve = state["finished"], state["curve"]
        self._latest, self._earlier = state["latest"], Seconds(**state["seconds"])
        self._bar.update(self.finished)

    def _on_step(self) -> bool:
        ended = [info["session"] for info in self.locals["infos"] if "session" in info]
        self.finished += len(ended)
        self._latest += ended
        self._bar.update(len(ended))
        block = max(1, self.episodes // CURVE_POINTS)
        while len(self._latest) >= block:
            self._add_point(self._latest[:block])
            del self._latest[:block]
        return self.finished < self.episodes

    def _on_training_end(self) -> None:
        self._bar.close()

    def _add_point(self, block: list[dict[str, float]]) -> None:
        means = {name: float(np.mean([session[name] for session in block])) for name in block[0]}
        for name, value in means.items():
            self.logger.record(f"session/{name}", value)
        episodes = (len(self.curve) + 1) * len(block)
        self.curve.append({"episodes": episodes, "steps": self.num_timesteps, **means})


def agent_logger(folder: Path | None) -> Logger:
    """A logger for a model, which writes TensorBoard files into a folder or nothing.

    Raises:
        ConfigError: TensorBoard is not installed.
        StorageError: The folder cannot be written.
    """
    if folder is None:
        return Logger(folder=None, output_formats=[])
    if find_spec("tensorboard") is None:
        raise ConfigError("A TensorBoard log needs TensorBoard: pip install tensorboard.")
    return Logger(str(folder), [_TensorBoardLog(folder)])


class _TensorBoardLog(TensorBoardOutputFormat):
    """A log that ends a run with an error of ours where its disk is full."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with disk_errors(folder):
            super().__init__(str(folder))

    def write(
        self,
        key_values: dict[str, Any],
        key_excluded: dict[str, tuple[str, ...]],
        step: int = 0,
    ) -> None:
        check_free_space(self.folder, LOG_MARGIN)  # a thread writes, whose errors come late
        with disk_errors(self.folder):
            super().write(key_values, key_excluded, step)

    def close(self) -> None:
        with disk_errors(self.folder):
            super().close()
