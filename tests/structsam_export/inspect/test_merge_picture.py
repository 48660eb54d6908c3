"""Merged maps, how they are drawn, and the count of edges, on maps made by hand."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from structsam_export.inspect.merge_picture import draw_energy, draw_groups, group_colors
from structsam_export.inspect.merged_map import MergedMap, count_edges, merged_map, photo_gradient
from structsam_export.predict.preprocessing import ImageGeometry

TOKEN = 16
GREY = np.full((4 * TOKEN, 4 * TOKEN, 3), 128, np.uint8)


def four_by_four(size_of_windows=(4, 4), energy=None) -> MergedMap:
    """One window of 4x4: tokens 0, 1 and the far 15 share a slot, and so do 4 and 5."""
    slot = np.array([[0, 0, 2, 3, 1, 1, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0]])
    anchor = np.array([[15, 4, 2, 3, 6, 7, 8, 9, 10, 11, 12, 13, 14]])
    return merged_map(slot, anchor, size_of_windows, (4, 4), energy)


def center(picture: Image.Image, y: int, x: int) -> np.ndarray:
    """The middle pixel of a token."""
    return np.asarray(picture)[y * TOKEN + TOKEN // 2, x * TOKEN + TOKEN // 2].astype(int)


def corner(picture: Image.Image, y: int, x: int) -> np.ndarray:
    """A pixel of a token that no dot covers and no line touches."""
    return np.asarray(picture)[y * TOKEN + 3, x * TOKEN + 3].astype(int)


def test_windows_come_back_to_their_places_and_padding_is_cut(rng) -> None:
    grid, window, slots = (5, 7), (3, 4), 6  # 2 x 2 windows, padded to 6 x 8
    slot_of_token = np.stack([rng.permutation(np.arange(12) % slots) for _ in range(4)])
    anchor_of_slot = np.stack(
        [[np.flatnonzero(row == s)[-1] for s in range(slots)] for row in slot_of_token]
    )
    found = merged_map(slot_of_token, anchor_of_slot, window, grid)
    assert found.group.shape == found.size.shape == found.anchor.shape == grid
    assert (found.windows, found.tokens, found.kept) == (4, 48, 24)
    for y in range(5):
        for x in range(7):
            w, i = 2 * (y // 3) + x // 4, 4 * (y % 3) + x % 4
            slot = slot_of_token[w, i]
            assert found.group[y, x] == w * slots + slot
            assert found.size[y, x] == (slot_of_token[w] == slot).sum()
            assert found.anchor[y, x] == (anchor_of_slot[w, slot] == i)
    assert found.real_kept == len(set(found.group.ravel().tolist()))


def test_merged_tokens_are_tinted_and_the_others_clear() -> None:
    found = four_by_four()
    picture = draw_groups(GREY, found, TOKEN)
    assert picture.size == (64, 64)
    array = np.asarray(picture)
    for y, x in np.ndindex(4, 4):
        patch = array[y * TOKEN : (y + 1) * TOKEN, x * TOKEN : (x + 1) * TOKEN]
        if found.merged[y, x]:
            assert np.abs(patch[3, 3].astype(int) - 128).max() > 20
        else:
            assert (patch == 128).all()


def test_one_group_has_one_colour_wherever_it_is_and_its_neighbour_another() -> None:
    picture = draw_groups(GREY, four_by_four(), TOKEN)
    assert (corner(picture, 0, 0) == corner(picture, 0, 1)).all()
    assert (corner(picture, 0, 0) == corner(picture, 3, 3)).all()
    assert (corner(picture, 1, 0) == corner(picture, 1, 1)).all()
    assert np.abs(corner(picture, 0, 0) - corner(picture, 1, 0)).max() > 40


def test_a_dot_is_where_the_group_stands_and_nowhere_else() -> None:
    picture = draw_groups(GREY, four_by_four(), TOKEN)
    for y, x in np.ndindex(4, 4):
        is_white = (center(picture, y, x) > 240).all()
        assert is_white == ((y, x) in {(3, 3), (1, 0)})


def test_windows_are_parted_by_lines() -> None:
    slot = np.arange(4) + np.zeros((4, 1), int)
    found = merged_map(slot, slot, (2, 2), (4, 4))
    array = np.asarray(draw_groups(GREY, found, TOKEN)).astype(int)
    assert (array[32] > 200).all() and (array[:, 32] > 200).all()
    rest = np.delete(np.delete(array, [32, 33], 0), [32, 33], 1)
    assert (rest == 128).all()
    whole = np.asarray(draw_groups(GREY, merged_map(np.arange(16)[None], np.arange(16)[None],
                                                    (4, 4), (4, 4)), TOKEN))  # fmt: skip
    assert (whole == 128).all()


def test_the_photo_may_end_before_the_grid() -> None:
    photo = GREY[:40, :50]
    energy = np.arange(16, dtype=np.float32).reshape(4, 4)
    found = four_by_four(energy=energy)
    assert draw_groups(photo, found, TOKEN).size == (50, 40)
    assert draw_energy(found, TOKEN, photo.shape).size == (50, 40)


def test_nothing_merged_has_no_colours() -> None:
    nothing = merged_map(np.arange(4)[None], np.arange(4)[None], (2, 2), (2, 2))
    assert (group_colors(nothing) == 0).all()


def test_energy_is_brightest_where_it_is_highest_on_the_photo() -> None:
    energy = np.zeros((4, 4), np.float32)
    energy[1, 2], energy[3, 3] = 5.0, 100.0  # the second lies on padding
    picture = draw_energy(four_by_four(energy=energy), TOKEN, (3 * TOKEN, 4 * TOKEN, 3))
    assert picture.size == (64, 48)
    sums = [center(picture, y, x).sum() for y, x in np.ndindex(3, 4)]
    assert int(np.argmax(sums)) == 6 and sums[6] > 400 and max(np.delete(sums, 6)) < 150
    flat = draw_energy(four_by_four(energy=np.ones((4, 4), np.float32)), TOKEN, GREY.shape)
    assert len(flat.getcolors()) == 1
    assert draw_energy(four_by_four(), TOKEN, GREY.shape) is None


def test_gradient_of_the_photo_is_the_mean_of_a_patch() -> None:
    rgb = np.zeros((64, 64, 3), np.uint8)
    rgb[:, 24:] = 80  # a step inside the second column of tokens: two pixels of 40
    geometry = ImageGeometry((64, 64), (64, 64), 64)
    gradient = photo_gradient(rgb, geometry, 16)
    expected = np.zeros((4, 4))
    expected[:, 1] = 2 * 40 / 16
    np.testing.assert_allclose(gradient, expected, atol=1e-9)
    np.testing.assert_allclose(photo_gradient(rgb.swapaxes(0, 1), geometry, 16), expected.T)


def test_gradient_covers_the_photo_and_sees_no_edge_at_its_border() -> None:
    rgb = np.full((41, 64, 3), 200, np.uint8)
    gradient = photo_gradient(rgb, ImageGeometry((41, 64), (41, 64), 64), 16)
    assert gradient.shape == (3, 4)  # 41 = 2.56 tokens
    assert (gradient == 0).all()
    assert photo_gradient(rgb[:39], ImageGeometry((39, 64), (39, 64), 64), 16).shape == (2, 4)


def test_edges_are_counted_on_the_photo() -> None:
    gradient = np.zeros((3, 4))
    gradient[0, 0], gradient[1, 1] = 6.0, 8.0  # round(0.2 * 12) = 2 tokens, both merged
    gradient[2, 2] = 4.0
    count = count_edges(four_by_four(), gradient)
    assert count.tokens == 12
    assert count.kept == 10  # tokens 0, 1, 4, 5 are in two slots; token 15 is not on the photo
    assert count.unmerged == pytest.approx(8 / 12)
    assert count.unmerged_on_edges == 0.0
    assert count.gradient_merged == pytest.approx(14 / 4)
    assert count.gradient_unmerged == pytest.approx(4 / 8)
    gradient[0, 0], gradient[2, 2] = 4.0, 6.0
    assert count_edges(four_by_four(), gradient).unmerged_on_edges == pytest.approx(1 / 2)


def test_a_constant_photo_has_no_edges() -> None:
    assert count_edges(four_by_four(), np.zeros((4, 4))).unmerged_on_edges is None
