"""Whether images and their objects look as before when they are mirrored or transposed: simple statistics with limits.

Each statistic changes its sign under the symmetry and so is zero on average where the data do not know it. None of them
minds one lamp that shines from one side, or objects lighter than their background here and darker there.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]

CELLS = 12  # a side of the pattern that an image or an object is reduced to
SURROUNDINGS = 1.5  # sides of the square that is looked at, in longer sides of the object
STROKE_HEIGHT = 24  # pixels of an object's shorter side where strokes are looked at
STROKE_DISTANCE = 4
FAINT = 0.01  # mean difference of a pattern, as a share of black to white, below which it is noise
FEWEST = 20  # images or objects that are judged

# Beyond these a symmetry is broken. Under symmetries that they have, BCCD's blood cells and BBBC038's nuclei reach 5
# levels, 0.001 and 0.04. Drawn streets have 20 levels and 0.15 up and down, letters 0.09 to 0.23 and text lines 0.6
# (strokes) left and right. Boxes a pixel too wide on one side give small objects a look of 0.01.
LAYOUT_LIMIT = 10.0  # grey levels of 255
LOOK_LIMIT = 0.02  # share of a pattern
EFFECT_LIMIT = 0.5  # standard deviations


@dataclass(frozen=True)
class Evidence:
    """How far the data are from one symmetry: the statistic that is nearest to its limit, or farthest beyond it."""

    what: str
    value: float
    limit: float

    @property
    def ratio(self) -> float:
        """The statistic in units of its limit."""
        return self.value / self.limit

    @property
    def broken(self) -> bool:
        """Whether the data do not have the symmetry."""
        return self.ratio > 1

    def __str__(self) -> str:
        return f"{self.what}, {self.value:.2g} (limit {self.limit:g})"


SYMMETRIES: dict[str, Callable[[Array], Array]] = {
    "left_right": lambda patterns: patterns[:, :, ::-1],
    "up_down": lambda patterns: patterns[:, ::-1],
    "transposed": lambda patterns: patterns.swapaxes(1, 2),
}


@dataclass
class Looks:
    """What is seen of a data set, image by image."""

    layouts: list[Array] = field(default_factory=list)
    looks: dict[str, list[Array]] = field(default_factory=lambda: defaultdict(list))
    strokes: list[tuple[float, float]] = field(default_factory=list)
    centres: list[tuple[float, float]] = field(default_factory=list)

    def add(self, image: Image.Image, boxes: Array, classes: Sequence[str], differences: Array) -> None:
        """One RGB image, its boxes (n, 4) in pixels, their classes, and what `differences` says of it."""
        layout = np.asarray(image.resize((CELLS, CELLS), Image.Resampling.BOX), np.float64)
        self.layouts.append(layout - layout.mean(axis=(0, 1)))
        grey = image.convert("L")
        for name, box, pattern in zip(classes, boxes, differences, strict=True):
            centred = pattern - pattern.mean()
            length = np.linalg.norm(centred)
            if length > FAINT * CELLS:
                self.looks[name].append(centred[..., None] / length)
            if (pair := _strokes(grey, box)) is not None:
                self.strokes.append(pair)
            left, top, width, height = box / np.array([image.width, image.height] * 2)
            self.centres.append((left + width / 2 - 0.5, top + height / 2 - 0.5))

    def evidence(self) -> dict[str, Evidence | None]:
        """For each symmetry its strongest evidence; None where too few images were seen to judge."""
        judged = len(self.layouts) >= FEWEST
        return {name: max(self.against(name), key=lambda one: one.ratio) if judged else None for name in SYMMETRIES}

    def against(self, symmetry: str) -> list[Evidence]:
        """Every statistic of which enough was seen."""
        mirrored = SYMMETRIES[symmetry]
        found = []
        if len(self.layouts) >= FEWEST:
            patterns = np.stack(self.layouts)
            levels = np.sqrt(_constant_share(patterns, mirrored) * np.mean(patterns**2))
            found.append(Evidence("layout of the images", float(levels), LAYOUT_LIMIT))
        looks = {f"look of {name}": patterns for name, patterns in self.looks.items()}
        if len(looks) > 1:
            looks["look of all objects"] = [one for patterns in self.looks.values() for one in patterns]
        for what, patterns in looks.items():
            if len(patterns) >= FEWEST:
                found.append(Evidence(what, _constant_share(np.stack(patterns), mirrored), LOOK_LIMIT))
        if symmetry != "transposed":
            axis = 0 if symmetry == "left_right" else 1
            for what, values in (("places of the objects", self.centres), ("strokes of the objects", self.strokes)):
                if len(values) >= FEWEST:
                    found.append(Evidence(what, _effect(np.array(values)[:, axis]), EFFECT_LIMIT))
        return found


def differences(image: Image.Image, boxes: Array) -> Array:
    """(n, CELLS, CELLS): how far each place is from the colour around the object, in [0, 1], black to white being 1.

    image: RGB. boxes: (n, 4), left, top, width, height in pixels. A square about each object is looked at, SURROUNDINGS
    times as long as it; beyond the image its border goes on.
    """
    found = np.zeros((len(boxes), CELLS, CELLS))
    side = SURROUNDINGS * boxes[:, 2:].max(axis=1, initial=0.0)
    low = boxes[:, :2] + boxes[:, 2:] / 2 - side[:, None] / 2
    beyond = np.maximum(-low, low + side[:, None] - image.size).max(initial=0.0)
    margin = int(np.ceil(beyond)) + 1
    wider = Image.fromarray(np.pad(np.asarray(image), ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    for place, ((left, top), length) in enumerate(zip((low + margin).tolist(), side.tolist(), strict=True)):
        method = Image.Resampling.BOX if length > CELLS else Image.Resampling.BILINEAR
        square = wider.resize((CELLS, CELLS), method, box=(left, top, left + length, top + length))
        pixels = np.asarray(square, np.float64)
        rim = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
        found[place] = np.linalg.norm(pixels - np.median(rim, axis=0), axis=2) / (255 * np.sqrt(3))
    return found


def _constant_share(patterns: Array, mirrored: Callable[[Array], Array]) -> float:
    """The share of the patterns' energy that is the same in all of them and changes its sign under a symmetry, in
    [0, 1], less three standard errors.

    patterns: (n, CELLS, CELLS, channels), each with mean 0. Without bias, as the mean product of different patterns;
    the error is that of random signs.
    """
    n = len(patterns)
    odd = ((patterns - mirrored(patterns)) / 2).reshape(n, -1)
    own = (odd**2).sum(axis=1)
    shared = (odd.sum(axis=0) ** 2).sum() - own.sum()
    # The squares of all products of two patterns, from the smaller of the two product matrices.
    squares = np.linalg.norm(odd.T @ odd) ** 2 - (own**2).sum()
    energy = (patterns**2).sum() / n
    if energy == 0:
        return 0.0
    return float(max(0.0, shared - 3 * np.sqrt(2 * max(0.0, squares))) / (n * (n - 1) * energy))


def _effect(values: Array) -> float:
    """The mean in standard deviations, without its sign, less two standard errors."""
    spread = values.std()
    size = abs(values.mean()) / spread if spread > 0 else 0.0
    return float(max(0.0, size - 2 / np.sqrt(len(values))))


def _strokes(grey: Image.Image, box: Array) -> tuple[float, float] | None:
    """Whether upright edges have level ones rather on their right than on their left, and level edges upright ones
    rather below than above, both in [-1, 1]; None for an object too small to tell.

    Latin letters have their stems on the left: text lines differ from their mirror image in little else.
    """
    left, top = np.maximum(0, np.floor(box[:2])).astype(int).tolist()
    right, bottom = np.minimum(grey.size, np.ceil(box[:2] + box[2:])).astype(int).tolist()
    shorter = min(right - left, bottom - top)
    if shorter < STROKE_HEIGHT // 4:
        return None
    size = [max(1, round(side * STROKE_HEIGHT / shorter)) for side in (right - left, bottom - top)]
    object_ = grey.resize((size[0], size[1]), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels = np.asarray(object_, np.float64)
    upright = np.abs(pixels[1:-1, 2:] - pixels[1:-1, :-2])
    level = np.abs(pixels[2:, 1:-1] - pixels[:-2, 1:-1])
    return _after(upright, level), _after(level.T, upright.T)


def _after(first: Array, second: Array) -> float:
    """Whether `second` rather follows `first` along the rows than the other way round, in [-1, 1]."""
    d = STROKE_DISTANCE
    follows, leads = (first[:, :-d] * second[:, d:]).mean(), (second[:, :-d] * first[:, d:]).mean()
    return float((follows - leads) / max(1e-9, follows + leads))
