"""`mmsearch index`: build, inspect and query search indexes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsearch_trl.core.errors import UserError


if TYPE_CHECKING:
    from mmsearch_trl.search.index_build import Built


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
    for what in ("query", "passage"):
        dense.add_argument(
            f"--{what}_prefix", metavar="TEXT", help=f"what goes before a {what}; default: what the model says"
        )
    dense.set_defaults(action=_index_dense)
    for kind in (image, text, dense):
        kind.add_argument("source", type=Path, metavar="SOURCE", help="file or folder that holds them")
        kind.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the index")
        kind.add_argument("--overwrite", action="store_true", help="replace the index that DIR holds")
        kind.add_argument(
            "--on_bad_row",
            choices=("raise", "skip"),
            default="raise",
            help="a row that cannot be used ends the build, or is passed over and counted (default: raise)",
        )
    query = kinds.add_parser("query", help="search an index once, by text or by an image")
    query.add_argument("folder", type=Path, metavar="DIR", help="of the index")
    query.add_argument("query", nargs="?", metavar="TEXT", help="what is searched for")
    query.add_argument("--image", type=Path, metavar="FILE", help="an image that is looked up")
    query.set_defaults(action=_index_query)
    info = kinds.add_parser("info", help="what a folder holds, and whether it is whole; exit status 1 where it is not")
    info.add_argument("folder", type=Path, metavar="DIR", help="of the index")
    info.set_defaults(action=_index_info)


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
            query_prefix=options.query_prefix,
            passage_prefix=options.passage_prefix,
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
    from mmsearch_trl.commands.search_once import search
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
