"""`everything`: a mask of everything in photos, as SAM's automatic mask generator."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from structsam_export.cli.arguments import (
    BackendName,
    BundlePath,
    Checkpoint,
    HqTokenOnly,
    Json,
    Threads,
    make_terminal,
)
from structsam_export.cli.option_groups import takes_groups
from structsam_export.cli.run import Photos, tell_photos, tell_times

if TYPE_CHECKING:
    from structsam_export.cli.terminal import Terminal
    from structsam_export.predict.everything.settings import EverythingSettings
    from structsam_export.predict.prediction import Prediction

_NMS = "Box IoU above which the poorer of two masks goes"


@dataclass(frozen=True)
class EverythingOptions:
    """The arguments of `SamAutomaticMaskGenerator`, with its defaults."""

    points_per_side: Annotated[int, typer.Option(help="Points along each side.")] = 32
    points_per_batch: Annotated[int, typer.Option(help="Points that are decoded at once.")] = 64
    pred_iou_thresh: Annotated[
        float, typer.Option(help="Drop masks whose predicted IoU is not above this.")
    ] = 0.88
    stability_score_thresh: Annotated[
        float, typer.Option(help="Drop masks that change more when they are cut elsewhere.")
    ] = 0.95
    stability_score_offset: Annotated[
        float, typer.Option(help="How much higher and lower: of the logits.")
    ] = 1.0
    box_nms_thresh: Annotated[float, typer.Option(help=f"{_NMS}, in one crop.")] = 0.7
    crop_n_layers: Annotated[
        int, typer.Option(help="Layers of crops, each encoded anew, for small things.")
    ] = 0
    crop_nms_thresh: Annotated[float, typer.Option(help=f"{_NMS}, between crops.")] = 0.7
    crop_overlap_ratio: Annotated[
        float, typer.Option(help="Of the short side: how much crops overlap.", show_default="0.34")
    ] = 512 / 1500
    crop_n_points_downscale_factor: Annotated[
        int, typer.Option(help="Points a side shrink by this with every layer.")
    ] = 1
    min_mask_region_area: Annotated[
        int, typer.Option(help="Mend islands and holes of fewer pixels.")
    ] = 0

    def settings(self, output_mode: str) -> EverythingSettings:
        """Return them as the generator takes them."""
        from structsam_export.predict.everything.settings import EverythingSettings

        return EverythingSettings(**vars(self), output_mode=output_mode)  # type: ignore[arg-type]


@takes_groups
def mask_everything(
    *,
    bundle: BundlePath,
    images: Photos,
    options: EverythingOptions,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder; IMAGE-everything by default. Of several photos: of their folders."
        ),
    ] = None,
    output_mode: Annotated[
        str, typer.Option(help="coco_rle, uncompressed_rle, or binary_mask: a PNG a mask.")
    ] = "coco_rle",
    overlay: Annotated[bool, typer.Option(help="Draw every mask on the photo.")] = True,
    backend: BackendName = "auto",
    hq_token_only: HqTokenOnly = False,
    checkpoint: Checkpoint = None,
    threads: Threads = None,
    json_only: Json = False,
) -> None:
    """A mask of everything in photos, without prompts: records as JSON, and a picture."""
    began = time.perf_counter()
    terminal = make_terminal()
    settings = options.settings(output_mode)
    from structsam_export.bundle.folder import open_bundle
    from structsam_export.predict.everything.files import everything_of_images

    opened = open_bundle(bundle)
    results = everything_of_images(
        opened,
        images,
        settings,
        out,
        backend=backend,
        overlay=overlay,
        progress=lambda photo, done, total: terminal.counted(f"points of {photo}", done, total),
        threads=threads,
        checkpoint=checkpoint,
        hq_token_only=hq_token_only,
    )
    tell_photos(terminal, opened.name, images, results, _show, json_only, began)


def _show(terminal: Terminal, result: Prediction) -> None:
    terminal.print(f"{result.report}  {len(result.details['masks'])} masks")
    tell_times(terminal, result)
