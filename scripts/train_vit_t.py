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
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

sys.path.insert(0, str(Path(__file__).resolve().parent))

import vit_t_data as data
import vit_t_log as log
from vit_t_loss import Teacher
from vit_t_photographs import Photographs
from vit_t_teacher import TinyViTTeacher, decoder_weights
from vit_t_trainer import CLOCKLESS, STAGES, Settings, Trainer
from vit_t_weights import export_weights

from structsam.errors import UserError
from structsam.models import ModelSpec, model_spec
from structsam.models.load import build_sam
from structsam_export.plot_style import require_matplotlib
from structsam_export.runtimes.torch_on_cpu import use_fast_settings

_TRAIN_COLUMNS = ("step", "minutes", "grid", "lr", "loss", "iou", "images_per_s")
_VALIDATION_COLUMNS = ("step", "minutes", "grid", "box_iou", "click_iou", "filled_box_iou")

# ------------------------------------------------------------------------------------- the loop


class _Batches(Dataset[data.Batch]):
    """Batches by their orders; each worker process opens the photographs itself."""

    def __init__(self, root: Path, cache: Path) -> None:
        self.root, self.cache = root, cache
        self.photographs: Photographs | None = None

    def __getitem__(self, order: data.Order) -> data.Batch:
        if self.photographs is None:
            self.photographs = Photographs(self.root, self.cache)
        return data.make_batch(self.photographs, order)


def _ignore_interrupts(_: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when to stop


def batches(trainer: Trainer, root: Path, cache: Path) -> Iterator[data.Batch]:
    """Batches for the trainer's coming steps, made ahead in worker processes."""
    workers = trainer.settings.workers
    more: dict[str, Any] = {}
    if workers:
        more = {
            "num_workers": workers,
            "multiprocessing_context": "spawn",
            "worker_init_fn": _ignore_interrupts,
            "pin_memory": trainer.device == "cuda",
        }
    orders = map(trainer.order, count(trainer.step))
    return iter(DataLoader(_Batches(root, cache), sampler=orders, batch_size=None, **more))


def train(trainer: Trainer, root: Path) -> None:
    """Train until the budget is used up or the user interrupts; both save."""
    settings, out = trainer.settings, trainer.out
    photographs = Photographs(root, out / "cache")
    stop = {"asked": False}

    def ask(*_: Any) -> None:
        stop["asked"] = True

    former = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    coming = batches(trainer, root, out / "cache")
    recent: deque[tuple[Tensor, Tensor, int, float]] = deque(maxlen=settings.log_every)
    log.trim_csv(out / "train.csv", trainer.step)
    log.trim_csv(out / "validation.csv", trainer.step)
    _choose_threads(settings, 0)
    try:
        while trainer.progress() < 1 and not stop["asked"]:
            began = time.monotonic()
            progress = trainer.progress()
            batch = next(coming)
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
                _validate(trainer, photographs)
                trainer.seconds += time.monotonic() - began
            if trainer.step % settings.save_every == 0:
                trainer.save()
    finally:
        del coming  # ends the workers
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
    if step >= CLOCKLESS and cores > 1:
        others = os.getloadavg()[0] - torch.get_num_threads() - 0.25 * settings.workers
        threads = cores if others < 0.45 else 1
    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)


def _report(
    trainer: Trainer,
    recent: Sequence[tuple[Tensor, Tensor, int, float]],
    progress: float,
    grid: int,
) -> None:
    losses, overlaps, images, seconds = (list(column) for column in zip(*recent, strict=True))
    speed = sum(images) / sum(seconds)
    loss, iou = (float(torch.stack(values).mean()) for values in (losses, overlaps))
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


def _validate(trainer: Trainer, photographs: Photographs) -> None:
    grid = max(trainer.stage(trainer.progress()).grids)
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
    parser.add_argument(
        "--batch-times", type=int, default=1, help="images a step, against the schedule's 8 to 2"
    )
    parser.add_argument("--ema", type=float, default=Settings.ema, help="of the averaged weights")
    parser.add_argument(
        "--teacher", type=Path, metavar="FOLDER",
        help="learn from encoder.onnx and sam.onnx in it, and take its decoder (`vit_t_teacher`)",
    )  # fmt: skip
    parser.add_argument(
        "--validate", action="store_true", help="score weights and teacher on held-out photos, end"
    )
    parser.add_argument("--decoder-lr", type=float, default=1.0, help="against --lr")
    return parser.parse_args(argv)


def run(argv: Sequence[str] | None = None) -> None:
    """What the command line asks for. Raises `UserError` for what its user can mend."""
    options = _arguments(argv)
    spec = model_spec("vit_t")
    if options.export is not None:
        export_weights(options.out, options.export, spec)
        return
    budget = options.minutes or options.steps or (1 if options.validate else None)
    if options.data is None or budget is None:
        raise UserError("Training needs --data FOLDER and a budget, --minutes M or --steps N.")
    if budget <= 0 or options.prompts < 1 or options.workers < 0:
        raise UserError("--minutes, --steps and --prompts must be above 0, --workers not below.")
    require_matplotlib()
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
        batch_times=options.batch_times,
        ema=options.ema,
        decoder_lr=options.decoder_lr,
    )
    teacher = None if options.teacher is None else _teacher(options.teacher, spec, device)
    trainer = Trainer(spec, settings, options.out, device, teacher)
    options.out.mkdir(parents=True, exist_ok=True)
    if trainer.checkpoint.exists():
        trainer.resume()
        print(f"resumed at step {trainer.step}, {trainer.seconds / 60:.1f} minutes", flush=True)
    else:
        if options.init is not None:
            trainer.start_from(options.init)
            print(f"started from {options.init}", flush=True)
        if teacher is not None and not options.validate:
            trainer.borrow(teacher)
    if options.validate:
        _tell_scores(trainer, options.data)
        return
    train(trainer, options.data)


def _tell_scores(trainer: Trainer, root: Path) -> None:
    """Print what weights and teacher score on the held-out photographs, at the size of use."""
    photographs = Photographs(root, trainer.out / "cache")
    sides = [("weights", None)] + ([("teacher", trainer.teacher)] if trainer.teacher else [])
    for name, teacher in sides:
        box, click, filled = trainer.validate(photographs, max(STAGES[-1].grids), teacher)
        print(f"{name}: box IoU {box:.4f}, click IoU {click:.4f}, filled box {filled:.4f}")


def _teacher(folder: Path, spec: ModelSpec, device: str) -> Teacher:
    sam = build_sam(spec, 0)
    sam.load_state_dict(decoder_weights(folder / "sam.onnx"), strict=False)
    return Teacher(TinyViTTeacher(folder / "encoder.onnx"), sam, device)


def main() -> None:
    try:
        run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
