"""Peak memory and CPU time of a step."""

import os
import threading
from typing import Any


class ResourceMeter:
    """Measures this process and its children, from construction until `stop`.

    Memory is the resident set size, sampled twice per second; CPU time includes children that have ended.
    """

    def __init__(self) -> None:
        import psutil  # noqa: F401  not in the thread: a fork during that import would wait for its lock forever

        self._start = sum(os.times()[:4])
        self._peak, self._stopped = 0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        import psutil

        this = psutil.Process()
        while True:
            total = 0
            for process in (this, *this.children(recursive=True)):
                try:
                    total += process.memory_info().rss
                except psutil.Error:
                    continue  # the process ended in the meantime
            self._peak = max(self._peak, total)
            if self._stopped.wait(0.5):
                return

    def core_seconds(self) -> float:
        """Return the CPU time since the start, in seconds."""
        return sum(os.times()[:4]) - self._start

    def stop(self) -> int:
        """Stop and return the peak memory in MB."""
        self._stopped.set()
        self._thread.join()
        return self._peak // 2**20

    def usage(self) -> dict[str, Any]:
        """Stop and return `peak_mb` and `core_seconds`, as a step's record has them."""
        return {"peak_mb": self.stop(), "core_seconds": round(self.core_seconds(), 1)}
