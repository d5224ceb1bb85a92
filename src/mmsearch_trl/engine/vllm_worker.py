"""What runs inside vLLM's own workers: packing a tied output head anew after weights were loaded.

On a CPU vLLM computes with packed copies of its weights, and packs anew only what arrives under its own name. A head
that shares the embeddings' weights never does: it would go on with those that the engine started with.
"""

from typing import Any

import torch


class WorkerExtension:
    """Mixed into the workers of a CPU server by `--worker-extension-cls` (`vllm_process.py`)."""

    model_runner: Any

    def repack_heads(self) -> None:
        repack_heads(self.model_runner.model)


EXTENSION = f"{WorkerExtension.__module__}.{WorkerExtension.__name__}"


def repack_heads(model: torch.nn.Module) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead):
            module.quant_method.process_weights_after_loading(module)
