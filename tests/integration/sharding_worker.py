"""One of two processes that write different numbers of turns with sharded weights; see `test_sharding.py`.

First with gathered weights; then layer by layer, which is to fail.
"""

import asyncio
import datetime
import gc
from contextlib import nullcontext


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.distributed.sharding import gathered
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.recipe.build import build_engine
from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.tokenizer import build_processor


def main() -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=15))
    for gather in (True, False):
        print(f"rank {dist.get_rank()}: {roll_out(gather)}", flush=True)
        dist.barrier()
    dist.destroy_process_group()


def roll_out(gather: bool) -> str:
    rank = dist.get_rank()
    processor = build_processor()
    model = build_model(processor).eval()
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        whole = model(input_ids=ids).logits
    mesh = init_device_mesh("cpu", (2,))
    for layer in model.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    engine = build_engine(model, ChatEncoder(processor))

    async def turns() -> list[int]:
        sampling = SamplingParams(max_tokens=4 + 5 * rank, seed=rank)
        return [len((await engine.generate([5, 6, 7], [], sampling)).token_ids) for _ in range(1 + 2 * rank)]

    with torch.no_grad(), gathered(model) if gather else nullcontext():
        written = asyncio.run(turns())
    with torch.no_grad():
        again = model(input_ids=ids).logits
    return f"{len(written)} turns, difference {float((again - whole).abs().max()):.1e}"


if __name__ == "__main__":
    main()
