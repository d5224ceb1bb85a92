"""Two optimizer steps, run by `accelerate launch` or called: writes the logs and the weights (`test_ddp.py`).

They are run three times: sampled by the model itself; on a vLLM server, where the tools of the second process are
slow; and supervised.
"""

import gc
import json
import os
import sys
from pathlib import Path


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
from integration import sharding_worker


def train(out: Path, per_device: int, server: str | None) -> None:
    vllm = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server} if server else {}
    slow = server is not None and os.environ.get("RANK") == "1"
    trainer = tiny.trainer(
        tiny.qwen25(),
        out,
        tiny.tasks(4, images=(1, 0, 2, 3)),
        per_device_train_batch_size=per_device,
        num_generations=4,
        optim="sgd",
        learning_rate=0.1,
        max_steps=2,
        max_grad_norm=0.0,
        advantage_eps=1e-6,
        tools=tiny.CannedTools(delay=lambda: 0.5) if slow else None,
        **vllm,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        keys = (
            "loss",
            "grad_norm",
            "reward",
            "num_tokens",
            "completions/mean_length",
            "search/ratio",
            "rollout/turns",
        )
        if server:
            keys += ("sampling/sampling_logp_difference/max",)
        logs = [{key: log[key] for key in keys} for log in trainer.state.log_history if "loss" in log]
        (out / "logs.json").write_text(json.dumps(logs))
        weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        torch.save(weights, out / "weights.pt")
    trainer.close()


def main(out: Path, per_device: int, server: str) -> None:
    """Writes `OUT/transformers`, `OUT/server` and `OUT/sft`."""
    for name, url in (("transformers", None), ("server", server)):
        (out / name).mkdir(parents=True, exist_ok=True)
        train(out / name, per_device, url)
    sharding_worker.save(sharding_worker.sft, out / "sft", per_device)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
