"""From measures of images with objects to the choices of a recipe, each with the numbers that decided it."""

import math
from typing import Any

from visiontune.data.object_measures import ObjectMeasures
from visiontune.words import counted

# A tiny model learns from nothing: so many objects are shown, on images repeated as often as it takes, but not without
# end.
TINY_OBJECTS_SHOWN, TINY_IMAGES_SHOWN, TINY_EPOCHS = 84_000, (6_000, 18_000), (5, 150)
LORA_IMAGES_SHOWN, LORA_EPOCHS = 6_000, (3, 30)
# Images up to which the strength of augmentation is used.
STRENGTHS = ((300, 0.6), (3_000, 0.4), (30_000, 0.25), (math.inf, 0.1))
FAINT_OBJECTS = 0.04  # objects that differ less from what is around them are lost where colours are changed much
TINY_SIDES = (128, 320)  # pixels
TINY_QUERIES = (20, 300)
USUAL_MOST = 100  # objects an image that COCO's evaluation counts
SMALL_SET = 1_000  # images
# Validation images that a checkpoint is chosen by; more where a class would be met less than so often, or its average
# precision, which counts as much as another's, would be chance.
EVALUATED, RARE_SEEN = (256, 1_024), 10


def object_choices(
    measures: ObjectMeasures,
    *,
    tiny: bool,
    native_side: int,
    patch: int | None,
    multiple: int | None = None,
    patches: float,
) -> dict[str, tuple[Any, str]]:
    """Values with reasons, by the names of recipe fields; beside these `epochs` and, for a tiny model, `queries`. Of
    `evaluation.samples` there may be fewer.

    native_side: pixels of the longer side that the model was published for, or last trained at. patch: pixels a side
    of what its vision encoder sees as one token, None where that is unknown. multiple: the sides of a tiny model's
    images are multiples of so many pixels; None: of `patch`. patches: a side of what a tiny model sees of a small
    object.
    """
    n = measures.images
    choices: dict[str, tuple[Any, str]] = {
        "objects.mirror": _mirror(measures),
        "data.augment": _strength(measures),
        "data.image_longest_edge": _tiny_side(measures, patch or 16, multiple, patches)
        if tiny
        else (native_side, f"the model was made for {native_side} px"),
        "objects.most": _most(measures),
        "epochs": _epochs(n, *(_tiny_shown(measures), *TINY_EPOCHS) if tiny else (LORA_IMAGES_SHOWN, *LORA_EPOCHS)),
        "evaluation.samples": _evaluated(measures),
        "batch.samples": (8 if n < SMALL_SET else 16, f"{n} training images"),
    }
    if tiny:
        choices["queries"] = _queries(measures)
    return choices


def side_for(queries: int, patch: int, multiple: int, largest: int) -> int:
    """The least side of a square image, in pixels, that has a patch for each query, but no more than `largest`."""
    return min(math.ceil(math.ceil(math.sqrt(queries)) * patch / multiple) * multiple, largest)


def _mirror(measures: ObjectMeasures) -> tuple[str, str]:
    left_right = measures.symmetry["left_right"]
    others = [measures.symmetry["up_down"], measures.symmetry["transposed"]]
    known = [one for one in others if one is not None]
    if left_right is not None and left_right.broken:
        return "none", f"left and right differ: {left_right}"
    if left_right is None or len(known) < len(others):
        return "horizontal", f"{measures.looked_at} images are too few to tell; most photographs have an upper side"
    farthest = max(known, key=lambda one: one.ratio)
    if farthest.broken:
        return "horizontal", f"left and right look alike, the rest does not: {farthest}"
    farthest = max(left_right, farthest, key=lambda one: one.ratio)
    return "all", f"the data look alike from all sides; what differs most is {farthest}"


def _strength(measures: ObjectMeasures) -> tuple[float, str]:
    strength = next(strength for images, strength in STRENGTHS if measures.images <= images)
    if measures.objects and measures.object_contrast < FAINT_OBJECTS:
        return strength / 2, f"{measures.images} training images; objects are faint ({measures.object_contrast:.3f})"
    return strength, f"{measures.images} training images; objects' contrast is {measures.object_contrast:.2f}"


def _tiny_side(measures: ObjectMeasures, patch: int, multiple: int | None, patches: float) -> tuple[int, str]:
    unit = multiple or patch
    small = measures.sizes["10%"]
    least, largest = TINY_SIDES
    wanted = patches * patch / small if small else least
    side = max(1, min(math.ceil(max(least, wanted) / unit), largest // unit)) * unit
    reason = (
        f"the smallest tenth of the objects is up to {small:.1%} of the image a side: {small * side:.0f} px here, "
        f"patches have {patch} px"
    )
    return side, reason


def _most(measures: ObjectMeasures) -> tuple[int, str]:
    most = max(USUAL_MOST, math.ceil(1.5 * measures.most / 10) * 10)
    return most, f"{counted(measures.most, 'object')} in an image at most"


def _evaluated(measures: ObjectMeasures) -> tuple[int, str]:
    least, most = EVALUATED
    shown = {name: count for name, count in measures.classes.items() if count}
    rarest = min(shown, key=lambda name: shown[name], default=None)
    wanted = 0 if rarest is None else math.ceil(RARE_SEEN * measures.images / shown[rarest])
    if rarest is None or wanted <= least:
        return least, "enough to choose by"
    met = f"{wanted} images show it {RARE_SEEN} times"
    return min(wanted, most), f"{rarest} is rare, {shown[rarest]} objects in {measures.images} training images: {met}"


def _queries(measures: ObjectMeasures) -> tuple[int, str]:
    least, largest = TINY_QUERIES
    wanted = math.ceil(1.5 * measures.most)
    reason = f"{counted(measures.most, 'object')} in an image at most"
    if wanted > largest:
        return largest, f"{reason}; a small model has {largest} places for them, not half as many again"
    if wanted < least:
        return least, f"{reason}; {least} places are enough for few objects"
    return wanted, f"{reason}, and half as many again"


def _tiny_shown(measures: ObjectMeasures) -> int:
    """How many images a tiny model is shown: fewer where each holds more objects to learn from."""
    wanted = TINY_OBJECTS_SHOWN * measures.images / max(1, measures.objects)
    return round(min(TINY_IMAGES_SHOWN[1], max(TINY_IMAGES_SHOWN[0], wanted)))


def _epochs(images: int, shown: int, least: int, most: int) -> tuple[int, str]:
    epochs = min(most, max(least, round(shown / images)))
    return epochs, f"{images} training images, {epochs * images} shown in all"
