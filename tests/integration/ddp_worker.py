"""Two optimizer steps, run by `accelerate launch` or called: writes the logs and the weights (`test_ddp.py`).

They are run four times: sampled by the model itself; on a vLLM server, where the tools of the second process are
slow; supervised; and with advantages of tokens, normalised over both processes, where each token pays for its KL.
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
from peft import LoraConfig

from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig


ESTIMATOR = EstimatorConfig(name="rloo", kl=KLConfig(coef=0.1, form="k2", target=1e-4, horizon=20))


def train(out: Path, per_device: int, server: str | None, estimator: EstimatorConfig | None) -> None:
    vllm = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": server} if server else {}
    adapter = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
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
        **({"advantage_eps": 1e-6} if estimator is None else {"estimator": estimator, "peft_config": adapter}),
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
        if estimator is not None:
            keys += ("kl", "train/kl_coef")
        logs = [{key: log[key] for key in keys} for log in trainer.state.log_history if "loss" in log]
        (out / "logs.json").write_text(json.dumps(logs))
        weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        torch.save(weights, out / "weights.pt")
    trainer.close()


def main(out: Path, per_device: int, server: str) -> None:
    """Writes `OUT/transformers`, `OUT/server`, `OUT/estimator` and `OUT/sft`."""
    runs = {"transformers": (None, None), "server": (server, None), "estimator": (None, ESTIMATOR)}
    for name, settings in runs.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        train(out / name, per_device, *settings)
    sharding_worker.save(sharding_worker.sft, out / "sft", per_device)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
