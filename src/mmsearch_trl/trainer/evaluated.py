"""Evaluation of a trainer by the one evaluator: every row is rolled out once, and means are exact."""

from pathlib import Path
from typing import Any

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.distributed.policy import Policy
from mmsearch_trl.distributed.ranks import Ranks
from mmsearch_trl.evaluation.evaluator import Evaluation, Evaluator
from mmsearch_trl.rollout.rollouter import Rollouter
from mmsearch_trl.trainer.actor_critic import ActorCritic
from mmsearch_trl.trainer.collector import Collector
from mmsearch_trl.trainer.rewards import RewardFunctions
from mmsearch_trl.trainer.sampler.sampler import Sampler


class EvaluatedByRollouts(ActorCritic):
    """TRL's trainer, evaluated on the engine that samples for it."""

    ranks: Ranks
    rollouter: Rollouter
    sampler: Sampler
    reward_functions: RewardFunctions
    collector: Collector
    _evaluating: bool

    @property
    def policy(self) -> Policy:
        return Policy(self.accelerator, self.model_wrapped, self.state.global_step)

    @property
    def run_dir(self) -> Path:
        """Where traces, evaluations and checkpoints of this run lie."""
        return Path(str(self.args.output_dir))

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Roll out every row of a data set, or of each of a mapping of them, once; returns the logged metrics.

        TRL's own samples at the training temperature, averages the means of batches, and keeps the last batch only.

        Raises:
            UserError: there are no evaluation data.
            EngineLost, SearchLost: rollouts, or searches, fail and will go on failing.
        """
        dataset: Any = eval_dataset or self.eval_dataset
        if dataset is None:
            raise UserError("There is nothing to evaluate: pass eval_dataset to the trainer or to evaluate().")
        if isinstance(dataset, dict):
            parts = [self.evaluate(part, None, f"{metric_key_prefix}_{name}") for name, part in dataset.items()]
            return {key: value for metrics in parts for key, value in metrics.items()}
        evaluator = Evaluator(
            self.rollouter,
            self.reward_functions.scorer(self.state),
            self.ranks,
            self.args.evaluation_options(self.run_dir, progress=not self.args.disable_tqdm),
        )
        step = self.state.global_step
        evaluation = Evaluation(
            name=metric_key_prefix,
            split=metric_key_prefix,
            step=step,
            weights=self.policy.fingerprint(),
            settings={"rewards": self.reward_func_names, "weights": self.reward_weights.tolist()},
            rows_file=self.run_dir / "evaluation" / f"{metric_key_prefix}_step{step}_{len(dataset)}.json",
        )
        training = self.model.training
        self.model.eval()
        self._evaluating = True
        try:
            with self.sampler.open(self.policy) as opened:
                summary = evaluator.run(evaluation, dataset, self.collector.to_task, opened.engine)
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in summary.as_dict().items()}
            self.log(metrics)
        finally:
            self._evaluating = False
            self.model.train(training)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def last_evaluation(self) -> dict[str, Any] | None:
        """What the evaluation of the last step came to on all of `eval_dataset`; None where that was not evaluated, or
        the weights are those of another step since."""
        went_back = self.args.load_best_model_at_end and self.state.best_global_step not in (
            None,
            self.state.global_step,
        )
        logs = [] if went_back else [log for log in self.state.log_history if log["step"] == self.state.global_step]
        prefixes = tuple(f"eval_{name}_" for name in self.eval_dataset or ())
        metrics = {key: value for log in logs for key, value in log.items() if key.startswith(prefixes)}
        return metrics if all(f"{prefix}reward" in metrics for prefix in prefixes) else None
