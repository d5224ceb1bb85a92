"""`mmsearch train` in several processes, which it starts itself."""

import signal
import socket
from pathlib import Path

import pytest
from forks import Forks
from runs import QUICK, grpo_arguments
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from mmsearch_trl.commands import launch
from mmsearch_trl.commands.main import main
from mmsearch_trl.recipe import files


MMSEARCH = "mmsearch_trl.commands.main"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_a_mistake_is_said_once_by_several_processes(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    keys = grpo_arguments(tmp_path, tmp_path / "run", model_name_or_path=tmp_path)
    done = forks.run(MMSEARCH, "train", "--num_processes", "2", *keys, folder=tmp_path)
    assert done.status == 1
    assert done.err.count("mmsearch: error: ") == len(done.err.splitlines()) == 1, done.err
    assert str(tmp_path / "world" / "train.jsonl") in done.err


@pytest.mark.slow
def test_two_machines_train(world_home: Path, forks: Forks, tmp_path: Path) -> None:
    """Both are this one."""
    arguments = grpo_arguments(world_home, tmp_path / "run", **QUICK, ddp_backend="gloo")
    port = free_port()
    parts = [["--num_machines", "2", "--num_processes", "2", "--machine_rank", str(rank)] for rank in (0, 1)]
    first = ["--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    ended = forks.together(MMSEARCH, *(["train", *part, *first, *arguments] for part in parts), folder=tmp_path)
    assert [done.status for done in ended] == [0, 0], [done.err[-2000:] for done in ended]
    assert len(list((tmp_path / "run" / "traces").glob("train*.jsonl*"))) == 2


MACHINES = ["--num_machines", "2", "--machine_rank", "1", "--main_process_ip", "h", "--main_process_port", "29500"]


@pytest.fixture
def without_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recipe names need not be there, for nothing is carried out."""
    monkeypatch.setattr(files, "check_files_of", lambda *_, **__: None)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


@pytest.mark.usefixtures("without_files")
def test_a_machine_of_several_tells_accelerate_its_part(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(launch, "_launch", told.extend)
    for sharing in ([], ["--accelerate", "multi_node"]):
        assert main(["train", "--config", "world/grpo", *MACHINES, "--num_processes", "16", *sharing]) == 0
        given = " ".join(told)
        assert "--num_processes 16 --num_machines 2 --machine_rank 1 --main_process_ip h --main_process_port" in given
        assert "--main_process_port 0" not in given and given.endswith("--config world/grpo")
        told.clear()


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_processes", "0"], "--num_processes: 0 is no number of processes"),
        (["--num_processes", "2", "--accelerate", "zero9"], "accelerate configuration not found: zero9; shipped are"),
        (["--accelerate", "multi_node"], "--accelerate multi_node needs --num_machines, --machine_rank,"),
        (MACHINES, "several machines need --num_processes, too"),
        (["--machine_rank", "0"], "several machines need --num_machines, --main_process_ip, --main_process_port"),
        ([*MACHINES, "--num_processes", "3"], "--num_processes: 3 are not the same on each of 2 machines"),
        ([*MACHINES, "--num_processes", "2", "--machine_rank", "2"], "--machine_rank: 2 is none of 2 machines"),
        ([*MACHINES, "--num_processes", "2", "--main_process_port", "0"], "--main_process_port: 0 is no port"),
        (["--accelerate", "gone.yaml"], "accelerate configuration not found: gone.yaml"),
    ],
)
def test_what_cannot_be_launched_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config", "world/grpo", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.usefixtures("without_files")
@pytest.mark.parametrize(
    ("status", "ends"), [(3, 3), (-signal.SIGKILL, "mmsearch: error: process 1 was ended by SIGKILL")]
)
def test_what_ends_a_process_ends_the_command(status: int, ends: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(arguments: object) -> None:
        failure = ProcessFailure(local_rank=1, pid=1, exitcode=status, error_file="<none>")
        raise ChildFailedError("train", {1: failure})

    monkeypatch.setattr("accelerate.commands.launch.launch_command", failing)
    with pytest.raises(SystemExit) as end:
        main(["train", "--config", "world/grpo", "--num_processes", "2"])
    assert end.value.code == ends


def test_a_process_of_a_launch_launches_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert not launch.launch("never.imported", None, [])  # pyright: ignore[reportArgumentType]
