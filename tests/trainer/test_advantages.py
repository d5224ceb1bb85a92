from typing import Any

import pytest
import small_lm
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from trl import GRPOConfig, GRPOTrainer

from mmsearch_trl.trainer.advantages import group_advantages, informative_groups
from mmsearch_trl.trainer.estimators import baselined


rewards_of_groups = st.integers(2, 6).flatmap(
    lambda size: st.tuples(
        st.just(size),
        st.lists(st.lists(st.floats(-1, 1, width=32), min_size=size, max_size=size), min_size=1, max_size=4),
    )
)


@given(rewards_of_groups)
def test_each_group_is_scored_alone_and_sums_to_zero(drawn: tuple[int, list[list[float]]]) -> None:
    size, groups = drawn
    together = group_advantages(torch.tensor(groups).flatten(), size).view(-1, size)
    for rewards, advantages in zip(groups, together, strict=True):
        torch.testing.assert_close(advantages, group_advantages(torch.tensor(rewards), size))
        assert abs(advantages.sum().item()) < 1e-4


def test_group_scale_is_the_unbiased_deviation_plus_eps() -> None:
    advantages = group_advantages(torch.tensor([1.0, 0.0]), 2, eps=0.5)
    torch.testing.assert_close(advantages, torch.tensor([0.5, -0.5]) / (0.5**0.5 + 0.5))


def test_batch_scale_divides_all_groups_by_one_deviation() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.6, 0.5])
    centred = torch.tensor([0.5, -0.5, 0.05, -0.05])
    torch.testing.assert_close(group_advantages(rewards, 2, "batch"), centred / (rewards.std() + 1e-6))


def test_without_scale_only_the_mean_is_taken_off() -> None:
    torch.testing.assert_close(group_advantages(torch.tensor([1.0, 0.5]), 2, "none"), torch.tensor([0.25, -0.25]))


@pytest.mark.parametrize("scale", ["group", "none"])
def test_a_group_of_one_keeps_its_reward(scale: str) -> None:
    rewards = torch.tensor([0.91, 0.0])
    torch.testing.assert_close(group_advantages(rewards, 1, scale), rewards, atol=1e-5, rtol=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [3, 7, 8])
def test_equal_rewards_give_no_advantage_although_their_mean_rounds(size: int) -> None:
    rewards = torch.full((size,), 0.91)
    assert group_advantages(rewards, size).abs().max() < 1e-9
    assert not informative_groups(rewards, size).any()


def test_informative_groups_are_those_whose_rewards_differ() -> None:
    rewards = torch.tensor([1.0, 0.91, 0.1, 0.1, 0.0, 0.1])
    assert informative_groups(rewards, 2).tolist() == [True, False, True]
    assert informative_groups(rewards, 1).tolist() == [False] * 6


def test_dtype_is_kept_and_integers_become_float() -> None:
    assert group_advantages(torch.ones(2, dtype=torch.float64), 2).dtype == torch.float64
    torch.testing.assert_close(group_advantages(torch.tensor([1, 0]), 2, "none"), torch.tensor([0.5, -0.5]))


def test_rewards_that_do_not_divide_into_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide into groups of 2"):
        group_advantages(torch.ones(3), 2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\)"):
        informative_groups(torch.ones(2, 2), 2)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale must be group, batch or none; got 'std'"):
        group_advantages(torch.ones(2), 2, "std")  # type: ignore[arg-type]


def test_a_trajectory_without_a_reward_is_left_out_of_its_group() -> None:
    with_gap = group_advantages(torch.tensor([1.0, float("nan"), 0.0, 0.0]), 4)
    without = group_advantages(torch.tensor([1.0, 0.0, 0.0]), 3)
    assert torch.equal(with_gap[[0, 2, 3]], without)
    assert with_gap[1] == 0.0


NAN = float("nan")


@pytest.fixture(scope="module")
def trl(tmp_path_factory: pytest.TempPathFactory) -> GRPOTrainer:
    """TRL's own trainer, whose reward is the number in the row; None where that is NaN."""

    def written(reward: list[float], **_: Any) -> list[float | None]:
        return [None if value != value else value for value in reward]

    tokenizer = small_lm.build_tokenizer()
    options: dict[str, Any] = {"per_device_train_batch_size": 2, "num_generations": 2, "max_completion_length": 1}
    options |= {"use_cpu": True, "bf16": False, "report_to": "none", "disable_tqdm": True, "scale_rewards": "group"}
    return GRPOTrainer(
        small_lm.build_model(tokenizer),
        written,  # pyright: ignore[reportArgumentType]
        GRPOConfig(str(tmp_path_factory.mktemp("trl")), **options),
        train_dataset=Dataset.from_list([{"prompt": "user", "reward": 0.0}]),
        processing_class=tokenizer,
    )


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16])
def test_group_norm_is_trls_own_grpo(size: int, trl: GRPOTrainer) -> None:
    """Groups with rewards that differ, are equal, are there for all but one, for one alone, and for none."""
    drawn = torch.rand((4, size), generator=torch.Generator().manual_seed(size))
    drawn[1, 0], drawn[2, 1:], drawn[3] = NAN, NAN, NAN
    rewards = torch.cat([drawn, torch.ones(1, size), torch.zeros(1, size), drawn[:1].round()]).flatten()
    assert trl.model is not None
    trl.model.train()  # else these are generations of an evaluation
    trl.num_generations = size
    theirs = trl._generate_and_score_completions([{"prompt": "user", "reward": each} for each in rewards.tolist()])
    assert theirs["advantages"].count_nonzero() > size
    ours = baselined(rewards.double(), size, "group_norm", eps=1e-4)
    torch.testing.assert_close(ours, theirs["advantages"].double(), atol=1e-6, rtol=0)
