"""An oracle for sparse attentive backtracking, written from the equations alone (Ke et al. 2018, arXiv 1809.03702).

It imports nothing of recollect. It is slow and plain on purpose: one row, one step, one memory at a time, in whatever
number type it is given, so that np.longdouble judges float64.

    hhat_t, carry_t = cell(x_t, h_{t-1}, carry_{t-1})               t counted from the start of the stream
    s_t = the sparse read of the microstates stored before t, query hhat_t
    h_t = hhat_t + s_t;    if t mod k_att = 0, h_t becomes a microstate

The gradient is that of these equations with some edges taken as constants: the recurrent ones into the first step of a
window, the state a call started from, and without reminders every microstate. `run` takes a recorded run, `frozen`, and
then reads exactly these edges from there: differences of that function are differences with the edges held.
"""

from typing import NamedTuple

import numpy as np

RELEASED_EPS = 1e-7


class Options(NamedTuple):
    cell: str = "lstm"
    k_top: int | None = 0  # None: all
    k_att: int = 1
    k_trunc: int | None = None
    max_memories: int | None = None
    reminders: bool = True
    released: bool = False


class Choice(NamedTuple):
    """Which of the memories are read: `kind` is none, softmax, raw, gap or uniform."""

    kind: str
    kept: np.ndarray
    weights: np.ndarray
    threshold: int | None = None
    total: float = 0  # what gaps were divided by


class Microstate(NamedTuple):
    time: int
    value: np.ndarray  # (H,)
    key: np.ndarray  # (A,); of the released form ()


class State(NamedTuple):
    time: int
    hidden: np.ndarray
    carry: np.ndarray
    memory: tuple[Microstate, ...]


class Step(NamedTuple):
    x: np.ndarray
    before: np.ndarray  # h_{t-1}
    saved: tuple  # what the cell keeps
    hhat: np.ndarray
    carry: np.ndarray
    h: np.ndarray
    first: int  # the oldest memory that can be read
    count: int  # how many were stored before this step
    choice: Choice


class Run(NamedTuple):
    outputs: np.ndarray  # (T, 2 H) = [h_t, s_t]
    steps: list[Step]
    state: State  # after the last step
    begun: State


# ------------------------------------------------------------------------------------------------- the sparse read


def choose(a, k_top, released=False):
    """The choice by scores a (N,)."""
    a = np.asarray(a)
    if len(a) == 0 or k_top == 0:
        return Choice("none", np.zeros(0, int), np.zeros(0, a.dtype))
    if k_top is None or len(a) <= k_top:
        e = np.exp(a - a.max())
        return Choice("raw" if released else "softmax", np.arange(len(a)), a if released else e / e.sum())
    order = np.argsort(-a, kind="stable")
    kept, eps = order[:k_top], a.dtype.type(RELEASED_EPS if released else 0)
    threshold = order[k_top - 1] if released else order[k_top]
    u = np.maximum(a[kept] - (a[threshold] + eps), 0)
    total = u.sum() + eps
    if total == 0:
        return Choice("uniform", kept, np.full(k_top, 1 / a.dtype.type(k_top)))
    return Choice("gap", kept, u / total, threshold, total)


def choose_gradient(choice, g, count):
    """d_a (count,) from g_i = d_value . m_i over those kept."""
    w, d_a = choice.weights, np.zeros(count, g.dtype)
    if choice.kind == "raw":
        d_a[choice.kept] = g
    elif choice.kind == "softmax":
        d_a[choice.kept] = w * (g - w @ g)
    elif choice.kind == "gap":
        d_u = np.where(w > 0, (g - w @ g) / choice.total, 0)
        d_a[choice.kept] = d_u
        d_a[choice.threshold] -= d_u.sum()
    return d_a


class Read(NamedTuple):
    value: np.ndarray  # (d,)
    choice: Choice


def scores_of(query, memory, score, w1=None, w2=None, w3=None, weight=None, keys=None):
    if score == "additive":
        keys = memory @ w1.T if keys is None else keys
        return np.tanh(keys + w2 @ query) @ w3
    return memory @ query if score == "dot" else memory @ (weight.T @ query)


def read(query, memory, *, k_top, score="additive", length=None, **parameters):
    """One query (e,), memories (N, d), of which only the first `length` count."""
    some = slice(length)
    given = {k: v[some] if k == "keys" else v for k, v in parameters.items()}
    choice = choose(scores_of(query, memory[some], score, **given), k_top)
    return Read(choice.weights @ memory[choice.kept], choice)


def read_gradients(query, memory, d_value, *, k_top, score="additive", length=None, **parameters):
    """Gradients of d_value . value by name; of keys instead of w1 where keys were given."""
    N = len(memory[:length])
    choice = read(query, memory, k_top=k_top, score=score, length=length, **parameters).choice
    d = {name: np.zeros_like(a) for name, a in {"query": query, "memory": memory, **parameters}.items()}
    for i, w in zip(choice.kept, choice.weights, strict=True):
        d["memory"][i] += w * d_value
    d_a = choose_gradient(choice, memory[choice.kept] @ d_value, N)
    p = parameters
    for i in range(N):
        m = memory[i]
        if score == "dot":
            d["query"] += d_a[i] * m
            d["memory"][i] += d_a[i] * query
        elif score == "bilinear":
            d["query"] += d_a[i] * (p["weight"] @ m)
            d["memory"][i] += d_a[i] * (p["weight"].T @ query)
            d["weight"] += d_a[i] * np.outer(query, m)
        else:
            key = p["keys"][i] if "keys" in p else p["w1"] @ m
            t = np.tanh(key + p["w2"] @ query)
            inner = d_a[i] * p["w3"] * (1 - t * t)
            d["w3"] += d_a[i] * t
            d["w2"] += np.outer(inner, query)
            d["query"] += p["w2"].T @ inner
            if "keys" in p:
                d["keys"][i] += inner
            else:
                d["w1"] += np.outer(inner, m)
                d["memory"][i] += p["w1"].T @ inner
    return d


# ------------------------------------------------------------------------------------------------------- cells


def sigmoid(x):
    return (1 + np.tanh(x / 2)) / 2


def lstm(a, b, carry):
    """a = W_ih x + b_ih, b = W_hh h + b_hh -> hhat, carry, what is kept."""
    i, f, g, o = np.split(a + b, 4)
    i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
    after = f * carry + i * g
    return o * np.tanh(after), after, (i, f, g, o, carry, after)


def lstm_gradient(saved, d_hhat, d_carry):
    """-> d_a, d_b, d_carry of the step before."""
    i, f, g, o, before, after = saved
    t = np.tanh(after)
    d_carry = d_carry + d_hhat * o * (1 - t * t)
    d = [d_carry * g * i * (1 - i), d_carry * before * f * (1 - f), d_carry * i * (1 - g * g), d_hhat * t * o * (1 - o)]
    return np.concatenate(d), np.concatenate(d), d_carry * f


def gru(a, b, carry):
    a_r, a_z, a_n = np.split(a, 3)
    b_r, b_z, b_n = np.split(b, 3)
    r, z = sigmoid(a_r + b_r), sigmoid(a_z + b_z)
    n = np.tanh(a_n + r * b_n)
    hhat = (1 - z) * n + z * carry
    return hhat, hhat, (r, z, n, b_n, carry)


def gru_gradient(saved, d_hhat, d_carry):
    r, z, n, b_n, before = saved
    d = d_hhat + d_carry
    d_n = d * (1 - z) * (1 - n * n)
    d_z, d_r = d * (before - n) * z * (1 - z), d_n * b_n * r * (1 - r)
    return np.concatenate([d_r, d_z, d_n]), np.concatenate([d_r, d_z, d_n * r]), d * z


CELLS = {"lstm": (lstm, lstm_gradient), "gru": (gru, gru_gradient)}


# -------------------------------------------------------------------------------------------------- the recurrence


def first_of_window(t, how):
    """Are the recurrent edges into step t constants?"""
    return how.k_trunc is not None and (t if how.released else t - 1) % how.k_trunc == 0


def key_of(m, p, how):
    """What is stored with a microstate."""
    if how.released:
        return p["w3"][len(m) :] @ np.tanh(m)
    return p["w1"] @ m if "w1" in p else np.zeros(0, m.dtype)


def start(p, how, kind):
    """The state before the first step."""
    zero = np.zeros(p["weight_hh"].shape[1], kind)
    memory = (Microstate(0, zero, zero.sum()),) if how.released and "w3" in p else ()
    return State(0, zero, zero, memory)


def readable(count, how):
    return 0 if how.max_memories is None else max(0, count - how.max_memories)


def run(x, p, how, state=None, frozen=None):
    """One row: x (T, D), parameters by name."""
    H, kind = p["weight_hh"].shape[1], np.result_type(x, p["weight_hh"])
    begun = start(p, how, kind) if state is None else state
    t, h, carry, memory = begun.time, begun.hidden, begun.carry, list(begun.memory)
    steps, outputs = [], np.zeros((len(x), 2 * H), kind)
    for n, x_t in enumerate(x):
        t += 1
        if frozen is not None and n > 0 and first_of_window(t, how):
            h, carry = frozen.steps[n - 1].h, frozen.steps[n - 1].carry
        a, b = p["weight_ih"] @ x_t + p["bias_ih"], p["weight_hh"] @ h + p["bias_hh"]
        before = h
        hhat, carry, saved = CELLS[how.cell][0](a, b, carry)
        first = readable(len(memory), how)
        choice = choose(scores(hhat, memory[first:], p, how), how.k_top, how.released)
        values = np.array([m.value for m in memory[first:]], kind).reshape(-1, H)
        s = choice.weights @ values[choice.kept]
        h = hhat + s
        steps.append(Step(x_t, before, saved, hhat, carry, h, first, len(memory), choice))
        outputs[n] = np.concatenate([h, s])
        if t % how.k_att == 0:
            held = h if frozen is None or how.reminders else frozen.steps[n].h
            memory.append(Microstate(t, held, key_of(held, p, how)))
    return Run(outputs, steps, State(t, h, carry, tuple(memory)), begun)


def scores(hhat, memory, p, how):
    if how.k_top == 0 or not memory:
        return np.zeros(0, hhat.dtype)
    keys = np.array([m.key for m in memory], hhat.dtype)
    if how.released:
        return p["w3"][: len(hhat)] @ np.tanh(hhat) + keys
    return np.tanh(keys + p["w2"] @ hhat) @ p["w3"]


def score_gradient(step, d_a, memory, p, how, d, d_keys):
    """Gradients of the scores: adds to d and d_keys (a list over the memory), returns d_hhat."""
    H = len(step.hhat)
    d_hhat = np.zeros_like(step.hhat)
    for j, d_s in zip(range(step.first, step.count), d_a, strict=True):
        if how.released:
            t = np.tanh(step.hhat)
            d["w3"][:H] += d_s * t
            d_hhat += d_s * p["w3"][:H] * (1 - t * t)
            d_keys[j] = d_keys[j] + d_s
        else:
            t = np.tanh(memory[j].key + p["w2"] @ step.hhat)
            inner = d_s * p["w3"] * (1 - t * t)
            d["w3"] += d_s * t
            d["w2"] += np.outer(inner, step.hhat)
            d_hhat += p["w2"].T @ inner
            d_keys[j] = d_keys[j] + inner
    return d_hhat


def key_gradient(m, d_key, p, how, d):
    """The gradient of what is stored with m: adds to d, returns d_m."""
    if "w3" not in p:
        return np.zeros_like(m)
    if how.released:
        H, t = len(m), np.tanh(m)
        d["w3"][H:] += d_key * t
        return d_key * p["w3"][H:] * (1 - t * t)
    d["w1"] += np.outer(d_key, m)
    return p["w1"].T @ d_key


def run_gradients(done, p, how, d_outputs):
    """Gradients of sum(d_outputs * outputs): x and the parameters, by name."""
    kind, (T, H) = done.outputs.dtype, (len(done.steps), done.outputs.shape[1] // 2)
    d = {name: np.zeros(a.shape, kind) for name, a in p.items()}
    memory = done.state.memory
    d_values, d_keys = [np.zeros(H, kind) for _ in memory], [np.zeros_like(m.key) for m in memory]
    d_x = np.zeros((T, p["weight_ih"].shape[1]), kind)
    d_h, d_carry = np.zeros(H, kind), np.zeros(H, kind)
    j = len(memory) - 1
    for n in reversed(range(T)):
        step, t = done.steps[n], done.begun.time + n + 1
        d_h = d_h + d_outputs[n, :H]
        if t % how.k_att == 0:
            d_m = d_values[j] + key_gradient(memory[j].value, d_keys[j], p, how, d)
            d_h = d_h + (d_m if how.reminders else 0)
            j -= 1
        d_s, c = d_h + d_outputs[n, H:], step.choice
        values = np.array([m.value for m in memory[step.first : step.count]], kind).reshape(-1, H)
        for i, w in zip(c.kept, c.weights, strict=True):
            d_values[step.first + i] = d_values[step.first + i] + w * d_s
        d_hhat = d_h
        if c.kind != "none":
            d_a = choose_gradient(c, values[c.kept] @ d_s, step.count - step.first)
            d_hhat = d_h + score_gradient(step, d_a, memory, p, how, d, d_keys)
        d_a, d_b, d_carry = CELLS[how.cell][1](step.saved, d_hhat, d_carry)
        d["weight_ih"] += np.outer(d_a, step.x)
        d["weight_hh"] += np.outer(d_b, step.before)
        d["bias_ih"] += d_a
        d["bias_hh"] += d_b
        d_x[n] = p["weight_ih"].T @ d_a
        d_h = p["weight_hh"].T @ d_b
        if first_of_window(t, how):
            d_h, d_carry = np.zeros_like(d_h), np.zeros_like(d_carry)
    return {"x": d_x, **d}


# ------------------------------------------------------------------------------------------------------ batches


def forward(x, p, how):
    """x (B, T, D) -> outputs (B, T, 2 H), the runs of the rows."""
    runs = [run(row, p, how) for row in x]
    return np.array([r.outputs for r in runs]), runs


def backward(runs, p, how, d_outputs):
    """Gradients of sum(d_outputs * outputs), x (B, T, D) and the parameters by name."""
    rows = [run_gradients(r, p, how, d) for r, d in zip(runs, d_outputs, strict=True)]
    return {name: np.array([r[name] for r in rows]) if name == "x" else sum(r[name] for r in rows) for name in rows[0]}


def reminders(done):
    """(t, t_i, weight) of all weights that are not 0, in the order of time and place."""
    memory = done.state.memory
    return [
        (done.begun.time + n + 1, memory[step.first + i].time, w)
        for n, step in enumerate(done.steps)
        for i, w in zip(step.choice.kept, step.choice.weights, strict=True)
        if w != 0
    ]
