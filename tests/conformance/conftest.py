"""Every vector of the folder given by `--vectors` becomes one test case, named by its id.

A `.jsonl` file holds one vector a line and feeds the fixture named in `JSONL`. Each section of the numeric file feeds
the fixture named in `NUMERIC_CASES` with its cases, or, without such a list, with itself. A file that is not in the
folder leaves its tests empty.
"""

import json
from pathlib import Path
from typing import Any

import pytest


NUMERIC = "mmsearch_numeric_vectors.json"
JSONL = {
    "reward_vector": "mmsearch_reward_vectors.jsonl",
    "legacy_vector": "mmsearch_reward_legacy_vectors.jsonl",
    "rollout_vector": "mmsearch_rollout_vectors.jsonl",
    "search_r1_reward_vector": "searchr1_em_vectors.jsonl",
    "search_r1_rollout_vector": "searchr1_rollout_vectors.jsonl",
    "math_vector": "lmmr1_math_vectors.jsonl",
}
NUMERIC_CASES = {
    "advantage_case": "grpo_advantage",
    "policy_loss_case": "policy_loss",
    "final_eos_case": "final_eos_mask",
    "resize_case": "prompt_image_resize",
    "schedule_case": "sigmoid_lr",
    "metrics_case": "batch_metrics",
}


def pytest_report_header(config: pytest.Config) -> str:
    return f"vectors: {_folder(config)}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = _folder(metafunc.config)
    for fixture in set(metafunc.fixturenames) & JSONL.keys():
        vectors = _lines(folder / JSONL[fixture])
        metafunc.parametrize(fixture, vectors, ids=[vector["id"] for vector in vectors])
    for fixture in set(metafunc.fixturenames) & NUMERIC_CASES.keys():
        name = NUMERIC_CASES[fixture]
        section = _numeric(folder).get(name)
        cases = [] if section is None else section.get("cases", [section])
        metafunc.parametrize(fixture, cases, ids=[f"{name}-{number}" for number in range(len(cases))])
    if "vector_file" in metafunc.fixturenames:
        files = _vector_files(folder)
        metafunc.parametrize("vector_file", files, ids=[path.name for path in files])


@pytest.fixture
def numeric(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The numeric file's sections by name."""
    return _numeric(_folder(pytestconfig))


@pytest.fixture
def known_file_names() -> set[str]:
    return {*JSONL.values(), NUMERIC}


def _folder(config: pytest.Config) -> Path:
    return Path(str(config.getoption("vectors")))


def _vector_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise pytest.UsageError(f"--vectors: {folder} is not a folder")
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".jsonl"))
    if not files:
        raise pytest.UsageError(f"--vectors: {folder} holds no .json or .jsonl file")
    return files


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _numeric(folder: Path) -> dict[str, Any]:
    path = folder / NUMERIC
    if not path.exists():
        return {}
    sections = json.loads(path.read_text(encoding="utf-8"))
    if unknown := sections.keys() - set(NUMERIC_CASES.values()):
        raise pytest.UsageError(f"{path}: no test knows the sections {', '.join(sorted(unknown))}")
    return sections
