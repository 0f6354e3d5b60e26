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
        ({"stochastic_response": None}, "stochastic_response must be True or False, got None"),
        ({"correlation": -0.1}, r"correlation must be a number in \[0, 1\], got -0.1"),
        ({"correlation": True}, "correlation"),
        ({"step_cost": "requests"}, "Did you mean 'request'"),
        ({"max_steps": True}, "max_steps must be an integer of at least 1, got True"),
        ({"max_steps": 2, "window": 21}, "at most the 20 exposures"),
        ({"slate_size": 1, "window": 31}, "at most the 30 exposures"),
    ],
)
def test_bad_options_are_refused_with_what_came(options, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SessionConfig(**options)


def test_numbers_of_numpy_are_those_of_python() -> None:
    options = {"ad_bound": 0.25, "correlation": 0.5, "allow_repeats": True, "window": 20}
    scalars = {
        "ad_bound": np.float32(0.25),
        "correlation": np.float16(0.5),
        "allow_repeats": np.bool_(True),
        "window": np.int8(20),
    }
    config = SessionConfig(**scalars)
    assert config == SessionConfig(**options)
    assert repr(config) == repr(SessionConfig(**options))
    weights = SessionConfig(reward_weights={"a": np.float32(1), "b": np.int64(3)})
    assert weights.behaviour_weights(("a", "b")).tolist() == [0.25, 0.75]
    for value in (np.float32(np.nan), np.float64(np.inf), np.float32(1.5), np.array(0.3)):
        with pytest.raises(ConfigError, match="ad_bound must be a number"):
            SessionConfig(ad_bound=value)


def test_the_window_defaults_to_the_slate() -> None:
    assert SessionConfig(slate_size=6).exposure_window == 6
    assert SessionConfig(slate_size=2).exposure_window == 2
    assert SessionConfig(max_len=np.int64(30)) == SessionConfig()
    assert SessionConfig(slate_size=6, window=20).exposure_window == 20


@pytest.mark.parametrize(
    ("options", "window"),
    [
        ({}, 10),
        ({"max_len": 7}, 7),
        ({"max_steps": 4}, 4),
        ({"max_len": 50}, 10),
        ({"window": 3}, 3),
    ],
)
def test_single_items_are_judged_ten_at_a_time(options, window: int) -> None:
    """The share of one item is 0 or 1, and a short session has no ten."""
    assert SessionConfig(slate_size=1, **options).exposure_window == window


def test_a_cap_above_the_longest_session_changes_nothing() -> None:
    assert SessionConfig(max_len=5, max_steps=9).longest == 5
    assert SessionConfig(max_len=5, max_steps=9).step_limit == 9
    assert SessionConfig(max_len=5, max_steps=3).longest == 3
