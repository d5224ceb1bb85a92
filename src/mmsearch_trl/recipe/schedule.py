"""How a run would go in time: its steps, learning rate and evaluations, tried out before anything is loaded."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import ceil
from typing import Any

import torch
from transformers import Trainer, get_scheduler

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.evaluation.summary import OF_ANSWERS, OF_SEARCHES, GroupSummary
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.critic import build_schedule
from mmsearch_trl.trainer.schedules import sigmoid_decay
from mmsearch_trl.trainer.sft import MMSearchSFTConfig


_SFT_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second")
"""What an evaluation of `Trainer` gives back."""
_TRIED_STEPS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Batches:
    """
    Attributes:
        prompts: Of a generation batch, over all processes.
        rollouts: Of the same; LMM-R1 calls one a sample, and such a batch a rollout.
        updates: Optimizer steps on a generation batch.
        per_epoch: Generation batches of a pass over the rows.
        steps: Optimizer steps of the run.
    """

    prompts: int
    rollouts: int
    updates: int
    per_epoch: int
    steps: int

    def __str__(self) -> str:
        """Without the rows that it follows from."""
        size = f"{self.prompts:,} prompts x {self.rollouts // self.prompts} = {self.rollouts:,} samples"
        return f"{size}, {self.updates} update{'s' * (self.updates > 1)} of {self.rollouts // self.updates:,}"

    @classmethod
    def of(
        cls, args: MMSearchGRPOConfig, rows: int, *, enough: bool = True, processes: int | None = None
    ) -> "Batches":
        """
        Args:
            enough: Refuse too few rows.
            processes: Of the run, where it is not this one.

        Raises:
            UserError: the data hold fewer rows than a batch takes.
        """
        rollouts, group = int(args.generation_batch_size or 0), int(args.num_generations or 1)
        rollouts = rollouts * (processes or args.world_size) // args.world_size
        prompts = max(1, rollouts // group)
        if enough and rows < prompts:
            raise UserError(
                f"a batch takes {prompts} questions ({rollouts} rollouts: per_device_train_batch_size x processes x "
                f"steps_per_generation, in groups of num_generations {group}), and the training data hold {rows}: "
                "nothing would be trained; lower the batch size or steps_per_generation, or add data"
            )
        forwards = int(args.steps_per_generation or 1) * args.num_iterations
        updates = max(1, forwards // args.gradient_accumulation_steps)
        epoch = rows // prompts * forwards / args.gradient_accumulation_steps
        steps = args.max_steps if args.max_steps > 0 else ceil(args.num_train_epochs * epoch)
        return cls(prompts=prompts, rollouts=rollouts, updates=updates, per_epoch=rows // prompts, steps=max(0, steps))


def check_learning_rate(args: MMSearchGRPOConfig | MMSearchSFTConfig, steps: int) -> str:
    """Build optimizer and schedule for a single number, and take the first steps.

    Returns:
        What they are.

    Raises:
        UserError: one of them refuses its arguments.
    """
    weight = torch.nn.Parameter(torch.zeros(1))
    critic = args.critic if isinstance(args, MMSearchGRPOConfig) else None
    of_critic = ""
    if critic is not None:
        build_schedule(torch.optim.SGD([weight], lr=critic.learning_rate), critic, steps)
        of_critic = f"; of the critic {critic.learning_rate:g}, {critic.lr_scheduler_type}"
    try:
        Trainer.get_optimizer_cls_and_kwargs(args)
    except (ValueError, ImportError, TypeError, KeyError) as error:
        raise UserError(f"optim: {plain(args.optim)} with optim_args {args.optim_args}: {_one_line(error)}") from error
    optimizer = torch.optim.SGD([weight], lr=args.learning_rate)
    ratio = getattr(args, "lr_sigmoid_ratio", None)
    if ratio is not None:
        sigmoid_decay(optimizer, ratio, args.lr_sigmoid_step)  # pyright: ignore[reportAttributeAccessIssue]
        return f"{plain(args.optim)}, learning rate {args.learning_rate:g} with a sigmoid fall{of_critic}"
    name, given = plain(args.lr_scheduler_type), args.lr_scheduler_kwargs
    warmup = args.get_warmup_steps(steps)
    try:
        schedule = get_scheduler(
            name,
            optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=dict(given) if isinstance(given, dict) else None,
        )
        if name != "reduce_lr_on_plateau":
            for _ in range(min(steps, _TRIED_STEPS)):
                optimizer.step()
                schedule.step()
    except (ValueError, TypeError, KeyError, ArithmeticError) as error:
        words = re.sub(r"\b\w+\(\) (got|missing)", r"it \1", _one_line(error)).replace("'", "`")
        raise UserError(f"lr_scheduler_type: {name} with lr_scheduler_kwargs {given or {}}: {words}") from error
    warmed = f"{name}, {warmup} warm-up steps of {steps}"
    return f"{plain(args.optim)}, learning rate {args.learning_rate:g}, {warmed}{of_critic}"


def check_evaluations(
    args: MMSearchGRPOConfig | MMSearchSFTConfig,
    names: Sequence[str],
    *,
    searches: bool = True,
    judged: bool = True,
) -> None:
    """
    Args:
        names: Of the evaluation data, by which their metrics go.
        searches: Whether there is anything to search with, and so are numbers of it.
        judged: Whether anybody can tell a right answer, and so are numbers of it.

    Raises:
        UserError: evaluations are asked for without data, or by a metric that none of them has.
    """
    strategy = plain(args.eval_strategy)
    if not names:
        for key, on in (
            (f"eval_strategy: {strategy}", strategy != "no"),
            ("eval_on_start", args.eval_on_start),
            ("load_best_model_at_end", args.load_best_model_at_end),
        ):
            if on:
                raise UserError(f"{key} needs evaluation data, and eval_files is empty: name them, or leave it out")
        return
    plateau = plain(args.lr_scheduler_type) == "reduce_lr_on_plateau"
    if plateau and strategy == "no":
        raise UserError("lr_scheduler_type: reduce_lr_on_plateau follows an evaluation: set eval_strategy, too")
    metric = args.metric_for_best_model
    if metric is None or strategy == "no":
        return
    absent = {"tools"}.union(() if searches else OF_SEARCHES, () if judged else OF_ANSWERS)
    own = tuple(each.name for each in fields(GroupSummary) if each.name not in absent)
    grpo = isinstance(args, MMSearchGRPOConfig)
    known = [f"{name}_{number}" for name in names for number in own] if grpo else list(_SFT_METRICS)
    bare = metric.removeprefix("eval_")
    # Of a part of the data: `known_source/fvqa/accuracy`, `known_searched/accuracy`, `known_tool/crop/ratio`.
    parts = "source|category|searched|unsearched|tool" if searches else "source|category"
    part = any(re.fullmatch(rf"{re.escape(name)}_({parts})/.+", bare) for name in names)
    if bare not in known and not (grpo and part):
        near = difflib.get_close_matches(bare, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        shown = f"the name of the data and {', '.join(own)}" if grpo else ", ".join(_SFT_METRICS)
        raise UserError(f"metric_for_best_model: evaluations have no {metric!r}{hint} (they have {shown})")


def plain(value: Any) -> str:
    """The text of an option that transformers makes a member of an enumeration."""
    return str(getattr(value, "value", value))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
