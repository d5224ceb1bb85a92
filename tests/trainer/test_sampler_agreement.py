"""A sampler that holds other weights than those that are trained ends the run."""

import math
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.completion import Completion
from mmsearch_trl.core.errors import EngineLost
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.trainer.sampler_agreement import check_agreement


FAMILY = tiny.qwen25()
TRAINED = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 0.0, 0.0]])
MASK = torch.tensor([[1, 1, 0], [1, 0, 0]])


def check(sampled: torch.Tensor, most: float = 0.2) -> None:
    check_agreement(sampled, TRAINED, MASK, Ranks(), most=most, model="some/model")


@pytest.mark.parametrize("rounding", [0.0, 1e-6, 0.02, 0.1])
def test_rounding_is_borne(rounding: float) -> None:
    check(TRAINED + rounding)


def test_a_mean_over_sampled_tokens_that_is_too_large_ends_the_run_with_what_can_cause_it() -> None:
    with pytest.raises(EngineLost, match=r"1\.64 off .*some/model.*only sent the adapter.*quantised.*mm_processor"):
        check(TRAINED - 1.64)
    with pytest.raises(EngineLost, match=r" 0\.40 off"):
        check(TRAINED + torch.tensor([[1.2, 0.0, 9.0], [0.0, 9.0, 9.0]]))
    check(TRAINED - 1.64, most=2.0)


def test_tokens_without_a_log_prob_and_what_was_not_sampled_say_nothing() -> None:
    check(TRAINED + torch.tensor([[math.nan, 0.0, 50.0], [0.0, 50.0, 50.0]]))
    check(torch.full_like(TRAINED, math.nan))


class Elsewhere(tiny.WrappedEngine):
    """A sampler with a model of its own, as a server is."""

    other: Any = None

    async def generate(self, token_ids: Any, images: Any, sampling: Any) -> Completion:
        engine = FAMILY.engine(self.other, FAMILY.protocol().chat)
        try:
            return await engine.generate(token_ids, images, sampling)
        finally:
            engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("seed", [0, 5])
def test_a_run_on_other_weights_of_the_same_shape_ends_before_it_learns(
    seed: int, corrected: bool, tmp_path: Path
) -> None:
    trainer = tiny.trainer(FAMILY, tmp_path, vllm_importance_sampling_correction=corrected)
    tiny.wrap_engine(trainer, type("Other", (Elsewhere,), {"other": FAMILY.model(seed)}))
    trainer.use_vllm = trainer.args.use_vllm = True  # what has TRL compare the two
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    if seed == 0:
        trainer.train()
        return
    with pytest.raises(EngineLost, match="does not sample from the weights that are trained"):
        trainer.train()
    assert all(one.equal(other) for one, other in zip(before, trainer.model.parameters(), strict=True))
