"""Optional packages that a recipe's keys ask for: told before a model is loaded, which is when others would notice."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig

from mmsearch_trl.core.boundaries import missing
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine.vllm_arguments import VLLM_EXTRAS
from mmsearch_trl.recipe.wandb_login import check_wandb_login
from mmsearch_trl.trainer.config import MMSearchGRPOConfig
from mmsearch_trl.trainer.sft import MMSearchSFTConfig


_ATTENTION = {
    "flash_attention_2": ("flash-attn", "'mmsearch-trl[flash-attn]'"),
    "flash_attention_3": ("flash-attn-3", "flash-attn-3"),
    "flash_attention_4": ("flash-attn-4", "flash-attn-4"),
}
"""Distribution that has an implementation of attention, and what pip is told. Two of them share the module
`flash_attn`, so that the module says nothing."""


def check_packages(
    path: Path, model: ModelConfig, args: MMSearchGRPOConfig | MMSearchSFTConfig, *, reporting: bool
) -> None:
    """
    Args:
        reporting: Loggers are needed as well.

    Raises:
        UserError: a package is not installed, or nobody is logged in; names the key and what to type.
    """
    colocated = isinstance(args, MMSearchGRPOConfig) and args.use_vllm and args.vllm_mode == "colocate"
    if colocated and find_spec("vllm") is None:
        raise missing("vllm_mode: colocate", *VLLM_EXTRAS, why="No module named 'vllm'")
    for key, package, install in _wanted(model, args):
        if not _installed(package):
            raise UserError(f"{path}: {key} needs {package}, which is not installed: pip install {install}")
    present = get_available_reporting_integrations()
    for name in args.report_to or () if reporting else ():
        if name not in present:
            extra = "'mmsearch-trl[wandb]'" if name == "wandb" else name
            raise UserError(f"{path}: report_to: {name} is not installed: pip install {extra}")
        if name == "wandb":
            try:
                check_wandb_login()
            except UserError as error:
                raise UserError(f"{path}: {error}") from error


def _wanted(model: ModelConfig, args: MMSearchGRPOConfig | MMSearchSFTConfig) -> Iterator[tuple[str, str, str]]:
    """Key, distribution, and what pip is told."""
    attention = model.attn_implementation or ""
    if attention in _ATTENTION:
        yield f"attn_implementation: {attention}", *_ATTENTION[attention]
    if "/" in attention:
        yield f"attn_implementation: {attention}", "kernels", "kernels"
    for key in ("load_in_4bit", "load_in_8bit"):
        if getattr(model, key):
            yield key, "bitsandbytes", "bitsandbytes"
    if args.use_liger_kernel:
        yield "use_liger_kernel", "liger-kernel", "liger-kernel"


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True
