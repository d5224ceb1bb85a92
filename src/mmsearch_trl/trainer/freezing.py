"""Parts of a model that training leaves as they are, named by the beginning of their parameters' names.

A name is read as the checkpoints and the releases of a family write it: the vision tower is `visual.` to Qwen's first
files, `model.visual.` to transformers 5, and has `base_model.model.` before it where the model wears an adapter. Whole
parts of a name are compared, so that `layers.1` is not `layers.10`.
"""

from collections.abc import Iterator, Sequence

from torch import nn

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.nearest import did_you_mean


VISION = "visual"
_WRAPPERS = ("base_model.model.", "model.", "language_model.")


def frozen_parameters(
    model: nn.Module, prefixes: Sequence[str], *, freeze_vision: bool = False
) -> list[tuple[str, nn.Parameter]]:
    """Those that `freeze_prefix` and `freeze_vision` name, adapters within them included.

    Raises:
        UserError: one of them names no parameter.
    """
    named = list(model.named_parameters(remove_duplicate=False))  # a tied head has two names, and either may be given
    wanted = {f"freeze_prefix: {prefix!r}": prefix for prefix in prefixes}
    if freeze_vision:
        wanted["freeze_vision"] = VISION
    frozen: dict[str, nn.Parameter] = {}
    for key, prefix in wanted.items():
        found = {name: parameter for name, parameter in named if _begins(name, prefix)}
        if not found and key == "freeze_vision":
            raise UserError("freeze_vision: the model has no vision tower (no parameter is named .visual.)")
        if not found:
            parts = sorted({part for name, _ in named for part in _beginnings(name)})
            known = shortened(", ".join(part for part in parts if part.count(".") < 2), 300)
            raise UserError(
                f"{key} is the beginning of no parameter's name{did_you_mean(prefix, parts)}; such are {known}"
            )
        frozen |= found
    return list(frozen.items())


def freeze(model: nn.Module, prefixes: Sequence[str], *, freeze_vision: bool = False) -> None:
    """Have training leave them as they are.

    Raises:
        UserError: one of them names no parameter, or nothing is left to train.
    """
    frozen = frozen_parameters(model, prefixes, freeze_vision=freeze_vision)
    for _, parameter in frozen:
        parameter.requires_grad_(False)
    if frozen and not any(parameter.requires_grad for parameter in model.parameters()):
        raise nothing_left(prefixes, freeze_vision=freeze_vision)


def nothing_left(prefixes: Sequence[str], *, freeze_vision: bool) -> UserError:
    """That all that would be trained is frozen."""
    keys = " and ".join((*(["freeze_vision"] if freeze_vision else []), *(["freeze_prefix"] if prefixes else [])))
    return UserError(f"{keys}: nothing is left to train: freeze less, or adapt other modules (lora_target_modules)")


def _begins(name: str, prefix: str) -> bool:
    wanted = {spelled.rstrip(".") for spelled in _spellings(prefix)} - {""}
    return any(f"{spelled}.".startswith(f"{begin}.") for spelled in _spellings(name) for begin in wanted)


def _spellings(name: str) -> Iterator[str]:
    """A parameter's name, and what is left of it without the wrappers, one after the other."""
    yield name
    for wrapper in _WRAPPERS:
        if name.startswith(wrapper):
            name = name.removeprefix(wrapper)
            yield name


def _beginnings(name: str) -> Iterator[str]:
    spelled = list(_spellings(name))[-1]
    parts = spelled.split(".")
    yield from (".".join(parts[:length]) for length in range(1, min(len(parts), 3)))
