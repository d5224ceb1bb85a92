"""Image search answered from the public caches of FVQA search results; nothing is downloaded.

* The official pickles of the FVQA release (`FvqaPickleCache`), read by `pickled_cache`.
* The folder layout of FVQA_Cache (`FvqaFolderCache`): `<root>/<data_id>/meta.json` with `title_list` and `image_urls`,
  or `search_results` of `title` and `image_url`; thumbnails beside it as `img_000.jpg` (or png, webp, gif).
* The JSON file that DeepEyesV2 reads (`FvqaJsonCache`): `{data_id: {"tool_returned_web_title": [...],
  "cached_images_path": [path or null, ...]}}`, with its thumbnails as files.

A question is looked up by its `data_id`, else by its image's public address, else by its image's digest, so that a
cache of one's own needs no ids. A thumbnail that is missing, broken, or only an address gives a hit with title and
address: never a made-up image. A question that is not in the cache is a `NOT_CACHED` failure, which is not the same
as having found nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from mmsearch_trl.core.boundaries import reading
from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.images import image_digest
from mmsearch_trl.core.observation import FailureKind, ImageHit, ImageQuery
from mmsearch_trl.search.calls.section import ImageConfig, Shared, named
from mmsearch_trl.search.calls.threads import call_blocking
from mmsearch_trl.search.image.pickled_cache import IMAGES, TITLES, PickledImage, read_pickle
from mmsearch_trl.search.index.folder import digest_of
from mmsearch_trl.search.media.loading import load_image


PICKLE_NAMES = ("fvqa_train_image_search_results_cache.pkl", "fvqa_test_image_search_results_cache.pkl")
FOLDER_NAMES = ("fvqa_train_cache", "fvqa_test_cache")

_JSON_KEYS = ("tool_returned_web_title", "cached_images_path")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif")


@dataclass(frozen=True, kw_only=True)
class FvqaCacheConfig(ImageConfig):
    """`search.image` with `backend: cache`."""

    paths = ("path",)

    backend: Literal["cache"] = field(
        default="cache", metadata={"help": "A published FVQA cache of image search results."}
    )
    path: str = field(
        metadata={
            "help": "A pickle, a folder of pickles, a folder of <data_id>/meta.json, or the .json file of DeepEyesV2."
        }
    )

    def open(self, shared: Shared) -> "FvqaPickleCache | FvqaFolderCache | FvqaJsonCache":
        with named("search.image.path"):
            return open_fvqa_cache(self.path)


class FvqaPickleCache:
    """The official pickles; a `SearchBackend[ImageQuery]`.

    Args:
        files: The train pickle, the test pickle, or both.

    Raises:
        UserError: a file is no FVQA cache; see `read_pickle`.
    """

    name = "fvqa-pickle-cache"

    def __init__(self, *files: Path) -> None:
        # Reversed, so that a question of both files has the answers of the first.
        self._rows = {name: row for file in reversed(files) for name, row in read_pickle(file).items()}
        self.fingerprint = digest_of(self.name, *(file.read_bytes() for file in files))

    def __len__(self) -> int:
        return len(self._rows)

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        """The cached results of a question, at most `k`.

        Raises:
            SearchError: `NOT_CACHED`.
        """
        return await call_blocking(self._search, query, k)

    def _search(self, query: ImageQuery, k: int) -> list[ImageHit]:
        row = _row_of(self._rows, query)
        hits = []
        for title, image in zip_longest(row[TITLES], row[IMAGES]):  # an image is one, its address, or missing
            thumbnail = image.rebuild() if isinstance(image, PickledImage) else None
            hits.append(ImageHit(title=_text(title), url=_text(image) or None, thumbnail=thumbnail))
        return _useful(hits)[:k]


class FvqaFolderCache:
    """The folder layout; a `SearchBackend[ImageQuery]`.

    Args:
        train: The folder of the training questions' folders, if there is one.
        test: Likewise for the test questions. A data id says by its prefix (`fvqa_train`, `fvqa_test`) which of the
            two it is looked for in; one that does not is looked for in both, train first.
    """

    name = "fvqa-folder-cache"

    def __init__(self, train: Path | None = None, test: Path | None = None) -> None:
        self._folders = {prefix: folder for prefix, folder in (("fvqa_train", train), ("fvqa_test", test)) if folder}
        if not self._folders:
            raise UserError("a folder of train or of test questions is needed")
        # A folder's time changes when a question is added; a change inside a question's folder goes unseen.
        stamps = [f"{folder.resolve()}:{folder.stat().st_mtime_ns}" for folder in self._folders.values()]
        self.fingerprint = digest_of(self.name, *stamps)

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        """The cached results of a question, at most `k`.

        Raises:
            SearchError: `NOT_CACHED`, or `BAD_RESPONSE` where a `meta.json` is damaged.
        """
        return await call_blocking(self._search, query, k)

    def _search(self, query: ImageQuery, k: int) -> list[ImageHit]:
        folder = next((folder for name in _names(query) if (folder := self._find(name)) is not None), None)
        if folder is None:
            raise _not_cached(query)
        return _useful(_read_question(folder))[:k]

    def _find(self, name: str) -> Path | None:
        """The folder of a question. A name that is more than a file name must not lead out of the cache."""
        if not name or Path(name).name != name or name == ".." or "\0" in name:
            return None
        routed = [folder for prefix, folder in self._folders.items() if name.startswith(prefix)]
        if not routed and not name.startswith(("fvqa_train", "fvqa_test")):
            routed = list(self._folders.values())
        return next((folder / name for folder in routed if (folder / name / "meta.json").is_file()), None)


class FvqaJsonCache:
    """DeepEyesV2's layout; a `SearchBackend[ImageQuery]`.

    The paths are those of the machine that made the file. A thumbnail is looked for beside the file, at the longest
    end of its path under which there is one; nothing outside the file's folder is read.

    Raises:
        UserError: the file is no such cache.
    """

    name = "fvqa-json-cache"

    def __init__(self, file: Path) -> None:
        with reading(file):
            content = file.read_bytes()
        try:
            self._rows = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is no JSON: {error}") from error
        rows = self._rows.values() if isinstance(self._rows, dict) else [None]
        if not all(
            isinstance(row, dict) and all(isinstance(row.get(key), list) for key in _JSON_KEYS) for row in rows
        ):
            raise UserError(f"{file} is no FVQA cache: not every entry has the lists {' and '.join(_JSON_KEYS)}")
        self._folder = file.resolve().parent
        self.fingerprint = digest_of(self.name, content)

    def __len__(self) -> int:
        return len(self._rows)

    async def search(self, query: ImageQuery, k: int) -> Sequence[ImageHit]:
        """The cached results of a question, at most `k`.

        Raises:
            SearchError: `NOT_CACHED`.
        """
        return await call_blocking(self._search, query, k)

    def _search(self, query: ImageQuery, k: int) -> list[ImageHit]:
        row = _row_of(self._rows, query)
        pairs = zip_longest(*(row[key] for key in _JSON_KEYS))
        return _useful([ImageHit(_text(title), thumbnail=self._thumbnail(path)) for title, path in pairs])[:k]

    def _thumbnail(self, path: Any) -> Image.Image | None:
        parts = PurePosixPath(_text(path).replace("\0", "")).parts
        for first in range(len(parts)):
            with suppress(OSError):  # such as a name that is too long for a file's
                file = self._folder.joinpath(*parts[first:]).resolve()
                if file.is_relative_to(self._folder) and file.is_file():
                    return _opened(file)
        return None


def open_fvqa_cache(path: str | Path) -> FvqaPickleCache | FvqaFolderCache | FvqaJsonCache:
    """Open a cache of any layout, told by what is there.

    Args:
        path: A pickle; a file whose name ends in `.json`; a folder with one or both of the release's pickles; a folder
            with `fvqa_train_cache` or `fvqa_test_cache` in it; or a folder of questions' folders.

    Raises:
        UserError: there is no such cache at `path`; says what was looked for.
    """
    path = Path(path)
    if path.is_file():
        return FvqaJsonCache(path) if path.suffix == ".json" else FvqaPickleCache(path)
    pickles = [path / name for name in PICKLE_NAMES if (path / name).is_file()]
    if pickles:
        return FvqaPickleCache(*pickles)
    train, test = (path / name if (path / name).is_dir() else None for name in FOLDER_NAMES)
    if train or test:
        return FvqaFolderCache(train, test)
    if next(path.glob("*/meta.json"), None) is not None:
        return FvqaFolderCache(path, path)
    wanted = f"{PICKLE_NAMES[0]}, {FOLDER_NAMES[0]}/ or <data_id>/meta.json"
    raise UserError(f"{path} is no FVQA cache: it is neither a pickle or .json file nor a folder with {wanted}")


def _names(query: ImageQuery) -> Iterator[str]:
    """The keys a question may have in a cache; the digest costs time and comes last."""
    if query.data_id:
        yield query.data_id
    if query.url:
        yield query.url
    yield image_digest(query.image)


def _row_of(rows: Mapping[str, Any], query: ImageQuery) -> Any:
    """
    Raises:
        SearchError: `NOT_CACHED`.
    """
    for name in _names(query):
        if name in rows:
            return rows[name]
    raise _not_cached(query)


def _not_cached(query: ImageQuery) -> SearchError:
    name = repr(query.data_id[:100]) if query.data_id else "an image without data id"
    return SearchError(FailureKind.NOT_CACHED, f"the cache holds no image search of {name}")


def _useful(hits: list[ImageHit]) -> list[ImageHit]:
    return [hit for hit in hits if hit.title or hit.thumbnail is not None]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _read_question(folder: Path) -> list[ImageHit]:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, type(error).__name__) from None
    if not isinstance(meta, dict):
        raise _damaged(folder, "no object")
    rows = _rows_of(meta, folder)
    # The `search_results` variant counts its thumbnails from 1, unless there is an `img_000`.
    first = 1 if "search_results" in meta and next(folder.glob("img_000.*"), None) is None else 0
    return [
        ImageHit(title=_text(title), url=_text(url) or None, thumbnail=_read_thumbnail(folder, number))
        for number, (title, url) in enumerate(rows, start=first)
    ]


def _rows_of(meta: dict[str, Any], folder: Path) -> list[tuple[Any, Any]]:
    """Title and address of each result, in either variant of `meta.json`.

    Raises:
        SearchError: `BAD_RESPONSE`: it is neither.
    """
    if "search_results" in meta:
        results = meta["search_results"]
        if not isinstance(results, list) or not all(isinstance(result, dict) for result in results):
            raise _damaged(folder, "search_results is no list of objects")
        return [(result.get("title"), result.get("image_url")) for result in results]
    titles, addresses = meta.get("title_list"), meta.get("image_urls") or []
    if not isinstance(titles, list) or not isinstance(addresses, list):
        raise _damaged(folder, "title_list or image_urls is no list")
    return list(zip_longest(titles, addresses))


def _damaged(folder: Path, why: str) -> SearchError:
    return SearchError(FailureKind.BAD_RESPONSE, f"{folder / 'meta.json'} is damaged: {why}")


def _read_thumbnail(folder: Path, number: int) -> Image.Image | None:
    """A failed download was saved as `.html`: it is not looked at."""
    for suffix in _SUFFIXES:
        file = folder / f"img_{number:03d}{suffix}"
        if file.is_file() and (image := _opened(file)) is not None:
            return image
    return None


def _opened(file: Path) -> Image.Image | None:
    try:
        return load_image(file)
    except UserError:
        return None
