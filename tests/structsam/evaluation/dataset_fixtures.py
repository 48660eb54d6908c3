"""A tiny set for every entry of DATASETS, in the layout in which users have it.

Each maker writes files under a root and returns what a loader must find there, made without the
code under test.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from tests.structsam.evaluation.inbreast_files import outline, write_dicom, write_outlines

HEIGHT, WIDTH = 12, 16

#: object id: (category, mask)
Objects = dict[str, tuple[str, np.ndarray]]


@dataclass
class TinySet:
    """What a maker wrote: the truth by image, and each image's two files (no mask in COCO)."""

    truth: dict[str, Objects] = field(default_factory=dict)
    images: dict[str, Path] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def photo(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    rng = np.random.default_rng(sum(path.stem.encode()))
    return save(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), path)


def labelled(objects: Iterable[tuple[int, np.ndarray]], dtype: str = "uint8") -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), dtype)
    for label, mask in objects:
        labels[mask] = label
    return labels


A, B, C = rectangle(1, 2, 6, 9), rectangle(7, 1, 11, 5), rectangle(7, 8, 12, 16)


def make_hqsam(
    root: Path, folders: dict[str, str], images: str, masks: str, names: Iterable[str]
) -> TinySet:
    """`folders`: prefix of the image's name by folder."""
    tiny = TinySet()
    for folder, prefix in folders.items():
        for name, mask in zip(names, (A, C), strict=True):
            matte = np.where(mask, 255, 0).astype(np.uint8)
            matte[0, 0], matte[0, 1] = 128, 129  # outside and inside
            truth = mask.copy()
            truth[0, 1] = True
            key = prefix + name
            tiny.images[key] = photo(root / folder / images / f"{name}.jpg")
            tiny.masks[key] = save(matte, root / folder / masks / f"{name}.png")
            tiny.truth[key] = {"1": ("", truth)}
    return tiny


def make_dis_vd(root: Path) -> TinySet:
    names = ("2#Aircraft#7#Airplane#1", "10#b c#x.y")
    return make_hqsam(root, {"DIS5K/DIS-VD": ""}, "im", "gt", names)


def make_dis_te(root: Path) -> TinySet:
    parts = {f"DIS5K/DIS-TE{n}": f"DIS-TE{n}/" for n in (1, 2, 3, 4)}
    return make_hqsam(root, parts, "im", "gt", ("b", "a"))


def make_thin(root: Path) -> TinySet:
    folder = {"thin_object_detection/ThinObject5K": ""}
    return make_hqsam(root, folder, "images_test", "masks_test", ("b", "a"))


def make_coift(root: Path) -> TinySet:
    folder = {"thin_object_detection/COIFT": ""}
    # files sort the other way round: a space comes before the dot of ".jpg"
    return make_hqsam(root, folder, "images", "masks", ("a b", "a"))


def make_hrsod(root: Path) -> TinySet:
    folder = {"thin_object_detection/HRSOD": ""}
    return make_hqsam(root, folder, "images", "masks_max255", ("b", "a"))


def make_folder(root: Path) -> TinySet:
    tiny = TinySet()
    masks = {
        "z": ({"255": ("", A)}, np.where(A, 255, 0).astype(np.uint8)),
        "B": ({"1": ("", A)}, A.astype(np.uint8)),
        "m": (
            {"2": ("dog", A), "300": ("", B), "65535": ("cat", C)},
            labelled([(2, A), (300, B), (65535, C)], "uint16"),
        ),
    }
    for name, (truth, labels) in masks.items():
        tiny.truth[name] = truth
        tiny.images[name] = photo(root / "images" / f"{name}.jpg")
        tiny.masks[name] = save(labels, root / "masks" / f"{name}.png")
    segments = {"m": [{"id": 65535, "category": "cat", "area": 40}, {"id": 2, "category": "dog"}]}
    (root / "segments.json").write_text(json.dumps(segments))
    return tiny


def make_cityscapes(root: Path) -> TinySet:
    tiny = TinySet()
    for city, name, objects in (
        ("munster", "munster_000001_000019", [(24000, A), (26013, B), (7, C)]),
        ("frankfurt", "frankfurt_000000_000294", [(33001, C), (23, A), (2, B)]),
    ):
        classes = {24: "person", 26: "car", 33: "bicycle"}
        truth = {str(n): (classes[n // 1000], mask) for n, mask in objects if n >= 1000}
        tiny.truth[name] = truth
        image = root / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png"
        tiny.images[name] = photo(image)
        stem = root / "gtFine/val" / city / f"{name}_gtFine_"
        ids = labelled(objects, "uint16")
        tiny.masks[name] = save(ids, Path(f"{stem}instanceIds.png"))
        save((ids % 256).astype(np.uint8), Path(f"{stem}labelIds.png"))
        Path(f"{stem}polygons.json").write_text("{}")
    return tiny


def make_ade20k(root: Path) -> TinySet:
    """The full set: class = red // 10 * 256 + green, instance = blue."""
    tiny = TinySet()
    scenes = {"ADE_val_00000002": "urban/street", "ADE_val_00000001": "home/bed room"}
    for name, scene in scenes.items():
        folder = root / "images/ADE/validation" / scene
        seg = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        seg[A] = 110, 20, 85  # class 2836
        seg[B] = 110, 20, 170
        seg[C] = 10, 145, 170  # class 401, the same blue: told apart by the class
        seg[0, 0] = 10, 145, 0  # without an instance
        tiny.truth[name] = {
            str(2836 * 256 + 85): ("traffic light", A),
            str(2836 * 256 + 170): ("traffic light", B),
            str(401 * 256 + 170): ("car, auto", C),
        }
        tiny.images[name] = photo(folder / f"{name}.jpg")
        tiny.masks[name] = save(seg, folder / f"{name}_seg.png")
        save(seg, folder / f"{name}_parts_1.png")
        save(A.astype(np.uint8) * 255, folder / name / f"instance_000_{name}.png")
        told = [(0, "traffic light", 2836), (1, "car, auto", 401)]
        objects = [{"id": i, "name": n, "name_ndx": k} for i, n, k in told]
        text = json.dumps({"annotation": {"object": objects}})
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
    return tiny


def make_parsing(root: Path) -> TinySet:
    """SceneParsing's layout of ADE20K; no entry of its own."""
    tiny = TinySet()
    truth = {"1-1": ("wall", A), "1-2": ("wall", B), "150-1": ("flag", C)}
    for name in ("ADE_val_00000002", "ADE_val_00000001"):
        tiny.truth[name] = truth
        tiny.images[name] = photo(root / "images/validation" / f"{name}.jpg")
        labels = labelled([(1, A), (1, B), (150, C)])
        tiny.masks[name] = save(labels, root / "annotations/validation" / f"{name}.png")
    table = "Idx\tRatio\tTrain\tVal\tName\n1\t0.15\t11664\t1172\twall\n150\t0.0\t33\t8\tflag\n"
    (root / "objectInfo150.txt").write_text(table)
    return tiny


def make_inbreast(root: Path) -> TinySet:
    tiny = TinySet()
    for name in ("53580804", "20586908"):
        rng = np.random.default_rng(int(name))
        stem = f"{name}_6c613a14b80a8591_MG_R_CC_ANON"
        pixels = rng.integers(0, 4096, (HEIGHT, WIDTH))
        tiny.images[name] = write_dicom(root / "AllDICOMs" / f"{stem}.dcm", pixels)
        findings = [("Mass", outline(A)), ("Cluster", outline(C))]
        tiny.masks[name] = write_outlines(root / "AllXML" / f"{name}.xml", findings)
        tiny.truth[name] = {"1": ("mass", A), "2": ("calcification cluster", C)}
    return tiny


def polygon(mask: np.ndarray) -> list[float]:
    """Outline of a rectangle along the borders of its pixels."""
    x, y, width, height = bbox(mask)
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def bbox(mask: np.ndarray) -> list[float]:
    """COCO's [x, y, width, height]."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (xs[0], ys[0], xs[-1] + 1 - xs[0], ys[-1] + 1 - ys[0])]


def runs(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed counts: down the columns, background first."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def annotation(number: int, image: int, category: int, mask: np.ndarray, **changes: object) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "iscrowd": 0,
        "area": int(mask.sum()),
        "bbox": bbox(mask),
        "segmentation": [polygon(mask)],
        **changes,
    }


def write_coco(root: Path, images: dict[int, str], annotations: list[dict]) -> Path:
    told = {
        "images": [
            {"id": n, "file_name": name, "height": HEIGHT, "width": WIDTH}
            for n, name in images.items()
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}],
        "annotations": annotations,
    }
    path = root / "annotations/instances_val2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(told))
    return path


def make_coco(root: Path) -> TinySet:
    tiny = TinySet()
    files = {632: "000000000632", 139: "000000000139"}
    for name in files.values():
        tiny.images[name] = photo(root / "val2017" / f"{name}.jpg")
    crowd = {"size": [HEIGHT, WIDTH], "counts": runs(B)}
    annotations = [
        annotation(900100, 139, 1, B, iscrowd=1, segmentation=crowd),
        annotation(230, 139, 18, C),
        annotation(120, 139, 1, A),
        annotation(500, 632, 18, B),
    ]
    write_coco(root, {n: f"{name}.jpg" for n, name in files.items()}, annotations)
    tiny.truth["000000000139"] = {
        "120": ("person", A),
        "230": ("dog", C),
        "900100": ("person", B),
    }
    tiny.truth["000000000632"] = {"500": ("dog", B)}
    return tiny


MAKERS: dict[str, Callable[[Path], TinySet]] = {
    "folder": make_folder,
    "dis5k-vd": make_dis_vd,
    "dis5k-te": make_dis_te,
    "thinobject5k-te": make_thin,
    "coift": make_coift,
    "hrsod": make_hrsod,
    "coco": make_coco,
    "cityscapes": make_cityscapes,
    "ade20k": make_ade20k,
    "inbreast": make_inbreast,
}
