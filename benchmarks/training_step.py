"""A training step by this trainer and by TRL's own methods, on the same tensors: what is forwarded, and how long.

    python -m benchmarks.training_step [--out runs/bench/training_step.json] [--repeats 5] [--micro 4] [--scale 0.25]

A random Qwen2.5-VL of some tens of millions of parameters, fp32, on a processor with one thread. 32 rows of 4 prompts,
with lengths and images as in `benchmarks/gpu/rows.py`, all `--scale` as long. TRL shuffles and cuts them into
micro-batches; this trainer deals the same rows anew. Timed in turns: the pass that takes old log-probs, and the loss
with its gradient over all micro-batches. Seconds are the process's own on the processor, so that what else the machine
does counts for little. Log-probs and gradients of both are compared. The table is printed, and written with machine
and versions to `--out`.

On a processor TRL's LM head projects every token, in either variant; on a GPU it skips those without a label, which
spares this trainer the tokens of replies too. That part of the saving is not in these times.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from benchmarks.gpu.model import IDS
from benchmarks.gpu.passes import counted
from benchmarks.gpu.report import machine, table, write
from benchmarks.gpu.rows import Vocabulary, Writer, padded
from datasets import Dataset
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from trl import GRPOTrainer
from trl.trainer.utils import (
    shuffle_sequence_dict,
    split_pixel_values_by_grid,
    split_tensor_dict,
    unsplit_pixel_values_by_grid,
)

from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.micro_batches import deal_by_length
from mmsearch_trl.world.model import build_config
from mmsearch_trl.world.tokenizer import build_processor


Batch = dict[str, Any]
VOCABULARY = 16384
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
}
VISION = {"depth": 4, "hidden_size": 256, "intermediate_size": 512, "num_heads": 4, "out_hidden_size": 512}
GROUP = 8
ROWS = 32
PARTS = {"old": "old log-probs", "loss": "loss and gradient"}
COLUMNS = (
    "computed by",
    *(column for part in PARTS.values() for column in (f"{part}: tokens forwarded / real", f"{part}, s")),
    "step, s",
)


class TRLStep(MMSearchGRPOTrainer):
    """This trainer with TRL's log-probs and loss put back."""

    _get_per_token_logps_and_entropies = GRPOTrainer._get_per_token_logps_and_entropies
    _compute_loss = GRPOTrainer._compute_loss


VARIANTS = {"TRL 1.16": TRLStep, "this trainer": MMSearchGRPOTrainer}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/training_step.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--micro", type=int, default=4, help="rows per micro-batch")
    parser.add_argument("--scale", type=float, default=0.25, help="of all lengths; 1 is a real run's")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), options.micro)
        batch = generation_batch(trainer, options.scale, options.seed)
        report = {"machine": machine(), "options": {name: str(value) for name, value in vars(options).items()}}
        report |= {"parameters": sum(p.numel() for p in trainer.model.parameters())}
        report |= compare(trainer, batch, options.repeats)
    write(report, options.out)
    print("\n".join(markdown(report)))


def make_trainer(folder: Path, micro: int) -> MMSearchGRPOTrainer:
    processor = build_processor()
    world: Any = build_config(processor)
    text = {k: v for k, v in world.text_config.to_dict().items() if k != "layer_types"} | TEXT
    vision = world.vision_config.to_dict() | VISION
    ids: dict[str, Any] = {name: getattr(world, name) for name in IDS}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    args = MMSearchGRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=ROWS // micro,
        num_generations=GROUP,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_traces=False,
    )
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "?"}]}] * (ROWS // GROUP))
    return MMSearchGRPOTrainer(
        model,
        lambda completions, **columns: [0.0] * len(completions),
        args,
        search=SearchRuntime(None, None),
        train_dataset=rows,
        processing_class=processor,
    )


def generation_batch(trainer: MMSearchGRPOTrainer, scale: float, seed: int) -> Batch:
    """What TRL holds after rollouts and rewards, by a policy that is a little off the present one."""
    config = trainer.model.config
    first = len(trainer.processing_class.tokenizer)
    rows = Writer(Vocabulary.of(config, first, VOCABULARY), seed=seed, scale=scale).rows(ROWS, GROUP)
    batch = padded(rows, config.image_token_id, channels=1176, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    batch["advantages"] = torch.randn(ROWS, generator=generator)
    batch["num_items_in_batch"] = (batch["tool_mask"] * batch["completion_mask"]).sum()
    now = old_log_probs(trainer, batch)
    batch["old_per_token_logps"] = now + 0.1 * torch.randn(now.shape, generator=generator)
    return batch


def compare(trainer: MMSearchGRPOTrainer, batch: Batch, repeats: int) -> dict[str, Any]:
    """Both variants in turns, `repeats` times after one that is not counted."""
    torch.manual_seed(0)
    whole: Any = split_pixel_values_by_grid(batch)
    shuffled: Any = shuffle_sequence_dict(whole)
    cut: list[Any] = split_tensor_dict(shuffled, trainer.args.steps_per_generation or 1)
    cut = [unsplit_pixel_values_by_grid(micro) for micro in cut]
    micro_batches = {"TRL 1.16": cut, "this trainer": deal_by_length(cut, trainer.args)}
    seconds: dict[str, dict[str, list[float]]] = {name: {"old": [], "loss": [], "step": []} for name in VARIANTS}
    values: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    forwarded: dict[str, dict[str, int]] = {}
    for repeat in range(repeats + 1):
        for name in list(VARIANTS)[:: 1 if repeat % 2 else -1]:
            trainer.__class__ = VARIANTS[name]
            with counted(trainer.model) as for_old:
                old, log_probs = _timed(lambda: old_log_probs(trainer, batch))
            with counted(trainer.model) as for_loss:
                loss, gradients = _timed(lambda name=name: loss_and_gradients(trainer, micro_batches[name]))
            forwarded[name], values[name] = {"old": sum(for_old), "loss": sum(for_loss)}, (log_probs, gradients)
            for part, took in (("old", old), ("loss", loss), ("step", old + loss)):
                seconds[name][part] += [took] if repeat else []
    real = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    scored = (batch["tool_mask"] * batch["completion_mask"]).bool()
    (theirs, their_gradients), (ours, our_gradients) = (values[name] for name in VARIANTS)
    return {
        "real_tokens": real,
        "scored_tokens": int(scored.sum()),
        "images": sum(batch["num_images"]),
        "forwarded": forwarded,
        "seconds": seconds,
        "max_difference": {
            "log_prob": float((theirs - ours)[scored].abs().max()),
            "gradient": float((their_gradients - our_gradients).abs().max()),
            "largest_gradient": float(our_gradients.abs().max()),
        },
    }


def old_log_probs(trainer: MMSearchGRPOTrainer, batch: Batch) -> torch.Tensor:
    """The pass over the whole generation batch, in chunks, as `_generate_and_score_completions` makes it."""
    trainer._score_mask = batch["tool_mask"] * batch["completion_mask"]
    with torch.no_grad():
        values, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model,
            torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1),
            torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1),
            batch["completion_ids"].shape[1],
            batch_size=trainer.args.per_device_train_batch_size,
            **{name: batch[name] for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")},
        )
    trainer._score_mask = None
    return values


def loss_and_gradients(trainer: MMSearchGRPOTrainer, micro_batches: list[Batch]) -> torch.Tensor:
    """All gradients of one optimizer step, end to end."""
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    trainer.model.train()
    trainer.model.zero_grad()
    for batch in micro_batches:
        trainer._compute_loss(trainer.model, batch).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])


def markdown(report: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, parts in report["seconds"].items():
        times = {part: f"{statistics.median(t):.1f} ({min(t):.1f} to {max(t):.1f})" for part, t in parts.items()}
        ratios = {part: f"{tokens / report['real_tokens']:.3f}" for part, tokens in report["forwarded"][name].items()}
        cells = [cell for part in PARTS for cell in (ratios[part], times[part])]
        rows.append(dict(zip(COLUMNS, (name, *cells, times["step"]), strict=True)))
    difference = report["max_difference"]
    return [
        f"{report['parameters'] / 1e6:.1f} M parameters, {ROWS} rows, {report['real_tokens']} tokens of which "
        f"{report['scored_tokens']} sampled, {report['images']} images; medians of "
        f"{report['options']['repeats']} (least to most), in processor seconds",
        "",
        *table(COLUMNS, rows),
        "",
        f"Largest difference of log-probs {difference['log_prob']:.1e}, of gradients {difference['gradient']:.1e} "
        f"(largest gradient {difference['largest_gradient']:.1e}).",
    ]


def _timed(work: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


if __name__ == "__main__":
    main()
