"""What the pool owes its surroundings: sleep when there is nothing to do, let Python run, survive a fork."""

import os
import threading
import time

import pytest

import pygpt


@pytest.fixture
def model(random_model):
    with pygpt.Model(random_model(n_ctx=64, type="f32"), threads=2) as model:
        yield model


def test_idle_threads_use_no_processor(model):
    model.complete("a", 20, seed=1)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.05


def test_other_python_threads_run_while_the_core_works(model):
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.001)

    other = threading.Thread(target=count)
    other.start()
    model.complete("a", 3000, seed=1, on_full="exact")
    done.set()
    other.join()
    assert counted[0] > 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_gets_threads_of_its_own(model):
    text = model.complete("a", 30, seed=1)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, model.complete("a", 30, seed=1).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        assert pipe.read() == text
    os.waitpid(child, 0)
    assert model.complete("a", 30, seed=1) == text
