"""Rewards from servers: pieces of a batch, tries again, and what ends a run."""

import asyncio
import json
import time
from typing import Any

import pytest
from rewards_over_http import fake_server, served
from search.over_http import free_port

from mmsearch_trl.core.errors import RewardError, UserError
from mmsearch_trl.rewards import remote
from mmsearch_trl.rewards.remote import REWARD_TOKEN, RemoteConfig, RemoteReward, check_servers
from mmsearch_trl.rewards.verify_pool import VerifyPool


def numbers(body: dict[str, Any], number: int) -> tuple[int, Any]:
    return 200, {"rewards": [float(query) for query in body["query"]]}


def rewards(*urls: str, count: int = 5, log: Any = None, **options: Any) -> list[float | None]:
    reward = RemoteReward(RemoteConfig(url=urls, **options))
    given: dict[str, Any] = {
        "prompts": [[{"role": "user", "content": "?"}]] * count,
        "queries": [str(number) for number in range(count)],
        "answers": [["gold", "other"]] * (count - 1) + [[]] if count else [],
    }
    return asyncio.run(reward(**given, log_metric=log, completions=[]))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSE_S", 0.01)
    monkeypatch.delenv(REWARD_TOKEN, raising=False)


def test_a_batch_is_parted_over_the_servers_in_its_order() -> None:
    with fake_server(numbers) as (first, asked), fake_server(numbers) as (second, also_asked):
        assert rewards(first, second) == [0.0, 1.0, 2.0, 3.0, 4.0]
        assert [body["query"] for body in asked + also_asked] == [["0", "1", "2"], ["3", "4"]]
        assert asked[0]["labels"] == ["gold"] * 3 and also_asked[0]["labels"] == ["gold", ""]
        assert json.loads(asked[0]["prompts"][0]) == [{"role": "user", "content": "?"}] and asked[0]["token"] is None
        assert rewards(first, second, count=1) == [0.0] and rewards(first, second, count=0) == []


def test_a_key_and_a_token_of_ones_own_and_what_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(REWARD_TOKEN, "secret-token")
    logged: dict[str, float] = {}
    answer = {"scores": [1, 0.5, None, 2, 3], "acc_rewards": [1.0, 0.0, 1.0, 0.0, 0.0], "note": "hello"}
    with fake_server(lambda body, number: (200, answer)) as (url, asked):
        assert rewards(url, score_key="scores", log=logged.__setitem__) == [1, 0.5, None, 2, 3]
        assert asked[0]["token"] == "Bearer secret-token" and logged == {"reward/remote/acc_rewards": 0.4}


@pytest.mark.parametrize(
    "first",
    [(500, b"oops"), (503, {}), (429, {}), (200, b"<html>"), (200, {"scores": []}), (200, {"rewards": [1.0]})],
    ids=str,
)
def test_a_server_that_fails_is_asked_again(first: tuple[int, Any]) -> None:
    with fake_server(lambda body, number: first if number < 3 else numbers(body, number)) as (url, asked):
        assert rewards(url) == [0.0, 1.0, 2.0, 3.0, 4.0] and len(asked) == 3


@pytest.mark.parametrize(
    ("answer", "says", "tries"),
    [
        ((500, b"oops"), "gave no reward in 3 tries: status 500: oops", 3),
        ((200, {"rewards": ["a"] * 5}), "'rewards' of the answer is no list of 5 numbers", 3),
        ((200, [1.0] * 5), "has no 'rewards' .reward.remote.score_key.", 3),
        ((400, {"error": "labels.4: empty"}), "refuses what it is sent, status 400: .*labels.4: empty", 1),
        ((302, b""), "status 302", 1),
    ],
)
def test_a_run_ends_with_the_address_where_nothing_helps(answer: tuple[int, Any], says: str, tries: int) -> None:
    with fake_server(lambda body, number: answer) as (url, asked), pytest.raises(RewardError, match=says) as told:
        rewards(url, tries=3)
    assert url in str(told.value) and len(asked) == tries


def test_a_server_that_is_too_slow_is_given_up() -> None:
    def slowly(body: dict[str, Any], number: int) -> tuple[int, Any]:
        time.sleep(0.3)
        return numbers(body, number)

    with fake_server(slowly) as (url, _), pytest.raises(RewardError, match=r"2 tries: no answer within 0.1 s"):
        rewards(url, tries=2, timeout_s=0.1)


def test_a_dead_server_is_noticed_at_once_and_its_key_is_not_told() -> None:
    start = time.perf_counter()
    url = f"http://user:secret@127.0.0.1:{free_port()}/get_reward?api_key=secret"
    with pytest.raises(UserError, match=r"127.0.0.1:\d+/get_reward.* is not there .*mmsearch serve reward") as told:
        asyncio.run(check_servers(RemoteConfig(url=(url,))))
    assert time.perf_counter() - start < 5 and "secret" not in str(told.value)
    with pytest.raises(RewardError, match="2 tries: ClientConnector") as told_later:
        rewards(url, tries=2)
    assert "secret" not in str(told_later.value)


def test_one_of_ours_is_found_with_its_token_and_on_its_path(
    pool: VerifyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(pool, compat=False, token="abcdefgh") as started:
        url = started["chatml"]
        with pytest.raises(UserError, match=f"wants a token: set {REWARD_TOKEN}"):
            asyncio.run(check_servers(RemoteConfig(url=(f"{url}/get_reward",))))
        monkeypatch.setenv(REWARD_TOKEN, "abcdefgh")
        asyncio.run(check_servers(RemoteConfig(url=(f"{url}/get_reward",))))
        with pytest.raises(UserError, match="has no such path: most end in /get_reward"):
            asyncio.run(check_servers(RemoteConfig(url=(f"{url}/rewards",))))
        reward = RemoteReward(RemoteConfig(url=(f"{url}/get_reward",)))
        queries = [f"<|im_start|>assistant\n<think>t</think><answer>{number}</answer>" for number in (60, 61)]
        made = asyncio.run(reward(prompts=["p", "p"], queries=queries, answers=[["60"]] * 2))
        assert made == [1.5, 0.5]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"url": ()}, "names no server"),
        ({"url": ("localhost:5000",)}, "is no address"),
        ({"url": ("http://",)}, "is no address"),
        ({"url": ("http://h:99999/",)}, "is no address"),
        ({"url": ("http://h/",), "timeout_s": 0}, "timeout_s must be over 0"),
        ({"url": ("http://h/",), "timeout_s": float("nan")}, "timeout_s must be over 0"),
        ({"url": ("http://h/",), "tries": 0}, "tries must be at least 1"),
    ],
)
def test_a_section_that_cannot_be_meant_is_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        RemoteConfig(**values)
