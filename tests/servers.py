"""Real vLLM for tests: servers, one for each tiny model family, and trainers whose rollouts it samples.

A server is started when first asked for and kept for the session.
"""

import gc
import json
import os
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.task import Task
from mmsearch_trl.engine import vllm_process
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.protocol.chat import ChatEncoder


RANK = 16
FLAGS: dict[str, Any] = {
    "max_model_len": 1024,
    "max_num_seqs": 64,
    "enable_prompt_tokens_details": True,
}
ENGINE_ARGS = {"max_model_len": 1024, "enforce_eager": True, "num_gpu_blocks_override": 512}
"""Of an engine in this process. By default its cache takes a gigabyte, which is written to at the start."""
QUIET = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def vocabulary(chat: ChatEncoder) -> Vocabulary:
    width = chat.vocabulary_size
    return Vocabulary.of([chat.turn_end_id], chat.vision_ids, chat.image_pad_id, named=width, width=width)


def post(url: str, path: str, body: Any = None) -> Any:
    """One call of a server's control endpoints; the parsed answer, or None where it is empty."""
    data = json.dumps(body).encode() if body is not None else b""
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = answer.read()
    return json.loads(text) if text else None


def in_forks(model: str, log: Path, flags: dict[str, Any], **options: Any) -> VLLMProcess:
    """A server that starts as `vllm_in_forks.py` says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm_process, "_MODULE", "vllm_in_forks")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        return VLLMProcess(model, log, flags, **options)


@dataclass
class Servers:
    """Running servers by the name of the model family."""

    folder: Path
    running: dict[str, VLLMProcess] = field(default_factory=dict)

    def url(self, family: tiny.Family) -> str:
        """A server of `family.model()`, with those weights and empty caches."""
        home = self.folder / family.name
        if family.name not in self.running:
            family.model().save_pretrained(home)
            family.processor.save_pretrained(home)
            # The first as a user's is started, the others in half the time.
            start = in_forks if self.running else VLLMProcess
            server = start(str(home), self.folder / f"{family.name}.log", FLAGS, max_lora_rank=RANK)
            self.running[family.name] = server.__enter__()
        url = self.running[family.name].url
        post(url, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(home)}})
        post(url, "/collective_rpc", {"method": "repack_heads"})
        for cache in ("prefix", "mm", "encoder"):
            post(url, f"/reset_{cache}_cache")
        post(url, "/update_weight_version", {"new_version": "default"})
        return url

    def stop(self) -> None:
        for server in self.running.values():
            server.stop()


@dataclass
class Trainers:
    """Builds trainers as `tiny.trainer` does, on one kind of engine: `transformers`, `server` or `colocate`."""

    kind: str
    servers: Servers
    made: list[tiny.MMSearchGRPOTrainer] = field(default_factory=list)

    def __call__(
        self, family: tiny.Family, out: Path, given: Sequence[Task] | None = None, *, model: Any = None, **options: Any
    ) -> tiny.MMSearchGRPOTrainer:
        model = model or family.model()
        settings: dict[str, Any] = {}
        if self.kind == "server":
            settings = {"vllm_server_base_url": self.servers.url(family)}
        elif self.kind == "colocate":
            home = out / "home"
            model.save_pretrained(home)
            family.processor.save_pretrained(home)
            model.config._name_or_path = str(home)
            settings = {"vllm_engine_args": ENGINE_ARGS, "vllm_enable_sleep_mode": False}
        if settings:
            settings |= {"use_vllm": True, "vllm_mode": self.kind}
        trainer = tiny.trainer(family, out, given, model=model, **(settings | options))
        self.made.append(trainer)
        return trainer

    def close(self) -> None:
        for trainer in self.made:
            trainer.close()


@contextmanager
def environment() -> Iterator[None]:
    """Room for vLLM in this process: quiet, small, and everything that it changes put back afterwards."""
    gc.collect()
    gc.freeze()
    before, set_num_threads = dict(os.environ), torch.set_num_threads
    os.environ.update(QUIET)
    try:
        with pytest.MonkeyPatch.context() as patch:
            # An engine's end thaws what conftest.py froze as well, and garbage is collected six times in its life.
            patch.setattr(gc, "freeze", lambda: None)
            patch.setattr(gc, "unfreeze", lambda: None)
            yield
    finally:
        torch.set_num_threads = set_num_threads
        os.environ.clear()
        os.environ.update(before)
