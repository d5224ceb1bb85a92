import io
import os
import signal
import struct
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mmsearch_trl.search.media import loading
from mmsearch_trl.search.media.loading import load_image


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def test_every_kind_of_source_gives_the_same_picture(picture: Image.Image, tmp_path: Path) -> None:
    data = encoded(picture, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    mappings = [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}]
    for source in [data, bytearray(data), path, str(path), *mappings, picture]:
        assert load_image(source).tobytes() == picture.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_four_formats_open_as_rgb(picture: Image.Image, format: str) -> None:
    loaded = load_image(encoded(picture, format))
    assert (loaded.mode, loaded.size) == ("RGB", picture.size)


@pytest.mark.parametrize("format", ["TIFF", "BMP", "EPS", "PPM"])
def test_other_formats_are_refused(picture: Image.Image, format: str) -> None:
    with pytest.raises(ValueError, match="not a readable JPEG/PNG/WEBP/GIF file"):
        load_image(encoded(picture, format))


def test_a_pixel_bomb_is_refused_from_its_header() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="9000x9000 pixels, more than the limit"):
        load_image(bomb)


def test_the_exif_orientation_is_applied(picture: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(picture, "JPEG", exif=exif)).size == (20, 30)


def test_only_the_first_frame_of_an_animation_is_read() -> None:
    red, blue = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    data = encoded(red, "GIF", save_all=True, append_images=[blue])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_transparency_is_shown_on_white() -> None:
    assert load_image(encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    data = encoded(Image.fromarray(np.full((4, 4), 0x8000, dtype=np.uint16)), "PNG")
    assert load_image(data).getpixel((0, 0)) == (128, 128, 128)


def test_a_truncated_file_is_an_error(picture: Image.Image) -> None:
    data = encoded(picture, "PNG")
    with pytest.raises(ValueError, match="cannot be decoded"):
        load_image(data[: len(data) // 2])


def test_a_jpeg_of_many_scans_is_refused_from_its_markers() -> None:
    """2,000 scans of 25 megapixels burn a core for a minute."""
    data = encoded(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    assert load_image(data).getpixel((0, 0)) == (254, 0, 0)
    with pytest.raises(ValueError, match="a JPEG of 2009 scans, more than the limit of 64"):
        load_image(data[:last] + data[last:-2] * 2000 + data[-2:])


def test_images_are_decoded_within_a_budget_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty threads, and never more pixels at a time than the budget has; what is larger than it goes alone."""
    monkeypatch.setattr(loading, "_budget", loading._Budget(1000))
    lock, now, most, done = threading.Lock(), [], [], []

    def load(image: Image.Image) -> None:
        with lock:
            now.append(image.width * image.height)
            most.append((sum(now), len(now)))
        time.sleep(0.005)
        with lock:
            now.remove(image.width * image.height)

    monkeypatch.setattr(Image.Image, "load", load)
    images = [Image.new("RGB", size) for size in [(20, 20), (10, 10), (30, 30), (40, 40)] * 5]
    threads = [threading.Thread(target=lambda image=image: done.append(load_image(image))) for image in images]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(done) == 20 and all(pixels <= 1000 or count == 1 for pixels, count in most)
    assert max(count for _, count in most) > 1


def test_an_image_that_cannot_be_decoded_gives_its_share_back(picture: Image.Image) -> None:
    data = encoded(picture, "PNG")
    for _ in range(3):
        with pytest.raises(ValueError, match="cannot be decoded"):
            load_image(data[: len(data) // 2])
    assert loading._budget._taken == 0


def test_a_child_process_does_not_wait_for_threads_that_it_does_not_have(picture: Image.Image) -> None:
    with loading._budget.taking(loading.PIXELS_AT_A_TIME):
        child = os.fork()
        if child == 0:
            load_image(picture)
            os._exit(0)
    deadline = time.monotonic() + 10
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
    assert ended == (child, 0)


def test_transparency_is_mixed_with_white_as_pillow_mixes_it() -> None:
    values = np.zeros((256, 256, 4), dtype=np.uint8)
    values[..., :3] = np.arange(256)[None, :, None]
    values[..., 3] = np.arange(256)[:, None]
    layer = Image.fromarray(values)
    expected = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    assert load_image(encoded(layer, "PNG")).tobytes() == expected.tobytes()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"", "0 bytes"),
        ("nowhere.png", "'nowhere.png' cannot be read: No such file"),
        ("https://example.org/a.png", "download it first"),
        ({"image": 1}, r"needs 'bytes' or 'path', it has \['image'\]"),
        (17, "not int"),
        ("bad\0name", "cannot be read"),
    ],
)
def test_an_unusable_source_says_why(source: object, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        load_image(source)  # pyright: ignore[reportArgumentType]


@given(st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"RIFF"]))
def test_arbitrary_bytes_give_a_picture_or_a_value_error(tail: bytes, magic: bytes) -> None:
    try:
        assert load_image(magic + tail).mode == "RGB"
    except ValueError as error:
        assert str(error)
