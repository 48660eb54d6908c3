"""Embeddings of `segment --save-embeddings` spare the server's encoder, and no others do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.bulk.segment import segment
from structsam_export.bulk.work import Wanted
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import photo_id
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.serve.refusals import UnknownImage
from structsam_export.serve.saved_embeddings import SavedEmbeddings
from structsam_export.serve.service import Service
from structsam_export.serve.settings import ServeSettings
from tests.structsam_export.sam_like_bundle import make_sam_like_bundle

BOX = AskedPrompts((), ((2.0, 3.0, 20.0, 15.0),), all_masks=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_sam_like_bundle(tmp_path_factory.mktemp("bundle") / "sam")


@pytest.fixture(scope="module")
def folders(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two photos, one of them in a folder below, and their embeddings."""
    root = tmp_path_factory.mktemp("photos")
    photos, out = root / "photos", root / "out"
    for name, grey in (("a.png", 60), ("below/b.png", 200)):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (30, 20), (grey,) * 3).save(photos / name)
    segment(bundle, photos, out, Wanted(embeddings=True), backend="onnxruntime", threads=1)
    return photos, out / "embeddings"


def made(bundle: Bundle, embeddings: Path | None) -> Service:
    service = Service(bundle, "onnxruntime", ServeSettings(embeddings=embeddings), threads=1)
    if service._saved is not None:
        service._saved.wait()
    return service


@pytest.fixture
def service(bundle: Bundle, folders: tuple[Path, Path]) -> Iterator[Service]:
    service = made(bundle, folders[1])
    yield service
    service.stop()


def counted(service: Service, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", service.measures.text().decode(), re.M)
    return float(found[1]) if found else 0.0


def test_photos_that_were_segmented_are_not_encoded_again(
    bundle: Bundle, service: Service, folders: tuple[Path, Path]
) -> None:
    other = made(bundle, None)
    try:
        for name in ("a.png", "below/b.png"):
            data = (folders[0] / name).read_bytes()
            added = service.add(data).result(60)
            assert added.cached and added.geometry.original_size == (20, 30)
            fresh = other.add(data).result(60)
            assert added.image_id == fresh.image_id and added.geometry == fresh.geometry
            ours, theirs = (
                s.masks(added.image_id, BOX, False).result(60) for s in (service, other)
            )
            assert np.allclose(ours.scores, theirs.scores, atol=1e-2)
        assert counted(service, "structsam_encode_seconds_count") == 0
        assert counted(service, 'structsam_cache_lookups_total{found="saved"}') == 2
        assert not service.add((folders[0] / "a.png").read_bytes() + b"\0").result(60).cached
    finally:
        other.stop()


def test_their_photos_need_not_be_sent_and_stay_after_they_are_forgotten(
    service: Service, folders: tuple[Path, Path]
) -> None:
    image_id = photo_id((folders[0] / "a.png").read_bytes())
    assert service.masks(image_id, BOX, False).result(60).scores.shape == (1, 1)
    service.remove(image_id)
    assert service.masks(image_id, BOX, False).result(60).scores.shape == (1, 1)
    with pytest.raises(UnknownImage):
        service.remove("0" * 32)


def test_embeddings_of_another_bundle_are_refused(
    bundle: Bundle, folders: tuple[Path, Path]
) -> None:
    other = Bundle(bundle.path, {**bundle.manifest, "files": {}, "name": "other"})
    with pytest.raises(UserError, match="was made by another encoder"):
        SavedEmbeddings(folders[1], other)


def test_folders_that_help_nobody(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder .*nowhere"):
        SavedEmbeddings(tmp_path / "nowhere", bundle)
    with pytest.raises(UserError, match=r"no embedding \(\.npz\) in"):
        SavedEmbeddings(tmp_path, bundle)
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match="no embedding, or damaged"):
        SavedEmbeddings(tmp_path, bundle)
    record = bundle.files[bundle.part("encoder").file]
    np.savez(tmp_path / "a.npz", embedding=np.zeros(1), encoder=np.array(record.sha256))
    with pytest.raises(UserError, match="an earlier version made it"):
        SavedEmbeddings(tmp_path, bundle)


def test_a_folder_that_fails_half_way_is_listed_in_part(
    bundle: Bundle,
    folders: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def some(folder: Path, pattern: str) -> Iterator[Path]:
        yield folder / "a.png.npz"
        raise OSError(5, "Input/output error", str(folder))

    monkeypatch.setattr(Path, "rglob", some)
    saved = SavedEmbeddings(folders[1], bundle)
    saved.wait()
    assert "listed in part" in caplog.text and "Input/output error" in caplog.text
    assert saved.find(photo_id((folders[0] / "a.png").read_bytes())) is not None


def test_a_later_file_of_another_encoder_is_left_out(
    bundle: Bundle,
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    foreign, photo = tmp_path / "foreign.npz", "f" * 32
    np.savez(foreign, embedding=np.zeros(1), encoder=np.array("0" * 64), photo=np.array(photo))
    found = [folders[1] / "a.png.npz", foreign, folders[1] / "below" / "b.png.npz"]
    monkeypatch.setattr(Path, "rglob", lambda folder, pattern: iter(found))
    saved = SavedEmbeddings(folders[1], bundle)
    saved.wait()
    assert photo not in saved and "foreign.npz was made by another encoder" in caplog.text
    for name in ("a.png", "below/b.png"):
        assert photo_id((folders[0] / name).read_bytes()) in saved


def test_a_prompt_aware_bundle_takes_none(tmp_path: Path) -> None:
    from tests.structsam_export.predict.test_predictor import fake_bundle

    with pytest.raises(UserError, match="is prompt-aware"):
        SavedEmbeddings(tmp_path, fake_bundle(takes_box=True))


@pytest.mark.parametrize("damage", ["cut", "shape", "nan", "gone"])
def test_what_is_damaged_later_costs_an_encoder_run_and_no_answer(
    bundle: Bundle, folders: tuple[Path, Path], tmp_path: Path, damage: str
) -> None:
    import shutil

    own = tmp_path / "embeddings"
    shutil.copytree(folders[1], own)
    file, service = own / "a.png.npz", made(bundle, own)
    try:
        arrays: dict[str, Any] = dict(np.load(file))
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-200])
        elif damage == "gone":
            file.unlink()
        else:
            half = arrays["embedding"]
            arrays["embedding"] = half[..., :1] if damage == "shape" else half * np.nan
            np.savez(file, **arrays)
        added = service.add((folders[0] / "a.png").read_bytes()).result(60)
        assert not added.cached and service.masks(added.image_id, BOX, False).result(60).scores.size
        assert counted(service, "structsam_encode_seconds_count") == 1
    finally:
        service.stop()
