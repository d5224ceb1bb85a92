"""From a recipe to the parts that training and evaluation share: processor, model, protocol, engine.

A model name may stand for a LoRA adapter: then its base model is loaded and the adapter put on it, unmerged, so that
it computes what it computed in training.
"""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    TrainingArguments,
)
from transformers.utils.hub import cached_file
from trl import ModelConfig, get_quantization_config

from mmsearch_trl.core.boundaries import loading, writing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.messages import ConversationRules
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.models.family import check_family
from mmsearch_trl.models.location import ADAPTER, find_base, find_model
from mmsearch_trl.models.vision_attention import attend_to_all_windows
from mmsearch_trl.protocol.base import SearchProtocol, TurnProtocol
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.direct import DirectProtocol
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.reply_templates import ReplyTemplates
from mmsearch_trl.protocol.search_r1 import SearchR1Protocol, load_search_r1_prompt
from mmsearch_trl.protocol.upstream_mmsearch import UpstreamMMSearchProtocol
from mmsearch_trl.recipe.recipe import Recipe
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.search.factory import build_runtime
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


Processor = ProcessorMixin | PreTrainedTokenizerBase
"""Of a vision-language model, or the tokenizer of a language model."""
_PAID_FOR_THINKING = ("math", "r1_v", "sokoban", "structure")
"""Rules for which a turn holds `<think>`."""


def load_processor(model: ModelConfig) -> Processor:
    """The processor beside a model or an adapter; the tokenizer where the model is one of language alone.

    Raises:
        UserError: there is none, it cannot be loaded, or it is of a model that cannot be trained.
    """
    name = str(model.model_name_or_path)
    find_model("the model", name, revision=model.model_revision, weights=False)
    if not is_adapter(model):
        check_family("the model", name, model.model_revision)
    with loading("the processor", name):
        processor = AutoProcessor.from_pretrained(name, revision=model.model_revision)
    tokenizer = getattr(processor, "tokenizer", processor)
    if tokenizer.pad_token is None:  # as TRL does it in training
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def load_agent(model: ModelConfig) -> PreTrainedModel | PeftModel:
    """The model of a finished run: whole, or an adapter on its base model.

    Raises:
        UserError: there is no such model, the adapter's base is missing, or one of them cannot be loaded.
    """
    name = str(model.model_name_or_path)
    if not is_adapter(model):
        return load_whole(name, load_options(model))
    base_name, revision = base_of(model)
    base = load_whole(base_name, load_options(model) | {"revision": revision})
    with loading("the adapter", name, SafetensorError):
        return PeftModel.from_pretrained(base, name, revision=model.model_revision)


def base_of(model: ModelConfig) -> tuple[str, str]:
    """Name and revision of the model that an adapter was trained on.

    Raises:
        UserError: the adapter cannot be read, or its base model is not there.
    """
    name = str(model.model_name_or_path)
    with loading("the adapter", name):
        config = PeftConfig.from_pretrained(name, revision=model.model_revision)
    find_base(name, config.base_model_name_or_path)
    return str(config.base_model_name_or_path), config.revision or "main"


def merge_adapter(name: str, out: Path) -> None:
    """Write an adapter's base model with the adapter merged in, and its processor, to the folder `out`.

    The merged model computes what base and adapter compute, to the rounding of the weights' type.

    Raises:
        UserError: `name` is not an adapter, its base model or its processor is missing, or `out` is there already or
            cannot be written.
    """
    config = ModelConfig(model_name_or_path=name, dtype="auto")
    find_model("the adapter", name, weights=False)
    if not is_adapter(config):
        raise UserError(f"{name} is no LoRA adapter: it has no {ADAPTER}")
    if out.exists():
        raise UserError(f"{out} is there already: name a new folder")
    agent = load_agent(config)
    assert isinstance(agent, PeftModel)
    processor = load_processor(config)
    merged, partial = agent.merge_and_unload(), out.with_name(f".{out.name}.partial")
    with writing(out, SafetensorError):
        try:
            merged.save_pretrained(partial)
            processor.save_pretrained(partial)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def is_adapter(model: ModelConfig) -> bool:
    """Whether the name, of a folder or on the Hub, is that of a PEFT adapter.

    Raises:
        UserError: it can be the name of neither.
    """
    name = str(model.model_name_or_path)
    if Path(name).is_dir():
        return (Path(name) / ADAPTER).is_file()
    find_model("the model", name, revision=model.model_revision)
    with loading("the model", name):
        found = cached_file(
            name,
            ADAPTER,
            revision=model.model_revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    return found is not None


def build_protocol(recipe: Recipe, processor: Processor) -> TurnProtocol:
    """How turns are read and written, in the prompts and the templates that the recipe names.

    Raises:
        UserError: the processor cannot be used, or no turn could have the form that the reward pays for.
    """
    protocol = _protocol(recipe, processor)
    rule = getattr(recipe.reward, "rule", None) if isinstance(recipe.trainer, MMSearchGRPOConfig) else None
    if rule in _PAID_FOR_THINKING and protocol.chat.opens_thinking:
        raise UserError(
            f"the chat template of {recipe.model.model_name_or_path} begins every turn with <think>, so that none "
            f"holds the <think> that reward.rule: {rule} pays for: name an Instruct model, or take it out of the "
            "model's chat_template.jinja"
        )
    return protocol


def _protocol(recipe: Recipe, processor: Processor) -> TurnProtocol:
    data = recipe.data
    if data.protocol == "direct":
        return DirectProtocol(ChatEncoder(processor))
    if data.protocol == "search_r1":
        prompt = load_search_r1_prompt(data.first_turn_prompt)
        most = recipe.rollout.max_observation_tokens
        return SearchR1Protocol(ChatEncoder(processor), prompt, max_observation_tokens=most)
    templates = ReplyTemplates.load(data.reply_templates) if data.reply_templates else None
    if data.protocol == "mmsearch_r1_upstream":
        return UpstreamMMSearchProtocol(processor, data.prompts(), templates)
    return MMSearchProtocol(ChatEncoder(processor), data.prompts(), templates, recipe.tools)


def conversation_rules(protocol: TurnProtocol) -> ConversationRules | None:
    """How rows are read as conversations, by a protocol that is shown them; None for all others."""
    if not isinstance(protocol, DirectProtocol):
        return None
    chat = protocol.chat
    return ConversationRules(check=chat.check_conversation, fingerprint=chat.controls_fingerprint)


def build_tools(recipe: Recipe, protocol: TurnProtocol) -> SearchRuntime | None:
    """What searches are put to, looked at once; None where the protocol has none.

    Raises:
        UserError: a backend cannot be used.
        SearchLost: one does not answer.
    """
    if not isinstance(protocol, SearchProtocol):
        return None
    search = build_runtime(recipe.search)
    run_to_end(search.check())
    return search


def end_ids(model: PreTrainedModel | PeftModel, chat: ChatEncoder) -> set[int]:
    """Ids that end a turn, as TRL's trainer has them: the model's and the tokenizer's end tokens."""
    ends = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = {chat.turn_end_id, chat.tokenizer.eos_token_id}
    ids |= {ends} if isinstance(ends, int) else set(ends or ())
    return ids - {None}


def build_engine(model: PreTrainedModel | PeftModel, chat: ChatEncoder, *, max_batch: int = 64) -> TransformersEngine:
    """An engine that ends turns where TRL's trainer would."""
    return TransformersEngine(
        model,  # pyright: ignore[reportArgumentType]  (a PeftModel forwards everything to the model it wraps)
        chat.images,
        stop_ids=end_ids(model, chat),
        forbidden_ids=chat.forbidden_ids,
        image_pad_id=chat.image_pad_id,
        pad_id=chat.tokenizer.pad_token_id,
        vocabulary_size=chat.vocabulary_size,
        decode=chat.decode,
        max_batch=max_batch,
    )


def keep_token_out_of_files(args: TrainingArguments) -> None:
    """Move a recipe's Hub token to the environment: `training_args.bin`, which a push publishes, would hold it."""
    if args.hub_token is not None:
        os.environ["HF_TOKEN"] = args.hub_token
        args.hub_token = None


def load_whole(name: str, options: Mapping[str, Any]) -> PreTrainedModel:
    """A vision-language model, or a language model where the configuration knows of no vision."""
    find_model("the model", name, revision=options["revision"])
    check_family("the model", name, options["revision"])
    with loading("the model", name, SafetensorError):
        config = AutoConfig.from_pretrained(name, revision=options["revision"])
        loader = AutoModelForCausalLM if config.get_text_config() is config else AutoModelForImageTextToText
        loaded = loader.from_pretrained(name, **options)
    attend_to_all_windows(loaded)
    return loaded


def load_options(model: ModelConfig) -> dict[str, Any]:
    """Arguments of `from_pretrained`."""
    return {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
        "quantization_config": get_quantization_config(model),
    }
