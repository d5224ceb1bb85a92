"""Images that rows name by their address: fetched while rows are read, by a client that nothing on this machine or its
network can be reached through."""

import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mmsearch_trl.data import web_images
from mmsearch_trl.data.dataset import load_dataset_rows
from mmsearch_trl.data.rows import RowError, SkippedRows
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.search.web.fetch import Fetcher


Writer = Callable[..., Path]


class _Handler(BaseHTTPRequestHandler):
    asked: list[str]
    png: bytes

    def do_GET(self) -> None:
        self.asked.append(self.path)
        busy = self.path == "/busy.png" and self.asked.count(self.path) < 3
        status, kind, body = 200, "image/png", self.png
        if self.path == "/gone.png" or busy:
            status = 503 if busy else 404
        if self.path == "/page.html":
            kind, body = "text/html", b"<html>"
        if self.path == "/odd":
            kind = "binary/octet-stream"
        if self.path == "/broken.png":
            body = b"no image"
        if self.path == "/away.png":
            status = 302
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if status == 302:
            self.send_header("Location", "http://169.254.169.254/latest/meta-data")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def site(png: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """An address of this machine, which alone may be asked, and the paths that were."""
    handler = type("Handler", (_Handler,), {"asked": [], "png": png})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    here = partial(Fetcher, allowed=lambda address: address == "127.0.0.1", ports=None)
    monkeypatch.setattr(web_images, "Fetcher", here)
    monkeypatch.setattr(web_images, "_PAUSE_S", 0.0)
    yield f"http://127.0.0.1:{server.server_port}", handler.asked  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


def row(*images: Any) -> dict[str, Any]:
    return {"question": "What is it?", "answer": "a box", "images": list(images)}


def test_an_image_is_fetched_once_and_kept(
    site: tuple[str, list[str]], write_jsonl: Writer, tmp_path: Path, png: bytes
) -> None:
    url, asked = site
    path = write_jsonl(
        row(f"{url}/a.png", "box.png"), row({"type": "image", "image": f"{url}/a.png"}), row(f"{url}/odd")
    )
    for _ in range(2):
        rows: Any = load_dataset_rows(path, cache_dir=tmp_path / "cache")
        assert list(rows["images"]) == [[png, png], [png], [png]]
    assert sorted(asked) == ["/a.png", "/odd"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/gone.png", "HTTP 404"),
        ("/page.html", "the content type is 'text/html'"),
        ("/broken.png", "is not a readable"),
        ("/away.png", "unreadable image: the address of image 1: "),
    ],
)
def test_what_cannot_be_fetched_is_a_bad_row(
    site: tuple[str, list[str]], write_jsonl: Writer, tmp_path: Path, name: str, reason: str
) -> None:
    url, _ = site
    path = write_jsonl(row("box.png"), row(f"{url}{name}"))
    with pytest.raises(RowError, match=rf"plain\.jsonl, line 2: .*{reason}"):
        load_dataset_rows(path, cache_dir=tmp_path / "cache")
    skipped = SkippedRows()
    assert len(load_dataset_rows(path, on_error="skip", cache_dir=tmp_path / "cache", skipped=skipped)) == 1
    assert len(skipped) == 1


def test_a_host_that_is_busy_is_asked_again(site: tuple[str, list[str]], write_jsonl: Writer) -> None:
    url, asked = site
    assert len(list(read_tasks(write_jsonl(row(f"{url}/busy.png"))))) == 1
    assert asked == ["/busy.png"] * 3


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1/a.png",
        "http://localhost:80/a.png",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/a.png",
        "http://0x7f.1/a.png",
        "http://2130706433/a.png",
        "http://10.0.0.1/a.png",
        "http://user:secret@example.org/a.png",
        "http://example.org:22/a.png",
        "HTTP://[::ffff:127.0.0.1]/a.png",
    ],
)
def test_this_machine_and_its_network_are_never_asked(
    write_jsonl: Writer, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_images, "_TRIES", 1)
    with pytest.raises(RowError, match="line 1: unreadable image: the address of image 1: ") as raised:
        list(read_tasks(write_jsonl(row(address))))
    assert "secret" not in str(raised.value)
