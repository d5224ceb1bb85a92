"""`mmsearch serve`: serve an index, or rewards, to other processes and machines."""

import argparse
import os
from typing import TYPE_CHECKING, Any

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import UserError
from mmsearch_trl.core.worker import LONGEST_JOB_SECONDS
from mmsearch_trl.recipe.command_line import add_config, keys_of


if TYPE_CHECKING:
    from mmsearch_trl.search.config import SearchConfig


RERANKER = "cross-encoder/ms-marco-MiniLM-L12-v2"
"""Search-R1's."""


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Give the `serve` subcommand its kinds."""
    kinds = serve.add_subparsers(title="kinds", metavar="retriever|images|reward", required=True)
    retriever = kinds.add_parser("retriever", help="a text index, by Search-R1's contract: POST /retrieve, /rerank")
    retriever.add_argument("--bm25", metavar="DIR", help="by words: folder made by `mmsearch index text`")
    retriever.add_argument("--dense", metavar="DIR", help="by meaning: made by `mmsearch index dense`; or both")
    retriever.add_argument("--encoder", metavar="M", help="encoder of --dense, where it has moved")
    retriever.add_argument(
        "--reranker", nargs="?", const=RERANKER, metavar="M", help=f"POST /rerank by a cross-encoder: M, or {RERANKER}"
    )
    retriever.add_argument("--top_k", type=int, default=3, metavar="K", help="passages, where a request does not say")
    images = kinds.add_parser("images", help="an image index: POST /image_search")
    images.add_argument("--index", metavar="DIR", help="folder made by `mmsearch index image`")
    images.add_argument("--encoder", metavar="M", help="encoder of --index, where it has moved")
    retriever.set_defaults(action=_serve_retriever)
    images.set_defaults(action=_serve_images)
    for kind, port in ((retriever, 8000), (images, 8001)):
        kind.add_argument("--host", default="127.0.0.1", help="another one needs MMSEARCH_RETRIEVER_TOKEN")
        kind.add_argument("--port", type=int, default=port, help="where it listens; 0: any that is free")
        add_config(kind, "instead, what the `search:` section of this recipe names")

    _add_reward(kinds.add_parser("reward", help="rewards of mathematical answers, by OpenRLHF's POST /get_reward"))


def _add_reward(reward: argparse.ArgumentParser) -> None:
    reward.add_argument(
        "--template",
        choices=("chatml", "qwen1", "base", "phi3", "phi4", "gemma3"),
        default="chatml",
        help="how the queries mark the assistant's turn",
    )
    reward.add_argument("--compat", choices=("lmm_r1",), help="score as LMM-R1 does, its defects included")
    reward.add_argument("--disable_format_reward", action="store_true", help="pay nothing for the form")
    reward.add_argument("--timeout_s", type=float, default=5.0, metavar="S", help="seconds that one answer may take")
    reward.add_argument("--host", default="127.0.0.1", help="another one needs MMSEARCH_REWARD_TOKEN")
    reward.add_argument("--port", type=int, default=5000, help="where it listens; 0: any that is free")
    reward.set_defaults(action=_serve_reward)


def _serve_reward(options: argparse.Namespace) -> None:
    if not 0 < options.timeout_s <= LONGEST_JOB_SECONDS:
        raise UserError(f"--timeout_s must be over 0 and at most {LONGEST_JOB_SECONDS}, got {options.timeout_s:g}")
    _check_installed()
    from mmsearch_trl.rewards.server import FORMAT_WEIGHT, serve

    serve(
        host=options.host,
        port=options.port,
        seconds=options.timeout_s,
        compat=options.compat is not None,
        template=options.template,
        format_weight=0.0 if options.disable_format_reward else FORMAT_WEIGHT,
    )


def _serve_retriever(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.text.bm25 import BM25Config
    from mmsearch_trl.search.text.dense_config import DenseConfig
    from mmsearch_trl.search.text.hybrid import HybridConfig

    if (written := _written(options)) is not None:
        if options.bm25 or options.dense or options.encoder:
            raise UserError("name what is served once: by --bm25 and --dense, or by a recipe and its keys")
        if written.text is None:
            raise UserError("search.text is not set: name its backend, such as --search.text.backend bm25")
        return _serve(options, text=written.text, reranker=options.reranker)
    bm25, dense, encoder, top_k = options.bm25, options.dense, options.encoder, options.top_k
    if encoder and not dense:
        raise UserError("--encoder is the encoder of --dense, and --dense is not given")
    if not (bm25 or dense or options.reranker):
        raise UserError("name the index that is served, such as --bm25 DIR")
    text = None
    if bm25 and dense:
        text = HybridConfig(bm25=bm25, dense=dense, encoder=encoder, top_k=top_k)
    elif bm25 or dense:
        text = BM25Config(path=bm25, top_k=top_k) if bm25 else DenseConfig(path=dense, encoder=encoder, top_k=top_k)
    _serve(options, text=text, reranker=options.reranker)


def _serve_images(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.image.index import ImageIndexConfig

    if (written := _written(options)) is not None:
        if options.index or options.encoder:
            raise UserError("name what is served once: by --index, or by a recipe and its keys")
        if written.image is None:
            raise UserError("search.image is not set: name its backend, such as --search.image.backend index")
        return _serve(options, image=written.image)
    if options.index is None:
        raise UserError("name the index that is served: --index DIR")
    _serve(options, image=ImageIndexConfig(path=options.index, encoder=options.encoder))


def _written(options: argparse.Namespace) -> "SearchConfig | None":
    """What a recipe and keys on the command line name, as for `mmsearch search` and `train`; None without any."""
    if options.config is None and not options.rest:
        return None
    from mmsearch_trl.commands.search_once import search_config

    return search_config(options.config, keys_of(options.rest))


def _serve(options: argparse.Namespace, **served: Any) -> None:
    # Before torch and FAISS are loaded: threads of the one that spin while they wait take the cores from the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _check_installed()
    from mmsearch_trl.search.server import serve

    serve(**served, host=options.host, port=options.port)


def _check_installed() -> None:
    with optional("serving", "serve"):
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
