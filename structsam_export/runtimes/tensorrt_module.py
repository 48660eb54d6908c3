"""Find `tensorrt` or `tensorrt_rtx`: the module is an argument of everything that uses it."""

from __future__ import annotations

import functools
import logging
import re
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from structsam_export.runtimes.base import BackendUnavailable

_log = logging.getLogger("structsam_export")


@dataclass(frozen=True)
class Flavour:
    """What differs between the two products before a module is loaded.

    Args:
        minimum: oldest version whose networks are strongly typed in the way we need.
        ahead_of_time: engines are built for architectures and without a GPU.
    """

    name: str
    title: str
    module: str
    extra: str
    minimum: tuple[int, int]
    ahead_of_time: bool

    @property
    def install(self) -> str:
        """How to install it."""
        return f"install it with `pip install 'structsam[{self.extra}]'`"

    @property
    def update(self) -> str:
        """How to get a newer version."""
        update = f"update it with `pip install --upgrade 'structsam[{self.extra}]'`"
        return update if self.ahead_of_time else f"{update} (a Jetson needs JetPack 6.1 or newer)"


FLAVOURS = {
    flavour.name: flavour
    for flavour in (
        Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", (10, 3), False),
        Flavour("tensorrt-rtx", "TensorRT-RTX", "tensorrt_rtx", "rtx", (1, 4), True),
    )
}


def load_module(flavour: Flavour) -> Any:
    """Import and return `tensorrt` or `tensorrt_rtx`.

    Raises:
        BackendUnavailable: not installed, not loadable, or too old.
    """
    try:
        module = import_module(flavour.module)
    except ModuleNotFoundError:
        raise BackendUnavailable(f"{flavour.module} is not installed; {flavour.install}") from None
    except (ImportError, OSError) as error:
        raise BackendUnavailable(
            f"{flavour.module} is installed and cannot be loaded ({error}); {flavour.install}"
        ) from None
    found = tuple(map(int, re.findall(r"\d+", module.__version__)[:2]))
    if found < flavour.minimum:
        raise BackendUnavailable(
            f"{flavour.title} {module.__version__} is too old: strongly typed networks need "
            f"{'.'.join(map(str, flavour.minimum))} or newer; {flavour.update}"
        )
    return module


@functools.cache
def logger_of(trt: Any) -> Any:
    """Return the one logger of a TensorRT module; its `errors` collects error messages.

    Warnings go to the debug log. TensorRT keeps using the first logger that a process gives it, so
    there is only one.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            text = " ".join(message.split())
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(text)
            elif severity == trt.ILogger.WARNING:
                _log.debug("%s warns: %s", trt.__name__, text)

        def take(self) -> str:
            """Return the collected messages as one line, and forget them."""
            text = "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"
            self.errors.clear()
            return text

    return Logger()


def construct(trt: Any, flavour: Flavour, kind: str) -> Any:
    """Return a new `trt.Runtime` or `trt.Builder` (`kind`) with the logger of the module.

    Raises:
        BackendUnavailable: there is none, for example because CUDA does not start. pybind11
            only says `TypeError: pybind11::init(): factory function returned nullptr`.
    """
    logger = logger_of(trt)
    logger.errors.clear()
    try:
        return getattr(trt, kind)(logger)
    except TypeError as error:
        if "returned nullptr" not in str(error):
            raise
        raise BackendUnavailable(
            f"{flavour.title} {trt.__version__} cannot make a {kind}: {logger.take()}. Check the "
            "GPU and its driver with `nvidia-smi`"
        ) from None


def ahead_of_time_targets(trt: Any) -> list[str]:
    """Return the architectures that this TensorRT-RTX knows, for example `sm89`, in order."""
    names = [name for name in trt.ComputeCapability.__members__ if re.fullmatch(r"SM\d+", name)]
    return sorted((name.lower() for name in names), key=lambda name: int(name[2:]))
