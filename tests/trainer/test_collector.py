"""Rows of a batch as tasks."""

from mmsearch_trl.core.task import Task
from mmsearch_trl.trainer.collector import Row, tasks_of


def test_rows_of_a_group_share_one_task_and_other_rows_none() -> None:
    asked: list[Row] = []

    def to_task(row: Row) -> Task:
        asked.append(row)
        return Task(id=row["id"], question="?")

    rows = [{"id": name, "images": [bytes(picture)]} for name, picture in (("a", 1), ("a", 1), ("a", 2), ("b", 2))]
    tasks = tasks_of([*rows, dict(rows[0])], to_task)
    assert [task.id for task in tasks] == ["a", "a", "a", "b", "a"]
    assert tasks[0] is tasks[1] and tasks[1] is not tasks[2]
    assert asked == [rows[0], rows[2], rows[3], rows[0]]
