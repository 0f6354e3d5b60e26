"""Cost of a policy's action head as the catalogue grows: an update, a draw, and memory."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import Tensor

from benchmarks.speed.timing import Row, add_out, in_fresh_processes, process_memory, report, timed
from dsrm_agents import Codebook, HierarchicalPolicy, HSRLPolicy
from kuaisim_gym.simulator.catalogue import EMBEDDING_DIM, Catalogue

HEADS = ("independent", "plackett-luce", "semantic")
ITEMS = (1_000, 3_327, 10_000, 100_000, 1_000_000)
QUICK = (120, 240)
SLATE, ROOM, STATE = 10, 300, EMBEDDING_DIM + 6
BATCH, SESSIONS = 256, 64
LIMIT_GB = 8.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_out(parser, repeats=7)


def main(options: argparse.Namespace) -> None:
    """Measures, prints a table and writes ``heads.json``."""
    items = QUICK if options.quick else ITEMS
    cases = [(head, n, options.repeats) for head in HEADS for n in items]
    report(
        "heads",
        {"heads": in_fresh_processes(measured, cases)},
        options.out,
        repeats=options.repeats,
    )


def measured(case: tuple[str, int, int]) -> Row:
    """Milliseconds of an update on 256 slates and of a draw in 64 sessions, and MB at the peak."""
    head, n_items, repeats = case
    torch.set_num_threads(1)
    row: Row = {"head": head, "items": n_items}
    if (needed := _gigabytes(head, n_items)) > LIMIT_GB:
        left_out = f"needs {needed:,.0f} GB"
        return row | {"update_ms": left_out, "draw_ms": "", "MB_added": "", "parameters": ""}
    torch.manual_seed(0)
    catalogue = _catalogue(n_items)
    codebook = Codebook.fit(catalogue.known) if head == "semantic" else None
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forgets the fit's peak
    before = process_memory()["VmRSS"]
    policy = _policy(head, catalogue, codebook)
    batch, few = _observations(n_items, BATCH), _observations(n_items, SESSIONS)
    evaluate, draw = _calls(head, policy, batch, few)

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


def _gigabytes(head: str, n_items: int) -> float:
    """Least memory of one softmax a slot: weights, gradient, Adam's two, and a batch's logits."""
    if head != "independent":
        return 0.0
    hidden = 64
    return 4e-9 * n_items * SLATE * (4 * hidden + 3 * BATCH)


def _catalogue(n_items: int) -> Catalogue:
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((n_items, EMBEDDING_DIM), dtype=np.float32)
    return Catalogue(embedding, rng.zipf(1.5, n_items).clip(max=10**6))


def _spaces(n_items: int) -> tuple[spaces.Dict, spaces.MultiDiscrete]:
    observed: dict[str, spaces.Space[Any]] = {
        "state": spaces.Box(-8.0, 8.0, (STATE,)),
        "exposed": spaces.Box(-1, n_items - 1, (ROOM,), dtype=np.int32),
    }
    return spaces.Dict(observed), spaces.MultiDiscrete([n_items] * SLATE)


def _policy(head: str, catalogue: Catalogue, codebook: Codebook | None) -> ActorCriticPolicy:
    observed, slates = _spaces(catalogue.n_items)
    if head == "semantic":
        return HSRLPolicy(observed, slates, lambda _: 1e-4, catalogue, codebook=codebook)
    if head == "plackett-luce":
        return HierarchicalPolicy(
            observed, slates, lambda _: 1e-4, catalogue, worker="unconstrained"
        )
    state = spaces.Dict({"state": observed["state"]})  # it has no means of hiding what was shown
    return MultiInputActorCriticPolicy(state, slates, lambda _: 1e-4)


def _observations(n_items: int, n: int) -> dict[str, Tensor]:
    """Random states, half way through a session."""
    rng = np.random.default_rng(1)
    exposed: NDArray[np.int64] = np.full((n, ROOM), -1)
    for row in exposed:
        shown = min(ROOM // 2, n_items // 4)
        row[:shown] = rng.choice(n_items, shown, replace=False)
    state = rng.standard_normal((n, STATE), dtype=np.float32)
    return {"state": torch.as_tensor(state), "exposed": torch.as_tensor(exposed)}


def _calls(
    head: str, policy: Any, batch: dict[str, Tensor], few: dict[str, Tensor]
) -> tuple[Callable[[], tuple[Tensor, Tensor]], Callable[[], int]]:
    """An evaluation of slates, as (log-probabilities, values), and a draw of slates."""
    if head == "independent":
        batch, few = ({"state": views["state"]} for views in (batch, few))
    if head == "plackett-luce":
        with torch.no_grad():
            decision = policy.decide(batch)

        def evaluate() -> tuple[Tensor, Tensor]:
            now = policy.evaluate_decision(batch, decision.control, decision.draws)
            return now.draw_log_prob.sum(1) + now.control_log_prob, now.values
    else:
        with torch.no_grad():
            slates = policy(batch)[0]

        def evaluate() -> tuple[Tensor, Tensor]:
            values, log_prob, _ = policy.evaluate_actions(batch, slates)
            return log_prob, values

    def draw() -> int:
        with torch.no_grad():
            policy(few)
        return 1

    return evaluate, draw
