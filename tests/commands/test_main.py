import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from runs import write_jsonl

from mmsearch_trl import __version__
from mmsearch_trl.commands import doctor
from mmsearch_trl.commands import main as cli
from mmsearch_trl.engine import vllm_process
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.text.bm25 import TextIndex
from mmsearch_trl.world import demo


def status(*arguments: str) -> int:
    """Exit status of a command line, argparse's own exits included."""
    try:
        return cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    code = (
        "import sys, mmsearch_trl.commands.main as c; c.parse(['doctor']); "
        "print({'torch', 'trl', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "invalid choice: 'trian'"),
        (["view"], "the following arguments are required: RUN"),
        (["view", "run", "--colour"], "unrecognized arguments: --colour"),
        (["serve", "images", "--index", "x", "y"], "unrecognized arguments: y"),
        (["index", "sound", "x"], "invalid choice: 'sound'"),
        (["world", "--seed", "one", "--out", "x"], "invalid int value: 'one'"),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status(*arguments) == 2
    assert message in capsys.readouterr().err


def test_no_command_shows_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert status() == 0
    printed = capsys.readouterr().out
    for name in ("train", "sft", "eval", "vllm", "demo", "world", "index", "merge", "view", "plot", "doctor"):
        assert f"\n    {name} " in printed


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert status("--version") == 0
    assert __version__ in capsys.readouterr().out


def test_demo_hands_its_arguments_on(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(demo, "run_demo", lambda out, **options: seen.append((out, options)))
    assert status("demo", "--seed", "3", "--engine", "vllm", "--max_steps", "2") == 0
    [(out, options)] = seen
    assert (out, options["recipe"]) == (Path("runs/demo"), Path("world/grpo"))
    assert (options["seed"], options["engine"], options["max_steps"]) == (3, "vllm", 2)
    assert options["warm_start_steps"] == demo.WARM_START_STEPS


def test_vllm_hands_its_arguments_on_also_those_of_vllm_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(vllm_process, "become_server", lambda *given, **options: seen.append((given, options)))
    arguments = ["some/model", "--port", "8001", "--max_lora_rank", "16", "--max-model-len", "64"]
    assert status("vllm", *arguments) == 0
    assert seen == [(("some/model", ["--max-model-len", "64"]), {"port": 8001, "max_lora_rank": 16})]


def test_indexes_are_built_and_can_be_opened(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures").mkdir()
    for name in ("red", "blue"):
        Image.new("RGB", (40, 40), name).save(tmp_path / "pictures" / f"{name}.png")
    passages = write_jsonl(tmp_path / "passages.jsonl", [{"title": "Tor", "text": "A city."}])
    images, texts = str(tmp_path / "images"), str(tmp_path / "texts")
    assert status("index", "image", str(tmp_path / "pictures"), "--out", images) == 0
    assert status("index", "text", str(passages), "--out", texts) == 0
    printed = capsys.readouterr().out
    assert f"{images}: 2 images" in printed and f"{texts}: 1 passages" in printed
    assert ImageIndex.open(images).fingerprint and TextIndex.open(texts).fingerprint
    assert status("index", "text", str(passages), "--out", texts) == 1
    assert status("index", "text", str(passages), "--out", texts, "--overwrite") == 0


def test_the_world_command_writes_what_the_recipes_name(world_home: Path) -> None:
    for name in ("train", "known", "unknown", "held_out", "warm_start"):
        assert (world_home / "world" / f"{name}.jsonl").stat().st_size > 0
    assert len((world_home / "world" / "warm_start.jsonl").read_text().splitlines()) == 40
    assert {file.name for file in (world_home / "model").iterdir()} >= {"model.safetensors", "tokenizer.json"}


def test_the_doctor_tells_what_is_missing_and_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "_OPTIONAL", (("no-such-library", "nothing", "nothing"),))
    findings = {finding.name: finding for finding in doctor.examine()}
    assert findings["trl"].ok and findings["tested versions"].ok
    assert not findings["no-such-library"].ok and not findings["no-such-library"].required
    doctor.report(list(findings.values()))
    assert "no-such-library (optional): " in capsys.readouterr().out
    assert findings["no-such-library"].advice.endswith("pip install 'mmsearch-trl[nothing]'")


def test_the_doctor_names_a_library_that_is_there_and_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_REQUIRED", (("trl", "trl.no_such_module"),))
    finding = next(finding for finding in doctor.examine() if finding.name == "trl")
    assert not finding.ok
    assert "but it does not load: No module named 'trl.no_such_module'" in finding.found
