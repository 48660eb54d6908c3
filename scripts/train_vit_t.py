#!/usr/bin/env python3
"""Train the small SAM `vit_t` from scratch or from earlier weights.

    python scripts/train_vit_t.py --data DATA/train --out RUN --minutes 130
    python scripts/train_vit_t.py --out RUN --export vit_t.safetensors   # also while it trains

DATA/train holds NAME/images/STEM.jpg and NAME/masks/STEM.png (labels, 0 = background). Running
the first command again resumes. `--init FILE.safetensors` starts from exported weights,
with a new schedule. RUN gets checkpoint.pt, train.csv, validation.csv, curve.png and a cache of
decoded images.

Recipe: a start that already looks around (`vit_t_init`); focal + dice + MSE of the IoU head; box
and click prompts, one step in seven with a correcting click and the earlier mask; small crops at
the final scale first and whole images of 1024 pixels at the end; learning rate falling as a cosine
over the budget, be it minutes or steps; exported are moving averages of the weights.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))

import vit_t_data as data
import vit_t_log as log
from vit_t_init import initialised_sam
from vit_t_loss import batch_loss, scores

from structsam import load_sam
from structsam.errors import UserError
from structsam.models import ModelSpec, model_spec
from structsam.models.load import build_sam
from structsam_export.bundle.atomic import staged_file
from structsam_export.runtimes.torch_on_cpu import use_fast_settings

_CLOCKLESS = 200  # steps; until then nothing depends on the clock, so that runs repeat exactly
_WARMUP = 60  # steps of a rising learning rate
_TRAIN_COLUMNS = ("step", "minutes", "grid", "lr", "loss", "iou", "images_per_s")
_VALIDATION_COLUMNS = ("step", "minutes", "grid", "box_iou", "click_iou", "filled_box_iou")


@dataclass(frozen=True)
class Stage:
    """From which share of the budget on which token grid, with how many images a step."""

    start: float
    grid: int
    batch: int


#: Windows of 14 divide 14, 28 and 42 without padding; 64 is the grid of use (1024 pixels).
STAGES = (Stage(0.0, 14, 8), Stage(0.38, 28, 8), Stage(0.74, 42, 4), Stage(0.88, 64, 2))


@dataclass(frozen=True)
class Settings:
    """Everything that decides what is trained; `minutes` or `steps` is the budget."""

    minutes: float | None = None
    steps: int | None = None
    seed: int = 0
    lr: float = 6e-4
    prompts: int = 8
    refine: float = 0.15
    weight_decay: float = 0.1
    ema: float = 0.998
    stages: tuple[Stage, ...] = STAGES
    start_at: float = 0.0  # the budget covers the schedule from this share on
    validate_every: int = 250
    save_every: int = 200
    validation_images: int = 68
    drawn: tuple[float, float] = (0.5, 0.12)  # share of drawn images at the start, and after 35 %
    workers: int = 1
    log_every: int = 20
    threads: int | None = None  # of torch on a CPU; None: one, or all cores while they are idle


class Trainer:
    """Model, optimiser, moving average and counters: what a checkpoint holds."""

    def __init__(self, spec: ModelSpec, settings: Settings, out: Path, device: str) -> None:
        self.spec, self.settings, self.out, self.device = spec, settings, out, device
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products round differently on several: a seed is to say it all
        self.sam = initialised_sam(spec, settings.seed).to(device).train()
        torch.set_num_threads(threads)
        self.parameters = [p for p in self.sam.parameters() if p.requires_grad]
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": settings.weight_decay},
                {"params": plain, "weight_decay": 0.0},
            ],
            lr=settings.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0

    # ------------------------------------------------------------------ checkpoints and weights

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def save(self) -> None:
        state = {
            "model": self.sam.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
            "seed": self.settings.seed,
            "torch_rng": torch.get_rng_state(),
        }
        with staged_file(self.checkpoint) as temporary:
            torch.save(state, temporary)

    def resume(self) -> None:
        state = _read_checkpoint(self.checkpoint)
        if state["seed"] != self.settings.seed:
            raise UserError(
                f"{self.checkpoint} was trained with --seed {state['seed']}, this is --seed "
                f"{self.settings.seed}: use the same seed, or another --out."
            )
        self.sam.load_state_dict(state["model"])
        for mean, loaded in zip(self.average, state["average"], strict=True):
            mean.copy_(loaded)
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])

    def start_from(self, path: Path) -> None:
        self.sam.load_state_dict(load_sam(self.spec.name, checkpoint=path).state_dict())
        for mean, parameter in zip(self.average, self.parameters, strict=True):
            mean.copy_(parameter.detach())

    # -------------------------------------------------------------------------------- schedule

    def progress(self, ahead: int = 0) -> float:
        """The share of the budget that is used up, 0 while no clock counts."""
        settings = self.settings
        if settings.steps is not None:
            return min(1.0, (self.step + ahead) / settings.steps)
        if self.step + ahead < _CLOCKLESS:
            return 0.0
        return min(1.0, self.seconds / (60 * (settings.minutes or 1e-9)))

    def stage(self, progress: float) -> Stage:
        reached = self._reached(progress)
        return [s for s in self.settings.stages if s.start <= reached][-1]

    def _reached(self, progress: float) -> float:
        """Where in the whole schedule of sizes and drawn images a run from `start_at` on is."""
        return self.settings.start_at + (1 - self.settings.start_at) * progress

    def learning_rate(self, progress: float) -> float:
        warm = min(1.0, (self.step + 1) / _WARMUP)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.settings.lr * warm * max(cosine, 0.03)

    def drawn_share(self, progress: float) -> float:
        first, last = self.settings.drawn
        return first + (last - first) * min(1.0, self._reached(progress) / 0.35)

    # ------------------------------------------------------------------------------------ steps

    def train_step(self, batch: data.Batch) -> tuple[float, float]:
        """One update; the loss, and the mean IoU of the masks the loss chose."""
        rate = self.learning_rate(self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        refine = float(torch.rand((), generator=draw)) < self.settings.refine
        loss, iou = batch_loss(self.sam, batch, self.device, draw if refine else None)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return float(loss.detach()), iou

    def validate(self, photographs: data.Photographs, grid: int) -> tuple[float, float, float]:
        """Of the averaged weights: IoU with exact boxes and with clicks, and of filled boxes."""
        kept = [p.detach().clone() for p in self.parameters]
        self._assign(self.average)
        sums, count = [0.0, 0.0, 0.0], 0
        images = photographs.validation[:: max(1, len(photographs.validation) // 200)]
        for index in images[: self.settings.validation_images]:
            batch = data.validation_batch(photographs, index, grid, prompts=5)
            if batch is None:
                continue
            with torch.no_grad():
                sums = [
                    a + b for a, b in zip(sums, scores(self.sam, batch, self.device), strict=True)
                ]
            count += batch.targets.shape[1] // 2
        self._assign(kept)
        return tuple(s / max(count, 1) for s in sums)  # type: ignore[return-value]

    def _assign(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, list(values))


# ------------------------------------------------------------------------------------- the loop


_photographs: data.Photographs | None = None


def _worker_start(root: Path, cache: Path) -> None:
    global _photographs
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop
    _photographs = data.Photographs(root, cache)


def _worker_batch(*arguments: Any) -> data.Batch:
    assert _photographs is not None
    return data.make_batch(_photographs, *arguments)


def _batches(
    trainer: Trainer, photographs: data.Photographs, root: Path, cache: Path
) -> Iterator[data.Batch]:
    """Batches for the trainer's coming steps, made ahead in worker processes."""
    settings = trainer.settings

    def order(ahead: int) -> tuple[Any, ...]:
        progress = trainer.progress(ahead)
        stage = trainer.stage(progress)
        drawn = trainer.drawn_share(progress)
        step = trainer.step + ahead
        return settings.seed, step, stage.grid, stage.batch, settings.prompts, drawn

    if settings.workers == 0:
        while True:
            yield data.make_batch(photographs, *order(0))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(settings.workers, context, _worker_start, (root, cache)) as pool:
        waiting: deque[Future[data.Batch]] = deque()
        while True:
            while len(waiting) < settings.workers + 2:
                waiting.append(pool.submit(_worker_batch, *order(len(waiting))))
            yield waiting.popleft().result()


def train(trainer: Trainer, root: Path) -> None:
    """Train until the budget is used up or the user interrupts; both save."""
    settings, out = trainer.settings, trainer.out
    photographs = data.Photographs(root, out / "cache")
    stop = {"asked": False}

    def ask(*_: Any) -> None:
        stop["asked"] = True

    former = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    batches = _batches(trainer, photographs, root, out / "cache")
    recent: deque[tuple[float, float, int, float]] = deque(maxlen=settings.log_every)
    log.trim_csv(out / "train.csv", trainer.step)
    log.trim_csv(out / "validation.csv", trainer.step)
    _choose_threads(settings, 0)
    try:
        while trainer.progress() < 1 and not stop["asked"]:
            began = time.monotonic()
            progress = trainer.progress()
            batch = next(batches)
            loss, iou = trainer.train_step(batch)
            taken = time.monotonic() - began
            trainer.seconds += taken
            recent.append((loss, iou, len(batch.images), taken))
            if trainer.step % settings.log_every == 0:
                _report(trainer, recent, progress, batch.images.shape[1] // 16)
                _choose_threads(settings, trainer.step)
            finished = trainer.progress() >= 1
            if trainer.step % settings.validate_every == 0 or finished:
                began = time.monotonic()
                _validate(trainer, photographs, batch.images.shape[1] // trainer.spec.patch_size)
                trainer.seconds += time.monotonic() - began
            if trainer.step % settings.save_every == 0:
                trainer.save()
    finally:
        batches.close()  # type: ignore[attr-defined]
        for name, handler in former.items():
            signal.signal(name, handler)
    trainer.save()
    state = "interrupted; the same command resumes" if stop["asked"] else "finished"
    print(f"{state}: step {trainer.step}, {trainer.checkpoint}", flush=True)


def _choose_threads(settings: Settings, step: int) -> None:
    """All cores while nobody else computes, else one.

    Threads meet after every operation: where another process holds one of the cores, two threads
    are several times slower than one. The first steps keep to one, so that they repeat bit for bit.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
        return
    threads, cores = 1, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if step >= _CLOCKLESS and cores > 1:
        others = os.getloadavg()[0] - torch.get_num_threads() - 0.25 * settings.workers
        threads = cores if others < 0.45 else 1
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _report(
    trainer: Trainer,
    recent: Sequence[tuple[float, float, int, float]],
    progress: float,
    grid: int,
) -> None:
    losses, overlaps, images, seconds = (list(column) for column in zip(*recent, strict=True))
    speed = sum(images) / sum(seconds)
    loss, iou = sum(losses) / len(losses), sum(overlaps) / len(overlaps)
    minutes, settings = trainer.seconds / 60, trainer.settings
    if settings.steps is not None:
        left = (settings.steps - trainer.step) * sum(seconds) / len(seconds) / 60
    else:
        left = max(0.0, (settings.minutes or 0) - minutes)
    rate = trainer.optimizer.param_groups[0]["lr"]
    print(
        f"step {trainer.step:6d}  {progress:5.1%}  {grid * 16} px  loss {loss:.3f}  IoU {iou:.3f}"
        f"  lr {rate:.1e}  {speed:.2f} images/s "
        f"on {torch.get_num_threads()}  {minutes:.1f} min, {left:.0f} min left",
        flush=True,
    )
    row = (trainer.step, f"{minutes:.2f}", grid, f"{rate:.3e}", f"{loss:.5f}", f"{iou:.5f}")
    log.append_csv(trainer.out / "train.csv", _TRAIN_COLUMNS, (*row, f"{speed:.3f}"))


def _validate(trainer: Trainer, photographs: data.Photographs, grid: int) -> None:
    box, click, filled = trainer.validate(photographs, grid)
    print(
        f"step {trainer.step:6d}  validation, averaged weights, {grid * 16} px: box IoU {box:.4f}, "
        f"click IoU {click:.4f}, filled box {filled:.4f}",
        flush=True,
    )
    row = (trainer.step, f"{trainer.seconds / 60:.2f}", grid)
    numbers = (f"{box:.5f}", f"{click:.5f}", f"{filled:.5f}")
    log.append_csv(trainer.out / "validation.csv", _VALIDATION_COLUMNS, (*row, *numbers))
    log.plot(trainer.out)


# ------------------------------------------------------------------------------------ weights


def _read_checkpoint(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"No checkpoint {path}: train first, or point --out at the run's folder.")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise UserError(f"Cannot read {path} ({type(error).__name__}): start again.") from error
    return state


def export_weights(run: Path, target: Path, spec: ModelSpec) -> None:
    """Write the averaged weights of a run's checkpoint as FP16 safetensors, and load them back."""
    from safetensors.torch import save_file

    state = _read_checkpoint(run / "checkpoint.pt")
    # averages are kept in the order of the parameters
    names = [name for name, _ in build_sam(spec, 0).named_parameters()]
    weights = dict(state["model"])
    weights.update(zip(names, state["average"], strict=True))
    if target.suffix != ".safetensors":
        raise UserError(f"--export {target}: the name must end in .safetensors.")
    with staged_file(target) as temporary:
        save_file(
            {name: tensor.half().contiguous() for name, tensor in weights.items()},
            str(temporary),
            {"model": spec.name, "step": str(state["step"])},
        )
    if spec == model_spec(spec.name):
        load_sam(spec.name, checkpoint=target)
    size = target.stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, averaged weights of step {state['step']}")


# ------------------------------------------------------------------------------------ start


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of training sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="budget in minutes of training")
    budget.add_argument("--steps", type=int, help="budget in steps instead")
    parser.add_argument("--init", type=Path, help="start from these .safetensors weights")
    parser.add_argument("--export", type=Path, help="write the averaged weights here, and end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lr", type=float, default=Settings.lr)
    parser.add_argument("--prompts", type=int, default=Settings.prompts, help="per image")
    parser.add_argument("--workers", type=int, default=Settings.workers, help="making batches")
    parser.add_argument("--threads", type=int, help="of torch on a CPU; default: as others allow")
    parser.add_argument(
        "--start-at", type=float, default=0.0, metavar="SHARE",
        help="skip this share of the schedule of sizes and drawn images (with --init)",
    )  # fmt: skip
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """What the command line asks for. Raises `UserError` for what its user can mend."""
    options = _arguments(argv)
    spec = model_spec("vit_t")
    if options.export is not None:
        export_weights(options.out, options.export, spec)
        return
    if options.data is None or (options.minutes is None and options.steps is None):
        raise UserError("Training needs --data FOLDER and a budget, --minutes M or --steps N.")
    if (options.minutes or options.steps) <= 0 or options.prompts < 1 or options.workers < 0:
        raise UserError("--minutes, --steps and --prompts must be above 0, --workers not below.")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UserError(f"The curve needs matplotlib ({error}): pip install matplotlib.") from error
    if not 0 <= options.start_at < 1:
        raise UserError(f"--start-at {options.start_at} is out of range: use 0 up to below 1.")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    use_fast_settings()
    settings = Settings(
        minutes=options.minutes,
        steps=options.steps,
        seed=options.seed,
        lr=options.lr,
        prompts=options.prompts,
        workers=options.workers,
        threads=options.threads,
        start_at=options.start_at,
    )
    trainer = Trainer(spec, settings, options.out, device)
    options.out.mkdir(parents=True, exist_ok=True)
    if trainer.checkpoint.exists():
        trainer.resume()
        print(f"resumed at step {trainer.step}, {trainer.seconds / 60:.1f} minutes", flush=True)
    elif options.init is not None:
        trainer.start_from(options.init)
        print(f"started from {options.init}", flush=True)
    train(trainer, options.data)


def main() -> None:
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
