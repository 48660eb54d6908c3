"""`structsam-export`: a thin face of Python functions. Exit 0 done, 1 parity failed, 2 error."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Annotated

import typer

from structsam_export.cli.bench import bench
from structsam_export.cli.doctor import examine_machine
from structsam_export.cli.errors import end_with
from structsam_export.cli.evaluate import evaluate, report_results
from structsam_export.cli.everything import mask_everything
from structsam_export.cli.export import build_engines, download_checkpoint, export_model, lint_onnx
from structsam_export.cli.inventory import list_everything
from structsam_export.cli.logs import Verbose, set_verbose, takes_verbose, verbose_by_environment
from structsam_export.cli.run import check_bundle, predict_masks
from structsam_export.cli.segment import segment_photos
from structsam_export.cli.serve import serve_bundle
from structsam_export.cli.signals import catch_sigterm, ignore_both
from structsam_export.cli.study import count_flops, inspect, measure_spectrum
from structsam_export.cli.triton import write_triton_repository
from structsam_export.cli.tune import tune

app = typer.Typer(
    name="structsam-export",
    help="Export token-merged Segment Anything to ONNX and TensorRT, run it, and prove it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "export": export_model,
    "build": build_engines,
    "check": check_bundle,
    "predict": predict_masks,
    "everything": mask_everything,
    "segment": segment_photos,
    "serve": serve_bundle,
    "triton": write_triton_repository,
    "lint": lint_onnx,
    "list": list_everything,
    "doctor": examine_machine,
    "download": download_checkpoint,
    "bench": bench,
    "flops": count_flops,
    "spectrum": measure_spectrum,
    "inspect": inspect,
    "evaluate": evaluate,
    "report": report_results,
    "tune": tune,
}
for _name, _command in COMMANDS.items():
    app.command(name=_name)(takes_verbose(_command))


def _show_version(wanted: bool) -> None:
    if wanted:
        from structsam_export.machine import version_lines

        print("\n".join(version_lines()))
        raise typer.Exit


@app.callback()
def _before_every_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show versions and exit."
        ),
    ] = False,
    verbose: Verbose = False,
) -> None:
    if verbose:
        set_verbose(True)


def run(arguments: list[str]) -> int:
    """Run a command line; return its exit code. Nothing is raised."""
    as_json = "--json" in arguments
    set_verbose(verbose_by_environment())
    try:
        ended = app(args=arguments, prog_name="structsam-export", standalone_mode=False)
        if ended == 130:  # so ends what was interrupted inside a command
            raise KeyboardInterrupt
        return ended or 0
    except SystemExit as end:  # the reader of a pipe went away
        return int(end.code or 0)
    except BaseException as error:
        return end_with(error, as_json)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit; without `arguments` those of this process, which ends here."""
    try:
        catch_sigterm()
        code = run(sys.argv[1:] if arguments is None else arguments)
        if arguments is None:
            ignore_both()  # the work is done
    except KeyboardInterrupt as error:
        ignore_both()
        code = end_with(error, as_json=False)
    sys.exit(code)


if __name__ == "__main__":
    main()
