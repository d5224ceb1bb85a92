"""The script for a GPU, in miniature on a processor, with and without what it can do without."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from trl.trainer.utils import add_fused_lm_head


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.flops import needed, peak  # noqa: E402
from benchmarks.gpu.model import _scoring_forward, build, rounded, tiny, vocabulary  # noqa: E402
from benchmarks.gpu.oracle import oracle, place  # noqa: E402
from benchmarks.gpu.passes import packed, padded_labels, padded_logits, select  # noqa: E402
from benchmarks.gpu.rows import Row, Writer  # noqa: E402
from benchmarks.gpu.sampler import Load, measure, served  # noqa: E402
from benchmarks.gpu.throughput import WAYS, Plan, throughput  # noqa: E402

from mmsearch_trl.engine.images import ImageEncoder  # noqa: E402
from mmsearch_trl.engine.transformers import TransformersEngine  # noqa: E402
from mmsearch_trl.models.vision_attention import ALL_WINDOWS  # noqa: E402


CPU = torch.device("cpu")


def _run(out: Path, missing: list[str]) -> str:
    """The script's output where some packages are not installed."""
    code = (
        f"import runpy, sys; sys.modules.update(dict.fromkeys({missing!r})); "
        f"sys.argv = ['gpu', '--tiny', '--out', {str(out)!r}]; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=300
    ).stdout


@pytest.mark.slow
@pytest.mark.parametrize("missing", [["vllm"], ["vllm", "trl", "peft", "accelerate"]], ids=["whole", "bare"])
def test_the_script_measures_what_it_can_and_names_what_it_left_out(missing: list[str], tmp_path: Path) -> None:
    printed = _run(tmp_path / "gpu.json", missing)
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    trained = ("full",) if "peft" in missing else ("LoRA", "full")
    assert [row["verdict"] for row in rows if "verdict" in row] == ["same", *["as near to fp32 as alone"] * 2]
    assert rows[0]["setting"] == ("plain PyTorch, in chunks" if "trl" in missing else "TRL's")
    steps = [row for row in rows if "seconds per step" in row]
    settings = [tuple(row["setting"].partition("trained), ")[2].split(": ", 1)) for row in steps]
    assert settings == [(kind, way) for _ in trained for kind in ("sdpa", ALL_WINDOWS) for way in WAYS]
    assert [row["setting"].split()[0] for row in steps[:: 2 * len(WAYS)]] == list(trained)
    for ours, *padded in zip(steps[::3], steps[1::3], steps[2::3], strict=True):
        assert ours["forwarded/real"] <= 1.15
        assert all(other["forwarded/real"] > 1.3 for other in padded)
        assert all(row["real tokens/s"] > 0 < row["needed TFLOP"] for row in (ours, *padded))
    skipped = {row.get("setting", row["what"]): row["note"] for row in rows if "skipped" in row.get("note", "")}
    expected = {"flash_attention_2", "flash_attention_4", "log-probs, vLLM against trainer"} | (
        {"LoRA"} if "peft" in missing else set()
    )
    assert set(skipped) == expected
    assert not [row for row in rows if row.get("note", "").startswith(("failed", "out of memory"))]
    assert printed.count("| training step |") == len(steps) + ("LoRA" in skipped)


def test_what_fails_is_a_row_and_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: Any, batch: Any) -> Any:
        raise RuntimeError("no kernel | for this\nand more")

    monkeypatch.setitem(WAYS, "batch width, full logits", broken)
    plan = Plan(rows=2, micro=1, repeats=1, scale=0.02)
    rows = list(throughput(tiny(), CPU, ["absent", "sdpa"], plan))
    absent, measured, failed = rows[:3], rows[3:5], rows[5]
    assert all(row["note"].startswith("failed: ValueError: ") and "absent" in row["note"] for row in absent)
    assert all(row["seconds per step"] > 0 for row in measured)
    assert failed["note"] == "failed: RuntimeError: no kernel / for this"
    assert [row["note"] for row in rows[6:]] == [row["note"].replace("float32", "bfloat16") for row in rows[:6]]


def test_another_attention_is_held_against_the_same_fp32() -> None:
    fine, near, other, absent = oracle(tiny(), CPU, ["sdpa", "eager", "absent"], scale=0.05)
    assert [row.get("verdict") for row in (fine, near, other)] == ["same", *["as near to fp32 as alone"] * 2]
    assert [row["setting"].split(",")[1] for row in (fine, near, other)] == [" sdpa", " sdpa", " eager"]
    assert absent["note"].startswith("failed: ValueError")


class _Colocated(TransformersEngine):
    @contextmanager
    def rollout(self) -> Iterator[None]:
        yield


@pytest.mark.parametrize("same_weights", [True, False])
def test_a_sampler_is_judged_by_its_log_probs(same_weights: bool) -> None:
    load = Load(turns=3, tokens=8, text=10, side=56)
    config = tiny()
    processor = served(config, load)
    model = rounded(build(config, CPU, torch.float32), torch.bfloat16)
    if not same_weights:
        model.lm_head.weight.data = model.lm_head.weight.data.roll(1, 0)
    model.forward = type(model).forward.__get__(model)
    images = ImageEncoder(processor.image_processor)
    ids = [config.image_token_id, config.vision_start_token_id, config.vision_end_token_id, config.video_token_id]
    engine = _Colocated(
        model, images, stop_ids=[], forbidden_ids=ids, image_pad_id=ids[0], pad_id=0, vocabulary_size=600
    )
    row = measure(engine, config, images, CPU, load)
    engine.close()
    near, far = "as near to fp32 as the trainer", "FURTHER from fp32 than the trainer"
    assert row["verdict"] == (near if same_weights else far)
    assert (row["max Δ log-prob"] < 0.2) == same_weights
    assert row["setting"] == "bf16, 3 turns at once, 8 tokens each after 16"
    assert row["note"].endswith("tokens/s written")


def test_all_ways_give_the_same_log_probs_and_gradients() -> None:
    config = tiny()
    model = build(config, CPU, torch.float32)
    rows = Writer(vocabulary(config), seed=3, scale=0.05).rows(4, group=2)
    batch = place(rows, config, CPU, torch.float32)
    mask = (batch["tool_mask"] * batch["completion_mask"]).bool()
    values, gradients = [], []
    for way in (packed, padded_labels, padded_logits):
        model.zero_grad()
        log_probs = way(model, batch)
        log_probs[mask].sum().backward()
        values.append(log_probs[mask].detach())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    for other in values[1:]:
        torch.testing.assert_close(values[0], other, atol=1e-5, rtol=0)
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, atol=1e-3, rtol=1e-3)


def test_the_plain_scoring_head_is_trl_s() -> None:
    config = tiny()
    torch.manual_seed(0)
    model = build(config, CPU, torch.float32)
    original = type(model).forward.__get__(model)
    plain = _scoring_forward(original)
    model.forward = original
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    ids = torch.randint(0, 500, (3, 20))
    labels = ids.masked_fill(torch.rand(3, 20) < 0.5, -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "fused_lm_head": True}
    ours, theirs = plain(model, **inputs), model(**inputs)
    torch.testing.assert_close(ours.log_probs, theirs.log_probs)
    torch.testing.assert_close(ours.entropy, theirs.entropy)
    assert ours.log_probs.any()


def test_a_row_of_the_batch_takes_its_images_along() -> None:
    config = tiny()
    rows = Writer(vocabulary(config), seed=1, scale=0.1).with_images((0, 3, 1))
    batch = place(rows, config, CPU, torch.float32)
    chosen = select(batch, [2, 1])
    assert chosen["num_images"] == [1, 3]
    assert torch.equal(chosen["image_grid_thw"], batch["image_grid_thw"].roll(1, 0))
    patches = int(batch["image_grid_thw"][3].prod())
    assert torch.equal(chosen["pixel_values"], batch["pixel_values"].roll(patches, 0))
    pads = (torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1) == config.image_token_id).sum(dim=1)
    assert pads.tolist() == [sum(h * w // 4 for _, h, w in row.grids) for row in rows]


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA GeForce RTX 2080", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name(gpu: str, expected: float | None) -> None:
    assert peak(gpu) == expected


def test_needed_arithmetic_is_that_of_the_matrices_and_of_attention() -> None:
    config = tiny()
    model = build(config, CPU, torch.float32)
    row = Row(prompt=[1] * 10, completion=[2] * 20, scored=[1] * 5 + [0] * 15)
    text = sum(p.numel() for name, p in model.named_parameters() if "layers" in name and "proj.weight" in name)
    forward = 2 * text * 30 + 2 * 2 * 64 * 30**2 + 2 * 600 * 64 * 5
    assert needed(model, [row], adapters_only=False) == pytest.approx(3 * forward)
    assert needed(model, [row], adapters_only=True) == pytest.approx(2 * forward)
    row.grids.append((1, 4, 4))
    assert needed(model, [row], adapters_only=True) > 2 * forward
