import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.data.image_cells import IMAGE_KEYS, image_source, row_images


FOLDER = Path("/data")
JPEG = b"\xff\xd8\xff\xe0" + bytes(range(200))
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
WEBP = b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40)


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_an_image_cell_is_bytes_a_path_from_the_folder_or_a_picture() -> None:
    picture = Image.new("RGB", (1, 1))
    assert image_source({"bytes": b"x", "path": "a.png"}, FOLDER) == b"x"
    assert image_source({"bytes": None, "path": "a.png"}, FOLDER) == Path("/data/a.png")
    assert image_source("a.png", FOLDER) == Path("/data/a.png")
    assert image_source("/other/a.png", FOLDER) == Path("/other/a.png")
    assert image_source(picture, FOLDER) is picture


@pytest.mark.parametrize(
    ("cell", "data"),
    [
        (encoded(PNG), PNG),
        (encoded(JPEG), JPEG),
        (encoded(WEBP), WEBP),
        (encoded(JPEG).rstrip("="), JPEG),
        (base64.urlsafe_b64encode(JPEG * 9).decode(), JPEG * 9),
        ("\n".join(encoded(PNG)[i : i + 76] for i in range(0, 400, 76)), PNG),
        (f"data:image/png;base64,{encoded(PNG)}", PNG),
        (f"DATA:image/jpeg;charset=x;BASE64,{encoded(JPEG)}", JPEG),
        (f"data:;base64,{quote(encoded(PNG))}", PNG),
        (f"data:image/png,{quote(PNG)}", PNG),
        ({"bytes": encoded(PNG), "path": "a.png"}, PNG),
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded(PNG)}"}}, PNG),
    ],
)
def test_a_text_that_holds_a_picture_is_decoded(cell: Any, data: bytes) -> None:
    assert image_source(cell, FOLDER) == data


@pytest.mark.parametrize(
    ("cell", "path"),
    [
        ("file:///pictures/a%20b.png", "/pictures/a b.png"),
        ("file://localhost/a.png", "/a.png"),
        ("/9j/photo.jpg", "/9j/photo.jpg"),
        ("R0lGOD/one.gif", "/data/R0lGOD/one.gif"),
        ("写真　一.jpg", "/data/写真　一.jpg"),
        ({"path": "a.png"}, "/data/a.png"),
        ({"type": "image", "image": "a.png"}, "/data/a.png"),
    ],
)
def test_a_text_that_names_a_file_is_a_path(cell: Any, path: str) -> None:
    assert image_source(cell, FOLDER) == Path(path)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("s3://bucket/a.png", "an address of s3://, which nobody here fetches"),
        ({"url": "ftp://example.org/a.png"}, "an address of ftp://"),
        ("Qk02" + "A" * 11_000, "a text of 11004 characters that is neither a path nor a picture"),
        ("a" * 300, "a text of 300 characters"),
        ("data:image/png;base64,@@@", "a data URI that is empty or damaged"),
        ("data:image/png;base64", "a data URI that is empty or damaged"),
        ("data:image/png;base64,", "a data URI that is empty or damaged"),
        ("a\0.png", "no image"),
        ([137, 80, 78], "got list"),
        ({"bytes": [137, 80, 78]}, "got list"),
        ({"image_url": {"href": "a"}}, "got nothing"),
    ],
)
def test_what_a_text_is_is_told_before_it_is_made_a_path(cell: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as raised:
        image_source(cell, FOLDER)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("cell", [None, b"", "", " ", {}, {"bytes": None, "path": None}, 3])
def test_an_image_cell_without_an_image_is_an_error(cell: object) -> None:
    with pytest.raises(UserError, match="no image"):
        image_source(cell, FOLDER)


@pytest.mark.parametrize("key", IMAGE_KEYS)
def test_images_stand_under_any_of_their_names(key: str) -> None:
    assert row_images({key: "a.png"}, FOLDER) == (FOLDER / "a.png",)
    assert row_images({key: ["a.png", "b.png"]}, FOLDER) == (FOLDER / "a.png", FOLDER / "b.png")
    assert row_images({"image": None, key: "a.png"}, FOLDER) == (FOLDER / "a.png",)
    assert row_images({key: None, "other": "b.png"}, FOLDER) == row_images({key: []}, FOLDER) == ()


def test_image_is_preferred_and_two_other_names_are_refused() -> None:
    assert row_images({"image": "a.png", "image_path": "b.png"}, FOLDER) == (FOLDER / "a.png",)
    with pytest.raises(UserError, match="the keys images and img all name images"):
        row_images({"img": "a.png", "images": ["b.png"]}, FOLDER)


@pytest.mark.parametrize(
    "cells",
    [
        {"picture": "a.png"},
        {"photo": "a"},
        {"Image": "a.png"},
        {"image_id": 262148},
        {"imageFile": "a"},
        {"IMG-1": "a"},
        {"pic_url": "https://example.org/a"},
        {"file_name": "0001.JPG"},
        {"path": "x/y.webp"},
        {"attachments": ["a.png"]},
        {"media": {"path": "a.gif"}},
        {"file": "data:image/png;base64,AAAA"},
    ],
)
def test_a_row_without_image_in_which_another_key_seems_to_name_one_is_refused(cells: dict[str, Any]) -> None:
    key = next(iter(cells))
    with pytest.raises(UserError, match=f"the row has no image, and '{key}' seems to name one"):
        row_images(cells, FOLDER)
    assert row_images(cells | {"image": None}, FOLDER) == ()
    assert row_images(cells | {"image": "b.png"}, FOLDER) == (FOLDER / "b.png",)


@pytest.mark.parametrize(
    "cells",
    [
        {},
        {"photographer": "Ann"},
        {"imagery": "x"},
        {"picture": None},
        {"num_images": 0},
        {"note": "a.png?"},
        {"answers": "a.png"},
    ],
)
def test_a_question_of_text_alone_needs_no_key(cells: dict[str, Any]) -> None:
    assert row_images(cells, FOLDER) == ()
