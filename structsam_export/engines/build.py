"""Build TensorRT engines from a bundle's ONNX files, and reuse those that are current.

No torch is imported: on a Jetson its memory is missing during the build.

Polygraphy's loaders were considered, and would replace some thirty lines. They do TensorRT or RTX,
by an environment variable read at import, and not both in one process; on RTX they leave TF32 on;
they log on stdout, where `--json` is alone; and every Jetson would need one more package.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

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
from structsam_export.bundle.files import locked, size_text
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import ENGINE_FOLDER, EngineEntry, PartName
from structsam_export.engines.kernels import (
    attention_note,
    attention_of,
    inspect,
    kernels_of_rtx,
)
from structsam_export.engines.progress import BuildEvent, monitor_of, run_until_stopped
from structsam_export.engines.targets import choose_targets, find_builder
from structsam_export.engines.timing_cache import (
    load_timing_cache,
    save_timing_cache,
    timing_cache_file,
)
from structsam_export.graph.precisions import float_type
from structsam_export.runtimes.runtime_cache import RUNTIME_CACHE_SUFFIX
from structsam_export.runtimes.tensorrt_module import (
    FLAVOURS,
    Flavour,
    construct,
    load_module,
    logger_of,
)

Progress = Callable[[BuildEvent], None]

_log = logging.getLogger("structsam_export")


def build(
    bundle: Bundle,
    backend: str = "auto",
    targets: Sequence[str] = (),
    workspace_mb: int | None = None,
    optimization_level: int | None = None,
    tactic_memory_mb: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    parts: Sequence[PartName] | None = None,
) -> list[EngineEntry]:
    """Build what is missing or stale, record it in the manifest, and return all engine entries.

    Ctrl-C ends the build at TensorRT's next step; engines finished before stay recorded. An engine
    that another process builds at the same time is waited for, and reused.

    Args:
        backend: `tensorrt`, which builds on and for the GPU of this machine, `tensorrt-rtx`, which
            needs no GPU, or `auto`, the first of them that can build here.
        targets: architectures such as `sm89`, one engine each, or `all` that the backend knows.
            None given means the GPU of this machine, and for `tensorrt-rtx` without a GPU
            `DEFAULT_TARGETS` (GeForce RTX 30, 40 and 50).
        workspace_mb: MiB of scratch memory that one layer may use.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
        tactic_memory_mb: MiB of device memory that trying one kernel may take.
        force: also build engines that are current.
        progress: called for every step, from a second thread too.
        parts: networks to build, all that the bundle has by default.

    Raises:
        UserError: unknown backend or target, a graph that TensorRT cannot parse or build.
        BackendUnavailable: TensorRT is missing or too old, or `tensorrt` has no GPU here.
    """
    if backend == "auto":
        backend, _ = find_builder(targets, bundle.precision)
    if backend not in FLAVOURS:
        raise UserError(
            f"{backend!r} builds no engines. Choose one of: auto, {', '.join(FLAVOURS)}"
        )
    flavour = FLAVOURS[backend]
    settings = BuildSettings(workspace_mb, optimization_level, tactic_memory_mb)
    trt = load_module(flavour)
    chosen, gpu = choose_targets(backend, targets, bundle.precision)
    job = _Job(bundle, flavour, trt, gpu, settings, force, progress or (lambda event: None))
    entries = []
    for part in bundle.parts if parts is None else parts:
        parsed = functools.cache(functools.partial(_parse, trt, flavour, bundle, part))
        entries += [job.engine(part, target, parsed) for target in chosen]
    return entries


@dataclass
class _Network:
    """A parsed graph. The parser stays: it may own the memory of the weights."""

    trt: Any
    file: Path
    builder: Any
    network: Any
    parser: Any


@dataclass(frozen=True)
class _Job:
    """What a call of `build` asks for.

    Args:
        gpu: name of the GPU that engines are tuned on; None for ahead-of-time engines.
    """

    bundle: Bundle
    flavour: Flavour
    trt: Any
    gpu: str | None
    settings: BuildSettings
    force: bool
    report: Progress

    def engine(self, part: PartName, target: str, parsed: Callable[[], _Network]) -> EngineEntry:
        """Return the entry of an engine that is current, or of one that is built now."""
        file = engine_file(self.flavour.name, part, target)
        done, reason = self._status(part, target)
        if not done:
            wait = BuildEvent(
                part, target, "waiting", "another process is building it; waiting for that", 0.0
            )
            lock = self.bundle.path / ENGINE_FOLDER / f".{Path(file).name}.lock"
            with locked(lock, waiting=lambda: self.report(wait)):
                self.bundle.reload()  # it may have been recorded meanwhile
                done, reason = self._status(part, target)
                if not done:
                    return self._build(part, target, reason, parsed)
        self.report(BuildEvent(part, target, "reused", reason, 1.0))
        entry = find_entry(self.bundle, self.flavour.name, part, target)
        assert entry is not None
        return entry

    def _wanted(self, part: PartName, target: str) -> dict[str, Any]:
        version = self.trt.__version__
        return fingerprint(
            self.bundle, self.flavour.name, part, target, version, self.gpu, self.settings
        )

    def _status(self, part: PartName, target: str) -> tuple[bool, str]:
        """Whether there is nothing to do, and the reason in words."""
        wanted = self._wanted(part, target)
        current, reason = engine_status(self.bundle, self.flavour.name, part, target, wanted)
        if current and self.force:
            return False, f"{reason}, and is built again as asked for"
        return current, reason

    def _build(
        self, part: PartName, target: str, reason: str, parsed: Callable[[], _Network]
    ) -> EngineEntry:
        self.report(BuildEvent(part, target, "started", reason, 0.0))
        started = time.perf_counter()
        attention = self._write(parsed, part, target)
        seconds = time.perf_counter() - started
        wanted = self._wanted(part, target)
        entry = record_engine(
            self.bundle, self.flavour.name, part, target, wanted, seconds, attention
        )
        message = f"{entry.file}, {size_text(entry.size)} in {seconds:.1f} s"
        if told := attention_note(entry):
            message += f", {told}"
        self.report(BuildEvent(part, target, "built", message, 1.0))
        return entry

    def _write(
        self, parsed: Callable[[], _Network], part: PartName, target: str
    ) -> dict[str, list[int]]:
        """Build an engine into its file, and return what `attention_of` knows of it."""
        trt, bundle, logger = self.trt, self.bundle, logger_of(self.trt)
        timing = None if self.gpu is None else timing_cache_file(bundle, trt.__version__, self.gpu)
        stop = Event()
        monitor = monitor_of(
            trt,
            stop,
            lambda phase, done: self.report(BuildEvent(part, target, "running", phase, done)),
        )

        def work() -> tuple[Any, Any]:
            network = parsed()
            config = _configure(network, bundle, part, self.settings)
            if self.flavour.ahead_of_time:
                config.num_compute_capabilities = 1
                config.set_compute_capability(getattr(trt.ComputeCapability, target.upper()), 0)
            if timing is not None:
                load_timing_cache(config, timing)
            if monitor is not None:
                config.progress_monitor = monitor
            logger.errors.clear()
            return network.builder.build_serialized_network(network.network, config), config

        # All of it: on the main thread, a Ctrl-C would be raised in TensorRT's logger, and be lost.
        plan, config = run_until_stopped(work, stop)
        if monitor is not None and monitor.failure is not None:
            raise monitor.failure
        if plan is None:
            errors, file = logger.take(), bundle.onnx_path(part)
            fix = (
                "Free memory, lower `workspace_mb=` and `tactic_memory_mb=`, or add swap"
                if re.search(r"memory|alloc", errors, re.IGNORECASE)
                else f"See what breaks the rules with `structsam-export lint {file}`"
            )
            raise UserError(
                f"{self.flavour.title} {trt.__version__} cannot build the {part} for {target}: "
                f"{errors}. {fix}"
            )
        file = bundle.path / engine_file(self.flavour.name, part, target)
        atomic.write_bytes(file, memoryview(plan))
        file.with_name(file.name + RUNTIME_CACHE_SUFFIX).unlink(missing_ok=True)
        if timing is not None:
            save_timing_cache(config, timing)
        return run_until_stopped(lambda: self._attention(memoryview(plan), part), stop)

    def _attention(self, plan: memoryview, part: PartName) -> dict[str, list[int]]:
        """What is known of the attention in an encoder's engine: nothing, where reading fails."""
        if part != "encoder":
            return {}
        try:
            if self.flavour.ahead_of_time:
                return attention_of(kernels_of_rtx(plan))
            return attention_of(inspect(self.trt, logger_of(self.trt), plan))
        except Exception as error:  # a text of TensorRT's own, in a form that may change
            _log.debug("the engine's kernels cannot be read", exc_info=error)
            return {}


def _parse(trt: Any, flavour: Flavour, bundle: Bundle, part: PartName) -> _Network:
    logger = logger_of(trt)
    builder = construct(trt, flavour, "Builder")
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
    contract = bundle.part(part)
    inputs = {network.get_input(i).name for i in range(network.num_inputs)}
    outputs = {network.get_output(i).name for i in range(network.num_outputs)}
    for what, names, specs in (
        ("inputs", inputs, contract.inputs),
        ("outputs", outputs, contract.all_outputs),
    ):
        if names != {spec.name for spec in specs}:
            raise UserError(
                f"{file} has the {what} {sorted(names)}, unlike the manifest. Export the bundle "
                "again"
            )
    return _Network(trt, file, builder, network, parser)


def _parser_error(error: Any) -> str:
    text = " ".join(error.desc().split())
    if error.node() < 0:
        return text
    return f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): {text}"


def _configure(parsed: _Network, bundle: Bundle, part: PartName, settings: BuildSettings) -> Any:
    pools = parsed.trt.MemoryPoolType
    config = parsed.builder.create_builder_config()
    if settings.workspace_mb is not None:
        config.set_memory_pool_limit(pools.WORKSPACE, settings.workspace_mb << 20)
    if settings.tactic_memory_mb is not None:
        config.set_memory_pool_limit(pools.TACTIC_DRAM, settings.tactic_memory_mb << 20)
    if settings.optimization_level is not None:
        config.builder_optimization_level = settings.optimization_level
    config.profiling_verbosity = parsed.trt.ProfilingVerbosity.DETAILED  # names of ONNX nodes
    if float_type(bundle.precision) == "fp32":
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
