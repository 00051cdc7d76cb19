"""What simulated neurons see: photographs looked at by a moving eye, and frames of random Gabor elements."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[np.float32]

KINDS = ("natural", "gabor")
PIXELS_PER_DEGREE = 8.0
FURTHEST = 5.0  # degrees: how far the gaze goes from the middle of a scene, along either axis
NOMINAL = 24  # pixels: sizes of elements and receptive fields are given for a frame whose shorter side has as many

FIXATION = (0.2, 0.45)  # seconds
SACCADE = (0.8, 3.5)  # degrees
MICROSACCADES = 1.5  # a second
MICROSACCADE = 0.25  # degrees, standard deviation along either axis
DRIFT = 0.008  # degrees² a second: the diffusion of the eye between saccades, along either axis
NATURAL_CONTRAST = (0.15, 0.45)  # root mean square over the scene, in units of half the range of grey
ELEMENTS = 8  # Gabor elements that touch a frame of NOMINAL by NOMINAL pixels, on average


@dataclass(frozen=True)
class Planned:
    """One trial before it is drawn: its kind, its length in bins, and the condition that it repeats, if any."""

    kind: str
    bins: int
    condition: int | None = None


def plan_trials(
    generator: np.random.Generator, bins: int, rate: float, kinds: Sequence[str], conditions: int, shows: int
) -> list[Planned]:
    """Trials that fill `bins`, in random order.

    `conditions` of each kind are shown `shows` times for 3 s. Single trials last 3 to 10 s and take the kinds in turn.
    """
    shortest = round(3 * rate)
    numbered = [kind for kind in kinds for _ in range(conditions)]
    trials = [Planned(kind, shortest, number) for number, kind in enumerate(numbered) for _ in range(shows)]
    left = bins - shortest * len(trials)
    turn = 0
    while left > 0:
        length = round(generator.uniform(3, 10) * rate)
        if left <= 10 * rate:
            length = left
        elif left - length < shortest:
            length = left // 2
        trials.append(Planned(kinds[turn % len(kinds)], length))
        left, turn = left - length, turn + 1
    return [trials[place] for place in generator.permutation(len(trials))]


def gaze(generator: np.random.Generator, bins: int, rate: float) -> Floats:
    """(bins, 2) float32: where the eye looks in degrees from the middle, to the right and upward, within FURTHEST.

    Fixations with saccades between them, which take two bins, microsaccades, and drift as a random walk.
    """
    targets, fixation = _fixations(generator, bins, rate)
    wander = generator.normal(0, np.sqrt(2 * DRIFT / rate), (bins, 2))
    wander += generator.normal(0, MICROSACCADE, (bins, 2)) * (generator.random((bins, 1)) < MICROSACCADES / rate)
    walk = wander.cumsum(axis=0)
    started = np.searchsorted(fixation, np.arange(len(targets)))  # the first bin of each fixation
    steps = (targets - walk[started])[fixation] + walk
    steps[1:] = (steps[1:] + steps[:-1]) / 2
    return steps.clip(-FURTHEST, FURTHEST).astype(np.float32)


def _fixations(generator: np.random.Generator, bins: int, rate: float) -> tuple[NDArray, NDArray]:
    """(fixations, 2) degrees, and which fixation each bin belongs to."""
    most = FURTHEST - 1  # leaves room for microsaccades and drift
    at = generator.uniform(-1, 1, 2)
    targets, lengths = [], []
    while sum(lengths) < bins:
        targets.append(at)
        lengths.append(max(2, round(generator.uniform(*FIXATION) * rate)))
        angle = generator.uniform(0, 2 * np.pi)
        at = at + generator.uniform(*SACCADE) * np.array([np.cos(angle), np.sin(angle)])
        at = most - np.abs((at + most) % (4 * most) - 2 * most)  # mirrored at the edges
    return np.array(targets), np.repeat(np.arange(len(targets)), lengths)[:bins]


def grey(photograph: Image.Image) -> Floats:
    """(height, width) float32 in [0, 255]."""
    return np.asarray(photograph.convert("L"), np.float32)


def scene(generator: np.random.Generator, photographs: Sequence[Floats], size: tuple[int, int]) -> Floats:
    """A part of a photograph, large enough for a crop of `size` (height, width) wherever the eye looks.

    float32, contrast with mean 0 and a root mean square drawn from NATURAL_CONTRAST. Scale and mirroring are drawn too.
    """
    high, wide = (side + 2 * int(np.ceil(FURTHEST * PIXELS_PER_DEGREE)) + 1 for side in size)
    photograph = photographs[int(generator.integers(len(photographs)))]
    largest = min(photograph.shape[0] / high, photograph.shape[1] / wide)
    scale = generator.uniform(min(1.0, largest), largest)
    top = generator.uniform(0, photograph.shape[0] - high * scale)
    left = generator.uniform(0, photograph.shape[1] - wide * scale)
    box = (left, top, left + wide * scale, top + high * scale)
    part = np.asarray(Image.fromarray(photograph).resize((wide, high), Image.Resampling.BILINEAR, box=box))
    if generator.random() < 0.5:
        part = part[:, ::-1]
    part = part - part.mean()
    return part * np.float32(generator.uniform(*NATURAL_CONTRAST) / max(float(part.std()), 1e-6))


def look(view: Floats, eye: Floats, size: tuple[int, int]) -> Floats:
    """What the eye sees of a scene: (bins, height, width) float32, bilinear crops around `eye` (bins, 2), in degrees.

    A gaze of 1 degree to the right moves the crop PIXELS_PER_DEGREE columns to the right; upward, as many rows up.
    """
    high, wide = size
    across = (view.shape[1] - wide) / 2 + eye[:, 0] * PIXELS_PER_DEGREE
    down = (view.shape[0] - high) / 2 - eye[:, 1] * PIXELS_PER_DEGREE
    left, top = (np.floor(edge).astype(np.int64) for edge in (across, down))
    left, top = left.clip(0, view.shape[1] - wide - 1), top.clip(0, view.shape[0] - high - 1)
    found = np.lib.stride_tricks.sliding_window_view(view, (high + 1, wide + 1))[top, left]
    x, y = ((part.astype(np.float32))[:, None, None] for part in (across - left, down - top))
    found = found[:, :, :-1] * (1 - x) + found[:, :, 1:] * x
    return found[:, :-1] * (1 - y) + found[:, 1:] * y


def gabor_noise(generator: np.random.Generator, bins: int, size: tuple[int, int]) -> Floats:
    """Sums of random Gabor elements, new ones in every bin: (bins, height, width) float32 contrast.

    They come anew in each bin and everywhere alike, so the eye's movements do not change what they look like.
    """
    unit = min(size) / NOMINAL
    margin = 2 * unit
    area = (size[0] + 2 * margin) * (size[1] + 2 * margin)
    shape = (bins, max(1, round(ELEMENTS * area / (NOMINAL * unit) ** 2)))
    y, x = (generator.uniform(-margin, side + margin, shape)[..., None] for side in size)
    frequency = np.exp(generator.uniform(np.log(0.06), np.log(0.25), shape))[..., None] / unit
    spread = generator.uniform(0.3, 0.5, shape)[..., None] / frequency
    angle, phase = (generator.uniform(0, 2 * np.pi, shape)[..., None] for _ in range(2))
    strength = generator.uniform(0.2, 0.8, shape)[..., None]
    # A Gabor element is the real part of a product of a function of x and one of y: two thin arrays and one product.
    offset_x, offset_y = np.arange(size[1]) - x, np.arange(size[0]) - y
    wave = 2 * np.pi * frequency
    columns = np.exp(-((offset_x / spread) ** 2) / 2 + 1j * (wave * np.cos(angle) * offset_x + phase))
    rows = strength * np.exp(-((offset_y / spread) ** 2) / 2 + 1j * wave * np.sin(angle) * offset_y)
    return (rows.astype(np.complex64).swapaxes(1, 2) @ columns.astype(np.complex64)).real


def wandering(generator: np.random.Generator, bins: int, rate: float, seconds: float) -> NDArray[np.float64]:
    """An Ornstein-Uhlenbeck process with mean 0, variance 1 and the time constant `seconds`: (bins,)."""
    from scipy.signal import lfilter

    keep = np.exp(-1 / (seconds * rate))
    pushes = generator.normal(0, np.sqrt(1 - keep**2), bins)
    pushes[0] = generator.normal()
    return np.asarray(lfilter([1.0], [1.0, -keep], pushes))
