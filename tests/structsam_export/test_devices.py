"""The numbers of the data sheets, multiplied from what they say of the chip."""

from __future__ import annotations

import pytest

from structsam.errors import UserError
from structsam_export.devices import DEVICES, find_device

#: Streaming multiprocessors, GHz at boost, dense FP16 operations of one per clock. INT8 has twice
#: as many, on GeForce four times: its FP16 rate is halved where it accumulates in FP32.
CHIPS = {
    "h100": (132, 1.83, 4096),
    "rtx4090": (128, 2.52, 512),
    "rtx4060": (24, 2.46, 512),
    "orin-agx": (16, 1.3, 2048),
    "orin-nx": (8, 1.173, 2048),
    "orin-nano": (8, 1.02, 2048),
    "thor": (20, 1.575, 8192),
}
#: What the makers print, in operations with sparsity: of INT8, of Thor FP8.
SPARSE = {
    "h100": 3958e12, "rtx4090": 1321e12, "rtx4060": 242e12, "orin-agx": 170e12,
    "orin-nx": 77e12, "orin-nano": 67e12, "thor": 1035e12,
}  # fmt: skip
#: Bits of the bus times Gbit/s of a pin.
MEMORY = {
    "h100": 5120 * 5.2, "rtx4090": 384 * 21, "rtx4060": 128 * 17, "orin-agx": 256 * 6.4,
    "orin-nx": 128 * 6.4, "orin-nano": 128 * 6.4, "thor": 256 * 8.533,
}  # fmt: skip


@pytest.mark.parametrize("name", DEVICES)
def test_a_peak_is_multiprocessors_times_clock_times_operations(name: str) -> None:
    device, (count, ghz, operations) = DEVICES[name], CHIPS[name]
    assert device.fp16 == pytest.approx(count * ghz * 1e9 * operations, rel=0.01)
    assert device.int8 / device.fp16 == pytest.approx(4 if "rtx" in name else 2, rel=0.01)
    assert device.int8 == pytest.approx(SPARSE[name] / 2, rel=0.01), "sparse is twice as much"
    assert device.bandwidth == pytest.approx(MEMORY[name] / 8 * 1e9, rel=0.01)
    assert device.source.startswith("https://") and device.launch > 0


def test_an_unknown_device_is_refused_with_the_list() -> None:
    assert find_device("h100") is DEVICES["h100"]
    with pytest.raises(UserError, match="unknown device 'h1000'. Use one of: h100, rtx4090, "):
        find_device("h1000")
