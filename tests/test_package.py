"""The package's public face."""

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import mmsearch_trl


ROOT = Path(__file__).parents[1]


def test_every_public_name_is_there() -> None:
    for name in mmsearch_trl.__all__:
        assert getattr(mmsearch_trl, name).__name__ == name


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, mmsearch_trl; print(sorted({'torch', 'trl', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_rollout_protocol_search_and_rewards_never_import_trl() -> None:
    modules = [
        "rollout.loop",
        "rollout.upstream_limits",
        "protocol.mmsearch",
        "protocol.search_r1",
        "search.config",
        "search.index_build",
        "rewards.mmsearch",
        "rewards.search_r1",
    ]
    code = f"import sys; [__import__('mmsearch_trl.' + m) for m in {modules}]; print('trl' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_what_is_imported_is_declared() -> None:
    """By the package itself, not only by what it depends on; in an extra where not every run needs it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    declared = {normal(re.split(r"[^\w.-]", each)[0]) for each in wanted}
    comes_with = {"mcp_types": "mcp", "pydantic_core": "pydantic", "latex2sympy2_extended": "math-verify"}
    installed = packages_distributions()
    imported = {name.split(".")[0] for path in (ROOT / "src").rglob("*.py") for name in imports(path)}
    missing = {
        name
        for name in imported - sys.stdlib_module_names - {"mmsearch_trl"}
        if declared.isdisjoint(map(normal, (comes_with.get(name, name), *installed.get(name, ()))))
    }
    assert {"torch", "PIL", "faiss", "yaml"} <= imported and missing == set()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imports(path: Path) -> list[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return [*plain, *(node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module)]
