import json
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from mmsearch_trl.evaluation.report import comparison_table, save_rows, summary_table
from mmsearch_trl.evaluation.summary import GroupSummary
from mmsearch_trl.traces.rows import EvaluationRow


def group(accuracy: float, search_ratio: float) -> GroupSummary:
    return GroupSummary(
        n=180,
        accuracy=accuracy,
        accuracy_stderr=0.0123,
        accuracy_low=0.0,
        accuracy_high=1.0,
        reward=0.888,
        format=0.99,
        search_ratio=search_ratio,
        image_ratio=search_ratio,
        text_ratio=0.25,
        mixed_ratio=0.25,
        search_rate=0.3,
        image_failure_ratio=0.0,
        text_failure_ratio=0.0,
        rollout_failure_ratio=0.0,
        turns=2.0,
        response_length=20.0,
    )


def row(question: str) -> EvaluationRow:
    return EvaluationRow(
        step=50,
        input_text="Here",
        output_text="<answer> Calton</answer>",
        score=1.0,
        reward_model={"candidate_answers": "[]", "ground_truth": "Calton", "style": "rule"},
        image_url=None,
        id="world-1",
        data_source="world",
        category="search_free",
        group="known",
        question=question,
        answers=("Calton",),
        right=True,
        stop="answered",
        actions=("answer",),
        responses=("<answer> Calton</answer>",),
        rewards={"accuracy": 1.0},
        tool_failures=(),
        sampled_tokens=9,
        seconds=0.5,
    )


def printed(table: Table) -> list[list[str]]:
    console = Console(width=120, file=None)
    with console.capture() as capture:
        console.print(table)
    return [line.split() for line in capture.get().splitlines() if line.split()]


def test_before_stands_over_after_for_each_group():
    lines = printed(comparison_table({"known": group(0.95, 0.53)}, {"known": group(1.0, 0.01)}))
    assert lines[3] == [
        "known",
        "before",
        "180",
        "95.0%",
        "(0.0%-100.0%)",
        "53.0%",
        "53.0%",
        "25.0%",
        "99.0%",
        "0.888",
    ]
    assert lines[4][:4] == ["after", "180", "100.0%", "(0.0%-100.0%)"]


def test_a_group_of_one_side_only_gets_one_line():
    lines = printed(comparison_table({}, {"held_out": group(0.97, 0.97)}))
    assert [line[:3] for line in lines[3:]] == [["held", "out", "after"]]


def test_brackets_in_a_group_s_name_are_not_markup():
    assert printed(summary_table({"[red]x": group(0.5, 0.5)}))[3][0] == "[red]x"


def test_every_row_is_saved_with_upstream_s_fields_first(tmp_path):
    path = save_rows([asdict(row("a")), asdict(row("b \ud800 搜"))], tmp_path / "eval" / "val_result_2.json")
    saved = json.loads(path.read_text())
    assert [entry["question"] for entry in saved] == ["a", "b \ud800 搜"]
    assert list(saved[0])[:6] == ["step", "input_text", "output_text", "score", "reward_model", "image_url"]
    assert list(path.parent.iterdir()) == [path]


def test_no_rows_are_an_empty_list(tmp_path):
    assert json.loads(save_rows([], tmp_path / "none.json").read_text()) == []
