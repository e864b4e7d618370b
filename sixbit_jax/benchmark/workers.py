"""Processes that prepare side by side and use the device one after the other.

A worker prints a JSON line `{"ready": ...}` when it has compiled, waits for a line on
its standard input, and then prints one JSON line per record.
"""

import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any


class Worker:
    """A job in its own process; its lines and its end arrive in a queue.

    Args:
      name: put beside each of its lines in the queue; its end is (name, None).
      command: what runs behind the interpreter.
      lines: the queue, which several workers may share.
      keeps_memory: whether it keeps device memory that it has freed, which is fast.
        False leaves it to the others, where host time is not measured.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        lines: queue.Queue,
        *,
        keeps_memory: bool = True,
    ):
        self.name = name
        self.errors: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115
        # Without this every process would reserve most of the device's memory.
        environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        if not keeps_memory:
            environment["XLA_PYTHON_CLIENT_ALLOCATOR"] = "platform"
        paths = (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read, args=(lines,), daemon=True)
        self._reader.start()

    def _read(self, lines: queue.Queue) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                lines.put((self.name, json.loads(line)))
        self.process.wait()
        lines.put((self.name, None))

    def go(self) -> None:
        """Lets it use the device."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return  # It ended; its end is in the queue.

    def stop(self) -> None:
        """Ends it, if it has not ended."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()

    def failure(self) -> str:
        """The last line that it wrote on standard error."""
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors if line.strip()]
        return f"exit {self.process.poll()}: {lines[-1][-400:] if lines else ''}"


def wait_for_turn(ready: Any) -> None:
    """In the worker: says that it is ready, returns when the device is free."""
    print(json.dumps({"ready": ready}), flush=True)
    sys.stdin.readline()


def in_turn(
    command: Sequence[str], names: Sequence[str], *, keeps_memory: bool = False
) -> Iterator[tuple[str, dict]]:
    """Runs workers that prepare side by side and use the device one after the other.

    Args:
      command: the command of every worker, before its name.
      names: the names of the workers, in the order of their turns.
      keeps_memory: see `Worker`.

    Yields:
      A worker's name and a record of it, or its `failure`.
    """
    lines: queue.Queue = queue.Queue()
    workers = {
        name: Worker(name, [*command, name], lines, keeps_memory=keeps_memory)
        for name in names
    }
    waiting, ended = set(names), set()

    def take() -> Any:
        name, line = lines.get()
        waiting.discard(name)
        if line is None:
            ended.add(name)
        return line

    try:
        while waiting:
            take()
        for name in names:
            workers[name].go()
            while name not in ended:
                if (record := take()) is not None:
                    yield name, record
            if workers[name].process.wait():
                yield name, {"failure": workers[name].failure()}
    finally:
        for worker in workers.values():
            worker.stop()
