"""The experiments with fast weights under bench/: they keep what they found, ask what they say, and train with the gradient of their loss."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import recollect as rc

from bench.experiments import bytes_model, capacity, descent, language, replacement, retrieval

SWEEP = [
    "--sizes",
    "5,9",
    "--width",
    "4",
    "--batch",
    "2",
    "--steps",
    "6",
    "--every",
    "3",
    "--judged",
    "3",
    "--seconds",
    "1e6",
]
BYTES = [
    "--width",
    "8",
    "--heads",
    "2",
    "--inner",
    "8",
    "--embedding",
    "4",
    "--batch",
    "3",
    "--chunk",
    "8",
    "--steps",
    "4",
    "--every",
    "2",
]
BYTES += ["--judged", "50", "--window", "6", "--seconds", "1e6"]
CASES = {
    "capacity": (capacity, SWEEP, 8 * 2),
    "replacement": (replacement, SWEEP, 8 * 2),
    "language": (language, BYTES, 3),
}
PAPER = {"capacity": (32, 1e-3), "replacement": (32, 1e-3), "language": (96, 2.5e-4)}


@pytest.fixture
def short_text(monkeypatch):
    codes = np.random.default_rng(0).choice(np.frombuffer(b"the cat sat on a mat. ", np.uint8), 700).astype(np.int64)
    monkeypatch.setattr(language, "text", lambda: codes)
    return codes


@pytest.mark.parametrize("name", CASES)
def test_an_experiment_keeps_table_plot_and_curves(name, tmp_path, capsys, short_text):
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    command, small, models = CASES[name]
    command.main([str(tmp_path / "a"), *small])
    table = capsys.readouterr().out
    assert table.startswith((tmp_path / "a" / "table.txt").read_text())
    assert (tmp_path / "a" / f"{name}.png").stat().st_size > 1000
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "a").glob("*.json")}
    assert len(kept) == models
    for found in kept.values():
        assert found["options"]["seed"] == 0 and 0 < found["steps"] <= 6
        assert all(np.isfinite(row).all() for row in found["curve"]) and found["curve"][-1][0] == found["steps"]
    command.main([str(tmp_path / "a"), *small])  # nothing is trained again: the seconds are the same
    assert capsys.readouterr().out == table
    command.main([str(tmp_path / "b"), "--only", "sum" if name != "capacity" else "FAVOR+ 64", *small])
    for path in (tmp_path / "b").glob("*.json"):
        assert json.loads(path.read_text())["curve"] == kept[path.name]["curve"]


@pytest.mark.parametrize("name", CASES)
def test_the_papers_options(name):
    o = CASES[name][0].options(["x", "--paper"])
    assert (o.batch, o.rate) == PAPER[name]


# ------------------------------------------------------------------------------------------- what is asked


def test_every_key_and_value_once():
    keys, values = capacity.draw(np.random.default_rng(0), 4, 7)
    for rows in (keys, values):
        assert (np.sort(rows, axis=-1) == np.arange(7)).all() and len(np.unique(rows, axis=0)) == 4
    assert (np.take_along_axis(retrieval.last_values(keys, values, 7), keys, -1) == values).all()


def test_keys_that_repeat_have_their_last_value():
    keys, values = replacement.draw(np.random.default_rng(0), 5, 6)
    assert keys.shape == values.shape == (5, 12) and set(np.unique(keys)) == set(np.unique(values)) == set(range(6))
    wanted = retrieval.last_values(keys, values, 6)
    for b in range(5):
        last = dict(zip(keys[b], values[b], strict=True))
        assert [last.get(key, -1) for key in range(6)] == list(wanted[b])
    assert (wanted == -1).any()


def test_chunks_are_contiguous_streams():
    codes = np.arange(1, 36)
    windows, targets = zip(*language.chunks(codes, 2, 6, 3), strict=True)
    assert [t.shape for t in targets] == [(2, 6), (2, 6), (2, 4)] and windows[0].shape == (2, 9)
    assert (np.concatenate(targets, axis=1) == [np.arange(2, 18), np.arange(19, 35)]).all()
    assert (windows[0][:, :3] == 0).all() and (windows[1][:, :3] == windows[0][:, -3:]).all()
    for window, target in zip(windows, targets, strict=True):
        assert (window[:, 4:] == target[:, :-1]).all()


def test_the_text_that_comes_with_python():
    codes = language.text()
    training_part, valid = language.split(codes)
    assert codes.max() < 256 and len(codes) > 200_000 and len(valid) == pytest.approx(len(codes) / 10, abs=1)
    assert (np.concatenate([training_part, valid]) == codes).all()


# ------------------------------------------------------------------------------------------- what losses are compared with


def test_floors():
    pairs = ((64, 80, 0.1), (64, 120, 7 / 30), (128, 200, 0.18), (384, 600, 0.18), (64, 40, 0.0), (np.inf, 9, 0.0))
    for features, size, floor in pairs:
        assert retrieval.rank_floor(features, size) == pytest.approx(floor)
    for length, size, floor in ((20, 20, 0.1082), (100, 100, 0.1148), (40, 20, 0.2010), (200, 100, 0.2096)):
        assert retrieval.average_floor(length, size) == pytest.approx(floor, abs=5e-5)
    assert retrieval.average_floor(1, 5) == 0 and retrieval.chance(4) == 0.375


def test_no_sequence_is_below_the_floor_of_its_features():
    rng = np.random.default_rng(0)
    model = retrieval.Retrieval(12, 4, rng)
    for name, (features, phi) in capacity.memories(SimpleNamespace(width=4)).items():
        for _ in range(5):
            loss = model.loss(capacity.reader(phi, rng), *capacity.draw(rng, 1, 12))[0]
            assert loss >= retrieval.rank_floor(features, 12), name


def test_the_sum_rule_with_orthogonal_keys_has_the_loss_of_the_average():
    keys, values = replacement.draw(np.random.default_rng(0), 4000, 6)
    units = np.eye(6)
    read = rc.fastweight.linear_attention(units, units[keys], units[values], feature_map=None, causal=False)
    wanted = retrieval.last_values(keys, values, 6)
    losses = 0.5 * np.square(read - units[wanted]).sum(axis=-1)[wanted >= 0]
    assert losses.mean() == pytest.approx(retrieval.average_floor(12, 6), abs=4 * losses.std() / np.sqrt(len(losses)))


def test_n_grams_are_interpolated_counts():
    rng = np.random.default_rng(0)
    train, valid = rng.integers(0, 4, 60), rng.integers(0, 4, 20)

    def p(context, x):
        """Of byte x after the tuple of bytes before it."""
        n = len(context)
        lower = p(context[1:], x) if n else 1 / 256
        after = [train[i + n] for i in range(len(train) - n) if tuple(train[i : i + n]) == context]
        return (after.count(x) + 4 * lower) / (len(after) + 4)

    for order in (1, 2, 3):
        expected = -np.mean([np.log(p(tuple(valid[i - order + 1 : i]), valid[i])) for i in range(2, len(valid))])
        assert language.n_gram(train, valid, order) == pytest.approx(expected)


# ------------------------------------------------------------------------------------------- memories and gradients


def slopes(loss, parameters, step=1e-7):
    """Name -> the derivative of loss() along the sign of the gradient, and what the gradient says."""
    value, gradients = loss(), loss.gradients()
    assert np.isfinite(value)
    for name, a in parameters.items():
        direction, kept = np.sign(gradients[name]), a.copy()
        ends = []
        for sign in (1, -1):
            a[...] = kept + sign * step * direction
            ends.append(loss())
        a[...] = kept
        yield name, (ends[0] - ends[1]) / (2 * step), float(np.abs(gradients[name]).sum())


class Loss:
    def __init__(self, of):
        self.of = of

    def __call__(self):
        return self.of()[0]

    def gradients(self):
        return self.of()[-1]()


def retrieval_memories():
    for name, memory in replacement.memories().items():
        yield name, memory, replacement.draw
    for name, (_, phi) in capacity.memories(SimpleNamespace(width=4)).items():
        fixed = phi and (lambda rng, phi=phi: phi(np.random.default_rng(3)))
        yield name, capacity.reader(fixed, None), capacity.draw


@pytest.mark.parametrize(("name", "memory", "draw"), list(retrieval_memories()))
def test_retrieval_trains_with_the_gradient_of_its_loss(name, memory, draw):
    rng = np.random.default_rng(0)
    model = retrieval.Retrieval(6, 4, rng)
    model.embedding = model.embedding.astype(float)
    model.parameters = {key: 1.5 * a.astype(float) for key, a in model.parameters.items()}
    pairs = draw(rng, 3, 6)
    for parameter, found, told in slopes(Loss(lambda: model.loss(memory, *pairs)), model.parameters):
        assert found == pytest.approx(told, rel=1e-4, abs=1e-8), parameter


@pytest.mark.parametrize("name", bytes_model.MEMORIES)
def test_a_language_model_trains_with_the_gradient_of_its_loss(name):
    o, rng = language.options(["x", *BYTES, "--blocks", "2"]), np.random.default_rng(0)
    model = bytes_model.Model(name, o, rng, np.float64)
    first, second = zip(*language.chunks(rng.integers(0, 256, 100), 4, 8, 3), strict=True)
    states = model.loss(first[0], second[0])[1]  # of the chunk before: no gradient goes there
    of = Loss(lambda: model.loss(first[1], second[1], states))
    for parameter, found, told in slopes(of, model.parameters):
        assert found == pytest.approx(told, rel=1e-4, abs=1e-8), parameter


@pytest.mark.parametrize("name", bytes_model.MEMORIES)
def test_the_state_holds_all_of_the_text_before(name, short_text):
    o = language.options(["x", *BYTES])
    model, losses = bytes_model.Model(name, o, np.random.default_rng(0)), []
    for chunk in (8, 100):
        o.chunk = chunk
        losses.append(language.judge(model, short_text[:100], o))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    o.chunk = 8
    assert abs(language.judge(model, short_text[:100], o, carry=False) - losses[0]) > 1e-5


def test_gated_memories_are_their_equations():
    rng = np.random.default_rng(0)
    query, key = rng.standard_normal((5, 4)), rng.standard_normal((2, 9, 4))
    value, logit = rng.standard_normal((2, 9, 3)), rng.standard_normal((2, 9))
    beta = 1 / (1 + np.exp(-logit))

    def phi(x):
        y = np.where(x > 0, x + 1, np.exp(x))
        return y / y.sum(axis=-1, keepdims=True)

    for b in range(2):
        state, z = np.zeros((4, 3)), np.zeros(4)
        for t in range(9):
            state = (1 - beta[b, t]) * state + beta[b, t] * np.outer(phi(key[b, t]), value[b, t])
            z = (1 - beta[b, t]) * z + beta[b, t] * phi(key[b, t])
        for name, divisor in (("gated", 1), ("gated, divided", (phi(query) @ z)[:, None])):
            read = replacement.memories()[f"{name}, elu1"](query, key, value, logit)[0]
            np.testing.assert_allclose(read[b], phi(query) @ state / divisor, rtol=1e-12)


def test_softmax_sees_a_window():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 10, 4))
    (out, _), _ = bytes_model.softmax(q, k, v, None, None, SimpleNamespace(window=3))
    for t in range(10):
        seen = slice(max(0, t - 2), t + 1)
        weights = np.exp(k[0, 0, seen] @ q[0, 0, t] / 2)
        np.testing.assert_allclose(out[0, 0, t], weights @ v[0, 0, seen] / weights.sum(), rtol=1e-12)


# ------------------------------------------------------------------------------------------- training


def test_training_ends_when_it_has_converged_or_time_is_up():
    pytest.importorskip("tqdm")

    def run(judged, **limits):
        o = SimpleNamespace(**{"rate": 0.1, "steps": 100, "seconds": 1e6, "every": 10} | limits)
        x, losses = {"x": np.ones(2)}, iter(judged)
        return descent.descend("", o, x, lambda: (1.0, {"x": x["x"].copy()}), lambda: next(losses), 0.5, 30)

    falls = [10 * 0.9**i for i in range(10)]
    cases = (
        (run([3, 2, 0.4]), 30, True), (run([3.0] * 10), 40, True), (run(falls), 100, False),
        (run(falls, seconds=1e-9), 1, False),
    )  # fmt: skip
    for found, steps, converged in cases:
        assert (found["steps"], found["converged"]) == (steps, converged)
        assert found["loss"] == found["curve"][-1][2]
