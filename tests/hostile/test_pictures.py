"""Whatever a search result calls an image: the reply has as many images as places for them, and none is made up."""

import asyncio
import io
import os
import struct
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import tiny
from misbehaving import response, serving
from PIL import Image

from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import ImageHit, ImageQuery
from mmsearch_trl.search.calls.image_decoder import MEMORY, PROCESSES, ImageDecoder
from mmsearch_trl.search.calls.worker_pool import WorkerPool
from mmsearch_trl.search.image.download import Thumbnails
from mmsearch_trl.search.media.thumbnail import THUMBNAIL_SIDE
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.web.fetch import Fetcher


PROTOCOL = tiny.qwen25().protocol()
[TASK] = tiny.tasks(1)
NOISE = Image.effect_noise((60, 40), 90).convert("RGB")


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(width: int, height: int, *, pixels: bytes = b"") -> bytes:
    """A PNG whose header says what it likes; `pixels` are compressed already."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", pixels or zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def bomb(side: int) -> bytes:
    compressor, row = zlib.compressobj(1), bytes(3 * side + 1)
    return png(side, side, pixels=b"".join([compressor.compress(row) for _ in range(side)]) + compressor.flush())


def with_exif(orientation: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(NOISE, "JPEG", exif=exif)


def scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again; a decoder goes over the image for each."""
    data = encoded(NOISE, "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


PNG, JPEG = encoded(NOISE), encoded(NOISE, "JPEG")
FRAMES = [Image.effect_noise((60, 40), spread).convert("RGB") for spread in (20, 60, 90)]
GOOD: dict[str, tuple[bytes, str]] = {
    "PNG": (PNG, "image/png"),
    "JPEG": (JPEG, "image/jpeg"),
    "WEBP": (encoded(NOISE, "WEBP"), "image/webp"),
    "GIF": (encoded(NOISE, "GIF"), "image/gif"),
    "PNG that is called JPEG": (PNG, "image/jpeg"),
    "CMYK": (encoded(NOISE.convert("CMYK"), "JPEG"), "image/jpeg"),
    "grey": (encoded(NOISE.convert("L")), "image/png"),
    "16 bits": (encoded(NOISE.convert("L").convert("I;16")), "image/png"),
    "1 bit": (encoded(NOISE.convert("1")), "image/png"),
    "palette": (encoded(NOISE.convert("P")), "image/png"),
    "transparent": (encoded(NOISE.convert("RGBA")), "image/png"),
    "transparent palette": (encoded(NOISE.convert("P"), transparency=3), "image/png"),
    "animated GIF": (encoded(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "image/gif"),
    "animated WEBP": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "image/webp"),
    "turned": (with_exif(6), "image/jpeg"),
    "turned in no known way": (with_exif(77), "image/jpeg"),
    "corrupted EXIF": (JPEG[:2] + b"\xff\xe1\x00\x10Exif\x00\x00garbage!" + JPEG[2:], "image/jpeg"),
    "polyglot of JPEG and HTML": (JPEG + b"<html><script>alert(1)</script></html>", "image/jpeg"),
    "polyglot of PNG and ZIP": (PNG + b"PK\x03\x04" + bytes(200), "image/png"),
    "large": (encoded(Image.new("RGB", (3000, 2000), "red"), "JPEG"), "image/jpeg"),
    "progressive": (encoded(NOISE, "JPEG", progressive=True), "image/jpeg"),
    "JPEG of a few more scans": (scans(20), "image/jpeg"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "image/png"),
    "thin": (encoded(Image.new("RGB", (1, 300))), "image/png"),
}
BAD: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "image/png"),
    "text": (b"not an image", "image/png"),
    "HTML": (b"<html><body>404</body></html>", "image/jpeg"),
    "HTML that says so": (b"<html></html>", "text/html"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
    "SVG that is called PNG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/png"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nquit\n", "image/png"),
    "TIFF": (encoded(NOISE, "TIFF"), "image/png"),
    "BMP": (encoded(NOISE, "BMP"), "image/png"),
    "0 x 0": (png(0, 0), "image/png"),
    "0 x 5": (png(0, 5), "image/png"),
    "bomb of 81 megapixels": (bomb(9000), "image/png"),
    "header of 4 gigapixels": (png(65000, 65000), "image/png"),
    "1 x 100000000": (png(1, 100_000_000), "image/png"),
    "header without pixels": (png(50, 50), "image/png"),
    "half a PNG": (PNG[: len(PNG) // 2], "image/png"),
    "half a JPEG": (JPEG[: len(JPEG) // 2], "image/jpeg"),
    "flipped bits": (PNG[:60] + bytes(byte ^ 0xFF for byte in PNG[60:90]) + PNG[90:], "image/png"),
    "JPEG of hundreds of scans": (scans(300), "image/jpeg"),
    "too many bytes": (PNG + bytes(5_000_000), "image/png"),
}


class Lens:
    """Image search whose hits' images come from a server."""

    name, fingerprint = "lens", "1"

    def __init__(self, fetcher: Fetcher, addresses: Sequence[str]) -> None:
        self._thumbnails, self._addresses = Thumbnails(fetcher), addresses

    async def search(self, query: ImageQuery, k: int) -> list[ImageHit]:
        return await self._thumbnails.of([(ImageHit(f"page {a[-3:]}"), a) for a in self._addresses])

    async def close(self) -> None:
        await self._thumbnails.close()


def looked_up(*pictures: tuple[bytes, str]) -> list[ImageHit]:
    """What a search with these images comes to; the reply is checked on the way."""

    async def run() -> list[ImageHit]:
        async def here(host: str, port: int) -> list[str]:
            return ["127.0.0.1"]

        answers = {f"/{n}": response(data, Content_Type=kind) for n, (data, kind) in enumerate(pictures)}
        async with serving(answers) as site:
            fetcher = Fetcher(allowed=lambda address: address == "127.0.0.1", lookup=here, ports=None)
            addresses = [f"http://pictures.example:{site.port}{path}" for path in answers]
            search = SearchRuntime(Lens(fetcher, addresses), None, k_image=len(pictures))
            observation = await search.image_search(ImageQuery(NOISE))
            await search.disconnect()
        assert observation.failure is None and len(observation.hits) == len(pictures)
        reply = PROTOCOL.reply(observation, TASK, ())
        pads = reply.token_ids.count(PROTOCOL.chat.image_pad_id)
        assert pads == sum(part.num_tokens for part in reply.parts if isinstance(part, ImageInput))
        return [hit for hit in observation.hits if isinstance(hit, ImageHit)]

    return asyncio.run(run())


@pytest.fixture(scope="module")
def shown() -> dict[str, ImageHit]:
    """One search brings the good ones, one the bad ones: a process that decodes has to be started for each."""
    return dict(zip((*GOOD, *BAD), (*looked_up(*GOOD.values()), *looked_up(*BAD.values())), strict=True))


@pytest.mark.parametrize("name", GOOD)
def test_odd_pictures_are_shown(name: str, shown: dict[str, ImageHit]) -> None:
    hit = shown[name]
    assert hit.thumbnail is not None and hit.thumbnail.mode == "RGB"
    assert max(hit.thumbnail.size) <= THUMBNAIL_SIDE


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_picture_leaves_its_title(name: str, shown: dict[str, ImageHit]) -> None:
    assert shown[name].thumbnail is None and shown[name].title.startswith("page")


def test_a_turned_picture_is_upright(shown: dict[str, ImageHit]) -> None:
    thumbnail = shown["turned"].thumbnail
    assert thumbnail is not None and thumbnail.size == (40, 60)


def test_an_animation_is_its_first_frame(shown: dict[str, ImageHit]) -> None:
    thumbnail = shown["animated GIF"].thumbnail
    assert thumbnail is not None
    expected = Image.open(io.BytesIO(encoded(FRAMES[0], "GIF"))).convert("RGB")
    assert thumbnail.tobytes() == expected.tobytes()


def test_good_and_bad_pictures_do_not_change_places() -> None:
    hits = looked_up(GOOD["PNG"], BAD["half a PNG"], GOOD["JPEG"], BAD["bomb of 81 megapixels"], GOOD["thin"])
    assert [hit.thumbnail is not None for hit in hits] == [True, False, True, False, True]
    assert hits[0].thumbnail is not None and hits[0].thumbnail.tobytes() == NOISE.tobytes()


HUGE = encoded(Image.new("RGBA", (5000, 5000), (1, 2, 3, 100)), "WEBP", lossless=True)
"""Just under the limit of pixels, and a kilobyte."""


def test_pictures_that_are_large_in_memory_alone_are_decoded_within_a_budget() -> None:
    import resource

    assert len(HUGE) < 2000
    looked_up(GOOD["PNG"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watched() as peak:
        looked_up(BAD["bomb of 81 megapixels"], *[(HUGE, "image/webp")] * 5)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes, of this process"
    assert sum(peak.values()) < PROCESSES * MEMORY, "of all that were started"


@contextmanager
def watched() -> Iterator[dict[int, int]]:
    """The largest memory of every process that this one starts meanwhile; other tests' servers are not."""
    peak: dict[int, int] = {}
    others = {child.pid for child in psutil.Process().children(recursive=True)}
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            for child in psutil.Process().children(recursive=True):
                if child.pid in others:
                    continue
                with suppress(psutil.Error):
                    peak[child.pid] = max(peak.get(child.pid, 0), child.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_decoder_is_killed_when_it_is_late_and_when_its_search_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    burning = Path(__file__).parent / "burning.py"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(burning.parent), *sys.path]))

    async def run() -> None:
        decoder, before = ImageDecoder(timeout_s=0.3), set(psutil.Process().children(recursive=True))
        monkeypatch.setattr(decoder, "_pool", WorkerPool("burning:decode", b"", processes=2, memory=MEMORY))
        assert await decoder.decode(b"late") is None
        decoder._timeout_s = 60.0
        task = asyncio.create_task(decoder.decode(b"cancelled"))
        await asyncio.sleep(0.5)
        task.cancel()
        await asyncio.wait([task])
        started = set(psutil.Process().children(recursive=True)) - before
        deadline = time.monotonic() + 10  # on a busy machine one that was killed goes on for a while
        while running := list(filter(_runs, started)):
            assert time.monotonic() < deadline, running
            await asyncio.sleep(0.05)
        assert await decoder.decode(PNG) is not None, "and others are decoded"
        decoder.close()

    asyncio.run(run())
