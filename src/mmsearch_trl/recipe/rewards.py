"""The rewards that a recipe names, in the order in which `reward_weights` weighs them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.models.location import find_model
from mmsearch_trl.recipe.recipe import Recipe
from mmsearch_trl.rewards.classifier import load_classifier
from mmsearch_trl.rewards.overlong import OverlongPenalty
from mmsearch_trl.rewards.remote import RemoteReward, check_servers
from mmsearch_trl.rewards.rule import Rule
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rewards.user_function import user_function
from mmsearch_trl.rollout.background_loop import run_to_end
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewards:
    """
    Attributes:
        rule: Says which rows can be scored; None where none is asked for.
        functions: In TRL's signature; reward models as modules.
        tokenizers: Of those that are models; None for the others.
        weights: `(functions,)`.
    """

    rule: Rule | None
    functions: list[Any]
    tokenizers: list[Any]
    weights: torch.Tensor


def check_rewards(recipe: Recipe) -> str:
    """See that everything is there, without loading a model, and say what; servers have seconds to answer.

    Raises:
        UserError: something is not.
    """
    args, section = recipe.trainer, recipe.reward
    assert isinstance(args, MMSearchGRPOConfig)
    weights = weights_of(args.reward_weights, section.names())
    overlong, longest = section.overlong, recipe.rollout.max_response_tokens
    if overlong is not None and overlong.free_tokens >= longest:
        raise UserError(
            f"reward.overlong begins at {overlong.free_tokens} tokens (max_tokens - buffer), and no rollout is longer "
            f"than {longest} (rollout.max_response_tokens): lower one or raise the other"
        )
    for name in section.models:
        find_model("reward.models", name)
    for path in section.function:
        user_function(path)
    if section.remote is not None:
        run_to_end(check_servers(section.remote))
    return ", ".join(f"{name} x {weight:g}" for name, weight in zip(section.names(), weights, strict=True))


def build_rewards(recipe: Recipe) -> Rewards:
    """
    Raises:
        UserError: a function or model is not there or cannot be used, or a server does not answer.
    """
    args, section, rule = recipe.trainer, recipe.reward, recipe.reward.scored_by
    assert isinstance(args, MMSearchGRPOConfig)
    check_rewards(recipe)
    plain: list[Any] = [] if rule is None else [RuleReward(rule)]
    plain += map(user_function, section.function)
    models = [load_classifier(name) for name in section.models]
    last: list[Any] = [] if section.remote is None else [RemoteReward(section.remote)]
    last += [] if section.overlong is None else [OverlongPenalty(section.overlong)]
    return Rewards(
        rule=rule,
        functions=[*plain, *(model for model, _ in models), *last],
        tokenizers=[*(None for _ in plain), *(tokenizer for _, tokenizer in models), *(None for _ in last)],
        weights=torch.tensor(weights_of(args.reward_weights, section.names())),
    )


def weights_of(given: Sequence[float] | None, names: Sequence[str]) -> list[float]:
    """A weight for each reward.

    Raises:
        UserError: there are more or fewer.
    """
    if given is not None and len(given) != len(names):
        raise UserError(
            f"reward_weights holds {len(given)} numbers, and there are {len(names)} rewards ({', '.join(names)}): "
            "give one for each"
        )
    return [1.0] * len(names) if given is None else [float(weight) for weight in given]
