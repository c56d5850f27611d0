"""Arrays that are not copied, and calls that keep nothing."""

import gc
import os
import tracemalloc
import weakref

import numpy as np
import pytest

from conftest import picture
from zfnet import _image


def resident():
    """Bytes of this process in memory."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096


def test_arrays_in_c_order_are_read_where_they_lie():
    array = picture(0)
    assert _image.source(array) is array
    assert not np.shares_memory(_image.source(array[:, ::-1]), array)


def test_a_large_array_is_not_copied(net):
    image = np.zeros((4000, 4000, 3), np.uint8)  # 48 MB
    net.classify(image)
    tracemalloc.start()
    net.classify(image)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("of", ["activations", "values"])
def test_results_own_their_memory_and_outlive_the_rest(net, file, of):
    def made():
        if of == "values":
            return net.project(file, "conv1:0", rule="gradient").values
        return net.activations(file, "conv1")["conv1"]

    values = made()
    assert values.flags.writeable and values.flags.c_contiguous
    owner = values
    while isinstance(owner.base, np.ndarray):
        owner = owner.base
    assert not owner.flags.owndata and owner.base is not None  # a vector of Rust's, which goes with the array
    before, again = values.copy(), made()
    assert not np.shares_memory(values, again)
    values[:] = 7
    assert again.tobytes() == before.tobytes() == made().tobytes()
    gone = weakref.ref(values)
    del values, owner
    gc.collect()
    assert gone() is None


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not say what is in memory")
def test_a_thousand_calls_hold_their_memory(net, file):
    array = np.ascontiguousarray(np.tile(picture(1), (5, 5, 1)))

    def calls(count):
        for _ in range(count):
            net.classify(array, crops=1)
            net.activations(file, ["conv1", "fc3"])
            net.project(array, "conv1:0", rule="gradient")
            with pytest.raises(ValueError):
                net.activations(array, ["conv9"])
            with pytest.raises(FileNotFoundError):
                net.classify("nowhere.png")

    calls(200)
    gc.collect()
    before = resident()
    calls(1000)
    gc.collect()
    # Each call returns some 20 kB, and the canvas takes 4: leaking one of either would be 4 MB and more.
    assert resident() - before < 3 << 20
