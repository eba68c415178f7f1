"""Training of the experiments with fast weights."""

import time

import numpy as np

from .training import Adam


def descend(name, o, parameters, batch, judge, enough=0.0, patience=None):
    """Adam on `parameters`, whose rate falls from o.rate to 0 as a cosine of the part of o.steps or o.seconds that is over. `batch()` returns
    loss and gradients; `judge()`, asked every o.every steps, the loss that is reported. Training has "converged" once that is below
    `enough`, or has lost less than a hundredth of itself in the last `patience` steps; else it was cut off."""
    from tqdm import tqdm

    adam, curve, start, converged = Adam(parameters, o.rate), [], time.perf_counter(), False
    bar = tqdm(range(1, o.steps + 1), desc=name, mininterval=5)
    for step in bar:
        over = max(step / o.steps, (time.perf_counter() - start) / o.seconds)
        adam.rate = o.rate * 0.5 * (1 + np.cos(np.pi * min(over, 1)))
        loss, gradients = batch()
        adam.step(gradients)
        if step % o.every and over < 1:
            continue
        curve.append([step, float(loss), float(judge())])
        judged = [row[2] for row in curve]
        bar.set_postfix(loss=f"{loss:.4f}", judged=f"{judged[-1]:.4f}", refresh=False)
        ago = len(curve) - 1 - patience // o.every if patience else -1
        converged = judged[-1] < enough or (ago >= 0 and min(judged[ago + 1 :]) > 0.99 * min(judged[: ago + 1]))
        if converged or over >= 1:
            break
    seconds = time.perf_counter() - start
    return {"steps": step, "seconds": seconds, "converged": converged, "loss": judged[-1], "curve": curve}
