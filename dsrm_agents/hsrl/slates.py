"""Slates of items that are drawn token by token."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dsrm_agents.common.bounds import MASKED, SlateBounds, choice_log_prob, first_within_bounds
from dsrm_agents.hsrl.network import TokenNetwork
from dsrm_agents.hsrl.trie import Left, Shown, Trie
from kuaisim_gym.errors import ConfigError

_LEAST = 1e-7  # of a group's probability that a slate leaves: float32's last
# Prefixes that a search keeps, over the slate's size. With as many as that, it finds four of the
# ten likeliest items of KuaiRec, with four times as many nearly all of their probability.
BEAM = 4


class Paths(NamedTuple):
    """Probabilities and contexts of the tokens of slates.

    Attributes:
        log_prob: (N, K, D) float32, of every token given the slate's earlier items and its own
            earlier tokens.
        entropy: (N, K, D) float32, in nats, of the distributions that they were drawn from.
        contexts: (N, K, D, dim) float32, before each token.
    """

    log_prob: Tensor
    entropy: Tensor
    contexts: Tensor


class SemanticSlates:
    """Slates of N sessions, drawn item by item without replacement (Plackett-Luce).

    An item's probability is the product of its tokens', and a token's is in proportion to
    ``exp(logit)`` times the prior weight of the items left to show below it: a prefix with nothing
    left has probability 0. Where ids begin with a group, bounds may close it.

    Args:
        network: Gives the logits.
        trie: The ids.
        context: (N, dim) of the states.
        shown: Items that the sessions may not show, or what is left of all.
        grouped: Whether ids begin with a group; if not, all items are of one.
        bounds: How many items of each group each slate may hold.
        slate_size: K.
    """

    def __init__(
        self,
        network: TokenNetwork,
        trie: Trie,
        context: Tensor,
        shown: Shown | Left,
        grouped: bool,
        bounds: SlateBounds,
        slate_size: int,
    ) -> None:
        self.network = network
        self.trie = trie
        self.context = context
        self.shown = shown
        self.grouped = grouped
        self.bounds = bounds
        self.slate_size = slate_size

    def draw(self, deterministic: bool = False) -> tuple[Tensor, Tensor]:
        """Draws slates, or takes those of a beam search, without gradients.

        Drawing is Gumbel-top-k along the tree (Kool et al., ICML 2019): a beam keeps the K prefixes
        whose perturbed log-probabilities are highest, and these are the largest of all items below
        them, so that the K best at the end are a sample without replacement.

        Args:
            deterministic: Whether to search instead of drawing.

        Returns:
            (N, K) int64 items in order of choice, and (N,) their log-probabilities.

        Raises:
            ConfigError: A session has too few items left.
        """
        with torch.no_grad():
            item, log_prob, key = self._candidates(deterministic)
            arrival = torch.where(key > MASKED / 2, -key, torch.inf)
            index = torch.arange(item[0].numel(), device=item.device).view(1, item.shape[1], -1)
            chosen, _ = first_within_bounds(
                list(arrival.unbind(1)),
                list(index.expand_as(item).unbind(1)),
                self.bounds,
                self.slate_size,
            )
            slates = item.flatten(1).gather(1, chosen)
            if bool((slates == self.trie.n_items).any()):
                raise ConfigError(
                    f"Fewer than {self.slate_size} items are left that this session has not shown, "
                    "and HSRL shows none twice: shorten sessions (max_len) or slates (slate_size)."
                )
            choices = self._choices(slates, log_prob.flatten(1).gather(1, chosen))
            return slates, choices.sum(dim=1)

    def _candidates(self, deterministic: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(N, G, m) items of each group by falling key, their log-probabilities, and the keys."""
        beam = self.slate_size * (BEAM if deterministic else 1)
        log_prob, key, context, prefix = self._roots(deterministic)
        for depth in range(int(self.grouped), len(self.trie.widths)):
            of_token, logits = self._log_probs(depth, prefix, context)
            width = of_token.shape[3]
            below = log_prob[..., None] + of_token
            keys = below if deterministic else _perturbed(below, key)
            key, best = keys.flatten(2).topk(min(beam, keys.shape[2] * width), dim=2)
            parent, token = best // width, best % width
            log_prob = below.flatten(2).gather(2, best)
            prefix = prefix.gather(2, parent) * width + token
            if depth < len(self.trie.widths) - 1:
                context, logits = (
                    tensor.gather(2, parent[..., None].expand(-1, -1, -1, tensor.shape[3]))
                    for tensor in (context, logits)
                )
                context = self.network.next_context(depth, context, logits, token)
        return self.trie.item_at[prefix], log_prob, key

    def paths(self, slates: Tensor) -> Paths:
        """Probabilities of slates, with gradients.

        Args:
            slates: (N, K) int64 items, drawn under the same bounds.

        Returns:
            The paths; their log-probabilities sum to the slate's.
        """
        tokens, entropy, contexts = self._tokens(slates)
        n, k = slates.shape
        choices = self._choices(slates, tokens.sum(dim=2)).view(n, 2, k)
        # The choice of the group stands for the first token, if that is the group; the correction
        # for earlier draws of the group goes to the last token.
        of_group = tokens[..., 0] if self.grouped else torch.zeros_like(tokens[..., 0])
        left = choices[:, 1] - (tokens.sum(dim=2) - of_group)
        first = choices[:, 0] if self.grouped else tokens[..., 0]
        last = tokens[..., -1] + left
        stacked = torch.stack([first, *tokens[..., 1:-1].unbind(2), last], 2)
        return Paths(stacked, entropy, contexts)

    def item_log_prob(self, items: Tensor) -> Tensor:
        """(N, m) float32 log-probabilities of (N, m) int64 items, each as a slate's first."""
        return self._tokens(items)[0].sum(dim=2)

    def _tokens(self, items: Tensor) -> Paths:
        """Log-probabilities of the tokens of (N, m) items, each as if it were drawn first."""
        context = self.context[:, None].expand(-1, items.shape[1], -1)
        prefix = torch.zeros_like(items)
        log_prob, entropy, contexts = [], [], []
        for depth, width in enumerate(self.trie.widths):
            of_token, logits = self._log_probs(depth, prefix, context)
            token = self.trie.token(depth, items)
            log_prob.append(of_token.gather(2, token[..., None]).squeeze(2))
            entropy.append(-(of_token.exp() * of_token).sum(dim=2))
            contexts.append(context)
            prefix = prefix * width + token
            if depth < len(self.trie.widths) - 1:
                context = self.network.next_context(depth, context, logits, token)
        return Paths(*(torch.stack(parts, dim=2) for parts in (log_prob, entropy, contexts)))

    def _roots(self, deterministic: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Initial beams of the groups: log-probabilities, keys, contexts and prefixes."""
        n = len(self.context)
        context = self.context[:, None, None]
        empty = torch.zeros(n, 1, 1, dtype=torch.int64, device=context.device)
        if not self.grouped:
            none = context.new_zeros(n, 1, 1)
            return none, none, context, empty
        of_group, logits = self._log_probs(0, empty, context)
        n_groups = self.trie.widths[0]
        log_prob = of_group.reshape(n, n_groups, 1)
        key = log_prob if deterministic else log_prob + _gumbel(log_prob)
        prefix = torch.arange(n_groups, device=context.device).view(1, -1, 1).expand(n, -1, -1)
        context, logits = (tensor.expand(-1, n_groups, -1, -1) for tensor in (context, logits))
        return log_prob, key, self.network.next_context(0, context, logits, prefix), prefix

    def _log_probs(self, depth: int, prefix: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ..., V) log-probabilities of the tokens after prefixes, and their logits."""
        items = None
        if depth == len(self.trie.widths) - 1:
            width = self.trie.widths[depth]
            ranks = torch.arange(width, device=prefix.device)
            items = self.trie.item_at[prefix[..., None] * width + ranks]
        logits = self.network.logits(depth, context, items)
        mass = self.trie.log_mass(depth, prefix, self.shown)
        return torch.log_softmax(logits + mass, dim=-1), logits

    def _choices(self, slates: Tensor, item_log_prob: Tensor) -> Tensor:
        """(N, 2K) of :func:`choice_log_prob`, from the (N, K) log-probabilities of items."""
        left = self.trie.count(self.shown)
        if self.grouped:
            group = self.trie.token(0, slates)
            empty = torch.zeros(len(slates), 1, dtype=torch.int64, device=slates.device)
            of_group = self._log_probs(0, empty, self.context[:, None])[0][:, 0]
        else:
            group = torch.zeros_like(slates)
            left = left.sum(1, keepdim=True)
            of_group = item_log_prob.new_zeros(len(slates), 1)
        in_group = group[:, None] == torch.arange(left.shape[1], device=slates.device)[:, None]
        within = (item_log_prob[:, None] - of_group[:, :, None]).masked_fill(~in_group, MASKED)
        undrawn = (1.0 - within.exp().sum(2)).clamp(min=_LEAST)  # share of the group's probability
        never = torch.where(left > in_group.sum(2), of_group + undrawn.log(), MASKED)
        return choice_log_prob(item_log_prob, never, group, self.bounds)


def _gumbel(like: Tensor) -> Tensor:
    return -torch.empty_like(like).exponential_().log()


def _perturbed(log_prob: Tensor, key: Tensor) -> Tensor:
    """Gumbel-perturbed log-probabilities of tokens, the largest of a prefix being the prefix's own.

    Args:
        log_prob: (..., V) of the tokens.
        key: (...,) perturbed log-probabilities of the prefixes.

    Returns:
        (..., V), by equation 12 of Kool et al. and the stable form in their appendix B.3.
    """
    free = log_prob + _gumbel(log_prob)
    below = free - free.amax(dim=-1, keepdim=True)
    gap = key[..., None] - free + torch.log(-torch.expm1(below))
    return torch.as_tensor(key[..., None] - gap.clamp(min=0.0) - torch.log1p(torch.exp(-gap.abs())))
