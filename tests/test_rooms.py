"""Rooms: imports go down one list, never in a circle, and every folder says what it is for."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("structsam", "structsam_export")
#: From the ground up. A room may import the floors below its own, and nothing beside or above it.
FLOORS = (
    ("structsam.errors", "structsam.mask_iou", "structsam.mask_runs"),
    ("structsam.token_graphs",),
    ("structsam.plans", "structsam.models", "structsam.evaluation"),
    ("structsam.methods",),
    ("structsam.merging", "structsam.flops_counts"),
    ("structsam.config",),
    ("structsam.block_table",),
    ("structsam.apply", "structsam.flops", "structsam.spectrum"),
    ("structsam.recording", "structsam.step_costs"),
    ("structsam",),
    (
        "structsam_export.bundle",
        "structsam_export.devices",
        "structsam_export.last_words",
        "structsam_export.machine",
        "structsam_export.plot_style",
    ),
    ("structsam_export.graph", "structsam_export.merging_choices"),
    ("structsam_export.runtimes",),
    ("structsam_export.engines", "structsam_export.predict"),
    ("structsam_export.parity",),
    ("structsam_export.pipeline",),
    (
        "structsam_export.bench",
        "structsam_export.bulk",
        "structsam_export.doctor",
        "structsam_export.evaluate",
        "structsam_export.inspect",
        "structsam_export.serve",
    ),
    ("structsam_export.triton", "structsam_export.tune"),
    ("structsam_export.cli",),
    ("structsam_export",),
)
#: The one arrow that runs up: `bundle.predictor()`, loaded when it is called.
EXCEPTION = ("structsam_export.bundle", "structsam_export.predict")
LONGEST_DOCSTRING = 100  # characters of a room's one sentence


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file, packages by their folder's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            found[name.removesuffix(".__init__")] = path
    return found


def imported(source: str, known: Mapping[str, object]) -> set[str]:
    """Modules among `known` that a source names anywhere, in functions and for types as well."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    found = set()
    for name in names:
        while name and name not in known:
            name = name.rpartition(".")[0]
        if name:
            found.add(name)
    return found


@cache
def arrows() -> dict[str, set[str]]:
    return {
        name: imported(path.read_text("utf-8"), modules()) - {name}
        for name, path in modules().items()
    }


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def floor_of(room: str) -> int:
    for floor, rooms in enumerate(FLOORS):
        if room in rooms:
            return floor
    raise AssertionError(f"{room} has no floor. Give it one in FLOORS of {Path(__file__).name}")


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of one circle, or an empty list."""
    done: set[str] = set()

    def search(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        for target in sorted(graph.get(name, ())):
            if found := search(target, [*path, name]):
                return found
        done.add(name)
        return []

    for name in sorted(graph):
        if found := search(name, []):
            return found
    return []


def going_up(graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Say which imports do not go down from one room to another."""
    for module, targets in graph.items():
        for target in sorted(targets):
            room, other = room_of(module), room_of(target)
            if room != other and floor_of(other) >= floor_of(room) and (room, other) != EXCEPTION:
                yield f"{module} imports {target}"


def test_imports_go_down() -> None:
    assert list(going_up(arrows())) == []


def test_no_imports_run_in_a_circle() -> None:
    upward = {module: set(targets) for module, targets in arrows().items()}
    for module, targets in upward.items():
        if room_of(module) == EXCEPTION[0]:
            upward[module] = {name for name in targets if room_of(name) != EXCEPTION[1]}
    assert circle(upward) == []


def test_only_one_module_uses_the_exception() -> None:
    users = [
        module
        for module, targets in arrows().items()
        if room_of(module) == EXCEPTION[0] and any(room_of(t) == EXCEPTION[1] for t in targets)
    ]
    assert len(users) == 1, users


FOLDERS = sorted({path.parent for path in modules().values()})


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_folder_says_what_it_is_for(folder: Path) -> None:
    assert (folder / "__init__.py").is_file()
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
    assert text and text.splitlines()[0].rstrip().endswith((".", "`", "?"))
    assert len(text.splitlines()[0]) <= LONGEST_DOCSTRING


def test_the_map_of_contributing_is_the_tree() -> None:
    """One line a folder, annotated, and no line for a folder that is not there."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    block = re.search(r"```text\n(structsam/.*?)```", text, re.DOTALL)
    assert block, "CONTRIBUTING.md has no map"
    shown, package = [], ""
    for line in block[1].splitlines():
        found = re.match(r"^( *)([\w/]+)/ {2,}(\S.*)$", line)
        if not found:
            continue
        indent, name, told = found.groups()
        assert len(told) > 10, line
        package = package if indent else name
        shown.append(f"{package}/{name}" if indent else name)
    inside = [path for folder in PACKAGES for path in (ROOT / folder).rglob("*") if path.is_dir()]
    there = [ROOT / folder for folder in (*PACKAGES, "engines", "scripts", "tests", "docs")]
    there += [path for path in inside if path.name != "__pycache__"]
    assert sorted(shown) == sorted(path.relative_to(ROOT).as_posix() for path in there)


# The checker is checked


def test_the_check_sees_a_circle() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]
    assert circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_check_sees_an_import_that_goes_up() -> None:
    graph = {"structsam_export.bundle.manifest": {"structsam_export.cli.main"}}
    assert list(going_up(graph)) == [
        "structsam_export.bundle.manifest imports structsam_export.cli.main"
    ]
    beside = {"structsam_export.inspect.report": {"structsam_export.bench.report"}}
    assert list(going_up(beside))
    with pytest.raises(AssertionError, match="has no floor"):
        list(going_up({"structsam_export.new.file": {"structsam.errors"}}))


def test_the_check_sees_imports_wherever_they_stand() -> None:
    known = {"p": 0, "p.a": 0, "p.b": 0, "p.b.c": 0}
    source = """
from p import a
def f():
    from p.b import c
if TYPE_CHECKING:
    from p.b import NAME
"""
    assert imported(source, known) == {"p.a", "p.b.c", "p.b"}
