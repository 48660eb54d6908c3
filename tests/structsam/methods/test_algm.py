"""ALGM against a slow float64 reference, both stages."""

from __future__ import annotations

import pytest
import torch

from structsam.errors import UserError
from structsam.methods import METHODS
from tests.structsam import naive_algm as naive
from tests.structsam import naive_plan as groups
from tests.structsam.token_maps import MAPS, WINDOW, edge_windows

pytestmark = pytest.mark.usefixtures("one_torch_thread")

N = WINDOW**2
CASES = [("local", r) for r in (0.0, 0.25, 0.5, 0.75)]
CASES += [("local+global", r) for r in (0.0, 0.25, 0.5, 0.8, 0.866)]
every_case = pytest.mark.parametrize(("stages", "rate"), CASES)


def assert_is(method, tokens, padding=None) -> None:
    plan = method.plan(tokens, None, padding)
    merged = plan.merge(tokens)
    for b in range(len(tokens)):
        pad = None if padding is None else padding[b].numpy()
        expected = naive.plan(
            tokens[b].numpy(), method.grid, method.num_removed, method.stages, pad
        )
        groups.assert_same_plan(plan, b, expected)
        groups.assert_same_features(plan, b, merged, groups.means(expected, tokens[b]))


@every_case
@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("grid", [(14, 14), (6, 10)])
def test_algm(stages, rate, kind, grid) -> None:
    method = METHODS["algm"](grid, rate, stages=stages)
    if kind == "exact" and stages != "local":
        kind = "sign"  # means of vectors have no exact cosines
    assert_is(method, MAPS[kind](2, method.num_tokens, seed=4))


@every_case
@pytest.mark.parametrize("kind", ["random", "sign", "smooth"])
def test_algm_in_padded_windows(stages, rate, kind) -> None:
    method = METHODS["algm"]((14, 14), rate, stages=stages)
    windows = edge_windows(method, kind)
    assert windows.energy is None
    assert_is(method, windows.tokens, windows.padding)


@pytest.mark.parametrize("grid", [(14, 14), (64, 64), (2, 2), (2, 4), (4, 4)])
def test_counts_of_both_stages(grid) -> None:
    n = grid[0] * grid[1]
    for thousandths in range(876):
        for stages, limit in (("local", 750), ("local+global", 875)):
            if thousandths > limit:
                continue
            try:
                method = METHODS["algm"](grid, thousandths / 1000, stages=stages)
            except UserError:
                assert 3 * (n // 4) < thousandths / 1000 * n, "refused only where nothing fits"
                continue
            cells, matched = naive.counts(n, method.num_removed, stages)
            assert (method.num_merged_cells, method.num_matched) == (cells, matched)
            assert 0 <= cells <= n // 4
            assert 0 <= matched <= (n - 3 * cells) // 2
            assert 3 * cells + matched == method.num_removed
    if grid == (2, 2):  # two tokens must go, so no cell can
        pair = METHODS["algm"](grid, 0.4, 2, stages="local+global")
        assert (pair.num_merged_cells, pair.num_matched) == (0, 2)
    half = METHODS["algm"]((64, 64), 0.5, stages="local+global")
    assert half.num_removed == 2049
    assert half.num_matched == 2049 - 3 * 513, "about a quarter"


def test_cells_of_equal_tokens_merge_first_at_their_last_token() -> None:
    tokens = MAPS["random"](1, 16, seed=1)
    same = [2, 3, 6, 7]
    tokens[0, same] = torch.tensor([1.0] * tokens.shape[2])
    tokens[0, 3] *= 5  # direction counts, not length
    plan = METHODS["algm"]((4, 4), 0.15).plan(tokens)
    found = groups.groups_of_plan(plan, 0).members
    assert found[7] == (2, 3, 6, 7)
    torch.testing.assert_close(plan.merge(tokens)[0, 0], torch.full((8,), 2.0))


def test_second_stage_weighs_slots_by_their_tokens() -> None:
    # cells 0 and 1 merge, each of equal tokens; then the two slots are alike and merge
    tokens = torch.tensor([[[1.0], [1], [3], [3], [1], [1], [3], [3]]]).repeat(1, 2, 1)
    tokens[0, 8:] = torch.tensor([[-1.0], [1], [-1], [1], [2], [-2], [2], [-2]])
    method = METHODS["algm"]((4, 4), 0.75, stages="local+global")
    assert (method.num_merged_cells, method.num_matched) == (3, 3)
    plan = method.plan(tokens)
    sizes = plan.size_of_slot[0].tolist()
    assert sum(sizes) == 16
    expected = naive.plan(tokens[0].numpy(), (4, 4), 12, "local+global")
    groups.assert_same_plan(plan, 0, expected)
    found = groups.means(expected, tokens[0])
    groups.assert_same_features(plan, 0, plan.merge(tokens), found)
    assert max(sizes) >= 8, "two cells in one slot"


def test_a_global_map_of_signs() -> None:
    assert_is(METHODS["algm"]((64, 64), 0.5), MAPS["exact"](1, 4096, seed=2))
