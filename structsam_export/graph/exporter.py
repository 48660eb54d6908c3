"""Torch module -> ONNX file: static shapes, opset 20, one data file only above 2 GB."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import nn

from structsam.errors import UserError
from structsam.merging.block import MergedBlock
from structsam_export.bundle.manifest import Part
from structsam_export.graph.lint import (
    ATTENTION_OPSET,
    DYNAMIC_KEY,
    MAX_OPSET,
    PLANS_KEY,
    SINGLE_FILE_LIMIT,
)
from structsam_export.graph.modules import DecoderModule, EncoderModule

#: Elements of the largest constant that is worth computing ahead: a bigger one costs more to keep
#: (a 2048 x 2048 comparison of positions, say) than to compute.
_LARGEST_CONSTANT = 1 << 20
#: Where torch's exporter keeps the modules around a node; the last entry is the operation's own.
_SCOPES = "pkg.torch.onnx.name_scopes"


def export_encoder(module: EncoderModule, folder: Path, file: str, batch: int = 1) -> Part:
    """Write the encoder's ONNX into `folder` and return its contract."""
    part = module.part(file, batch)
    names = [spec.name for spec in part.all_outputs]
    model = _to_ir(module, _examples(part), part, names, None, _opset(module))
    if module.plan_outputs:
        model.metadata_props[PLANS_KEY] = ",".join(map(str, module.merging))
    _save(model, folder / file)
    return part


def export_stock_encoder(model: nn.Module, folder: Path, file: str, batch: int = 1) -> Part:
    """Write an unmodified encoder as `torch.onnx.export` does by default: the baseline to beat.

    Args:
        model: an unmerged `Sam`; of SAM-HQ the HQ features are in the graph.
    """
    module = EncoderModule(model, plan_outputs=False)
    part = module.part(file, batch)
    names = [spec.name for spec in part.outputs]
    traced = module.encoder if module.hq is None else module
    _save(_trace(traced, _examples(part), part, names, optimize=True), folder / file)
    return part


def export_decoder(module: DecoderModule, folder: Path, file: str) -> Part:
    """Write the decoder's ONNX, dynamic in P and K, into `folder` and return its contract."""
    part = module.part(file)
    example = {"P": 2, "K": 3}
    inputs = tuple(
        torch.zeros([example[d] if isinstance(d, str) else d for d in spec.shape])
        for spec in part.inputs
    )
    dims = {
        name: torch.export.Dim(name, min=low, max=high)
        for name, (low, _, high) in part.profile.items()
    }
    dynamic = tuple(
        {axis: dims[d] for axis, d in enumerate(spec.shape) if isinstance(d, str)}
        for spec in part.inputs
    )
    names = [spec.name for spec in part.outputs]
    model = _to_ir(module, inputs, part, names, dynamic)
    model.metadata_props[DYNAMIC_KEY] = ",".join(part.profile)
    _save(model, folder / file)
    return part


def _examples(part: Part) -> tuple[torch.Tensor, ...]:
    """Return inputs of static shape to trace with."""
    return tuple(torch.zeros([int(side) for side in spec.shape]) for spec in part.inputs)


def _opset(module: EncoderModule) -> int:
    """The opset of ONNX that the forms of attention take."""
    forms = {b.core.form for b in module.encoder.blocks if isinstance(b, MergedBlock)}
    return ATTENTION_OPSET if any(form.operator for form in forms) else MAX_OPSET


def _to_ir(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    part: Part,
    output_names: list[str],
    dynamic: tuple[dict[int, torch.export.Dim], ...] | None,
    opset: int = MAX_OPSET,
) -> ir.Model:
    # torch's own optimizer searches for patterns in a time quadratic in the nodes
    model = _trace(module, inputs, part, output_names, dynamic, opset, optimize=False)
    with _quiet():
        _simplify(model)
    _name_by_modules(model)
    return model


def _trace(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    part: Part,
    output_names: list[str],
    dynamic: tuple[dict[int, torch.export.Dim], ...] | None = None,
    opset: int = MAX_OPSET,
    *,
    optimize: bool,
) -> ir.Model:
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module.eval(),
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=[spec.name for spec in part.inputs],
            output_names=output_names,
            dynamic_shapes=dynamic,
            optimize=optimize,
            verbose=False,
        )
    assert program is not None
    return program.model


def _simplify(model: ir.Model) -> None:
    """Fold constants, merge equal nodes, drop what nothing reads and casts that change nothing."""
    from onnxscript.optimizer import fold_constants
    from onnxscript.rewriter import RewritePass
    from onnxscript.rewriter.rules import common as rules

    cleanup = ir.passes.Sequential(
        common.IdentityEliminationPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(),
        common.DeduplicateInitializersPass(size_limit=_LARGEST_CONSTANT),
    )
    no_ops = (rules.no_op_cast_rule, rules.cast_cast_rule, rules.reshape_reshape_rule)
    for rewrite in (common.ShapeInferencePass(), RewritePass(no_ops)):
        fold_constants(model, input_size_limit=1 << 16, output_size_limit=_LARGEST_CONSTANT)
        cleanup(model)
        rewrite(model)
    fold_constants(model)
    cleanup(model)


def _name_by_modules(model: ir.Model) -> None:
    """Name every node after its module, such as `blocks.3.core/Softmax`: engines show the names."""
    taken: Counter[str] = Counter()
    for node in model.graph:
        scopes = re.findall(r"'([^']*)'", node.metadata_props.get(_SCOPES, ""))
        place = scopes[-2].removeprefix("encoder.") if len(scopes) > 1 else ""
        name = f"{place}/{node.op_type}" if place else node.op_type
        taken[name] += 1
        node.name = f"{name}_{taken[name]}" if taken[name] > 1 else name


def _save(model: ir.Model, file: Path) -> None:
    weights = sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value)
    model.doc_string = None
    for node in model.graph:
        node.doc_string = None
        node.metadata_props.clear()  # stack traces with paths of the exporting machine
        for value in node.outputs:
            value.metadata_props.clear()
    data = f"{file.name}.data" if weights > SINGLE_FILE_LIMIT else None
    try:
        ir.save(model, file, external_data=data)
    except OSError as error:
        raise UserError(
            f"cannot write {file.name}: {error.strerror or error}. Free some space or choose "
            "another folder with `out=`"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's own progress text and its import-time notices off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.filterwarnings(
                "ignore", module=r"torch\.onnx|torch\.export|onnxscript|copyreg"
            )
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
