"""What the trainer makes of trajectories that their batch did not wait for."""

import asyncio
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from mmsearch_trl.core.completion import SamplingParams
from mmsearch_trl.core.observation import ImageQuery, Observation
from mmsearch_trl.core.trajectory import StopReason, Trajectory
from mmsearch_trl.engine.pressure import Pressure
from mmsearch_trl.engine.transformers import TransformersEngine
from mmsearch_trl.rollout.admission import Admission
from mmsearch_trl.rollout.limits import Limits
from mmsearch_trl.trainer.advantages import group_advantages
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.trainer.scores import LocalScores
from mmsearch_trl.trainer.stragglers import MOST_BATCHES, Stragglers


FAMILY = tiny.qwen25()


class OneHangs(tiny.CannedTools):
    """Holds one search back for good when it is armed; asked again, it answers that at once and others in a moment."""

    def __init__(self, armed: bool = True, seconds: float = 0.03) -> None:
        super().__init__()
        self.armed = armed
        self.seconds = seconds
        self.given_up = 0
        self._held: set[str] = set()

    async def image_search(self, query: ImageQuery) -> Observation:
        await self._hang(str(query.url))
        return await super().image_search(query)

    async def text_search(self, query: str) -> Observation:
        await self._hang(query)
        return await super().text_search(query)

    async def _hang(self, query: str) -> None:
        if query in self._held:
            return
        if self.armed:
            self.armed = False
            self._held.add(query)
            try:
                await asyncio.sleep(60)
            finally:
                self.given_up += 1
        await asyncio.sleep(self.seconds)


def nothing_is_left_running(trainer: MMSearchGRPOTrainer) -> bool:
    async def tasks() -> int:
        for _ in range(20):
            await asyncio.sleep(0)
        return len(asyncio.all_tasks())

    return trainer.event_loop.run(tasks()) == 1


def rewards_of(trajectories: Sequence[Trajectory]) -> torch.Tensor:
    return torch.tensor(tiny.by_letters([trajectory.messages for trajectory in trajectories]))


def test_a_whole_share_changes_nothing(tmp_path: Path) -> None:
    outputs = []
    for options in ({}, {"rollout_close_share": 1.0, "straggler_policy": "drop"}):
        trainer = tiny.trainer(FAMILY, tmp_path, **options)
        batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
        trainer.train()
        outputs.append((batch.output, [trajectory.logprobs for trajectory in batch.trajectories], trainer))
        assert all(log["rollout/stragglers"] == 0 for log in trainer.state.log_history if "loss" in log)
        assert not any(name.startswith("rollout/c") for name in trainer.state.log_history[0])
    (one, one_logprobs, first), (other, other_logprobs, second) = outputs
    assert one_logprobs == other_logprobs
    for name, value in one.items():
        assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
    for left, right in zip(first.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_hanging_search_is_left_behind_and_the_rest_is_trained(tmp_path: Path) -> None:
    tools = OneHangs()
    trainer = tiny.trainer(
        FAMILY, tmp_path, tools=tools, rollout_close_share=0.75, max_steps=2, save_traces=True, num_generations=2
    )
    trainer.train()
    trainer.close()
    first, second = [log for log in trainer.state.log_history if "loss" in log]
    assert first["rollout/stragglers"] == 0.25 and tools.given_up == 1
    assert second["rollout/stragglers"] in (0, 0.25)
    assert all(math.isfinite(log["loss"]) and log["grad_norm"] > 0 for log in (first, second))
    assert nothing_is_left_running(trainer)
    [path] = (tmp_path / "traces").glob("*.jsonl")
    records = [json.loads(line) for line in path.read_text().splitlines()]
    [straggler] = [r for r in records if r["step"] == 0 and r["outcome"]["stop"] == "straggler"]
    assert straggler["reward"] is None and straggler["advantage"] == 0 and straggler["turns"]


def test_a_straggler_is_out_of_the_loss_and_of_its_group_s_baseline(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 8, "rollout_close_share": 0.8}
    given = [task for task in tiny.tasks(2) for _ in range(4)]
    trainer = tiny.trainer(FAMILY, tmp_path, given, tools=OneHangs(), **options)
    batch = tiny.rollout_batch(trainer, list(trainer.train_dataset))
    stops = [trajectory.stop for trajectory in batch.trajectories]
    assert StopReason.STRAGGLER in stops
    rewards = rewards_of(batch.trajectories)
    for i, stop in enumerate(stops):
        if stop is StopReason.STRAGGLER:
            rewards[i] = torch.nan
            mask = batch.output["tool_mask"][i] * batch.output["completion_mask"][i]
            assert not mask.any() and batch.output["completion_mask"][i].sum() == 1, "forwarded as its prompt alone"
    torch.testing.assert_close(batch.output["advantages"], group_advantages(rewards, 4, eps=1e-4))
    assert trainer._metrics["train"]["rollout/stragglers"] == [stops.count(StopReason.STRAGGLER) / 8]


def test_filtering_takes_a_straggler_for_no_reward(tmp_path: Path) -> None:
    trainer = tiny.trainer(
        FAMILY,
        tmp_path,
        tools=OneHangs(),
        filter_zero_variance_groups=True,
        num_generations=4,
        per_device_train_batch_size=8,
        rollout_close_share=0.8,
        reward=lambda completions, **columns: [1.0] * len(completions),
        max_refills=1,
    )
    with pytest.raises(RuntimeError, match="held 0 prompts"):
        trainer.train()


def test_evaluation_waits_for_everyone(tmp_path: Path) -> None:
    tools = tiny.CannedTools(delay=lambda: 0.05)
    trainer = tiny.trainer(FAMILY, tmp_path, tools=tools, rollout_close_share=0.25)
    trainer.evaluate(trainer.train_dataset)
    [path] = (tmp_path / "evaluation").glob("*.json")
    assert "straggler" not in path.read_text()


def carrying(out: Path, tools: Any, given: Sequence[Any], **options: Any) -> MMSearchGRPOTrainer:
    """A trainer that carries and corrects as under vLLM, on the engine that these tests can have."""
    settings: dict[str, Any] = {"num_generations": 4, "per_device_train_batch_size": 8, "rollout_close_share": 0.8}
    trainer = tiny.trainer(FAMILY, out, given, tools=tools, **(settings | options))
    trainer.args.straggler_policy, trainer.use_vllm = "carry", True
    return trainer


def test_a_carried_trajectory_is_trained_later_against_its_own_group(tmp_path: Path) -> None:
    seen: list[tuple[str, ...]] = []

    def reward(completions: Any, id: Sequence[str], **columns: Any) -> list[float]:
        seen.append(tuple(id))
        return tiny.by_letters(completions)

    tools = OneHangs(seconds=0.1)
    given = [task for task in tiny.tasks(4) for _ in range(4)]
    trainer = carrying(tmp_path, tools, given, reward=reward)
    rows = list(trainer.train_dataset)
    first = tiny.rollout_batch(trainer, rows[:8])
    [place] = [i for i, t in enumerate(first.trajectories) if t.stop is StopReason.STRAGGLER and not t.turns[-1].reply]
    begun = first.trajectories[place]
    recorded = [(turn.token_ids, turn.logprobs) for turn in begun.turns]
    siblings = [t for t in first.trajectories[place // 4 * 4 :][:4] if t.stop is not StopReason.STRAGGLER]
    late = next(
        late for late in trainer.stragglers.carried if late.trajectory.turns[: len(begun.turns)] == begun.turns
    )
    trainer.stragglers.carried = [late]  # of those that were cut off by chance, none

    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.mul_(1.01)  # the optimizer's step
    tools.armed = True
    second = tiny.rollout_batch(trainer, rows[8:])
    [row] = [i for i, trajectory in enumerate(second.trajectories) if trajectory is late.trajectory]
    assert begun.stop is StopReason.STRAGGLER and len(begun.turns) == len(recorded), "the first batch's row is its own"

    trajectory, output = second.trajectories[row], second.output
    length = len(trajectory.completion_ids)
    assert [(turn.token_ids, turn.logprobs) for turn in trajectory.turns[: len(recorded)]] == recorded
    assert len(trajectory.turns) > len(recorded) and trajectory.task.id in ("task0", "task1")
    assert output["completion_ids"][row][:length].tolist() == trajectory.completion_ids
    assert output["sampling_per_token_logps"][row][:length].tolist() == pytest.approx(trajectory.logprobs)
    assert (output["tool_mask"] * output["completion_mask"])[row].sum() == sum(trajectory.loss_mask)
    mask = torch.tensor(trajectory.loss_mask).bool()
    ratio = (tiny.alone(trainer.model, trainer.protocol.chat, trajectory) - torch.tensor(trajectory.logprobs)).exp()
    torch.testing.assert_close(
        output["importance_sampling_ratio"][row][:length][mask], ratio[mask].clamp(max=3.0), atol=1e-3, rtol=1e-3
    )
    older = sum(map(len, (ids for ids, _ in recorded)))
    assert (ratio[mask][:older] - 1).abs().max() > 1e-3, "its first tokens are older weights'"
    assert (ratio[mask][older:] - 1).abs().max() < 1e-3, "its last tokens are the present weights'"

    own, *others = rewards_of([trajectory, *siblings]).tolist()
    by_hand = (own - statistics.mean([own, *others])) / (statistics.stdev([own, *others]) + 1e-4)
    assert float(output["advantages"][row]) == pytest.approx(by_hand, abs=1e-5)
    assert seen[-1][row] == trajectory.task.id, "it is judged by its own row of the data"
    rewards = rewards_of(second.trajectories)
    for i, member in enumerate(second.trajectories):
        if member is trajectory or member.stop is StopReason.STRAGGLER:
            rewards[i] = torch.nan
    expected = group_advantages(rewards, 4, eps=1e-4)
    expected[row] = by_hand
    torch.testing.assert_close(output["advantages"], expected, atol=1e-5, rtol=1e-5)
    assert trainer._metrics["train"]["rollout/carried"] == [0, 1 / 8]
    assert late not in trainer.stragglers.carried and nothing_is_left_running(trainer)


def test_training_carries_for_many_steps(tmp_path: Path) -> None:
    """A search hangs in every batch; whole steps of TRL, with the loss weighed by the correction."""

    class OneOfEachBatch(OneHangs):
        def drain_records(self) -> Any:
            self.armed = True
            return super().drain_records()

    given = tiny.tasks(6, images=(1, 0, 2))
    trainer = carrying(tmp_path, OneOfEachBatch(), given, max_steps=6, save_traces=True)
    trainer.train()
    trainer.close()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 6 and all(math.isfinite(log["loss"]) for log in logs)
    assert logs[0]["rollout/stragglers"] > 0 and sum(log["rollout/carried"] for log in logs) > 0
    assert all(log["sampling/importance_sampling_ratio/max"] <= 3 for log in logs)
    assert nothing_is_left_running(trainer)
    assert len(trainer.stragglers.carried) <= 8 * MOST_BATCHES


# What follows needs no model: three questions of two rollouts each, and rewards as given.


def trajectory_of(name: str, stop: StopReason | None) -> Trajectory:
    return Trajectory(task=replace(tiny.tasks(1)[0], id=name), prompt=(), prompt_ids=(1,), stop=stop)


class Bench:
    """`Stragglers` with the trainer's part played by hand."""

    def __init__(self, size: int = 2, policy: str = "carry", scale: str = "none") -> None:
        self.metrics: list[dict[str, float]] = []
        args = SimpleNamespace(straggler_policy=policy, advantage_eps=1e-4)
        accelerator = SimpleNamespace(device="cpu", gather=lambda tensor: tensor)
        trainer: Any = SimpleNamespace(args=args, limits=Limits(), num_generations=size, accelerator=accelerator)
        trainer.scale_rewards, trainer.append_metrics = scale, self.metrics.append
        self.stragglers = Stragglers(trainer)

    def batch(
        self, stops: str, rewards: Sequence[float], number: int = 0
    ) -> tuple[list[str], list[float], list[float]]:
        """One batch: `a` answered, `s` straggler, `f` failed. Returns ids, advantages, and rewards for the traces.

        The advantages are -9 where the baseline of the batch would set them.
        """
        kinds = {"a": StopReason.ANSWERED, "s": StopReason.STRAGGLER, "f": StopReason.FAILED}
        trajectories = [trajectory_of(f"{number}.{i}", kinds[stop]) for i, stop in enumerate(stops)]
        rows = [{"id": trajectory.task.id} for trajectory in trajectories]
        rows, seated = self.stragglers.seat(rows, trajectories, [SamplingParams(max_tokens=1)] * len(rows))
        assert [row["id"] for row in rows] == [trajectory.task.id for trajectory in seated]
        earned = torch.tensor(rewards)[:, None]
        outside = torch.tensor(self.stragglers.exclude(earned, seated))
        earned = earned.masked_fill(outside[:, None], torch.nan)
        scores, advantages = LocalScores(earned, torch.ones(1)), torch.full((len(rows),), -9.0)
        self.stragglers.settle(scores, advantages)
        return [row["id"] for row in rows], advantages.tolist(), scores.totals.tolist()

    def end(self, name: str, stop: StopReason = StopReason.ANSWERED) -> None:
        [late] = [late for late in self.stragglers.carried if late.trajectory.task.id == name]
        late.trajectory.stop = stop

    @property
    def waiting(self) -> list[str]:
        return [late.trajectory.task.id for late in self.stragglers.carried]


def test_a_guest_is_paid_by_its_own_group_and_gets_its_reward_in_the_traces() -> None:
    bench = Bench()
    bench.batch("asaa", [0.2, 9.0, 0.5, 0.6])
    assert bench.waiting == ["0.1"] and len(bench.stragglers.unfinished) == 1
    bench.end("0.1")
    ids, advantages, rewards = bench.batch("aasa", [0.1, 0.2, 1.0, 0.3], 1)
    assert ids == ["1.0", "1.1", "0.1", "1.3"] and bench.waiting == ["1.2"]
    assert advantages == pytest.approx([-9, -9, 1.0 - (1.0 + 0.2) / 2, -9])
    assert rewards == pytest.approx([0.1, 0.2, 1.0, 0.3])
    assert bench.metrics == [
        {"rollout/carried": 0, "rollout/carried_dropped": 0},
        {"rollout/carried": 0.25, "rollout/carried_dropped": 0},
    ]


def test_siblings_that_are_late_together_know_of_each_other() -> None:
    bench = Bench(size=4)
    bench.batch("sasa", [0.0, 0.2, 0.0, 0.6])
    bench.end("0.0")
    bench.end("0.2")
    _, advantages, _ = bench.batch("saas", [1.0, 0.0, 0.0, 0.4], 1)
    mean = (0.2 + 0.6 + 1.0 + 0.4) / 4
    assert advantages == pytest.approx([1.0 - mean, -9, -9, 0.4 - mean])


def test_a_sibling_that_is_later_still_knows_of_the_one_before() -> None:
    bench = Bench(size=4, scale="group")
    bench.batch("sasa", [0.0, 0.2, 0.0, 0.6])
    bench.end("0.2")
    _, advantages, _ = bench.batch("saaa", [1.0, 0.0, 0.0, 0.4], 1)
    known = [0.2, 0.6, 1.0]
    assert advantages[0] == pytest.approx((1.0 - statistics.mean(known)) / (statistics.stdev(known) + 1e-4))
    bench.end("0.0")
    _, advantages, _ = bench.batch("aaas", [1.0, 0.0, 0.0, 0.4], 2)
    known.append(0.4)
    assert advantages[3] == pytest.approx((0.4 - statistics.mean(known)) / (statistics.stdev(known) + 1e-4), abs=1e-5)


@pytest.mark.parametrize("scale", ["group", "none"])
def test_one_that_is_alone_in_its_group_has_nothing_to_be_compared_with(scale: str) -> None:
    bench = Bench(scale=scale)
    bench.batch("sfaa", [0.0, 0.0, 0.5, 0.6])
    bench.end("0.0")
    _, advantages, rewards = bench.batch("saaa", [0.7, 0.0, 0.0, 0.0], 1)
    assert advantages[0] == 0 and rewards[0] == pytest.approx(0.7)


def test_a_guest_that_no_reward_function_judged_teaches_nothing() -> None:
    bench = Bench()
    bench.batch("saaa", [0.0, 0.3, 0.5, 0.6])
    bench.end("0.0")
    _, advantages, rewards = bench.batch("saaa", [math.nan, 0.0, 0.0, 0.0], 1)
    assert advantages[0] == -9, "TRL's own zero is left where it was" and math.isnan(rewards[0])


def test_guests_take_free_rows_oldest_first_and_the_others_wait() -> None:
    bench = Bench()
    bench.batch("ssaa", [0.0] * 4)
    bench.batch("saaa", [0.0] * 4, 1)
    for name in ("0.1", "1.0"):
        bench.end(name)
    ids, _, _ = bench.batch("aaas", [0.0] * 4, 2)
    assert ids == ["2.0", "2.1", "2.2", "0.1"] and bench.waiting == ["0.0", "1.0", "2.3"]
    assert [late.trajectory.task.id for late in bench.stragglers.carried if late.trajectory.stop] == ["1.0"]
    assert len(bench.stragglers.unfinished) == 2, "one that has ended is not rolled out again"
    ids, _, _ = bench.batch("aaaa", [0.0] * 4, 3)
    assert ids == ["3.0", "3.1", "3.2", "3.3"] and bench.waiting == ["0.0", "1.0", "2.3"]


def test_a_row_that_the_engine_broke_is_not_free() -> None:
    bench = Bench()
    bench.batch("saaa", [0.0] * 4)
    bench.end("0.0")
    ids, _, _ = bench.batch("faaa", [0.0] * 4, 1)
    assert ids[0] == "1.0" and bench.waiting == ["0.0"]


def test_one_that_finds_no_end_or_no_row_is_dropped_and_counted() -> None:
    bench = Bench()
    bench.batch("ssaa", [0.0] * 4)
    bench.end("0.0")
    for number in range(1, MOST_BATCHES):
        bench.batch("aaaa", [0.0] * 4, number)
        assert bench.waiting == ["0.0", "0.1"]
    bench.batch("aaaa", [0.0] * 4, MOST_BATCHES)
    assert bench.waiting == [] and bench.metrics[-1] == {"rollout/carried": 0, "rollout/carried_dropped": 0.5}


def test_one_that_breaks_on_its_way_is_dropped_and_counted() -> None:
    bench = Bench()
    bench.batch("saaa", [0.0] * 4)
    bench.end("0.0", StopReason.FAILED)
    ids, _, _ = bench.batch("saaa", [0.0] * 4, 1)
    assert ids[0] == "1.0" and bench.waiting == ["1.0"] and bench.metrics[-1]["rollout/carried_dropped"] == 0.25


def test_dropping_keeps_nothing_and_logs_nothing_of_its_own() -> None:
    bench = Bench(policy="drop")
    ids, advantages, rewards = bench.batch("saaf", [0.1, 0.2, 0.3, 0.4])
    assert ids == ["0.0", "0.1", "0.2", "0.3"] and advantages == [-9.0] * 4
    assert [math.isnan(reward) for reward in rewards] == [True, False, False, True]
    assert bench.waiting == [] and bench.metrics == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "use_vllm is false"),
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, "correction is false"),
        ({"use_vllm": True, "trajectory_level_loss": True}, "trajectory_level_loss"),
        ({"use_vllm": True, "filter_zero_variance_groups": True}, "filter_zero_variance_groups"),
        ({"use_vllm": True, "scale_rewards": "batch"}, "scale_rewards"),
        ({"use_vllm": True, "multi_objective_aggregation": "normalize_then_sum"}, "sum_then_normalize"),
        (
            {"use_vllm": True, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
            | {"steps_per_generation": 1, "num_generations": 3},
            "",
        ),
        (
            {"use_vllm": True, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
            | {"generation_batch_size": 6, "num_generations": 6},
            "",
        ),
    ],
)
def test_carrying_that_cannot_be_right_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    build = partial(tiny.config, tmp_path, straggler_policy="carry", **options)
    if not message:
        assert build().straggler_policy == "carry"
        return
    with pytest.raises(ValueError, match=f"straggler_policy: carry cannot be met: .*{message}"):
        build()


def test_carrying_needs_whole_groups_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny.config(tmp_path, use_vllm=True, straggler_policy="drop", num_generations=4)
    config.straggler_policy, config.per_device_train_batch_size = "carry", 2
    monkeypatch.setattr("trl.GRPOConfig.__post_init__", lambda self: None)
    with pytest.raises(ValueError, match="must be a multiple of num_generations"):
        config.__post_init__()


def test_carrying_is_refused_where_responses_are_cut_afterwards(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(
        args=SimpleNamespace(straggler_policy="carry"), limits=Limits(compat="mmsearch_r1"), num_generations=2
    )
    with pytest.raises(ValueError, match="carry does not go with"):
        Stragglers(trainer)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_trajectories_in_flight": 0}, "max_trajectories_in_flight must be at least 1"),
        ({"kv_high_water": 0.0}, "kv_high_water is a share"),
        ({"kv_high_water": 1.5}, "kv_high_water is a share"),
        ({"rollout_close_share": 0.0}, "rollout_close_share is a share"),
        ({"rollout_close_share": 1.01}, "rollout_close_share is a share"),
        ({"straggler_policy": "wait"}, "straggler_policy must be 'drop' or 'carry'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(tmp_path, **options)


def test_a_cap_changes_when_trajectories_run_and_not_what_they_are(tmp_path: Path) -> None:
    free, capped = (tiny.trainer(FAMILY, tmp_path, max_trajectories_in_flight=cap) for cap in (None, 2))
    batches = [tiny.rollout_batch(trainer, list(trainer.train_dataset)) for trainer in (free, capped)]
    ids = [[trajectory.token_ids for trajectory in batch.trajectories] for batch in batches]
    assert ids[0] == ids[1]
    assert capped._metrics["train"]["rollout/cap_min"] == [2] and "rollout/cap_min" not in free._metrics["train"]


def test_a_full_engine_lowers_the_cap_of_the_batches_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(TransformersEngine):
        async def pressure(self) -> Pressure:
            now = asyncio.get_running_loop().time()  # the monotonic clock
            return Pressure(kv_usage=0.95, preemptions=0, running=1, waiting=0, read_at=now)

    monkeypatch.setattr("mmsearch_trl.trainer.engines.TransformersEngine", Full)
    monkeypatch.setattr("mmsearch_trl.trainer.rollouts.Admission", partial(Admission, interval_s=0.005))
    trainer = tiny.trainer(FAMILY, tmp_path, tools=tiny.CannedTools(delay=lambda: 0.02), max_trajectories_in_flight=4)
    tiny.rollout_batch(trainer, list(trainer.train_dataset))
    assert trainer.backpressure is not None and trainer.backpressure.cap < 4
    assert trainer._metrics["train"]["rollout/cap_min"] == [trainer.backpressure.cap]
    assert nothing_is_left_running(trainer)
