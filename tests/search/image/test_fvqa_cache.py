import asyncio
import builtins
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mmsearch_trl.core.errors import SearchError
from mmsearch_trl.core.images import image_digest
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery
from mmsearch_trl.search.image.fvqa_cache import (
    FOLDER_NAMES,
    PICKLE_NAMES,
    FvqaFolderCache,
    FvqaJsonCache,
    FvqaPickleCache,
    open_fvqa_cache,
)


QUERY_IMAGE = Image.new("RGB", (9, 7), "blue")
Cache = FvqaPickleCache | FvqaFolderCache | FvqaJsonCache


def find(cache: Cache, data_id: str | None, k: int = 5, **names: str) -> list[ImageHit]:
    return list(asyncio.run(cache.search(ImageQuery(QUERY_IMAGE, data_id=data_id, **names), k)))


def failure(cache: Cache, data_id: str | None) -> FailureKind:
    with pytest.raises(SearchError) as caught:
        find(cache, data_id)
    return caught.value.failure.kind


def file_image(format: str, mode: str = "RGB", size: tuple[int, int] = (6, 4)) -> Image.Image:
    """An image of the class that Pillow gives an opened file, as in the published pickles."""
    buffer = io.BytesIO()
    Image.new(mode, size, 1 if mode == "P" else "red").save(buffer, format)
    image = Image.open(io.BytesIO(buffer.getvalue()))
    image.load()
    return image


def row(titles: list[Any], pictures: list[Any]) -> dict[str, list[Any]]:
    return {"tool_returned_web_title_list": titles, "tool_returned_images_urls": pictures}


def save(path: Path, rows: Any) -> Path:
    path.write_bytes(pickle.dumps(rows))
    return path


def test_the_pickle_gives_pictures_titles_and_addresses(tmp_path: Path) -> None:
    pictures = [file_image("JPEG"), "https://t.example/1.jpg", file_image("PNG", "P"), file_image("PNG", "L")]
    rows = {"fvqa_train_1": row(["a", "b", "c", "d", "e"], pictures)}
    hits = find(FvqaPickleCache(save(tmp_path / "c.pkl", rows)), "fvqa_train_1")
    assert [hit.title for hit in hits] == ["a", "b", "c", "d", "e"]
    assert [hit.url for hit in hits] == [None, "https://t.example/1.jpg", None, None, None]
    assert [hit.thumbnail and (hit.thumbnail.mode, hit.thumbnail.size) for hit in hits] == [
        ("RGB", (6, 4)),
        None,
        ("RGB", (6, 4)),
        ("RGB", (6, 4)),
        None,
    ]
    jpeg = hits[0].thumbnail
    assert jpeg is not None and jpeg.tobytes() == pictures[0].convert("RGB").tobytes()


@pytest.mark.parametrize(
    ("state", "size"),
    [
        ([{}, "RGB", (2, 1), None, b"abcdef"], (2, 1)),
        ([{}, "P", (2, 1), [9] * 768, b"\0\1"], (2, 1)),
        ([{}, "RGB", (2, 1), None, b"abcdef", "a.jpg", 3, []], (2, 1)),
        ([{}, "RGB", (2, 1), None, b"ab"], None),
        ([{}, "NO", (2, 1), None, b"abcdef"], None),
        ([{}, "RGB", (90_000, 90_000), None, b""], None),
        ([{}, "RGB", (-2, -1), None, b"abcdef"], None),
        ([{}], None),
        (None, None),
    ],
)
def test_any_pickled_state_gives_a_picture_or_a_title_alone(tmp_path: Path, state: Any, size: Any) -> None:
    image = file_image("JPEG")
    image.__class__ = type("JpegImageFile", (type(image),), {"__getstate__": lambda self: state})
    type(image).__module__ = "PIL.JpegImagePlugin"
    buffer = io.BytesIO()
    pickler: Any = pickle._Pickler(buffer, 4)
    pickler.save_global = lambda obj, name=None: pickler.write(b"cPIL.JpegImagePlugin\nJpegImageFile\n")
    pickler.dump({"x": row(["a"], [image])})
    (tmp_path / "c.pkl").write_bytes(buffer.getvalue())
    (hit,) = find(FvqaPickleCache(tmp_path / "c.pkl"), "x")
    assert hit.title == "a"
    assert (hit.thumbnail.size if hit.thumbnail else None) == size


class Call:
    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        (Call(os.system, "true"), r"(posix|nt)\.system"),
        (Call(builtins.eval, "1"), r"builtins\.eval"),
        (Call(getattr, "", "join"), r"builtins\.getattr"),
        (Image.new("RGB", (1, 1)), r"PIL\.Image\.Image"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_by_name(tmp_path: Path, payload: Any, named: str) -> None:
    path = save(tmp_path / "c.pkl", {"x": row(["a"], [payload])})
    with pytest.raises(ValueError, match=rf"c\.pkl is not read as an FVQA cache: it refers to {named}"):
        FvqaPickleCache(path)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1], "holds list where an FVQA cache holds a dict"),
        ({"x": {"tool_returned_web_title_list": ["a"]}}, "'x' has no list 'tool_returned_images_urls'"),
        ({"x": 3}, "'x' has no list 'tool_returned_web_title_list'"),
        ({3: row([], [])}, "the data id 3 is int"),
    ],
)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FvqaPickleCache(save(tmp_path / "c.pkl", rows))


def test_a_file_that_is_no_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.pkl").write_bytes(b"version https://git-lfs")
    with pytest.raises(ValueError, match=r"c\.pkl is not read as an FVQA cache"):
        FvqaPickleCache(tmp_path / "c.pkl")


def test_results_are_cut_to_k_and_titles_that_are_no_text_are_dropped(tmp_path: Path) -> None:
    rows = {"x": row([None, "a", 3, "b", "c"], ["u", "v"]), "empty": row([], [])}
    cache = FvqaPickleCache(save(tmp_path / "c.pkl", rows))
    assert [hit.title for hit in find(cache, "x", k=2)] == ["a", "b"]
    assert find(cache, "empty") == []


def test_a_missing_question_is_not_cached_which_is_not_an_empty_answer(tmp_path: Path) -> None:
    cache = FvqaPickleCache(save(tmp_path / "c.pkl", {"x": row([], [])}))
    assert failure(cache, "y") is failure(cache, None) is FailureKind.NOT_CACHED


def test_a_question_is_found_by_id_then_address_then_digest(tmp_path: Path) -> None:
    digest = image_digest(QUERY_IMAGE)
    rows = {name: row([f"by {name[:5]}"], []) for name in ("known", "https://a", digest)}
    cache = FvqaPickleCache(save(tmp_path / "c.pkl", rows))
    assert find(cache, "known", url="https://a")[0].title == "by known"
    assert find(cache, "other", url="https://a")[0].title == "by https"
    assert find(cache, "other")[0].title == find(cache, None)[0].title == f"by {digest[:5]}"


def test_train_and_test_pickles_are_one_cache(tmp_path: Path) -> None:
    for name, split in zip(PICKLE_NAMES, ("train", "test"), strict=True):
        save(tmp_path / name, {f"fvqa_{split}_0": row([split], [])})
    cache = open_fvqa_cache(tmp_path)
    assert isinstance(cache, FvqaPickleCache) and len(cache) == 2
    assert find(cache, "fvqa_test_0")[0].title == "test"


def question(folder: Path, meta: dict[str, Any], *files: str) -> None:
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for name in files:
        if name.endswith(".html"):
            (folder / name).write_text("<html>404</html>")
        else:
            number = int(name[4:7])
            Image.new("RGB", (10 + number, 5), "green").save(folder / name)


def widths(hits: list[ImageHit]) -> list[int | None]:
    return [hit.thumbnail.width if hit.thumbnail else None for hit in hits]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    train, test = (tmp_path / "fvqa" / name for name in FOLDER_NAMES)
    lists = {"title_list": ["a", "b", "c", "d"], "image_urls": ["u", "v"]}
    question(train / "fvqa_train_17", lists, "img_000.jpg", "img_001.html", "img_002.png", "img_003.webp")
    question(train / "own_1", {"title_list": ["train"]})
    question(test / "own_1", {"title_list": ["test"]})
    question(test / "own_2", {"title_list": ["test"]})
    results = [{"title": "a", "image_url": "u"}, {"title": "b"}]
    question(test / "fvqa_test_1", {"search_results": results}, "img_001.jpg", "img_002.jpg")
    question(test / "fvqa_test_2", {"search_results": results}, "img_000.html", "img_001.jpg")
    return tmp_path / "fvqa"


def test_the_folder_gives_titles_addresses_and_the_thumbnails_that_are_there(root: Path) -> None:
    cache = open_fvqa_cache(root)
    hits = find(cache, "fvqa_train_17")
    assert isinstance(cache, FvqaFolderCache)
    assert [(hit.title, hit.url) for hit in hits] == [("a", "u"), ("b", "v"), ("c", None), ("d", None)]
    assert widths(hits) == [10, None, 12, 13]
    assert len(find(cache, "fvqa_train_17", k=3)) == 3


def test_the_later_meta_variant_counts_its_files_from_one_unless_there_is_a_zero(root: Path) -> None:
    cache = open_fvqa_cache(root)
    assert widths(find(cache, "fvqa_test_1")) == [11, 12]
    assert widths(find(cache, "fvqa_test_2")) == [None, 11]


def test_a_broken_thumbnail_leaves_its_title(root: Path) -> None:
    (root / FOLDER_NAMES[0] / "fvqa_train_17" / "img_000.jpg").write_bytes(b"\xff\xd8\xff broken")
    assert widths(find(open_fvqa_cache(root), "fvqa_train_17"))[0] is None


def test_ids_are_routed_by_prefix_and_others_looked_for_in_train_then_test(root: Path) -> None:
    cache = open_fvqa_cache(root)
    assert find(cache, "own_1")[0].title == "train"
    assert find(cache, "own_2")[0].title == "test"
    shutil.move(root / FOLDER_NAMES[0] / "fvqa_train_17", root / FOLDER_NAMES[1])
    assert failure(cache, "fvqa_train_17") is FailureKind.NOT_CACHED


@pytest.mark.parametrize("name", ["fvqa_train_99", "..", ".", "../fvqa_train_cache/own_1", "/etc", "a\0b", None])
def test_a_missing_question_or_a_name_that_leads_elsewhere_is_not_cached(root: Path, name: str | None) -> None:
    (root / "meta.json").write_text('{"title_list": ["secret"]}')
    assert failure(open_fvqa_cache(root), name) is FailureKind.NOT_CACHED


@pytest.mark.parametrize("meta", ["{oops", "[]", '{"title_list": 3}', '{"search_results": ["a"]}', "{}"])
def test_a_damaged_meta_file_is_a_bad_response(root: Path, meta: str) -> None:
    (root / FOLDER_NAMES[0] / "own_1" / "meta.json").write_text(meta)
    assert failure(open_fvqa_cache(root), "own_1") is FailureKind.BAD_RESPONSE


def test_a_folder_of_questions_alone_is_a_cache_and_an_empty_folder_is_not(root: Path, tmp_path: Path) -> None:
    assert find(open_fvqa_cache(root / FOLDER_NAMES[1]), "fvqa_test_1")[0].title == "a"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty is no FVQA cache: it is neither a pickle or \.json file nor"):
        open_fvqa_cache(tmp_path / "empty")


def json_cache(tmp_path: Path, titles: list[Any], pictures: list[Any]) -> Path:
    rows = {"fvqa_train_1": {"tool_returned_web_title": titles, "cached_images_path": pictures}}
    file = tmp_path / "cache" / "search.json"
    (file.parent / "fvqa_train_1").mkdir(parents=True)
    file_image("PNG").save(file.parent / "fvqa_train_1" / "a.png")
    file.write_text(json.dumps(rows))
    return file


def test_deepeyes_json_gives_titles_and_the_pictures_beside_it(tmp_path: Path) -> None:
    pictures = ["/home/them/cache/fvqa_train_1/a.png", None, "fvqa_train_1/gone.png", "fvqa_train_1/a.png", 7]
    cache = open_fvqa_cache(json_cache(tmp_path, ["a", "b", "c", None, "e", "f"], pictures))
    assert isinstance(cache, FvqaJsonCache) and len(cache) == 1
    hits = find(cache, "fvqa_train_1", k=9)
    assert [hit.title for hit in hits] == ["a", "b", "c", "", "e", "f"]
    assert [hit.thumbnail is not None for hit in hits] == [True, False, False, True, False, False]
    assert len(find(cache, "fvqa_train_1", k=2)) == 2
    assert failure(cache, "fvqa_train_2") is FailureKind.NOT_CACHED


@pytest.mark.parametrize(
    "path", ["../secret.png", "/secret.png", "x/../../secret.png", "link.png", "a" * 999, "a\0.png", "", ".."]
)
def test_deepeyes_json_leads_to_no_file_outside_its_folder(tmp_path: Path, path: str) -> None:
    file_image("PNG").save(tmp_path / "secret.png")
    file = json_cache(tmp_path, ["a"], [path])
    (file.parent / "link.png").symlink_to(tmp_path / "secret.png")
    [hit] = find(open_fvqa_cache(file), "fvqa_train_1")
    assert hit.thumbnail is None


@pytest.mark.parametrize("content", ["no", "[]", '{"a": {}}', '{"a": {"tool_returned_web_title": []}}', "[" * 100_000])
def test_a_json_file_that_is_no_cache_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "search.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=r"search\.json is no"):
        open_fvqa_cache(file)
