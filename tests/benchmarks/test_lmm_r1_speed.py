"""What the benchmark without tools times, and that its arms run; its figures need minutes."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from servers import Servers


ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.lmm_r1_speed.arms import ARMS, Work  # noqa: E402
from benchmarks.lmm_r1_speed.clock import PARTS, Clock  # noqa: E402
from benchmarks.lmm_r1_speed.engines import Batch, Server, Transformers  # noqa: E402
from benchmarks.lmm_r1_speed.model import TINY, make_chat, make_processor, write_checkpoint  # noqa: E402
from benchmarks.lmm_r1_speed.parity import measure, summary  # noqa: E402
from benchmarks.lmm_r1_speed.prompts import make_tasks, rows_of, trl_rows_of  # noqa: E402
from benchmarks.lmm_r1_speed.report import speed_table  # noqa: E402

from mmsearch_trl.data.dataset import row_to_task  # noqa: E402
from mmsearch_trl.protocol.direct import DirectProtocol  # noqa: E402


class Nested:
    """A step that generates in a score, and syncs in that."""

    def score(self) -> None:
        time.sleep(0.02)
        self.generate()

    def generate(self) -> None:
        time.sleep(0.04)
        self.sync()

    def sync(self) -> None:
        time.sleep(0.03)


def test_the_parts_of_a_step_do_not_count_one_another_and_are_all_of_it() -> None:
    clock, work = Clock(), Nested()
    for part in ("score", "generate", "sync"):
        clock.watch(work, part, part)
    work.score()  # outside of a step
    started = time.perf_counter()
    clock.on_step_begin(None, None, None)
    work.score()
    work.score()
    time.sleep(0.05)
    clock.on_step_end(None, None, None)
    took = time.perf_counter() - started
    [step] = clock.steps
    assert sum(step.seconds.values()) == pytest.approx(took, abs=0.02)
    assert sum(step.processor.values()) < took
    least = {"generate": 0.08, "score": 0.04, "train": 0.05, "sync": 0.06}
    assert tuple(step.seconds) == PARTS and all(step.seconds[part] >= least[part] for part in PARTS)


@pytest.mark.parametrize("pictures", [False, True])
def test_every_arm_is_given_the_same_prompts(pictures: bool) -> None:
    tasks = make_tasks(3, pictures=pictures)
    assert len({task.question for task in tasks}) == 3
    rows: Any = rows_of(tasks)
    theirs: Any = trl_rows_of(tasks)
    chat = make_chat(make_processor())
    for task, row, other in zip(tasks, rows, theirs, strict=True):
        assert other["prompt"] == row["prompt"] and row_to_task(row).images == task.images
        assert [image.tobytes() for image in other.get("images", [])] == [image.tobytes() for image in task.images]
        prompt = DirectProtocol(chat).prompt(task).token_ids
        assert prompt.count(chat.image_pad_id) == (36 if pictures else 0)


def test_the_report_says_what_is_left_to_win() -> None:
    def steps(generate: float) -> list[dict[str, dict[str, float]]]:
        parts = {"generate": generate, "score": 1.0, "train": 2.0, "sync": 0.0}
        return [{"seconds": parts, "processor": parts}] * 2

    speed = {"text": {"r1v": steps(9.0), "ours": steps(3.0), "trl": steps(4.5)}}
    printed = list(speed_table({"prompts": 2, "group": 3, "tokens": 10, "speed": speed}))
    assert printed[2].startswith("| text | one prompt at a time, HF generate | 12.0 (12.0 to 12.0) | 0.5 | 5 | 2.00 |")
    assert printed[2].endswith("| 12.0 (12.0 to 12.0) | 9.00 | 1.00 | 2.00 | 0.00 | 2.00 |")
    assert printed[4].endswith("| 1.25 |")
    assert "generating is 75% one prompt at a time and 50% in ours, which generates for 3.0 times less" in printed[-1]
    assert "(TRL on vLLM: 2.0 times)" in printed[-1] and "the ratio of steps would be 4.00" in printed[-1]


@pytest.mark.parametrize("pictures", [False, True])
def test_a_rollout_and_one_call_write_as_many_tokens(pictures: bool, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    batch, told = Batch(make_tasks(2, pictures=pictures), 2, 3), []
    found = summary(measure(Transformers(tmp_path, 4), batch, 1, told.append))
    assert len(told) == 2 and found["ratios"] == [found["ours"][0] / found["call"][0]]


@pytest.mark.slow
def test_every_arm_makes_its_step_on_one_server(servers: Servers, tmp_path: Path) -> None:
    family = tiny.qwen25()
    url, checkpoint = servers.url(family), servers.folder / family.name
    batch = Batch(make_tasks(2, pictures=False), 2, 4)
    assert measure(Server(url, checkpoint), batch, 1, print)
    synced = {}
    for name, arm in ARMS.items():
        sizes = {"prompts": 2, "group": 2, "tokens": 4, "steps": 1}
        work = Work(checkpoint=checkpoint, url=url, folder=tmp_path / name, pictures=False, **sizes)
        [step] = arm(work)
        assert all(step.seconds[part] > 0 for part in ("generate", "score", "train"))
        synced[name] = step.seconds["sync"] > 0
    assert synced == {"r1v": False, "ours": True, "trl": True}
