"""Every method goes all the way: export, lint, parity, an engine, and a toy one like the rest."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from structsam.apply import apply_merging
from structsam.config import MergeConfig
from structsam.methods import METHODS
from structsam.methods.fixed_destinations import FixedDestinations
from structsam.models import MODELS
from structsam.models.load import build_sam
from structsam_export import export
from structsam_export.bundle.folder import open_bundle
from structsam_export.bundle.manifest import ENCODER_ONNX
from structsam_export.cli.main import main
from structsam_export.graph.exporter import export_encoder
from structsam_export.graph.lint import lint
from structsam_export.graph.modules import EncoderModule
from structsam_export.parity.check import check

#: The strictest target: TensorRT for RTX has no FP32 matmul there.
TURING = "sm75"


def ran(report: Any) -> Any:
    (row,) = [row for row in report.rows if row.status != "not run"]
    return row


@pytest.mark.parametrize("method", METHODS)
def test_export_and_check(
    method: str, tiny_model: str, tiny_photo: Path, tmp_path: Path, one_torch_thread
) -> None:
    result = export(
        tiny_model,
        rate=0.5,
        method=method,
        weights="random",
        precision="fp32",
        images=[tiny_photo],
        out=tmp_path,
    )
    row = ran(result.parity)
    assert row.metrics["same_slot"] > 0.999
    assert result.parity, result.parity.verdict()
    bundle = open_bundle(tmp_path / f"{tiny_model}-{method}-r0.50-fp32")
    assert bundle.manifest["merging"]["method"] == method
    assert bundle.manifest["flops"]["method"] == method
    assert all(block["slots"] < block["tokens"] for block in bundle.manifest["merging"]["blocks"])
    assert check(bundle, "torch")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"options": {"operator": "central"}}, "tiny-structsam-r0.50-operator_central-fp32"),
        ({"proportional": True, "align": 8}, "tiny-structsam-r0.50-align8-proportional-fp32"),
        ({"prompt_aware": "rank"}, "tiny-structsam-r0.50-box_rank-fp32"),
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
    tiny_model: str,
    tiny_photo: Path,
    tmp_path: Path,
    one_torch_thread,
) -> None:
    result = export(
        tiny_model,
        rate=0.5,
        weights="random",
        precision="fp32",
        images=[tiny_photo],
        out=tmp_path,
        **config,
    )
    assert result.parity, result.parity.verdict()
    assert ran(result.parity).metrics["same_slot"] > 0.999
    bundle = open_bundle(tmp_path / name)
    assert MergeConfig.from_dict(bundle.manifest["merging"]) == MergeConfig.of(**config)
    assert check(bundle, "torch")  # rebuilds the same merging from the manifest
    if config.get("align"):
        slots = [block["slots"] for block in bundle.manifest["merging"]["blocks"]]
        assert [count % 8 for count in slots] == [0, 0, 0]
    takes_box = "prompt_aware" in config
    assert bundle.takes_box is takes_box
    assert len(bundle.part("encoder").inputs) == 1 + takes_box


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "placement"),
    [*((name, "attention") for name in METHODS), ("structsam", "block"), ("structsam", "stage")],
)
def test_vit_t_in_all_layers_builds_for_turing(method: str, placement: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    result = export(
        "vit_t",
        rate=0.5,
        method=method,
        weights="random",
        placement=placement,
        targets=[TURING],
        out=tmp_path,
    )
    if method == "pitome":  # FP16 rounding reorders its tokens, and every second one merges
        assert ran(result.parity).metrics["cosine"] > 0.98
    else:
        assert result.parity, result.parity.verdict()
    engines = {entry["part"]: entry["target"] for entry in result.manifest["engines"]}
    assert engines == {"encoder": TURING, "decoder": TURING}
    assert lint(result.onnx_path("encoder")) == []


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_global_block_of_vit_b_builds_for_turing(method: str, tmp_path: Path) -> None:
    """4096 tokens of 768 channels: nothing may need a sort or a TopK of that many."""
    trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    spec = replace(MODELS["vit_b"], name="vit_b_block", depth=1, global_blocks=(0,))
    encoder = build_sam(spec).image_encoder
    apply_merging(encoder, method=method, rate=0.5)
    export_encoder(EncoderModule(encoder, "fp16"), tmp_path, ENCODER_ONNX)
    assert lint(tmp_path / ENCODER_ONNX) == []
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(tmp_path / ENCODER_ONNX)), parser.get_error(0).desc()
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    engine = builder.build_serialized_network(network, config)
    assert engine is not None and engine.nbytes > 10_000_000


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
    tiny_model: str,
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

    assert "Merge tokens into every third one." in run("list")
    assert '"method": "every_third"' in run("flops", "--method", "every_third", "--json")
    assert "every_third" in run("flops", "--method", "all")
    arguments = ["--model", tiny_model, "--weights", "random", "--method", "every_third"]
    shown = run("export", *arguments, "--image", str(tiny_photo), "--out", str(tmp_path))
    assert "passed" in shown
    with pytest.raises(SystemExit):
        main(["export", *arguments, "--rate", "0.7", "--out", str(tmp_path)])
    assert "outside [0, 0.66], the range of method 'every_third'" in capsys.readouterr().err
