"""`mmsearch demo`: build a world, train in it, show what came of it."""

import argparse
from pathlib import Path

from mmsearch_trl.core.versions import check_versions


def add_demo(demo: argparse.ArgumentParser) -> None:
    """Declare the options."""
    demo.add_argument("--seed", type=int, default=0, help="seed of world, model and training")
    engines = ("transformers", "vllm", "vllm-colocate")
    demo.add_argument("--engine", choices=engines, default=engines[0], help="what writes the rollouts")
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of all that it makes: %(default)s")
    recipe = Path("world/grpo")
    demo.add_argument(
        "--recipe", type=Path, default=recipe, help="GRPO settings, a file or a shipped recipe: %(default)s"
    )
    demo.add_argument("--warm_start_steps", type=int, metavar="N", help="supervised steps, 900 by default")
    demo.add_argument("--max_steps", type=int, help="GRPO steps; by default the recipe's")
    overwrite = "remove the demo that the folder holds; without it, it is refused"
    demo.add_argument("--overwrite_output_dir", action="store_true", help=overwrite)
    demo.set_defaults(action=_demo)


def _demo(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.world.demo import WARM_START_STEPS, run_demo

    run_demo(
        options.out,
        seed=options.seed,
        engine=options.engine,
        recipe=options.recipe,
        warm_start_steps=options.warm_start_steps or WARM_START_STEPS,
        max_steps=options.max_steps,
        overwrite=options.overwrite_output_dir,
    )
