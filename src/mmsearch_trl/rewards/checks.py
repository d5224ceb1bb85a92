"""Checks of the values of a `reward:` section."""

from mmsearch_trl.core.errors import UserError


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raises: UserError, naming `reward.<name>`."""
    # A number in a YAML file can arrive as text (`1e-1` has no dot), which would fail far from here.
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UserError(f"reward.{name} must be a number from {low} to {high}, got {value!r}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises: UserError, naming `reward.<name>`."""
    if value not in choices:
        raise UserError(f"reward.{name} must be one of {', '.join(choices)}; got {value!r}")
