"""Stage I: fits the module on the train users' logs (section 4.4)."""

from __future__ import annotations

import logging

import numpy as np
import torch
from tqdm.auto import trange

from dsrm_agents.dsrm.purifier import DSRM, DSRMConfig
from dsrm_agents.dsrm.targets import build_pairs
from kuaisim_gym.data import Dataset
from kuaisim_gym.envs.assembly import preference_encoder
from kuaisim_gym.errors import ConfigError
from kuaisim_gym.simulator import load_catalogue

VIEWS = 8  # corrupted views of each history
EMA = 0.995
WEIGHT_DECAY = 1e-4

logger = logging.getLogger(__name__)


def fit_dsrm(
    dataset: Dataset,
    mode: str = "debiased",
    *,
    prediction: str | None = None,
    diffusion_steps: int = 20,
    updates: int = 3000,
    batch_size: int = 512,
    learning_rate: float = 2e-3,
    seed: int = 0,
    progress: bool = False,
) -> DSRM:
    """Fits DSRM; no row and no user of the test split takes part.

    Args:
        dataset: The data.
        mode: ``"debiased"`` (default) or ``"literal"`` (eq. 7 as printed: its optimum is the
            identity).
        prediction: ``"x0"`` or ``"noise"``; by default noise, as printed, in literal mode only.
        diffusion_steps: K of the diffusion.
        updates: Gradient steps.
        batch_size: Pairs a step.
        learning_rate: Of AdamW.
        seed: Same seed, same weights.
        progress: Whether to show a progress bar.

    Returns:
        The fitted module, with averaged weights, in evaluation mode.

    Raises:
        ConfigError: An option is unknown or out of range.
    """
    for name, value, least in (
        ("updates", updates, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}.")
    if not learning_rate > 0:
        raise ConfigError(f"learning_rate must be positive, got {learning_rate}.")
    catalogue, encoder = load_catalogue(dataset), preference_encoder(dataset)
    config = DSRMConfig(
        dim=encoder.dim,
        mode=mode,
        prediction=prediction or ("noise" if mode == "literal" else "x0"),
        diffusion_steps=diffusion_steps,
        fingerprint=dataset.fingerprint,
    )
    pairs = build_pairs(
        dataset.training, catalogue, encoder, mode, VIEWS, np.random.default_rng(seed)
    )
    observed, target = torch.from_numpy(pairs.observed), torch.from_numpy(pairs.target)
    # Seeds torch inside the fork only; the caller's random state is as before afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = DSRM(config)
        module.set_whitening(observed, target)
        averaged = torch.optim.swa_utils.AveragedModel(
            module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA)
        )
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=learning_rate, weight_decay=WEIGHT_DECAY
        )
        loss = torch.zeros(())
        for _ in trange(updates, desc=f"DSRM ({mode})", unit="update", disable=not progress):
            rows = torch.randint(len(observed), (batch_size,))
            loss = module.loss(observed[rows], target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            averaged.update_parameters(module)
    logger.info("Fitted DSRM (%s) on %d pairs; last loss %.4f", mode, len(observed), loss.item())
    fitted = averaged.module
    assert isinstance(fitted, DSRM)
    return fitted.eval()
