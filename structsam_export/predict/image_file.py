"""Image files as SAM wants them, RGB uint8, and one clear message for each that cannot be read."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from structsam.errors import UserError

Note = Callable[[str], None]
MAX_PIXELS = 100_000_000
#: What photos in a folder are known by, in small letters.
PHOTO_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
#: Upper 8 of 16 bits below which a whole picture is called dark: a quarter of full scale.
_DARK = 64
_GREY_16 = ("I;16", "I;16B", "I;16L", "I;16N")


def read_image(path: str | Path, note: Note | None = None) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3], upright: the EXIF orientation is applied.

    Grey, palette and CMYK images become RGB. Transparency is dropped, not blended, as in
    `Image.convert("RGB")`, which SAM's users call. Of 16 bits the upper 8 are kept: full scale
    stays full scale, nothing is stretched to the range of the picture. Of an animation or a
    multi-page file the first picture is read.

    Args:
        path: taken as it is: `~` begins a name as well as any letter.
        note: is told in a sentence when a picture of more than 8 bits fills so few that it is dark.

    Raises:
        UserError: missing, a folder, empty, not an image, truncated, floating point, or more than
            `MAX_PIXELS` pixels (found in the header, before anything is decoded).
    """
    file = Path(path)
    _check_file(file)
    rgb, bits = _decode(file, str(file), MAX_PIXELS)
    brightest = int(rgb.max())
    if note is not None and bits > 8 and brightest < _DARK:
        note(
            f"{file.name} is dark: it has {bits} bits a channel, and its values stay below "
            f"{256 * (brightest + 1)} of 65536, as in a picture of 12 bits or fewer. Scale its "
            "values to 0..65535 and save it again"
        )
    return rgb


def read_image_bytes(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read the content of an image file as `read_image` does.

    Args:
        name: what messages call it.
        max_pixels: it may have.

    Raises:
        UserError: as `read_image`.
    """
    if not data:
        raise UserError(f"{name} is empty (0 bytes). Send the image again")
    return _decode(io.BytesIO(data), name, max_pixels)[0]


def _check_file(file: Path) -> None:
    try:
        if file.is_dir():
            raise UserError(f"{file} is a folder, not an image. Give one image file")
        if not file.exists():
            raise UserError(f"no image at {file}: the file does not exist. Check the path")
        if file.stat().st_size == 0:
            raise UserError(f"{file} is empty (0 bytes). Copy or download the image again")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}. Check the path") from None


def _decode(source: Path | io.BytesIO, file: str, max_pixels: int) -> tuple[np.ndarray, int]:
    """Return the pixels, and the bits of a channel; `file` is what messages call it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own limit
        return _decode_quietly(source, file, max_pixels)


def _decode_quietly(
    source: Path | io.BytesIO, file: str, max_pixels: int
) -> tuple[np.ndarray, int]:
    try:
        with Image.open(source) as image:
            _check_size(file, image.width, image.height, max_pixels)
            _check_mode(file, image.mode)
            bits = _bits(image)
            return _to_rgb(file, ImageOps.exif_transpose(image)), bits
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(
            f"{file} is not an image that Pillow {_pillow()} can read, or its header is damaged. "
            "Convert it to PNG or JPEG"
        ) from None
    except Image.DecompressionBombError as error:
        raise _too_large(file, str(error).partition(" exceeds")[0], max_pixels) from None
    except PermissionError:
        raise UserError(f"cannot read {file}: no permission. Make it readable") from None
    except MemoryError:
        raise UserError(f"{file} does not fit in memory. Downscale it first") from None
    except Exception as error:  # Pillow's decoders raise anything on a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} is damaged or truncated ({reason}). Copy or download the image again"
        ) from None


def _bits(image: ImageFile.ImageFile) -> int:
    """Return the bits of a channel, before anything is decoded: 8, 16 or 32."""
    if ";16" in str(image.tile):  # the raw mode: "I;16B", "RGB;16B"
        return 16
    return 32 if image.mode == "I" else 8


def _check_size(file: str, width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise UserError(f"{file} is {width} x {height} pixels: it holds no picture")
    if width * height > max_pixels:
        found = f"{width} x {height} = {width * height / 1e6:.0f} Mpx"
        raise _too_large(file, found, max_pixels)


def _check_mode(file: str, mode: str) -> None:
    if mode == "F":
        raise UserError(
            f"{file} has floating-point pixels, which have no fixed range. "
            "Scale it to 8 bits (0..255) and save it as PNG"
        )


def _to_rgb(file: str, image: Image.Image) -> np.ndarray:
    if image.mode in _GREY_16 or image.mode == "I":
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise UserError(
                f"{file} has pixel values {grey.min()}..{grey.max()}, and 0..65535 is expected. "
                "Scale it to 8 bits (0..255) and save it as PNG"
            )
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _too_large(file: str, found: str, max_pixels: int) -> UserError:
    return UserError(
        f"{file} is too large ({found}): the limit is {max_pixels / 1e6:.4g} Mpx. Downscale it; "
        "SAM looks at 1024 pixels on the long side anyway"
    )


def _pillow() -> str:
    return str(getattr(Image, "__version__", ""))
