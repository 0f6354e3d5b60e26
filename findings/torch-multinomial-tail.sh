#!/usr/bin/env bash
# torch.multinomial never draws the long tail, unless it comes before the head.
#
# Behaviour: with replacement, and for more than one draw, `torch.multinomial` looks up uniform
# numbers in the running float32 sum of the probabilities. Behind the head of a catalogue this sum
# is near 1 and no longer moves by a probability below 3e-8. A million items that have 1 % of the
# probability together get none of 200,000 draws, where 2,000 are due; with the same items in the
# opposite order they get their 2,000. `Categorical.sample` of a shape does the same.
#
# Since: seen in PyTorch 2.13.0 on the CPU.
#
# Matters: catalogues are sorted by popularity, and so are the probabilities of policies and
# negative samplers. Exploration of the tail stops at once, while the propensities of the log say
# that it goes on. Put rare items first, pass float64, or add Gumbel noise to the logarithms and
# take the largest.
#
# Source: the documentation of torch.multinomial, which promises draws by the weights; that of
# torch.distributions.Categorical, whose sample is `torch.multinomial(probs, n, True)`
# (torch/distributions/categorical.py:148).
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'CODE'
import torch

HEAD, TAIL, DRAWS = 10, 1_000_000, 200_000

torch.manual_seed(0)
popular = torch.full((HEAD,), 0.99 / HEAD)
rare = torch.full((TAIL,), 0.01 / TAIL)


def tail_draws(sample, first):
    """Number of draws among the tail, whose first item has number `first`."""
    return int(((sample >= first) & (sample < first + TAIL)).sum())


head_first = torch.cat([popular, rare])
tail_first = torch.cat([rare, popular])
seen = {
    "head first": tail_draws(head_first.multinomial(DRAWS, replacement=True), HEAD),
    "tail first": tail_draws(tail_first.multinomial(DRAWS, replacement=True), 0),
    "float64": tail_draws(head_first.double().multinomial(DRAWS, replacement=True), HEAD),
    "Categorical": tail_draws(
        torch.distributions.Categorical(probs=head_first).sample((DRAWS,)), HEAD
    ),
}
print("torch", torch.__version__)
print("expected: about", DRAWS // 100, "of", DRAWS, "draws from the tail, each time")
print("seen:", seen)
assert seen["head first"] == seen["Categorical"] == 0
assert 1700 < seen["tail first"] < 2300 and 1700 < seen["float64"] < 2300
CODE
