"""Every form of attention as a graph: the same numbers, the rules, and fused kernels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from structsam import MergeConfig, apply_merging
from structsam.errors import UserError
from structsam.merging.attention_forms import FORMS
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.cli.main import main
from structsam_export.engines.build import build
from structsam_export.graph.attention_choice import (
    AUTO_ATTENTION,
    UNMERGED_ATTENTION,
    attention_for,
)
from structsam_export.graph.exporter import export_encoder
from structsam_export.graph.lint import lint, runtime_needs
from structsam_export.graph.modules import EncoderModule
from structsam_export.graph.precisions import PRECISIONS
from structsam_export.runtimes import BACKENDS
from tests.structsam_export.polygraphy_cli import assert_fully_supported

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.usefixtures("one_torch_thread")

every_form = pytest.mark.parametrize("form", FORMS)


def exported(sam: Any, folder: Path, precision: str, **choice: Any) -> Path:
    """The encoder's ONNX file."""
    apply_merging(sam, **choice)
    export_encoder(EncoderModule(sam.image_encoder, precision), folder, "encoder.onnx")
    return folder / "encoder.onnx"


def run(file: Path, image: np.ndarray) -> np.ndarray:
    """The embedding, on one CPU thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return session.run(["image_embeddings"], {"image": image})[0]


def photo_like(sam: Any) -> np.ndarray:
    side = sam.image_encoder.img_size
    return np.random.default_rng(0).standard_normal((1, 3, side, side), np.float32)


def cores(file: Path) -> list[str]:
    """Names of the nodes that only attention has, in the order of the graph."""
    nodes = onnx.load(file).graph.node
    return [node.name for node in nodes if node.op_type in ("Softmax", "Attention")]


@every_form
def test_at_rate_0_the_graph_is_stock_sam(
    form: str, tiny_sam_factory: Callable[..., Any], tmp_path: Path
) -> None:
    sam = tiny_sam_factory()
    image = photo_like(sam)
    with torch.inference_mode():
        expected = sam.image_encoder(torch.from_numpy(image)).numpy()
    file = exported(sam, tmp_path, "fp32", rate=0.0, attention=form)
    assert np.abs(run(file, image) - expected).max() <= 1e-5 * np.abs(expected).max()


@every_form
def test_merged_the_graph_is_what_torch_computes(
    form: str, tiny_sam_factory: Callable[..., Any], tmp_path: Path
) -> None:
    sam = tiny_sam_factory()
    image = photo_like(sam)
    file = exported(sam, tmp_path, "fp32", rate=0.5, attention=form, proportional=True)
    with torch.inference_mode():
        expected = sam.image_encoder(torch.from_numpy(image)).numpy()
    assert np.abs(run(file, image) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert lint(file) == []
    kind = "Attention" if FORMS[form].operator else "Softmax"
    assert cores(file) == [f"blocks.{index}.core/{kind}" for index in range(3)]
    opset = {entry.domain: entry.version for entry in onnx.load(file).opset_import}[""]
    assert opset == (23 if FORMS[form].operator else 20)
    needs = runtime_needs(file)
    assert (needs is not None) == FORMS[form].operator
    assert needs is None or ("TensorRT 10.14" in needs and "JetPack 6" in needs)


def test_every_kind_of_block_has_a_form_of_its_own(
    tiny_sam_factory: Callable[..., Any], tmp_path: Path
) -> None:
    choice = "global=operator,window=dense"
    file = exported(tiny_sam_factory(), tmp_path, "fp32", rate=0.5, attention=choice)
    kinds = [name.rsplit("/")[-1] for name in cores(file)]
    assert kinds == ["Softmax", "Attention", "Softmax"]  # the block in the middle is global


@pytest.mark.parametrize(
    "wrong", ["global=dense", "global=dense,window=flash", "dense,window=folded", "a=b,c=d", "x="]
)
def test_a_form_for_only_one_kind_is_refused(wrong: str) -> None:
    with pytest.raises(UserError, match="unknown attention .*global=folded_padded,window=folded"):
        MergeConfig(attention=wrong)


@pytest.mark.slow
@every_form
def test_engines_for_tensorrt_rtx_are_fused_where_the_form_allows_it(
    form: str,
    tiny_bundle_factory: Callable[..., Bundle],
    tiny_sam_factory: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Oldest target, and newest for the forms of `auto`; what the engine and the user are told."""
    targets = ["sm75", "sm121"] if form.startswith("folded") else ["sm75"]
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    shutil.copytree(tiny_bundle_factory("fp16").path, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    exported(tiny_sam_factory(), bundle.path, "fp16", rate=0.5, attention=form)
    bundle.record_file("encoder.onnx")
    bundle.save_manifest()
    told: list[str] = []
    entries = build(
        bundle,
        "tensorrt-rtx",
        targets,
        progress=lambda event: told.append(event.message) if event.kind == "built" else None,
    )
    expected = {"fused": [0, 1, 2], "separate": []}
    if form == "folded":  # values narrower than queries and keys
        expected = {"fused": [], "separate": [0, 1, 2]}
    found = {entry.target: entry.attention for entry in entries if entry.part == "encoder"}
    assert found == dict.fromkeys(targets, expected)
    said = f"attention fused in {len(expected['fused'])} of 3 blocks"
    assert sum(said in message for message in told) == len(targets)
    assert all(entry.attention == {} for entry in entries if entry.part == "decoder")
    asked = ["build", str(bundle.path), "--backend", "tensorrt-rtx", "--target", "sm75"]
    with pytest.raises(SystemExit) as end:
        main(asked)  # nothing to build: the manifest remembers
    assert not end.value.code
    shown = capsys.readouterr()
    assert said in shown.out
    assert ("attention of block 0, 1, 2 is not fused" in " ".join(shown.err.split())) == (
        form == "folded"
    )
    assert_fully_supported(bundle.onnx_path("encoder"))


def test_auto_is_one_table_with_its_reasons() -> None:
    for (backend, precision), choice in AUTO_ATTENTION.items():
        assert backend in BACKENDS and precision in PRECISIONS
        config, why = attention_for(MergeConfig(), backend, precision)
        assert config.attention == choice.attention in FORMS
        assert why and choice.reason in why
        assert "measured" in why or "assumed" in why or "engines" in why
    asked = MergeConfig(attention="dense")
    assert attention_for(asked, "tensorrt", "fp16") == (asked, None)


def test_auto_may_be_another_form_where_nothing_merges() -> None:
    for backend, precision in UNMERGED_ATTENTION:
        assert backend in BACKENDS and precision in PRECISIONS
    forms = [
        attention_for(MergeConfig(rate=rate), backend, precision)[0].attention
        for rate in (0.0, (0.0,) * 12, 0.5, (0.0,) * 11 + (0.5,))
        for backend, precision in (
            ("openvino", "fp32"),
            ("openvino", "int8-fp32"),
            ("onnxruntime", "fp32"),
        )
    ]
    assert forms == 2 * ["dense", "dense", "folded"] + 2 * ["folded"] * 3
