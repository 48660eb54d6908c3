"""The direction of imports: who may load whom, and what `import` alone must not load."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def room_of(path):
    """The module's place within structsam_export, such as `graph/lint`."""
    return Path(path).resolve().relative_to(ROOT / "structsam_export").with_suffix("").as_posix()


NEVER_IN_STRUCTSAM = ("structsam_export", "onnx", "onnxruntime", "tensorrt")
#: What run-time modules may import of structsam: it needs no torch.
LIGHT_IN_STRUCTSAM = (
    "structsam.errors",
    "structsam.mask_iou",
    "structsam.mask_runs",
    "structsam.models",
)
#: What a machine that only runs bundles has not: torch, and what of structsam needs it.
ABSENT_AT_RUN_TIME = ("torch", "torchvision", "segment_anything", "structsam")
#: The steps of export and study that need torch. All others must load without it, new ones too.
NEEDS_TORCH = {
    "bench/flops_table",
    "bench/roofline",
    "graph/exporter",
    "graph/hq_features",
    "graph/mixed_precision",
    "graph/modules",
    "graph/quantized_encoder",
    "parity/replay",
    "pipeline",
}
#: They read ONNX files; all others load where onnx is absent as well.
NEEDS_ONNX = {
    "graph/activation_ranges",
    "graph/lint",
    "graph/onnx_graph",
    "graph/quantization_rules",
    "graph/quantize",
}
RUN_TIME = [
    path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "structsam_export").rglob("*.py"))
    if room_of(path) not in NEEDS_TORCH
]
#: Modules of a registry's folder that are no entries of it.
INFRASTRUCTURE = {
    "structsam/methods": {"base", "cost", "options", "fixed_destinations"},
    "structsam/models": {
        "base",
        "spec",
        "checkpoint_file",
        "checkpoint_keys",
        "checkpoint_path",
        "checkpoint_preprocessing",
        "derived",
        "download",
        "find_model",
        "image_size",
        "load",
        "resize_weights",
        "sam_hq",
        "spec_file",
    },
    "structsam/evaluation/metrics": {"base", "crop"},
    "structsam/evaluation/datasets": {
        "base",
        "layout",
        "pairs",
        "image_files",
        "label_maps",
        "coco_json",
        "detector_boxes",
    },
    "structsam_export/runtimes": {
        "base",
        "cuda_graphs",
        "cuda_memory",
        "device_buffers",
        "device_tensor",
        "kept_tensor",
        "openvino_cache",
        "openvino_select",
        "runtime_cache",
        "tensorrt_contexts",
        "tensorrt_engine",
        "tensorrt_module",
        "tensorrt_runner",
        "torch_on_cpu",
    },
}
#: Loads the modules in argv with some packages absent, and prints which heavy ones were loaded.
LOADER = """
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        parent = name.rpartition(".")[0]
        allowed = name in ALLOWED or parent in ALLOWED - {"structsam"}
        if name.split(".")[0] in ABSENT and not allowed:
            raise ModuleNotFoundError(f"No module named {name!r} (absent in this test)", name=name)

sys.meta_path.insert(0, Absent())
for module in sys.argv[1:]:
    importlib.import_module(module)
print(sorted({name.split(".")[0] for name in sys.modules}))
"""


def is_type_checking(node) -> bool:
    test = node.test if isinstance(node, ast.If) else None
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def walk(node, inside_functions):
    """All nodes below, without the bodies of functions when these are to be left out."""
    for child in ast.iter_child_nodes(node):
        if not inside_functions:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                continue
            if is_type_checking(child):
                for branch in child.orelse:
                    yield branch
                    yield from walk(branch, inside_functions)
                continue
        yield child
        yield from walk(child, inside_functions)


def imports_of(source, package, *, inside_functions):
    """Dotted names that a module imports: `from a import b` gives a.b."""
    names = []
    for node in walk(ast.parse(source), inside_functions):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, node.module or ""]) if node.level else node.module or ""
            names += [f"{base.rstrip('.')}.{alias.name}" for alias in node.names]
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "attr", getattr(node.func, "id", "")) in DYNAMIC_IMPORTS
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.append(str(node.args[0].value))
    return names


DYNAMIC_IMPORTS = ("import_module", "__import__")


def imports_of_file(path, *, inside_functions):
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return imports_of(path.read_text("utf-8"), package, inside_functions=inside_functions)


def forbidden_in_structsam(name) -> bool:
    top = name.split(".")[0]
    return top in NEVER_IN_STRUCTSAM or top.startswith("tensorrt")


def forbidden_at_run_time(name) -> bool:
    if f"{name}.".startswith(tuple(f"{light}." for light in LIGHT_IN_STRUCTSAM)):
        return False
    return name.split(".")[0] in ABSENT_AT_RUN_TIME


def files_of(package):
    return sorted((ROOT / package).rglob("*.py"))


def identity(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files_of("structsam"), ids=identity)
def test_structsam_knows_nothing_of_the_export(path) -> None:
    names = imports_of_file(path, inside_functions=True)
    assert [name for name in names if forbidden_in_structsam(name)] == []


@pytest.mark.parametrize("file", RUN_TIME)
def test_run_time_modules_name_no_torch_at_their_top(file) -> None:
    names = imports_of_file(ROOT / file, inside_functions=False)
    assert [name for name in names if forbidden_at_run_time(name)] == []


def load(modules, absent=(), allowed=()):
    """Import in a fresh interpreter; the top-level names of what was loaded."""
    code = f"ABSENT, ALLOWED = {set(absent)!r}, {set(allowed)!r}\n{LOADER}"
    done = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return set(ast.literal_eval(done.stdout))


def load_at_run_time(files, absent=()):
    """Import these files' modules as on a machine that only runs bundles."""
    modules = [file.removesuffix(".py").removesuffix("/__init__") for file in files]
    return load(
        [module.replace("/", ".") for module in modules],
        absent={*ABSENT_AT_RUN_TIME, "onnxruntime", "tensorrt", "tensorrt_rtx", "cuda", *absent},
        allowed={"structsam", *LIGHT_IN_STRUCTSAM},
    )


def test_run_time_modules_load_where_torch_and_the_rest_of_structsam_are_absent() -> None:
    assert not load_at_run_time(RUN_TIME) & {"torch", "segment_anything", "onnxruntime"}


def test_run_time_modules_load_where_onnx_is_absent() -> None:
    files = [
        file for file in RUN_TIME if room_of(ROOT / file) not in NEEDS_ONNX | {"bench/benchmark"}
    ]
    assert "structsam_export" in load_at_run_time(files, absent={"onnx", "onnxscript", "onnx_ir"})


def test_benchmark_loads_where_onnx_is_absent() -> None:
    load_at_run_time(
        ["structsam_export/bench/benchmark.py"], absent={"onnx", "onnxscript", "onnx_ir"}
    )


@pytest.mark.parametrize("package", ["structsam", "structsam_export"])
def test_importing_a_package_loads_nothing_heavy(package) -> None:
    loaded = load([package])
    assert package in loaded
    heavy = {"torch", "torchvision", "segment_anything", "onnx", "onnxruntime", "numpy", "PIL"}
    assert not loaded & heavy
    assert not [name for name in loaded if name.startswith(("tensorrt", "cuda"))]


@pytest.mark.parametrize(
    "module",
    [
        "structsam.config",
        "structsam.errors",
        "structsam.flops",
        "structsam.methods",
        "structsam.models",
    ],
)
def test_what_is_judged_and_counted_loads_without_torch(module) -> None:
    assert "torch" not in load([module], absent={"torch", "segment_anything"})


@pytest.mark.parametrize("folder", INFRASTRUCTURE)
def test_every_module_of_a_registry_is_registered(folder) -> None:
    package = folder.replace("/", ".")
    registered = imports_of_file(ROOT / folder / "__init__.py", inside_functions=False)
    for path in sorted((ROOT / folder).glob("*.py")):
        if path.stem == "__init__" or path.stem in INFRASTRUCTURE[folder]:
            continue
        module = f"{package}.{path.stem}"
        assert any(name == module or name.startswith(f"{module}.") for name in registered), (
            f"{identity(path)} is not registered in {folder}/__init__.py"
        )


@pytest.mark.parametrize("package", ["structsam", "structsam_export"])
def test_every_documented_name_can_be_resolved(package) -> None:
    """The lazy names point at modules that exist; importing them is left to other tests."""
    for name, home in importlib.import_module(package)._HOME_OF.items():
        path = ROOT / (home.replace(".", "/") + ".py")
        assert path.is_file(), f"{package}.{name} lives in {home}, which does not exist"
        defined = {getattr(node, "name", None) for node in ast.parse(path.read_text("utf-8")).body}
        assert name in defined, f"{home} defines no {name}"


# The checker is checked


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import onnx", ["onnx"]),
        ("import onnx.helper as h, os", ["onnx.helper"]),
        ("from tensorrt_rtx import Builder", ["tensorrt_rtx.Builder"]),
        ("def f():\n    from structsam_export import lint", ["structsam_export.lint"]),
        ("class A:\n    def f(self):\n        import onnxruntime", ["onnxruntime"]),
        ("if TYPE_CHECKING:\n    import onnx", ["onnx"]),
        ("try:\n    import tensorrt\nexcept ImportError:\n    pass", ["tensorrt"]),
        ("import importlib\nx = lambda: importlib.import_module('onnx')", ["onnx"]),
        ("from structsam import errors\nfrom . import apply\nimport onnxish", []),
    ],
)
def test_the_check_sees_every_kind_of_import(source, found) -> None:
    names = imports_of(source, "structsam", inside_functions=True)
    assert [name for name in names if forbidden_in_structsam(name)] == found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("from structsam.errors import UserError", []),
        ("from structsam import errors", []),
        ("from structsam import apply_merging", ["structsam.apply_merging"]),
        ("from structsam.models import MODELS", []),
        ("from structsam.methods import METHODS", ["structsam.methods.METHODS"]),
        ("from structsam_export import bundle", []),
        ("def f():\n    import torch", []),
        ("class A:\n    import torch", ["torch"]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import torchvision", ["torchvision"]),
        ("if typing.TYPE_CHECKING:\n    import torch", []),
        ("try:\n    import torch\nexcept ImportError:\n    torch = None", ["torch"]),
    ],
)
def test_the_check_of_a_modules_top_leaves_functions_out(source, found) -> None:
    names = imports_of(source, "structsam_export", inside_functions=False)
    assert [name for name in names if forbidden_at_run_time(name)] == found


def test_relative_imports_are_resolved() -> None:
    names = imports_of(
        "from . import a\nfrom .b import c\nfrom ..d import e", "p.q", inside_functions=True
    )
    assert names == ["p.q.a", "p.q.b.c", "p.d.e"]


def test_an_absent_package_makes_an_import_fail_in_the_loader() -> None:
    with pytest.raises(AssertionError, match="absent in this test"):
        load(["json"], absent={"json"})
