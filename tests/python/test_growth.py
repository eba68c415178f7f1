"""bench.growth measures and prints; what it says of memory is that our tape grows as T."""

import sys

import pytest

from bench import growth

pytest.importorskip("threadpoolctl")
pytest.importorskip("tqdm")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SMALL = ["--lengths", "32", "--batch", "8", "--hidden", "32", "--threads", "1", "--seconds", "0"]


def test_the_command_checks_and_prints_a_table(capsys):
    assert growth.main([*SMALL, "--only", "sparse, k_att 10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if ": right, relative error" in line][0].startswith("sparse, k_att 1:")
    time, memory, tape = (float(line.split()[-1]) for line in lines if line.startswith("sparse, k_att 10 "))
    assert time > 0 and memory >= tape > 0


@pytest.mark.parametrize("name", [name for name, (_, _, peer) in growth.MODELS.items() if peer is None])
def test_the_tape_grows_as_t(name):
    o = growth.options(SMALL)
    short, long = (growth.tape_bytes(name, o, T) for T in (100, 1600))
    assert long == pytest.approx(16 * short, rel=0.02)
    assert long < 8 * 1600 * 4 * (12 * 32 + 30)  # numbers: gates, states, a microstate and its key; x and the reads


def test_exponents():
    assert growth.exponent([100, 200, 400], [1, 3, 12]) == "2.00"
    assert (
        growth.exponent([100, 200], [None, 3]) == growth.exponent([100, 200], [0, 3]) == "" == growth.exponent([1], [1])
    )
