import time
import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from onereel.data.order import shuffled


@given(st.integers(1, 3000), st.integers(0, 10**6), st.integers(0, 1000))
@settings(max_examples=60)
def test_is_a_permutation(num_items, seed, epoch):
    values = shuffled(np.arange(num_items), num_items, seed, epoch)
    assert sorted(values.tolist()) == list(range(num_items))


@given(st.integers(1, 500), st.data())
def test_a_position_does_not_depend_on_its_company(num_items, data):
    positions = data.draw(st.lists(st.integers(0, num_items - 1), min_size=1))
    whole = shuffled(np.arange(num_items), num_items, 1, 2)
    assert (shuffled(np.array(positions), num_items, 1, 2) == whole[positions]).all()


def test_each_item_is_equally_likely_at_each_position():
    num_items, epochs = 10, 1500
    counts = np.zeros((num_items, num_items))
    for epoch in range(epochs):
        counts[np.arange(num_items), shuffled(np.arange(num_items), num_items, 0, epoch)] += 1
    expected = epochs / num_items
    # Chi-square with 9 * 9 degrees of freedom: mean 81, standard deviation 12.7.
    assert ((counts - expected) ** 2 / expected).sum() < 81 + 4 * 12.7


def test_neighbours_and_epochs_are_unrelated():
    n = 20_000
    first, second = (shuffled(np.arange(n), n, 0, epoch) for epoch in (0, 1))
    for a, b in ((first[:-1], first[1:]), (first, second), (first, np.arange(n))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / n**0.5


def test_a_hundred_million_items_need_no_memory():
    n = 10**8
    tracemalloc.start()
    start = time.process_time()
    values = shuffled(np.arange(n - 256, n), n, 0, 5)
    assert time.process_time() - start < 0.5
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert ((values >= 0) & (values < n)).all()
    assert len(np.unique(values)) == 256
