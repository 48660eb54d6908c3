"""Metrics of one mask: a contract for all of them, and each against loops over its pixels."""

from __future__ import annotations

import doctest
import importlib
import math
import pkgutil
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from structsam.errors import UserError
from structsam.evaluation import metrics
from structsam.evaluation.metrics import METRICS, MaskMetric, SetMetric, find_metric
from structsam.evaluation.metrics.boundary_iou import (
    BoundaryIoU,
    boundary_width,
    inner_boundary,
)
from structsam.evaluation.metrics.dice import Dice
from structsam.evaluation.metrics.disagreement import Disagreement
from structsam.evaluation.metrics.iou import IoU
from structsam.evaluation.metrics.nsd import NormalizedSurfaceDistance, surface
from tests.structsam.evaluation.naive_metrics import naive_boundary, naive_counts, naive_nsd

MASK_METRICS = [metric for metric in METRICS.values() if issubclass(metric, MaskMetric)]
all_mask_metrics = pytest.mark.parametrize("metric", MASK_METRICS, ids=lambda m: m.name)

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))


@st.composite
def masks(draw, count):
    """Masks of one shape: noise, or a rectangle that may touch the image's border."""
    shape = draw(shapes)
    found = []
    for _ in range(count):
        mask = draw(arrays.arrays(bool, shape))
        if draw(st.booleans()):
            top, left = (draw(st.integers(0, n - 1)) for n in shape)
            mask = np.zeros(shape, bool)
            mask[top : draw(st.integers(top, shape[0])), left:] = True
        found.append(mask)
    return found


def best(metric):
    return 1.0 if metric.higher_is_better else 0.0


# The contract of all metrics


def test_the_registry_names_its_metrics() -> None:
    for name, metric in METRICS.items():
        assert find_metric(name) is metric
        assert metric.name == name
        assert metric.title
        assert issubclass(metric, MaskMetric | SetMetric)
        assert metric().title == metric.title
    for wrong in ("miou", "", 3, ["iou"]):
        with pytest.raises(UserError, match=r"iou, boundary_iou, dice, nsd, disagreement, ap"):
            find_metric(wrong)


@all_mask_metrics
@settings(max_examples=60, deadline=None)
@given(pair=masks(2))
def test_values_are_in_range_and_symmetric(metric, pair) -> None:
    value = metric()(*pair)
    assert type(value) is float
    assert 0.0 <= value <= 1.0
    assert metric()(*pair[::-1]) == value
    assert metric()(pair[0].T, pair[1].T) == pytest.approx(value)
    assert metric()(pair[0][::-1, ::-1], pair[1][::-1, ::-1]) == pytest.approx(value)


@all_mask_metrics
@settings(max_examples=40, deadline=None)
@given(pair=masks(2))
def test_a_perfect_prediction_is_best(metric, pair) -> None:
    assert metric()(pair[0], pair[0].copy()) == best(metric)
    if metric is not NormalizedSurfaceDistance and not np.array_equal(*pair):
        other = metric()(*pair)
        assert other < 1.0 if metric.higher_is_better else other > 0.0


@all_mask_metrics
@settings(max_examples=40, deadline=None)
@given(found=masks(4))
def test_pixels_that_are_not_valid_change_nothing(metric, found) -> None:
    predicted, truth, valid, noise = found
    value = metric()(predicted, truth, valid)
    other = metric()(np.where(valid, predicted, noise), np.where(valid, truth, ~noise), valid)
    assert np.array_equal(value, other, equal_nan=True)
    assert math.isnan(value) == (not valid.any())
    assert metric()(predicted, truth, np.ones_like(valid)) == metric()(predicted, truth)
    if valid.any():  # and nothing but those: the same masks with these pixels erased
        assert value == metric()(predicted & valid, truth & valid)


@all_mask_metrics
def test_empty_masks(metric) -> None:
    empty, full = np.zeros((5, 7), bool), np.ones((5, 7), bool)
    one = empty.copy()
    one[4, 0] = True
    assert metric()(empty, empty) == best(metric)
    for mask in (full, one):
        assert metric()(mask, empty) == metric()(empty, mask) == 1.0 - best(metric)
    assert metric()(one, empty, ~one) == best(metric)
    assert math.isnan(metric()(full, empty, empty))
    assert math.isnan(metric()(empty[:0], empty[:0]))


@all_mask_metrics
def test_inputs_are_left_as_they_are(metric) -> None:
    predicted, truth, valid = np.random.default_rng(0).random((3, 9, 8)) > 0.4
    before = [mask.copy() for mask in (predicted, truth, valid)]
    metric()(predicted, truth, valid)
    for mask, old in zip((predicted, truth, valid), before, strict=True):
        assert np.array_equal(mask, old)


GOOD = np.ones((4, 5), bool)


@all_mask_metrics
@pytest.mark.parametrize(
    ("inputs", "named"),
    [
        ((np.ones((5, 4), bool), GOOD), [r"bool \[5, 4\]", r"bool \[4, 5\]"]),
        ((GOOD.astype(np.uint8), GOOD), [r"uint8 \[4, 5\]", r"bool \[4, 5\]"]),
        ((GOOD, GOOD.astype(float)), [r"bool \[4, 5\]", r"float64 \[4, 5\]"]),
        ((GOOD[None], GOOD[None]), [r"bool \[1, 4, 5\]", r"bool \[1, 4, 5\]"]),
        ((GOOD, GOOD, GOOD[:1]), [r"bool \[4, 5\]", r"valid is bool \[1, 5\]"]),
        ((GOOD, GOOD, GOOD * 1), [r"bool \[4, 5\]", r"valid is int64 \[4, 5\]"]),
        (([[True]], GOOD), [r"a list of shape \[\]", r"bool \[4, 5\]"]),
        ((None, GOOD), [r"predicted is a NoneType", r"bool \[4, 5\]"]),
    ],
)
def test_wrong_masks_are_refused_with_their_shapes(metric, inputs, named) -> None:
    with pytest.raises(UserError, match=".*".join(named)):
        metric()(*inputs)


# Against loops over pixels


@settings(max_examples=60, deadline=None)
@given(masks(2))
def test_overlaps_count_pixels(pair) -> None:
    both, first, second = naive_counts(*pair)
    union = first + second - both
    iou = both / union if union else 1.0
    assert IoU()(*pair) == pytest.approx(iou)
    assert Disagreement()(*pair) == pytest.approx(1 - iou)
    assert Dice()(*pair) == pytest.approx(2 * iou / (1 + iou))  # |A|+|B| = both + union


@settings(max_examples=80, deadline=None)
@given(masks(1), st.integers(1, 5))
def test_one_wide_erosion_is_many_small_ones(found, width) -> None:
    assert np.array_equal(inner_boundary(found[0], width), naive_boundary(found[0], width))


@settings(max_examples=60, deadline=None)
@given(masks(2))
def test_boundary_iou_of_small_images(pair) -> None:
    expected = IoU()(*(naive_boundary(mask, 1) for mask in pair))  # diagonals below 75: d = 1
    assert BoundaryIoU()(*pair) == expected


@pytest.mark.parametrize(("shape", "width"), [((90, 120), 3), ((41, 200), 4), ((150, 10), 3)])
def test_boundary_iou_of_objects_at_the_border(shape, width) -> None:
    y, x = np.mgrid[: shape[0], : shape[1]]
    disc = (y - shape[0] / 2) ** 2 + (x - shape[1] / 3) ** 2 < (0.6 * min(shape)) ** 2
    for other in (np.roll(disc, 2, axis=1), x > 4, ~np.roll(disc, 6, axis=0), np.ones(shape, bool)):
        pair = (disc, other)
        expected = IoU()(*(naive_boundary(mask, width) for mask in pair))
        assert 0 < expected < 1
        assert BoundaryIoU()(*pair) == expected


def test_the_boundary_is_two_percent_of_the_diagonal() -> None:
    sizes = {
        (1, 1): 1,
        (45, 60): 2,
        (75, 100): 2,
        (480, 640): 16,
        (1024, 1024): 29,
        (900, 1200): 30,
    }
    assert {size: boundary_width(*size) for size in sizes} == sizes


@settings(max_examples=80, deadline=None)
@given(masks(2), st.sampled_from([0, 1, math.sqrt(2), 2, math.sqrt(5), 3.5]))
def test_surface_distance_of_every_pair_of_pixels(pair, tolerance) -> None:
    assert NormalizedSurfaceDistance(tolerance)(*pair) == naive_nsd(*pair, tolerance)


def test_surface_distance_by_a_distance_map() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    y, x = np.mgrid[:200, :160]
    pair = ((y - 90) ** 2 + (x - 60) ** 2 < 75**2, (y - 95) ** 2 + (x - 62) ** 2 < 73**2)
    edges = [surface(mask) for mask in pair]
    far = [ndimage.distance_transform_edt(~edge) for edge in edges]
    near = (far[1][edges[0]] <= 4).sum() + (far[0][edges[1]] <= 4).sum()
    expected = near / (edges[0].sum() + edges[1].sum())
    assert 0.2 < expected < 0.9
    assert NormalizedSurfaceDistance(4)(*pair) == expected


@pytest.mark.parametrize("tolerance", [-1, math.nan, math.inf])
def test_a_tolerance_is_a_number_of_pixels(tolerance) -> None:
    with pytest.raises(UserError, match="0 or more"):
        NormalizedSurfaceDistance(tolerance)


def test_settings_show_in_the_title() -> None:
    assert NormalizedSurfaceDistance().title == "NSD (2 px)"
    assert NormalizedSurfaceDistance(1.5).title == "NSD (1.5 px)"


# Examples, and missing libraries

MODULES = [f"{metrics.__name__}.{info.name}" for info in pkgutil.iter_modules(metrics.__path__)]


@pytest.mark.parametrize("module", [*MODULES, "structsam.evaluation.mask_rle"])
def test_the_examples_in_the_docstrings(module) -> None:
    result = doctest.testmod(importlib.import_module(module))
    assert result.failed == 0
    assert result.attempted or module.endswith((".base", ".crop"))


def test_a_missing_scipy_is_named(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.spatial", None)
    with pytest.raises(UserError, match=r"pip install 'structsam\[eval\]'"):
        NormalizedSurfaceDistance()(GOOD, GOOD)


def test_importing_metrics_needs_numpy_alone() -> None:
    code = (
        "import sys\n"
        "for name in ('scipy', 'pycocotools', 'torch', 'matplotlib'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from structsam.evaluation.metrics import METRICS\n"
        "mask = np.ones((9, 9), bool)\n"
        "names = 'iou', 'boundary_iou', 'dice', 'disagreement'\n"
        "print([METRICS[name]()(mask, mask) for name in names])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[1.0, 1.0, 1.0, 0.0]", done.stderr
