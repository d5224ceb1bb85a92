"""A logits processor with which a vLLM server decodes planned tokens.

It is named to the server with `--logits-processors benchmarks.rollout.forced_tokens:ForcedTokens`. It runs after the
forward pass and before the sampler, so each token costs what any token costs. Prompts that are in no plan (those of
the calibration) are answered with a filler word until their `max_tokens`.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from benchmarks.rollout.plan import Plan
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates


PLAN = "ROLLOUT_BENCHMARK_PLAN"
"""Environment variable with the path of the plan."""
FILLER = 0


class ForcedTokens(LogitsProcessor):
    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._plan = Plan.load(Path(os.environ[PLAN]))
        self._requests: dict[int, tuple[Sequence[int], Sequence[int]]] = {}
        """By place in the batch: the tokens to say, and those said so far (vLLM's own list, which grows)."""

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._requests, batch_update, self._request)

    def _request(
        self, params: Any, prompt_ids: Sequence[int] | None, said: Sequence[int]
    ) -> tuple[Sequence[int], Sequence[int]]:
        return self._plan.find(prompt_ids or (), params.seed) or (), said

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        rows = list(self._requests)
        tokens = [turn[len(said)] if len(said) < len(turn) else FILLER for turn, said in self._requests.values()]
        logits[rows] = -torch.inf
        logits[rows, tokens] = 0.0
        return logits
