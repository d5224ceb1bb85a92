from collections.abc import Iterator
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers.trainer_utils import IntervalStrategy, SaveStrategy
from trl import SFTConfig

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.recipe.model_config import RecipeModelConfig
from mmsearch_trl.recipe.validation import build, convert
from mmsearch_trl.trainer.config import MMSearchGRPOConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer:
    needed: str
    count: int = 0
    rate: float | None = None
    on: bool = False
    mode: Literal["a", "b"] = "a"
    when: IntervalStrategy | str = "no"
    names: list[str] = field(default_factory=list)
    pair: tuple[int, ...] = ()
    folder: Path | None = None
    options: dict[str, Any] | str | None = None
    inner: Inner = Inner()


def built(**values: Any) -> Outer:
    return build(Outer, {"needed": "x"} | values, lambda key: "made.yaml", "top.")


def test_values_get_the_types_of_their_fields() -> None:
    outer = built(count=3.0, rate="1e-6", when="steps", names="one", pair=[1, 2], folder="a/b", inner={"depth": 2})
    assert (outer.count, outer.rate, outer.names, outer.pair) == (3, 1e-6, ["one"], (1, 2))
    assert type(outer.count) is int
    assert outer.when is IntervalStrategy.STEPS
    assert (outer.folder, outer.inner) == (Path("a/b"), Inner(depth=2))


@dataclass(frozen=True, kw_only=True)
class Words:
    when: IntervalStrategy | str = "steps"
    save: SaveStrategy = SaveStrategy.STEPS
    mode: Literal["on", "off", "auto"] | None = None


@pytest.mark.parametrize("words", [{"when": "no"}, {"save": "no"}, {"mode": "off"}, {"mode": "on"}], ids=str)
def test_a_bare_word_that_yaml_takes_for_a_truth_is_the_word(words: dict[str, str]) -> None:
    [(key, word)] = words.items()
    for spelled in (word, word.capitalize(), f"'{word}'" if word == word.lower() else word):
        values = yaml.safe_load(f"{key}: {spelled}")
        assert getattr(build(Words, values, lambda key: "made.yaml"), key) == word


@pytest.mark.parametrize("answer", [True, False])
def test_a_truth_that_is_none_of_the_words_is_refused(answer: bool) -> None:
    with pytest.raises(UserError, match="put quotes around it"):
        build(Outer, {"needed": "x", "mode": answer}, lambda key: "made.yaml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1.5}, r"made\.yaml: `top\.count` must be a whole number, got 1\.5"),
        ({"count": True}, "`top.count` must be a whole number, got True"),
        ({"count": "3"}, "`top.count` must be a whole number, got '3'"),
        ({"count": None}, "`top.count` must be a whole number, got None"),
        ({"rate": "fast"}, "`top.rate` must be a number or null, got 'fast'"),
        ({"rate": False}, "`top.rate` must be a number or null, got False"),
        ({"on": "yes"}, "`top.on` must be true or false, got 'yes'"),
        ({"on": 1}, "`top.on` must be true or false, got 1"),
        ({"mode": "c"}, "`top.mode` must be 'a' or 'b', got 'c'"),
        ({"when": "stops"}, "`top.when` must be 'no', 'steps' or 'epoch', got 'stops'"),
        ({"when": True}, "put quotes around it"),
        ({"mode": False}, "put quotes around it"),
        ({"needed": True}, "put quotes around it"),
        ({"names": {"a": 1}}, "`top.names` must be a list"),
        ({"names": ["a", None]}, r"`top\.names\[1\]` must be a text, got None"),
        ({"pair": [1, "x"]}, r"`top\.pair\[1\]` must be a whole number, got 'x'"),
        ({"options": [1]}, r"`top.options` must be a mapping or a text or null, got \[1\]"),
        ({"folder": 3}, "`top.folder` must be a path or null, got 3"),
        ({"inner": 3}, "`top.inner` must be a mapping"),
        ({"inner": None}, "`top.inner` must be a mapping"),
        ({"inner": {"depht": 3}}, "unknown key `top.inner.depht`; did you mean `top.inner.depth`"),
        ({"needed": None}, "`top.needed` must be a text"),
    ],
)
def test_a_value_of_another_type_is_an_error_that_names_its_key(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        built(**values)


def test_a_key_without_default_that_is_missing_is_named() -> None:
    with pytest.raises(UserError, match=r"the key `needed` is missing"):
        build(Outer, {}, lambda key: "made.yaml")


def test_what_a_dataclass_refuses_names_where_it_stands() -> None:
    @dataclass
    class Picky:
        count: int = 0

        def __post_init__(self) -> None:
            raise UserError("count is picky")

    with pytest.raises(UserError, match=r"made\.yaml: count is picky"):
        build(Picky, {}, lambda key: "made.yaml")


def test_a_defect_in_a_dataclass_is_not_a_users_mistake() -> None:
    @dataclass
    class Broken:
        count: int = 0

        def __post_init__(self) -> None:
            raise KeyError("count")

    with pytest.raises(KeyError):
        build(Broken, {}, lambda key: "made.yaml")


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_may_be_written_as_text(number: float) -> None:
    assert built(rate=repr(number)).rate == built(rate=number).rate == number


@given(st.integers(-(2**53), 2**53))
def test_a_whole_number_stays_itself_as_a_float_too(number: int) -> None:
    assert built(count=number).count == built(count=float(number)).count == number


@given(st.text())
def test_a_text_comes_through_as_it_is_and_is_no_other_type(text: str) -> None:
    assert (built(needed=text).needed, built(names=text).names) == (text, [text])
    for key in ("count", "on"):
        with pytest.raises(UserError):
            built(**{key: text})


def defaults() -> Iterator[Any]:
    """Every key of TRL's and our trainers with a default that a YAML file can hold."""
    for cls in (RecipeModelConfig, SFTConfig, MMSearchGRPOConfig):
        hints = get_type_hints(cls, include_extras=True)
        for key in fields(cls):
            default = key.default if key.default_factory is MISSING else key.default_factory()
            if key.init and default is not MISSING and default is not None:
                yield pytest.param(
                    hints[key.name], getattr(default, "value", default), id=f"{cls.__name__}-{key.name}"
                )


@pytest.mark.parametrize(("hint", "default"), defaults())
def test_every_default_of_a_trainer_can_be_written_in_a_recipe(hint: Any, default: Any) -> None:
    written = yaml.safe_load(yaml.safe_dump(list(default) if isinstance(default, tuple) else default))
    assert convert(written, hint, "key", lambda key: "made.yaml") == default
