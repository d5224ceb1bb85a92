"""What is wrong with a run is told before a model is loaded: by `mmsearch check`, and by the run itself."""

import json
import shutil
from pathlib import Path
from typing import Any, NoReturn

import pytest
from runs import grpo_arguments, sft_arguments, write_jsonl

from mmsearch_trl import evaluate, sft, train
from mmsearch_trl.commands.main import main
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe import build
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.finding import Finding, Level
from mmsearch_trl.recipe.memory import Demand, Sharding, memory_of
from mmsearch_trl.recipe.model_shape import model_shape
from mmsearch_trl.recipe.preflight import Preflight
from mmsearch_trl.recipe.recipe import load_recipe


EVERY_STEP = {"eval_strategy": "steps", "save_strategy": "steps"}
PROBLEMS: dict[str, tuple[dict[str, Any], str]] = {
    "evaluations without data": ({"eval_strategy": "epoch", "eval_files": "[]"}, "eval_files is empty"),
    "an evaluation at the start without data": ({"eval_on_start": True, "eval_files": "[]"}, "eval_on_start needs"),
    "the best by a loss": (EVERY_STEP | {"load_best_model_at_end": True}, "evaluations have no 'loss'"),
    "a mistyped metric": (
        EVERY_STEP | {"load_best_model_at_end": True, "metric_for_best_model": "known_acuracy"},
        "did you mean known_accuracy?",
    ),
    "the best, saved by a mistyped metric": (
        {"eval_strategy": "steps", "save_strategy": "best", "metric_for_best_model": "reward"},
        "evaluations have no 'reward'; did you mean known_reward?",
    ),
    "a schedule without its argument": ({"lr_scheduler_kwargs": "null", "max_steps": 7}, "num_decay"),
    "an argument of another schedule": (
        {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": "{power: 2}"},
        "lr_scheduler_type: cosine with lr_scheduler_kwargs",
    ),
    "a schedule's argument of another type": ({"lr_scheduler_kwargs": "{num_decay_steps: few}"}, "num_decay_steps"),
    "a sigmoid out of range": ({"lr_sigmoid_ratio": 1.5}, "the sigmoid decay ratio must be from 0 to 1"),
    "an optimizer that is not installed": ({"optim": "adamw_8bit"}, "optim: adamw_8bit"),
    "an optimizer's argument": ({"optim": "adamw_torch", "optim_args": "novalue"}, "optim: adamw_torch"),
    "more rollouts than data": ({"per_device_train_batch_size": 8000}, "and the training data hold 900"),
    "a mistyped LoRA target": (
        {"use_peft": True, "lora_target_modules": "[q_proj, v_porj]"},
        "no module of the model is, or matches, 'v_porj'; did you mean `v_proj`?",
    ),
    "the only LoRA target": (
        {"use_peft": True, "lora_target_modules": "[q_porj]"},
        "no module of the model is, or matches, 'q_porj'; did you mean `q_proj`?",
    ),
    "a LoRA target by a pattern": (
        {"use_peft": True, "lora_target_modules": r"['.*\.visual\.q_proj']"},
        "no module of the model is, or matches",
    ),
    "one LoRA target of several by a pattern": (
        {"use_peft": True, "lora_target_modules": r"[q_proj, '.*\.visual\.q_proj']"},
        "no module of the model is, or matches, '.*",
    ),
    "a LoRA target as files are named": (
        {"use_peft": True, "lora_target_modules": "['*_proj']"},
        "lora_target_modules: '*_proj' is no pattern (nothing to repeat at position 0); .* stands for any text",
    ),
    "an excluded module as files are named": (
        {"use_peft": True, "lora_target_modules": "[q_proj, v_proj]", "lora_exclude_modules": "['*visual*']"},
        "lora_exclude_modules: '*visual*' is no pattern",
    ),
    "an adapter without targets": ({"use_peft": True}, "lora_target_modules: the adapter does not fit"),
    "an excluded module": (
        {"use_peft": True, "lora_target_modules": "[q_proj, v_proj]", "lora_exclude_modules": "[vizual]"},
        "lora_exclude_modules: no module of the model is, or matches, 'vizual'; did you mean `visual`?",
    ),
    "all of the adapter excluded": (
        {"use_peft": True, "lora_target_modules": "[q_proj, v_proj]", "lora_exclude_modules": "[language_model]"},
        "lora_target_modules: the adapter does not fit",
    ),
    "a prefix that freezes nothing": ({"freeze_prefix": "[vizual]"}, "freeze_prefix: 'vizual' is the beginning of no"),
    "prefixes that freeze all": ({"freeze_prefix": "[language_model]"}, "nothing is left to train"),
    "an adapter that is frozen": (
        {"use_peft": True, "lora_target_modules": "[qkv, proj]"},
        "freeze_vision: nothing is left to train",
    ),
    "from_adapter of a whole model": ({"from_adapter": "merge"}, "is a whole model, with no adapter_config.json"),
    "a module to save": (
        {"use_peft": True, "lora_target_modules": "[q_proj, v_proj]", "lora_modules_to_save": "[score]"},
        "lora_modules_to_save: no module of the model is",
    ),
    "an adapter on the head": ({"use_peft": True, "lora_target_modules": "[lm_head]"}, "lm_head cannot be adapted"),
    "an attention that there is not": ({"attn_implementation": "sdqa"}, "sdqa"),
    "a model that is not there": ({"model_name_or_path": "runs/a/b/c"}, "there is no folder runs/a/b/c"),
}


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: object) -> NoReturn:
        pytest.fail("a model was loaded")

    for module in (train, sft):
        monkeypatch.setattr(module, "load_start", load)
    monkeypatch.setattr(evaluate, "load_agent", load)


def findings(home: Path, out: Path, **overrides: Any) -> list[Finding]:
    path, values = recipe_arguments(grpo_arguments(home, out, **overrides))
    return list(Preflight(load_recipe(path, values)).findings())


def problem(found: list[Finding]) -> str:
    [problem] = [each.found for each in found if each.level is Level.PROBLEM]
    return problem


def test_a_recipe_without_a_problem_is_told_piece_by_piece(world_home: Path, tmp_path: Path) -> None:
    found = {each.name: each for each in findings(world_home, tmp_path / "run")}
    assert {each.level for each in found.values()} == {Level.OK}
    batches = (
        "16 prompts x 8 = 128 samples, 1 update of 128, 56 rollouts an epoch, 100 updates in all on 900 questions, "
        "in one process"
    )
    assert found["batches"].found == batches
    assert found["data: train.jsonl"].found.startswith("900 rows; of the first 20, 20 with images")
    assert "qwen2_5_vl" in found["adapter and attention"].found
    assert found["image search"].found == "index, ready, 234 entries"
    assert "warmup_stable_decay, 10 warm-up steps of 100" in found["learning rate"].found


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_problem_is_told_and_the_run_refuses_it_before_anything_is_loaded(
    name: str, world_home: Path, tmp_path: Path
) -> None:
    overrides, message = PROBLEMS[name]
    path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run", **overrides))
    with pytest.raises(UserError) as refused:
        train.main(path, values)
    assert message in str(refused.value), str(refused.value)
    assert len(str(refused.value)) < 900
    assert not (tmp_path / "run").exists()
    if name != "a model that is not there":
        assert message in problem(findings(world_home, tmp_path / "run", **overrides))


def test_a_server_of_searches_that_is_not_there_is_told(world_home: Path, tmp_path: Path) -> None:
    path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run"))
    values = {key: value for key, value in values.items() if not key.startswith("search.text")}
    values |= {"search.text.backend": "retriever", "search.text.url": "http://127.0.0.1:9"}
    preflight = Preflight(load_recipe(path, values))
    assert "the search backend retriever cannot be used: the service is not there" in problem([*preflight.findings()])


def test_a_vllm_server_that_is_not_there_yet_is_a_warning_and_an_address_without_scheme_a_problem(
    world_home: Path, tmp_path: Path
) -> None:
    there = {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://127.0.0.1:9"}
    found = findings(world_home, tmp_path / "run", **there)
    [warning] = [each for each in found if each.level is Level.WARNING]
    assert warning.name == "vLLM: http://127.0.0.1:9" and "mmsearch vllm MODEL" in warning.found
    found = findings(world_home, tmp_path / "run", **(there | {"vllm_server_base_url": "127.0.0.1:9"}))
    assert "http:// or https:// is missing" in problem(found)


def test_a_check_writes_nothing_and_asks_no_server_where_a_run_would_not(world_home: Path, tmp_path: Path) -> None:
    path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run"))
    values = {key: value for key, value in values.items() if not key.startswith("search.text")}
    values |= {"search.text.backend": "retriever", "search.text.url": "http://127.0.0.1:9"}
    values |= {"search.cache": str(tmp_path / "cache" / "answers.sqlite"), "search.cache_mode": "replay"}
    assert {each.level for each in Preflight(load_recipe(path, values)).findings()} == {Level.OK}
    assert not (tmp_path / "cache").exists() and not (tmp_path / "run").exists()


def test_a_damaged_index_is_told(world_home: Path, tmp_path: Path) -> None:
    index = shutil.copytree(world_home / "world" / "image_index", tmp_path / "index")
    lines = (index / "hits.jsonl").read_text().splitlines(keepends=True)
    (index / "hits.jsonl").write_text("".join(lines[:-3]))
    message = problem(findings(world_home, tmp_path / "run", **{"search.image.path": index}))
    assert "search.image: the index is damaged (234 entries were expected, 231 are there)" in message


def test_data_that_do_not_fit_the_model_or_the_recipe_are_told(world_home: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (world_home / "world" / "known.jsonl").read_text().splitlines()]
    blind = write_jsonl(tmp_path / "blind.jsonl", [{"question": r["question"], "answers": r["answers"]} for r in rows])
    found = findings(world_home, tmp_path / "run", eval_files=blind)
    [warning] = [each.found for each in found if each.level is Level.WARNING]
    assert warning == "the recipe searches by image, and none of the first questions has one"
    found = findings(world_home, tmp_path / "run", max_prompt_length=5)
    assert sum("max_prompt_length is 5" in each.found for each in found if each.level is Level.PROBLEM) == 2
    broken = write_jsonl(tmp_path / "broken.jsonl", [{"question": "what?", "answer": "Ann"}, {"question": "who?"}])
    assert "broken.jsonl, line 2" in problem(findings(world_home, tmp_path / "run", eval_files=broken))


def test_an_evaluation_needs_no_trainer(world_home: Path, tmp_path: Path) -> None:
    overrides = {"lr_scheduler_kwargs": "{gone: 1}", "train_files": "gone.jsonl"}
    path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run", **overrides))
    found = list(Preflight(load_recipe(path, values), evaluation=True).findings())
    assert {each.level for each in found} == {Level.OK}
    assert {each.name for each in found} >= {"model", "data: known.jsonl", "image search", "text search"}


def test_the_memory_of_a_run_is_what_the_doctor_computes(world_home: Path, tmp_path: Path) -> None:
    lora = {"use_peft": True, "lora_r": 4, "lora_target_modules": "[q_proj,v_proj]", "freeze_vision": True}
    whole = {"freeze_vision": False}
    states, shapes = {}, {}
    for name, keys in {
        "full": whole,
        "sgd": whole | {"optim": "sgd", "beta": 0.1},
        "lora": {"beta": 0.1} | lora,
    }.items():
        path, values = recipe_arguments(grpo_arguments(world_home, tmp_path / "run", **keys))
        recipe = load_recipe(path, values)
        args = recipe.trainer
        shapes[name] = model_shape(recipe.model, freeze_vision=args.freeze_vision)
        memory = memory_of(shapes[name], Demand.of(recipe, bf16=False), Sharding.NONE, 1)
        states[name] = memory.states * 2**30
        said = next(each.found for each in Preflight(recipe).findings() if each.name == "memory")
        assert said.startswith(f"{memory.states:.1f} GiB for weights, gradients and optimizer states of one process")
        assert f"up to {memory.activations:.1f} GiB of activations come on top" in said
    base, adapter = shapes["full"].base.count, shapes["lora"].trained.count
    assert 0 < adapter == shapes["lora"].parameters - base < base / 2
    assert states == {"full": 16 * base, "sgd": 12 * base, "lora": 4 * base + 16 * adapter}


def test_another_family_of_models_is_refused_by_name(world_home: Path) -> None:
    from transformers import CLIPImageProcessor, LlavaProcessor

    from mmsearch_trl.protocol.chat import ChatEncoder

    tokenizer: Any = build.load_processor(load_model_config(world_home)).tokenizer
    other = LlavaProcessor(CLIPImageProcessor(), tokenizer, chat_template=tokenizer.chat_template or "{{ messages }}")
    with pytest.raises(UserError, match="LlavaProcessor makes tokens of images in another way than Qwen-VL"):
        ChatEncoder(other)


def load_model_config(home: Path) -> Any:
    from trl import ModelConfig

    return ModelConfig(model_name_or_path=str(home / "model"))


@pytest.mark.parametrize("words", [["check"], ["train", "--dry_run"], ["eval", "--dry_run"]])
def test_the_command_shows_the_first_prompt_as_the_model_sees_it(
    words: list[str], world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, *grpo_arguments(world_home, tmp_path / "run")]) == 0
    shown = capsys.readouterr().out
    assert "<|im_start|>user\n<|vision_start|><|image_pad|> x 4 <|vision_end|> what is its name?<|im_end|>" in shown
    assert not (tmp_path / "run").exists()


def test_the_command_shows_the_first_conversation_of_a_supervised_recipe(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, *keys = sft_arguments(world_home, tmp_path / "run")[1:]
    assert main(["check", recipe, *keys]) == 0
    shown = capsys.readouterr().out
    assert "the first conversation, as the model learns it" in shown and "<|im_start|>assistant" in shown


def test_the_command_counts_the_problems_and_ends_with_1(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = {"optim": "adamw_8bit", "use_peft": True, "lora_target_modules": "[gone]"}
    assert main(["check", *grpo_arguments(world_home, tmp_path / "run", **overrides)]) == 1
    said = capsys.readouterr()
    assert said.out.count("problem ") == 2 and "2 problems, told above" in said.err


def test_a_recipe_for_a_gpu_is_looked_at_without_one(
    world_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["check", *grpo_arguments(world_home, tmp_path / "run", bf16=True, use_cpu=False)]) == 1
    said = capsys.readouterr()
    assert "problem  device: " in said.out and "ok       text search" in said.out
    assert "1 problem, told above" in said.err
