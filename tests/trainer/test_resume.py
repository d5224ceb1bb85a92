"""A run that is interrupted and resumed is the uninterrupted run, to the bit: wherever its checkpoint falls."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.evaluation.evaluator import Evaluator
from mmsearch_trl.trainer.estimator_config import EstimatorConfig, KLConfig
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer


pytestmark = pytest.mark.slow

FAMILY = tiny.qwen25()
STEPS = 5
SMALL: dict[str, Any] = {"per_device_train_batch_size": 2, "max_steps": STEPS, "save_traces": True}
EVERY_STEP: dict[str, Any] = {"save_strategy": "steps", "save_steps": 1}
BATCHES: Mapping[str, dict[str, Any]] = {
    "a batch a step": {},
    "four steps on a batch": {"steps_per_generation": 4, "gradient_accumulation_steps": 1},
    "twice through two": {"steps_per_generation": 2, "num_iterations": 2, "gradient_accumulation_steps": 1},
    "three micro-batches, two a step": {"steps_per_generation": 3, "gradient_accumulation_steps": 2},
    "four batches a step": {"steps_per_generation": 1, "gradient_accumulation_steps": 4},
    "filtered": {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "filter_zero_variance_groups": True},
}


def in_halves(**given: Any) -> list[float]:
    """A reward that is often the same for both rollouts of a prompt."""
    return [float(reward > 0.5) for reward in tiny.by_letters(**given)]


def trainer(out: Path, seed: int = 0, **options: Any) -> MMSearchGRPOTrainer:
    given = tiny.tasks(6, images=(1, 0, 2))
    return tiny.trainer(FAMILY, out, given, model=FAMILY.model(seed=seed), **(SMALL | EVERY_STEP | options))


def carried_out(out: Path, resumed: Path | str | None = None, **options: Any) -> MMSearchGRPOTrainer:
    run = trainer(out, seed=5 if resumed else 0, **options)
    run.train(resume_from_checkpoint=str(resumed) if resumed else None)
    run.close()
    return run


def weights(run: MMSearchGRPOTrainer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in run.model.named_parameters()}


def traces(out: Path) -> list[Any]:
    """Of every rollout, in order: what was asked, sampled and earned."""
    lines = (out / "traces" / "train-rank0.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [
        [[record[key] for key in ("id", "step", "reward", "advantage")], [turn["text"] for turn in record["turns"]]]
        for record in records
    ]


def cut_after(whole: Path, step: int, out: Path) -> Path:
    """The folder of a run that was killed some time after its checkpoint of `step`; returns the checkpoint."""
    shutil.copytree(whole, out)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(out / f"checkpoint-{later}")
    return out / f"checkpoint-{step}"


@pytest.mark.parametrize("options", BATCHES.values(), ids=BATCHES)
def test_a_run_resumed_from_any_step_ends_with_the_same_weights_and_traces(
    options: dict[str, Any], tmp_path: Path
) -> None:
    whole = carried_out(tmp_path / "whole", **options)
    expected = weights(whole), traces(tmp_path / "whole")
    for step in range(1, STEPS + 1):
        out = tmp_path / str(step)
        resumed = carried_out(out, cut_after(tmp_path / "whole", step, out), **options)
        assert resumed.state.global_step == STEPS
        found = weights(resumed)
        assert [name for name in found if not torch.equal(found[name], expected[0][name])] == [], step
        assert traces(out) == expected[1], step


def test_a_resumed_run_goes_on_with_the_surplus_and_the_coefficient_of_the_kl_term(tmp_path: Path) -> None:
    """The reference is the first model, and so the resumed run has to begin with it, too."""
    kl = KLConfig(coef=0.1, form="k3", target=1e-3, horizon=10)
    options: dict[str, Any] = {"estimator": EstimatorConfig(name="rloo", kl=kl), "steps_per_generation": 2}
    options |= {"filter_zero_variance_groups": True, "carry_surplus_groups": True, "reward": in_halves}
    options |= {"max_refills": 50, "gradient_accumulation_steps": 1}
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    whole.close()
    logs = [log for log in whole.state.log_history if "train/kl_coef" in log]
    assert len({log["train/kl_coef"] for log in logs}) == 3 and any(log["train/carried_groups"] for log in logs[:2])
    for step in (2, 3):
        out = tmp_path / str(step)
        checkpoint = cut_after(tmp_path / "whole", step, out)
        resumed = trainer(out, **options)
        resumed.train(resume_from_checkpoint=str(checkpoint))
        resumed.close()
        expected, found = weights(whole), weights(resumed)
        assert [name for name in found if not torch.equal(found[name], expected[name])] == [], step
        assert traces(out) == traces(tmp_path / "whole"), step


def test_a_resumed_adapter_is_the_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "save_steps": 2}
    options |= {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")}
    torch.manual_seed(0)
    whole = trainer(tmp_path / "whole", **options)
    whole.train()
    whole.close()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "cut" / "checkpoint-2")
    resumed = trainer(tmp_path / "cut", **options)
    resumed.train(resume_from_checkpoint=True)
    resumed.close()
    assert all(torch.equal(weights(resumed)[name], value) for name, value in weights(whole).items())


def test_a_batch_that_is_not_there_or_is_cut_otherwise_is_refused(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps_per_generation": 4, "gradient_accumulation_steps": 1, "max_steps": 3}
    carried_out(tmp_path / "whole", **options)
    inside = tmp_path / "whole" / "checkpoint-3"
    with pytest.raises(UserError, match=r"lies inside a generation batch, .*\(steps_per_generation was 4\)"):
        carried_out(tmp_path / "other", inside, **(options | {"steps_per_generation": 2, "max_steps": 5}))
    (inside / "generation_batch_0.pt").unlink()
    with pytest.raises(UserError, match="does not hold it: name one after a multiple of 4 micro-batches"):
        carried_out(tmp_path / "another", inside, **(options | {"max_steps": 5}))


def test_a_second_run_into_a_folder_is_refused_and_what_is_there_is_untouched(tmp_path: Path) -> None:
    carried_out(tmp_path, max_steps=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="holds a run already"):
        carried_out(tmp_path, max_steps=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    carried_out(tmp_path, max_steps=1, overwrite_output_dir=True, save_strategy="no")
    assert not list(tmp_path.glob("checkpoint-*")) and len(traces(tmp_path)) == 2


def test_a_resumed_run_drops_what_other_processes_and_evaluations_recorded_later(tmp_path: Path) -> None:
    carried_out(tmp_path, max_steps=2)
    line = json.loads((tmp_path / "traces" / "train-rank0.jsonl").read_text().splitlines()[0])
    for name in ("train-rank1", "eval-rank0", "eval_known-rank3"):
        lines = "".join(json.dumps(line | {"step": step}) + "\n" for step in range(3))
        (tmp_path / "traces" / f"{name}.jsonl").write_text(lines + '{"torn')
    shutil.rmtree(tmp_path / "checkpoint-2")
    carried_out(tmp_path, "latest", max_steps=2)
    steps = {
        path.stem: [json.loads(line)["step"] for line in path.read_text().splitlines()]
        for path in (tmp_path / "traces").glob("*.jsonl")
    }
    assert steps == {
        "train-rank0": [0, 0, 1, 1],
        "train-rank1": [0],
        "eval-rank0": [0, 1],
        "eval_known-rank3": [0, 1],
    }


def test_an_evaluation_that_was_broken_off_after_the_checkpoint_begins_anew_with_its_traces(tmp_path: Path) -> None:
    data = {"few": tiny.dataset(tiny.tasks(3))}
    options: dict[str, Any] = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "eval_dataset": data}
    first = trainer(tmp_path, **options)
    traced = 0

    def break_off(*arguments: Any, **options: Any) -> None:
        nonlocal traced
        traced = len((tmp_path / "traces" / "eval_few-rank0.jsonl").read_text().splitlines())
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Evaluator, "_finish", break_off)
        with pytest.raises(KeyboardInterrupt):
            first.train()
    first.close()
    assert traced == 3 and (tmp_path / "evaluation" / "eval_few.parts").is_dir()
    carried_out(tmp_path, "auto", **options)
    assert len((tmp_path / "traces" / "eval_few-rank0.jsonl").read_text().splitlines()) == 3
