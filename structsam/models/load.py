"""Builds a segment-anything model with weights that somebody asked for: a file, or random ones."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam.errors import UserError
from structsam.models.checkpoint_file import (
    check_state_dict,
    read_checkpoint,
    refuse_foreign_official,
)
from structsam.models.checkpoint_path import checkpoint_files
from structsam.models.find_model import find_model
from structsam.models.image_size import resized
from structsam.models.spec import SAM_PREPROCESSING, Embedding, ModelSpec

if TYPE_CHECKING:
    from segment_anything.modeling import Sam
    from torch import Tensor

_log = logging.getLogger("structsam")

_PROMPT_TABLES = (
    "gaussian_matrix", "point_embed", "no_mask_embed", "iou_token", "mask_tokens", "hf_token"
)  # fmt: skip
_TRANSPOSED = tuple(
    f"mask_decoder.{name}.{layer}.weight"
    for name in ("output_upscaling", "compress_vit_feat", "embedding_encoder")
    for layer in (0, 3)
)


def load_sam(
    name: str | ModelSpec,
    checkpoint: str | Path | None = None,
    weights: str | None = None,
    seed: int = 0,
    image_size: int | None = None,
    embedding: Embedding = "native",
) -> Sam:
    """The `segment_anything.modeling.Sam` called `name`, in eval mode and without gradients.

    The name is that of a model here, of a TOML file that describes one (`spec_file.py`), or `auto`
    for what the checkpoint holds. A model without a decoder (cpsam) is a `Sam` without one.

    One source of weights must be named: `checkpoint`, a `.pth` or `.safetensors` file or the
    folder of a Hugging Face `SamModel`, or `weights="random"` with `seed`. With neither, a model
    whose weights come with the package (vit_t) gets those. Parameters read from a checkpoint stay
    mapped from its file: do not overwrite that file in place while the model lives.

    `image_size` is another side of the input in pixels, a multiple of the patch from 256 to 2048:
    the position tables are resized here, once. `embedding` is `native`, a smaller embedding and
    decoder, or `upsample`, an embedding of the trained size. Points and boxes are in pixels of
    that input; `SamPredictor` takes such a model as it takes any other.

    Raises `UserError` for an unknown name, a size that there is not, no or two sources, a
    checkpoint that does not fit, or missing packages.
    """
    spec = resized(find_model(name, checkpoint)[0], image_size, embedding)
    path = weights_file(spec, checkpoint, weights)
    _log.debug("%s with %s", spec.label, path or f"random weights of seed {seed}")
    return build_sam(spec, seed) if path is None else _sam_from_checkpoint(spec, path)


def weights_file(
    spec: ModelSpec, checkpoint: str | Path | None = None, weights: str | None = None
) -> Path | None:
    """The file that `load_sam` takes for these arguments, or None for random weights.

    Raises `UserError` where `load_sam` does.
    """
    if checkpoint is not None and weights is not None:
        raise UserError(
            f"Both checkpoint={str(checkpoint)!r} and weights={weights!r} are given for "
            f"{spec.name}, expected exactly one: drop one of them."
        )
    if checkpoint is not None:
        checkpoint_files(checkpoint, spec)
        return Path(checkpoint).expanduser()
    if weights == "random":
        return None
    if weights is not None:
        raise UserError(
            f"weights is {weights!r}, expected 'random'; to load a file pass it as checkpoint."
        )
    if spec.embedded_weights is None:
        raise UserError(
            f"No weights are named for {spec.name}: pass `checkpoint=FILE` "
            f"({spec.how_to_get_weights}), or `weights='random'` for untrained ones."
        )
    if not spec.embedded_weights.is_file():
        raise UserError(
            f"The weights of {spec.name} are missing from this installation "
            f"({spec.embedded_weights}): install structsam again, or pass `weights='random'`."
        )
    return spec.embedded_weights


def build_sam(spec: ModelSpec, seed: int = 0) -> Sam:
    """A `Sam` of any geometry with seeded random weights, in eval mode and without gradients.

    The same seed gives the same weights, and torch's global generator is not touched. Nothing is
    left at zero or one, as stock initialisation leaves positions, biases and norms: a mistake in
    any of them shows in the output. Activations stay far inside the range of float16. A model at
    another input size has the weights that the seed gives at the trained one, resized.
    """
    if not 0 <= seed < 2**63:
        raise UserError(f"seed {seed} is out of range. Use a whole number from 0 to 2^63 - 1")
    torch = _torch()
    sam = _meta_sam(spec.trained).to_empty(device="cpu")
    generator = torch.Generator(device="cpu").manual_seed(seed)
    for path, tensor in sam.state_dict().items():
        mean, std = _distribution(path, tuple(tensor.shape))
        tensor.normal_(mean, std, generator=generator)
    return _with_weights(spec, sam.state_dict()) if spec.trained_image_size else _finished(sam)


def _sam_from_checkpoint(spec: ModelSpec, path: Path) -> Sam:
    torch = _torch()
    checkpoint = read_checkpoint(path, spec)
    trained = _meta_sam(spec.trained).state_dict()
    expected = {key: tuple(tensor.shape) for key, tensor in trained.items()}
    state = checkpoint.state
    if spec.stretch_positions:
        from structsam.models.resize_weights import stretched_state

        state = stretched_state(state, expected)
    check_state_dict(state, expected, spec, path)
    refuse_foreign_official(path, spec)
    _log.debug("%s, %s", spec.label, checkpoint.title)
    state = {key: tensor.to(torch.float32) for key, tensor in state.items()}
    return _with_weights(spec, state)


def _with_weights(spec: ModelSpec, state: Mapping[str, Tensor]) -> Sam:
    """The model of `spec` with weights as they were trained."""
    from structsam.models.resize_weights import resized_state

    sam = _meta_sam(spec)
    fitting = resized_state(state, spec) if spec.trained_image_size else state
    sam.load_state_dict(fitting, assign=True)  # takes the mapped tensors themselves: no second copy
    return _finished(sam)


def _distribution(path: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Mean and standard deviation of the random tensor called `path`."""
    if path.endswith("pos_embed"):
        return 0.0, 0.5
    if "rel_pos" in path:
        return 0.0, 0.1  # adds logits of about 0.8 at head dim 64
    if any(part in path for part in _PROMPT_TABLES):
        return 0.0, 1.0
    if path.endswith("bias"):
        return 0.0, 0.05
    if len(shape) == 1:  # the scale of a norm
        return 1.0, 0.1
    transposed = path in _TRANSPOSED  # [in, out, k, k] with stride k; all others [out, in, ...]
    fan_in = shape[0] if transposed else math.prod(shape[1:])
    return 0.0, fan_in**-0.5


def _meta_sam(spec: ModelSpec) -> Sam:
    """The modules of `build_sam.py` in segment-anything, with no memory behind their tensors."""
    torch, modeling = _torch(), _segment_anything_modeling()
    encoder, decoder = modeling.ImageEncoderViT, modeling.MaskDecoder
    if spec.hq:
        from structsam.models.sam_hq import HqImageEncoder, HqMaskDecoder

        encoder, decoder = HqImageEncoder, partial(HqMaskDecoder, vit_dim=spec.embed_dim)
    with torch.device("meta"):
        sam = modeling.Sam(
            image_encoder=encoder(
                depth=spec.depth,
                embed_dim=spec.embed_dim,
                img_size=spec.image_size,
                mlp_ratio=4,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                num_heads=spec.num_heads,
                patch_size=spec.patch_size,
                qkv_bias=True,
                use_rel_pos=True,
                global_attn_indexes=spec.global_blocks,
                window_size=spec.window_size,
                out_chans=spec.channels,
            ),
            prompt_encoder=spec.decoder
            and modeling.PromptEncoder(
                embed_dim=spec.channels,
                image_embedding_size=spec.embedding_grid,
                input_image_size=(spec.image_size, spec.image_size),
                mask_in_chans=16,
            ),
            mask_decoder=spec.decoder
            and decoder(
                num_multimask_outputs=3,
                transformer=modeling.TwoWayTransformer(
                    depth=spec.decoder.depth,
                    embedding_dim=spec.channels,
                    mlp_dim=spec.decoder.mlp_dim,
                    num_heads=spec.decoder.num_heads,
                ),
                transformer_dim=spec.channels,
                iou_head_depth=3,
                iou_head_hidden_dim=spec.decoder.score_dim,
            ),
        )
    if spec.embedding_grid != spec.grid:
        from structsam.models.resize_weights import EmbeddingResize

        sam.image_encoder.neck.append(EmbeddingResize(spec.embedding_grid))
    return sam


def _finished(sam: Sam) -> Sam:
    """Fill the two buffers no checkpoint carries, and switch training off."""
    torch = _torch()
    # SAM's constants for every model, as in segment-anything: `Preprocessing` is what we apply.
    for name, values in (("mean", SAM_PREPROCESSING.mean), ("std", SAM_PREPROCESSING.std)):
        setattr(sam, f"pixel_{name}", torch.tensor(values, device="cpu").view(-1, 1, 1))
    return sam.eval().requires_grad_(False)


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"Loading a model needs torch ({error}): pip install 'structsam[export]'."
        ) from error
    return torch


def _segment_anything_modeling() -> Any:
    try:
        import segment_anything.modeling as modeling
    except ModuleNotFoundError as error:
        raise UserError(
            f"Loading a model needs segment-anything and torchvision ({error}): "
            "pip install 'structsam[export]'."
        ) from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"torchvision does not fit this torch ({reason}): install both from the same place, "
            "e.g. `pip install --force-reinstall torch torchvision`."
        ) from error
    return modeling
