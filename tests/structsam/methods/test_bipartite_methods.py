"""ToMe, ToMeSD, VidToMe, GradToMe and PiToMe against slow float64 references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from structsam.methods import METHODS
from tests.structsam import naive_bipartite as naive
from tests.structsam import naive_plan as groups
from tests.structsam.naive_structsam import cells_of, central_energy, sobel_energy
from tests.structsam.token_maps import MAPS, WINDOW, edge_windows

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N = WINDOW**2
ENERGY = {"sobel": sobel_energy, "central": central_energy}
every_map = pytest.mark.parametrize("kind", MAPS)


def assert_is(method, expected_of, kind, grids=((14, 14), (6, 10)), seeds=(0, 1)) -> None:
    """Compare maps without padding, and SAM's padded windows, group by group and in values.

    Args:
        expected_of: (tokens [N, C], energy [N] or None, padding [N] or None, method) -> groups.
    """
    feature = getattr(method, "feature", "mean")
    values = groups.own_features if feature == "replace" else groups.means
    for grid in grids:
        own = type(method)(grid, method.rate, **options_of(method))
        for seed in seeds:
            tokens = MAPS[kind](2, own.num_tokens, seed=seed)
            plan = own.plan(tokens)
            merged = plan.merge(tokens)
            for b in range(2):
                expected = expected_of(tokens[b].numpy(), None, None, own)
                groups.assert_same_plan(plan, b, expected)
                groups.assert_same_features(plan, b, merged, values(expected, tokens[b]))
    windows = edge_windows(method, kind)
    plan = method.plan(windows.tokens, windows.energy, windows.padding)
    merged = plan.merge(windows.tokens)
    for b, (tokens, padding) in enumerate(zip(windows.tokens, windows.padding, strict=True)):
        energy = None if windows.energy is None else windows.energy[b].double().numpy()
        expected = expected_of(tokens.numpy(), energy, padding.numpy(), method)
        groups.assert_same_plan(plan, b, expected)
        groups.assert_same_features(plan, b, merged, values(expected, tokens))


def options_of(method) -> dict:
    skip = ("grid", "rate")
    return {k: v for k, v in vars(method).items() if k not in skip and not k.startswith("_")}


def matched(destinations_of):
    """Expected groups of a method with constant destinations."""

    def expected(tokens, energy, padding, method):
        return naive.merge_best_edges(
            groups.cosines(tokens, padding), destinations_of(method), method.num_removed
        )

    return expected


def odd_positions(method):
    return range(1, method.num_tokens, 2)


def table(method):
    return method.destination_positions().tolist()


# ToMe


@every_map
@pytest.mark.parametrize("rate", [0.0, 0.25, 0.4, 0.5])
def test_tome(kind, rate) -> None:
    assert_is(METHODS["tome"]((14, 14), rate), matched(odd_positions), kind)


def test_tome_at_its_limit_removes_every_even_token() -> None:
    plan = METHODS["tome"]((14, 14), 0.5).plan(MAPS["random"](1, N))
    assert sorted(plan.anchor_of_slot[0].tolist()) == list(range(1, N, 2))


def test_a_tome_destination_takes_all_sources_that_want_it() -> None:
    x = torch.tensor([[3.0, 0], [0, 1], [2, 0.1], [4, 0], [1, 0], [0, -1], [0, 2], [0, 1]])
    plan = METHODS["tome"]((2, 4), 0.5).plan(x[None])
    # even tokens 0, 2 and 4 are like token 3; token 6 is like 1 and 7, and 1 comes first
    assert groups.groups_of_plan(plan, 0).members == {1: (1, 6), 3: (0, 2, 3, 4), 5: (5,), 7: (7,)}
    merged = plan.merge(x[None])[0]
    slot = plan.slot_of_token[0, 3]
    torch.testing.assert_close(merged[slot], torch.tensor([10 / 4, 0.1 / 4]))


# ToMeSD and VidToMe


@pytest.mark.parametrize("kind", ["random", "exact"])
@pytest.mark.parametrize("destinations", ["rand2x2", "stride", "rand25"])
@pytest.mark.parametrize("feature", ["mean", "replace"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_tomesd(kind, destinations, feature, rate) -> None:
    method = METHODS["tomesd"]((14, 14), rate, destinations=destinations, feature=feature)
    assert_is(method, matched(table), kind, seeds=(0,))


@pytest.mark.parametrize("kind", ["random", "exact"])
@pytest.mark.parametrize("frames", ["phase", "rows"])
@pytest.mark.parametrize("feature", ["mean", "replace"])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.65])
def test_vidtome(kind, frames, feature, rate) -> None:
    method = METHODS["vidtome"]((14, 14), rate, frames=frames, feature=feature)
    assert_is(method, matched(table), kind, seeds=(0,))


@pytest.mark.parametrize("grid", [(14, 14), (64, 64), (6, 10), (7, 9)])
def test_tomesd_destinations_keep_their_rules(grid) -> None:
    height, width = grid

    def of(destinations, seed=0):
        method = METHODS["tomesd"](grid, 0.5, destinations=destinations, seed=seed)
        found = method.destination_positions().tolist()
        assert found == sorted(set(found)), "ascending, each once"
        return found

    whole = (height // 2 * 2, width // 2 * 2)
    cells = [[y * width + x for y, x in cell_places(c, whole)] for c in cells_of(whole)]
    assert of("stride") == sorted(cell[0] for cell in cells)
    offsets = []
    for seed in range(8):
        chosen = set(of("rand2x2", seed))
        hits = [[place for place, t in enumerate(cell) if t in chosen] for cell in cells]
        assert all(len(hit) == 1 for hit in hits), "one destination per whole cell, none elsewhere"
        assert len(chosen) == len(cells)
        offsets += [hit[0] for hit in hits]
    share = np.bincount(offsets, minlength=4) / len(offsets)
    assert abs(share - 0.25).max() < 2 / len(offsets) ** 0.5, "all four places are as likely"
    assert of("rand2x2", 0) == of("rand2x2", 0) != of("rand2x2", 1)
    assert len(of("rand25")) == height * width // 4
    assert of("rand25", 0) == of("rand25", 0) != of("rand25", 1)
    counts = np.bincount(np.concatenate([of("rand25", s) for s in range(40)]))
    assert counts.max() < 30, "no place is preferred"


def cell_places(cell, whole):
    return [divmod(token, whole[1]) for token in cell]


def test_vidtome_destinations_are_one_frame() -> None:
    seen = {"phase": set(), "rows": set()}
    for frames, seed in [(f, s) for f in seen for s in range(12)]:
        method = METHODS["vidtome"]((14, 14), 0.5, frames=frames, seed=seed)
        y, x = np.divmod(method.destination_positions(), 14)
        found = set(zip(y % 2, x % 2, strict=True)) if frames == "phase" else set(y % 4)
        assert len(found) == 1
        seen[frames] |= found
        frame = found.pop()
        assert len(y) == (49 if frames == "phase" else {0: 56, 1: 56, 2: 42, 3: 42}[frame])
    assert len(seen["phase"]) == len(seen["rows"]) == 4, "seeds choose among all four frames"


# GradToMe


@every_map
@pytest.mark.parametrize("operator", ENERGY)
@pytest.mark.parametrize(
    ("variant", "rate"),
    [("grid", 0.25), ("grid", 0.5), ("grid", 0.75), ("sorted", 0.25), ("sorted", 0.5)],
)
def test_gradtome(kind, operator, variant, rate) -> None:
    def expected(tokens, energy, padding, method):
        if energy is None:
            energy = ENERGY[operator](tokens.reshape(*method.grid, -1)).ravel()
        removed = method.num_removed
        return naive.gradtome(tokens, energy, method.grid, removed, variant, padding)

    method = METHODS["gradtome"]((14, 14), rate, operator=operator, variant=variant)
    if kind == "smooth" and variant == "sorted":
        kind = "random"  # float32 energies of a smooth map come too close to each other
    assert_is(method, expected, kind, seeds=(0,))


@pytest.mark.parametrize("variant", ["grid", "sorted"])
def test_gradtome_with_many_equal_energies(variant) -> None:
    tokens = MAPS["exact"](1, N, seed=5)
    energy = torch.randint(0, 3, (1, N), generator=torch.Generator().manual_seed(1)).float()
    method = METHODS["gradtome"]((14, 14), 0.4, variant=variant)
    plan = method.plan(tokens, energy)
    removed = method.num_removed
    expected = naive.gradtome(tokens[0].numpy(), energy[0], (14, 14), removed, variant)
    groups.assert_same_plan(plan, 0, expected)


# PiToMe


def pitome_expected(tokens, energy, padding, method):
    margin = method.margin
    if method.schedule == "linear":
        margin = margin * (1 - method.layer / method.depth)
    return naive.pitome(
        tokens, method.grid, method.num_removed, method.variant, margin, method.alpha, padding
    )


@pytest.mark.parametrize("kind", ["random", "sign", "smooth"])
@pytest.mark.parametrize("margin", [0.0, 0.45])
@pytest.mark.parametrize(
    ("variant", "rate"),
    [("protected", 0.25), ("protected", 0.5), ("stride", 0.5), ("stride", 0.75)],
)
def test_pitome(kind, margin, variant, rate) -> None:
    method = METHODS["pitome"]((14, 14), rate, margin=margin, variant=variant)
    assert_is(method, pitome_expected, kind, seeds=(0,))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("variant", ["protected", "stride"])
def test_pitome_with_another_alpha(alpha, variant) -> None:
    method = METHODS["pitome"]((14, 14), 0.4, margin=0.25, alpha=alpha, variant=variant)
    assert_is(method, pitome_expected, "random", seeds=(1,))  # seed 0 has energies 6e-9 apart
    if alpha == 0:  # then energies of exact cosines are exact, ties included
        assert_is(method, pitome_expected, "exact")


@pytest.mark.parametrize("layer", [0, 3, 11])
def test_pitome_margin_falls_with_the_layer(layer) -> None:
    options = {"margin": 0.9, "schedule": "linear", "layer": layer, "depth": 12}
    method = METHODS["pitome"]((14, 14), 0.4, **options)
    assert method.margin_here == pytest.approx(0.9 * (1 - layer / 12))
    assert_is(method, pitome_expected, "random", grids=((14, 14),), seeds=(2,))
    constant = METHODS["pitome"]((14, 14), 0.4, margin=0.9, layer=layer, depth=12)
    assert constant.margin_here == 0.9


def test_pitome_protects_what_is_like_nothing_else() -> None:
    tokens = torch.zeros(1, 16, 8)
    tokens[0, :, 0] = 1
    for place, odd_one in enumerate((3, 6, 9, 12)):
        tokens[0, odd_one, 0] = 0
        tokens[0, odd_one, 1 + place] = 1
    plan = METHODS["pitome"]((4, 4), 0.3).plan(tokens)
    alone = [
        a for a, members in groups.groups_of_plan(plan, 0).members.items() if len(members) == 1
    ]
    assert {3, 6, 9, 12} <= set(alone)


@pytest.mark.parametrize("variant", ["protected", "stride"])
def test_pitome_merges_padding_first_also_where_there_is_little(variant) -> None:
    """Two columns of padding beside tokens that are all alike, and so of high energy."""
    tokens = 1 + 0.01 * MAPS["random"](1, N)
    padding = (torch.arange(N) % 14 >= 12).expand(1, -1)
    tokens[padding] = 0
    method = METHODS["pitome"]((14, 14), 0.05, variant=variant)
    plan = method.plan(tokens, None, padding)
    assert 2 * method.num_removed <= int(padding.sum())
    groups.assert_same_plan(plan, 0, pitome_expected(tokens[0], None, padding[0].numpy(), method))
    assert padding[0, plan.size_of_slot[0][plan.slot_of_token[0]] > 1].all()


# All of them on the global map: the destinations and the matching by matrix products


@pytest.mark.parametrize("name", ["tome", "tomesd", "vidtome"])
def test_a_global_map_is_matched_as_float64_says(name) -> None:
    method = METHODS[name]((64, 64), 0.5)
    tokens = MAPS["exact"](1, 4096, seed=3)
    plan = method.plan(tokens)
    unit = tokens[0].double().numpy()
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    destinations = method.destination_positions()
    sources = np.setdiff1d(np.arange(4096), destinations)
    similarity = unit[sources] @ unit[destinations].T
    best, match = similarity.max(1), similarity.argmax(1)
    order = np.argsort(-best, kind="stable")
    removed = order[: method.num_removed]
    expected = groups.make_groups(
        [*destinations, *sources[order[method.num_removed :]]],
        dict(zip(sources[removed], destinations[match[removed]], strict=True)),
    )
    groups.assert_same_plan(plan, 0, expected)
    kept = plan.anchor_of_slot[0, : len(sources) - method.num_removed]
    assert kept.tolist() == sources[order[method.num_removed :]].tolist(), "most similar first"
