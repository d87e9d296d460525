"""Looks at pictures in processes of their own, so that no file can hang or end a run.

A decoder is C code that reads what strangers wrote. Each picture is decoded once by a child that has 10 s
of processor time for it and 2 GiB of memory; a child that dies takes one picture with it, by name. Rows come
back in their order, whatever the number of children, and reading far files overlaps with looking at near ones.
"""

import io
import json
import os
import queue
import resource
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe
from typing import Self, TypeVar

from vlmflow.errors import RecordError
from vlmflow.images import image_bytes

CPU_SECONDS = 10  # of processor time for one picture, so that a busy machine changes nothing
TIMEOUT_SECONDS = 60  # seconds by the clock, for a decoder that would sleep
MEMORY_BYTES = 2**31  # bytes of address space for a child
JPEG_QUALITY = 90  # of the JPEG that replaces a picture of more than the declared size

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """A picture that decodes.

    `kept` is the encoded file that goes into the dataset: as it came, unless it was larger than declared.
    Sizes are in pixels, as it is seen: `size` of what is kept, `came` of what came.
    """

    encoded: bytes
    size: tuple[int, int]
    original_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """The declared size beyond which a picture is made smaller; None where there is none."""

    max_side: int | None = None  # pixels
    max_bytes: int | None = None


class DecoderPool:
    """Some children, each started with the first picture it gets.

    Args:
        bounds: the declared size of pictures.
        count: how many children; None: as many as there are processors.
    """

    def __init__(self, bounds: SizeLimits, count: int | None = None):
        self.count = count or os.cpu_count() or 1
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(self.count):
            self._idle.put(_Worker(bounds))

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self.count)
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().stop()

    def map(
        self, things: Iterable[T], read: Callable[[T], list[bytes]]
    ) -> Iterator[tuple[T, list[DecodedImage] | RecordError]]:
        """Yield each thing with its pictures, which `read` fetches, or with why one of them cannot be used."""
        ahead: deque[tuple[T, Future[list[DecodedImage] | RecordError]]] = deque()
        for thing in things:
            ahead.append((thing, self._threads.submit(self._decode_item, thing, read)))
            if len(ahead) > 4 * self.count:
                first, looked = ahead.popleft()
                yield first, looked.result()
        for thing, looked in ahead:
            yield thing, looked.result()

    def _decode_item(self, thing: T, read: Callable[[T], list[bytes]]) -> list[DecodedImage] | RecordError:
        child = None
        try:
            encoded = read(thing)
            child = self._idle.get()
            return [child.decode(one) for one in encoded]
        except RecordError as reason:
            return reason
        finally:
            if child is not None:
                self._idle.put(child)


class _Worker:
    """One process that decodes, from the side of its parent."""

    def __init__(self, bounds: SizeLimits):
        self.bounds = bounds
        self.process: subprocess.Popen[bytes] | None = None

    def decode(self, encoded: bytes) -> DecodedImage:
        """Return what the child found.

        Raises:
            RecordError: the picture cannot be decoded, or only with more time or memory than there is.
        """
        if self.process is None:
            self._start()
        try:
            self.pipe.send_bytes(encoded)
            if not self.pipe.poll(TIMEOUT_SECONDS):
                raise TimeoutError
            found = json.loads(self.pipe.recv_bytes())
            if "kind" in found:
                raise RecordError(found["kind"], found["detail"])
            kept = self.pipe.recv_bytes() if found["changed"] else encoded
            return DecodedImage(encoded=kept, size=tuple(found["size"]), original_size=tuple(found["came"]))
        except (OSError, EOFError) as error:  # of the pipe: TimeoutError, a broken pipe, its end
            raise self._post_mortem(isinstance(error, TimeoutError)) from None

    def stop(self) -> None:
        """Let the process go."""
        if self.process is not None:
            self.pipe.close()  # at which it ends by itself
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        from vlmflow.runtime.code_hash import ROOT

        self.pipe, theirs = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # One arena and one thread: otherwise each reserves much of the address space and uses none of it.
        quiet = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(paths)}
        bounds = json.dumps(vars(self.bounds))
        command = [sys.executable, "-m", "components.ingest.sandboxed_decoder", str(theirs.fileno()), bounds]
        self.process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=os.environ | quiet,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()

    def _post_mortem(self, late: bool) -> RecordError:
        process, self.process = self.process, None
        assert process is not None
        self.pipe.close()
        if late:
            process.kill()
        code = process.wait()
        if late or code == -signal.SIGPROF:
            return RecordError("too slow", f"more than {CPU_SECONDS} s to decode")
        if code < 0:
            return RecordError("decoder crashed", signal.Signals(-code).name)
        raise RuntimeError(f"the process that looks at pictures ended with code {code}: `{' '.join(process.args)}`")  # type: ignore[arg-type]


def decode_and_shrink(encoded: bytes, bounds: SizeLimits) -> DecodedImage:
    """Decode a picture, and make it smaller if it is larger than declared.

    Raises:
        RecordError: it is no picture, has too many pixels, or its pixels are damaged or cut off.
    """
    from vlmflow.images.decoding import decode

    try:
        came = image_bytes.read_size(encoded)
        large = max(came) > (bounds.max_side or max(came)) or len(encoded) > (bounds.max_bytes or len(encoded))
        pixels = decode(encoded, at_least=None if large else 1)
        kept = _shrink(pixels, bounds) if large else encoded
    except RecordError:
        raise
    except MemoryError:
        raise RecordError("too much memory", f"more than {MEMORY_BYTES >> 20} MiB to decode") from None
    except Exception as error:  # Pillow's plugins raise nearly every type there is on a damaged file
        raise RecordError("damaged picture", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return DecodedImage(encoded=kept, size=image_bytes.read_size(kept) if large else came, original_size=came)


def _shrink(pixels: "image_bytes.Image.Image", bounds: SizeLimits) -> bytes:
    side = min(bounds.max_side or max(pixels.size), max(pixels.size))
    while True:
        ratio = side / max(pixels.size)
        shape = max(1, round(pixels.width * ratio)), max(1, round(pixels.height * ratio))
        buffer = io.BytesIO()
        pixels.resize(shape, image_bytes.Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
        if bounds.max_bytes is None or buffer.tell() <= bounds.max_bytes or side == 1:
            return buffer.getvalue()
        side = max(1, side * 3 // 4)


def _serve(pipe: Connection, bounds: SizeLimits) -> None:
    """Answer with JSON for each picture until the parent closes the pipe; the kept bytes follow if they changed."""
    while True:
        try:
            encoded = pipe.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # at its end the process ends, C code or not
        try:
            found = decode_and_shrink(encoded, bounds)
        except RecordError as reason:
            answer, changed = {"kind": reason.kind, "detail": reason.detail}, b""
        else:
            changed = b"" if found.encoded is encoded else found.encoded
            answer = {"size": found.size, "came": found.original_size, "changed": bool(changed)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(json.dumps(answer).encode())
        if changed:
            pipe.send_bytes(changed)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(Connection(int(sys.argv[1])), SizeLimits(**json.loads(sys.argv[2])))
