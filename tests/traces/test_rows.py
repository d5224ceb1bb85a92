import json
import math
from dataclasses import replace

from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.core.task import Task
from mmsearch_trl.traces.rows import evaluation_row


def test_a_row_holds_upstream_s_fields(searching, tokenizer):
    row = evaluation_row(searching, tokenizer, step=50)
    assert (row.step, row.score, row.image_url) == (50, searching.reward, "https://example.org/q.png")
    assert row.input_text == "Here: In which city is this emblem used?"
    assert "Bel Tor founded 1742" in row.output_text
    assert "<|im" not in row.input_text + row.output_text
    assert row.reward_model["ground_truth"] == "Calton"
    assert json.loads(row.reward_model["candidate_answers"]) == ["Calton City"]


def test_a_row_counts_sampled_tokens_only(searching, tokenizer):
    row = evaluation_row(searching, tokenizer, step=0)
    assert row.sampled_tokens == sum(len(turn.token_ids) for turn in searching.trajectory.turns)
    assert row.actions == ("image_search", "text_search", "answer")


def test_a_row_names_what_failed(failing, tokenizer):
    row = evaluation_row(failing, tokenizer, step=0)
    assert (row.tool_failures, row.right) == (("timeout",), False)


def test_a_question_without_gold_still_makes_a_row(answering, tokenizer):
    answering.trajectory.task = Task(id="a", question="?")
    row = evaluation_row(replace(answering, parts=RewardParts(1.0, math.nan, math.nan, 0, None)), tokenizer, step=0)
    assert (row.reward_model["ground_truth"], row.right, row.image_url) == ("", None, None)
