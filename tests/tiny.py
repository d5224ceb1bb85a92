"""Tiny real parts for tests: models (`model_families.py`), tools with chosen behaviour, and a trainer around them."""

import asyncio
import hashlib
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from model_families import FAMILIES, MIXTURES, Family, RestlessProtocol, qwen2, qwen3, qwen25, qwen35  # noqa: F401
from PIL import Image
from transformers import PreTrainedModel

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.message import shown
from mmsearch_trl.core.observation import Failure, FailureKind, ImageHit, ImageQuery, Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.data.dataset import FEATURES
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.calls.record import CallRecord
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.sampler.sampler import OpenEngine


class WrappedEngine:
    """A trainer's engine with another `generate`, for tests that record or spoil turns."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        return await self.engine.generate(token_ids, images, sampling)

    @property
    def busy_seconds(self) -> float:
        return self.engine.busy_seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def wrap_engine(trainer: MMSearchGRPOTrainer, wrapper: Callable[[Any], WrappedEngine]) -> None:
    """Have a trainer roll out through a wrapper of its engine."""
    opened = trainer.sampler.open

    @contextmanager
    def wrapped(policy: Policy) -> Iterator[OpenEngine]:
        with opened(policy) as found:
            yield OpenEngine(wrapper(found.engine), found.statistics)

    trainer.sampler.open = wrapped  # pyright: ignore[reportAttributeAccessIssue]


def roll_out(
    trainer: MMSearchGRPOTrainer, given: Sequence[Task], names: Sequence[str], temperature: float = 1.0
) -> list[Trajectory]:
    """Trajectories of a trainer's current weights, outside of training."""
    with trainer.sampler.open(trainer.policy) as opened:
        return trainer.rollouter.run(given, opened.engine, names, temperature).trajectories


class Batch(NamedTuple):
    """A generation batch: what was rolled out, and the tensors that TRL made of it."""

    trajectories: list[Trajectory]
    output: dict[str, Any]


class SearchTools:
    """Answers calls by the `image_search` and `text_search` of its child; connects to nothing."""

    async def answer(self, action: Action, trajectory: Trajectory) -> Observation:
        if action.kind is ActionKind.TEXT_SEARCH:
            return await self.text_search(action.text or "")
        query = ImageQuery.of(trajectory.task)
        if query is None:
            failure = Failure(FailureKind.INVALID_QUERY, "no image to search by")
            return Observation(tool=ActionKind.IMAGE_SEARCH, failure=failure)
        return await self.image_search(query)

    async def image_search(self, query: ImageQuery) -> Observation:
        raise NotImplementedError

    async def text_search(self, query: str) -> Observation:
        raise NotImplementedError

    def drain_records(self) -> list[CallRecord]:
        return []

    async def disconnect(self) -> None:
        pass


class CannedTools(SearchTools):
    """Answers by the query alone: 1 to 3 images of odd sizes for an image, a line or two for a text."""

    def __init__(self, delay: Callable[[], float] | None = None, max_images: int = 3, side: int = 90) -> None:
        self._delay = delay
        self._max_images = max_images
        self._side = side
        self.records: list[CallRecord] = []
        self.calls: list[tuple[str, str]] = []

    async def image_search(self, query: ImageQuery) -> Observation:
        rng = random.Random(query.image.tobytes()[:3000])
        await self._wait(ActionKind.IMAGE_SEARCH, str(query.url))
        count = rng.randint(1, self._max_images) if self._max_images else 0
        hits = tuple(
            ImageHit(f"page {i}", thumbnail=noise(rng.randint(28, self._side), rng.randint(28, self._side), rng))
            for i in range(count)
        )
        return self._observe(Observation(tool=ActionKind.IMAGE_SEARCH, hits=hits))

    async def text_search(self, query: str) -> Observation:
        await self._wait(ActionKind.TEXT_SEARCH, query)
        rng = random.Random(query)
        hits = tuple(TextHit("title", " ".join(["founded"] * rng.randint(1, 9))) for _ in range(rng.randint(1, 2)))
        return self._observe(Observation(tool=ActionKind.TEXT_SEARCH, hits=hits))

    def drain_records(self) -> list[CallRecord]:
        records, self.records = self.records, []
        return records

    async def _wait(self, tool: str, query: str) -> None:
        self.calls.append((tool, query))
        if self._delay is not None:
            await asyncio.sleep(self._delay())

    def _observe(self, observation: Observation) -> Observation:
        tool = ActionKind(observation.tool)
        failure = observation.failure.kind if observation.failure else None
        self.records.append(CallRecord(tool, observation.seconds, False, False, failure=failure))
        return observation


def noise(width: int, height: int, rng: random.Random) -> Image.Image:
    return Image.frombytes("RGB", (width, height), rng.randbytes(width * height * 3))


def tasks(count: int, *, images: Sequence[int] = (1,), seed: int = 0) -> list[Task]:
    """Tasks with `images[i % len(images)]` images each, of different sizes."""
    rng = random.Random(seed)
    words = ("who", "where is the city", "when was it founded", "it is new")
    return [
        Task(
            id=f"task{i}",
            question=words[i % len(words)],
            images=tuple(noise(rng.randint(28, 90), rng.randint(28, 90), rng) for _ in range(images[i % len(images)])),
            answers=("new",),
            data_source="tiny",
            image_url=f"url{i}",
        )
        for i in range(count)
    ]


def dataset(given: Sequence[Task]) -> Dataset:
    """Rows as `load_dataset_rows` makes them."""
    return Dataset.from_list([_row(task) for task in given], features=FEATURES)


def _row(task: Task) -> dict[str, Any]:
    return {
        "prompt": shown(task.messages) or [{"role": "user", "content": task.question}],
        "id": task.id,
        "question": task.question,
        "messages": [{"role": message.role, "content": list(message.content)} for message in task.messages],
        "images": [_png(image) for image in task.images],
        "image_sizes": [image.size for image in task.images],
        "answers": list(task.answers),
        "data_source": task.data_source,
        "category": task.category,
        "image_url": task.image_url,
        "extra": "{}",
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def by_letters(completions: Sequence[Sequence[Mapping[str, Any]]], **columns: Any) -> list[float]:
    """A reward that almost always differs between rollouts: a digest of what the assistant said."""
    said = ["\0".join(m["content"] for m in messages if m["role"] == "assistant") for messages in completions]
    return [hashlib.sha256(text.encode()).digest()[0] / 255 for text in said]


LIMITS = Limits(max_turns=3, max_turn_tokens=5, max_response_tokens=400)


def config(out: Path, **overrides: Any) -> MMSearchGRPOConfig:
    settings: dict[str, Any] = {
        "output_dir": str(out),
        "per_device_train_batch_size": 4,
        "num_generations": 2,
        "max_steps": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "report_to": "none",
        "save_strategy": "no",
        "save_traces": False,
        "disable_tqdm": True,
        "seed": 7,
    }
    return MMSearchGRPOConfig(**(settings | overrides))


def trainer(
    family: Family,
    out: Path,
    given: Sequence[Task] | None = None,
    *,
    tools: Any = None,
    protocol: TurnProtocol | None = None,
    limits: Limits = LIMITS,
    reward: Any = by_letters,
    model: PreTrainedModel | None = None,
    peft_config: Any = None,
    eval_dataset: Any = None,
    **overrides: Any,
) -> MMSearchGRPOTrainer:
    model, protocol = model or family.model(), protocol or family.restless()
    estimator = overrides.get("estimator")
    # TRL loads the reference model from where the policy came from.
    if peft_config is None and (overrides.get("beta") or (estimator is not None and estimator.kl.coef)):
        model.save_pretrained(out / "reference")
        model.config._name_or_path = str(out / "reference")
    return MMSearchGRPOTrainer(
        model,
        reward,
        config(out, **overrides),
        search=tools or (CannedTools() if isinstance(protocol, SearchProtocol) else None),
        limits=limits,
        protocol=protocol,
        train_dataset=dataset(given if given is not None else tasks(4)),
        eval_dataset=eval_dataset,
        processing_class=family.processor,
        peft_config=peft_config,
    )


def alone(model: Any, chat: ChatEncoder, trajectory: Trajectory, *, temperature: float = 1.0) -> torch.Tensor:
    """Log-probs of a trajectory's completion from one plain forward pass, unpadded, `(c,)`: the oracle."""
    ids = torch.tensor([trajectory.token_ids])
    inputs: dict[str, torch.Tensor] = {"input_ids": ids, "mm_token_type_ids": (ids == chat.image_pad_id).long()}
    if trajectory.images:
        features = [chat.images.features(image) for image in trajectory.images]
        inputs["pixel_values"] = torch.cat([feature.pixel_values for feature in features])
        inputs["image_grid_thw"] = torch.stack([feature.grid_thw for feature in features])
    with torch.no_grad():
        logits = model(**inputs).logits[0, :-1].float() / temperature
    values = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return values[len(trajectory.prompt_ids) - 1 :]


def stop_in(completion: Completion, chat: ChatEncoder) -> tuple[str, int]:
    """A text that a completion holds, and up to how many of its tokens it is complete for the first time.

    It is of ASCII characters: a token that ends inside a character tells its text with the next one only.
    """
    words = (chat.decode([token]).strip() for token in completion.token_ids[2:8])
    stop = next(word for word in words if len(word) > 1 and word.isascii())
    ends = range(len(completion.token_ids) + 1)
    return stop, next(n for n in ends if stop in chat.decode(completion.token_ids[:n]))


def rollout_batch(trainer: MMSearchGRPOTrainer, rows: Sequence[Mapping[str, Any]]) -> Batch:
    """One generation batch of a trainer, as it trains on it, and its trajectories."""
    seen: list[Trajectory] = []
    original = trainer._generate

    def spy(prompts: list[Any]) -> Any:
        assert trainer._batch is not None
        seen.extend(trainer._batch.trajectories)
        return original(prompts)

    trainer._generate = spy  # pyright: ignore[reportAttributeAccessIssue]
    trainer.model.train()
    try:
        output = trainer._generate_and_score_completions([dict(row) for row in rows])
    finally:
        trainer._generate = original  # pyright: ignore[reportAttributeAccessIssue]
    return Batch(seen, output)


def padded_log_probs(
    trainer: MMSearchGRPOTrainer, output: Mapping[str, Any], model: Any = None, *, batch_size: int | None = None
) -> torch.Tensor:
    """`(b, c)` of the trainer's own method, as its loss calls it."""
    trainer._score_mask = output["tool_mask"] * output["completion_mask"]
    vision = {
        name: output[name]
        for name in ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        if name in output
    }
    try:
        with torch.no_grad():
            values, _, _ = trainer._get_per_token_logps_and_entropies(
                model or trainer.model,
                torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1),
                torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1),
                output["completion_ids"].shape[1],
                batch_size=batch_size,
                **vision,
            )
    finally:
        trainer._score_mask = None
    return values
