"""Turn TensorRT's nested build phases into one fraction, and a Ctrl-C into the end of a build."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from typing import Any, Literal, TypeVar

from structsam_export.bundle.manifest import PartName

T = TypeVar("T")


@dataclass(frozen=True)
class BuildEvent:
    """One step of `build`, made for a progress bar.

    Args:
        kind: `reused` (nothing to do), `waiting` (for another process), `started`, `running` or
            `built`.
        message: why an engine is reused, waited for or built, or the phase that runs.
        fraction: done so far, 0.0 to 1.0.
    """

    part: PartName
    target: str
    kind: Literal["reused", "waiting", "started", "running", "built"]
    message: str
    fraction: float


class Phases:
    """How far a build is: phases have a number of steps, and a step may have a phase inside."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, done
        self._lock = Lock()
        self.fraction = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Open a phase inside `parent`."""
        with self._lock:
            self._open[name] = (parent, max(1, steps), 0)

    def step(self, name: str, index: int) -> float:
        """Note that step `index` (from 0) of a phase is done, and return the overall fraction."""
        with self._lock:
            if name in self._open:
                parent, steps, _ = self._open[name]
                self._open[name] = (parent, steps, min(steps, index + 1))
            inside = sum(self._share(root) for root, (up, _, _) in self._open.items() if up is None)
            self.fraction = max(self.fraction, min(1.0, inside))
            return self.fraction

    def finish(self, name: str) -> None:
        """Close a phase; its parent's step counts it."""
        with self._lock:
            self._open.pop(name, None)

    def _share(self, name: str) -> float:
        _, steps, done = self._open[name]
        inside = sum(self._share(child) for child, (up, _, _) in self._open.items() if up == name)
        return min(1.0, (done + min(1.0, inside)) / steps)


def monitor_of(trt: Any, stop: Event, report: Callable[[str, float], None]) -> Any:
    """Return an `IProgressMonitor` that calls `report(phase, fraction)`, or None without one.

    Args:
        stop: set from another thread, it ends the build at the next step.
    """
    if not hasattr(trt, "IProgressMonitor"):
        return None
    phases = Phases()

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.failure: Exception | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            phases.start(phase, parent, steps)

        def step_complete(self, phase: str, index: int) -> bool:
            try:
                report(phase, phases.step(phase, index))
            except Exception as error:  # must not pass through TensorRT's C++ frames
                self.failure = error
            return not stop.is_set() and self.failure is None

        def phase_finish(self, phase: str) -> None:
            phases.finish(phase)

    return Monitor()


def run_until_stopped(work: Callable[[], T], stop: Event) -> T:
    """Return what `work` returns or raise what it raises; Ctrl-C sets `stop` and waits for it.

    `work` runs in a thread, because Python sees no Ctrl-C while C++ has the main one.

    Raises:
        KeyboardInterrupt: the user pressed Ctrl-C, and `work` has ended.
    """
    results: list[T] = []
    failures: list[BaseException] = []
    # Not `Thread.join`: to Python 3.12, once interrupted, it takes a thread that runs for ended.
    ended = Event()

    def call() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()

    thread = Thread(target=call, name="structsam-build", daemon=True)
    try:
        thread.start()
        while not ended.wait(timeout=0.2):
            pass
    except KeyboardInterrupt:
        stop.set()
        if thread.ident is not None:
            ended.wait()
        raise
    if failures:
        raise failures[0]
    return results[0]
