"""The server without HTTP: its masks are `predict`'s, whoever asks at the same time."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.prompts import AskedPrompts
from structsam_export.serve.found import FoundMasks
from structsam_export.serve.refusals import Refusal, Stopping, UnknownImage
from structsam_export.serve.service import Service
from structsam_export.serve.settings import ServeSettings

BOXES = ((30.0, 20.0, 70.0, 50.0), (90.0, 60.0, 110.0, 80.0))


def boxes(*given: tuple[float, float, float, float]) -> AskedPrompts:
    return AskedPrompts((), given, all_masks=False)


def points(*given: tuple[float, float, int]) -> AskedPrompts:
    return AskedPrompts(given, (), all_masks=False)


def masks_of(found: FoundMasks) -> np.ndarray:
    prompts, places = found.scores.shape
    return np.array([[found.mask(p, c) for c in range(places)] for p in range(prompts)])


def test_masks_are_those_of_predict(service: Service, photo: bytes, predictor: Any) -> None:
    added = service.add(photo).result(60)
    assert added.geometry.original_size == (96, 128)
    found = service.masks(added.image_id, boxes(*BOXES), multimask=False).result(60)
    masks, scores, low_res = predictor.predict(box=np.array(BOXES), multimask_output=False)
    assert np.array_equal(masks_of(found), masks)
    assert np.array_equal(found.scores, scores) and np.array_equal(found.low_res, low_res)
    found = service.masks(added.image_id, points((50, 35, 1), (5, 5, 0)), multimask=True).result(60)
    masks, scores, low_res = predictor.predict(np.array([[50, 35], [5, 5]]), np.array([1, 0]))
    assert np.array_equal(masks_of(found)[0], masks) and np.array_equal(found.scores[0], scores)
    earlier = low_res[scores.argmax()][None]
    found = service.masks(added.image_id, points((50, 35, 1)), False, earlier).result(60)
    _, scores, _ = predictor.predict(
        np.array([[50, 35]]), np.array([1]), mask_input=earlier, multimask_output=False
    )
    assert np.array_equal(found.scores[0], scores)


def test_requests_that_come_while_it_warms_are_answered(
    tiny_bundle: Bundle, photo: bytes, predictor: Any
) -> None:
    service = Service(tiny_bundle, "onnxruntime", threads=1)
    try:
        image_id = service.add(photo).result(60).image_id
        with ThreadPoolExecutor(8) as pool:
            warming = [pool.submit(service.warm) for _ in range(3)]
            found = list(
                pool.map(
                    lambda _: service.masks(image_id, boxes(BOXES[0]), False).result(60), "1234"
                )
            )
            for each in warming:
                each.result()
        _, low_res = predictor.predict_low_res(box=np.array(BOXES[:1]), multimask_output=False)
        assert all(np.allclose(each.low_res, low_res, atol=1e-3) for each in found)
    finally:
        service.stop()


def test_a_photo_is_encoded_once(tiny_bundle: Bundle, photo: bytes) -> None:
    service = Service(tiny_bundle, "onnxruntime", threads=1)
    try:
        with ThreadPoolExecutor(8) as pool:
            added = list(pool.map(lambda _: service.add(photo).result(60), range(8)))
        assert len({each.image_id for each in added}) == 1
        assert service.add(photo).result(60).cached
        assert "structsam_encode_seconds_count 1.0" in service.measures.text().decode()
    finally:
        service.stop()


def test_requests_that_wait_together_share_a_call_and_get_their_own(
    tiny_bundle: Bundle, photo: bytes, predictor: Any
) -> None:
    service = Service(tiny_bundle, "onnxruntime", ServeSettings(queue=64), threads=1)
    try:
        image_id = service.add(photo).result(60).image_id
        places = [(4.0 * i + 2, 3.0 * i + 2) for i in range(24)]
        with ThreadPoolExecutor(24) as pool:
            found = list(
                pool.map(
                    lambda xy: service.masks(image_id, points((*xy, 1)), multimask=True).result(60),
                    places,
                )
            )
        for (x, y), each in zip(places, found, strict=True):
            scores, low_res = predictor.predict_low_res(np.array([[x, y]]), np.array([1]))
            assert np.allclose(each.scores[0], scores, atol=1e-5)
            assert np.allclose(each.low_res[0], low_res, atol=1e-3)
        text = service.measures.text().decode()
        calls = float(text.split("structsam_requests_per_decode_count ")[1].split()[0])
        assert calls < 24  # at least two of them shared one
    finally:
        service.stop()


def test_many_at_once_are_told_to_come_again(tiny_bundle: Bundle, photo: bytes) -> None:
    service = Service(tiny_bundle, "onnxruntime", ServeSettings(queue=1), threads=1)
    try:
        answers = []

        def send(number: int) -> None:
            try:
                answers.append(
                    service.add(photo + bytes([number])).result(60)
                )  # another id, the same photo
            except Refusal as refusal:
                answers.append(refusal)

        with ThreadPoolExecutor(12) as pool:
            list(pool.map(send, range(12)))
        refused = [a for a in answers if isinstance(a, Refusal)]
        assert refused and all(a.status == 429 and a.retry_after for a in refused)
        assert len(refused) < 12
    finally:
        service.stop()


def test_forgotten_or_unknown_images(service: Service, photo: bytes) -> None:
    image_id = service.add(photo + b"\0").result(60).image_id
    service.remove(image_id)
    for ask in (
        lambda: service.remove(image_id),
        lambda: service.image(image_id),
        lambda: service.masks(image_id, boxes(BOXES[0]), False).result(60),
    ):
        with pytest.raises(UnknownImage, match=r"Send the photo again"):
            ask()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (boxes(), "no prompt"),
        (boxes((0, 0, 500, 10)), "outside the image of 128 x 96"),
        (points((-1, 2, 1)), "outside the image"),
    ],
)
def test_prompts_that_do_not_go_with_it(
    service: Service, photo: bytes, asked: AskedPrompts, message: str
) -> None:
    image_id = service.add(photo).result(60).image_id
    with pytest.raises(UserError, match=message):
        service.masks(image_id, asked, False).result(60)


def test_a_broken_photo_is_told_and_leaves_nothing(service: Service, photo: bytes) -> None:
    before = len(service.cache)
    for data, message in (
        (b"", "empty"),
        (b"not a photo", "not an image"),
        (photo[: len(photo) // 2], "damaged or truncated"),
    ):
        for _ in range(2):  # it is not remembered either
            with pytest.raises(UserError, match=message):
                service.add(data).result(60)
    assert len(service.cache) == before and not len(service._adding)


def test_a_prompt_aware_bundle_encodes_for_every_box() -> None:
    import io

    from PIL import Image

    from tests.structsam_export.predict.test_predictor import PHOTO, FakeBackend, fake_bundle

    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")
    backend = FakeBackend()
    service = Service(fake_bundle(takes_box=True), backend)  # type: ignore[arg-type]
    try:
        image_id = service.add(buffer.getvalue()).result(60).image_id
        assert service.image(image_id).features is None
        service.masks(image_id, boxes((1, 2, 20, 25), (5, 5, 30, 28)), False).result(60)
        fed = [feeds for feeds in backend.fed if "prompt_box" in feeds]
        assert len(fed) == 2
    finally:
        service.stop()


def test_everything_breaks_off_when_it_is_no_longer_wanted_or_the_server_ends(
    tiny_bundle: Bundle, photo: bytes
) -> None:
    service = Service(tiny_bundle, "onnxruntime", threads=1)
    decode, decoded, go = service._finder.predict_low_res, threading.Semaphore(0), threading.Event()
    calls = []

    def held(*args: Any, **options: Any) -> Any:
        calls.append(1)
        decoded.release()
        assert go.wait(60)
        return decode(*args, **options)

    service._finder.predict_low_res = held  # type: ignore[method-assign]
    try:
        image_id = service.add(photo).result(60).image_id
        unwanted = service.everything(image_id, points_per_side=32)
        assert decoded.acquire(timeout=60)
        assert unwanted.cancel()
        go.set()
        service.everything(image_id, points_per_side=1).result(60)
        assert len(calls) == 2  # one of 16 calls, and that of the second job
        go.clear()
        assert decoded.acquire(timeout=60)
        broken = service.everything(image_id, points_per_side=32)
        assert decoded.acquire(timeout=60)
        service.refuse_waiting()
        go.set()
        with pytest.raises(Stopping):
            broken.result(60)
        assert len(calls) == 3
    finally:
        go.set()
        service.stop()
