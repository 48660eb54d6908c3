"""The number types that a graph can have; known without torch."""

from __future__ import annotations

PRECISIONS = ("fp32", "fp16")

#: What a manifest says about each precision.
PRECISION_MAPS: dict[str, dict[str, str]] = {
    "fp32": {"linear_and_attention": "float32", "residual": "float32"},
    "fp16": {"linear_and_attention": "float16", "residual": "float16"},
}
for _map in PRECISION_MAPS.values():
    _map.update(norms="float32", energy_and_ranks="float32", inputs_and_outputs="float32")
