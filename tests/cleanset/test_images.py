from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from modelaudit.cleanset import ImageLimits
from modelaudit.cleanset.images import decode_image, image_suffixes, is_grey, luma
from modelaudit.errors import ConfigError, DataError
from tests.helpers.images import encoded, picture

LIMITS = ImageLimits()


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format=kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP"])
def test_common_formats_decode(kind: str) -> None:
    pixels = picture(1, 0)
    decoded = decode_image(encoded(pixels, kind), LIMITS)
    assert decoded.shape == (16, 16, 3)
    assert decoded.dtype == np.uint8
    if kind not in {"GIF", "JPEG", "WEBP"}:
        assert np.array_equal(decoded, pixels)


def test_sixteen_bit_grey_keeps_its_upper_bits() -> None:
    values = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    decoded = decode_image(saved(Image.fromarray(values), "PNG"), LIMITS)
    assert decoded[0, :, 0].tolist() == [0, 0, 1, 255]
    assert is_grey(decoded)


def test_transparency_is_dropped() -> None:
    image = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert decode_image(saved(image, "PNG"), LIMITS)[0, 0].tolist() == [10, 20, 30]


def test_palette_with_transparency_decodes_without_warning() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    content = saved(image, "PNG", transparency=b"\x00\x80")
    assert decode_image(content, LIMITS)[0, 0].tolist() == [9, 8, 7]


def test_cmyk_decodes() -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = decode_image(saved(image, "JPEG"), LIMITS)[4, 4].tolist()
    assert red > 200
    assert max(green, blue) < 60


def test_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(content, LIMITS)[0, 0].tolist() == [255, 0, 0]


def test_orientation_tag_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    content = saved(Image.new("RGB", (8, 4)), "JPEG", exif=exif)
    assert decode_image(content, LIMITS).shape == (4, 8, 3)


def test_float_pixels_are_refused() -> None:
    content = saved(Image.fromarray(np.zeros((4, 4), dtype=np.float32)), "TIFF")
    with pytest.raises(DataError, match="found mode 'F'"):
        decode_image(content, LIMITS)


def test_truncated_picture_raises() -> None:
    content = encoded(picture(0, 0, size=64), "JPEG")
    with pytest.raises(DataError, match="damaged"):
        decode_image(content[: len(content) // 2], LIMITS)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_other_bytes_raise(content: bytes) -> None:
    with pytest.raises(DataError):
        decode_image(content, LIMITS)


def test_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    for side in (10_000, 40_000):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")
        with pytest.raises(DataError, match="exceeds the limit of 50000000 pixels"):
            decode_image(content, LIMITS)


def test_postscript_never_reaches_ghostscript() -> None:
    content = saved(Image.new("RGB", (4, 4)), "EPS")
    with pytest.raises(DataError):
        decode_image(content, LIMITS)
    assert ".eps" not in image_suffixes()


def test_memory_shortage_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise MemoryError

    content = encoded(picture(0, 0), "GIF")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match="more memory"):
        decode_image(content, LIMITS)


def test_decoder_that_is_not_built_in_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no decoder")

    content = encoded(picture(0, 0), "GIF")
    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(DataError, match="cannot decode"):
        decode_image(content, LIMITS)


def test_long_sides_are_shrunk_but_not_stretched() -> None:
    content = saved(Image.new("L", (900, 600), 7), "PNG")
    decoded = decode_image(content, ImageLimits(shorter_side=100))
    assert decoded.shape == (100, 150, 3)
    assert (decoded == 7).all()


def test_large_palette_picture_is_shrunk_in_colour() -> None:
    image = Image.new("P", (300, 300), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    decoded = decode_image(saved(image, "PNG"), ImageLimits(shorter_side=50))
    assert decoded.shape == (50, 50, 3)
    assert decoded[25, 25].tolist() == [9, 8, 7]


def test_luma_equals_pillow() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    assert np.array_equal(luma(pixels), np.asarray(Image.fromarray(pixels).convert("L")))


@pytest.mark.parametrize("field", ["pixels", "file_bytes", "files", "array_bytes", "shorter_side"])
def test_limit_below_one_is_an_error(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        ImageLimits(**{field: 0})
