"""hopfield.energy and hopfield.retrieve against the oracle: every argument, in both number types."""

import numpy as np
import pytest
import recollect as rc

from tests import accuracy as acc
from tests.reference import hopfield as ref

ATTRIBUTES = ("state", "energy", "lse", "steps", "converged")


def problem(rng, dtype, n=5, N=11, d=6, e=None, batch=()):
    q = rng.standard_normal((*batch, n, d)).astype(dtype)
    x = rng.standard_normal((*batch, N, d)).astype(dtype)
    return (q, x) if e is None else (q, x, rng.standard_normal((*batch, N, e)).astype(dtype))


def check_read(dtype, out, q, x, beta, v=None, mask=None):
    """One softmax: every entry within the stated bound."""
    q, x, beta, v = acc.widen(dtype, q, x, beta, v)
    expected = ref.step(ref.spread(q, x, beta, v, mask), x, beta, v, mask)
    assert out.dtype == dtype and out.shape == expected.shape
    unit = acc.read_unit(dtype, ref.spread(q, x, beta, v, mask), x, beta, v, mask)
    assert (np.abs(out - expected) <= acc.C_READ * unit[..., None]).all()


def check_path(dtype, out, q, x, beta, steps, v=None, mask=None):
    """Several softmaxes: every row within what the Jacobians make of rounding errors."""
    q, x, beta, v = acc.widen(dtype, q, x, beta, v)
    expected = ref.retrieve(q, x, beta, v, steps, mask=mask).state
    assert out.dtype == dtype and out.shape == expected.shape
    bound = acc.path_bound(dtype, ref.spread(q, x, beta, v, mask), x, beta, steps, v, mask)
    assert (np.linalg.norm((out - expected).astype(np.float64), axis=-1) <= bound).all()


def check_energy(dtype, energy, q, x, beta, mask=None, lse=None):
    q, x, beta = acc.widen(dtype, q, x, beta)
    q = ref.spread(q, x, beta, None, mask)
    for got, expected in ((energy, ref.energy(q, x, beta, mask)), (lse, ref.lse(q, x, beta, mask))):
        if got is None:
            continue
        assert got.dtype == dtype and got.shape == expected.shape
        finite = np.isfinite(expected)
        np.testing.assert_array_equal(got[~finite], expected[~finite])
        unit = acc.energy_unit(dtype, q, x, beta, mask)
        assert (np.abs(got[finite] - expected[finite]) <= acc.C_ENERGY * unit[finite]).all()


BETAS = [1e-6, 0.05, 1.0, 4.0, 300.0, 1e6]


@pytest.mark.parametrize("beta", BETAS)
def test_one_step(rng, dtype, beta):
    q, x = problem(rng, dtype)
    check_read(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("e", [1, 3, 19])
def test_one_step_reads_values(rng, dtype, beta, e):
    q, x, v = problem(rng, dtype, e=e)
    check_read(dtype, rc.hopfield.retrieve(q, x, beta=beta, values=v), q, x, beta, v)


@pytest.mark.parametrize("beta", BETAS)
def test_energy(rng, dtype, beta):
    q, x = problem(rng, dtype)
    check_energy(dtype, rc.hopfield.energy(q, x, beta=beta), q, x, beta)


def test_energy_by_hand():
    # one stored pattern: E = |q - x|^2 / 2; two orthogonal unit patterns, q = 0: all terms are known
    assert rc.hopfield.energy([[3.0, 4.0]], [[0.0, 0.0]], beta=2.0) == pytest.approx([12.5], rel=1e-15)
    zero = rc.hopfield.energy([[0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], beta=2.0)
    assert zero == pytest.approx([0.5], rel=4 * acc.eps(np.float64))


def test_retrieve_by_hand():
    # scores 0 and log(3) / 2 at beta 2: weights 1/4 and 3/4
    out = rc.hopfield.retrieve([[np.log(3) / 2]], [[0.0], [1.0]], beta=2.0)
    assert out == pytest.approx(np.array([[0.75]]), rel=8 * acc.eps(np.float64))
    out = rc.hopfield.retrieve([[np.log(3) / 2]], [[0.0], [1.0]], beta=2.0, values=[[4.0, 0.0], [0.0, 8.0]])
    assert out == pytest.approx(np.array([[1.0, 6.0]]), rel=8 * acc.eps(np.float64))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("e", [None, 3])
def test_several_steps(rng, dtype, steps, e):
    q, x, *v = problem(rng, dtype, e=e)
    v = v[0] if v else None
    check_path(dtype, rc.hopfield.retrieve(q, x, beta=0.8, values=v, steps=steps), q, x, 0.8, steps, v)


def test_values_that_are_the_patterns_change_nothing(rng, dtype):
    q, x = problem(rng, dtype)
    for steps in (1, 3):
        a = rc.hopfield.retrieve(q, x, beta=1.5, steps=steps)
        b = rc.hopfield.retrieve(q, x, beta=1.5, steps=steps, values=x)
        bound = 2 * acc.path_bound(dtype, *acc.widen(dtype, q, x), 1.5, steps)
        assert (np.linalg.norm(a - b, axis=-1) <= bound).all()


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("e", [None, 4])
def test_info(rng, dtype, steps, e):
    q, x, *v = problem(rng, dtype, e=e)
    v = v[0] if v else None
    info = rc.hopfield.retrieve(q, x, beta=0.9, values=v, steps=steps, return_info=True)
    assert isinstance(info, tuple) and info._fields == ATTRIBUTES
    np.testing.assert_array_equal(info.state, rc.hopfield.retrieve(q, x, beta=0.9, values=v, steps=steps))
    assert info.steps.dtype == np.int64 and info.converged.dtype == np.bool_
    assert info.steps.shape == info.converged.shape == (5,)
    assert (info.steps == steps).all()
    # energy and lse belong to the state pattern that was returned, or that read the values
    updates = steps - (v is not None)
    final = q if updates == 0 else rc.hopfield.retrieve(q, x, beta=0.9, steps=updates)
    check_energy(dtype, info.energy, final, x, 0.9, lse=info.lse)
    if e is not None and steps == 1:
        assert not info.converged.any()


def test_a_fixed_number_of_steps_tells_whether_the_default_tol_was_met(rng, dtype):
    q, x = problem(rng, dtype, n=9)
    default = ref.DEFAULT_TOL[np.dtype(dtype).name]
    for steps in (1, 2, 5, 30):
        info = rc.hopfield.retrieve(q, x, beta=2.0, steps=steps, return_info=True)
        before = q if steps == 1 else rc.hopfield.retrieve(q, x, beta=2.0, steps=steps - 1)
        moved = np.linalg.norm(info.state.astype(np.float64) - before, axis=-1)
        clear = np.abs(moved - default) > 16 * acc.eps(dtype) * np.abs(x).max() * 6
        np.testing.assert_array_equal(info.converged[clear], (moved <= default)[clear])


def replay(rc_retrieve, q, x, beta, count, **more):
    """The states after 0 .. count updates, each from a call with that many steps."""
    return [q, *(rc_retrieve(q, x, beta=beta, steps=k, **more) for k in range(1, count + 1))]


@pytest.mark.parametrize(
    ("steps", "tol"), [(None, None), (None, 1e-3), (None, 0.3), (4, 0.0), (4, 1e-3), (4, 0.3), (40, 0.0), (40, 1e-3)]
)
@pytest.mark.parametrize("e", [None, 3])
def test_rows_stop_where_they_moved_no_more_than_tol(rng, dtype, steps, tol, e):
    q, x, *v = problem(rng, dtype, n=12, N=9, d=5, e=e)
    v = v[0] if v else None
    stop = ref.DEFAULT_TOL[np.dtype(dtype).name] if tol is None else tol
    info = rc.hopfield.retrieve(q, x, beta=2.0, values=v, steps=steps, tol=tol, return_info=True)
    updates = info.steps - (v is not None)
    assert (updates >= 1).all()
    if steps is not None:
        assert (info.steps <= steps).all()
    path = replay(rc.hopfield.retrieve, q, x, 2.0, int(updates.max()))
    slack = 32 * acc.eps(dtype) * np.abs(x).max() * np.sqrt(5)
    for k, count in enumerate(updates):
        moves = [np.linalg.norm(path[t + 1][k].astype(np.float64) - path[t][k]) for t in range(count)]
        assert all(m > stop - slack for m in moves[:-1]), "went on after it should have stopped"
        if info.converged[k]:
            assert moves[-1] <= stop + slack
        else:
            assert steps is not None and info.steps[k] == steps and moves[-1] > stop - slack
        final = path[count][k : k + 1]
        if v is None:
            np.testing.assert_array_equal(info.state[k], final[0], "not the state after its last step")
        else:
            check_read(dtype, info.state[k : k + 1], final, x, 2.0, v)
        check_energy(dtype, info.energy[k : k + 1], final, x, 2.0, lse=info.lse[k : k + 1])


def test_tol_itself_is_small_enough(dtype):
    """A move of exactly tol stops the row: one pattern at distance 5, and a state that already is the pattern."""
    x = np.zeros((1, 2), dtype)
    for q, tol, count, converged in (([[3, 4]], 5.0, 1, True), ([[3, 4]], 4.99, 2, True), ([[0, 0]], 0.0, 1, True)):
        info = rc.hopfield.retrieve(np.array(q, dtype), x, beta=1.0, steps=None, tol=tol, return_info=True)
        assert (info.steps[0], info.converged[0]) == (count, converged)
    info = rc.hopfield.retrieve(np.array([[3, 4]], dtype), x, beta=1.0, steps=1, tol=4.99, return_info=True)
    assert info.steps[0] == 1 and not info.converged[0]


def test_iterating_to_the_end_finds_the_fixed_point(rng):
    q, x = problem(rng, np.float64, n=8, N=10, d=16)
    info = rc.hopfield.retrieve(q, x, beta=1.0, steps=None, return_info=True)
    truth = ref.retrieve(*acc.widen(np.float64, q, x), 1.0, steps=None, tol=1e-15)
    assert info.converged.all() and truth.converged.all()
    # contraction r near the fixed point: |state - fixed| <= tol * r / (1 - r)
    r = acc.response(truth.state, *acc.widen(np.float64, x), 1.0)
    assert (r < 1).all()
    away = np.linalg.norm((info.state - truth.state).astype(float), axis=-1)
    assert (away <= 2 * 1e-8 * r / (1 - r) + 64 * acc.eps(np.float64) * np.abs(x).max()).all()


def test_at_most_a_thousand_softmaxes(rng):
    # a slow contraction: beta |J| just below 1 with an unreachable tol
    x = np.array([[1.0], [-1.0]])
    info = rc.hopfield.retrieve([[0.5]], x, beta=1.0, steps=None, tol=1e-12, return_info=True)
    assert info.steps[0] == ref.STEP_LIMIT and not info.converged[0]
    assert 0 < info.state[0, 0] < 0.5
    info = rc.hopfield.retrieve([[0.5]], x, values=x, beta=1.0, steps=None, tol=1e-12, return_info=True)
    assert info.steps[0] == ref.STEP_LIMIT and not info.converged[0]


def mask_forms(rng, n, N):
    ragged = rng.random((n, N)) < 0.5
    ragged[1] = False
    ragged[2] = True
    one = np.zeros(N, bool)
    one[N // 2] = True
    return {
        "shared": rng.random(N) < 0.5, "shared row": rng.random((1, N)) < 0.5, "per query": ragged,
        "column": (np.arange(n) % 2 == 0)[:, None], "one pattern": one, "all": np.ones(N, bool), "none": np.zeros(N, bool),
    }  # fmt: skip


FORMS = ["shared", "shared row", "per query", "column", "one pattern", "all", "none"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("e", [None, 3])
@pytest.mark.parametrize("steps", [1, 3])
def test_masks(rng, dtype, form, e, steps):
    q, x, *v = problem(rng, dtype, e=e)
    v = v[0] if v else None
    mask = mask_forms(rng, 5, 11)[form]
    info = rc.hopfield.retrieve(q, x, beta=0.9, values=v, steps=steps, mask=mask, return_info=True)
    check_path(dtype, info.state, q, x, 0.9, steps, v, mask)
    check_energy(dtype, rc.hopfield.energy(q, x, beta=0.9, mask=mask), q, x, 0.9, mask)
    updates = steps - (v is not None)
    final = q if updates == 0 else rc.hopfield.retrieve(q, x, beta=0.9, steps=updates, mask=mask)
    check_energy(dtype, info.energy, final, x, 0.9, mask, info.lse)


def test_a_shared_mask_is_a_smaller_memory(rng, dtype):
    q, x, v = problem(rng, dtype, e=3)
    keep = np.arange(11) % 3 != 0
    out = rc.hopfield.retrieve(q, x, beta=1.2, values=v, steps=2, mask=keep)
    check_path(dtype, out, q, x[keep], 1.2, 2, v[keep])
    # log N and M count what is admissible
    check_energy(dtype, rc.hopfield.energy(q, x, beta=1.2, mask=keep), q, x[keep], 1.2)


def test_rows_that_admit_nothing(rng, dtype):
    q, x, v = problem(rng, dtype, e=3)
    mask = np.ones((5, 11), bool)
    mask[[0, 3]] = False
    for values, width in ((None, 6), (v, 3)):
        for steps in (1, 2, None):
            info = rc.hopfield.retrieve(q, x, beta=0.7, values=values, steps=steps, mask=mask, return_info=True)
            np.testing.assert_array_equal(info.state[[0, 3]], np.zeros((2, width)))
            np.testing.assert_array_equal(info.lse[[0, 3]], [-np.inf] * 2)
            np.testing.assert_array_equal(info.energy[[0, 3]], [np.inf] * 2)
            assert np.isfinite(info.state).all() and np.isfinite(info.energy[[1, 2, 4]]).all()
    np.testing.assert_array_equal(rc.hopfield.energy(q, x, beta=0.7, mask=mask)[[0, 3]], [np.inf] * 2)


def test_no_patterns_at_all(rng, dtype):
    q = problem(rng, dtype)[0]
    nothing, values = np.zeros((0, 6), dtype), np.zeros((0, 2), dtype)
    info = rc.hopfield.retrieve(q, nothing, beta=1.0, return_info=True)
    np.testing.assert_array_equal(info.state, np.zeros((5, 6), dtype))
    np.testing.assert_array_equal(info.lse, [-np.inf] * 5)
    np.testing.assert_array_equal(info.energy, [np.inf] * 5)
    np.testing.assert_array_equal(rc.hopfield.retrieve(q, nothing, values=values, beta=1.0), np.zeros((5, 2), dtype))
    np.testing.assert_array_equal(rc.hopfield.energy(q, nothing, beta=1.0), [np.inf] * 5)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 1), (2, 3), (1, 3)])
def test_beta_per_head_and_batch(rng, dtype, shape):
    q, x, v = problem(rng, dtype, e=4, batch=(2, 3))
    beta = rng.uniform(0.2, 3, shape).astype(dtype)
    check_path(dtype, rc.hopfield.retrieve(q, x, beta=beta, values=v, steps=2), q, x, beta, 2, v)
    check_energy(dtype, rc.hopfield.energy(q, x, beta=beta), q, x, beta)


@pytest.mark.parametrize("make", [int, float, np.int64, np.float32, np.float64, np.array])
def test_beta_of_every_kind(rng, dtype, make, same_bits):
    q, x = problem(rng, dtype)
    out = rc.hopfield.retrieve(q, x, beta=make(2))
    assert out.dtype == dtype, "beta decides no number type"
    same_bits(out, rc.hopfield.retrieve(q, x, beta=2.0))


def test_integers_and_lists_are_float64(rng):
    q, x = [[1, 0, -1]], [[1, 1, 0], [0, 1, 1]]
    out = rc.hopfield.retrieve(q, x, beta=1)
    check_read(np.float64, out, q, x, 1)
    for kind in (np.int8, np.uint8, np.int32, np.int64):
        out = rc.hopfield.retrieve(np.array([[1, 0, 2]], kind), np.array(x, kind), beta=1)
        check_read(np.float64, out, [[1, 0, 2]], x, 1)
    energy = rc.hopfield.energy(q, x, beta=1)
    check_energy(np.float64, energy, q, x, 1)


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
@pytest.mark.parametrize("steps", [1, 2])
def test_patterns_stored_in_half_precision(rng, name, steps):
    half = np.float16 if name == "float16" else pytest.importorskip("ml_dtypes").bfloat16
    q, x, v = problem(rng, np.float32, n=7, N=200, d=33, e=3)
    stored = x.astype(half)
    exact = stored.astype(np.float32)  # what is stored is exact: only the arithmetic rounds, in float32
    check_path(np.float32, rc.hopfield.retrieve(q, stored, beta=0.3, steps=steps), q, exact, 0.3, steps)
    check_path(np.float32, rc.hopfield.retrieve(q, stored, values=v, beta=0.3, steps=steps), q, exact, 0.3, steps, v)
    check_energy(np.float32, rc.hopfield.energy(q, stored, beta=0.3), q, exact, 0.3)


def test_mixed_number_types_never_lose_precision_silently(rng):
    q, x = problem(rng, np.float64)
    for a, b in ((q.astype(np.float32), x), (q, x.astype(np.float32))):
        try:
            out = rc.hopfield.retrieve(a, b, beta=1.0)
        except TypeError as error:
            assert "float32" in str(error) and "float64" in str(error)
        else:
            check_read(np.float64, out, a, b, 1.0)


def test_the_separation_has_a_name(rng, dtype, same_bits):
    q, x = problem(rng, dtype)
    same_bits(rc.hopfield.retrieve(q, x, beta=1.0, separation="softmax"), rc.hopfield.retrieve(q, x, beta=1.0))
    same_bits(rc.hopfield.energy(q, x, beta=1.0, separation="softmax"), rc.hopfield.energy(q, x, beta=1.0))


def test_inputs_are_left_alone(rng, dtype, same_bits):
    q, x, v = problem(rng, dtype, e=3)
    beta, mask = np.array(0.8, dtype), rng.random((5, 11)) < 0.7
    operands = {"q": q, "x": x, "v": v, "beta": beta, "mask": mask}
    copies = {k: a.copy() for k, a in operands.items()}
    rc.hopfield.energy(q, x, beta=beta, mask=mask)
    for steps in (1, 3, None):
        rc.hopfield.retrieve(q, x, beta=beta, values=v, steps=steps, mask=mask, return_info=True)
    out, pullback = rc.vjp(rc.hopfield.retrieve, q, x, beta=beta, values=v, steps=3, mask=mask)
    d_out = np.ones_like(out)
    pullback(d_out)
    assert (d_out == 1).all()
    for k, a in operands.items():
        same_bits(a, copies[k])


@pytest.mark.parametrize("shape", [(40, 700, 64), (200, 200, 33), (3, 5000, 20)])
def test_larger_problems(rng, dtype, shape):
    n, N, d = shape
    q, x = problem(rng, dtype, n, N, d)
    beta = 1 / np.sqrt(d)
    check_read(dtype, rc.hopfield.retrieve(q, x, beta=beta), q, x, beta)
    check_energy(dtype, rc.hopfield.energy(q, x, beta=beta), q, x, beta)
