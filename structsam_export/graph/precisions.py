"""The number types that a graph can have; known without torch."""

from __future__ import annotations

from structsam.errors import UserError

#: What a manifest says about each precision.
PRECISION_MAPS: dict[str, dict[str, str]] = {
    "fp32": {"linear_and_attention": "float32", "residual": "float32"},
    "fp16": {"linear_and_attention": "float16", "residual": "float16"},
    "int8": {"linear": "int8", "attention": "float16", "residual": "float16"},
    "int8-fp32": {"linear": "int8", "attention": "float32", "residual": "float32"},
    "int8-attention-fp32": {
        "linear": "int8",
        "attention": "int8 softmax and values, float32 queries and keys",
        "residual": "float32",
    },
}
for _map in PRECISION_MAPS.values():
    _map.update(norms="float32", energy_and_ranks="float32", inputs_and_outputs="float32")

PRECISIONS = tuple(PRECISION_MAPS)


def float_type(precision: str) -> str:
    """Return `fp16` or `fp32`: what everything is that is not quantised."""
    return "fp16" if PRECISION_MAPS[precision]["residual"] == "float16" else "fp32"


def is_quantized(precision: str) -> bool:
    """Whether the encoder's linear layers are INT8, so that photos are needed to make it."""
    return precision not in ("fp32", "fp16")


def quantizes_attention(precision: str) -> bool:
    """Whether the product of softmax and values is INT8 as well."""
    return PRECISION_MAPS[precision].get("attention", "").startswith("int8")


def require_precision(precision: str, calibrate: object) -> None:
    """Refuse an unknown precision, and photos for calibration that are missing or of no use.

    Args:
        calibrate: the folder of photos; None when none was given.

    Raises:
        UserError: any of these.
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}. Use one of: {', '.join(PRECISIONS)}")
    if is_quantized(precision) and calibrate is None:
        raise UserError(
            f"precision {precision} measures the range of activations on photos, and none were "
            "given. Add `calibrate=` with a folder of 16 to 128 photos like those of your task"
        )
    if calibrate is not None and not is_quantized(precision):
        raise UserError(
            f"`calibrate=` is for INT8, and precision {precision} measures nothing. Leave it out, "
            "or use `precision='int8-fp32'` (CPUs) or `precision='int8'` (GPUs)"
        )
