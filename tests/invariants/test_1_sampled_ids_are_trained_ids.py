"""What the engine sampled is what is trained, bit for bit, over all turns: nothing is decoded and encoded again."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import tiny
from servers import Trainers

from mmsearch_trl.core.completion import Completion, SamplingParams
from mmsearch_trl.core.images import ImageInput


FAMILIES = [tiny.qwen25(), tiny.qwen3()]


class RecordingEngine(tiny.WrappedEngine):
    calls: list[tuple[tuple[int, ...], Completion]] = []  # noqa: RUF012

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        completion = await super().generate(token_ids, images, sampling)
        self.calls.append((tuple(token_ids), completion))
        return completion


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_sampled_ids_are_trained_ids(family: tiny.Family, build: Trainers, tmp_path: Path) -> None:
    RecordingEngine.calls = []
    trainer = build(family, tmp_path, tiny.tasks(8), per_device_train_batch_size=8)
    tiny.wrap_engine(trainer, RecordingEngine)
    output = tiny.rollout_batch(trainer, list(trainer.train_dataset)).output
    encoded_again = 0
    for prompt, prompt_mask, completion, mask, tool_mask in zip(
        *(
            output[key].tolist()
            for key in ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "tool_mask")
        ),
        strict=True,
    ):
        context = tuple(token for token, bit in zip(prompt, prompt_mask, strict=True) if bit)
        ids = tuple(token for token, bit in zip(completion, mask, strict=True) if bit)
        position = 0
        while position < len(ids):
            turn = next((i for i in range(position, len(ids)) if not tool_mask[i]), len(ids)) - position
            sampled = ids[position : position + turn]
            asked = context + ids[:position]
            assert sampled in [c.token_ids for tokens, c in RecordingEngine.calls if tokens == asked]
            tokenizer = trainer.rollouter.protocol.chat.tokenizer
            encoded_again += tuple(tokenizer(tokenizer.decode(sampled)).input_ids) != sampled
            position += turn
            while position < len(ids) and not tool_mask[position]:
                position += 1
        assert position == len(ids)
    assert encoded_again, "this sample would not notice ids that are encoded again"
