import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest


SCRIPT = Path(__file__).parents[2] / "tools" / "install_torchvision_shim.py"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_torchvision_shim", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_installing_twice_leaves_the_same_two_files(script: ModuleType, tmp_path: Path) -> None:
    script.install(tmp_path)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    script.install(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
    assert set(before) == {f"{script.MODULE}.py", f"{script.MODULE}.pth"}


def test_nothing_is_declared_where_the_operators_load(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    extension = ModuleType("torchvision.extension")
    extension._has_ops = lambda: True  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchvision.extension", extension)
    namespace: dict = {}
    exec(script.SOURCE, namespace)
    assert namespace["_Hook"].find_spec("torchvision._meta_registrations") is None
    assert namespace["_libraries"] == []


def test_a_new_process_has_transforms_and_video_processors() -> None:
    imports = "import torchvision.transforms.v2; from transformers import Qwen2VLVideoProcessor as processor"
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}; print(processor)"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "dummy" not in done.stdout
