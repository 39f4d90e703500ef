from concurrent.futures import ThreadPoolExecutor, wait
from threading import Barrier, Event
from types import SimpleNamespace

import pytest

from video_distilled_encoder.encoder import EncoderOutput
from video_distilled_encoder.runtimes.recording import Gate, gpus
from video_distilled_encoder.stream.work import _finished


@pytest.fixture
def pool():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def hold(place, come=None, go=None):
    """Be in a place until told to go."""
    with place():
        if come:
            come.set()
        assert go is None or go.wait(20)


def test_many_are_inside_together(pool):
    gate, all_here = Gate(), Barrier(4)

    def work():
        with gate.inside():
            all_here.wait(20)

    for one in [pool.submit(work) for _ in range(4)]:
        one.result(20)


def test_one_alone_waits_for_those_inside_and_keeps_others_out(pool):
    gate, here, go, alone, end = Gate(), Event(), Event(), Event(), Event()
    inside = pool.submit(hold, gate.inside, here, go)
    assert here.wait(20)
    one = pool.submit(hold, gate.alone, alone, end)
    assert not alone.wait(0.1)
    go.set()
    assert alone.wait(20)
    late = pool.submit(hold, gate.inside)
    assert not wait([late], timeout=0.1).done
    end.set()
    for done in (inside, one, late):
        done.result(20)


def test_who_wants_to_be_alone_is_not_kept_waiting_by_newcomers(pool):
    gate, here, go, order = Gate(), Event(), Event(), []

    def enter(place, name):
        with place():
            order.append(name)

    inside = pool.submit(hold, gate.inside, here, go)
    assert here.wait(20)
    one = pool.submit(enter, gate.alone, "alone")
    while not gate._wanting:
        pass
    late = pool.submit(enter, gate.inside, "late")
    assert not wait([late], timeout=0.1).done
    go.set()
    for done in (inside, one, late):
        done.result(20)
    assert order == ["alone", "late"]


def test_two_that_are_inside_can_both_be_alone(pool):
    gate, both, together = Gate(), Barrier(2), []

    def work():
        with gate.inside():
            both.wait(20)
            with gate.alone():
                together.append(set(gate._inside))
                with gate.inside():  # already
                    pass

    for done in [pool.submit(work) for _ in range(2)]:
        done.result(20)
    assert together == [set(), set()]


def test_an_error_lets_others_in():
    gate = Gate()
    for place in (gate.inside, gate.alone):
        with pytest.raises(ZeroDivisionError), place():
            raise ZeroDivisionError
    with gate.alone(), gate.inside():
        pass
    assert (gate._alone, gate._inside, gate._wanting) == (None, set(), 0)


def test_a_stream_waits_for_a_gpu_when_nothing_is_recorded(pool, fake_cuda):
    on_gpu = SimpleNamespace(is_cuda=True, device=None)
    with gpus.alone():
        result = pool.submit(_finished, EncoderOutput(on_gpu, on_gpu, on_gpu, on_gpu))
        assert not wait([result], timeout=0.1).done
        assert fake_cuda.default.synchronized == 0
    assert result.result(20).cls is on_gpu
    assert fake_cuda.default.synchronized == 1
