"""vLLM in the trainer's own process, on the trainer's own GPUs.

The engine is stepped by a loop of ours (`step_loop.py`): a turn joins the running batch when it is asked for, and the
next step answers those that ended, so that no trajectory waits for another. vLLM's images are processed ahead in a
thread of their own, once per image (its key is vLLM's uuid), while the batch goes on.

Between two rollouts the engine may sleep and gets new weights. Whatever replaces weights empties the caches that were
computed with the old ones: keys and values, and what the vision tower made of images, which vLLM keeps by uuid.
"""

import gc
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from PIL import Image

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import ContextOverflow, EngineError
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.engine.step_loop import Request, StepLoop
from mmsearch_trl.engine.vllm_arguments import engine_arguments, start
from mmsearch_trl.engine.vllm_requests import Vocabulary, check_echo, compact, sampling_fields
from mmsearch_trl.engine.vllm_worker import repack_heads


if TYPE_CHECKING:
    from vllm import LLMEngine
    from vllm.lora.request import LoRARequest
    from vllm.outputs import CompletionOutput

_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


class ColocatedEngine:
    """An engine over vLLM in this process; at most one at a time.

    It writes turns within `rollout()` and takes weights outside of it. With sleep mode (`enable_sleep_mode`) it sleeps
    whenever no rollout runs, from the start: with `enable_lora` it keeps its weights, since adapters are sent alone,
    and without it forgets them, since all weights are sent anyway (`needs_weights`).

    Args:
        model: Folder or Hub name of the weights that it starts with.
        engine_args: vLLM's `EngineArgs`, over our defaults.
        group: Ranks that share one engine by tensor parallelism: a gloo group of consecutive ranks, of which each must
            build the engine, enter and leave every rollout, and load the same weights. None: this rank by itself.

    Raises:
        ImportError: vLLM is not installed.
        UserError: an engine argument is unknown, or does not go with the others.
    """

    def __init__(
        self,
        model: str,
        vocabulary: Vocabulary,
        *,
        engine_args: Mapping[str, Any] | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        if group is not None and dist.get_world_size(group) == 1:
            group = None
        args = engine_arguments(model, engine_args or {}, group)
        self._group = group
        self._owns_world = not dist.is_initialized()
        self._llm = start(args, group)
        self._stepper = _Stepper(self._llm, vocabulary)
        if not self._owns_world:
            # It runs when the engine is collected, or the process ends, and destroys whatever process group there is.
            self._llm.engine_core._finalizer.detach()  # pyright: ignore[reportAttributeAccessIssue]
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None
        self._loop: StepLoop | None = None
        self._adapters = 0
        self._past_seconds = 0.0
        self._sleeps = args.enable_sleep_mode
        self._sleep_level = 1 if args.enable_lora else 2
        self._asleep: set[str] = set()
        self.needs_weights = False
        """Whether `load_weights` must come before the next rollout."""
        self.max_model_len: int = self._llm.model_config.max_model_len
        self._sleep()

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        if self._loop is None:
            raise RuntimeError("a colocated engine writes turns within its rollout() only")
        if len(token_ids) >= self.max_model_len:
            raise ContextOverflow(f"the prompt has {len(token_ids)} tokens, max_model_len is {self.max_model_len}")
        return await self._loop.generate(token_ids, images, sampling)

    @contextmanager
    def rollout(self) -> Iterator[None]:
        """Write turns while this is open. Leaving waits for every rank of the group, and abandons turns under way."""
        self._between_rollouts()
        if self.needs_weights:
            raise RuntimeError("the engine slept without its weights: load_weights() must come before a rollout")
        self._wake("weights", "kv_cache")
        self._loop = loop = StepLoop(self._stepper, self._group, self._enter_thread)
        try:
            yield
        finally:
            try:
                loop.leave()
            finally:
                self._past_seconds += loop.busy_seconds
                self._loop = None
                self._sleep()

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Replace all weights, under the names of the `transformers` model; an adapter is dropped."""
        self._between_rollouts()
        self._wake("weights")
        self.needs_weights = True  # until all have arrived
        with torch.no_grad():
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
            if not torch.cuda.is_available():
                self._llm.apply_model(repack_heads)
        self.needs_weights = False
        self._stepper.adapter = None
        self._stepper.reset_caches()

    def load_adapter(self, path: Path, name: str) -> None:
        """Put the LoRA adapter that PEFT saved in `path` on the base weights, in place of the one before.

        vLLM leaves out some adapters' parts without a word: see `weight_sync.native_adapter_obstacle`.

        Raises:
            RuntimeError: the engine was built without `enable_lora`.
            UserError: vLLM refuses the adapter; the one before stays.
        """
        from vllm.lora.request import LoRARequest

        self._between_rollouts()
        self._wake("weights")
        self._adapters += 1
        adapter, previous = LoRARequest(f"{name}-{self._adapters}", self._adapters, str(path)), self._stepper.adapter
        self._llm.add_lora(adapter)
        self._stepper.adapter = adapter
        if previous is not None:
            self._llm.remove_lora(previous.lora_int_id)
        self._stepper.reset_caches()

    @property
    def busy_seconds(self) -> float:
        """Time spent stepping, for `rollout/engine_busy`."""
        return self._past_seconds + (self._loop.busy_seconds if self._loop is not None else 0.0)

    def close(self) -> None:
        """Free what vLLM holds. A process group that was there before the engine stays."""
        from vllm.distributed.parallel_state import destroy_model_parallel

        self._llm.renderer.shutdown()
        if self._owns_world:
            self._llm.engine_core.shutdown()
        else:
            self._stepper.core.model_executor.shutdown()
            self._stepper.core.scheduler.shutdown()
            destroy_model_parallel()
        del self._stepper, self._llm
        gc.unfreeze()  # vLLM froze what was there after it had started, its weights among it
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _between_rollouts(self) -> None:
        if self._loop is not None:
            raise RuntimeError("a rollout is open")

    def _enter_thread(self) -> None:
        # It gives a new thread the number of OpenMP threads that the process was set to. vLLM's CPU kernels stop when
        # that number changes between planning and running, as the first operation of torch would have it.
        torch.get_num_threads()
        if self._device is not None:  # a new thread starts on device 0
            torch.cuda.set_device(self._device)

    def _wake(self, *parts: str) -> None:
        asleep = [part for part in parts if part in self._asleep]
        if asleep:
            self._llm.wake_up(asleep)
            self._asleep.difference_update(asleep)

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(self._sleep_level)
            self._asleep = {"weights", "kv_cache"}
            self.needs_weights = self._sleep_level == 2


class _Stepper:
    """vLLM as the step loop sees it."""

    def __init__(self, llm: "LLMEngine", vocabulary: Vocabulary) -> None:
        self._llm = llm
        self._vocabulary = vocabulary
        self.core: Any = llm.engine_core.engine_core  # pyright: ignore[reportAttributeAccessIssue]
        self.adapter: LoRARequest | None = None
        self._newest: tuple[Any, Any] = (None, None)
        """The prompt that was prepared last, and what came of it."""

    def prepare(self, request: Request, images: Sequence[Image.Image]) -> Any:
        """vLLM's input for a request; the rollouts of a group ask for one prompt one after the other, and share it."""
        wanted = request.token_ids, request.image_keys
        if self._newest[0] != wanted:
            self._newest = wanted, self._prepared(request, images)
        return self._newest[1]

    def _prepared(self, request: Request, images: Sequence[Image.Image]) -> Any:
        prompt: dict[str, Any] = {"prompt_token_ids": compact(request.token_ids, self._vocabulary.image_pad_id)}
        if images:
            prompt["multi_modal_data"] = {"image": list(images)}
            prompt["multi_modal_uuids"] = {"image": list(request.image_keys)}
        # Not through the cache that vLLM splits between a sender and a receiver: a request that is prepared and then
        # not added would leave the two at odds, and the next one with that image would break the engine.
        renderer: Any = self._llm.renderer
        [prepared] = renderer.render_cmpl([prompt], skip_mm_cache=True)
        check_echo(request.token_ids, prepared["prompt_token_ids"])
        return prepared

    def add(self, request: Request, prepared: Any) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            **sampling_fields(request.sampling, self._vocabulary),
            ignore_eos=True,  # a checkpoint's own end tokens: `stop_ids` say where turns end
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._llm.add_request(request.name, prepared, params, lora_request=self.adapter)

    def abort(self, name: str) -> None:
        self._llm.abort_request([name])

    def step(self) -> list[tuple[str, Completion | EngineError]]:
        outputs: list[Any] = self._llm.step()
        return [(output.request_id, _outcome(output.outputs[0])) for output in outputs if output.finished]

    @property
    def busy(self) -> bool:
        return self.core.scheduler.has_requests() or bool(self.core.batch_queue)

    def start_over(self) -> None:
        for name in sorted(self._llm.output_processor.external_req_ids):
            self._llm.abort_request([name])
        if self.core.batch_queue is not None:
            self.core.batch_queue.clear()
        self.reset_caches()

    def reset_caches(self) -> None:
        self._llm.reset_mm_cache()
        self._llm.reset_encoder_cache()
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache: a turn must be under way")


def _outcome(output: "CompletionOutput") -> Completion | EngineError:
    reason = _REASONS.get(str(output.finish_reason))
    if reason is None:
        return EngineError(f"vLLM ended the turn with {output.finish_reason!r}")
    positions: list[Any] = list(output.logprobs or ())
    logprobs = tuple(position[token].logprob for token, position in zip(output.token_ids, positions, strict=True))
    if not all(map(math.isfinite, logprobs)):
        return EngineError("vLLM's log-probs are not finite; the model's weights may have diverged")
    return Completion(tuple(output.token_ids), logprobs, reason)
