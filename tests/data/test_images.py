"""Images of every kind decode to upright 8-bit RGB, and broken ones are refused with the reason."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from visiontune.data.images import MAX_PIXELS, decode, image_files, read_header
from visiontune.errors import DataError


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_the_header_agrees(encode, kind, orientation):
    marked = np.zeros((40, 60), np.uint8)
    marked[:10, :10] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(marked).convert("RGB"), kind, exif=exif)
    image, header = decode(data), read_header(data)
    # Where the EXIF standard says that the stored top left corner belongs.
    bottom, right = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[
        orientation
    ]
    height, width = (60, 40) if orientation > 4 else (40, 60)
    assert image.size == (width, height) == (header.width, header.height)
    pixels = np.asarray(image.convert("L"))
    corner = pixels[-10:] if bottom else pixels[:10]
    corner = corner[:, -10:] if right else corner[:, :10]
    assert corner.mean() > 200
    assert pixels.mean() < 30


def test_sixteen_bit_grey_is_scaled_not_clipped(encode):
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert np.asarray(decode(encode(Image.fromarray(values))))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_floating_point_grey_is_taken_where_its_scale_is_plain(encode):
    ones = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert np.asarray(decode(encode(ones, "TIFF")))[0, :, 0].tolist() == [0, 128, 255]
    unclear = Image.fromarray(np.array([[-3.0, 0.5, 4000.0]], np.float32))
    with pytest.raises(DataError, match="floating-point"):
        decode(encode(unclear, "TIFF"))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_keeps_its_colour(encode, mode):
    image = Image.new("RGBA", (5, 4), (255, 255, 255, 128)).convert(mode)
    decoded = decode(encode(image))
    assert decoded.mode == "RGB"
    assert np.asarray(decoded).min() == 255


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparency_keeps_its_colours(encode):
    image = Image.new("P", (2, 1))
    image.putpalette([200, 10, 20, 30, 140, 50])
    image.putdata([0, 1])
    decoded = decode(encode(image, transparency=bytes([0, 128])))
    assert np.asarray(decoded)[0].tolist() == [[200, 10, 20], [30, 140, 50]]


def test_cmyk_is_converted(encode):
    decoded = decode(encode(Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK"), "TIFF"))
    assert np.abs(np.asarray(decoded)[0, 0].astype(int) - [250, 10, 10]).max() <= 2


def test_the_first_frame_of_an_animation_is_taken(encode):
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 0, 255))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused(encode, picture, kind):
    data = encode(picture(1, 64), kind)
    with pytest.raises(DataError, match="cannot be decoded"):
        decode(data[: len(data) // 2])


@pytest.mark.parametrize("data", [b"<html>not an image</html>", b"%PDF-1.4", b"GIF89a", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DataError):
        decode(data)


def test_an_empty_file_is_called_empty():
    with pytest.raises(DataError, match="empty"):
        decode(b"")


def test_a_format_outside_the_list_is_refused(encode, picture):
    with pytest.raises(DataError, match="known format"):
        decode(encode(picture(1), "PPM"))


def test_a_decompression_bomb_is_refused_by_its_header():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    side = int(MAX_PIXELS**0.5) + 1
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for read in (read_header, decode):
        with pytest.raises(DataError, match="too large"):
            read(data)


def header_of(form, width, height):
    """A file whose header says this size; its pixels are those of a small image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, form)
    data = bytearray(buffer.getvalue())
    if form == "PNG":
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif form == "BMP":
        data[18:26] = struct.pack("<ii", width, height)
    else:
        at = data.index(b"\xff\xc0") + 5
        data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize("form", ["PNG", "BMP", "JPEG"])
def test_an_image_over_the_limit_is_told_with_its_size_in_pixels_and_a_large_one_without_a_warning(form):
    for width, height in ((60_000, 30_000), (20_000, 9_000)):  # over Pillow's limit by far, and just
        with pytest.raises(DataError, match=f"too large: {width:,} x {height:,} pixels"):
            read_header(header_of(form, width, height))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_header(header_of(form, 12_000, 9_000)).width == 12_000


def test_image_files_lists_a_folder_in_order_and_takes_a_file_as_it_is(tmp_path, encode, picture):
    for name in ("b/2.png", "a.JPG", "b/1.png", ".hidden/3.png", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode(picture(1)))
    assert [str(path.relative_to(tmp_path)) for path in image_files(tmp_path)] == ["a.JPG", "b/1.png", "b/2.png"]
    assert image_files(tmp_path / "b/notes.txt") == [tmp_path / "b/notes.txt"]
    with pytest.raises(DataError, match="no images"):
        image_files(tmp_path / "nowhere")


def test_a_broken_exif_block_leaves_the_picture_readable(encode):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encode(Image.new("RGB", (8, 6), "red"), "WEBP", exif=exif))
    start = max(data.find(b"MM\0*"), data.find(b"II*\0"))
    data[start : start + 4] = b"XXXX"  # no TIFF header: Pillow raises SyntaxError
    assert decode(bytes(data)).size == (8, 6)
