"""A model described in a TOML file: sizes, defaults, refusals, and its way through manifests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from structsam.block_table import block_table
from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam.models import MODELS, DecoderSpec, ModelSpec
from structsam.models.find_model import find_model
from structsam.models.image_size import resized
from structsam.models.load import build_sam, load_sam
from structsam.models.spec_file import read_spec, spec_from_dict, spec_to_dict

LEAST = "width = 768\ndepth = 12\nheads = 12\nglobal_blocks = [2, 5, 8, 11]\n"


def written(folder: Path, text: str, name: str = "my_sam.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_left_out_is_sams(tmp_path: Path) -> None:
    found = read_spec(written(tmp_path, LEAST))
    assert (found.name, found.title) == ("my_sam", "my_sam")
    vit_b = MODELS["vit_b"]
    other = {"name": "", "title": "", "weights_note": "", "official": None}
    assert replace(found, **other) == replace(vit_b, **other)


def test_every_key_is_read(tmp_path: Path) -> None:
    text = """
    name = "cells-14"
    width = 32
    depth = 2
    heads = 4
    global_blocks = "all"
    window = 7
    patch = 14
    image_size = 210
    channels = 64
    stretch_positions = true
    decoder = { depth = 1, heads = 4, mlp = 96, score = 48 }
    [preprocessing]
    mean = [1, 2.5, 3]
    std = [4, 5, 6]
    interpolation = "bicubic"
    """
    found = read_spec(written(tmp_path, text))
    assert (found.name, found.embed_dim, found.depth, found.num_heads) == ("cells-14", 32, 2, 4)
    assert (found.global_blocks, found.window_size, found.grid) == ((0, 1), 7, (15, 15))
    assert (found.channels, found.stretch_positions) == (64, True)
    assert found.decoder == DecoderSpec(1, 4, 96, 48)
    how = found.preprocessing
    assert (how.image_size, how.mean, how.std) == (210, (1.0, 2.5, 3.0), (4.0, 5.0, 6.0))
    assert (how.resize, how.interpolation, how.pad) == ("long_side", "bicubic", True)
    sam = build_sam(found)
    embedding = sam.image_encoder(torch.zeros(1, 3, 210, 210))
    assert embedding.shape == (1, 64, 15, 15)
    sparse, dense = sam.prompt_encoder(None, torch.tensor([[10.0, 10, 90, 90]]), None)
    masks, _ = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    assert masks.shape == (1, 3, 60, 60)


def test_medsams_preprocessing_can_be_described(tmp_path: Path) -> None:
    text = LEAST + (
        '[preprocessing]\nresize = "stretch"\ninterpolation = "bicubic"\nscaling = "min_max"\n'
    )
    found = read_spec(written(tmp_path, text)).preprocessing
    assert replace(found, name="medsam") == MODELS["medsam"].preprocessing


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    depth, heads, patch = draw(st.integers(1, 6)), draw(st.integers(1, 8)), draw(st.integers(1, 20))
    decoder = draw(
        st.none()
        | st.builds(DecoderSpec, st.integers(1, 3), st.sampled_from((1, 2, 4)), st.integers(1, 99))
    )
    return ModelSpec(
        draw(st.from_regex(r"[a-z][a-z0-9_.-]{0,8}", fullmatch=True)),
        "",
        embed_dim=heads * draw(st.integers(1, 16)),
        depth=depth,
        num_heads=heads,
        global_blocks=tuple(sorted(draw(st.sets(st.integers(0, depth - 1))))),
        window_size=draw(st.integers(1, 20)),
        image_size=patch * draw(st.integers(1, 40)),
        patch_size=patch,
        channels=8 * draw(st.integers(1, 9)),
        decoder=decoder,
        stretch_positions=draw(st.booleans()),
        preprocessing=draw(
            st.sampled_from((MODELS["vit_b"].preprocessing, MODELS["medsam"].preprocessing))
        ),
    )


@given(specs())
def test_manifests_keep_all_of_it(spec: ModelSpec) -> None:
    """Names of preprocessings and where weights are found are not kept: nothing reads them."""
    again = spec_from_dict(json.loads(json.dumps(spec_to_dict(spec))), "Here")
    assert spec_to_dict(again) == spec_to_dict(spec)
    how = replace(again.preprocessing, name=spec.preprocessing.name)
    unkept = {"title": "", "weights_note": "", "preprocessing": how}
    assert replace(again, **unkept) == replace(spec, **unkept)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("width = 768", "lacks depth, heads, global_blocks. Add depth = ..."),
        (LEAST + "widht = 3", "unknown key 'widht'. Use some of: name, width"),
        (LEAST + "image_size = 15", "image_size 15 is no multiple of a patch of 16. Use 16."),
        (LEAST + "patch = 14", "image_size 1024 is no multiple of a patch of 14. Use 1022 or 1036"),
        (LEAST + "patch = 0", "patch is 0. Use a whole number from 1 to 64"),
        (LEAST + "patch = true", "patch is True"),
        (LEAST + "window = 14.5", "window is 14.5"),
        (LEAST.replace("depth = 12", "depth = 999999999"), "depth is 999999999"),
        (LEAST.replace("heads = 12", "heads = 7"), "embed_dim 768 is no multiple of 7 heads"),
        (LEAST.replace("11]", "12]"), "a list of blocks from 0 to 11"),
        (LEAST.replace("[2, 5, 8, 11]", '"some"'), "global_blocks is 'some'"),
        (LEAST + "channels = 100", "channels 100 is no multiple of 8 and of 2 x 8 heads"),
        (LEAST + 'decoder = "sam"', "decoder is 'sam'. Use true, false or a table"),
        (LEAST + "[decoder]\nwidth = 3", "decoder: unknown key 'width'"),
        (LEAST + 'name = "../up"', "name is '../up', which is no name for a folder"),
        (LEAST + 'name = "vit_b"', "is named vit_b, which is a model here"),
        (LEAST + "stretch_positions = 1", "stretch_positions is 1. Use true or false"),
        (LEAST + "preprocessing = 3", "preprocessing is 3. Use a table"),
        (LEAST + "[preprocessing]\npad = false", "unknown key 'pad'"),
        (LEAST + '[preprocessing]\nresize = "crop"', "'resize' is 'crop', expected one of"),
        (LEAST + "[preprocessing]\nmean = [1, 2]", "'mean' is [1, 2], expected three numbers"),
        (
            LEAST + "[preprocessing]\nstd = [1, 0, 1]",
            "'std' is [1, 0, 1], expected three numbers a",
        ),
        (LEAST + "[preprocessing]\nmean = [nan, 0, 0]", "'mean' is [nan, 0, 0]"),
        ("width = ", "Cannot read model file"),
        ("\x00", "Cannot read model file"),
        ("a = " + "[" * 5000, "Cannot read model file"),
    ],
)
def test_refusals_name_what_does_not_fit(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        find_model(str(path))
    assert message in str(caught.value) and "my_sam.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No model file .*absent\.toml\. Write one"):
        load_sam(str(tmp_path / "absent.toml"), weights="random")
    with pytest.raises(UserError, match=r"Cannot read model file .*: .*It must be TOML"):
        folder = tmp_path / "folder.toml"
        folder.mkdir()
        find_model(str(folder))


def test_a_record_never_reads_a_file(tmp_path: Path) -> None:
    """The name in a manifest is a name, also where it looks like a path."""
    from structsam_export.bundle.weights_source import ModelRecord

    path = written(tmp_path, LEAST)
    with pytest.raises(UserError, match="Unknown model"):
        _ = ModelRecord(str(path), "random").spec


def test_weights_of_its_own_are_loaded(tmp_path: Path) -> None:
    text = "width = 32\ndepth = 2\nheads = 2\nglobal_blocks = [1]\npatch = 14\nimage_size = 140\n"
    model = written(tmp_path, text + "window = 4\n")
    stock = build_sam(read_spec(model), seed=3)
    torch.save(stock.state_dict(), tmp_path / "weights.pth")
    sam = load_sam(str(model), checkpoint=tmp_path / "weights.pth")
    image = torch.randn(1, 3, 140, 140)
    assert torch.equal(sam.image_encoder(image), stock.image_encoder(image))
    with pytest.raises(UserError, match=r"holds an unknown model \(32 wide.*expected vit_t"):
        load_sam("vit_t", checkpoint=tmp_path / "weights.pth")


@given(st.integers(-50, 5000))
def test_other_sizes_are_multiples_of_its_patch(size: int) -> None:
    spec = spec_from_dict(
        {"width": 8, "depth": 1, "heads": 1, "global_blocks": "all", "patch": 14}
        | {"image_size": 1008},
        "Here",
    )
    if size % 14 == 0 and 266 <= size <= 2044:
        assert resized(spec, size).grid == (size // 14, size // 14)
        return
    with pytest.raises(UserError, match="a multiple of 14 from 266 to 2044. Use `image_size=") as e:
        resized(spec, size)
    named = [int(part.split("`")[0]) for part in str(e.value).split("image_size=")[1:]]
    assert named and all(side % 14 == 0 and 266 <= side <= 2044 for side in named)


@pytest.mark.parametrize("method", ["structsam", "gradtome", "algm"])
def test_cells_that_do_not_fit_are_refused(method: str) -> None:
    """73 x 73 tokens: 1022 pixels in patches of 14."""
    values: dict[str, Any] = {"width": 8, "depth": 2, "heads": 1, "global_blocks": [1], "patch": 14}
    spec = spec_from_dict({**values, "image_size": 1022}, "Here")
    with pytest.raises(UserError, match="73x73 cannot be cut into cells of 2x2"):
        block_table(MergeConfig.of(method=method), spec.grid, spec.window_sizes)
    windows = MergeConfig.of(method=method, layers="window")
    assert block_table(windows, spec.grid, spec.window_sizes)
