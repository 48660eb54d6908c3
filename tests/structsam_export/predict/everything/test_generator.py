"""The generator against segment_anything's own, on the same outputs of a stand-in for a network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam.evaluation.mask_rle import decode
from structsam.models import MODELS
from structsam_export.predict.everything.generator import masks_of_everything
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.preprocessing import image_geometry

torch = pytest.importorskip("torch")
segment_anything = pytest.importorskip("segment_anything")
SIZE = (90, 121)


class TorchSegmenter:
    """A model in PyTorch behind the face that the generator uses."""

    def __init__(self, sam: Any, how: Any) -> None:
        self._predictor, self._how = segment_anything.SamPredictor(sam), how
        self.geometry: Any = None
        self.timings: dict[str, float] = {}
        self.encoded: list[tuple[int, ...]] = []

    def set_image(self, image: np.ndarray) -> None:
        self._predictor.set_image(image)
        self.geometry = image_geometry(image.shape[0], image.shape[1], self._how)
        self.timings["encode"] = 1.0
        self.encoded.append(image.shape[:2])

    def predict_low_res(self, coords: np.ndarray, labels: np.ndarray) -> Any:
        size = self.geometry.original_size
        points = torch.as_tensor(self._predictor.transform.apply_coords(coords, size))
        _, scores, low_res = self._predictor.predict_torch(points, torch.as_tensor(labels).int())
        self.timings["decode"] = 2.0
        return scores.numpy(), low_res.numpy()


class Blobs(torch.nn.Module):
    """Encoder, prompt encoder and decoder in one: ragged discs around the points.

    Random weights give masks that cover the photo; these have islands, holes, sizes and scores.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.img_size = side
        noise = np.random.default_rng(5).normal(size=(3, side // 4, side // 4))
        self.noise = torch.as_tensor(noise, dtype=torch.float32)

    def encode(self, image: Any) -> Any:
        return image.mean().reshape(1, 1, 1, 1)

    def prompt(self, points: Any, boxes: Any, masks: Any) -> Any:
        return points[0][:, 0], None

    def decode(self, image_embeddings: Any, sparse_prompt_embeddings: Any, **rest: Any) -> Any:
        side = self.noise.shape[-1]
        rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        x, y = (sparse_prompt_embeddings / 4).float().T[..., None, None, None]
        chance = ((x * 7.3 + y * 3.1 + torch.arange(3)[:, None, None] * 2.7) * 12.9898).sin() * 0.5
        distance = ((columns - x) ** 2 + (rows - y) ** 2).sqrt()
        masks = (0.5 + chance) * side / 3 - distance + self.noise * 1.5 + image_embeddings[0]
        return masks, (0.6 + 0.7 * chance)[..., 0, 0]


@pytest.fixture(scope="module")
def sam(tiny_sam_factory: Callable[..., Any], one_torch_thread: None) -> Any:
    sam = tiny_sam_factory(seed=0)
    blobs = Blobs(sam.image_encoder.img_size)
    for part, forward in (("image_encoder", "encode"), ("prompt_encoder", "prompt")):
        stand_in = Blobs(blobs.img_size)
        stand_in.forward = getattr(blobs, forward)  # type: ignore[method-assign]
        stand_in.get_dense_pe = lambda: None  # type: ignore[assignment]
        setattr(sam, part, stand_in)
    blobs.forward = blobs.decode  # type: ignore[method-assign]
    sam.mask_decoder = blobs
    return sam


@pytest.fixture
def segmenter(sam: Any, tiny_spec: Any) -> TorchSegmenter:
    return TorchSegmenter(sam, tiny_spec.preprocessing)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (*SIZE, 3), np.uint8)


LAX = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
MIDDLE = {"pred_iou_thresh": 0.5, "stability_score_thresh": 0.7}


def fake_cv2() -> Any:
    """What of OpenCV the original uses, from scipy."""
    ndimage = pytest.importorskip("scipy.ndimage")

    def connected(mask: np.ndarray, connectivity: int) -> Any:
        assert connectivity == 8
        regions, count = ndimage.label(mask, np.ones((3, 3)))
        sizes = [(regions == region).sum() for region in range(count + 1)]
        return count + 1, regions, np.array(sizes)[:, None], None

    return SimpleNamespace(connectedComponentsWithStats=connected)


CASES: dict[str, dict[str, Any]] = {
    "thresholds": {},
    "looser suppression": {"box_nms_thresh": 0.97},
    "batches that do not divide the points": {"points_per_batch": 7},
    "two layers of crops": {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
    "crops that overlap more": {"crop_n_layers": 1, "crop_overlap_ratio": 0.6},
    "small regions": {"min_mask_region_area": 60, "box_nms_thresh": 0.9},
    "points of one's own": {
        "points_per_side": None,
        "point_grids": [np.array([[0.1, 0.2], [0.7, 0.6], [0.5, 0.9]])],
    },
}


@pytest.mark.parametrize("case", CASES)
def test_the_records_are_segment_anythings(
    segmenter: TorchSegmenter,
    sam: Any,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    monkeypatch.setitem(sys.modules, "cv2", fake_cv2())
    chosen = {"points_per_side": 4, **MIDDLE, **CASES[case]}
    expected = segment_anything.SamAutomaticMaskGenerator(sam, **chosen).generate(image)
    found = masks_of_everything(segmenter, image, EverythingSettings(**chosen))
    assert len(found) == len(expected) >= 3
    for ours, theirs in zip(found, expected, strict=True):
        assert set(ours) == set(theirs)
        both = (ours["segmentation"] & theirs["segmentation"]).sum()
        assert both >= 0.99 * (ours["segmentation"] | theirs["segmentation"]).sum()
        for name in ("predicted_iou", "stability_score", "point_coords", "crop_box"):
            assert np.ravel(ours[name]) == pytest.approx(np.ravel(theirs[name]), abs=2e-3), name
        assert np.abs(np.subtract(ours["bbox"], theirs["bbox"])).max() <= 2
        assert ours["area"] == ours["segmentation"].sum()
        assert [type(value) for value in ours["bbox"]] == [int] * 4


def test_crops_that_cut_masks_lose_them(segmenter: TorchSegmenter, sam: Any) -> None:
    """A photo so large that a crop's edge is not the photo's."""
    image = np.random.default_rng(3).integers(0, 256, (230, 260, 3), np.uint8)
    chosen = {"points_per_side": 3, **MIDDLE, "crop_n_layers": 1}
    expected = segment_anything.SamAutomaticMaskGenerator(sam, **chosen).generate(image)
    found = masks_of_everything(segmenter, image, EverythingSettings(**chosen))
    assert [r["crop_box"] for r in found] == [r["crop_box"] for r in expected]


def test_of_masks_that_become_alike_one_that_needed_no_mending_stays() -> None:
    """Two equal discs, the better one with a far speck that widens its box."""
    pytest.importorskip("scipy")
    low_res = np.full((1, 3, 64, 64), -9.0, np.float32)
    rows, columns = np.mgrid[:64, :64]
    low_res[0, :2, (rows - 30) ** 2 + (columns - 20) ** 2 < 150] = 9
    low_res[0, 0, 60:63, 60:63] = 9
    segmenter = SimpleNamespace(
        geometry=image_geometry(64, 64, replace(MODELS["vit_b"].preprocessing, image_size=256)),
        timings={},
        predict_low_res=lambda coords, labels: (np.array([[0.9, 0.8, 0.0]]), low_res),
    )
    settings = EverythingSettings(points_per_side=1, pred_iou_thresh=0.5, min_mask_region_area=40)
    (record,) = masks_of_everything(segmenter, None, settings)
    assert record["predicted_iou"] == pytest.approx(0.8)
    unmended = masks_of_everything(segmenter, None, replace(settings, min_mask_region_area=0))
    assert [r["predicted_iou"] for r in unmended] == pytest.approx([0.9, 0.8])


def test_the_three_forms_hold_the_same_masks(segmenter: TorchSegmenter, image: np.ndarray) -> None:
    mask_tools = pytest.importorskip("pycocotools.mask")
    settings = EverythingSettings(**LAX)
    binary, runs, compressed = (
        masks_of_everything(segmenter, image, replace(settings, output_mode=mode))  # type: ignore[arg-type]
        for mode in ("binary_mask", "uncompressed_rle", "coco_rle")
    )
    assert len(binary) == len(runs) == len(compressed) > 1
    for mask, run, text in zip(binary, runs, compressed, strict=True):
        assert sum(run["segmentation"]["counts"]) == image.shape[0] * image.shape[1]
        assert sum(run["segmentation"]["counts"][1::2]) == run["area"]
        assert isinstance(text["segmentation"]["counts"], str)
        np.testing.assert_array_equal(
            decode(text["segmentation"]["counts"], SIZE), mask["segmentation"]
        )
        assert mask_tools.frPyObjects(run["segmentation"], *image.shape[:2])["counts"] == text[
            "segmentation"
        ]["counts"].encode("ascii")


def test_progress_and_times_are_of_all_crops(segmenter: TorchSegmenter, image: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    settings = EverythingSettings(**LAX, points_per_batch=10, crop_n_layers=1)
    masks_of_everything(segmenter, image, settings, lambda *counts: told.append(counts))
    assert told == [(done, 80) for done in sorted([*range(10, 81, 16), *range(16, 81, 16)])]
    assert segmenter.encoded[0] == SIZE and len(segmenter.encoded) == 5
    assert segmenter.timings["encode"] == 5.0 and segmenter.timings["decode"] == 20.0
    assert segmenter.timings["upscale"] > 0


def test_more_crops_than_pixels(segmenter: TorchSegmenter) -> None:
    with pytest.raises(UserError, match="nothing left for crop layer 2"):
        masks_of_everything(
            segmenter, np.zeros((90, 5, 3), np.uint8), EverythingSettings(crop_n_layers=3)
        )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points_per_side": None}, "exactly one of"),
        ({"point_grids": [np.full((1, 2), 0.5)]}, "exactly one of"),
        ({"points_per_side": 0}, "`points_per_side=0` is below 1"),
        ({"points_per_batch": 0}, "below 1"),
        ({"crop_n_layers": -1}, "below 0"),
        ({"pred_iou_thresh": 1.5}, "outside of 0..1"),
        ({"box_nms_thresh": float("nan")}, "outside of 0..1"),
        ({"stability_score_offset": -1.0}, "must be 0 or more"),
        ({"output_mode": "png"}, "binary_mask, uncompressed_rle, coco_rle"),
        ({"crop_n_layers": 6, "crop_n_points_downscale_factor": 2}, "no point is left in crop"),
        ({"points_per_side": None, "point_grids": []}, "Pass one for each"),
        ({"points_per_side": None, "point_grids": [np.ones((3, 2))]}, "0 <= value < 1"),
        ({"points_per_side": None, "point_grids": [np.ones((3, 3))]}, r"shape \(3, 3\)"),
    ],
)
def test_settings_without_meaning(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        EverythingSettings(**given)
    assert "\n" not in str(caught.value)


def test_the_names_and_defaults_are_segment_anythings() -> None:
    import inspect

    theirs = inspect.signature(segment_anything.SamAutomaticMaskGenerator).parameters
    ours = inspect.signature(EverythingSettings).parameters
    assert {name: p.default for name, p in ours.items()} == {
        name: p.default for name, p in theirs.items() if name != "model"
    }
