"""Whether a model has places for all objects of an image; what is said where it has not."""

from visiontune.data.object_measures import ObjectMeasures
from visiontune.models.load import places_for_objects
from visiontune.progress import warn
from visiontune.recipe import Recipe


def warn_of_crowded_images(recipe: Recipe, measures: ObjectMeasures) -> None:
    """Say how many training images hold more objects than the model of a recipe finds in one, and what can be done."""
    assert recipe.objects is not None
    name, side = recipe.model.name, recipe.data.image_longest_edge
    places = places_for_objects(name, recipe.model.revision, recipe.objects, side)
    if places is None:
        return
    found = min(places, recipe.objects.most)
    images, lost = measures.beyond(found)
    if not images:
        return
    if found < places:
        what = "raise --objects.most"
    elif recipe.objects.queries is not None:
        what = "raise --objects.queries (and --data.image_longest_edge, a patch for each), take a larger model"
    else:
        what = "take a larger model"
    warn(
        f"{images} of {measures.images} training images hold more objects than the {found} that {name} finds in an "
        f"image at most: {lost / measures.objects:.1%} of all objects cannot be found. Images are not cut into tiles: "
        f"{what}, crop the images, or annotate fewer objects"
    )
