"""The line that a person follows a run by."""

from mmsearch_trl.trainer.console import summary_line


LOGS = {"loss": 0.1, "reward": 0.5, "reward/accuracy": 0.25, "search/ratio": 1.0}


def test_failures_are_on_the_line_where_there_are_any() -> None:
    quiet = summary_line(LOGS | {"rollout/failed": 0.0, "search/failure_rate": 0.0})
    assert quiet == "reward 0.5  accuracy 25%  search 100%"
    broken = summary_line(LOGS | {"rollout/failed": 0.5, "search/failure_rate": 0.125})
    assert broken == f"{quiet}  ROLLOUTS FAILED 50%  SEARCHES FAILED 12%"


def test_a_log_of_another_kind_has_no_line() -> None:
    assert summary_line({"eval_accuracy": 0.5}) == ""
