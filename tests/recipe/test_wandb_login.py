"""A run that wandb would ask for a key is refused before a model is loaded."""

from pathlib import Path

import pytest

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe import packages
from mmsearch_trl.recipe.recipe import load_recipe
from mmsearch_trl.recipe.wandb_login import check_wandb_login


NETRC = "machine {host}\n  login user\n  password " + "k" * 40 + "\n"


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One on which nobody has ever used wandb."""
    names = ("API_KEY", "IDENTITY_TOKEN_FILE", "MODE", "DISABLED", "BASE_URL", "CONFIG_DIR", "DIR")
    for name in ("NETRC", *(f"WANDB_{name}" for name in names)):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_nobody_is_logged_in() -> None:
    with pytest.raises(UserError, match=r"nobody is logged in at api\.wandb\.ai: run `wandb login`, set "):
        check_wandb_login()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_API_KEY", "k" * 40),
        ("WANDB_IDENTITY_TOKEN_FILE", "token.jwt"),
        ("WANDB_MODE", "offline"),
        ("WANDB_MODE", "disabled"),
        ("WANDB_DISABLED", "true"),
    ],
)
def test_a_variable_is_enough(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    check_wandb_login()


@pytest.mark.parametrize("name", ["", "false"])
def test_a_variable_that_says_nothing_is_not(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("WANDB_API_KEY", "WANDB_DISABLED", "WANDB_MODE"):
        monkeypatch.setenv(variable, name if variable == "WANDB_DISABLED" else "")
    with pytest.raises(UserError):
        check_wandb_login()


@pytest.mark.parametrize("file", [".netrc", "_netrc", "mine"])
def test_the_entry_of_wandb_login_is_found(file: str, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (machine / file).write_text(NETRC.format(host="api.wandb.ai"))
    (machine / file).chmod(0o600)
    if file == "mine":
        monkeypatch.setenv("NETRC", "~/mine")
    check_wandb_login()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match=r"at wandb\.example\.org"):
        check_wandb_login()


@pytest.mark.parametrize("broken", ["machine", "machine other.example login a password b\n", "\0\xff"])
def test_another_or_a_broken_netrc_is_no_login(broken: str, machine: Path) -> None:
    (machine / ".netrc").write_bytes(broken.encode("latin-1"))
    with pytest.raises(UserError, match="nobody is logged in"):
        check_wandb_login()


@pytest.mark.parametrize("settings", ["mode = offline", "api_key = x", "disabled = true"])
@pytest.mark.parametrize("place", ["wandb", ".config/wandb"])
def test_settings_of_the_folder_and_of_the_user_count(settings: str, place: str, machine: Path) -> None:
    (machine / place).mkdir(parents=True)
    (machine / place / "settings").write_text(f"[default]\n{settings}\n")
    check_wandb_login()


def test_a_recipe_is_refused_where_wandb_is_installed_and_nobody_logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "get_available_reporting_integrations", lambda: ["wandb"])
    recipe = load_recipe("world/grpo", {"report_to": "wandb", "use_cpu": True, "bf16": False})
    with pytest.raises(UserError, match="world/grpo: report_to: wandb: nobody is logged in"):
        recipe.validate(check_files=False)
    recipe.validate(check_files=False, evaluation=True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    recipe.validate(check_files=False)
