import logging
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from mmsearch_trl.core.errors import UserError
from mmsearch_trl.traces.files import TraceWriter, image_store, read_traces, trace_path
from mmsearch_trl.traces.images import MAX_SIDE, ImageStore


def test_what_is_written_is_read_in_order_over_all_ranks(tmp_path, searching, answering, tokenizer):
    for rank, scored in enumerate((searching, answering)):
        with TraceWriter(trace_path(tmp_path, "train", rank), tokenizer) as writer:
            writer.write([scored], step=1)
            writer.write([scored], step=2)
    records = list(read_traces(tmp_path))
    assert [(record.step, record.outcome.searched) for record in records] == [
        (1, True), (2, True), (1, False), (2, False),
    ]  # fmt: skip


def test_a_batch_is_on_disk_when_write_returns(tmp_path, answering, tokenizer):
    writer = TraceWriter(trace_path(tmp_path, "train"), tokenizer)
    writer.write([answering], step=0)
    assert len(list(read_traces(tmp_path))) == 1
    writer.close()


def test_a_picture_is_stored_once_however_often_it_is_seen(run_dir):
    assert len(list((run_dir / "traces" / "images").rglob("*.png"))) == 2


def test_half_a_line_is_passed_over_and_cut_off_by_the_next_writer(tmp_path, answering, tokenizer, caplog):
    path = trace_path(tmp_path, "train")
    with TraceWriter(path, tokenizer) as writer:
        writer.write([answering], step=0)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:100])
    with caplog.at_level(logging.WARNING):
        assert len(list(read_traces(tmp_path))) == 1
    assert "line 2: passed over" in caplog.text
    TraceWriter(path, tokenizer).close()
    assert path.read_bytes() == whole


def test_a_resumed_run_samples_its_last_steps_again(tmp_path, answering, searching, tokenizer):
    with TraceWriter(trace_path(tmp_path, "train"), tokenizer) as writer:
        for step in range(4):
            writer.write([answering], step=step)
    with TraceWriter(trace_path(tmp_path, "train"), tokenizer) as writer:
        writer.forget_from(2)
        writer.write([searching], step=2)
    assert [(r.step, r.outcome.searched) for r in read_traces(tmp_path)] == [(0, False), (1, False), (2, True)]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path, tokenizer):
    path = trace_path(tmp_path, "train")
    path.parent.mkdir()
    path.write_bytes(b'{"id"' * 40_000)
    TraceWriter(path, tokenizer).close()
    assert path.read_bytes() == b""


def test_a_broken_line_names_file_and_line(run_dir):
    path = trace_path(run_dir, "train")
    path.write_bytes(b"{}\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"train-rank0\.jsonl, line 1: not a trace record"):
        list(read_traces(run_dir))


def test_a_folder_without_traces_says_what_to_give(tmp_path):
    with pytest.raises(UserError, match="give the folder of a run"):
        list(read_traces(tmp_path))


def test_large_pictures_are_reduced_and_small_ones_kept_exact(tmp_path):
    store = ImageStore(tmp_path)
    small, large = Image.new("RGB", (56, 40), (1, 2, 3)), Image.new("RGBA", (2000, 1000))
    store.put("ab" * 32, small)
    store.put("cd" * 32, large)
    kept = store.find("ab" * 32), store.find("cd" * 32)
    assert kept[0] and kept[1]
    assert list(Image.open(kept[0]).get_flattened_data()) == list(small.get_flattened_data())
    assert Image.open(kept[1]).size == (MAX_SIDE, MAX_SIDE // 2)


def test_a_digest_never_leads_out_of_the_folder(tmp_path):
    store = image_store(tmp_path)
    assert store.find("../../../etc/passwd") is None
    with pytest.raises(ValueError, match="not a hexadecimal SHA-256"):
        store.put("../x", Image.new("RGB", (4, 4)))


def test_on_a_full_disk_a_batch_is_written_whole_or_not_at_all(tmp_path, answering, tokenizer):
    with TraceWriter(trace_path(tmp_path, "train"), tokenizer) as writer:
        writer.write([answering] * 2, step=0)
        whole = writer.path.read_bytes()
        for room in (0, 1, len(whole) // 2 + 7):
            with (
                full_disk(len(whole) + room),
                pytest.raises(UserError, match=r"train-rank0\.jsonl: cannot be written"),
            ):
                writer.write([answering] * 2, step=1)
            assert writer.path.read_bytes() == whole and writer.size == len(whole)
        writer.write([answering] * 1, step=2)
    assert [record.step for record in read_traces(tmp_path)] == [0, 0, 2]


def test_of_a_picture_that_does_not_fit_nothing_is_left(tmp_path):
    store, picture = ImageStore(tmp_path), Image.effect_noise((64, 64), 90).convert("RGB")
    with full_disk(100), pytest.raises(OSError):
        store.put("ab" * 32, picture)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    store.put("ab" * 32, picture)
    assert store.find("ab" * 32)


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """The system writes no file beyond `size` bytes, and of a write that would the part that fits."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
