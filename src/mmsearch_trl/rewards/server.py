"""The reward for mathematical answers over HTTP, by OpenRLHF's contract: `POST /get_reward`.

    {"query": [prompt and completion, control tokens included], "prompts": [any text], "labels": [gold answer]}
    -> {"rewards": [float], "format_rewards": [float], "acc_rewards": [float]}

A request that lacks a key, whose lists are of different lengths, or, without `compat`, whose label cannot be read or
whose query has no turn of the assistant, is answered by 400 and `{"error": what is wrong}`. Upstream's own server
listens to everybody without asking who it is (D-15); this one to its own machine, or with a token, behind the guard of
the search servers (`search/server_guard.py`).
"""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, Field, model_validator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.ports import listening_at
from mmsearch_trl.core.reward import RewardParts
from mmsearch_trl.rewards.math import FORMAT_WEIGHT, MathRule
from mmsearch_trl.rewards.remote import REWARD_TOKEN
from mmsearch_trl.rewards.responses import Template, response_of, upstream_response
from mmsearch_trl.rewards.verify_pool import VerifyPool, check_installed
from mmsearch_trl.search.requests import parsed
from mmsearch_trl.search.server_guard import HANDLERS, Guard, GuardedServer, Metrics, Refusal, token_for


MAX_BODY = 100_000_000
MAX_QUERIES = 16_384
_LIMITS = {"/get_reward": MAX_BODY, "/health": 0}
_GRACE_S = 5
_MOST_VALUES = 5_000_000
"""Of a body, about: queries hold commas and brackets as well."""

Texts = Annotated[list[str], Field(max_length=MAX_QUERIES, fail_fast=True)]


class RewardRequest(BaseModel):
    """Of `/get_reward`."""

    query: Texts
    prompts: Texts
    labels: Texts

    @model_validator(mode="after")
    def _alike(self) -> "RewardRequest":
        if not len(self.query) == len(self.prompts) == len(self.labels):
            raise ValueError("query, prompts and labels must be of one length")
        return self


class RewardServer:
    """The application.

    Args:
        pool: Judges the answers.
        compat: Score as LMM-R1 does, to the bit.
        template: Of the prompts.
        format_weight: What a valid form is paid.
        token: A bearer token without which everything but `/health` is refused; None for none.
    """

    def __init__(
        self,
        pool: VerifyPool,
        *,
        compat: bool = False,
        template: Template = "chatml",
        format_weight: float = FORMAT_WEIGHT,
        token: str | None = None,
        body_timeout_s: float = 60.0,
    ) -> None:
        self._compat, self._format_weight = compat, format_weight
        self._template: Template = template
        self._rule = MathRule(pool, compat=compat, format_weight=format_weight)
        self._turn = asyncio.Semaphore(1)  # one batch keeps all processes busy
        routes = [Route("/get_reward", self.get_reward, methods=["POST"]), Route("/health", self.health)]
        app = Starlette(routes=routes, exception_handlers=HANDLERS)
        self.app = Guard(app, Metrics(), token=token, limits=_LIMITS, body_timeout_s=body_timeout_s)

    async def get_reward(self, request: Request) -> Response:
        """What every response is worth, in the order of the queries."""
        try:
            wanted = parsed(RewardRequest, await request.body(), _MOST_VALUES)
            async with self._turn:
                parts = await asyncio.to_thread(self._score, wanted)
        except (Refusal, UserError) as error:
            return JSONResponse({"error": str(error)[:300]}, status_code=400)
        forms = [self._format_weight * part.format for part in parts]
        return JSONResponse(
            {
                "rewards": [part.reward for part in parts],
                "format_rewards": forms,
                "acc_rewards": [part.accuracy for part in parts],
            }
        )

    async def health(self, request: Request) -> Response:
        compat = "lmm_r1" if self._compat else None
        return JSONResponse({"status": "ok", "rule": "math", "compat": compat, "template": self._template})

    def _score(self, wanted: RewardRequest) -> Sequence[RewardParts]:
        """
        Raises:
            UserError: a label cannot be read, or a query holds no response.
        """
        labels = [(label,) for label in wanted.labels]
        if self._compat:
            return self._rule.score([upstream_response(query, self._template) for query in wanted.query], labels)
        for number, why in self._rule.unusable(labels).items():
            raise UserError(f"labels.{number}: {why}")
        return self._rule.score([_response(*query, self._template) for query in enumerate(wanted.query)], labels)


def _response(number: int, query: str, template: Template) -> str:
    try:
        return response_of(query, template)
    except UserError as error:
        raise UserError(f"query.{number}: {error}") from error


def serve(*, host: str, port: int, seconds: float, **options: Any) -> None:
    """Serve rewards until the process is told to end; `options` are those of `RewardServer`.

    Args:
        seconds: That judging one answer may take.

    Raises:
        UserError: the port is taken, math-verify is missing, or a server that others can reach has no token.
    """
    import uvicorn

    check_installed()
    token = token_for(host, REWARD_TOKEN)
    bound = listening_at(host, port)
    pool = VerifyPool(seconds=seconds)
    server = RewardServer(pool, **options, token=token)
    print(f"math rewards at http://{host}:{bound.getsockname()[1]}/get_reward", flush=True)
    try:
        config = uvicorn.Config(server.app, log_level="warning", timeout_graceful_shutdown=_GRACE_S)
        GuardedServer(config).run(sockets=[bound])
    finally:
        pool.close()
