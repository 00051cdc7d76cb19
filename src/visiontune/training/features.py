"""What a frozen vision encoder makes of the training images: computed once, read in every epoch.

A chunk of rows is one file, written whole, under a folder named by a key of everything that its numbers depend on:
weights, preprocessing, augmentation, precision, rows. So another state of any of these finds no file, a killed
computation goes on with the chunks that are missing, and runs that share a folder share the work. A file's name says
which rows it holds: a run of fewer rows has a last chunk of its own, and shares those before it.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from visiontune.data.dataset import Dataset, Index
from visiontune.data.pages import engine
from visiontune.data.sample import Images, Sample
from visiontune.errors import MachineError, RecipeError
from visiontune.files import write_json, written_whole
from visiontune.machine import versions
from visiontune.models.adapter import Features, Layout, ModelAdapter
from visiontune.models.parts import part_of, tensors_sha256
from visiontune.progress import note, progress
from visiontune.recipe import Recipe
from visiontune.run import Run
from visiontune.training.batches import MicroBatch, Reading, SampleRef, load_steps
from visiontune.training.precision import DTYPES, autocast
from visiontune.training.ranks import Ranks
from visiontune.training.receipts import ReceiptBook, check_placeholders

FEATURES_VERSION = 1
DECISION_NAME = "features.json"
CHUNK_ROWS = 32
OPEN_CHUNKS = 64
# Computing and writing a view takes a little longer than computing it in a step, and reading it takes little.
PAYS_FROM = 1.25
DISK_SHARE = 0.5


@dataclass(frozen=True)
class FeatureStore:
    """The features of the training rows of several datasets, on disk. Cheap to copy to the loader's workers.

    `rows` is how many rows of each dataset are there, `views` how many augmented views of each.
    """

    folders: tuple[Path, ...]
    indexes: tuple[Index, ...]
    layouts: tuple[tuple[Layout, ...], ...]
    rows: tuple[int, ...]
    views: int

    def sample(self, ref: SampleRef) -> tuple[Sample, Features]:
        """The sample without its images, and the features in their place; its epoch decides which view."""
        dataset, row, epoch = ref
        features, starts = _opened(self.chunk(dataset, epoch % self.views, row // CHUNK_ROWS))
        at = row % CHUNK_ROWS
        index = self.indexes[dataset]
        sample = Sample(index.ids[row], Images(()), index.target(row))
        return sample, Features(features[starts[at] : starts[at + 1]], self.layouts[dataset][row])

    def chunk(self, dataset: int, view: int, number: int) -> Path:
        """The file of a chunk of rows, seen in one of their augmented views."""
        start = number * CHUNK_ROWS
        stop = min(start + CHUNK_ROWS, self.rows[dataset])
        return self.folders[dataset] / f"view-{view}-rows-{start:08d}-{stop:08d}.safetensors"

    def chunks(self) -> Iterator[tuple[Path, list[SampleRef]]]:
        """Every chunk's file and its samples."""
        for dataset, rows in enumerate(self.rows):
            for view in range(self.views):
                for start in range(0, rows, CHUNK_ROWS):
                    members = range(start, min(start + CHUNK_ROWS, rows))
                    yield self.chunk(dataset, view, start // CHUNK_ROWS), [(dataset, row, view) for row in members]


@dataclass(frozen=True)
class Decision:
    """Whether features are kept, and why; bytes on disk, and how often each stored view is read."""

    kept: bool
    reason: str
    bytes: int = 0
    reads: float = 0.0


@lru_cache(maxsize=OPEN_CHUNKS)
def _opened(path: Path) -> tuple[Any, list[int]]:
    """A chunk's features as a memory-mapped slice (views of all its rows, ...), and where each row's begin."""
    file = safe_open(path, framework="pt")
    counts = file.get_tensor("counts")
    return file.get_slice("features"), [0, *counts.cumsum(0).tolist()]


def features_of(
    run: Run, recipe: Recipe, ranks: Ranks, adapter: ModelAdapter, datasets: Sequence[Dataset]
) -> tuple[FeatureStore, Decision] | None:
    """Where the features of a run's training rows are kept, and what was decided; None where images are seen anew.

    Raises RecipeError where the recipe insists on features that cannot be kept.
    """
    if why := _forbidden(recipe, adapter):
        if recipe.features.cache == "always":
            raise RecipeError(why, where="features.cache", fix="use --features.cache auto")
        return None
    if recipe.features.cache == "never":
        return None
    store = _store(run, recipe, adapter, datasets)
    decision = ranks.from_first(_decision(run, recipe, adapter, datasets, store) if ranks.is_first else None)
    return (store, decision) if decision.kept else None


def forget(run: Run) -> None:
    """Remove the features inside a run's own folder; those in a folder that the recipe names stay for other runs."""
    shutil.rmtree(run.path / "features", ignore_errors=True)


def _forbidden(recipe: Recipe, adapter: ModelAdapter) -> str | None:
    if not adapter.feature_parts:
        return f"The vision encoder's work is not kept for models of the family {adapter.family}."
    if learning := [
        f"{part} is {recipe.parts[part]}" for part in adapter.feature_parts if recipe.parts[part] != "frozen"
    ]:
        return f"The vision encoder is trained ({', '.join(learning)}), so its features change."
    if recipe.objects is not None and (recipe.objects.mirror != "none" or recipe.data.augment):
        return "Images are mirrored or augmented anew in each epoch; --objects.mirror none --data.augment 0 keep them."
    if recipe.data.augment and recipe.data.augmented_views is None:
        return "Images are augmented anew in each epoch; data.augmented_views says how many views to keep."
    return None


def _store(run: Run, recipe: Recipe, adapter: ModelAdapter, datasets: Sequence[Dataset]) -> FeatureStore:
    folder = Path(recipe.features.folder) if recipe.features.folder else run.path / "features"
    indexes = tuple(dataset.index("train") for dataset in datasets)
    shared = _shared_key(recipe, adapter)
    return FeatureStore(
        folders=tuple(folder / _key(shared, dataset) for dataset in datasets),
        indexes=indexes,
        layouts=tuple(tuple(adapter.encoder.layouts(index)) for index in indexes),
        rows=tuple(min(len(index.ids), recipe.data.limit or len(index.ids)) for index in indexes),
        views=(recipe.data.augmented_views or 1) if recipe.data.augment else 1,
    )


def _shared_key(recipe: Recipe, adapter: ModelAdapter) -> dict[str, Any]:
    """All that the features of any row depend on, but the row itself."""
    module, data = adapter.trained_module, recipe.data
    named = [*module.named_parameters(), *module.named_buffers()]
    vision = {name: tensor for name, tensor in named if part_of(adapter.parts, name) in adapter.feature_parts}
    return {
        "version": FEATURES_VERSION,
        "weights": tensors_sha256(vision),
        "preprocessing": adapter.encoder.preprocessing(),
        "image_longest_edge": data.image_longest_edge,
        "image_splitting": data.image_splitting,
        "pages": None if data.pages is None else [data.pages.hash, engine()],
        "augmentation": [data.augment, data.augmented_views, recipe.seed] if data.augment else None,
        "contract": None if recipe.device is None else recipe.device.model_dump(mode="json"),
        "machine": [recipe.machine.device, recipe.machine.precision],
        "versions": versions(),
    }


def _key(shared: dict[str, Any], dataset: Dataset) -> str:
    text = json.dumps([shared, dataset.info.content_hash], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _decision(
    run: Run, recipe: Recipe, adapter: ModelAdapter, datasets: Sequence[Dataset], store: FeatureStore
) -> Decision:
    """The run's decision, made at its first start by arithmetic and kept, so that a resumed run goes on alike."""
    if (stood := run.read_json(DECISION_NAME)) is not None:
        return Decision(**stood)
    decision = _weighed(recipe, adapter, datasets, store)
    write_json(run.path / DECISION_NAME, asdict(decision))
    note(f"features: {decision.reason}")
    return decision


def _weighed(recipe: Recipe, adapter: ModelAdapter, datasets: Sequence[Dataset], store: FeatureStore) -> Decision:
    encoder = adapter.encoder
    seen = sum(
        encoder.views(layout) for layouts, n in zip(store.layouts, store.rows, strict=True) for layout in layouts[:n]
    )
    if not seen:
        return Decision(False, "no sample has an image")
    first = next((d, i, 0) for d, layouts in enumerate(store.layouts) for i, one in enumerate(layouts) if one)
    (one,) = _computed(adapter, Reading(datasets, encoder).batch([first]), recipe)
    size = seen * store.views * one[0].numel() * one.element_size()
    reads = recipe.schedule.steps * recipe.batch.samples / sum(store.rows) / store.views
    place = store.folders[0].parent
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    facts = f"{seen * store.views} views, {size / 2**20:,.0f} MiB, each read {reads:.1f} times"
    if recipe.features.cache == "always":
        return Decision(True, f"kept, as asked: {facts}", size, reads)
    if reads < PAYS_FROM:
        return Decision(False, f"not kept: {facts}, which does not pay", size, reads)
    if size > DISK_SHARE * free:
        return Decision(False, f"not kept: {facts}; {place} has {free / 2**20:,.0f} MiB", size, reads)
    return Decision(True, f"kept in {place}: {facts}", size, reads)


def _computed(adapter: ModelAdapter, batch: Any, recipe: Recipe) -> list[torch.Tensor]:
    """The features of each sample of a batch, in the precision in which the projector gets them."""
    device = next(adapter.network.parameters()).device
    adapter.trained_module.eval()
    with torch.no_grad(), autocast(device, recipe.machine.precision):
        made = adapter.vision_features(batch.to(device))
    return [one.to("cpu", DTYPES[recipe.machine.precision]) for one in made]


def fill(
    store: FeatureStore,
    recipe: Recipe,
    ranks: Ranks,
    adapter: ModelAdapter,
    datasets: Sequence[Dataset],
    book: ReceiptBook,
) -> None:
    """Compute the chunks that are not there, each rank its share. Raises ReceiptError where an image does not reach the
    encoder."""
    missing = [(path, refs) for path, refs in store.chunks() if not path.is_file()][ranks.rank :: ranks.count]
    lengths = [adapter.encoder.lengths(index) for index in store.indexes]

    def cut(refs: list[SampleRef]) -> Iterator[tuple[SampleRef, ...]]:
        """At most `batch.tokens` tokens at a time, padding left out."""
        while refs:
            room, n = recipe.batch.tokens, 0
            while n < len(refs) and (n == 0 or room >= lengths[refs[n][0]][refs[n][1]]):
                room -= lengths[refs[n][0]][refs[n][1]]
                n += 1
            yield tuple(refs[:n])
            refs = refs[n:]

    plan = [[MicroBatch(c, m, some) for m, some in enumerate(cut(refs))] for c, (_, refs) in enumerate(missing)]
    reading = Reading(datasets, adapter.encoder, augment_seed=recipe.seed, augmented_views=recipe.data.augmented_views)
    rows = sum(len(refs) for _, refs in missing)
    with progress("features of the vision encoder", rows, "samples", show=ranks.is_first and rows > 0) as advance:
        for chunk, batches in load_steps(plan, reading, workers=recipe.machine.workers if len(plan) > 1 else 0):
            for _, batch in batches:
                check_placeholders(book, batch)
            made = [one for _, batch in batches for one in _computed(adapter, batch, recipe)]
            _write(missing[chunk][0], made)
            advance(len(made))
    ranks.wait()


def _write(path: Path, made: Sequence[torch.Tensor]) -> None:
    counts = torch.tensor([len(one) for one in made])
    some = [one for one in made if len(one)]
    tensors = {"features": torch.cat(some) if some else torch.zeros(0), "counts": counts}
    try:
        with written_whole(path) as aside:
            save_file(tensors, aside)
    except SafetensorError as error:  # in which safetensors wraps what the disk says
        raise MachineError(
            f"Features could not be written: {error}",
            where=str(path),
            fix="make room for them and resume the run, or train anew with --features.cache never",
        ) from error
