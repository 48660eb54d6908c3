from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from structsam.errors import UserError
from structsam_export.predict.image_file import MAX_PIXELS, read_image

PHOTO = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "photo.png", **options: object) -> Path:
    image.save(folder / name, **options)
    return folder / name


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    return message


def png_of_claimed_size(path: Path, width: int, height: int) -> Path:
    """A 1-bit PNG header with no pixels worth mentioning behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


def test_rgb_is_read_unchanged(tmp_path: Path) -> None:
    rgb = read_image(saved(tmp_path, Image.fromarray(PHOTO)))
    assert rgb.dtype == np.uint8 and rgb.flags.writeable
    np.testing.assert_array_equal(rgb, PHOTO)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    rgb = read_image(saved(tmp_path, Image.fromarray(PHOTO[..., 0])))
    np.testing.assert_array_equal(rgb, np.repeat(PHOTO[..., :1], 3, axis=2))


def test_alpha_is_dropped_not_blended(tmp_path: Path) -> None:
    rgba = np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)])
    np.testing.assert_array_equal(read_image(saved(tmp_path, Image.fromarray(rgba))), PHOTO)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_gives_rgb(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(PHOTO).convert(mode)
    name = "photo.tif" if mode == "CMYK" else "photo.png"
    rgb = read_image(saved(tmp_path, image, name))
    assert rgb.shape == PHOTO.shape and rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, np.asarray(image.convert("RGB")))


def test_transparent_palette(tmp_path: Path) -> None:
    image = Image.fromarray(PHOTO).quantize(16)
    rgb = read_image(saved(tmp_path, image, transparency=3))
    np.testing.assert_array_equal(rgb, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("name", ["deep.png", "deep.tif"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, name: str) -> None:
    deep = np.array([[0, 255, 256], [4095, 32768, 65535]], np.uint16)
    rgb = read_image(saved(tmp_path, Image.fromarray(deep), name))
    np.testing.assert_array_equal(rgb[..., 0], [[0, 0, 1], [15, 128, 255]])
    np.testing.assert_array_equal(rgb[..., 1], rgb[..., 2])


@pytest.mark.parametrize(("mode", "brightest"), [("grey", 4095), ("grey", 16383), ("colour", 4095)])
def test_sixteen_bits_that_are_hardly_used_are_told(
    tmp_path: Path, mode: str, brightest: int
) -> None:
    told: list[str] = []
    read_image(sixteen_bits(tmp_path, mode, brightest), told.append)
    (note,) = told
    assert "deep.png is dark" in note and f"below {brightest + 1} of 65536" in note
    assert "\n" not in note


@pytest.mark.parametrize("mode", ["grey", "colour"])
def test_a_picture_that_uses_its_bits_is_not_called_dark(tmp_path: Path, mode: str) -> None:
    told: list[str] = []
    read_image(sixteen_bits(tmp_path, mode, 40000), told.append)
    read_image(saved(tmp_path, Image.fromarray(PHOTO // 8)), told.append)  # dark, but of 8 bits
    assert told == []


def test_integers_of_32_bits_are_told_as_well(tmp_path: Path) -> None:
    """Values 0..255, which mean black there, as nothing is stretched."""
    values = PHOTO[..., 0].astype(np.int32)
    told: list[str] = []
    rgb = read_image(saved(tmp_path, Image.fromarray(values), "int32.tif"), told.append)
    assert not rgb.any() and "int32.tif is dark" in told[0]
    read_image(saved(tmp_path, Image.fromarray(values * 257), "int32.tif"), told.append)
    assert len(told) == 1


def sixteen_bits(folder: Path, mode: str, brightest: int) -> Path:
    """A PNG of 16 bits a channel with values 0..brightest; Pillow cannot write a coloured one."""
    values = np.linspace(0, brightest, 12).astype(">u2").reshape(2, 6)
    color = {"grey": 0, "colour": 2}[mode]  # six greys, or two pixels of three channels, a row
    header = struct.pack(">IIBBBBB", 6 if mode == "grey" else 2, 2, 16, color, 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    path = folder / "deep.png"
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )
    )
    return path


def test_integers_beyond_sixteen_bits_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.full((4, 4), 70000, np.int32)), "deep.tif")
    assert "70000" in refusal(path)


def test_floating_point_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(np.ones((4, 4), np.float32)), "float.tif")
    assert "8 bits" in refusal(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = read_image(saved(tmp_path, Image.fromarray(PHOTO), exif=exif))
    turned = {
        1: PHOTO,
        2: PHOTO[:, ::-1],
        3: PHOTO[::-1, ::-1],
        4: PHOTO[::-1],
        5: PHOTO.transpose(1, 0, 2),
        6: np.rot90(PHOTO, -1),
        7: PHOTO[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(PHOTO),
    }
    np.testing.assert_array_equal(rgb, turned[orientation])


def test_one_pixel(tmp_path: Path) -> None:
    assert read_image(saved(tmp_path, Image.fromarray(PHOTO[:1, :1]))).shape == (1, 1, 3)


def test_first_picture_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((5, 5, 3), value, np.uint8)) for value in (10, 200)]
    path = saved(tmp_path, frames[0], "two.tif", save_all=True, append_images=frames[1:])
    assert read_image(path).max() == 10


def test_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "absent.jpg")


def test_folder(tmp_path: Path) -> None:
    assert "folder" in refusal(tmp_path)


def test_a_name_that_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listing of the working folder gives such names: `~` is no home there."""
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(
        read_image(saved(Path(), Image.fromarray(PHOTO), "~a.png")), PHOTO
    )


def test_name_too_long(tmp_path: Path) -> None:
    refusal(tmp_path / ("x" * 5000))


def test_empty(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    assert "0 bytes" in refusal(path)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / "notes.jpg"
    path.write_text("these are notes\n")
    assert "not an image" in refusal(path)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated(tmp_path: Path, form: str, share: float) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.tile(PHOTO, (8, 8, 1))).save(stream, form)
    path = tmp_path / f"cut.{form.lower()}"
    path.write_bytes(stream.getvalue()[: int(len(stream.getvalue()) * share)])
    refusal(path)


@pytest.mark.parametrize("size", [(20_000, 20_000), (MAX_PIXELS // 10_000 + 1, 10_000)])
def test_too_large_is_refused_before_decoding(tmp_path: Path, size: tuple[int, int]) -> None:
    message = refusal(png_of_claimed_size(tmp_path / "huge.png", *size))
    assert "limit is 100 Mpx" in message and "ownscale" in message


def test_just_below_the_limit_is_decoded_without_a_warning(tmp_path: Path) -> None:
    path = png_of_claimed_size(tmp_path / "large.png", MAX_PIXELS // 10_000, 10_000)
    assert "truncated" in refusal(path)


def test_the_suffixes_of_photos_stand_in_one_place() -> None:
    import structsam_export

    (root,) = structsam_export.__path__
    holders = [p.name for p in Path(root).rglob("*.py") if '".webp"' in p.read_text("utf-8")]
    assert holders == ["image_file.py"]
