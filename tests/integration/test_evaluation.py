"""Every way to evaluate a model gives the rows that its trainer gives: in one process and two, on each engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from forks import TWO, Forks
from peft import LoraConfig, get_peft_model
from runs import grpo_arguments, write_jsonl
from servers import ENGINE_ARGS, Servers, environment, post
from transformers import AutoModelForImageTextToText, AutoProcessor

from mmsearch_trl import train
from mmsearch_trl.commands.main import main
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.recipe import load_recipe


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
Row = dict[str, Any]


@pytest.fixture(scope="module")
def adapter(taught: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter on the taught model that changes what it says, and that vLLM can apply by itself."""
    folder = tmp_path_factory.mktemp("adapter")
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(AutoModelForImageTextToText.from_pretrained(taught, dtype=torch.float32), config)
    model.save_pretrained(str(folder))
    AutoProcessor.from_pretrained(taught).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(world_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = world_home / "world"
    rows = [
        json.loads(line)
        for name, count in (("known", 6), ("held_out", 2))
        for line in (world / f"{name}.jsonl").read_text().splitlines()[:count]
    ]
    rows = [row | {"image": str(world / row["image"])} for row in rows]
    return write_jsonl(tmp_path_factory.mktemp("data") / "eight.jsonl", rows)


@pytest.mark.parametrize("kind", ["base", "adapter"])
def test_every_path_gives_the_rows_of_the_trainer(
    kind: str,
    world_home: Path,
    taught: Path,
    adapter: Path,
    data: Path,
    servers: Servers,
    forks: Forks,
    tmp_path: Path,
) -> None:
    model = {"base": taught, "adapter": adapter}[kind]

    def arguments(name: str, **options: Any) -> list[str]:
        values: dict[str, Any] = {"model_name_or_path": model, "eval_files": data, "eval_temperature": 0}
        values |= {"vllm_lora_sync": "adapter"} if kind == "adapter" else {}
        return grpo_arguments(world_home, tmp_path / name, **(values | options))

    start = {"from_adapter": "continue", "use_peft": "true"} if kind == "adapter" else {}
    trainer = train.build_trainer(load_recipe(*recipe_arguments(arguments("trainer", **start))))
    metrics = trainer.evaluate()
    trainer.close()
    expected = _rows(tmp_path / "trainer" / "evaluation" / "eval_eight_step0_8.json")
    assert [row["id"] for row in expected] == [json.loads(line)["id"] for line in data.read_text().splitlines()]
    if kind == "base":
        assert any("image_search" in row["actions"] for row in expected)
    else:
        assert main(["eval", *arguments("base", model_name_or_path=taught)]) == 0
        assert _rows(tmp_path / "base" / "evaluation" / "eight_8.json") != expected, "the adapter does something"

    assert main(["eval", *arguments("one")]) == 0
    forks.launch(TWO, "mmsearch_trl.evaluate", *arguments("two", ddp_backend="gloo"), folder=tmp_path)
    with environment():
        url = servers.url(FAMILY)
        # An adapter goes to the server alone, and so the server must be one of its base model.
        post(url, "/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(taught)}})
        post(url, "/collective_rpc", {"method": "repack_heads"})
        vllm = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": url}
        assert main(["eval", *arguments("server", **vllm)]) == 0
        vllm = {"use_vllm": True, "vllm_mode": "colocate", "vllm_engine_args": json.dumps(ENGINE_ARGS)}
        assert main(["eval", *arguments("colocate", **vllm, vllm_enable_sleep_mode=False)]) == 0
    for name in ("one", "two", "server", "colocate"):
        assert _rows(tmp_path / name / "evaluation" / "eight_8.json") == expected, name
        summary = json.loads((tmp_path / name / "evaluation" / "summary.json").read_text())
        overall = summary["data"]["eight"]["overall"]
        flat = {f"eval_eight_{key}": value for key, value in overall.items() if key != "tools"}
        assert flat.items() <= metrics.items() and overall["tools"] == {}, name


def _rows(path: Path) -> list[Row]:
    """Without what a clock says."""
    return [row | {"seconds": None} for row in json.loads(path.read_text())]
