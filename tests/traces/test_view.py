"""The page is read here as a browser's parser reads it; what the script then does was looked at in Chromium."""

import base64
import hashlib
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mmsearch_trl.traces.files import TraceWriter, read_traces, trace_path
from mmsearch_trl.traces.view import write_page


class Page(HTMLParser):
    """Tags with their attributes, and the text of each script by its id (ours has none)."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str | None, str] = {}
        self.title = ""
        self._inside: str | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts[dict(attrs).get("id")] = ""

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[list(self.scripts)[-1]] += data
        elif self._inside == "title":
            self.title += data

    @property
    def records(self):
        return json.loads(self.scripts["records"])["records"]


HOSTILE = [
    "</script><script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "<!--<script>",
    "]]> & &lt;b&gt; </SCRIPT >",
    "{{images}} {{script-hash}} \\u003c \u2028",
    "\ud800 lone surrogate",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_tool_text_stays_text(tmp_path, hostile, tokenizer, text):
    plain_dir, hostile_dir = tmp_path / "run", tmp_path / "other" / "run"
    for run_dir, title in ((plain_dir, "plain"), (hostile_dir, text)):
        with TraceWriter(trace_path(run_dir, "train"), tokenizer) as writer:
            writer.write([hostile(title)], step=0)
    page = Page(write_page(hostile_dir))
    assert page.tags == Page(write_page(plain_dir)).tags
    hits = [turn["observation"]["hits"][0] for turn in page.records[0]["turns"] if turn["observation"]]
    assert (hits[0]["title"], hits[1]["text"]) == (text, text)


def test_a_run_s_name_stays_text(tmp_path, answering, tokenizer):
    run_dir = tmp_path / "<b>&amp; run"
    with TraceWriter(trace_path(run_dir, "train"), tokenizer) as writer:
        writer.write([answering], step=0)
    assert Page(write_page(run_dir)).title == "<b>&amp; run · trajectories"


def test_nothing_is_loaded_and_only_our_script_may_run(run_dir):
    page = Page(write_page(run_dir))
    assert not any({"src", "href", "srcset", "onload", "onerror"} & attributes.keys() for _, attributes in page.tags)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[None].encode()).digest()).decode()
    assert policy and "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert list(page.scripts) == ["records", "pictures", None]


def test_the_page_never_makes_markup_from_text(run_dir):
    script = Page(write_page(run_dir)).scripts[None]
    assert not any(word in script for word in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("))


def test_every_record_is_in_the_page_and_every_picture_inlined(run_dir):
    page = Page(write_page(run_dir))
    assert [(row["split"], row["step"], row["id"]) for row in page.records] == [
        (record.split, record.step, record.id) for record in read_traces(run_dir)
    ]
    pictures = json.loads(page.scripts["pictures"])
    assert {digest for row in page.records for digest in row["images"]} <= pictures.keys()
    assert all(uri.startswith("data:image/png;base64,") for uri in pictures.values())


def test_sampled_tokens_stay_apart_and_observed_ones_are_one_stretch(run_dir, searching):
    row = next(row for row in Page(write_page(run_dir)).records if len(row["turns"]) == 3)
    first, turn = row["turns"][0]["tokens"], searching.trajectory.turns[0]
    assert [token[1] for token in first] == [1] * len(turn.token_ids) + [0]
    assert first[-1][3] == len(turn.reply_ids)
    assert first[-1][0].endswith("<|image_pad|> \N{MULTIPLICATION SIGN} 4")


def test_a_long_run_is_thinned_by_whole_questions(run_dir):
    page = Page(write_page(run_dir, max_records=4))
    kept = {row["id"] for row in page.records}
    assert 0 < len(page.records) < 9
    assert len(page.records) == sum(record.id in kept for record in read_traces(run_dir))
    held = json.loads(page.scripts["records"])
    assert (held["total"], held["questions"]) == (9, len({record.id for record in read_traces(run_dir)}))


def test_the_page_goes_where_it_is_asked_to(run_dir, tmp_path):
    out = tmp_path / "pages" / "one.html"
    assert write_page(run_dir, out) == out
    assert write_page(run_dir) == run_dir / "trajectories.html"
    assert out.read_bytes() == (run_dir / "trajectories.html").read_bytes()


def test_a_picture_that_was_lost_does_not_cost_the_page(run_dir):
    for path in (run_dir / "traces" / "images").rglob("*.png"):
        path.unlink()
    assert json.loads(Page(write_page(run_dir)).scripts["pictures"]) == {}
