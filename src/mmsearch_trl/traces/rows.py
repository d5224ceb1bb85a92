"""Evaluation rows: what MMSearch-R1 saves for each sample of an evaluation, and what we add.

The first six fields have upstream's names and meaning (`val_result_<rows>.json`): `input_text` and `output_text` are
decoded without special tokens, and `output_text` holds tool text as well, since it is every token after the prompt.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmsearch_trl.core.reward import ScoredTrajectory
from mmsearch_trl.traces.tokens import Decoder


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRow:
    """One evaluated sample.

    Attributes:
        score: The total reward.
        reward_model: `ground_truth`, `candidate_answers` (a JSON list as a string) and `style`, as in the data set.
        right: None when nobody judged.
        actions: Of each turn: the tool that it calls, else `answer` or `none`.
        responses: The model's own turns as text.
        rewards: The reward by part.
        tool_failures: Kind of each failed call, in order; None where nothing can be called.
        sampled_tokens: Tokens that the model wrote, end-of-turn tokens included.
        seconds: Wall time of the rollout.
    """

    step: int
    input_text: str
    output_text: str
    score: float | None
    reward_model: Mapping[str, str]
    image_url: str | None
    id: str
    data_source: str
    category: str | None
    group: str | None
    question: str
    answers: tuple[str, ...]
    right: bool | None
    stop: str | None
    actions: tuple[str, ...]
    responses: tuple[str, ...]
    rewards: Mapping[str, float]
    tool_failures: tuple[str, ...] | None
    sampled_tokens: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, without those of calls where nothing can be called."""
        fields = asdict(self)
        return fields if self.tool_failures is not None else {k: v for k, v in fields.items() if k != "tool_failures"}


def evaluation_row(scored: ScoredTrajectory, tokenizer: Decoder, *, step: int) -> EvaluationRow:
    """Build the row of one evaluated trajectory."""
    trajectory = scored.trajectory
    task = trajectory.task
    failures = tuple(seen.failure.kind.value for seen in trajectory.observations if seen.failure)
    truth, candidates = (task.answers[0], task.answers[1:]) if task.answers else ("", ())
    return EvaluationRow(
        step=step,
        input_text=tokenizer.decode(list(trajectory.prompt_ids), skip_special_tokens=True),
        output_text=tokenizer.decode(trajectory.completion_ids, skip_special_tokens=True),
        score=scored.reward,
        reward_model={"candidate_answers": json.dumps(candidates), "ground_truth": truth, "style": "rule"},
        image_url=task.image_url,
        id=task.id,
        data_source=task.data_source,
        category=task.category,
        group=scored.group,
        question=task.question,
        answers=tuple(task.answers),
        right=scored.right,
        stop=trajectory.stop.value if trajectory.stop else None,
        actions=tuple(turn.action.tool or turn.action.kind.value for turn in trajectory.turns),
        responses=tuple(trajectory.responses),
        rewards=dict(scored.rewards),
        tool_failures=failures if trajectory.has_tools else None,
        sampled_tokens=sum(trajectory.loss_mask),
        seconds=round(trajectory.seconds, 4),
    )
