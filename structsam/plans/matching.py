"""Bipartite matching by cosine similarity: what the ToMe family shares.

Tokens are split into sources and destinations; merged sources join their most similar
destination. Only which tokens these are is data; how many is fixed.

Letters: B maps, N tokens, S sources, D destinations, R removed tokens, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from structsam.plans.plan import MergePlan
from structsam.plans.ranking import invert_ranks, rank_descending
from structsam.plans.slot_features import (
    MatchedMean,
    OneToken,
    SlotFeatures,
    gather_rows,
    one_hot_match,
)

#: Similarity of a real token and padding: below every cosine, so that they never merge.
REAL_AND_PADDING = -2.0
#: Similarity of two padding tokens: above every cosine, so that padding merges first.
BOTH_PADDING = 2.0

_SMALLEST_NORM = 1e-12


def unit_vectors(tokens: Tensor) -> Tensor:
    """Scale every token to length 1 [..., C]; a zero token stays zero. float32 inside."""
    exact = tokens.float()
    length = (exact * exact).sum(-1, keepdim=True).sqrt()
    return (exact / length.clamp(min=_SMALLEST_NORM)).to(tokens.dtype)


def cosine_similarity(
    a: Tensor, b: Tensor, padding_a: Tensor | None = None, padding_b: Tensor | None = None
) -> Tensor:
    """Compare every row of a with every row of b.

    Args:
        a: [B, S, C], any floating type; the product runs in it.
        b: [B, D, C].
        padding_a: [B, S] bool, true for padding tokens; None when there are none.
        padding_b: [B, D].

    Returns:
        [B, S, D] float32.
    """
    cosine = (unit_vectors(a) @ unit_vectors(b).transpose(1, 2)).float()
    if padding_a is None or padding_b is None:
        return cosine
    mine, theirs = padding_a.unsqueeze(2), padding_b.unsqueeze(1)
    cosine = torch.where(mine & theirs, BOTH_PADDING, cosine)
    return torch.where(mine ^ theirs, REAL_AND_PADDING, cosine)


def best_match(
    tokens: Tensor,
    sources: Tensor,
    destinations: Tensor,
    padding: Tensor | None = None,
    similarity: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the most similar destination of every source; ties go to the one listed first.

    So say PyTorch and ONNX Runtime; TensorRT promises nothing about ties.

    With `similarity`, ties go to the destination of lower token index instead.

    Args:
        tokens: [B, N, C], features to compare.
        sources: [B, S] int64.
        destinations: [B, D] int64, D > 0 unless S = 0.
        padding: [B, N] bool.
        similarity: [B, N, N] of all tokens, where it is known already.

    Returns:
        The similarity [B, S] float32, and which destination it is, [B, S] int64 in 0..D-1.
    """
    if not sources.shape[1]:
        return tokens.new_zeros(sources.shape).float(), sources
    if similarity is None:
        similarity = cosine_similarity(
            gather_rows(tokens, sources),
            gather_rows(tokens, destinations),
            None if padding is None else padding.gather(1, sources),
            None if padding is None else padding.gather(1, destinations),
        )
        score, match = similarity.max(-1)
        return score, match
    # The rows of the sources, with the columns of everything but destinations out of the way.
    place = torch.arange(destinations.shape[1], device=tokens.device).expand_as(destinations)
    none = torch.full(tokens.shape[:2], -1, device=tokens.device)
    place_of_token = none.scatter(1, destinations, place)  # [B, N]
    rows = gather_rows(similarity, sources)
    rows = torch.where(place_of_token.unsqueeze(1) >= 0, rows, 2 * REAL_AND_PADDING)
    score, token = rows.max(-1)
    return score, place_of_token.gather(1, token)


def merge_best_edges(
    grid: tuple[int, int],
    tokens: Tensor,
    sources: Tensor,
    destinations: Tensor,
    removed: int,
    padding: Tensor | None = None,
    replace: bool = False,
    similarity: Tensor | None = None,
) -> MergePlan:
    """Merge the R sources that are most similar to their best destination (ToMe, section 3).

    Slots are the other sources, most similar first, and then the destinations.

    Args:
        tokens: [B, N, C], features to compare.
        sources: [B, S] int64; with `destinations` [B, D] a permutation of the N tokens.
        removed: R, at most S.
        padding: [B, N] bool.
        replace: the destination's own feature stands for the slot, instead of the mean.
        similarity: [B, N, N] of all tokens, where it is known already.
    """
    score, match = best_match(tokens, sources, destinations, padding, similarity)
    by_score = invert_ranks(rank_descending(score))  # [B, S] positions among the sources
    merged, kept = by_score[:, :removed], by_score[:, removed:]
    return plan_of_match(
        grid,
        kept=sources.gather(1, kept),
        destinations=destinations,
        sources=sources.gather(1, merged),
        match=match.gather(1, merged),
        replace=replace,
    )


def plan_of_match(
    grid: tuple[int, int],
    kept: Tensor,
    destinations: Tensor,
    sources: Tensor,
    match: Tensor,
    replace: bool = False,
    weights: Tensor | None = None,
) -> MergePlan:
    """Make the plan in which every source shares the slot of its destination.

    Args:
        kept: [B, N - D - R] tokens that keep a slot of their own, the first slots.
        destinations: [B, D], the slots after these.
        sources: [B, R].
        match: [B, R] in 0..D-1.
        replace: the destination's own feature stands for the slot, instead of the mean.
        weights: [B, N] original tokens that every token stands for, for the mean.
    """
    batch, first = kept.shape
    count = destinations.shape[1]
    device = kept.device
    own = torch.arange(first, device=device).expand(batch, -1)
    theirs = torch.arange(first, first + count, device=device).expand(batch, -1)
    tokens = torch.cat([kept, sources, destinations], 1)  # [B, N], a permutation
    slots = torch.cat([own, first + match, theirs], 1)
    one_hot = one_hot_match(match, count)  # [B, D, R]
    if weights is None:
        sizes = torch.cat([torch.ones_like(kept), 1 + one_hot.sum(-1).long()], 1)
    else:
        received = (one_hot * weights.gather(1, sources).unsqueeze(1)).sum(-1).long()
        own_sizes = [weights.gather(1, kept), weights.gather(1, destinations) + received]
        sizes = torch.cat(own_sizes, 1)
    anchors = torch.cat([kept, destinations], 1)
    features: SlotFeatures = (
        OneToken(anchors) if replace else MatchedMean(kept, destinations, sources, match, weights)
    )
    return MergePlan(
        grid=grid,
        slot_of_token=torch.zeros_like(slots).scatter(1, tokens, slots),
        anchor_of_slot=anchors,
        size_of_slot=sizes,
        features=features,
    )


def merge_alternate(
    grid: tuple[int, int],
    tokens: Tensor,
    order: Tensor,
    removed: int,
    padding: Tensor | None = None,
    similarity: Tensor | None = None,
) -> MergePlan:
    """Merge every second of the first 2R tokens into the most similar of the others (PiToMe).

    Slots are the tokens that take no part, in `order`, and then the destinations.

    Args:
        order: [B, N] tokens, most mergeable first. Padding must come first of all: then both
            roles have some wherever padding merges.
        similarity: [B, N, N] of all tokens, where it is known already.
    """
    sources, destinations = order[:, 0 : 2 * removed : 2], order[:, 1 : 2 * removed : 2]
    _, match = best_match(tokens, sources, destinations, padding, similarity)
    return plan_of_match(grid, order[:, 2 * removed :], destinations, sources, match)
