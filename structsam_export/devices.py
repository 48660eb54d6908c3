"""DEVICES: what GPUs can do at most, from their makers' data sheets.

Peaks are of tensor cores without sparsity, in FP16 and INT8 operations a second; the sheets of
Jetson and of H100 print them with sparsity, which is twice as much. GeForce cards multiply FP16 at
half the rate where they accumulate in FP32, as TensorRT does for our graphs: that rate is listed.
Every peak is streaming multiprocessors times clock times operations of one per clock, and
`tests/structsam_export/test_devices.py` multiplies them.
"""

from __future__ import annotations

from dataclasses import dataclass

from structsam.errors import UserError


@dataclass(frozen=True)
class Device:
    """What a GPU can do at most.

    Args:
        title: the product, and the power mode where it has several.
        fp16: FLOP/s of dense FP16 products on tensor cores (a multiply-add is two).
        int8: the same of INT8.
        bandwidth: bytes/s of its memory.
        launch: seconds from one kernel of a CUDA graph to the next that waits for it. Assumed.
        source: where the numbers stand.
        note: what to know of them.
    """

    title: str
    fp16: float
    int8: float
    bandwidth: float
    launch: float
    source: str
    note: str = ""


_DISCRETE, _JETSON = 2e-6, 4e-6
_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_ORIN = (
    "https://www.nvidia.com/content/dam/en-zz/Solutions/gtcf21/jetson-orin/"
    "nvidia-jetson-agx-orin-technical-brief.pdf"
)
_SUPER = (
    "https://developer.nvidia.com/blog/nvidia-jetpack-6-2-brings-super-mode-to-"
    "nvidia-jetson-orin-nano-and-jetson-orin-nx-modules/"
)
_GPU_ONLY = "the GPU alone, without the DLA; what it accumulates in is not stated"

DEVICES = {
    "h100": Device(
        "H100 SXM", 989.4e12, 1978.9e12, 3.35e12, _DISCRETE,
        "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    "rtx4090": Device(
        "GeForce RTX 4090", 165.2e12, 660.6e12, 1.008e12, _DISCRETE, _ADA,
        "FP32 accumulation; FP16 with FP16 accumulation is 330.3 TFLOP/s",
    ),
    "rtx4060": Device(
        "GeForce RTX 4060", 30.2e12, 120.9e12, 272e9, _DISCRETE,
        "https://www.nvidia.com/en-us/geforce/graphics-cards/40-series/rtx-4060-4060ti/",
        "FP32 accumulation; its 242 AI TOPS are INT8 with sparsity",
    ),
    "orin-agx": Device(
        "Jetson AGX Orin 64GB, MAXN", 42.6e12, 85.2e12, 204.8e9, _JETSON, _ORIN, _GPU_ONLY
    ),
    "orin-nx": Device(
        "Jetson Orin NX 16GB, MAXN SUPER", 19.2e12, 38.4e12, 102.4e9, _JETSON, _SUPER, _GPU_ONLY
    ),
    "orin-nano": Device(
        "Jetson Orin Nano 8GB, MAXN SUPER", 16.7e12, 33.4e12, 102.4e9, _JETSON, _SUPER,
        "what it accumulates in is not stated",
    ),
    "thor": Device(
        "Jetson T5000 (AGX Thor), MAXN", 258e12, 516e12, 273e9, _JETSON,
        "https://www.nvidia.com/en-us/autonomous-machines/embedded-systems/jetson-thor/",
        "INT8 is not on the sheet: taken to be as fast as FP8",
    ),
}  # fmt: skip


def find_device(name: str) -> Device:
    """Return the device of that name; raises `UserError`, which lists all, for another name."""
    if name not in DEVICES:
        raise UserError(f"unknown device {name!r}. Use one of: {', '.join(DEVICES)}")
    return DEVICES[name]
