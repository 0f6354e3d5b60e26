#!/usr/bin/env bash
# A resumed Optuna search with a seeded sampler runs the same trials again.
#
# Behaviour: storages keep trials, not the sampler's random state. A process that opens the study
# again with `TPESampler(seed=1)` starts the sampler anew: as long as it draws at random, which it
# does for its first 10 trials, it proposes the settings that have been tried. With
# `RandomSampler` it repeats the whole search.
#
# Since: seen in 4.0.0 and 5.0.0 in a journal, and in 5.0.0 in memory.
#
# Matters: trainings are stopped and resumed, and results need a seed. Ten trials in five sittings
# are then two settings, five times each, with a best value that looks like the best of ten. Seed
# a resumed sampler by a number that depends on the trials that exist, such as `1000 +
# len(study.trials)`, or pickle the sampler beside the storage.
#
# Source: optuna/samplers/_tpe/sampler.py:384 (its RandomSampler) and
# optuna/samplers/_random.py:46 (`LazyRandomState(seed)` at construction). Optuna's tutorial on
# resuming a study says that storages do not keep samplers.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    optuna==5.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

optuna.logging.set_verbosity(optuna.logging.ERROR)


def search(file, sittings):
    """Learning rates tried by a search of 8 trials, in a number of sittings."""
    for _ in range(sittings):
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(file)),
            study_name="learning rate",
            sampler=optuna.samplers.TPESampler(seed=1),
            load_if_exists=True,
        )
        study.optimize(lambda trial: trial.suggest_float("rate", 0, 1), n_trials=8 // sittings)
    return [round(trial.params["rate"], 3) for trial in study.trials]


whole, resumed = search("whole.log", 1), search("resumed.log", 2)
print("optuna", optuna.__version__)
print("expected:", whole)
print("seen:", resumed)
assert len(set(whole)) == 8
assert resumed == whole[:4] * 2
CODE
