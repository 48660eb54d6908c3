"""How far merging moves the spectrum of the token graph (StructSAM, arXiv 2603.07307, section 4).

A map of N tokens is a graph whose edge weights follow from cosines. Merging coarsens it to M
nodes, lifting puts the coarse weights back on N nodes, and the discrepancy of a layer is the
distance between the sorted eigenvalues of the two normalized Laplacians.

Weights. `GRAPHS["affinity"]`, the default, is `W_ij = (1 + cos_ij) / 2` with self-loops
(W_ii = 1): a cosine may be negative, and this is the linear map that leaves every weight in
[0, 1] and every degree at least 1, without the kink and the lost order of a clip at 0.
`GRAPHS["distance"]` is `W_ij = 1 - cos_ij`, the weight in PiToMe (NeurIPS 2024, arXiv 2405.16148,
eq. 3), from the same authors. It equals 2 - 2 * affinity.

Norm. Definitions 1 and 2, Lemma 1 and the l1 norm of eigenvalue differences are those of PiToMe
(section 3.3, eq. 5), which goes back to Jin, Loukas and JaJa (arXiv 1802.04447).

Lemma 1 (the lifted spectrum is the coarse one and N - M ones) is exact only if a coarse node
counts as many times as it has members. With the member indicator P [N, M] and n_a members of
node a, `W_l = P W_c P^T`, its degrees are `d_a = sum_b n_b W_c[a, b]`, and with the orthonormal
columns of `P diag(n)^-1/2`

    D_l^-1/2 W_l D_l^-1/2 = (P n^-1/2) [ (n/d)^1/2 W_c (n/d)^1/2 ] (P n^-1/2)^T.

So the coarse Laplacian is `I - (n/d)^1/2 W_c (n/d)^1/2`. The text of PiToMe's Definition 1,
`I - D_c^-1/2 W_c D_c^-1/2` with the row sums of W_c as degrees, is the same for equal group sizes
only; for others Lemma 1 does not hold with it.

What it measures. A slot's total degree is that of its members, so lifting restricts the pencil
(W, D) to vectors that are constant in every slot. The affinity graph's W has no negative
eigenvalue, so none of `D^-1/2 W D^-1/2` grows by that (Courant and Fischer), and the l1 distance
is the trace that is lost: `sum_i 1/d_i - sum_a n_a W_c[a, a] / d_a`, with d_a the mean degree in a
slot. Where all degrees are d, a slot of k tokens costs (k - 1) (1 - mean cosine of its pairs) / 2d:
every token removed costs the same in pairs and in cells of four, and only cosine counts. So this
measure ranks methods by the cosine of what they merge (`slot_dissimilarity`), and those that match
tokens by cosine are near its optimum by construction. Where tokens lie on the image it does not
see. docs/fidelity.md has what that says of the methods here.

Cost. Both weights have the form V J V^T with V [N, C+1] and a signed diagonal J, and averaging
blocks of W is averaging rows of V. So no N x N matrix is made: at most C + 1 eigenvalues differ
from 1, and they are those of the (C+1) x (C+1) matrix `R J R^T` from a QR of the scaled V (or of
the N x N one where N is smaller). The 4096-token graph and its lifted one take 0.2 s at C = 192,
0.5 s at C = 768 and 2.3 s at C = 1280 on two cores, and 50 to 280 MB beyond torch itself.
`token_graph`, `normalized_laplacian`, `coarsen`, `lift` and `coarse_laplacian` are the
definitions written out, to check and to look at.

Padding and other all-zero tokens have no cosine: they are nodes without edges, with Laplacian
eigenvalue 1 (D^-1/2 is 0 there). In both spectra they are the same ones, and the l1 distance of
sorted lists does not change when both get the same number, so the discrepancy is that of the real
tokens alone as long as no slot mixes the two. All is computed in float64.

Letters: B maps (images, or images times windows), N tokens, M slots, C channels.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from structsam.errors import UserError
from structsam.token_graphs import edge_weight

#: A degree below this share of N is rounding (tokens all alike in the distance graph), hence 0.
_NO_DEGREE = 1e-12


def token_graph(tokens: Tensor, graph: str = "affinity") -> Tensor:
    """Weigh the edges between all tokens of a map.

    Args:
        tokens: [B, N, C]; all-zero tokens get no edges.
        graph: key of `GRAPHS`.

    Returns:
        W [B, N, N] float64, symmetric, not negative (up to rounding).

    Raises:
        UserError: unknown graph, or tokens that are not finite.
    """
    rows, signs = _factor(tokens, graph)
    return (rows * signs) @ rows.transpose(1, 2)


def normalized_laplacian(weights: Tensor) -> Tensor:
    """Return `I - D^-1/2 W D^-1/2` of W [B, N, N]; D^-1/2 is 0 for nodes without edges."""
    scale = _inverse_root(weights.sum(-1), weights.shape[-1])
    identity = torch.eye(weights.shape[-1], dtype=weights.dtype, device=weights.device)
    return identity - scale[:, :, None] * weights * scale[:, None, :]


def coarsen(weights: Tensor, slot_of_token: Tensor, num_slots: int) -> tuple[Tensor, Tensor]:
    """Average the weights between all members of two slots (eq. 3; PiToMe, Definition 1).

    Args:
        weights: W [B, N, N].
        slot_of_token: [B, N] int64 in 0..M-1.
        num_slots: M.

    Returns:
        W_c [B, M, M], and the number of members of every slot [B, M].
    """
    member = torch.nn.functional.one_hot(slot_of_token, num_slots).to(weights.dtype)  # [B, N, M]
    sizes = member.sum(1)
    sums = member.transpose(1, 2) @ weights @ member
    count = sizes.clamp(min=1)
    return sums / (count[:, :, None] * count[:, None, :]), sizes


def lift(coarse: Tensor, slot_of_token: Tensor) -> Tensor:
    """Give every pair of tokens the weight of their slots (eq. 5; PiToMe, Definition 2).

    Args:
        coarse: W_c [B, M, M].
        slot_of_token: [B, N] int64.

    Returns:
        W_l [B, N, N].
    """
    batch = torch.arange(coarse.shape[0], device=coarse.device)[:, None, None]
    return coarse[batch, slot_of_token[:, :, None], slot_of_token[:, None, :]]


def coarse_laplacian(coarse: Tensor, sizes: Tensor) -> Tensor:
    """Return the Laplacian [B, M, M] for which Lemma 1 is exact; see the module docstring.

    Args:
        coarse: W_c [B, M, M].
        sizes: [B, M], members of every slot.
    """
    degree = (coarse * sizes[:, None, :]).sum(-1)
    tokens = int(sizes.sum(-1).max())
    scale = sizes.sqrt() * _inverse_root(degree, tokens)
    identity = torch.eye(coarse.shape[-1], dtype=coarse.dtype, device=coarse.device)
    return identity - scale[:, :, None] * coarse * scale[:, None, :]


def graph_spectrum(tokens: Tensor, graph: str = "affinity") -> Tensor:
    """Eigenvalues of the token graph's normalized Laplacian.

    Args:
        tokens: [B, N, C] of any floating type.
        graph: key of `GRAPHS`.

    Returns:
        [B, N] float64, ascending.

    Raises:
        UserError: unknown graph, or tokens that are not finite.
    """
    rows, signs = _factor(tokens, graph)
    return _spectrum(rows, signs, rows.new_ones(rows.shape[:2]), rows.shape[1])


def lifted_spectrum(
    tokens: Tensor, slot_of_token: Tensor, num_slots: int, graph: str = "affinity"
) -> Tensor:
    """Eigenvalues of the normalized Laplacian of the coarsened and lifted graph.

    Args:
        tokens: [B, N, C] before merging.
        slot_of_token: [B, N] int64 in 0..M-1, as in `MergePlan`.
        num_slots: M.
        graph: key of `GRAPHS`.

    Returns:
        [B, N] float64, ascending: by Lemma 1 the coarse eigenvalues and N - M ones.

    Raises:
        UserError: unknown graph, or tokens that are not finite.
    """
    rows, signs = _factor(tokens, graph)
    batch, _, width = rows.shape
    sums = rows.new_zeros(batch, num_slots, width)
    sums.scatter_add_(1, slot_of_token[:, :, None].expand(-1, -1, width), rows)
    sizes = rows.new_zeros(batch, num_slots)
    sizes.scatter_add_(1, slot_of_token, torch.ones_like(rows[:, :, 0]))
    return _spectrum(sums / sizes.clamp(min=1)[:, :, None], signs, sizes, rows.shape[1])


def spectral_distance(original: Tensor, lifted: Tensor) -> Tensor:
    """Sum of absolute differences of sorted eigenvalues (eq. 1, l1 norm): two [B, N] -> [B]."""
    return (original.sort(-1).values - lifted.sort(-1).values).abs().sum(-1)


def layer_discrepancy(
    tokens: Tensor, slot_of_token: Tensor, num_slots: int, graph: str = "affinity"
) -> Tensor:
    """Spectral distance between a map's token graph and its merged and lifted one (eq. 1).

    Args:
        tokens: [B, N, C] that enter attention.
        slot_of_token: [B, N] int64 in 0..M-1, as in `MergePlan`.
        num_slots: M.
        graph: key of `GRAPHS`.

    Returns:
        [B] float64, at least 0; 0 when only equal tokens (up to length) are merged.

    Raises:
        UserError: unknown graph, or tokens that are not finite.
    """
    lifted = lifted_spectrum(tokens, slot_of_token, num_slots, graph)
    return spectral_distance(graph_spectrum(tokens, graph), lifted)


def slot_dissimilarity(tokens: Tensor, slot_of_token: Tensor, num_slots: int) -> Tensor:
    """Mean of 1 - cosine inside slots, over the tokens that merging removes.

    Args:
        tokens: [B, N, C]; all-zero tokens (padding) count for nothing.
        slot_of_token: [B, N] int64 in 0..M-1, as in `MergePlan`.
        num_slots: M.

    Returns:
        [B] float64 in 0..2: scatter of the unit tokens in their slots / tokens removed; 0 where
        none is removed.
    """
    tokens = tokens.to(torch.float64)
    norm = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    real = (norm > 0).to(tokens)  # [B, N, 1]
    units = torch.cat([tokens / torch.where(norm > 0, norm, 1.0), real], -1)
    sums = units.new_zeros(units.shape[0], num_slots, units.shape[2])
    sums.scatter_add_(1, slot_of_token[:, :, None].expand_as(units), units)
    members = sums[..., -1]
    kept_length = (sums[..., :-1].square().sum(-1) / members.clamp(min=1)).sum(1)
    removed = (members - 1).clamp(min=0).sum(1)
    return (real.sum((1, 2)) - kept_length) / removed.clamp(min=1)


def encoder_discrepancy(layers: Iterable[Tensor]) -> float:
    """Sum over the layers (eq. 2) of the mean over a layer's maps.

    Args:
        layers: for every layer [B], what `layer_discrepancy` returns; B may differ.
    """
    return float(sum(float(layer.mean()) for layer in layers))


def _factor(tokens: Tensor, graph: str) -> tuple[Tensor, Tensor]:
    """Return V [B, N, C+1] and the signs J [C+1] with `W = V diag(J) V^T`."""
    base, slope = edge_weight(graph)
    tokens = tokens.to(torch.float64)
    if not tokens.isfinite().all():
        raise UserError(
            "the tokens hold infinite values or NaN, which have no cosine. Check the weights and "
            "run the model in float32"
        )
    norm = torch.linalg.vector_norm(tokens, dim=-1, keepdim=True)
    exists = norm > 0
    units = tokens / torch.where(exists, norm, 1.0)
    rows = torch.cat([base**0.5 * exists.to(units), abs(slope) ** 0.5 * units], -1)
    signs = torch.full_like(rows[0, 0], 1.0 if slope > 0 else -1.0)
    signs[0] = 1.0
    return rows, signs


def _spectrum(rows: Tensor, signs: Tensor, sizes: Tensor, num_tokens: int) -> Tensor:
    """Laplacian eigenvalues [B, N], ascending, of nodes [B, K, C+1] that stand for `sizes` tokens.

    The N - K (or more) eigenvalues that the factor cannot reach are 1.
    """
    total = (sizes[:, :, None] * rows).sum(1, keepdim=True)  # [B, 1, C+1]
    degree = (rows * signs * total).sum(-1)  # [B, K]
    scale = sizes.sqrt() * _inverse_root(degree, num_tokens)
    scaled = scale[:, :, None] * rows
    if scaled.shape[1] > scaled.shape[2]:
        # Q only rotates: Q (R J R^T) Q^T has the eigenvalues of R J R^T, and zeros.
        scaled = torch.linalg.qr(scaled, mode="r").R
    adjacency = torch.linalg.eigvalsh((scaled * signs) @ scaled.transpose(1, 2))
    ones = adjacency.new_ones(adjacency.shape[0], num_tokens - adjacency.shape[1])
    return torch.cat([1 - adjacency, ones], -1).sort(-1).values


def _inverse_root(degree: Tensor, num_tokens: int) -> Tensor:
    """`degree^-1/2`, and 0 for a node without edges."""
    connected = degree > _NO_DEGREE * num_tokens
    return torch.where(connected, torch.where(connected, degree, 1.0).rsqrt(), 0.0)
