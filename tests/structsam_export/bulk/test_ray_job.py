"""On a local cluster of two workers, one of which is killed in the middle: the same files."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.bulk import ray_job
from structsam_export.bulk.parts import RAY_PARTS, Done
from structsam_export.bulk.segment import segment
from structsam_export.bulk.work import Wanted
from tests.structsam_export.bulk.test_segment import EVERYTHING, content
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pycocotools")
    Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "ray", None)
    bundle = make_sam_like_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"pip install 'structsam\[ray\]'"):
        segment(bundle, tmp_path / "a.png", tmp_path / "out", Wanted(embeddings=True), ray="local")


def test_what_ray_wrote_counts_in_any_order(tmp_path: Path) -> None:
    """A photo that was mended is done, whichever of its two files comes last."""
    folder = tmp_path / RAY_PARTS
    folder.mkdir(parents=True)
    for name, said in (("a", {"annotations": []}), ("b", {"problem": "broken"})):
        line = json.dumps({"name": "1.png", **said})
        (folder / f"{name}.json").write_text(json.dumps({"name": "1.png", "line": line}) + "\n")
    done = Done(tmp_path)
    assert "1.png" in done
    assert list(done.entries(iter(["0.png", "1.png"]))) == [{"name": "1.png", "annotations": []}]


def workers(mark: str) -> list[int]:
    """Processes of the pool, of the cluster that was started with this in its environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            title = (process / "cmdline").read_bytes()
            if b"Worker)" in title and mark.encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue  # of somebody else, or gone
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds workers in /proc")
def test_a_cluster_that_loses_a_worker_gives_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    pytest.importorskip("onnxruntime")
    photos, out, mark = tmp_path / "photos", tmp_path / "out", f"test-{os.getpid()}"
    photos.mkdir()
    for index in range(24):
        pixels = np.full((400, 300 + index, 3), 10 * index, np.uint8)
        Image.fromarray(pixels).save(photos / f"{index:02d}.png")
    (photos / "broken.jpg").write_text("no photo")
    bundle = make_sam_like_bundle(tmp_path / "bundle")
    segment(bundle, photos, tmp_path / "here", EVERYTHING)
    monkeypatch.setenv("STRUCTSAM_TEST", mark)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.setattr(ray_job, "_BATCH", 2)
    killed: list[int] = []

    def kill_one(stop: threading.Event) -> None:
        while not stop.is_set() and not killed:
            time.sleep(0.01)
            if any(out.rglob("mask_*.png")) and (found := workers(mark)):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    stop = threading.Event()
    killer = threading.Thread(target=kill_one, args=(stop,))
    killer.start()
    try:
        summary = segment(bundle, photos, out, EVERYTHING, ray="local", threads=1)
    finally:
        stop.set()
        killer.join()
        ray.shutdown()
    assert killed and (summary.photos, summary.problems) == (24, 1)
    assert content(out) == content(tmp_path / "here")
    names: list[Any] = [
        sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
        for folder in (out, tmp_path / "here")
    ]
    assert names[0] == names[1]
    again = segment(bundle, photos, out, EVERYTHING)  # here, on what the cluster left
    assert again.done_now == 1 and content(out) == content(tmp_path / "here")
