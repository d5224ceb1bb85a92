"""Fits a critic on half of the rows in each of two processes, copied to both and then sharded (`test_critics.py`).

Called, it fits it on all rows in one process. Writes losses and weights; resumes once on the way.
"""

import gc
import sys
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports
sys.path.insert(0, str(Path(__file__).parent.parent))

import small_lm
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from mmsearch_trl.trainer.critic import Critic, Valued
from mmsearch_trl.trainer.critic_config import CriticConfig
from mmsearch_trl.trainer.log_probs import ScoredBatch
from mmsearch_trl.trainer.value_model import value_model


def main(out: Path, ways: tuple[str, ...]) -> None:
    for way in ways:
        accelerator = accelerator_of(way)
        torch.manual_seed(accelerator.process_index)  # which no weight may depend upon
        metrics, kept = [], critic(accelerator, seed=0)
        for step in range(3):
            if step == 2:
                kept.save(out / way)
                kept = critic(accelerator, seed=1)
                kept.load(out / way)
            given = batch(step, accelerator)
            metrics.append({name: float(value) for name, value in kept.fit(valued(kept, given), str(step)).items()})
        weights = {name: whole(parameter.detach()) for name, parameter in kept._trained.items()}
        kinds = {type(parameter.detach()).__name__ for parameter in kept._trained.values()}
        if accelerator.is_main_process:
            torch.save({"metrics": metrics, "weights": weights, "kinds": kinds}, out / f"{way}.pt")


def accelerator_of(way: str) -> Accelerator:
    AcceleratorState._reset_state()
    if way != "sharded":
        return Accelerator(cpu=True)
    PartialState(cpu=True)
    # accelerate shards between devices only, and would copy the model to CPU processes without a word.
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    assert accelerator.is_fsdp2
    return accelerator


def critic(accelerator: Accelerator, *, seed: int) -> Critic:
    policy = small_lm.build_model(small_lm.build_tokenizer())
    model = value_model(policy, "full", seed=seed, checkpointing={"use_reentrant": False})
    rows = 8 // accelerator.num_processes
    config = CriticConfig(learning_rate=1e-3, warmup_steps=0, max_grad_norm=0.1)
    made = Critic(model, config, accelerator, rows=rows // 2, update=rows, seed=1)
    made.schedule(10)
    return made


def batch(step: int, accelerator: Accelerator) -> ScoredBatch:
    """The rows of this process: of two, one holds the long ones."""
    ids = torch.randint(5, 200, (8, 12), generator=torch.Generator().manual_seed(step))
    attention = torch.ones_like(ids)
    for row in range(8):
        attention[row, 12 - row :] = 0
    rows = slice(*(8 * (accelerator.process_index + i) // accelerator.num_processes for i in (0, 1)))
    vision: dict[str, Any] = dict.fromkeys(("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids"))
    attention[:, :2] = 1
    return ScoredBatch(input_ids=ids[rows], attention_mask=attention[rows], score_mask=attention[rows, 2:], **vision)


def valued(made: Critic, given: ScoredBatch) -> Valued:
    returns = (given.input_ids[:, 2:] % 2).float() * given.score_mask
    return Valued(batch=given, values=made.values(given), returns=returns, mask=given.score_mask)


def whole(weight: Any) -> torch.Tensor:
    return weight.full_tensor() if hasattr(weight, "full_tensor") else weight


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), ("copied", "sharded"))
    torch.distributed.destroy_process_group()
