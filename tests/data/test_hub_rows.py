"""A data set on the Hub by its name, from a stand-in for the Hub on this machine: streamed, and downloaded."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import datasets
import pytest
from PIL import Image


COMMIT = "1" * 40
READ = """
import json, sys
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.sources import count_rows, find_source, stamp
from mmsearch_trl.data.tasks import read_tasks

for name in sys.argv[1:]:
    for streaming in (True, False):
        source = find_source(name, streaming=streaming)
        try:
            tasks = read_tasks(name, reading=Reading(streaming=streaming))
            rows = [(task.id, task.question, task.answers, len(task.images)) for task in tasks]
            print(json.dumps([rows, count_rows(source), stamp(source)[0]]))
        except UserError as error:
            print(json.dumps(str(error)))
"""


class _Handler(BaseHTTPRequestHandler):
    root: Path
    asked: list[str]

    def do_GET(self) -> None:
        path, api = unquote(urlparse(self.path).path), "/api/datasets/owner/name"
        files = [each.relative_to(self.root).as_posix() for each in sorted(self.root.rglob("*")) if each.is_file()]
        self.asked.append(f"{self.command} {path}")
        if path in (api, f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in files]
            return self.answer({"id": "owner/name", "sha": COMMIT, "tags": [], "siblings": siblings})
        if path.startswith(f"{api}/tree/{COMMIT}"):
            folder = path.removeprefix(f"{api}/tree/{COMMIT}").lstrip("/")
            below = [name for name in files if name.startswith(folder)]
            folders = {name.rpartition("/")[0] for name in below}
            listed = [{"type": "directory", "path": name, "size": 0, "oid": COMMIT} for name in sorted(folders)]
            return self.answer([*map(self.entry, below), *listed])
        name = path.removeprefix(f"/datasets/owner/name/resolve/{COMMIT}/")
        if name in files:
            headers = {"ETag": f'"{self.entry(name)["oid"]}"', "X-Repo-Commit": COMMIT}
            return self.answer((self.root / name).read_bytes(), 200, **headers)
        self.answer({"error": "not found"}, 404, **{"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def entry(self, name: str) -> dict[str, Any]:
        size, oid = (self.root / name).stat().st_size, hashlib.sha1(name.encode()).hexdigest()
        return {"type": "file", "path": name, "size": size, "oid": oid}

    def answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a Hub with one data set, geometry3k in miniature, and what was asked of it."""
    picture = Image.new("RGB", (30, 20))
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    for split, size in (("train", 3), ("test", 1)):
        columns = {"images": [[picture]] * size, "problem": ["<image>Find $x$."] * size, "answer": ["3"] * size}
        file = tmp_path / "repo" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(columns, features=features).to_parquet(str(file))
    handler = type("Handler", (_Handler,), {"root": tmp_path / "repo", "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler.asked  # pyright: ignore[reportAttributeAccessIssue]
    server.shutdown()
    server.server_close()


def read(address: str, home: Path, *names: str, **environment: str) -> list[Any]:
    own = {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"} | environment
    command = [sys.executable, "-c", READ, *names]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_a_data_set_is_read_by_its_name(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, asked = hub
    names = ("owner/name@data:train", "owner/name:test", "owner/name")
    streamed, whole, _, test, many, none = read(address, tmp_path / "home", *names)
    rows = [[f"name-data-train-{number}", "Find $x$.", ["3"], 1] for number in range(3)]
    assert streamed[:2] == [rows, None] and whole[:2] == [rows, 3] and test[1] == 1
    assert COMMIT in streamed[2] and streamed[2] == whole[2]
    assert many == none and "owner/name has the splits train, test: name one, as owner/name:train" in many
    # What was downloaded is read again without the Hub, and is the same; what was not is told in a line.
    asked.clear()
    _, offline, *missing = read(address, tmp_path / "home", "owner/name:test", "owner/other:train", HF_HUB_OFFLINE="1")
    assert offline == test and asked == []
    assert all(
        "owner/other is no file or folder here, and as a data set on the Hub it cannot be" in m for m in missing
    )
