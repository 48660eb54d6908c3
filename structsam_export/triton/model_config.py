"""What `config.pbtxt` of every model says: tensors from the manifest, places from the settings.

All networks have `max_batch_size: 0` and their full shapes. A positive number would add a first
dimension that varies, and these graphs have fixed ones. Where the encoder's is more than 1, a
small model before it gathers what waits (`gather_config`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from structsam_export.bundle.manifest import Part, TensorSpec
from structsam_export.triton.network_files import NetworkFiles
from structsam_export.triton.pbtxt import Message, Word
from structsam_export.triton.settings import TritonSettings

DATA_TYPES = {
    "bool": "TYPE_BOOL", "uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "bytes": "TYPE_STRING",
}  # fmt: skip
#: An image file, and where its picture lies in the encoder's input: (H, W) each.
PHOTO = TensorSpec("photo", (1,), "bytes")
SIZES = (TensorSpec("original_size", (2,), "int64"), TensorSpec("input_size", (2,), "int64"))
_PROMPTS = (
    TensorSpec("points", ("N", 2), "float32"),
    TensorSpec("labels", ("N",), "int32"),
    TensorSpec("boxes", ("P", 4), "float32"),
    TensorSpec("multimask", (1,), "bool"),
)
_FOUND = (
    TensorSpec("masks", ("P", "C", "H", "W"), "bool"),
    TensorSpec("scores", ("P", "C"), "float32"),
)
#: Microseconds that a photo waits for others to fill the encoder's batch.
_QUEUE_DELAY = 5000


def network_config(name: str, part: Part, files: NetworkFiles, settings: TritonSettings) -> Message:
    """Return the config of the encoder or the decoder, all outputs of the graph included.

    A TensorRT plan is refused by the server when one of its outputs is not named.
    """
    kind = "gpu" if files.backend == "tensorrt" else settings.kind
    config: dict[str, Any] = {
        "name": name,
        "backend": files.backend,
        "max_batch_size": 0,
        "default_model_filename": files.default,
        "input": _tensors(part.inputs),
        "output": _tensors(part.all_outputs),
        "instance_group": [
            {"count": settings.instances, "kind": Word(f"KIND_{kind.upper()}")},
        ],
        **_VERSIONS,
        "model_warmup": [_warmup(part)],
    }
    if files.by_capability:
        config["cc_model_filenames"] = _map(files.by_capability)
    return config


def gather_config(name: str, network: str, part: Part) -> Message:
    """Return the config of what gathers photos into the encoder's batch.

    Args:
        part: the encoder, its batch as the first dimension of every tensor.
    """
    batch = batch_of(part)
    single = single_photo(part)
    return {
        **_python(name, 1),
        "max_batch_size": batch,
        "input": _tensors(single.inputs, skip=1),
        "output": _tensors(single.outputs, skip=1),
        "dynamic_batching": {
            "preferred_batch_size": [batch],
            "max_queue_delay_microseconds": _QUEUE_DELAY,
        },
        "parameters": _parameters(
            network=network,
            batch=batch,
            inputs=",".join(spec.name for spec in part.inputs),
            outputs=",".join(spec.name for spec in part.outputs),
        ),
    }


def preprocess_config(name: str, image: TensorSpec, settings: TritonSettings) -> Message:
    """Return the config of: image file -> the encoder's input and where the picture lies in it."""
    return {
        **_python(name, settings.workers),
        "max_batch_size": 0,
        "input": _tensors([PHOTO]),
        "output": _tensors([image, *SIZES]),
    }


def ensemble_config(name: str, preprocess: str, encoder: str, part: Part) -> Message:
    """Return the config of: image file -> everything that the encoder gives, and the sizes."""
    own = [PHOTO.name, *(spec.name for spec in SIZES)]
    image = part.inputs[0].name
    outputs = [spec.name for spec in part.outputs]
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": 0,
        "input": _tensors([PHOTO]),
        "output": _tensors([*part.outputs, *SIZES]),
        **_VERSIONS,
        "ensemble_scheduling": {
            "step": [
                {
                    "model_name": preprocess,
                    "model_version": -1,
                    "input_map": _map({PHOTO.name: PHOTO.name}),
                    "output_map": _map({key: key for key in (image, *own[1:])}),
                },
                {
                    "model_name": encoder,
                    "model_version": -1,
                    "input_map": _map({image: image}),
                    "output_map": _map({key: key for key in outputs}),
                },
            ]
        },
    }


def masks_config(name: str, encoder: str, decoder: str, settings: TritonSettings) -> Message:
    """Return the config of: image file and prompts -> masks and scores."""
    return {
        **_python(name, settings.workers),
        "max_batch_size": 0,
        "input": [
            *_tensors([PHOTO]),
            *({**tensor, "optional": True} for tensor in _tensors(_PROMPTS)),
        ],
        "output": _tensors(_FOUND),
        "parameters": _parameters(encoder=encoder, decoder=decoder, cache_mb=settings.cache_mb),
    }


def batch_of(encoder: Part) -> int:
    """Return how many photos one call of the encoder takes."""
    return int(encoder.inputs[0].shape[0])


def single_photo(encoder: Part) -> Part:
    """Return the encoder as it looks through the model that gathers: batch 1, without plans."""
    if batch_of(encoder) == 1:
        return encoder

    def one(specs: Iterable[TensorSpec]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(s.name, (1, *s.shape[1:]), s.dtype) for s in specs)

    return Part(encoder.file, one(encoder.inputs), one(encoder.outputs), encoder.profile)


_VERSIONS: Message = {"version_policy": {"latest": {"num_versions": 1}}}


def _python(name: str, count: int) -> Message:
    return {
        "name": name,
        "backend": "python",
        "instance_group": [{"count": count, "kind": Word("KIND_CPU")}],
        **_VERSIONS,
    }


def _tensors(specs: Sequence[TensorSpec], skip: int = 0) -> list[Message]:
    """Write tensors without their first `skip` dimensions; what varies is -1."""
    return [
        {
            "name": spec.name,
            "data_type": Word(DATA_TYPES[spec.dtype]),
            "dims": [-1 if isinstance(dim, str) else dim for dim in spec.shape[skip:]],
        }
        for spec in specs
    ]


def _warmup(part: Part) -> Message:
    """Run a network once with zeros before the server says that it is ready."""
    return {
        "name": "zeros",
        "batch_size": 1,
        "inputs": [
            {
                "key": spec.name,
                "value": {
                    "data_type": Word(DATA_TYPES[spec.dtype]),
                    "dims": [part.profile[d][1] if isinstance(d, str) else d for d in spec.shape],
                    "zero_data": True,
                },
            }
            for spec in part.inputs
        ],
    }


def _map(values: Mapping[str, Any]) -> list[Message]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _parameters(**values: object) -> list[Message]:
    return _map({key: {"string_value": str(value)} for key, value in values.items()})
