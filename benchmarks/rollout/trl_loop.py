"""TRL's own tool loop on the same server: `GRPOTrainer._generate` as released, with tools that sleep.

`_generate`, `_generate_single_turn` and `_tool_call_loop` are TRL's, and so is the client that talks to the server.
Two things are replaced by nothing, because TRL refuses them without a CUDA device: opening the channel for weights and
sending weights through it. The server has the weights already. Each rollout gets its own tool functions, as TRL itself
gives each its environment's methods.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.rollout.model import RESPONSE_TEMPLATE, WINDOW, make_model, make_processor, make_protocol
from benchmarks.rollout.scenario import GROUP, Row, Scenario
from benchmarks.rollout.schedulers import Run, Tokens
from benchmarks.rollout.script import TRL_SEED
from benchmarks.rollout.spans import Spans
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.images import ImageInput, Part
from mmsearch_trl.core.observation import Observation
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol


def search(query: str) -> str:
    """Look the image up.

    Args:
        query: The placeholder of the image.
    """
    raise AssertionError("TRL reads the signature; each rollout calls a function of its own (`RowTools`)")


def text_search(query: str) -> str:
    """Search text.

    Args:
        query: What to search.
    """
    raise AssertionError("TRL reads the signature; each rollout calls a function of its own (`RowTools`)")


class RowTools:
    """The tools of one rollout: they sleep for its times, scaled, and answer as our protocol writes it."""

    def __init__(self, scenario: Scenario, scale: float, row: Row, protocol: MMSearchProtocol, spans: Spans) -> None:
        self._scenario, self._scale, self._row, self._protocol, self._spans = scenario, scale, row, protocol, spans
        self._task = scenario.tasks()[row.index]
        self.seconds: list[float] = []

    def functions(self) -> dict[str, Callable[[str], list[dict[str, Any]]]]:
        return {"search": self._search, "text_search": self._text_search}

    def _search(self, query: str) -> list[dict[str, Any]]:
        self._sleep(ActionKind.IMAGE_SEARCH)
        hits = tuple(self._scenario.image_hits(self._row))
        return self._blocks(Observation(tool=ActionKind.IMAGE_SEARCH, hits=hits))

    def _text_search(self, query: str) -> list[dict[str, Any]]:
        self._sleep(ActionKind.TEXT_SEARCH)
        hits = tuple(self._scenario.text_hits(self._scenario.row_of_query(query)))
        return self._blocks(Observation(tool=ActionKind.TEXT_SEARCH, hits=hits))

    def _sleep(self, tool: str) -> None:
        with self._spans.recorded():
            time.sleep(self._scale * self._row.seconds[tool])
        start, end = self._spans.items[-1]
        self.seconds.append(end - start)

    def _blocks(self, observation: Observation) -> list[dict[str, Any]]:
        return _blocks(self._protocol.reply(observation, self._task, ()).parts)


def _blocks(parts: Sequence[Part]) -> list[dict[str, Any]]:
    return [
        {"type": "image", "image": part.image} if isinstance(part, ImageInput) else {"type": "text", "text": part}
        for part in parts
    ]


class TRLLoop:
    """A `GRPOTrainer` connected to the server.

    Args:
        k: Rollouts of a batch.
        folder: For TRL's own files; nothing of value is written.
    """

    def __init__(self, url: str, k: int, folder: Path) -> None:
        processor = make_processor()
        processor.tokenizer.response_template = RESPONSE_TEMPLATE
        model = make_model(processor)
        with self._no_weight_sync():
            self._trainer = GRPOTrainer(
                model,
                reward_funcs=lambda completions, **columns: [0.0] * len(completions),
                args=_config(url, k, folder),
                train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": "-"}]}] * k),
                processing_class=processor,
                tools=[search, text_search],
            )
        model.train()

    def run(self, scenario: Scenario, scale: float) -> Run:
        """Roll the scenario out once, with its tool times times `scale`."""
        trainer, spans, protocol = self._trainer, Spans(), make_protocol(make_processor())
        each = [RowTools(scenario, scale, row, protocol, spans) for row in scenario.rows]
        prompts = [[{"role": "user", "content": _blocks(protocol.prompt(task).parts)}] for task in scenario.tasks()]
        trainer._sync_tool_dicts = [tools.functions() for tools in each]
        trainer._async_tool_dicts = [{} for _ in each]
        engine = Spans()
        with self._no_weight_sync(), _recorded(trainer.vllm_generation, engine):
            start = time.perf_counter()
            prompt_ids, completion_ids, mask, *_ = trainer._generate(prompts)
            seconds = time.perf_counter() - start
        rows = zip(prompt_ids, completion_ids, mask or (), strict=True)
        return Run(
            scheduler="trl",
            started=start,
            seconds=seconds,
            tokens=tuple(Tokens(tuple(prompt), tuple(ids), tuple(bits)) for prompt, ids, bits in rows),
            engine=engine,
            tools=spans,
            tool_seconds=tuple(tuple(tools.seconds) for tools in each),
        )

    @staticmethod
    def _no_weight_sync() -> AbstractContextManager[Any]:
        return patch.multiple(
            VLLMClient, init_communicator=lambda self, device: None, close_communicator=lambda self: None
        )


def _config(url: str, k: int, folder: Path) -> GRPOConfig:
    return GRPOConfig(
        output_dir=str(folder),
        per_device_train_batch_size=k,
        num_generations=GROUP,
        max_completion_length=WINDOW,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=url,
        generation_kwargs={"seed": TRL_SEED},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )


def _recorded(generation: VLLMGeneration, spans: Spans) -> AbstractContextManager[Any]:
    """Records when TRL waits for the server, and leaves out the sending of weights."""
    generate = generation.generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        with spans.recorded():
            return generate(*args, **kwargs)

    return patch.multiple(generation, generate=timed, sync_weights=lambda: None)
