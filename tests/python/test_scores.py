"""Scores of attention.attend: values and every gradient against the oracle, finite differences, and what holds for any score."""

import numpy as np
import pytest
import recollect as rc

from tests.reference import scores as ref
from tests.reference import separated

SEPARATIONS = ["softmax", "sparsemax", ("top_k_softmax", 3), "linear"]
KINDS = ["dot", "cosine", "gaussian", "bilinear", "additive"]
A = 5


def make(rng, kind, dq=4, dk=4, lead=(), dtype=np.float64):
    """The score for the library and for the oracle."""
    if kind == "bilinear":
        w = rng.standard_normal((*lead, dq, dk)).astype(dtype)
        return rc.attention.Bilinear(w), ref.Bilinear(w)
    if kind == "additive":
        arrays = [rng.standard_normal((*lead, *s)).astype(dtype) for s in ((A, dk), (A, dq), (A,))]
        return rc.attention.Additive(*arrays), ref.Additive(*arrays)
    return kind, kind


def operands(rng, kind, n=6, m=9, e=3, batch=(), dtype=np.float64):
    dk = 3 if kind in ("bilinear", "additive") else 4
    shapes = {"query": (*batch, n, 4), "key": (*batch, m, dk), "value": (*batch, m, e)}
    return {k: rng.standard_normal(s).astype(dtype) for k, s in shapes.items()}


def options(rng, kind, n=6, m=9):
    mask = rng.random((n, m)) < 0.8
    mask[1] = False
    mask[:, 4] = False
    bias = rng.standard_normal((n, m))
    bias[2, 3] = -np.inf
    scale = {} if kind == "additive" else {"scale": 0.7}
    return [
        scale,
        scale | {"mask": mask, "causal": True},
        scale | {"bias": bias, "causal": "top-left"},
        scale | {"bias": bias[0]},
    ]


def oracle_scale(kind, o):
    """What scale=None is: the oracle always takes 1/sqrt(d)."""
    return 0.5 if kind in ("dot", "gaussian") else 1.0


def wide(o):
    return {k: a.astype(np.float64) for k, a in o.items()}


def names(score):
    return {"key_weight": "weight"} | {n: n for n in ("weight", "query_weight", "vector")}


@pytest.mark.parametrize("separation", SEPARATIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_against_the_oracle(rng, dtype, kind, separation):
    tol = 2e-4 if dtype == np.float32 else 1e-11
    for batch, lead in (((), ()), ((2, 3), ()), ((2, 3), (3,))):
        o = operands(rng, kind, batch=batch, dtype=dtype)
        score, judge = make(rng, kind, 4, o["key"].shape[-1], lead, dtype)
        for more in options(rng, kind):
            own = {k: a.astype(dtype) if k == "bias" else a for k, a in more.items()}
            known = {"scale": 1.0} | more if kind == "additive" else more
            out, pullback = rc.vjp(rc.attention.attend, **o, score=score, separation=separation, **own)
            told = rc.attention.attend(**o, score=score, separation=separation, return_lse=True, **own)
            expected = separated.attend(**wide(o), separation=separation, score=judge, **known)
            np.testing.assert_array_equal(told.out, out)
            assert out.dtype == dtype
            np.testing.assert_allclose(out, expected.out, atol=tol)
            np.testing.assert_allclose(told.lse, expected.lse, atol=10 * tol)
            d_out = rng.standard_normal(out.shape).astype(dtype)
            got = pullback(d_out)
            truth = separated.attend_gradients(
                **wide(o), d_out=d_out.astype(np.float64), separation=separation, score=judge, **known
            )
            for name in got._fields:
                if name == "score":
                    continue
                assert getattr(got, name).dtype == dtype
                np.testing.assert_allclose(getattr(got, name), getattr(truth, name), atol=50 * tol, err_msg=name)
            if kind in ("bilinear", "additive"):
                assert type(got.score) is type(score)
                for name in type(score).__dataclass_fields__:
                    theirs = truth.parameters[names(score)[name] if kind == "additive" else name]
                    np.testing.assert_allclose(getattr(got.score, name), theirs, atol=100 * tol, err_msg=name)
            else:
                assert "score" not in got._fields


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_scale(rng, kind):
    o = operands(rng, kind)
    score, judge = make(rng, kind, 4, o["key"].shape[-1])
    expected = separated.attend(**o, score=judge, scale=oracle_scale(kind, o)).out
    np.testing.assert_allclose(rc.attention.attend(**o, score=score), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_heads(rng, kind):
    o = operands(rng, kind, batch=(2, 4))
    o["key"], o["value"] = o["key"][:, :2], o["value"][:, :2]
    for lead in ((), (4, 1)) if kind == "bilinear" else ((),):
        score, judge = make(rng, kind, 4, o["key"].shape[-1], lead and lead[:1])
        known = {"scale": oracle_scale(kind, o)}
        out, pullback = rc.vjp(rc.attention.attend, **o, score=score, causal=True)
        np.testing.assert_allclose(out, separated.attend(**o, score=judge, causal=True, **known).out, atol=1e-12)
        d_out = rng.standard_normal(out.shape)
        got, truth = pullback(d_out), separated.attend_gradients(**o, d_out=d_out, score=judge, causal=True, **known)
        for name in ("query", "key", "value"):
            np.testing.assert_allclose(getattr(got, name), getattr(truth, name), atol=1e-11, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sink(rng, kind):
    """One more key that reads zeros: the same as one more column of scores with a value of zeros."""
    o = operands(rng, kind)
    score, judge = make(rng, kind, 4, o["key"].shape[-1])
    lse = rc.attention.attend(**o, score=score, return_lse=True).lse
    out, pullback = rc.vjp(rc.attention.attend, **o, score=score, sink=0.3)
    plain = rc.attention.attend(**o, score=score)
    np.testing.assert_allclose(out, plain / (1 + np.exp(0.3 - lse))[:, None], atol=1e-12)
    h = 1e-5
    up, down = (rc.attention.attend(**o, score=score, sink=0.3 + s * h).sum() for s in (1, -1))
    np.testing.assert_allclose(pullback(np.ones_like(out)).sink, (up - down) / (2 * h), atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_finite_differences(rng, kind):
    o = operands(rng, kind)
    score, _ = make(rng, kind, 4, o["key"].shape[-1])
    extra = {} if kind == "additive" else {"scale": np.array(0.8)}
    o |= extra | {"bias": rng.standard_normal(9)}
    d_out = rng.standard_normal((6, 3))
    g = rc.vjp(rc.attention.attend, **o, score=score)[1](d_out)
    h = 1e-6

    def value(o, score):
        return (rc.attention.attend(**o, score=score) * d_out).sum()

    for name, a in o.items():
        towards = rng.standard_normal(a.shape)
        up, down = (value(o | {name: a + s * h * towards}, score) for s in (1, -1))
        np.testing.assert_allclose((getattr(g, name) * towards).sum(), (up - down) / (2 * h), rtol=1e-6, atol=1e-8)
    if isinstance(score, str):
        return
    for name in type(score).__dataclass_fields__:
        arrays = {n: getattr(score, n) for n in type(score).__dataclass_fields__}
        towards = rng.standard_normal(arrays[name].shape)
        up, down = (value(o, type(score)(**arrays | {name: arrays[name] + s * h * towards})) for s in (1, -1))
        np.testing.assert_allclose(
            (getattr(g.score, name) * towards).sum(), (up - down) / (2 * h), rtol=1e-6, atol=1e-8
        )


@pytest.mark.parametrize("kind", KINDS)
def test_what_nothing_attends_to_may_hold_anything(rng, dtype, kind):
    o = operands(rng, kind, dtype=dtype)
    score, _ = make(rng, kind, 4, o["key"].shape[-1], dtype=dtype)
    keep = np.ones((6, 9), bool)
    keep[:, [2, 5, 7]] = False
    clean = rc.vjp(rc.attention.attend, **o, score=score, mask=keep)
    d_out = rng.standard_normal(clean[0].shape).astype(dtype)
    expected = clean[1](d_out)
    o["key"][2], o["key"][5], o["key"][7], o["value"][[2, 5, 7]] = np.nan, np.inf, -np.inf, np.nan
    for hide in ({"mask": keep}, {"mask": keep[0]}, {"bias": np.where(keep, 0, -np.inf).astype(dtype)}):
        out, pullback = rc.vjp(rc.attention.attend, **o, score=score, **hide)
        np.testing.assert_allclose(out, clean[0], atol=1e-6)
        got = pullback(d_out)
        for name in ("query", "key", "value"):
            np.testing.assert_allclose(getattr(got, name), getattr(expected, name), atol=1e-5, err_msg=name)
        if not isinstance(score, str):
            for name in type(score).__dataclass_fields__:
                np.testing.assert_allclose(getattr(got.score, name), getattr(expected.score, name), atol=1e-5)


def test_vectors_of_zero_have_cosine_zero_and_no_gradient(rng, dtype):
    o = operands(rng, "cosine", dtype=dtype)
    o["query"][1], o["key"][3] = 0, 0
    out, pullback = rc.vjp(rc.attention.attend, **o, score="cosine")
    np.testing.assert_allclose(out[1], o["value"].mean(0), atol=1e-6)
    g = pullback(np.ones_like(out))
    assert (g.query[1] == 0).all() and (g.key[3] == 0).all() and all(np.isfinite(a).all() for a in g)


def test_cosines_of_any_length(rng, dtype):
    o = operands(rng, "cosine", dtype=dtype)
    expected = rc.attention.attend(**o, score="cosine")
    factor = dtype(1e25)
    long = rc.attention.attend(o["query"] * factor, o["key"] / factor, o["value"], score="cosine")
    np.testing.assert_allclose(long, expected, rtol=1e-5, atol=1e-6)


def test_a_gaussian_score_is_a_dot_score_where_keys_are_equally_long(rng):
    o = operands(rng, "gaussian")
    o["key"] /= np.linalg.norm(o["key"], axis=-1, keepdims=True)
    np.testing.assert_allclose(
        rc.attention.attend(**o, score="gaussian", scale=2.0), rc.attention.attend(**o, scale=2.0), atol=1e-13
    )


def test_half_width_keys(rng):
    for kind in KINDS:
        o = operands(rng, kind, dtype=np.float32)
        score, _ = make(rng, kind, 4, o["key"].shape[-1], dtype=np.float32)
        half = o["key"].astype(np.float16)
        expected = rc.attention.attend(o["query"], half.astype(np.float32), o["value"], score=score)
        got = rc.attention.attend(o["query"], half, o["value"], score=score)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, expected, atol=1e-6)
        rc.vjp(rc.attention.attend, o["query"], half, o["value"], score=score)[1](expected)


@pytest.mark.parametrize("kind", ["cosine", "gaussian", "additive"])
def test_the_same_bits_for_every_number_of_threads_and_any_company(rng, dtype, same_bits, kind):
    o = operands(rng, kind, n=70, m=300, dtype=dtype)
    score, _ = make(rng, kind, 4, o["key"].shape[-1], dtype=dtype)
    found = []
    for count in (1, 3):
        rc.set_num_threads(count)
        out, pullback = rc.vjp(rc.attention.attend, **o, score=score)
        found.append((out, pullback(out)))
    same_bits(found[0][0], found[1][0])
    for a, b in zip(found[0][1][:3], found[1][1][:3], strict=True):
        same_bits(a, b)
    if kind != "additive":  # there up to the rounding of NumPy's products with the weights
        same_bits(rc.attention.attend(o["query"][7:8], o["key"], o["value"], score=score)[0], found[0][0][7])


def test_blocks_do_not_show(rng, monkeypatch):
    """Additive scores are made for some rows at a time."""
    o = operands(rng, "additive", n=40, m=21, batch=(2,))
    score, _ = make(rng, "additive", 4, 3)
    bias = rng.standard_normal((40, 21))
    d_out = rng.standard_normal((2, 40, 3))
    found = []
    for numbers in (1 << 20, 2 * 21 * 7):
        monkeypatch.setattr("recollect._score_blocks.NUMBERS_AT_ONCE", numbers)
        out, pullback = rc.vjp(rc.attention.attend, **o, score=score, bias=bias, causal=True, sink=0.5)
        found.append((out, pullback(d_out)))
    np.testing.assert_allclose(found[0][0], found[1][0], atol=1e-14)
    for name in ("query", "key", "value", "bias", "sink"):
        np.testing.assert_allclose(getattr(found[0][1], name), getattr(found[1][1], name), atol=1e-12)


def test_the_accuracy_of_tanh():
    """One hidden unit, one key: the score is tanh itself."""
    x = np.concatenate([np.linspace(-20, 20, 20001), 10.0 ** np.linspace(-30, 1, 20000), [0.0, np.inf, -np.inf]])
    for dtype in (np.float32, np.float64):
        column, one = x.astype(dtype)[:, None], np.ones((1, 1), dtype)
        score = rc.attention.Additive(0 * one, one, one[0])
        lse = rc.attention.attend(column, one, one, score=score, return_lse=True).lse
        exact = np.tanh(column[:, 0].astype(np.longdouble))
        assert (np.abs(lse - exact) <= 4 * np.spacing(np.abs(exact).astype(dtype))).all()


def test_wrong_calls(rng):
    o = operands(rng, "dot")
    bad = rc.attention.Bilinear(np.ones((3, 4)))
    score, _ = make(rng, "additive", 4, 4)
    for error, words, more in [
        (ValueError, "score is 'euclid'; expected 'dot', 'cosine', 'gaussian'", {"score": "euclid"}),
        (TypeError, "score is 3; expected a name, a Bilinear or an Additive", {"score": 3}),
        (ValueError, r"score.weight has shape \(3, 4\); expected \(..., d_query=4, d_key=4\)", {"score": bad}),
        (TypeError, "score.weight has dtype bool", {"score": rc.attention.Bilinear(np.ones((4, 4), bool))}),
        (ValueError, "scale is given beside an additive score", {"score": score, "scale": 1.0}),
        (
            ValueError,
            r"score.query_weight has shape \(5, 3\); expected \(..., A=5, d_query=4\)",
            {"score": rc.attention.Additive(np.ones((5, 4)), np.ones((5, 3)), np.ones(5))},
        ),
        (
            ValueError,
            r"score.vector has shape \(4,\); expected \(..., A=5\)",
            {"score": rc.attention.Additive(np.ones((5, 4)), np.ones((5, 4)), np.ones(4))},
        ),
        (
            ValueError,
            r"key has shape \(9, 3\); expected \(..., m, d=4\)",
            {"score": "gaussian", "key": o["key"][:, :3]},
        ),
        (
            ValueError,
            "separation is 'sparsemax'; expected 'softmax' or 'top_k_softmax' beside a sink",
            {"score": score, "separation": "sparsemax", "sink": 0.0},
        ),
    ]:
        with pytest.raises(error, match="attention.attend: .*" + words):
            rc.attention.attend(**o | more)
