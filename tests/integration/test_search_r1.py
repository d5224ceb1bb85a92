"""Search-R1 from its recipe: rows of its format, a retriever over HTTP, a small language model that knows the tags.

The model was taught by a few transcripts to search, to answer, and now and then to do neither, so that every rule of
the protocol is met: results cut to their limit, notices, final turns.
"""

import json
import math
import random
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import small_lm
import torch
from forks import Forks
from PIL import Image
from search.over_http import served
from servers import ENGINE_ARGS, environment
from transformers import AutoModelForCausalLM

from mmsearch_trl.core.action import ActionKind
from mmsearch_trl.core.completion import FinishReason
from mmsearch_trl.core.errors import EngineError, UserError
from mmsearch_trl.core.observation import Observation, TextHit
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.evaluate import evaluate
from mmsearch_trl.protocol.search_r1 import NOTICE, SearchR1Protocol
from mmsearch_trl.recipe.data import load_rows
from mmsearch_trl.recipe.recipe import Recipe, load_recipe
from mmsearch_trl.search.index_build import build_text_index
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.traces.files import read_trace_file
from mmsearch_trl.train import build_trainer
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
NAMES = ("Ada", "Bo", "Cy", "Dee", "Eli", "Fay", "Gus", "Hal")
CITIES = ("Rome", "Oslo", "Lima", "Kyiv", "Bern", "Cairo", "Quito", "Delhi")
FILLER = " The town is old and the river is long and the hill is high" * 6
WORDS = " ".join((*NAMES, *CITIES, FILLER, "where lives in I do not know it says so Title Doc </search>\n </think>\n"))
LIMIT = 64
INFORMATION = re.compile(
    r"\n\n<information>(Doc 1\(Title: .*|The search found nothing\.|The search could not .*)</information>\n\n",
    re.DOTALL,
)


def _contents(name: str, city: str) -> str:
    return f'"{name}"\n{name} lives in {city}.{FILLER}.'


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model after a few seconds of transcripts."""
    protocol = small_lm.build_protocol(WORDS, max_observation_tokens=LIMIT)
    tokenizer = protocol.chat.tokenizer
    model = small_lm.build_model(tokenizer, std=0.02).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rng = random.Random(0)
    transcripts = [_transcript(protocol, rng) for _ in range(96)]
    for step in range(120):
        batch = [transcripts[(8 * step + i) % len(transcripts)] for i in range(8)]
        width = max(len(ids) for ids, _ in batch)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in batch])
        labels = torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in batch])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("taught")
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _transcript(protocol: SearchR1Protocol, rng: random.Random) -> tuple[list[int], list[int]]:
    """Ids and labels of one transcript; the environment's tokens have no label."""
    name, city = rng.choice(list(zip(NAMES, CITIES, strict=True)))
    task = Task(id="1", question=f"where lives {name}")
    title, _, text = _contents(name, city).partition("\n")
    found = Observation(tool=ActionKind.TEXT_SEARCH, hits=(TextHit(title, text),))
    pieces: list[tuple[Sequence[int], bool]] = [(protocol.prompt(task).token_ids, False)]
    encode, end = small_lm.encoder(protocol), [protocol.chat.turn_end_id]
    if rng.random() < 0.3:
        pieces += [(encode("<think> I do not know</think>") + end, True)]
        pieces += [(protocol.ask_again(()).token_ids, False)]
    if rng.random() < 0.8:
        pieces += [(encode(f"<think> I do not know</think>\n<search> {name}</search>"), True)]
        pieces += [(protocol.reply(found, task, ()).token_ids, False)]
    pieces += [(encode(f"<think> it says so</think>\n<answer> {city}</answer>"), True)]
    ids = [token for tokens, _ in pieces for token in tokens]
    return ids, [token if said else -100 for tokens, said in pieces for token in tokens]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions in the format of Search-R1's own files."""
    cells = [
        {
            "data_source": "nq",
            "prompt": [{"role": "user", "content": f"Instructions. Question: where lives {name}?\n"}],
            "ability": "fact-reasoning",
            "reward_model": {"style": "rule", "ground_truth": {"target": [city]}},
            "extra_info": {"split": "train", "index": i},
        }
        for i, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]
    path = tmp_path_factory.mktemp("rows") / "train.parquet"
    pq.write_table(pa.Table.from_pylist(cells), path)
    return path


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus in Search-R1's format, indexed."""
    folder = tmp_path_factory.mktemp("corpus")
    lines = [
        json.dumps({"id": str(i), "contents": _contents(name, city)})
        for i, (name, city) in enumerate(zip(NAMES, CITIES, strict=True))
    ]
    (folder / "corpus.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build_text_index(folder / "corpus.jsonl", folder / "index")
    return folder / "index"


@pytest.fixture(scope="module")
def retriever(index: Path) -> Iterator[str]:
    """The corpus behind the project's own server."""
    with served(TextIndex.open(index)) as url:
        yield url


@dataclass
class Run:
    trainer: MMSearchGRPOTrainer
    trajectories: list[Trajectory]
    masks: list[list[int]]


def _recipe(taught: Path, rows: Path, retriever: str, out: Path, **overrides: Any) -> Recipe:
    """The project's own recipe, cut down to the small model."""
    recipe = load_recipe(
        ROOT / "recipes" / "search_r1" / "qwen2.5-3b-structure.yaml",
        {
            "model_name_or_path": str(taught),
            "train_files": [str(rows)],
            "eval_files": [],
            "output_dir": str(out),
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "max_steps": 4,
            "per_device_train_batch_size": 10,
            "gradient_accumulation_steps": 2,
            "steps_per_generation": 4,
            "save_strategy": "no",
            "disable_tqdm": True,
            "warmup_steps": 0,
            "learning_rate": 1e-3,
            "max_search_failure_share": 1.0,
            "search.text.url": retriever,
            "search.cache": None,
            "rollout.max_observation_tokens": LIMIT,
            "rollout.max_turn_tokens": 40,
            "rollout.max_response_tokens": 600,
            "rollout.max_turns": 4,
            "rollout.text_search_limit": 3,
        }
        | overrides,
    )
    recipe.validate()
    return recipe


def _train(recipe: Recipe) -> Run:
    run = Run(build_trainer(recipe), [], [])
    original = run.trainer._generate

    def spy(prompts: list[Any]) -> Any:
        batch = original(prompts)
        assert run.trainer._batch is not None
        run.trajectories += run.trainer._batch.trajectories
        run.masks += batch.tool_mask
        return batch

    run.trainer._generate = spy  # pyright: ignore[reportAttributeAccessIssue]
    run.trainer.train()
    return run


@pytest.fixture(
    scope="module",
    params=["transformers", "colocate"],
)
def run(
    request: pytest.FixtureRequest,
    taught: Path,
    rows: Path,
    retriever: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Run]:
    """Four updates from the recipe, sampled by the model itself and by vLLM."""
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_engine_args": ENGINE_ARGS,
        "vllm_enable_sleep_mode": False,
    }
    with environment():
        options = vllm if request.param == "colocate" else {}
        run = _train(_recipe(taught, rows, retriever, tmp_path_factory.mktemp("run"), **options))
        yield run
        run.trainer.close()


def test_the_mask_is_0_on_what_the_environment_said_and_1_on_all_else(run: Run) -> None:
    decode = run.trainer.rollouter.protocol.chat.tokenizer.decode
    said = 0
    assert len(run.masks) == len(run.trajectories) == 80
    for trajectory, mask in zip(run.trajectories, run.masks, strict=True):
        assert len(mask) == len(trajectory.completion_ids)
        for bit, pieces in groupby(zip(mask, trajectory.completion_ids, strict=True), key=lambda pair: pair[0]):
            text = decode([token for _, token in pieces])
            if bit:
                assert NOTICE not in text and "<information>Doc 1" not in text and "</information>" not in text
            else:
                said += 1
                assert text == NOTICE or INFORMATION.fullmatch(text)
    assert said == sum(bool(turn.reply_ids) for trajectory in run.trajectories for turn in trajectory.turns) > 40


def test_results_are_cut_to_the_limit_and_closed(run: Run) -> None:
    searches = [turn for t in run.trajectories for turn in t.turns if turn.observation]
    assert len(searches) >= 5
    for turn in searches:
        text = "".join(map(str, turn.reply))
        assert len(turn.reply_ids) <= LIMIT and INFORMATION.fullmatch(text)
        assert turn.observation is not None and len(text) < len(FILLER), "nothing was cut"


def test_every_rule_of_the_protocol_was_met(run: Run) -> None:
    turns = [turn for trajectory in run.trajectories for turn in trajectory.turns]
    kinds = {turn.action.kind for turn in turns}
    assert kinds == {ActionKind.TEXT_SEARCH, ActionKind.ANSWER, ActionKind.NONE}
    ends = [tag for turn in turns for tag in ("</search>", "</answer>") if tag in turn.text]
    assert all(turn.text.count("</search>") <= 1 for turn in turns) and len(ends) > 80
    for turn in turns:  # what was sampled ends with its action, a line break inside the last token aside
        if turn.action.kind is not ActionKind.NONE:
            assert turn.text.rstrip().endswith(("</search>", "</answer>"))
            assert turn.finish_reason is FinishReason.STOP
    for trajectory in run.trajectories:
        assert len(trajectory.turns) <= 4 and trajectory.stop is not None
        assert (trajectory.stop is StopReason.ANSWERED) == (trajectory.turns[-1].action.kind is ActionKind.ANSWER)
        if len(trajectory.turns) == 4:
            assert trajectory.turns[-1].observation is None and not trajectory.turns[-1].reply_ids


def test_tokens_are_sampled_at_the_log_probs_that_the_model_gives_them(run: Run, taught: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(taught, dtype="float32").eval()
    for trajectory in run.trajectories[:40]:  # the first generation batch, before any update
        ids = torch.tensor([trajectory.token_ids])
        with torch.no_grad():
            log_probs = model(ids).logits[0, :-1].float().log_softmax(-1)
        values = log_probs.gather(1, ids[0, 1:, None])[:, 0][len(trajectory.prompt_ids) - 1 :]
        scored = torch.tensor(trajectory.loss_mask, dtype=torch.bool)
        sampled = torch.tensor(trajectory.logprobs)
        torch.testing.assert_close(sampled[scored], values[scored], atol=1e-4, rtol=0)


def test_it_was_trained_on_and_logged(run: Run, taught: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(taught, dtype="float32").state_dict()
    after = run.trainer.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    logged = [entry for entry in run.trainer.state.log_history if "loss" in entry]
    assert len(logged) == 4 and all(math.isfinite(entry["loss"]) for entry in logged)
    names = {"reward/accuracy", "format/valid", "reward/searches", "rewards/search_r1/mean", "search/text_ratio"}
    assert names <= set().union(*logged)
    cut_short = [t.turns[-1].finish_reason is FinishReason.LENGTH for t in run.trajectories]
    clipped = [entry["completions/clipped_ratio"] for entry in logged if "completions/clipped_ratio" in entry]
    assert sum(clipped) / len(clipped) == pytest.approx(sum(cut_short) / len(cut_short)) and sum(cut_short) < 40


def test_a_picture_for_a_language_model_is_refused_before_training(
    taught: Path, rows: Path, retriever: str, tmp_path: Path
) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    lines = [
        {"question": "who?", "answers": ["she"]},
        {"id": "7", "question": "who?", "answers": ["she"], "image": "a.png"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    recipe = _recipe(taught, file, "http://127.0.0.1:1", tmp_path / "run")
    with pytest.raises(UserError, match=r"rows\.jsonl: question 7 has an image, and the model is a language model"):
        load_rows(recipe, [str(file)], small_lm.build_protocol(WORDS), recipe.reward.scored_by)
    evaluation = _recipe(taught, rows, retriever, tmp_path / "run", eval_files=[str(file)])
    with pytest.raises(UserError, match="question 7 has an image"):
        evaluate(evaluation)


def test_a_vision_tower_that_is_not_there_cannot_be_frozen(
    taught: Path, rows: Path, retriever: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="freeze_vision: the model has no vision tower"):
        build_trainer(_recipe(taught, rows, retriever, tmp_path, freeze_vision=True))


def test_a_tokenizer_without_padding_evaluates_all_the_same(
    taught: Path, rows: Path, retriever: str, tmp_path: Path
) -> None:
    """Llama's have none; TRL gives them one in training."""
    model = tmp_path / "model"
    shutil.copytree(taught, model)
    settings = json.loads((model / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    report = evaluate(_recipe(model, rows, retriever, tmp_path / "run", eval_files=[str(rows)]))
    assert report.data["train"].overall.rollout_failure_ratio == 0.0


def test_an_evaluation_without_a_finished_rollout_is_an_error(
    taught: Path, rows: Path, retriever: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(TransformersEngine, "_generate", broken)
    with pytest.raises(EngineError, match=r"^train: none of 8 rollouts worked; the first: MemoryError: no room"):
        evaluate(_recipe(taught, rows, retriever, tmp_path, eval_files=[str(rows)]))


def test_the_command_line_evaluates_the_model(taught: Path, rows: Path, retriever: str, tmp_path: Path) -> None:
    recipe = _recipe(taught, rows, retriever, tmp_path, eval_files=[str(rows)])
    report = evaluate(recipe)
    summary = report.data["train"].overall
    assert summary.n == len(NAMES) and (summary.search_ratio or 0.0) > 0.5 and summary.text_failure_ratio == 0.0
    [file] = (tmp_path / "evaluation").rglob("*.jsonl*")
    observed = [
        "".join(token.text * token.times for turn in r.turns for token in turn.tokens) for r in read_trace_file(file)
    ]
    assert len(observed) == len(NAMES) and any("</search>\n\n<information>Doc 1" in text for text in observed)


def test_the_quick_start_of_the_card_searches_and_answers(run: Run, index: Path, forks: Forks, tmp_path: Path) -> None:
    run.trainer.save_model(str(tmp_path / "agent"))
    run.trainer.args.output_dir = str(tmp_path / "agent")
    run.trainer.create_model_card()
    card = (tmp_path / "agent" / "README.md").read_text()
    assert "2503.09516" in card and "2506.20670" not in card and "pipeline_tag: text-generation" in card
    assert "image_" not in card
    (tmp_path / "text_index").symlink_to(index)
    [code] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    (tmp_path / "quick_start.py").write_text(code)
    done = forks.run(str(tmp_path / "quick_start.py"), folder=tmp_path)
    assert done.status == 0, done.err
    assert "<think>" in done.out and done.out.splitlines()[-1].startswith("Answer: ")
