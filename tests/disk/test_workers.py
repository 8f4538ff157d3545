"""Threads that do jobs: as many as are needed, all faults told, none begun once cancelled."""

import threading

import pytest

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
