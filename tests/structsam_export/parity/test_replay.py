"""Ties that were ranked otherwise are told from faults, and nothing else is excused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import torch

from structsam.apply import apply_merging, merged_blocks
from structsam.config import MergeConfig
from structsam.merging.window_group import WindowGroup
from structsam.methods import METHODS
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import PLAN_TENSORS
from structsam_export.parity import check as parity
from structsam_export.parity import reference as reference_of
from structsam_export.parity.check import check
from structsam_export.parity.reference import Reference, compute_reference
from structsam_export.parity.replay import CannotFollow, GivenSlotsMethod, follow
from structsam_export.predict.preprocessing import read_photo
from structsam_export.runtimes import BACKENDS, RunOptions
from structsam_export.runtimes.device_buffers import DeviceBuffers
from structsam_export.runtimes.torch_backend import load_merged_sam
from tests.structsam.method_contract import cap_of, variants
from tests.structsam_export.onnx_engine import install_engines
from tests.structsam_export.parity.test_parity import (
    change_weight,
    edit_onnx,
    one_percent_off_in_half_of_the_channels,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.mark.parametrize("name", METHODS)
def test_given_its_own_slots_a_method_computes_its_own_features(name: str) -> None:
    tokens = torch.randn(2, 196, 8, generator=torch.Generator().manual_seed(0))
    for options in variants(name):
        if options.get("cell_size") == 4:
            continue  # does not fit a window
        method = METHODS[name]((14, 14), min(0.5, cap_of(name, (14, 14), **options)), **options)
        own = method.plan(tokens)
        other = GivenSlotsMethod(method, own.slot_of_token, own.anchor_of_slot)
        if name == "cubistmerge":  # its features go from line to line
            with pytest.raises(CannotFollow, match="cubistmerge"):
                other.plan(tokens)
            continue
        given = other.plan(tokens)
        assert other.same == 1.0 and other.name == name and other.padding_slots((8, 14)) is None
        assert given.size_of_slot.equal(own.size_of_slot) and given.slot_grid == own.slot_grid
        torch.testing.assert_close(given.merge(tokens), own.merge(tokens), rtol=1e-5, atol=1e-6)


def one_cell_otherwise(slots: np.ndarray, anchors: np.ndarray, merged: int) -> None:
    """In map 0 the last merged cell stays whole, and the first one that stayed is merged."""
    cell, whole = slots[0] == merged - 1, np.isin(slots[0], np.arange(merged, merged + 4))
    slots[0, cell] = np.arange(merged, merged + 4)
    slots[0, whole] = merged - 1
    anchors[0, merged - 1] = np.flatnonzero(whole)[0]
    anchors[0, merged : merged + 4] = np.flatnonzero(cell)


@pytest.fixture
def tied(own_bundle: Bundle, tiny_model: str) -> Reference:
    """The reference as it were if a tie in block 1, the global one, had been ranked otherwise."""
    sam = load_merged_sam(own_bundle, RunOptions())
    file = own_bundle.path / own_bundle.manifest["reference_images"][0]
    photo = read_photo(file, own_bundle.preprocessing)
    plain = compute_reference(sam, photo)
    slots, anchors = (array.copy() for array in plain.plans[1])
    block = merged_blocks(sam)[1]
    one_cell_otherwise(slots, anchors, block.method.num_merged_cells)
    other = GivenSlotsMethod(block.method, torch.from_numpy(slots), torch.from_numpy(anchors))
    block.tiers = (WindowGroup(other, 1),)
    found = compute_reference(sam, photo)
    assert not np.array_equal(found.plans[1][0], plain.plans[1][0])
    return found


@pytest.fixture(params=["tensorrt", "tensorrt-rtx"])
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


RUNTIMES = ["onnxruntime", "torch", "tensorrt", "tensorrt-rtx"]


@pytest.mark.parametrize("backend", RUNTIMES)
def test_a_tie_ranked_otherwise_passes_and_says_so(own_bundle, tied, monkeypatch, backend) -> None:
    if backend.startswith("tensorrt"):
        install_engines(monkeypatch, own_bundle, backend)
    monkeypatch.setattr(parity, "_references", lambda *_: [tied])
    report = check(own_bundle, backend)
    (row,) = report.rows
    assert row.metrics["relative_l2"] > 1e-4  # off its gates, and shown as it is
    assert row.status == "passed" and row.same_slot[1] == 1 - 6 / 256
    assert row.reason.startswith("ties ranked otherwise: slots differ from block 1 on (97.66 %")
    assert row.followed["metrics"]["relative_l2"] < 1e-5
    assert row.followed["same_slot"] == {0: 1.0, 1: 1.0, 2: 1.0}
    assert report.verdict() == "parity passed (fp32); ties ranked otherwise on scene.png"
    page = (own_bundle.path / "parity.html").read_text()
    assert f"PyTorch with the slots of {backend}, on scene.png" in page


def test_an_engine_shows_its_slots(own_bundle, tiny_model, monkeypatch, engine: str) -> None:
    trt = install_engines(monkeypatch, own_bundle, engine)
    report = check(own_bundle, engine)
    (row,) = report.rows
    assert report and row.same_slot == {0: 1.0, 1: 1.0, 2: 1.0} and report.slots == ""
    assert row.runtime["gpu"] == "Pretended GPU" and not trt.cuda.alive


def test_predicting_fetches_no_slots_from_an_engine(own_bundle, monkeypatch, engine: str) -> None:
    install_engines(monkeypatch, own_bundle, engine)
    fetched: list[str] = []
    download = DeviceBuffers.download
    monkeypatch.setattr(
        DeviceBuffers,
        "download",
        lambda self, name, *rest: fetched.append(name) or download(self, name, *rest),
    )
    part = own_bundle.part("encoder")
    feeds = {"image": np.zeros(part.inputs[0].shape, np.float32)}
    with BACKENDS[engine].runner(own_bundle, "encoder", RunOptions()) as runner:
        assert list(runner.run(feeds)) == fetched == ["image_embeddings"]
        assert list(runner.run(feeds, ["anchor_of_slot.2"])) == fetched[1:] == ["anchor_of_slot.2"]


@pytest.mark.parametrize("slots", ["none", "of another map"])
def test_an_engine_that_shows_wrong_slots_is_not_excused(
    own_bundle, tied, monkeypatch, engine: str, slots: str
) -> None:
    """They are no plan, or not those by which the embedding was computed."""
    trt = install_engines(monkeypatch, own_bundle, engine)
    for name, array in zip(PLAN_TENSORS, tied.plans[0], strict=True):
        wrong = np.full_like(array, 10**6) if slots == "none" else np.roll(array, 1, 0)
        trt.planted[f"{name}.0"] = wrong.astype(np.int32)
    monkeypatch.setattr(parity, "_references", lambda *_: [tied])
    report = check(own_bundle, engine)
    (row,) = report.rows
    assert not report and row.status == "failed" and row.same_slot[0] < 0.7
    expected = "are no 97 slots of 196 tokens" if slots == "none" else "not by ties alone"
    assert expected in row.reason


def test_a_tie_hides_no_other_fault(own_bundle, tied, monkeypatch) -> None:
    monkeypatch.setattr(parity, "_references", lambda *_: [tied])

    # behind all blocks, so that the slots are right
    fault = change_weight("encoder.neck.0.weight", one_percent_off_in_half_of_the_channels)
    edit_onnx(own_bundle, "encoder", fault)
    report = check(open_bundle(own_bundle.path), "onnxruntime")
    assert not report and "not by ties alone" in report.verdict()


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_slots_that_are_chosen_wrongly_fail(own_bundle, tiny_model, monkeypatch, backend) -> None:
    """With its own slots the graph computes what PyTorch does; but PyTorch would choose others."""

    def steep_first(model) -> None:
        from onnx import helper

        roots = [i for i, node in enumerate(model.graph.node) if node.op_type == "Sqrt"]
        node = model.graph.node[roots[1]]  # the energy of block 1
        name = node.output[0]
        node.output[0] = "flat_first"
        model.graph.node.insert(roots[1] + 1, helper.make_node("Neg", ["flat_first"], [name]))

    edit_onnx(own_bundle, "encoder", steep_first)
    if backend.startswith("tensorrt"):
        install_engines(monkeypatch, own_bundle, backend)
    report = check(open_bundle(own_bundle.path), backend)
    (row,) = report.rows
    assert not report and row.status == "failed" and "not by ties alone" in row.reason
    assert row.followed["same_slot"][1] < 0.9 and row.followed["same_slot"][0] == 1.0
    assert row.followed["metrics"]["relative_l2"] < 1e-4


def test_without_the_weights_it_stays_failed(own_bundle, tied, monkeypatch) -> None:
    monkeypatch.setattr(parity, "_references", lambda *_: [tied])
    own_bundle.manifest["model"].update(
        weights="checkpoint", checkpoint={"file": "sam.pth", "sha256": "0" * 64}
    )
    report = check(own_bundle, "onnxruntime")
    assert not report
    assert "slots differ from block 1 on (97.66 % the same); whether by ties" in report.verdict()
    assert "`checkpoint=sam.pth`" in report.verdict()


@pytest.mark.parametrize(("schema", "why"), [(1, "export it again"), (2, "without plan outputs")])
def test_without_slots_it_stays_failed(own_bundle, tied, monkeypatch, schema, why) -> None:
    """A bundle of before, and one that was exported with one output."""
    del own_bundle.manifest["encoder"]["plan_outputs"]
    own_bundle.manifest["schema_version"] = schema
    own_bundle.save_manifest()
    old = open_bundle(own_bundle.path)
    report = check(old, "onnxruntime")
    assert report and report.rows[0].same_slot == {}
    assert report.verdict().startswith("parity passed (fp32); slots: not compared (")
    assert why in report.verdict()
    monkeypatch.setattr(parity, "_references", lambda *_: [tied])
    report = check(old, "onnxruntime")
    assert not report and "cannot be told from faults without slots" in report.verdict()
    assert "slots: not compared (" in report.verdict() and why in report.verdict()


@pytest.fixture(scope="module")
def in_tiers(tiny_sam_factory, tiny_photo: Path, tiny_spec):
    """A model whose windows merge in tiers, its reference, and plans as a runtime gives them."""
    sam = apply_merging(tiny_sam_factory(), MergeConfig(prompt_aware="windows"))
    assert len({tier.method.num_slots for tier in merged_blocks(sam)[0].tiers}) > 1
    in_window_1 = np.array([[226, 10, 250, 180]], np.float32)  # so that ranks are not 0, 1, 2, 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference_of, "prompt_box_of", lambda geometry: in_window_1)
        reference = compute_reference(sam, read_photo(tiny_photo, tiny_spec.preprocessing))
    plans = {
        f"{what}.{index}": arrays[i].astype(np.int32)
        for index, arrays in reference.plans.items()
        for i, what in enumerate(("slot_of_token", "anchor_of_slot"))
    }
    return sam, reference, plans


def test_windows_in_tiers_are_followed_each_in_its_tier(in_tiers) -> None:
    sam, reference, plans = in_tiers
    followed, same = follow(sam, reference, plans)
    assert same == {0: 1.0, 1: 1.0, 2: 1.0}
    np.testing.assert_allclose(followed.embedding, reference.embedding, rtol=1e-4, atol=1e-5)
    few = plans["slot_of_token.2"].max(1).argmin()  # a window of the tier that merges most
    slots, anchors = (plans[f"{what}.2"][few:].copy() for what in PLAN_TENSORS)
    one_cell_otherwise(slots, anchors, merged_cells(sam, 2))
    otherwise = {
        name: np.concatenate([plans[f"{name}.2"][:few], changed])
        for name, changed in zip(PLAN_TENSORS, (slots, anchors), strict=True)
    }
    followed, same = follow(sam, reference, plans | {f"{n}.2": a for n, a in otherwise.items()})
    assert same == pytest.approx({0: 1.0, 1: 1.0, 2: 1 - 6 / (4 * 196)})
    assert not np.allclose(followed.embedding, reference.embedding, rtol=1e-4, atol=1e-5)


def merged_cells(sam, index: int) -> int:
    """Of the tier that merges most."""
    return max(tier.method.num_merged_cells for tier in merged_blocks(sam)[index].tiers)


@pytest.mark.parametrize("fault", ["another tier", "no slot", "no token", "an empty slot"])
def test_what_is_no_plan_is_not_followed(in_tiers, fault: str) -> None:
    sam, reference, plans = in_tiers
    before = [block.tiers for block in merged_blocks(sam)]
    slots, anchors = (plans[f"{what}.0"].copy() for what in PLAN_TENSORS)
    if fault == "another tier":
        counts = slots.max(1)
        few, many = counts.argmin(), counts.argmax()
        slots[[few, many]], anchors[[few, many]] = slots[[many, few]], anchors[[many, few]]
    elif fault == "no slot":
        slots[1, 5] = 196
    elif fault == "no token":
        anchors[1, 5] = -1
    else:
        slots[1][slots[1] == 5] = 6
    planted = plans | {"slot_of_token.0": slots, "anchor_of_slot.0": anchors}
    with pytest.raises(CannotFollow, match=r"for block 0 are no \d+ slots of 196 tokens"):
        follow(sam, reference, planted)
    assert [block.tiers for block in merged_blocks(sam)] == before
