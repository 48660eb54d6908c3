"""Read an engine file, and refuse one that does not fit this TensorRT, GPU or bundle."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.bundle.manifest import Part
from structsam_export.runtimes.base import BackendUnavailable
from structsam_export.runtimes.tensorrt_module import Flavour, logger_of


def read_engine(trt: Any, flavour: Flavour, runtime: Any, file: Path, part: Part, fix: str) -> Any:
    """Return the `ICudaEngine` of a file.

    Args:
        runtime: a `trt.Runtime`; it must outlive the engine.
        part: the network that the engine should be of.
        fix: what the user should do when the engine is refused.

    Raises:
        BackendUnavailable: it cannot be used here, or has other tensors than `part`.
    """
    logger = logger_of(trt)
    logger.errors.clear()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if hasattr(runtime, "get_engine_validity"):
            verdict, flags = runtime.get_engine_validity(data)
            if verdict == trt.EngineValidity.INVALID:
                known = trt.EngineInvalidityDiagnostics.__members__.items()
                reasons = [name for name, bit in known if int(bit) & flags]
                raise BackendUnavailable(
                    f"{file} does not fit here ({', '.join(reasons) or logger.take()}); {fix}"
                )
        engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise BackendUnavailable(
            f"{flavour.title} {trt.__version__} cannot load {file}: {logger.take()}; {fix}"
        )
    found = {}
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        found[name] = (is_input, np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name)
    wanted = {spec.name: (True, spec.dtype) for spec in part.inputs}
    wanted |= {spec.name: (False, spec.dtype) for spec in part.all_outputs}
    if found != wanted:
        raise BackendUnavailable(
            f"{file} has the tensors {sorted(found)}, and should have {sorted(wanted)} "
            f"of the manifest's types; {fix}"
        )
    return engine
