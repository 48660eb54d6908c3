"""Bundles of earlier versions: those whose merging this version lacks still run as ONNX."""

from __future__ import annotations

from pathlib import Path

import pytest

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.parity.check import check
from structsam_export.predict.image_file import read_image


def with_reuse(bundle: Bundle, blocks: int) -> Bundle:
    """The bundle as a version wrote it that could share a plan between blocks."""
    bundle.manifest["merging"]["reuse"] = blocks
    bundle.save_manifest()
    return open_bundle(bundle.path)


def test_a_plan_for_every_block_is_what_there_is(own_bundle: Bundle, tiny_model: str) -> None:
    report = check(with_reuse(own_bundle, 1), "torch")
    assert report and [row.status for row in report.rows] == ["passed"]


def test_shared_plans_run_as_onnx_but_not_in_pytorch(
    own_bundle: Bundle, tiny_model: str, tiny_photo: Path
) -> None:
    bundle = with_reuse(own_bundle, 2)
    with bundle.predictor(backend="onnxruntime") as predictor:
        predictor.set_image(read_image(tiny_photo))
        assert predictor.predict(box=[30, 20, 70, 50])[0].any()
    assert check(bundle, "onnxruntime")
    (row,) = check(bundle, "torch").rows
    assert row.status == "not run" and "reuse 2" in row.reason
    with pytest.raises(UserError, match=r"reuse 2.*no longer has\. Use its ONNX or engine"):
        bundle.predictor(backend="torch").set_image(read_image(tiny_photo))
