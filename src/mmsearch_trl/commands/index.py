"""`mmsearch index` and `mmsearch serve`: indexes are built, inspected, searched once, and served."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch_trl.core.boundaries import optional
from mmsearch_trl.core.errors import UserError


if TYPE_CHECKING:
    from mmsearch_trl.search.index_build import Built


RERANKER = "cross-encoder/ms-marco-MiniLM-L12-v2"
"""Search-R1's."""


def add_index(index: argparse.ArgumentParser) -> None:
    """Give the `index` subcommand its kinds."""
    kinds = index.add_subparsers(title="kinds", metavar="image|text|dense|info|query", required=True)
    image = kinds.add_parser("image", help="of images: a folder, or rows of {image, title, url?, thumbnail?}")
    image.add_argument(
        "--captions", type=Path, metavar="FILE", help="titles for a folder of images: rows of {image, title}"
    )
    image.add_argument("--model", metavar="M", help="SigLIP, DINOv2 or CLIP model; default: by pixels, without one")
    image.set_defaults(action=_index_image)
    text = kinds.add_parser("text", help="of passages: rows of {title?, text, url?} or {id, contents}")
    text.add_argument("--language", default="en", metavar="CODE", help="that of the corpus; und: any (default: en)")
    text.set_defaults(action=_index_text)
    dense = kinds.add_parser("dense", help="of passages, by their meaning; one that was stopped goes on")
    dense.add_argument("--model", required=True, metavar="M", help="the encoder, such as intfloat/e5-base-v2")
    dense.add_argument("--kind", default="exact", help="exact, or a FAISS index such as HNSW64 or IVF4096,SQ8")
    dense.add_argument("--device", default="cpu", help="where the encoder runs")
    dense.set_defaults(action=_index_dense)
    for kind in (image, text, dense):
        kind.add_argument("source", type=Path, metavar="SOURCE")
        kind.add_argument("--out", type=Path, required=True, metavar="DIR")
        kind.add_argument("--overwrite", action="store_true", help="replace the index that DIR holds")
        kind.add_argument(
            "--on_bad_row",
            choices=("raise", "skip"),
            default="raise",
            help="a row that cannot be used ends the build, or is passed over and counted (default: raise)",
        )
    query = kinds.add_parser("query", help="search an index once, by text or by an image")
    query.add_argument("folder", type=Path, metavar="DIR")
    query.add_argument("query", nargs="?", metavar="TEXT")
    query.add_argument("--image", type=Path, metavar="FILE")
    query.set_defaults(action=_index_query)
    info = kinds.add_parser("info", help="what a folder holds, and whether it is whole; exit status 1 where it is not")
    info.add_argument("folder", type=Path, metavar="DIR")
    info.set_defaults(action=_index_info)


def add_serve(serve: argparse.ArgumentParser) -> None:
    """Give the `serve` subcommand its kinds."""
    kinds = serve.add_subparsers(title="kinds", metavar="retriever|images", required=True)
    retriever = kinds.add_parser("retriever", help="a text index, by Search-R1's contract: POST /retrieve, /rerank")
    retriever.add_argument("--bm25", metavar="DIR", help="by words: folder made by `mmsearch index text`")
    retriever.add_argument("--dense", metavar="DIR", help="by meaning: made by `mmsearch index dense`; or both")
    retriever.add_argument("--encoder", metavar="M", help="encoder of --dense, where it has moved")
    retriever.add_argument(
        "--reranker", nargs="?", const=RERANKER, metavar="M", help=f"POST /rerank by a cross-encoder: M, or {RERANKER}"
    )
    retriever.add_argument("--top_k", type=int, default=3, metavar="K", help="passages, where a request does not say")
    images = kinds.add_parser("images", help="an image index: POST /image_search")
    images.add_argument("--index", metavar="DIR", required=True, help="folder made by `mmsearch index image`")
    images.add_argument("--encoder", metavar="M", help="encoder of --index, where it has moved")
    retriever.set_defaults(action=_serve_retriever)
    images.set_defaults(action=_serve_images)
    for kind, port in ((retriever, 8000), (images, 8001)):
        kind.add_argument("--host", default="127.0.0.1", help="another one needs MMSEARCH_RETRIEVER_TOKEN")
        kind.add_argument("--port", type=int, default=port)


def _index_image(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.index_build import build_image_index

    _tell(
        build_image_index(
            options.source, options.out, captions=options.captions, model=options.model, **_build_options(options)
        ),
        "images",
    )


def _index_text(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.index_build import build_text_index

    _tell(
        build_text_index(options.source, options.out, language=options.language, **_build_options(options)), "passages"
    )


def _index_dense(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.index_build import build_dense_index

    _tell(
        build_dense_index(
            options.source,
            options.out,
            model=options.model,
            kind=options.kind,
            device=options.device,
            **_build_options(options),
        ),
        "passages",
    )


def _build_options(options: argparse.Namespace) -> dict[str, Any]:
    """What all kinds of index are built with."""
    return {"overwrite": options.overwrite, "on_bad_row": options.on_bad_row}


def _tell(built: "Built", what: str) -> None:
    skipped = f"; {built.skipped} bad rows were passed over" if built.skipped else ""
    print(f"{built.path}: {built.count} {what} in {built.seconds:.1f} s{skipped}")


def _index_info(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.index_info import describe_index

    info = describe_index(options.folder)
    print("\n".join(f"{name:<12}{value}" for name, value in info.lines()))
    if info.missing:
        raise UserError(f"{options.folder} is damaged: build it again")


def _index_query(options: argparse.Namespace) -> None:
    from mmsearch_trl.commands.search import search
    from mmsearch_trl.search.config import SearchConfig
    from mmsearch_trl.search.image.index import ImageIndexConfig
    from mmsearch_trl.search.index.folder import read_any_manifest
    from mmsearch_trl.search.text.bm25 import BM25Config
    from mmsearch_trl.search.text.dense_config import DenseConfig

    kind = read_any_manifest(options.folder).kind
    if (kind == "image") != (options.image is not None) or (options.query is None) == (options.image is None):
        wanted = "--image FILE" if kind == "image" else "one TEXT"
        raise UserError(f"{options.folder} holds an index of kind {kind}: it is searched by {wanted}")
    path = str(options.folder)
    if kind == "image":
        search(SearchConfig(image=ImageIndexConfig(path=path)), options.image)
    else:
        text = BM25Config(path=path) if kind == "text" else DenseConfig(path=path)
        search(SearchConfig(text=text), options.query)


def _serve_retriever(options: argparse.Namespace) -> None:
    from mmsearch_trl.search.text.bm25 import BM25Config
    from mmsearch_trl.search.text.dense_config import DenseConfig
    from mmsearch_trl.search.text.hybrid import HybridConfig

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

    _serve(options, image=ImageIndexConfig(path=options.index, encoder=options.encoder))


def _serve(options: argparse.Namespace, **served: Any) -> None:
    # Before torch and FAISS are loaded: threads of the one that spin while they wait take the cores from the other.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with optional("serving", "serve"):
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    from mmsearch_trl.search.server import serve

    serve(**served, host=options.host, port=options.port)
