"""Reward functions applied to this rank's trajectories: plain ones, coroutines, reward models, rules."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import nn
from transformers import BatchEncoding

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.rewards import RewardFunctions, Rewards


LOOP = BackgroundLoop()
STATE = None


def trajectory(text: str, stop: StopReason = StopReason.ANSWERED) -> Trajectory:
    [task] = tiny.tasks(1)
    made = Trajectory(task=task, prompt=(), prompt_ids=(1,), stop=stop)
    made.turns.append(
        Turn(
            token_ids=(1, 2),
            logprobs=(0.0, 0.0),
            finish_reason=FinishReason.STOP,
            text=text,
            action=Action(ActionKind.ANSWER, text),
        )
    )
    return made


ROWS = [{"prompt": [{"role": "user", "content": "?"}], "answers": ["new"], "id": str(i)} for i in range(3)]
SAID = [trajectory("<reason>r</reason><answer>new</answer>"), trajectory("<answer>old</answer>"), trajectory("")]


def functions(*given: Any, tokenizers: Any = None, weights: Any = None) -> RewardFunctions:
    tokenizers = tokenizers or [None] * len(given)
    return RewardFunctions(given, tokenizers, torch.tensor(weights or [1.0] * len(given)), {}, LOOP)


def test_every_function_sees_the_columns_and_the_messages_and_may_log() -> None:
    def plain(prompts: Any, completions: Any, completion_ids: Any, answers: Any, id: Any, **more: Any) -> list[float]:
        assert prompts[0] == ROWS[0]["prompt"] and answers == [["new"]] * 3 and id == ["0", "1", "2"]
        assert completion_ids == [[1, 2]] * 3 and more["trainer_state"] is STATE
        more["log_metric"]("length", 7.0)
        more["log_extra"]("words", [len(messages) for messages in completions])
        return [float(len(messages[0]["content"])) for messages in completions]

    rewards = functions(plain)(ROWS, SAID, STATE)
    assert rewards.values[:, 0].tolist() == [len(t.turns[0].text) for t in SAID]
    assert dict(rewards.metrics) == {"length": 7.0} and dict(rewards.columns) == {"words": [1, 1, 1]}


def test_coroutines_run_together_and_weights_sum_functions_up() -> None:
    async def one(**columns: Any) -> list[float | None]:
        return [1.0, None, None]

    async def two(**columns: Any) -> list[float | None]:
        return [2.0, 4.0, None]

    rewards = functions(one, two, weights=[1.0, 0.5])(ROWS, SAID, STATE)
    totals = rewards.totals.tolist()
    assert totals[:2] == [2.0, 2.0] and math.isnan(totals[2])


class Judge(nn.Module):
    """A reward model: its logit is the number of characters that it was shown."""

    device = torch.device("cpu")

    def forward(self, lengths: torch.Tensor) -> Any:
        return type("Output", (), {"logits": lengths[:, None]})()


class Reads:
    """A tokenizer that counts characters, with a template that joins contents."""

    chat_template = "joined"

    def __call__(self, text: list[str], **options: Any) -> BatchEncoding:
        return BatchEncoding({"lengths": torch.tensor([float(len(each)) for each in text])})


def test_a_reward_model_reads_the_whole_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(chat: Any, tokenizer: Any, **options: Any) -> dict[str, str]:
        return {"text": "".join(message["content"] for message in chat["messages"])}

    monkeypatch.setattr("mmsearch_trl.trainer.rewards.apply_chat_template", joined)
    rewards = functions(Judge(), tokenizers=[Reads()])(ROWS, SAID, STATE)
    assert rewards.values[:, 0].tolist() == [1.0 + len(t.turns[0].text) for t in SAID]


def test_an_aborted_rollout_earns_nothing_and_is_told_apart_from_a_wrong_one() -> None:
    trajectories = [SAID[0], trajectory("<answer>new</answer>", StopReason.FAILED), SAID[1]]
    rewards = functions(RuleReward(RewardConfig()))(ROWS, trajectories, STATE)
    scored = rewards.of(trajectories)
    assert [item.reward for item in scored] == [1.0, None, 0.0]
    assert scored[0].right is True and scored[2].right is False


def test_what_functions_log_is_over_the_rollouts_that_ended_by_themselves() -> None:
    """An outage must not look like falling accuracy."""
    seen: list[str] = []

    def watching(id: Any, log_metric: Any, **columns: Any) -> list[float]:
        seen.extend(id)
        return [1.0] * len(id)

    stops = [StopReason.FAILED, StopReason.STRAGGLER]
    trajectories = [SAID[0], *(trajectory("<answer>new</answer>", stop) for stop in stops)]
    rewards = functions(watching, RuleReward(RewardConfig()))(ROWS, trajectories, STATE)
    assert seen == ["0"]
    assert rewards.metrics["reward/accuracy"] == rewards.metrics["format/valid"] == 1.0
    assert rewards.metrics["reward/accuracy"].count == 1
    assert rewards.columns["accuracy"] == [1.0, None, None]
    assert rewards.values.isnan().tolist() == [[False, False], [True, True], [True, True]]


def test_where_no_rollout_ended_by_itself_nothing_is_asked_and_nothing_logged() -> None:
    rewards = functions(lambda **columns: pytest.fail("asked"))(ROWS[:1], [trajectory("", StopReason.FAILED)], STATE)
    assert rewards.values.isnan().all() and not rewards.metrics and not rewards.columns
    [scored] = rewards.of([trajectory("", StopReason.FAILED)])
    assert scored.reward is None and scored.right is None


def test_parts_that_nobody_judged_are_absent() -> None:
    [first, *_] = functions(lambda **columns: [0.5, 0.5, 0.5])(ROWS, SAID, STATE).of(SAID, [0.1, 0.2, 0.3])
    assert (first.reward, first.rewards, first.right, first.advantage) == (0.5, {}, None, 0.1)


def test_another_number_of_rewards_is_refused() -> None:
    with pytest.raises(UserError, match="2 rewards for 3 completions"):
        functions(lambda **columns: [1.0, 2.0])(ROWS, SAID, STATE)


def test_totals_are_nan_only_where_no_function_scored() -> None:
    values = torch.tensor([[1.0, math.nan], [math.nan, math.nan]])
    totals: Iterator[float] = iter(Rewards(values, torch.tensor([2.0, 1.0]), {}, {}).totals.tolist())
    assert next(totals) == 2.0 and math.isnan(next(totals))
