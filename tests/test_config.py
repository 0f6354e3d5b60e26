from __future__ import annotations

import numpy as np
import pytest

from kuaisim_gym.config import SessionConfig
from kuaisim_gym.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_len": 1}, "max_len must be an integer of at least 2, got 1"),
        ({"max_len": 30.0}, "max_len"),
        ({"slate_size": 0}, "slate_size"),
        ({"slate_size": True}, "slate_size"),
        ({"window": 0}, "window"),
        ({"max_steps": 0}, "max_steps"),
        ({"ad_bound": 1.5}, r"ad_bound must be a number in \[0, 1\], got 1.5"),
        ({"ad_bound": float("nan")}, "ad_bound"),
        ({"ad_bound": "0.3"}, "ad_bound"),
        ({"ad_bound": True}, "ad_bound"),
        ({"window": 301}, "at most the 300 exposures"),
        ({"abandonment": "imbalanced"}, "Did you mean 'imbalance'"),
        ({"allow_repeats": 1}, "allow_repeats must be True or False, got 1"),
    ],
)
def test_bad_options_are_refused_with_what_came(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SessionConfig(**options)


def test_the_window_defaults_to_the_slate() -> None:
    assert SessionConfig(slate_size=6).exposure_window == 6
    assert SessionConfig(max_len=np.int64(30)) == SessionConfig()
    assert SessionConfig(slate_size=6, window=20).exposure_window == 20
