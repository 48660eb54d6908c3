"""Tensors of Triton requests as numpy arrays, and answers that name a mistake in one line."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from structsam.errors import UserError

Arrays = Mapping[str, np.ndarray]


def backend_utils() -> Any:
    """Return Triton's module, which exists only inside its Python backend."""
    import triton_python_backend_utils

    return triton_python_backend_utils


def parameters(arguments: Mapping[str, str]) -> dict[str, str]:
    """Return the `parameters` of config.pbtxt from what `initialize` is given."""
    config = json.loads(arguments["model_config"])
    return {name: value["string_value"] for name, value in config["parameters"].items()}


def array_of(request: Any, name: str) -> np.ndarray | None:
    """Return an input of a request; None where it was left out."""
    tensor = backend_utils().get_input_tensor_by_name(request, name)
    return None if tensor is None else np.asarray(tensor.as_numpy())


def photo_of(request: Any) -> bytes:
    """Return the content of the image file that a request carries; the server saw that it does."""
    tensor = backend_utils().get_input_tensor_by_name(request, "photo")
    return bytes(tensor.as_numpy().reshape(-1)[0])


def answered(request: Any, work: Callable[[Any], Arrays]) -> Any:
    """Return the response with what `work` makes of a request; a mistake in it is its error."""
    try:
        return response_of(work(request))
    except UserError as mistake:
        utils = backend_utils()
        code = utils.TritonError.INVALID_ARG
        return utils.InferenceResponse(error=utils.TritonError(str(mistake), code))


def response_of(found: Arrays) -> Any:
    """Return the response with these outputs."""
    utils = backend_utils()
    return utils.InferenceResponse([utils.Tensor(name, array) for name, array in found.items()])


def run_model(model: str, feeds: Arrays, outputs: list[str]) -> dict[str, np.ndarray]:
    """Run another model of the same server, and return these outputs in memory of their own.

    Raises:
        RuntimeError: it failed there.
    """
    utils = backend_utils()
    request = utils.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=[utils.Tensor(name, array) for name, array in feeds.items()],
        preferred_memory=utils.PreferredMemory(utils.TRITONSERVER_MEMORY_CPU, 0),
    )
    response = request.exec()
    if response.has_error():
        raise RuntimeError(f"model {model} failed: {response.error().message()}")
    tensors = {name: utils.get_output_tensor_by_name(response, name) for name in outputs}
    return {name: np.array(tensor.as_numpy()) for name, tensor in tensors.items()}
