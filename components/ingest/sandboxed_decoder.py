"""Decode images in worker processes, so that no file can hang or crash a run.

Decoders are C code that reads untrusted files. Each image is decoded once by a worker, which has 10 s of processor time
per image and 2 GiB of memory. If a worker dies, only its current image is lost, with a reason. Rows keep their order
for any number of workers, and remote files are read while other images are decoded.
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

CPU_SECONDS = 10  # processor time per image; independent of the load of the machine
TIMEOUT_SECONDS = 60  # wall-clock time per image, for a decoder that sleeps
MEMORY_BYTES = 2**31  # address space of a worker
JPEG_QUALITY = 90  # of the JPEG that replaces an image above the size limits

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DecodedImage:
    """An image that can be decoded.

    `encoded` is the file for the dataset: the original bytes, or a smaller JPEG if the original exceeds the limits.
    Sizes are (width, height) in pixels of the upright image: `size` of `encoded`, `original_size` of the source file.
    """

    encoded: bytes
    size: tuple[int, int]
    original_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Size above which an image is shrunk; None means no limit."""

    max_side: int | None = None  # pixels
    max_bytes: int | None = None


class DecoderPool:
    """A pool of workers; each starts with its first image.

    Args:
        limits: the size limits of images.
        count: number of workers; None uses the number of processors.
    """

    def __init__(self, limits: SizeLimits, count: int | None = None):
        self.count = count or os.cpu_count() or 1
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for _ in range(self.count):
            self._idle.put(_Worker(limits))

    def __enter__(self) -> Self:
        self._threads = ThreadPoolExecutor(self.count)
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get().stop()

    def map(
        self, items: Iterable[T], read_images: Callable[[T], list[bytes]]
    ) -> Iterator[tuple[T, list[DecodedImage] | RecordError]]:
        """Yield each item with its decoded images, or with the error of the first unusable one, in order.

        `read_images` returns the encoded images of an item.
        """
        pending: deque[tuple[T, Future[list[DecodedImage] | RecordError]]] = deque()
        for item in items:
            pending.append((item, self._threads.submit(self._decode_item, item, read_images)))
            if len(pending) > 4 * self.count:
                first, future = pending.popleft()
                yield first, future.result()
        for item, future in pending:
            yield item, future.result()

    def _decode_item(self, item: T, read_images: Callable[[T], list[bytes]]) -> list[DecodedImage] | RecordError:
        worker = None
        try:
            encoded = read_images(item)
            worker = self._idle.get()
            return [worker.decode(image) for image in encoded]
        except RecordError as reason:
            return reason
        finally:
            if worker is not None:
                self._idle.put(worker)


class _Worker:
    """The parent's handle of one decoding process."""

    def __init__(self, limits: SizeLimits):
        self.limits = limits
        self.process: subprocess.Popen[bytes] | None = None

    def decode(self, encoded: bytes) -> DecodedImage:
        """Decode an image in the process.

        Raises:
            RecordError: the image cannot be decoded within the limits of time and memory.
        """
        if self.process is None:
            self._start()
        try:
            self.pipe.send_bytes(encoded)
            if not self.pipe.poll(TIMEOUT_SECONDS):
                raise TimeoutError
            reply = json.loads(self.pipe.recv_bytes())
            if "kind" in reply:
                raise RecordError(reply["kind"], reply["detail"])
            output = self.pipe.recv_bytes() if reply["changed"] else encoded
            return DecodedImage(encoded=output, size=tuple(reply["size"]), original_size=tuple(reply["original_size"]))
        except (OSError, EOFError) as error:  # TimeoutError, or the pipe is broken or closed
            raise self._post_mortem(isinstance(error, TimeoutError)) from None

    def stop(self) -> None:
        """Stop the process."""
        if self.process is not None:
            self.pipe.close()  # the process exits when the pipe closes
            self.process.wait()
            self.process = None

    def _start(self) -> None:
        from vlmflow.runtime.code_hash import ROOT

        self.pipe, worker_end = Pipe()
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        # One arena and one thread: more of them reserve much of the limited address space without using it.
        environment = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "PYTHONPATH": os.pathsep.join(paths)}
        limits = json.dumps(vars(self.limits))
        command = [sys.executable, "-m", "components.ingest.sandboxed_decoder", str(worker_end.fileno()), limits]
        self.process = subprocess.Popen(
            command, pass_fds=[worker_end.fileno()], env=os.environ | environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        worker_end.close()

    def _post_mortem(self, timed_out: bool) -> RecordError:
        process, self.process = self.process, None
        assert process is not None
        self.pipe.close()
        if timed_out:
            process.kill()
        code = process.wait()
        if timed_out or code == -signal.SIGPROF:
            return RecordError("decoding timeout", f"decoding takes more than {CPU_SECONDS} s")
        if code < 0:
            return RecordError("decoder crashed", signal.Signals(-code).name)
        raise RuntimeError(f"the image decoding process exited with code {code}: `{' '.join(process.args)}`")  # type: ignore[arg-type]


def decode_and_shrink(encoded: bytes, limits: SizeLimits) -> DecodedImage:
    """Decode an image, and shrink it if it exceeds the limits.

    Raises:
        RecordError: it is not an image, has too many pixels, or its pixels are damaged or truncated.
    """
    from vlmflow.images.decoding import check_pixels, decode

    try:
        original_size = image_bytes.read_size(encoded, any_jpeg=True)
        side = limits.max_side or max(original_size)
        large = max(original_size) > side or len(encoded) > (limits.max_bytes or len(encoded))
        if large:
            shorter = max(1, min(original_size) * side // max(original_size))  # if the longer side is `side`
            output = _shrink(decode(encoded, at_least=shorter), limits)
        else:
            check_pixels(*original_size)
            decode(encoded, at_least=1)
            output = encoded
    except RecordError:
        raise
    except image_bytes.Image.DecompressionBombError as error:  # only a JPEG comes here
        remedy = "set ingest.max_side, to decode it at a smaller scale"
        raise RecordError("too many pixels", f"{error}; {remedy}") from None
    except MemoryError:
        raise RecordError("out of memory", f"decoding takes more than {MEMORY_BYTES >> 20} MiB") from None
    except Exception as error:  # Pillow's plugins can raise almost any type on a damaged file
        raise RecordError("damaged image", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}") from None
    return DecodedImage(
        encoded=output, size=image_bytes.read_size(output) if large else original_size, original_size=original_size
    )


def _shrink(pixels: "image_bytes.Image.Image", limits: SizeLimits) -> bytes:
    side = min(limits.max_side or max(pixels.size), max(pixels.size))
    while True:
        ratio = side / max(pixels.size)
        shape = max(1, round(pixels.width * ratio)), max(1, round(pixels.height * ratio))
        buffer = io.BytesIO()
        pixels.resize(shape, image_bytes.Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=JPEG_QUALITY)
        if limits.max_bytes is None or buffer.tell() <= limits.max_bytes or side == 1:
            return buffer.getvalue()
        side = max(1, side * 3 // 4)


def _serve(pipe: Connection, limits: SizeLimits) -> None:
    """Decode images until the parent closes the pipe; answer with JSON, then the new bytes if the image was shrunk."""
    while True:
        try:
            encoded = pipe.recv_bytes()
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # SIGPROF ends the process, even inside C code
        try:
            decoded = decode_and_shrink(encoded, limits)
        except RecordError as reason:
            answer, changed = {"kind": reason.kind, "detail": reason.detail}, b""
        else:
            changed = b"" if decoded.encoded is encoded else decoded.encoded
            answer = {"size": decoded.size, "original_size": decoded.original_size, "changed": bool(changed)}
        signal.setitimer(signal.ITIMER_PROF, 0)
        pipe.send_bytes(json.dumps(answer).encode())
        if changed:
            pipe.send_bytes(changed)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _serve(Connection(int(sys.argv[1])), SizeLimits(**json.loads(sys.argv[2])))
