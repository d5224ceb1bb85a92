"""GRPO over multi-turn search rollouts: TRL's trainer with its generation replaced.

Losses, KL, clipping, PEFT, distribution, checkpoints and logging are TRL's. What is overridden, and why:

* `_generate` returns the trajectories of our rollout. After `super().__init__` a truthy `self.tools` and
  `tool_images=images` select the branch of TRL that builds pixel values and M-RoPE from prompt *and* completion.
* `_generate_and_score_completions` hands rows to the rollout and finishes advantages and traces.
* `_prepare_inputs` deals the rows of each optimizer step to micro-batches by length (`micro_batches.py`).
* `_get_per_token_logps_and_entropies` forwards only what is needed (`log_probs.py`).
* `_compute_loss` and `_calculate_rewards` only lend their arguments to the above.
* `_get_train_sampler` orders each epoch by its number, so that a resumed run goes on with the data (`samplers.py`).
* `_load_from_checkpoint` and `_load_best_model` find the weights that were saved (`checkpoints.py`).
* `evaluate` rolls out greedily and reports exact means (`evaluation.py`).

Facts about TRL 1.16 that this rests on are pinned by `tests/trainer/test_trl_contract.py`.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from trl import GRPOTrainer
from trl.trainer.utils import pad

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.core.versions import check_versions
from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.hub.card import write_model_card
from mmsearch_trl.protocol.base import TurnProtocol
from mmsearch_trl.protocol.mmsearch import default_protocol
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.rollout.backpressure import Backpressure
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools
from mmsearch_trl.search.calls.failure_monitor import FailureMonitor
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.trainer.advantages import RewardScale, group_advantages
from mmsearch_trl.trainer.batch import Generation, generation, images_as_encoded
from mmsearch_trl.trainer.checkpoints import FullCheckpoints
from mmsearch_trl.trainer.checks import check_arguments, check_enough_rows, check_processor
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.console import use_console
from mmsearch_trl.trainer.engines import build_rollout_engine
from mmsearch_trl.trainer.evaluation import evaluate
from mmsearch_trl.trainer.filtering import collect_informative
from mmsearch_trl.trainer.log_probs import ScoredBatch, score_tokens
from mmsearch_trl.trainer.metrics import accuracy_by_search, completion_metrics
from mmsearch_trl.trainer.micro_batches import deal_by_length, forwarded_per_token
from mmsearch_trl.trainer.rollouts import roll_out, samplings
from mmsearch_trl.trainer.samplers import EpochSampler
from mmsearch_trl.trainer.schedules import sigmoid_decay
from mmsearch_trl.trainer.scores import PARTS, LocalScores
from mmsearch_trl.trainer.stragglers import Stragglers
from mmsearch_trl.trainer.trajectory_loss import trajectory_loss


Row = dict[str, Any]
_IMAGE_COLUMNS = ("image", "images")


class MMSearchGRPOTrainer(FullCheckpoints, GRPOTrainer):
    """Trains a vision-language model, or a language model, to search on demand.

    Args:
        model, reward_funcs, args, kwargs: As for `trl.GRPOTrainer`. Rows of `train_dataset` are those of
            `data.dataset.load_dataset_rows`: `prompt`, `question`, encoded `images`, `answers`, `id` and more.
        search: The tools.
        limits: Turns, tokens and searches of a trajectory.
        protocol: How turns are read and replies written; by default MMSearch-R1's with the project's own prompts.
        resize_images: Bring question images to MMSearch-R1's size.

    Raises:
        UserError: `args` or `kwargs` ask for something that this trainer replaces.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "mmsearch"]
    _name = "MMSearch-GRPO"

    # What TRL and transformers declare more loosely than it is here.
    args: MMSearchGRPOConfig
    model: Any
    model_wrapped: Any
    accelerator: Any
    processing_class: Any
    train_dataset: Any
    num_generations: int
    optimizer: Any
    pad_to_multiple_of: int | None
    reward_weights: torch.Tensor
    scale_rewards: RewardScale

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: MMSearchGRPOConfig,
        *,
        search: Tools,
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
        check_processor(self.model, self._is_vlm)
        check_enough_rows(self.train_dataset, args)
        if args.freeze_vision:
            vision = [parameter for name, parameter in self.model.named_parameters() if ".visual." in name]
            if not vision:
                raise UserError("freeze_vision: the model has no vision tower (no parameter is named .visual.)")
            for parameter in vision:
                parameter.requires_grad_(False)
        self.limits = limits or Limits()
        self.resize_images = resize_images
        self.search = search
        self.failure_monitor = FailureMonitor(args.max_search_failure_share, args.search_failure_window)
        self.ended_early: str | None = None
        """Why training was ended before its time, in words."""
        cap = args.max_trajectories_in_flight
        self.backpressure = None if cap is None else Backpressure(cap, args.kv_high_water)
        self.stragglers = Stragglers(self)
        self.protocol: TurnProtocol = protocol or default_protocol(self.processing_class, compat=self.limits.compat)
        self.tools = [_no_tool]  # selects TRL's branch for images inside completions; never called
        self.event_loop = BackgroundLoop()
        self._trajectories: list[Trajectory] = []
        self._score_mask: torch.Tensor | None = None
        self._scores: LocalScores | None = None
        self.generations = (-1, 0)
        self._traces: TraceWriter | None = None
        use_console(self, "GRPO")
        self.rollout_engine = build_rollout_engine(self, use_vllm=use_vllm)
        if self.rollout_engine.max_model_len is not None:
            self.limits = self.limits.within(self.rollout_engine.max_model_len)

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        collect = collect_informative if self.args.filter_zero_variance_groups else MMSearchGRPOTrainer.collect
        rows, self._trajectories = collect(self, inputs)
        try:
            with images_as_encoded(self.processing_class, self.protocol.chat.images):
                output = super()._generate_and_score_completions(rows)
        finally:
            self._score_mask = None
        assert self._scores is not None
        self._finish_advantages(self._scores, output)
        self.stragglers.settle(self._scores, output["advantages"])
        if "accuracy" in self._scores.parts:
            accuracies = self._scores.parts["accuracy"]
            gather, device = self.accelerator.gather, self.accelerator.device
            found = accuracy_by_search(self._trajectories, accuracies, gather=gather, device=device)
            self.append_metrics(dict(found))
        self._write_traces(self._scores.of(self._trajectories, output["advantages"].tolist()))
        self._trajectories = []
        return output

    def collect(self, rows: list[Row]) -> tuple[list[Row], list[Trajectory]]:
        """Roll out the rows of a generation batch; the rows come back without their encoded images."""
        step, count = self.state.global_step, self.generations[1] + 1
        self.generations = (step, count if self.generations[0] == step else 0)
        first = self.accelerator.process_index * len(rows)
        seeds = [f"{step}/{self.generations[1]}/{first + i}" for i in range(len(rows))]
        tasks = [row_to_task(row, resize=self.resize_images) for row in rows]
        sampled_as = samplings(self, seeds, self.args.temperature)
        share, carried = self.args.rollout_close_share, self.stragglers.unfinished
        trajectories = roll_out(self, tasks, sampled_as, close_share=share, carried=carried)
        rows = [{k: v for k, v in row.items() if k not in _IMAGE_COLUMNS} for row in rows]
        return self.stragglers.seat(rows, trajectories, sampled_as)

    def score(self, rows: list[Row], trajectories: list[Trajectory]) -> list[ScoredTrajectory]:
        """Apply the reward functions to trajectories of this rank, outside a training batch; logs nothing.

        Every rank must call it equally often and with equally many rows: TRL gathers rewards.
        """
        batch = self._lay_out(trajectories)
        self._trajectories = trajectories
        rows = [{k: v for k, v in row.items() if k not in _IMAGE_COLUMNS} for row in rows]
        self._calculate_rewards(rows, [row["prompt"] for row in rows], batch.completions, batch.completion_ids)
        self._pending_extra_logs.clear()
        self._pending_metrics.clear()
        assert self._scores is not None
        return self._scores.of(trajectories)

    def _lay_out(self, trajectories: list[Trajectory]) -> Generation:
        return generation(
            trajectories,
            self.protocol.chat,
            mask_failures=self.args.mask_infrastructure_failures,
            compat=self.limits.compat is not None,
        )

    def _generate(self, prompts: list[Any]) -> Generation:
        batch = self._lay_out(self._trajectories)
        masks = [torch.tensor(mask) for mask in batch.tool_mask]
        device = self.accelerator.device
        self._score_mask = pad(
            masks, padding_value=0, padding_side="right", pad_to_multiple_of=self.pad_to_multiple_of
        ).to(device)
        metrics, tokens = completion_metrics(self._trajectories, gather=self.accelerator.gather, device=device)
        self.append_metrics(metrics)
        if self.model.training:
            self.state.num_input_tokens_seen += tokens
        self._metrics[self._mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        return batch

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        first = self.accelerator.process_index * len(prompts)
        # What was broken off is no evidence about the policy: NaN keeps it out of its group's baseline.
        outside = self.stragglers.exclude(rewards[first : first + len(prompts)], self._trajectories)
        rewards[self.accelerator.gather(torch.tensor(outside, device=rewards.device))] = torch.nan
        logged = self._pending_extra_logs
        parts = {name: list(logged[name]) for name in PARTS if name in logged}
        self._scores = LocalScores(rewards[first : first + len(prompts)], self.reward_weights, parts)
        return rewards

    def _finish_advantages(self, scores: LocalScores, output: dict[str, Any]) -> None:
        """Put the configured epsilon in the place of TRL's fixed 1e-4."""
        if self.args.advantage_eps == 1e-4 or self.multi_objective_aggregation != "sum_then_normalize":
            return
        totals = self.accelerator.gather(scores.totals)
        advantages = group_advantages(totals, self.num_generations, self.scale_rewards, self.args.advantage_eps)
        first = self.accelerator.process_index * len(scores.rewards)
        output["advantages"] = advantages[first : first + len(scores.rewards)].to(output["advantages"])

    def _write_traces(self, scored: list[ScoredTrajectory]) -> None:
        if not self.args.save_traces:
            return
        step = self.state.global_step
        if self._traces is None:
            path = trace_path(self.run_dir, "train", self.accelerator.process_index)
            self._traces = TraceWriter(path, self._tokenizer)
            self._traces.forget_from(step)  # a resumed run samples these steps again
        self._traces.write(scored, step=step)

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        before = self._buffered_inputs
        inputs = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is before:
            return inputs
        self._buffered_inputs = deal_by_length(self._buffered_inputs, self.args)
        self.append_metrics({"train/forwarded_per_token": forwarded_per_token(self._buffered_inputs)})
        return self._buffered_inputs[self._step % len(self._buffered_inputs)]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: torch.Tensor | None = None,
        image_grid_thw: torch.Tensor | None = None,
        num_images: list[int] | None = None,
        mm_token_type_ids: torch.Tensor | None = None,
        **unused: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """As TRL's, on trimmed micro-batches; `(b, c)` each, 0 on tokens that are not scored.

        Raises:
            UserError: The model takes inputs of another vision family, or an auxiliary loss is asked for.
        """
        if compute_aux_loss or any(value is not None for value in unused.values()):
            names = [name for name, value in unused.items() if value is not None] or ["router auxiliary loss"]
            raise UserError(f"MMSearchGRPOTrainer supports Qwen-VL style inputs; this model also needs {names}.")
        score_mask = attention_mask[:, -logits_to_keep:] if self._score_mask is None else self._score_mask
        batch = ScoredBatch(
            input_ids=input_ids,
            attention_mask=attention_mask,
            score_mask=score_mask,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            num_images=num_images,
            mm_token_type_ids=mm_token_type_ids,
        )
        with self.accelerator.autocast():
            log_probs, entropies = score_tokens(
                model, batch, chunk=batch_size or len(input_ids), entropy=compute_entropy
            )
        return log_probs, entropies, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._score_mask = inputs["tool_mask"] * inputs["completion_mask"]
        try:
            if self.args.trajectory_level_loss:
                return trajectory_loss(self, model, inputs)
            return super()._compute_loss(model, inputs)
        finally:
            self._score_mask = None

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        if self.args.lr_sigmoid_ratio is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = sigmoid_decay(
            optimizer or self.optimizer, self.args.lr_sigmoid_ratio, self.args.lr_sigmoid_step
        )
        return self.lr_scheduler

    def _get_train_sampler(self, dataset: Any = None) -> EpochSampler:
        plain: Any = super()._get_train_sampler(dataset)
        return EpochSampler(plain, epoch=lambda: int((self.state.epoch or 0) + 1e-6))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Greedy rollouts of every row, exact means, and every row saved to `<output_dir>/evaluation`."""
        return evaluate(self, eval_dataset or self.eval_dataset, metric_key_prefix)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write `<output_dir>/README.md`; TRL's own shows a chat pipeline, which cannot search."""
        if self.is_world_process_zero():
            write_model_card(self, model_name, dataset_name, tags)

    def close(self) -> None:
        """Flush traces and let go of the tools and the engine."""
        self.rollout_engine.close()
        if isinstance(self.search, SearchRuntime):
            self.event_loop.run(self.search.disconnect())
        if self._traces is not None:
            self._traces.close()
            self._traces = None

    @property
    def run_dir(self) -> Path:
        """Where traces, evaluations and checkpoints of this run lie."""
        return Path(str(self.args.output_dir))

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def append_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)


def _no_tool() -> None:
    """Makes `self.tools` truthy."""
