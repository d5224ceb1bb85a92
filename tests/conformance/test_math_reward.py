"""LMM-R1's reward against the recorded scores of its own server, in process and over HTTP, and ours beside it.

The scores were recorded with math-verify 0.5.2, and those for accuracy with 0.9.0 as well: where they differ, those of
the installed version count.

By default scores differ where upstream is wrong (`rewards/math.py` has the defects by number), and in a few spellings
that are read here and not there: `BETTER` lists them.
"""

import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version
from rewards_over_http import post, served

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.tags import last_enclosed
from mmsearch_trl.rewards.math import MathRule
from mmsearch_trl.rewards.responses import response_of, upstream_response
from mmsearch_trl.rewards.rule import Rollout
from mmsearch_trl.rewards.verify_pool import VerifyPool


Vector = dict[str, Any]
NEWER = Version(version("math-verify")) >= Version("0.9")
BETTER = {
    # Right here, and wrong upstream.
    22: r"spelling: 1\,000 is 1000",
    23: "spelling: 1 000 is 1000",
    29: r"spelling: \sqrt 8",
    64: "spelling: the degree sign",
    145: "spelling: a label that ends in a stop",
    121: "the last of several answers counts",
    57: "D-7",
    **dict.fromkeys((117, 131, 148), "D-8"),
    # Wrong here, and right upstream.
    192: "D-4",
    **dict.fromkeys((123, 134, 135, 171), "D-5"),
    140: "D-6",
    56: "D-7",
}
"""The vectors of this folder that are scored otherwise by default, and the defect of upstream's for which they are."""


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifyPool]:
    made = VerifyPool(seconds=20, processes=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def urls(pool: VerifyPool) -> Iterator[dict[str, str]]:
    """A server for each template, started when it is first needed."""
    with served(pool) as started:
        yield started


def accuracy(vector: Vector) -> float:
    return vector["acc_reward_math_verify_0_9_0"] if NEWER else vector["acc_reward"]


def test_upstreams_score_in_process(math_vector: Vector, pool: VerifyPool) -> None:
    vector = math_vector
    rule = MathRule(pool, compat=True, template=vector["template"])
    rollout = Rollout(messages=[], answers=[vector["label"]], query=lambda: vector["query"])
    assert upstream_response(vector["query"], vector["template"]) == vector["response"]
    [parts] = rule.score_batch([rollout], None)
    assert (0.5 * parts.format, parts.accuracy) == (vector["format_reward"], accuracy(vector))
    assert parts.reward == vector["format_reward"] + accuracy(vector)
    assert vector["version_sensitive"] or parts.reward == vector["reward"]


def test_upstreams_score_over_http(math_vector: Vector, urls: Any) -> None:
    vector = math_vector
    body = {"query": [vector["query"]], "prompts": ["p"], "labels": [vector["label"]]}
    status, answer = post(urls[vector["template"]], body)
    acc, form = accuracy(vector), vector["format_reward"]
    assert (status, answer) == (200, {"rewards": [form + acc], "format_rewards": [form], "acc_rewards": [acc]})


def test_the_default_differs_where_upstream_is_wrong(math_vector: Vector, pool: VerifyPool) -> None:
    vector = math_vector
    (form, ours), upstream = default(vector, pool), accuracy(vector)
    reason = "" if ours == upstream else BETTER.get(vector["id"]) or reason_of(vector, better=ours == 1.0)
    assert ours == upstream or reason, "scored otherwise for no defect of upstream's"
    assert vector["id"] not in BETTER or ours != upstream
    if vector["template"].startswith("phi"):
        assert (form, vector["format_reward"]) == (1.0, 0.0), "D-3"
    elif vector["response"] == response(vector).strip():
        assert 0.5 * form == vector["format_reward"]


def test_the_list_of_differences_is_whole(pool: VerifyPool) -> None:
    lines = (Path(__file__).parent / "vectors" / "lmmr1_math_vectors.jsonl").read_text(encoding="utf-8").splitlines()
    vectors = list(map(json.loads, lines))
    differing = {vector["id"] for vector in vectors if default(vector, pool)[1] != accuracy(vector)}
    assert differing == BETTER.keys()


def default(vector: Vector, pool: VerifyPool) -> tuple[float, float]:
    """Form and accuracy that we give; 0 where the row would have been refused."""
    rule, label = MathRule(pool), (vector["label"],)
    [parts] = rule.score([response(vector)], [label])
    return parts.format, 0.0 if rule.unusable([label]) else parts.accuracy


def response(vector: Vector) -> str:
    """What the model said; a query without a turn of the assistant is taken for it, as upstream does."""
    try:
        return response_of(vector["query"], vector["template"])
    except UserError:
        return vector["query"]


def reason_of(vector: Vector, *, better: bool) -> str:
    """For which of upstream's defects a vector is scored otherwise that the list does not have; "" for none."""
    said, label = response(vector), vector["label"]
    answer = last_enclosed(said, "answer")
    if not said:
        return "D-4"
    if answer is None or re.search(r"\\boxed|\$", said.partition("</think>")[0]):
        return "D-5"
    if re.search(r"\\(?:le|ge|lt|gt|infty)|[<>]", answer + label):
        return "D-7"
    if len(re.findall(r"\$[^$]+\$|\\boxed", answer)) > 1:
        return "the last of several answers counts"
    if not better:
        return "D-6" if re.fullmatch(r"[\s$?.\\{}]*", label) else ""
    return "spelling" if re.search(r"\\boxed|\$", answer) else "D-8"
