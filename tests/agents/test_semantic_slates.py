"""Slates drawn token by token, against enumeration, a slow implementation and sampling."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from dsrm_agents.common.bounds import SlateBounds
from dsrm_agents.hsrl.network import CONTEXTS, MultiLevelCritic, TokenNetwork
from dsrm_agents.hsrl.slates import SemanticSlates
from dsrm_agents.hsrl.trie import LEAST_LOG_WEIGHT, Trie
from kuaisim_gym.errors import ConfigError

K, DIM, STATE = 3, 5, 4
# Seven items: group (0 is popular), two tokens, and a place in the bucket.
IDS = np.array(
    [
        [0, 0, 0, 0], [0, 0, 0, 1], [0, 2, 1, 0],
        [1, 0, 0, 0], [1, 1, 2, 0], [1, 1, 2, 1], [1, 2, 0, 0],
    ]
)  # fmt: skip
WIDTHS = (2, 3, 3, 2)
LOG_WEIGHT = np.array([0.5, -1.0, 0.3, 0.0, 1.2, -0.4, 0.1])
KINDS = [(context, grouped) for context in CONTEXTS for grouped in (True, False)]


class World:
    """Networks of random weights over the seven items."""

    def __init__(self, context: str = "sampled", grouped: bool = True, scale: float = 1.0) -> None:
        torch.manual_seed(0)
        self.grouped = grouped
        self.ids = IDS if grouped else IDS[:, 1:]
        if not grouped:  # places in a bucket are of both groups together
            self.ids = np.column_stack([IDS[:, 1:3], [0, 1, 0, 2, 0, 1, 0]])
        self.widths = WIDTHS if grouped else (3, 3, 3)
        self.trie = Trie(self.ids, self.widths, LOG_WEIGHT)
        items = torch.randn(len(IDS), 6)
        self.network = TokenNetwork(self.widths, STATE, items, context, DIM, 8)
        for one in (*self.network.heads, self.network.ranker):
            torch.nn.init.normal_(one.weight, std=scale)
        self.states = torch.randn(3, STATE)

    def slates(
        self,
        hidden: tuple[int, ...] = (),
        least: int = 0,
        most: int = K,
        state: int = 0,
        n: int = 1,
    ) -> SemanticSlates:
        states = self.states[state].expand(n, -1)
        shown = torch.tensor([hidden or (-1,)]).expand(n, -1)
        columns = [(least, most), (K - most, K - least)][: 1 + self.grouped]
        low, high = (torch.tensor([column]).expand(n, -1) for column in zip(*columns, strict=True))
        bounds = SlateBounds(low, high)
        context = self.network.encoder(states)
        return SemanticSlates(
            self.network, self.trie, context, self.trie.shown(shown), self.grouped, bounds, K
        )

    def item_probabilities(self, hidden: tuple[int, ...] = (), state: int = 0) -> list[float]:
        """Of one draw, by walking down to every item."""
        return [
            0.0 if item in hidden else math.exp(self._walk(item, hidden, state))
            for item in range(len(IDS))
        ]

    @torch.no_grad()
    def _walk(self, item: int, hidden: tuple[int, ...], state: int) -> float:
        context, total = self.network.encoder(self.states[state]), 0.0
        left = [other for other in range(len(IDS)) if other not in hidden]
        for depth, width in enumerate(self.widths):
            below = [
                [other for other in left if self.ids[other, depth] == token]
                for token in range(width)
            ]
            if depth < len(self.widths) - 1:
                logits = self.network.heads[depth](context)
            else:
                query = self.network.ranker(context)
                logits = torch.stack([
                    query @ self.network.items[ones[0]] if ones else query.sum() * 0
                    for ones in below
                ])  # fmt: skip
            weights = [
                math.exp(logit) * sum(math.exp(LOG_WEIGHT[other]) for other in ones)
                for logit, ones in zip(logits.tolist(), below, strict=True)
            ]
            token = int(self.ids[item, depth])
            total += math.log(weights[token] / sum(weights))
            left = below[token]
            if depth < len(self.widths) - 1:
                if self.network.context == "sampled":
                    embedding = self.network.embeddings[depth].weight[token]
                elif self.network.context == "expected":
                    embedding = logits.softmax(0) @ self.network.embeddings[depth].weight
                if self.network.context != "state":
                    context = self.network.norms[depth](context - embedding)
        return total


def all_slates(least: int = 0, most: int = K, hidden: tuple[int, ...] = ()) -> Tensor:
    slates = [
        slate
        for slate in itertools.permutations(set(range(len(IDS))) - set(hidden), K)
        if least <= sum(IDS[item, 0] == 0 for item in slate) <= most
    ]
    return torch.tensor(slates)


def probability(world: World, slates: Tensor, **options) -> Tensor:
    paths = world.slates(n=len(slates), **options).paths(slates)
    return paths.log_prob.sum(dim=(1, 2)).exp().detach()


@pytest.mark.parametrize(("context", "grouped"), KINDS)
@pytest.mark.parametrize("hidden", [(), (1, 4), (4, 5, 6)])
def test_probabilities_are_those_of_drawing_without_replacement(
    context: str, grouped: bool, hidden: tuple[int, ...]
) -> None:
    world, slates = World(context, grouped), all_slates(hidden=hidden)
    for state in range(3):
        of_item = world.item_probabilities(hidden, state)
        assert sum(of_item) == pytest.approx(1.0, abs=1e-6)
        expected = []
        for slate in slates.tolist():
            left, product = 1.0, 1.0
            for item in slate:
                product *= of_item[item] / left
                left -= of_item[item]
            expected.append(product)
        found = probability(world, slates, hidden=hidden, state=state)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-7)
        assert float(found.sum()) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(("least", "most"), [(0, 1), (1, 1), (1, 2), (2, 2), (3, 3)])
def test_probabilities_of_the_slates_within_bounds_sum_to_one(least: int, most: int) -> None:
    world, slates = World(), all_slates(least, most)
    found = probability(world, slates, least=least, most=most)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-4)
    allowed = {tuple(slate) for slate in slates.tolist()}
    others = torch.tensor([s for s in all_slates().tolist() if tuple(s) not in allowed])
    assert (probability(world, others, least=least, most=most) == 0.0).all()


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_an_unlikely_group_that_bounds_ask_for_has_the_right_probability(bias: float) -> None:
    world, slates = World(), all_slates(1, 1)
    with torch.no_grad():
        world.network.heads[0].bias[0] = bias
    found = probability(world, slates, least=1, most=1)
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("context", "grouped"), KINDS)
def test_hidden_items_have_exactly_no_probability(context: str, grouped: bool) -> None:
    world = World(context, grouped)
    for hidden in [(0,), (2, 2, 6), (4, 5)]:
        slates = torch.tensor([[item, *sorted({0, 1, 3} - {item})[:2]] for item in hidden])
        assert probability(world, slates, hidden=hidden).tolist() == [0.0] * len(slates)
        drawn, _ = world.slates(hidden, n=500).draw()
        assert not np.isin(drawn, hidden).any()


@pytest.mark.parametrize(
    ("context", "grouped", "least", "most"),
    [(context, True, *bounds) for context in CONTEXTS for bounds in ((0, 3), (1, 2))]
    + [(context, False, 0, 3) for context in CONTEXTS],
)
def test_slates_are_drawn_as_often_as_they_are_likely(
    context: str, grouped: bool, least: int, most: int
) -> None:
    world, n = World(context, grouped), 40_000
    bounds = {"least": least, "most": most} if grouped else {}
    slates = all_slates(**bounds, hidden=(1,))
    torch.manual_seed(1)
    drawn, log_prob = world.slates((1,), n=n, **bounds).draw()
    place = {tuple(slate): at for at, slate in enumerate(slates.tolist())}
    counts = np.bincount([place[tuple(slate)] for slate in drawn.tolist()], minlength=len(slates))
    expected = probability(world, slates, hidden=(1,), **bounds).numpy()
    spread = np.sqrt(expected * (1 - expected) / n) + 1e-9
    assert np.abs(counts / n - expected).max() < 5 * spread.max()
    assert (np.abs(counts / n - expected) < 5 * spread + 3 / n).all()
    np.testing.assert_allclose(
        log_prob.exp(), expected[[place[tuple(slate)] for slate in drawn.tolist()]], rtol=1e-3
    )


class Wide(World):
    """Sixty items of which a beam keeps few: more prefixes a level than the slate is long."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(5)
        every = np.array(list(itertools.product(range(2), range(5), range(5), range(2))))
        self.ids = every[np.sort(rng.choice(len(every), 60, replace=False))]
        self.widths = (2, 5, 5, 2)
        self.trie = Trie(self.ids, self.widths, rng.standard_normal(60))
        items = torch.randn(60, 6)
        self.network = TokenNetwork(self.widths, STATE, items, "sampled", DIM, 8)
        for one in self.network.heads:
            torch.nn.init.normal_(one.weight, std=0.5)

    def of_items(self) -> np.ndarray:
        """(60,) probabilities of one draw, exact: a slate's first."""
        items = torch.arange(60)[:, None].expand(-1, K)
        paths = self.slates(n=60).paths(items)
        return paths.log_prob[:, 0].sum(1).exp().detach().numpy()


def test_a_beam_that_cuts_most_prefixes_still_draws_without_replacement() -> None:
    world, n = Wide(), 60_000
    of_item = world.of_items()
    assert of_item.sum() == pytest.approx(1.0, abs=1e-5)
    torch.manual_seed(2)
    drawn = world.slates(n=n)
    slates, _ = drawn.draw()
    first = np.bincount(slates[:, 0], minlength=60) / n
    spread = np.sqrt(of_item * (1 - of_item) / n)
    assert (np.abs(first - of_item) < 5 * spread + 1 / n).all()
    # The second draw is in proportion, too, given the first.
    second = np.bincount(slates[:, 1], minlength=60) / n
    expected = of_item * ((of_item / (1 - of_item)).sum() - of_item / (1 - of_item))
    assert (np.abs(second - expected) < 5 * np.sqrt(expected / n) + 1 / n).all()


def test_the_search_finds_nearly_the_best_slate() -> None:
    world = Wide()
    of_item = world.of_items()
    best, _ = world.slates().draw(deterministic=True)
    assert of_item[best[0]].sum() > 0.98 * np.sort(of_item)[-K:].sum()
    assert len(set(best[0].tolist())) == K


def test_a_session_that_has_shown_nearly_everything_is_refused() -> None:
    world = World()
    slates, _ = world.slates((0, 1, 2, 3)).draw()
    assert sorted(slates[0].tolist()) == [4, 5, 6]
    with pytest.raises(ConfigError, match="Fewer than 3 items are left"):
        world.slates((0, 1, 2, 3, 4)).draw()


def test_draws_keep_to_the_bounds() -> None:
    world = World()
    for least, most in [(0, 0), (1, 1), (1, 2), (3, 3)]:
        for deterministic in (False, True):
            slates, _ = world.slates(least=least, most=most, n=200).draw(deterministic)
            popular = (IDS[slates.numpy(), 0] == 0).sum(axis=1)
            assert (popular >= least).all() and (popular <= most).all()
            assert all(len(set(slate)) == K for slate in slates.tolist())


@pytest.mark.parametrize("grouped", [True, False])
def test_without_learned_logits_items_are_drawn_by_their_prior(grouped: bool) -> None:
    world = World(grouped=grouped, scale=0.0)
    weight = np.exp(LOG_WEIGHT)
    np.testing.assert_allclose(world.item_probabilities(), weight / weight.sum(), rtol=1e-5)
    best, _ = world.slates().draw(deterministic=True)
    assert best.tolist() == [np.argsort(-LOG_WEIGHT)[:K].tolist()]


def test_the_best_slate_is_that_of_the_likeliest_items() -> None:
    world = World("expected", scale=0.3)
    for state in range(3):
        best, _ = world.slates(state=state).draw(deterministic=True)
        likeliest = np.argsort(world.item_probabilities(state=state))[::-1][:K]
        assert best[0].tolist() == likeliest.tolist()


@pytest.mark.parametrize("sums", [False, True])
def test_what_is_left_below_a_prefix(sums: bool) -> None:
    trie, items = World().trie, torch.tensor([[0, 4, 4, -1], [-1, -1, -1, -1]])
    shown = trie.shown(items)
    if sums:  # an item is closed, another one or the same is shown
        closed = torch.zeros(2, trie.n_items, dtype=torch.bool)
        closed[0, [0, 4]] = True
        items[0, 1:3] = -1
        shown = trie.left(closed, items)
    mass = trie.log_mass(0, torch.zeros(2, 1, dtype=torch.long), shown).exp()[:, 0]
    weight = np.exp(LOG_WEIGHT - LOG_WEIGHT.max())
    expected = [[weight[[1, 2]].sum(), weight[[3, 5, 6]].sum()],
                [weight[:3].sum(), weight[3:].sum()]]  # fmt: skip
    np.testing.assert_allclose(mass, expected, rtol=1e-5)
    # Below (long tail, token 1): three tokens, of which the last alone leads to items.
    last = trie.log_mass(2, torch.full((2, 1), 1 * 3 + 1), shown)[:, 0]
    assert (last[:, :2] < -1e8).all()
    np.testing.assert_allclose(last[:, 2].exp(), [weight[5], weight[[4, 5]].sum()], rtol=1e-5)
    assert trie.count(shown).tolist() == [[2, 3], [3, 4]]


def test_weights_far_below_the_best_are_cut_and_what_they_leave_stays_exact() -> None:
    log_weight = np.array([0.0, -10.0, -15.0, -500.0])
    trie = Trie(np.arange(4)[:, None], (4,), log_weight)
    shown = trie.shown(torch.tensor([[0]]))
    mass = trie.log_mass(0, torch.zeros(1, 1, dtype=torch.long), shown)[0, 0]
    assert mass[0] < -1e8
    np.testing.assert_allclose(mass[1:], [-10.0, -15.0, LEAST_LOG_WEIGHT], atol=1e-4)


def test_more_ids_than_there_is_room_for_are_refused() -> None:
    with pytest.raises(ConfigError, match="fit a codebook with fewer codes"):
        Trie(np.zeros((1, 4), dtype=int), (256, 256, 256, 9), np.zeros(1))


def test_likely_slates_leave_finite_gradients() -> None:
    world = World(scale=300.0)  # all but one path have next to no probability
    slates, _ = world.slates(n=4).draw()
    log_prob = world.slates(n=4).paths(slates).log_prob

    def steepest(loss: Tensor) -> float:
        learned = list(world.network.parameters())
        gradients = torch.autograd.grad(loss.sum(), learned, retain_graph=True, allow_unused=True)
        return max(float(one.abs().max()) for one in gradients if one is not None)

    torch.testing.assert_close(log_prob[:, 0], torch.zeros(4, len(WIDTHS)), atol=1e-5, rtol=0)
    assert steepest(log_prob[:, 0]) < 1e-3  # what is sure cannot become surer
    assert 1.0 < steepest(log_prob) < math.inf


def test_contexts_are_residuals_of_what_was_drawn() -> None:
    world = World()
    network, slate = world.network, torch.tensor([[0, 4, 6]])
    contexts = world.slates().paths(slate).contexts
    first = network.encoder(world.states[:1])
    assert torch.equal(contexts[0, :, 0], first.expand(3, -1))
    second = network.norms[0](first - network.embeddings[0].weight[[0, 1, 1]])
    torch.testing.assert_close(contexts[0, :, 1], second)
    third = network.norms[1](second - network.embeddings[1].weight[[0, 1, 2]])
    torch.testing.assert_close(contexts[0, :, 2], third)


def test_a_state_s_value_weighs_those_of_its_levels() -> None:
    torch.manual_seed(0)
    critic = MultiLevelCritic(3, DIM, 8)
    torch.nn.init.normal_(critic.value[2].weight)
    contexts = [torch.randn(2, DIM) for _ in range(3)]
    with torch.no_grad():
        critic.omega.copy_(torch.tensor([0.0, math.log(2.0), math.log(5.0)]))
    by_level = torch.stack([critic.value(context) for context in contexts])
    expected = (by_level * torch.tensor([1.0, 2.0, 5.0]).view(3, 1, 1) / 8).sum(0)
    torch.testing.assert_close(critic(contexts), expected)
    critic(contexts).sum().backward()
    assert critic.omega.grad is not None and critic.omega.grad.abs().min() > 0
