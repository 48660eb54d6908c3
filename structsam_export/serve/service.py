"""What the server does, without HTTP: photos in, encoded once; prompts in, masks out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import photo_id
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.image_cache import ImageCache
from structsam_export.predict.image_file import read_image_bytes
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.preprocessing import ImageGeometry
from structsam_export.predict.prompts import AskedPrompts, read_prompts
from structsam_export.predict.upscaling import binary_masks
from structsam_export.serve.measures import Measures
from structsam_export.serve.refusals import Refusal, UnknownImage
from structsam_export.serve.saved_embeddings import SavedEmbeddings
from structsam_export.serve.settings import ServeSettings
from structsam_export.serve.worker import Worker

State = Literal["starting", "ok", "stopping"]


@dataclass(frozen=True)
class AddedImage:
    """A photo that is encoded now.

    Args:
        geometry: its size, and its place in the encoder's input.
        cached: whether it had been encoded before, here or by `segment`.
        encode_ms: of preprocessing and encoder; 0 where it was cached.
    """

    image_id: str
    geometry: ImageGeometry
    cached: bool
    encode_ms: float


@dataclass(frozen=True)
class FoundMasks:
    """Masks of P prompts, small: many large ones would not fit in memory at once.

    Args:
        scores: float32 [P, C].
        low_res: float32 [P, C, h, w] logits.
        geometry: of the photo.
        decode_ms: of the decoder's call, which other requests may have shared.
    """

    scores: np.ndarray
    low_res: np.ndarray
    geometry: ImageGeometry
    decode_ms: float

    def mask(self, prompt: int, place: int) -> np.ndarray:
        """Return one mask in the size of the photo, bool [H, W]."""
        return binary_masks(self.low_res[prompt, place], self.geometry)


class Service:
    """Encodes photos once and answers prompts. Safe to use from several threads.

    One thread encodes, another decodes, a third finds masks of everything, which takes long; each
    has a predictor of its own. Prompts for one image that wait together share a call of the
    decoder.

    Args:
        backend, options: as of `Predictor`.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        settings: ServeSettings | None = None,
        **options: Any,
    ) -> None:
        self.bundle = bundle
        self.settings = settings = settings or ServeSettings()
        self.measures = Measures()
        self.cache = ImageCache(
            settings.cache_bytes,
            settings.spill,
            settings.spill_bytes,
            self.measures.evicted.inc,
        )
        folder = settings.embeddings
        self._saved = None if folder is None else SavedEmbeddings(folder, bundle)
        self._encoder = Predictor(bundle, backend, **options)
        self._decoder = Predictor(bundle, self._encoder.backend, **options)
        self._finder = Predictor(bundle, self._encoder.backend, **options)
        most = bundle.part("decoder").profile["P"][2]
        self._encoding = Worker("photos", self._encode, settings.queue)
        self._decoding = Worker("prompts", self._decode, 4 * settings.queue, most)
        self._finding = Worker("photos", self._find, max(1, settings.queue // 4))
        self._in_work: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        self.state: State = "starting"
        workers = {"encoder": self._encoding, "decoder": self._decoding}
        self.measures.watch(self.cache, workers | {"everything": self._finding})

    def warm(self) -> None:
        """Open both networks and run them once: the first request then waits for nothing.

        It waits its turn among requests that came first.
        """
        side = self.bundle.preprocessing.image_size
        grey = np.full((side, side, 3), 127, np.uint8)
        image, _ = self._encoding.submit(None, (None, lambda: grey)).result()
        middle = {
            "point_coords": np.full((1, 1, 2), side / 2), "point_labels": np.ones((1, 1)),
        }  # fmt: skip
        self._decoding.submit(None, (image, middle, True)).result()
        self.state = "ok"

    def stop(self) -> None:
        """Answer what waits, and close the networks."""
        self.state = "stopping"
        for worker in (self._encoding, self._decoding, self._finding):
            worker.stop()
        for predictor in (self._encoder, self._decoder, self._finder):
            predictor.close()
        self.cache.clear()

    def describe(self) -> dict[str, Any]:
        """Return which bundle and runtime serve, ready for JSON."""
        return {"bundle": self.bundle.name, **self._encoder.describe()}

    def add(self, data: bytes) -> AddedImage:
        """Encode a photo, unless it is kept already; two requests for one photo encode it once.

        Raises:
            Refusal: no photo, too large, or too many are waiting.
        """
        image_id = photo_id(data)
        most = self.settings.max_pixels
        known, how = self.cache.get(image_id), "hit"
        if known is None:
            known, how = self._take_saved(image_id), "saved"
        self.measures.lookups.labels("miss" if known is None else how).inc()
        if known is not None:
            return AddedImage(image_id, known.geometry, True, 0.0)
        with self._lock:
            future = self._in_work.get(image_id)
            if future is None:
                future = self._encoding.submit(
                    None, (image_id, lambda: read_image_bytes(data, "the photo", most))
                )
                self._in_work[image_id] = future
                future.add_done_callback(lambda _: self._in_work.pop(image_id, None))
        image, spent = future.result()
        return AddedImage(image_id, image.geometry, False, spent)

    def image(self, image_id: str) -> EncodedImage:
        """Return a kept image. Raises `UnknownImage`."""
        image = self.cache.get(image_id) or self._take_saved(image_id)
        if image is None:
            raise UnknownImage(image_id)
        return image

    def _take_saved(self, image_id: str) -> EncodedImage | None:
        image = None if self._saved is None else self._saved.find(image_id)
        if image is not None:
            self.cache.put(image_id, image)
        return image

    def remove(self, image_id: str) -> None:
        """Forget an image; a saved embedding stays. Raises `UnknownImage`."""
        saved = self._saved is not None and image_id in self._saved
        if not self.cache.remove(image_id) and not saved:
            raise UnknownImage(image_id)

    def masks(
        self,
        image_id: str,
        prompts: AskedPrompts,
        multimask: bool,
        mask_input: np.ndarray | None = None,
    ) -> FoundMasks:
        """Decode prompts for a kept image.

        Args:
            mask_input: float32 [1, h, w] logits of an earlier mask, for a single prompt.

        Raises:
            Refusal: an unknown image, or too many prompts are waiting.
            UserError: prompts that do not go with the image.
        """
        image = self.image(image_id)
        asked = {name: value for name, value in prompts.arrays().items() if value is not None}
        if not asked:
            raise Refusal(422, "no prompt: give `points` with `labels`, or `boxes`")
        read = read_prompts(
            asked.get("point_coords"), asked.get("point_labels"), asked.get("box"), image.geometry
        )
        several = {name: value if read.many else value[None] for name, value in asked.items()}
        count = len(read.labels)
        if mask_input is not None:
            if count > 1:
                raise Refusal(422, "an earlier mask goes with one prompt. Give one box, or points")
            several["mask_input"] = mask_input[None]
        shapes = tuple((name, value.shape[1:]) for name, value in sorted(several.items()))
        kind = (image_id, shapes, multimask)
        future = self._decoding.submit(kind, (image, several, multimask), count)
        scores, low_res, spent = future.result()
        return FoundMasks(scores, low_res, image.geometry, spent)

    def everything(self, image_id: str, **settings: Any) -> tuple[list[dict[str, Any]], float]:
        """Find a mask of everything in a kept image; see `Predictor.everything`.

        Returns:
            The records with COCO's run lengths, and the milliseconds that it took.

        Raises:
            Refusal: an unknown image, or too many wait.
        """
        chosen = EverythingSettings(**settings, output_mode="coco_rle")
        image = self.image(image_id)
        found: tuple[list[dict[str, Any]], float] = self._finding.submit(
            None, (image, chosen)
        ).result()
        return found

    def _find(
        self, works: Sequence[tuple[EncodedImage, EverythingSettings]]
    ) -> list[tuple[list[dict[str, Any]], float]]:
        ((image, settings),) = works
        start = time.perf_counter()
        self._finder.set_encoded_image(image)
        try:
            records = self._finder.everything(**vars(settings))
        finally:
            self._finder.reset_image()
        spent = time.perf_counter() - start
        self.measures.everything.observe(spent)
        return [(records, spent * 1e3)]

    def _encode(
        self, works: Sequence[tuple[str | None, Callable[[], np.ndarray]]]
    ) -> list[tuple[EncodedImage, float]]:
        ((image_id, read),) = works
        rgb = read()
        start = time.perf_counter()
        self._encoder.set_image(rgb)
        if not self.bundle.takes_box:
            self._encoder.get_features()  # refuses what is not finite
        image = self._encoder.encoded_image
        spent = time.perf_counter() - start
        self._encoder.reset_image()
        self.measures.encode.observe(spent)
        if image_id is not None:
            self.cache.put(image_id, image)
        return [(image, spent * 1e3)]

    def _decode(
        self, works: Sequence[tuple[EncodedImage, dict[str, np.ndarray], bool]]
    ) -> list[tuple[np.ndarray, np.ndarray, float]]:
        image, first, multimask = works[0]
        asked: dict[str, Any] = {
            name: np.concatenate([arrays[name] for _, arrays, _ in works]) for name in first
        }
        start = time.perf_counter()
        self._decoder.set_encoded_image(image)
        try:
            scores, low_res = self._decoder.predict_low_res(**asked, multimask_output=multimask)
        finally:
            self._decoder.reset_image()
        spent = time.perf_counter() - start
        self.measures.decode.observe(spent)
        self.measures.decoded_together.observe(len(works))
        ends = np.cumsum([len(next(iter(arrays.values()))) for _, arrays, _ in works])[:-1]
        return [
            (own_scores, own_low_res, spent * 1e3)
            for own_scores, own_low_res in zip(
                np.split(scores, ends), np.split(low_res, ends), strict=True
            )
        ]
