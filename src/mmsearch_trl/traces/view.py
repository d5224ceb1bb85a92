"""One HTML page to read a run's trajectories in: all inside the file, nothing fetched, no script run but ours.

The page is `viewer.html` with four slots filled: title, records, images and the hash of its one script. Tool text is
untrusted, so three things hold. Records and images stand in script blocks of type `application/json`, in which `<`,
`>` and `&` are written as escapes, so no text can end the block. The script puts text into the page as text nodes
only. The page's content security policy lets no script run but the one with the hash, and lets nothing be loaded.
"""

import base64
import hashlib
import html
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from mmsearch_trl.core.boundaries import writing
from mmsearch_trl.traces.files import image_store, read_traces
from mmsearch_trl.traces.images import ImageStore
from mmsearch_trl.traces.records import TraceRecord, TraceToken


MAX_RECORDS = 2000
"""About as many as a browser opens at once without delay; of a longer run a sample of its questions is shown."""
_LONG_RUN = 4
"""A run of equal observed tokens from this length on (an image's pads) is shown once, with its length."""
_TEMPLATE = Path(__file__).with_name("viewer.html")
_MIME = {".png": "image/png", ".jpg": "image/jpeg"}

logger = logging.getLogger(__name__)


def write_page(run_dir: Path, out: Path | None = None, *, max_records: int = MAX_RECORDS) -> Path:
    """Write the page of a run and return its path (`<run_dir>/trajectories.html` unless `out` says otherwise).

    Raises:
        UserError: the run has no traces, or a trace line is broken (names file and line); or `out` cannot be written.
    """
    counts = Counter(record.id for record in read_traces(run_dir))
    ids, total = _kept_ids(counts, max_records), sum(counts.values())
    records = [record for record in read_traces(run_dir) if record.id in ids]
    if len(records) < total:
        logger.info("%s: %d of %d trajectories fit into the page", run_dir, len(records), total)
    images = dict(_inlined(image_store(run_dir), records))
    run = {"run": run_dir.resolve().name, "total": total, "questions": len(counts)}
    page = _render(run | {"records": [_entry(record) for record in records]}, images)
    out = out or run_dir / "trajectories.html"
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(page, encoding="utf-8")
    return out


def _kept_ids(counts: Mapping[str, int], max_records: int) -> set[str]:
    """The questions to show, of those with so many records each: whole ones, to compare their rollouts over steps.

    Questions are drawn by a hash of their id, since ids often alternate or run through one group after the other.
    """
    drawn = sorted(counts, key=lambda task_id: zlib.crc32(task_id.encode()))
    room = accumulate(counts[task_id] for task_id in drawn)
    kept = {task_id for task_id, used in zip(drawn, room, strict=True) if used <= max_records}
    return kept or set(drawn[:1])


def _entry(record: TraceRecord) -> dict[str, Any]:
    """The record as the page takes it: as saved, but with each stretch of observed tokens as one."""
    entry = json.loads(record.to_json())
    for turn, row in zip(record.turns, entry["turns"], strict=True):
        row["tokens"] = list(_merged(turn.tokens))
    return entry


def _merged(tokens: Sequence[TraceToken]) -> Iterator[TraceToken]:
    for trained, run in groupby(tokens, key=lambda token: token.trained):
        if trained:
            yield from run
        else:
            stretch = list(run)
            yield TraceToken("".join(map(_shown, stretch)), 0, None, sum(token.times for token in stretch))


def _shown(token: TraceToken) -> str:
    if token.times < _LONG_RUN:
        return token.text * token.times
    return f"{token.text} \N{MULTIPLICATION SIGN} {token.times}"


def _inlined(store: ImageStore, records: Iterable[TraceRecord]) -> Iterator[tuple[str, str]]:
    """Yield digest and data URI of every stored image that a record names."""
    for digest in sorted({digest for record in records for digest in _digests(record)}):
        path = store.find(digest)
        if path:
            content = base64.b64encode(path.read_bytes()).decode("ascii")
            yield digest, f"data:{_MIME[path.suffix]};base64,{content}"


def _digests(record: TraceRecord) -> Iterator[str]:
    yield from record.images
    for turn in record.turns:
        if turn.observation:
            yield from (hit.thumbnail for hit in turn.observation.hits if hit.thumbnail)


def _render(run: dict[str, Any], images: dict[str, str]) -> str:
    template = _TEMPLATE.read_text(encoding="utf-8")
    script = template.rpartition("<script>")[2].partition("</script>")[0]
    slots = {
        "title": html.escape(run["run"]),
        "script-hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        "records": _inert_json(run),
        "images": _inert_json(images),
    }
    # One pass over the template: what is put in is never searched for slots.
    return re.sub(r"\{\{([a-z-]+)\}\}", lambda slot: slots[slot[1]], template)


def _inert_json(value: object) -> str:
    """JSON that cannot end the script block it stands in."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e")
