"""The order in which `auto` tries backends: on a CPU it is what was measured on one of its kind."""

from __future__ import annotations

from collections.abc import Iterable

from structsam_export.machine import cpu_kind

#: (vendor, instructions it needs) of CPUs on which OpenVINO was faster than ONNX Runtime in every
#: row of a paired run, as /proc/cpuinfo names them: docs/performance.md.
FASTER_WITH_OPENVINO = (("GenuineIntel", "avx512f"),)


def auto_order(backends: Iterable[str]) -> list[str]:
    """Return the keys of `BACKENDS` in the order of preference on this machine.

    Where no pair was measured (other CPUs, other systems than Linux) it is that of the registry.
    """
    names = list(backends)
    vendor, instructions = cpu_kind()
    if any(vendor == v and needs in instructions for v, needs in FASTER_WITH_OPENVINO):
        names.remove("openvino")
        names.insert(names.index("onnxruntime"), "openvino")
    return names
