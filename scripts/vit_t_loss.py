"""SAM's loss and validation scores, for `train_vit_t.py`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import vit_t_data as data
import vit_t_forward as forward
from torch import Tensor


def _inputs(sam: Any, batch: data.Batch, device: str) -> Tensor:
    """Normalised images [B, 3, S, S], zero where padded."""
    images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2).float()
    images = (images - sam.pixel_mean) / sam.pixel_std
    for image, (rows, columns) in zip(images, batch.sizes.tolist(), strict=True):
        image[:, rows:] = 0
        image[:, :, columns:] = 0
    return images


def _autocast(device: str) -> Any:
    return torch.autocast(device, torch.bfloat16)


def batch_loss(
    sam: Any, batch: data.Batch, device: str, refine: torch.Generator | None
) -> tuple[Tensor, float]:
    """SAM's loss of a batch, with a second round of prompts where `refine` is given."""
    coords = torch.from_numpy(batch.coords).to(device)
    labels = torch.from_numpy(batch.labels).to(device)
    full = torch.from_numpy(batch.targets).to(device)
    targets = F.avg_pool2d(full.float(), 2)  # [B, P, 4g, 4g], soft at the edges
    valid = F.avg_pool2d(torch.from_numpy(batch.valid).to(device).float()[:, None], 2)
    with _autocast(device):
        embeddings = forward.encode(sam.image_encoder, _inputs(sam, batch, device))
        sparse = forward.embed_prompts(sam.prompt_encoder, coords, labels)
        logits, ious = forward.decode(sam, embeddings, sparse)
    clicks = labels[..., 0] == 1
    loss, iou, best = _mask_loss(logits.float(), ious.float(), targets, valid, clicks)
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


def _mask_loss(
    logits: Tensor, ious: Tensor, targets: Tensor, valid: Tensor, clicks: Tensor
) -> tuple[Tensor, float, Tensor]:
    """Focal + dice, of the single mask for boxes and the best of three for clicks; IoU error.

    Focal is a sum over the object's area (as RetinaNet divides by its positives), not SAM's 20 x
    mean over the image: small objects weigh as much as large ones, and masks leave zero earlier.
    The other of the two outputs learns as well, at a lower weight: both are on offer in use.
    """
    soft = targets[:, :, None]
    weight = valid[:, None]  # [B, 1, 1, 4g, 4g]
    error = F.binary_cross_entropy_with_logits(logits, soft.expand_as(logits), reduction="none")
    truth = 1 - torch.exp(-error)  # 1 - p of the right answer
    area = (soft * weight).sum((-2, -1))
    smallest = 0.004 * logits.shape[-1] * logits.shape[-2]
    focal = (truth.square() * error * weight).sum((-2, -1)) / (area + smallest)
    p = torch.sigmoid(logits) * weight
    dice = 1 - (2 * (p * soft).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + area + 1)
    masks = focal + dice  # [B, P, 4]
    with torch.no_grad():
        found, wanted = (logits > 0) & (weight > 0), (soft >= 0.5) & (weight > 0)
        union = (found | wanted).sum((-2, -1)).clamp(min=1)
        actual = (found & wanted).sum((-2, -1)) / union
    single = masks[..., 0]
    multi, which = masks[..., 1:].min(-1)
    mixed = torch.where(clicks, multi + 0.4 * single, single + 0.4 * multi)
    loss = mixed.mean() + F.mse_loss(ious, actual)
    best = torch.where(clicks, which + 1, 0)
    return loss, float(actual.gather(-1, best[..., None]).mean()), best


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


def scores(sam: Any, batch: data.Batch, device: str) -> tuple[float, float, float]:
    """Sums of IoU over one image: boxes (even prompts), clicks (odd), the boxes filled."""
    coords = torch.from_numpy(batch.coords).to(device)
    labels = torch.from_numpy(batch.labels).to(device)
    with _autocast(device):
        embeddings = forward.encode(sam.image_encoder, _inputs(sam, batch, device))
        sparse = forward.embed_prompts(sam.prompt_encoder, coords, labels)
        logits, ious = forward.decode(sam, embeddings, sparse)
    targets = torch.from_numpy(batch.targets).to(device)[0]
    valid = torch.from_numpy(batch.valid).to(device)[0]
    logits = logits[0].float()
    rows, columns = (batch.sizes[0] / 2).round().astype(int)
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
