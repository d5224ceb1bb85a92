"""Two optimizer steps, run by `accelerate launch` or called: writes the logs and the weights (`test_ddp.py`).

They are run five times: sampled by the model itself; on a vLLM server, where the tools of the second process are
slow; supervised; with advantages of tokens, normalised over both processes, where each token pays for its KL; and
without tools, on rows of messages of which some have pictures and some have none.
"""

import base64
import gc
import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
from integration import sharding_worker
from peft import LoraConfig
from PIL import Image

from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.data.reading import Reading
from mmsearch_trl.data.tasks import read_tasks
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


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
    keys = ("search/ratio",)
    if server:
        keys += ("sampling/sampling_logp_difference/max",)
    if estimator is not None:
        keys += ("kl", "train/kl_coef")
    run(trainer, out, keys)


def train_on_messages(out: Path, per_device: int) -> None:
    """Rows as people have them, mixed: in a batch of two, each process has one, with pictures or without."""
    family = tiny.qwen25()
    protocol = DirectProtocol(ChatEncoder(family.processor))
    rules = ConversationRules(check=protocol.chat.check_conversation, fingerprint="")
    trainer = tiny.trainer(
        family,
        out,
        list(read_tasks(message_rows(out), reading=Reading(rules=rules))),
        protocol=protocol,
        limits=replace(tiny.LIMITS, max_turns=1),
        per_device_train_batch_size=per_device,
        num_generations=4,
        optim="sgd",
        learning_rate=0.1,
        max_steps=2,
        max_grad_norm=0.0,
        advantage_eps=1e-6,
    )
    run(trainer, out, ())


def message_rows(folder: Path) -> Path:
    """Four rows with a system message; two of them show pictures, between texts."""
    rows = []
    for number, pictures in enumerate((1, 0, 2, 0)):
        blocks: list[dict[str, str]] = [{"type": "text", "text": f"question {number}"}]
        for picture in range(pictures):
            buffer = io.BytesIO()
            Image.new("RGB", (40 + 20 * picture, 50), (90 * number, 7, 200)).save(buffer, "PNG")
            address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
            blocks += [{"type": "image", "image": address}, {"type": "text", "text": "and?"}]
        said = json.dumps([{"role": "system", "content": "be brief"}, {"role": "user", "content": blocks}])
        rows.append({"message": said, "answer": str(number)})
    file = folder / f"rows-{os.environ.get('RANK', '0')}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def run(trainer: MMSearchGRPOTrainer, out: Path, keys: tuple[str, ...]) -> None:
    """Train, and write what was logged under these names and all others, and the weights."""
    trainer.train()
    if trainer.accelerator.is_main_process:
        keys += ("loss", "grad_norm", "reward", "num_tokens", "completions/mean_length", "rollout/turns")
        logs = [{key: log[key] for key in keys} for log in trainer.state.log_history if "loss" in log]
        (out / "logs.json").write_text(json.dumps(logs))
        weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
        torch.save(weights, out / "weights.pt")
    trainer.close()


def main(out: Path, per_device: int, server: str) -> None:
    """Writes `OUT/transformers`, `OUT/server`, `OUT/estimator`, `OUT/messages` and `OUT/sft`."""
    runs = {"transformers": (None, None), "server": (server, None), "estimator": (None, ESTIMATOR)}
    for name, settings in runs.items():
        (out / name).mkdir(parents=True, exist_ok=True)
        train(out / name, per_device, *settings)
    (out / "messages").mkdir(parents=True, exist_ok=True)
    train_on_messages(out / "messages", per_device)
    sharding_worker.save(sharding_worker.sft, out / "sft", per_device)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
