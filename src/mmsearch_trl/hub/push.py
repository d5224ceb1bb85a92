"""The Hub as a boundary: what it refuses is a `HubError`, and it is asked before any work whether it will refuse."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from transformers import TrainingArguments

from mmsearch_trl.core.errors import HubError


def check_login(args: TrainingArguments) -> None:
    """See that a run that is to be pushed may ask the Hub; nothing is asked where no push is wanted.

    Raises:
        HubError: there is no token, the Hub refuses it, or it cannot be reached.
    """
    if args.push_to_hub:
        with _asking("log in with `hf auth login`, set HF_TOKEN, or leave push_to_hub out"):
            HfApi().whoami(token=args.hub_token)


@contextmanager
def pushing(folder: str | Path) -> Iterator[None]:
    """Around the push of a run that is saved in `folder`.

    Raises:
        HubError: the Hub refuses it, or cannot be reached.
    """
    with _asking(f"the run is saved in {folder}, and can be pushed from there"):
        yield


@contextmanager
def _asking(advice: str) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, OSError, HFValidationError) as error:
        raise HubError(f"push_to_hub: {str(error) or type(error).__name__} ({advice})") from error
