"""Prompts and an oracle for the colocated engine, and one of two processes that have one each, and then share one.

Run by `test_vllm_colocate.py`: `accelerate launch ... colocate_worker.py CHECKPOINT OUT`.
"""

import asyncio
import datetime
import gc
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


if __name__ == "__main__":
    gc.disable()  # so short a life needs no collector, and most of it are imports
sys.path.insert(0, str(Path(__file__).parent.parent))

import tiny
import torch
import torch.distributed as dist

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.trajectory import Trajectory, Turn
from mmsearch_trl.engine.vllm_colocate import ColocatedEngine
from mmsearch_trl.engine.vllm_requests import Vocabulary


ARGS: dict[str, Any] = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 16, "enforce_eager": True}
SHARED_MEMORY = Path("/dev/shm")
Prompt = tuple[tuple[int, ...], list[ImageInput]]


def save(family: tiny.Family, folder: Path) -> Path:
    """A checkpoint with its processor, as vLLM loads it."""
    family.model().save_pretrained(folder)
    family.processor.save_pretrained(folder)
    return folder


def vocabulary(family: tiny.Family) -> Vocabulary:
    chat = family.protocol().chat
    head = family.model().get_output_embeddings()
    assert head is not None
    return Vocabulary.of(
        [chat.turn_end_id], chat.vision_ids, chat.image_pad_id, named=chat.vocabulary_size, width=head.weight.shape[0]
    )


def prompts(family: tiny.Family, count: int, images: Sequence[int] = (1, 0, 2, 3), seed: int = 0) -> list[Prompt]:
    encoded = [family.protocol().prompt(task) for task in tiny.tasks(count, images=images, seed=seed)]
    return [(e.token_ids, [part for part in e.parts if isinstance(part, ImageInput)]) for e in encoded]


async def write(engine: ColocatedEngine, given: Sequence[Prompt], **options: Any) -> list[Completion]:
    """One turn after each prompt, asked for at once; the seed is the prompt's number."""
    settings: dict[str, Any] = {"max_tokens": 10} | options
    calls = [engine.generate(*prompt, SamplingParams(seed=i, **settings)) for i, prompt in enumerate(given)]
    return await asyncio.gather(*calls)


def rollout(engine: ColocatedEngine, given: Sequence[Prompt], **options: Any) -> list[Completion]:
    with engine.rollout():
        return asyncio.run(write(engine, given, **options))


def difference(family: tiny.Family, model: Any, given: Sequence[Prompt], completions: Sequence[Completion]) -> float:
    """The largest difference between the engine's log-probs and those of the `transformers` model alone."""
    chat, worst = family.protocol().chat, 0.0
    for (token_ids, images), completion in zip(given, completions, strict=True):
        turn = Turn(
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            text="",
            action=Action(ActionKind.NONE),
        )
        [task] = tiny.tasks(1)
        trajectory = Trajectory(task=task, prompt=tuple(images), prompt_ids=token_ids, turns=[turn])
        expected = tiny.alone(model, chat, trajectory)
        worst = max(worst, float((expected - torch.tensor(completion.logprobs)).abs().max()))
    return worst


def _trajectories(engine: ColocatedEngine, rank: int, family: tiny.Family) -> list[Completion]:
    """What two ranks ask of a shared engine: different numbers at different times, and one thinks better of one."""
    given = prompts(family, 5, seed=rank)

    async def scenario() -> list[Completion]:
        late = asyncio.create_task(engine.generate(*given[0], SamplingParams(max_tokens=200, seed=9)))
        await asyncio.sleep(0.05 * (1 + rank))
        first = await write(engine, given[: 4 - 2 * rank])
        late.cancel()
        await asyncio.sleep(0.2 * rank)
        return first + await write(engine, given[4 - 2 * rank :])

    with engine.rollout():
        return asyncio.run(scenario())


def own(folder: Path, rank: int) -> dict[str, Any]:
    """Two ranks have an engine each, and different numbers of turns."""
    family = tiny.qwen25()
    engine = ColocatedEngine(str(folder), vocabulary(family), engine_args=ARGS)
    given = prompts(family, 1 + 3 * rank, seed=rank)
    report = {"own": difference(family, family.model(), given, rollout(engine, given))}
    engine.close()
    return report


def shared(folder: Path, rank: int) -> dict[str, Any]:
    """Two ranks hold a half of the model each."""
    family = tiny.qwen25()
    (SHARED_MEMORY / f"-tp:0-[0-1]-cpushm_{rank}").touch()  # what a run leaves behind that was killed
    engine = ColocatedEngine(str(folder), vocabulary(family), engine_args=ARGS, group=dist.group.WORLD)
    report: dict[str, Any] = {"left": [path.name for path in SHARED_MEMORY.glob(f"-*cpushm_{rank}")]}
    model = family.model()
    completions = _trajectories(engine, rank, family)
    report["before"] = difference(family, model, prompts(family, 5, seed=rank), completions)
    model = family.model(seed=1)
    engine.load_weights(model.named_parameters())
    completions = _trajectories(engine, rank, family)
    report["after"] = difference(family, model, prompts(family, 5, seed=rank), completions)
    with engine.rollout():  # rank 1 asks for nothing, and steps for rank 0
        report["alone"] = len(asyncio.run(write(engine, prompts(family, 3)))) if rank == 0 else 0
    before = time.process_time()
    with engine.rollout():
        time.sleep(1.0)
    report["idle"] = time.process_time() - before
    report["requests"] = engine._stepper.core.scheduler.get_num_unfinished_requests()
    engine.close()
    return report


def main(folder: Path, out: Path) -> None:
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    rank = dist.get_rank()
    report = own(folder, rank) | shared(folder, rank)
    ranks: list[Any] = [None, None]
    dist.all_gather_object(ranks, rank)  # the world that was there before the engines still works
    (out / f"rank{rank}.json").write_text(json.dumps(report | {"ranks": ranks}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
