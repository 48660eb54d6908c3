"""The decoder in the browser gives the server's masks, and the server's where it cannot run."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.evaluation.mask_rle import decode
from structsam.mask_runs import runs_of
from structsam_export.bundle.folder import Bundle
from structsam_export.predict.decoder_feeds import decoder_feeds
from structsam_export.predict.everything.coco_masks import coco_rle
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.prompts import read_prompts
from structsam_export.predict.upscaling import binary_masks
from tests.structsam_export.serve.browser_page import (
    SIZE,
    Server,
    canvas_mask,
    choose,
    click,
    downloaded,
    iou,
    page_at,
    said,
)

HERE, THERE = "in your browser", "by the server"
#: Photos in the encoder's input: SAM's, wide, tall, enlarged and reduced; and MedSAM's.
PLACES = [
    ImageGeometry((96, 128), (192, 256), 256),
    ImageGeometry((301, 77), (256, 65), 256),
    ImageGeometry((700, 1103), (162, 256), 256),
    ImageGeometry((90, 131), (256, 256), 256, upsample_probabilities=True),
]


def ready(page: Any) -> None:
    """Wait until the photo's masks are found in the browser."""
    page.locator("#where.ready").wait_for(timeout=60_000)


def masks_of(page: Any) -> list[np.ndarray]:
    found = json.loads(downloaded(page, "#coco"))["annotations"]
    return [decode(each["segmentation"]["counts"], SIZE) for each in found]


@pytest.fixture(scope="module")
def page(browser: Any, server: Server) -> Iterator[Any]:
    with page_at(browser, server, decoder="browser") as page:
        yield page


def test_clicks_and_hovering_need_no_server(
    browser: Any, tiny_bundle: Bundle, tiny_photo: Path, predictor: Any
) -> None:
    server, asked = Server(tiny_bundle), []
    with page_at(browser, server, decoder="browser") as page:
        page.on("request", lambda request: asked.append(request.url))
        try:
            choose(page, tiny_photo)
            ready(page)
        finally:
            server.stop()
        click(page, 50, 35)
        said(page, f"Score .* {HERE}")
        masks, scores, _ = predictor.predict(np.array([[50, 35]]), np.array([1]))
        (mask,) = masks_of(page)
        assert iou(mask, masks[scores.argmax()]) >= 0.999
        dot = np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([35, 50])[:, None, None])) < 4
        assert iou(canvas_mask(page) & ~dot, mask & ~dot) >= 0.999
        page.keyboard.press("Escape")
        box = page.locator("#masks").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
        said(page, f"Decoded in .* {HERE}")
        place = np.array([[SIZE[1] / 3, SIZE[0] / 3]])
        masks, scores, _ = predictor.predict(place, np.array([1]))
        assert iou(canvas_mask(page), masks[scores.argmax()]) >= 0.99  # to a pixel of the screen
        assert not [url for url in asked if url.endswith("/masks")]


def test_the_two_give_the_same_masks(browser: Any, server: Server, tiny_photo: Path) -> None:
    def work(page: Any, where: str) -> list[np.ndarray]:
        box = page.locator("#masks").bounding_box()
        across, down = box["width"] / SIZE[1], box["height"] / SIZE[0]
        found = []
        for x, y, keys in ((50, 35, []), (60, 40, []), (90, 70, ["Shift"])):
            click(page, x, y, modifiers=keys)
            said(page, f"Score .* {where}")
            found += masks_of(page)
        page.keyboard.press("n")
        page.mouse.move(box["x"] + 30 * across, box["y"] + 20 * down)
        page.mouse.down()
        page.mouse.move(box["x"] + 70 * across, box["y"] + 50 * down, steps=3)
        page.mouse.up()
        said(page, f"Score .* {where}")
        found += masks_of(page)[1:]
        click(page, 35, 25, modifiers=["Shift"])
        said(page, f"Score .* {where}")
        found += masks_of(page)[1:]
        page.keyboard.press("Escape")
        return found

    with page_at(browser, server, decoder="browser") as page:
        choose(page, tiny_photo)
        ready(page)
        here = work(page, HERE)
        page.locator("#here").uncheck()
        there = work(page, THERE)
    assert len(here) == len(there) == 5
    assert [iou(a, b) >= 0.999 for a, b in zip(here, there, strict=True)] == [True] * 5
    assert len({mask.tobytes() for mask in there}) == 5  # they are five masks


@pytest.mark.parametrize(
    ("url", "answer", "reason"),
    [
        ("**/*.wasm", {"status": 404}, "wasm"),
        ("**/decoder.onnx", {"body": b"no ONNX"}, "model|protobuf"),
        ("**/decoder_worker.js", {"body": b"throw new Error('broken')"}, "broken|thread"),
        ("**/v1/model", {"json": {"decoder": None, "why_not": "boxes"}}, "boxes"),
    ],
)  # fmt: skip
def test_where_it_cannot_run_the_server_answers(
    browser: Any, server: Server, tiny_photo: Path, url: str, answer: dict[str, Any], reason: str
) -> None:
    page = browser.new_page()
    page.route(url, lambda route: route.fulfill(**answer))
    page.goto(server.address)
    page.locator("#here:disabled").wait_for(timeout=60_000)
    title = page.locator("#where").get_attribute("title")
    assert title.startswith("The server decodes: ") and re.search(reason, title)
    choose(page, tiny_photo)
    click(page, 50, 35)
    said(page, f"Score .* {THERE}")
    page.close()


def test_a_machine_with_little_memory_is_spared(browser: Any, server: Server) -> None:
    page, asked = browser.new_page(), []
    page.add_init_script("Object.defineProperty(navigator, 'deviceMemory', { value: 1 })")
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.address)
    page.locator("#here:disabled").wait_for(timeout=60_000)
    assert "little memory" in page.locator("#where").get_attribute("title")
    assert not [url for url in asked if url.endswith((".onnx", ".wasm"))]
    page.close()


def test_a_decoder_that_fails_later_hands_over(
    browser: Any, server: Server, tiny_photo: Path
) -> None:
    """An embedding of another size passes until the decoder runs."""
    with page_at(browser, server, decoder="browser") as page:
        page.route(
            "**/embedding",
            lambda route: route.fulfill(body=bytes(2 * 256), headers={"X-Shape": "1,256,1,1"}),
        )
        choose(page, tiny_photo)
        ready(page)
        click(page, 50, 35)
        said(page, f"Score .* {THERE}")
        assert page.locator("#here").is_disabled()


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_masks_are_upscaled_as_by_the_server(page: Any, place: ImageGeometry) -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.normal(size=(9, 9)).astype(np.float32)).resize((64, 64))
    logits = np.asarray(small) - 0.2
    expected = binary_masks(logits, place)
    given = [
        logits.ravel().tolist(), list(logits.shape),
        {"size": place.original_size, "inputSize": place.input_size,
         "imageSize": place.image_size, "probabilities": place.upsample_probabilities},
    ]  # fmt: skip
    runs, sampled = page.evaluate(
        """async ([values, small, place]) => {
          const { maskRuns, maskSampled, tapsOf } = await import("/page/upscale.js");
          const logits = Float32Array.from(values), taps = tapsOf(small, place);
          const seen = maskSampled(logits, small, taps, place.probabilities, 60, 40);
          return [maskRuns(logits, small, taps, place.probabilities), Array.from(seen)];
        }""",
        given,
    )
    height, width = place.original_size
    assert sum(runs) == height * width
    full = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    assert (full != expected).sum() <= 2 and 0.1 < full.mean() < 0.9
    rows = ((np.arange(40) + 0.5) * height / 40).astype(int)
    columns = ((np.arange(60) + 0.5) * width / 60).astype(int)
    assert np.array_equal(np.reshape(sampled, (40, 60)), full[rows][:, columns])


@pytest.mark.parametrize(
    ("points", "labels", "box"),
    [
        ([[50, 35]], [1], None),
        ([[50, 35], [5.25, 90.5]], [1, 0], None),
        (None, None, [30, 20, 70.5, 50]),
        ([[50, 35]], [0], [30, 20, 70, 50]),
    ],
)
def test_prompts_are_those_of_the_server(
    page: Any, tiny_bundle: Bundle, points: Any, labels: Any, box: Any
) -> None:
    place = ImageGeometry((96, 131), (188, 256), 256)
    arrays = [None if value is None else np.array(value) for value in (points, labels, box)]
    prompts = read_prompts(*arrays, place)
    expected = decoder_feeds(tiny_bundle.part("decoder"), prompts, place, None)
    asked = {"points": points or [], "labels": labels or [], "boxes": [box] if box else []}
    coords, marks = page.evaluate(
        """async ([prompt, place]) => {
          const { encodePrompt } = await import("/page/prompts.js");
          const { coords, labels } = encodePrompt(prompt, place);
          return [Array.from(coords), Array.from(labels)];
        }""",
        [asked, {"size": place.original_size, "inputSize": place.input_size}],
    )
    assert np.array_equal(np.float32(coords).reshape(1, -1, 2), expected["point_coords"])
    assert np.array_equal(np.float32([marks]), expected["point_labels"])


def test_every_number_of_fp16_is_read(page: Any) -> None:
    codes = np.arange(1 << 16, dtype=np.uint16)
    finite = codes[np.isfinite(codes.view(np.float16))]
    found = page.evaluate(
        """async (text) => {
          const { readHalf } = await import("/page/half.js");
          const read = readHalf(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
          const bytes = new Uint8Array(read.buffer);
          return Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
        }""",
        base64.b64encode(finite.astype("<u2").tobytes()).decode(),
    )
    values = np.frombuffer(found.encode("latin-1"), "<f4")
    assert np.array_equal(values, finite.view(np.float16).astype(np.float32))


def test_run_lengths_are_written_as_coco_does(page: Any) -> None:
    rng = np.random.default_rng(1)
    masks = [rng.random((70, 90)) > share for share in (0.5, 0.999, 0, 1)]
    masks.append(np.repeat(rng.random((2000, 3)) > 0.5, 400, axis=1))
    for mask in masks:
        expected = coco_rle(runs_of(mask, 0, 0, mask.shape), mask.shape)["counts"]
        found = page.evaluate(
            """async (counts) => {
              const { decodeRuns, encodeRuns } = await import("/page/rle.js");
              return encodeRuns(decodeRuns(counts));
            }""",
            expected,
        )
        assert found == expected
