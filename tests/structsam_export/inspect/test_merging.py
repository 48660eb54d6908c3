"""`inspect` on a tiny SAM: what blocks decided, what is written and said, what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from structsam import apply_merging
from structsam.apply import merged_blocks
from structsam.errors import UserError
from structsam.methods import METHODS, choose_methods
from structsam.recording import record_plans
from structsam_export.bundle.weights_source import ModelSource
from structsam_export.inspect.merge_picture import group_colors
from structsam_export.inspect.merging import inspect_merging, observe
from structsam_export.inspect.report import inspection_table
from structsam_export.merging_choices import choices
from structsam_export.predict.image_file import read_image
from structsam_export.predict.preprocessing import preprocess


@pytest.fixture(autouse=True)
def fast(one_torch_thread) -> None:
    """Tiny tensors: threads only wait for each other."""


@pytest.fixture
def pixels(tiny_photo, tiny_spec) -> np.ndarray:
    return preprocess(read_image(tiny_photo), tiny_spec.preprocessing)[0]


def test_counts_of_a_window_block_leave_padding_out(tiny_sam_factory, pixels) -> None:
    sam = apply_merging(tiny_sam_factory(), method="structsam", rate=0.5)
    maps = observe(sam, pixels)
    assert sorted(maps) == [0, 1, 2]
    window, whole = maps[0], maps[1]
    assert (window.windows, window.tokens, window.kept) == (4, 784, 388)
    assert (whole.windows, whole.tokens, whole.kept, whole.real_kept) == (1, 256, 127, 127)
    assert window.group.shape == (16, 16)
    assert window.real_kept == window.anchor.sum() < window.kept


@pytest.mark.parametrize("method", list(METHODS))
def test_maps_are_the_plans_of_the_merged_forward_pass(method, tiny_sam_factory, pixels) -> None:
    sam = apply_merging(tiny_sam_factory(), method=method, rate=0.5)
    maps = observe(sam, pixels)
    assert all(block.on_plan is None for block in merged_blocks(sam))
    with torch.inference_mode(), record_plans(sam) as planned:
        sam.image_encoder(torch.from_numpy(pixels))
    assert list(planned) == [0, 1, 2]
    for index, merging in planned.items():
        found, plan = maps[index], merging.plan
        if index == 1:
            assert (found.group.ravel() == plan.slot_of_token[0].numpy()).all()
        positions = np.zeros((plan.slot_of_token.shape[0], plan.slot_of_token.shape[1]), bool)
        for w, anchors in enumerate(plan.anchor_of_slot.tolist()):
            positions[w, anchors] = True
        side = plan.grid[0]
        for y, x in np.ndindex(16, 16):
            w = (y // side) * -(-16 // side) + x // side
            i = (y % side) * side + x % side
            assert found.anchor[y, x] == positions[w, i]
            assert found.size[y, x] == plan.size_of_slot[w, plan.slot_of_token[w, i]]


@pytest.mark.parametrize("method", ["structsam", "gradtome"])
def test_energy_is_that_of_the_block_it_is_shown_for(method, tiny_sam_factory, pixels) -> None:
    sam = apply_merging(tiny_sam_factory(), method=method, rate=0.5)
    maps = observe(sam, pixels)
    encoder = sam.image_encoder
    with torch.inference_mode():
        x = encoder.patch_embed(torch.from_numpy(pixels)) + encoder.pos_embed
        for index, block in enumerate(merged_blocks(sam)):
            expected = block.method.token_energy(block.metric_map(block.norm1(x)))[0]
            np.testing.assert_allclose(maps[index].energy, expected.numpy(), rtol=1e-5)
            x = block(x)
    assert np.abs(maps[0].energy - maps[2].energy).max() > 0.01  # or the test proves nothing


@pytest.mark.parametrize("options", [{}, {"margin": 0.5, "schedule": "linear"}])
def test_the_energy_of_pitome_explains_its_plan(options, tiny_sam_factory, pixels) -> None:
    maps = observe(
        apply_merging(tiny_sam_factory(), method="pitome", rate=0.25, options=options), pixels
    )
    for index, removed in ((0, 51), (1, 66), (2, 51)):
        found = maps[index]
        h, w = found.window  # the first window holds no padding
        merged, energy = found.merged[:h, :w], found.energy[:h, :w]
        assert merged.sum() > removed
        limit = np.sort(energy.ravel())[::-1][2 * removed - 1]
        assert energy[merged].min() >= limit - 1e-5
        assert energy[~merged].min() < limit


def test_methods_without_energy_have_none(tiny_sam_factory, pixels) -> None:
    maps = observe(apply_merging(tiny_sam_factory(), method="tome", rate=0.5), pixels)
    assert all(found.energy is None and not found.energy_name for found in maps.values())


def test_looking_at_some_blocks_finds_the_same(tiny_sam_factory, pixels) -> None:
    sam = apply_merging(tiny_sam_factory(), method="structsam", rate=0.5)
    every, some = observe(sam, pixels), observe(sam, pixels, [1])
    assert list(some) == [1]
    assert (some[1].group == every[1].group).all()
    assert (some[1].energy == every[1].energy).all()
    apply_merging(sam, method="structsam", rate=0.5, layers="global")
    assert list(observe(sam, pixels)) == [1]
    assert observe(sam, pixels, [0]) == {}


def test_all_groups_that_touch_have_different_colours(tiny_sam_factory, pixels) -> None:
    for method in ("structsam", "tome", "cubistmerge"):
        found = observe(apply_merging(tiny_sam_factory(), method=method, rate=0.5), pixels, [1])[1]
        colors = group_colors(found).astype(float)
        assert (colors[~found.merged] == 0).all()
        for a, b in (
            ((slice(None, -1),), (slice(1, None),)),
            ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
        ):
            both = found.merged[a] & found.merged[b]
            same = found.group[a] == found.group[b]
            apart = np.linalg.norm(colors[a] - colors[b], axis=-1)
            assert (apart[both & same] == 0).all()
            assert apart[both & ~same].min() > 60


def run(
    model, image=None, methods="all", rate=0.5, block=8, *, layers="all", options=(),
    weights="random", **more,
):  # fmt: skip
    source = ModelSource(model, weights=weights)
    merging = choices(source.spec, choose_methods(methods), [rate], [layers], options=options)
    return inspect_merging(source, merging, image, block, **more)


def test_run_writes_pictures_and_sheets_and_says_what_they_show(
    tiny_model, tiny_photo, tmp_path
) -> None:
    said: list[str] = []
    found = run(
        tiny_model,
        tiny_photo,
        "structsam,tome",
        rate=0.5,
        block=[0, 1],
        out=tmp_path / "out",
        say=said.append,
    )
    names = [file.name for file in found.files]
    assert names == [
        "scene_rate0.5_block00_structsam.png",
        "scene_rate0.5_block01_structsam.png",
        "scene_rate0.5_block00_tome.png",
        "scene_rate0.5_block01_tome.png",
        "scene_rate0.5_block00_methods.png",
        "scene_rate0.5_block01_methods.png",
        "scene_rate0.5_depth_structsam.png",
    ]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "out").iterdir())
    for file in found.files:
        with Image.open(file) as picture:
            assert picture.format == "PNG" and picture.width > 380
            colors = picture.getcolors(picture.width * picture.height)
            assert (170, 20, 20) in dict(map(reversed, colors))  # says that weights are random
    facts = json.loads(json.dumps(found.to_dict()))
    assert [(row["method"], row["block"]) for row in facts["rows"]] == [
        ("structsam", 0), ("tome", 0), ("structsam", 1), ("tome", 1),
    ]  # fmt: skip
    first, whole = found.rows[0], found.rows[2]
    assert "388 of 784 in 4 windows" in first.caption()[1]
    assert f"real tokens {first.real_kept} of 256" in first.caption()[1]
    assert f"kept 127 of 256 tokens; on the photo {whole.photo.kept} of 192" in whole.caption()[1]
    assert whole.caption()[0] == "structsam, block 1 (global), rate 0.5"
    assert [row.block for row in found.depth] == [0, 1, 2]
    assert any("tome" in text for text in said)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(inspection_table(found))
    assert "127 of 256" in console.export_text()


def test_the_picture_shows_the_photo_in_the_encoders_input(
    tiny_model, tiny_photo, tmp_path
) -> None:
    """A region that no method merges at so low a rate must be the photo, and padding be cut."""
    found = run(tiny_model, tiny_photo, "structsam", 0.02, 1, out=tmp_path)
    with Image.open(found.files[0]) as image:
        picture = np.asarray(image.convert("RGB"))
    photo = np.asarray(Image.fromarray(read_image(tiny_photo)).resize((256, 192), 2))
    at = [
        (y, x)
        for y in range(picture.shape[0] - 192)
        for x in range(64)
        if (picture[y, x : x + 256] == photo[0]).all(-1).mean() > 0.8
    ]
    assert at, "the photo's first row is not in the picture"
    top, left = at[0]
    panel = picture[top : top + 192, left : left + 256]
    assert (panel == photo).all(-1).mean() > 0.8
    below = picture[top + 192 : top + 200, left : left + 256]
    assert (below == below[0, 0]).all()  # paper, no padding of the input


def test_a_rate_above_a_methods_limit_is_a_tile(tiny_model, tiny_photo, tmp_path) -> None:
    found = run(tiny_model, tiny_photo, ["tome", "structsam"], 0.7, "1", out=tmp_path)
    assert "0.5" in found.rows[0].note and found.rows[0].photo is None
    assert found.rows[1].note == ""
    assert {row.method for row in found.depth} == {"structsam"}
    assert [file.name for file in found.files] == [
        "scene_rate0.7_block01_structsam.png",
        "scene_rate0.7_block01_methods.png",
        "scene_rate0.7_depth_structsam.png",
    ]
    json.dumps(found.to_dict())
    inspection_table(found)


def test_options_go_to_the_methods_that_have_them(tiny_model, tiny_photo, tmp_path) -> None:
    found = run(
        tiny_model, tiny_photo, ["structsam", "tome", "gradtome"], 0.5, 1,
        options=["operator=central", "variant=sorted"], out=tmp_path, depth_method="gradtome",
    )  # fmt: skip
    given = {row.method: row.options for row in found.rows}
    assert given == {
        "structsam": {"operator": "central"},
        "tome": {},
        "gradtome": {"operator": "central", "variant": "sorted"},
    }
    assert "operator=central" in found.rows[0].caption()[0]
    assert {row.method for row in found.depth} == {"gradtome"}
    plain = run(tiny_model, tiny_photo, "gradtome", 0.5, 1, out=tmp_path)
    mapped = run(
        tiny_model, tiny_photo, "gradtome", 0.5, 1,
        options={"operator": "central", "variant": "sorted"}, out=tmp_path,
    )  # fmt: skip
    sorted_too = found.rows[2].photo
    assert mapped.rows[0].photo == sorted_too != plain.rows[0].photo


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block": 3}, "block 3 does not exist"),
        ({"block": "two"}, "is no block"),
        ({"block": []}, "no block"),
        ({"methods": "structsam,magic"}, "unknown method 'magic'"),
        ({"image": "missing.png"}, "does not exist"),
        ({"rate": -1.0}, "negative"),
        ({"rate": 0.9}, "outside"),
        ({"rate": 0.0}, "merges nothing"),
        ({"layers": "global", "block": 0}, "merges nothing"),
        ({"layers": "sideways"}, "unknown layers"),
        ({"options": ["speed=high"]}, "no option 'speed'"),
        ({"options": {"operator": "wavelet"}}, "'operator'"),
        ({"depth_method": "tome"}, "'tome'"),
        ({"weights": None}, "weights"),
    ],
)
def test_bad_input_is_a_user_error_and_writes_nothing(
    change, words, tiny_model, tiny_photo, tmp_path
) -> None:
    given = {
        "image": tiny_photo, "methods": "structsam", "block": 1,
        "out": tmp_path / "out", **change,
    }  # fmt: skip
    with pytest.raises(UserError, match=words):
        run(tiny_model, **given)
    assert not (tmp_path / "out").exists()


def test_a_damaged_photo_is_a_user_error(tiny_model, tmp_path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"no picture")
    with pytest.raises(UserError, match="not an image"):
        run(tiny_model, photo, "structsam", 0.5, 1, out=Path(tmp_path) / "out")


def test_an_elongated_photo_can_be_drawn(tiny_model, tmp_path) -> None:
    photo = tmp_path / "thin.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 6, 3), np.uint8)).save(photo)
    found = run(tiny_model, photo, "structsam,pitome", 0.5, "all", out=tmp_path)
    assert found.rows[0].photo.tokens == 16
