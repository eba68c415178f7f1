"""Experiments under bench/ run, keep what they found, and are the same for the same seed."""

import json

import numpy as np
import pytest

from bench.experiments import copying

SMALL = ["--steps", "6", "--length", "6", "--symbols", "2", "--hidden", "8", "--batch", "4", "--judged", "3"]


def test_copying_keeps_table_plot_and_curves(tmp_path, capsys):
    pytest.importorskip("tqdm")
    pytest.importorskip("matplotlib")
    copying.main([str(tmp_path / "a"), *SMALL])
    table = capsys.readouterr().out
    assert (tmp_path / "a" / "table.txt").read_text() == table and (
        tmp_path / "a" / "copying.png"
    ).stat().st_size > 1000
    kept = {path.name: json.loads(path.read_text()) for path in (tmp_path / "a").glob("*.json")}
    assert len(kept) == 4
    for found in kept.values():
        assert found["options"]["seed"] == 0 and found["steps"] == 6 and len(found["curve"]) == 2
        assert list(found["accuracy"]) == ["6", "12", "18", "30", "60"]
    copying.main([str(tmp_path / "a"), *SMALL])  # nothing is trained again: the seconds are the same
    assert capsys.readouterr().out == table
    copying.main([str(tmp_path / "b"), "--only", "truncated", *SMALL])
    again = json.loads((tmp_path / "b" / "LSTM-truncated.json").read_text())
    assert again["curve"] == kept["LSTM-truncated.json"]["curve"]


def test_the_gradient_that_it_trains_with_is_that_of_its_loss():
    o = copying.options(["", *SMALL])
    rng = np.random.default_rng(0)
    model = copying.Classifier(copying.models(o)["LSTM, full"](rng), rng)
    x, targets = copying.draw(rng, 4, 6, 2)
    gradients = model.loss_and_gradients(x, targets, 2)[2]
    for name, a in model.parameters.items():
        direction, kept = np.sign(gradients[name]), a.copy()
        ends = []
        for step in (1e-2, -1e-2):
            a[...] = kept + step * direction
            ends.append(model.loss_and_gradients(x, targets, 2)[0])
        a[...] = kept
        slope = float(np.abs(gradients[name]).sum())
        assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(slope, rel=0.02), name


def test_a_sequence_of_the_task():
    x, targets = copying.draw(np.random.default_rng(0), 3, 6, 2)
    codes = x.argmax(axis=-1)
    assert codes.shape == targets.shape == (3, 10)
    assert ((codes[:, :2] > 0) & (codes[:, :2] < 9)).all() and (codes[:, 7] == 9).all()
    assert not codes[:, 2:7].any() and not codes[:, 8:].any()
    assert (targets[:, -2:] == codes[:, :2]).all() and not targets[:, :-2].any()
