"""Intervals against scipy, against a loop, and against what they must not depend on."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.evaluation.bootstrap import Estimate, interval, intervals, per_image


def by_loop(sums, counts, level, resamples, seed):
    """The definition: draw images, divide the sums, take percentiles."""
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(resamples):
        chosen = [int(i) for i in rng.integers(0, len(sums), len(sums))]
        total = sum(counts[i] for i in chosen)
        if total:
            means.append(sum(sums[i] for i in chosen) / total)
    return np.percentile(means, [50 * (1 - level), 50 * (1 + level)])


def test_one_mask_per_image_is_scipys_percentile_bootstrap(rng) -> None:
    from scipy.stats import bootstrap

    values = rng.random(60)
    found = interval(values, np.ones(60), level=0.9)
    expected = bootstrap(
        (values,), np.mean, confidence_level=0.9, n_resamples=10_000, method="percentile", rng=5
    ).confidence_interval
    # two different draws of 10,000: the ends of a 90 % interval scatter by about 2 % of its width
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)
    assert found.value == pytest.approx(values.mean())


def test_several_masks_per_image_are_scipys_paired_ratio(rng) -> None:
    from scipy.stats import bootstrap

    counts = rng.integers(1, 9, 40).astype(float)
    sums = counts * rng.random(40)
    expected = bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=10_000,
        rng=5,
    ).confidence_interval
    found = interval(sums, counts)
    width = expected.high - expected.low
    assert found.low == pytest.approx(expected.low, abs=0.05 * width)
    assert found.high == pytest.approx(expected.high, abs=0.05 * width)


clusters = st.lists(
    st.tuples(st.integers(0, 4), st.floats(0, 1, allow_subnormal=False)), min_size=2, max_size=9
).filter(lambda images: sum(count > 0 for count, _ in images) >= 2)


@settings(max_examples=25)
@given(clusters, st.sampled_from([0.5, 0.9, 0.95]), st.integers(0, 3))
def test_it_is_the_loop_over_resamples(images, level, seed) -> None:
    counts = np.array([count for count, _ in images], float)
    sums = counts * np.array([mean for _, mean in images])
    found = interval(sums, counts, level, resamples=60, seed=seed)
    assert [found.low, found.high] == pytest.approx(by_loop(sums, counts, level, 60, seed))
    assert found.value == pytest.approx(sums.sum() / counts.sum())
    assert (found.images, found.masks) == (np.count_nonzero(counts), counts.sum())


@settings(max_examples=25)
@given(clusters, st.integers(0, 3))
def test_many_metrics_at_once_are_each_alone(images, seed) -> None:
    counts = np.array([[count, 1] for count, _ in images], float)
    sums = counts * np.array([[mean, 1 - mean] for _, mean in images])
    together = intervals(sums, counts, resamples=50, seed=seed)
    for k, found in enumerate(together):
        alone = interval(sums[:, k], counts[:, k], resamples=50, seed=seed)
        assert (found.low, found.high) == pytest.approx((alone.low, alone.high))


def test_chunks_do_not_change_the_draw(rng, monkeypatch) -> None:
    sums, counts = rng.random(50), np.ones(50)
    whole = interval(sums, counts, resamples=300)
    monkeypatch.setattr("structsam.evaluation.bootstrap._CHUNK", 7 * 50)
    parts = interval(sums, counts, resamples=300)
    assert (parts.low, parts.high) == pytest.approx((whole.low, whole.high))


def test_an_interval_is_right_about_as_often_as_it_says(rng) -> None:
    """Of 200 sets of 50 images with correlated masks, 95 % should have the true mean inside."""
    hits = 0
    for seed in range(200):
        counts = rng.integers(1, 6, 50)
        means = rng.normal(0.7, 0.1, 50)  # of the images: the masks share them
        sums = counts * means
        found = interval(sums, counts, resamples=500, seed=seed)
        hits += found.low <= 0.7 <= found.high
    assert 180 <= hits <= 199  # binomial(200, 0.94): 188 +- 3.4; single masks would give 150


def test_masks_of_one_image_are_not_independent(rng) -> None:
    """Ten equal masks per image say no more than one: the interval must not shrink."""
    values = rng.random(30)
    one, ten = interval(values, np.ones(30)), interval(10 * values, np.full(30, 10.0))
    assert (one.low, one.high) == pytest.approx((ten.low, ten.high))
    assert (one.masks, ten.masks) == (30, 300)


def test_no_change_is_exactly_no_difference(rng) -> None:
    sums, counts = rng.random(33), np.ones(33)
    same = interval(sums - sums, counts)
    assert (same.value, same.low, same.high, same.verdict) == (0, 0, 0, "no difference")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.1, 0.2, "no difference"),
        (0.0, 0.2, "no difference"),
        (-0.2, 0.0, "no difference"),
        (0.1, 0.2, "higher"),
        (-0.2, -0.1, "lower"),
        (None, None, "not tested"),
    ],
)
def test_verdicts(low, high, verdict) -> None:
    assert Estimate(0.0, low, high, 6, 6).verdict == verdict
    assert Estimate(0.0, low, high, 5, 5).verdict == "not tested"


def test_runs_without_any_effect_are_seldom_judged_different(rng) -> None:
    """Also with few images; of 400 sets of 6, a fair 5 % would be 20, and percentiles give more."""
    for images, most in ((3, 0), (5, 0), (6, 65), (30, 40)):
        judged = 0
        for seed in range(400):
            change = interval(rng.normal(0, 1, images), np.ones(images), 0.95, 400, seed)
            judged += change.verdict != "not tested" and change.verdict != "no difference"
        assert judged <= most


def test_one_image_has_no_interval() -> None:
    found = interval(np.array([1.5]), np.array([2.0]))
    assert (found.value, found.low, found.high, found.images) == (0.75, None, None, 1)
    assert found.note == "no interval: one image only"
    among_others = interval(np.array([0.0, 1.5, 0.0]), np.array([0.0, 2.0, 0.0]))
    assert among_others.low is None and among_others.value == 0.75


def test_no_mask_has_no_value() -> None:
    found = interval(np.zeros(3), np.zeros(3))
    assert (found.value, found.low, found.images, found.masks) == (None, None, 0, 0)
    assert found.note == "no mask"
    assert interval(np.zeros(0), np.zeros(0)).value is None


def test_nan_is_left_out_of_sums_and_counts() -> None:
    values = np.array([[1.0, np.nan], [3.0, 0.5], [np.nan, np.nan], [4.0, 0.25]])
    sums, counts = per_image(values, np.array([0, 0, 1, 2]), 4)
    assert sums.tolist() == [[4, 0.5], [0, 0], [4, 0.25], [0, 0]]
    assert counts.tolist() == [[2, 1], [0, 0], [1, 1], [0, 0]]


def test_same_seed_same_interval(rng) -> None:
    sums, counts = rng.random(20), np.ones(20)
    assert interval(sums, counts) == interval(sums, counts)
    assert interval(sums, counts, seed=1) != interval(sums, counts, seed=2)


def test_a_thousand_images_take_less_than_a_second(rng) -> None:
    counts = rng.integers(0, 6, (1000, 9)).astype(float)
    start = time.process_time()
    intervals(counts * 0.5, counts)
    assert time.process_time() - start < 2  # 0.15 s where nothing else runs
