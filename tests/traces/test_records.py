import json
import math
from dataclasses import replace

import pytest

from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.traces.build import images_of, trace_record
from mmsearch_trl.traces.records import TraceRecord, TraceToken
from mmsearch_trl.traces.tokens import Decoder, TokenSpeller


def record_of(scored: ScoredTrajectory, tokenizer: Decoder) -> TraceRecord:
    return trace_record(scored, TokenSpeller(tokenizer), step=3, split="train")


def test_a_record_reads_back_equal(searching, answering, failing, tokenizer):
    for scored in (searching, answering, failing):
        record = record_of(scored, tokenizer)
        line = record.to_json()
        assert "\n" not in line
        assert TraceRecord.from_json(line) == record


def test_a_record_of_an_earlier_version_is_still_read(searching, tokenizer):
    row = json.loads(record_of(searching, tokenizer).to_json())
    row["turns"][0]["observation"] |= {"raw_text": None, "raw_images": []}
    assert TraceRecord.from_json(json.dumps(row)) == record_of(searching, tokenizer)


def test_the_tokens_of_a_record_are_the_trajectory_s_own(searching, tokenizer):
    trajectory = searching.trajectory
    tokens = [token for turn in record_of(searching, tokenizer).turns for token in turn.tokens]
    assert [token.trained for token in tokens for _ in range(token.times)] == trajectory.loss_mask
    assert "".join(token.text * token.times for token in tokens) == tokenizer.decode(trajectory.completion_ids)
    assert all((token.logprob is None) == (token.trained == 0) for token in tokens)


def test_the_pads_of_an_image_are_one_entry(searching, tokenizer):
    assert record_of(searching, tokenizer).turns[0].tokens[-1] == TraceToken("<|image_pad|>", 0, None, 4)


def test_every_digest_in_a_record_has_its_picture(searching, tokenizer):
    record = record_of(searching, tokenizer)
    hits = [hit for turn in record.turns if turn.observation for hit in turn.observation.hits]
    named = {*record.images, *(hit.thumbnail for hit in hits if hit.thumbnail)}
    assert named == dict(images_of(searching.trajectory)).keys()
    assert [hit.thumbnail is None for hit in hits] == [False, True, True, True]


def test_the_outcome_counts_a_failed_call_as_a_search(failing, answering, tokenizer):
    record = record_of(failing, tokenizer)
    assert (record.outcome.searched, record.outcome.right, record.outcome.stop) == (True, False, "answered")
    observation = record.turns[0].observation
    assert observation and observation.failure and observation.failure.kind == "timeout"
    assert record_of(answering, tokenizer).outcome.searched is False


def test_nobody_judged_means_neither_right_nor_wrong(answering, tokenizer):
    assert (
        record_of(replace(answering, parts=RewardParts(1.0, math.nan, math.nan, 0, None)), tokenizer).outcome.right
        is None
    )


def test_what_json_cannot_hold_becomes_null(answering, tokenizer):
    record = record_of(replace(answering, parts=RewardParts(math.nan, math.inf, 1.0, 0, None)), tokenizer)
    assert (record.reward, record.rewards, record.outcome.right) == (
        None,
        {"accuracy": None, "format": 1.0, "searches": 0.0},
        None,
    )
    assert json.loads(record.to_json())["reward"] is None


def test_the_group_is_the_task_s_own_or_its_category(searching, tokenizer):
    record = record_of(searching, tokenizer)
    assert (record.group, record.category) == ("held_out", "search_free")


@pytest.mark.parametrize(("line", "message"), [("{}", "answers"), ("[1]", "not a trace record"), ("{", "Expecting")])
def test_a_line_that_is_no_record_is_refused(line, message):
    with pytest.raises(ValueError, match=message):
        TraceRecord.from_json(line)
