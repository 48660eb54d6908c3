"""Every method's plan in torch and in ONNX Runtime: slot for slot, and clean for TensorRT."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from structsam.methods import METHODS
from structsam_export.graph.lint import lint
from tests.structsam import method_contract as contract
from tests.structsam import naive_structsam as naive
from tests.structsam.plan_certificate import Map, certify
from tests.structsam.token_maps import MAPS
from tests.structsam_export.method_graphs import (
    PLAN_SIDE,
    SIDE,
    WINDOW,
    export_plans,
    make,
    results_of,
    run_onnx,
    run_torch,
)

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

CHANNELS = 8
BOX = torch.tensor([[3.0, 4.0, 10.0, 9.0]])
WINDOW_GRID = (WINDOW, WINDOW)
#: Of float maps, at most this share of tokens may be in other slots than in torch.
SHARE = 0.005


def image_of(kind: str, side: int, seed: int = 3) -> torch.Tensor:
    """[1, side, side, 8]; `positive` is `exact` without negative numbers."""
    tokens = MAPS["exact" if kind == "positive" else kind](1, side**2, CHANNELS, seed)
    tokens = F.pad(tokens, (0, CHANNELS - tokens.shape[2]))
    tokens = tokens.abs() if kind == "positive" else tokens
    return tokens.reshape(1, side, side, CHANNELS)


def exact_maps(method) -> list[str]:
    """Maps on which every score is exact in float32, so that all runtimes must agree."""
    if method.name == "pitome":
        if method.alpha == 0 and method.margin_here in (0.0, 0.25):
            return ["exact", "positive"]  # ELU is piecewise linear
        # the constant that padding adds is no round number, so ties in windows are rounded apart
        return ["positive"] if method.margin_here == 0 and method.grid != WINDOW_GRID else []
    if method.name == "cubistmerge" or getattr(method, "stages", "local") != "local":
        return ["sign"]  # merged vectors have no exact cosines, but signs have
    if getattr(method, "flatness", "max") == "mean":
        return []  # sums of roots
    return ["exact", "sign", "positive"]


def has_certificate(method) -> bool:
    return method.name != "cubistmerge" and getattr(method, "stages", "local") == "local"


def certify_all(method, result, image) -> None:
    """Certify every map of a result: all windows, or the one map."""
    energy = method.token_energy(image)
    maps, energies, padding = [image[0].numpy()], None, [None]
    if method.grid == WINDOW_GRID:
        maps = naive.partition(maps[0], WINDOW)
        padding = [p.ravel() == 0 for p in naive.partition(np.ones(image.shape[1:3]), WINDOW)]
    if energy is not None:
        energies = [energy[0].numpy()]
        if method.grid == WINDOW_GRID:
            energies = naive.partition(energies[0], WINDOW)
    for b, values in enumerate(maps):
        own = None if energies is None else energies[b].ravel()
        box = BOX[0].tolist() if method.takes_box else None
        here = Map(method, values.reshape(-1, CHANNELS), own, padding[b], box)
        certify(here, result.slot_of_token[b], result.anchor_of_slot[b], result.size_of_slot[b])


def compare(methods, side: int, file: Path, kinds=("random",)) -> None:
    """Export the plans of these methods, and hold what ONNX Runtime makes of them against torch."""
    export_plans(methods, side, CHANNELS, file)
    assert [str(violation) for violation in lint(file)] == []
    wanted = {kind for method in methods for kind in exact_maps(method)}
    for kind in sorted({*kinds, *wanted}):
        image = image_of(kind, side)
        ours = results_of(run_torch(methods, image, BOX))
        theirs = results_of(run_onnx(file, image, BOX))
        for method, a, b in zip(methods, ours, theirs, strict=True):
            same = a.slot_of_token == b.slot_of_token
            if kind in exact_maps(method):
                assert same.all(), (kind, method)
                assert (a.anchor_of_slot == b.anchor_of_slot).all()
                assert (a.size_of_slot == b.size_of_slot).all()
            elif kind not in kinds:
                continue
            elif has_certificate(method):
                certify_all(method, b, image)
                if not same.all():
                    certify_all(method, a, image)
                others = (
                    a.anchor_of_slot[0][a.slot_of_token[0]]
                    != b.anchor_of_slot[0][b.slot_of_token[0]]
                )
                assert others.mean() <= SHARE, (kind, method)
            else:
                assert same.all(), (kind, method)
            if same.all():
                np.testing.assert_allclose(b.merged, a.merged, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_plans_of_windows_and_of_the_global_map(name, tmp_path) -> None:
    methods = [m for grid in (WINDOW_GRID, (SIDE, SIDE)) for m in make(name, grid, [(0.5, {})])]
    compare(methods, SIDE, tmp_path / "plans.onnx", kinds=("random", "smooth"))


@pytest.mark.parametrize("grid", [WINDOW_GRID, (PLAN_SIDE, PLAN_SIDE)], ids=contract.label)
@pytest.mark.parametrize("name", METHODS)
def test_plans_of_every_rate_and_option(name, grid, tmp_path) -> None:
    cases = []
    for options in contract.variants(name):
        try:
            cap = contract.cap_of(name, grid, **options)
        except contract.UserError:
            continue  # cells of 4x4 in a window
        # energies of 4096 tokens with a margin lie too close together to bound the share
        crowded = name == "pitome" and grid != WINDOW_GRID and set(options) & {"margin", "alpha"}
        if not crowded:
            rates = (0.25, cap) if not options else (0.5,)
            cases += [(rate, options) for rate in rates if rate <= cap]
    compare(make(name, grid, cases), PLAN_SIDE, tmp_path / "plans.onnx")


def swapped(result, one: int, other: int):
    """The first map's plan with two slots in each other's place."""
    turn = np.arange(result.anchor_of_slot.shape[1])
    turn[[one, other]] = other, one
    tables = {key: getattr(result, key).copy() for key in ("anchor_of_slot", "size_of_slot")}
    for table in tables.values():
        table[0] = table[0][turn]
    slots = result.slot_of_token.copy()
    slots[0] = turn[slots[0]]
    return result._replace(slot_of_token=slots, **tables)


@pytest.mark.parametrize("name", METHODS)
def test_the_certificate_knows_right_from_wrong(name) -> None:
    image = image_of("random", PLAN_SIDE)
    for options in contract.variants(name):
        if options.get("cell_size", 2) != 2:
            continue
        (method,) = make(name, WINDOW_GRID, [(0.5, options)])
        if not has_certificate(method):
            continue
        (result,) = results_of(run_torch([method], image, BOX))
        certify_all(method, result, image)
        for one, other in ((0, 1), (0, -1), (5, 6)):
            slots = method.num_slots
            wrong = swapped(result, one % slots, other % slots)
            with pytest.raises(AssertionError):
                certify_all(method, wrong, image)
        # and with one token in the slot of another
        slot, size = result.slot_of_token.copy(), result.size_of_slot.copy()
        joined = np.setdiff1d(np.arange(len(slot[0])), result.anchor_of_slot[0])
        old, new = slot[0, joined[0]], method.num_slots - 1
        if old != new:
            slot[0, joined[0]] = new
            size[0, old] -= 1
            size[0, new] += 1
            with pytest.raises(AssertionError):
                certify_all(method, result._replace(slot_of_token=slot, size_of_slot=size), image)
