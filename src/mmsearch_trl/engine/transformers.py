"""Batched generation with `transformers`: concurrent requests are collected, and each batch runs with a KV cache.

Turns are sampled by inverse transform from one uniform number per token, drawn from the request's own generator, so a
turn does not depend on which requests happened to share its batch. Log-probs are those of the full softmax at the
sampling temperature, which is what the trainer computes; the ids that no model may sample (`forbidden_ids`) and the
tails cut by top-p or top-k are taken out of the draw only.
"""

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, StoppingCriteria, StoppingCriteriaList

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine.images import ImageEncoder
from mmsearch_trl.engine.stops import Decode, end_of_stop


@dataclass(slots=True)
class _Request:
    token_ids: Sequence[int]
    images: Sequence[ImageInput]
    sampling: SamplingParams
    answer: asyncio.Future[Completion]


class TransformersEngine:
    """An engine over a `transformers` vision-language model of the Qwen-VL family, or a language model.

    Args:
        stop_ids: Ids that end a turn.
        forbidden_ids: Ids that are never sampled: vision tokens; ids beyond the tokenizer are added here.
        image_pad_id: Marks image positions (`mm_token_type_ids`), from which the model derives its M-RoPE positions;
            negative for a language model, which has none.
        vocabulary_size: Ids from here on have no token and are never sampled.
        decode: Sampled ids as text; needed for `SamplingParams.stops`.
        max_batch: Requests generated together at most.
        gather_seconds: A batch starts when no request has arrived for this long.
        autocast: Makes the context in which the model computes in training: outside of it, mixed precision rounds
            otherwise, and sampled tokens are not quite the trained policy's.
    """

    def __init__(
        self,
        model: Any,
        images: ImageEncoder,
        *,
        stop_ids: Collection[int],
        forbidden_ids: Collection[int],
        image_pad_id: int,
        pad_id: int,
        vocabulary_size: int,
        decode: Decode | None = None,
        max_batch: int = 64,
        gather_seconds: float = 0.003,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._model = model
        self._images = images
        self._stop_ids = sorted(stop_ids)
        self._image_pad_id = image_pad_id
        self._pad_id = pad_id
        self._decode = decode
        self._max_batch = max_batch
        self._gather_seconds = gather_seconds
        self._autocast = autocast
        width = model.get_output_embeddings().weight.shape[0]
        forbidden = set(forbidden_ids) | set(range(vocabulary_size, width))
        self._forbidden = torch.tensor(sorted(forbidden), dtype=torch.long, device=model.device)
        self._pending: list[_Request] = []
        self._worker: asyncio.Task[None] | None = None
        threads = torch.get_num_threads()
        self._closed = False
        self._executor = ThreadPoolExecutor(1, "generate", initializer=torch.set_num_threads, initargs=(threads,))
        self.busy_seconds = 0.0
        """Time spent generating, for `rollout/engine_busy`."""
        self.batches: list[int] = []
        """Sizes of the batches generated so far."""

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        if sampling.stops and self._decode is None:
            raise ValueError("SamplingParams.stops need an engine that was given `decode`")
        request = _Request(token_ids, images, sampling, asyncio.get_running_loop().create_future())
        self._pending.append(request)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._serve())
        return await request.answer

    def close(self) -> None:
        """Let go of the model; a batch that is under way, for which nobody waits now, ends with its next token."""
        self._closed = True
        self._executor.shutdown(wait=True)

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._pending:
            await self._gather()
            batch = self._next_batch()
            if not batch:
                continue
            started = loop.time()
            try:
                completions = await loop.run_in_executor(self._executor, self._generate, batch)
            except Exception as error:
                # What torch raises where memory or a device gives out; anything else is a defect, and told as it is.
                gave_out = isinstance(error, RuntimeError | ArithmeticError | MemoryError)
                outcome = EngineError(f"{type(error).__name__}: {error}") if gave_out else error
                for request in batch:
                    if not request.answer.done():
                        request.answer.set_exception(outcome)
                continue
            finally:
                self.busy_seconds += loop.time() - started
            for request, completion in zip(batch, completions, strict=True):
                if not request.answer.done():
                    request.answer.set_result(completion)

    async def _gather(self) -> None:
        """Wait until requests stop arriving or a batch is full."""
        seen = 0
        while seen < len(self._pending) < self._max_batch:
            seen = len(self._pending)
            await asyncio.sleep(self._gather_seconds)

    def _next_batch(self) -> list[_Request]:
        """Take waiting requests that are sampled alike; abandoned ones are dropped."""
        waiting = [request for request in self._pending if not request.answer.done()]
        batch: list[_Request] = []
        self._pending = []
        for request in waiting:
            alike = not batch or _truncation(request.sampling) == _truncation(batch[0].sampling)
            (batch if alike and len(batch) < self._max_batch else self._pending).append(request)
        return batch

    @torch.no_grad()
    def _generate(self, batch: list[_Request]) -> list[Completion]:
        self.batches.append(len(batch))
        inputs = self._inputs(batch)
        width = inputs["input_ids"].shape[1]
        sampler = _Sampler([request.sampling for request in batch], self._forbidden)
        budgets = torch.tensor([request.sampling.max_tokens for request in batch], device=self._model.device)
        budget = _Budgets(budgets, width, lambda: self._closed)
        config = GenerationConfig(
            max_new_tokens=int(budgets.max()),
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=self._stop_ids,
            pad_token_id=self._pad_id,
            use_cache=True,
        )
        with _plain(self._model), self._autocast():  # here, since a context is that of its thread
            output = self._model.generate(
                **inputs,
                generation_config=config,
                logits_processor=[sampler],
                stopping_criteria=StoppingCriteriaList([budget, *self._stops(batch, width)]),
                synced_gpus=False,  # ranks write different numbers of turns; the caller has gathered sharded weights
            )
        rows = output[:, width:].tolist()
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        return [
            self._completion(row[: request.sampling.max_tokens], row_logprobs, request.sampling.stops)
            for request, row, row_logprobs in zip(batch, rows, logprobs, strict=True)
        ]

    def _stops(self, batch: list[_Request], width: int) -> list[StoppingCriteria]:
        stops = [request.sampling.stops for request in batch]
        return [_Stops(stops, self._decode, width)] if self._decode is not None and any(stops) else []

    def _completion(self, row: list[int], logprobs: list[float], stops: tuple[str, ...]) -> Completion:
        # Text first: behind a stop the row is filled up with pads, and a pad may be an id that ends turns.
        end = end_of_stop(row, stops, self._decode) if self._decode is not None and stops else None
        if end is None:
            end = next((i + 1 for i, token in enumerate(row) if token in self._stop_ids), None)
        reason = FinishReason.LENGTH if end is None else FinishReason.STOP
        return Completion(tuple(row[:end]), tuple(logprobs[: end or len(row)]), reason)

    def _inputs(self, batch: list[_Request]) -> dict[str, torch.Tensor]:
        """Left-padded model inputs; pixel values of all rows' images in row order."""
        device = self._model.device
        width = max(len(request.token_ids) for request in batch)
        ids = torch.full((len(batch), width), self._pad_id)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, request in enumerate(batch):
            ids[row, width - len(request.token_ids) :] = torch.tensor(request.token_ids)
            mask[row, width - len(request.token_ids) :] = 1
        features = [self._images.features(image) for request in batch for image in request.images]
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._image_pad_id >= 0:
            inputs["mm_token_type_ids"] = (ids == self._image_pad_id).long()
        if features:
            inputs["pixel_values"] = torch.cat([feature.pixel_values for feature in features])
            inputs["image_grid_thw"] = torch.stack([feature.grid_thw for feature in features])
        return {name: tensor.to(device) for name, tensor in inputs.items()}


@contextmanager
def _plain(model: Any) -> Iterator[None]:
    """Evaluation mode, and none of the checkpoint's generation defaults (`generate` adds them to what it is given).

    A minimum length or an n-gram rule would bend the distribution that the trainer takes the tokens to come from.
    """
    training = model.training
    owner = model.generate.__self__  # below a PEFT wrapper, the model that holds the defaults
    defaults, owner.generation_config = owner.generation_config, GenerationConfig()
    model.eval()
    try:
        yield
    finally:
        model.train(training)
        owner.generation_config = defaults


def _truncation(sampling: SamplingParams) -> tuple[float, int]:
    return sampling.top_p, sampling.top_k


class _Sampler(LogitsProcessor):
    """Draws each row's next token from its own generator and leaves it as the only finite score."""

    def __init__(self, samplings: list[SamplingParams], forbidden: torch.Tensor) -> None:
        device = forbidden.device
        self._generators = [torch.Generator().manual_seed(sampling.seed) for sampling in samplings]
        self._temperatures = torch.tensor([sampling.temperature for sampling in samplings], device=device)[:, None]
        self._top_p, self._top_k = samplings[0].top_p, samplings[0].top_k
        self._forbidden = forbidden
        self.logprobs: list[torch.Tensor] = []

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, scores: torch.Tensor
    ) -> torch.Tensor:
        greedy = self._temperatures == 0
        logprobs = torch.log_softmax(scores.float() / self._temperatures.masked_fill(greedy, 1.0), dim=-1)
        if bool(logprobs.isnan().any()):
            raise ArithmeticError("the model's scores are not finite; its weights may have diverged")
        allowed = logprobs.index_fill(1, self._forbidden, -torch.inf)
        # Not exp(): where forbidden ids hold nearly all probability, nothing would be left to draw from.
        cumulative = self._truncate(allowed.double().softmax(dim=-1)).cumsum(dim=-1)
        draws = [torch.rand(1, generator=generator, dtype=torch.float64) for generator in self._generators]
        targets = torch.stack(draws).to(scores.device) * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, targets, right=True).clamp(max=scores.shape[1] - 1)
        tokens = torch.where(greedy, allowed.argmax(dim=-1, keepdim=True), tokens)
        self.logprobs.append(logprobs.gather(1, tokens).squeeze(1))
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens, 0.0)

    def _truncate(self, probabilities: torch.Tensor) -> torch.Tensor:
        if self._top_k > 0 and self._top_k < probabilities.shape[1]:
            smallest = probabilities.topk(self._top_k, dim=-1).values[:, -1:]
            probabilities = probabilities.masked_fill(probabilities < smallest, 0.0)
        if self._top_p < 1.0:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            total = ordered.sum(dim=-1, keepdim=True)
            outside = ordered.cumsum(dim=-1) - ordered >= self._top_p * total
            probabilities = torch.zeros_like(ordered).scatter(1, order, ordered.masked_fill(outside, 0.0))
        return probabilities


class _Stops(StoppingCriteria):
    """Ends each row whose last tokens complete one of its stops."""

    def __init__(self, stops: Sequence[tuple[str, ...]], decode: Decode, prompt_width: int) -> None:
        self._stops = stops
        self._decode = decode
        self._prompt_width = prompt_width
        # Every token but those inside a character has at least one letter of the stop.
        self._tail = 4 * max(len(stop) for texts in stops for stop in texts)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, scores: object, **kwargs: object
    ) -> torch.Tensor:
        tails = input_ids[:, max(self._prompt_width, input_ids.shape[1] - self._tail) :].tolist()
        texts = [self._decode(tail) for tail in tails]
        done = [any(stop in text for stop in stops) for text, stops in zip(texts, self._stops, strict=True)]
        return torch.tensor(done, device=input_ids.device)


class _Budgets(StoppingCriteria):
    """Ends each row at its own number of new tokens, and all once the engine is closed."""

    def __init__(self, budgets: torch.Tensor, prompt_width: int, closed: Callable[[], bool]) -> None:
        self._budgets = budgets
        self._prompt_width = prompt_width
        self._closed = closed

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, input_ids: torch.Tensor, scores: object, **kwargs: object
    ) -> torch.Tensor:
        if self._closed():
            return torch.ones_like(self._budgets, dtype=torch.bool)
        return input_ids.shape[1] - self._prompt_width >= self._budgets
