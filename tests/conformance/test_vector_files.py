from pathlib import Path


def test_every_vector_file_is_run(vector_file: Path, known_file_names: set[str]) -> None:
    assert vector_file.name in known_file_names, f"no test runs {vector_file.name}; known: {sorted(known_file_names)}"
