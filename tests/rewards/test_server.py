"""The reward server: OpenRLHF's contract, and what it refuses; `tests/conformance` has the scores under compat."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
from rewards_over_http import Started, post, served
from search.over_http import get

from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards.server import REWARD_TOKEN, serve
from mmsearch_trl.rewards.verify_pool import VerifyPool


SAID = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n{}<|im_end|>"
GOOD = SAID.format("<think>t</think><answer>60</answer>")


@pytest.fixture(scope="module")
def ours(pool: VerifyPool) -> Iterator[Started]:
    with served(pool, compat=False) as started:
        yield started


def body(*queries: str, labels: Any = None) -> dict[str, Any]:
    return {"query": list(queries), "prompts": ["p"] * len(queries), "labels": labels or ["60"] * len(queries)}


def test_a_batch_is_scored_in_its_order(ours: Any) -> None:
    wrong, silent = SAID.format("<think>t</think><answer>61</answer>"), SAID.format("")
    status, answer = post(ours["chatml"], body(GOOD, wrong, silent))
    assert (status, answer) == (
        200,
        {"rewards": [1.5, 0.5, 0.0], "format_rewards": [0.5, 0.5, 0.0], "acc_rewards": [1.0, 0.0, 0.0]},
    )
    assert post(ours["chatml"], body()) == (200, {"rewards": [], "format_rewards": [], "acc_rewards": []})


@pytest.mark.parametrize(
    ("template", "query"),
    [
        ("phi3", "<|user|>\nq<|end|>\n<|assistant|>\n{}<|end|>"),
        ("phi4", "<|user|>q<|end|><|assistant|>\n{}<|end|>"),
        ("gemma3", "<start_of_turn>user\nq<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>"),
        ("qwen1", "<\uff5cUser\uff5c>q<\uff5cAssistant\uff5c>{}<\uff5cend\u2581of\u2581sentence\uff5c>"),
        ("base", "User: q\n\nAssistant: {}"),
        ("chatml", "<|im_start|>assistant\nfirst<|im_end|>\n<|im_start|>assistant\n{}<|im_end|><|endoftext|>"),
    ],
)
def test_the_response_is_found_in_every_template(template: str, query: str, ours: Any) -> None:
    answered = query.format("<think>t</think><answer>60</answer>")
    assert post(ours[template], body(answered)) == (
        200,
        {"rewards": [1.5], "format_rewards": [0.5], "acc_rewards": [1.0]},
    )


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"query": [GOOD], "prompts": ["p"]}, "labels"),
        ({"prompts": ["p"], "labels": ["60"]}, "query"),
        ({"query": [GOOD], "prompts": [None], "labels": ["60"]}, "prompts.0"),
        ({"query": [GOOD], "prompts": ["p"], "labels": [60]}, "labels.0"),
        ({"query": GOOD, "prompts": ["p"], "labels": ["60"]}, "query"),
        ({"query": [GOOD], "prompts": ["p"], "labels": []}, "of one length"),
        (body(GOOD, GOOD, labels=["60", "???"]), "labels.1: .*'[?]{3}' is no expression"),
        (body(GOOD, labels=[""]), "labels.0"),
        (body("no turn at all"), "query.0: .*no turn of the assistant"),
        ([1], "the body"),
        (b"{", "no JSON"),
        (b"\xff", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (json.dumps({"query": [math.nan]}).encode(), "no JSON"),
        (b"[" + b"0," * 6_000_000 + b"0]", "values"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_is_wrong_with_a_request_is_told_with_400(wanted: Any, says: str, ours: Any) -> None:
    status, answer = post(ours["chatml"], wanted)
    assert status == 400 and list(answer) == ["error"]
    assert re.search(says, answer["error"]), answer


def test_the_form_need_not_be_paid_and_a_token_is_asked_for(pool: VerifyPool) -> None:
    with served(pool, format_weight=0.0, token="secret-token") as started:
        url = started["chatml"]
        assert post(url, body(GOOD))[0] == 401
        right = SAID.format("<think>t</think><answer>$60$</answer>")
        status, answer = post(url, body(right), Authorization="Bearer secret-token")
        assert (status, answer) == (200, {"rewards": [1.0], "format_rewards": [0.0], "acc_rewards": [1.0]})
        health = json.loads(get(url, "/health"))
        assert health == {"status": "ok", "rule": "math", "compat": "lmm_r1", "template": "chatml"}


def test_others_are_served_only_with_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REWARD_TOKEN, raising=False)
    with pytest.raises(UserError, match=f"others can reach 0.0.0.0: set {REWARD_TOKEN}"):
        serve(host="0.0.0.0", port=0, seconds=1.0)


def test_options_of_the_command_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "reward", "--template", "llama"])
    assert "chatml" in capsys.readouterr().err
    assert main(["serve", "reward", "--timeout_s", "61"]) == 1
    assert "--timeout_s must be over 0 and at most 60, got 61" in capsys.readouterr().err
