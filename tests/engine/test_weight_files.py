"""A version is there completely or not at all, and old ones make room."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from safetensors.torch import load_file

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.engine import weight_files
from mmsearch_trl.engine.weight_files import save_adapter, save_weights, sync_folder
from mmsearch_trl.engine.weight_sync import adapter_weights


def tensors(count: int = 4) -> dict[str, torch.Tensor]:
    return {f"layer{i}.weight": torch.full((10, 25), float(i)) for i in range(count)}


def adapted() -> PeftModel:
    return get_peft_model(tiny.qwen25().model(), LoraConfig(r=4, target_modules=r".*language_model.*_proj"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


class Stream:
    """Weights that are counted as they are asked for."""

    def __init__(self, given: dict[str, torch.Tensor]) -> None:
        self.given = given
        self.asked = 0

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        for item in self.given.items():
            self.asked += 1
            yield item


def test_weights_are_written_and_counted(tmp_path: Path) -> None:
    sent = save_weights(tensors().items(), tmp_path, 7)
    assert (sent.path, sent.num_bytes) == (tmp_path / "7", 4 * 1000)
    assert names(tmp_path) == ["7"] and names(sent.path) == ["model.safetensors"]
    written = read(sent.path)
    assert written.keys() == tensors().keys()
    assert all(torch.equal(written[name], tensor) for name, tensor in tensors().items())


def test_large_weights_are_split_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_SHARD_BYTES", 2500)
    given = tensors(5) | {"large": torch.zeros(1000)}
    folder = save_weights(given.items(), tmp_path, 0).path
    files = ["model-00001.safetensors", "model-00002.safetensors", "model-00003.safetensors"]
    assert names(folder) == [*files, "model-00004.safetensors", "model.safetensors.index.json"]
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    assert list(index) == list(given)
    assert all(torch.equal(load_file(folder / index[name])[name], tensor) for name, tensor in given.items())


def test_an_adapter_loads_back(tmp_path: Path) -> None:
    model = adapted()
    sent = save_adapter(model, tmp_path, 3)
    assert names(sent.path) == ["adapter_config.json", "adapter_model.safetensors"]
    expected = dict(adapter_weights(model))
    assert sent.num_bytes == sum(tensor.numel() * 4 for tensor in expected.values())
    loaded = PeftModel.from_pretrained(tiny.qwen25().model(), sent.path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in adapter_weights(loaded))


def test_only_the_newest_versions_stay(tmp_path: Path) -> None:
    for version in (8, 9, 10, 11):
        save_weights(tensors().items(), tmp_path, version)
    assert names(tmp_path) == ["10", "11"]


def test_a_version_can_be_written_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        save_weights({"w": torch.full((3,), value)}.items(), tmp_path, 5)
    assert names(tmp_path) == ["5"]
    assert read(tmp_path / "5")["w"].tolist() == [2.0, 2.0, 2.0]


def test_a_version_has_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    def watched() -> Iterator[tuple[str, torch.Tensor]]:
        for item in tensors().items():
            assert not (tmp_path / "2").exists()
            yield item

    save_weights(tensors().items(), tmp_path, 1)
    assert (save_weights(watched(), tmp_path, 2).path / "model.safetensors").exists()


@pytest.mark.parametrize("error", [RuntimeError("gather failed"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_the_versions_before_it(tmp_path: Path, error: BaseException) -> None:
    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        yield from tensors(2).items()
        raise error

    save_weights(tensors().items(), tmp_path, 1)
    with pytest.raises(type(error)):
        save_weights(failing(), tmp_path, 2)
    assert names(tmp_path) == ["1"]


def test_a_full_disk_is_named_and_stops_no_other_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "_SHARD_BYTES", 1000)
    monkeypatch.setattr(weight_files, "save_file", lambda *_, **__: _full())
    stream = Stream(tensors(5))
    with pytest.raises(UserError, match=r"2: cannot be written: no space"):
        save_weights(stream, tmp_path, 2)
    assert stream.asked == 5, "the other ranks gather all five"
    assert names(tmp_path) == []


def _full() -> None:
    raise SafetensorError("no space")


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".1").mkdir()
    (tmp_path / ".1" / "model.safetensors").write_bytes(b"half")
    save_weights(tensors().items(), tmp_path, 2)
    assert names(tmp_path) == ["2"]


def test_a_rank_that_does_not_write_reads_everything(tmp_path: Path) -> None:
    stream = Stream(tensors())
    sent = save_weights(stream, tmp_path / "sync", 2, write=False)
    assert (sent.path, sent.num_bytes, stream.asked) == (tmp_path / "sync" / "2", 4000, 4)
    assert not (tmp_path / "sync").exists()


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(weight_files, "_SHARED_MEMORY", folder)
    return folder


def test_local_weights_travel_through_shared_memory(tmp_path: Path, shared_memory: Path) -> None:
    with sync_folder(tmp_path / "run", local=True, num_bytes=1000) as folder:
        assert folder.parent == shared_memory and folder.stat().st_mode & 0o777 == 0o700
        save_weights(tensors().items(), folder, 1)
    assert names(shared_memory) == []


def test_each_run_has_its_own_folder(tmp_path: Path, shared_memory: Path) -> None:
    with (
        sync_folder(tmp_path / "one", local=True, num_bytes=1) as one,
        sync_folder(tmp_path / "two", local=True, num_bytes=1) as two,
    ):
        assert one != two and len(names(shared_memory)) == 2


@pytest.mark.parametrize(("local", "num_bytes"), [(False, 1), (True, 2**60)])
def test_otherwise_they_travel_through_the_runs_folder(
    tmp_path: Path, shared_memory: Path, local: bool, num_bytes: int
) -> None:
    with sync_folder(tmp_path / "run", local=local, num_bytes=num_bytes) as folder:
        assert folder == tmp_path / "run" / "sync" and folder.is_dir()
        assert names(shared_memory) == []
    assert not folder.exists()


def test_shared_memory_that_cannot_be_written_is_passed_over(tmp_path: Path, shared_memory: Path) -> None:
    shared_memory.rmdir()
    shared_memory.write_text("not a folder")
    with sync_folder(tmp_path / "run", local=True, num_bytes=1) as folder:
        assert folder == tmp_path / "run" / "sync"


def test_what_a_killed_run_left_is_emptied_by_its_next(tmp_path: Path, shared_memory: Path) -> None:
    killed = sync_folder(tmp_path / "run", local=True, num_bytes=1)
    save_weights(tensors().items(), killed.__enter__(), 40)
    with sync_folder(tmp_path / "run", local=True, num_bytes=1) as folder:
        assert names(folder) == []


def hold(shared: Path, run: Path, held: Connection) -> None:
    weight_files._SHARED_MEMORY = shared
    with suppress(KeyboardInterrupt), sync_folder(run, local=True, num_bytes=1) as folder:
        (folder / "weights").write_text("a")
        held.send_bytes(b"held")
        time.sleep(60)


def test_the_next_start_removes_what_no_living_process_owns(tmp_path: Path, shared_memory: Path) -> None:
    """Of any run, killed in any way; and nothing of one that lives, though it has the same run folder."""
    forks = multiprocessing.get_context("fork")  # they need not import PyTorch
    says, held = forks.Pipe(duplex=False)
    runs = [tmp_path / "run", tmp_path / "run", tmp_path / "other"]
    killed, living, another = [forks.Process(target=hold, args=(shared_memory, run, held)) for run in runs]
    try:
        for process in (killed, living, another):
            process.start()
            assert says.poll(60) and says.recv_bytes() == b"held"
        assert len(names(shared_memory)) == 3
        for process in (killed, another):
            process.kill()
            process.join()
        with sync_folder(tmp_path / "third", local=True, num_bytes=1) as folder:
            left = [path for path in shared_memory.iterdir() if path != folder]
            assert [names(path) for path in left] == [["weights"]]
        assert living.pid is not None
        os.kill(living.pid, signal.SIGINT)
        living.join()
        assert names(shared_memory) == []
    finally:
        for process in filter(lambda each: each.pid is not None, (killed, living, another)):
            process.kill()
            process.join()
