"""From a Hugging Face folder to a bundle with a verdict: the main job through another door."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from structsam.models import MODELS, ModelSpec
from structsam_export import export
from structsam_export.predict.image_file import read_image
from tests.structsam.models.test_hugging_face import hugging_face_model

transformers = pytest.importorskip("transformers", reason="needs the extra `hf`")


FULL_SIZE = "STRUCTSAM_FULL_SIZE"


@pytest.mark.parametrize(
    "size",
    [
        "tiny",
        pytest.param(
            "vit_b",
            marks=pytest.mark.skipif(
                not os.environ.get(FULL_SIZE), reason=f"takes minutes: set {FULL_SIZE}=1"
            ),
        ),
    ],
)
def test_a_folder_becomes_a_bundle_that_passes_parity(
    size: str,
    tiny_spec: ModelSpec,
    tiny_photo: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    monkeypatch.setitem(MODELS, "tiny", tiny_spec)
    spec = MODELS[size]
    model = hugging_face_model(spec)
    folder = tmp_path / "sam-seeded"
    model.save_pretrained(folder)
    side = spec.image_size
    own = transformers.SamImageProcessor(
        size={"longest_edge": side},
        pad_size={"height": side, "width": side},
        image_mean=[0.3, 0.4, 0.5],
    )
    transformers.SamProcessor(own).save_pretrained(folder)
    said: list[str] = []
    bundle = export(
        "auto",
        rate=0.5,
        checkpoint=folder,
        precision="fp32",
        backend="onnxruntime",
        images=[tiny_photo],
        out=tmp_path,
        say=said.append,
    )
    assert bundle.parity, bundle.parity.verdict()
    (told,) = (line for line in said if line.startswith(f"sam-seeded holds {size}, Hugging"))
    assert told.endswith("normalised by mean 76.5/102/127.5, std 58.395/57.12/57.375")
    assert bundle.model.name == size and bundle.model.title == "sam-seeded"
    assert bundle.model.spec.preprocessing.mean == (76.5, 102.0, 127.5)
    # merged in transformers itself, the same photo has the same embedding: its own normalisation
    import structsam

    with bundle.predictor("onnxruntime", threads=1) as predictor:
        predictor.set_image(read_image(tiny_photo))
        found = predictor.get_image_embedding()
    from structsam_export.predict.preprocessing import preprocess

    pixels, _ = preprocess(read_image(tiny_photo), bundle.preprocessing)
    structsam.apply_merging(model, rate=0.5)
    expected = model.get_image_embeddings(torch.from_numpy(pixels)).numpy()
    assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()
    theirs = own(read_image(tiny_photo), return_tensors="np")["pixel_values"]
    # two libraries resize: grey levels differ by less than 2 of 255, the normalisation by nothing
    assert np.abs(pixels - theirs).max() <= 2 / 57 and np.abs(pixels - theirs).mean() <= 0.5 / 57
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX is not installed here")
    from structsam_export.engines.build import build

    assert len(build(bundle, "tensorrt-rtx", targets=["sm89"])) == 2
