"""Training that was stopped, at any point, and goes on to what it would have come to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from stable_baselines3 import A2C, PPO, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor, VecNormalize

from dsrm_agents import (
    HSRL,
    HierarchicalPPO,
    PurifyVecEnv,
    TrainingCheckpoint,
    make_vec_env,
    resume,
)
from dsrm_agents.common import checkpoint as module
from kuaisim_gym.errors import CheckpointError, ConfigError

N, STEPS = 4, 8
TOTAL, EVERY = 8 * N * STEPS, 2 * N * STEPS  # eight rollouts, a checkpoint before every second
SLATES = {"observation_type": "dict", "action_type": "slate"}
PER_CHECKPOINT = 2 * STEPS  # calls of a callback


def falling(left: float) -> float:
    return 2e-3 * left


def make(kind: str, dataset, purifier=None, env_options=None, **options):
    slates = SLATES if kind in ("hrl", "hsrl") else {}
    read = {} if purifier is None else {"preference": purifier.reads}
    given = {"dataset": dataset, "max_len": 6, **slates, **read, **(env_options or {})}
    env = make_vec_env("KuaiRec-Fair-v0", N, seed=2, **given)
    worn = env if purifier is None else PurifyVecEnv(env, purifier)
    options = {"seed": 3, "n_steps": STEPS, "learning_rate": falling, "device": "cpu"} | options
    if kind == "a2c":
        model = A2C("MlpPolicy", worn, **options)
    elif kind == "ppo":
        model = PPO("MlpPolicy", worn, batch_size=16, n_epochs=2, **options)
    elif kind == "hsrl":
        known = {"fairness": 0.5}
        model = HSRL("HSRLPolicy", worn, batch_size=16, policy_kwargs=known, **options)
    else:
        model = HierarchicalPPO("HierarchicalPolicy", worn, batch_size=16, n_epochs=2, **options)
    return model


class Killed(Exception):
    """Stands for the end of the process."""


class Killer(BaseCallback):
    """Ends it all in a step, or where a rollout begins; keeps what was seen until then."""

    def __init__(self, step: int | None = None, rollout: int | None = None) -> None:
        super().__init__()
        self.step, self.rollout, self.rollouts = step, rollout, 0
        self.seen: list[np.ndarray] = []

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            raise Killed
        seen = self.locals["new_obs"]
        self.seen.append(seen["state"] if isinstance(seen, dict) else seen)
        return True

    def _on_rollout_start(self) -> None:
        self.rollouts += 1
        if self.rollouts == self.rollout:
            raise Killed


def assert_equal(one, two) -> None:
    """Equal in all that training has changed, to the last bit."""
    assert (one.num_timesteps, one._n_updates) == (two.num_timesteps, two._n_updates)
    assert one.num_timesteps >= TOTAL
    for a, b in zip(one.policy.parameters(), two.policy.parameters(), strict=True):
        assert torch.equal(a, b)
    moments = (model.policy.optimizer.state_dict()["state"] for model in (one, two))
    for a, b in zip(*(state.values() for state in moments), strict=True):
        for x, y in zip(a.values(), b.values(), strict=True):
            assert torch.equal(torch.as_tensor(x), torch.as_tensor(y))
    for name, a in one.env.unwrapped.snapshot().items():
        np.testing.assert_array_equal(a, two.env.unwrapped.snapshot()[name])


def stray() -> None:
    """Leaves the global generators in another state than any training would."""
    torch.manual_seed(99)
    np.random.seed(99)


@pytest.fixture(scope="module")
def whole(small, dsrm):
    """Trainings that nobody interrupted, with what they saw."""
    made: dict[tuple[str, bool], tuple] = {}

    def find(kind: str, purified: bool) -> tuple:
        if (kind, purified) not in made:
            model, killer = make(kind, small, dsrm if purified else None), Killer()
            model.learn(TOTAL, killer)
            made[kind, purified] = model, killer.seen
        return made[kind, purified]

    return find


@pytest.mark.parametrize("purified", [False, True], ids=["raw", "purified"])
@pytest.mark.parametrize("kind", ["ppo", "a2c", "hrl", "hsrl"])
@pytest.mark.parametrize(
    "end",
    [
        {"step": PER_CHECKPOINT},  # the last step before a checkpoint
        {"rollout": 3},  # the moment it has been written
        {"step": PER_CHECKPOINT + 1},
        {"step": 2 * PER_CHECKPOINT + STEPS + 3},  # the middle of the second rollout after one
        {"rollout": 8},
    ],
    ids=str,
)
def test_the_end_makes_no_difference(small, dsrm, tmp_path, whole, end, kind, purified) -> None:
    expected, seen = whole(kind, purified)
    purifier = dsrm if purified else None
    path = tmp_path / "file"
    killer = Killer(**end)
    with pytest.raises(Killed):
        make(kind, small, purifier).learn(TOTAL, [TrainingCheckpoint(path, EVERY), killer])
    resumed = make(kind, small, purifier)
    written = len(killer.seen) // PER_CHECKPOINT * PER_CHECKPOINT
    if end == {"step": PER_CHECKPOINT}:
        assert not path.exists()
    else:
        stray()
        resume(path, resumed)
        assert resumed.num_timesteps == N * written > 0
    left = TOTAL - resumed.num_timesteps
    again = Killer()
    resumed.learn(left, [TrainingCheckpoint(path, EVERY), again], reset_num_timesteps=left == TOTAL)
    assert_equal(resumed, expected)
    np.testing.assert_array_equal(killer.seen[:written] + again.seen, seen)


@pytest.mark.parametrize("kind", ["ppo", "hrl", "hsrl"])
def test_ends_may_be_many(small, tmp_path, whole, kind) -> None:
    path, first = tmp_path / "file", N * STEPS
    for rollout in (3, 2, 4, None):  # each part comes a little further
        model = make(kind, small)
        if path.exists():
            resume(path, model)
        try:
            model.learn(
                TOTAL - model.num_timesteps,
                [TrainingCheckpoint(path, first), Killer(rollout=rollout)],
                reset_num_timesteps=not path.exists(),
            )
        except Killed:
            continue
    assert_equal(model, whole(kind, False)[0])


def test_an_anchored_worker_goes_on_from_where_it_was(small, tmp_path) -> None:
    known = {"policy_kwargs": {"worker": "band"}, "env_options": {"preference": "belief"}}
    path = tmp_path / "file"
    with pytest.raises(Killed):
        make("hrl", small, anchor=0.5, **known).learn(
            TOTAL, [TrainingCheckpoint(path, EVERY), Killer(rollout=4)]
        )
    with pytest.raises(CheckpointError, match="anchor is 1.0 here and was 0.5"):
        resume(path, make("hrl", small, anchor=1.0, **known))
    expected = make("hrl", small, anchor=0.5, **known).learn(TOTAL)
    resumed = make("hrl", small, anchor=0.5, **known)
    resume(path, resumed)
    resumed.learn(TOTAL - resumed.num_timesteps, reset_num_timesteps=False)
    assert_equal(resumed, expected)


def test_an_end_while_it_is_written_leaves_the_one_before(small, tmp_path, monkeypatch) -> None:
    path = tmp_path / "file"
    killed = make("a2c", small)
    with pytest.raises(Killed):
        killed.learn(TOTAL, [TrainingCheckpoint(path, EVERY), Killer(rollout=3)])
    before = path.read_bytes()

    def end(*_: object) -> None:
        raise Killed

    monkeypatch.setattr("os.replace", end)
    model = make("a2c", small)
    resume(path, model)
    np.testing.assert_array_equal(model._last_obs, killed._last_obs)
    np.testing.assert_array_equal(model._last_episode_starts, killed._last_episode_starts)
    with pytest.raises(Killed):
        model.learn(TOTAL, TrainingCheckpoint(path, EVERY), reset_num_timesteps=False)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_caller_gets_the_extra_back(small, tmp_path, checkpointed) -> None:
    file = checkpointed("a2c", extra=lambda: {"curve": [1.5, float("nan")], "name": "x"})
    kept = resume(file, make("a2c", small))
    assert kept["name"] == "x"
    np.testing.assert_array_equal(kept["curve"], [1.5, np.nan])
    assert resume(checkpointed("a2c"), make("a2c", small)) == {}


@pytest.fixture
def checkpointed(small, tmp_path):
    """Makes a checkpoint of a short training."""

    def write(kind: str, purifier=None, extra=dict, **options):
        path = tmp_path / f"{kind}.checkpoint"
        model = make(kind, small, purifier, **options)
        model.learn(2 * N * STEPS, TrainingCheckpoint(path, N * STEPS, extra))
        return path

    return write


def test_checkpoints_are_as_far_apart_as_asked(small, tmp_path, monkeypatch) -> None:
    written = []
    monkeypatch.setattr(module, "_write", lambda path, model, _: written.append(model._n_updates))
    make("a2c", small).learn(TOTAL, TrainingCheckpoint(tmp_path / "file", EVERY))
    assert written == [2, 4, 6]
    written.clear()
    make("a2c", small).learn(TOTAL, TrainingCheckpoint(tmp_path / "file", EVERY - 1))
    assert written == [2, 4, 6]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"seed": 4}, "seed is 4 here and was 3"),
        ({"gamma": 0.5}, "gamma is 0.5 here and was 0.99"),
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"learning_rate": lambda left: 1e-3}, "learning_rate"),
        ({"policy_kwargs": {"net_arch": [8]}}, "net_arch"),
        ({"policy_kwargs": {"activation_fn": torch.nn.ReLU}}, "ReLU"),
        ({"env_options": {"max_len": 7}}, "max_len is 7 here and was 6"),
        ({"env_options": {"split": "test"}}, "split is 'test' here"),
    ],
)
def test_another_training_s_is_refused(small, checkpointed, options, words) -> None:
    file = checkpointed("a2c")
    with pytest.raises(CheckpointError, match=words) as refused:
        resume(file, make("a2c", small, **options))
    assert "progress of another training" in str(refused.value)
    assert str(file) in str(refused.value)


def test_another_algorithm_s_and_dataset_s_are_refused(small, checkpointed) -> None:
    from kuaisim_gym.data.synthetic import SyntheticConfig, synthetic_kuairec

    with pytest.raises(CheckpointError, match=r"algorithm is .*PPO.* here and was .*A2C"):
        resume(checkpointed("a2c"), make("ppo", small))
    config = SyntheticConfig(n_users=400, n_test_users=80, n_items=240, events_per_user=40)
    other = synthetic_kuairec(seed=9, config=config)
    with pytest.raises(CheckpointError, match="dataset is"):
        resume(checkpointed("ppo"), make("ppo", other))
    with pytest.raises(CheckpointError, match="catalogue"):
        resume(checkpointed("hrl"), make("hrl", other))
    with pytest.raises(CheckpointError, match="fairness_coef is 5.0 here and was 3.5"):
        resume(checkpointed("hrl"), make("hrl", small, fairness_coef=5.0))
    with pytest.raises(CheckpointError, match="manager_lr_scale"):
        policy = {"manager_lr_scale": 2.0}
        resume(checkpointed("hrl"), make("hrl", small, policy_kwargs=policy))


def test_another_purifier_s_is_refused(small, dsrm, quick_fit, checkpointed) -> None:
    raw, worn = checkpointed("a2c"), checkpointed("ppo", dsrm)
    with pytest.raises(CheckpointError, match=r"wrappers is \['PurifyVecEnv'\] here and was \[\]"):
        resume(raw, make("a2c", small, dsrm))
    with pytest.raises(CheckpointError, match="wrap it in the purifier that it had"):
        resume(worn, make("ppo", small, quick_fit("dsrm", small, seed=2)))


def test_torn_and_foreign_files_are_refused(small, tmp_path, checkpointed) -> None:
    file = checkpointed("a2c")
    content = file.read_bytes()
    for size in (0, 1, 100, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
            resume(file, make("a2c", small))
    weight = make("a2c", small)
    resume(checkpointed("a2c"), weight)
    place = content.index(weight.policy.log_std.detach().numpy().tobytes())
    file.write_bytes(content[:place] + b"\x01" + content[place + 1 :])
    with pytest.raises(CheckpointError, match="checksum"):
        resume(file, make("a2c", small))
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        resume(tmp_path / "absent", make("a2c", small))
    for foreign in ([1, 2], {"format": "other"}):
        torch.save(foreign, file)
        with pytest.raises(CheckpointError, match="expected format"):
            resume(file, make("a2c", small))
    torch.save({"format": module.FORMAT}, file)
    with pytest.raises(CheckpointError, match="is damaged"):
        resume(file, make("a2c", small))


def test_files_that_run_code_are_not_read(small, tmp_path) -> None:
    ran = tmp_path / "ran"

    class Code:
        def __reduce__(self):
            return (ran.touch, ())

    torch.save(Code(), tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot be read"):
        resume(tmp_path / "file", make("a2c", small))
    assert not ran.exists()


def test_what_would_not_be_kept_is_refused(small, tmp_path) -> None:
    env = make_vec_env("KuaiRec-Fair-v0", N, dataset=small, max_len=6)
    path = tmp_path / "file"
    for model, words in (
        (TD3("MlpPolicy", env, learning_starts=1), "replay buffer, which they do not hold"),
        (PPO("MlpPolicy", env, use_sde=True, n_steps=8, batch_size=8), "exploration matrices"),
        (A2C("MlpPolicy", VecNormalize(env)), "do not hold the state of VecNormalize"),
        (A2C("MlpPolicy", VecMonitor(env)), "do not hold the state of VecMonitor"),
        (A2C("MlpPolicy", "CartPole-v1"), "environments of make_vec_env"),
    ):
        with pytest.raises(ConfigError, match=words):
            model.learn(N, TrainingCheckpoint(path, 1))
        with pytest.raises(ConfigError, match=words):
            resume(path, model)
    with pytest.raises(ConfigError, match="name a file"):
        TrainingCheckpoint(tmp_path, 1)
    with pytest.raises(ConfigError, match="every must be an integer of at least 1"):
        TrainingCheckpoint(path, 0)
