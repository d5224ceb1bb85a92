"""Training steps timed: three ways to the log-probs, two kinds of attention, LoRA and full fine-tuning."""

import importlib.util
import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from benchmarks.gpu.flops import needed, peak
from benchmarks.gpu.model import attention, build, free, vocabulary
from benchmarks.gpu.oracle import place
from benchmarks.gpu.passes import Batch, counted, packed, padded_labels, padded_logits, select
from benchmarks.gpu.report import failure
from benchmarks.gpu.rows import Row, Writer

from mmsearch_trl.trainer.log_probs import longest_first


WAYS = {
    "ours: packed rows, labels on sampled tokens": packed,
    "TRL 1.16: batch width, labels on all": padded_labels,
    "batch width, full logits": padded_logits,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        rows: Trajectories per optimizer step.
        micro: Trajectories per forward pass.
        repeats: Timed steps; one more goes before.
        scale: Of all lengths.
    """

    rows: int = 16
    micro: int = 4
    repeats: int = 3
    scale: float = 1.0


def throughput(config: Any, device: torch.device, kinds: Sequence[str], plan: Plan) -> Iterator[dict[str, Any]]:
    """A table row per setting; one that cannot run says why in its `note`."""
    rows = Writer(vocabulary(config), seed=2, scale=plan.scale).rows(plan.rows, group=plan.rows // 2)
    batch = place(rows, config, device, torch.bfloat16)
    for adapters in (True, False):
        if adapters and importlib.util.find_spec("peft") is None:
            yield {"what": "training step", "setting": "LoRA", "note": "skipped: PEFT is not installed"}
            continue
        model, name = _model(config, device, adapters)
        optimizer, its_name = _optimizer(model, device)
        useful = needed(model, rows, adapters_only=adapters)
        for kind, (way, log_probs) in itertools.product(kinds, WAYS.items()):
            row: dict[str, Any] = {"what": "training step", "setting": f"{name}, {kind}: {way}"}
            try:
                with attention(model.get_base_model() if adapters else model, kind):
                    row |= _measure(model, optimizer, batch, rows, log_probs, plan)
                row |= _rates(row, rows, useful, device) | {"note": its_name}
            except Exception as error:
                row["note"] = failure(error)
            optimizer.zero_grad(set_to_none=True)
            free()
            yield row
        del model, optimizer


def _measure(
    model: Any, optimizer: Any, batch: Batch, rows: list[Row], log_probs: Callable[..., Any], plan: Plan
) -> dict[str, Any]:
    lengths = [len(row.ids) for row in rows]
    # TRL deals rows at random; ours go by length.
    order = longest_first(lengths) if log_probs is packed else random.Random(0).sample(range(len(rows)), len(rows))
    cut = [select(batch, order[start : start + plan.micro]) for start in range(0, len(order), plan.micro)]
    with counted(model) as forwarded:
        _step(model, optimizer, cut, log_probs)
    cuda = batch["prompt_ids"].is_cuda
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    seconds = [_timed(lambda: _step(model, optimizer, cut, log_probs), cuda) for _ in range(plan.repeats)]
    return {
        "forwarded/real": sum(forwarded) / sum(lengths),
        "seconds per step": statistics.median(seconds),
        "min to max": f"{min(seconds):.3g} to {max(seconds):.3g}",
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
    }


def _step(model: Any, optimizer: Any, cut: list[Batch], log_probs: Callable[..., Any]) -> None:
    """One optimizer step with the token-mean policy loss."""
    masks = [batch["tool_mask"] * batch["completion_mask"] for batch in cut]
    tokens = torch.stack([mask.sum() for mask in masks]).sum()
    for i, (batch, mask) in enumerate(zip(cut, masks, strict=True)):
        with torch.autocast(mask.device.type, torch.bfloat16):  # PEFT keeps adapters in fp32
            values = log_probs(model, batch)
        advantage = 1.0 if i % 2 else -1.0
        loss = -(advantage * (values - values.detach()).exp() * mask).sum() / tokens
        loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _timed(work: Callable[[], None], cuda: bool) -> float:
    if cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _rates(row: dict[str, Any], rows: list[Row], useful: float, device: torch.device) -> dict[str, Any]:
    seconds = row["seconds per step"]
    best = peak(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return {
        "real tokens/s": sum(len(r.ids) for r in rows) / seconds,
        "needed TFLOP": useful / 1e12,
        "of bf16 peak": f"{useful / seconds / best:.1%}" if best else None,
    }


def _model(config: Any, device: torch.device, adapters: bool) -> tuple[Any, str]:
    """A bf16 model with gradient checkpointing, ready to train, and what is trained of it."""
    model = build(config, device, torch.bfloat16)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if adapters:
        from peft import LoraConfig, get_peft_model

        targets = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
        model = get_peft_model(model, LoraConfig(r=64, lora_alpha=128, target_modules=targets))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    kind = "LoRA r=64 on the text layers" if adapters else "full"
    return model.train(), f"{kind} ({trained / 1e6:,.1f} M trained)"


def _optimizer(model: Any, device: torch.device) -> tuple[torch.optim.Optimizer, str]:
    """AdamW, or SGD where weights, gradients and AdamW's two states would take over 70 % of the memory."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    trained = sum(p.nbytes for p in parameters)
    held = sum(p.nbytes for p in model.parameters())
    cuda = device.type == "cuda"
    if cuda and held + 3 * trained > 0.7 * torch.cuda.get_device_properties(device).total_memory:
        return torch.optim.SGD(parameters, lr=1e-6), "SGD: AdamW's states would not fit"
    gib = 2 * trained / 2**30
    dtype = str(parameters[0].dtype).removeprefix("torch.")
    return torch.optim.AdamW(parameters, lr=1e-6, fused=cuda), f"AdamW, {gib:.1f} GiB of {dtype} states"
