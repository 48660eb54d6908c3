"""`--model auto` of a SAM that nobody described: its geometry from the shapes of its tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from structsam.errors import UserError
from structsam.models import MODELS, DecoderSpec, ModelSpec
from structsam.models.derived import derived_spec
from structsam.models.find_model import find_model
from structsam.models.load import _meta_sam, build_sam, load_sam

Shapes = dict[str, tuple[int, ...]]


def shapes_of(spec: ModelSpec) -> Shapes:
    return {name: tuple(value.shape) for name, value in _meta_sam(spec).state_dict().items()}


@st.composite
def specs(draw: st.DrawFn) -> ModelSpec:
    depth, heads, patch = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(2, 16))
    grid = draw(st.integers(3, 40))
    whole = tuple(sorted(draw(st.sets(st.integers(0, depth - 1)))))
    return ModelSpec(
        "derived",
        "",
        embed_dim=heads * draw(st.integers(1, 8)),
        depth=depth,
        num_heads=heads,
        global_blocks=whole,
        window_size=draw(st.integers(1, grid - 1)) if len(whole) < depth else 14,
        image_size=grid * patch,
        patch_size=patch,
        channels=draw(st.sampled_from((16, 64, 256))),
        decoder=draw(st.none() | st.builds(DecoderSpec, st.integers(1, 2), st.just(8))),
    )


@settings(max_examples=30)
@given(specs())
def test_every_geometry_is_derived_from_its_own_shapes(spec: ModelSpec) -> None:
    found = derived_spec(shapes_of(spec))
    known = {name: getattr(spec, name) for name in ("name", "title", "weights_note")}
    assert replace(found, **known) == spec


@pytest.mark.parametrize("name", [n for n in MODELS if n != "medsam"])
def test_known_models_are_recognised(name: str) -> None:
    spec = MODELS[name]
    found = derived_spec(shapes_of(spec), spec.stretch_positions)
    assert (found.window_sizes, found.grid) == (spec.window_sizes, spec.grid)
    assert (found.num_heads, found.decoder) == (spec.num_heads, spec.decoder)


def saved(path: Path, spec: ModelSpec, **changes: Any) -> Path:
    state = build_sam(spec, seed=2).state_dict() | changes
    torch.save({key: value for key, value in state.items() if value is not None}, path)
    return path


SMALL = ModelSpec("small", "", 24, 3, 2, (0, 2), window_size=5, image_size=112, patch_size=14)


def test_auto_says_what_it_derived_and_loads_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "fine_tune.pth", SMALL)
    spec, told = find_model("auto", path)
    assert spec.name == "vit3x24-p14-112"
    assert told.startswith(
        "fine_tune.pth holds a SAM that is no model here: 24 wide, 3 blocks (0, 2 global, the "
        "others in windows of 5), 2 heads, patches of 14 on 112 pixels, segment-anything names, "
    )
    image = torch.randn(1, 3, 112, 112)
    expected = build_sam(SMALL, seed=2).image_encoder(image)
    assert torch.equal(load_sam("auto", checkpoint=path).image_encoder(image), expected)


def test_an_encoder_alone_is_said_to_be_one(tmp_path: Path) -> None:
    path = saved(tmp_path / "encoder.pth", replace(SMALL, decoder=None))
    spec, told = find_model("auto", path)
    assert spec.name == "vit3x24-p14-112-encoder" and spec.decoder is None
    assert "on 112 pixels, no decoder, " in told
    sam = load_sam("auto", checkpoint=path)
    assert sam.prompt_encoder is None and sam.mask_decoder is None


def test_vit_b_of_another_input_size_is_told_from_vit_b() -> None:
    """SAMed and others resize the tables before they train."""
    small = derived_spec(shapes_of(replace(MODELS["vit_b"], image_size=512)))
    assert small.image_size == 512 and small.window_size == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_encoder.pos_embed": None}, "it has no image_encoder.pos_embed"),
        ({"image_encoder.pos_embed": torch.zeros(1, 8, 9, 24)}, "on a grid of 8 x 9"),
        ({"image_encoder.pos_embed": torch.zeros(())}, "pos_embed has the shape []"),
        ({"image_encoder.pos_embed": torch.zeros(1, 0, 0, 24)}, "has the shape [1, 0, 0, 24]"),
        (
            {"image_encoder.blocks.1.attn.rel_pos_h": torch.zeros(99, 12)},
            "maps of 8 and 50 tokens a side on a grid of 8",
        ),
        ({"image_encoder.blocks.0.attn.rel_pos_h": torch.zeros(15, 7)}, "heads of [7, 12]"),
        ({"image_encoder.blocks.0.attn.rel_pos_h": None}, "no image_encoder.blocks.0.attn.rel_pos"),
        (
            {"image_encoder.blocks.999999999.norm1.weight": torch.zeros(1)},
            "image_encoder.blocks.* is numbered 0, 1, 2, 999999999",
        ),
        (
            {"mask_decoder.transformer.layers.9999999999.norm1.weight": torch.zeros(1)},
            "mask_decoder.transformer.layers.* is numbered 0, 1, 9999999999",
        ),
        ({"image_encoder.blocks..norm1.weight": torch.zeros(1)}, "is numbered , 0, 1, 2"),
    ],
)
def test_shapes_that_tell_no_geometry(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = saved(tmp_path / "odd.pth", SMALL, **change)
    with pytest.raises(UserError) as caught:
        load_sam("auto", checkpoint=path)
    assert "tells no geometry" in str(caught.value) and message in str(caught.value)
    assert "\n" not in str(caught.value) and "TOML file" in str(caught.value)


def test_a_tensor_that_pretends_to_be_huge_is_refused(tmp_path: Path) -> None:
    """One number, expanded: a file of few bytes that describes an input of 1.4 million pixels."""
    side = 100_000
    tables = {
        f"image_encoder.blocks.{index}.attn.rel_pos_{axis}": torch.zeros(1).expand(2 * side - 1, 12)
        for index in range(3)
        for axis in "hw"
    }
    huge = {"image_encoder.pos_embed": torch.zeros(1).expand(1, side, side, 24), **tables}
    path = saved(tmp_path / "huge.pth", SMALL, **huge)
    with pytest.raises(UserError, match="image_size is 1400000. Use a whole number from 1 to 4096"):
        load_sam("auto", checkpoint=path)


def test_a_known_size_with_something_missing_is_named(
    tmp_path: Path, tiny_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    table = "image_encoder.blocks.1.attn.rel_pos_h"
    path = saved(tmp_path / "lossy.pth", tiny_spec, **{table: None})
    with pytest.raises(UserError, match=rf"does not fit tiny: it lacks 1 of .*\({table}\)"):
        load_sam("auto", checkpoint=path)


def test_auto_without_a_checkpoint() -> None:
    with pytest.raises(UserError, match="takes the model from a checkpoint, and none is given"):
        load_sam("auto")
