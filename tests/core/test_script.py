import os
import subprocess
import sys
from typing import Any

import pytest

from mmsearch_trl.core.errors import UserError, shortened
from mmsearch_trl.core.script import run_script


def test_a_mistake_is_one_line_of_bounded_length(capsys: pytest.CaptureFixture[str]) -> None:
    def script() -> Any:
        raise UserError("bad row:\n" + "x" * 100_000 + "\nthe end")

    assert run_script(script) == 1
    told = capsys.readouterr().err
    assert told.startswith("mmsearch: error: bad row: xxx") and told.endswith(" the end\n")
    assert told.count("\n") == 1 and len(told) < 2100


@pytest.mark.parametrize("length", [0, 600, 601, 10_000])
def test_a_text_for_a_message_is_cut_in_its_middle(length: int) -> None:
    text = "".join(str(number % 10) for number in range(length))
    short = shortened(text)
    assert len(short) <= 600 and (short == text or (short[:500], short[-80:]) == (text[:500], text[-80:]))


def test_neither_the_line_nor_a_log_tells_a_secret() -> None:
    """In a process of its own: where handlers are set up already, `run_script` leaves them alone."""
    code = (
        "import logging\n"
        "from mmsearch_trl.core.errors import UserError\n"
        "from mmsearch_trl.core.script import run_script\n"
        "def script():\n"
        "    logger = logging.getLogger('a')\n"
        "    logger.warning('%s: no answer', 'http://user:sesame@host.example/x')\n"
        "    try:\n"
        "        raise RuntimeError('api_key=sesame')\n"
        "    except RuntimeError:\n"
        "        logger.exception('a rollout failed')\n"
        "    raise UserError('http://host.example/?token=sesame refuses; so does open-the-door')\n"
        "raise SystemExit(run_script(script))\n"
    )
    environment = os.environ | {"JINA_API_KEY": "open-the-door"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert lines[0] == "WARNING a: http://<redacted>@host.example/x: no answer"
    assert "RuntimeError: api_key=<redacted>" in lines
    assert lines[-1] == "mmsearch: error: http://host.example/?token=<redacted> refuses; so does <redacted>"
    assert "sesame" not in done.stderr


def test_the_traceback_of_a_defect_tells_no_secret_and_stays_one() -> None:
    code = (
        "from mmsearch_trl.core.script import run_script\n"
        "def script():\n"
        "    try:\n"
        "        raise KeyError('http://user:sesame@host.example/x')\n"
        "    except KeyError as error:\n"
        "        raise RuntimeError('api_key=sesame, open-the-door') from error\n"
        "raise SystemExit(run_script(script))\n"
    )
    environment = os.environ | {"JINA_API_KEY": "open-the-door"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and lines.count("Traceback (most recent call last):") == 2
    assert "KeyError: 'http://<redacted>@host.example/x'" in lines
    assert any(line.endswith("in script") for line in lines)
    assert lines[-1] == "RuntimeError: api_key=<redacted>, <redacted>"
    assert "sesame" not in done.stderr and "open-the-door" not in done.stderr


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_line_of_transformers_stands_once_on_a_server_of_continuous_integration_too(ci: str) -> None:
    code = (
        "from mmsearch_trl.core.script import run_script\n"
        "def script():\n"
        "    from transformers.utils import logging\n"
        "    logging.get_logger('transformers.trainer').warning('aligned')\n"
        "raise SystemExit(run_script(script))\n"
    )
    environment = os.environ | {"CI": ci}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("aligned")) == (0, 1), done.stderr
