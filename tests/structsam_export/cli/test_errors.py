"""What goes wrong in a command: one line where a user can mend it, else a traceback; exit 2."""

from __future__ import annotations

import ast
import errno
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.main import get_command

from structsam.config import MergeConfig
from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle
from structsam_export.cli import inventory
from structsam_export.cli.errors import EXTRA_OF
from structsam_export.cli.flags import in_flags
from structsam_export.cli.main import COMMANDS, app, run
from tests.structsam.evaluation.small_results import (
    row_of,
    run_facts,
    square,
    write_facts,
    write_rows,
)

ROOT = Path(__file__).resolve().parents[3]
#: What every command says to a path or name that does not exist. A new command needs a line.
WRONG_PATH = {
    "export": ["--model", "vit_t", "--image", "nowhere.png"],
    "build": ["nowhere"],
    "check": ["nowhere"],
    "predict": ["nowhere", "nowhere.png"],
    "everything": ["nowhere", "nowhere.png"],
    "segment": ["nowhere", "nowhere", "--out", "out"],
    "serve": ["nowhere"],
    "triton": ["nowhere", "--out", "out"],
    "lint": ["nowhere.onnx"],
    "list": ["nowhere"],  # takes none
    "doctor": ["nowhere"],  # takes none
    "download": ["nowhere"],
    "bench": ["nowhere"],
    "flops": ["--recipe", "nowhere.json"],
    "spectrum": ["--model", "vit_t", "--image", "nowhere.png"],
    "inspect": ["--model", "vit_t", "--image", "nowhere.png"],
    "evaluate": ["--root", "nowhere"],
    "report": ["nowhere"],
    "tune": ["--images", "nowhere"],
}
#: A value that an option cannot have.
WRONG_VALUE = {
    "export": ["--model", "vit_x"],
    "build": ["nowhere", "--optimization-level", "9"],
    "check": ["nowhere", "--threads", "0"],
    "predict": ["nowhere", "nowhere.png", "--threads", "none"],
    "everything": ["nowhere", "nowhere.png", "--points-per-side", "0"],
    "segment": ["nowhere", "nowhere", "--out", "out", "--readers", "0"],
    "serve": ["nowhere", "--port", "70000"],
    "triton": ["nowhere", "--out", "out", "--kind", "npu"],
    "lint": ["nowhere.onnx", "--json=x"],
    "list": ["--markdown=x"],
    "doctor": ["--json=x"],
    "download": ["vit_b", "--json=x"],
    "bench": ["--model", "vit_t", "--precision", "fp8"],
    "flops": ["--method", "magic"],
    "spectrum": ["--model", "vit_x"],
    "inspect": ["--model", "vit_x"],
    "evaluate": ["--root", ".", "--dataset", "nosuch"],
    "report": ["nowhere", "--gallery", "-1"],
    "tune": ["--images", ".", "--precision", "int4"],
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STRUCTSAM_VERBOSE", raising=False)


def test_the_tables_know_every_command() -> None:
    names = {command.name for command in app.registered_commands}
    assert names == set(COMMANDS) == set(WRONG_PATH) == set(WRONG_VALUE)


@pytest.mark.parametrize("table", [WRONG_PATH, WRONG_VALUE], ids=["path", "value"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_one_line(
    capsys: pytest.CaptureFixture[str], command: str, table: dict[str, list[str]]
) -> None:
    assert run([command, *table[command]]) == 2
    out, err = capsys.readouterr()
    # a layout of folders is shown below its line
    lines = [line for line in err.splitlines() if not line.startswith(("note:", "  "))]
    assert out == "" and len(lines) == 1 and lines[0].startswith("error: "), err


@pytest.mark.parametrize("command", COMMANDS)
def test_with_json_a_mistake_is_an_object(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert run([command, *WRONG_PATH[command], "--json"]) == 2
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert set(told) == {"error", "exit_code"} and told["exit_code"] == 2
    assert err.endswith(f"error: {told['error']}\n")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_json_and_verbose(
    capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert run([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json" in shown and "--verbose" in shown


HIDDEN = """
import contextlib, io, json, sys, traceback
import importlib.machinery as machinery

class Hides(machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition(".")[0] in HIDE:
            return None
        return machinery.PathFinder.find_spec(name, path, target)

HIDE, command_lines = map(json.loads, sys.argv[1:])
sys.meta_path[:] = [Hides if f is machinery.PathFinder else f for f in sys.meta_path]
from structsam_export.cli.main import main

def ended(arguments):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as error:
            code = error.code
        except Exception:
            code = traceback.print_exc() or 1
    return code, out.getvalue(), err.getvalue()

print(json.dumps([ended(arguments) for arguments in command_lines]))
"""
Ended = subprocess.CompletedProcess[str]


def without(packages: list[str], command_lines: list[list[str]], folder: Path) -> list[Ended]:
    """Run commands in one process, in `folder`, where these packages are not installed."""
    command = [sys.executable, "-c", HIDDEN, json.dumps(packages), json.dumps(command_lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=folder)
    assert done.returncode == 0, done.stderr
    answers = zip(command_lines, json.loads(done.stdout), strict=True)
    return [Ended(arguments, *answer) for arguments, answer in answers]


#: Commands that do their work without any optional package.
NEEDS_NONE = {"list", "flops", "triton"}


@pytest.fixture(scope="module")
def without_packages(
    tiny_bundle: Bundle, tiny_photo: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Ended]:
    """How commands end without any optional package."""
    bundle, photos = tiny_bundle.path, tiny_photo.parent
    arguments: dict[str, list[object]] = {
        "export": ["--model", "vit_t"],
        "build": [bundle],
        "check": [bundle, "--require", "onnxruntime"],
        "predict": [bundle, tiny_photo],
        "everything": [bundle, tiny_photo],
        "segment": [bundle, photos, "--everything", "--out", "segmented"],
        "serve": [bundle, "--port", 0],
        "download": ["vit_b", "--url", "http://127.0.0.1:9/vit_b.pth"],
        "lint": [bundle / "encoder.onnx"],
        "bench": [bundle, "--require", "onnxruntime"],
        "spectrum": ["--model", "vit_t"],
        "inspect": ["--model", "vit_t"],
        "evaluate": ["--root", ".", bundle],
        "report": ["results"],
        "tune": ["--images", photos],
        "triton": [bundle, "--out", "repository"],
        "list": [],
        "flops": [],
    }
    folder = tmp_path_factory.mktemp("without_packages")
    for data in ("images", "masks"):
        (folder / data).mkdir()
        (folder / data / "a.png").write_bytes(tiny_photo.read_bytes())
    row = row_of("a", "1", 1, *[square(5, 5, 9, 9)] * 2)
    write_rows(folder / "results", "unmerged", [row])
    write_facts(folder / "results", [run_facts("unmerged")])
    lines = [[command, *map(str, rest)] for command, rest in arguments.items()]
    return dict(zip(arguments, without(list(EXTRA_OF), lines, folder), strict=True))


# `doctor` tells what is missing: tests/structsam_export/doctor/
@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"doctor"}))
def test_without_optional_packages_a_command_works_or_names_the_extra(
    without_packages: dict[str, Ended], command: str
) -> None:
    ended = without_packages[command]
    assert "Traceback" not in ended.stderr
    if command == "download":  # needs none, and nothing listens there
        assert ended.returncode == 2 and "Cannot reach" in ended.stderr
    elif command in NEEDS_NONE:
        assert ended.returncode == 0, ended.stderr
    else:
        assert ended.returncode == 2, ended.stderr
        last = ended.stderr.splitlines()[-1]
        assert last.startswith("error: ") and "pip install 'structsam[" in last


TORCH = ["torch", "torchvision", "segment_anything"]
REFUSED_EXPORTS = [
    ("export --model vit_x", "vit_b, vit_l, vit_h"),
    ("export --model vit_b --rate 0.9", "outside [0, 0.75]"),
    ("export --model vit_b --rate half", "is not a number"),
    ("export --model vit_b --method magic", "unknown method"),
    ("export --model vit_b --layers some", "unknown layers"),
    ("export --model vit_b --layers 99", "blocks 0 to 11"),
    ("export --model vit_b --precision fp8", "unknown precision"),
    ("export --model vit_b --checkpoint nowhere.pth", "not found"),
    ("export --model vit_b", "No weights are named"),
    ("export --model vit_t --image nowhere.png", "does not exist"),
    ("export --model vit_t --out file", "cannot write file"),
    ("export --model vit_t --out file/below", "cannot write file/below"),
]
REFUSED_STUDIES = [
    ("tune --images nowhere", "no photo or folder"),
    ("tune --images nowhere --model vit_x", "vit_b, vit_l, vit_h"),
    ("tune --images nowhere --max-loss 0.1 --max-latency 1s", "cannot both be kept"),
    ("tune --images nowhere --model vit_b", "No weights are named"),
    ("inspect --model vit_x", "vit_b, vit_l, vit_h"),
    ("inspect --model vit_t --rate 0.95", "outside [0, 0.75]"),
    ("inspect --model vit_t --layers 99", "blocks 0 to 11"),
    ("inspect --model vit_t --image nowhere.png", "does not exist"),
    ("spectrum --model vit_x", "vit_b, vit_l, vit_h"),
    ("spectrum --model vit_t --image nowhere.png", "does not exist"),
    ("spectrum --model vit_t --out file", "cannot write file"),
    ("inspect --model vit_t --out file/below", "cannot write file/below"),
    ("spectrum --model vit_t --graph magic", "unknown graph 'magic'"),
    ("spectrum --model vit_t --rates 0.9", "outside [0, 0.75]"),
    ("spectrum --model vit_t --layers 99", "blocks 0 to 11"),
    ("inspect --model vit_t --methods structsam --option edge=9", "has no option 'edge'"),
]
ONLY_COUNT = ["list", "list --markdown", "flops --model vit_b --rate 0.5"]


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """How these command lines end without torch, by line."""
    folder = tmp_path_factory.mktemp("without_torch")
    (folder / "file").write_text("no folder")
    lines = [line for line, _ in REFUSED_EXPORTS + REFUSED_STUDIES] + ONLY_COUNT
    ended = without(TORCH, [line.split() for line in lines], folder)
    return dict(zip(lines, ended, strict=True))


@pytest.mark.parametrize(("arguments", "said"), REFUSED_EXPORTS)
def test_an_export_is_refused_before_torch_is_needed(
    without_torch: dict[str, Ended], arguments: str, said: str
) -> None:
    ended = without_torch[arguments]
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr


@pytest.mark.parametrize(("arguments", "said"), REFUSED_STUDIES)
def test_a_study_is_refused_before_torch_is_needed(
    without_torch: dict[str, Ended], arguments: str, said: str
) -> None:
    ended = without_torch[arguments]
    assert ended.returncode == 2 and said in ended.stderr, ended.stderr


@pytest.mark.parametrize("arguments", ONLY_COUNT)
def test_what_only_counts_needs_no_torch(without_torch: dict[str, Ended], arguments: str) -> None:
    ended = without_torch[arguments]
    assert ended.returncode == 0 and "structsam" in ended.stdout, ended.stderr


def test_versions_are_shown_and_nothing_is_imported() -> None:
    code = (
        "import sys\nfrom structsam_export.cli.main import run\nassert run(['--version']) == 0\n"
        "print(sorted({'torch', 'onnxruntime', 'tensorrt', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("structsam-export ") and lines[-1] == "[]"
    names = {line.split()[0] for line in lines[1:-1]}
    assert {"python", "torch", "onnxruntime", "tensorrt", "tensorrt-rtx"} <= names


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(inventory, "inventory", fail)


FAULTS = [
    ModuleNotFoundError("No module named 'structsam_export.typo'", name="structsam_export.typo"),
    ModuleNotFoundError("No module named 'numpy.typo'", name="numpy.typo"),
    ModuleNotFoundError("No module named 'onnx.typo'", name="onnx.typo"),  # onnx is installed
    OSError(errno.EIO, "Input/output error"),
    OSError("cannot load library"),
    RuntimeError("a fault"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_of_ours_keeps_its_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    pytest.importorskip("onnx")
    failing(monkeypatch, fault)
    assert run(["list", "--json"]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" in err and str(fault) in err
    assert json.loads(out)["error"] == f"{type(fault).__name__}: {fault}"


@pytest.mark.parametrize(
    "mendable",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "a.png"),
        PermissionError(errno.EACCES, "Permission denied", "a.png"),
        OSError(errno.ENOSPC, "No space left on device", "a.png"),
        OSError(errno.EFBIG, "File too large", "a.png"),  # FAT32, or ulimit -f
    ],
    ids=repr,
)
def test_what_a_user_can_mend_about_a_file_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, mendable: OSError
) -> None:
    failing(monkeypatch, mendable)
    assert run(["list"]) == 2
    assert capsys.readouterr().err == f"error: {mendable.strerror}: a.png\n"


def test_an_absent_optional_package_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    failing(monkeypatch, ModuleNotFoundError("halted", name="pycocotools.mask"))
    assert run(["list"]) == 2
    err = capsys.readouterr().err
    assert err == (
        "error: pycocotools is not installed. Install it with `pip install 'structsam[eval]'`\n"
    )


def test_the_optional_packages_are_those_of_the_extras() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    imported = {"cuda-bindings": "cuda", "onnxruntime-gpu": "onnxruntime"}
    extras: dict[str, set[str]] = {}
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements if extra != "dev" else ():
            name = re.split(r"\[|>=", requirement)[0]
            extras.setdefault(imported.get(name, name.replace("-", "_")), set()).add(extra)
    assert set(EXTRA_OF) == set(extras)
    assert all(EXTRA_OF[name] in extras[name] for name in EXTRA_OF)


@pytest.mark.parametrize(
    "arguments", [["--verbose", "list"], ["-v", "list"], ["list", "--verbose"], ["list", "-v"]]
)
def test_verbose_shows_the_traceback_of_a_users_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    failing(monkeypatch, UserError("no such thing"))
    assert run(arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" in err and err.splitlines()[-1] == "error: no such thing"
    assert run(["list"]) == 2  # and the next command is quiet again
    assert capsys.readouterr().err == "error: no such thing\n"


def test_the_environment_can_ask_for_it_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRUCTSAM_VERBOSE", "1")
    failing(monkeypatch, UserError("no such thing"))
    assert run(["list"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_verbose_says_which_backend_runs_and_why_not_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle
) -> None:
    from structsam_export.runtimes import find_backend

    def choose() -> None:
        find_backend("auto", tiny_bundle)
        raise UserError("enough")

    monkeypatch.setattr(inventory, "inventory", choose)
    assert run(["list", "-v"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "auto is" in line]
    assert re.search(r"structsam_export: auto is not tensorrt: .{10}", lines[0]), lines
    assert re.search("auto is (onnxruntime|openvino)$", lines[-1])


def test_loggers_are_below_that_of_their_package() -> None:
    for package in ("structsam", "structsam_export"):
        for path in (ROOT / package).rglob("*.py"):
            names = re.findall(r"^\w+ = logging.getLogger\((.*)\)", path.read_text("utf-8"), re.M)
            assert set(names) <= {f'"{package}"', "__name__"}, path


# Interrupts

INTERRUPTED_AT_THE_END = """
import os, signal, sys, time
from structsam_export.cli import main as module
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
work, number = module.run, signal.Signals[sys.argv[1]]
def run(arguments):
    code = work(arguments)
    os.kill(os.getpid(), number)
    time.sleep(5)
    return code
module.run = run
sys.argv = ["structsam-export", "--version"]
module.main()
"""
INTERRUPTED_WHILE_LEAVING = """
import atexit, sys, time
from structsam_export.cli.main import main
atexit.register(lambda: (print("leaving", flush=True), time.sleep(1.5), print("left", flush=True)))
sys.argv = ["structsam-export", "--version"]
main()
"""


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")],
)
def test_a_signal_after_the_last_line_is_its_code_and_no_traceback(
    number: str, code: int, word: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_AT_THE_END, number],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    assert f"error: {word}; finished files are kept" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_interpreter_leaves_changes_nothing(number: signal.Signals) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED_WHILE_LEAVING],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if line == "leaving\n":
            break
    for _ in range(5):
        child.send_signal(number)
        time.sleep(0.05)
    out, err = child.communicate(timeout=60)
    assert (child.returncode, out, err) == (0, "left\n", "")


def texts_of(path: Path) -> list[str]:
    """The strings of a module that are no docstrings, an f-string as one."""
    tree = ast.parse(path.read_text("utf-8"))
    inner: set[int] = set()
    for node in ast.walk(tree):
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if docstring or isinstance(node, ast.JoinedStr):
            inner |= {id(child) for child in ast.walk(node) if child is not node}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "_" for part in node.values]
            found.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found += [] if id(node) in inner else [node.value]
    return found


def test_python_messages_name_parameters_and_the_command_line_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for package in ("structsam", "structsam_export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if "cli" in path.parts or path.name in ("machine.py", "polygraphy_files.py"):
                continue  # they name options of other programs
            for text in texts_of(path):
                left = re.sub(r"(^|`)(pip|structsam-export) [^`]*", "", text)
                assert not re.search(r"--[a-z]", left), f"{path.name} names an option: {text}"
    with pytest.raises(UserError, match=r"Use `rate=0\.75` or less"):
        MergeConfig(rate=0.9)
    assert run(["flops", "--rate", "0.9"]) == 2
    assert "Use --rate 0.75 or less" in capsys.readouterr().err


def test_parameters_become_options_that_commands_have() -> None:
    """Every parameter that a message names is an option of some command."""
    flags = set()
    for command in get_command(app).commands.values():  # type: ignore[attr-defined]
        flags |= {flag for parameter in command.params for flag in parameter.opts}
    for package in ("structsam", "structsam_export"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for text in texts_of(path):
                for flag in re.findall(r"--[a-z-]+", in_flags(" ".join(named(text)))):
                    assert flag in flags, f"{path.name}: {text}"


def named(text: str) -> list[str]:
    return re.findall(r"`[a-z_]+=[^`]*`", text)


def test_commands_have_names_of_their_own() -> None:
    for path in sorted((ROOT / "structsam_export/cli").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert "run" not in [alias.asname for alias in node.names], path.name
