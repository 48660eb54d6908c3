"""Real ahead-of-time builds of small graphs, on the CPU, with TensorRT-RTX."""

from __future__ import annotations

import _thread
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock, call

import pytest

from structsam.errors import UserError
from structsam_export.bundle.engine_entries import BuildSettings
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.engines import build as engine_build
from structsam_export.engines import targets as engine_targets
from structsam_export.engines.build import build
from structsam_export.engines.progress import BuildEvent, Phases, run_until_stopped
from structsam_export.engines.targets import DEFAULT_TARGETS, find_builder
from structsam_export.engines.timing_cache import save_timing_cache
from structsam_export.runtimes import BackendUnavailable
from structsam_export.runtimes.cuda_memory import Cuda, Gpu
from tests.structsam_export.small_bundle import make_bundle

SIX = ["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


@pytest.fixture
def rtx() -> Any:
    return pytest.importorskip("tensorrt_rtx", reason="pip install 'structsam[rtx]'")


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_six_targets_two_parts_and_all_of_it_recorded(rtx: Any, bundle: Bundle) -> None:
    entries = build(bundle, "tensorrt-rtx", SIX)
    assert [(e.part, e.target) for e in entries] == [
        (part, target) for part in ("encoder", "decoder") for target in SIX
    ]
    recorded = open_bundle(bundle.path).manifest["engines"]
    assert recorded == [vars(entry) for entry in entries]
    for entry in entries:
        assert (bundle.path / entry.file).stat().st_size == entry.size > 10_000
        assert entry.fingerprint["backend_version"] == rtx.__version__
    assert not list(bundle.path.rglob("*.tmp-*"))


def test_a_current_engine_is_reused_and_says_so(rtx: Any, bundle: Bundle) -> None:
    first = build(bundle, "tensorrt-rtx", ["sm89"])
    events: list[BuildEvent] = []
    again = build(
        open_bundle(bundle.path), "tensorrt-rtx", ["sm89", "sm89"], progress=events.append
    )
    assert again == first
    assert [(e.kind, e.message) for e in events] == [
        ("reused", "the encoder engine for sm89 is current"),
        ("reused", "the decoder engine for sm89 is current"),
    ]
    build(bundle, "tensorrt-rtx", ["sm89"], force=True, progress=events.append)
    assert "built again as asked for" in next(e.message for e in events if e.kind == "started")


def test_progress_names_the_reason_and_never_goes_back(rtx: Any, bundle: Bundle) -> None:
    events: list[BuildEvent] = []
    build(bundle, "tensorrt-rtx", ["sm86"], optimization_level=1, progress=events.append)
    encoder = [e for e in events if e.part == "encoder"]
    assert encoder[0].kind == "started" and "there is no encoder engine" in encoder[0].message
    assert encoder[-1].kind == "built" and " MB in " in encoder[-1].message
    fractions = [e.fraction for e in encoder]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0 and len(fractions) > 10


def test_phases_count_what_is_inside() -> None:
    phases = Phases()
    phases.start("build", None, 4)
    assert phases.step("build", 0) == 0.25
    phases.start("tactics", "build", 10)
    assert phases.step("tactics", 4) == pytest.approx(0.375)
    phases.finish("tactics")
    assert phases.step("build", 1) == 0.5
    assert phases.step("unknown", 3) == 0.5


def test_parser_errors_name_the_node(rtx: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", activation="Blub")
    with pytest.raises(UserError, match=r"node 2 'my_activation' \(Blub\).*lint") as caught:
        build(bundle, "tensorrt-rtx", ["sm89"])
    assert "\n" not in str(caught.value)
    assert "engines" not in bundle.manifest


def test_data_dependent_shapes_are_refused_on_one_line(rtx: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", activation="NonZero")
    with pytest.raises(UserError, match=r"cannot (parse|build)") as caught:
        build(bundle, "tensorrt-rtx", ["sm89"])
    assert "\n" not in str(caught.value)


def test_a_build_that_fails_keeps_the_old_engine(rtx: Any, bundle: Bundle) -> None:
    before = build(bundle, "tensorrt-rtx", ["sm89"])
    bundle.manifest["decoder"]["profile"] = {}
    bundle.manifest["decoder"]["inputs"][1]["shape"] = [1, 2]
    bundle.save_manifest()
    with pytest.raises(UserError, match=r"cannot build the decoder for sm89: .*profile"):
        build(bundle, "tensorrt-rtx", ["sm89"])
    assert bundle.manifest["engines"] == [vars(entry) for entry in before]
    assert (bundle.path / before[1].file).stat().st_size == before[1].size


@pytest.mark.parametrize(("what", "real"), [("inputs", "image"), ("outputs", "image_embeddings")])
def test_tensors_unlike_the_manifest_are_refused(
    rtx: Any, bundle: Bundle, what: str, real: str
) -> None:
    bundle.manifest["encoder"][what][0]["name"] = "pixels"
    bundle.save_manifest()
    with pytest.raises(UserError, match=rf"the {what} \['{real}'\], unlike the manifest"):
        build(bundle, "tensorrt-rtx", ["sm89"])


def test_external_data_is_found_and_part_of_the_fingerprint(rtx: Any, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", external=True)
    entry = build(bundle, "tensorrt-rtx", ["sm89"])[0]
    recorded = bundle.manifest["files"]["encoder.onnx.data"]["sha256"]
    assert entry.fingerprint["onnx_data_sha256"] == recorded


def engines_in(bundle: Bundle) -> list[Path]:
    """Files of the folder that anybody can see; locks are hidden."""
    return sorted(f for f in (bundle.path / "engines").iterdir() if not f.name.startswith("."))


@pytest.fixture
def ctrl_c_raises() -> Iterator[None]:
    """A job in the background of a shell starts with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_build_and_keeps_what_is_finished(
    rtx: Any, bundle: Bundle, ctrl_c_raises: None
) -> None:
    def press_ctrl_c(event: BuildEvent) -> None:
        if (event.part, event.kind) == ("decoder", "running"):
            _thread.interrupt_main()
            time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        build(bundle, "tensorrt-rtx", ["sm89"], progress=press_ctrl_c)
    assert [e["part"] for e in open_bundle(bundle.path).manifest["engines"]] == ["encoder"]
    assert [file.name for file in engines_in(bundle)] == ["encoder.tensorrt-rtx.sm89.engine"]


def test_ctrl_c_waits_for_the_work(ctrl_c_raises: None) -> None:
    stop, ended = threading.Event(), []

    def work() -> None:
        time.sleep(0.3)  # the main thread waits by now
        _thread.interrupt_main()
        assert stop.wait(20)
        time.sleep(0.3)  # a step of TensorRT that ends later
        ended.append(True)

    with pytest.raises(KeyboardInterrupt):
        run_until_stopped(work, stop)
    assert ended == [True]


def test_no_call_of_tensorrt_holds_the_main_thread(
    rtx: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, a Ctrl-C would be raised inside TensorRT's logger, which drops it."""
    parse, threads = engine_build._parse, []

    def watched(*arguments: Any) -> Any:
        threads.append(threading.current_thread())
        return parse(*arguments)

    monkeypatch.setattr(engine_build, "_parse", watched)
    build(bundle, "tensorrt-rtx", ["sm89"], parts=["decoder"])
    assert threads and threading.main_thread() not in threads


def test_an_error_of_the_callback_comes_through(rtx: Any, bundle: Bundle) -> None:
    def fail(event: BuildEvent) -> None:
        if event.kind == "running":
            raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted"):
        build(bundle, "tensorrt-rtx", ["sm89"], progress=fail)
    assert not engines_in(bundle)


def test_profile_and_memory_limits_reach_tensorrt(rtx: Any, bundle: Bundle) -> None:
    config, profile = MagicMock(), MagicMock()
    parsed = MagicMock(trt=rtx)
    parsed.builder.create_builder_config.return_value = config
    parsed.builder.create_optimization_profile.return_value = profile
    engine_build._configure(parsed, bundle, "decoder", BuildSettings(64, 3, 512))
    assert profile.set_shape.call_args_list == [
        call("point_coords", (1, 1, 2), (1, 2, 2), (64, 16, 2)),
        call("point_labels", (1, 1), (1, 2), (64, 16)),
    ]
    config.add_optimization_profile.assert_called_once_with(profile)
    assert config.set_memory_pool_limit.call_args_list == [
        call(rtx.MemoryPoolType.WORKSPACE, 64 << 20),
        call(rtx.MemoryPoolType.TACTIC_DRAM, 512 << 20),
    ]
    assert config.builder_optimization_level == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"backend": "onnxruntime"},
            "builds no engines. Choose one of: auto, tensorrt, ten",
        ),
        ({"targets": ["sm90"]}, "cannot build for sm90. Choose from: sm75 sm80 sm86 sm89"),
        ({"workspace_mb": 0}, "workspace_mb is 0, and must be at least 1"),
        ({"tactic_memory_mb": -1}, "tactic_memory_mb is -1"),
        ({"optimization_level": 6}, "optimization_level is 6, and must be 0 to 5"),
    ],
)
def test_mistakes(rtx: Any, bundle: Bundle, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(bundle, **{"backend": "tensorrt-rtx", **arguments})


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, gpu: Gpu | None) -> None:
    def answer(self: Cuda) -> Gpu:
        if gpu is None:
            raise BackendUnavailable("no NVIDIA GPU is visible here")
        return gpu

    monkeypatch.setattr(engine_targets, "open_cuda", lambda extra: Cuda(None))
    monkeypatch.setattr(Cuda, "gpu", answer)


def test_default_targets(rtx: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, None)
    entries = build(bundle, "tensorrt-rtx")
    assert {e.target for e in entries} == set(DEFAULT_TARGETS)
    pretend_gpu(monkeypatch, Gpu("a laptop", "sm121"))
    assert {e.target for e in build(bundle, "tensorrt-rtx")} == {"sm121"}
    pretend_gpu(monkeypatch, Gpu("a server", "sm90"))
    with pytest.raises(UserError, match="cannot build for sm90"):
        build(bundle, "tensorrt-rtx")


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")
def test_tensorrt_builds_on_its_own_gpu_with_a_timing_cache(
    rtx: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorRT-RTX stands in for the TensorRT module: their builders have the same interface."""
    module = ModuleType("tensorrt")
    vars(module).update({k: v for k, v in vars(rtx).items() if k != "ComputeCapability"})
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    with pytest.raises(BackendUnavailable):
        pretend_gpu(monkeypatch, None)
        build(bundle, "tensorrt")
    pretend_gpu(monkeypatch, Gpu("Orin (nvgpu)", "sm87"))
    with pytest.raises(UserError, match=r"this one is sm87 \(Orin \(nvgpu\)\), not sm89"):
        build(bundle, "tensorrt", ["sm89"])
    inspected: list[threading.Thread] = []
    monkeypatch.setattr(
        engine_build, "inspect", lambda *given: inspected.append(threading.current_thread()) or []
    )
    entries = build(bundle, "tensorrt", workspace_mb=64, tactic_memory_mb=512)
    assert len(inspected) == 1, "the encoder's engine is inspected"
    assert inspected[0] is not threading.main_thread()
    assert [e.file for e in entries] == [
        "engines/encoder.tensorrt.sm87.engine",
        "engines/decoder.tensorrt.sm87.engine",
    ]
    assert entries[0].fingerprint["gpu"] == "Orin (nvgpu)"
    cache = bundle.path / "engines" / "timing.tensorrt-10.3.0.Orin-nvgpu.cache"
    assert cache.is_file()
    cache.write_bytes(b"damaged")
    build(bundle, "tensorrt", force=True)
    module.__version__ = "10.2.9"  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match=r"10.2.9 is too old.*10.3 or newer.*JetPack"):
        build(bundle, "tensorrt")


def test_timings_that_tensorrt_does_not_give_are_not_written(tmp_path: Path) -> None:
    file, config = tmp_path / "timing.cache", MagicMock()
    config.get_timing_cache.return_value.serialize.return_value = None
    save_timing_cache(config, file)
    config.get_timing_cache.return_value = None
    save_timing_cache(config, file)
    assert not file.exists()
    config.get_timing_cache.return_value = MagicMock(serialize=lambda: b"timings")
    save_timing_cache(config, file)
    assert file.read_bytes() == b"timings"


def test_auto_takes_what_can_build_here(
    rtx: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    backend, passed_over = find_builder(["sm89"], "fp16")
    assert backend == "tensorrt-rtx"
    assert len(passed_over) == 1 and passed_over[0].startswith("tensorrt: tensorrt is ")
    assert {entry.backend for entry in build(bundle, targets=["sm89"])} == {"tensorrt-rtx"}
    module = ModuleType("tensorrt")
    module.__version__ = "10.3.0"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    pretend_gpu(monkeypatch, Gpu("a server", "sm90"))
    assert find_builder((), "fp16") == ("tensorrt", [])
    assert find_builder(["sm89"], "fp16")[0] == "tensorrt-rtx"  # not on this GPU
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendUnavailable, match=r"here\. tensorrt: .*; tensorrt-rtx: .*sm90"):
        build(bundle)


def test_two_builds_at_once_do_the_work_once(rtx: Any, bundle: Bundle) -> None:
    """The second waits, says so, and reuses; the work is done by whoever is first."""
    waiting = threading.Event()
    events: list[BuildEvent] = []

    def first(event: BuildEvent) -> None:
        if (event.part, event.kind) == ("encoder", "started"):
            second.start()
            assert waiting.wait(60)

    def told(event: BuildEvent) -> None:
        events.append(event)
        if event.kind == "waiting":
            waiting.set()

    second = threading.Thread(
        target=lambda: build(open_bundle(bundle.path), "tensorrt-rtx", ["sm89"], progress=told)
    )
    build(bundle, "tensorrt-rtx", ["sm89"], progress=first)
    second.join(120)
    encoder = [(event.kind, event.message) for event in events if event.part == "encoder"]
    assert encoder == [
        ("waiting", "another process is building it; waiting for that"),
        ("reused", "the encoder engine for sm89 is current"),
    ]
    assert len(open_bundle(bundle.path).manifest["engines"]) == 2


def test_a_missing_module_names_the_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'structsam\[rtx\]'"):
        build(bundle, "tensorrt-rtx")


def test_building_imports_no_torch(rtx: Any, bundle: Bundle) -> None:
    code = (
        "import sys; from structsam_export import build, open_bundle;"
        f"build(open_bundle({str(bundle.path)!r}), 'tensorrt-rtx', ['sm89']);"
        "assert not {'torch', 'onnx', 'onnxruntime'} & set(sys.modules), 'heavy import'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
