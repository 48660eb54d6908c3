"""References as Polygraphy reads them, so that NVIDIA's own tool judges a bundle's graphs.

Polygraphy measures the embedding and the scores itself: its signal-to-noise ratio is the relative
L2 in decibels. It knows no masks, so a script beside the files gives it `judged_iou`. It is fed the
reference's embedding and judges the decoder alone, where `check` feeds what the encoder computed.
"""

from __future__ import annotations

import inspect
import math
import shlex
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from structsam import mask_iou
from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import Part
from structsam_export.graph.precisions import float_type
from structsam_export.parity.compare import GATES, MIN_MASK_AREA, judged_iou
from structsam_export.parity.reference import Reference, decoder_feed, prompt_grid
from structsam_export.predict.hq_masks import every_mask

_README, _SCRIPT = "README.txt", "gates.py"
_TITLE = "Inputs and reference outputs for Polygraphy"

_README_TEXT = """\
{title}, of {photos}: {names}

Bundle {bundle}, precision {precision} in its manifest, whose tolerances are below.
Outputs: what the merged PyTorch encoder and the stock decoder compute in FP32. {features},
masks and scores are compared, and no plan outputs. Rounding may rank ties otherwise, and move all
that follows: `structsam-export check` tells that from faults, and Polygraphy cannot.
The decoder is fed what the reference's encoder gives. Polygraphy has no measure of masks: {script}
holds logits above 0 against the reference, and leaves the scores to Polygraphy.

Tolerances: {gates}

Run in this folder. Exit code 0: the same. 1: it differs or did not run; the last lines say why.

ONNX Runtime
{onnxruntime}

TensorRT, on a GPU (without --strongly-typed where the TensorRT does not know it)
{tensorrt}

TensorRT for RTX, on a GPU
{rtx}
"""

_SCRIPT_TEXT = '''\
"""What Polygraphy calls beside its own measures; the precision is {precision}."""

import math
from collections import OrderedDict
from collections.abc import Mapping

import numpy as np
from polygraphy.comparator import IterationResult, SimpleCompareFunc
from polygraphy.logger import G_LOGGER

GATES = {gates}
MIN_MASK_AREA = {area}


def compare_outputs(found, expected):
    """Hold the decoder's outputs on one photo against the gates; expected masks are bools."""
    iou = judged_iou(expected["low_res_masks"], every_mask(found) > 0)
    measured = {{"mean_mask_iou": iou.mean(), "min_mask_iou": iou.min()}}
    good = all(measured[name] >= gate for name, gate in GATES.items() if name in measured)
    told = ", ".join(f"{{name}} {{value:.6f}}" for name, value in measured.items())
    verdict, level = ("PASSED", G_LOGGER.FINISH) if good else ("FAILED", G_LOGGER.ERROR)
    G_LOGGER.log(f"{{verdict}} | low_res_masks | {{told}}", level)
    scores = [
        IterationResult({{"iou_predictions": r["iou_predictions"]}}, runner_name=r.runner_name)
        for r in (found, expected)
    ]
    simple = SimpleCompareFunc(rtol=0.0, atol=GATES["max_score_error"], check_error_stat="max")
    return OrderedDict(low_res_masks=bool(good), **simple(*scores))


def without_tf32(builder, network, config):
    """Its 10-bit mantissa misses FP32's gate; Polygraphy leaves it on in TensorRT for RTX."""
    import tensorrt_rtx

    config.clear_flag(tensorrt_rtx.BuilderFlag.TF32)


{functions}'''


def save_polygraphy(bundle: Bundle, references: Sequence[Reference], folder: Path) -> None:
    """Write inputs and outputs of every photo, a script and README.txt into `folder`.

    `encoder-inputs/`, `encoder-outputs/`, `decoder-inputs/` and `decoder-outputs/` hold one JSON
    per photo, in the order of `references`: 46 MB in all for SAM's 1024 pixels.

    Raises:
        UserError: as `require_polygraphy`, or the folder cannot be written.
    """
    require_polygraphy(folder)
    from polygraphy.comparator import RunResults
    from polygraphy.json import save_json

    with atomic.staged_folder(folder.resolve()) as staged:
        for index, reference in enumerate(references):
            coords, labels = prompt_grid(reference.photo.geometry)
            tensors = {
                "encoder-inputs": {"image": reference.photo.pixels, **reference.prompt_feed},
                "encoder-outputs": dict(reference.features),
                "decoder-inputs": decoder_feed(reference.features, coords, labels),
                "decoder-outputs": {
                    "low_res_masks": reference.masks,
                    "iou_predictions": reference.scores,
                },
            }
            for kind, arrays in tensors.items():
                if kind.partition("-")[0] not in bundle.parts:
                    continue
                results = RunResults()
                results.add([arrays], runner_name="reference")
                (staged / kind).mkdir(exist_ok=True)
                # `results.save` would print a line on stdout, which may have to be JSON
                save_json(
                    arrays if kind.endswith("inputs") else results,
                    str(staged / kind / f"{index:06d}-{reference.image}.json"),
                )
        (staged / _SCRIPT).write_text(_script(bundle.precision), encoding="utf-8")
        (staged / _README).write_text(_readme(bundle, references), encoding="utf-8")


def require_polygraphy(folder: Path) -> None:
    """Refuse, before anything is run, what `save_polygraphy` could not write.

    Raises:
        UserError: Polygraphy is not installed, or `folder` holds something else.
    """
    if find_spec("polygraphy") is None:
        raise UserError(
            "`save_polygraphy=` needs polygraphy, which is not installed here. "
            "Install it with `pip install 'structsam[polygraphy]'`"
        )
    atomic.require_writable(folder)
    readme = folder / _README
    ours = readme.is_file() and readme.read_text("utf-8", errors="replace").startswith(_TITLE)
    if folder.is_dir() and not ours and any(folder.iterdir()):
        raise UserError(f"{folder} holds other files. Give `save_polygraphy=` a new folder")


def _script(precision: str) -> str:
    gates = {name: tolerance for name, (_, tolerance) in GATES[precision].items()}
    functions = (every_mask, judged_iou, mask_iou.mask_iou, mask_iou.mask_area)
    return _SCRIPT_TEXT.format(
        precision=precision,
        gates={name: gates[name] for name in gates if "mask" in name or "score" in name},
        area=MIN_MASK_AREA,
        functions="\n\n".join(inspect.getsource(function) for function in functions),
    )


def _readme(bundle: Bundle, references: Sequence[Reference]) -> str:
    precision, count = bundle.precision, len(references)
    words = {"max": "at most", "min": "at least"}
    gates = [f"{name} {words[way]} {value:g}" for name, (way, value) in GATES[precision].items()]
    no_tf32 = f" --trt-config-postprocess-script {_SCRIPT}:without_tf32"
    on_rtx = f"--trt{no_tf32 if float_type(precision) == 'fp32' else ''}"
    return _README_TEXT.format(
        title=_TITLE,
        photos=f"{count} photo{'s' if count > 1 else ''}",
        names=", ".join(reference.image for reference in references),
        bundle=bundle.name,
        precision=precision,
        script=_SCRIPT,
        features=", ".join(f"`{spec.name}`" for spec in bundle.features),
        gates=", ".join(gates),
        onnxruntime=_commands(bundle, "polygraphy run", "--onnxrt"),
        tensorrt=_commands(bundle, "polygraphy run", "--trt --strongly-typed"),
        rtx=_commands(bundle, "POLYGRAPHY_USE_TENSORRT_RTX=1 polygraphy run", on_rtx),
    )


def _commands(bundle: Bundle, program: str, runner: str) -> str:
    lines = []
    for part in bundle.parts:
        graph = shlex.quote(str(bundle.onnx_path(part).resolve()))
        words = [program, graph, runner, "--validate"]
        words += [f"--load-inputs {part}-inputs --load-outputs {part}-outputs"]
        if part == "encoder":
            words.append(_feature_gates(bundle.precision, [s.name for s in bundle.features]))
        else:
            words.append(f"--compare-func-script {_SCRIPT}")
        if "--trt" in runner:
            words += _profile(bundle.part(part))
        lines.append(" ".join(words))
    return "\n".join(lines)


def _profile(part: Part) -> list[str]:
    """Polygraphy's options for the range of the dynamic shapes, as engines of a bundle have it."""
    dynamic = [s for s in part.inputs if any(isinstance(dim, str) for dim in s.shape)]
    options = []
    for position, bound in enumerate(("min", "opt", "max") if dynamic else ()):
        options.append(f"--trt-{bound}-shapes")
        for spec in dynamic:
            shape = [part.profile[d][position] if isinstance(d, str) else d for d in spec.shape]
            options.append(shlex.quote(f"{spec.name}:[{','.join(map(str, shape))}]"))
    return options


def _feature_gates(precision: str, features: Sequence[str]) -> str:
    """Polygraphy's measures of the feature maps, and their thresholds."""
    gates = GATES[precision]
    names, thresholds = [], []
    if "relative_l2" in gates:
        names.append("snr")
        decibels = -20 * math.log10(gates["relative_l2"][1])
        thresholds += ["--snr-threshold", *(f"{name}:{decibels:g}" for name in features)]
    if "cosine" in gates:
        names.append("cosine_similarity")
        least = gates["cosine"][1]
        thresholds += ["--cosine-similarity-threshold", *(f"{n}:{least:g}" for n in features)]
    return f"--compare {' '.join(names)} {' '.join(thresholds)}"
