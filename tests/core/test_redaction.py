"""No secret is written down, and nothing else is taken for one."""

from dataclasses import fields
from typing import Any

import pytest

from mmsearch_trl.core.redaction import REDACTED, redacted
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


SECRET = "Sesame0pen4me"
VALUES: list[Any] = [
    {"api_key": SECRET},
    {"API-Key": SECRET, "x-api-key": SECRET, "apiKey": SECRET},
    {"text": {"headers": {"Authorization": f"Bearer {SECRET}"}, "password": SECRET, "client_secret": SECRET}},
    {"backends": [{"token": SECRET}, {"hub_token": SECRET}, ({"hf_token": SECRET},)]},
    {"key": 123456, "passphrase": SECRET.encode()},
    {"model_init_kwargs": {"token": SECRET, "revision": "main"}},
    f"http://user:{SECRET}@retriever.example:8000/retrieve",
    f"https://{SECRET}@host.example/a",
    f"postgres://u:p@{SECRET}@host.example/a",
    f"http://host.example/mcp?api_key={SECRET}&k=3",
    f"http://host.example/mcp?k=3&token={SECRET}#a",
    f"https://host.example/x?sig=1;access_token={SECRET}",
    f"npx search-server --api-key {SECRET} --k 3",
    f"npx search-server --api_key={SECRET}",
    f"env SERPAPI_API_KEY={SECRET} python server.py",
    f"curl -H 'Authorization: Bearer {SECRET * 2}' http://host.example",
    f"Authorization: {SECRET}",
    '{"api_key": "' + SECRET + '", "k": 3}',
    f"password = {SECRET}",
    [f"http://a:{SECRET}@one.example", {"two": f"http://a:{SECRET}@two.example"}],
]
SHAPES = [
    *("hf_" + "aB3" * 12, "sk-proj-" + "aB3_" * 9, "ghp_" + "a1" * 18, "github_pat_" + "a1_" * 9, "AKIA" + "A1B2" * 4),
    *("AIza" + "a-B_1" * 7, "xoxb-1234567890-" + "ab" * 6, "jina_" + "0a" * 16, "tvly-" + "a1" * 10),
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abcdefghijk",
]
INNOCENT: list[Any] = [
    {"max_tokens": 512, "pad_token": "<pad>", "eos_token": "</s>", "tokenizer": "a", "keys": [1], "monkey": "b"},
    {"api_key": None, "password": "", "token": True, "report_to": "wandb"},
    "http://127.0.0.1:8000/retrieve?k=3&page=2#a@b",
    "recipe.yaml: unknown key: `learning_rat`; did you mean `learning_rate`?",
    "search.text.server: the key `search.text.path` is missing",
    "mail someone@host.example about the basic search for understanding",
    "max_tokens=512, key=lambda row: row, tokens: 3, --max_prompt_tokens 8",
    "git@github.com:a/b.git and http://[::1]:8000/a",
    "a secret that nobody knows; the password is not told",
    "token 17 of 20, the token: <|im_end|>",
    3,
    None,
    2.5,
    b"bytes",
]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SERPAPI_API_KEY", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_secret_is_left_out_wherever_it_stands(value: Any) -> None:
    clean = redacted(value)
    assert SECRET not in str(clean) and REDACTED in str(clean)
    assert redacted(clean) == clean and type(clean) is type(value)


def test_the_rest_of_a_text_stays() -> None:
    assert redacted(VALUES[6]) == f"http://{REDACTED}@retriever.example:8000/retrieve"
    assert redacted(VALUES[9]) == f"http://host.example/mcp?api_key={REDACTED}&k=3"
    assert redacted(VALUES[12]) == f"npx search-server --api-key {REDACTED} --k 3"
    assert redacted({"a": 1, "b": [{"token": "x", "c": "d"}]}) == {"a": 1, "b": [{"token": REDACTED, "c": "d"}]}


@pytest.mark.parametrize("token", SHAPES)
def test_tokens_of_known_services_are_told_by_their_beginning(token: str) -> None:
    assert redacted(f"it says {token}, twice") == f"it says {REDACTED}, twice"


def test_what_a_variable_of_the_environment_keeps_secret_is_no_less_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MMSEARCH_RETRIEVER_TOKEN", "open-the-door")
    monkeypatch.setenv("SHORT_KEY", "a")
    monkeypatch.setenv("SSL_KEY", __file__)
    assert redacted(f"refused: open-the-door, a, {__file__}") == f"refused: {REDACTED}, a, {__file__}"


@pytest.mark.parametrize("value", INNOCENT, ids=str)
def test_nothing_else_is_touched(value: Any) -> None:
    assert redacted(value) == value


def test_of_all_training_arguments_only_the_hub_s_token_is_a_secret_by_its_name() -> None:
    values = {item.name: "x" for item in fields(MMSearchGRPOConfig)}
    assert [name for name, value in redacted(values).items() if value == REDACTED] == ["hub_token"]
