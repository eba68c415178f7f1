"""Shared by the Python tests: hypothesis profiles, seeded randomness, threads put back, bitwise equality.

HYPOTHESIS_PROFILE=nightly   searches at random and for long; the default `ci` draws the same cases each time.
RECOLLECT_TEST_SEED=7        other random numbers in the tests that draw their own.
"""

import os
import sys
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import recollect as rc  # noqa: E402

hypothesis.settings.register_profile("ci", derandomize=True, database=None, deadline=None, max_examples=60)
hypothesis.settings.register_profile("nightly", deadline=None, max_examples=3000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture
def rng(request):
    """A generator of its own for every test, the same in every run."""
    seed = int(os.environ.get("RECOLLECT_TEST_SEED", "0"))
    return np.random.default_rng([seed, zlib.crc32(request.node.nodeid.rpartition("/")[2].encode())])


@pytest.fixture(autouse=True)
def threads_put_back():
    before = rc.get_num_threads()
    yield
    if rc.get_num_threads() != before:
        rc.set_num_threads(before)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return np.dtype(request.param).type


def bits(array):
    """The bytes of an array in C order: equal bits is stricter than equal numbers (NaN, -0)."""
    array = np.ascontiguousarray(array)
    return array.dtype.str, array.shape, array.tobytes()


@pytest.fixture
def same_bits():
    def check(a, b):
        if isinstance(a, tuple):
            assert type(a)._fields == type(b)._fields
            for x, y in zip(a, b, strict=True):
                check(x, y)
        elif bits(a) != bits(b):
            a, b = np.asarray(a), np.asarray(b)
            what = (
                f"{np.sum(a != b)} of {a.size} entries differ" if a.shape == b.shape else f"shape {a.shape}, {b.shape}"
            )
            pytest.fail(f"not the same bits: {a.dtype}, {b.dtype}; {what}")

    return check
