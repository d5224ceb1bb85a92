"""The evaluator on scripted engines: rows as they end, a bounded number in flight, resumption, memory."""

import asyncio
import gc
import json
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsearch_trl.core.completion import Completion, FinishReason, SamplingParams
from mmsearch_trl.core.errors import EngineError, EngineLost, SearchError, SearchLost
from mmsearch_trl.core.images import ImageInput
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.core.reward import RewardParts, ScoredTrajectory
from mmsearch_trl.core.task import Task
from mmsearch_trl.core.trajectory import Trajectory
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.evaluator import Evaluation, EvaluationOptions, Evaluator
from mmsearch_trl.evaluation.summary import EvaluationSummary
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.rollout.outage import OutageMonitor
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.search.calls.backend_client import CallPolicy
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.traces.files import read_traces
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor


PROTOCOL = build_protocol(build_processor())
Row = dict[str, Any]


class Killed(BaseException):
    """What ends a process in the middle of its work."""


class Engine:
    """Says the same in every turn, after a wait for each task that is told."""

    busy_seconds = 0.0

    def __init__(
        self,
        wait: Callable[[str], Any] | None = None,
        says: str = "<reason> it is new</reason><answer> Kelso</answer>",
    ) -> None:
        self._wait = wait
        self._turn = (*PROTOCOL.chat.tokenizer(says)["input_ids"], PROTOCOL.chat.turn_end_id)
        self.running = self.most = 0
        self.seeds: dict[str, int | None] = {}

    async def generate(
        self, token_ids: Sequence[int], images: Sequence[ImageInput], sampling: SamplingParams
    ) -> Completion:
        self.running += 1
        self.most = max(self.most, self.running)
        self.seeds[str(sampling.affinity)] = sampling.seed
        try:
            await (self._wait(str(sampling.affinity)) if self._wait else asyncio.sleep(0))
        finally:
            self.running -= 1
        return Completion(self._turn, (0.0,) * len(self._turn), FinishReason.STOP)


class Threads:
    """Ranks that are threads of this process, on `machines` machines."""

    def __init__(self, count: int, machines: int = 1) -> None:
        self._barrier = threading.Barrier(count, timeout=60)
        self._slots: list[Any] = [None] * count
        self.ranks = [_Thread(self, rank, count, rank % (count // machines) == 0) for rank in range(count)]

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._slots[rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values


class _Thread(Ranks):
    def __init__(self, threads: Threads, index: int, count: int, is_local_main: bool) -> None:
        self._threads = threads
        self.index, self.count = index, count
        self.is_main, self.is_local_main = index == 0, is_local_main

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._threads.exchange(self.index, tensor))

    def any(self, flag: bool) -> bool:
        return any(self._threads.exchange(self.index, flag))

    def gather_objects(self, objects: list[Any]) -> list[Any]:
        return [item for each in self._threads.exchange(self.index, objects) for item in each]

    def on_main(self, work: Callable[[], Any]) -> Any:
        return self._threads.exchange(self.index, work() if self.is_main else None)[0]


def rows(count: int) -> list[Row]:
    return [{"id": f"row-{n}", "answer": "Kelso" if n % 3 else "Arbury"} for n in range(count)]


def to_task(row: Row) -> Task:
    return Task(id=row["id"], question="what city is it in?", answers=(row["answer"],), data_source=row["answer"])


def score(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
    right = [row["answer"] in trajectory.turns[-1].text for row, trajectory in zip(given, trajectories, strict=True)]
    return [
        ScoredTrajectory(trajectory=trajectory, parts=RewardParts(float(ok), float(ok), 1.0, 0, "Kelso"))
        for ok, trajectory in zip(right, trajectories, strict=True)
    ]


def scoring_until(count: int) -> Callable[[Sequence[Row], Sequence[Trajectory]], list[ScoredTrajectory]]:
    """Scores so many rows and is then killed."""
    left = [count]

    def limited(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        left[0] -= len(given)
        if left[0] < 0:
            raise Killed
        return score(given, trajectories)

    return limited


def evaluate(
    folder: Path,
    given: Sequence[Row],
    engine: Engine | None = None,
    *,
    ranks: Ranks | None = None,
    scorer: Any = score,
    places: int = 4,
    temperature: float = 1.0,
    bear: float = 0.2,
    tools: Any = None,
    **changed: Any,
) -> EvaluationSummary:
    rollouter = Rollouter(PROTOCOL, tools or SearchRuntime(None, None), Limits())
    options = EvaluationOptions(
        run_dir=folder,
        temperature=temperature,
        seed=7,
        places=places,
        save_traces=True,
        outage=partial(OutageMonitor, bear, bear, 50, few=8),
    )
    evaluation: dict[str, Any] = {"name": "eval_x", "split": "x", "step": 3, "weights": "w"}
    evaluation |= {"rows_file": folder / "evaluation" / "x.json"} | changed
    evaluator = Evaluator(rollouter, scorer, ranks or Ranks(), options)
    return evaluator.run(Evaluation(**evaluation), given, to_task, engine or Engine())


def on_threads(threads: Threads, run: Callable[[Ranks], Any]) -> list[Any]:
    """What `run` gives, or the error that it raises, on each rank."""
    results: list[Any] = [None] * len(threads.ranks)

    def work(rank: int) -> None:
        try:
            results[rank] = run(threads.ranks[rank])
        except BaseException as error:
            results[rank] = error

    workers = [threading.Thread(target=work, args=(rank,)) for rank in range(len(results))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def saved(folder: Path) -> list[Row]:
    """The rows, without what a clock says."""
    return [row | {"seconds": None} for row in json.loads((folder / "evaluation" / "x.json").read_text())]


def test_no_trajectory_waits_for_its_batch(tmp_path: Path) -> None:
    """One that hangs holds one place; all the others go by it."""
    others = threading.Event()
    ended: list[str] = []

    async def wait(name: str) -> None:
        while name == "row-0" and not others.is_set():
            await asyncio.sleep(0.001)

    def scorer(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        ended.extend(row["id"] for row in given)
        if len(ended) == 39:
            others.set()
        return score(given, trajectories)

    evaluate(tmp_path, rows(40), Engine(wait), scorer=scorer)
    assert ended[-1] == "row-0"
    assert [row["id"] for row in saved(tmp_path)] == [f"row-{n}" for n in range(40)], "rows are saved in their order"


def test_only_so_many_are_in_flight_and_tasks_are_taken_as_places_get_free(tmp_path: Path) -> None:
    class Watched(list[Row]):
        taken = 0

        def __getitem__(self, index: Any) -> Any:
            self.taken = max(self.taken, index)
            return super().__getitem__(index)

    given = Watched(rows(30))
    ahead = []

    def scorer(some: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        ahead.append(given.taken - int(some[0]["id"][4:]))
        return score(some, trajectories)

    engine = Engine()
    evaluate(tmp_path, given, engine, places=5, scorer=scorer)
    assert engine.most == 5
    assert max(ahead) <= 2 * 5


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ranks_share_the_rows_whatever_their_number_and_change_none(tmp_path: Path, count: int) -> None:
    alone = Engine()
    expected = evaluate(tmp_path / "alone", rows(7), alone)
    shared = [Engine() for _ in range(count)]
    threads = Threads(count)
    results = on_threads(
        threads, lambda ranks: evaluate(tmp_path / "shared", rows(7), shared[ranks.index], ranks=ranks)
    )
    assert results == [expected] * count
    assert saved(tmp_path / "shared") == saved(tmp_path / "alone")
    assert {name: seed for engine in shared for name, seed in engine.seeds.items()} == alone.seeds
    assert max(len(engine.seeds) for engine in shared) - min(len(engine.seeds) for engine in shared) <= 1


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_a_killed_evaluation_goes_on_with_another_number_of_ranks(tmp_path: Path, before: int, after: int) -> None:
    expected = evaluate(tmp_path / "whole", rows(20))
    folder = tmp_path / "killed"

    def killed(ranks: Ranks) -> EvaluationSummary:
        return evaluate(folder, rows(20), ranks=ranks, places=1, scorer=scoring_until(3))

    assert all(isinstance(result, Killed) for result in on_threads(Threads(before), killed))
    part = folder / "evaluation" / "x.parts" / "rank0.jsonl"
    with part.open("ab") as file:
        file.write(b'{"number": 19, "row": {"id": "row-1')  # it was killed in the middle of a line ...
    with (folder / "traces" / "x-rank0.jsonl").open("ab") as file:
        file.write((folder / "traces" / "x-rank0.jsonl").read_bytes().splitlines(keepends=True)[0])  # ... or before
    engines = [Engine() for _ in range(after)]
    results = on_threads(Threads(after), lambda ranks: evaluate(folder, rows(20), engines[ranks.index], ranks=ranks))
    assert results == [expected] * after
    assert sum(len(engine.seeds) for engine in engines) == 20 - 3 * before, "what was done is not done again"
    assert saved(folder) == saved(tmp_path / "whole")
    traced = [record.id for record in read_traces(folder)]
    assert sorted(traced) == sorted(f"row-{n}" for n in range(20)), "a trace for each row, and no more"
    assert [path.name for path in (folder / "evaluation").iterdir()] == ["x.json"], "parts are gone"


@pytest.mark.parametrize(
    "changed", [{"weights": "v"}, {"step": 4}, {"settings": {"search": {"top_k": 2}}}, {"temperature": 0.0}]
)
def test_another_evaluation_does_not_go_on_from_it(tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        evaluate(tmp_path, rows(10), places=1, scorer=scoring_until(4))
    engine = Engine()
    evaluate(tmp_path, rows(10), engine, **changed)
    assert len(engine.seeds) == 10
    if "step" not in changed:
        assert len(list(read_traces(tmp_path))) == 10


def test_machines_without_a_common_disk_send_their_rows(tmp_path: Path) -> None:
    expected = evaluate(tmp_path / "alone", rows(150))
    results = on_threads(
        Threads(4, machines=2),
        lambda ranks: evaluate(tmp_path / f"machine{ranks.index // 2}", rows(150), ranks=ranks),
    )
    assert results == [expected] * 4
    assert saved(tmp_path / "machine0") == saved(tmp_path / "alone")
    assert not (tmp_path / "machine1" / "evaluation" / "x.parts").exists()


def test_an_evaluation_done_twice_leaves_its_traces_once_and_those_of_other_steps(tmp_path: Path) -> None:
    for step in (0, 5, 5):
        evaluate(tmp_path, rows(3), step=step)
    assert sorted(record.step for record in read_traces(tmp_path)) == [0] * 3 + [5] * 3


def test_a_defect_is_raised_and_a_failure_of_one_row_is_its_own(tmp_path: Path) -> None:
    async def broken(name: str) -> None:
        raise ZeroDivisionError(name)

    async def broken_once(name: str) -> None:
        if name == "row-2":
            raise ZeroDivisionError(name)

    engine = Engine(broken)
    with pytest.raises(ZeroDivisionError, match="row-0"):
        evaluate(tmp_path / "all", rows(50), engine)
    assert len(engine.seeds) <= 8, "it ends with the first window"
    with pytest.raises(ZeroDivisionError):
        evaluate(tmp_path / "few", rows(2), Engine(broken))
    evaluated = evaluate(tmp_path / "one", rows(10), Engine(broken_once), scorer=lenient)
    assert evaluated.overall.rollout_failure_ratio == 0.1


def test_a_row_with_a_defect_does_not_keep_an_evaluation_from_going_on(tmp_path: Path) -> None:
    """Alone in the first window, it would be taken for a defect of every row."""

    async def broken_last(name: str) -> None:
        if name == "row-5":
            raise ZeroDivisionError(name)

    with pytest.raises(Killed):
        evaluate(tmp_path, rows(6), Engine(broken_last), places=1, scorer=scoring_until(5))
    summary = evaluate(tmp_path, rows(6), Engine(broken_last), scorer=lenient, bear=1.0)
    assert summary.overall.rollout_failure_ratio == pytest.approx(1 / 6)


def test_an_engine_that_cannot_work_ends_the_evaluation_with_the_first_reason(tmp_path: Path) -> None:
    async def down(name: str) -> None:
        raise EngineError(f"no server for {name}")

    engine = Engine(down)
    with pytest.raises(EngineLost, match=r"^none of the last \d+ rollouts worked; the first: no server for row-0$"):
        evaluate(tmp_path / "all", rows(2000), engine, scorer=lenient)
    assert len(engine.seeds) < 20, "it ends soon"
    with pytest.raises(EngineLost, match=r"^none of 3 rollouts worked; the first: no server for row-0$"):
        evaluate(tmp_path / "few", rows(3), Engine(down), scorer=lenient)
    assert not (tmp_path / "few" / "evaluation" / "x.json").exists()


def test_an_engine_that_fails_for_some_rows_ends_it_where_these_are_many(tmp_path: Path) -> None:
    """Such as those with more pictures than it takes: a mean over the others would look like a result."""

    def down(share: int) -> Engine:
        async def refuse(name: str) -> None:
            if int(name.removeprefix("row-")) % share == 0:
                raise EngineError("too many pictures")

        return Engine(refuse)

    with pytest.raises(EngineLost, match=r"of the last 5. rollouts failed.*max_rollout_failure_share.*too many"):
        evaluate(tmp_path / "half", rows(2000), down(2), scorer=lenient)
    with pytest.raises(EngineLost, match=r"^10 of the last 20 rollouts failed"):
        evaluate(tmp_path / "short", rows(20), down(2), scorer=lenient)
    assert evaluate(tmp_path / "rare", rows(200), down(10), scorer=lenient).overall.rollout_failure_ratio == 0.1


def test_the_rows_that_an_outage_spoiled_are_evaluated_again(tmp_path: Path) -> None:
    """The rows and the traces are those of an evaluation that nothing happened to."""
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    evaluate(whole, rows(60))

    async def dying(name: str) -> None:
        if int(name.removeprefix("row-")) > 30:
            raise EngineError("out of memory")

    with pytest.raises(EngineLost, match="out of memory"):
        evaluate(ended, rows(60), Engine(dying), scorer=lenient_or_right)
    engine = Engine()
    evaluate(ended, rows(60), engine)
    assert saved(ended) == saved(whole)
    assert 29 <= len(set(engine.seeds)) <= 40, "what was done before is not done again"
    assert sorted(record.id for record in read_traces(ended)) == sorted(record.id for record in read_traces(whole))


def test_all_ranks_end_where_the_engine_of_one_cannot_work(tmp_path: Path) -> None:
    async def down(name: str) -> None:
        raise EngineError("this card is gone")

    def run(ranks: Ranks) -> EvaluationSummary:
        return evaluate(
            tmp_path, rows(60), Engine(down if ranks.index else None), ranks=ranks, scorer=lenient_or_right
        )

    for error in on_threads(Threads(2), run):
        assert isinstance(error, EngineLost) and "this card is gone" in str(error)


def test_searches_that_are_not_answered_end_the_evaluation(tmp_path: Path) -> None:
    class Dead:
        name, fingerprint = "retriever", "1"

        async def search(self, query: str, k: int) -> Any:
            raise SearchError(FailureKind.UNAVAILABLE, "the service is not there")

    tools = SearchRuntime(None, Dead(), text_policy=CallPolicy(retries=0))
    engine = Engine(says="<reason>?</reason><text_search>Kelso</text_search>")
    with pytest.raises(SearchLost, match=r"none of the last .* searches worked; the first: unavailable"):
        evaluate(tmp_path, rows(200), engine, scorer=lenient, tools=tools)
    assert len(engine.seeds) < 100


def lenient_or_right(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
    pairs = list(zip(given, trajectories, strict=True))
    return [(score if trajectory.turns else lenient)([row], [trajectory])[0] for row, trajectory in pairs]


def lenient(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
    """Also scores rollouts that have no turn."""
    return [ScoredTrajectory(trajectory=t, parts=RewardParts(0.0, 0.0, 0.0, 0, None)) for t in trajectories]


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    alive, calls = [], 0

    def scorer(given: Sequence[Row], trajectories: Sequence[Trajectory]) -> list[ScoredTrajectory]:
        nonlocal calls
        if (calls := calls + 1) % 25 == 0:
            gc.collect()
            alive.append(sum(isinstance(thing, Trajectory | ScoredTrajectory) for thing in gc.get_objects()))
        return score(given, trajectories)

    evaluate(tmp_path, rows(2000), scorer=scorer, places=8)
    assert len(alive) >= 10
    assert max(alive) <= 3 * 8, "what has ended is not kept"
    assert len(saved(tmp_path)) == 2000
