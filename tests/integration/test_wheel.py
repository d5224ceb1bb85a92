"""The wheel alone, away from the clone: what a `pip install` gives to somebody who has no sources."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was installed; its dependencies come from this environment."""
    home = tmp_path_factory.mktemp("wheel")
    clone = home / "clone"  # setuptools writes into the folder that it builds, and would take in what lies there
    shutil.copytree(ROOT / "src", clone / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(home), str(clone)]
    subprocess.run([*pip, *build], check=True, cwd=home)
    [wheel] = home.glob("mmsearch_trl-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(home / "site"), str(wheel)], check=True)
    return home / "site"


def _run(site: Path, folder: Path, *command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_it_holds_what_the_sources_hold(site: Path) -> None:
    [wheel] = site.parent.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if name.startswith("mmsearch_trl/")}
    package = ROOT / "src" / "mmsearch_trl"
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert {f"mmsearch_trl/{path.relative_to(package)}" for path in files} == held


def test_its_recipes_are_there_by_name(site: Path, tmp_path: Path) -> None:
    where = "import mmsearch_trl; print(mmsearch_trl.__file__)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()).is_relative_to(site)
    assert "mmsearch_r1/qwen2.5-vl-3b-lora" in _run(site, tmp_path, "mmsearch_trl.commands.main", "recipes")


def test_the_demo_runs(site: Path, tmp_path: Path) -> None:
    words = ("demo", "--out", "mine", "--warm_start_steps", "2", "--max_steps", "1")
    printed = _run(site, tmp_path, "mmsearch_trl.commands.main", *words)
    assert "Before and after training" in printed
    assert {"summary.json", "learning.png", "trajectories.html"} <= {
        path.name for path in (tmp_path / "mine").iterdir()
    }
