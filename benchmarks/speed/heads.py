"""Cost of action heads by size of the catalogue: an update, a draw, and memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import Tensor

from dsrm_agents import Codebook, HierarchicalPolicy, HSRLPolicy
from kuaisim_gym.simulator.catalogue import Catalogue

from . import timing
from .timing import Row, process_memory, timed

HEADS = ("independent", "plackett-luce", "semantic")
ITEMS = (1_000, 3_327, 10_000, 100_000, 1_000_000)
QUICK = (120, 240)
DIM = 9  # of embeddings: quality and eight tastes, the most that a catalogue has
SLATE, ROOM, STATE = 10, 300, DIM + 6
BATCH, SESSIONS = 256, 64
LIMIT_GB = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    timing.add_out(parser, repeats=7)


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``heads.json``."""
    items, repeats = QUICK if options.quick else ITEMS, options.repeats
    cases = list(product(HEADS, items, [repeats]))
    tables = {"heads": timing.in_fresh_processes(measured, cases)}
    timing.report("heads", tables, options.out, repeats=repeats)


def measured(case: tuple[str, int, int]) -> Row:
    """Milliseconds of an update on 256 slates and of a draw in 64 sessions, and peak MB."""
    head, n_items, repeats = case
    torch.set_num_threads(1)
    row: Row = {"head": head, "items": n_items}
    hidden = 64
    # Least memory of a softmax per slot: weights, gradient, Adam's two moments, and batch logits.
    gigabytes = 4e-9 * n_items * SLATE * (4 * hidden + 3 * BATCH)
    if head == "independent" and gigabytes > LIMIT_GB:
        message = f"needs {gigabytes:,.0f} GB"
        return row | {"update_ms": message, "draw_ms": "", "MB_added": "", "parameters": ""}
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((n_items, DIM), dtype=np.float32)
    catalogue = Catalogue(embedding, rng.zipf(1.5, n_items).clip(max=10**6))
    codebook = Codebook.fit(catalogue.known) if head == "semantic" else None
    timing.forget_peak()
    before = process_memory()["VmRSS"]
    policy = _policy(head, catalogue, codebook)
    batch, sessions = _observations(n_items, BATCH), _observations(n_items, SESSIONS)
    evaluate, draw = _calls(head, policy, batch, sessions)

    def update() -> int:
        log_prob, values = evaluate()
        policy.optimizer.zero_grad()
        (values.square().mean() - log_prob.mean()).backward()
        policy.optimizer.step()
        return 1

    row["update_ms"] = 1e3 / timed(update, repeats)["per_processor_second"]
    row["draw_ms"] = 1e3 / timed(draw, repeats)["per_processor_second"]
    row["MB_added"] = process_memory()["VmHWM"] - before
    row["parameters"] = sum(weights.numel() for weights in policy.parameters())
    return row


def _policy(head: str, catalogue: Catalogue, codebook: Codebook | None) -> ActorCriticPolicy:
    n_items = catalogue.n_items
    observed: dict[str, spaces.Space[Any]] = {"state": spaces.Box(-8.0, 8.0, (STATE,))}
    slates = spaces.MultiDiscrete([n_items] * SLATE)
    if head == "independent":  # cannot mask exposed items
        return MultiInputActorCriticPolicy(spaces.Dict(observed), slates, lambda _: 1e-4)
    observed["exposed"] = spaces.Box(-1, n_items - 1, (ROOM,), dtype=np.int32)
    space = spaces.Dict(observed)
    if head == "semantic":
        return HSRLPolicy(space, slates, lambda _: 1e-4, catalogue, codebook=codebook)
    return HierarchicalPolicy(space, slates, lambda _: 1e-4, catalogue, worker="unconstrained")


def _observations(n_items: int, n: int) -> dict[str, Tensor]:
    """Random states in the middle of a session."""
    rng = np.random.default_rng(1)
    exposed = np.full((n, ROOM), -1)
    shown = min(ROOM // 2, n_items // 4)
    for row in exposed:
        row[:shown] = rng.choice(n_items, shown, replace=False)
    state = rng.standard_normal((n, STATE), dtype=np.float32)
    return {"state": torch.as_tensor(state), "exposed": torch.as_tensor(exposed)}


def _calls(
    head: str, policy: Any, batch: dict[str, Tensor], sessions: dict[str, Tensor]
) -> tuple[Callable[[], tuple[Tensor, Tensor]], Callable[[], int]]:
    """Functions that evaluate slates, as (log-probabilities, values), and draw slates."""
    if head == "independent":
        batch, sessions = ({"state": views["state"]} for views in (batch, sessions))
    if head == "plackett-luce":
        with torch.no_grad():
            decision = policy.decide(batch)

        def evaluate() -> tuple[Tensor, Tensor]:
            judged = policy.evaluate_decision(batch, decision.control, decision.slates)
            return judged.choice_log_prob.sum(1) + judged.control_log_prob, judged.values
    else:
        with torch.no_grad():
            slates = policy(batch)[0]

        def evaluate() -> tuple[Tensor, Tensor]:
            values, log_prob, _ = policy.evaluate_actions(batch, slates)
            return log_prob, values

    def draw() -> int:
        with torch.no_grad():
            policy(sessions)
        return 1

    return evaluate, draw
