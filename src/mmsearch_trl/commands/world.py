"""`mmsearch world`: write data, indexes, demonstrations and an untrained model of a synthetic world."""

import argparse
from pathlib import Path

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.core.versions import check_versions


DEMONSTRATIONS = 6000


def add_world(world: argparse.ArgumentParser) -> None:
    """Declare the options."""
    world.add_argument("--seed", type=int, default=0, help="of emblems, questions, and weights")
    world.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder that takes world/ and model/")
    world.add_argument(
        "--demonstrations", type=int, default=DEMONSTRATIONS, metavar="N", help="conversations to learn from"
    )
    world.set_defaults(action=_world)


def _world(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.world.demonstrations import write_demonstrations
    from mmsearch_trl.world.files import write_world
    from mmsearch_trl.world.model import build_model
    from mmsearch_trl.world.protocol import build_protocol
    from mmsearch_trl.world.tokenizer import build_processor
    from mmsearch_trl.world.world import World

    world, processor = World(options.seed), build_processor()
    folder, model = options.out / "world", options.out / "model"
    with writing(options.out):
        write_world(world, folder, progress=True)
        write_demonstrations(world, build_protocol(processor), folder, options.demonstrations, progress=True)
        build_model(processor, options.seed).save_pretrained(model)
        processor.save_pretrained(model)
    print(f"world: {folder}\nuntrained model: {model}")
