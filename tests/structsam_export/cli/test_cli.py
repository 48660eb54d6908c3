"""The command line: exit codes, one line per error with its fix, JSON alone on stdout."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam.methods import METHODS
from structsam.models import MODELS
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import SCHEMA_VERSION
from structsam_export.cli.arguments import parse_rates
from structsam_export.cli.main import COMMANDS, main
from structsam_export.graph.lint import RULES
from structsam_export.runtimes import BACKENDS


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def cli(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Ended]:
    """`cli("check", path)`: run one command in a fresh working folder."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments: Any) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def refused(cli: Callable[..., Ended]) -> Callable[..., str]:
    """`refused(...)`: it must exit 2 with one error line, and leave no file; returns the line."""

    def call(*arguments: Any) -> str:
        ended = cli(*arguments)
        assert ended.code == 2, ended
        lines = [line for line in ended.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1 and ended.err.count("error:") == 1, ended.err
        assert ended.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in ended.err + ended.out
        assert ended.out == ""
        left = [path for path in Path.cwd().rglob("*") if path.is_file() or ".tmp-" in path.name]
        assert left == []
        return lines[0]

    return call


@pytest.fixture
def small_checkpoint(
    tiny_sam_factory: Callable[..., Any], tmp_path: Path, one_torch_thread: None
) -> Path:
    import torch

    path = tmp_path / "tiny.pth"
    torch.save(tiny_sam_factory(seed=0).state_dict(), path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(cli: Callable[..., Ended], command: str) -> None:
    ended = cli(command, "--help")
    assert ended.code == 0 and "--help" in ended.out and ended.err == ""


def test_help_names_every_command(cli: Callable[..., Ended]) -> None:
    ended = cli("--help")
    assert ended.code == 0
    assert all(re.search(rf"\b{command}\b", ended.out) for command in COMMANDS)


def test_importing_and_asking_for_help_loads_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "import structsam_export\n"
        "from structsam_export.cli.main import main\n"
        "for command in ([], ['export'], ['check']):\n"
        "    try:\n        main([*command, '--help'])\n"
        "    except SystemExit as end:\n        assert end.code == 0\n"
        "heavy = {'torch', 'onnxruntime', 'onnx', 'tensorrt', 'tensorrt_rtx', 'segment_anything'}\n"
        "print('loaded:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert done.stdout.splitlines()[-1] == "loaded: []"


@pytest.mark.parametrize(
    ("text", "rates"),
    [("0.5", 0.5), ("0.75", 0.75), ("0", 0.0), ("0.5,0,0.25", (0.5, 0.0, 0.25))],
)
def test_rates(text: str, rates: Any) -> None:
    from structsam.config import MergeConfig

    assert parse_rates(text) == rates
    assert MergeConfig("structsam", parse_rates(text)).rate == rates


@pytest.mark.parametrize("text", ["abc", "", "0.5;0", "0.5,", "50%"])
def test_rates_that_are_no_numbers(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a number.*--rate 0\.5"):
        parse_rates(text)


EXPORT = ("export", "--model", "tiny", "--weights", "random", "--out", "out")
BAD_EXPORTS: dict[str, tuple[tuple[str, ...], str]] = {
    "rate too high": (("--rate", "0.8"), "0.75"),
    "rate negative": (("--rate", "-0.1"), "0.75"),
    "rate nan": (("--rate", "nan"), "0.75"),
    "rate infinite": (("--rate", "inf"), "0.75"),
    "rate abc": (("--rate", "abc"), "--rate 0.5"),
    "rates of another depth": (("--rate", "0.5,0.5"), "2 rates were given .* 3 blocks"),
    "model": (("--model", "vit_x"), "vit_b, vit_l, vit_h"),
    "method": (("--method", "magic"), "structsam"),
    "backend": (("--backend", "onyx"), "onnxruntime"),
    "layers": (("--layers", "some"), "all, global, window"),
    "layer 99": (("--layers", "99"), "blocks 0 to 2"),
    "layer -1": (("--layers", "-1"), "blocks 0 to 2"),
    "precision": (("--precision", "fp8"), "fp32, fp16"),
    "attention": (("--attention", "flash"), "folded, folded_padded, dense"),
    "weights": (("--weights", "good"), "random"),
    "target without engines": (
        ("--backend", "onnxruntime", "--target", "sm89"),
        "--backend tensorrt-rtx",
    ),
    "image missing": (("--image", "nowhere.png"), "does not exist"),
    "image is a folder": (("--image", "."), "folder"),
}


@pytest.mark.parametrize("case", BAD_EXPORTS)
def test_a_bad_export_is_refused(
    refused: Callable[..., str], tiny_model: str, case: str, one_torch_thread: None
) -> None:
    options, fix = BAD_EXPORTS[case]
    line = refused(*EXPORT, *options)
    assert re.search(fix, line), line
    assert not Path("out").exists()


def test_the_highest_rate_is_allowed(cli: Callable[..., Ended], tiny_model: str) -> None:
    assert cli("flops", "--model", tiny_model, "--rate", "0.75").code == 0


def test_an_export_without_weights_names_both_ways(
    refused: Callable[..., str], tiny_model: str
) -> None:
    line = refused("export", "--model", tiny_model, "--out", "out")
    assert "--checkpoint" in line and "--weights random" in line


@pytest.mark.parametrize("damage", ["missing", "web page", "truncated", "empty", "folder", "other"])
def test_a_bad_checkpoint_is_refused(
    refused: Callable[..., str], tiny_model: str, small_checkpoint: Path, damage: str
) -> None:
    good = small_checkpoint.read_bytes()
    if damage == "missing":
        small_checkpoint.unlink()
    elif damage == "folder":
        small_checkpoint.unlink()
        small_checkpoint.mkdir()
    elif damage != "other":
        broken = {"web page": b"<!DOCTYPE html><p>404", "truncated": good[: len(good) // 2]}
        small_checkpoint.write_bytes(broken.get(damage, b""))
    model = "vit_b" if damage == "other" else tiny_model
    line = refused("export", "--model", model, "--checkpoint", small_checkpoint, "--out", "out")
    said = {
        "missing": "not found",
        "web page": "a web page",
        "truncated": "truncated or damaged",
        "empty": "empty",
        "folder": "is a folder",
        "other": "expected vit_b",
    }
    assert said[damage] in line and str(small_checkpoint) in line
    assert not Path("out").exists()


def test_both_checkpoint_and_random_weights(
    refused: Callable[..., str], tiny_model: str, small_checkpoint: Path
) -> None:
    assert "exactly one" in refused(*EXPORT, "--checkpoint", small_checkpoint)


def test_a_seed_beyond_64_bits(refused: Callable[..., str], tiny_model: str) -> None:
    assert "seed" in refused(*EXPORT, "--seed", 10**30)


def test_a_folder_that_cannot_be_written(
    refused: Callable[..., str], tiny_model: str, tiny_bundle: Bundle, tiny_photo: Path
) -> None:
    out = tiny_photo / "below"  # a file is where a folder should be
    assert "cannot write" in refused(*EXPORT, "--out", out)
    refused("predict", tiny_bundle.path, tiny_photo, "--backend", "onnxruntime", "--out", out)
    line = refused("predict", tiny_bundle.path, tiny_photo, "--out", tiny_photo)
    assert "--out" in line


@pytest.mark.parametrize(("options", "asked"), [((), True), (("--no-plan-outputs",), False)])
def test_plan_outputs_are_the_default_of_export(
    cli: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, options: tuple, asked: bool
) -> None:
    from structsam_export import pipeline

    found: list[bool] = []

    def stop(*_: Any, plan_outputs: bool, **__: Any) -> None:
        found.append(plan_outputs)
        raise UserError("asked")

    monkeypatch.setattr(pipeline, "export", stop)
    assert cli("export", "--model", "vit_t", *options).code == 2
    assert found == [asked]


@pytest.mark.parametrize("absent", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("command", ["export", "predict", "build"])
def test_an_engine_backend_that_is_not_installed_names_its_extra(
    refused: Callable[..., str],
    tiny_model: str,
    tiny_bundle: Bundle,
    tiny_photo: Path,
    monkeypatch: pytest.MonkeyPatch,
    absent: str,
    command: str,
) -> None:
    monkeypatch.setitem(sys.modules, absent.replace("-", "_"), None)
    arguments: dict[str, tuple[Any, ...]] = {
        "export": EXPORT,
        "predict": ("predict", tiny_bundle.path, tiny_photo),
        "build": ("build", tiny_bundle.path),
    }
    line = refused(*arguments[command], "--backend", absent)
    extra = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}[absent]
    assert f"pip install 'structsam[{extra}]'" in line


def test_onnxruntime_that_is_not_installed_names_its_extra(
    refused: Callable[..., str],
    cli: Callable[..., Ended],
    own_bundle: Bundle,
    tiny_photo: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "onnxruntime" else found(name)
    )
    line = refused("predict", own_bundle.path, tiny_photo, "--backend", "onnxruntime")
    assert "pip install 'structsam[cpu]'" in line
    ended = cli("check", own_bundle.path, "--backend", "onnxruntime", "--json")
    assert ended.code == 2
    (row,) = ended.json["rows"]
    assert row["status"] == "not run" and "structsam[cpu]" in row["reason"]
    line = refused("check", own_bundle.path, "--require", "onnxruntime")
    assert "required backend onnxruntime" in line and "structsam[cpu]" in line


WITHOUT = """
import importlib.util, sys
absent = sys.argv[1]

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from structsam_export.cli.main import main
main(sys.argv[2:])
"""


@pytest.mark.parametrize(
    ("absent", "arguments"),
    [
        ("torch", ["inspect", "--model", "vit_t"]),
        ("torch", ["export", "--model", "vit_t", "--weights", "random"]),
        ("onnx", ["export", "--model", "vit_t", "--weights", "random"]),
        ("onnx", ["lint", "encoder.onnx"]),
    ],
)
def test_a_command_without_its_package_names_the_extra(
    tmp_path: Path, absent: str, arguments: list[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, absent, *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "structsam[export]" in done.stderr.splitlines()[-1]


@pytest.fixture
def photo(tmp_path: Path, tiny_photo: Path) -> Path:
    return Path(shutil.copyfile(tiny_photo, tmp_path / "photo.png"))


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "folder", "text"])
@pytest.mark.parametrize("command", ["predict", "check", "export"])
def test_a_bad_image_is_refused(
    refused: Callable[..., str],
    tiny_model: str,
    own_bundle: Bundle,
    photo: Path,
    command: str,
    damage: str,
) -> None:
    good = photo.read_bytes()
    photo.unlink()
    if damage == "folder":
        photo.mkdir()
    elif damage != "missing":
        broken = {"empty": b"", "truncated": good[: len(good) // 2], "text": b"hello"}
        photo.write_bytes(broken[damage])
    arguments: dict[str, tuple[Any, ...]] = {
        "predict": ("predict", own_bundle.path, photo, "--backend", "onnxruntime"),
        "check": ("check", own_bundle.path, "--backend", "onnxruntime", "--image", photo),
        "export": (*EXPORT, "--image", photo),
    }
    line = refused(*arguments[command])
    said = {
        "missing": "does not exist",
        "empty": "empty",
        "truncated": "truncated",
        "folder": "is a folder",
        "text": "is not an image",
    }
    assert said[damage] in line and str(photo) in line


BAD_PROMPTS = {
    "point right of it": ("--point", "200,10"),
    "point above it": ("--point", "10,-5"),
    "point malformed": ("--point", "10;10"),
    "point label": ("--point", "10,10,7"),
    "point nan": ("--point", "nan,10"),
    "box outside": ("--box", "10,10,500,90"),
    "box inverted": ("--box", "90,80,10,20"),
    "box empty": ("--box", "10,20,10,60"),
    "box malformed": ("--box", "10,20,30"),
    "box nan": ("--box", "10,20,nan,60"),
}


@pytest.mark.parametrize("case", BAD_PROMPTS)
def test_a_bad_prompt_is_refused(
    refused: Callable[..., str], tiny_bundle: Bundle, photo: Path, case: str
) -> None:
    option, value = BAD_PROMPTS[case]
    line = refused(
        "predict", tiny_bundle.path, photo, "--backend", "onnxruntime", f"{option}={value}"
    )
    assert option.strip("-") in line


def test_points_with_two_boxes(
    refused: Callable[..., str], tiny_bundle: Bundle, photo: Path
) -> None:
    boxes = ("--box", "1,1,9,9", "--box", "20,20,40,40")
    line = refused("predict", tiny_bundle.path, photo, "--point", "5,5", *boxes)
    assert "Give one box with the points, or none" in line


@pytest.mark.parametrize("command", ["check", "predict", "build", "bench"])
@pytest.mark.parametrize("damage", ["missing", "no manifest", "newer", "edited", "altered"])
def test_a_bad_bundle_is_refused(
    refused: Callable[..., str], own_bundle: Bundle, photo: Path, command: str, damage: str
) -> None:
    path, manifest = own_bundle.path, own_bundle.path / "manifest.json"
    if damage == "missing":
        path = path.with_name("nowhere")
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "newer":
        own_bundle.manifest["schema_version"] = SCHEMA_VERSION + 1
        own_bundle.save_manifest()
    elif damage == "edited":
        manifest.write_text(manifest.read_text().replace('"fp32"', '"fp16"', 1))
    else:
        with (path / "encoder.onnx").open("r+b") as stream:
            stream.seek(1000)
            stream.write(b"\0\1\2\3")
    before = {f: f.stat().st_mtime_ns for f in own_bundle.path.rglob("*")}
    extra = (photo,) if command == "predict" else ()
    line = refused(command, path, *extra)
    said = {
        "missing": "no such folder. Make one with `structsam-export export`",
        "no manifest": "is not a bundle",
        "newer": "pip install --upgrade structsam",
        "edited": "was changed after it was written. Export",
        "altered": "encoder.onnx was altered",
    }
    assert said[damage] in line
    assert {f: f.stat().st_mtime_ns for f in own_bundle.path.rglob("*")} == before


def test_unknown_names_list_the_valid_ones(
    refused: Callable[..., str], tiny_bundle: Bundle, photo: Path
) -> None:
    for command in (("check", tiny_bundle.path), ("predict", tiny_bundle.path, photo)):
        assert all(name in refused(*command, "--backend", "onyx") for name in BACKENDS)
    assert "vit_b" in refused("flops", "--model", "vit_x")
    assert all(name in refused("flops", "--method", "magic") for name in METHODS)
    assert "blocks 0 to 11" in refused("flops", "--layers", "99")
    assert "vit_b" in refused("download", "vit_x")


@pytest.mark.parametrize(
    "arguments", [(), ("nosuch",), ("export",), ("check",), ("flops", "--rate"), ("list", "--x")]
)
def test_wrong_usage_exits_2_without_a_traceback(
    cli: Callable[..., Ended], arguments: tuple[str, ...]
) -> None:
    ended = cli(*arguments)
    assert ended.code == 2 or (not arguments and ended.code == 0)
    assert "Traceback" not in ended.err


def bad_onnx(file: Path) -> Path:
    onnx = pytest.importorskip("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"], name="my_nonzero")],
        "bad",
        [helper.make_tensor_value_info("x", kinds.FLOAT, [2, 2])],
        [helper.make_tensor_value_info("y", kinds.INT64, [2, None])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), file)
    return file


def test_lint_names_every_violation(cli: Callable[..., Ended], tmp_path: Path) -> None:
    file = bad_onnx(tmp_path / "bad.onnx")
    ended = cli("lint", file)
    assert ended.code == 2 and ended.err == ""
    assert "forbidden-op: NonZero my_nonzero" in ended.out
    assert "static-shapes: y" in ended.out and "int64: y" in ended.out
    count = len(ended.out.splitlines()) - 1
    assert f"{count} violation(s) of {len(RULES)} rules" in ended.out
    ended = cli("lint", file, "--json")
    assert ended.code == 2 and len(ended.json["violations"]) == count
    assert {"rule", "where", "message"} == set(ended.json["violations"][0])


def test_lint_of_a_good_file(cli: Callable[..., Ended], tiny_bundle: Bundle) -> None:
    for part in ("encoder", "decoder"):
        ended = cli("lint", tiny_bundle.path / f"{part}.onnx", "--json")
        assert (ended.code, ended.json) == (0, {"violations": [], "needs": None})
    ended = cli("lint", tiny_bundle.path / "decoder.onnx", "--dynamic", "P")
    assert ended.code == 2 and "'K'" in ended.out


def test_lint_of_what_is_no_onnx(refused: Callable[..., str], photo: Path, tmp_path: Path) -> None:
    assert "is not a valid ONNX file" in refused("lint", photo)
    assert "no ONNX file at" in refused("lint", tmp_path / "nowhere.onnx")


def test_list_shows_everything(cli: Callable[..., Ended], one_torch_thread: None) -> None:
    facts = cli("list", "--json").json
    assert list(facts["models"]) == list(MODELS)
    assert list(facts["backends"]) == list(BACKENDS)
    limits = {name: fact["max_rate"] for name, fact in facts["methods"].items()}
    assert limits == {name: method.max_rate for name, method in METHODS.items()}
    assert facts["methods"]["pitome"]["max_rate_with"] == {"variant=stride": 0.75}
    assert facts["methods"]["pitome"]["options"]["alpha"] == {"default": 1.0, "choices": "float"}
    assert facts["methods"]["structsam"]["options"]["destination"] == {
        "default": "min",
        "choices": ["min", "max", "random"],
    }
    shown = cli("list")
    assert shown.code == 0
    for name in (*MODELS, *METHODS, *BACKENDS):
        assert re.search(rf"\b{re.escape(name)}\b", shown.out)
    for fact in facts["backends"].values():
        assert (
            fact["unavailable"] is None
            or "pip install" in fact["unavailable"]
            or (re.search(r"driver|GPU|choose", fact["unavailable"]))
        )


def test_flops(cli: Callable[..., Ended], tiny_model: str, tiny_bundle: Bundle) -> None:
    counted = cli("flops", "--model", tiny_model, "--rate", "0.5", "--json").json
    assert counted == tiny_bundle.manifest["flops"]


def test_a_table_in_a_log_is_whole(cli: Callable[..., Ended], tiny_model: str) -> None:
    shown = cli("flops", "--model", tiny_model, "--rate", "0.5")
    assert shown.code == 0 and "\N{HORIZONTAL ELLIPSIS}" not in shown.out
    assert all(text in shown.out for text in ("97 of 196", "(49.5 %)", "127 of 256", "(49.6 %)"))
    assert max(map(len, shown.out.splitlines())) <= 100


def test_check(cli: Callable[..., Ended], own_bundle: Bundle) -> None:
    ended = cli("check", own_bundle.path, "--backend", "onnxruntime", "--json")
    assert ended.code == 0 and ended.json["passed"] is True
    assert ended.json["rows"][0]["metrics"]["relative_l2"] <= 1e-4
    ended = cli("check", own_bundle.path, "--backend", "onnxruntime", "--threads", 1)
    assert ended.code == 0
    assert "parity passed (fp32)" in ended.out and "parity.html" in ended.out
    assert "masks carry no meaning" in ended.err


def test_check_exits_1_when_parity_fails(
    cli: Callable[..., Ended], own_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from structsam_export.parity import compare

    monkeypatch.setitem(compare.GATES, "fp32", {"relative_l2": ("max", 0.0)})
    for option in ((), ("--json",)):
        ended = cli("check", own_bundle.path, "--backend", "onnxruntime", *option)
        assert ended.code == 1 and "error:" not in ended.err
    assert ended.json["passed"] is False
    assert open_bundle(own_bundle.path).manifest["parity"]["passed"] is False


def test_export(cli: Callable[..., Ended], fast_graphs: str, tiny_photo: Path) -> None:
    options = ("--precision", "fp32", "--backend", "onnxruntime", "--image", tiny_photo)
    ended = cli(*EXPORT, *options, "--json")
    assert ended.code == 0
    assert set(ended.json) == {"bundle", "manifest", "parity", "seconds", "engine_notes"}
    bundle = open_bundle(ended.json["bundle"])
    assert bundle.manifest == ended.json["manifest"] and ended.json["parity"]["passed"] is True
    assert "random weights" in ended.err and "exporting the encoder to ONNX" in ended.err
    ended = cli(*EXPORT, *options)
    assert ended.code == 0
    for text in ("parity passed (fp32)", "masks carry no meaning", "parity.html", "196 -> 97"):
        assert text in ended.out


def test_predict(cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path) -> None:
    command = ("predict", tiny_bundle.path, photo, "--backend", "onnxruntime")
    ended = cli(*command, "--box", "30,20,70,50", "--box", "90,60,110,80", "--out", "a", "--json")
    assert ended.code == 0
    assert ended.json == json.loads(Path("a/prediction.json").read_text())
    assert sorted(os.listdir("a")) == [
        "mask_00.png",
        "mask_01.png",
        "overlay.png",
        "prediction.json",
    ]
    ended = cli(*command, "--point", "50,35", "--all-masks")
    assert ended.code == 0
    assert len(re.findall(r"mask_00_\d\.png {2}score -?\d", ended.out)) == 3
    assert "overlay: photo-masks/overlay.png" in ended.out
    assert ended.err.count("masks carry no meaning") == 1
    ended = cli(*command)
    assert ended.code == 0 and "no prompt given" in ended.err


def test_predict_several_photos(
    cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path, tmp_path: Path
) -> None:
    other, absent = tmp_path / "other.png", tmp_path / "absent.png"
    Image.open(photo).rotate(180).save(other)
    command = ("predict", tiny_bundle.path, photo, absent, other, "--backend", "onnxruntime")
    ended = cli(*command, "--box", "30,20,70,50", "--no-overlay", "--out", "a", "--json")
    assert ended.code == 2 and f"no masks of {absent}: no image at" in ended.err
    assert [image["image"]["path"] for image in ended.json["images"]] == [str(photo), str(other)]
    assert [entry["image"] for entry in ended.json["refused"]] == [str(absent)]
    assert sorted(os.listdir("a")) == ["other-masks", "photo-masks"]
    assert sorted(os.listdir("a/other-masks")) == ["mask_00.png", "prediction.json"]
    ended = cli("predict", tiny_bundle.path, photo, other, "--backend", "onnxruntime")
    assert ended.code == 0 and ended.err.count("masks carry no meaning") == 1
    assert "overlay: photo-masks/overlay.png" in ended.out
    assert "total" in ended.out and "load" in ended.out


def test_everything(
    cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pycocotools")
    lax = ("--pred-iou-thresh", "0", "--stability-score-thresh", "0", "--box-nms-thresh", "1")
    command = ("everything", tiny_bundle.path, photo, "--points-per-side", "2", *lax)
    ended = cli(*command, "--backend", "onnxruntime", "--out", "a", "--json")
    assert ended.code == 0 and ended.err.count("masks carry no meaning") == 1
    assert ended.json == json.loads(Path("a/prediction.json").read_text())
    assert sorted(os.listdir("a")) == ["overlay.png", "prediction.json"]
    masks = ended.json["masks"]
    assert masks and isinstance(masks[0]["segmentation"]["counts"], str)
    assert ended.json["settings"]["crop_overlap_ratio"] == 512 / 1500
    ended = cli(*command, "--out", "a", "--output-mode", "binary_mask", "--no-overlay")
    names = [f"mask_{index:04d}.png" for index in range(len(masks))]
    assert sorted(os.listdir("a")) == [*names, "prediction.json"]
    for name, record in zip(names, masks, strict=True):
        assert (np.asarray(Image.open(f"a/{name}")) > 0).sum() == record["area"]
    assert f"{len(masks)} masks" in ended.out and "replaced the earlier" in ended.err
    absent = tmp_path / "absent.png"
    ended = cli(*command, absent, "--output-mode", "uncompressed_rle")
    assert ended.code == 2 and f"no masks of {absent}: no image at" in ended.err
    assert sorted(os.listdir("photo-everything")) == ["overlay.png", "prediction.json"]
    assert cli("everything", tiny_bundle.path, photo, "--points-per-side", "2").code == 0


def test_segment(cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path) -> None:
    pytest.importorskip("pycocotools")
    Path("list.txt").write_text(f"{photo}\t30,20,70,50\t50,35\nabsent.png\t5,5\n")
    command = ("segment", tiny_bundle.path, "list.txt", "--out", "a", "--backend", "onnxruntime")
    ended = cli(*command, "--overlays", "--save-embeddings", "--json")
    assert ended.code == 0 and ended.err.count("masks carry no meaning") == 1
    assert (ended.json["photos"], ended.json["problems"]) == (1, 1)
    (mask,) = json.loads(Path("a/annotations.json").read_text())["annotations"]
    assert mask["image_id"] == 1 and "no image at" in Path("a/problems.csv").read_text()
    assert len(list(Path("a/overlays").iterdir())) == len(list(Path("a/embeddings").iterdir())) == 1
    ended = cli(*command, "--overlays")
    assert ended.code == 2 and "begun with embeddings = True, and now it is False" in ended.err
    ended = cli(*command, "--overlays", "--save-embeddings")
    assert ended.code == 0 and "1 masks of 1 photos" in ended.out
    assert "1 photos gave no masks: see a/problems.csv" in ended.err
    box = ("--box", "30,20,70,50", "--point", "50,35", "--out", "b", "--json")
    (file,) = Path("a/embeddings").iterdir()
    for embedding in (file, "a/embeddings"):  # there under another name than the photo's
        ended = cli("predict", tiny_bundle.path, photo, *box, "--embedding", embedding)
        assert ended.code == 0 and ended.json["timings_ms"]["encode"] == 0
        score = ended.json["prompts"][0]["masks"][0]["score"]
        assert score == pytest.approx(mask["predicted_iou"], abs=0.01)
    assert cli("segment", tiny_bundle.path, photo.parent, "--out", "c").code == 2


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("segment list.txt --points-per-side 32", "--points-per-side needs --everything. Add it"),
        ("segment list.txt --crop-n-layers 2", "--crop-n-layers needs --everything"),
        ("segment . --everything --photos nowhere", "--photos is the folder of names in a .txt"),
        ("segment list.txt --checkpoint a.pth", "--checkpoint is for --backend torch, and onnx"),
        ("predict PHOTO --checkpoint a.pth", "--checkpoint is for --backend torch, and onnx"),
        ("everything PHOTO --checkpoint a.pth", "--checkpoint is for --backend torch, and onnx"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path, typed: str, message: str
) -> None:
    pytest.importorskip("pycocotools")
    Path("list.txt").write_text(f"{photo}\t50,35\n")
    shutil.copy(photo, "photo.png")
    command, *rest = (str(photo) if word == "PHOTO" else word for word in typed.split())
    ended = cli(command, tiny_bundle.path, *rest, "--out", "out", "--backend", "onnxruntime")
    assert ended.code == 2 and message in ended.err and not Path("out").exists()


def test_unusual_images(
    cli: Callable[..., Ended], tiny_bundle: Bundle, photo: Path, tmp_path: Path
) -> None:
    rgb = Image.open(photo).convert("RGB")
    grey = np.asarray(rgb.convert("L"))
    paths = {name: tmp_path / f"{name}.png" for name in ("grey", "rgba", "deep", "turned")}
    Image.fromarray(grey).save(paths["grey"])
    rgb.convert("RGBA").save(paths["rgba"])
    Image.fromarray(grey.astype(np.uint16) * 257).save(paths["deep"])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    rgb.transpose(Image.Transpose.ROTATE_90).save(paths["turned"], exif=exif)
    masks, scores = {}, {}
    for name, path in {"plain": photo, **paths}.items():
        command = ("predict", tiny_bundle.path, path, "--box", "30,20,70,50", "--json")
        ended = cli(*command, "--backend", "onnxruntime", "--out", name)
        assert ended.code == 0, ended.err
        assert ended.json["image"]["width"] == 128 and ended.json["image"]["height"] == 96
        masks[name] = np.asarray(Image.open(Path(name) / "mask_00.png"))
        scores[name] = ended.json["prompts"][0]["masks"][0]["score"]
        assert masks[name].shape == (96, 128) and masks[name].dtype == np.uint8
    for same, as_this in (("rgba", "plain"), ("turned", "plain"), ("deep", "grey")):
        assert np.array_equal(masks[same], masks[as_this])
        assert scores[same] == scores[as_this]
