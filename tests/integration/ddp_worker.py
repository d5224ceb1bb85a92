"""One optimizer step, run by `accelerate launch` or alone: prints the loss and saves the weights (`test_ddp.py`)."""

import json
import sys
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch


def main(out: Path, per_device: int, accumulation: int) -> None:
    torch.set_num_threads(1)
    trainer = tiny.trainer(
        tiny.qwen25(),
        out,
        tiny.tasks(4, images=(1, 0, 2, 3)),
        per_device_train_batch_size=per_device,
        gradient_accumulation_steps=accumulation,
        num_generations=4,
        optim="sgd",
        learning_rate=0.1,
        max_steps=2,
        max_grad_norm=0.0,
        advantage_eps=1e-6,
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
        logs = [{key: log[key] for key in keys} for log in trainer.state.log_history if "loss" in log]
        (out / "logs.json").write_text(json.dumps(logs))
        weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        torch.save(weights, out / "weights.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
