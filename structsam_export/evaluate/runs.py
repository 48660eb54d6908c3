"""`structsam-export evaluate`: quality of torch models and bundles on a dataset, run by run.

Every folder holds one model, dataset and protocol, and as many runs as one likes: the unmerged
model, and methods x rates x layers x placements. Asking again adds runs, and goes on with
interrupted ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.evaluate.record import (
    add_runs,
    alone,
    open_record,
    shared_facts,
    write_record,
)
from structsam_export.merging_choices import label_of
from structsam_export.predict.predictor import Predictor
from structsam_export.runtimes import find_backend
from structsam_export.runtimes.torch_on_cpu import use_fast_settings

if TYPE_CHECKING:
    from structsam.config import MergeConfig
    from structsam.evaluation.evaluate import Setting

BASELINE = "unmerged"
Say = Callable[[str], None]
#: Told the run's name and how many images are done, of how many.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Run:
    """One row of the tables to come.

    Args:
        name: of its files.
        label: for people.
        merging: `MergeConfig.to_dict()`, or None for the unmerged model.
        cost: `gmac` and `kept_tokens`; of a bundle also the encoder's SHA-256.
        open: context manager that gives the predictor.
    """

    name: str
    label: str
    merging: dict[str, Any] | None
    backend: str
    precision: str
    cost: dict[str, Any]
    open: Callable[[], Any] = field(compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `evaluation.json`."""
        return {
            "name": self.name,
            "label": self.label,
            "merging": self.merging,
            "backend": self.backend,
            "precision": self.precision,
            **self.cost,
            "complete": False,
        }


def model_runs(
    model: str,
    configs: Sequence[MergeConfig],
    checkpoint: Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    precision: str = "fp32",
    threads: int | None = None,
) -> tuple[dict[str, Any], list[Run]]:
    """Describe the model, and one run for it unmerged and for each of `configs`.

    The weights are loaded once, when the first run opens.

    Returns:
        what `evaluation.json` says of the model, and the runs.
    """
    from structsam.flops import encoder_flops, unmerged_flops
    from structsam.models import model_spec
    from structsam_export.bundle.weights_source import describe_weights
    from structsam_export.pipeline import bundle_name

    spec = model_spec(model)
    loaded: list[Any] = []

    @contextmanager
    def opened(config: MergeConfig | None) -> Iterator[Predictor]:
        import structsam
        from structsam.apply import apply_config
        from structsam.config import MergeConfig
        from structsam_export.runtimes.torch_backend import LoadedSam

        if not loaded:
            use_fast_settings()
            loaded.append(
                structsam.load_sam(model, checkpoint=checkpoint, weights=weights, seed=seed)
            )
        # unmerged is rate 0: stock SAM's masks, with the attention that the merged runs have
        sam = apply_config(loaded[0], config or MergeConfig(rate=0.0))
        backend = LoadedSam(sam, precision)
        bundle = backend.in_memory_bundle(spec.preprocessing)
        with Predictor(bundle, backend, threads=threads) as predictor:
            yield predictor

    def run(name: str, label: str, config: MergeConfig | None, flops: Any) -> Run:
        merging = None if config is None else config.to_dict()
        return Run(name, label, merging, "torch", precision, _cost(flops), lambda: opened(config))

    suffix = "" if precision == "fp32" else f"-{precision}"
    runs = [run(f"{BASELINE}{suffix}", "unmerged", None, unmerged_flops(spec))]
    for config in configs:
        name = bundle_name(model, config, "fp16").removeprefix(f"{model}-") + suffix
        runs.append(run(name, label_of(config.to_dict()), config, encoder_flops(spec, config)))
    return describe_weights(model, checkpoint, weights, seed), runs


def bundle_runs(
    bundles: Sequence[Bundle | str | Path], backend: str = "auto", threads: int | None = None
) -> tuple[dict[str, Any], list[Run]]:
    """Describe bundles of one model, one run each; rate 0 is the unmerged model.

    Raises:
        UserError: bundles of different weights; a backend that cannot run one of them.
    """
    opened = [b if isinstance(b, Bundle) else open_bundle(b) for b in bundles]
    models = [bundle.manifest["model"] for bundle in opened]
    for bundle, model in zip(opened, models, strict=True):
        if model != models[0]:
            raise UserError(
                f"{bundle.path} holds other weights than {opened[0].path}: their masks cannot be "
                "compared. Evaluate them into different folders"
            )
    runs = []
    for bundle in opened:
        backend_name = find_backend(backend, bundle).name
        merging = dict(bundle.manifest["merging"])
        unmerged = not any(block["rate"] for block in merging["blocks"])
        flops, files = bundle.manifest["flops"], bundle.manifest["files"]
        runs.append(
            Run(
                bundle.name if backend_name == "onnxruntime" else f"{bundle.name}-{backend_name}",
                "unmerged" if unmerged else label_of(merging),
                None if unmerged else merging,
                backend_name,
                bundle.precision,
                {
                    "gmac": flops["total_gmac"],
                    "kept_tokens": _kept(flops["blocks"]),
                    "encoder_sha256": files[bundle.part("encoder").file]["sha256"],
                },
                partial(_open, bundle, backend_name, threads),
            )
        )
    return models[0], runs


def evaluate_runs(
    model: Mapping[str, Any],
    runs: Sequence[Run],
    setting: Setting,
    out: Path,
    limit: int | None = None,
    left_out: Sequence[Mapping[str, str]] = (),
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Score all runs into the folder `out`, and return what its `evaluation.json` says.

    Args:
        limit: only so many images, spread over the set.

    Raises:
        UserError: `out` holds an evaluation of something else, or another process writes into it
            now; a broken results file; with
            `strict`, the first problem.
    """
    from structsam.evaluation.evaluate import evenly

    image_ids = evenly(setting.dataset.image_ids, limit)
    facts = shared_facts(model, setting, image_ids)
    open_record(out, facts)  # refuses another folder before anything is written
    with alone(out):
        record = open_record(out, facts)
        return _evaluate_alone(record, runs, setting, image_ids, out, left_out, progress)


def _evaluate_alone(
    record: dict[str, Any],
    runs: Sequence[Run],
    setting: Setting,
    image_ids: Sequence[str],
    out: Path,
    left_out: Sequence[Mapping[str, str]],
    progress: Progress,
) -> dict[str, Any]:
    from structsam.evaluation.evaluate import evaluate
    from structsam.evaluation.results import ProblemFile

    add_runs(record, [run.to_dict() for run in runs], out)
    record["left_out"] = [dict(entry) for entry in left_out]
    write_record(out, record)
    ProblemFile(out).add(setting.dataset.listing_problems)
    if setting.strict and setting.dataset.listing_problems:
        problem = setting.dataset.listing_problems[0]
        raise UserError(f"{problem.image_id}: {problem.kind}: {problem.detail}")
    for run in runs:

        def told(done: int, total: int, name: str = run.label) -> None:
            progress(name, done, total)

        if setting.files_of(out, run.name).missing(image_ids):
            with run.open() as predictor:
                evaluate(predictor, setting, image_ids, out, run.name, told)
        else:
            told(len(image_ids), len(image_ids))
        next(r for r in record["runs"] if r["name"] == run.name)["complete"] = True
        record["problems"] = ProblemFile(out).sorted()
        write_record(out, record)
    return record


def _open(bundle: Bundle, backend: str, threads: int | None) -> Predictor:
    if backend == "torch":
        use_fast_settings()
    return Predictor(bundle, backend, threads=threads)


def _cost(flops: Any) -> dict[str, Any]:
    blocks = [block.to_dict() for block in flops.blocks]
    return {"gmac": round(flops.gmac, 4), "kept_tokens": _kept(blocks)}


def _kept(blocks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean share of tokens kept, over all windows' and all global blocks, merged or not."""
    shares: dict[str, list[float]] = {}
    for block in blocks:
        shares.setdefault(block["kind"], []).append(block["kept"])
    kept = {kind: round(sum(values) / len(values), 4) for kind, values in shares.items()}
    kept["all"] = round(sum(block["kept"] for block in blocks) / len(blocks), 4)
    return kept
