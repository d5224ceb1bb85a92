"""GRPO over multi-turn search rollouts: TRL's trainer with its generation replaced.

Losses, KL, clipping, PEFT, distribution, checkpoints and logging are TRL's. What is overridden, and why:

* `_generate` returns the trajectories of our rollout. After `super().__init__` a truthy `self.tools` and
  `tool_images=images` select the branch of TRL that builds pixel values and M-RoPE from prompt *and* completion.
* `_generate_and_score_completions` hands rows to the rollout and finishes advantages and traces.
* `_get_per_token_logps_and_entropies` forwards only what is needed (`log_probs.py`).
* `_compute_loss` and `_calculate_rewards` only lend their arguments to the above.
* `evaluate` rolls out greedily and reports exact means (`evaluation.py`).

Facts about TRL 1.16 that this rests on are pinned by `tests/trainer/test_trl_contract.py`.
"""

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from trl import GRPOTrainer
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

from mmsearch_trl.data.dataset import row_to_task
from mmsearch_trl.data.task import Task
from mmsearch_trl.engine.base import ImageInput, Sampling
from mmsearch_trl.engine.images import ImageEncoder
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.protocol.chat import ChatEncoder
from mmsearch_trl.protocol.mmsearch import MMSearchProtocol
from mmsearch_trl.protocol.prompt_files import Prompts
from mmsearch_trl.rollout.background_loop import BackgroundLoop
from mmsearch_trl.rollout.compat import cut_response
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.loop import Tools, run_batch
from mmsearch_trl.rollout.trajectory import StopReason, Trajectory
from mmsearch_trl.traces.build import ScoredTrajectory
from mmsearch_trl.traces.files import TraceWriter, trace_path
from mmsearch_trl.trainer.advantages import group_advantages, informative_groups
from mmsearch_trl.trainer.batch import Generation, generation
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.evaluation import evaluate
from mmsearch_trl.trainer.log_probs import ScoredBatch
from mmsearch_trl.trainer.metrics import accuracy_by_search, completion_metrics, rollout_metrics
from mmsearch_trl.trainer.schedules import sigmoid_decay
from mmsearch_trl.versions import check_versions


Row = dict[str, Any]
PARTS = ("accuracy", "format", "searches")
"""Columns in which the reward function reports each trajectory's parts (`log_extra`)."""
_IMAGE_COLUMNS = ("image", "images")


class MMSearchGRPOTrainer(GRPOTrainer):
    """Trains a vision-language model to search on demand.

    Args:
        model, reward_funcs, args, kwargs: As for `trl.GRPOTrainer`. Rows of `train_dataset` are those of
            `data.dataset.load_dataset_rows`: `prompt`, `question`, encoded `images`, `answers`, `id` and more.
        search: The tools.
        limits: Turns, tokens and searches of a trajectory.
        protocol: How turns are read and replies written; by default MMSearch-R1's with the project's own prompts.
        resize_images: Bring question images to MMSearch-R1's size.

    Raises:
        ValueError: `args` or `kwargs` ask for something that this trainer replaces.
    """

    _tag_names: ClassVar[list[str]] = ["trl", "grpo", "mmsearch"]
    _name = "MMSearch-GRPO"

    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: MMSearchGRPOConfig,
        *,
        search: Tools,
        limits: Limits | None = None,
        protocol: MMSearchProtocol | None = None,
        resize_images: bool = False,
        **kwargs: Any,
    ) -> None:
        check_versions()
        for name in ("tools", "rollout_func", "environment_factory"):
            if kwargs.get(name) is not None:
                raise ValueError(f"{name} is TRL's own tool loop; MMSearchGRPOTrainer takes its tools from `search`.")
        super().__init__(model, reward_funcs, args, **kwargs)
        if not self._is_vlm:
            raise ValueError("MMSearchGRPOTrainer needs the processor of a vision-language model, got a tokenizer.")
        if args.freeze_vision:
            for name, parameter in self.model.named_parameters():
                if ".visual." in name:
                    parameter.requires_grad_(False)
        self.limits = limits or Limits()
        self.resize_images = resize_images
        self.search = search
        self.protocol = protocol or default_protocol(self.processing_class, self.limits)
        self.tools = [_no_tool]  # selects TRL's branch for images inside completions; never called
        self._event_loop = BackgroundLoop()
        self._trajectories: list[Trajectory] = []
        self._score_mask: torch.Tensor | None = None
        self._local_rewards: torch.Tensor | None = None
        self._parts: dict[str, list[float]] = {}
        self._generations = (-1, 0)
        self._traces: TraceWriter | None = None

    def roll_out(self, tasks: list[Task], seeds: list[str], temperature: float) -> list[Trajectory]:
        """Roll out tasks on this rank with the current weights; metrics go to the log of the current mode.

        Every rank must call it equally often: it gathers metrics.

        Args:
            seeds: One name per task; the same name gives the same trajectory under the same weights.
        """
        samplings = [
            Sampling(
                max_tokens=self.limits.max_turn_tokens,
                temperature=temperature,
                seed=random.Random(f"{self.args.seed}/{seed}").getrandbits(63),
            )
            for seed in seeds
        ]
        started = time.perf_counter()
        self.search.drain_records()
        with self._engine() as engine:
            trajectories = self._event_loop.run(
                run_batch(tasks, engine, self.protocol, self.search, self.limits, samplings)
            )
        if self.limits.compat:
            pad_id = self.protocol.chat.image_pad_id
            trajectories = [cut_response(t, self.limits.max_response_tokens, pad_id) for t in trajectories]
        metrics = rollout_metrics(
            trajectories,
            self.search.drain_records(),
            seconds=time.perf_counter() - started,
            engine_busy_seconds=engine.busy_seconds,
            gather=self.accelerator.gather,
            device=self.accelerator.device,
        )
        self._append_metrics(metrics)
        return trajectories

    @contextmanager
    def _engine(self) -> Iterator[TransformersEngine]:
        chat = self.protocol.chat
        with (
            profiling_context(self, "rollout"),
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
            ) as model,
            torch.no_grad(),
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            engine = TransformersEngine(
                model,
                chat.images,
                stop_ids=self.eos_token_ids,
                forbidden_ids=chat.vision_ids,
                image_pad_id=chat.image_pad_id,
                pad_id=self._tokenizer.pad_token_id,
                vocabulary_size=chat.vocabulary_size,
                max_batch=self.args.max_rollout_batch,
            )
            try:
                yield engine
            finally:
                engine.close()

    def _generate_and_score_completions(self, inputs: list[Row]) -> dict[str, Any]:
        collect = self._collect_informative if self.args.filter_zero_variance_groups else self._collect
        rows, self._trajectories = collect(inputs)
        processor = self.processing_class
        image_processor = processor.image_processor
        processor.image_processor = _EncodedImages(self.protocol.chat.images)
        try:
            output = super()._generate_and_score_completions(rows)
        finally:
            processor.image_processor = image_processor
            self._score_mask = None
        self._finish_advantages(output)
        self._write_traces(output["advantages"])
        self._trajectories = []
        return output

    def _collect(self, rows: list[Row]) -> tuple[list[Row], list[Trajectory]]:
        """Roll out the rows of a generation batch; the rows come back without their encoded images."""
        step, count = self.state.global_step, self._generations[1] + 1
        self._generations = (step, count if self._generations[0] == step else 0)
        first = self.accelerator.process_index * len(rows)
        seeds = [f"{step}/{self._generations[1]}/{first + i}" for i in range(len(rows))]
        tasks = [row_to_task(row, resize=self.resize_images) for row in rows]
        trajectories = self.roll_out(tasks, seeds, self.args.temperature)
        return [{k: v for k, v in row.items() if k not in _IMAGE_COLUMNS} for row in rows], trajectories

    def _collect_informative(self, rows: list[Row]) -> tuple[list[Row], list[Trajectory]]:
        """Roll out whole batches until enough prompts have rollouts that earned different rewards.

        New prompts are drawn at random by step and rank, so a resumed run draws the same ones. Reward functions run
        once more on what is kept.

        Raises:
            RuntimeError: `max_refills` batches did not bring enough.
        """
        group, wanted = self.num_generations, len(rows)
        kept_rows: list[Row] = []
        kept: list[Trajectory] = []
        for refill in range(self.args.max_refills + 1):
            fresh, trajectories = self._collect(rows)
            rewards = torch.tensor([scored.reward for scored in self.score(fresh, trajectories)])
            for i in informative_groups(rewards, group).nonzero().flatten().tolist():
                members = slice(i * group, (i + 1) * group)
                kept_rows, kept = kept_rows + fresh[members], kept + trajectories[members]
            enough = torch.tensor([len(kept) >= wanted], device=self.accelerator.device)
            if bool(self.accelerator.gather(enough).all()):
                self._append_metrics({"train/generation_batches": refill + 1.0})
                return kept_rows[:wanted], kept[:wanted]
            rng = random.Random(f"{self.args.seed}/{self._generations}/{self.accelerator.process_index}")
            chosen = rng.choices(range(len(self.train_dataset)), k=wanted // group)
            rows = [dict(self.train_dataset[i]) for i in chosen for _ in range(group)]
        raise RuntimeError(
            f"filter_zero_variance_groups: {self.args.max_refills + 1} batches held {len(kept) // group} prompts with "
            f"differing rewards, {wanted // group} are needed. Raise max_refills, or check that the reward varies."
        )

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
        return self._scored([None] * len(rows))

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
        stop_ids = set(self.eos_token_ids)
        metrics, tokens = completion_metrics(
            self._trajectories,
            ended=lambda t: bool(t.turns) and not stop_ids.isdisjoint(t.turns[-1].token_ids[-1:]),
            gather=self.accelerator.gather,
            device=device,
        )
        self._append_metrics(metrics)
        if self.model.training:
            self.state.num_input_tokens_seen += tokens
        self._metrics[self._mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        return batch

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> torch.Tensor:
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        # A rollout that the engine broke is no evidence about the policy: NaN keeps it out of its group's baseline.
        broken = torch.tensor([t.stop is StopReason.FAILED for t in self._trajectories], device=rewards.device)
        rewards[self.accelerator.gather(broken)] = torch.nan
        first = self.accelerator.process_index * len(prompts)
        self._local_rewards = rewards[first : first + len(prompts)]
        self._parts = {
            name: list(self._pending_extra_logs[name]) for name in PARTS if name in self._pending_extra_logs
        }
        return rewards

    def _finish_advantages(self, output: dict[str, Any]) -> None:
        """Put the configured epsilon in the place of TRL's fixed 1e-4, and log accuracy by whether it searched."""
        assert self._local_rewards is not None
        if "accuracy" in self._parts:
            self._append_metrics(
                dict(
                    accuracy_by_search(
                        self._trajectories,
                        self._parts["accuracy"],
                        gather=self.accelerator.gather,
                        device=self.accelerator.device,
                    )
                )
            )
        totals = (self._local_rewards * self.reward_weights.to(self._local_rewards)).nansum(dim=1)
        gathered = self.accelerator.gather(totals)
        scale = self.scale_rewards
        plain = self.multi_objective_aggregation == "sum_then_normalize" and not bool(
            self.accelerator.gather(self._local_rewards).isnan().any()
        )
        if self.args.advantage_eps != 1e-4 and plain:
            advantages = group_advantages(gathered, self.num_generations, scale, self.args.advantage_eps)
            first = self.accelerator.process_index * len(totals)
            output["advantages"] = advantages[first : first + len(totals)].to(output["advantages"])

    def _write_traces(self, advantages: torch.Tensor) -> None:
        if not self.args.save_traces:
            return
        if self._traces is None:
            path = trace_path(Path(self.args.output_dir), "train", self.accelerator.process_index)
            self._traces = TraceWriter(path, self._tokenizer)
        self._traces.write(self._scored(advantages.tolist()), step=self.state.global_step)

    def _scored(self, advantages: Sequence[float | None]) -> list[ScoredTrajectory]:
        assert self._local_rewards is not None
        totals = (self._local_rewards * self.reward_weights.to(self._local_rewards)).nansum(dim=1).tolist()
        return [
            ScoredTrajectory(
                trajectory=trajectory,
                reward=totals[i],
                rewards={name: values[i] for name, values in self._parts.items()},
                advantage=advantages[i],
            )
            for i, trajectory in enumerate(self._trajectories)
        ]

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
            ValueError: The model takes inputs of another vision family, or an auxiliary loss is asked for.
        """
        if compute_aux_loss or any(value is not None for value in unused.values()):
            names = [name for name, value in unused.items() if value is not None] or ["router auxiliary loss"]
            raise ValueError(f"MMSearchGRPOTrainer supports Qwen-VL style inputs; this model also needs {names}.")
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
        prompt_width = input_ids.shape[1] - logits_to_keep
        log_probs: list[torch.Tensor] = []
        entropies: list[torch.Tensor] = []
        for _, columns, inputs in batch.chunks(batch_size or len(input_ids)):
            with self.accelerator.autocast():
                outputs = model(**inputs, fused_lm_head=True)
            # Entry j of the outputs belongs to column j + 1 of the trimmed chunk.
            skip, tail = prompt_width - columns.start - 1, input_ids.shape[1] - columns.stop
            log_probs.append(torch.nn.functional.pad(outputs.log_probs[:, skip:], (0, tail)))
            if compute_entropy:
                entropies.append(torch.nn.functional.pad(outputs.entropy[:, skip:], (0, tail)))
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        self._score_mask = inputs["tool_mask"] * inputs["completion_mask"]
        try:
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

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Greedy rollouts of every row, exact means, and every row saved to `<output_dir>/evaluation`."""
        return evaluate(self, eval_dataset or self.eval_dataset, metric_key_prefix)

    def close(self) -> None:
        """Flush traces and let go of the tools."""
        if self._traces is not None:
            self._traces.close()

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    def _append_metrics(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)


def default_protocol(processor: Any, limits: Limits) -> MMSearchProtocol:
    """MMSearch-R1's protocol with the project's own prompts, in upstream's framing under `limits.compat`."""
    chat = ChatEncoder(processor, upstream_framing=limits.compat is not None)
    return MMSearchProtocol(chat, Prompts.load(), compat=limits.compat)


class _EncodedImages:
    """Stands in for the image processor while TRL lays out a batch: every picture has been processed by then."""

    def __init__(self, images: ImageEncoder) -> None:
        self._images = images
        self.merge_size = images.merge_size

    def __call__(self, images: list[ImageInput], return_tensors: str) -> dict[str, torch.Tensor]:
        features = [self._images.features(image) for image in images]
        return {
            "pixel_values": torch.cat([feature.pixel_values for feature in features]),
            "image_grid_thw": torch.stack([feature.grid_thw for feature in features]),
        }


def _no_tool() -> None:
    """Makes `self.tools` truthy."""
