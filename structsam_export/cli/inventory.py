"""The command `list`: models, methods, what runs here, and what `evaluate` knows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from structsam_export.cli.arguments import Json, make_terminal

if TYPE_CHECKING:
    from rich.table import Table


def list_everything(
    json_only: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the methods as a Markdown table.")
    ] = False,
) -> None:
    """Models, methods with their maximum rates, and backends available here."""
    terminal = make_terminal()
    facts = inventory()
    if markdown:
        print(method_table_markdown(facts["methods"]))
    elif json_only:
        print(json.dumps(facts))
    else:
        for table in inventory_tables(facts):
            terminal.table(table)


def inventory() -> dict[str, Any]:
    """Return models, checkpoints, methods, backends and what `evaluate` knows, JSON-ready."""
    from structsam.evaluation.datasets import DATASETS
    from structsam.evaluation.metrics import METRICS
    from structsam.evaluation.protocols import PROTOCOLS
    from structsam.merging.attention_forms import FORMS
    from structsam.methods import METHODS
    from structsam.models import MODELS
    from structsam.models.checkpoint_keys import NAMINGS
    from structsam_export.engines.targets import backend_facts
    from structsam_export.runtimes import BACKENDS

    return {
        "models": {
            name: {
                "title": spec.title,
                "embed_dim": spec.embed_dim,
                "depth": spec.depth,
                "heads": spec.num_heads,
                "global_blocks": list(spec.global_blocks),
                "image_size": spec.image_size,
                "patch_size": spec.patch_size,
                "decoder": spec.decoder is not None,
                "official_file": spec.official.file if spec.official else None,
            }
            for name, spec in MODELS.items()
        },
        "checkpoints": {naming.title: naming.landmark for naming in NAMINGS},
        "methods": {name: _method_facts(method) for name, method in METHODS.items()},
        "attention": {name: form.title for name, form in FORMS.items()},
        "backends": {name: backend_facts(name) for name in BACKENDS},
        "datasets": {
            name: {
                "title": dataset.title,
                "layout": dataset.layout.splitlines(),
                "protocol": dataset.protocol,
            }
            for name, dataset in DATASETS.items()
        },
        "metrics": {name: metric.title for name, metric in METRICS.items()},
        "protocols": {name: protocol.title for name, protocol in PROTOCOLS.items()},
    }


def _method_facts(method: Any) -> dict[str, Any]:
    from structsam.methods import rate_limits
    from structsam.methods.options import method_options

    limits = rate_limits(method)
    return {
        "rule": method.__doc__.strip().splitlines()[0],
        "source": method.source,
        "max_rate": limits.pop(""),
        "max_rate_with": limits,
        "takes_box": method.takes_box,
        "options": {
            name: {
                "default": option.default,
                "choices": list(option.choices) or option.kind.__name__,
            }
            for name, option in method_options(method).items()
        },
    }


def option_text(name: str, option: dict[str, Any]) -> str:
    """Write one option as `name: default, other, other`, or `name: default (float)`."""
    if isinstance(option["choices"], str):
        return f"{name}: {option['default']} ({option['choices']})"
    others = [choice for choice in option["choices"] if choice != option["default"]]
    return f"{name}: {', '.join(map(str, [option['default'], *others]))}"


def rate_text(fact: dict[str, Any]) -> str:
    """Write a method's limits: `0.75; 0.5 with variant=sorted`."""
    others = [f"{limit:g} with {option}" for option, limit in fact["max_rate_with"].items()]
    return "; ".join([f"{fact['max_rate']:g}", *others])


def method_table_markdown(facts: dict[str, Any]) -> str:
    """Return the README's table of methods, one row each, from the registry."""
    lines = [
        "| method | what it does | options (default first) | maximum rate | source |",
        "|---|---|---|---|---|",
    ]
    for name, fact in facts.items():
        options = "; ".join(option_text(key, value) for key, value in fact["options"].items())
        cells = [f"`{name}`", fact["rule"], options or "none", rate_text(fact), fact["source"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def inventory_tables(facts: dict[str, Any]) -> list[Table]:
    """Lay out what `inventory` found."""
    from rich.markup import escape
    from rich.table import Table

    models = Table("name", "model", "width", "depth", "heads", "global blocks", title="models")
    for name, fact in facts["models"].items():
        numbers = [str(fact[key]) for key in ("embed_dim", "depth", "heads")]
        blocks = fact["global_blocks"]
        whole = "all" if len(blocks) == fact["depth"] else ", ".join(map(str, blocks))
        models.add_row(name, fact["title"], *numbers, whole)
    models.caption = "or --model auto: what --checkpoint holds; or --model FILE.toml"
    checkpoints = Table("names of tensors", "told by the key", title="checkpoints")
    for title, landmark in facts["checkpoints"].items():
        checkpoints.add_row(title, landmark)
    methods = Table("name", "what it does", "options, default first", "maximum rate")
    methods.title = "methods"
    for name, fact in facts["methods"].items():
        options = "\n".join(option_text(key, value) for key, value in fact["options"].items())
        methods.add_row(name, fact["rule"], escape(options), rate_text(fact))
    attention = Table("name", "what it does", title="forms of attention")
    for name, title in facts["attention"].items():
        attention.add_row(name, title)
    backends = Table("name", "what", "runs here", "builds engines here", title="backends")
    for name, fact in facts["backends"].items():
        reason = fact["unavailable"]
        shown = f"no: {escape(reason)}" if reason else "[green]yes[/green]"
        builds = "[green]yes[/green]" if fact["builds_here"] else ""
        backends.add_row(name, escape(fact["title"]), shown, builds)
    datasets = Table("name", "dataset", "expected under --root", "protocol", title="datasets")
    for name, fact in facts["datasets"].items():
        datasets.add_row(name, fact["title"], escape("\n".join(fact["layout"])), fact["protocol"])
    named = [*facts["metrics"].items(), *facts["protocols"].items()]
    kinds = ["metric"] * len(facts["metrics"]) + ["protocol"] * len(facts["protocols"])
    measures = Table("kind", "name", "what", title="metrics and protocols of `evaluate`")
    for kind, (name, title) in zip(kinds, named, strict=True):
        measures.add_row(kind, name, title)
    return [models, checkpoints, methods, attention, backends, datasets, measures]
