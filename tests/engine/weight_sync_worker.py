"""One of two processes that send weights sharded by FSDP2; see `test_weight_sync.py`."""

import datetime
import gc
import sys
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports

import torch
import torch.distributed as dist
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmsearch_trl.engine.weight_files import save_adapter, save_weights
from mmsearch_trl.engine.weight_sync import adapter_weights, sampler_weights
from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.tokenizer import build_processor


def main(folder: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=30))
    first = dist.get_rank() == 0
    torch.manual_seed(0)  # PEFT draws an adapter from the process's own random state
    model = get_peft_model(build_model(build_processor()), LoraConfig(r=4, target_modules=r".*language_model.*_proj"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.01)
    if first:
        save_file(
            {name: tensor.contiguous() for name, tensor in sampler_weights(model)}, folder / "weights.safetensors"
        )
        save_file(dict(adapter_weights(model)), folder / "adapter.safetensors")
    mesh = init_device_mesh("cpu", (2,))
    base: Any = model.get_base_model()
    for layer in base.model.language_model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    weights = save_weights(sampler_weights(model), folder / "weights", 1, write=first)
    adapter = save_adapter(model, folder / "adapter", 1, write=first)
    dist.barrier()
    assert weights.path.is_dir() and adapter.path.is_dir() and 0 < adapter.num_bytes < weights.num_bytes
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
