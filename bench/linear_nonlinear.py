"""What a plain linear-nonlinear fit reaches on a simulated session, beside the true rates and the mean rate.

    python bench/linear_nonlinear.py [NAME]     one session of 100 units, 10 minutes, 24x24 pixels

Trials are split, not bins; the shows of one condition stay together. Prints bits per spike on the test trials, over
units: a fit that sees the stimulus only, its ridge chosen for each unit on the validation trials.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit

from visiontune.data.recordings.recording import Trial
from visiontune.metrics.responses import bin_sums, bits_per_spike
from visiontune.simulated_neurons import CELL_KINDS, HISTORY, Simulated, filtered_in_time, simulate, trial_starts

Floats = NDArray[np.float32]

COMPONENTS = 100
TEMPORAL = 7
RIDGES = (1.0, 0.3, 0.1, 0.03, 0.01)
ITERATIONS = 12


@dataclass(frozen=True, eq=False)
class Basis:
    """What the filters are made of: principal components of pixels (pixels, components), scaled to variances whose
    largest is 1, and raised cosines in time (HISTORY, TEMPORAL)."""

    mean: Floats
    components: Floats
    cosines: Floats

    def features(self, stimulus: NDArray, trials: Sequence[Trial]) -> Floats:
        """(bins, components * TEMPORAL) float32."""
        spatial: Floats = ((_contrast(stimulus) - self.mean) @ self.components).astype(np.float32)
        starts = trial_starts(trials, len(stimulus))
        kernels = [np.repeat(cosine[:, None], spatial.shape[1], axis=1) for cosine in self.cosines.T]
        return np.concatenate([filtered_in_time(spatial, kernel, starts) for kernel in kernels], axis=1)


@dataclass(frozen=True, eq=False)
class LinearNonlinear:
    """rate = floor + gain * softplus(features @ weights + bias), each unit by itself; in counts a bin."""

    basis: Basis
    weights: Floats
    bias: Floats
    gain: Floats
    floor: Floats

    def rates(self, stimulus: NDArray, trials: Sequence[Trial]) -> NDArray[np.float64]:
        """(bins, units)."""
        drive = self.basis.features(stimulus, trials) @ self.weights + self.bias
        return (self.floor + self.gain * np.logaddexp(0, drive)).astype(np.float64)


def fit_linear_nonlinear(
    stimulus: NDArray,
    counts: NDArray,
    trials: Sequence[Trial],
    train: NDArray[np.bool_],
    validation: NDArray[np.bool_],
    *,
    components: int = COMPONENTS,
    ridges: Sequence[float] = RIDGES,
    iterations: int = ITERATIONS,
) -> LinearNonlinear:
    """Poisson regression of all units at once by L-BFGS, from the strongest ridge to the weakest.

    stimulus: (bins, height, width); counts: (bins, units); train, validation: (bins,), the bins of each. A filter is a
    product of one in space and one in time, as all of the simulated ones are: with a few thousand spikes a unit,
    filters free in both learn mostly noise. They start at the whitened spike-triggered average. Each unit keeps the
    ridge under which its validation bins are likeliest.
    """
    basis = _basis(stimulus[train], components)
    features = basis.features(stimulus, trials)
    seen, checked = features[train], features[validation]
    learned, judged = counts[train].astype(np.float32), counts[validation].astype(np.float32)
    del features
    mean = np.maximum(learned.mean(axis=0), 1e-4)
    state = _start(seen, learned, mean, components)
    best, best_likelihood = state.copy(), np.full(len(mean), -np.inf)
    for ridge in sorted(ridges, reverse=True):
        found = minimize(
            _loss, state.ravel(), (seen, learned, mean, ridge), "L-BFGS-B", jac=True, options={"maxiter": iterations}
        )
        state = found.x.reshape(state.shape).astype(np.float32)
        rates, *_ = _predicted(state, checked, mean)
        likelihood = (judged * np.log(rates) - rates).sum(axis=0)
        better = likelihood > best_likelihood
        best[:, better], best_likelihood[better] = state[:, better], likelihood[better]
    sharpness, floor = np.exp(best[-2]), mean * np.exp(best[-1])
    return LinearNonlinear(basis, _weights(best) * sharpness, best[-3] * sharpness, mean / sharpness, floor)


def _start(features: Floats, counts: Floats, mean: Floats, components: int) -> Floats:
    """(components + TEMPORAL + 3, units): filters in space and in time, bias, logarithms of sharpness and floor."""
    centred = features - features.mean(axis=0)
    covariance = centred.T @ centred / len(centred)
    covariance += 0.1 * np.trace(covariance) / len(covariance) * np.eye(len(covariance), dtype=np.float32)
    average = np.linalg.solve(covariance, centred.T @ (counts / mean) / len(centred))
    left, size, right = np.linalg.svd(average.T.reshape(-1, TEMPORAL, components), full_matrices=False)
    root = np.sqrt(size[:, :1])
    state = np.zeros((components + TEMPORAL + 3, len(mean)), np.float32)
    state[:components], state[components:-3] = (right[:, 0] * root).T, (left[:, :, 0] * root).T
    state[-1] = np.log(0.3)
    return state


def _weights(state: Floats) -> Floats:
    """(TEMPORAL * components, units): the products of the filters in time and in space."""
    space, time = state[: -TEMPORAL - 3], state[-TEMPORAL - 3 : -3]
    return (time[:, None] * space).reshape(-1, state.shape[1])


def _predicted(state: Floats, features: Floats, mean: Floats) -> tuple[Floats, Floats, Floats]:
    """Rates, the rectified drive over the mean, and the drive; (bins, units) each.

    The softplus has a sharpness, so that the ridge, which acts on the slope of the rates, does not keep it soft.
    """
    drive, sharpness = features @ _weights(state) + state[-3], np.exp(state[-2])
    soft = np.logaddexp(0, sharpness * drive) / sharpness
    return mean * (soft + np.exp(state[-1])), soft, drive


def _loss(
    flat: NDArray[np.float64], features: Floats, counts: Floats, mean: Floats, ridge: float
) -> tuple[float, NDArray[np.float64]]:
    """Negative log likelihood a spike, summed over units, with the ridge; and its gradient."""
    state = flat.reshape(-1, counts.shape[1]).astype(np.float32)
    rates, soft, drive = _predicted(state, features, mean)
    weights = _weights(state)
    slope = (1 - counts / rates) / len(counts)  # by the rate as a multiple of the mean
    sharpness, floor = np.exp(state[-2]), np.exp(state[-1])
    by_drive = slope * expit(sharpness * drive)
    by_weights = (features.T @ by_drive + 2 * ridge * weights).reshape(TEMPORAL, -1, len(mean))
    gradient = [
        (by_weights * state[-TEMPORAL - 3 : -3, None]).sum(axis=0),
        (by_weights * state[: -TEMPORAL - 3]).sum(axis=1),
        by_drive.sum(axis=0)[None],
        (by_drive * drive - slope * soft).sum(axis=0)[None],
        (slope.sum(axis=0) * floor)[None],
    ]
    loss = ((rates - counts * np.log(rates)).sum(axis=0, dtype=np.float64) / (mean * len(counts))).sum()
    loss += ridge * float((weights.astype(np.float64) ** 2).sum())
    return loss, np.concatenate(gradient).ravel().astype(np.float64)


def _basis(stimulus: NDArray, components: int) -> Basis:
    pixels = _contrast(stimulus[::2])
    mean = pixels.mean(axis=0)
    pixels -= mean
    variances, vectors = np.linalg.eigh(pixels.T @ pixels / len(pixels))
    kept = vectors[:, ::-1][:, :components]
    # Half whitened: fine detail is neither drowned nor as loud as the coarse.
    scale = variances[::-1][:components] ** 0.25
    time = np.log(np.arange(HISTORY) + 1.0)[:, None]  # finer where kernels change faster
    middles = np.linspace(time[1, 0], time[-2, 0], TEMPORAL)
    place = (time - middles) / (middles[1] - middles[0])
    cosines = np.where(np.abs(place) < 2, 1 + np.cos(place * np.pi / 2), 0) / 2
    return Basis(mean, (kept / scale).astype(np.float32), cosines.astype(np.float32))


def _contrast(stimulus: NDArray) -> Floats:
    """(bins, pixels) float32 in [-1, 1]."""
    flat = stimulus.reshape(len(stimulus), -1)
    return (flat / np.float32(127.5) - 1 if flat.dtype == np.uint8 else flat).astype(np.float32, copy=False)


def split_by_trial(simulated: Simulated) -> dict[str, NDArray[np.bool_]]:
    """train, validation, test: the valid bins of each, (bins,); about 60, 15 and 25 % of the trials.

    Shows of one condition stay together: those of the first condition of each kind are test, others train.
    """
    recording = simulated.recording
    bins = {name: np.zeros(len(recording.stimulus), np.bool_) for name in ("train", "validation", "test")}
    conditions: dict[str, str] = {}  # the first of each kind
    for trial in recording.trials:
        if trial.condition is not None:
            conditions.setdefault(trial.kind, trial.condition)
    single = [trial.id for trial in recording.trials if trial.condition is None]
    shuffled = np.random.default_rng(0).permutation(len(single)) / max(1, len(single))
    place = dict(zip(single, shuffled.tolist(), strict=True))
    for trial in recording.trials:
        if trial.condition is not None:
            name = "test" if trial.condition == conditions[trial.kind] else "train"
        else:
            name = "test" if place[trial.id] < 0.2 else "validation" if place[trial.id] < 0.4 else "train"
        bins[name][trial.start : trial.stop] = True
    return {name: mask & recording.valid[:, 0] for name, mask in bins.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", nargs="?", default="first")
    started = time.monotonic()
    simulated = simulate(parser.parse_args().name, seed=0)
    made = time.monotonic()
    parts = split_by_trial(simulated)
    recording = simulated.recording
    fit = fit_linear_nonlinear(
        recording.stimulus, recording.counts, recording.trials, parts["train"], parts["validation"]
    )
    fitted = time.monotonic()
    test = parts["test"]
    counts = recording.counts[test]
    rates = {
        "true rates": simulated.rates[test],
        "linear-nonlinear": fit.rates(recording.stimulus, recording.trials)[test],
        "mean rate of training": np.broadcast_to(recording.counts[parts["train"]].mean(axis=0), counts.shape),
    }
    print(f"{counts.shape[1]} units; bins: { ({name: int(mask.sum()) for name, mask in parts.items()}) }")
    print(f"simulated in {made - started:.1f} s, fitted in {fitted - made:.1f} s")
    print(f"{'bits per spike on test':24}{'mean':>8}{'median':>8}{'5 %':>8}{'95 %':>8}", end="")
    print("".join(f"{kind:>10}" for kind in CELL_KINDS), "(means)")
    for name, own in rates.items():
        bits = bits_per_spike(bin_sums(own, counts.astype(np.float64), np.ones(counts.shape, np.bool_)).total())
        figures = [bits.mean(), np.median(bits), *np.quantile(bits, [0.05, 0.95])]
        figures += [bits[simulated.cells.of(kind)].mean() for kind in CELL_KINDS]
        print(f"{name:24}" + "".join(f"{figure:8.3f}" for figure in figures[:4]), end="")
        print("".join(f"{figure:10.3f}" for figure in figures[4:]))


if __name__ == "__main__":
    main()
