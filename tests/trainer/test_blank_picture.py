"""A blank picture has the vision tower run, and changes nothing else."""

from typing import Any, NamedTuple

import pytest
import tiny
import torch

from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.blank_picture import BlankPicture
from mmsearch_trl.trainer.vision_ranks import VisionOnAllRanks


class Others(Ranks):
    """This rank, and one that says the same number every time."""

    def __init__(self, other: bool, count: int = 2) -> None:
        super().__init__()
        self.other, self.count = other, count

    def rows(self, numbers: Any) -> list[list[float]]:
        return [list(numbers), [self.other]]


@pytest.mark.parametrize(("mine", "others"), [(True, True), (True, False), (False, True), (False, False)])
def test_ranks_agree_on_whether_to_run_the_vision_tower(mine: bool, others: bool) -> None:
    blank = VisionOnAllRanks(tiny.qwen3().processor, Others(others)).blank(mine)
    assert (blank is not None) is (mine or others)


def test_one_process_and_a_model_without_vision_need_none() -> None:
    processor = tiny.qwen3().processor
    assert VisionOnAllRanks(processor, Others(True, count=1)).blank(False) is None
    assert VisionOnAllRanks(processor.tokenizer, Others(True)).blank(False) is None


@pytest.mark.parametrize("name", tiny.FAMILIES)
@pytest.mark.parametrize("rows", [1, 3])
def test_values_and_gradients_stay_and_the_vision_tower_has_gradients_of_zero(name: str, rows: int) -> None:
    family = tiny.FAMILIES[name]()
    protocol = family.protocol()
    given = [protocol.prompt(task) for task in tiny.tasks(rows, images=(0,))]
    width = max(len(prompt.token_ids) for prompt in given)
    ids = torch.tensor([[*prompt.token_ids, *[0] * (width - len(prompt.token_ids))] for prompt in given])
    mask = torch.tensor([[1] * len(p.token_ids) + [0] * (width - len(p.token_ids)) for p in given])
    inputs = {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, -100)}
    inputs["mm_token_type_ids"] = torch.zeros_like(ids)
    with_blank = BlankPicture.of(family.processor).behind(inputs)
    assert inputs["input_ids"].shape == (rows, width)  # what was given is as it was
    plain, seen = (_passed(family.model(), values) for values in (inputs, with_blank))
    assert torch.equal(plain.logits[mask.bool()], seen.logits[:, :width][mask.bool()])
    vision = {name for name in seen.gradients if ".visual." in name}
    assert vision and all(plain.gradients[name] is None for name in vision)
    for name, gradient in seen.gradients.items():
        expected = torch.zeros_like(gradient) if name in vision else plain.gradients[name]
        torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-6)


class Passed(NamedTuple):
    logits: torch.Tensor
    gradients: dict[str, Any]


def _passed(model: Any, inputs: dict[str, Any]) -> Passed:
    output = model.train()(**inputs)
    output.loss.backward()
    return Passed(output.logits.detach(), {name: p.grad for name, p in model.named_parameters()})
