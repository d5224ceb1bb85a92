"""What dealing by length achieves on the lengths that the benchmark assumes. Its times take minutes"""

import random
import sys
from pathlib import Path

import pytest
import tiny
import torch


sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.gpu.rows import Vocabulary, Writer, padded

from mmsearch_trl.trainer.micro_batches import deal_by_length, forwarded_per_token


WORDS = Vocabulary(first=0, last=500, image_pad=501, vision_start=502, vision_end=503)
LENGTHS = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")


@pytest.mark.parametrize("micro", [1, 2, 4, 8])
@pytest.mark.parametrize("seed", range(3))
def test_a_token_is_forwarded_about_once(seed: int, micro: int, tmp_path: Path) -> None:
    """64 trajectories of 8 questions, images and replies included; TRL's width makes about two of each token."""
    rows = Writer(WORDS, seed=seed).rows(64, group=8)
    random.Random(seed).shuffle(rows)
    lengths = [len(row.ids) for row in rows]
    whole = padded(rows, WORDS.image_pad, channels=1)
    cut = [{name: whole[name][i : i + micro] for name in LENGTHS} for i in range(0, 64, micro)]
    args = tiny.config(tmp_path, per_device_train_batch_size=micro, gradient_accumulation_steps=64 // micro)
    dealt = deal_by_length(cut, args)
    width = whole["prompt_ids"].shape[1] + whole["completion_ids"].shape[1]
    assert 64 * width / sum(lengths) > 1.7
    assert 1 <= forwarded_per_token(dealt) <= 1.15
    assert forwarded_per_token(dealt) <= forwarded_per_token(cut)
    kept = torch.cat([batch["completion_mask"].sum(dim=1) + batch["prompt_mask"].sum(dim=1) for batch in dealt])
    assert sorted(kept.tolist()) == sorted(lengths)
