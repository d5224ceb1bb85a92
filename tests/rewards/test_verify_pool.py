"""Judging is given up in time, and the pool goes on."""

import time
from pathlib import Path

import psutil
import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.rewards import verify_pool
from mmsearch_trl.rewards.judging import Job
from mmsearch_trl.rewards.math import MathRule
from mmsearch_trl.rewards.rule_reward import RuleReward
from mmsearch_trl.rewards.verify_pool import VerifyPool


EASY = Job(task="right", answer="60", golds=("60",))
ENDLESS = ("$9^{9^{9^{9}}}$", r"$\int_0^1 \sin(x^{x^x}) dx$")
_SECONDS = 0.5


def test_what_would_never_end_is_killed_and_the_rest_of_the_batch_is_judged() -> None:
    others = set(psutil.Process().children())
    pool = VerifyPool(seconds=_SECONDS, processes=1)
    try:
        assert pool.verdicts([EASY]) == [True]
        [worker] = set(psutil.Process().children()) - others
        start = time.perf_counter()
        logged: dict[str, float] = {}
        completions = [f"<think>t</think><answer>{said}</answer>" for said in ("60", *ENDLESS, "61")]
        rewards = RuleReward(MathRule(pool))(completions, [["60"]] * 4, logged.__setitem__)
        assert rewards == [1.5, 0.5, 0.5, 0.5] and time.perf_counter() - start < 30
        assert logged["reward/given_up"] == 0.5 and logged["reward/accuracy"] == 0.25
        assert not worker.is_running(), "the process that was late is gone"
    finally:
        pool.close()
    assert set(psutil.Process().children()) <= others


def test_what_looks_like_python_is_never_run(pool: VerifyPool, tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path('{tmp_path}/made').touch()"
    attacks = [code, f"${code}$", f"sqrt({code})", f"1 + {code}", f"\\boxed{{{code}}}"]
    jobs = [Job(task="right", answer=attack, golds=("0",)) for attack in attacks]
    jobs += [Job(task=task, answer=attack, golds=("$0$",)) for attack in attacks for task in ("lmm_r1", "r1_v")]
    jobs += [Job(task="gold", answer="", golds=(attack,)) for attack in attacks]
    assert pool.verdicts(jobs)[:5] == [False] * 5
    assert not list(tmp_path.iterdir())


def test_an_empty_batch_starts_nothing() -> None:
    assert VerifyPool(seconds=1).verdicts([]) == []


def test_ranks_of_a_machine_share_its_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_pool.os, "sched_getaffinity", lambda pid: range(64))
    assert VerifyPool(seconds=1)._processes == 16
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert VerifyPool(seconds=1)._processes == 8


def test_without_math_verify_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_pool, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"mmsearch-trl\[math\]"):
        verify_pool.check_installed()
