"""Latency of points on this machine: exported on the fly, in turns with the stock encoder.

Times drift with what else a machine does. What is kept of a point is the median of its ratio to
the stock encoder in the same turn, and the times of the stock encoder of all turns.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam.errors import UserError
from structsam_export.bench.encoders import prepare
from structsam_export.bench.report import BenchRow
from structsam_export.bench.turns import Procedure, measure
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.manifest import ENCODER_ONNX, SCHEMA_VERSION, Part
from structsam_export.runtimes import RunOptions
from structsam_export.tune.mask_loss import MaskJudge
from structsam_export.tune.points import Point

if TYPE_CHECKING:
    from structsam.config import MergeConfig

_RUNS, _WARM_UP = 5, 1
Say = Callable[[str], None]


@dataclass(frozen=True)
class Times:
    """What was measured of one group.

    Args:
        ratio: of every point that ran: its time over the stock encoder's, median over turns.
        stock_ms: the stock encoder's times.
        refused: of every point that did not run, the reason.
    """

    ratio: dict[Point, float]
    stock_ms: list[float]
    refused: dict[Point, str]


class Encoders:
    """Bundles of encoders alone, with the model's own weights, made when they are needed.

    Args:
        folder: for them; emptied first.
        calibration: photos that INT8 measures activations on.
    """

    def __init__(
        self,
        judge: MaskJudge,
        base: MergeConfig,
        backend: str,
        folder: Path,
        calibration: Sequence[Path],
        say: Say,
    ) -> None:
        self._judge, self._base, self._backend = judge, base, backend
        self._folder, self._calibration, self._say = folder, calibration, say
        self.clear()

    def bundle(self, point: Point) -> Bundle:
        """Return the bundle of a point, exporting it where it is not there."""
        folder = self._folder / point.key
        if not folder.exists():
            self._say(f"exporting {point.key}")
            with atomic.staged_folder(folder) as staged:
                self._write(point, staged)
            prepare(open_bundle(folder, verify=False), self._backend, self._say)
        return open_bundle(folder, verify=False)

    def forget(self, points: Sequence[Point]) -> None:
        """Delete the bundles of these points."""
        for point in points:
            shutil.rmtree(self._folder / point.key, ignore_errors=True)

    def clear(self) -> None:
        """Delete all of them."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _write(self, point: Point, folder: Path) -> None:
        if point.stock:
            part = self._write_stock(folder)
        elif "int8" in point.levers:
            part = self._write_int8(point, folder)
        else:
            part = self._write_floats(point, folder)
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": point.key,
            "model": {"name": point.key, "weights": "checkpoint"},
            "precision": {"name": point.precision},
            "engines": [],
            "encoder": part.to_dict(),
        }
        bundle = Bundle(folder, manifest)
        for file in sorted(folder.iterdir()):
            bundle.record_file(file.name)
        bundle.save_manifest()

    def _write_stock(self, folder: Path) -> Part:
        from structsam.apply import remove_merging
        from structsam_export.graph.exporter import export_stock_encoder

        return export_stock_encoder(
            remove_merging(self._judge.model(None).sam), folder, ENCODER_ONNX
        )

    def _write_floats(self, point: Point, folder: Path) -> Part:
        from structsam_export.graph.exporter import export_encoder
        from structsam_export.graph.modules import EncoderModule

        module = EncoderModule(self._merged(point), point.precision, plan_outputs=False)
        return export_encoder(module, folder, ENCODER_ONNX)

    def _write_int8(self, point: Point, folder: Path) -> Part:
        from structsam_export.graph.activation_ranges import measure_ranges
        from structsam_export.graph.quantize import quantize_linear_layers
        from structsam_export.graph.quantized_encoder import export_quantized_encoder

        photo = self._judge.model(point.image_size).photo
        feeds = ({"image": photo(path).pixels} for path in self._calibration)
        if point.unquantized.precision == "fp32":  # one graph is traced for both
            floats = self.bundle(point.unquantized)
            source = floats.onnx_path("encoder")
            quantize_linear_layers(source, folder / ENCODER_ONNX, measure_ranges(source, feeds))
            return floats.part("encoder")
        return export_quantized_encoder(
            self._merged(point), point.precision, feeds, folder, ENCODER_ONNX, plan_outputs=False
        )

    def _merged(self, point: Point) -> Any:
        from structsam_export.graph.attention_choice import attention_for

        config, _ = attention_for(point.config(self._base), self._backend, point.precision)
        return self._judge.model(point.image_size).merged(config)


def times_in_turns(
    encoders: Encoders, points: Sequence[Point], backend: str, options: RunOptions, say: Say
) -> Times:
    """Measure points beside the stock encoder, each in a process of its own, taking turns.

    Raises:
        UserError: the stock encoder does not run.
    """
    together = [Point(stock=True), *points]
    group = [(_row(point, backend), encoders.bundle(point)) for point in together]
    measure(group, Procedure(_RUNS, _WARM_UP, options=options), say)
    (stock, *rows) = (row for row, _ in group)
    if stock.status != "measured":
        raise UserError(f"the stock encoder does not run on {backend}: {stock.reason}")
    found = Times({}, stock.samples_ms, {})
    for point, row in zip(points, rows, strict=True):
        if row.status == "measured":
            ratios = np.array(row.samples_ms) / np.array(stock.samples_ms)
            found.ratio[point] = float(np.median(ratios))
        else:
            found.refused[point] = row.reason
    return found


def _row(point: Point, backend: str) -> BenchRow:
    role = "stock" if point.stock else "bundle"
    return BenchRow(
        point.key, role, point.key, point.precision, backend, "encoder", 1, False, "not checked"
    )
