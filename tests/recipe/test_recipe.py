from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

import pytest
import yaml
from trl import SFTConfig

from mmsearch_trl.core import versions
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.config import DataConfig
from mmsearch_trl.recipe.command_line import recipe_arguments
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.recipe.schedule import check_learning_rate
from mmsearch_trl.recipe.written import Kind
from mmsearch_trl.rewards.mmsearch import RewardConfig
from mmsearch_trl.rewards.search_r1 import SearchR1RewardConfig
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.search.config import SearchConfig
from mmsearch_trl.search.image.serpapi_lens import SerpApiLensConfig
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic_config import CriticConfig, check_critic
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig


FVQA_MINI = Path(__file__).parents[1] / "fixtures" / "fvqa_mini.parquet"
RECIPE = f"""
model_name_or_path: org/model
train_files: ['{FVQA_MINI}']
use_cpu: true
bf16: false
learning_rate: 1e-6
per_device_train_batch_size: 8
num_generations: 4
search:
  image: {{backend: index, path: '{FVQA_MINI.parent}'}}
  text: {{backend: bm25, path: '{FVQA_MINI.parent}'}}
rollout:
  max_turns: 3
reward:
  search_penalty: 0.2
"""


class Write(Protocol):
    """Writes the recipe with these lines added."""

    def __call__(self, more: str = "") -> Path: ...


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(more: str = "") -> Path:
        path = tmp_path / "made.yaml"
        path.write_text(RECIPE + more, encoding="utf-8")
        return path

    return write_recipe


def test_flat_keys_and_sections_reach_their_dataclasses(write: Write) -> None:
    recipe = load_recipe(write())
    assert recipe.model.model_name_or_path == "org/model"
    assert recipe.data.train_files == [str(FVQA_MINI)]
    assert isinstance(recipe.trainer, MMSearchGRPOConfig) and isinstance(recipe.reward, RewardConfig)
    assert recipe.trainer.learning_rate == 1e-6
    assert (recipe.rollout.max_turns, recipe.reward.search_penalty) == (3, 0.2)
    recipe.validate()


def test_no_key_belongs_to_two_sections() -> None:
    for trainer in (MMSearchGRPOConfig, SFTConfig):
        names = [field.name for cls in (RecipeModelConfig, DataConfig, trainer) for field in fields(cls)]
        assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "cls",
    [DataConfig, MMSearchGRPOConfig, SearchConfig, Limits, RewardConfig, EstimatorConfig, KLConfig, CriticConfig],
)
def test_every_key_has_a_help_text(cls: type) -> None:
    assert [key.name for key in fields(cls) if key.init and not key.metadata.get("help")] == []


def test_the_command_line_overrides_the_file(write: Write) -> None:
    arguments = ["--config", str(write()), "--learning_rate", "3e-4", "--rollout.max_turns=2", "--reward.reward_mode"]
    arguments += ["SubEM", "--log-completions", "--train-files", "a.parquet", "b.parquet"]
    recipe = load_recipe(*recipe_arguments(arguments))
    assert isinstance(recipe.trainer, MMSearchGRPOConfig) and isinstance(recipe.reward, RewardConfig)
    assert recipe.trainer.learning_rate == 3e-4
    assert (recipe.rollout.max_turns, recipe.reward.reward_mode, recipe.reward.search_penalty) == (2, "SubEM", 0.2)
    assert recipe.trainer.log_completions is True
    assert recipe.data.train_files == ["a.parquet", "b.parquet"]
    assert recipe.values["rollout"] == {"max_turns": 2}


def test_overrides_may_be_given_as_values(write: Write) -> None:
    assert load_recipe(write(), {"rollout.max_turns": 5, "seed": 9}).rollout.max_turns == 5


def test_dashes_in_a_value_are_kept() -> None:
    assert recipe_arguments(["--config", "world/grpo", "--run-name=my-run", "--learning_rate", "-1"]) == (
        Path("world/grpo"),
        {"run_name": "my-run", "learning_rate": -1},
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("learning_rte: 1", r"made\.yaml: unknown key `learning_rte`; did you mean `learning_rate`\?"),
        ("rewards: {}", "unknown key `rewards`; did you mean `reward`"),
        ("seed: [1", r"made\.yaml, line \d+: not readable as YAML"),
        ("beta: big", "`beta` must be a number, got 'big'"),
        ("on_bad_row: ignore", "`on_bad_row` must be 'raise' or 'skip', got 'ignore'"),
        ("max_prompt_length: 0", "max_prompt_length must be at least 1"),
    ],
)
def test_a_mistake_in_the_file_is_an_error_that_names_file_and_key(write: Write, more: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(write(more))


@pytest.mark.parametrize(
    ("base", "own", "message"),
    [
        ("seed: one", "", r"made\.yaml: `seed` must be a whole number, got 'one'"),
        ("seed: one", "seed: two", r"own\.yaml: `seed` must be a whole number, got 'two'"),
        ("seeed: 1", "", r"made\.yaml: unknown key `seeed`"),
        ("max_prompt_length: 0", "", r"made\.yaml: max_prompt_length must be at least 1"),
        ("", "max_prompt_length: 0", r"own\.yaml: max_prompt_length must be at least 1"),
        ("", "search: {text: {top_k: 0}}", r"own\.yaml: search\.text\.top_k is 0"),
        ("", "search: {text: {backend: dense}}", r"own\.yaml: the key `search\.text\.path` is missing"),
        (
            "",
            "search: {text: {backend: bm52}}",
            r"own\.yaml: `search\.text\.backend` must be one of bm25, .*mean `bm25`",
        ),
        ("", "search: {text: {paht: x}}", r"own\.yaml: unknown key `search\.text\.paht`; .*`search\.text\.path`"),
        ("", "search: {text: bm25}", r"own\.yaml: `search\.text` must be a mapping of keys to values, got 'bm25'"),
        ("", "search: {timeout: 1}", r"own\.yaml: unknown key `search\.timeout`; did you mean `search\.timeout_s`"),
    ],
)
def test_a_mistake_is_said_to_stand_in_the_file_that_holds_it(write: Write, base: str, own: str, message: str) -> None:
    path = write(base).with_name("own.yaml")
    path.write_text(f"extends: made.yaml\n{own}", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load_recipe(path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollout.max_turn", "2"], r"command line \(--rollout\.max_turn\): unknown key.*`rollout\.max_turns`"),
        (
            ["--rollout.max_turns", "0"],
            r"command line \(--rollout\.max_turns\): rollout\.max_turns must be at least",
        ),
        (["--search.timeout_s", "0"], r"command line \(--search\.timeout_s\): search\.timeout_s is 0"),
        (["--search.text.top_k", "0"], r"command line \(--search\.text\.top_k\): search\.text\.top_k is 0"),
        (["--learning_rate", "fast"], r"command line \(--learning_rate\): `learning_rate` must be a number"),
        (["--learning_rate.x", "1"], r"command line \(--learning_rate\.x\): `learning_rate` must be a number, got {"),
        (["--reward", "3"], r"command line \(--reward\): `reward` must be a mapping"),
        (["--seed", "[1"], r"command line \(--seed\), line 1: not readable as YAML"),
    ],
)
def test_a_mistake_on_the_command_line_says_so(write: Write, arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(*recipe_arguments(["--config", str(write()), *arguments]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config FILE is missing"),
        (["recipe.yaml"], "unexpected 'recipe.yaml'"),
        (["--config", "recipe.yaml", "other.yaml"], "unexpected 'other.yaml'"),
        (["--config", "gone.yaml"], "recipe not found: gone.yaml"),
    ],
)
def test_a_command_line_without_a_recipe_is_an_error(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe(*recipe_arguments(arguments))


def test_a_group_that_does_not_divide_the_batch_is_explained_with_numbers(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    message = (
        r"num_generations 5 does not divide the generation batch of 8 rollouts \(per_device_train_batch_size 8 x "
        r"1 processes x 1 steps per generation\)\. Make the batch a multiple of 5, such as 10, .* one of 2, 4, 8"
    )
    with pytest.raises(UserError, match=message):
        load_recipe(write(), {"num_generations": 5})
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch of 24 rollouts"):
        load_recipe(write(), {"num_generations": 5})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"rollout.image_search_limit": 0},
            r"offers image search \(<search><img></search>\), but rollout\.image_s",
        ),
        (
            {"rollout.text_search_limit": 0},
            r"offers text search \(<text_search>\), but rollout\.text_search_limit is 0",
        ),
        ({"rollout.max_turns": 1}, "max_turns is 1, so that no search can be answered"),
        (
            {"search.text": None},
            r"offers text search .*, but search\.text is not set: give it a `backend`, one of bm25, dense, hybrid",
        ),
        ({"search.image": None}, r"search\.image is not set: give it a `backend`, one of index, cache, service"),
        ({"search.image": {"backend": "cache", "path": "gone.pkl"}}, r"search\.image\.path: gone\.pkl does not exist"),
        ({"train_files": "gone.parquet"}, r"train_files: data file not found: gone\.parquet"),
        ({"eval_files": "gone.jsonl"}, r"eval_files: data file not found: gone\.jsonl"),
        ({"train_files": []}, "train_files is missing"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"model_name_or_path": "./gone"}, r"there is no folder \./gone"),
        ({"first_turn_prompt": "gone.txt"}, r"prompt file not found: gone\.txt"),
        ({"forced_answer_prompt": "gone.pkl"}, r"prompt file not found: gone\.pkl"),
        ({"rollout.max_observation_tokens": 500}, r"max_observation_tokens is a key of protocol search_r1"),
        (
            {"protocol": "search_r1", "reward": None, "rollout.image_search_limit": 2},
            r"rollout\.image_search_limit: protocol search_r1 has no image search",
        ),
        ({"model_revision": "v2", "beta": 0.1}, "the reference would be of the main revision"),
        (
            {"protocol": "search_r1", "reward": None, "rollout.text_search_limit": 0},
            r"offers text search \(</search>\), but rollout\.text_search_limit is 0",
        ),
        (
            {"protocol": "search_r1", "reward": None, "search.text": None},
            r"offers text search .*, but search\.text is not set",
        ),
    ],
)
def test_a_contradiction_or_a_missing_file_is_found_before_any_work(
    write: Write, overrides: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"made\.yaml: .*{message}"):
        load_recipe(write(), overrides).validate()


@pytest.mark.parametrize(
    "section",
    [
        {"backend": "retriever", "url": "http://127.0.0.1:1"},
        {"backend": "ddgs"},
        {"backend": "pages", "links": "ddgs"},
        {"backend": "mcp", "server": "server", "tool": "search"},
    ],
)
def test_any_backend_answers_the_search_that_the_prompt_offers(write: Write, section: dict[str, str]) -> None:
    recipe = load_recipe(write(), {"search.text": section, "search.image": {"backend": "serpapi"}})
    recipe.validate()
    assert isinstance(recipe.search.image, SerpApiLensConfig) and recipe.search.text is not None
    assert {key: getattr(recipe.search.text, key) for key in section} == section


def test_the_keys_of_the_reward_are_those_of_the_protocol(write: Write, tmp_path: Path) -> None:
    recipe = load_recipe(write(), {"protocol": "search_r1", "reward": None, "reward.rule": "structure"})
    recipe.validate()
    assert recipe.reward == SearchR1RewardConfig(rule="structure")
    with pytest.raises(UserError, match="search_penalty is a key of protocol mmsearch_r1, and protocol is search_r1"):
        load_recipe(write(), {"protocol": "search_r1"})
    with pytest.raises(UserError, match=r"reward\.rule is a key of protocol search_r1, and protocol is mmsearch_r1"):
        load_recipe(write(), {"reward.rule": "em"})
    with pytest.raises(
        UserError, match="`protocol` must be 'mmsearch_r1', 'mmsearch_r1_upstream', 'search_r1' or 'direct'"
    ):
        load_recipe(write(), {"protocol": "searchr1"})
    with pytest.raises(UserError, match="reply_templates is a text of protocol mmsearch_r1"):
        load_recipe(write(), {"protocol": "search_r1", "reward": None, "reply_templates": "w.yaml"})
    prompt = tmp_path / "p.txt"
    prompt.write_text("No slot", encoding="utf-8")
    with pytest.raises(UserError, match=r"p\.txt: a first prompt .* exactly once"):
        load_recipe(write(), {"protocol": "search_r1", "reward": None, "first_turn_prompt": str(prompt)}).validate()


def test_a_supervised_recipe_trains_the_protocol_with_user_messages(write: Write) -> None:
    text = "\n".join(line for line in write().read_text().splitlines()[:7] if "num_generations" not in line)
    path = write().with_name("sft.yaml")
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="supervised recipes train protocol mmsearch_r1"):
        load_recipe(path, {"protocol": "search_r1"}, kind="sft").validate()


def test_a_tool_may_be_off_with_a_prompt_that_does_not_offer_it(write: Write, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Answer. {image} {question}")
    overrides = {"rollout.image_search_limit": 0, "rollout.text_search_limit": 0, "rollout.max_turns": 1}
    overrides |= {"search.image": None, "search.text": None}
    recipe = load_recipe(write(), overrides | {"first_turn_prompt": str(tmp_path / "p.txt")})
    recipe.validate()
    assert recipe.rollout.image_search_limit == recipe.rollout.text_search_limit == 0


def test_a_supervised_recipe_has_the_keys_of_sft_and_no_reward(write: Write) -> None:
    path = write()
    with pytest.raises(UserError, match="unknown key `num_generations`"):
        load_recipe(path, kind="sft")
    keys = {"model_name_or_path": "m", "train_files": "a.jsonl", "use_cpu": True, "bf16": False}
    path.write_text(yaml.safe_dump(keys | {"loss_type": "dft"}))
    recipe = load_recipe(path, kind="sft")
    assert isinstance(recipe.trainer, SFTConfig)
    assert recipe.trainer.loss_type == "dft"
    with pytest.raises(UserError, match="unknown key `reward`"):
        load_recipe(path, {"reward.search_penalty": 0.1}, kind="sft")


def test_the_length_that_divides_a_dr_grpo_loss_follows_the_rollout(write: Write) -> None:
    trainer = load_recipe(write(), {"rollout.max_response_tokens": 777, "loss_type": "dr_grpo"}).trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.max_completion_length == 777


def test_the_section_of_the_estimator_reaches_the_trainer(write: Write) -> None:
    keys = {"estimator.name": "reinforce", "estimator.reward_clip": [-1, 2], "estimator.kl.coef": "1e-3"}
    trainer = load_recipe(write(), keys | {"num_generations": 1}).trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and (trainer.beta, trainer.num_generations) == (1e-3, 1)
    assert trainer.estimator == EstimatorConfig(name="reinforce", reward_clip=(-1, 2), kl=KLConfig(coef=1e-3))
    with pytest.raises(UserError, match=r"--scale_rewards\): scale_rewards is of the advantages that TRL makes"):
        load_recipe(write(), keys | {"scale_rewards": "batch"})
    with pytest.raises(UserError, match=r"kl\.place\): estimator\.kl\.form k1 has a gradient of mean 0"):
        load_recipe(write(), keys | {"estimator.kl.place": "loss"})


def test_the_section_of_the_critic_reaches_the_trainer_and_goes_with_its_estimator_alone(write: Write) -> None:
    gae = {"estimator.name": "gae", "num_generations": 1}
    trainer = load_recipe(write(), gae | {"critic.learning_rate": "1e-5", "critic.warmup_steps": 0.5}).trainer
    assert isinstance(trainer, MMSearchGRPOConfig) and trainer.num_generations == 1
    assert trainer.critic == CriticConfig(learning_rate=1e-5, warmup_steps=0.5)
    assert "of the critic 1e-05, cosine_with_min_lr" in check_learning_rate(trainer, 100)
    for keys, words in (
        ({"estimator.name": "rloo", "critic.epochs": 2}, r"critic is asked by estimator\.name gae alone"),
        ({"critic.epochs": 2}, r"critic is asked by estimator\.name gae alone"),
        (gae | {"critic.epochs": 0}, r"--critic\.epochs\): critic\.epochs must be at least 1"),
        (gae | {"critic.model": "small"}, r"`critic\.model` must be 'full' or 'adapter', got 'small'"),
        (
            gae | {"critic.learning_rat": 1},
            r"unknown key `critic\.learning_rat`; did you mean `critic\.learning_rate`",
        ),
        ({"estimator.name": "rloo", "estimator.lam": 0.9}, r"estimator\.lam is for gae"),
        (gae | {"estimator.lam": 1.5}, r"estimator\.lam must be from 0 to 1"),
    ):
        with pytest.raises(UserError, match=words):
            load_recipe(write(), keys)
    trainer = load_recipe(write(), gae | {"critic.lr_scheduler_type": "cosine_with_mon_lr"}).trainer
    assert isinstance(trainer, MMSearchGRPOConfig)
    with pytest.raises(UserError, match=r"critic\.lr_scheduler_type: cosine_with_mon_lr"):
        check_learning_rate(trainer, 100)


def test_a_critic_beside_deepspeed_is_refused_by_the_name_of_what_works(write: Write) -> None:
    trainer = load_recipe(write(), {"estimator.name": "gae"}).trainer
    assert isinstance(trainer, MMSearchGRPOConfig)
    vars(trainer)["deepspeed_plugin"] = object()  # as transformers has it where accelerate was started with DeepSpeed
    with pytest.raises(UserError, match=r"^critic: DeepSpeed trains one model .*: use FSDP2 \(.*fsdp2\.yaml\)[^.]*$"):
        check_critic(trainer)


def test_the_completion_length_of_trl_limits_nothing_and_is_refused_as_a_limit(write: Write) -> None:
    with pytest.raises(UserError, match=r"max_completion_length .*rollout\.max_response_tokens"):
        load_recipe(write(), {"max_completion_length": 2048})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model_init_kwargs", {"revision": "v2"}, "model_init_kwargs has no effect in a recipe.*model_revision"),
        ("trust_remote_code", True, "trust_remote_code has no effect"),
        ("lora_r", 64, "lora_r is of an adapter, and use_peft is not true"),
        ("lora_target_modules", ["q_proj"], "lora_target_modules is of an adapter"),
        ("use_dora", True, "use_dora is of an adapter"),
        ("bnb_4bit_quant_type", "fp4", "bnb_4bit_quant_type needs load_in_4bit"),
    ],
)
@pytest.mark.parametrize("kind", ["grpo", "sft"])
def test_a_key_of_the_model_that_does_nothing_is_refused(
    write: Write, key: str, value: Any, message: str, kind: Kind
) -> None:
    path = write()
    if kind == "sft":
        path.write_text(yaml.safe_dump({"model_name_or_path": "m", "train_files": "a.jsonl", "use_cpu": True}))
    with pytest.raises(UserError, match=message):
        load_recipe(path, {key: value}, kind=kind)


def test_a_library_out_of_range_is_an_error_before_the_recipe_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "version", lambda name: "1.15.0")
    with pytest.raises(versions.VersionError, match="Tested versions: trl 1"):
        load_recipe("gone.yaml")
