"""A model that is not there is named in one line, at once, and folders come before the Hub."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_base, find_model


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    save_file({"a": torch.ones(3)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A Hub on this machine, and the paths that it was asked for: it knows `some/model` and gates `some/gated`."""
    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.startswith("/api/models"):
                asked.append(self.path)
            known = self.path.startswith("/api/models/some/model")
            gated = self.path.startswith("/api/models/some/gated")
            body = json.dumps({"id": "some/model"} if known else {"error": "no"}).encode()
            self.send_response(200 if known else 403 if gated else 404)
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *words: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    use_hub(monkeypatch, server.server_address[1])
    yield asked
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=f"http://127.0.0.1:{port}"))


def refusal(name: str) -> str:
    with pytest.raises(UserError) as refused:
        find_model("model_name_or_path", name)
    message = str(refused.value)
    assert message.startswith("model_name_or_path: ") and len(message) < 400
    return message


def test_a_folder_is_looked_at_and_the_hub_is_not_asked(model: Path, hub: list[str]) -> None:
    find_model("model", str(model))
    assert hub == []


def test_a_folder_beside_it_is_told(model: Path) -> None:
    assert f"there is no folder {model.parent / 'mime'} (did you mean {model}?)" in refusal(str(model.parent / "mime"))
    assert f"holds no config.json: did you mean {model}?" in refusal(str(model.parent))
    assert "mine/config.json is a file" in refusal(str(model / "config.json"))


def test_weights_that_are_missing_are_told(model: Path) -> None:
    (model / "model.safetensors").unlink()
    find_model("model", str(model), weights=False)
    assert "holds no weights" in refusal(str(model))
    files = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    (model / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict(zip("abc", files, strict=True))})
    )
    save_file({"a": torch.ones(3)}, model / files[0])
    assert f"2 files are missing, {files[1]} first" in refusal(str(model))


@pytest.mark.parametrize("name", ["./gone", "runs/a/checkpoint-5", "a b", "some/model/", "~/no such model"])
def test_what_can_be_no_name_of_the_hub_is_not_asked_for(name: str, hub: list[str]) -> None:
    assert "it is no name of a model on the Hub either" in refusal(name)
    assert hub == []


def test_the_hub_is_asked_once(hub: list[str]) -> None:
    find_model("model", "some/model")
    assert "has no model of this name that is open to you" in refusal("some/modle")
    assert "accept them at http://127.0.0.1:" in refusal("some/gated")
    assert len(hub) == 3
    find_model("model", "some/modle", hub=False)
    assert len(hub) == 3


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        use_hub(monkeypatch, taken.getsockname()[1])
        begun = time.monotonic()
        assert "HF_ENDPOINT to a mirror that can be reached" in refusal("some/model")
    assert time.monotonic() - begun < 5


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch, hub: list[str]) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids the Hub" in refusal("some/other")
    assert hub == []


def test_the_base_of_an_adapter_is_named_where_it_has_moved(model: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    find_base(str(adapter), str(model))
    moved = str(model.with_name("moved"))
    with pytest.raises(UserError) as refused:
        find_base(str(adapter), moved)
    for part in (f"there is no folder {moved}", f"as base_model_name_or_path into {adapter / 'adapter_config.json'}"):
        assert part in str(refused.value)
    with pytest.raises(UserError, match="does not name its model"):
        find_base(str(adapter), None)


@pytest.mark.parametrize("kept", [0, 1, 7, 40, -1])
def test_weights_whose_writing_was_cut_off_are_told(kept: int, model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert f"{file} is not whole" in refusal(str(model))
