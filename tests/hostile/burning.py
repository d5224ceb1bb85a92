"""What a worker runs that meets an image over which its decoder burns."""

from mmsearch_trl.search.media import foreign


def decode(job: bytes) -> bytes:
    while job.endswith((b"late", b"cancelled")):
        pass
    return foreign.decode(job) if job else b""
