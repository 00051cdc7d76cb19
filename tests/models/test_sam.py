"""Facts about SAM and SAM 2: what they see, what they learn from, the masks that they draw."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from transformers import AutoImageProcessor, Sam2Processor, SamProcessor

from tests.object_samples import as_sample, batch_of, changed, data, objects_of, picture_of, total, train
from visiontune.data.annotations.masks import from_pixels, to_pixels
from visiontune.data.objects import Objects
from visiontune.data.sample import Sample
from visiontune.errors import ModelError
from visiontune.metrics.mask_iou import prompted_mask_iou
from visiontune.models import sam
from visiontune.models.adapter import Features
from visiontune.models.load import is_segmenter, native_image_size
from visiontune.models.parts import apply_states, check_parts
from visiontune.models.sam_loss import object_losses
from visiontune.recipe import ObjectChoices
from visiontune.recipe_sections import Lora, PartState

SIDE = 64
CLASSES = ("light", "dark")
BUILDERS = {"sam": sam.build_tiny, "sam2": sam.build_tiny_2}
# The tiers of fine-tuning: what the encoder makes is kept, or its last layers learn too.
KEPT: dict[str, PartState] = dict(
    vision_encoder="frozen", vision_encoder_late="frozen", prompt_encoder="frozen", mask_decoder="full"
)
LATE: dict[str, PartState] = KEPT | {"vision_encoder_late": "lora"}


def choices(**changes: Any) -> ObjectChoices:
    return ObjectChoices(**{"classes": CLASSES, "masks": True, "mirror": "none", **changes})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {family: tmp_path_factory.mktemp("models") / family for family in BUILDERS}
    for family, folder in made.items():
        BUILDERS[family](folder, choices(), 0, image_size=SIDE)
    return made


@pytest.fixture(params=list(BUILDERS))
def model(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Any:
    return sam.load(str(folders[request.param]), None, data(SIDE), choices(), 0)


@pytest.fixture
def first(folders: dict[str, Path]) -> Any:
    """A SAM of the first generation."""
    return sam.load(str(folders["sam"]), None, data(SIDE), choices(), 0)


def drawn(number: int, count: int = 3, width: int = 96, height: int = 64) -> Sample:
    """Ellipses in places of their own on grey noise."""
    generator = np.random.default_rng(number)
    image = Image.fromarray(generator.integers(100, 140, (height, width, 3), dtype=np.uint8))
    draw, boxes, classes, masks = ImageDraw.Draw(image), [], [], []
    for cell in generator.permutation(6)[:count].tolist():
        wide, high = generator.integers(12, 20, 2).tolist()
        places = ((cell % 3, width / 3, wide), (cell // 3, height / 2, high))
        left, top = (int(number * room + generator.integers(room - side)) for number, room, side in places)
        kind = int(generator.integers(2))
        mask = Image.new("1", image.size)
        for canvas, colour in ((draw, ((220, 230, 210), (30, 20, 40))[kind]), (ImageDraw.Draw(mask), 1)):
            canvas.ellipse((left, top, left + wide - 1, top + high - 1), fill=colour)
        boxes.append([left, top, wide, high])
        classes.append(kind)
        masks.append(from_pixels(np.asarray(mask)))
    return as_sample(f"drawn {number}", image, boxes, classes, masks)


def many(number: int, count: int) -> Sample:
    """The same three ellipses, each told `count` times in all."""
    sample = drawn(number)
    rows = np.arange(count) % 3
    target = objects_of(sample)
    masks = tuple(target.masks[row] for row in rows)
    return changed(
        sample,
        boxes=target.boxes[rows],
        classes=target.classes[rows],
        masks=masks,
        crowd=rows < 0,
        ids=tuple(range(count)),
    )


def own_processor(model: Any, folders: dict[str, Path]) -> Any:
    """The library's own, of SAM in its Pillow variant, which does not change with what is installed."""
    if model.family == "sam2":
        return Sam2Processor.from_pretrained(folders["sam2"])
    processor = SamProcessor.from_pretrained(folders["sam"])
    processor.image_processor = AutoImageProcessor.from_pretrained(folders["sam"], backend="pil")
    return processor


def corners_of(objects: Objects) -> list[list[float]]:
    left, top, wide, high = objects.boxes.T
    return np.stack([left, top, left + wide, top + high], axis=1).tolist()


def test_the_model_sees_what_its_own_processor_makes_of_image_and_boxes(model: Any, folders: dict[str, Path]):
    for sample in (drawn(0), drawn(1, width=64, height=100), drawn(2, width=64, height=64)):
        told = {"input_boxes": [corners_of(objects_of(sample))]}
        own = own_processor(model, folders)(images=picture_of(sample), return_tensors="pt", **told)
        batch = batch_of(model, [sample])
        assert torch.equal(batch.tensors["pixel_values"][0], own["pixel_values"])
        prompts = sam._corners(batch.tensors["boxes"], batch.tensors["picture"])
        assert torch.allclose(prompts, own["input_boxes"].float(), atol=1e-4)


def test_what_is_found_is_what_the_library_draws(model: Any, folders: dict[str, Path]):
    processor = own_processor(model, folders)
    samples = [drawn(0), drawn(1, count=2, width=64, height=100)]
    for sample, found in zip(samples, model.find(batch_of(model, samples)), strict=True):
        told = objects_of(sample)
        seen = processor(images=picture_of(sample), input_boxes=[corners_of(told)], return_tensors="pt")
        with torch.no_grad():
            made = model.network(seen["pixel_values"], input_boxes=seen["input_boxes"].float(), multimask_output=False)
        sizes = [seen[name] for name in ("original_sizes", "reshaped_input_sizes") if name in seen]
        masks = processor.image_processor.post_process_masks(made.pred_masks, *sizes)[0][:, 0].numpy()
        mine = np.stack([to_pixels(mask) for mask in found.masks if mask is not None])
        assert mine.shape == masks.shape == (len(told), *picture_of(sample).size[::-1])
        assert (mine != masks).mean() < 1e-3  # boxes come and go as float32
        assert np.allclose(found.scores, made.iou_scores[0, :, 0].clamp(0, 1), atol=1e-4)
        assert np.allclose(found.boxes, told.boxes, atol=1e-4) and found.classes.tolist() == told.classes.tolist()
        assert found.soft is not None and np.allclose(found.soft, np.eye(2)[told.classes] * found.scores[:, None])


def test_crowds_are_not_drawn_and_images_without_objects_have_no_masks(model: Any):
    crowded = changed(drawn(0), crowd=np.array([False, True, False]))
    found = model.find(batch_of(model, [crowded, drawn(1, count=0)]))
    assert found[0].classes.tolist() == objects_of(crowded).classes[[0, 2]].tolist() and len(found[1]) == 0
    assert [len(one) for one in model.find(batch_of(model, [drawn(1, count=0)]))] == [0]


def test_hundreds_of_objects_are_drawn_as_if_each_were_alone(first: Any):
    crowd, alone = (first.find(batch_of(first, [many(0, count)]))[0] for count in (2 * sam.DRAWN_AT_ONCE + 1, 3))
    assert len(crowd) == 2 * sam.DRAWN_AT_ONCE + 1
    for place, (mask, score) in enumerate(zip(crowd.masks, crowd.scores, strict=True)):
        assert score == pytest.approx(alone.scores[place % 3], abs=1e-5)
        assert (to_pixels(mask) != to_pixels(alone.masks[place % 3])).mean() < 1e-3


def test_kept_features_of_a_frozen_encoder_give_the_same_bits_as_the_image(model: Any):
    apply_states(model.network, model.parts, KEPT, Lora(rank=4, alpha=8, dropout=0.0), 0)
    samples = [drawn(0), drawn(1, width=64, height=100)]
    batch = batch_of(model, samples)
    with torch.no_grad():
        kept = model.vision_features(batch)
    encode = model.encoder.encode
    again = model.encoder.collate(
        [
            encode(one, features=Features(values, ((size[0], size[1]),)))
            for one, values, size in zip(samples, kept, batch.tensors["size"].tolist(), strict=True)
        ]
    )
    assert "pixel_values" not in again.tensors and again.weights == batch.weights
    straight, cached = model.losses(batch), model.losses(again)
    assert all(torch.equal(straight[term], cached[term]) for term in model.terms)
    for mine, its in zip(model.find(batch), model.find(again), strict=True):
        assert mine.masks == its.masks and np.array_equal(mine.scores, its.scores)


def test_every_weight_belongs_to_one_part(model: Any):
    check_parts(model.network, model.parts, {part.name: "full" for part in model.parts})
    assert set(model.feature_parts) | {"prompt_encoder", "mask_decoder"} == {part.name for part in model.parts}


@pytest.mark.parametrize("states", [KEPT, LATE], ids=["kept", "late"])
def test_what_is_trained_gets_a_gradient_and_nothing_else(states: dict[str, PartState], model: Any):
    model.peft = apply_states(model.network, model.parts, states, Lora(rank=4, alpha=8, dropout=0.0), 0)
    batch = batch_of(model, [drawn(0), drawn(1)])
    for name, weight in model.trained_module.named_parameters():
        if "lora_B" in name:  # starts at zero, which would hide the gradient of its partner
            torch.nn.init.ones_(weight)
    total(model, batch).backward()
    without = []
    for name, weight in model.trained_module.named_parameters():
        assert weight.requires_grad or weight.grad is None
        if weight.requires_grad and weight.grad is None:
            without.append(name)
        if "lora_" in name:
            assert weight.grad.any() and "pos_embed" not in name
    # SAM 2 says beside each mask whether there is an object at all; a box that people drew always has one.
    assert all("pred_obj_score_head" in name for name in without) and bool(without) == (model.family == "sam2")


def test_a_batch_loses_as_much_as_its_pieces(model: Any):
    crowded = changed(drawn(2), crowd=np.array([False, True, False]))
    part = changed(drawn(3), masks=(None, *objects_of(drawn(3)).masks[1:]))
    batch = batch_of(model, [drawn(0), crowded, part, drawn(4, count=0), many(5, sam.DRAWN_AT_ONCE + 3)])
    assert batch.weights == dict.fromkeys(model.terms, 3.0 + 2.0 + 2.0 + sam.DRAWN_AT_ONCE + 3)
    whole, pieces = model.losses(batch), [model.losses(piece) for piece in batch.pieces(3)]
    for term, values in whole.items():
        assert values.shape == (5,) and values.dtype == torch.float32 and values[3] == 0
        assert torch.allclose(values, torch.cat([piece[term] for piece in pieces]), rtol=1e-4, atol=1e-5)
        # Objects that are padding, crowds or without a mask cost nothing.
        alone = model.losses(batch_of(model, [many(5, sam.DRAWN_AT_ONCE + 3)]))[term]
        assert torch.allclose(values[4:], alone, rtol=1e-4)


def test_a_batch_without_anything_to_learn_has_a_loss_of_nothing(model: Any):
    batch = batch_of(model, [drawn(0, count=0), changed(drawn(1), masks=(None,) * 3)])
    assert set(batch.weights.values()) == {0.0}
    assert all((values == 0).all() and values.shape == (2,) for values in model.losses(batch).values())


def test_an_empty_mask_costs_a_small_object_as_much_as_a_large_one():
    masks = torch.zeros(2, 64, 64)
    masks[0, :6, :6] = masks[1, :48, :48] = 1
    small, large = object_losses(torch.full((2, 64, 64), -4.0), masks, torch.zeros(2)).T
    assert torch.allclose(small, large, rtol=0.1)
    right = object_losses(16 * masks - 8, masks, torch.ones(2)).sum(dim=0)
    assert (right < 0.1 * small.sum()).all()


def test_the_model_learns_what_overlap_to_expect():
    masks = torch.zeros(1, 8, 8)
    masks[0, :4] = 1
    half = torch.full((1, 8, 8), -1.0)
    half[0, :2] = 1
    overlap = [object_losses(half, masks, torch.tensor([expected]))[2, 0].item() for expected in (0.5, 0.0, 1.0)]
    assert overlap == pytest.approx([0.0, 0.25, 0.25])


def test_training_boxes_are_moved_as_the_augmentations_number_says(first: Any):
    sample, encode = drawn(0), first.encoder.encode
    still = encode(sample).boxes
    once, again, other = (encode(sample, augmentation=number).boxes for number in (2**64 - 1, 2**64 - 1, 5))
    assert torch.equal(once, again) and not torch.equal(once, other) and not torch.equal(once, still)
    far = [
        (encode(sample, augmentation=number).boxes - still).abs() / still[:, 2:].repeat(1, 2) for number in range(40)
    ]
    centre, side = torch.stack(far).flatten(0, 1).split(2, dim=1)
    assert centre.max() <= 0.1001 and side.max() <= 0.2001 and side.max() > 0.1
    first.encoder.choices = choices(prompt_jitter=0.0)
    assert torch.allclose(encode(sample, augmentation=5).boxes, still, atol=1e-6)


def test_boxes_of_whole_pictures_stay_inside_them(first: Any):
    whole = changed(drawn(0, count=1), boxes=np.array([[0.0, 0.0, 96.0, 64.0]]))
    for number in range(20):
        centre, side = first.encoder.encode(whole, augmentation=number).boxes.split(2, dim=1)
        assert (centre - side / 2 >= -1e-6).all() and (centre + side / 2 <= 1 + 1e-6).all()


def test_of_many_objects_some_that_teach_are_learned_each_time(first: Any):
    sample = many(0, 3 * sam.MOST_LEARNED)
    masks = tuple(None if row % 4 == 0 else mask for row, mask in enumerate(objects_of(sample).masks))
    sample = changed(sample, masks=masks, crowd=np.arange(len(masks)) % 4 == 1)
    seen = [first.encoder.encode(sample, augmentation=number) for number in (1, 1, 2)]
    for one in seen:
        assert first.encoder.loss_weights([one]) == dict.fromkeys(first.terms, float(sam.MOST_LEARNED))
        assert one.has_mask.all() and not one.crowd.any()
    assert torch.equal(seen[0].boxes, seen[1].boxes) and not torch.equal(seen[0].boxes, seen[2].boxes)
    assert len(first.encoder.encode(sample).classes) == 3 * sam.MOST_LEARNED


def test_what_is_learned_is_what_was_drawn(model: Any):
    sample = drawn(1, width=64, height=100)
    read = model.encoder.supervision(sample)
    assert read.wrong is None and read.shown["masks"] == 3
    batch = batch_of(model, [sample])
    picture, size = (tuple(batch.tensors[name][0].tolist()) for name in ("picture", "size"))
    grown = model.encoder.whole(batch.tensors["masks"][0].float() - 127.5, picture, size)
    for mine, mask in zip((grown > 0).numpy(), objects_of(sample).masks, strict=True):
        its = to_pixels(mask)
        assert (mine & its).sum() / (mine | its).sum() > 0.8


def test_a_sample_may_be_given_another_ones_image(model: Any):
    mine, other = drawn(0), drawn(1)
    mixed = model.encoder.exchanged(mine, other)
    assert torch.equal(mixed.boxes, model.encoder.encode(mine).boxes)
    assert torch.equal(mixed.pixel_values, model.encoder.encode(other).pixel_values)
    assert model.losses(model.encoder.collate([mixed]))["dice"] > 0


@pytest.mark.parametrize("family", list(BUILDERS))
def test_the_same_seed_gives_the_same_files(family: str, folders: dict[str, Path], tmp_path: Path):
    state = torch.get_rng_state()
    for seed in (0, 1):
        BUILDERS[family](tmp_path / str(seed), choices(), seed, image_size=SIDE)
    assert torch.equal(state, torch.get_rng_state())
    same, other = ((tmp_path / str(seed) / "model.safetensors").read_bytes() for seed in (0, 1))
    assert same == (folders[family] / "model.safetensors").read_bytes() != other


def test_other_sizes_and_data_without_masks_are_refused(folders: dict[str, Path]):
    for folder in folders.values():
        with pytest.raises(ModelError, match="64 pixels a side, not 128") as refused:
            sam.load(str(folder), None, data(128), choices(), 0)
        assert "--data.image_longest_edge 64" in str(refused.value)
        with pytest.raises(ModelError, match="none are learned"):
            sam.load(str(folder), None, data(SIDE), choices(masks=False), 0)


def test_sam2_as_published_for_videos_is_taken_for_its_images(folders: dict[str, Path], tmp_path: Path):
    import json

    published = tmp_path / "published"
    published.mkdir()
    for file in folders["sam2"].iterdir():
        (published / file.name).write_bytes(file.read_bytes())
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps(config | {"model_type": "sam2_video"}))
    assert native_image_size(str(published)) == SIDE and is_segmenter(str(published))
    for name in ("no_memory_embedding",):
        assert name in sam.load(str(published), None, data(SIDE), choices(), 0).network.state_dict()


@pytest.mark.parametrize("family", list(BUILDERS))
def test_a_tiny_model_learns_to_draw_better_than_filling_the_box(family: str, folders: dict[str, Path]):
    model: Any = sam.load(str(folders[family]), None, data(SIDE), choices(), 0)
    samples = [drawn(number) for number in range(2)]
    batch = batch_of(model, samples)
    train(model, batch, 110, 4e-3)
    overlap = prompted_mask_iou([objects_of(sample) for sample in samples], [one.masks for one in model.find(batch)])
    assert overlap.mean.value is not None and overlap.filled_boxes.value is not None
    assert overlap.mean.value > overlap.filled_boxes.value + 0.05
