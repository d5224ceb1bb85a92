"""Train a model to search from Python, without a recipe: your own questions, your own search.

    python examples/train_without_a_recipe.py --out runs/example [--steps 2]

The questions and the model are those of the small world that the package can draw, so that this runs on a laptop; what
answers text searches is a class of twenty lines, as yours would be.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmsearch_trl import Limits, MMSearchGRPOConfig, MMSearchGRPOTrainer, RewardConfig, RuleReward, SearchRuntime
from mmsearch_trl.core.observation import TextHit
from mmsearch_trl.data.dataset import load_dataset_rows
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.world.files import write_world
from mmsearch_trl.world.model import build_model
from mmsearch_trl.world.protocol import build_protocol
from mmsearch_trl.world.tokenizer import build_processor
from mmsearch_trl.world.world import World


class FactBook:
    """Answers a text search with the facts whose title is named in it: a backend is a name, a print and `search`."""

    name = "fact-book"
    fingerprint = "fact-book-1"  # changes with the facts, so that cached results of others are not taken for these

    def __init__(self, facts: dict[str, str]) -> None:
        self._facts = facts

    async def search(self, query: str, k: int) -> Sequence[TextHit]:
        found = [title for title in self._facts if title.lower() in query.lower()]
        return [TextHit(title, self._facts[title]) for title in found[:k]]


def main(arguments: Sequence[str] | None = None) -> MMSearchGRPOTrainer:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/example"))
    parser.add_argument("--steps", type=int, default=2)
    options = parser.parse_args(arguments)

    write_world(World(0), options.out / "world")  # images, questions and an image index
    processor = build_processor()
    trainer = MMSearchGRPOTrainer(
        build_model(processor, seed=0),
        RuleReward(RewardConfig(search_penalty=0.1)),
        MMSearchGRPOConfig(
            output_dir=str(options.out / "run"),
            per_device_train_batch_size=8,
            num_generations=4,
            max_steps=options.steps,
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
        ),
        search=SearchRuntime(
            ImageIndex.open(options.out / "world" / "image_index"), FactBook({"Bel Tor": "Bel Tor is in Calton."})
        ),
        limits=Limits(max_turns=3, max_turn_tokens=24, max_response_tokens=200),
        protocol=build_protocol(processor),
        train_dataset=load_dataset_rows(options.out / "world" / "train.jsonl"),
        processing_class=processor,
    )
    trainer.train()
    trainer.close()
    return trainer


if __name__ == "__main__":
    main()
