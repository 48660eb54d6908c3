"""The page in a real browser: what a hand does, and what lies on the canvas then."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from structsam.evaluation.mask_rle import decode, encode
from structsam_export.bundle.folder import Bundle
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


def test_a_click_draws_the_mask_of_predict(
    browser: Any, server: Server, tiny_photo: Path, predictor: Any
) -> None:
    with page_at(browser, server) as page:
        choose(page, tiny_photo)
        click(page, 50, 35)
        said(page, "Score")
        found = json.loads(downloaded(page, "#coco"))
        (annotation,) = found["annotations"]
        mask = decode(annotation["segmentation"]["counts"], SIZE)
        # the place that was clicked, to the pixel of the screen
        masks, scores, _ = predictor.predict(np.array([[50, 35]]), np.array([1]))
        assert iou(mask, masks[scores.argmax()]) >= 0.999
        drawn = canvas_mask(page)
        dot = np.hypot(*(np.mgrid[: SIZE[0], : SIZE[1]] - np.array([35, 50])[:, None, None])) < 4
        assert iou(drawn & ~dot, mask & ~dot) >= 0.999
        assert annotation["area"] == mask.sum()
        ys, xs = np.nonzero(mask)
        box = [xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1]
        assert annotation["bbox"] == [int(side) for side in box]
        labels = np.asarray(Image.open(io.BytesIO(downloaded(page, "#png"))).convert("L"))
        assert np.array_equal(labels == 1, mask) and set(np.unique(labels)) == {0, 1}


def test_hovering_shows_a_mask_and_leaving_takes_it_away(
    browser: Any, server: Server, tiny_photo: Path
) -> None:
    with page_at(browser, server) as page:
        choose(page, tiny_photo)
        box = page.locator("#masks").bounding_box()
        page.mouse.move(box["x"] + box["width"] / 3, box["y"] + box["height"] / 3)
        said(page, "Decoded in")
        assert canvas_mask(page).any()
        page.mouse.move(5, 5)
        page.wait_for_timeout(200)
        assert not canvas_mask(page).any()


def test_box_subtract_undo_objects_and_clear(
    browser: Any, server: Server, tiny_photo: Path, predictor: Any
) -> None:
    with page_at(browser, server) as page:
        choose(page, tiny_photo)
        box = page.locator("#masks").bounding_box()
        across, down = box["width"] / SIZE[1], box["height"] / SIZE[0]
        page.mouse.move(box["x"] + 30 * across, box["y"] + 20 * down)
        page.mouse.down()
        page.mouse.move(box["x"] + 70 * across, box["y"] + 50 * down, steps=4)
        page.mouse.up()
        said(page, "Score")
        (boxed,) = json.loads(downloaded(page, "#coco"))["annotations"]
        mask = decode(boxed["segmentation"]["counts"], SIZE)
        expected, _, _ = predictor.predict(box=np.array([30, 20, 70, 50]), multimask_output=False)
        assert iou(mask, expected[0]) >= 0.99  # the drag ends within a pixel of the screen
        click(page, 35, 25, modifiers=["Shift"])
        said(page, "Score")
        (less,) = json.loads(downloaded(page, "#coco"))["annotations"]
        assert less["segmentation"] != boxed["segmentation"]
        page.keyboard.press("z")
        said(page, "Undone")
        (again,) = json.loads(downloaded(page, "#coco"))["annotations"]
        assert again["segmentation"] == boxed["segmentation"]
        page.keyboard.press("n")
        click(page, 100, 70)
        said(page, "Score")
        assert len(json.loads(downloaded(page, "#coco"))["annotations"]) == 2
        assert page.locator("#objects li").count() == 2
        page.keyboard.press("Escape")
        assert page.locator("#objects li").count() == 0 and not canvas_mask(page).any()


def test_everything_by_its_button(browser: Any, server: Server, tiny_photo: Path) -> None:
    with page_at(browser, server) as page:
        choose(page, tiny_photo)
        few = json.dumps({"points_per_side": 4})
        page.route("**/everything", lambda route: route.continue_(post_data=few))
        page.locator("#everything").click()
        said(page, r"\d+ masks in")


def test_a_large_photo(browser: Any, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    columns = np.arange(5472, dtype=np.uint8)
    pixels = np.broadcast_to(columns[None, :, None], (3648, 5472, 3))
    Image.fromarray(np.ascontiguousarray(pixels)).save(path, quality=60)
    with page_at(browser, server, width=400) as page:
        choose(page, path)
        page.locator("#masks").click(position={"x": 100, "y": 100})
        said(page, "Score")


def test_what_is_no_photo_is_told(browser: Any, server: Server, tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("this is text")
    with page_at(browser, server) as page:
        page.set_input_files("#file", str(path))
        said(page, r"text\.jpg is no photo that this browser can read")


def test_a_photo_that_the_server_refuses_is_told_and_no_masks_are_asked_for(
    browser: Any, server: Server, tiny_photo: Path
) -> None:
    with page_at(browser, server) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.route(
            "**/v1/images", lambda route: route.fulfill(status=429, json={"error": "Come again."})
        )
        page.set_input_files("#file", str(tiny_photo))
        said(page, "Come again")
        click(page, 50, 35)
        page.wait_for_timeout(200)
        said(page, "Come again")
        assert not [url for url in asked if url.endswith("/masks")]
        page.unroute("**/v1/images")
        click(page, 50, 35)
        said(page, "Score")


def test_a_png_has_no_label_twice(browser: Any, server: Server, tiny_photo: Path) -> None:
    whole = {"counts": encode(np.ones(SIZE, bool)), "predicted_iou": 1, "point_coords": [[0, 0]]}
    with page_at(browser, server) as page:
        choose(page, tiny_photo)
        page.route(
            "**/everything",
            lambda route: route.fulfill(json={"size": SIZE, "masks": [whole] * 256}),
        )
        page.locator("#everything").click()
        said(page, "256 masks in")
        page.locator("#png").click()
        said(page, "labels for 255 objects, and these are 256. Take COCO JSON")
        assert len(json.loads(downloaded(page, "#coco"))["annotations"]) == 256


@pytest.fixture
def guarded(browser: Any, tiny_bundle: Bundle) -> Iterator[tuple[Any, list[str]]]:
    """A page of a server with a token, and what it is told when it asks for that, last first."""
    server, page, given = Server(tiny_bundle, "secret"), browser.new_page(), ["secret"]
    page.on("dialog", lambda dialog: dialog.accept(given.pop()) if given else dialog.dismiss())
    page.route("**/v1/model", lambda route: route.abort())  # it asks at the start
    page.goto(server.address)
    yield page, given
    page.close()
    server.stop()


def test_a_token_is_asked_for_until_it_is_right(
    guarded: tuple[Any, list[str]], tiny_photo: Path
) -> None:
    page, given = guarded
    given += ["wrong again", "wrong"]
    choose(page, tiny_photo)
    assert given == []
    page.evaluate("sessionStorage.setItem('structsam-token', 'of another server')")
    given += ["secret", "wrong"]
    click(page, 50, 35)
    said(page, "Score")
    assert given == []


def test_a_token_given_meanwhile_is_not_asked_for_again(
    guarded: tuple[Any, list[str]], tiny_photo: Path
) -> None:
    page, given = guarded
    held: list[Any] = []
    page.route("**/embedding", lambda route: held.append(route))
    find = "import('/page/server.js').then((server) => server.fetchEmbedding('0'.repeat(32)))"
    page.evaluate(f"() => {{ window.found = {find}.catch((error) => error.status); }}")
    choose(page, tiny_photo)  # here the token is asked for
    while not held:
        page.wait_for_timeout(20)
    page.unroute("**/embedding")
    held[0].continue_()
    assert page.evaluate("window.found") == 404 and given == []


def test_the_link_to_the_routes_leaves_the_page_where_it_is(browser: Any, server: Server) -> None:
    with page_at(browser, server) as page:
        link = page.get_by_role("link", name="HTTP")
        assert (link.get_attribute("target"), link.get_attribute("rel")) == ("_blank", "noopener")


def test_the_server_goes_and_comes_back(
    browser: Any, tiny_bundle: Bundle, tiny_photo: Path
) -> None:
    server = Server(tiny_bundle)
    try:
        with page_at(browser, server) as page:
            choose(page, tiny_photo)
            server.stop()
            click(page, 50, 35)
            said(page, "The server does not answer")
            server.start()  # it has forgotten the photo
            click(page, 52, 36)
            said(page, "Score")
    finally:
        server.stop()


def test_it_fits_a_phone(browser: Any, server: Server, tiny_photo: Path) -> None:
    with page_at(browser, server, width=360) as page:
        choose(page, tiny_photo)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        box = page.locator("#masks").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360 and box["width"] > 200
