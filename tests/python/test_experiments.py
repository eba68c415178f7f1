"""Experiments under bench/ run, keep what they found, and are the same for the same seed."""

import json
import os
import signal

import numpy as np
import pytest

from bench.experiments import adding, characters, copying, recurrent, rows, training

pytest.importorskip("tqdm")

TINY = ["--steps", "6", "--every", "4", "--hidden", "8", "--batch", "4"]
SMALL = {
    copying: [*TINY, "--length", "6", "--shortest", "3", "--symbols", "2", "--judged", "3"],
    adding: [*TINY, "--length", "8", "--judged", "3"],
    rows: [*TINY, "--pixels", "16"],
    characters: [*TINY, "--every", "6", "--length", "64"],
}
FOUND = {
    copying: ["T=6", "T=12", "T=30", "T=60", "T=120", "T=180"],
    adding: ["T=8", "T=16", "T=32"],
    rows: ["chosen by", "reported"],
    characters: ["chosen by", "reported", "streams"],
}
NEEDS = {rows: "sklearn"}


def name_of(module):
    return module.__name__.rpartition(".")[2]


def task_and_options(module):
    pytest.importorskip(NEEDS.get(module, "numpy"))
    o = module.options(["unused", *SMALL[module]])
    return module.task(o), o


def new_model(task, o, which):
    rng = np.random.default_rng(0)
    return recurrent.Model(task, recurrent.models(o, task.inputs)[which](rng), rng)


@pytest.mark.parametrize("module", SMALL, ids=name_of)
def test_a_command_keeps_table_plot_and_curves(module, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib")
    pytest.importorskip(NEEDS.get(module, "numpy"))
    module.main([str(tmp_path), *SMALL[module]])
    table = capsys.readouterr().out
    assert (tmp_path / "table.txt").read_text() == table
    assert (tmp_path / f"{name_of(module)}.png").stat().st_size > 1000
    kept = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert len(kept) == 5 and not list(tmp_path.glob("*.npz")) and not list(tmp_path.glob(".*"))
    for found in kept:
        assert found["options"]["seed"] == 0 and found["steps"] == 6
        assert [row[0] for row in found["curve"]] == ([6] if module is characters else [4, 6])
        assert list(found["found"]) == FOUND[module]
        assert np.isfinite([*found["found"].values(), *np.ravel(found["curve"])]).all()
    monkeypatch.setattr(recurrent, "train", None)  # nothing is trained again
    module.main([str(tmp_path), *SMALL[module]])
    assert capsys.readouterr().out == table


@pytest.mark.parametrize("which", ["sparse backtracking", "LSTM, full"])
@pytest.mark.parametrize("module", [copying, adding], ids=name_of)
def test_an_interrupted_training_goes_on_with_the_same_bits(module, which, tmp_path):
    task, o = task_and_options(module)

    def trained(directory, draw):
        o.directory, rng = tmp_path / directory, np.random.default_rng(3)
        model = new_model(task, o, which)
        return training.fit(o, "some, model", model, rng, draw, task.measure), model.parameters

    def interrupted(rng):
        drawn.append(1)
        if len(drawn) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return task.draw(rng)

    def counting(rng):
        drawn.append(1)
        return task.draw(rng)

    drawn = []

    straight, parameters = trained("straight", task.draw)
    with pytest.raises(KeyboardInterrupt, match="step 5"):
        trained("resumed", interrupted)
    drawn.clear()
    resumed, others = trained("resumed", counting)
    assert len(drawn) == 1 and resumed["curve"] == straight["curve"]
    for name, a in parameters.items():
        assert (a == others[name]).all(), name
    o.rate = 0.5  # other options: begun anew
    drawn.clear()
    trained("resumed", counting)
    assert len(drawn) == 6


def test_a_killed_training_goes_on_where_it_was_saved(tmp_path, monkeypatch):
    task, o = task_and_options(adding)
    monkeypatch.setattr(training, "_SAVE_SECONDS", 0)
    o.directory = tmp_path

    def killed(rng):
        drawn.append(1)
        if len(drawn) == 4:
            raise MemoryError  # nothing is saved on this way out
        return task.draw(rng)

    drawn = []

    def trained(name, draw):
        model = new_model(task, o, "sparse backtracking")
        return training.fit(o, name, model, np.random.default_rng(3), draw, task.measure)["curve"]

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(MemoryError):
        trained("one", killed)
    assert signal.getsignal(signal.SIGINT) is before
    assert trained("one", task.draw) == trained("another", task.draw)


@pytest.mark.parametrize("module", SMALL, ids=name_of)
def test_the_gradient_that_it_trains_with_is_that_of_its_loss(module):
    task, o = task_and_options(module)
    o.length = min(getattr(o, "length", 8), 8)
    model = new_model(module.task(o), o, "LSTM, full")
    batch = module.task(o).draw(np.random.default_rng(0))
    gradients = model.loss_and_gradients(*batch)[1]
    assert gradients.keys() == model.parameters.keys()
    for name, a in model.parameters.items():
        direction, kept, ends = np.sign(gradients[name]), a.copy(), []
        for step in (1e-2, -1e-2):
            a[...] = kept + step * direction
            ends.append(model.loss_and_gradients(*batch)[0])
        a[...] = kept
        slope = float(np.abs(gradients[name]).sum())
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(slope, rel=0.03), name


def test_losses():
    z, targets = np.array([[[1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]]), np.array([[1, 2]])
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    loss, d_z = recurrent.cross_entropy(z, targets)
    assert loss == pytest.approx(-(np.log(p[0, 0, 1]) + np.log(p[0, 1, 2])) / 2)
    assert d_z == pytest.approx((p - np.eye(3)[targets]) / 2)
    assert np.isfinite(recurrent.cross_entropy(np.array([[1e30, 0.0]]), np.array([1]))[0])
    loss, d_z = recurrent.squared_error(np.array([[[3.0]], [[1.0]]]), np.array([[1.0], [2.0]]))
    assert loss == 2.5 and (d_z[:, 0, 0] == [2, -1]).all()


def test_the_models_that_are_compared():
    o = copying.options(["unused", *SMALL[copying]])
    made = {name: make(np.random.default_rng(0)) for name, make in recurrent.models(o, 3).items()}
    described = {name: (m.k_top, m.k_trunc, m.reminders) for name, m in made.items()}
    assert described == {
        "sparse backtracking": (5, 5, True),
        "without gradient through reminders": (5, 5, False),
        "LSTM, truncated": (0, 5, True),
        "LSTM, full": (0, None, True),
        "full self-attention": (None, None, True),
    }


# -------------------------------------------------------------------------------------------------------------- tasks


def test_a_sequence_to_copy():
    x, targets = copying.draw(np.random.default_rng(0), 3, 6, 2)
    codes = x.argmax(axis=-1)
    assert codes.shape == targets.shape == (3, 10)
    assert ((codes[:, :2] > 0) & (codes[:, :2] < 9)).all() and (codes[:, 7] == 9).all()
    assert not codes[:, 2:7].any() and not codes[:, 8:].any()
    assert (targets[:, -2:] == codes[:, :2]).all() and not targets[:, :-2].any()


def test_a_sequence_to_add():
    x, targets = adding.draw(np.random.default_rng(0), 200, 9)
    assert x.shape == (200, 9, 2) and targets.shape == (200, 1)
    assert (x[:, :4, 1].sum(axis=1) == 1).all() and (x[:, 4:, 1].sum(axis=1) == 1).all()
    assert targets[:, 0] == pytest.approx((x[..., 0] * x[..., 1]).sum(axis=1))
    assert x[..., 0].min() >= 0 and x[..., 0].max() <= 1


def test_digits_are_permuted_alike_and_split_once():
    pytest.importorskip("sklearn")
    o = rows.options(["unused"])
    parts = rows.split(o)
    assert [len(labels) for _, labels in parts] == [1200, 297, 300]
    pictures, labels = rows.images(8)
    whole = np.concatenate([x for x, _ in parts])
    assert whole.shape == (1797, 64, 1) and sorted(np.concatenate([y for _, y in parts])[:, 0]) == sorted(labels)
    pixels = {column.tobytes() for column in np.sort(pictures, axis=0).T}  # a pixel's values over all images
    assert {column.tobytes() for column in np.sort(whole[..., 0], axis=0).T} == pixels
    assert all(
        (a == b).all() for one, two in zip(parts, rows.split(o), strict=True) for a, b in zip(one, two, strict=True)
    )
    o.pixels = 7
    with pytest.raises(ValueError, match="expected a divisor of 64"):
        rows.split(o)
    assert rows.images(28)[0].shape == (1797, 784) and rows.images(28)[0].max() <= 1


def test_bits_a_character_of_pieces_and_of_streams():
    task, o = task_and_options(characters)
    model = new_model(task, o, "LSTM, full")
    model.weight[...], model.bias[...] = 0, 0  # all characters alike
    assert task.measure(model) == pytest.approx([np.log2(task.outputs)] * 3)
    x, targets = task.draw(np.random.default_rng(0))
    assert x.shape == (4, 64, task.inputs) and (x.argmax(axis=-1)[:, 1:] == targets[:, :-1]).all()


def test_bigrams_are_counted_where_it_is_trained():
    one, two = characters.bigrams(np.array([0, 1] * 50), np.array([0, 1, 0, 1]), 2)
    assert one == pytest.approx(1) and two == pytest.approx(-np.log2([51 / 52, 50 / 51, 51 / 52]).mean())
