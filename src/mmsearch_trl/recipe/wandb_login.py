"""Whether wandb will take a run: it asks once the model is loaded, and nobody answers a run of several processes.

Looked for is what wandb itself looks for: its variables, its settings (which `wandb offline` writes), and the entry
that `wandb login` writes into the netrc file. Nothing is sent; whether a key is good shows when the run begins.
"""

import configparser
import netrc
import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from mmsearch_trl.core.errors import UserError


_SERVER = "https://api.wandb.ai"
_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
_WITHOUT_SERVER = ("offline", "dryrun", "disabled")


def check_wandb_login() -> None:
    """
    Raises:
        UserError: nobody is logged in, and the run is not kept on this machine either.
    """
    settings = _settings()
    mode = os.environ.get("WANDB_MODE") or settings.get("mode", "")
    disabled = os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes")
    if mode in _WITHOUT_SERVER or disabled or settings.get("disabled") == "true":
        return
    if any(map(os.environ.get, _KEYS)) or "api_key" in settings:
        return
    server = os.environ.get("WANDB_BASE_URL") or settings.get("base_url") or _SERVER
    host = urlsplit(server).hostname or server
    if not any(_knows(file, host) for file in _netrc_files()):
        raise UserError(
            f"report_to: wandb: nobody is logged in at {host}: run `wandb login`, set WANDB_API_KEY, or keep the run "
            "on this machine with WANDB_MODE=offline"
        )


def _settings() -> dict[str, str]:
    """Of the user, and over them those of the working directory."""
    home = Path(os.environ.get("WANDB_CONFIG_DIR") or Path.home() / ".config" / "wandb")
    reader = configparser.ConfigParser(interpolation=None)
    try:
        reader.read([home / "settings", Path(os.environ.get("WANDB_DIR") or ".") / "wandb" / "settings"])
    except (configparser.Error, UnicodeDecodeError):
        return {}
    return dict(reader["default"]) if reader.has_section("default") else {}


def _netrc_files() -> Iterator[Path]:
    if given := os.environ.get("NETRC"):
        yield Path(given).expanduser()
    else:
        yield from (Path.home() / name for name in (".netrc", "_netrc"))


def _knows(file: Path, host: str) -> bool:
    try:
        entry = netrc.netrc(file).authenticators(host)
    except (OSError, netrc.NetrcParseError, UnicodeDecodeError):
        return False
    return entry is not None and bool(entry[2])
