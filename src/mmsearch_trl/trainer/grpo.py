"""GRPO over multi-turn search rollouts: TRL's trainer with its generation replaced.

Losses, KL, clipping, PEFT, distribution, checkpoints and logging are TRL's. What is overridden, and why:

* `_generate_and_score_completions` has the batch rolled out and scored (`collector.py`), and finishes advantages and
  traces. Inside it, `_generate` lays the trajectories out for TRL and `_calculate_rewards` hands over their rewards.
  After `super().__init__` a truthy `self.tools` and `tool_images=images` select the branch of TRL that builds pixel
  values and M-RoPE from prompt *and* completion.
* The training step is TRL's on sampled tokens alone (`trimmed.py`); full checkpoints load (`checkpoints.py`).
* `evaluate` rolls every row out once and reports exact means (`evaluated.py`); `create_model_card` writes
  one whose quick start searches (`hub/card.py`).

What it works with is handed what it needs and returns what it found; this class alone logs. Facts about TRL 1.16 that
this rests on are pinned by `tests/trainer/test_trl_contract.py`.
"""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from trl.extras.profiling import profiling_context
from trl.trainer.utils import pad

from mmsearch_trl.core.ratio import Ratio
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.hub.card import write_model_card
from mmsearch_trl.hub.facts import ModelFacts
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.protocol.mmsearch import default_protocol
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.traces.files import TRAIN, trace_path
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.batch import Generation, generation, images_as_encoded
from mmsearch_trl.trainer.batch_position import BatchPosition
from mmsearch_trl.trainer.checkpoints import FullCheckpoints
from mmsearch_trl.trainer.checks import (
    check_arguments,
    check_enough_rows,
    check_model,
    check_pictures,
)
from mmsearch_trl.trainer.collected import CollectedBatch
from mmsearch_trl.trainer.collector import Collector
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.console import use_console
from mmsearch_trl.trainer.estimators import build_estimator
from mmsearch_trl.trainer.evaluated import EvaluatedByRollouts
from mmsearch_trl.trainer.freezing import freeze
from mmsearch_trl.trainer.metrics import accuracy_by_search, completion_metrics
from mmsearch_trl.trainer.preemption import StepEnd
from mmsearch_trl.trainer.rewards import RewardFunctions
from mmsearch_trl.trainer.sampler.build import build_sampler
from mmsearch_trl.trainer.training_traces import TrainingTraces
from mmsearch_trl.trainer.vision_ranks import VisionOnAllRanks


class MMSearchGRPOTrainer(FullCheckpoints, EvaluatedByRollouts):
    """Trains a vision-language model, or a language model, to search on demand.

    Args:
        model, reward_funcs, args, kwargs: As for `trl.GRPOTrainer`. Rows of `train_dataset` are those of
            `data.dataset.load_dataset_rows`: `prompt`, `question`, encoded `images`, `answers`, `id` and more.
        search: The tools; None where the protocol has none.
        limits: Turns, tokens and searches of a trajectory.
        protocol: How turns are read and replies written; by default MMSearch-R1's with the project's own prompts.
        resize_images: Bring question images to MMSearch-R1's size.

    Raises:
        UserError: `args` or `kwargs` ask for something that this trainer replaces.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "mmsearch"]
    _name = "MMSearch-GRPO"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: MMSearchGRPOConfig,
        *,
        search: Tools | None = None,
        limits: Limits | None = None,
        protocol: TurnProtocol | None = None,
        resize_images: bool = False,
        **kwargs: Any,
    ) -> None:
        check_versions()
        check_arguments(model, args, kwargs)
        # TRL would start a vLLM client of its own; after that, `use_vllm` only has it correct for the sampler.
        use_vllm, args.use_vllm = args.use_vllm, False
        super().__init__(model, reward_funcs, args, **kwargs)
        self.use_vllm = args.use_vllm = use_vllm
        self.mask_truncated_completions = False  # TRL's hides tokens from attention: `generation` masks them
        check_model(self.model, has_processor=self._is_vlm, has_auxiliary_loss=self.aux_loss_enabled)
        check_enough_rows(self.train_dataset, args)
        freeze(self.model, args.freeze_prefix, freeze_vision=args.freeze_vision)
        self.tools = [_no_tool]  # selects TRL's branch for images inside completions; never called
        protocol = protocol or default_protocol(self.processing_class)
        self.ranks = Ranks()
        self.estimator = build_estimator(args, self.ranks)
        self._vision = VisionOnAllRanks(self.processing_class, self.ranks)
        self.build_critic()
        self.rollouter = Rollouter(protocol, search, limits or Limits(), max_in_flight=args.max_trajectories_in_flight)
        loop = self.rollouter.loop
        self.sampler = build_sampler(
            args.sampler_options(), self.policy, protocol.chat, self.eos_token_ids, self.ranks, loop
        )
        if self.sampler.max_model_len is not None:
            self.rollouter.limits = self.rollouter.limits.within(self.sampler.max_model_len)
        check_pictures(self.train_dataset, self.rollouter.limits, search, self.sampler.max_images)
        self.reward_functions = RewardFunctions(
            self.reward_funcs,
            self.reward_processing_classes,
            self.reward_weights,
            self.chat_template_kwargs,
            loop,
            protocol.chat.spelled,
        )
        self.collector = Collector(
            args, self.rollouter, self.sampler, self.reward_functions, self.ranks, resize_images=resize_images
        )
        self.surplus = self.collector.surplus
        self._batch: CollectedBatch | None = None  # between its rollout and its loss
        self.traces = TrainingTraces(trace_path(self.run_dir, TRAIN, self.ranks.index), self._tokenizer)
        self._evaluating = False
        use_console(self, "GRPO")

    def abandon(self) -> None:
        # Ranks evaluate different rows and meet at the end: there they all end together.
        if self.ranks.count == 1 or not self._evaluating:
            self.rollouter.abandon()

    def _at_step_end(self) -> StepEnd:
        return StepEnd.of(self.state.num_input_tokens_seen, self.batch_position())

    def batch_position(self) -> BatchPosition:
        return replace(super().batch_position(), outage=self.collector.outage.state())

    def go_on_from(self, position: BatchPosition) -> None:
        super().go_on_from(position)
        # A process that was not there when this was saved has seen nothing, and all must judge alike.
        self.collector.outage.go_on_from(self.ranks.on_main(lambda: position.outage))

    def _back_to(self, step_end: StepEnd) -> None:
        super()._back_to(step_end)
        assert step_end.batch is not None
        # After an outage that ended the run it has forgotten all, and a run that is resumed begins anew.
        seen = step_end.batch.outage if self.collector.outage.has_seen else {}
        self.go_on_from(replace(step_end.batch, outage=seen))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        with profiling_context(self, "rollout"):
            collection = self.collector.collect(inputs, self.policy, self.state, self.train_dataset)
        for metrics in collection.metrics:
            self.append_metrics(metrics)
        self._batch = batch = collection.batch
        try:
            with images_as_encoded(self.processing_class, self.rollouter.protocol.chat.images):
                output = super()._generate_and_score_completions(batch.rows)
        finally:
            self._batch = self._score_mask = None
        self.check_sampler(output, batch.carried, self.ranks)
        self.keep_sampling_log_probs(output, batch.carried, self.ranks)
        advantages = self._finish_advantages(batch, output)
        if self.ranks.any("accuracy" in batch.rewards.columns):
            accuracies = batch.rewards.columns.get("accuracy", [None] * len(batch.rows))
            self.append_metrics(dict(accuracy_by_search(batch.trajectories, accuracies, self.ranks)))
        if self.args.save_traces:
            scored = batch.rewards.of(batch.trajectories, advantages.tolist())
            self.traces.write(scored, self.state.global_step)
        return output

    def _generate(self, prompts: list[Any]) -> Generation:
        assert self._batch is not None
        chat, limits = self.rollouter.protocol.chat, self.rollouter.limits
        failures, truncated = self.args.mask_infrastructure_failures, self.args.mask_truncated_completions
        trajectories = self._batch.trajectories
        layout = generation(trajectories, chat, limits, mask_failures=failures, mask_truncated=truncated)
        masks = [torch.tensor(mask) for mask in layout.tool_mask]
        mask = pad(masks, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of)
        self._score_mask = mask.to(self.accelerator.device)
        metrics, tokens = completion_metrics(self._batch.trajectories, self.ranks)
        self.append_metrics(metrics)
        if self.model.training:
            self.state.num_input_tokens_seen += tokens
        self._metrics["train" if self.model.training else "eval"]["num_tokens"] = [self.state.num_input_tokens_seen]
        return layout

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        assert self._batch is not None
        rewards = self._batch.rewards
        for name, column in rewards.columns.items():
            self._log_completion_extra(name, list(column))
        names = sorted(set(self.ranks.gather_objects(list(rewards.metrics))))
        ratios = [rewards.metrics.get(name, Ratio(0, 0)) for name in names]
        sums = self.ranks.sum([number for ratio in ratios for number in (ratio.total, ratio.count)])
        self.append_metrics({name: Ratio(*sums[2 * i : 2 * i + 2]) for i, name in enumerate(names)})
        return self.ranks.gather(rewards.values)

    def _finish_advantages(self, batch: CollectedBatch, output: dict[str, Any]) -> torch.Tensor:
        """Have the estimator replace TRL's advantages, or the configured epsilon its 1e-4; those of trajectories."""
        advantages, rewards = output["advantages"], batch.rewards.totals
        if self.estimator is not None:
            estimate = self.estimator(rewards, output, self.log_probs_of, self.values_of)
            output["advantages"], advantages = estimate.advantages, estimate.of_trajectories
            self.append_metrics(estimate.metrics)
            if self.num_generations == 1:  # then TRL counts every rollout as a group without deviation
                self._metrics["train"].pop("frac_reward_zero_std", None)
            self.learn_values(output, estimate)
        elif self.args.advantage_eps != 1e-4 and self.multi_objective_aggregation == "sum_then_normalize":
            every = self.ranks.gather(rewards), self.num_generations, self.scale_rewards, self.args.advantage_eps
            advantages = group_advantages(*every).split(len(rewards))[self.ranks.index].to(advantages)
            output["advantages"] = advantages
        self._logs["advantages"].extend(self.ranks.gather(advantages).tolist())  # as many again: TRL's fall out
        return advantages

    def create_model_card(  # pyright: ignore[reportIncompatibleMethodOverride]  (it has the signature of TRL's)
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `<output_dir>/README.md`; TRL's own shows a chat pipeline, which cannot search."""
        if not self.is_world_process_zero():
            return
        facts = ModelFacts(
            model=self.policy.model,
            hub_id=self.hub_model_id,
            rollouter=self.rollouter,
            resize_images=self.collector.resize_images,
            rewards=dict(zip(self.reward_func_names, self.reward_funcs, strict=True)),
            step=self.state.global_step,
            history=self.state.log_history,
        )
        own = [tags] if isinstance(tags, str) else list(tags or ())
        write_model_card(facts, self.run_dir, model_name, dataset_name, [*own, *self._tag_names])

    def close(self) -> None:
        """Flush traces and let go of the tools and the engine."""
        self.sampler.close()
        self.rollouter.close()
        self.reward_functions.close()
        self.traces.close()


def _no_tool() -> None:
    """Makes `self.tools` truthy."""
