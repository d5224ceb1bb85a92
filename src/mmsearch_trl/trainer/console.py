"""What a person sees while a run goes on: one bar, and one short line per logging step in place of TRL's whole dict.

Every metric still goes to the loggers of `report_to` and to `trainer_state.json`.
"""

from typing import Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback


_FAILURES = {"ROLLOUTS FAILED": "rollout/failed", "SEARCHES FAILED": "search/failure_rate"}
"""Shown where there are any."""
_SHARES = frozenset({"accuracy", "search", "image", "text", "format", "token accuracy", *_FAILURES})
_COLUMNS = (
    ("loss", ("loss",)),
    ("token accuracy", ("mean_token_accuracy",)),
    ("reward", ("reward",)),
    ("accuracy", ("reward/accuracy",)),
    ("search", ("search/ratio",)),
    ("image", ("search/image_ratio",)),
    ("text", ("search/text_ratio",)),
    ("format", ("format/valid",)),
    ("kl", ("kl",)),
    ("s/step", ("step_time",)),
    *((title, (name,)) for title, name in _FAILURES.items()),
)


class ConsoleCallback(TrainerCallback):
    """A progress bar over optimizer steps with a line per log; only on the main process."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: tqdm | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            # No bar where there is no terminal: a log file gets the lines alone.
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc=self._title, unit="step", disable=None
            )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        line = summary_line(logs or {})
        if self._bar is not None and line:
            self._bar.write(f"{self._title} {state.global_step}/{state.max_steps}  {line}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def summary_line(logs: dict[str, Any]) -> str:
    """The few numbers of a training log that a person follows; empty for logs of another kind."""
    if "loss" not in logs and "reward" not in logs:
        return ""
    shown = []
    for title, names in _COLUMNS:
        value = next((float(logs[name]) for name in names if logs.get(name) is not None), None)
        hidden = (title == "loss" and "reward" in logs) or (title in _FAILURES and not value)
        if value is not None and not hidden:
            shown.append(f"{title} {value:.0%}" if title in _SHARES else f"{title} {value:.3g}")
    return "  ".join(shown)


def use_console(trainer: Trainer, title: str) -> None:
    """Put the bar in the place of the printing callbacks of `transformers`, unless `disable_tqdm` asks for quiet."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(ConsoleCallback(title))
