"""SerpApi (serpapi.com): what its engines have in common.

An empty search is a success that carries an `error` text beside it; only the status `Error` is a failure. Status 429
means too many searches an hour, or none left at all, which only the words tell apart.
"""

import os
from collections.abc import Mapping
from typing import Any

import aiohttp

from mmsearch_trl.core.errors import SearchError, UserError
from mmsearch_trl.core.observation import FailureKind
from mmsearch_trl.search.web.service import Service


URL = "https://serpapi.com"
KEY_VARIABLE = "SERPAPI_API_KEY"


class SerpApi:
    """One account.

    Args:
        url: Of the service; another one for tests.

    Raises:
        UserError: the key is not in the environment.
    """

    def __init__(self, url: str = URL) -> None:
        self._key = os.environ.get(KEY_VARIABLE, "")
        if not self._key:
            raise UserError(f"SerpApi needs a key: set {KEY_VARIABLE} in the environment")
        self._service = Service(url, quota_words="run out of searches")

    async def search(self, engine: str, **params: str | int) -> Mapping[str, Any]:
        """The answer of one of its engines.

        Raises:
            SearchError: see `Service.post`; `UNAVAILABLE` where the engine failed.
        """
        answer = await self._service.get("/search.json", {"engine": engine, "api_key": self._key, **params})
        if not isinstance(answer, dict):
            raise SearchError(FailureKind.BAD_RESPONSE, "SerpApi's answer is no object")
        status = _mapping(answer.get("search_metadata")).get("status")
        if status == "Error" or (status != "Success" and "error" in answer):
            raise SearchError(FailureKind.UNAVAILABLE, "SerpApi reports that its search failed")
        return answer

    async def upload(self, jpeg: bytes) -> str:
        """Store an image for a search; returns its id.

        Raises:
            SearchError: see `Service.post`.
        """
        form = aiohttp.FormData()
        form.add_field("api_key", self._key)
        form.add_field("image", jpeg, filename="image.jpg", content_type="image/jpeg")
        answer = await self._service.post("/image", form=form)
        image_id = _mapping(answer).get("image_id")
        if not isinstance(image_id, str) or not image_id:
            raise SearchError(FailureKind.BAD_RESPONSE, "SerpApi gave the image no id")
        return image_id

    async def check(self) -> None:
        """See that the key is good and that searches are left; costs none.

        Raises:
            SearchError: `KEY_REFUSED`, `QUOTA_SPENT`, or whatever keeps the service from answering.
        """
        account = _mapping(await self._service.get("/account.json", {"api_key": self._key}))
        left = account.get("total_searches_left")
        if isinstance(left, int) and left <= 0:
            raise SearchError(FailureKind.QUOTA_SPENT, "the SerpApi account has no search left")

    async def close(self) -> None:
        await self._service.close()


def rows(answer: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """A list of objects in an answer, without what is no object."""
    found = answer.get(name)
    return [row for row in found if isinstance(row, dict)] if isinstance(found, list) else []


def text(row: Mapping[str, Any], name: str) -> str:
    value = row.get(name)
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
