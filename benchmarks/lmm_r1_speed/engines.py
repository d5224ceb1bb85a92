"""The engines that parity is measured on: a rollout's view of each, and the one call that is beside it.

The call is the least that the engine can be asked for by hand:

* `transformers`: the model's own `generate` on all rows, which draws with one generator for all and gives no
  log-probs;
* `server`: texts go in one request; with pictures, which vLLM takes for one prompt at a time, one request for each
  prompt asks for its whole group;
* `colocate`: all requests are added to vLLM's engine, which is then stepped until none is left, as `LLM.generate`
  does.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import torch
from benchmarks.lmm_r1_speed.model import WINDOW, make_chat, make_processor
from transformers import Qwen2_5_VLForConditionalGeneration

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.task import Task
from mmsearch_trl.engine.base import TimedEngine
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.vllm_requests import Vocabulary, compact, sampling_fields
from mmsearch_trl.engine.vllm_server import ServerEngine, _data_url
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol


@dataclass(frozen=True, slots=True)
class Batch:
    """`group` completions of each task, of exactly `tokens` tokens."""

    tasks: list[Task]
    group: int
    tokens: int

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.tokens, temperature=1.0, seed=1)


class Kind(Protocol):
    """An engine of one kind; caches are empty when `opened` or `call` is entered."""

    def opened(self, chat: ChatEncoder) -> Any:
        """A context that yields the engine for a rollout."""
        ...

    def call(self, batch: Batch, chat: ChatEncoder) -> list[list[int]]:
        """Tokens of all completions, by the one call."""
        ...

    def reset(self) -> None:
        """Empty what the engine keeps of prompts and images."""
        ...


class Transformers:
    def __init__(self, checkpoint: Path, rows: int) -> None:
        self._rows = rows
        self._model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()

    @contextmanager
    def opened(self, chat: ChatEncoder) -> Iterator[TimedEngine]:
        engine = TransformersEngine(
            self._model,
            chat.images,
            stop_ids=[chat.turn_end_id],
            forbidden_ids=chat.forbidden_ids,
            image_pad_id=chat.image_pad_id,
            pad_id=chat.tokenizer.pad_token_id,
            vocabulary_size=chat.vocabulary_size,
            max_batch=self._rows,
        )
        yield engine
        engine.close()

    @torch.no_grad()
    def call(self, batch: Batch, chat: ChatEncoder) -> list[list[int]]:
        texts = [_text(task, chat) for task in batch.tasks]
        images = [image for task in batch.tasks for image in task.images]
        inputs = dict(
            chat.processor(text=texts, images=images or None, padding=True, padding_side="left", return_tensors="pt")
        )
        if images:  # as many patches of each, here
            patches = inputs["pixel_values"].unflatten(0, (len(images), -1))
            inputs["pixel_values"] = patches.repeat_interleave(batch.group, 0).flatten(0, 1)
        inputs |= {
            name: values.repeat_interleave(batch.group, 0) for name, values in inputs.items() if name != "pixel_values"
        }
        output = self._model.generate(
            **inputs,
            do_sample=True,
            max_new_tokens=batch.tokens,
            suppress_tokens=sorted(chat.forbidden_ids),
        )
        return output[:, inputs["input_ids"].shape[1] :].tolist()

    def reset(self) -> None:
        pass


class Server:
    def __init__(self, url: str, checkpoint: Path) -> None:
        self._url = url
        self._model = str(checkpoint)

    @contextmanager
    def opened(self, chat: ChatEncoder) -> Iterator[TimedEngine]:
        yield ServerEngine([self._url], _vocabulary(chat))

    def call(self, batch: Batch, chat: ChatEncoder) -> list[list[int]]:
        answers = asyncio.run(self._ask(list(_requests(batch, chat, self._model))))
        return [choice["token_ids"] for answer in answers for choice in answer["choices"]]

    async def _ask(self, requests: list[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

            async def one(path: str, body: dict[str, Any]) -> dict[str, Any]:
                async with session.post(self._url + path, json=body) as answer:
                    answer.raise_for_status()
                    return await answer.json()

            return await asyncio.gather(*(one(path, body) for path, body in requests))

    def reset(self) -> None:
        asyncio.run(self._reset())

    async def _reset(self) -> None:
        [server] = (engine := ServerEngine([self._url], Vocabulary(frozenset(), frozenset(), -1))).servers
        await server.client.reset_caches()
        await engine.close()


def _requests(batch: Batch, chat: ChatEncoder, model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    protocol, vocabulary = DirectProtocol(chat), _vocabulary(chat)
    fields = sampling_fields(batch.sampling, vocabulary)
    prompts = [protocol.prompt(task).token_ids for task in batch.tasks]
    if not batch.tasks[0].images:
        every = [list(ids) for ids in prompts for _ in range(batch.group)]
        yield "/v1/completions", {"model": model, "prompt": every, "return_token_ids": True, **fields}
        return
    for task, ids in zip(batch.tasks, prompts, strict=True):
        yield (
            "/inference/v1/generate",
            {
                "token_ids": compact(ids, vocabulary.image_pad_id),
                "sampling_params": fields | {"n": batch.group},
                "content_parts": [{"type": "image_url", "url": _data_url(image)} for image in task.images],
            },
        )


class Colocated:
    def __init__(self, checkpoint: Path, rows: int) -> None:
        arguments: dict[str, Any] = {
            "max_model_len": WINDOW,
            "max_num_seqs": rows,
            "dtype": "float32",
            "enforce_eager": True,
        }
        arguments |= {"max_num_batched_tokens": 8192}
        self._engine = ColocatedEngine(
            str(checkpoint), _vocabulary(make_chat(make_processor())), engine_args=arguments
        )
        self._calls = 0

    @contextmanager
    def opened(self, chat: ChatEncoder) -> Iterator[TimedEngine]:
        with self._engine.rollout():
            yield self._engine

    def call(self, batch: Batch, chat: ChatEncoder) -> list[list[int]]:
        from vllm import SamplingParams as VLLMSampling
        from vllm.sampling_params import RequestOutputKind

        llm: Any = self._engine._llm
        protocol, vocabulary = DirectProtocol(chat), _vocabulary(chat)
        self._calls += 1
        for task in batch.tasks:
            encoded = protocol.prompt(task)
            prompt: dict[str, Any] = {"prompt_token_ids": compact(encoded.token_ids, vocabulary.image_pad_id)}
            if images := [part for part in encoded.parts if isinstance(part, ImageInput)]:
                prompt["multi_modal_data"] = {"image": [image.image for image in images]}
                prompt["multi_modal_uuids"] = {"image": [image.key for image in images]}
            for number in range(batch.group):
                fields = sampling_fields(replace(batch.sampling, seed=number), vocabulary)
                params = VLLMSampling(**fields, output_kind=RequestOutputKind.FINAL_ONLY)
                llm.add_request(f"{self._calls}/{task.id}/{number}", prompt, params)
        tokens = []
        while llm.has_unfinished_requests():
            tokens += [list(output.outputs[0].token_ids) for output in llm.step() if output.finished]
        return tokens

    def reset(self) -> None:
        self._engine._stepper.reset_caches()

    def close(self) -> None:
        self._engine.close()


def _vocabulary(chat: ChatEncoder) -> Vocabulary:
    width = chat.vocabulary_size
    return Vocabulary.of([chat.turn_end_id], chat.forbidden_ids, chat.image_pad_id, named=width, width=width)


def _text(task: Task, chat: ChatEncoder) -> str:
    content = [{"type": "image"} for _ in task.images] + [{"type": "text", "text": task.question}]
    message = [{"role": "user", "content": content}]
    return chat.processor.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
