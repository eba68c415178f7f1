"""The oracle's own witnesses: the definition of the choice, finite differences, edges held, torch with detach."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.reference import backtracking as ref  # noqa: E402

LONG = np.longdouble
EPS = float(np.finfo(LONG).eps)
# A central difference with step h errs by h^2 (truncation) and eps / h (rounding): h = eps^(1/3) balances them.
STEP = EPS ** (1 / 3)
DIFFERENCE_TOL = 1e4 * STEP**2
T, D, H, A = 11, 2, 3, 4


def parameters(rng, how, kind=LONG, D=D, H=H, A=A, size=0.9):
    G = 4 if how.cell == "lstm" else 3
    shapes = {"weight_ih": (G * H, D), "weight_hh": (G * H, H), "bias_ih": (G * H,), "bias_hh": (G * H,)}
    shapes |= {"w3": (2 * H,)} if how.released else {"w1": (A, H), "w2": (A, H), "w3": (A,)}
    return {name: kind(size * rng.standard_normal(shape)) for name, shape in shapes.items()}


def difference(f, a, index):
    kept = a[index]
    a[index] = kept + STEP
    up = f()
    a[index] = kept - STEP
    down = f()
    a[index] = kept
    return (up - down) / (2 * STEP)


def differences(f, operands):
    return {name: np.array([difference(f, a, i) for i in np.ndindex(a.shape)]).reshape(a.shape)
            for name, a in operands.items()}  # fmt: skip


def agree(got, expected, tol=DIFFERENCE_TOL):
    assert set(got) == set(expected)
    for name in expected:
        size = max(1.0, float(np.abs(expected[name]).max(initial=0)))
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=tol * size, err_msg=name)


# ------------------------------------------------------------------------------------------------------ the choice


def test_a_choice_by_hand():
    c = ref.choose(np.array([1.0, 5.0, 2.0, 4.0]), 2)
    assert list(c.kept) == [1, 3] and c.threshold == 2 and c.total == 5
    np.testing.assert_allclose(c.weights, [0.6, 0.4])
    c = ref.choose(np.array([2.0, 3.0, 3.0, 3.0, 1.0]), 2)
    assert c.kind == "uniform" and list(c.kept) == [1, 2] and list(c.weights) == [0.5, 0.5]
    c = ref.choose(np.array([3.0, 1.0, 2.0, 2.0]), 2)  # one kept ties with the threshold
    assert list(c.kept) == [0, 2] and c.threshold == 3 and list(c.weights) == [1, 0]
    c = ref.choose(np.log(np.array([1.0, 3.0])), 5)
    np.testing.assert_allclose(c.weights, [0.25, 0.75])
    assert ref.choose(np.zeros(0), 3).kind == ref.choose(np.ones(4), 0).kind == "none"
    c = ref.choose(np.array([1.0, 5.0, 2.0, 4.0]), 2, released=True)
    assert list(c.kept) == [1, 3] and c.threshold == 3 and c.weights[1] == 0
    assert c.weights[0] == pytest.approx(1, abs=3e-7)


def test_weights_depend_on_gaps_alone():
    a = np.random.default_rng(0).standard_normal(9)
    one, two = ref.choose(a, 4), ref.choose(7 * a - 3, 4)
    np.testing.assert_array_equal(one.kept, two.kept)
    np.testing.assert_allclose(one.weights, two.weights, rtol=1e-12)


@pytest.mark.parametrize("score", ["additive", "keys", "dot", "bilinear"])
@pytest.mark.parametrize(
    ("N", "k_top", "length"), [(6, 2, None), (6, 2, 4), (3, 5, None), (6, None, 4), (3, 3, None), (4, 2, 0)]
)
def test_gradients_of_the_read(score, N, k_top, length):
    rng = np.random.default_rng(3)
    e = 4 if score == "dot" else 3
    o = {"query": LONG(rng.standard_normal(e)), "memory": LONG(rng.standard_normal((N, 4)))}
    shapes = {"additive": {"w1": (5, 4), "w2": (5, e), "w3": (5,)}, "keys": {"keys": (N, 5), "w2": (5, e), "w3": (5,)},
              "dot": {}, "bilinear": {"weight": (e, 4)}}[score]  # fmt: skip
    o |= {name: LONG(rng.standard_normal(shape)) for name, shape in shapes.items()}
    more = {"k_top": k_top, "length": length, "score": "additive" if score == "keys" else score}
    u = LONG(rng.standard_normal(4))
    agree(ref.read_gradients(**o, d_value=u, **more), differences(lambda: u @ ref.read(**o, **more).value, o))


# ------------------------------------------------------------------------------------------------- the recurrence

EXACT = [
    ref.Options(k_top=0), ref.Options(k_top=2), ref.Options(k_top=3, k_att=2), ref.Options(k_top=None),
    ref.Options(k_top=2, max_memories=4), ref.Options(k_top=20, max_memories=3), ref.Options(k_top=1, k_att=3),
]  # fmt: skip
CUT = [
    ref.Options(k_top=0, k_trunc=3), ref.Options(k_top=2, k_trunc=1), ref.Options(k_top=3, k_att=2, k_trunc=2),
    ref.Options(k_top=None, k_trunc=4), ref.Options(k_top=2, k_trunc=3, max_memories=4), ref.Options(k_top=2, reminders=False),
    ref.Options(k_top=2, k_att=2, k_trunc=4, reminders=False), ref.Options(k_top=None, k_trunc=5, reminders=False),
    ref.Options(k_top=2, k_trunc=100),
]  # fmt: skip
RELEASED = [
    ref.Options(k_top=3, released=True), ref.Options(k_top=3, k_trunc=2, released=True), ref.Options(k_top=20, released=True),
    ref.Options(k_top=2, k_att=2, k_trunc=3, reminders=False, released=True),
    ref.Options(k_top=2, k_trunc=3, max_memories=4, released=True),
]  # fmt: skip


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("how", EXACT, ids=str)
def test_full_backpropagation_is_the_exact_gradient(cell, how):
    """Nothing is held here: plain differences of the outputs."""
    how = how._replace(cell=cell)
    rng = np.random.default_rng(1)
    p, x, u = parameters(rng, how), LONG(rng.standard_normal((T, D))), LONG(rng.standard_normal((T, 2 * H)))
    got = ref.run_gradients(ref.run(x, p, how), p, how, u)
    agree(got, differences(lambda: (u * ref.run(x, p, how).outputs).sum(), {"x": x, **p}))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("how", CUT + RELEASED, ids=str)
def test_cut_gradients_are_differences_with_the_edges_held(cell, how):
    how = how._replace(cell=cell)
    rng = np.random.default_rng(2)
    p, x, u = parameters(rng, how), LONG(rng.standard_normal((T, D))), LONG(rng.standard_normal((T, 2 * H)))
    frozen = ref.run(x, p, how)
    np.testing.assert_array_equal(ref.run(x, p, how, frozen=frozen).outputs, frozen.outputs)
    got = ref.run_gradients(frozen, p, how, u)
    # Raw scores add up in the states of the released form: they are far from 1, and so are their curvatures.
    tol = DIFFERENCE_TOL * (1e3 if how.released else 1)
    agree(got, differences(lambda: (u * ref.run(x, p, how, frozen=frozen).outputs).sum(), {"x": x, **p}), tol)


@pytest.mark.parametrize("how", [*EXACT[1:4], *CUT[:4]], ids=str)
def test_a_state_is_a_constant(how):
    rng = np.random.default_rng(4)
    p, x, u = parameters(rng, how), LONG(rng.standard_normal((T, D))), LONG(rng.standard_normal((T - 5, 2 * H)))
    whole, state = ref.run(x, p, how), ref.run(x[:5], p, how).state
    late = x[5:].copy()
    done = ref.run(late, p, how, state)
    np.testing.assert_array_equal(done.outputs, whole.outputs[5:])
    got = ref.run_gradients(done, p, how, u)
    agree(got, differences(lambda: (u * ref.run(late, p, how, state, frozen=done).outputs).sum(), {"x": late, **p}))


def torch_gradients(torch, x, p, how, u):
    """The same network with torch's cell and torch's gradients, edges cut by detach."""
    p = {name: torch.tensor(np.float64(a), requires_grad=True) for name, a in p.items()}
    x = torch.tensor(np.float64(x), requires_grad=True)
    step = torch.lstm_cell if how.cell == "lstm" else torch.gru_cell
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    h = carry = torch.zeros(1, H, dtype=torch.float64)
    memory, loss = [], 0
    for t, x_t in enumerate(x, 1):
        if how.k_trunc is not None and (t - 1) % how.k_trunc == 0:
            h, carry = h.detach(), carry.detach()
        hhat, carry = step(x_t[None], (h, carry), *(p[n] for n in names))
        s = torch.zeros_like(hhat)
        if memory and how.k_top != 0:
            m = torch.cat(memory)
            a = torch.tanh(m @ p["w1"].T + hhat @ p["w2"].T) @ p["w3"]
            if how.k_top is None or len(memory) <= how.k_top:
                s = torch.softmax(a, 0)[None] @ m
            else:
                w = torch.relu(a - torch.sort(a, descending=True).values[how.k_top])
                s = (w / w.sum())[None] @ m
        h = hhat + s
        loss = loss + (torch.tensor(np.float64(u[t - 1])) * torch.cat([h, s], 1)[0]).sum()
        if t % how.k_att == 0:
            memory.append(h if how.reminders else h.detach())
    names = ["x", *p]
    found = torch.autograd.grad(loss, [x, *p.values()], allow_unused=True)
    return {n: np.zeros(p[n].shape) if g is None else g.numpy() for n, g in zip(names, found, strict=True)}


@pytest.mark.parametrize("how", [h for h in EXACT + CUT if h.max_memories is None], ids=str)
def test_torch_with_detach_agrees(how):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    p, x, u = parameters(rng, how), LONG(rng.standard_normal((T, D))), LONG(rng.standard_normal((T, 2 * H)))
    agree(ref.run_gradients(ref.run(x, p, how), p, how, u), torch_gradients(torch, x, p, how, u), 1e-11)


def test_the_usual_gru():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(6)
    how = ref.Options("gru", k_top=0)
    p, x = parameters(rng, how, np.float64), rng.standard_normal((T, D))
    cell = torch.nn.GRUCell(D, H, dtype=torch.float64)
    cell.load_state_dict({n: torch.tensor(p[n]) for n in cell.state_dict()})
    h, outputs = None, []
    for x_t in torch.tensor(x):
        h = cell(x_t[None], h)
        outputs.append(h.detach().numpy()[0])
    np.testing.assert_allclose(ref.run(x, p, how).outputs[:, :H], outputs, rtol=0, atol=1e-14)


def test_locality():
    """Two windows without reminders: the second knows nothing of the first."""
    how = ref.Options(k_top=2, k_trunc=4, reminders=False)
    rng = np.random.default_rng(7)
    p, x, u = parameters(rng, how), LONG(rng.standard_normal((8, D))), np.zeros((8, 2 * H), LONG)
    u[6:] = 1
    d = ref.run_gradients(ref.run(x, p, how), p, how, u)["x"]
    assert not d[:4].any() and d[4:].all()
