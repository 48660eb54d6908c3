"""Encoders of several input sizes are rows of one table, beside stock SAM at its own size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from structsam.models import ModelSpec
from structsam_export.bench import encoders
from structsam_export.bench.benchmark import make_baselines
from structsam_export.bench.encoders import make_merged
from structsam_export.bench.fidelity import _find
from structsam_export.bundle.weights_source import ModelRecord
from structsam_export.cli.bench import Encoders


class Terminal:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.say = self.warn = self.said.append


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, str, Path | None]]:
    """What would be exported: model and size, rate, folder, decoder to copy."""
    calls: list[tuple[str, float, str, Path | None]] = []

    def merged(
        spec: ModelSpec, config: Any, precision: str, batch: int, folder: Path,
        decoder: Path | None, say: Any, *more: Any,
    ) -> Any:  # fmt: skip
        calls.append((spec.label, config.rate, folder.name, decoder))
        return bundle_of(spec, folder)

    monkeypatch.setattr(encoders, "_merged", merged)
    return calls


def bundle_of(spec: ModelSpec, folder: Path) -> Any:
    size = spec.image_size if spec.trained_image_size else None
    return SimpleNamespace(
        model=ModelRecord(spec.name, "random", 0, None, size, spec.embedding),
        onnx_path=lambda part: folder / f"{part}.onnx",
        parts=("encoder", "decoder"),
        part=lambda name: SimpleNamespace(inputs=[SimpleNamespace(shape=(1, 3, 8, 8))]),
        manifest={"merging": {"attention": "folded"}},
        precision="fp32",
    )


def test_every_size_and_rate_is_a_row_and_a_decoder_is_shared_within_a_size(
    made: list[Any], tmp_path: Path
) -> None:
    asked = Encoders(image_size="1024,768", rates="0,0.5,0.7", precision="fp32")
    bundles = asked.make("vit_b", "onnxruntime", tmp_path, Terminal())  # type: ignore[arg-type]
    assert [call[:3] for call in made] == [
        ("vit_b", 0.5, "vit_b-structsam-r0.50-fp32"),
        ("vit_b", 0.7, "vit_b-structsam-r0.70-fp32"),
        ("vit_b-768", 0.0, "vit_b-768-structsam-r0.00-fp32"),
        ("vit_b-768", 0.5, "vit_b-768-structsam-r0.50-fp32"),
        ("vit_b-768", 0.7, "vit_b-768-structsam-r0.70-fp32"),
    ]
    first, second = tmp_path / made[0][2], tmp_path / made[2][2]
    assert [call[3] for call in made] == [
        None, first / "decoder.onnx", None, second / "decoder.onnx",
        tmp_path / made[3][2] / "decoder.onnx",
    ]  # fmt: skip
    assert [bundle.model.size_text for bundle in bundles] == ["", "", *["768 pixels"] * 3]


@pytest.mark.parametrize("size, copied", ((None, True), (768, False)))
def test_baselines_are_at_the_trained_size(
    made: list[Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: int | None,
    copied: bool,
) -> None:
    """A decoder of another size does not fit them, and is not copied."""
    stock: list[Any] = []
    monkeypatch.setattr(encoders, "_reused_or_made", lambda *given: stock.append(given[2]))
    asked = Encoders(image_size=size and str(size), precision="fp32")
    bundles = asked.make("vit_t", "onnxruntime", tmp_path, Terminal())  # type: ignore[arg-type]
    monkeypatch.setattr(encoders, "sha256_of", lambda path: "a digest")
    base = make_baselines(bundles, ["onnxruntime"], tmp_path, lambda text: None)
    assert [role for role, _ in base] == ["stock", "unmerged"]
    assert made[-1][:2] == ("vit_t", 0.0) and (made[-1][3] is not None) == copied
    (wanted,) = stock
    assert "image_size" not in wanted["model"] and ("decoder_sha256" in wanted) == copied
    assert wanted["flops"]["total_gmac"] == pytest.approx(55.3, abs=0.1)


def test_a_runtime_has_the_form_that_is_fastest_unmerged_as_a_baseline(
    made: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else merging is compared with an unmerged encoder that is slower than it need be."""
    monkeypatch.setattr(encoders, "_reused_or_made", lambda folder, *given: folder.name)
    monkeypatch.setattr(encoders, "sha256_of", lambda path: "a digest")
    asked = Encoders(precision="fp32")
    bundles = asked.make("vit_t", "onnxruntime", tmp_path, Terminal())  # type: ignore[arg-type]
    for backends, names in (
        (["onnxruntime"], ["unmerged-vit_t-fp32"]),
        (["onnxruntime", "openvino"], ["unmerged-vit_t-fp32", "unmerged-vit_t-fp32-dense"]),
    ):
        del made[:]
        base = make_baselines(bundles, backends, tmp_path, lambda text: None)
        assert [role for role, _ in base] == ["stock", *["unmerged"] * len(names)]
        assert [call[2] for call in made] == names


def test_the_quality_of_a_row_is_that_of_its_size() -> None:
    def run(name: str, **size: Any) -> Any:
        facts = {"complete": True, "merging": None, "precision": "fp32", "name": name, **size}
        metric = SimpleNamespace(mean=SimpleNamespace(value=0.5))
        return SimpleNamespace(facts=facts, metrics={"iou": metric}, name=name)

    small = {"image_size": 768, "embedding": "native"}
    summary: Any = SimpleNamespace(runs=[run("unmerged-768", **small), run("unmerged")])
    row: Any = SimpleNamespace(precision="fp32")
    for size, name in (({}, "unmerged"), (small, "unmerged-768")):
        found = _find(summary, row, None, size)
        assert found is not None and found.name == name
    assert _find(summary, row, None, {**small, "embedding": "upsample"}) is None


def test_make_merged_names_the_size(made: list[Any], tiny_spec: ModelSpec, tmp_path: Path) -> None:
    from structsam.config import MergeConfig
    from structsam.models.image_size import resized

    spec = resized(tiny_spec, 288, "upsample")
    list(make_merged(spec, [MergeConfig()], "fp16", 2, tmp_path, lambda text: None))
    assert made[0][2] == "tiny-288up-structsam-r0.50-batch2"
