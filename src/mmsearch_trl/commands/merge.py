"""`mmsearch merge`: put a LoRA adapter into its base model."""

import argparse
from pathlib import Path

from mmsearch_trl.core.versions import check_versions


def add_merge(merge: argparse.ArgumentParser) -> None:
    """Declare the options."""
    merge.add_argument("adapter", help="folder or Hub name of the adapter")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder of the merged model")
    merge.set_defaults(action=_merge)


def _merge(options: argparse.Namespace) -> None:
    check_versions()
    from mmsearch_trl.recipe.build import merge_adapter

    merge_adapter(options.adapter, options.out)
    print(f"merged model: {options.out}")
