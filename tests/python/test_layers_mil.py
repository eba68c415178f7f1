"""Multiple-instance learning on images of digits: bags of twelve, with a nine among them or without.

A trained HopfieldPooling finds the nine; the mean and the maximum of a bag, each with the best of several logistic regressions, hardly do.
"""

import numpy as np
import pytest
import recollect as rc

SIZE, BAGS = 12, 600


def bags(images, digits, rng):
    """(BAGS, SIZE, 64) and labels: every second bag has one nine."""
    labels = np.arange(BAGS) % 2 == 0
    chosen = rng.choice(np.flatnonzero(digits != 9), (BAGS, SIZE))
    chosen[labels, rng.integers(SIZE, size=labels.sum())] = rng.choice(np.flatnonzero(digits == 9), labels.sum())
    return images[chosen], labels


def adam(layer, x, labels, rng, steps=120, rate=0.01):
    """Minimises the logistic loss of the layer's one output."""
    mean, square = ({name: np.zeros_like(p) for name, p in layer.parameters.items()} for _ in range(2))
    for t in range(1, steps + 1):
        some = rng.choice(len(x), 100, replace=False)
        score, tape = layer.forward(x[some])
        error = 1 / (1 + np.exp(-score)) - labels[some, None]
        *_, gradients = layer.backward(tape, error / len(some))
        for name, p in layer.parameters.items():
            mean[name] += 0.1 * (gradients[name] - mean[name])
            square[name] += 0.001 * (gradients[name] ** 2 - square[name])
            p -= rate * mean[name] / (1 - 0.9**t) / (np.sqrt(square[name] / (1 - 0.999**t)) + 1e-8)


def test_trained_pooling_beats_mean_and_max(rng):
    datasets, linear = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    data = datasets.load_digits()
    images = (data.data / 16).astype(np.float32)
    images -= images.mean(axis=0)
    order = rng.permutation(len(images))
    (x, labels), (unseen, truth) = (bags(images[half], data.target[half], rng) for half in (order[:1200], order[1200:]))
    fixed = 0.0
    for pool in (np.mean, np.max):
        for c in (0.01, 0.1, 1.0):
            model = linear.LogisticRegression(C=c, max_iter=2000).fit(pool(x, axis=1), labels)
            fixed = max(fixed, model.score(pool(unseen, axis=1), truth))
    options = {
        "num_heads": 4,
        "hidden_size": 16,
        "output_size": 1,
        "scaling": 1.0,
        "normalize_pattern_projection": False,
    }
    layer = rc.layers.HopfieldPooling(64, rng=rng, **options)
    adam(layer, x, labels, rng)
    learned = ((layer(unseen)[:, 0] > 0) == truth).mean()
    assert fixed + 0.1 < learned, (fixed, learned)
