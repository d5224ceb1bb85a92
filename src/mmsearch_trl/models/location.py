"""Where a model is: in a folder, in the cache of the Hub, or on the Hub; asked before a library looks for it.

Libraries take a mistyped folder for the name of a model on the Hub, and ask for it again and again: 142 s where the
Hub cannot be reached. Here the folder comes first, then the cache, and the Hub is asked once.
"""

import difflib
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mmsearch_trl.core.errors import UserError


CONFIG, ADAPTER = "config.json", "adapter_config.json"
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_HUB_SECONDS = 10.0
_LOOKED_AT = 1000


def find_model(what: str, name: str, *, revision: str | None = None, weights: bool = True, hub: bool = True) -> None:
    """See that there is a model or an adapter of a name, without loading anything.

    Args:
        what: Such as `model_name_or_path`; stands before the message.
        weights: The folder must hold them, each file whole, and all that its index names.
        hub: Ask the Hub, too, where the name could be one of its.

    Raises:
        UserError: there is none; says where it was looked for.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_folder(what, folder, weights)
    elif folder.exists():
        raise UserError(f"{what}: {name} is a file, and a model is a folder: name the one that holds {CONFIG}")
    else:
        _check_hub(what, name, revision, ask=hub)


def find_base(adapter: str, base: str | None) -> None:
    """See that there is the base model of an adapter.

    Raises:
        UserError: there is none, as where it was moved.
    """
    where = f"{Path(adapter) / ADAPTER}" if Path(adapter).is_dir() else f"the {ADAPTER} of {adapter}"
    if not base:
        raise UserError(f"the adapter {adapter} does not name its model: write base_model_name_or_path into {where}")
    try:
        find_model("its base model", base)
    except UserError as error:
        raise UserError(
            f"the adapter {adapter} needs the model that it was trained on. {error}. Put it there again, or write its "
            f"new place as base_model_name_or_path into {where}"
        ) from error


def _check_folder(what: str, folder: Path, weights: bool) -> None:
    if not (folder / CONFIG).is_file() and not (folder / ADAPTER).is_file():
        inside = [path.parent for name in (CONFIG, ADAPTER) for path in folder.glob(f"*/{name}")]
        newest = max(inside, key=lambda path: path.stat().st_mtime, default=None)
        hint = f"did you mean {newest}?" if newest else "name the folder of a model or of a checkpoint"
        raise UserError(f"{what}: the folder {folder} holds no {CONFIG}: {hint}")
    if not weights:
        return
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS):
        raise UserError(f"{what}: the folder {folder} holds no weights ({', '.join(_WEIGHTS)})")
    for file in folder.glob("*.safetensors"):
        if not whole_safetensors(file):
            raise UserError(f"{what}: {file} is not whole, its writing was cut off: write or copy it again")
    missing = sorted(set(_indexed(folder)) - {path.name for path in folder.iterdir()})
    if missing:
        raise UserError(
            f"{what}: of the weights in {folder}, {len(missing)} files are missing, {missing[0]} first: copy or "
            "download the model again"
        )


def whole_safetensors(path: Path) -> bool:
    """Whether a file is as long as its header says: 8 bytes of the header's length, the header, the tensors."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > path.stat().st_size:
                return False
            header = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return path.stat().st_size == 8 + length + max(ends, default=0)


def _indexed(folder: Path) -> Iterator[str]:
    """The files of weights that the folder's index names."""
    for index in folder.glob("*.index.json"):
        try:
            yield from json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue  # whoever loads the weights says what is wrong with it


def _check_hub(what: str, name: str, revision: str | None, *, ask: bool) -> None:
    import httpx
    from huggingface_hub import HfApi, constants, try_to_load_from_cache
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )
    from huggingface_hub.utils import validate_repo_id

    here = f"{what}: there is no folder {name}{_near(name)}"
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{here}, and it is no name of a model on the Hub either") from error
    if not ask or any(
        isinstance(try_to_load_from_cache(name, file, revision=revision), str) for file in (CONFIG, ADAPTER)
    ):
        return
    if constants.is_offline_mode():
        raise UserError(f"{here}, nor is it in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids the Hub")
    try:
        HfApi().model_info(name, revision=revision, timeout=_HUB_SECONDS)
    except GatedRepoError as error:
        raise UserError(
            f"{what}: {name} is on the Hub and open to those alone who accepted its terms: accept them at "
            f"{constants.ENDPOINT}/{name}, then `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{what}: {name} is on the Hub, and has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"{here}, and the Hub ({constants.ENDPOINT}) has no model of this name that is open to you"
        ) from error
    except (OSError, httpx.HTTPError) as error:
        raise UserError(
            f"{here}, it is not in the cache of the Hub, and the Hub ({constants.ENDPOINT}) cannot be asked "
            f"({type(error).__name__}): name a folder, or set HF_ENDPOINT to a mirror that can be reached"
        ) from error


def _near(name: str) -> str:
    """The end of a sentence about a folder that is not there: one beside it, of nearly that name."""
    parent = Path(name).expanduser().parent
    if os.sep not in name or not parent.is_dir():
        return ""
    folders = [str(path) for path in islice(parent.iterdir(), _LOOKED_AT) if path.is_dir()]
    near = difflib.get_close_matches(str(Path(name).expanduser()), folders, n=1, cutoff=0.8)
    return f" (did you mean {near[0]}?)" if near else ""
