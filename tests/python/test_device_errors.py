"""Arrays of a CUDA device where there is none: every op says in one sentence what is missing. What a device computes is tested in
tests/cuda."""

from __future__ import annotations

import numpy as np
import pytest
import recollect as rc
from recollect import _backend, _device

ON_DEVICE = "is on a CUDA device"


class Fake:
    """As much of an array on card 0 as can be told without one."""

    def __init__(self, *shape, dtype="float32", card=0, kind=2, requires_grad=False):
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(dtype)
        self.requires_grad = requires_grad
        self.device = (kind, card)

    def __dlpack_device__(self):
        return self.device

    def __dlpack__(self, *, stream=None):
        return ("capsule", self.shape, stream)

    def __array__(self, *args, **kwargs):
        raise AssertionError("a device array was read")

    def reshape(self, *shape):
        sizes = shape[0] if isinstance(shape[0], tuple) else shape
        return Fake(*sizes, dtype=self.dtype)

    def __getitem__(self, index):
        return Fake(*np.empty(self.shape, np.int8)[index].shape, dtype=self.dtype)

    def __array_namespace__(self):
        return self

    def from_dlpack(self, owned):
        return owned


q, k, v, beta = Fake(2, 5, 4), Fake(2, 7, 4), Fake(2, 7, 3), Fake(2, 5)
HERE = np.zeros((2, 7, 4), np.float32)

SUPPORTED = {
    "HopfieldMemory.from_patterns": lambda: rc.hopfield.HopfieldMemory.from_patterns(Fake(7, 4)),
    "attention.attend": lambda: rc.attention.attend(q, k, v),
    "hopfield.retrieve": lambda: rc.hopfield.retrieve(q, k, beta=1.0),
    "backtracking.sparse_read": lambda: rc.backtracking.sparse_read(q, k, k_top=2, score="dot"),
    "hopfield.energy": lambda: rc.hopfield.energy(q, k, beta=1.0),
    "fastweight.linear_attention": lambda: rc.fastweight.linear_attention(q, q, q),
    "fastweight.delta_rule": lambda: rc.fastweight.delta_rule(q, q, q, beta),
    "fastweight.gated_delta_rule": lambda: rc.fastweight.gated_delta_rule(q, q, q, beta, decay=beta),
    "fastweight.kimi_delta_attention": lambda: rc.fastweight.kimi_delta_attention(q, q, q, beta, decay=q),
    "fastweight.fast_weight": lambda: rc.vjp(rc.fastweight.fast_weight, q, q, q, q, q),
}


GRADIENTS = {
    "attention.attend": lambda: rc.vjp(rc.attention.attend, q, k, v),
    "hopfield.retrieve": lambda: rc.vjp(rc.hopfield.retrieve, q, k, beta=1.0),
    "hopfield.energy": lambda: rc.vjp(rc.hopfield.energy, q, k, beta=1.0),
}


def no_device() -> str:
    if _backend.place() is None:
        return "this build of recollect has no CUDA backend"
    if _backend.load().cards()[0]:
        pytest.skip("there is a device here")
    return "CUDA does not answer: "


@pytest.mark.parametrize(("op", "call"), [*SUPPORTED.items(), *GRADIENTS.items()])
def test_without_a_device_an_op_says_what_is_missing(op, call):
    with pytest.raises(RuntimeError) as caught:
        call()
    assert str(caught.value).startswith(f"{op}: ") and ON_DEVICE in str(caught.value)
    assert no_device() in str(caught.value)


REFUSED = {
    "hopfield.nearest": lambda: rc.hopfield.nearest(q, k, beta=1.0),
    "attention.point": lambda: rc.attention.point(q, k),
    "fastweight.comba": lambda: rc.vjp(rc.fastweight.comba, q, q, q, beta, q),
    "fastweight.linear_attention": lambda: rc.vjp(rc.fastweight.linear_attention, q, q, q, causal=False),
    "fastweight.rwkv7": lambda: rc.fastweight.rwkv7(q, q, q, q, q),
}


@pytest.mark.parametrize("op", REFUSED)
def test_what_has_no_kernel_is_refused_by_name(op):
    with pytest.raises(TypeError) as caught:
        REFUSED[op]()
    assert str(caught.value).startswith(f"{op}: ") and ON_DEVICE in str(caught.value)
    assert "memory of this process" in str(caught.value)


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (
            lambda: rc.attention.attend(q, HERE, v),
            TypeError,
            "key (ndarray) is not on a CUDA device; expected cuda:0, as query",
        ),
        (
            lambda: rc.attention.attend(HERE, k, v),
            TypeError,
            "query (ndarray) is not on a CUDA device; expected cuda:0, as key",
        ),
        (
            lambda: rc.attention.attend(q, Fake(2, 7, 4, card=1), v),
            TypeError,
            "key is on cuda:1; expected cuda:0, as query",
        ),
        (
            lambda: rc.attention.attend(q, k, v, separation="sparsemax"),
            ValueError,
            "separation is 'sparsemax'; expected 'softmax'",
        ),
        (
            lambda: rc.backtracking.sparse_read(q, HERE, k_top=2, score="dot"),
            TypeError,
            "memory (ndarray) is not on a CUDA device; expected cuda:0, as query",
        ),
        (lambda: rc.attention.attend(q, k, v, score="cosine"), ValueError, "score is 'cosine'; expected 'dot'"),
        (
            lambda: rc.attention.attend(Fake(2, 5, 4, requires_grad=True), k, v),
            TypeError,
            "query is a tensor that requires grad",
        ),
        (
            lambda: rc.attention.attend(q, k, v, stream="0"),
            TypeError,
            "stream is '0'; expected the handle of a CUDA stream",
        ),
        (
            lambda: rc.hopfield.retrieve(q, k, beta=1.0, tol=-1),
            ValueError,
            "tol is -1.0; expected a number of at least 0",
        ),
        (lambda: rc.hopfield.retrieve(q, k, beta=1.0, steps=0), ValueError, "steps is 0; expected at least 1, or None"),
        (
            lambda: rc.vjp(rc.hopfield.retrieve, q, k, beta=1.0, return_info=True),
            ValueError,
            "return_info is True; expected False",
        ),
        (
            lambda: rc.vjp(rc.hopfield.retrieve, q, k, beta=1.0, steps=None),
            ValueError,
            "steps is None; expected a whole number in vjp on a CUDA device so far",
        ),
        (
            lambda: rc.vjp(rc.hopfield.retrieve, q, k, beta=1.0, tol="small"),
            TypeError,
            "tol is 'small'; expected a number or None",
        ),
        (
            lambda: rc.vjp(rc.hopfield.energy, q, k, beta=1.0, separation="sparsemax"),
            ValueError,
            "separation is 'sparsemax'; expected 'softmax'",
        ),
        (lambda: rc.vjp(rc.attention.attend, q, k, v, score="cosine"), ValueError, "score is 'cosine'; expected 'dot'"),
        (
            lambda: rc.vjp(rc.hopfield.energy, HERE, HERE, beta=1.0, stream=3),
            ValueError,
            "hopfield.energy: stream is given, but no array is on a CUDA device",
        ),
        (
            lambda: rc.hopfield.retrieve(HERE, HERE, beta=1.0, stream=3),
            ValueError,
            "stream is given, but no array is on a CUDA device",
        ),
        (lambda: rc.fastweight.delta_rule(q, HERE[:, :5], q, beta), TypeError, "key (ndarray) is not on a CUDA device"),
        (
            lambda: rc.fastweight.delta_rule(*[HERE] * 3, HERE[..., 0], stream=3),
            ValueError,
            "stream is given, but no array",
        ),
        (
            lambda: rc.vjp(rc.fastweight.delta_rule, *[HERE] * 3, HERE[..., 0], stream=3),
            ValueError,
            "stream is given, but no array",
        ),
    ],
)
def test_wrong_calls_get_one_sentence(call, kind, sentence):
    with pytest.raises(kind) as caught:
        call()
    assert sentence in str(caught.value)


def test_memory_of_the_process_is_no_device():
    torch = pytest.importorskip("torch")
    assert not _device.holds(torch.ones(2)) and not _device.holds(HERE) and not _device.holds(Fake(2, kind=3))
    assert _device.holds(Fake(2, kind=13))


class Recorder:
    """Stands for the compiled module and writes down what it is given."""

    def __init__(self):
        self.calls = []

    def cards(self):
        return 1, ""

    def empty(self, card, shape, dtype):
        return Fake(*shape, dtype=dtype, card=card)

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.fixture
def module(monkeypatch):
    recorder = Recorder()
    monkeypatch.setattr(_device, "backend", lambda op, name: recorder)
    return recorder


def shapes(values):
    return [value[1] if isinstance(value, tuple) and value[:1] == ("capsule",) else value for value in values]


def test_attend_hands_over_grouped_heads_scale_and_stream(module):
    query, key = Fake(3, 6, 5, 4), Fake(3, 2, 7, 4)
    out, lse = rc.attention.attend(query, key, key, causal=True, return_lse=True, stream=99)
    (name, args, _), *more = module.calls
    assert name == "attention_attend" and not more
    assert args[0] == (0, 99) and args[1][2] == 99
    assert shapes(args[1:4]) == [(3, 2, 3, 5, 4), (3, 2, 1, 7, 4), (3, 2, 1, 7, 4)]
    assert args[4] == (0.5, None) and args[7:9] == ("bottom-right", "softmax")
    assert shapes(args[9:]) == [(3, 2, 3, 5, 4), (3, 2, 3, 5)]
    assert out.shape == (3, 6, 5, 4) and lse.shape == (3, 6, 5)


def test_attend_to_the_largest_scores_hands_over_their_number(module):
    for asked in ({"top_k": 3}, {"separation": ("top_k_softmax", 3)}):
        rc.attention.attend(q, k, v, **asked)
        (_, args, _) = module.calls[-1]
        assert args[8] == ("top_k_softmax", 3.0)
    with pytest.raises(ValueError, match="attention.attend: top_k is 8; expected a number from 1 to m=7"):
        rc.attention.attend(q, k, v, top_k=8)


def test_sparse_reads_hand_over_what_is_compared(module):
    read = rc.backtracking.sparse_read(q, k, k_top=3, score="dot", stream=7)
    (name, args, _) = module.calls[-1]
    assert name == "backtracking_sparse_read" and args[0] == (0, 7)
    assert shapes(args[1:]) == [(2, 5, 4), (2, 7, 4), (2, 7, 4), None, None, (2, 5, 4), (2, 5, 3), (2, 5, 3)]
    assert [part.dtype for part in read] == ["float32", "int64", "float32"]


def test_retrieve_hands_over_what_it_got(module):
    out = rc.hopfield.retrieve(q, k, beta=2, values=v, steps=3)
    (name, args, _), *_ = module.calls
    assert name == "hopfield_retrieve" and out.shape == (2, 5, 3)
    assert args[0] == (0, 0) and args[1][2] == 1  # to DLPack the default stream is 1
    assert args[4] == (2.0, None) and args[6:9] == ("softmax", 3, -1.0)
    rc.hopfield.retrieve(q, k, beta=2, steps=None)
    assert module.calls[-1][1][6:9] == ("softmax", 1000, 1e-4)


def test_a_sink_goes_with_its_heads(module):
    query, key = Fake(3, 6, 5, 4), Fake(3, 2, 7, 4)
    rc.attention.attend(query, key, key, sink=Fake(6))
    number, own = module.calls[-1][2]["sink"]
    assert shapes([own]) == [(2, 3)]
    _, pullback = rc.vjp(rc.attention.attend, query, key, key, sink=0.5)
    d = pullback(Fake(3, 6, 5, 4))
    assert d._fields == ("query", "key", "value", "sink") and d.sink.shape == ()
    assert module.calls[-1][2]["sink"] == (0.5, None) and shapes([module.calls[-1][2]["d_sink"]]) == [()]
    with pytest.raises(
        TypeError, match="attention.attend: sink is a ndarray; expected a number, or an array on cuda:0"
    ):
        rc.attention.attend(query, key, key, sink=HERE)
    with pytest.raises(ValueError, match="sink is given beside top_k; expected None in vjp on a CUDA device so far"):
        rc.vjp(rc.attention.attend, query, key, key, sink=0.5, top_k=2)


def test_a_pullback_hands_over_what_was_kept(module):
    query, key, scale = Fake(3, 6, 5, 4), Fake(3, 2, 7, 4), Fake(6)
    _, pullback = rc.vjp(rc.attention.attend, query, key, key, scale=scale, bias=Fake(7), stream=99)
    d = pullback(Fake(3, 6, 5, 4))
    assert d._fields == ("query", "key", "value", "scale", "bias") and d.scale.shape == (6,)
    (_, forward, _), (name, args, kwargs) = module.calls
    assert name == "attention_attend_backward" and args[0] == (0, 99) and args[:9][5:] == forward[:9][5:]
    assert shapes(args[9:]) == [(3, 2, 3, 5), (3, 2, 3, 5), (3, 2, 3, 5, 4), (3, 2, 3, 5, 4)]
    assert {n: a[1] for n, a in kwargs.items()} == {
        "d_query": (3, 2, 3, 5, 4),
        "d_key": (3, 2, 1, 7, 4),
        "d_value": (3, 2, 1, 7, 4),
        "d_scale": (2, 3),
        "d_bias": (7,),
    }
    _, pullback = rc.vjp(rc.hopfield.retrieve, q, k, beta=1.0, values=v, steps=2)
    d = pullback(Fake(2, 5, 3))
    assert d._fields == ("state", "patterns", "beta", "values") and d.beta.shape == ()
    name, args, _ = module.calls[-1]
    assert name == "hopfield_retrieve_backward" and args[7:9] == (2, -1.0)
    assert [shapes(step) for step in args[9]] == [[(2, 5, 4), (2, 5), (2, 5)], [None, (2, 5), (2, 5)]]


def test_fast_weights_hand_over_rule_map_and_state(module):
    state = Fake(2, 4, 3)
    wide = Fake(2, 5, 3)
    result = rc.fastweight.delta_rule(
        q, q, wide, beta, decay=beta, normalize="l2", state=state, out_state=state, return_state=True, scale=0.5
    )
    (name, args, kwargs), *_ = module.calls
    assert name == "fast_weight" and result.out.shape == (2, 5, 3) and result.state is state
    assert kwargs["feature_map"] == "identity" and kwargs["norm"] == "l2" and kwargs["scale"] == (0.5, None)
    assert kwargs["options"][:4] == ("fastweight.delta_rule", "delta", "none", False)
    assert shapes([kwargs["state"], kwargs["out_state"], kwargs["decay"]]) == [(2, 4, 3), (2, 4, 3), (2, 5)]
    assert kwargs["channel_decay"] is None


def test_fast_weight_gradients_hand_over_cotangents_and_room(module):
    out, pullback = rc.vjp(
        rc.fastweight.delta_rule, q, q, q, beta, log_decay=q, scale=0.5, return_state=True, chunk=16, stream=7
    )
    d_query = pullback((Fake(2, 5, 4), Fake(2, 4, 4)))
    (_, _, forward), (name, args, kwargs) = module.calls
    assert name == "fast_weight_backward" and args == ((0, 7),) and kwargs["options"] == forward["options"]
    assert shapes([kwargs["query"], kwargs["channel_decay"], kwargs["d_out"]]) == [(2, 5, 4)] * 3
    assert shapes([kwargs["d_out_state"], kwargs["d_scale"], kwargs["d_beta"]]) == [(2, 4, 4), (), (2, 5)]
    assert out.state.shape == (2, 4, 4) and "d_state" not in kwargs
    assert d_query._fields == ("query", "key", "value", "beta", "log_decay", "scale")
    assert [gradient.shape for gradient in d_query] == [(2, 5, 4)] * 3 + [(2, 5), (2, 5, 4), ()]


@pytest.mark.parametrize(
    ("d", "sentence"),
    [
        (None, "d_out is a NoneType; expected an array on the CUDA device of the others"),
        (HERE, "d_out (ndarray) is not on a CUDA device; expected cuda:0, as query"),
    ],
)
def test_cotangents_are_on_the_device_too(module, d, sentence):
    _, pullback = rc.vjp(rc.fastweight.linear_attention, q, q, q)
    with pytest.raises(TypeError) as caught:
        pullback(d)
    assert str(caught.value) == f"fastweight.linear_attention: {sentence}"


def test_an_unusable_output_is_refused(module):
    for out, kind in ((Fake(2, 5, 2), ValueError), (Fake(2, 5, 3, dtype="float16"), TypeError), (HERE, TypeError)):
        with pytest.raises(kind, match="attention.attend: out "):
            rc.attention.attend(q, k, v, out=out)


def test_the_module_takes_arrays_of_a_device_alone():
    if _backend.place() is None:
        pytest.skip("not built")
    cuda = _backend.load()
    x = np.zeros((3, 4), np.float32)
    sentence = "attention.attend: query is not on a CUDA device; expected cuda:0"
    with pytest.raises(TypeError, match=sentence):
        cuda.attention_attend((0, 0), x, x, x, (1.0, x), None, None, "none", "softmax", x, None, None, None)
    with pytest.raises(TypeError, match="hopfield.retrieve: state is not on a CUDA device"):
        cuda.hopfield_retrieve((0, 0), x, x, None, (1.0, None), None, "softmax", 1, -1.0, x)
    with pytest.raises(TypeError, match="fastweight.delta_rule: query is not on a CUDA device"):
        options = ("fastweight.delta_rule", "delta", "none", False, 64)
        given = dict.fromkeys(("key", "value", "beta", "a", "b", "decay", "channel_decay", "state"))
        cuda.fast_weight((0, 0), x, **given, scale=(1.0, None), feature_map="identity", norm="none", options=options)
    with pytest.raises(TypeError, match="attention.attend: query is not on a CUDA device"):
        how = ((1.0, None), None, None, "none", "softmax")
        cuda.attention_attend_backward((0, 0), x, x, x, *how, x[:, 0], x[:, 0], x, x, x, x, x)
    with pytest.raises(TypeError, match="HopfieldMemory.add: patterns is not on a CUDA device"):
        cuda.store((0, 0), "HopfieldMemory.add", "patterns", x, x, 0, False)
    with pytest.raises(TypeError, match="hopfield.retrieve: state is not on a CUDA device"):
        cuda.retrieve_stored((0, 0), x, x, None, (3, 4, False), 1.0, 1, -1.0, x)
    for call in (lambda: cuda.bank_line((0, 0), x, True), lambda: cuda.copy((0, 0), x, x)):
        with pytest.raises(TypeError, match="is not on a CUDA device; expected cuda:0"):
            call()
