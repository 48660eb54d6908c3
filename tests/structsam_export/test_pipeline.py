"""What an export leaves: a whole bundle that runs anywhere, or the one before, or nothing."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam_export import pipeline
from structsam_export.bundle import atomic
from structsam_export.bundle.destination import bundle_name, refuse_to_lose
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.graph import exporter as onnx_graph
from structsam_export.graph import lint
from structsam_export.graph.lint import require_clean
from structsam_export.parity.check import check
from structsam_export.pipeline import export
from tests.structsam_export.conftest import Exported

pytest.importorskip("torch")
ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "manifest.json",
    "encoder.onnx",
    "decoder.onnx",
    "parity.json",
    "parity.html",
    "reference/scene.png",
    "reference/scene.png.npz",
}


def files_of(folder: Path) -> set[str]:
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


@pytest.fixture
def run(fast_graphs: str, tiny_photo: Path, tmp_path: Path) -> Callable[..., Any]:
    """`run(**overrides)`: an FP32 export of the tiny SAM into `tmp_path/out`."""

    def call(**overrides: Any) -> Any:
        options = {
            "model": fast_graphs,
            "precision": "fp32",
            "backend": "onnxruntime",
            "images": [tiny_photo],
            "out": tmp_path / "out",
            **overrides,
        }
        if "checkpoint" not in overrides:
            options.setdefault("weights", "random")
        return export(**options)

    return call


@pytest.fixture(scope="session")
def tiny_checkpoint(
    tiny_sam_factory: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import torch

    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pth"
    torch.save(tiny_sam_factory(seed=0).state_dict(), path)
    return path


def test_an_export_leaves_exactly_these_files(
    tiny_export_factory: Callable[[str], Exported],
) -> None:
    exported = tiny_export_factory("fp32")
    # a predictor of another test may have let OpenVINO keep what it compiled
    kept = {file for file in files_of(exported.path) if file.startswith("engines/openvino/")}
    assert files_of(exported.path) - kept == FILES
    assert os.listdir(exported.path.parent) == ["tiny-structsam-r0.50-fp32"]
    assert exported.report, exported.report.verdict()
    assert exported.stdout == ""  # results of --json go there
    assert exported.steps[0] == "loading tiny"
    assert [s for s in exported.steps if "ONNX" in s or "checking" in s] == [
        "exporting the decoder to ONNX",
        "exporting the encoder to ONNX",
        "checking the export rules",
        "checking parity",
    ]


def test_the_manifest_says_what_it_is(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert manifest["schema_version"] == 2
    assert manifest["name"] == tiny_bundle.path.name == tiny_bundle.name
    assert manifest["model"] == {
        "name": "tiny",
        "weights": "random",
        "seed": 0,
        "checkpoint": None,
    }
    assert tiny_bundle.has_random_weights
    merging = manifest["merging"]
    assert [merging[key] for key in ("method", "rate", "layers", "attention")] == [
        "structsam",
        0.5,
        "all",
        "folded",
    ]
    assert [b["kind"] for b in merging["blocks"]] == ["window", "global", "window"]
    assert [b["grid"] for b in merging["blocks"]] == [[14, 14], [16, 16], [14, 14]]
    assert [b["tokens"] for b in merging["blocks"]] == [196, 256, 196]
    assert [b["rate"] for b in merging["blocks"]] == [0.5] * 3
    counted = [(b["tokens"], b["slots"]) for b in manifest["flops"]["blocks"]]
    assert [(b["tokens"], b["slots"]) for b in merging["blocks"]] == counted
    assert all(0.48 <= b["slots"] / b["tokens"] <= 0.5 for b in merging["blocks"])
    slots = [block["slots"] for block in merging["blocks"]]
    assert manifest["encoder"]["plan_outputs"] == [
        {"name": f"{what}.{index}", "shape": [maps, side], "dtype": "int32"}
        for index, maps, tokens in ((0, 4, 196), (1, 1, 256), (2, 4, 196))
        for what, side in (("slot_of_token", tokens), ("anchor_of_slot", slots[index]))
    ]
    assert manifest["decoder"]["plan_outputs"] == []
    assert manifest["preprocessing"] == {
        "name": "sam",
        "image_size": 256,
        "resize": "long_side",
        "interpolation": "bilinear",
        "scaling": "mean_std",
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "pad": True,
    }
    assert manifest["reference_images"] == ["reference/scene.png"]
    assert manifest["engines"] == []
    assert manifest["parity"]["passed"] is True
    versions = manifest["tool_versions"]
    assert {"python", "system", "structsam", "torch", "onnx", "onnxruntime", "numpy"} <= set(
        versions
    )
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    for name in FILES - {"manifest.json", "parity.json", "parity.html"}:
        data = (tiny_bundle.path / name).read_bytes()
        assert manifest["files"][name] == {
            "size": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
    assert set(manifest["files"]) == FILES - {"manifest.json", "parity.json", "parity.html"}


@pytest.mark.slow
def test_the_precision_is_that_of_the_graph(tiny_bundle_factory: Callable[..., Bundle]) -> None:
    onnx = pytest.importorskip("onnx")
    for precision, inside in (("fp32", "float32"), ("fp16", "float16")):
        bundle = tiny_bundle_factory(precision)
        assert bundle.precision == precision
        assert bundle.manifest["precision"] == {
            "name": precision,
            "linear_and_attention": inside,
            "residual": inside,
            "norms": "float32",
            "energy_and_ranks": "float32",
            "inputs_and_outputs": "float32",
        }
        for part in ("encoder", "decoder"):
            graph = onnx.load(bundle.onnx_path(part)).graph  # type: ignore[arg-type]
            types = {t.name: t.data_type for t in graph.initializer}
            linear = {
                types[name]
                for node in graph.node
                if node.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")
                for name in node.input
                if name in types
            }
            wanted = onnx.TensorProto.FLOAT16 if inside == "float16" else onnx.TensorProto.FLOAT
            assert linear == {wanted}


def test_inputs_and_outputs_are_those_of_the_files(tiny_bundle: Bundle) -> None:
    onnx = pytest.importorskip("onnx")

    def described(values: Any) -> list[tuple[str, list[Any], int]]:
        return [
            (
                value.name,
                [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
                value.type.tensor_type.elem_type,
            )
            for value in values
        ]

    names = {
        "encoder": (["image"], ["image_embeddings"]),
        "decoder": (
            ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input"],
            ["low_res_masks", "iou_predictions"],
        ),
    }
    for part, (inputs, outputs) in names.items():
        contract = tiny_bundle.part(part)  # type: ignore[arg-type]
        assert [spec.name for spec in contract.inputs] == inputs
        assert [spec.name for spec in contract.outputs] == outputs
        graph = onnx.load(tiny_bundle.path / contract.file).graph
        kinds = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}
        specs = (*contract.inputs, *contract.all_outputs)
        wanted = [(spec.name, list(spec.shape), kinds[spec.dtype]) for spec in specs]
        assert described([*graph.input, *graph.output]) == wanted
        require_clean(tiny_bundle.path / contract.file)
    assert tiny_bundle.part("encoder").profile == {}
    assert tiny_bundle.part("decoder").profile == {"P": (1, 1, 64), "K": (1, 2, 16)}


def test_a_graph_may_have_one_output(run: Callable[..., Any]) -> None:
    onnx = pytest.importorskip("onnx")
    bundle = run(plan_outputs=False)
    outputs = onnx.load(bundle.onnx_path("encoder")).graph.output
    assert [value.name for value in outputs] == ["image_embeddings"]
    assert bundle.part("encoder").plan_outputs == ()
    assert bundle.parity and bundle.parity.rows[0].same_slot == {}
    why = "slots: not compared (the encoder was exported without plan outputs)"
    assert bundle.parity.verdict() == f"parity passed (fp32); {why}"
    assert why in (bundle.path / "parity.html").read_text()


def test_nothing_tells_where_it_was_made(tiny_bundle: Bundle) -> None:
    secrets = {str(ROOT), str(tiny_bundle.path.parent), str(Path.home()), sys.prefix, ".tmp-"}
    for name in FILES:
        data = (tiny_bundle.path / name).read_bytes()
        for secret in secrets - {"/"}:
            # a home folder may have a very short name; inside a picture that means nothing
            if len(secret) > 5 or name.endswith((".json", ".onnx")):
                assert secret.encode() not in data, f"{name} contains {secret}"
        assert b'.py", line' not in data


def test_a_bundle_survives_moving_and_renaming(
    own_bundle: Bundle, tiny_photo: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "my bundle"
    moved.parent.mkdir()
    shutil.move(own_bundle.path, moved)
    bundle = open_bundle(moved)
    assert check(bundle, "onnxruntime")
    bundle = open_bundle(moved)
    with bundle.predictor("onnxruntime") as predictor:
        predictor.set_image(np.asarray(Image.open(tiny_photo)))
        masks, scores, low_res = predictor.predict(box=np.array([30, 20, 70, 50]))
    assert masks.shape == (3, 96, 128) and scores.shape == (3,) and low_res.shape == (3, 64, 64)


def test_a_checkpoint_is_identified(
    run: Callable[..., Any], tiny_checkpoint: Path, tiny_bundle: Bundle
) -> None:
    result = run(checkpoint=tiny_checkpoint)
    data = tiny_checkpoint.read_bytes()
    assert result.manifest["model"] == {
        "name": "tiny",
        "weights": "checkpoint",
        "seed": None,
        "checkpoint": {
            "file": "tiny.pth",
            "size": len(data),
            "md5": hashlib.md5(data, usedforsecurity=False).hexdigest(),
            "sha256": hashlib.sha256(data).hexdigest(),
            "official": None,
        },
    }
    # the file holds the random weights of seed 0, of which the graphs are: parity would tell
    assert result.parity and not result.has_random_weights
    text = (result.path / "manifest.json").read_text()
    assert str(tiny_checkpoint.parent) not in text
    assert "no meaning" not in (result.path / "parity.html").read_text()
    assert sorted(result.manifest) == sorted(tiny_bundle.manifest)


def test_parity_with_torch_gets_the_checkpoint(
    run: Callable[..., Any], tiny_checkpoint: Path
) -> None:
    assert run(checkpoint=tiny_checkpoint, backend="torch").parity


def test_random_weights_do_not_replace_real_ones(
    run: Callable[..., Any], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    path = run(checkpoint=tiny_checkpoint).path
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(UserError, match=r"may hold real weights.*`out=`.*`force=True`"):
        run()
    assert (path / "manifest.json").read_bytes() == before
    assert run(force=True).has_random_weights
    assert not run(checkpoint=tiny_checkpoint).has_random_weights  # needs no force
    assert os.listdir(tmp_path / "out") == [path.name]


@pytest.mark.parametrize("change", [{"schema_version": 3}, {"note": "edited by hand"}])
def test_random_weights_do_not_replace_what_cannot_be_read(
    own_bundle: Bundle, change: dict[str, Any]
) -> None:
    own_bundle.manifest["model"]["weights"] = "checkpoint"
    own_bundle.manifest |= change
    own_bundle.save_manifest()
    if "note" in change:
        file = own_bundle.path / "manifest.json"
        file.write_text(file.read_text().replace("by hand", "by Hand"))
    with pytest.raises(UserError, match="`force=True`"):
        refuse_to_lose(own_bundle.path, "random", force=False)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "/x"])
def test_a_name_cannot_lead_out_of_the_folder(
    run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    with pytest.raises(UserError, match=r"is no name for a folder.*`out=`"):
        run(name=name)
    assert files_of(tmp_path) == set()


def test_a_folder_that_is_no_bundle_is_left_alone(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "out" / "photos").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "cat.jpg").touch()
    (tmp_path / "out" / "file").touch()
    for name in ("photos", "file"):
        for force in (False, True):
            with pytest.raises(UserError, match=r"exists and is no bundle.*`out=`"):
                run(name=name, force=force)
    assert files_of(tmp_path / "out") == {"photos/cat.jpg", "file"}


def test_a_merging_argument_that_does_not_exist_is_named(run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown argument 'rates'.*method, rate, layers"):
        run(rates=0.5)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "stop", [UserError("rule broken"), KeyboardInterrupt(), OSError(28, "full")]
)
def test_a_failure_in_the_middle_leaves_nothing(
    run: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop: BaseException,
) -> None:
    def fail(file: Path) -> None:
        assert file.is_file()  # the ONNX files are there already
        raise stop

    monkeypatch.setattr(pipeline, "require_clean", fail)
    with pytest.raises(KeyboardInterrupt if isinstance(stop, KeyboardInterrupt) else UserError):
        run()
    assert os.listdir(tmp_path / "out") == []
    monkeypatch.undo()


def test_a_failure_in_the_middle_keeps_the_old_bundle(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = run().path
    before = {name: (path / name).read_bytes() for name in files_of(path)}

    def fail(file: Path) -> None:
        raise UserError("rule broken")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "require_clean", fail)
        with pytest.raises(UserError, match="rule broken"):
            run(seed=1)
    assert os.listdir(tmp_path / "out") == [path.name]
    assert {name: (path / name).read_bytes() for name in files_of(path)} == before
    open_bundle(path)


STOPPED = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from structsam.models import MODELS, ModelSpec
MODELS["tiny"] = ModelSpec("tiny", "tiny", 32, 3, 2, (1,), image_size=256)
import structsam
from structsam_export import pipeline
from structsam_export.cli.main import main

def write(bundle, *_):
    (bundle.path / "encoder.onnx").write_bytes(b"half")
    print("staged", flush=True)
    time.sleep(120)

pipeline._write_networks = write
structsam.load_sam = lambda *_, **__: None
main(["export", "--model", "tiny", "--weights", "random", "--precision", "fp32",
      "--backend", "onnxruntime", "--out", sys.argv[1]])
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.slow
@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_a_signal_leaves_no_bundle(run: Callable[..., Any], tmp_path: Path, number: str) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", STOPPED, str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "staged\n"
        (staging,) = os.listdir(out)
        assert staging.startswith(".tiny-structsam-r0.50-fp32.tmp-")
        process.send_signal(getattr(signal, number))
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert not (out / "tiny-structsam-r0.50-fp32").exists()
    if number != "SIGKILL":
        code, word = {"SIGINT": (130, "interrupted"), "SIGTERM": (143, "terminated")}[number]
        assert process.returncode == code
        assert errors.splitlines()[-1].startswith(f"error: {word}")
        assert errors.count("error:") == 1 and "Traceback" not in errors
        assert os.listdir(out) == []
    else:
        assert process.returncode == -signal.SIGKILL
        assert os.listdir(out) == [staging]  # nobody could tidy up
    for _ in range(50):  # until the system has forgotten the process
        if not atomic._process_is_alive(process.pid):
            break
        time.sleep(0.02)
    assert run().parity
    assert os.listdir(out) == ["tiny-structsam-r0.50-fp32"]


def test_large_weights_go_into_one_file_beside_the_graph(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (onnx_graph, lint):
        monkeypatch.setattr(module, "SINGLE_FILE_LIMIT", 1_000_000)
    result = run()
    data = {"encoder.onnx.data", "decoder.onnx.data"}
    assert files_of(result.path) == FILES | data
    assert data <= set(result.manifest["files"])
    for name in data:
        graph = result.path / name.removesuffix(".data")
        assert graph.stat().st_size < 1_000_000 < (result.path / name).stat().st_size
    assert result.parity
    moved = tmp_path / "moved"
    shutil.move(result.path, moved)
    report = check(open_bundle(moved), "onnxruntime")
    assert report and report.rows[0].metrics["same_slot"] == 1.0
    (moved / "encoder.onnx.data").write_bytes(b"")
    with pytest.raises(UserError, match=r"encoder\.onnx\.data was altered"):
        open_bundle(moved)


def test_the_default_photo_and_name(run: Callable[..., Any], tmp_path: Path) -> None:
    result = run(images=[], name="mine")
    assert result.path == tmp_path / "out" / "mine"
    assert result.name == "mine"
    assert result.manifest["reference_images"] == ["reference/coffee.png"]
    assert json.loads((result.path / "parity.json").read_text())["bundle"] == "mine"
    assert "mine" in (result.path / "parity.html").read_text().partition("</title>")[0]
    assert set(result.seconds) >= {"loading tiny", "checking parity"}
    assert result.engine_notes == []


def test_two_photos_of_one_name(run: Callable[..., Any], tiny_photo: Path, tmp_path: Path) -> None:
    second = tmp_path / "second" / tiny_photo.name
    second.parent.mkdir()
    shutil.copyfile(tiny_photo, second)
    with pytest.raises(UserError, match=r"two sample images are named scene\.png\. Rename one"):
        run(images=[tiny_photo, second])
    assert os.listdir(tmp_path / "out") == []


def test_a_photo_in_the_home_folder(
    run: Callable[..., Any], tiny_photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tiny_photo.parent))
    monkeypatch.setenv("USERPROFILE", str(tiny_photo.parent))
    assert run(images=[f"~/{tiny_photo.name}"]).parity


@pytest.mark.parametrize(
    ("config", "precision", "name"),
    [
        (MergeConfig(), "fp16", "vit_b-structsam-r0.50"),
        (MergeConfig(rate=0.0), "fp32", "vit_b-structsam-r0.00-fp32"),
        (MergeConfig(layers="global"), "fp16", "vit_b-structsam-r0.50-global"),
        (MergeConfig(layers=(7, 8)), "fp32", "vit_b-structsam-r0.50-layers7_8-fp32"),
        (MergeConfig(rate=(0.5, 0.0)), "fp16", "vit_b-structsam-mixeda031b1"),
        (MergeConfig(attention="dense"), "fp16", "vit_b-structsam-r0.50-dense"),
    ],
)
def test_bundle_names(config: MergeConfig, precision: str, name: str) -> None:
    assert bundle_name("vit_b", config, precision) == name
