"""A process that runs one function over what strangers made: `python -m mmsearch_trl.core.worker NAME MEMORY`.

Decoders and parsers of other people's bytes can burn a processor for minutes and gigabytes of memory. Here that hurts
nobody: the process may take so much memory and no more, has no key in its environment, is killed when it is late
(`worker_process.py`), and ends by itself with the process that started it.

Jobs come in on standard input and answers go out on standard output, each a length and so many bytes. A function that
raises ends the process.
"""

import resource
import signal
import struct
import sys
from importlib import import_module
from typing import BinaryIO


LENGTH = struct.Struct("<I")
LONGEST_JOB_SECONDS = 60
"""For one whose starter was killed and cannot kill it any more."""


def send(stream: BinaryIO, message: bytes) -> None:
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """The next message.

    Raises:
        EOFError: the other side is gone.
    """
    return _exactly(stream, LENGTH.unpack(_exactly(stream, LENGTH.size))[0])


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def main() -> None:
    name, memory = sys.argv[1], int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # nothing that a library prints may get between the answers
    module, _, function = name.partition(":")
    work = getattr(import_module(module), function)
    while True:
        try:
            message = receive(sys.stdin.buffer)
        except EOFError:
            return
        signal.alarm(LONGEST_JOB_SECONDS)
        answer = work(message)
        signal.alarm(0)
        send(answers, answer)


if __name__ == "__main__":
    main()
