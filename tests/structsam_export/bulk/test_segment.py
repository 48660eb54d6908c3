"""A folder of photos becomes one COCO file, whatever is broken, killed or called twice."""

from __future__ import annotations

import csv
import errno
import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam.evaluation.mask_rle import decode
from structsam_export.bulk import coco, parts
from structsam_export.bulk.parts import PartWriter
from structsam_export.bulk.segment import segment
from structsam_export.bulk.work import Wanted
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.predictor import Predictor
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle

pytest.importorskip("onnxruntime")
mask_tools = pytest.importorskip("pycocotools.mask")
COUNT = 8
SETTINGS = EverythingSettings(
    points_per_side=2,
    pred_iou_thresh=0.0,
    stability_score_thresh=0.0,
    box_nms_thresh=1.0,
    output_mode="coco_rle",
)
EVERYTHING = Wanted(SETTINGS, masks=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_sam_like_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos in two folders, and one that is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for index in range(COUNT):
        pixels = np.full((20 + index, 30, 3), 30 * index, np.uint8)
        Image.fromarray(pixels).save(folder / ("more" if index % 2 else ".") / f"{index}.png")
    (folder / "broken.jpg").write_text("no photo")
    return folder


def content(out: Path) -> dict[str, Any]:
    return json.loads((out / "annotations.json").read_text())


def test_a_folder_becomes_one_coco_file(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    summary = segment(
        bundle, photos, tmp_path / "out", EVERYTHING, progress=lambda *counts: told.append(counts)
    )
    assert (summary.photos, summary.problems, summary.done_now) == (COUNT, 1, COUNT + 1)
    assert told == [(done, COUNT + 1) for done in range(COUNT + 2)]
    found = content(tmp_path / "out")
    names = [image["file_name"] for image in found["images"]]
    assert names == sorted(f"{'more/' if i % 2 else ''}{i}.png" for i in range(COUNT))
    sizes = {image["id"]: (image["height"], image["width"]) for image in found["images"]}
    assert len(sizes) == COUNT and summary.annotations == len(found["annotations"]) > COUNT
    assert [a["id"] for a in found["annotations"]] == list(range(1, summary.annotations + 1))
    for annotation in found["annotations"]:
        mask = decode(**annotation["segmentation"])
        assert mask.shape == sizes[annotation["image_id"]] and mask.sum() == annotation["area"]
        assert annotation["bbox"] == list(mask_tools.toBbox(annotation["segmentation"]))
    with (tmp_path / "out" / "problems.csv").open() as stream:
        (row,) = csv.DictReader(stream)
    assert row["image"] == "broken.jpg" and "not an image" in row["problem"]
    written = list((tmp_path / "out" / "masks").rglob("mask_*.png"))
    assert len(written) == summary.annotations


def test_the_masks_are_the_predictors(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    rows = ["image,x0,y0,x1,y1,x,y,label"]
    rows += ["0.png,1,2,9,9,,,", "0.png,4,4,20,15,,,", "2.png,,,,,5,6,", "2.png,,,,,9,3,0"]
    source = tmp_path / "prompts.csv"
    source.write_text("\n".join(rows))
    segment(bundle, source, tmp_path / "out", Wanted(), photos=photos)
    found = content(tmp_path / "out")["annotations"]
    predictor = bundle.predictor()
    expected = []
    for name, prompt in (
        ("0.png", {"box": np.array([[1, 2, 9, 9], [4, 4, 20, 15]])}),
        ("2.png", {"point_coords": [[5, 6], [9, 3]], "point_labels": [1, 0]}),
    ):
        predictor.set_image(np.array(Image.open(photos / name)))
        masks, scores, _ = predictor.predict(**prompt, multimask_output=False)  # type: ignore[arg-type]
        expected += list(zip(masks.reshape(-1, *masks.shape[-2:]), scores.ravel(), strict=True))
    assert len(found) == len(expected) == 3
    for annotation, (mask, score) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(decode(**annotation["segmentation"]), mask)
        assert annotation["predicted_iou"] == pytest.approx(score)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_odd_names_do_not_end_the_run(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`~` of nobody, bytes that are no Unicode (one of them broken), and 244 bytes."""
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "photos")
    names = ["a.png", "~a.png", os.fsdecode(b"\xff.png"), "\u732b" * 80 + ".png"]
    for name in names:
        Path(name).write_bytes((photos / "0.png").read_bytes())
    broken = os.fsdecode(b"\xfe.png")
    Path(broken).write_text("no photo")
    wanted = Wanted(SETTINGS, masks=True, overlays=True, embeddings=True)
    for source, out in (("*.png", tmp_path / "out"), (".", tmp_path / "out2")):
        summary = segment(bundle, source, out, wanted)
        assert (summary.photos, summary.problems) == (len(names), 1)
        assert {i["file_name"] for i in content(out)["images"]} == set(names)
        assert [row["image"] for row in table(summary.problems_file)] == [r"\udcfe.png"]
        for folder in ("overlays", "embeddings", "masks"):
            assert len(list((out / folder).iterdir())) == len(names)
    images = [Path(name) for name in names]
    scores = scores_of(bundle, images, tmp_path / "predicted", tmp_path / "out" / "embeddings")
    assert len(set(scores)) == 1


def test_dark_photos_are_told(bundle: Bundle, tmp_path: Path) -> None:
    """A 12-bit PNG and an int32 TIFF of 0..255: black to the encoder, and still done."""
    ramp = np.linspace(0, 4095, 600).reshape(20, 30)
    (tmp_path / "photos").mkdir()
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "photos" / "12.png")
    Image.fromarray((ramp // 16).astype(np.int32)).save(tmp_path / "photos" / "32.tif")
    Image.fromarray((ramp // 16).astype(np.uint8)).save(tmp_path / "photos" / "8.png")
    for _ in range(2):  # kept with what is done
        summary = segment(bundle, tmp_path / "photos", tmp_path / "out", EVERYTHING)
        assert (summary.photos, summary.problems, summary.noted) == (3, 0, 2)
        rows = table(summary.notes_file)
        assert [row["image"] for row in rows] == ["12.png", "32.tif"]
        assert all("is dark" in row["note"] for row in rows)


def test_a_box_outside_costs_no_other_box(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    """0.png has 30 x 20 pixels. COCO's boxes stand out by parts of a pixel."""
    boxes = [[-0.4, 2, 9, 18.5], [25, 4, 30, 5], [4, 4, 16, 11], [3, 3, 0, 5]]
    told = [{"id": i, "image_id": 1, "bbox": box, "category_id": i} for i, box in enumerate(boxes)]
    coco = {"images": [{"id": 1, "file_name": "0.png"}], "annotations": told}
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(coco))
    summary = segment(bundle, source, tmp_path / "out", Wanted(), photos=photos)
    assert (summary.annotations, summary.problems, summary.noted) == (2, 0, 1)
    found = content(tmp_path / "out")["annotations"]
    assert [(a["source_id"], a["category_id"]) for a in found] == [(0, 0), (2, 2)]
    outside, empty = (row["note"] for row in table(summary.notes_file))
    assert "left out: box (25, 4, 55, 9) is outside" in outside and "empty" in empty
    predictor = bundle.predictor()
    predictor.set_image(np.array(Image.open(photos / "0.png")))
    for annotation, box in zip(found, ([0, 2, 8.6, 20], [4, 4, 20, 15]), strict=True):
        masks, _, _ = predictor.predict(box=np.array(box), multimask_output=False)
        np.testing.assert_array_equal(decode(**annotation["segmentation"]), masks[0])
    told[0]["bbox"] = told[2]["bbox"] = [25, 4, 30, 5]
    source.write_text(json.dumps(coco))
    none = segment(bundle, source, tmp_path / "none", Wanted(), photos=photos)
    assert (none.photos, none.problems, none.noted) == (0, 1, 0)
    assert "(and 3 more boxes)" in table(none.problems_file)[0]["problem"]


def test_points_need_the_box_beside_them(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    """They are one prompt: without its box it would mean something else."""
    source = tmp_path / "list.txt"
    source.write_text("0.png\t5,5\t90,1,95,9\n2.png\t5,5\t-0.5,1,9,9\n")
    summary = segment(bundle, source, tmp_path / "out", Wanted(), photos=photos)
    assert (summary.annotations, summary.problems) == (1, 1)
    assert "is outside the image" in table(summary.problems_file)[0]["problem"]


def test_masks_of_everything_break_off_when_the_run_is_stopped(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else Ctrl-C waits for a photo of a thousand points."""
    real, in_second, broken_off = Predictor.everything, threading.Event(), threading.Event()
    calls: list[None] = []

    def second_is_long(self: Predictor, image: Any = None, *, progress: Any, **more: Any) -> Any:
        calls.append(None)
        if len(calls) == 2:
            in_second.set()
            for done in range(600):  # a minute, were it not stopped
                try:
                    progress(done, 600)
                except Exception:
                    broken_off.set()
                    raise
                time.sleep(0.1)
        return real(self, image, progress=progress, **more)

    def interrupted(part: Any, entry: Any) -> None:
        assert in_second.wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(Predictor, "everything", second_is_long)
    monkeypatch.setattr(PartWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segment(bundle, photos, tmp_path / "out", EVERYTHING)
    assert broken_off.is_set() and not (tmp_path / "out" / "annotations.json").exists()


@pytest.mark.parametrize("everything", [True, False])
def test_results_of_a_coco_file_can_be_scored_against_it(
    bundle: Bundle, photos: Path, tmp_path: Path, everything: bool
) -> None:
    """Its image ids, and its categories, but for masks of everything: they are of no person."""
    person = {"id": 1, "name": "person"}
    box = {"id": 40, "image_id": 285, "bbox": [1, 2, 8, 7], "category_id": 1}
    images = [{"id": i, "file_name": name} for i, name in ((139, "2.png"), (285, "0.png"))]
    told = {"images": images, "annotations": [box], "categories": [person]}
    source = tmp_path / "instances.json"
    source.write_text(json.dumps(told))
    wanted = Wanted(SETTINGS) if everything else Wanted()
    segment(bundle, source, tmp_path / "out", wanted, photos=photos)
    found = content(tmp_path / "out")
    assert [(i["id"], i["file_name"]) for i in found["images"]] == [(139, "2.png"), (285, "0.png")]
    assert {a["image_id"] for a in found["annotations"]} == ({139, 285} if everything else {285})
    assert found["categories"] == ([{"id": 1, "name": "object"}] if everything else [person])
    assert {a.get("source_id") for a in found["annotations"]} == {None if everything else 40}


def test_embeddings_are_taken_by_predict(bundle: Bundle, photos: Path, tmp_path: Path) -> None:
    from structsam_export.predict.prediction import predict_image

    segment(bundle, photos / "0.png", tmp_path / "out", Wanted(embeddings=True))
    file = tmp_path / "out" / "embeddings" / "0.png.npz"
    assert np.load(file)["embedding"].dtype == np.float16
    both = [
        predict_image(bundle, photos / "0.png", [(5, 5, 1)], out=tmp_path / str(given), embedding=e)
        for given, e in enumerate((None, file, file.parent))
    ]
    scores = [p.details["prompts"][0]["masks"][0]["score"] for p in both]
    assert scores[1] == scores[2] == pytest.approx(scores[0], abs=1e-3)
    assert both[1].details["timings_ms"]["encode"] == 0
    with pytest.raises(UserError, match="is of another photo than"):
        predict_image(bundle, photos / "2.png", out=tmp_path / "x", embedding=file)
    other = make_sam_like_bundle(tmp_path / "other")
    other.manifest["files"]["encoder.onnx"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="another encoder"):
        predict_image(other, photos / "0.png", out=tmp_path / "x", embedding=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged"):
        predict_image(bundle, photos / "0.png", out=tmp_path / "x", embedding=file)


def scores_of(bundle: Bundle, images: list[Path], out: Path, embedding: Path | None) -> list[Any]:
    """The score of one point in every photo, or why there is none; without encoding."""
    from structsam_export.predict.prediction import Refused, predict_images

    found: list[Any] = []
    for result in predict_images(bundle, images, [(5, 5, 1)], out=out, embedding=embedding):
        if isinstance(result, Refused):
            found.append(str(result.reason))
            continue
        assert embedding is None or result.details["timings_ms"]["encode"] == 0
        found.append(result.details["prompts"][0]["masks"][0]["score"])
    return found


def test_embeddings_are_found_by_what_they_are_of(bundle: Bundle, tmp_path: Path) -> None:
    """Photos of one size, two of them of one name: the right embedding, or none."""
    rng, images = np.random.default_rng(0), []
    for name in ("photos/a.png", "photos/x/a.png", "photos/x/b.png", "elsewhere/c.png"):
        images.append(tmp_path / name)
        images[-1].parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(images[-1])
    segment(bundle, tmp_path / "photos", tmp_path / "out", Wanted(embeddings=True))
    (tmp_path / "photos" / "list.csv").write_text("image\n../elsewhere/c.png\n")
    segment(bundle, tmp_path / "photos" / "list.csv", tmp_path / "more", Wanted(embeddings=True))
    encoded = scores_of(bundle, images, tmp_path / "a", None)
    assert len(set(encoded)) == len(images)
    folder = tmp_path / "out" / "embeddings"
    saved = scores_of(bundle, images, tmp_path / "b", folder)
    assert saved[:3] == pytest.approx(encoded[:3], abs=1e-3)
    assert saved[3].startswith(f"no embedding of {images[3]} in {folder}. Make it with")
    (other,) = scores_of(bundle, images[3:], tmp_path / "f", tmp_path / "more" / "embeddings")
    assert other == pytest.approx(encoded[3], abs=1e-3)
    one = scores_of(bundle, images[:2], tmp_path / "c", folder / "a.png.npz")
    assert one[0] == saved[0] and f"is of another photo than {images[1]}" in one[1]
    images[0].write_bytes(images[2].read_bytes())  # known by its bytes, whatever its name
    assert scores_of(bundle, images[:1], tmp_path / "d", folder) == [saved[2]]
    images[0].write_bytes(images[3].read_bytes())
    (changed,) = scores_of(bundle, images[:1], tmp_path / "e", folder)
    assert f"a.png.npz is of another photo than {images[0]}, or the photo was" in changed


def test_a_second_call_does_what_is_left(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after three photos; then there is room, and the broken photo was mended."""
    import shutil

    own, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(photos, own)
    whole = segment(bundle, own, tmp_path / "whole", EVERYTHING)
    append, lines = parts.PartWriter.append, []

    def full_after_three(self: Any, entry: dict[str, Any]) -> None:
        if len(lines) == 3:
            self._stream.write(b'{"name":"torn')
            raise UserError(f"cannot write: {os.strerror(errno.ENOSPC)}")
        lines.append(entry["name"])
        append(self, entry)

    monkeypatch.setattr(parts.PartWriter, "append", full_after_three)
    with pytest.raises(UserError, match="No space left"):
        segment(bundle, own, out, EVERYTHING)
    assert not (out / "annotations.json").exists()
    monkeypatch.undo()
    again = segment(bundle, own, out, EVERYTHING)
    problems = sum(name == "broken.jpg" for name in lines)
    assert again.done_now == COUNT + 1 - 3 + problems
    assert content(out) == content(tmp_path / "whole")
    assert again.annotations == whole.annotations
    shutil.copy(photos / "0.png", own / "broken.jpg")
    mended = segment(bundle, own, out, EVERYTHING)
    assert (mended.done_now, mended.problems, mended.photos) == (1, 0, COUNT + 1)


def test_a_merge_that_fails_leaves_no_half_file(
    bundle: Bundle, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails_late(section: str, entry: dict[str, Any], image_id: int) -> Any:
        if section == "annotations":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "annotations.json")
        return items(section, entry, image_id)

    items = coco._items
    monkeypatch.setattr(coco, "_items", fails_late)
    with pytest.raises(UserError, match="No space left"):
        segment(bundle, photos, tmp_path / "out", EVERYTHING)
    assert not list((tmp_path / "out").glob("*annotations*"))
    monkeypatch.undo()
    assert segment(bundle, photos, tmp_path / "out", EVERYTHING).done_now == 1  # the broken one


def test_a_folder_below_the_source_is_not_segmented_itself(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    import shutil

    own = tmp_path / "photos"
    shutil.copytree(photos, own)
    wanted = replace(EVERYTHING, overlays=True)
    first = segment(bundle, own, own / "out", wanted)
    before = content(own / "out")
    again = segment(bundle, own, own / "out", wanted)
    assert first.photos == again.photos == COUNT and again.done_now == 1  # the broken one
    assert content(own / "out") == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            Wanted(replace(SETTINGS, points_per_side=3), masks=True),
            "points_per_side = 2, and now it",
        ),
        (Wanted(SETTINGS), "begun with masks = True, and now it is False"),
    ],
)
def test_other_settings_are_refused(
    bundle: Bundle, photos: Path, tmp_path: Path, changed: Wanted, message: str
) -> None:
    segment(bundle, photos / "0.png", tmp_path / "out", EVERYTHING)
    with pytest.raises(UserError, match=message):
        segment(bundle, photos / "0.png", tmp_path / "out", changed)


def test_another_run_in_the_same_folder_is_refused(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(UserError, match="another `structsam-export segment` is at work"):
            segment(bundle, photos, tmp_path / "out", EVERYTHING)

    segment(bundle, photos / "0.png", tmp_path / "out", EVERYTHING, progress=second)


def test_what_cannot_be_done_is_told_before_the_work(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no points or boxes"):
        segment(bundle, photos, tmp_path / "out", Wanted())
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files"):
        segment(bundle, photos, tmp_path / "taken", EVERYTHING)
    crops = Wanted(EverythingSettings(crop_n_layers=1), embeddings=True)
    with pytest.raises(UserError, match="belongs to one crop"):
        segment(bundle, photos, tmp_path / "out", crops)
    more = {"backend": "onnxruntime", "checkpoint": tmp_path / "nowhere.pth"}
    with pytest.raises(UserError, match="`checkpoint=` is for `backend=torch`"):
        segment(bundle, photos, tmp_path / "out", EVERYTHING, **more)
    assert not (tmp_path / "out").exists()


#: Forks children that segment, and kills 20 of them: at moments of what one takes, and, in turn
#: with that, a moment after some more photos are done, however slow the machine is. A child goes on
#: where the one before was killed; one that ends in time is followed by a new folder.
KILLER = """
import glob, json, os, random, signal, sys, time
import onnxruntime
from structsam_export.bulk.segment import segment
from structsam_export.bundle.folder import open_bundle
from tests.structsam_export.bulk.test_segment import EVERYTHING

def is_killed(out, delay, more=99):
    enough = lines(out) + more
    child = os.fork()
    if not child:
        segment(open_bundle(bundle, verify=False), photos, out, EVERYTHING, threads=1)
        os._exit(0)
    end = time.monotonic() + delay
    while not os.waitpid(child, os.WNOHANG)[0]:
        if time.monotonic() > end or lines(out) >= enough:
            time.sleep(chance.uniform(0, 0.005))
            os.kill(child, signal.SIGKILL)  # it may have ended: it is not waited for yet
            return os.waitpid(child, 0)[1] == signal.SIGKILL
        time.sleep(0.001)
    return False

def lines(out):
    return sum(open(part, "rb").read().count(b"\\n") for part in glob.glob(out + "/parts/*"))

bundle, photos, root = sys.argv[1:]
begun = time.monotonic()
chance, done, folders = random.Random(0), [], 0
assert not is_killed(root + "/first", 60)
takes = time.monotonic() - begun
for turn in range(200):
    out = root + f"/out{folders}"
    moment = (60, chance.randint(1, 3)) if turn % 2 else (chance.uniform(0, takes),)
    if is_killed(out, *moment):
        done.append(lines(out))
    folders += os.path.exists(out + "/annotations.json")
    if len(done) == 20:
        break
print(json.dumps(done))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kills_at_twenty_moments_lose_and_double_nothing(
    bundle: Bundle, photos: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, bundle.path, photos, tmp_path],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    kills = json.loads(done.stdout)
    assert len(kills) == 20 and len(set(kills)) > 2  # with different numbers of photos done
    whole = tmp_path / "first"
    expected, masks = content(whole), sorted(p.relative_to(whole) for p in whole.rglob("*.png"))
    folders = sorted(tmp_path.glob("out*"))
    for out in folders:
        segment(bundle, photos, out, EVERYTHING, threads=1)
        assert content(out) == expected, out
        assert sorted(path.relative_to(out) for path in out.rglob("*.png")) == masks


def test_memory_is_flat(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all the arrays that photos become, only those on their way are alive."""
    import gc
    import weakref

    from structsam_export.bulk import work

    for index in range(40):
        (tmp_path / f"{index}.png").write_bytes(b"")  # read below
    alive: list[weakref.ref[Any]] = []
    most = 0
    read = work.read_photo

    def counted(path: Path, *how: Any) -> Any:
        nonlocal most
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
        photo = read(path, *how)
        alive.append(weakref.ref(photo))
        most = max(most, sum(ref() is not None for ref in alive))
        return photo

    monkeypatch.setattr(work, "read_photo", counted)
    gc.collect()
    segment(bundle, tmp_path / "*.png", tmp_path / "out", EVERYTHING)
    assert len(alive) == 40 and 0 < most <= 14
