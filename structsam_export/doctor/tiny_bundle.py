"""A bundle of one tiny graph whose answer is known: what a runtime is tested with.

The graph does what a merged encoder does: FP16 inside FP32, a softmax, a product, and a TopK whose
indices are an int32 output. `tests/structsam_export/doctor/` writes it.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import ENCODER_ONNX, SCHEMA_VERSION, Part, TensorSpec
from structsam_export.runtimes.base import Arrays

GRAPH = Path(__file__).parents[1] / "assets" / "self_test.onnx"
#: Softmax makes of these logits shares of 0.1 to 0.4.
FEEDS: Arrays = {"logits": np.log(np.array([[1, 2, 3, 4]], np.float32))}
POOLING = ((10.0, 0.0), (0.0, 10.0), (10.0, 0.0), (0.0, 10.0))
ANSWER: Arrays = {
    "pooled": np.array([[4, 6]], np.float32),
    "largest": np.array([[3, 2]], np.int32),
}
TOLERANCE = 0.02  # of FP16 near 6, twice rounded

PART = Part(
    ENCODER_ONNX,
    tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in FEEDS.items()),
    tuple(TensorSpec(name, array.shape, str(array.dtype)) for name, array in ANSWER.items()),
)


@contextmanager
def tiny_bundle() -> Iterator[Bundle]:
    """Yield the bundle, in a temporary folder; only its encoder is there."""
    with tempfile.TemporaryDirectory(prefix="structsam-doctor-") as folder:
        manifest: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "name": "self-test",
            "precision": {"name": "fp16"},
            "encoder": PART.to_dict(),
        }
        bundle = Bundle(Path(folder), manifest)
        shutil.copy(GRAPH, bundle.onnx_path("encoder"))
        bundle.record_file(PART.file)
        bundle.save_manifest()
        yield bundle


def wrong(found: Arrays) -> str | None:
    """Say what is wrong with an answer; None when it is right."""
    for name, expected in ANSWER.items():
        array = found[name]
        if not np.allclose(array, expected, rtol=0, atol=TOLERANCE):
            return f"{name} is {array.tolist()}, and should be {expected.tolist()}"
    return None


def in_torch(compiled: bool) -> tuple[Callable[[Arrays], Arrays], dict[str, Any]]:
    """Load all that rebuilding a SAM takes; return the graph as a function, and its device."""
    import safetensors  # noqa: F401
    import segment_anything  # noqa: F401
    import torch
    import torchvision  # noqa: F401

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pooling = torch.tensor(POOLING, dtype=torch.float16, device=device)

    def graph(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shares = logits.half().softmax(-1)
        return (shares @ pooling).float(), shares.topk(2).indices.int()

    network = torch.compile(graph) if compiled else graph

    def run(feeds: Arrays) -> Arrays:
        with torch.inference_mode():
            outputs = network(torch.from_numpy(feeds["logits"]).to(device))
        return {name: array.cpu().numpy() for name, array in zip(ANSWER, outputs, strict=True)}

    return run, {"device": device}
