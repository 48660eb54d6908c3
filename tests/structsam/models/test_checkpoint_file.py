"""Good, foreign, damaged and hostile weight files: each refusal is one line with a way out."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from structsam.errors import UserError
from structsam.models import MODELS, ModelSpec, OfficialCheckpoint, model_spec
from structsam.models.checkpoint_file import (
    check_state_dict,
    identify_checkpoint,
    read_checkpoint,
    refuse_foreign_official,
)
from structsam.models.load import _meta_sam, build_sam, load_sam

State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def tiny_state(tiny_spec: ModelSpec) -> State:
    return dict(build_sam(tiny_spec).state_dict())


@pytest.fixture(autouse=True)
def with_tiny(tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_sam("tiny", checkpoint=path)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


def shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    return {key: tuple(value.shape) for key, value in _meta_sam(spec).state_dict().items()}


class RunsCode:
    """A pickle of this would create a file when it is loaded without care."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not found: .*a\.pth.*`structsam-export download vit_l`"):
        load_sam("vit_l", checkpoint=tmp_path / "a.pth")


def test_folder(tmp_path: Path) -> None:
    assert (
        "is a folder without config.json, expected one that `SamModel.save_pretrained`"
        in refusal(tmp_path)
    )


def test_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "empty.pth"
    path.touch()
    assert "is empty (0 bytes)" in refusal(path)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"\n<!DOCTYPE html><html><body>Sign in</body></html>", "a web page saved"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page saved"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b'{"error": {"message": "not found"}}', "unknown format"),
        (pickle.dumps({"a": 1}, protocol=4), "a plain Python pickle"),
        (b"\x00" * 4096, "unknown format"),
    ],
)
def test_other_content_under_the_name_of_a_checkpoint(
    tmp_path: Path, content: bytes, found: str
) -> None:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    path.write_bytes(content)
    message = refusal(path)
    assert found in message
    assert "expected a .pth or .safetensors file; the official" in message
    assert "375,042,383" in message


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.999])
def test_truncated_file(tmp_path: Path, tiny_state: State, form: str, keep: float) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "cut.pth"
    if form == "safetensors":
        save_file(tiny_state, path)
    else:
        torch.save(tiny_state, path, _use_new_zipfile_serialization=form == "zip")
    size = int(path.stat().st_size * keep)
    os.truncate(path, size)
    message = refusal(path)
    assert f"is truncated or damaged: {size:,} bytes" in message


def header(text: str, length: int | None = None) -> bytes:
    """A safetensors file: how long its header is, the header, and four bytes of data."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text.encode() + b"1234"


def described(dtype: str, shape: list[int], offsets: list[int]) -> bytes:
    entry = {"dtype": dtype, "shape": shape, "data_offsets": offsets}
    return header(json.dumps({"image_encoder.pos_embed": entry}))


@pytest.mark.parametrize(
    "content",
    [
        header('{"a":', 99_999_999),
        header("{" * 1000),
        header('{"image_encoder.pos_embed": 3}'),
        described("F32", [4], [0, 99_999_999_999]),
        described("F32", [-1], [0, 4]),
        described("F32", [1], [4, 0]),
        described("X99", [1], [0, 4]),
        described("F32", [9_999_999_999, 9_999_999_999, 9], [0, 4]),
    ],
    ids=["cut", "no JSON", "number", "beyond the end", "negative", "backwards", "type", "overflow"],
)
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lies.safetensors"
    path.write_bytes(content)
    assert "is truncated or damaged" in refusal(path)


def test_a_file_that_is_many_times_larger_unpacked(tmp_path: Path) -> None:
    """Deflated zeros: torch.save never compresses, and what is compressed is not unpacked."""
    torch.save({"image_encoder.pos_embed": torch.zeros(1_000_000)}, tmp_path / "plain.pth")
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(path, "w") as bomb:
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    assert "is truncated or damaged" in refusal(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_runs_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    path, marker = tmp_path / "evil.pth", tmp_path / "ran"
    torch.save({"a": RunsCode(marker)}, path, _use_new_zipfile_serialization=not legacy)
    message = refusal(path)
    assert "mkdir" in message
    assert "could run code" in message
    assert not marker.exists()


def test_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "module.pth"
    torch.save(torch.nn.Linear(2, 2), path)
    message = refusal(path)
    assert "torch.nn.modules.linear.Linear" in message
    assert "state_dict()" in message


def test_values_that_are_not_tensors(tmp_path: Path, tiny_state: State) -> None:
    path = tmp_path / "mixed.pth"
    torch.save({**tiny_state, "epoch": 3}, path)
    assert "holds a int under 'epoch'" in refusal(path)
    torch.save([1, 2], path)
    assert "holds a list, expected a state dict" in refusal(path)
    for key in (0, ("image_encoder", 1)):
        torch.save({key: torch.zeros(1)}, path)
        assert f"has {key!r} for a key, expected names" in refusal(path)


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_wrapped_state_dict_is_unwrapped(
    tmp_path: Path, tiny_state: State, tiny_spec: ModelSpec, wrapper: str
) -> None:
    path = tmp_path / "wrapped.pth"
    torch.save({wrapper: tiny_state, "epoch": 3}, path)
    assert list(read_checkpoint(path, tiny_spec).state) == list(tiny_state)


def test_missing_and_extra_and_misshapen_keys(tmp_path: Path, tiny_state: State) -> None:
    path = tmp_path / "changed.pth"
    state = dict(tiny_state)
    del state["image_encoder.blocks.1.attn.rel_pos_h"]
    state["mask_decoder.hf_token.weight"] = torch.zeros(1)
    state["image_encoder.neck.0.weight"] = torch.zeros(3, 3)
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 256, dtype=torch.int8)
    torch.save(state, path)
    message = refusal(path)
    assert "lacks 1 of" in message and "blocks.1.attn.rel_pos_h" in message
    assert "has 1 unknown tensors (mask_decoder.hf_token.weight)" in message
    assert "image_encoder.neck.0.weight is [3, 3], expected [256, 32, 1, 1]" in message
    assert "not floats (prompt_encoder.no_mask_embed.weight)" in message


def test_file_of_another_project(tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, path)
    message = refusal(path)
    assert "no Segment Anything model" in message and "layer1.0.conv1.weight" in message
    torch.save({}, path)
    assert "its 0 keys are none" in refusal(path)


@pytest.mark.parametrize(
    ("holds", "asked", "message"),
    [
        ("vit_h", "vit_b", r"holds vit_h \(1280 wide, 32 blocks\), expected vit_b \(768 wide, 12"),
        (
            "vit_b",
            "vit_l",
            r"holds vit_b or medsam .*use `model='vit_b'`, or fetch sam_vit_l_0",
        ),
        ("vit_t", "medsam", r"holds vit_t \(192 wide, 12 blocks\).*bowang-lab"),
    ],
)
def test_wrong_model_is_named(holds: str, asked: str, message: str) -> None:
    state = _meta_sam(model_spec(holds)).state_dict()
    spec = model_spec(asked)
    with pytest.raises(UserError, match=message):
        check_state_dict(state, shapes(spec), spec, "x.pth")


def test_unknown_geometry_is_described(tiny_spec: ModelSpec) -> None:
    state = _meta_sam(replace(tiny_spec, embed_dim=48)).state_dict()
    with pytest.raises(UserError, match=r"an unknown model \(48 wide, 3 blocks\)"):
        check_state_dict(state, shapes(tiny_spec), tiny_spec, "x.pth")


def test_other_heads_or_image_size_show_as_shapes(tiny_spec: ModelSpec) -> None:
    for change in ({"num_heads": 4}, {"image_size": 320}, {"global_blocks": (2,)}):
        state = _meta_sam(replace(tiny_spec, **change)).state_dict()
        with pytest.raises(UserError, match="tensors of another shape"):
            check_state_dict(state, shapes(tiny_spec), tiny_spec, "x.pth")


def make_official(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let the bytes of `path` be the official file of vit_b."""
    data = path.read_bytes()
    official = OfficialCheckpoint("x.pth", "http://x", len(data), hashlib.md5(data).hexdigest())
    monkeypatch.setitem(MODELS, "vit_b", replace(MODELS["vit_b"], official=official))


def test_identity_has_both_hashes_and_no_torch(tmp_path: Path) -> None:
    path = tmp_path / "some.pth"
    path.write_bytes(os.urandom(5_000_000))
    identity = identify_checkpoint(str(path))
    data = path.read_bytes()
    assert identity.to_dict() == {
        "file": "some.pth",
        "size": 5_000_000,
        "md5": hashlib.md5(data).hexdigest(),
        "sha256": hashlib.sha256(data).hexdigest(),
        "official": None,
    }
    with pytest.raises(UserError, match="not found"):
        identify_checkpoint(tmp_path / "absent.pth")


def test_official_file_is_recognised_by_size_and_md5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "renamed.bin"
    path.write_bytes(b"weights")
    make_official(monkeypatch, path)
    assert identify_checkpoint(path).official == "vit_b"
    path.write_bytes(b"weighty")
    assert identify_checkpoint(path).official is None


def test_plain_sam_weights_do_not_pass_for_medsam(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sam.pth"
    path.write_bytes(b"weights")
    refuse_foreign_official(path, MODELS["medsam"])
    make_official(monkeypatch, path)
    refuse_foreign_official(path, MODELS["vit_b"])
    with pytest.raises(UserError, match="official file of vit_b, expected weights of medsam"):
        refuse_foreign_official(path, MODELS["medsam"])
    path.write_bytes(b"weighty")  # same size, other bytes: fine-tuned weights
    refuse_foreign_official(path, MODELS["medsam"])
