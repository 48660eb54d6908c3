"""Build TensorRT engines from a bundle's ONNX files, and reuse those that are current.

No torch is imported: on a Jetson its memory is missing during the build.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any, get_args

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.engine_entries import (
    BuildSettings,
    engine_file,
    engine_status,
    find_entry,
    fingerprint,
    record_engine,
)
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import ENGINE_FOLDER, PartName
from structsam_export.engines.progress import BuildEvent, monitor_of, run_until_stopped
from structsam_export.runtimes.base import BackendUnavailable
from structsam_export.runtimes.cuda_memory import Gpu, open_cuda
from structsam_export.runtimes.tensorrt_backend import RUNTIME_CACHE_SUFFIX
from structsam_export.runtimes.tensorrt_module import (
    FLAVOURS,
    Flavour,
    ahead_of_time_targets,
    load_module,
    logger_of,
)

DEFAULT_TARGETS = ("sm86", "sm89", "sm120")
ALL_TARGETS = "all"
_NO_FP32_MATMUL = "sm75"  # Turing, in TensorRT-RTX

Progress = Callable[[BuildEvent], None]


def build(
    bundle: Bundle,
    backend: str,
    targets: Sequence[str] = (),
    workspace_mb: int | None = None,
    optimization_level: int | None = None,
    tactic_memory_mb: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Build what is missing or stale, record it in the manifest, and return all engine entries.

    Ctrl-C ends the build at TensorRT's next step; engines finished before stay recorded.

    Args:
        backend: `tensorrt`, which builds on and for the GPU of this machine, or `tensorrt-rtx`,
            which needs no GPU.
        targets: architectures such as `sm89`, one engine each, or `all` that the backend knows.
            None given means the GPU of this machine, and for `tensorrt-rtx` without a GPU
            `DEFAULT_TARGETS` (GeForce RTX 30, 40 and 50).
        workspace_mb: MiB of scratch memory that one layer may use.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
        tactic_memory_mb: MiB of device memory that trying one kernel may take.
        force: also build engines that are current.
        progress: called for every step, from a second thread too.

    Raises:
        UserError: unknown backend or target, a graph that TensorRT cannot parse or build.
        BackendUnavailable: TensorRT is missing or too old, or `tensorrt` has no GPU here.
    """
    if backend not in FLAVOURS:
        raise UserError(f"{backend!r} builds no engines. Choose one of: {', '.join(FLAVOURS)}")
    flavour = FLAVOURS[backend]
    settings = BuildSettings(workspace_mb, optimization_level, tactic_memory_mb)
    trt = load_module(flavour)
    chosen, gpu = choose_targets(backend, targets, bundle.precision)
    report = progress or (lambda event: None)
    entries = []
    for part in get_args(PartName):
        network: _Network | None = None
        for target in chosen:
            wanted = fingerprint(bundle, backend, part, target, trt.__version__, gpu, settings)
            current, reason = engine_status(bundle, backend, part, target, wanted)
            if current and not force:
                report(BuildEvent(part, target, "reused", reason, 1.0))
                entries.append(find_entry(bundle, backend, part, target) or {})
                continue
            reason = f"{reason}, and is built again as asked for" if current else reason
            report(BuildEvent(part, target, "started", reason, 0.0))
            started = time.perf_counter()
            network = network or _parse(trt, flavour, bundle, part)
            _build_file(network, bundle, part, target, gpu, settings, report)
            seconds = time.perf_counter() - started
            entries.append(record_engine(bundle, backend, part, target, wanted, seconds))
            size = entries[-1]["size"] / 2**20
            message = f"{entries[-1]['file']}, {size:.1f} MiB in {seconds:.1f} s"
            report(BuildEvent(part, target, "built", message, 1.0))
    return entries


def choose_targets(
    backend: str, targets: Sequence[str], precision: str
) -> tuple[list[str], str | None]:
    """Return what `build` would build for, and the GPU's name where engines are tuned on it.

    `all` leaves out what cannot be built: float32 for Turing, where TensorRT-RTX has no float32
    matmul.

    Raises:
        UserError, BackendUnavailable: as `build`.
    """
    flavour = FLAVOURS[backend]
    trt = load_module(flavour)
    gpu: Gpu | None = None
    try:
        gpu = open_cuda(flavour.extra).gpu()
    except BackendUnavailable:
        if not flavour.ahead_of_time:
            raise
    if not flavour.ahead_of_time:
        assert gpu is not None
        for target in targets:
            if target not in (gpu.target, ALL_TARGETS):
                raise UserError(
                    f"{flavour.title} builds on the GPU that will run the engine: this one is "
                    f"{gpu.target} ({gpu.name}), not {target}. Build there, or use the backend "
                    "tensorrt-rtx"
                )
        return [gpu.target], gpu.name
    known = ahead_of_time_targets(trt)
    if ALL_TARGETS in targets:
        targets = [t for t in known if precision != "fp32" or t != _NO_FP32_MATMUL]
    chosen = list(dict.fromkeys(targets)) or ([gpu.target] if gpu else list(DEFAULT_TARGETS))
    for target in chosen:
        if target not in known:
            raise UserError(
                f"{flavour.title} {trt.__version__} cannot build for {target}. Choose from: "
                f"{' '.join(known)}, or all; or use the backend tensorrt on a GPU of another kind"
            )
        if target == _NO_FP32_MATMUL and precision == "fp32":
            raise UserError(
                f"{flavour.title} has no float32 matmul for {target} (Turing). "
                "Export with --precision fp16, or leave that target out"
            )
    return chosen, None


def can_build(backend: str) -> bool:
    """Whether engines of this backend can be built here, with or without a GPU."""
    try:
        return bool(choose_targets(backend, (), "fp16")[0])
    except UserError:
        return False


@dataclass
class _Network:
    """A parsed graph. The parser stays: it may own the memory of the weights."""

    trt: Any
    flavour: Flavour
    builder: Any
    network: Any
    parser: Any


def _parse(trt: Any, flavour: Flavour, bundle: Bundle, part: PartName) -> _Network:
    logger = logger_of(trt)
    logger.errors.clear()
    builder = trt.Builder(logger)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    file = bundle.onnx_path(part)
    if not parser.parse_from_file(str(file)):  # by name, so that external data is found
        errors = map(parser.get_error, range(parser.num_errors))
        found = "; ".join(map(_parser_error, errors)) or logger.take()
        raise UserError(
            f"{flavour.title} {trt.__version__} cannot parse {file}: {found}. "
            f"See what breaks the rules with `structsam-export lint {file}`"
        )
    names = {network.get_input(i).name for i in range(network.num_inputs)}
    if names != {spec.name for spec in bundle.part(part).inputs}:
        raise UserError(
            f"{file} has the inputs {sorted(names)}, unlike the manifest. Export the bundle again"
        )
    return _Network(trt, flavour, builder, network, parser)


def _parser_error(error: Any) -> str:
    text = " ".join(error.desc().split())
    if error.node() < 0:
        return text
    return f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {text}"


def _build_file(
    parsed: _Network,
    bundle: Bundle,
    part: PartName,
    target: str,
    gpu: str | None,
    settings: BuildSettings,
    report: Progress,
) -> None:
    trt, logger = parsed.trt, logger_of(parsed.trt)
    config = _configure(parsed, bundle, part, settings)
    if parsed.flavour.ahead_of_time:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
    timing = None if gpu is None else _timing_cache_file(bundle, trt.__version__, gpu)
    if timing is not None:
        _load_timing_cache(config, timing)
    stop = Event()
    monitor = monitor_of(
        trt, stop, lambda phase, done: report(BuildEvent(part, target, "running", phase, done))
    )
    if monitor is not None:
        config.progress_monitor = monitor
    logger.errors.clear()
    plan = run_until_stopped(
        lambda: parsed.builder.build_serialized_network(parsed.network, config), stop
    )
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        errors = logger.take()
        fix = (
            "Free memory, lower --workspace and --tactic-memory, or add swap"
            if re.search(r"memory|alloc", errors, re.IGNORECASE)
            else f"See what breaks the rules with `structsam-export lint {bundle.onnx_path(part)}`"
        )
        raise UserError(
            f"{parsed.flavour.title} {trt.__version__} cannot build the {part} for {target}: "
            f"{errors}. {fix}"
        )
    file = bundle.path / engine_file(parsed.flavour.name, part, target)
    atomic.write_bytes(file, memoryview(plan))
    file.with_name(file.name + RUNTIME_CACHE_SUFFIX).unlink(missing_ok=True)
    if timing is not None:
        atomic.write_bytes(timing, bytes(memoryview(config.get_timing_cache().serialize())))


def _configure(parsed: _Network, bundle: Bundle, part: PartName, settings: BuildSettings) -> Any:
    pools = parsed.trt.MemoryPoolType
    config = parsed.builder.create_builder_config()
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(pools.WORKSPACE, settings.workspace_mb << 20)
    if settings.tactic_memory_mb is not None:
        config.set_memory_pool_limit(pools.TACTIC_DRAM, settings.tactic_memory_mb << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    if bundle.precision == "fp32":
        config.clear_flag(parsed.trt.BuilderFlag.TF32)  # its 10-bit mantissa misses FP32's gate
    contract = bundle.part(part)
    if contract.profile:
        profile = parsed.builder.create_optimization_profile()
        for spec in contract.inputs:
            low, opt, high = (
                tuple(
                    contract.profile[dim][i] if isinstance(dim, str) else dim for dim in spec.shape
                )
                for i in range(3)
            )
            profile.set_shape(spec.name, low, opt, high)
        config.add_optimization_profile(profile)
    return config


def _timing_cache_file(bundle: Bundle, version: str, gpu: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9.]+", "-", f"{version}.{gpu}").strip("-")
    return bundle.path / ENGINE_FOLDER / f"timing.tensorrt-{name}.cache"


def _load_timing_cache(config: Any, file: Path) -> None:
    data = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(data) or config.create_timing_cache(b"")
    if not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
