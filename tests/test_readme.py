"""The commands of the README and docs/ run as they stand, in order, and links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from structsam.models import MODELS, ModelSpec
from structsam.models.vit_t import VIT_T

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
#: In the order in which their commands are run: the first makes what the second uses.
PAGES = (ROOT / "docs" / "commands.md", ROOT / "docs" / "python.md", README)
METHODS_PAGE = ROOT / "docs" / "merging.md"
NOT_RUN = "<!-- not run by the tests"
COMMAND = re.compile(r"^\$ (structsam-export .+)$", re.MULTILINE)


def blocks(language: str = "") -> list[str]:
    """Fenced blocks of a language that no comment right above excludes."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    pattern = re.compile(r"(^[^\n]*)\n```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    return [
        body
        for above, found, body in pattern.findall(text)
        if found == language and not above.startswith(NOT_RUN)
    ]


def commands() -> list[str]:
    return [command for block in blocks("console") for command in COMMAND.findall(block)]


def test_the_readme_shows_every_command() -> None:
    shown = {shlex.split(command)[1] for command in commands()}
    everything = {
        "export", "build", "check", "predict", "bench", "flops", "lint", "list",
        "inspect", "spectrum",
    }  # fmt: skip
    assert shown >= everything, everything - shown


def test_the_table_of_methods_is_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("torch")
    from structsam.methods import METHODS
    from structsam_export.cli.main import main

    with pytest.raises(SystemExit) as ended:
        main(["list", "--markdown"])
    assert not ended.value.code
    table = capsys.readouterr().out.strip()
    assert table.count("\n") == len(METHODS) + 1
    shown = re.search(
        r"<!-- methods: .*?-->\n(.*?)\n<!-- end of methods -->",
        METHODS_PAGE.read_text("utf-8"),
        re.DOTALL,
    )
    assert shown and shown[1] == table


def test_the_installed_command_starts() -> None:
    command = Path(sys.executable).with_name("structsam-export")
    done = subprocess.run([command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "spectrum" in done.stdout


def first_blocks_of_vit_t(count: int, folder: Path) -> ModelSpec:
    """ViT-T and its weights, cut off after some blocks."""
    from safetensors.torch import load_file, save_file

    spec = MODELS["vit_t"]
    assert spec.embedded_weights
    number = re.compile(r"image_encoder\.blocks\.(\d+)\.")
    state = {
        name: tensor
        for name, tensor in load_file(spec.embedded_weights).items()
        if not (block := number.match(name)) or int(block[1]) < count
    }
    file = folder / "first_blocks.safetensors"
    save_file(state, file)
    kept = tuple(block for block in spec.global_blocks if block < count)
    return replace(spec, depth=count, global_blocks=kept, embedded=str(file))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("without_openvino")
def test_the_commands_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, which has loaded PyTorch already.

    The first export is of the whole model. The second one says as much on three blocks.
    """
    pytest.importorskip("onnxruntime")
    pytest.importorskip("torch")
    from structsam_export.cli.main import main

    (tmp_path / "structsam_export").mkdir()
    (tmp_path / "structsam_export" / "assets").symlink_to(ROOT / "structsam_export" / "assets")
    monkeypatch.chdir(tmp_path)
    three_blocks = first_blocks_of_vit_t(3, tmp_path)
    for command in commands():
        arguments = shlex.split(command)[1:]
        is_short = "--prompt-aware" in arguments
        monkeypatch.setitem(MODELS, "vit_t", three_blocks if is_short else VIT_T)
        if "tensorrt-rtx" in arguments or "--target" in arguments:
            pytest.importorskip("tensorrt_rtx")
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert not ended.value.code, f"{command}\n{''.join(capsys.readouterr())}"


def test_the_make_targets_of_the_readme_exist() -> None:
    wanted = set(re.findall(r"^(?:\w+=\w+ )?make (\w+)", "\n".join(blocks()), re.MULTILINE))
    assert {"demo", "test"} <= wanted
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in wanted:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_relative_links_lead_to_files() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"


def test_python_examples_name_what_exists() -> None:
    import structsam
    import structsam_export

    for block in blocks("python"):
        compile(block, "README.md", "exec")
        for module, name in re.findall(r"\b(structsam|structsam_export)\.(\w+)\(", block):
            assert (
                name
                in {"structsam": structsam, "structsam_export": structsam_export}[module].__all__
            )
        for names in re.findall(r"from structsam_export import (.+)", block):
            assert set(map(str.strip, names.split(","))) <= set(structsam_export.__all__)


def test_the_readme_is_read_to_the_end() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 160, "the README is a page of two minutes: put the rest into docs/"
    assert max(map(len, lines)) <= 180
    for page in (ROOT / "docs").glob("*.md"):
        shown = f"(docs/{page.name})" in "\n".join(lines)
        assert shown, f"the README does not lead to {page.name}"
