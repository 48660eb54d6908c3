"""SAM's loss, the teacher's, and validation scores, for `train_vit_t.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import vit_t_data as data
import vit_t_forward as forward
from torch import Tensor, nn

#: Of the distance between embeddings, relative to the spread of the teacher's.
_EMBEDDING_WEIGHT = 1.0
#: Of the difference to the teacher's masks, relative to that to the annotated ones.
_TEACHER_MASK_WEIGHT = 1.0


class Teacher:
    """A frozen encoder and the decoder that belongs to it.

    Args:
        encoder: normalised images [B, 3, S, S] to embeddings [B, 256, S/16, S/16]; the norm that
            `neck` ends with, as SAM's does, has their scale.
        sam: with the teacher's own prompt encoder and mask decoder.
    """

    def __init__(self, encoder: nn.Module, sam: Any, device: str) -> None:
        self.encoder = encoder.to(device).to(memory_format=torch.channels_last)
        self.sam = sam.to(device).requires_grad_(False).eval()

    def embeddings(self, images: Tensor, side: int) -> Tensor:
        """[B, N, 256] on the images' own grid, seen at `side` pixels at least."""
        grid = images.shape[-1] // 16
        if images.shape[-1] < side:
            images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        seen = self.encoder(images.contiguous(memory_format=torch.channels_last))
        return F.adaptive_avg_pool2d(seen.float(), grid).flatten(2).transpose(1, 2)


def _inputs(sam: Any, batch: data.Batch, device: str) -> Tensor:
    """Normalised images [B, 3, S, S], zero where padded."""
    images = batch.images.to(device, non_blocking=True).permute(0, 3, 1, 2).float()
    images = (images - sam.pixel_mean) / sam.pixel_std
    for image, (rows, columns) in zip(images, batch.sizes.tolist(), strict=True):
        image[:, rows:] = 0
        image[:, :, columns:] = 0
    return images


def _targets(batch: data.Batch, device: str) -> tuple[Tensor, Tensor]:
    """Masks of the prompted segments [B, P, 8g, 8g] and where they are scored [B, 8g, 8g]."""
    segments = batch.segments.to(device, non_blocking=True)
    names = batch.names.to(device, non_blocking=True).to(torch.uint8)
    return segments[:, None] == names[:, :, None, None], segments != data.NOT_SCORED


def _autocast(device: str) -> Any:
    return torch.autocast(device, torch.bfloat16)


def batch_loss(
    sam: Any,
    batch: data.Batch,
    device: str,
    refine: torch.Generator | None,
    teacher: Teacher | None = None,
    teacher_side: int = 0,
) -> tuple[Tensor, Tensor]:
    """SAM's loss of a batch and the mean IoU of the masks that it chose.

    With a second round of prompts where `refine` is given; with what the teacher's embeddings and
    masks add where there is one.
    """
    coords, labels = (x.to(device, non_blocking=True) for x in (batch.coords, batch.labels))
    full, scored = _targets(batch, device)
    targets = F.avg_pool2d(full.float(), 2)  # [B, P, 4g, 4g], soft at the edges
    valid = F.avg_pool2d(scored.float()[:, None], 2)
    images = _inputs(sam, batch, device)
    with _autocast(device):
        embeddings = forward.encode(sam.image_encoder, images)
        sparse = forward.embed_prompts(sam.prompt_encoder, coords, labels)
        logits, ious = forward.decode(sam, embeddings, sparse)
    clicks = labels[..., 0] == 1
    loss, iou, best = _mask_loss(logits.float(), ious.float(), targets, valid, clicks)
    if teacher is not None:
        with torch.no_grad(), _autocast(device):
            wanted = teacher.embeddings(images, teacher_side)
            theirs = forward.embed_prompts(teacher.sam.prompt_encoder, coords, labels)
            masks, _ = forward.decode(teacher.sam, wanted, theirs)
        inside = _inside(batch.sizes, wanted, device)
        loss = loss + _EMBEDDING_WEIGHT * _embedding_loss(embeddings.float(), wanted, inside)
        soft = torch.sigmoid(masks.float())
        loss = loss + _TEACHER_MASK_WEIGHT * _errors(logits.float(), soft, valid[:, None]).mean()
    if refine is not None:
        picked = logits.detach().float().gather(2, best[..., None, None, None].expand(
            -1, -1, 1, *logits.shape[-2:])).squeeze(2)  # fmt: skip
        point, label = _correction(picked, targets, valid, refine)
        # boxes keep their corners and get the click; a click's padding stays last
        with _autocast(device):
            order = torch.tensor([0, 2, 1], device=device)
            coords3 = torch.cat([coords, point[:, :, None]], dim=2)
            labels3 = torch.cat([labels, label[:, :, None]], dim=2)
            coords3 = torch.where(clicks[..., None, None], coords3[:, :, order], coords3)
            labels3 = torch.where(clicks[..., None], labels3[:, :, order], labels3)
            sparse = forward.embed_prompts(sam.prompt_encoder, coords3, labels3)
            logits, ious = forward.decode(sam, embeddings, sparse, picked)
        nothing = torch.zeros_like(clicks)
        again, _, _ = _mask_loss(logits.float(), ious.float(), targets, valid, nothing)
        loss = loss + 0.5 * again
    return loss, iou


def _inside(sizes: Tensor, embeddings: Tensor, device: str) -> Tensor:
    """Which tokens [B, N] show some of the image, not padding alone."""
    grid = round(embeddings.shape[1] ** 0.5)
    start = 16 * torch.arange(grid)
    rows, columns = (start < sizes[:, i, None] for i in range(2))
    return (rows[:, :, None] & columns[:, None]).flatten(1).to(device, non_blocking=True)


def _embedding_loss(embeddings: Tensor, wanted: Tensor, inside: Tensor) -> Tensor:
    """Squared distance to the teacher's embeddings [B, N, 256] against their own spread."""
    weight = inside[..., None].float()
    count = weight.sum() * wanted.shape[-1]
    mean = (wanted * weight).sum((0, 1)) / weight.sum()
    spread = ((wanted - mean).square() * weight).sum() / count
    return ((embeddings - wanted).square() * weight).sum() / count / spread


def _errors(logits: Tensor, soft: Tensor, weight: Tensor) -> Tensor:
    """Focal + dice of masks [B, P, M, h, w] against probabilities that broadcast to them.

    Focal is a sum over the object's area (as RetinaNet divides by its positives), not SAM's 20 x
    mean over the image: small objects weigh as much as large ones, and masks leave zero earlier.
    For targets between 0 and 1 it is the quality focal loss (Li et al. 2020, eq. 6).
    """
    error = F.binary_cross_entropy_with_logits(logits, soft.expand_as(logits), reduction="none")
    probability = torch.sigmoid(logits)
    area = (soft * weight).sum((-2, -1))
    smallest = 0.004 * logits.shape[-1] * logits.shape[-2]
    focal = ((probability - soft).square() * error * weight).sum((-2, -1)) / (area + smallest)
    p = probability * weight
    dice = 1 - (2 * (p * soft).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + area + 1)
    return focal + dice


def _mask_loss(
    logits: Tensor, ious: Tensor, targets: Tensor, valid: Tensor, clicks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of the single mask for boxes and of the best of three for clicks; IoU error.

    The other of the two outputs learns as well, at a lower weight: both are on offer in use.
    """
    soft = targets[:, :, None]
    weight = valid[:, None]  # [B, 1, 1, 4g, 4g]
    masks = _errors(logits, soft, weight)  # [B, P, 4]
    with torch.no_grad():
        found, wanted = (logits > 0) & (weight > 0), (soft >= 0.5) & (weight > 0)
        union = (found | wanted).sum((-2, -1)).clamp(min=1)
        actual = (found & wanted).sum((-2, -1)) / union
    single = masks[..., 0]
    multi, which = masks[..., 1:].min(-1)
    mixed = torch.where(clicks, multi + 0.4 * single, single + 0.4 * multi)
    loss = mixed.mean() + F.mse_loss(ious, actual)
    best = torch.where(clicks, which + 1, 0)
    return loss, actual.gather(-1, best[..., None]).mean(), best


def _correction(
    logits: Tensor, targets: Tensor, valid: Tensor, draw: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A random wrong pixel of each mask as a click [B, P, 2] in 0..1 with its label [B, P]."""
    wanted = targets >= 0.5
    wrong = ((logits > 0) != wanted) & (valid > 0)
    noise = torch.rand(wrong.shape, generator=draw).to(wrong.device)
    index = torch.where(
        wrong.flatten(2).any(-1, keepdim=True), wrong.flatten(2), True
    ) * noise.flatten(2)
    index = index.argmax(-1)
    side = wanted.shape[-1]
    point = torch.stack([index % side, index // side], dim=-1)
    label = wanted.flatten(2).gather(-1, index[..., None])[..., 0].long()
    return (point + 0.5) / side, label


def scores(
    sam: Any, batch: data.Batch, device: str, teacher: Teacher | None = None
) -> tuple[float, float, float]:
    """Sums of IoU over one image: boxes (even prompts), clicks (odd), the boxes filled.

    Of the teacher instead where one is given.
    """
    coords, labels = batch.coords.to(device), batch.labels.to(device)
    with _autocast(device):
        if teacher is None:
            embeddings = forward.encode(sam.image_encoder, _inputs(sam, batch, device))
        else:
            sam = teacher.sam
            embeddings = teacher.embeddings(_inputs(sam, batch, device), 0)
        sparse = forward.embed_prompts(sam.prompt_encoder, coords, labels)
        logits, ious = forward.decode(sam, embeddings, sparse)
    full, scored = _targets(batch, device)
    targets, valid = full[0], scored[0]
    logits = logits[0].float()
    rows, columns = (batch.sizes[0] / 2).round().long().tolist()
    inside = valid.clone()
    inside[rows:], inside[:, columns:] = False, False
    chosen = ious[0, :, 1:].argmax(-1) + 1
    chosen[::2] = 0  # boxes: the single mask
    chosen_logits = logits[torch.arange(len(logits)), chosen]
    masks = F.interpolate(chosen_logits[None], scale_factor=2, mode="bilinear")[0] > 0
    axis = (torch.arange(targets.shape[-1], device=device) + 0.5) / targets.shape[-1]
    (x0, y0), (x1, y1) = coords[0, ::2].permute(1, 2, 0)[..., None]
    filled = ((axis > y0) & (axis < y1))[:, :, None] & ((axis > x0) & (axis < x1))[:, None]

    def total(found: Tensor, wanted: Tensor) -> float:
        both = (found & wanted & inside).sum((-2, -1))
        return float((both / ((found | wanted) & inside).sum((-2, -1)).clamp(min=1)).sum())

    boxes, clicks = targets[::2], targets[1::2]
    return total(masks[::2], boxes), total(masks[1::2], clicks), total(filled, boxes)
