"""The `--vectors` option; pytest reads options only from a conftest that it loads before it collects."""

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        type=Path,
        default=Path(__file__).parent / "conformance" / "vectors",
        metavar="DIR",
        help="folder of conformance vectors that tests/conformance runs (default: those of the repository)",
    )
