"""The model of `language`: blocks of a memory and a feed-forward network between an embedding and a softmax over bytes.

    x_t = W_e [e(byte_t); e(byte_{t-1}); ...]
    x <- x + W_o memory(W_q n, W_k n, W_v n, W_b n),  n = norm(x);      x <- x + W_d relu(W_u norm(x));      logits W norm(x)

A memory takes q, k, v (B, H, T, d), logits of write strengths (B, H, T), the state after the chunk before or None, and the options. It returns
(what is read, the state after this chunk) and a pullback to the gradients of q, k, v and the logits (None if it does not use them).
"""

import numpy as np
import recollect as rc

from .pullbacks import cross_entropy, linear, lookup, sigmoid, start


def delta(q, k, v, logit, state, o):
    beta, back_beta = sigmoid(logit)
    (out, state), pullback = rc.vjp(
        rc.fastweight.delta_rule, q, k, v, beta, feature_map="elu1", normalize="sum", state=state, return_state=True
    )

    def back(d):
        found = pullback((d, np.zeros_like(state)))
        return found.query, found.key, found.value, back_beta(found.beta)

    return (out, state), back


def total(q, k, v, logit, state, o):
    (out, state), pullback = rc.vjp(rc.fastweight.linear_attention, q, k, v, state=state, return_state=True)

    def back(d):
        found = pullback((d, np.zeros_like(state)))
        return found.query, found.key, found.value, None

    return (out, state), back


def softmax(q, k, v, logit, state, o):
    """The state is the last keys and values; no gradient goes to those of earlier chunks."""
    T = q.shape[-2]
    if state is not None:
        k, v = (np.concatenate(pair, axis=-2) for pair in zip(state, (k, v), strict=True))
    age = np.arange(k.shape[-2] - T, k.shape[-2])[:, None] - np.arange(k.shape[-2])
    out, pullback = rc.vjp(rc.attention.attend, q, k, v, mask=(age >= 0) & (age < o.window))

    def back(d):
        found = pullback(d)
        return found.query, found.key[..., -T:, :], found.value[..., -T:, :], None

    return (out, (k[..., -o.window :, :], v[..., -o.window :, :])), back


MEMORIES = {"delta": delta, "sum": total, "softmax": softmax}


class Block:
    def __init__(self, memory, o, rng, dtype):
        D, self.o, self.memory = o.width, o, memory
        self.norms = {name: rc.layers.LayerNorm(D, dtype=dtype) for name in ("norm_memory", "norm_feed")}
        shapes = {"qkv": (D, 3 * D), "strength": (D, o.heads), "out": (D, D), "up": (D, o.inner), "down": (o.inner, D)}
        self.parameters = {name: start(rng, *shape, dtype) for name, shape in shapes.items()}
        self.parameters |= {f"{n}.{p}": a for n, norm in self.norms.items() for p, a in norm.parameters.items()}

    def _remember(self, x, state):
        B, T, D = x.shape
        p, norm, heads = self.parameters, self.norms["norm_memory"], self.o.heads
        n, tape = norm.forward(x)
        qkv, back_qkv = linear(n, p["qkv"])
        logit, back_logit = linear(n, p["strength"])
        q, k, v = qkv.reshape(B, T, 3, heads, D // heads).transpose(2, 0, 3, 1, 4)
        (read, state), back_memory = self.memory(q, k, v, logit.swapaxes(-1, -2), state, self.o)
        out, back_out = linear(read.swapaxes(1, 2).reshape(B, T, D), p["out"])

        def pullback(d):
            d_read, d_out = back_out(d)
            *d_qkv, d_logit = back_memory(d_read.reshape(B, T, heads, -1).swapaxes(1, 2))
            d_n, d_projections = back_qkv(np.stack(d_qkv).transpose(1, 3, 0, 2, 4).reshape(B, T, 3 * D))
            gradients = {"out": d_out, "qkv": d_projections, "strength": np.zeros_like(p["strength"])}
            if d_logit is not None:
                d_more, gradients["strength"] = back_logit(d_logit.swapaxes(-1, -2))
                d_n = d_n + d_more
            d_x, norms = norm.backward(tape, d_n)
            return d + d_x, gradients | {f"norm_memory.{name}": g for name, g in norms.items()}

        return x + out, state, pullback

    def _feed(self, x):
        norm = self.norms["norm_feed"]
        n, tape = norm.forward(x)
        up, back_up = linear(n, self.parameters["up"])
        out, back_down = linear(np.maximum(up, 0), self.parameters["down"])

        def pullback(d):
            d_up, d_down = back_down(d)
            d_n, d_weight = back_up(d_up * (up > 0))
            d_x, norms = norm.backward(tape, d_n)
            return d + d_x, {"up": d_weight, "down": d_down} | {f"norm_feed.{name}": g for name, g in norms.items()}

        return x + out, pullback

    def forward(self, x, state):
        x, state, back_memory = self._remember(x, state)
        x, back_feed = self._feed(x)

        def pullback(d):
            d, gradients = back_feed(d)
            d, more = back_memory(d)
            return d, gradients | more

        return x, state, pullback


class Model:
    def __init__(self, name, o, rng, dtype=np.float32):
        wide, D = (o.context + 1) * o.embedding, o.width
        self.o, self.norm = o, rc.layers.LayerNorm(D, dtype=dtype)
        self.blocks = [Block(MEMORIES[name], o, rng, dtype) for _ in range(o.blocks)]
        shapes = {"bytes": (256, o.embedding), "mix": (wide, D), "classes": (D, 256)}
        self.own = {part: start(rng, *shape, dtype) for part, shape in shapes.items()}
        self.own["bytes"] *= 16  # of size 1
        self.parameters = self.own | {f"norm.{name}": a for name, a in self.norm.parameters.items()}
        self.parameters |= {f"{i}.{name}": a for i, b in enumerate(self.blocks) for name, a in b.parameters.items()}

    def _embed(self, window):
        codes, back_codes = lookup(self.own["bytes"], window)
        T = window.shape[1] - self.o.context
        x, back_mix = linear(
            np.concatenate([codes[:, i : i + T] for i in range(self.o.context + 1)], axis=-1), self.own["mix"]
        )

        def pullback(d):
            d_parts, d_mix = back_mix(d)
            d_codes = np.zeros_like(codes)
            for i, part in enumerate(np.split(d_parts, self.o.context + 1, axis=-1)):
                d_codes[:, i : i + T] += part
            return {"bytes": back_codes(d_codes), "mix": d_mix}

        return x, pullback

    def loss(self, window, targets, states=None):
        """Mean loss of targets (B, T) after bytes (B, context + T), the states after them, and a pullback to gradients by name."""
        x, back_embed = self._embed(window)
        after, backs = [], []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            x, state, back = block.forward(x, state)
            after.append(state)
            backs.append(back)
        n, tape = self.norm.forward(x)
        z, back_classes = linear(n, self.own["classes"])
        loss, back_loss = cross_entropy(z, targets)

        def pullback():
            d, d_classes = back_classes(back_loss())
            d, norms = self.norm.backward(tape, d)
            gradients = {"classes": d_classes} | {f"norm.{name}": g for name, g in norms.items()}
            for i, back in reversed(list(enumerate(backs))):
                d, inner = back(d)
                gradients |= {f"{i}.{name}": g for name, g in inner.items()}
            return gradients | back_embed(d)

        return loss, after, pullback
