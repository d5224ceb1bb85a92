import pytest

from mmsearch_trl.core.nearest import check_spelling


KNOWN = ("id", "image", "images", "answer", "answers", "category", "data_source")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("catgory", "category"),
        ("Category", "category"),
        ("data-source", "data_source"),
        ("dataSource", "data_source"),
        ("imgae", "image"),
        ("IMAGES", "image"),
        ("anwsers", "answer"),
        ("ID", "id"),
    ],
)
def test_another_spelling_and_a_slip_of_the_hand_are_told(name: str, meant: str) -> None:
    assert check_spelling(["other", name], KNOWN) == f"{name!r} is not known; did you mean {meant!r}?"
    assert check_spelling([name, meant], KNOWN) is None


@pytest.mark.parametrize("name", ["idx", "uid", "image_id", "answer_type", "level", "source", "", "数据"])
def test_another_name_is_nobodys_mistake(name: str) -> None:
    assert check_spelling([name], KNOWN) is None


def test_names_of_one_thing_excuse_each_other() -> None:
    assert check_spelling(["answer", "answer_id"], KNOWN) is None
    assert check_spelling(["answers", "Answer"], KNOWN) is None
