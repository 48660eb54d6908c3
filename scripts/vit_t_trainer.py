"""Model, optimiser and schedule of `train_vit_t.py`: what a checkpoint holds."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vit_t_data as data
from torch import Tensor, nn
from torch.utils.data import default_convert
from vit_t_data import used_scale
from vit_t_init import initialised_sam
from vit_t_loss import Teacher, batch_loss, scores
from vit_t_photographs import Photographs
from vit_t_weights import read_checkpoint

from structsam import load_sam
from structsam.errors import UserError
from structsam.models import ModelSpec
from structsam_export.bundle.atomic import staged_file

CLOCKLESS = 200  # steps; until then nothing depends on the clock, so that runs repeat exactly
_WARMUP = 60  # steps of a rising learning rate


@dataclass(frozen=True)
class Stage:
    """From which share of the budget on which token grids, with how many images a step.

    Args:
        grids: one of them is drawn for every step.
        whole: crops no smaller than a whole image of 1024 pixels shows things, on any grid; the
            teacher then sees 1024 pixels as well.
    """

    start: float
    grids: tuple[int, ...]
    batch: int
    whole: bool = False

    def scale(self, grid: int) -> float:
        return 1.0 if self.whole else used_scale(grid)


#: Windows of 14 divide 14, 28 and 42 without padding; 64 is the grid of use (1024 pixels), 56 to 32
#: are those of smaller inputs.
STAGES = (
    Stage(0.0, (14,), 8),
    Stage(0.38, (28,), 8),
    Stage(0.62, (42,), 4),
    Stage(0.78, (64, 64, 64, 56, 48, 32), 2, whole=True),
)


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
    batch_times: int = 1  # images a step, against the stages'
    start_at: float = 0.0  # the budget covers the schedule from this share on
    validate_every: int = 250
    save_every: int = 200
    validation_images: int = 68
    drawn: tuple[float, float] = (0.5, 0.12)  # share of drawn images at the start, and after 35 %
    decoder_lr: float = 1.0  # against lr; less where the decoder is a teacher's
    workers: int = 1
    log_every: int = 20
    threads: int | None = None  # of torch on a CPU; None: one, or all cores while they are idle


class Trainer:
    """Model, optimiser, moving average and counters: what a checkpoint holds."""

    def __init__(
        self,
        spec: ModelSpec,
        settings: Settings,
        out: Path,
        device: str,
        teacher: Teacher | None = None,
    ) -> None:
        self.spec, self.settings, self.out, self.device = spec, settings, out, device
        self.teacher = teacher
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # products round differently on several: a seed is to say it all
        self.sam = initialised_sam(spec, settings.seed).to(device).train()
        torch.set_num_threads(threads)
        self.parameters = [p for p in self.sam.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=settings.lr,
            betas=(0.9, 0.99),
            fused=True,
        )
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0

    def _groups(self) -> list[dict[str, Any]]:
        """Encoder and decoder, each with and without weight decay; `share` is of the rate."""
        groups = []
        encoder = {id(p) for p in self.sam.image_encoder.parameters()}
        for inside, share in ((True, 1.0), (False, self.settings.decoder_lr)):
            own = [p for p in self.parameters if (id(p) in encoder) == inside]
            for decay in (self.settings.weight_decay, 0.0):
                chosen = [p for p in own if (p.ndim >= 2) == bool(decay)]
                groups.append({"params": chosen, "weight_decay": decay, "share": share})
        return groups

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
        state = read_checkpoint(self.checkpoint)
        if state["seed"] != self.settings.seed:
            raise UserError(
                f"{self.checkpoint} was trained with --seed {state['seed']}, this is --seed "
                f"{self.settings.seed}: use the same seed, or another --out."
            )
        self.sam.load_state_dict(state["model"])
        for mean, loaded in zip(self.average, state["average"], strict=True):
            mean.copy_(loaded)
        self.optimizer.load_state_dict(state["optimizer"])
        for group, asked in zip(self.optimizer.param_groups, self._groups(), strict=True):
            group |= {name: asked[name] for name in ("share", "weight_decay")}
        self.step, self.seconds = state["step"], state["seconds"]
        torch.set_rng_state(state["torch_rng"])

    def start_from(self, path: Path) -> None:
        """Take the weights of a file."""
        self.sam.load_state_dict(load_sam(self.spec.name, checkpoint=path).state_dict())
        self._restart_average()

    def borrow(self, teacher: Teacher) -> None:
        """Take a teacher's decoder, and the scale of its embeddings.

        From another scale the distance between embeddings outweighs all else for hundreds of steps.
        """
        state = teacher.sam.state_dict()
        taken = {k: v for k, v in state.items() if not k.startswith("image_encoder.")}
        self.sam.load_state_dict(taken, strict=False)
        self.sam.image_encoder.neck[-1].load_state_dict(teacher.encoder.neck[-1].state_dict())
        self._restart_average()

    def _restart_average(self) -> None:
        for mean, parameter in zip(self.average, self.parameters, strict=True):
            mean.copy_(parameter.detach())

    # -------------------------------------------------------------------------------- schedule

    def progress(self, step: int | None = None) -> float:
        """The share of the budget that is used up at a step, 0 while no clock counts."""
        settings, step = self.settings, self.step if step is None else step
        if settings.steps is not None:
            return min(1.0, step / settings.steps)
        if step < CLOCKLESS:
            return 0.0
        return min(1.0, self.seconds / (60 * (settings.minutes or 1e-9)))

    def order(self, step: int) -> data.Order:
        """What the batch of a step is made of, as far as can be said now."""
        settings, progress = self.settings, self.progress(step)
        stage = self.stage(progress)
        grid = stage.grids[random.Random(f"{settings.seed} {step}").randrange(len(stage.grids))]
        return data.Order(
            settings.seed,
            step,
            grid,
            stage.batch * settings.batch_times,
            settings.prompts,
            self.drawn_share(progress),
            stage.scale(grid),
        )

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

    def train_step(self, batch: data.Batch) -> tuple[Tensor, Tensor]:
        """One update; the loss, and the mean IoU of the masks the loss chose."""
        rate = self.learning_rate(self.progress())
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["share"]
        draw = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + self.step)
        refine = float(torch.rand((), generator=draw)) < self.settings.refine
        loss, iou = batch_loss(
            self.sam,
            batch,
            self.device,
            draw if refine else None,
            self.teacher,
            self.spec.image_size if batch.whole else 0,
        )
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0)
        if bool(torch.isfinite(norm)):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        decay = min(self.settings.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1 - decay)
        return loss.detach(), iou

    def validate(
        self, photographs: Photographs, grid: int, teacher: Teacher | None = None
    ) -> tuple[float, float, float]:
        """Of the averaged weights: IoU with exact boxes and with clicks, and of filled boxes.

        Of the teacher instead where one is given.
        """
        kept = [p.detach().clone() for p in self.parameters]
        self._assign(self.average)
        sums, count = [0.0, 0.0, 0.0], 0
        images = photographs.validation[:: max(1, len(photographs.validation) // 200)]
        for index in images[: self.settings.validation_images]:
            arrays = data.validation_batch(photographs, index, grid, prompts=5)
            if arrays is None:
                continue
            batch = default_convert(arrays)
            with torch.no_grad():
                one = scores(self.sam, batch, self.device, teacher)
            sums = [a + b for a, b in zip(sums, one, strict=True)]
            count += batch.names.shape[1] // 2
        self._assign(kept)
        box, click, filled = (each / max(count, 1) for each in sums)
        return box, click, filled

    def _assign(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, list(values))
