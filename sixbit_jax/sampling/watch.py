"""A callback per step that may end a run, the progress bar, and Ctrl-C.

The compiled program calls one function of this module with a token; what it stands for
is looked up here, so that another callback does not compile again.
"""

import itertools
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Bool, Int

OnStep = Callable[[int, int], bool | None]
"""(steps that are done, all steps) -> true to end the run here."""


class Watcher:
    """What one run does after each step.

    Attributes:
      error: what the callback raised, or None.
      interrupted: whether the run ended because of Ctrl-C.
    """

    def __init__(self, on_step: OnStep | None, *, progress: bool):
        self._on_step, self._progress = on_step, progress
        self._signals: socket.socket | None = None
        self._lock = threading.Lock()
        self._answered: tuple[int, bool] = (0, False)
        self.error: BaseException | None = None
        self.interrupted = False

    def __call__(self, done: int, count: int) -> bool:
        """Whether the run is to end.

        Every device of a mesh asks; of each step the first one is reported.
        """
        with self._lock:
            if self._answered[0] != done:
                self._answered = (done, self._report(done, count))
            return self._answered[1]

    def _report(self, done: int, count: int) -> bool:
        if self._progress:
            _draw_progress(done, count)
        stop = False
        if self._on_step is not None:
            try:
                stop = bool(self._on_step(done, count))
            except BaseException as error:
                self.error, stop = error, True
        self.interrupted = self.interrupted or self._signalled()
        if self._progress and (stop or self.interrupted) and done < count:
            print(file=sys.stderr, flush=True)
        return stop or self.interrupted

    def _signalled(self) -> bool:
        if self._signals is None:
            return False
        try:
            return signal.SIGINT in self._signals.recv(4096)
        except BlockingIOError:
            return False

    @contextmanager
    def catching_interrupts(self) -> Iterator[None]:
        """Ctrl-C ends the run at its next step instead of after its last.

        The main thread waits inside the program, where Python cannot run its signal
        handlers; but the number of the signal is written to a socket at once, and a
        callback reads it. In another thread, or where the program has handlers of its
        own, nothing is changed.
        """
        if (
            threading.current_thread() is not threading.main_thread()
            or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        ):
            yield
            return
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        if before != -1:
            # Somebody else, such as an event loop, waits for signals.
            signal.set_wakeup_fd(before)
            reader.close()
            writer.close()
            yield
            return

        def note(number: int, frame: Any) -> None:
            self.interrupted = True

        handler = signal.signal(signal.SIGINT, note)
        self._signals = reader
        try:
            yield
        finally:
            self._signals = None
            signal.signal(signal.SIGINT, handler)
            signal.set_wakeup_fd(before)
            reader.close()
            writer.close()


_WATCHERS: dict[int, Watcher] = {}
_TOKENS = itertools.count(1)


def register(watcher: Watcher) -> int:
    """A token for a watcher, for as long as the process runs or `forget` is called."""
    token = next(_TOKENS)
    _WATCHERS[token] = watcher
    return token


def forget(token: int) -> None:
    """Drops a watcher."""
    _WATCHERS.pop(token, None)


def watcher_of(token: Any) -> Watcher:
    """The watcher of a token."""
    return _WATCHERS[int(token)]


def _report(token: np.ndarray, done: np.ndarray, count: np.ndarray, after: Any) -> Any:
    del after
    watcher = _WATCHERS.get(int(token))
    stop = watcher is not None and watcher(int(done), int(count))
    return np.bool_(stop)


def report(
    token: Int[Array, ""], done: Int[Array, ""], count: int, after: Array
) -> Bool[Array, ""]:
    """Reports a finished step from inside the program.

    Args:
      token: the token of the watcher.
      done: steps that are done.
      count: all steps.
      after: any part of what the step computed; the report waits for it.

    Returns:
      Whether the run is to end.
    """
    shape = jax.ShapeDtypeStruct((), jnp.bool_)
    return io_callback(_report, shape, token, done, jnp.int32(count), after)


def _draw_progress(done: int, count: int) -> None:
    filled = round(30 * done / count)
    end = "\n" if done == count else ""
    bar = "#" * filled + "." * (30 - filled)
    print(f"\r[{bar}] step {done}/{count}", end=end, file=sys.stderr, flush=True)


__all__ = ["OnStep", "Watcher", "forget", "register", "report", "watcher_of"]
