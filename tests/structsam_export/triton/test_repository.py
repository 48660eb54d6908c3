"""What is written: folders, configs that are the manifest's, copies of our files, and refusals."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.triton import repository as repository_module
from structsam_export.triton.model_config import DATA_TYPES
from structsam_export.triton.repository import Repository, write_repository
from structsam_export.triton.settings import TritonSettings

pytest.importorskip("onnx")

from tests.structsam_export.sam_like_bundle import make_sam_like_bundle
from tests.structsam_export.small_bundle import make_bundle
from tests.structsam_export.triton.bundles import (
    batched_bundle,
    bundle_with_more_outputs,
    prompt_aware_bundle,
    put_plans,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_sam_like_bundle(tmp_path / "bundle")


def tensors(config: Mapping[str, Any], direction: str) -> list[tuple[str, str, list[int]]]:
    return [(t["name"], str(t["data_type"]), t["dims"]) for t in config[direction]]


def of_manifest(specs: tuple[TensorSpec, ...]) -> list[tuple[str, str, list[int]]]:
    return [
        (s.name, DATA_TYPES[s.dtype], [-1 if isinstance(d, str) else d for d in s.shape])
        for s in specs
    ]


def files_below(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_folders_of_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository(bundle, tmp_path / "out")
    names = ["encoder", "decoder", "preprocess", "embedding", "masks"]
    assert list(made.models) == [f"structsam_{name}" for name in names]
    folders = {path.name for path in made.path.iterdir() if path.is_dir()}
    assert folders == set(made.models)  # any other folder would be a model to the server
    for folder in folders:
        assert (made.path / folder / "config.pbtxt").is_file()
        assert any((made.path / folder / "1").iterdir())
    copied = made.path / "structsam_encoder" / "1" / "encoder.onnx"
    assert copied.read_bytes() == bundle.onnx_path("encoder").read_bytes()
    assert json.loads((made.path / "repository.json").read_text())["models"] == list(made.models)


@pytest.mark.parametrize("make", [make_sam_like_bundle, bundle_with_more_outputs])
@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
def test_networks_have_the_manifests_tensors(make: Any, backend: str, tmp_path: Path) -> None:
    bundle = make(tmp_path / "bundle")
    put_plans(bundle)
    made = write_repository(bundle, tmp_path / "out", TritonSettings(backend=backend))
    for name in ("encoder", "decoder"):
        config, part = made.models[f"structsam_{name}"], bundle.part(name)
        assert config["backend"] == backend and config["max_batch_size"] == 0
        assert tensors(config, "input") == of_manifest(part.inputs)
        # a plan is refused by the server when one of its outputs is not named
        assert tensors(config, "output") == of_manifest(part.all_outputs)
        (warmup,) = config["model_warmup"]
        shapes = [given["value"]["dims"] for given in warmup["inputs"]]
        assert all(isinstance(d, int) and d > 0 for dims in shapes for d in dims)
    ensemble = made.models["structsam_embedding"]
    own = of_manifest(bundle.part("encoder").outputs)
    assert tensors(ensemble, "output")[: len(own)] == own


def test_masks_take_and_give_what_the_readme_says(bundle: Bundle, tmp_path: Path) -> None:
    masks = write_repository(bundle, tmp_path / "out").models["structsam_masks"]
    assert masks["max_batch_size"] == 0
    assert tensors(masks, "input") == [
        ("photo", "TYPE_STRING", [1]),
        ("points", "TYPE_FP32", [-1, 2]),
        ("labels", "TYPE_INT32", [-1]),
        ("boxes", "TYPE_FP32", [-1, 4]),
        ("multimask", "TYPE_BOOL", [1]),
    ]
    assert [t["name"] for t in masks["input"] if not t.get("optional")] == ["photo"]
    assert tensors(masks, "output") == [
        ("masks", "TYPE_BOOL", [-1, -1, -1, -1]),
        ("scores", "TYPE_FP32", [-1, -1]),
    ]


def steps_fit(made: Repository) -> None:
    """Every tensor of a step exists in the step's model, with one type and shape everywhere."""
    for config in made.models.values():
        if "ensemble_scheduling" not in config:
            continue
        known = {name: (kind, dims) for name, kind, dims in tensors(config, "input")}
        for step in config["ensemble_scheduling"]["step"]:
            model = made.models[step["model_name"]]
            first = [-1] if model["max_batch_size"] else []
            inputs = {n: (k, first + d) for n, k, d in tensors(model, "input")}
            outputs = {n: (k, first + d) for n, k, d in tensors(model, "output")}
            assert {entry["key"] for entry in step["input_map"]} == set(inputs)
            for entry in step["input_map"]:
                assert fits(inputs[entry["key"]], known[entry["value"]])
            for entry in step["output_map"]:
                assert entry["value"] not in known
                known[entry["value"]] = outputs[entry["key"]]
        for name, kind, dims in tensors(config, "output"):
            assert fits(known[name], (kind, dims)), name


def fits(one: tuple[str, list[int]], other: tuple[str, list[int]]) -> bool:
    same = len(one[1]) == len(other[1]) and all(
        a == b or -1 in (a, b) for a, b in zip(one[1], other[1], strict=True)
    )
    return one[0] == other[0] and same


@pytest.mark.parametrize(
    "make", [make_sam_like_bundle, bundle_with_more_outputs, lambda f: batched_bundle(f, 4)]
)
def test_the_steps_of_the_ensemble_fit(make: Any, tmp_path: Path) -> None:
    made = write_repository(make(tmp_path / "bundle"), tmp_path / "out")
    assert "structsam_embedding" in made.models
    steps_fit(made)


def test_the_check_of_steps_sees_another_shape(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository(bundle, tmp_path / "out")
    made.models["structsam_encoder"]["input"][0]["dims"][-1] += 1
    with pytest.raises(AssertionError):
        steps_fit(made)


def test_a_batch_is_gathered_before_the_encoder(tmp_path: Path) -> None:
    bundle = batched_bundle(tmp_path / "bundle", 4)
    made = write_repository(bundle, tmp_path / "out")
    network, gather = made.models["structsam_encoder_batch"], made.models["structsam_encoder"]
    assert network["max_batch_size"] == 0  # a fixed first dimension is refused beside a batch
    assert tensors(network, "input") == [("image", "TYPE_FP32", [4, 3, 64, 64])]
    assert gather["max_batch_size"] == 4 and gather["backend"] == "python"
    assert tensors(gather, "input") == [("image", "TYPE_FP32", [3, 64, 64])]
    assert gather["dynamic_batching"]["preferred_batch_size"] == [4]
    seen = open_bundle(made.path / "structsam_masks" / "1", verify=False).part("encoder")
    assert seen.inputs[0].shape == (1, 3, 64, 64) and seen.outputs[0].shape[0] == 1


def test_a_prompt_aware_bundle_has_no_embedding_of_a_photo(tmp_path: Path) -> None:
    made = write_repository(prompt_aware_bundle(tmp_path / "bundle"), tmp_path / "out")
    names = ["structsam_encoder", "structsam_decoder", "structsam_masks"]
    assert list(made.models) == names
    assert [name for name, _, _ in tensors(made.models[names[0]], "input")] == [
        "image",
        "prompt_box",
    ]
    assert "encoded for every box" in (made.path / "README.md").read_text()


def test_weights_beside_the_graph_go_with_it(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", external=True)
    bundle.manifest["preprocessing"] = make_sam_like_bundle(tmp_path / "other").manifest[
        "preprocessing"
    ]
    bundle.save_manifest()
    made = write_repository(bundle, tmp_path / "out")
    folder = made.path / "structsam_encoder" / "1"
    assert {path.name for path in folder.iterdir()} == {"encoder.onnx", "encoder.onnx.data"}
    assert made.models["structsam_encoder"]["default_model_filename"] == "encoder.onnx"


def test_settings_reach_the_configs(bundle: Bundle, tmp_path: Path) -> None:
    settings = TritonSettings("medical", "onnxruntime", "cpu", instances=3, workers=5, cache_mb=7)
    made = write_repository(bundle, tmp_path / "out", settings)
    (group,) = made.models["medical_encoder"]["instance_group"]
    assert group == {"count": 3, "kind": "KIND_CPU"}
    masks = made.models["medical_masks"]
    assert masks["instance_group"] == [{"count": 5, "kind": "KIND_CPU"}]
    told = {entry["key"]: entry["value"]["string_value"] for entry in masks["parameters"]}
    assert told == {"encoder": "medical_encoder", "decoder": "medical_decoder", "cache_mb": "7"}
    for file in ("README.md", "client.py"):
        assert "medical_masks" in (made.path / file).read_text()
    assert "--gpus" not in (made.path / "README.md").read_text()


def test_the_pages_can_be_used(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository(bundle, tmp_path / "out")
    page, client = ((made.path / name).read_text() for name in ("README.md", "client.py"))
    compile(client, "client.py", "exec")
    assert client in page and 18 <= len(client.splitlines()) <= 25
    assert "random weights: masks carry no meaning" in page
    for name in made.models:
        assert f"`{name}`" in page


def test_a_failed_parity_is_said(bundle: Bundle, tmp_path: Path) -> None:
    bundle.manifest["parity"] = {"passed": False, "verdict": "failed", "backends": {}}
    made = write_repository(bundle, tmp_path / "out")
    assert "failed parity" in (made.path / "README.md").read_text()


# The copies


def test_python_models_are_copies_of_our_files(bundle: Bundle, tmp_path: Path) -> None:
    made = write_repository(bundle, tmp_path / "out")
    for name in ("preprocess", "masks"):
        version = made.path / f"structsam_{name}" / "1"
        copied = {k: v for k, v in files_below(version).items() if "/" in k}
        assert copied == {place: (ROOT / place).read_bytes() for place in copied}
        assert "structsam_export/predict/preprocessing.py" in copied
    assert "structsam_export/predict/decoder_feeds.py" in copied
    assert not [place for place in copied if place.startswith("structsam/merging")]


ALONE = """
import sys
sys.path.insert(0, sys.argv[1])
import model
assert model.TritonPythonModel
ours = ("structsam", "structsam_export")
for name, module in list(sys.modules.items()):
    top = name.partition(".")[0]
    if top in ours:
        assert module.__file__.startswith(sys.argv[1]), module.__file__
    elif top not in sys.stdlib_module_names | {"__main__", "model"}:
        print(top)
"""


@pytest.mark.parametrize("name", ["preprocess", "masks", "encoder"])
def test_python_models_need_numpy_and_pillow_alone(tmp_path: Path, name: str) -> None:
    made = write_repository(batched_bundle(tmp_path / "bundle", 2), tmp_path / "out")
    version = made.path / f"structsam_{name}" / "1"
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(version)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    loaded = {word for word in done.stdout.split() if not word.startswith(("_", "sitecustomize"))}
    assert loaded <= {"numpy", "PIL"}, loaded


# TensorRT plans


def test_plans_by_compute_capability(bundle: Bundle, tmp_path: Path) -> None:
    put_plans(bundle, ("sm86", "sm120"))
    made = write_repository(bundle, tmp_path / "out")  # auto: the bundle has plans
    assert (made.backend, made.built_with) == ("tensorrt", "10.13.0")
    config = made.models["structsam_encoder"]
    assert config["cc_model_filenames"] == [
        {"key": "8.6", "value": "model.sm86.plan"},
        {"key": "12.0", "value": "model.sm120.plan"},
    ]
    assert config["instance_group"] == [{"count": 1, "kind": "KIND_GPU"}]
    folder = made.path / "structsam_encoder" / "1"
    assert (folder / "model.sm120.plan").read_bytes() == b"encoder for sm120"
    assert (folder / config["default_model_filename"]).is_file()
    page = (made.path / "README.md").read_text()
    assert "built with TensorRT 10.13.0" in page and "(8.6, 12.0)" in page


def test_without_plans_tensorrt_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no TensorRT plan of the encoder\. Build one with"):
        write_repository(bundle, tmp_path / "out", TritonSettings(backend="tensorrt"))
    put_plans(bundle)
    others = [vars(replace(entry, backend="tensorrt-rtx")) for entry in bundle.engines]
    bundle.manifest["engines"] = others
    with pytest.raises(UserError, match="only engines of tensorrt-rtx"):
        write_repository(bundle, tmp_path / "out", TritonSettings(backend="tensorrt"))
    assert not (tmp_path / "out").exists()


def test_a_plan_of_another_network_or_file_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    put_plans(bundle, ("sm86",))
    plan = bundle.path / "engines" / "decoder.tensorrt.sm86.engine"
    content = plan.read_bytes()
    plan.write_bytes(b"x" * len(content))
    with pytest.raises(UserError, match=r"decoder.*was altered"):
        write_repository(bundle, tmp_path / "out")
    plan.write_bytes(content)
    bundle.manifest["files"]["encoder.onnx"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match=r"stale: onnx_sha256 changed"):
        write_repository(bundle, tmp_path / "out")


def test_plans_of_two_versions_are_refused(bundle: Bundle, tmp_path: Path) -> None:
    put_plans(bundle, ("sm86",), version="10.3.0")
    put_plans(bundle, ("sm89",), version="10.13.0")
    with pytest.raises(UserError, match=r"TensorRT 10\.13\.0 and 10\.3\.0"):
        write_repository(bundle, tmp_path / "out")


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backend": "openvino"}, "unknown backend 'openvino' for Triton"),
        ({"kind": "npu"}, "unknown kind 'npu'"),
        ({"workers": 0}, "workers is 0"),
        ({"name": "../x"}, "cannot begin the name of a folder"),
        ({"backend": "tensorrt", "kind": "cpu"}, "TensorRT runs on GPUs"),
    ],
)
def test_settings_without_a_meaning(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TritonSettings(**options)


def test_a_folder_in_use_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_repository(bundle, out)  # empty: it may be taken
    before = files_below(out)
    with pytest.raises(UserError, match="holds a Triton repository already"):
        write_repository(bundle, out)
    made = write_repository(bundle, out, TritonSettings(name="other"), force=True)
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(made.models)
    assert files_below(out) != before
    (out / "repository.json").unlink()
    with pytest.raises(UserError, match="no Triton repository that this program wrote"):
        write_repository(bundle, out, force=True)
    assert (out / "other_masks").is_dir()


def test_nothing_is_left_when_the_disk_is_full(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = 0

    def full(source: Path, target: Path) -> None:
        nonlocal copies
        copies += 1
        if copies == 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(repository_module.shutil, "copyfile", full)
    with pytest.raises(UserError, match="No space left on device"):
        write_repository(bundle, tmp_path / "out")
    assert copies == 30 and [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_of_a_batch_all_first_dimensions_are_one() -> None:
    from structsam_export.triton.model_config import single_photo

    part = Part(
        "e.onnx",
        (TensorSpec("image", (4, 3, 8, 8), "float32"), TensorSpec("prompt_box", (4, 4), "float32")),
        (TensorSpec("image_embeddings", (4, 2, 2, 2), "float32"),),
        plan_outputs=(TensorSpec("slot_of_token.0", (100, 196), "int32"),),
    )
    seen = single_photo(part)
    assert [s.shape[0] for s in (*seen.inputs, *seen.all_outputs)] == [1, 1, 1]


def test_a_batch_is_filled_with_zeros() -> None:
    from structsam_export.triton.models.gather import filled

    one, two = np.ones((1, 2), np.float32), np.full((2, 2), 2, np.float32)
    assert filled([one, two], 5).tolist() == [[1, 1], [2, 2], [2, 2], [0, 0], [0, 0]]
    assert filled([one, two], 3).shape == (3, 2) and filled([one], 1).dtype == np.float32
