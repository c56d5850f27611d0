"""Threads of Python, and processes that were forked."""

import fcntl
import multiprocessing
import os
import pickle
import signal
import sys
import threading

import pytest

import zfnet
from conftest import picture
from zfnet import _page, _train
from zfnet._progress import Progress


def all_of(net, image):
    """What everything gives, to be compared."""
    shown = net.project(image, "conv1:0", rule="gradient")
    return net.classify(image), net.classify(image, crops=1), shown.values.tobytes(), shown.activation


def test_a_network_is_loaded_again_where_it_is_sent_to(run, net):
    image = picture(3)
    again = pickle.loads(pickle.dumps(zfnet.load(run, threads=1, instructions="portable")))
    assert again.classify(image) == zfnet.load(run, threads=1, instructions="portable").classify(image)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(all_of, (net, image)) == all_of(net, image)


def test_threads_at_once(run, net):
    images = [picture(seed) for seed in range(12)]
    expected = [all_of(net, image) for image in images]
    other = zfnet.load(run, threads=1)
    wrong = []

    def work(first):
        for i in range(40):
            place = (first + 5 * i) % len(images)
            of = net if (first + i) % 3 else other
            if all_of(of, images[place]) != expected[place]:
                wrong.append(place)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert not wrong


def in_child(work):
    """Whether `work` is true in a forked process; one that hangs is killed."""
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            os._exit(0 if work() else 1)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(2)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def test_python_goes_on_while_a_network_computes(net):
    image, go = picture(0), threading.Event()

    def work():
        while not go.is_set():
            net.classify(image)

    def both():
        # Nothing takes Python's lock from who does not give it back: the next line after the start would never run.
        sys.setswitchinterval(1e6)
        thread = threading.Thread(target=work)
        thread.start()
        go.set()
        thread.join()
        return True

    assert in_child(both) == 0


def test_fork(run, net):
    image = picture(3)
    expected = all_of(net, image)
    assert in_child(lambda: all_of(net, image) == expected) == 0
    assert in_child(lambda: all_of(zfnet.load(run), image) == expected) == 0
    assert all_of(net, image) == expected  # and nothing has changed here
    # A child of a child.
    assert in_child(lambda: in_child(lambda: all_of(net, image) == expected) == 0) == 0


def test_fork_while_other_threads_compute(net):
    image = picture(3)
    expected = all_of(net, image)
    over = threading.Event()

    def work():
        while not over.is_set():
            net.classify(image)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert in_child(lambda: all_of(net, image) == expected) == 0
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_pages_and_training_in_a_child(net, data, toml, tmp_path):
    def work():
        page = zfnet.top9(net, data, out=tmp_path / "page", maps=2, progress=False)
        done = zfnet.train(arch=toml, data=data, out=tmp_path / "run", epochs=1, threads=2, progress=False)
        return page.path.exists() and (done.path / "last").exists()

    assert in_child(work) == 0


def test_fork_while_another_thread_waits_for_a_folder(net, data, tmp_path):
    held = tmp_path / "held"
    held.mkdir()
    over = threading.Event()

    def work():
        while not over.is_set():
            with pytest.raises(zfnet.Error, match="another command is writing into it"):
                zfnet.top9(net, data, out=held, progress=False)

    with open(held / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            free = lambda: zfnet.top9(net, data, "conv1", tmp_path / "free", maps=1, progress=False).path.exists()
            for _ in range(5):
                assert in_child(free) == 0
        finally:
            over.set()
            thread.join()


def test_a_child_does_not_write_into_its_parents_folder(net, data, tmp_path, monkeypatch):
    ended = []

    def refused():
        with pytest.raises(zfnet.Error, match="is writing into it"):
            zfnet.top9(net, data, out=tmp_path, progress=False)
        return (tmp_path / "lock").exists()

    class Forks(Progress):
        def show(self, *args):
            if not ended:
                ended.append(None)
                with monkeypatch.context() as patch:
                    patch.setattr(_page, "Progress", Progress)
                    ended[0] = in_child(refused)

    monkeypatch.setattr(_page, "Progress", Forks)
    zfnet.top9(net, data, out=tmp_path)
    assert ended == [0]


def test_a_child_does_not_keep_a_runs_lock(data, toml, tmp_path, monkeypatch):
    read, write = os.pipe()
    children = []

    class Forks(Progress):
        def show(self, *args):
            if children:
                return
            child = os.fork()
            if child == 0:
                os.close(write)
                os.read(read, 1)  # until its parent closes the other end
                os._exit(0)
            children.append(child)

    monkeypatch.setattr(_train, "Progress", Forks)
    try:
        zfnet.train(arch=toml, data=data, out=tmp_path / "run", max_steps=2)
        assert len(children) == 1
        more = zfnet.train(data=data, out=tmp_path / "run", resume=True, max_steps=3)
        assert max(line["step"] for line in more.metrics) == 3
    finally:
        os.close(write)
        for child in children:
            os.waitpid(child, 0)
        os.close(read)


def classified(image):
    return _net.classify(image)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_multiprocessing_fork(net):
    global _net
    _net = net
    images = [picture(seed) for seed in range(8)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map_async(classified, images).get(timeout=60)
    assert found == [net.classify(image) for image in images]
