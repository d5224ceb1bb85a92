"""A defect of this package shows its traceback: nowhere is it told as the user's mistake, or skipped as a bad row."""

from pathlib import Path
from typing import Any

import pytest
from core.command_lines import EVALUATE, MMSEARCH, SFT, TRAIN, Line, run, run_of, told
from forks import Forks


ZIP, INT, KEY, FILE = "list(zip([1], [], strict=True))", "int('x')", "{}['x']", "open('/gone/file')"
RAISED = {
    ZIP: "ValueError: zip() argument 2 is shorter than argument 1",
    INT: "ValueError: invalid literal for int() with base 10: 'x'",
    KEY: "KeyError: 'x'",
    FILE: "FileNotFoundError: [Errno 2] No such file or directory: '/gone/file'",
}
"""What a defect may do, and what it raises."""


def defect(code: str, module: str = TRAIN, **overrides: Any) -> Line:
    """A right command line; `code` replaces something of this package."""
    return run_of(module, next(raised for does, raised in RAISED.items() if does in code), code, **overrides)


def defect_of(code: str, *arguments: str) -> Line:
    """Likewise of the `mmsearch` command."""
    return defect(code)._replace(module=MMSEARCH, arguments=list(arguments))


PARQUET = Path(__file__).parents[1] / "fixtures" / "fvqa_mini.parquet"
SKIP = {"on_bad_row": "skip"}
"""Bad rows may be left out; defects may not."""
DEFECTS = {
    "check of a reward section": defect(
        f"import mmsearch_trl.rewards.mmsearch as m; m.check_range = lambda *_: {ZIP}"
    ),
    "check of a search section": defect(
        f"from mmsearch_trl.search.calls.section import BackendConfig as c; c.__post_init__ = lambda _: {INT}"
    ),
    "check of the limits": defect(
        f"from mmsearch_trl.rollout.limits import Limits as c; c.__post_init__ = lambda _: {ZIP}"
    ),
    "check of the trainer's keys": defect(
        "import mmsearch_trl.trainer.config as m; checked = m.MMSearchGRPOConfig.__post_init__\n"
        f"m.MMSearchGRPOConfig.__post_init__ = lambda self: (checked(self), {INT})"
    ),
    "check of the files": defect(f"import mmsearch_trl.recipe.files as m; m.find_source = lambda _: {INT}"),
    "conversion of values": defect(f"import mmsearch_trl.recipe.validation as m; m._narrowed = lambda _: {ZIP}"),
    "reader of lines": defect(f"import mmsearch_trl.data.plain as m; m.layout_of = lambda *_: {INT}", **SKIP),
    "reader of parquet": defect(
        f"import mmsearch_trl.data.fvqa as m; m.mapping_cell = lambda *_: {ZIP}", **SKIP, train_files=PARQUET
    ),
    "reader of parquet, by its keys": defect(
        f"import mmsearch_trl.data.fvqa as m; m.mapping_cell = lambda *_: {KEY}", **SKIP, train_files=PARQUET
    ),
    "loading of pictures": defect(
        f"import mmsearch_trl.search.media.loading as m; m._to_rgb = lambda _: {ZIP}", **SKIP, train_files=PARQUET
    ),
    "reader of demonstrations": defect(
        f"import mmsearch_trl.data.demonstrations as m; m._text = lambda *_: {INT}", SFT, **SKIP
    ),
    "layout of demonstrations": defect(
        f"import mmsearch_trl.trainer.demonstrations as m; m.as_trajectory = lambda *_: {ZIP}", SFT, **SKIP
    ),
    "opening of an index": defect(f"import mmsearch_trl.search.text.bm25 as m; m.make_analyzer = lambda _: {ZIP}"),
    "protocol, in the first prompt": defect(
        f"from mmsearch_trl.protocol.mmsearch import MMSearchProtocol as c; c.prompt = lambda *_: {ZIP}"
    ),
    "protocol, in a turn": defect(
        f"from mmsearch_trl.protocol.mmsearch import MMSearchProtocol as c; c.read = lambda *_: {INT}"
    ),
    "reward": defect(f"import mmsearch_trl.rewards.mmsearch as m; m.is_right = lambda *_: {ZIP}"),
    "engine": defect(
        f"from mmsearch_trl.engine.transformers import TransformersEngine as c; c._inputs = lambda *_: {ZIP}"
    ),
    "evaluation": defect(
        f"import mmsearch_trl.rewards.mmsearch as m; m.is_right = lambda *_: {ZIP}",
        EVALUATE,
        eval_files="{place}/good.jsonl",
    ),
    "builder of a text index": defect_of(
        f"import mmsearch_trl.search.text.bm25_build as m; m.passage_of = lambda _: {ZIP}",
        *("index", "text", "{place}/other.jsonl", "--out", "index"),
    ),
    "builder of a picture index": defect_of(
        f"import mmsearch_trl.search.image.index as m; m.shrink = lambda *_: {ZIP}",
        *("index", "image", "{world}/images", "--out", "index"),
    ),
    "reader of traces": defect_of(
        f"import mmsearch_trl.traces.records as m; m._failure = lambda _: {ZIP}", "view", "{place}/seen"
    ),
    "a file that nobody named": defect_of(
        f"import mmsearch_trl.traces.view as m; m._render = lambda *_: {FILE}", "view", "{place}/seen"
    ),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_shows_its_traceback_wherever_it_is(
    name: str, forks: Forks, place: Path, world_home: Path, tmp_path: Path
) -> None:
    done = run(forks, DEFECTS[name], tmp_path, place, world_home)
    assert done.status == 1, done.err
    assert "mmsearch: error" not in done.err
    assert "Traceback (most recent call last)" in done.err
    assert told(done)[-1] == DEFECTS[name].message
