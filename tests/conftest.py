"""The `--vectors` option; pytest reads options only from a conftest that it loads before it collects.

Hypothesis runs without a deadline: on a busy machine the first call of a test is slow for reasons of its own.
`tests` itself is importable, for `tiny.py`.
"""

import sys
from pathlib import Path

import pytest
from hypothesis import settings


sys.path.insert(0, str(Path(__file__).parent))

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--vectors",
        type=Path,
        default=Path(__file__).parent / "conformance" / "vectors",
        metavar="DIR",
        help="folder of conformance vectors that tests/conformance runs (default: those of the repository)",
    )
