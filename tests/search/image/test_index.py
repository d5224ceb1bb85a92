import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsearch_trl.core.observation import ImageQuery
from mmsearch_trl.search.image.index import ImageIndex
from mmsearch_trl.search.index.descriptor import FloatArray, ImageDescriptor
from mmsearch_trl.search.index_build import build_image_index


Picture = Callable[..., Image.Image]


@pytest.fixture
def folder(emblem: Picture, tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "deep").mkdir(parents=True)
    for number in range(8):
        emblem(number).save(folder / ("deep" if number % 2 else ".") / f"emblem {number}.png")
    (folder / "notes.txt").write_text("not an image")
    return folder


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_folder_is_found_by_pixels_with_file_names_as_titles(folder: Path, emblem: Picture, tmp_path: Path) -> None:
    built = build_image_index(folder, tmp_path / "index", progress=False)
    index = ImageIndex.open(tmp_path / "index")
    hits = asyncio.run(index.search(ImageQuery(emblem(5, 56, (1, -2))), 3))
    assert (built.count, len(index), len(hits)) == (8, 8, 3)
    assert hits[0].title == "emblem 5"
    assert hits[0].thumbnail is not None and hits[0].thumbnail.tobytes() == emblem(5).tobytes()
    scores = [hit.score or 0.0 for hit in hits]
    assert scores == sorted(scores, reverse=True) and scores[0] > 0.9


def test_captions_give_titles_and_addresses(folder: Path, emblem: Picture, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"image": "deep/emblem 3.png", "title": "Bel Tor", "url": "https://b.example"}]
    captions = jsonl(tmp_path / "captions.jsonl", rows)
    build_image_index(folder, tmp_path / "index", captions=captions, progress=False)
    hit = ImageIndex.open(tmp_path / "index").search_now(emblem(3), 1)[0]
    assert (hit.title, hit.url) == ("Bel Tor", "https://b.example")


def test_a_row_may_show_another_picture_than_it_is_found_by(folder: Path, emblem: Picture, tmp_path: Path) -> None:
    row: dict[str, object] = {"image": "emblem 0.png", "title": "a", "thumbnail": "deep/emblem 1.png"}
    build_image_index(jsonl(folder / "rows.jsonl", [row]), tmp_path / "index", progress=False)
    hit = ImageIndex.open(tmp_path / "index").search_now(emblem(0), 5)[0]
    assert hit.thumbnail is not None and hit.thumbnail.tobytes() == emblem(1).tobytes()


def test_thumbnails_are_bounded(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    Image.new("RGB", (3000, 100), "red").save(tmp_path / "in" / "wide.png")
    build_image_index(tmp_path / "in", tmp_path / "index", thumbnail_side=300, progress=False)
    hit = ImageIndex.open(tmp_path / "index").search_now(Image.new("RGB", (30, 30), "red"), 1)[0]
    assert hit.thumbnail is not None and hit.thumbnail.size == (300, 10)


def test_equal_pictures_come_in_row_order(emblem: Picture, tmp_path: Path) -> None:
    emblem(0).save(tmp_path / "same.png")
    rows: list[dict[str, object]] = [{"image": "same.png", "title": str(number)} for number in range(7)]
    build_image_index(jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "index", progress=False)
    index = ImageIndex.open(tmp_path / "index")
    assert [hit.title for hit in index.search_now(emblem(0), 4)] == ["0", "1", "2", "3"]
    assert len(index.search_now(emblem(0), 100)) == 7
    assert index.search_now(emblem(0), 0) == []


def test_building_twice_gives_the_same_fingerprint_and_another_title_another(folder: Path, tmp_path: Path) -> None:
    captions = jsonl(tmp_path / "captions.jsonl", [{"image": "emblem 0.png", "title": "new"}])
    first = build_image_index(folder, tmp_path / "1", progress=False)
    second = build_image_index(folder, tmp_path / "2", progress=False)
    third = build_image_index(folder, tmp_path / "3", captions=captions, progress=False)
    assert first.fingerprint == second.fingerprint != third.fingerprint
    assert ImageIndex.open(tmp_path / "2").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"image": "emblem 0.png"}', r"rows.jsonl:2: key 'title' is missing"),
        ('{"image": 5, "title": "a"}', r"rows.jsonl:2: key 'image' is int"),
        ('{"image": "gone.png", "title": "a"}', r"rows.jsonl:2: the image file .*gone.png.* cannot be read"),
        ('{"image": "notes.txt", "title": "a"}', r"rows.jsonl:2: .*not a readable"),
        ("{oops", r"rows.jsonl:2: not JSON"),
        ("[1]", r"rows.jsonl:2: a JSON object is needed"),
    ],
)
def test_a_bad_row_is_named_and_leaves_nothing_behind(folder: Path, tmp_path: Path, row: str, message: str) -> None:
    source = folder / "rows.jsonl"
    source.write_text('{"image": "emblem 0.png", "title": "fine"}\n' + row + "\n")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=message):
        build_image_index(source, out / "index", progress=False)
    assert list(out.iterdir()) == []


def test_a_caption_without_picture_and_an_empty_folder_are_errors(folder: Path, tmp_path: Path) -> None:
    captions = jsonl(tmp_path / "captions.jsonl", [{"image": "gone.png", "title": "a"}])
    with pytest.raises(ValueError, match=r"captions.jsonl:1: no image 'gone.png'"):
        build_image_index(folder, tmp_path / "index", captions=captions, progress=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image was found"):
        build_image_index(tmp_path / "empty", tmp_path / "index", progress=False)


def test_an_index_is_replaced_only_on_request_and_other_folders_never(folder: Path, tmp_path: Path) -> None:
    build_image_index(folder, tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match="exists: choose another folder"):
        build_image_index(folder, tmp_path / "index", progress=False)
    assert build_image_index(folder, tmp_path / "index", overwrite=True, progress=False).count == 8
    with pytest.raises(ValueError, match="is not an index"):
        build_image_index(folder, folder, overwrite=True, progress=False)


def test_a_folder_without_index_says_how_to_build_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no image index .* build it with `mmsearch index image"):
        ImageIndex.open(tmp_path)


def test_a_damaged_index_is_refused(folder: Path, tmp_path: Path) -> None:
    build_image_index(folder, tmp_path / "index", progress=False)
    np.save(tmp_path / "index" / "vectors.npy", np.zeros((3, ImageDescriptor.dim), np.float32))
    with pytest.raises(ValueError, match="is damaged: 8 entries"):
        ImageIndex.open(tmp_path / "index")


def test_another_encoder_than_the_one_it_was_built_with_is_refused(folder: Path, tmp_path: Path) -> None:
    class Other(ImageDescriptor):
        fingerprint = "other"

        def encode(self, images: object) -> FloatArray:
            raise AssertionError("must not be used")

    build_image_index(folder, tmp_path / "index", progress=False)
    with pytest.raises(ValueError, match="was built with encoder picture-descriptor-1"):
        ImageIndex.open(tmp_path / "index", Other())
