"""What a user may choose about a repository."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from structsam.errors import UserError

Backend = Literal["auto", "onnxruntime", "tensorrt"]
Kind = Literal["auto", "gpu", "cpu"]


@dataclass(frozen=True)
class TritonSettings:
    """How the models of a repository are called, and where they run.

    Args:
        name: what the models' names begin with, for several bundles in one server.
        backend: `onnxruntime`, `tensorrt`, or `auto`: TensorRT where the bundle has its plans and
            the networks may run on GPUs.
        kind: where the networks run: `gpu`, `cpu`, or `auto`: on GPUs where the server has some.
        instances: copies of each network, on every GPU or on the CPU.
        workers: processes that answer prompts.
        cache_mb: MiB of embeddings that each of them keeps.

    Raises:
        UserError: a value that has no meaning.
    """

    name: str = "structsam"
    backend: str = "auto"
    kind: str = "auto"
    instances: int = 1
    workers: int = 2
    cache_mb: int = 512

    @property
    def network_backend(self) -> str:
        """The backend that runs the networks; `auto` where the bundle decides."""
        return "onnxruntime" if (self.backend, self.kind) == ("auto", "cpu") else self.backend

    def __post_init__(self) -> None:
        for field, choices in (("backend", get_args(Backend)), ("kind", get_args(Kind))):
            if getattr(self, field) not in choices:
                raise UserError(
                    f"unknown {field} {getattr(self, field)!r} for Triton. Choose one of: "
                    f"{', '.join(choices)}"
                )
        for field in ("instances", "workers", "cache_mb"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}, and must be at least 1")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", self.name):
            raise UserError(
                f"name {self.name!r} cannot begin the name of a folder. Use letters, digits and _"
            )
        if self.backend == "tensorrt" and self.kind == "cpu":
            raise UserError("TensorRT runs on GPUs. Choose `kind=gpu`, or `backend=onnxruntime`")
