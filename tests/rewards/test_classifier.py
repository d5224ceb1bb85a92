"""Reward models by name: loaded with their tokenizers, and summed with weights as by hand."""

from pathlib import Path
from typing import Any

import pytest
import small_lm
import tiny
import torch
from transformers import Qwen2Config, Qwen2ForSequenceClassification

from mmsearch_trl.core.action import Action, ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.trajectory import StopReason, Trajectory, Turn
from mmsearch_trl.rewards.classifier import load_classifier
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.trainer.rewards import RewardFunctions


TOKENIZER = tiny.qwen25().processor.tokenizer


def save_classifier(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    config.num_labels = 1
    Qwen2ForSequenceClassification(config).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


def trajectory(text: str) -> Trajectory:
    [task] = tiny.tasks(1)
    made = Trajectory(task=task, prompt=(), prompt_ids=(1,), stop=StopReason.ANSWERED)
    action = Action(ActionKind.ANSWER, text)
    turn = Turn(token_ids=(1,), logprobs=(0.0,), finish_reason=FinishReason.STOP, text=text, action=action)
    made.turns.append(turn)
    return made


def test_two_reward_models_are_summed_with_their_weights(tmp_path: Path) -> None:
    loaded = [load_classifier(save_classifier(tmp_path / str(seed), seed)) for seed in (0, 1)]
    rows = [{"prompt": [{"role": "user", "content": "?"}], "id": str(number)} for number in range(10)]
    said = [trajectory("new " * number) for number in range(10)]
    models, tokenizers = [model for model, _ in loaded], [tokenizer for _, tokenizer in loaded]
    functions = RewardFunctions(models, tokenizers, torch.tensor([1.0, -0.5]), {}, BackgroundLoop())
    totals = functions(rows, said, None).totals

    def alone(model: Any, text: str) -> float:
        chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": text}]
        ids = TOKENIZER.apply_chat_template(chat, tokenize=True, return_dict=True, return_tensors="pt")
        with torch.inference_mode():
            return model(**ids).logits.item()

    by_hand = [alone(models[0], each.turns[0].text) - 0.5 * alone(models[1], each.turns[0].text) for each in said]
    assert totals.tolist() == pytest.approx(by_hand, abs=1e-5) and len(set(by_hand)) == 10


def test_a_model_without_one_trained_number_is_refused(tmp_path: Path) -> None:
    """A head that is not there would be made of noise."""
    base = small_lm.build_model(small_lm.build_tokenizer())
    base.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="is no reward model: it has 2 labels, and not one"):
        load_classifier(str(tmp_path))
    base.config.num_labels = 1
    base.save_pretrained(tmp_path)
    small_lm.build_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"is no reward model: it has no weights for score\.weight"):
        load_classifier(str(tmp_path))


def test_a_model_that_is_not_there_or_reads_no_chats_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward.models: there is no folder \./gone"):
        load_classifier("./gone")
    folder = save_classifier(tmp_path, 0)
    for file in tmp_path.glob("*template*"):
        file.unlink()
    configuration = tmp_path / "tokenizer_config.json"
    configuration.write_text(configuration.read_text().replace('"chat_template"', '"no_template"'))
    with pytest.raises(UserError, match="has no chat template, and a reward model reads chats"):
        load_classifier(folder)
