"""Masks as COCO run lengths, against runs that are counted one pixel after the other."""

from __future__ import annotations

import sys
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from structsam.errors import UserError
from structsam.evaluation.mask_rle import decode, encode, rle_dict, rle_iou, run_lengths
from structsam.evaluation.metrics.iou import IoU

pytest.importorskip("pycocotools")

shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
mask_pairs = shapes.flatmap(lambda shape: arrays.arrays(bool, (2, *shape)))


def naive_runs(mask):
    pixels = [bool(value) for column in mask.T for value in column]
    runs = [len(list(group)) for _, group in groupby(pixels)]
    return [0, *runs] if pixels[0] else runs


@settings(max_examples=100, deadline=None)
@given(mask_pairs)
def test_masks_come_back_and_compare_as_pixels_do(pair) -> None:
    size = pair.shape[1:]
    texts = [encode(mask) for mask in pair]
    for mask, text in zip(pair, texts, strict=True):
        assert text.isascii()
        back = decode(text, size)
        assert back.dtype == bool
        assert back.flags.c_contiguous
        assert np.array_equal(back, mask)
        assert run_lengths(text, size).tolist() == naive_runs(mask)
    assert rle_iou(*texts, size) == pytest.approx(IoU()(*pair))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 30_000), min_size=1, max_size=9), st.booleans())
def test_long_runs_and_large_differences(runs, object_first) -> None:
    mask = np.repeat(np.arange(len(runs)) % 2 == (0 if object_first else 1), runs)[:, None]
    text = encode(mask)
    assert run_lengths(text, mask.shape).tolist() == ([0, *runs] if object_first else runs)
    assert np.array_equal(decode(text, mask.shape), mask)


def test_any_layout_in_memory_is_encoded_alike() -> None:
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    wide = np.repeat(mask, 2, axis=1)
    assert encode(mask) == encode(np.asfortranarray(mask)) == encode(wide[:, ::2])
    assert encode(mask.T) == encode(np.ascontiguousarray(mask.T)) != encode(mask)


def test_two_empty_masks_agree() -> None:
    empty, full = encode(np.zeros((4, 6), bool)), encode(np.ones((4, 6), bool))
    assert rle_iou(empty, empty, (4, 6)) == 1.0
    assert rle_iou(empty, full, (4, 6)) == rle_iou(full, empty, (4, 6)) == 0.0
    assert rle_dict(full, (4, 6)) == {"size": [4, 6], "counts": full.encode()}


@pytest.mark.parametrize("size", [(3, 3), (1, 3), (2, 3), (0, 0)])
def test_another_size_is_refused(size) -> None:
    for use in (lambda: decode("13", size), lambda: rle_iou("13", "13", size)):
        with pytest.raises(UserError, match=f"4 pixels, but its size {size[0]}x{size[1]}"):
            use()


@pytest.mark.parametrize(
    "text", ["", "\0", "é", "1Q", "o" * 20 + "0", "Q" + "P" * 12 + "03", "O5", "1 3", 5, [1, 3]]
)
def test_damaged_text_is_refused(text) -> None:
    for use in (lambda: decode(text, (2, 2)), lambda: rle_iou("13", text, (2, 2))):
        with pytest.raises(UserError, match="damaged mask"):
            use()


@pytest.mark.parametrize("cut", range(1, 12))
def test_cut_text_never_reads_what_nobody_wrote(cut) -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:40:3, 5:45] = True
    with pytest.raises(UserError):
        decode(encode(mask)[:-cut], (50, 50))


@pytest.mark.parametrize(
    "mask", [np.ones((2, 2), np.uint8), np.ones(4, bool), np.ones((0, 3), bool), [[True]]]
)
def test_only_masks_are_encoded(mask) -> None:
    with pytest.raises(UserError, match=r"bool array \[H, W\]"):
        encode(mask)


def test_a_missing_pycocotools_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools.mask", None)
    with pytest.raises(UserError, match=r"pip install 'structsam\[eval\]'"):
        encode(np.ones((2, 2), bool))
