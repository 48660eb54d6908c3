"""What `structsam-export list` shows: models, methods and the backends that run here."""

from __future__ import annotations

import importlib.util
from typing import Any

from rich.markup import escape
from rich.table import Table

from structsam_export.backends import BACKENDS
from structsam_export.engine_build import can_build


def inventory() -> dict[str, Any]:
    """Return models, methods (None without torch) and backends, ready for JSON."""
    from structsam.models import MODELS

    methods = None
    if importlib.util.find_spec("torch"):
        from structsam.methods import METHODS

        methods = {name: {"max_rate": method.max_rate} for name, method in METHODS.items()}
    return {
        "models": {
            name: {
                "title": spec.title,
                "embed_dim": spec.embed_dim,
                "depth": spec.depth,
                "heads": spec.num_heads,
                "global_blocks": list(spec.global_blocks),
                "official_file": spec.official.file if spec.official else None,
            }
            for name, spec in MODELS.items()
        },
        "methods": methods,
        "backends": {
            name: {
                "title": backend.title,
                "unavailable": backend.why_unavailable(),
                "builds_here": backend.needs_engine and can_build(name),
            }
            for name, backend in BACKENDS.items()
        },
    }


def inventory_tables(facts: dict[str, Any]) -> list[Table]:
    """Lay out what `inventory` found."""
    models = Table("name", "model", "width", "depth", "heads", "global blocks", title="models")
    for name, fact in facts["models"].items():
        numbers = [str(fact[key]) for key in ("embed_dim", "depth", "heads")]
        models.add_row(name, fact["title"], *numbers, ", ".join(map(str, fact["global_blocks"])))
    methods = Table("name", "maximum rate", title="methods")
    for name, fact in (facts["methods"] or {}).items():
        methods.add_row(name, str(fact["max_rate"]))
    if facts["methods"] is None:
        methods.add_row("-", "torch is not installed: pip install 'structsam[export]'")
    backends = Table("name", "what", "runs here", "builds engines here", title="backends")
    for name, fact in facts["backends"].items():
        reason = fact["unavailable"]
        shown = f"no: {escape(reason)}" if reason else "[green]yes[/green]"
        builds = "[green]yes[/green]" if fact["builds_here"] else ""
        backends.add_row(name, escape(fact["title"]), shown, builds)
    return [models, methods, backends]
