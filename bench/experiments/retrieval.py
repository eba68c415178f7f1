"""The associative retrieval of Schlag et al. 2021 (https://arxiv.org/abs/2102.11174, section 6.1): pairs of a key and a value are written
to a memory, then all keys are looked up. Its two settings are the commands `capacity` and `replacement`.

There are S keys, each a fixed random vector e(k), and S values, each a unit vector. The model is three linear maps around a memory:

    key = W_K [e(k); v],    query = W_Q e(k),    logit of the write strength = W_b [e(k); v]

The loss of a query is |read - value|^2 / 2. Every sequence is asked for all keys in it, in training and in judging: what is
written once is read S times, and the gradient averages over S questions in place of one. Judged is the mean over all queries of all
sequences, each weighing the same.
"""

import numpy as np

from .descent import descend
from .pullbacks import linear, lookup, start


def last_values(keys, values, size):
    """(B, S): what was written last to each key, or -1 where nothing was."""
    last = np.full((len(keys), size), -1)
    for key, value in zip(keys.T, values.T, strict=True):  # in the order of writing
        last[np.arange(len(keys)), key] = value
    return last


class Retrieval:
    """`memory(query (S, d), key (B, L, d), value (B, L, S), logit (B, L))` returns what is read, (B, S, S), and a pullback to the gradients
    of query, key and logit (None where it does not use it)."""

    def __init__(self, size, width, rng):
        wide = int(2.2 * size)
        self.size, self.embedding = size, rng.standard_normal((size, wide)).astype(np.float32)
        both = start(rng, wide + size, width), start(rng, wide + size, 1)
        self.parameters = {
            "key_of_key": both[0][:wide], "key_of_value": both[0][wide:], "query": start(rng, wide, width),
            "strength_of_key": both[1][:wide], "strength_of_value": both[1][wide:],
        }  # fmt: skip

    def _of_pair(self, name, keys, values):
        """W [e(k); v] for the two halves of W, and its pullback into gradients by name."""
        table, back_table = linear(self.embedding, self.parameters[f"{name}_of_key"])
        by_key, back_key = lookup(table, keys)
        by_value, back_value = lookup(self.parameters[f"{name}_of_value"], values)

        def pullback(d):
            return {f"{name}_of_key": back_table(back_key(d))[1], f"{name}_of_value": back_value(d)}

        return by_key + by_value, pullback

    def loss(self, memory, keys, values):
        """The loss and its pullback, which gives the gradients of the parameters by name."""
        key, back_key = self._of_pair("key", keys, values)
        logit, back_logit = self._of_pair("strength", keys, values)
        query, back_query = linear(self.embedding, self.parameters["query"])
        units, wanted = np.eye(self.size, dtype=np.float32), last_values(keys, values, self.size)
        read, back = memory(query, key, units[values], logit[..., 0])
        error = np.where(wanted[..., None] < 0, 0, read - units[wanted])
        queries = np.count_nonzero(wanted >= 0)

        def pullback():
            d_query, d_key, d_logit = back(error / queries)
            gradients = back_key(d_key) | {"query": back_query(d_query)[1]}
            return gradients | back_logit(np.zeros_like(logit) if d_logit is None else d_logit[..., None])

        return 0.5 * float(np.square(error).sum(dtype=np.float64)) / queries, pullback


def train_retrieval(title, o, memory, draw):
    """Trains a model and judges it by o.judged sequences, always the same. `memory(rng)` is what is between its maps, and
    `draw(rng, batch, size)` the keys and values of sequences, (B, L) each."""
    rng = np.random.default_rng(o.seed)
    model, between = Retrieval(o.size, o.width, rng), memory(rng)

    def batch():
        loss, pullback = model.loss(between, *draw(rng, o.batch, o.size))
        return loss, pullback()

    def judge():
        rng = np.random.default_rng([o.seed, 1])
        pairs = draw(rng, o.judged, o.size)
        return model.loss(memory(rng), *pairs)[0]

    return descend(title, o, model.parameters, batch, judge, o.enough, o.patience)


def rank_floor(features, size):
    """What is read of S pairs is a product of rank K, the number of features, and the values wanted are S unit vectors: no memory of
    this kind has a mean loss over all S queries below (1 - K/S)/2."""
    return 0.5 * max(0.0, 1 - features / size)


def chance(size):
    """Without a memory: the mean of all values, for every query."""
    return 0.5 * (1 - 1 / size)


def average_floor(length, size):
    """The sum rule where keys repeat: at best the average of the n values that its key was given, which has the mean loss
    (1 - 1/n)(1 - 1/S)/2; n is binomial, of `length` pairs with probability 1/S, and at least 1."""
    p, n = 1 / size, np.arange(length + 1)
    log_ways = np.cumsum(np.log(np.concatenate([[1], (length - n[:-1]) / n[1:]])))
    weight = np.exp(log_ways + n * np.log(p) + (length - n) * np.log1p(-p))[1:]
    return 0.5 * (1 - 1 / size) * float((weight * (1 - 1 / n[1:])).sum() / weight.sum())
