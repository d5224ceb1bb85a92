"""vLLM in this process with the trainer's weights: how fast it writes, and how far its log-probs are from theirs."""

import asyncio
import importlib.util
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.gpu.model import IDS, build, free, rounded
from benchmarks.gpu.oracle import difference, place
from benchmarks.gpu.passes import packed
from benchmarks.gpu.rows import Row
from PIL import Image

from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine.images import ImageEncoder


WHAT = "log-probs, vLLM against trainer"
Prompt = tuple[list[int], ImageInput]


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Turns asked for at once, of `tokens` each, after `text` ids and an image of `side` pixels of their own."""

    turns: int = 64
    tokens: int = 256
    text: int = 400
    side: int = 280


def sampler(config: Any, device: torch.device, load: Load) -> Iterator[dict[str, Any]]:
    """A table row, or why there is none. The configuration gets a processor's control tokens."""
    if importlib.util.find_spec("vllm") is None:
        yield {"what": WHAT, "note": "skipped: vLLM is not installed"}
        return
    from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
    from mmsearch_trl.engine.vllm_requests import Vocabulary

    processor = served(config, load)
    control = Vocabulary(frozenset(), frozenset(getattr(config, name) for name in IDS), config.image_token_id)
    arguments: dict[str, Any] = {"dtype": "bfloat16", "max_num_seqs": load.turns, "max_model_len": 2048}
    # A processor needs no compiled graphs; on a GPU the other half of the memory is for the trainer's forward pass.
    arguments |= {"gpu_memory_utilization": 0.45} if device.type == "cuda" else {"enforce_eager": True}
    with tempfile.TemporaryDirectory() as folder:
        rounded(build(config, device, torch.float32), torch.bfloat16).save_pretrained(folder)
        processor.save_pretrained(folder)
        free()
        engine = ColocatedEngine(folder, control, engine_args=arguments)
        try:
            yield measure(engine, config, ImageEncoder(processor.image_processor), device, load)
        finally:
            engine.close()


def served(config: Any, load: Load) -> Any:
    """A processor that takes the load's images as they are; the configuration gets its ids."""
    from mmsearch_trl.world.model import build_config
    from mmsearch_trl.world.tokenizer import build_processor

    processor: Any = build_processor()
    processor.image_processor.size = {"shortest_edge": 28**2, "longest_edge": load.side**2}
    world = build_config(processor)
    for name in IDS:
        setattr(config, name, getattr(world, name))
    return processor


def measure(engine: Any, config: Any, images: ImageEncoder, device: torch.device, load: Load) -> dict[str, Any]:
    """The load is written twice, and the second time counts. As in the oracle, bf16 is judged by fp32."""
    rng = random.Random(4)
    prompts = [_prompt(rng, config, images, load) for _ in range(2 * load.turns)]
    with engine.rollout():
        asyncio.run(_write(engine, prompts[: load.turns], load.tokens))
        prompts = prompts[load.turns :]
        started = time.perf_counter()
        turns = asyncio.run(_write(engine, prompts, load.tokens))
        seconds = time.perf_counter() - started
    features = [images.features(image) for _, image in prompts]
    rows = [
        Row(ids, list(turn.token_ids), [1] * len(turn.token_ids), [(1, *feature.grid_thw.tolist()[1:])])
        for (ids, _), turn, feature in zip(prompts, turns, features, strict=True)
    ]
    pixels = torch.cat([feature.pixel_values for feature in features])
    exact, trained = (_log_probs(config, rows, pixels, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    sampled = torch.nn.utils.rnn.pad_sequence([torch.tensor(turn.logprobs) for turn in turns], batch_first=True)
    batch = place(rows, config, device, torch.bfloat16, pixels=pixels)
    most, mean = difference(sampled, trained, batch)
    far, noise = (difference(values, exact, batch)[1] for values in (sampled, trained))
    return {
        "what": WHAT,
        "setting": f"bf16, {load.turns} turns at once, {load.tokens} tokens each after {len(rows[0].prompt)}",
        "max Δ log-prob": most,
        "mean Δ log-prob": mean,
        "verdict": "as near to fp32 as the trainer" if far < 1.5 * noise else "FURTHER from fp32 than the trainer",
        "note": f"mean Δ from fp32: vLLM {far:.2g}, trainer {noise:.2g}; "
        f"{sum(len(turn.token_ids) for turn in turns) / seconds:,.0f} tokens/s written",
    }


def _prompt(rng: random.Random, config: Any, images: ImageEncoder, load: Load) -> Prompt:
    image = images.encode(Image.frombytes("RGB", (load.side, load.side), rng.randbytes(3 * load.side**2)))
    text = [rng.randrange(20, 220) for _ in range(load.text)]  # of the processor's ids, those of plain text
    pads = [config.image_token_id] * image.num_tokens
    return [*text[::2], config.vision_start_token_id, *pads, config.vision_end_token_id, *text[1::2]], image


async def _write(engine: Any, prompts: Sequence[Prompt], tokens: int) -> list[Completion]:
    sampling = (SamplingParams(max_tokens=tokens, seed=i) for i in range(len(prompts)))
    calls = (engine.generate(ids, [image], how) for (ids, image), how in zip(prompts, sampling, strict=True))
    return await asyncio.gather(*calls)


def _log_probs(
    config: Any, rows: Sequence[Row], pixels: torch.Tensor, device: torch.device, dtype: torch.dtype
) -> torch.Tensor:
    """What the trainer makes of the sampled tokens, with the bf16 weights that vLLM has."""
    model = rounded(build(config, device, torch.float32), torch.bfloat16, dtype).eval()
    with torch.no_grad():
        return packed(model, place(rows, config, device, dtype, pixels=pixels.to(dtype))).cpu()
