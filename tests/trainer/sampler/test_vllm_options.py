"""What follows from a trainer's arguments for vLLM."""

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
from fake_vllm import configuration
from peft import LoraConfig, get_peft_model
from torch import nn

from mmsearch_trl.core.errors import EngineError
from mmsearch_trl.engine.vllm_client import ServerInfo, images_per_prompt
from mmsearch_trl.engine.vllm_worker import EXTENSION
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.sampler.vllm_options import check_server, logprobs_mode, sends_adapter


URL = "http://127.0.0.1:8000"
LANGUAGE = r".*language_model.*_proj"
ANYWHERE = r".*\.(q_proj|qkv)"


def config(folder: Path, **options: Any) -> MMSearchGRPOConfig:
    return MMSearchGRPOConfig(str(folder), use_cpu=True, bf16=False, **options)


def info(**changes: Any) -> ServerInfo:
    """A server on a CPU as `mmsearch vllm` starts it."""
    settings: dict[str, Any] = {
        "model": "some/model",
        "max_model_len": 1024,
        "logprobs_mode": "raw_logprobs",
        "max_lora_rank": None,
        "weight_transfer": None,
        "chunked_prefill": False,
        "worker_extension": EXTENSION,
        "device": "cpu",
    }
    return ServerInfo(**(settings | changes))


def adapted(targets: str = LANGUAGE, rank: int = 4) -> nn.Module:
    return get_peft_model(tiny.qwen25().model(), LoraConfig(r=rank, lora_alpha=8, target_modules=targets))


@pytest.mark.parametrize(
    ("options", "urls"),
    [
        ({}, ["http://127.0.0.1:8000"]),
        ({"vllm_server_host": "node7", "vllm_server_port": 81}, ["http://node7:81"]),
        ({"vllm_server_base_url": "https://x.org/v", "vllm_server_port": 81}, ["https://x.org/v"]),
        (
            {"vllm_server_urls": ["http://a:1", "http://b:2"], "vllm_server_base_url": "http://c"},
            ["http://a:1", "http://b:2"],
        ),
    ],
)
def test_servers_are_at_our_list_or_else_where_trl_looks(
    options: dict[str, Any], urls: list[str], tmp_path: Path
) -> None:
    assert list(config(tmp_path, **options).sampler_options().vllm_server_urls) == urls


def test_log_probs_are_raw_at_temperature_1_only() -> None:
    modes = [logprobs_mode(temperature) for temperature in (0.0, 0.7, 1.0, 1.2)]
    assert modes == ["processed_logprobs", "processed_logprobs", "raw_logprobs", "processed_logprobs"]


@pytest.mark.parametrize(
    ("server", "temperature"),
    [
        (info(), 1.0),
        (info(logprobs_mode="processed_logprobs"), 1.0),
        (info(logprobs_mode="processed_logprobs"), 0.7),
        (info(device="cuda", chunked_prefill=True, worker_extension=""), 1.0),
    ],
)
def test_a_server_with_the_right_flags_is_taken(server: ServerInfo, temperature: float) -> None:
    check_server(URL, server, temperature)


@pytest.mark.parametrize(
    ("server", "temperature", "flag"),
    [
        (info(), 0.7, "--logprobs-mode processed_logprobs"),
        (info(logprobs_mode="raw_logits"), 1.0, "--logprobs-mode raw_logprobs"),
        (info(logprobs_mode="processed_logits"), 0.7, "--logprobs-mode processed_logprobs"),
        (info(chunked_prefill=True), 1.0, "--no-enable-chunked-prefill"),
        (info(worker_extension=""), 1.0, f"--worker-extension-cls {EXTENSION}"),
        (info(device="cuda", logprobs_mode="raw_logits"), 1.0, "--logprobs-mode raw_logprobs"),
    ],
)
def test_a_refused_server_is_told_the_flag(server: ServerInfo, temperature: float, flag: str) -> None:
    with pytest.raises(EngineError) as caught:
        check_server(URL, server, temperature)
    assert str(caught.value).startswith(URL) and flag in str(caught.value)


@pytest.mark.parametrize("sync", ["auto", "adapter"])
def test_an_adapter_that_vllm_can_apply_is_sent_alone(sync: str) -> None:
    assert sends_adapter(adapted(), sync, 4)


def test_merged_weights_are_sent_when_asked_for() -> None:
    assert not sends_adapter(adapted(), "merged", 4)


@pytest.mark.parametrize(
    ("targets", "rank", "max_rank", "reason"),
    [
        (LANGUAGE, 4, None, "the server was started without --enable-lora"),
        (LANGUAGE, 4, 2, "rank 4 is over the sampler's highest, 2"),
        (ANYWHERE, 4, 4, "language model's layers only"),
    ],
)
def test_an_adapter_that_vllm_cannot_apply_is_merged_and_the_reason_told(
    targets: str, rank: int, max_rank: int | None, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = adapted(targets, rank)
    with caplog.at_level(logging.WARNING):
        assert not sends_adapter(model, "auto", max_rank)
    assert "merged weights instead of the adapter alone" in caplog.text and reason in caplog.text
    with pytest.raises(ValueError, match=r"^vllm_lora_sync: adapter, but .*Set it to merged or auto") as caught:
        sends_adapter(model, "adapter", max_rank)
    assert reason in str(caught.value)


def test_a_model_without_an_adapter_is_sent_whole_and_that_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.qwen25().model()
    with caplog.at_level(logging.WARNING):
        assert not sends_adapter(model, "auto", 4)
    assert caplog.text == ""
    with pytest.raises(ValueError, match="the model has no adapter"):
        sends_adapter(model, "adapter", 4)


@pytest.mark.parametrize(
    ("limits", "images"), [({}, None), ({"image": 3}, 3), ({"image": {"count": 1}}, 1), ({"video": 0}, None)]
)
def test_the_pictures_that_a_prompt_may_hold_are_read_in_both_ways(limits: dict[str, Any], images: int | None) -> None:
    model = configuration()["model_config"] | {"multimodal_config": {"limit_per_prompt": limits}}
    assert ServerInfo.parse(configuration(model_config=model)).max_images == images == images_per_prompt(limits)


def test_a_language_model_s_server_says_nothing_of_pictures() -> None:
    model = configuration()["model_config"] | {"multimodal_config": None}
    assert ServerInfo.parse(configuration(model_config=model)).max_images is None
