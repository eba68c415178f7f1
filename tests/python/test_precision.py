"""How exact the results are: a slice of the sweep of tests/accuracy.py, and long sums."""

import numpy as np
import pytest
import recollect as rc
from hypothesis import given
from hypothesis import strategies as st

from tests import accuracy as acc
from tests.reference import hopfield as ref


def test_a_slice_of_the_sweep(dtype):
    """Some thousand random problems; `python -m tests.accuracy` runs 100000 of them."""
    _, seen = acc.sweep(rc, dtype, 8000, seed=1)
    assert acc.violations(dtype, seen) == []


@pytest.mark.slow
def test_the_sweep(dtype):
    done, seen = acc.sweep(rc, dtype, 100_000)
    assert done >= 100_000 and seen.scores.max() > 9000
    assert acc.violations(dtype, seen) == []


def test_the_command(capsys):
    assert acc.main(["--cases", "100", "--dtype", "float32"]) == 0
    assert "float32" in capsys.readouterr().out


def test_the_sweep_notices_errors(dtype):
    """The judge itself: a result that is off by some more roundings is found."""

    class Worse:
        class hopfield:
            @staticmethod
            def retrieve(*args, **named):
                info = rc.hopfield.retrieve(*args, **named)
                return info._replace(
                    state=info.state * dtype(1 + 16 * acc.eps(dtype)), energy=info.energy * dtype(1 + 1e-3)
                )

    found = acc.violations(dtype, acc.sweep(Worse, dtype, 500)[1])
    assert any("retrieve" in line for line in found) and any("energy" in line for line in found)


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 300), st.integers(1, 130)),
    st.floats(-6, 6),
    st.floats(-3, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([np.float32, np.float64]),
)
def test_one_read_at_random(shape, log_beta, log_score, seed, dtype):
    n, N, d = shape
    rng, beta = np.random.default_rng(seed), 10.0**log_beta
    q, x = rng.standard_normal((n, d)), rng.standard_normal((N, d))
    factor = 10.0**log_score / (beta * np.abs(q @ x.T).max())
    q, x = (q * np.sqrt(factor)).astype(dtype), (x * np.sqrt(factor)).astype(dtype)
    info = rc.hopfield.retrieve(q, x, beta=beta, values=x, return_info=True)
    wide = acc.widen(dtype, q, x, beta)
    assert (np.abs(info.state - ref.step(*wide)) <= acc.C_READ * acc.read_unit(dtype, *wide)[:, None]).all()
    unit = acc.C_ENERGY * acc.energy_unit(dtype, *wide)
    assert (np.abs(info.energy - ref.energy(*wide)) <= unit).all()
    assert (np.abs(info.lse - ref.lse(*wide)) <= unit).all()


@pytest.mark.parametrize("n", [1, 20])
@pytest.mark.parametrize("N", [20_000, 300_000])
def test_long_sums(rng, dtype, n, N):
    """Weights of equal size and values of one sign: what a single running sum would get wrong by sqrt(N) eps and more.

    Sums over blocks that are merged keep the error near sqrt(block) eps, whatever N is; 4 C_READ allows a block of
    some thousand.
    """
    q, x = (0.1 * rng.standard_normal((n, 4))).astype(dtype), rng.standard_normal((N, 4)).astype(dtype)
    v = rng.uniform(0.5, 1, (N, 3)).astype(dtype)
    wide = acc.widen(dtype, q, x, 1.0, v)
    unit = acc.read_unit(dtype, *wide)[:, None]
    error = np.abs(rc.hopfield.retrieve(q, x, beta=1.0, values=v) - ref.step(*wide))
    assert (error <= 4 * acc.C_READ * unit).all(), f"{(error / unit).max():.1f} eps"


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_many_steps_do_not_drift(rng, dtype, beta):
    """Where the update contracts, hundreds of steps are as exact as a few."""
    q, x = rng.standard_normal((10, 8)).astype(dtype), (rng.standard_normal((6, 8)) * 0.4).astype(dtype)
    wide = acc.widen(dtype, q, x)
    fixed = ref.retrieve(*wide, beta, steps=600).state
    r = acc.response(fixed, wide[1], beta)
    assert (r < 0.9).all(), "the setting does not contract"
    unit = acc.read_unit(dtype, fixed, wide[1], beta) * np.sqrt(8)
    error = np.linalg.norm((rc.hopfield.retrieve(q, x, beta=beta, steps=600) - fixed).astype(np.float64), axis=-1)
    assert (error <= acc.C_READ * unit / (1 - r)).all()
