"""CUDA graphs of a network, one for every binding (shapes and addresses) that comes again."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from typing import Any

from structsam_export.runtimes.cuda_memory import Cuda

#: Of graphs, and of bindings that were seen once and are remembered.
CAPACITY = 8


class GraphCache:
    """Captured graphs by binding; the least recently used makes room for a new one.

    A graph replays what a context did when it was captured, so that the context must not be given
    other shapes or addresses afterwards: it belongs to the graph.

    Args:
        at_once: capture at the first run instead of the second; for networks with one binding.
    """

    def __init__(self, cuda: Cuda, stream: Any, at_once: bool) -> None:
        self._cuda, self._stream, self._at_once = cuda, stream, at_once
        self._graphs: OrderedDict[Hashable, tuple[Any, Any]] = OrderedDict()
        self._seen: deque[Hashable] = deque(maxlen=CAPACITY)
        self._given_up: str | None = None

    def launch(self, binding: Hashable) -> bool:
        """Start the graph of a binding; False when there is none."""
        if binding not in self._graphs:
            return False
        self._graphs.move_to_end(binding)
        self._cuda.launch(self._graphs[binding][0], self._stream)
        return True

    def wants(self, binding: Hashable) -> bool:
        """Whether the run that now comes should be followed by `capture`; ask once per run."""
        if self._given_up is not None:
            return False
        if self._at_once:
            return True
        if binding in self._seen:
            self._seen.remove(binding)
            return True
        self._seen.append(binding)
        return False

    def capture(self, binding: Hashable, context: Any, execute: Callable[[], None]) -> None:
        """Capture what `execute` puts on the stream. When that fails no more graphs are made.

        Args:
            context: what runs it, kept as long as the graph. It must have run once with `binding`.
        """
        self._cuda.synchronize(self._stream)
        try:
            graph = self._cuda.capture(self._stream, execute)
        except RuntimeError as error:
            self.give_up(str(error))
            return
        while len(self._graphs) >= CAPACITY:
            self._destroy(self._graphs.popitem(last=False)[1])
        self._graphs[binding] = (graph, context)

    def give_up(self, reason: str) -> None:
        """Make no more graphs; `note` says why."""
        self._given_up = reason

    @property
    def note(self) -> str:
        """What became of the graphs, in words."""
        if self._given_up is not None:
            return f"not used: {self._given_up}"
        if self._at_once:
            return "captured" if self._graphs else "pending: captured after the first run"
        count = len(self._graphs)
        return f"captured for shapes that come again, {count} so far"

    def _destroy(self, captured: tuple[Any, Any]) -> None:
        self._cuda.destroy_graph(captured[0])

    def close(self) -> None:
        """Free all graphs and their contexts. Safe to call twice."""
        while self._graphs:
            self._destroy(self._graphs.popitem()[1])
