"""What the tests of backtracking share: networks with parameters of some size, the oracle's answer, how far a result may be.

The choice of memories is not continuous in the scores where two of them are close, and its gradient is not where a score meets
the threshold. Problems are drawn until scores that matter are further apart than rounding; ties have tests of their own.
"""

import numpy as np
import recollect as rc

from tests.reference import backtracking as ref

LONG = np.longdouble
NETWORKS = {"lstm": rc.backtracking.SparseBacktrackingLSTM, "gru": rc.backtracking.SparseBacktrackingGRU}
MARGIN = {"float32": 2e-4, "float64": 2e-6}
LEAST_TOTAL = {"float32": 1e-2, "float64": 1e-3}  # rounding of a score counts 1 / R times in weights and gradients
FORWARD_TOL = {"float32": 2e-5, "float64": 1e-12}
GRADIENT_TOL = {"float32": 1e-4, "float64": 1e-11}


def network(rng, how, dtype, D=3, H=5, A=None, size=0.7):
    """A network as `how` says, its parameters size * N(0, 1)."""
    released = {"compat": "released"} if how.released else {"attention_size": A}
    net = NETWORKS[how.cell](
        D, H, k_top=how.k_top, k_att=how.k_att, k_trunc=how.k_trunc, max_memories=how.max_memories, reminders=how.reminders,
        dtype=dtype, **released,
    )  # fmt: skip
    for a in net.parameters.values():
        a[...] = size * rng.standard_normal(a.shape)
    return net


def wide(net):
    return {name: LONG(a) for name, a in net.parameters.items()}


def margin(runs, p, how):
    """Of all reads, in units of the largest score: the smallest distance between neighbours among the k_top + 2 largest scores,
    and the smallest R."""
    least = total = np.inf
    for done in runs:
        for step in done.steps:
            n = step.count - step.first
            if how.k_top in (0, None) or n <= how.k_top:
                continue
            a = np.sort(ref.scores(step.hhat, done.state.memory[step.first : step.count], p, how))[::-1]
            gaps = -np.diff(a[: how.k_top + 2])
            least = min(least, gaps.min() / np.abs(a).max())
            total = min(total, step.choice.total / np.abs(a).max()) if how.k_top > 1 else total
    return least, total


def problem(rng, how, dtype, B=2, T=12, D=3, H=5, A=None, size=0.7):
    """A network, x and the oracle's runs of it."""
    for _ in range(200):
        net = network(rng, how, dtype, D, H, A, size)
        x = rng.standard_normal((B, T, D)).astype(dtype)
        outputs, runs = ref.forward(LONG(x), wide(net), how)
        least, total = margin(runs, wide(net), how)
        if least > MARGIN[net.dtype.name] and total > LEAST_TOTAL[net.dtype.name]:
            return net, x, outputs, runs
    raise AssertionError("no problem whose scores are far enough apart")


def close(got, expected, tol, what=""):
    assert np.shape(got) == np.shape(expected), what
    if np.size(expected):
        size = max(1e-3, float(np.abs(expected).max()))
        np.testing.assert_allclose(got, expected, rtol=0, atol=tol * size, err_msg=what)


def close_gradients(net, got, expected, same_type=None):
    """`same_type`: the oracle's gradients in the network's own type. Rounding is stretched where R is small; no other slack."""
    assert set(got.parameters) == set(net.parameters)
    for name, g in [("x", got.x), *got.parameters.items()]:
        assert g.dtype == net.dtype
        size = max(1e-3, float(np.abs(expected[name]).max(initial=0)))
        off = 0 if same_type is None else float(np.abs(same_type[name] - expected[name]).max(initial=0)) / size
        close(g, expected[name], max(GRADIENT_TOL[net.dtype.name], 30 * off), name)


PAPER = [
    ref.Options(k_top=0), ref.Options(k_top=0, k_trunc=4), ref.Options(k_top=2), ref.Options(k_top=1, k_att=3, k_trunc=2),
    ref.Options(k_top=3, k_att=2, k_trunc=2), ref.Options(k_top=None, k_trunc=5), ref.Options(k_top=None, k_att=2),
    ref.Options(k_top=50, k_trunc=3), ref.Options(k_top=2, k_trunc=3, max_memories=4), ref.Options(k_top=6, max_memories=3),
    ref.Options(k_top=None, max_memories=3, k_att=2), ref.Options(k_top=2, k_trunc=1), ref.Options(k_top=2, k_trunc=1000),
    ref.Options(k_top=2, k_trunc=4, reminders=False), ref.Options(k_top=None, k_att=2, reminders=False),
]  # fmt: skip
RELEASED = [
    ref.Options(k_top=3, released=True), ref.Options(k_top=3, k_att=2, k_trunc=4, released=True),
    ref.Options(k_top=2, k_trunc=3, reminders=False, released=True), ref.Options(k_top=50, k_att=3, k_trunc=3, released=True),
    ref.Options(k_top=2, k_trunc=3, max_memories=4, released=True),
]  # fmt: skip
EVERY = [how._replace(cell=cell) for how in PAPER + RELEASED for cell in NETWORKS]


def named(how):
    default = ref.Options()
    return "-".join(
        [how.cell, *(f"{k}={v}" for k, v in how._asdict().items() if k != "cell" and v != getattr(default, k))]
    )


# ---------------------------------------------------------------------------------------------- the read alone

SCORES = ("additive", "keys", "dot", "bilinear")


def read_operands(rng, dtype, score, n=3, N=7, d=4, e=3, A=5, batch=()):
    e = d if score == "dot" else e
    shapes = {
        "additive": {"w1": (A, d), "w2": (A, e), "w3": (A,)}, "keys": {"keys": (*batch, N, A), "w2": (A, e), "w3": (A,)},
        "dot": {}, "bilinear": {"weight": (e, d)},
    }[score]  # fmt: skip
    shapes = {"query": (*batch, n, e), "memory": (*batch, N, d), **shapes}
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def score_name(score):
    return "additive" if score == "keys" else score


BATCHED = {"query": 2, "memory": 2, "keys": 2}


def one_by_one(o, lead, lengths=None):
    """(index, operands of one query and memory) over all leading axes and queries, broadcast."""
    views = {k: np.broadcast_to(a, (*lead, *a.shape[-2:])) if k in BATCHED else a for k, a in o.items()}
    lengths = None if lengths is None else np.broadcast_to(lengths, lead)
    for b in np.ndindex(lead):
        for q in range(o["query"].shape[-2]):
            one = {k: LONG(a[b]) if k in BATCHED else LONG(a) for k, a in views.items()}
            yield (*b, q), one | {"query": one["query"][q]}, None if lengths is None else int(lengths[b])


def read_gradient_sums(o, d_value, lead, lengths=None, **more):
    """The oracle's gradients of every operand, summed over what was broadcast."""
    total = {k: np.zeros((*lead, *a.shape[-2:]) if k in BATCHED else a.shape, LONG) for k, a in o.items()}
    for at, one, length in one_by_one(o, lead, lengths):
        d = ref.read_gradients(**one, d_value=LONG(d_value[at]), length=length, **more)
        for k, g in d.items():
            total[k][at if k == "query" else at[:-1] if k in BATCHED else ...] += g
    return {k: summed(total[k], a.shape) for k, a in o.items()}


def summed(gradient, shape):
    gradient = gradient.sum(axis=tuple(range(gradient.ndim - len(shape))))
    return gradient.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 != gradient.shape[i]), keepdims=True)
