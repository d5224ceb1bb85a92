"""The report's surroundings, its slopes, and its tables in Markdown."""

import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np


TITLES = {
    "plain": "plain FAISS Flat server",
    "exact": "vectors, exact",
    "flat": "vectors, FAISS Flat",
    "ivf": "vectors, FAISS IVF, SQ8",
    "hnsw": "vectors, FAISS HNSW32",
    "bm25": "words (BM25)",
    "hybrid": "words and exact vectors",
}
_DISTRIBUTIONS = ("mmsearch-trl", "torch", "transformers", "numpy", "faiss-cpu", "tantivy", "fastapi", "uvicorn")
_PAIRED = ("exact", "flat", "ivf", "hnsw", "hybrid", "bm25")


def environment() -> dict[str, Any]:
    """The machine and the versions that the figures belong to."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "each library's default"),
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _DISTRIBUTIONS},
    }


def slopes(sizes: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """By backend and load, how the median latency grows: the slope of its logarithm over that of the passages."""
    if len(sizes) < 2:
        return {}
    counts = np.log([int(count) for count in sizes])
    found: dict[str, dict[str, float]] = {}
    for name in _PAIRED:
        loads = [size["backends"][name]["load"] for size in sizes.values()]
        found[name] = {load: _slope(counts, [size[load]["ours"]["p50_ms"] for size in loads]) for load in loads[0]}
    flat = [size["backends"]["flat"]["load"] for size in sizes.values()]
    found["plain"] = {load: _slope(counts, [size[load]["plain"]["p50_ms"] for size in flat]) for load in flat[0]}
    return found


def _slope(counts: np.ndarray, milliseconds: list[float]) -> float:
    return round(float(np.polyfit(counts, np.log(milliseconds), 1)[0]), 3)


def tables(report: Mapping[str, Any]) -> Iterator[str]:
    """Three tables for each size, and one of slopes: a line at a time."""
    for count, size in report["sizes"].items():
        yield f"{int(count):,} passages ({size['corpus_mb']:,.0f} MB): what an index takes"
        yield ""
        yield from _costs(size, report["settings"]["k"])
        yield ""
        yield f"{int(count):,} passages: milliseconds (median, 95th percentile) and queries a second"
        yield ""
        yield from _times(size)
        yield ""
        yield f"{int(count):,} passages: ours / plain, median of the rounds (least to most)"
        yield ""
        yield from _ratios(size)
        yield ""
    if report["slopes"]:
        yield "Slope of the median latency over the number of passages, both logarithmic"
        yield ""
        yield from _slopes(report["slopes"])


def _costs(size: Mapping[str, Any], k: int) -> Iterator[str]:
    yield f"| index | build, s | disk, MB | resident, MB | of that no file's, MB | recall@{k} |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, about in _rows(size):
        memory = [f"{about[part]:,.0f}" if part in about else "" for part in ("resident_mb", "anonymous_mb")]
        built = f"{about['build_s']:,.1f}" if "build_s" in about else ""
        cells = [TITLES[name], built, f"{about['disk_mb']:,.0f}", *memory, f"{about['recall']:.3f}"]
        yield f"| {' | '.join(cells)} |"
    yield ""
    drawn = f", {size['drawn']:,} vectors drawn" if size["drawn"] else ""
    yield f"Encoding a passage: {size['encode_ms_per_passage']:.2f} ms ({size['encoded']:,} encoded{drawn})."


def _times(size: Mapping[str, Any]) -> Iterator[str]:
    loads = list(size["backends"]["flat"]["load"])
    yield f"| server | {' | '.join(f'{load}: ms | {load}: queries/s' for load in loads)} |"
    yield "|---|" + "---:|" * 2 * len(loads)
    for name, _ in _rows(size):
        of = size["backends"]["flat" if name == "plain" else name]["load"]
        side = "plain" if name == "plain" else "ours"
        cells = [_time(of[load][side]) for load in loads]
        yield f"| {' | '.join([TITLES[name], *cells])} |"


def _time(found: Mapping[str, float]) -> str:
    return f"{_figure(found['p50_ms'])}, {_figure(found['p95_ms'])} | {_figure(found['qps'])}"


def _ratios(size: Mapping[str, Any]) -> Iterator[str]:
    loads = list(size["backends"]["flat"]["load"])
    yield f"| ours | {' | '.join(f'{load}: latency | {load}: queries/s' for load in loads)} |"
    yield "|---|" + "---:|" * 2 * len(loads)
    for name in _PAIRED:
        of = size["backends"][name]["load"]
        cells = [f"{_ratio(of[load]['p50_ratio'])} | {_ratio(of[load]['qps_ratio'])}" for load in loads]
        yield f"| {' | '.join([TITLES[name], *cells])} |"


def _ratio(found: Mapping[str, float]) -> str:
    return f"{found['median']:.2f} ({found['least']:.2f} to {found['most']:.2f})"


def _slopes(found: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    loads = list(found["plain"])
    yield f"| server | {' | '.join(loads)} |"
    yield "|---|" + "---:|" * len(loads)
    for name in TITLES:
        yield f"| {' | '.join([TITLES[name], *(f'{found[name][load]:.2f}' for load in loads)])} |"


def _rows(size: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "plain", size["plain"]
    for name in _PAIRED:
        yield name, size["backends"][name]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
