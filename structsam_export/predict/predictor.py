"""`SamPredictor` for a bundle: the same names, shapes and conventions, without torch.

Three things differ. Many prompts go in one call: boxes [P, 4], or points [P, K, 2]. A mistake in
the input is a `UserError`, not an assertion or a silently wrong mask. And with a prompt-aware
bundle the embedding belongs to one box, so the image is encoded again whenever the box changes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bundle.features import Features
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import IMAGE_EMBEDDINGS, PROMPT_BOX, PartName
from structsam_export.predict.decoder_feeds import decoder_feeds, in_chunks
from structsam_export.predict.encoded_image import EncodedImage
from structsam_export.predict.everything.generator import Progress, masks_of_everything
from structsam_export.predict.everything.settings import EverythingSettings
from structsam_export.predict.hq_masks import choose_masks
from structsam_export.predict.networks import Networks
from structsam_export.predict.preprocessing import (
    ImageGeometry,
    check_image,
    image_geometry,
    preprocess,
)
from structsam_export.predict.prompts import AskedPrompts, check_numbers, read_prompts
from structsam_export.predict.upscaling import binary_masks, upscale_masks
from structsam_export.runtimes import Backend, RunOptions, find_backend, refuse_unread
from structsam_export.runtimes.device_tensor import DeviceTensor, HostTensor


class Predictor:
    """Predicts masks with a bundle. Networks are opened on first use and kept until `close`.

    Args:
        backend: a name of `BACKENDS`, `auto` for the first one that runs here, or a backend.
        threads: CPU threads; None leaves the choice to the backend.
        checkpoint: weights, for the torch backends; others refuse it.
        target: which engine of the bundle to use; None takes the one for this GPU.
        hq_token_only: of SAM-HQ: the mask of the HQ token alone, not added to SAM's.

    Attributes:
        timings: milliseconds of the latest `preprocess`, `encode`, `decode` and `upscale`. Opening
            a network is in none of them.

    Raises:
        UserError: unknown backend, or none runs here; `hq_token_only` for another model, or a
            checkpoint that the backend does not read.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str | Backend = "auto",
        *,
        threads: int | None = None,
        checkpoint: str | Path | None = None,
        target: str | None = None,
        hq_token_only: bool = False,
    ) -> None:
        self.bundle = bundle
        self._hq_token_only = hq_token_only
        _require_hq(bundle, hq_token_only)
        self.backend = find_backend(backend, bundle) if isinstance(backend, str) else backend
        refuse_unread(checkpoint, self.backend)
        self.timings: dict[str, float] = {}
        options = RunOptions(threads, Path(checkpoint) if checkpoint else None, target)
        self._networks = Networks(bundle, self.backend, options)
        self._decoder = bundle.part("decoder")
        self._feature_shapes = {spec.name: tuple(map(int, spec.shape)) for spec in bundle.features}
        self._image: EncodedImage | None = None

    @property
    def geometry(self) -> ImageGeometry | None:
        """Size and place of the current image, or None."""
        return None if self._image is None else self._image.geometry

    @property
    def prompt_box(self) -> tuple[float, ...] | None:
        """The box (x0, y0, x1, y1), in pixels of the image, that the current embedding belongs to.

        Of a prompt-aware bundle; None before the first one, and for the whole image, which stands
        in where a prompt has no box.
        """
        return None if self._image is None else self._image.prompt_box

    def set_image(self, image: np.ndarray, image_format: str = "RGB") -> None:
        """Compute the embedding of a uint8 image [H, W, 3] in `RGB` or `BGR` order.

        A prompt-aware bundle waits for the first prompt with that.

        The embedding stays on the device on which the decoder reads it.

        Raises:
            UserError: another type or shape.
        """
        check_image(image)
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"image_format is {image_format!r}. Choose one of: RGB, BGR")
        with self._timed("preprocess"):
            rgb = image if image_format == "RGB" else image[..., ::-1]
            network_input, geometry = preprocess(rgb, self.bundle.preprocessing)
        self.set_preprocessed(network_input, geometry)

    def set_preprocessed(self, network_input: np.ndarray, geometry: ImageGeometry) -> None:
        """Do what `set_image` does with what `preprocess` returned."""
        self.reset_image()
        if self.bundle.takes_box:
            self._image = EncodedImage(geometry, None, network_input)
        else:
            self._image = EncodedImage(geometry, self._encode({"image": network_input}))

    def set_embedding(self, embedding: np.ndarray, original_size: tuple[int, int]) -> None:
        """Do what `set_features` does, for a bundle whose decoder takes the embedding alone."""
        self.set_features({IMAGE_EMBEDDINGS: embedding}, original_size)

    def set_features(
        self, features: Mapping[str, np.ndarray], original_size: tuple[int, int]
    ) -> None:
        """Take the feature maps of an image instead of computing them.

        Args:
            features: what `get_features` returned with this bundle.
            original_size: the image's (H, W) in pixels.

        Raises:
            UserError: one is missing or has another shape, or this bundle's belong to one box.
        """
        if self.bundle.takes_box:
            raise UserError(
                "an embedding of a prompt-aware bundle belongs to one box. Use a bundle that was "
                "exported without a prompt"
            )
        self._require_features(features)
        values = {
            name: check_numbers(f"feature map {name}", features[name], shape)
            for name, shape in self._feature_shapes.items()
        }
        geometry = image_geometry(*original_size, self.bundle.preprocessing)
        tensors = {n: HostTensor(array.astype(np.float32)) for n, array in values.items()}
        self._image = EncodedImage(geometry, tensors)

    def _require_features(self, names: Collection[str]) -> None:
        """Refuse feature maps that are not those which the decoder takes."""
        if set(names) != set(self._feature_shapes):
            raise UserError(
                f"the feature maps are {', '.join(sorted(names))}, and the decoder of "
                f"{self.bundle.name} takes {', '.join(sorted(self._feature_shapes))}. Encode the "
                "image with this bundle, and pass what `get_features` returns to `set_features`"
            )

    def _encode(self, feeds: dict[str, np.ndarray]) -> Mapping[str, DeviceTensor]:
        encoder = self._networks.opened("encoder")
        with self._timed("encode"):
            return encoder.run_on_device(feeds, list(self._feature_shapes))

    def _encode_for(self, box: np.ndarray | None) -> None:
        """Make the embedding belong to this box [4] of the image, if it does not yet."""
        wanted = None if box is None else tuple(float(value) for value in box)
        image = self._current()
        if image.network_input is None or (
            image.features is not None and wanted == image.prompt_box
        ):
            return
        height, width = image.geometry.original_size
        corners = np.reshape([0, 0, width, height] if box is None else box, (2, 2))
        prompt_box = image.geometry.to_input(corners).reshape(1, 4)
        features = self._encode({"image": image.network_input, PROMPT_BOX: prompt_box})
        self._image = replace(image, features=features, prompt_box=wanted)

    @property
    def encoded_image(self) -> EncodedImage:
        """The current image, to be taken up again by `set_encoded_image`, here or elsewhere.

        It holds after other images are set, and after the networks are closed: what a runtime would
        overwrite is copied, on its device where there is room.

        Raises:
            UserError: no image is set.
        """
        image = self._current()
        maps = image.features
        kept = None if maps is None else {n: map_.kept() for n, map_ in maps.items()}
        return replace(image, features=kept)

    def set_encoded_image(self, image: EncodedImage) -> None:
        """Take up what `encoded_image` of a predictor with the same bundle returned.

        Raises:
            UserError: its feature maps are others than this bundle's, or of another shape.
        """
        if image.features is not None:
            self._require_features(image.features)
            for name, shape in self._feature_shapes.items():
                if image.features[name].shape != shape:
                    raise UserError(
                        f"{name} has shape {image.features[name].shape}, and {self.bundle.name} "
                        f"takes {shape}. Encode the image with this bundle"
                    )
        self._image = image

    def reset_image(self) -> None:
        """Forget the current image."""
        self._image = None

    @property
    def is_image_set(self) -> bool:
        """Whether `predict` may be called."""
        return self._image is not None

    def get_image_embedding(self) -> np.ndarray:
        """Return the embedding of the current image, float32 [1, 256, 64, 64] for SAM at 1024.

        That of a prompt-aware bundle belongs to `prompt_box`.

        Raises:
            UserError: no image is set, or a value is not finite.
        """
        return self.get_features()[IMAGE_EMBEDDINGS]

    def get_features(self) -> Features:
        """Return all that the decoder takes of the current image: feature maps by name, float32.

        Raises:
            UserError: as `get_image_embedding`.
        """
        features = {name: map_.numpy() for name, map_ in self._current_features().items()}
        if not all(np.isfinite(array).all() for array in features.values()):
            raise UserError(
                f"the encoder of {self.bundle.path} returned values that are not finite with "
                f"{self.backend.name}. Export the bundle with `precision='fp32'`"
            )
        return features

    def _current_features(self) -> Mapping[str, DeviceTensor]:
        if self._current().features is None:
            self._encode_for(None)
        features = self._current().features
        assert features is not None
        return features

    def predict(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
        hq_token_only: bool | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict masks of one prompt, or of P prompts in one call, for the current image.

        Args:
            point_coords: [N, 2], or [P, K, 2], (x, y) in pixels of the image.
            point_labels: [N] or [P, K], 1 for foreground and 0 for background.
            box: [4], or [P, 4], (x0, y0, x1, y1) in pixels of the image.
            mask_input: [1, 256, 256], or [P, 1, 256, 256]: logits of an earlier prediction. At
                another input size 256 is a quarter of it, unless the embedding is upsampled.
            multimask_output: three masks for an ambiguous prompt instead of one. SAM-HQ, as its
                own predictor, gives one in both cases: on the best of the three, or on the single.
            return_logits: float32 logits instead of bool masks; a mask is where they exceed 0.
            hq_token_only: other than the predictor's own.

        Returns:
            masks [C, H, W], predicted IoU [C] and low-resolution logits [C, 256, 256] with C = 3 or
            1; for P prompts each has a leading P, also when P is 1.

        Raises:
            UserError: no image is set, a prompt is malformed or outside the image, or a network
                returned what is not finite.
        """
        scores, low_res = self.predict_low_res(
            point_coords, point_labels, box, mask_input, multimask_output, hq_token_only
        )
        return self.upscale(low_res, return_logits), scores, low_res

    def predict_low_res(
        self,
        point_coords: np.ndarray | None = None,
        point_labels: np.ndarray | None = None,
        box: np.ndarray | None = None,
        mask_input: np.ndarray | None = None,
        multimask_output: bool = True,
        hq_token_only: bool | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Do what `predict` does up to (scores, low_res): to pick masks before upscaling them."""
        only = self._hq_token_only if hq_token_only is None else hq_token_only
        _require_hq(self.bundle, only)
        geometry = self._current().geometry
        prompts = read_prompts(point_coords, point_labels, box, geometry)
        feeds = decoder_feeds(self._decoder, prompts, geometry, mask_input)
        pieces = []
        if self.bundle.takes_box and box is not None:
            spent = {"encode": 0.0, "decode": 0.0}
            for index, own_box in enumerate(np.reshape(box, (-1, 4))):
                self.timings["encode"] = 0.0  # stays so when the box is the one before
                self._encode_for(own_box)
                pieces += self._decode({n: a[index : index + 1] for n, a in feeds.items()})
                spent = {step: ms + self.timings[step] for step, ms in spent.items()}
            self.timings |= spent
        else:
            self._encode_for(None)
            pieces = self._decode(feeds)
        chosen = [choose_masks(piece, multimask_output, only) for piece in pieces]
        scores, low_res = (np.concatenate(parts) for parts in zip(*chosen, strict=True))
        if not (np.isfinite(scores).all() and np.isfinite(low_res).all()):
            self.get_features()  # raises when it came from the encoder
            raise UserError(
                f"{self.backend.name} gave NaN or infinity for the masks. Run `structsam-export "
                "check` on the bundle, or export it again with `precision='fp32'`"
            )
        return (scores, low_res) if prompts.many else (scores[0], low_res[0])

    def predict_asked(self, asked: AskedPrompts) -> tuple[np.ndarray, np.ndarray]:
        """Return scores [P, C] and logits [P, C, 256, 256] of P prompts, also when P is 1.

        Raises:
            UserError: as `predict`.
        """
        scores, low_res = self.predict_low_res(**asked.arrays(), multimask_output=asked.multimask)
        return scores.reshape(-1, scores.shape[-1]), low_res.reshape(-1, *low_res.shape[-3:])

    def _decode(self, feeds: dict[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Run the decoder on the current image for some prompts, in pieces that it takes."""
        decoder = self._networks.opened("decoder")
        features = self._current_features()
        with self._timed("decode"):
            count = len(feeds["has_mask_input"])
            pieces = [
                decoder.run({**features, **chunk}) for chunk in in_chunks(self._decoder, feeds)
            ]
        excess = sum(len(piece["iou_predictions"]) for piece in pieces) - count
        if excess:
            pieces[-1] = {name: array[:-excess] for name, array in pieces[-1].items()}
        return pieces

    def upscale(self, low_res: np.ndarray, return_logits: bool = False) -> np.ndarray:
        """Bring low-resolution logits [..., 256, 256] to the current image: [..., H, W]."""
        geometry = self._current().geometry
        with self._timed("upscale"):
            return (upscale_masks if return_logits else binary_masks)(low_res, geometry)

    def everything(
        self,
        image: np.ndarray | None = None,
        *,
        progress: Progress = lambda done, total: None,
        **settings: Any,
    ) -> list[dict[str, Any]]:
        """Find a mask of everything, as `SamAutomaticMaskGenerator(...).generate(image)`.

        A prompt-aware bundle encodes the whole image (or crop), because points have no box.

        Args:
            image: uint8 RGB [H, W, 3]; no image is set afterwards. None for the image that is set,
                which stays; crops need the image.
            progress: is told (done, total) points.
            settings: the fields of `EverythingSettings`, which are the generator's arguments.

        Returns:
            A record for every mask: `segmentation`, `area`, `bbox` [x, y, width, height],
            `predicted_iou`, `point_coords` [[x, y]], `stability_score` and `crop_box`. A mask
            without a pixel has stability 0, where SAM's has NaN.

        Raises:
            UserError: as `set_image` and `predict`, or settings that have no meaning.
        """
        chosen = EverythingSettings(**settings)
        if image is not None:
            check_image(image)
        try:
            return masks_of_everything(self, image, chosen, progress)
        finally:
            if image is not None:
                self.reset_image()

    def open(self, parts: Sequence[PartName] = ("encoder", "decoder")) -> None:
        """Open networks now instead of on first use."""
        for part in parts:
            self._networks.opened(part)

    def describe(self) -> dict[str, Any]:
        """Return the backend's name and what each opened network runs on, ready for JSON."""
        return {"backend": self.backend.name, **self._networks.describe()}

    def close(self) -> None:
        """Free both networks and the image. Safe to call twice; the next use opens them again."""
        self.reset_image()
        self._networks.close()

    def __enter__(self) -> Predictor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _current(self) -> EncodedImage:
        if self._image is None:
            raise UserError("no image is set. Call predictor.set_image(image) first")
        return self._image

    @contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[step] = (time.perf_counter() - start) * 1e3


def _require_hq(bundle: Bundle, hq_token_only: bool) -> None:
    if hq_token_only and not bundle.is_hq:
        raise UserError(
            f"{bundle.name} is no SAM-HQ, and has no HQ token. Leave out `hq_token_only=True`"
        )
