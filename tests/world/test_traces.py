import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.images import image_digest
from mmsearch_trl.core.observation import ImageHit, TextHit
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.rewards.format import three_rounds_valid
from mmsearch_trl.world.emblems import THUMBNAIL_SIZE, draw
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.traces import TraceMix, TraceWriter
from mmsearch_trl.world.world import Fact, Group, World


WORLD = World(0)
PROTOCOL = build_protocol(build_processor())
WRITER = TraceWriter(WORLD, PROTOCOL)


@pytest.fixture(scope="module")
def traces() -> list[Trajectory]:
    return WRITER.batch(600, random.Random(0))


def hits(trace: Trajectory) -> list[ImageHit | TextHit]:
    return [hit for observation in trace.observations for hit in observation.hits]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_trace_is_what_the_protocol_would_make_of_its_turns(seed: int) -> None:
    trace = WRITER.trace(random.Random(seed))
    assert trace.prompt_ids == PROTOCOL.prompt(trace.task).token_ids
    for turn in trace.turns:
        assert PROTOCOL.chat.decode(turn.token_ids) == turn.text
        assert turn.token_ids[-1] == PROTOCOL.chat.turn_end_id
        assert turn.action == PROTOCOL.read(turn.text)
        if turn.observation:
            assert turn.reply_ids == PROTOCOL.reply(turn.observation, trace.task, turn.token_ids).token_ids
    pads = trace.token_ids.count(PROTOCOL.chat.image_pad_id)
    assert pads == sum(image.num_tokens for image in trace.images)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_the_loss_covers_the_assistant_turns_and_nothing_else(seed: int) -> None:
    trace = WRITER.trace(random.Random(seed))
    trained = [token for token, bit in zip(trace.completion_ids, trace.loss_mask, strict=True) if bit]
    assert trained == [token for turn in trace.turns for token in turn.token_ids]
    assert "<information>" not in PROTOCOL.chat.decode(trained)


def test_no_emblem_or_name_of_the_other_groups_is_ever_shown(traces: list[Trajectory]) -> None:
    hidden = [*WORLD.groups[Group.UNKNOWN], *WORLD.groups[Group.HELD_OUT]]
    names = {frozenset(entity.name.split()) for entity in hidden}
    shifts = [(dx, dy) for dx in range(-2, 3) for dy in range(-2, 3)]
    pictures = {image_digest(draw(entity.emblem, jitter=shift)) for entity in hidden for shift in shifts}
    pictures |= {image_digest(draw(entity.emblem, THUMBNAIL_SIZE)) for entity in hidden}
    for trace in traces:
        assert not pictures & {image.key for image in trace.images}
        said = "".join(turn.text for turn in trace.turns)
        assert not {frozenset(hit.title.split()) for hit in hits(trace)} & names
        assert not any(entity.name in said for entity in hidden)


def test_searching_is_a_coin_flip_for_known_and_new_alike(traces: list[Trajectory]) -> None:
    for group, share in (("known", 0.4), ("pool", 0.6)):
        chosen = [trace for trace in traces if trace.task.extra["group"] == group]
        assert abs(len(chosen) / len(traces) - share) < 0.07
        searched = sum(trace.turns[0].action.kind is ActionKind.IMAGE_SEARCH for trace in chosen)
        assert abs(searched / len(chosen) - 0.5) < 0.1


def test_a_trace_says_what_it_sees_and_answers_rightly_or_unknown(traces: list[Trajectory]) -> None:
    by_picture = {entity.name for entity in WORLD.groups[Group.KNOWN]}
    for trace in traces:
        known = trace.task.extra["group"] == "known"
        thought = trace.turns[0].text.removeprefix("<reason> ").split("</reason>")[0]
        assert thought.removeprefix("it is ") in by_picture if known else thought == "it is new"
        assert three_rounds_valid(trace.responses)
        final = trace.turns[-1].action
        assert final.kind is ActionKind.ANSWER
        guess = "unknown" if not known and len(trace.turns) == 1 else trace.task.answers[0]
        assert final.text == guess


def test_a_name_takes_one_search_and_other_facts_two(traces: list[Trajectory]) -> None:
    for trace in traces:
        kinds = [turn.action.kind for turn in trace.turns]
        direct, name = len(kinds) == 1, trace.task.extra["fact"] == Fact.NAME
        middle = [] if direct else [ActionKind.IMAGE_SEARCH] + [ActionKind.TEXT_SEARCH] * (not name)
        assert kinds == [*middle, ActionKind.ANSWER]


def test_the_number_of_results_varies_from_the_start(traces: list[Trajectory]) -> None:
    counts = Counter((o.tool, len(o.hits)) for trace in traces for o in trace.observations)
    assert set(counts) == {("image_search", k) for k in range(1, 6)} | {("text_search", k) for k in range(1, 4)}


def test_results_hold_the_truth_once_and_mostly_first(traces: list[Trajectory]) -> None:
    ranks: dict[str, list[int]] = {"image_search": [], "text_search": []}
    for trace in traces:
        if len(trace.turns) == 1:
            continue
        name = trace.turns[1].text.removeprefix("<reason> it is ").split("</reason>")[0]
        for observation in trace.observations:
            titles = [hit.title for hit in observation.hits]
            assert titles.count(name) == 1 and len(set(titles)) == len(titles)
            ranks[observation.tool].append(titles.index(name))
    for tool in ranks:
        assert 0.02 < sum(rank > 0 for rank in ranks[tool]) / len(ranks[tool]) < 0.25


def test_the_same_generator_state_writes_the_same_traces() -> None:
    one, two = (WRITER.batch(5, random.Random(7)) for _ in range(2))
    assert [trace.token_ids for trace in one] == [trace.token_ids for trace in two]


def test_the_mix_decides_the_shares() -> None:
    mix = TraceMix(known=1.0, search=1.0, shuffled_image=0.0, shuffled_text=0.0)
    for trace in TraceWriter(WORLD, PROTOCOL, mix).batch(40, random.Random(0)):
        assert trace.task.extra["group"] == "known" and len(trace.turns) > 1
        assert next(trace.observations).hits[0].title == trace.turns[0].text[len("<reason> it is ") :].split("<")[0]
