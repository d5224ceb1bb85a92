"""What a person gives and cannot be used is told in one line, with status 1, before any work and leaving nothing."""

from pathlib import Path
from typing import Any

import pytest
from core.command_lines import EVALUATE, SFT, TRAIN, Line, mmsearch, run, run_of, told
from forks import Forks
from runs import QUICK, grpo_arguments


def train(message: str, plant: str = "", **overrides: Any) -> Line:
    return run_of(TRAIN, message, plant, **overrides)


def gone(package: str) -> str:
    """Makes a package one that is not installed."""
    return f"import sys; sys.modules[{package!r}] = None"


MISTAKES = {
    "no recipe": train("recipe not found: gone.yaml")._replace(arguments=["--config", "gone.yaml"]),
    "no recipe named": Line(TRAIN, [], "--config FILE is missing"),
    "no key": Line(EVALUATE, ["recipe.yaml"], "unexpected 'recipe.yaml'; write --config FILE and then --name value"),
    "no yaml": Line(SFT, ["--config", "{place}/wrong.yaml"], ": not readable as YAML"),
    "no mapping": Line(EVALUATE, ["--config", "{place}/list.yaml"], "list.yaml: a recipe is a mapping"),
    "unknown key": train("unknown key `num_generation`; did you mean `num_generations`", num_generation=2),
    "wrong type": train("`max_steps` must be a whole number, got 'many'", max_steps="many"),
    "section refuses": train("reward.search_penalty must be a number from -1 to 1", reward__search_penalty=3),
    "trl refuses": train("GRPO requires at least 2 generations", num_generations=1),
    "no data file": train("data file not found: gone.jsonl", train_files="gone.jsonl"),
    "folder without data": train("empty: the folder holds no data file, found nothing", train_files="{place}/empty"),
    "bad row": train("bad.jsonl, line 2: the ground truth must be a text", train_files="{place}/bad.jsonl"),
    "row without picture": train("gone.png: cannot be read: No such file", train_files="{place}/no_picture.jsonl"),
    "data of another kind": train(
        "nothing holds the question and the answers of a row", train_files="{place}/other.jsonl"
    ),
    "no UTF-8": train("bytes.jsonl, line 1: not UTF-8 text", train_files="{place}/bytes.jsonl"),
    "no parquet": train("a.parquet: not a readable parquet file", train_files="{place}/a.parquet"),
    "no model": train("there is no folder ./gone", model_name_or_path="./gone"),
    "empty model": train("empty holds no config.json", model_name_or_path="{place}/empty"),
    "torn model": train("model.safetensors is not whole", model_name_or_path="{place}/torn_model"),
    "no tokenizer": train("no_tokenizer: the tokenizer has no token", model_name_or_path="{place}/no_tokenizer"),
    "an adapter": train("is a LoRA adapter, and training starts from", model_name_or_path="{place}/adapter"),
    "no prompt": train("prompt file not found: gone.txt", first_turn_prompt="gone.txt"),
    "no templates": train("gone.yaml: cannot be read: No such file", reply_templates="gone.yaml"),
    "no index": train("search.image.path: gone does not exist", search__image__path="gone"),
    "damaged index": train("is damaged: build it again", search__image__path="{place}/image_index"),
    "no checkpoint": train("there is no checkpoint in gone", resume_from_checkpoint="gone"),
    "no last checkpoint": train("there is no checkpoint in out", resume_from_checkpoint="true"),
    "no checkpoint, bare flag": train("there is no checkpoint in out")._replace(
        arguments=[*grpo_arguments(Path("{home}"), Path("out"), **QUICK), "--resume_from_checkpoint"]
    ),
    "no latest checkpoint": run_of(SFT, "there is no checkpoint in out", resume_from_checkpoint="latest"),
    "checkpoint cut off": train("its saving was cut off", resume_from_checkpoint="{place}/used/checkpoint-7"),
    "only a checkpoint cut off": train(
        "checkpoint-7: it has no whole trainer_state.json",
        resume_from_checkpoint="true",
        output_dir="{place}/used",
    ),
    "a run's folder": train("is a run's folder: name one of", resume_from_checkpoint="{place}/used"),
    "output is used": train("holds a run already (checkpoint-7)", output_dir="{place}/used"),
    "output of lessons is used": run_of(SFT, "holds a run already (checkpoint-7)", output_dir="{place}/used"),
    "overwriting what it starts from": train(
        "which the run starts from", output_dir="{home}/model", overwrite_output_dir="true"
    ),
    "a demo is there": mmsearch("demo", "--out", "{place}/demo", message="holds a demo already: name another --out"),
    "output in a file": train("output_dir: ", output_dir="{place}/file/out"),
    "no vllm": train("pip install 'mmsearch-trl[vllm]'", gone("vllm"), use_vllm="true"),
    "no wandb": train("pip install 'mmsearch-trl[wandb]'", gone("wandb"), report_to="wandb"),
    "push without login": train("push_to_hub: ", push_to_hub="true"),
    "no lesson": run_of(SFT, "gone.jsonl", train_files="gone.jsonl"),
    "bad lesson": run_of(SFT, "bad_lesson.jsonl, line 1: 'turns'", train_files="{place}/bad_lesson.jsonl"),
    "nothing to evaluate": run_of(EVALUATE, "eval_files is missing"),
    "evaluating no model": run_of(
        EVALUATE, "empty holds no config.json", eval_files="{place}/good.jsonl", model_name_or_path="{place}/empty"
    ),
    "evaluating in a file": run_of(
        EVALUATE, "output_dir: ", eval_files="{place}/good.jsonl", output_dir="{place}/file/out"
    ),
    "evaluating an adapter without base": run_of(
        EVALUATE,
        "needs the model that it was trained on",
        eval_files="{place}/good.jsonl",
        model_name_or_path="{place}/adapter",
    ),
    "no source": mmsearch("index", "text", "gone.jsonl", "--out", "i", message="gone.jsonl: cannot be read"),
    "bad passage": mmsearch("index", "text", "{place}/good.jsonl", "--out", "i", message="good.jsonl:1: key 'text'"),
    "no language": mmsearch(
        *("index", "text", "{place}/other.jsonl", "--out", "i", "--language", "xx"), message="unknown language 'xx'"
    ),
    "index is there": mmsearch(
        "index", "text", "{place}/other.jsonl", "--out", "{place}/empty", message="empty exists"
    ),
    "index in a file": mmsearch(
        *("index", "text", "{place}/other.jsonl", "--out", "{place}/file/i"), message="file/.i.partial"
    ),
    "picture index in a file": mmsearch(
        *("index", "image", "{world}/images", "--out", "{place}/file/i"), message="cannot be written: Not a directory"
    ),
    "no picture": mmsearch("index", "image", "{place}/empty", "--out", "i", message="empty: no image was found"),
    "broken picture": mmsearch(
        "index", "image", "{place}/pictures.jsonl", "--out", "i", message="pictures.jsonl:1: the"
    ),
    "no encoder": mmsearch(
        *("index", "dense", "{place}/other.jsonl", "--out", "i", "--model", "{place}/empty"),
        message="the text encoder",
    ),
    "no vision model": mmsearch(
        *("index", "image", "{world}/images", "--out", "i", "--model", "{place}/empty"), message="the vision model"
    ),
    "no index to describe": mmsearch("index", "info", "gone", message="gone is not there: name a folder"),
    "damaged index described": mmsearch("index", "info", "{place}/text_index", message="is damaged: build it again"),
    "querying no index": mmsearch("index", "query", "{place}/empty", "tower", message="empty holds no index"),
    "querying a damaged one": mmsearch("index", "query", "{place}/text_index", "tower", message="is damaged"),
    "nothing served": mmsearch("serve", "retriever", message="name the index that is served"),
    "served to all": mmsearch(
        "serve",
        "retriever",
        "--bm25",
        "{world}/text_index",
        "--host",
        "0.0.0.0",
        message="set MMSEARCH_RETRIEVER_TOKEN",
    ),
    "no serve": mmsearch(
        *("serve", "retriever", "--bm25", "{world}/text_index"),
        message="pip install 'mmsearch-trl[serve]'",
        plant=gone("uvicorn"),
    ),
    "no query": mmsearch("search", message="give a text to search for"),
    "no picture to search": mmsearch(
        *("search", "--image", "gone.png", "--image.backend", "index", "--image.path", "{world}/image_index"),
        message="'gone.png' cannot be read",
    ),
    "searching no recipe": mmsearch("search", "tower", "--config", "gone.yaml", message="gone.yaml"),
    "searching no index": mmsearch(
        "search", "tower", "--config", "{place}/search.yaml", message="search.text.path: gone does not exist"
    ),
    "no ddgs": mmsearch(
        *("search", "tower", "--text.backend", "ddgs"), message="pip install 'mmsearch-trl[ddgs]'", plant=gone("ddgs")
    ),
    "no cache": mmsearch("cache", "stats", "gone", message="gone is not there"),
    "another cache": mmsearch("cache", "stats", "{place}/file", message="file cannot be used as an answer cache"),
    "prefetch without recipe": mmsearch("cache", "prefetch", message="--config FILE is missing"),
    "prefetch without cache": mmsearch(
        *("cache", "prefetch", *grpo_arguments(Path("{home}"), Path("out"))), message="search.cache is not set"
    ),
    "no run to view": mmsearch("view", "gone", message="gone/traces holds no *.jsonl"),
    "broken trace": mmsearch("view", "{place}/run", message="train-rank0.jsonl, line 1: not a trace record"),
    "no run to plot": mmsearch("plot", "gone", message="gone/traces holds no *.jsonl"),
    "no adapter": mmsearch("merge", "./gone", "--out", "m", message="there is no folder ./gone"),
    "adapter without base": mmsearch(
        "merge", "{place}/adapter", "--out", "m", message="needs the model that it was trained on"
    ),
    "merge is there": mmsearch("merge", "{place}/adapter", "--out", "{place}/empty", message="empty is there already"),
    "no sets": mmsearch("data", "search-r1", "d", "--source", "{place}/empty", message="empty has no nq/train.jsonl"),
    "world in a file": mmsearch("world", "--out", "{place}/file/w", message="file/w"),
    "demo without recipe": mmsearch("demo", "--recipe", "gone.yaml", message="recipe not found: gone.yaml"),
    "no vllm to serve": mmsearch("vllm", "model", message="pip install 'mmsearch-trl[vllm]'", plant=gone("vllm")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_users_mistake_is_one_line_and_leaves_nothing(
    name: str, forks: Forks, place: Path, world_home: Path, tmp_path: Path
) -> None:
    done = run(forks, MISTAKES[name], tmp_path, place, world_home)
    assert done.status == 1, done.err
    assert "Traceback" not in done.err, done.err
    [line] = told(done)
    assert line.startswith("mmsearch: error: ") and MISTAKES[name].message in line
    assert not list(tmp_path.iterdir())
