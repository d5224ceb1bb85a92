"""The torchvision shim: installed where torch is a CPU build that needs it, and taken out again."""

import importlib.util
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from types import ModuleType

import pytest


ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "torchvision_shim.py"
NEEDS_IT = "raise RuntimeError('operator torchvision::nms does not exist')"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("torchvision_shim", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def site_packages(tmp_path: Path) -> Path:
    """Of an environment `.venv` with a CPU build of torch and a torchvision that does not load beside it."""
    venv.create(tmp_path / ".venv", with_pip=False, symlinks=True)
    [folder] = (tmp_path / ".venv" / "lib").glob("python*/site-packages")
    (folder / "torch.py").write_text("class version:\n    cuda = None\n")
    (folder / "torchvision.py").write_text(NEEDS_IT)
    return folder


def run(home: Path, *arguments: str) -> str:
    python = home / ".venv" / "bin" / "python"
    done = subprocess.run([python, SCRIPT, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def shim_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("_mmsearch_torchvision_shim*"))


def test_it_is_installed_where_a_cpu_build_needs_it_and_says_so(site_packages: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second time it is there, and must not be taken for a torchvision that loads
        assert "torchvision shim: installed in" in run(tmp_path)
        assert shim_in(site_packages) == ["_mmsearch_torchvision_shim.pth", "_mmsearch_torchvision_shim.py"]
    assert "taken out of" in run(tmp_path, "--remove") and shim_in(site_packages) == []
    assert "not installed (it was asked for)" in run(tmp_path, "--remove")


@pytest.mark.parametrize(
    ("torch", "torchvision", "reason"),
    [
        ("class version:\n    cuda = '12.8'\n", NEEDS_IT, "torch is a GPU build"),
        ("class version:\n    cuda = None\n    hip = '6.4'\n", NEEDS_IT, "torch is a GPU build"),
        ("class version:\n    cuda = None\n", "", "torchvision loads by itself"),
        ("class version:\n    cuda = None\n", "raise RuntimeError('another')", "RuntimeError: another"),
        ("class version:\n    cuda = None\n", "raise ImportError('no libjpeg')", "cannot be imported: no libjpeg"),
        ("raise ImportError('no torch')", NEEDS_IT, "ImportError: no torch"),
    ],
)
def test_it_is_not_installed_where_it_is_not_needed_and_is_taken_out_if_it_was(
    torch: str, torchvision: str, reason: str, script: ModuleType, site_packages: Path, tmp_path: Path
) -> None:
    (site_packages / "torch.py").write_text(torch)
    (site_packages / "torchvision.py").write_text(torchvision)
    assert f"not installed ({reason})" in run(tmp_path).replace("torchvision cannot", "cannot")
    assert shim_in(site_packages) == []
    script.install(site_packages)
    assert "taken out of" in run(tmp_path) and shim_in(site_packages) == []


def test_the_systems_python_is_left_alone() -> None:
    base = Path(sys.base_prefix) / "bin" / "python3"
    done = subprocess.run([base, SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "virtual environment" in done.stderr


def test_nothing_is_declared_where_the_operators_load(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = ModuleType("torchvision.extension")
    extension._has_ops = lambda: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.extension", extension)
    namespace: dict = {}
    exec(script.SOURCE, namespace)
    assert namespace["_Hook"].find_spec("torchvision._meta_registrations") is None
    assert namespace["_libraries"] == []


@pytest.mark.slow
def test_a_new_process_has_transforms_and_video_processors() -> None:
    imports = "import torchvision.transforms.v2; from transformers import Qwen2VLVideoProcessor as processor"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; print(processor)"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "dummy" not in done.stdout


def test_make_clean_takes_it_out_and_leaves_packages_and_runs(site_packages: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copytree(ROOT / "tools", tmp_path / "tools")
    run(tmp_path)
    left = ["build/lib", "src/a.egg-info", "src/a/__pycache__", "runs/demo", ".ruff_cache/1", "benchmarks", "tests"]
    for folder in left:
        (tmp_path / folder).mkdir(parents=True)
    stamp = tmp_path / ".venv" / ".installed"
    stamp.touch()
    done = subprocess.run(["make", "clean"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "torchvision shim: taken out" in done.stdout and shim_in(site_packages) == []
    assert not stamp.exists(), "the next target would not set .venv up again"
    there = {folder for folder in left if (tmp_path / folder).exists()}
    assert there == {"runs/demo", "benchmarks", "tests"} and (site_packages / "torch.py").exists()
