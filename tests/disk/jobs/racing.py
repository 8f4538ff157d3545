"""A guest that writes while a job works, and what its disk has to hold then."""

import random
import threading
import time

SIZE = 5 << 20
SECTORS = SIZE // 512


class Racer:
    """A thread that changes a disk; `model` is what it is to hold.

    A sector is changed by one thread, so that the model knows which change was the last.
    """

    def __init__(self, live, model, seed=0, pause=0.0):
        self.live = live
        self.model = model
        self.writes = 0
        self.fault = None
        self._pause = pause
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *about):
        self.stop()

    def stop(self):
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert self.fault is None, self.fault

    def await_writes(self, count):
        wanted = self.writes + count
        deadline = time.monotonic() + 60
        while self.writes < wanted and time.monotonic() < deadline and self.fault is None:
            time.sleep(0.001)

    def _run(self):
        try:
            while not self._over.is_set():
                change(self.live, self.model, self._dice)
                self.writes += 1
                if self._pause:
                    time.sleep(self._pause)
        except Exception as fault:
            self.fault = fault


def change(live, model, dice):
    """Change a disk, and its model."""
    count = dice.choice((1, 8, 64, 128, 200)) * 512
    start = dice.randrange((SIZE - count) // 512) * 512
    match dice.randrange(6):
        case 0:
            live.write_zeroes(start, count)
            model[start : start + count] = bytes(count)
        case 1:
            live.flush()
        case _:
            data = dice.randbytes(count)
            live.write(start, data)
            model[start : start + count] = data
