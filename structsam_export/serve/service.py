"""What the server does, without HTTP: photos in, encoded once; prompts in, masks out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.predict.embedding_file import photo_id
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.image_cache import ImageCache
from structsam_export.predict.image_file import read_image_bytes
from structsam_export.predict.predictor import Predictor
from structsam_export.predict.prompts import AskedPrompts, read_prompts
from structsam_export.serve.found import AddedImage, FoundEverything, FoundMasks
from structsam_export.serve.measures import Measures
from structsam_export.serve.refusals import Refusal, Stopping, UnknownImage
from structsam_export.serve.saved_embeddings import SavedEmbeddings
from structsam_export.serve.settings import ServeSettings
from structsam_export.serve.shared_jobs import SharedJobs
from structsam_export.serve.worker import Worker

_log = logging.getLogger("structsam_export")

State = Literal["starting", "ok", "stopping"]


class Service:
    """Encodes photos once and answers prompts. Safe to use from several threads.

    Looking up and asking is quick; what takes long comes as a future, so that nobody's thread has
    to wait for it.

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
        self._decoding = Worker("prompts", self._decode, settings.prompts_waiting, most)
        self._finding = Worker("photos", self._find, max(1, settings.queue // 4))
        self._adding = SharedJobs[AddedImage]()
        self._warm, self._stopping = False, False
        workers = {"encoder": self._encoding, "decoder": self._decoding}
        self.measures.watch(self.cache, workers | {"everything": self._finding})

    @property
    def state(self) -> State:
        """Whether it has run both networks once, and whether it ends."""
        return "stopping" if self._stopping else "ok" if self._warm else "starting"

    def warm(self) -> None:
        """Open both networks and run them once: the first request then waits for nothing.

        It waits its turn among requests that came first.
        """
        side = self.bundle.preprocessing.image_size
        grey = np.full((side, side, 3), 127, np.uint8)
        kept: list[EncodedImage] = []
        self._encoding.submit(None, ("", lambda: grey, kept.append)).result()
        middle = {
            "point_coords": np.full((1, 1, 2), side / 2), "point_labels": np.ones((1, 1)),
        }  # fmt: skip
        self._decoding.submit(None, (kept[0], middle, True)).result()
        self._warm = True

    def require_room(self) -> None:
        """Raise `Refusal` where no photo may wait: ask before one is read."""
        self._encoding.require_room()

    def refuse_waiting(self) -> None:
        """Take nothing more, and refuse what waits; what runs may end, `everything` breaks off."""
        self._stopping = True
        for worker in (self._encoding, self._decoding, self._finding):
            worker.refuse_waiting()

    def stop(self, seconds: float | None = None) -> None:
        """Refuse what waits, wait for what runs, and close the networks.

        Args:
            seconds: to wait; networks that run even then stay open. None waits as long as it takes.
        """
        self.refuse_waiting()
        end = None if seconds is None else time.monotonic() + seconds
        for worker in (self._encoding, self._decoding, self._finding):
            if not worker.stop(None if end is None else max(0.0, end - time.monotonic())):
                _log.warning(
                    "the call for %s did not end in %g s, and is left", worker.name, seconds
                )
                return
        for predictor in (self._encoder, self._decoder, self._finder):
            predictor.close()
        self.cache.clear()

    def describe(self) -> dict[str, str]:
        """Return which bundle and runtime serve, ready for JSON."""
        return {"bundle": self.bundle.name, "backend": self._encoder.backend.name}

    def add(self, data: bytes) -> Future[AddedImage]:
        """Encode a photo, unless it is kept already; two requests for one photo encode it once.

        Returns:
            What raises `UserError` where the data are no photo, or too large a one.

        Raises:
            Refusal: too many are waiting.
        """
        image_id = photo_id(data)
        most = self.settings.max_pixels
        known, how = self.cache.get(image_id), "hit"
        if known is None:
            known, how = self._take_saved(image_id), "saved"
        self.measures.lookups.labels("miss" if known is None else how).inc()
        if known is not None:
            added: Future[AddedImage] = Future()
            added.set_result(AddedImage(image_id, known.geometry, True, 0.0))
            return added
        work = (
            image_id,
            lambda: read_image_bytes(data, "the photo", most),
            lambda image: self.cache.put(image_id, image),
        )
        return self._adding.join(image_id, lambda: self._encoding.submit(None, work))

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
    ) -> Future[FoundMasks]:
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
        return self._decoding.submit(kind, (image, several, multimask), count)

    def everything(self, image_id: str, **settings: Any) -> Future[FoundEverything]:
        """Find a mask of everything in a kept image; see `Predictor.everything`.

        Raises:
            Refusal: an unknown image, or too many wait.
        """
        chosen = EverythingSettings(**settings, output_mode="coco_rle")
        image = self.image(image_id)
        gone = threading.Event()
        found = self._finding.submit(None, (image, chosen, gone))
        found.add_done_callback(lambda _: gone.set())
        return found

    def _find(
        self, works: Sequence[tuple[EncodedImage, EverythingSettings, threading.Event]]
    ) -> list[FoundEverything]:
        ((image, settings, gone),) = works
        start = time.perf_counter()

        def go_on(done: int, total: int) -> None:
            if done < total and (gone.is_set() or self._stopping):
                raise Stopping

        self._finder.set_encoded_image(image)
        try:
            records = self._finder.everything(progress=go_on, **vars(settings))
        finally:
            self._finder.reset_image()
        spent = time.perf_counter() - start
        self.measures.everything.observe(spent)
        return [FoundEverything(records, image.geometry.original_size, spent * 1e3)]

    def _encode(
        self,
        works: Sequence[tuple[str, Callable[[], np.ndarray], Callable[[EncodedImage], None]]],
    ) -> list[AddedImage]:
        ((image_id, read, keep),) = works
        rgb = read()
        start = time.perf_counter()
        self._encoder.set_image(rgb)
        if not self.bundle.takes_box:
            self._encoder.get_features()  # refuses what is not finite
        image = self._encoder.encoded_image
        spent = time.perf_counter() - start
        self._encoder.reset_image()
        self.measures.encode.observe(spent)
        keep(image)
        return [AddedImage(image_id, image.geometry, False, spent * 1e3)]

    def _decode(
        self, works: Sequence[tuple[EncodedImage, dict[str, np.ndarray], bool]]
    ) -> list[FoundMasks]:
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
            FoundMasks(own_scores, own_low_res, image.geometry, spent * 1e3)
            for own_scores, own_low_res in zip(
                np.split(scores, ends), np.split(low_res, ends), strict=True
            )
        ]
