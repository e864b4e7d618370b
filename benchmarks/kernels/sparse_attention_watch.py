"""Ends a benchmark whose device hangs."""

from __future__ import annotations

import os
import threading
import time

_PATIENCE_S = 90.0


class Watch:
    """A deadline, and a thread that ends the process when nothing happens.

    Args:
        seconds: from now to the deadline.
    """

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds
        self._last = time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()

    def left(self) -> float:
        """Seconds to the deadline, at least one."""
        return max(self._end - time.monotonic(), 1.0)

    def progress(self) -> None:
        """Something has been done."""
        self._last = time.monotonic()

    def _look(self) -> None:
        while True:
            time.sleep(1.0)
            now = time.monotonic()
            if now - self._last > _PATIENCE_S or now > self._end + 20:
                print("no progress, or the deadline passed: the end", flush=True)
                os._exit(3)
