"""The figures of `docs/world.md`: three seeds of the demo, other numbers of results, a control and an ablation.

    python benchmarks/world_study.py --out runs/study [--seeds 0 1 2]

It prints the tables in Markdown when all is done. Every run starts from nothing and leaves its folder below `--out`; a
run whose `study.json` is there is not repeated. Evaluations are at temperature 1: 72 questions about known entities,
180 about held-out ones.
"""

import argparse
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.runtime import SearchRuntime
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.trainer.batch import Generation
from mmsearch_trl.trainer.grpo import MMSearchGRPOTrainer
from mmsearch_trl.world.demo import WARM_START_STEPS, evaluated_groups, make_trainer, make_warm_start, results
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.world import World


RESULT_COUNTS = ((3, 2), (2, 2), (5, 2), (3, 1), (3, 3))
"""Image and text results per search; the first is what is trained with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/study"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recipe", type=Path, default=Path("recipes/world/grpo.yaml"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for seed in options.seeds:
        folder = options.out / f"seed{seed}"
        _once(folder / "study.json", lambda folder=folder, seed=seed: _seed(folder, options.recipe, seed))
    first = options.out / f"seed{options.seeds[0]}"
    control = {"reward.search_penalty": 0.0, "output_dir": str(options.out / "control")}
    _once(options.out / "control.json", lambda: _variant(first, options.recipe, options.seeds[0], control))
    _once(options.out / "unmasked.json", lambda: _unmasked(first, options.recipe, options.seeds[0], options.out))
    print("\n".join(markdown(options.out, options.seeds)))


def _once(path: Path, run: Any) -> None:
    if not path.exists():
        report = run()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(path, path.read_text(encoding="utf-8"), flush=True)


def _seed(folder: Path, recipe: Path, seed: int) -> dict[str, Any]:
    started = time.perf_counter()
    world = World(seed)
    write_world(world, folder / "world")
    make_warm_start(world, folder / "warm_start", steps=WARM_START_STEPS)
    warm = time.perf_counter()
    trainer = make_trainer(recipe, folder, seed=seed)
    before = _groups(trainer)
    trainer.train()
    trainer.save_model()
    trained = time.perf_counter()
    after = {}
    for images, passages in RESULT_COUNTS:
        trainer.rollouter.tools = SearchRuntime(
            ImageIndex.open(folder / "world" / "image_index"),
            TextIndex.open(folder / "world" / "text_index"),
            k_image=images,
            k_text=passages,
        )
        after[f"{images} images, {passages} passages"] = _groups(trainer)
    return {
        "seed": seed,
        "before": before,
        "after": after,
        "seconds": {"warm_start": warm - started, "grpo": trained - warm},
    }


def _variant(folder: Path, recipe: Path, seed: int, overrides: Mapping[str, Any]) -> dict[str, Any]:
    trainer = make_trainer(recipe, folder, seed=seed, **overrides)
    trainer.train()
    return {"overrides": dict(overrides), "after": _groups(trainer)}


def _unmasked(folder: Path, recipe: Path, seed: int, out: Path) -> dict[str, Any]:
    trainer = make_trainer(recipe, folder, seed=seed, output_dir=str(out / "unmasked"))
    trainer.__class__ = _Unmasked
    trainer.train()
    return {"ablation": "replies are trained like the model's own tokens", "after": _groups(trainer)}


def markdown(out: Path, seeds: Sequence[int]) -> Iterator[str]:
    """The tables of `docs/world.md`, a row per group and evaluation."""
    head = ("| {} | group | n | accuracy | search | image | text | format | reward |", "|---" * 9 + "|")
    yield from ("", head[0].format("seed and time"), head[1])
    for seed in seeds:
        report = _read(out / f"seed{seed}" / "study.json")
        yield from _rows(f"{seed}, before", report["before"])
        yield from _rows(f"{seed}, after", next(iter(report["after"].values())))
    yield from ("", head[0].format("seed and results per search"), head[1])
    for seed in seeds:
        for counts, groups in _read(out / f"seed{seed}" / "study.json")["after"].items():
            yield from _rows(f"{seed}, {counts}", groups)
    yield from ("", head[0].format(f"seed {seeds[0]}"), head[1])
    for title, name in (("no search penalty", "control"), ("no response mask", "unmasked")):
        yield from _rows(title, _read(out / f"{name}.json")["after"])


def _rows(title: str, groups: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    for group, row in groups.items():
        shares = [f"{row[key]:.1%}" for key in ("accuracy", "search_ratio", "image_ratio", "text_ratio", "format")]
        cells = [title, group.replace("_", " "), str(row["n"]), *shares, f"{row['reward']:.3f}"]
        yield f"| {' | '.join(cells)} |"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


class _Unmasked(MMSearchGRPOTrainer):
    """Trains on what tools returned as if the model had written it."""

    def _generate(self, prompts: list[Any]) -> Generation:
        layout = super()._generate(prompts)
        self._score_mask = None  # the log-probs of every token are wanted
        return layout._replace(tool_mask=[[1] * len(ids) for ids in layout.completion_ids])


def _groups(trainer: MMSearchGRPOTrainer) -> dict[str, Any]:
    return {name: asdict(group) for name, group in results(evaluated_groups(trainer.evaluate())).items()}


if __name__ == "__main__":
    main()
