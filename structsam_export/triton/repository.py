"""Writes the repository: a folder for each model, a page that says how to serve it, a client."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from structsam.errors import UserError
from structsam_export.bundle import atomic
from structsam_export.bundle.folder import Bundle
from structsam_export.bundle.manifest import PLAN_TENSORS, write_manifest
from structsam_export.predict.notes import trust_notes
from structsam_export.triton import model_config
from structsam_export.triton.network_files import NetworkFiles, network_files
from structsam_export.triton.pbtxt import Message, pbtxt
from structsam_export.triton.python_sources import python_sources
from structsam_export.triton.settings import TritonSettings

#: Says that a folder was written here, and so may be replaced.
MARK = "repository.json"
_VERSION = "1"
_MODELS = "structsam_export.triton.models"
_MODEL_PY = '''\
"""Written by `structsam-export triton`; the code lies in the folders beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from {module} import TritonPythonModel  # noqa: E402, F401
'''


@dataclass(frozen=True)
class Repository:
    """What was written.

    Args:
        backend: that runs the networks.
        models: name -> config.
        built_with: version of the TensorRT that the server must have; None without plans.
    """

    path: Path
    backend: str
    models: dict[str, Message]
    built_with: str | None


def write_repository(
    bundle: Bundle,
    out: str | Path,
    settings: TritonSettings | None = None,
    force: bool = False,
) -> Repository:
    """Write a Triton model repository of a bundle.

    The folder appears when all of it is written.

    Args:
        out: a folder that does not exist or is empty.
        force: replace a repository that was written here before.

    Raises:
        UserError: the folder holds something else, cannot be written, or the bundle has no plan
            for the backend.
    """
    settings, final = settings or TritonSettings(), Path(out)
    _require_free(final, force)
    files = network_files(bundle, settings.network_backend)
    made = Repository(final, files["encoder"].backend, {}, files["encoder"].built_with)
    with atomic.staged_folder(final) as folder:
        _write_models(bundle, files, settings, folder, made.models)
        _write_pages(bundle, settings, folder, made)
    return made


def _require_free(folder: Path, force: bool) -> None:
    atomic.require_writable(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    if not (folder / MARK).is_file():
        raise UserError(
            f"{folder} is not empty, and holds no Triton repository that this program wrote. "
            "Choose another folder with `out=`"
        )
    if not force:
        raise UserError(
            f"{folder} holds a Triton repository already. Choose another folder with `out=`, or "
            "add `force=True` to replace it"
        )


def _write_models(
    bundle: Bundle,
    files: dict[Any, NetworkFiles],
    settings: TritonSettings,
    folder: Path,
    models: dict[str, Message],
) -> None:
    """Write every model, and note its config under its name."""
    names = {role: f"{settings.name}_{role}" for role in _ROLES}
    encoder, decoder = bundle.part("encoder"), bundle.part("decoder")
    single = model_config.single_photo(encoder)

    def add(config: Message) -> Path:
        models[config["name"]] = config
        version = folder / config["name"] / _VERSION
        version.mkdir(parents=True)
        atomic.write_text(version.parent / "config.pbtxt", pbtxt(config))
        return version

    def add_network(name: str, role: str) -> None:
        part = encoder if role == "encoder" else decoder
        version = add(model_config.network_config(name, part, files[role], settings))
        for own_name, source in files[role].files.items():
            shutil.copyfile(source, version / own_name)

    def add_python(config: Message, module: str, with_manifest: bool = True) -> None:
        version = add(config)
        for place, source in python_sources(f"{_MODELS}.{module}").items():
            (version / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, version / place)
        atomic.write_text(version / "model.py", _MODEL_PY.format(module=f"{_MODELS}.{module}"))
        if with_manifest:
            write_manifest(version, {**bundle.manifest, "encoder": single.to_dict()})

    if single is encoder:
        add_network(names["encoder"], "encoder")
    else:
        add_network(names["encoder_batch"], "encoder")
        gather = model_config.gather_config(names["encoder"], names["encoder_batch"], encoder)
        add_python(gather, "gather", with_manifest=False)
    add_network(names["decoder"], "decoder")
    if not bundle.takes_box:
        config = model_config.preprocess_config(names["preprocess"], single.inputs[0], settings)
        add_python(config, "preprocess")
        version = add(
            model_config.ensemble_config(
                names["embedding"], names["preprocess"], names["encoder"], single
            )
        )
        # a store of objects has no empty folders, and Triton wants the version's
        atomic.write_text(version / "ensemble.txt", "An ensemble has no file of its own.\n")
    add_python(
        model_config.masks_config(names["masks"], names["encoder"], names["decoder"], settings),
        "masks",
    )


_ROLES = ("encoder", "encoder_batch", "decoder", "preprocess", "embedding", "masks")


def _write_pages(bundle: Bundle, settings: TritonSettings, folder: Path, made: Repository) -> None:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    facts = {
        "bundle": bundle,
        "name": settings.name,
        "backend": made.backend,
        "settings": settings,
        "built_with": made.built_with,
        "models": made.models,
        "notes": trust_notes(bundle),
        "tensors": _told,
    }
    client = environment.get_template("triton_client.py.jinja").render(facts)
    atomic.write_text(folder / "client.py", client)
    page = environment.get_template("triton_readme.md").render({**facts, "client": client})
    atomic.write_text(folder / "README.md", page)
    mark = {
        "made_by": "structsam-export triton",
        "bundle": bundle.name,
        "backend": made.backend,
        "models": list(made.models),
    }
    atomic.write_text(folder / MARK, json.dumps(mark, indent=2) + "\n")


def _told(model: Message, direction: str) -> str:
    """List tensors for people: `photo` BYTES [1], `points` FP32 [-1, 2] (optional)."""
    first = [-1] if model.get("max_batch_size") else []
    return ", ".join(
        f"`{tensor['name']}` {tensor['data_type'].removeprefix('TYPE_')} "
        f"{[*first, *tensor['dims']]}{' (optional)' if tensor.get('optional') else ''}"
        for tensor in model[direction]
        if not tensor["name"].startswith(PLAN_TENSORS)
    )
