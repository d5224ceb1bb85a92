"""The plain server that ours is compared with: FAISS Flat behind one endpoint, on the request path of Search-R1's.

    python -m benchmarks.search.plain_server --index FILE --corpus FILE --model DIR --port N

Written from a description of `retrieval_server.py`: one worker; a plain function as endpoint, which the framework runs
on a thread; each request encodes its own queries and asks the index for them; the index lies in memory as
`faiss.read_index` gives it, the corpus in an Arrow file that `datasets` maps, and a passage is the row with the number
that FAISS names. On a processor, so in fp32.
"""

import argparse
from typing import Any

import datasets
import faiss
import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import AutoModel, AutoTokenizer


MAX_QUERY_TOKENS = 256
DEFAULT_TOP_K = 3


class Request(BaseModel):
    queries: list[str]
    topk: int | None = None
    return_scores: bool = False


class Encoder:
    """E5: its prefix, the mean of the last states, length one."""

    def __init__(self, model: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModel.from_pretrained(model).eval()

    @torch.no_grad()
    def encode(self, queries: list[str]) -> Any:
        inputs = self.tokenizer(
            [f"query: {query}" for query in queries],
            max_length=MAX_QUERY_TOKENS,
            padding=True,
            truncation=True,
            return_tensors="pt",
        )
        states = self.model(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None]
        mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(mean, dim=-1).numpy().astype("float32", order="C")


def application(index: Any, corpus: Any, encoder: Encoder) -> FastAPI:
    app = FastAPI()

    @app.post("/retrieve")
    def retrieve(request: Request) -> dict[str, Any]:
        scores, rows = index.search(encoder.encode(request.queries), k=request.topk or DEFAULT_TOP_K)
        return {
            "result": [
                [{"document": corpus[int(row)], "score": float(score)} for row, score in zip(found, of, strict=True)]
                for found, of in zip(rows, scores, strict=True)
            ]
        }

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("index", "corpus", "model", "cache"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    corpus = datasets.load_dataset("json", data_files=options.corpus, split="train", cache_dir=options.cache)
    app = application(faiss.read_index(options.index), corpus, Encoder(options.model))
    uvicorn.run(app, host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
