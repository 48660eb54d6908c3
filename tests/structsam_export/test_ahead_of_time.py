"""Every exported graph is parsed and built by TensorRT for RTX on the CPU, sm75 to sm121."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.bundle import Bundle, open_bundle
from structsam_export.engine_build import build
from structsam_export.lint import lint

pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")

SIX = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


def targets_of(entries: list[dict]) -> dict[str, list[str]]:
    return {
        part: [entry["target"] for entry in entries if entry["part"] == part]
        for part in ("encoder", "decoder")
    }


@pytest.mark.slow
def test_a_tiny_bundle_builds_at_fp32_for_every_target_but_turing(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """TensorRT for RTX has no float32 matmul for Turing."""
    shutil.copytree(tiny_bundle.path, tmp_path / "copy")
    bundle = open_bundle(tmp_path / "copy")
    entries = build(bundle, "tensorrt-rtx", targets=["all"])
    assert targets_of(entries) == {"encoder": SIX[1:], "decoder": SIX[1:]}
    with pytest.raises(UserError, match="no float32 matmul for sm75"):
        build(bundle, "tensorrt-rtx", targets=["sm75"])
    open_bundle(bundle.path)  # the engines are recorded with their hashes
    for entry in entries:
        assert (bundle.path / entry["file"]).stat().st_size == entry["size"] > 100_000


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vit_t_at_fp16_builds_for_every_target(tmp_path: Path) -> None:
    from structsam_export import export

    result = export("vit_t", rate=0.5, weights="random", targets=["all"], out=tmp_path)
    assert result.parity, result.parity.verdict()
    bundle = open_bundle(result.bundle.path)
    assert targets_of(bundle.manifest["engines"]) == {"encoder": SIX, "decoder": SIX}
    for part in ("encoder", "decoder"):
        assert lint(bundle.onnx_path(part)) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vit_b_at_fp32_passes_parity_and_builds(tmp_path: Path) -> None:
    from structsam_export import export

    result = export(
        "vit_b",
        rate=0.5,
        weights="random",
        precision="fp32",
        targets=["sm80", "sm89", "sm121"],
        out=tmp_path,
    )
    assert result.parity, result.parity.verdict()
    ran = [row for row in result.parity.rows if row.status == "passed"]
    assert [row.backend for row in ran] == ["onnxruntime"]
    assert ran[0].metrics["relative_l2"] <= 1e-4
    assert ran[0].metrics["same_slot"] > 0.999
    assert len(result.bundle.manifest["engines"]) == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_vit_b_at_fp16_builds_for_every_target(tmp_path: Path) -> None:
    """Parity of FP16 on the CPU is checked on vit_t; here only the graphs count."""
    import structsam
    from structsam_export.graph_modules import DecoderModule, EncoderModule
    from structsam_export.onnx_graph import export_decoder, export_encoder

    sam = structsam.apply_merging(structsam.load_sam("vit_b", weights="random"), rate=0.5)
    encoder = export_encoder(EncoderModule(sam.image_encoder, "fp16"), tmp_path, "encoder.onnx")
    decoder = export_decoder(DecoderModule(sam, "fp16"), tmp_path, "decoder.onnx")
    del sam
    manifest = {
        "name": "graphs",
        "precision": {"name": "fp16"},
        "encoder": encoder.to_dict(),
        "decoder": decoder.to_dict(),
        "engines": [],
        "files": {},
    }
    bundle = Bundle(tmp_path, manifest)
    for part in (encoder, decoder):
        bundle.record_file(part.file)
        assert lint(tmp_path / part.file) == []
    entries = build(bundle, "tensorrt-rtx", targets=["all"])
    assert targets_of(entries) == {"encoder": SIX, "decoder": SIX}
