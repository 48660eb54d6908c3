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
from structsam_export.bundle.alone import alone
from structsam_export.bundle.folder import Bundle, open_bundle
from structsam_export.bundle.weights_source import ModelRecord, ModelSource
from structsam_export.evaluate.record import (
    add_runs,
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
        size: `image_size` and `embedding` of a model at another input size than the trained one.
        open: context manager that gives the predictor.
    """

    name: str
    label: str
    merging: dict[str, Any] | None
    backend: str
    precision: str
    cost: dict[str, Any]
    open: Callable[[], Any] = field(compare=False)
    size: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of `evaluation.json`."""
        return {
            "name": self.name,
            "label": self.label,
            "merging": self.merging,
            "backend": self.backend,
            "precision": self.precision,
            **self.cost,
            **self.size,
            "complete": False,
        }


class LatestModel:
    """Keeps the model that was asked for last, so that only one is in memory."""

    def __init__(self) -> None:
        self._kept: tuple[ModelSource, Any] | None = None

    def of(self, source: ModelSource) -> Any:
        """Return the model, loaded unless it is the one before; its merging may be any."""
        if self._kept is None or self._kept[0] != source:
            self._kept = None  # before the next is loaded
            use_fast_settings()
            self._kept = source, source.load()
        return self._kept[1]


def model_runs(
    source: ModelSource,
    configs: Sequence[MergeConfig],
    precision: str = "fp32",
    threads: int | None = None,
    models: LatestModel | None = None,
) -> tuple[dict[str, Any], list[Run]]:
    """Describe the model, and one run for it unmerged and for each of `configs`.

    The weights are loaded once, when the first run opens.

    Args:
        models: shared by the runs of several sizes.

    Returns:
        what `evaluation.json` says of the model, the same at every input size, and the runs.
    """
    from structsam.flops import encoder_flops, unmerged_flops
    from structsam_export.bundle.destination import bundle_name

    if precision not in ("fp32", "fp16"):
        raise UserError(
            f"a model is evaluated in fp32 or fp16, and not in {precision}. Export a bundle of "
            "that precision, and evaluate the bundle"
        )
    source.spec.require_decoder("`evaluate` judges masks")
    spec, models, record = source.spec, models or LatestModel(), source.describe()

    @contextmanager
    def opened(config: MergeConfig | None) -> Iterator[Predictor]:
        from structsam.apply import apply_merging
        from structsam.config import MergeConfig
        from structsam_export.runtimes.torch_backend import InMemoryBackend

        # unmerged is rate 0: stock SAM's masks, with the attention that the merged runs have
        sam = apply_merging(models.of(source), config or MergeConfig(rate=0.0))
        backend = InMemoryBackend(sam, precision)
        bundle = backend.in_memory_bundle(spec.preprocessing)
        with Predictor(bundle, backend, threads=threads) as predictor:
            yield predictor

    def run(name: str, label: str, config: MergeConfig | None, flops: Any) -> Run:
        return Run(
            name,
            _at_size(label, record),
            None if config is None else config.to_dict(),
            "torch",
            precision,
            _cost(flops),
            lambda: opened(config),
            record.size,
        )

    suffix = "" if precision == "fp32" else f"-{precision}"
    unmerged = f"{BASELINE}{spec.size_suffix}{suffix}"
    runs = [run(unmerged, "unmerged", None, unmerged_flops(spec))]
    for config in configs:
        name = bundle_name(spec.label, config, "fp16").removeprefix(f"{spec.name}-") + suffix
        runs.append(run(name, label_of(config.to_dict()), config, encoder_flops(spec, config)))
    return record.at_trained_size.to_dict(), runs


def bundle_runs(
    bundles: Sequence[Bundle | str | Path], backend: str = "auto", threads: int | None = None
) -> tuple[dict[str, Any], list[Run]]:
    """Describe bundles of one model at any input sizes, one run each; rate 0 is unmerged.

    Raises:
        UserError: bundles of different weights; a backend that cannot run one of them.
    """
    opened = [b if isinstance(b, Bundle) else open_bundle(b) for b in bundles]
    models = [bundle.model.at_trained_size.to_dict() for bundle in opened]
    for bundle, model in zip(opened, models, strict=True):
        if model != models[0]:
            raise UserError(
                f"{bundle.path} holds other weights than {opened[0].path}: their masks cannot be "
                "compared. Evaluate them into different folders"
            )
    runs = []
    for bundle in opened:
        backend_name = find_backend(backend, bundle).name
        named = "" if backend_name == "onnxruntime" else f"-{backend_name.replace(':', '-')}"
        merging = dict(bundle.manifest["merging"])
        unmerged = not any(block["rate"] for block in merging["blocks"])
        flops, encoder = bundle.manifest["flops"], bundle.part("encoder").file
        runs.append(
            Run(
                bundle.name + named,
                _at_size("unmerged" if unmerged else label_of(merging), bundle.model),
                None if unmerged else merging,
                backend_name,
                bundle.precision,
                {
                    "gmac": flops["total_gmac"],
                    "kept_tokens": _kept(flops["blocks"]),
                    "encoder_sha256": bundle.files[encoder].sha256,
                },
                partial(_open, bundle, backend_name, threads),
                bundle.model.size,
            )
        )
    return models[0], runs


def evaluate_runs(
    model: Mapping[str, Any],
    runs: Sequence[Run],
    setting: Setting,
    out: Path,
    left_out: Sequence[Mapping[str, str]] = (),
    progress: Progress = lambda name, done, total: None,
) -> dict[str, Any]:
    """Score all runs into the folder `out`, and return what its `evaluation.json` says.

    Args:
        left_out: what cannot be run, with the reason: for the record.

    Raises:
        UserError: `out` holds an evaluation of something else, or another process writes into it
            now; a broken results file; with `strict`, the first problem.
    """
    from structsam.evaluation.results import ProblemFile

    facts = shared_facts(model, setting)
    open_record(out, facts)  # refuses another folder before anything is written
    with alone(out, "evaluation"):
        record = open_record(out, facts)
        record["left_out"] = [dict(entry) for entry in left_out]
        add_runs(record, [run.to_dict() for run in runs], out)
        write_record(out, record)
        _note_problems(setting, out)
        for run in runs:
            _evaluate_run(run, setting, out, progress)
            next(r for r in record["runs"] if r["name"] == run.name)["complete"] = True
            record["problems"] = ProblemFile(out).sorted()
            write_record(out, record)
    return record


def _note_problems(setting: Setting, out: Path) -> None:
    """Write down what the listing of the dataset found; with `strict` that is the end."""
    from structsam.evaluation.results import ProblemFile
    from structsam.evaluation.sample import ProblemError

    problems = setting.dataset.listing_problems
    ProblemFile(out).add(problems)
    if setting.strict and problems:
        raise ProblemError(problems[0])


def _evaluate_run(run: Run, setting: Setting, out: Path, progress: Progress) -> None:
    """Score what is missing of one run; where nothing is, no model is loaded."""
    from structsam.evaluation.evaluate import evaluate

    image_ids, told = setting.image_ids, partial(progress, run.label)
    if not setting.files_of(out, run.name).missing(image_ids):
        told(len(image_ids), len(image_ids))
        return
    with run.open() as predictor:
        evaluate(predictor, setting, image_ids, out, run.name, told)


def _open(bundle: Bundle, backend: str, threads: int | None) -> Predictor:
    if backend == "torch":
        use_fast_settings()
    return Predictor(bundle, backend, threads=threads)


def _at_size(label: str, model: ModelRecord) -> str:
    """Add the input size to a label, where it is not the trained one."""
    return ", ".join(filter(None, (label, model.size_text)))


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
