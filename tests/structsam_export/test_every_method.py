"""Every method goes all the way: export, lint, parity, an engine, and a toy one like the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import torch

from structsam.apply import apply_merging
from structsam.config import MergeConfig
from structsam.methods import METHODS
from structsam.methods.fixed_destinations import FixedDestinations
from structsam.models import MODELS
from structsam.models.image_size import resized
from structsam.models.load import build_sam
from structsam_export import export
from structsam_export.bundle.folder import open_bundle
from structsam_export.bundle.manifest import ENCODER_ONNX
from structsam_export.cli.main import main
from structsam_export.graph.exporter import export_encoder
from structsam_export.graph.lint import lint
from structsam_export.graph.modules import EncoderModule
from structsam_export.parity.check import check
from tests.structsam_export.polygraphy_cli import assert_fully_supported


def ran(report: Any) -> Any:
    (row,) = [row for row in report.rows if row.status != "not run"]
    return row


@pytest.mark.parametrize("method", [name for name in METHODS if name != MergeConfig().method])
def test_export_and_check(
    method: str, fast_decoder: str, tiny_photo: Path, tmp_path: Path, one_torch_thread
) -> None:
    """The shared bundle is the default method's: tests/structsam_export/test_pipeline.py."""
    result = export(
        fast_decoder,
        rate=0.5,
        method=method,
        weights="random",
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=tmp_path,
    )
    row = ran(result.parity)
    assert row.metrics["same_slot"] > 0.999
    assert result.parity, result.parity.verdict()
    bundle = open_bundle(tmp_path / f"{fast_decoder}-{method}-r0.50-fp32")
    assert bundle.manifest["merging"]["method"] == method
    assert bundle.manifest["flops"]["method"] == method
    assert all(block["slots"] < block["tokens"] for block in bundle.manifest["merging"]["blocks"])
    assert check(bundle, "torch")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (
            {"options": {"operator": "central"}, "proportional": True, "align": 8}
            | {"prompt_aware": "rank"},
            "tiny-structsam-r0.50-operator_central-align8-proportional-box_rank-fp32",
        ),
        (
            {"prompt_aware": "windows", "placement": "block"},
            "tiny-structsam-r0.50-block-box_windows-fp32",
        ),
        ({"placement": "stage"}, "tiny-structsam-r0.50-stage-fp32"),
    ],
)
def test_options_of_merging_are_kept_in_the_bundle(
    config: dict[str, Any],
    name: str,
    fast_decoder: str,
    tiny_photo: Path,
    tmp_path: Path,
    one_torch_thread,
) -> None:
    result = export(
        fast_decoder,
        rate=0.5,
        weights="random",
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=tmp_path,
        **config,
    )
    assert result.parity, result.parity.verdict()
    assert ran(result.parity).metrics["same_slot"] > 0.999
    bundle = open_bundle(tmp_path / name)
    expected = MergeConfig.of(**{"attention": "folded", **config})  # what auto is on a CPU
    assert MergeConfig.from_dict(bundle.manifest["merging"]) == expected
    assert check(bundle, "torch")  # rebuilds the same merging from the manifest
    if config.get("align"):
        slots = [block["slots"] for block in bundle.manifest["merging"]["blocks"]]
        assert [count % 8 for count in slots] == [0, 0, 0]
    takes_box = "prompt_aware" in config
    assert bundle.takes_box is takes_box
    assert len(bundle.part("encoder").inputs) == 1 + takes_box


@pytest.mark.parametrize(
    ("method", "placement", "size", "embedding"),
    [
        *((name, "attention", 1024, "native") for name in METHODS),
        ("structsam", "block", 896, "native"),
        ("structsam", "stage", 768, "upsample"),
    ],
)
def test_window_and_global_block_at_fp16_build_for_turing(
    method: str, placement: str, size: int, embedding: Any, tmp_path: Path, one_torch_thread
) -> None:
    """The strictest target, on 25 windows, 9 of them padded, and on 4096 tokens.

    Nothing may need a sort or a TopK of that many. A stage is two window blocks. At 896 pixels no
    window is padded, at 768 some are.
    """
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    windows = 2 if placement == "stage" else 1
    small = {"depth": windows + 1, "global_blocks": (windows,), "embedded": None}
    spec = replace(MODELS["vit_t"], name="small", **small)
    encoder = build_sam(resized(spec, size, embedding)).image_encoder
    apply_merging(encoder, method=method, rate=0.5, placement=placement)
    module = EncoderModule(encoder, "fp16")
    part = export_encoder(module, tmp_path, ENCODER_ONNX)
    assert lint(tmp_path / ENCODER_ONNX) == []

    image = torch.randn(part.inputs[0].shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = encoder(image)
    found = run_onnx(tmp_path / ENCODER_ONNX, image)
    cosine = float(torch.cosine_similarity(*(t.double().flatten() for t in (found, wanted)), dim=0))
    # FP16 rounding ranks other tokens first: PiToMe merges every second one, CubistMerge lines
    assert cosine > {"pitome": 0.98, "cubistmerge": 0.99}.get(method, 0.999)
    assert engine_for_turing(tmp_path / ENCODER_ONNX) > 1_000_000
    assert_fully_supported(tmp_path / ENCODER_ONNX)


def run_onnx(file: Path, image: torch.Tensor) -> torch.Tensor:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["image_embeddings"], {"image": image.numpy()})[0])


def engine_for_turing(file: Path) -> int:
    """The size in bytes of the engine that TensorRT for RTX builds of a graph."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(file)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None
    return int(engine.nbytes)


@dataclass(frozen=True)
class EveryThird(FixedDestinations):
    """Merge tokens into every third one."""

    name: ClassVar[str] = "every_third"
    source: ClassVar[str] = "this test"
    max_rate: ClassVar[float] = 0.66

    def destination_positions(self) -> np.ndarray:
        return np.arange(0, self.num_tokens, 3)


def test_a_toy_method_needs_one_class_and_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fast_decoder: str,
    tiny_photo: Path,
    tmp_path: Path,
    one_torch_thread,
) -> None:
    """The command line knows it everywhere: list, flops, export with parity, error messages."""
    monkeypatch.setitem(METHODS, "every_third", EveryThird)

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        assert not ended.value.code, err
        return out + err

    assert "Merge tokens into every third one." in run("list", "--json")
    assert '"method": "every_third"' in run("flops", "--method", "every_third", "--json")
    assert "every_third" in run("flops", "--method", "all")
    arguments = ["--model", fast_decoder, "--weights", "random", "--method", "every_third"]
    shown = run("export", *arguments, "--image", str(tiny_photo), "--out", str(tmp_path))
    assert "passed" in shown
    with pytest.raises(SystemExit):
        main(["export", *arguments, "--rate", "0.7", "--out", str(tmp_path)])
    assert "outside [0, 0.66], the range of method 'every_third'" in capsys.readouterr().err
