"""Threads that do jobs: as many as are needed, all faults told, none begun once cancelled."""

import threading

import pytest

from ringzero.disk import batch
from ringzero.disk.vectors import total
from ringzero.disk.workers import Job, Workers


def names():
    return [one.name for one in threading.enumerate() if one.name.startswith("crew")]


def test_threads_are_started_with_the_jobs_and_end_with_the_context():
    held = threading.Event()
    with Workers(3, "crew") as crew:
        assert names() == []
        first = crew.submit(held.wait)
        assert len(names()) == 1
        jobs = [crew.submit(divmod, 7, number) for number in (2, 3, 4)]
        assert [job.result() for job in jobs] == [(3, 1), (2, 1), (1, 3)]
        assert len(names()) == 3
        held.set()
        assert first.result()
    assert names() == []


def test_a_fault_is_raised_by_the_result_and_the_thread_goes_on():
    with Workers(1, "crew") as crew:
        broken, whole = crew.submit(divmod, 1, 0), crew.submit(divmod, 1, 1)
        with pytest.raises(ZeroDivisionError):
            broken.result()
        assert not broken.made
        assert whole.result() == (1, 0)
        assert whole.made


def test_a_cancelled_job_is_not_done():
    with Workers(1, "crew") as crew:
        held = threading.Event()
        crew.submit(held.wait)
        done = []
        job = crew.submit(done.append, 1)
        job.cancel()
        held.set()
        assert job.result() is None
        assert not job.made
    assert not done


def test_a_job_that_has_a_result_already():
    job = Job.made_already(7)
    assert job.made
    assert job.result() == 7


@pytest.mark.parametrize("spare", [0, 1])
def test_a_host_without_a_thread_to_spare(monkeypatch, spare):
    """Those that there are do it all, or whoever asks."""
    start, left = threading.Thread.start, [None] * spare

    def begin(thread):
        if not left:
            raise RuntimeError("can't start new thread")
        left.pop()
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", begin)
    with Workers(3, "crew") as crew:
        jobs = [crew.submit(divmod, 7, number) for number in (2, 3, 4)]
        broken = crew.submit(divmod, 1, 0)
        assert [job.result() for job in jobs] == [(3, 1), (2, 1), (1, 3)]
        with pytest.raises(ZeroDivisionError):
            broken.result()


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("which", [None, 0, 40])
def test_half_of_a_batch_that_fails(monkeypatch, spare, which):
    """A fault on either thread is raised, once both have ended; without a thread one does it."""

    def begin(thread):
        raise RuntimeError("can't start new thread")

    if not spare:
        monkeypatch.setattr(threading.Thread, "start", begin)
    monkeypatch.setattr(batch, "_PROCESSORS", 2)
    size, done = 1 << 20, []

    def fill(offset, views):
        if which is not None and offset <= which * size < offset + total(views):
            raise LookupError("it is broken")
        done.append((offset, total(views)))

    requests = [(number * size, [memoryview(bytearray(size))]) for number in range(48)]
    how = {"ready": lambda asked: asked, "announce": lambda at, length: None, "fill": fill}
    if which is None:
        batch.read(requests, 48 * size, **how)
        assert sorted(done) == [(0, 24 * size), (24 * size, 24 * size)]
    else:
        with pytest.raises(LookupError):
            batch.read(requests, 48 * size, **how)
