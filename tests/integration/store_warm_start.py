"""Make the stored warm start of `test_learning.py` anew: some seven minutes on an idle core."""

import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from mmsearch_trl.world.demo import WARM_START_STEPS, make_warm_start
from mmsearch_trl.world.world import World


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        make_warm_start(World(0), Path(folder), steps=WARM_START_STEPS)
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float16)
    model.save_pretrained(Path(__file__).parents[1] / "fixtures" / "warm_start")
