"""SmolVLM: the first generation (Idefics3 classes), the second (SmolVLM classes), and a tiny one to try things on."""

import functools
import json
import warnings
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL.Image import Image

from visiontune.contract import DeviceContract
from visiontune.data.augment import augmented
from visiontune.data.dataset import Index
from visiontune.data.images import decode
from visiontune.data.sample import Sample
from visiontune.errors import DataError, ModelError
from visiontune.models.adapter import Batch, Encoded, Encoder, ModelAdapter, Trace
from visiontune.models.labels import LabelTree
from visiontune.models.parts import Part
from visiontune.recipe import Data

PARTS = (
    Part("vision_encoder", ("model.vision_model",)),
    Part("projector", ("model.connector",)),
    Part("language_model", ("model.text_model.layers", "model.text_model.norm", "model.text_model.rotary_emb")),
    Part("embeddings", ("model.text_model.embed_tokens", "lm_head")),
)


REMEMBERED_TEXTS = 65536


class SmolVLMEncoder(Encoder):
    """Samples to tensors through the checkpoint's own processor and chat template, images resized by Pillow."""

    def __init__(self, processor: Any, data: Data) -> None:
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self.data = data
        image_processor = processor.image_processor
        image_processor.do_image_splitting = data.image_splitting
        image_processor.size = {"longest_edge": data.image_longest_edge}
        self.tokens_per_tile: int = processor.image_seq_len
        self.image_token_id: int = processor.image_token_id
        self.end_token_id: int = self.tokenizer.convert_tokens_to_ids(processor.end_of_utterance_token)
        self._tokenised: dict[Any, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def encode(self, sample: Sample, *, with_answer: bool = True, augmentation: int | None = None) -> Encoded:
        pixel_values = pixel_mask = None
        layout: tuple[tuple[int, int], ...] = ()
        if sample.seen.files:
            images = [decode(file.data) for file in sample.seen.files]
            if augmentation is not None and self.data.augment:
                images = [augmented(image, self.data.augment, augmentation) for image in images]
            pixel_values, pixel_mask, layout = self.see(images)
        prompt_ids, answer_ids = self._texts(sample.target.prompt or self.data.prompt, sample.target.answer, layout)
        room = self.data.max_tokens - len(prompt_ids)
        if room < 1:
            raise DataError(
                f"The question and its images take {len(prompt_ids)} tokens; {self.data.max_tokens} are allowed, and "
                "images are never cut.",
                where=sample.id,
                fix="raise data.max_tokens, lower data.image_longest_edge, or turn data.image_splitting off",
            )
        kept = answer_ids[:room] if with_answer else ()
        return Encoded(
            id=sample.id,
            input_ids=torch.tensor(prompt_ids + kept, dtype=torch.long),
            supervised=torch.tensor([False] * len(prompt_ids) + [True] * len(kept)),
            pixel_values=pixel_values,
            pixel_mask=pixel_mask,
            image_features=0 if pixel_values is None else len(pixel_values) * self.tokens_per_tile,
            shortened=len(answer_ids) - len(kept) if with_answer else 0,
        )

    def see(self, images: Sequence[Image]) -> tuple[torch.Tensor, torch.Tensor, tuple[tuple[int, int], ...]]:
        """RGB images as tiles (tiles, 3, height, width) float32, what of them is picture (tiles, height, width) int64,
        and (rows, columns) of each image's tiles."""
        seen = self.processor.image_processor(
            images=[list(images)], return_row_col_info=True, return_tensors="pt", input_data_format="channels_last"
        )
        layout = tuple(zip(seen["rows"][0], seen["cols"][0], strict=True))
        return seen["pixel_values"][0], seen["pixel_attention_mask"][0], layout

    def label_tokens(self, label: str) -> tuple[int, ...]:
        return self._texts(self.data.prompt, label, ())[1]

    def _texts(
        self, prompt: str, answer: str, layout: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """`tokenise`, remembered: few questions, answers and tile layouts make up most datasets."""
        asked = (prompt, answer, layout)
        if asked not in self._tokenised:
            if len(self._tokenised) >= REMEMBERED_TEXTS:
                self._tokenised.clear()
            self._tokenised[asked] = self.tokenise(*asked)
        return self._tokenised[asked]

    def tokenise(
        self, prompt: str, answer: str, layout: tuple[tuple[int, int], ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Token ids of the question (with its image tokens) and of the answer with its end token.

        The two are tokenised apart, so that training sees the very ids that the model gets when it is asked.
        """
        question = [*({"type": "image"} for _ in layout), {"type": "text", "text": prompt}]
        messages: list[dict[str, Any]] = [{"role": "user", "content": question}]
        asked: str = self.processor.apply_chat_template(messages, add_generation_prompt=True)
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        answered: str = self.processor.apply_chat_template(messages)
        if not answered.startswith(asked):
            raise ModelError(
                "The chat template rewrites the question once it is answered, so the answer's place is unknown.",
                fix="use a checkpoint whose template keeps the question unchanged",
            )
        pieces = asked.split(self.processor.image_token)
        if len(pieces) != len(layout) + 1:
            raise DataError(
                f"The question holds {len(pieces) - 1} image placeholders for {len(layout)} images.",
                where=prompt[:80],
                fix=f"remove '{self.processor.image_token}' from the text",
            )
        rows, columns = [[row for row, _ in layout]], [[column for _, column in layout]]
        text = pieces[0]
        for i, piece in enumerate(pieces[1:]):
            text += self.processor.replace_image_token({"rows": rows, "cols": columns}, i) + piece
        prompt_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        answer_ids = self.tokenizer(answered[len(asked) :], add_special_tokens=False)["input_ids"]
        if self.end_token_id not in answer_ids:
            raise ModelError("The chat template closes an answer without the end token.")
        answer_ids = answer_ids[: answer_ids.index(self.end_token_id) + 1]
        if self.image_token_id in answer_ids:
            raise DataError("An answer holds an image placeholder.", where=answer[:80], fix="remove it from the text")
        return tuple(prompt_ids), tuple(answer_ids)

    def lengths(self, index: Index) -> NDArray[np.int64]:
        layout_of = functools.lru_cache(maxsize=65536)(self.layout)
        lengths = np.empty(len(index.ids), dtype=np.int64)
        for i, (prompt, answer) in enumerate(zip(index.prompts, index.answers, strict=True)):
            layout = tuple(layout_of(*size) for size in zip(index.heights[i], index.widths[i], strict=True))
            prompt_ids, answer_ids = self._texts(prompt or self.data.prompt, answer, layout)
            lengths[i] = min(len(prompt_ids) + len(answer_ids), max(self.data.max_tokens, len(prompt_ids)))
        return lengths

    def layout(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tiles of an image of this size in pixels; 0 and 0 for one that is not cut."""
        _, rows, columns = self.processor.image_processor.get_number_of_image_patches(height, width)
        return rows, columns

    def collate(self, encoded: Sequence[Encoded], *, pad_left: bool = False) -> Batch:
        longest = max(len(one.input_ids) for one in encoded)
        ids = torch.full((len(encoded), longest), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(encoded), longest), dtype=torch.long)
        supervised = torch.zeros((len(encoded), longest), dtype=torch.bool)
        for row, one in enumerate(encoded):
            place = slice(longest - len(one.input_ids), None) if pad_left else slice(len(one.input_ids))
            ids[row, place], mask[row, place], supervised[row, place] = one.input_ids, 1, one.supervised
        tensors = {"input_ids": ids, "attention_mask": mask, "supervised": supervised}
        if any(one.pixel_values is not None for one in encoded):
            tensors |= _side_by_side(encoded)
        return Batch(
            ids=[one.id for one in encoded],
            tensors=tensors,
            weights={"text": int(supervised.sum())},
            tokens=int(mask.sum()),
            padded_tokens=mask.numel(),
            image_tokens=int((ids == self.image_token_id).sum()),
            image_features=sum(one.image_features for one in encoded),
            tiles=sum(len(one.pixel_values) for one in encoded if one.pixel_values is not None),
            shortened=sum(one.shortened > 0 for one in encoded),
        )

    def segments(self, encoded: Encoded) -> list[tuple[str, bool]]:
        runs: list[tuple[str, bool]] = []
        tokens = zip(encoded.input_ids.tolist(), encoded.supervised.tolist(), strict=True)
        for (supervised, is_image), run in groupby(tokens, key=lambda t: (t[1], t[0] == self.image_token_id)):
            ids = [token for token, _ in run]
            text = f"<image>×{len(ids)}" if is_image else self.tokenizer.decode(ids, skip_special_tokens=False)
            if runs and runs[-1][1] == supervised:
                text = runs.pop()[0] + text
            runs.append((text, supervised))
        return runs

    def answer_of(self, encoded: Encoded) -> str:
        ids = encoded.input_ids[encoded.supervised].tolist()
        return self.tokenizer.decode(ids[:-1] if ids[-1:] == [self.end_token_id] else ids).strip()

    def save(self, folder: Path) -> None:
        self.processor.save_pretrained(folder)


def _side_by_side(encoded: Sequence[Encoded]) -> dict[str, torch.Tensor]:
    """Tiles padded to the most tiles and the largest tile; the model drops tiles that are all zero."""
    seen = [(one.pixel_values, one.pixel_mask) for one in encoded]
    shapes = [(len(p), *p.shape[2:]) for p, _ in seen if p is not None]
    tiles, height, width = (max(sizes) for sizes in zip(*shapes, strict=True))
    pixels = torch.zeros(len(encoded), tiles, 3, height, width)
    mask = torch.zeros(len(encoded), tiles, height, width, dtype=torch.long)
    for row, (values, valid) in enumerate(seen):
        if values is not None and valid is not None:
            pixels[row, : len(values), :, : values.shape[2], : values.shape[3]] = values
            mask[row, : len(values), : values.shape[2], : values.shape[3]] = valid
    return {"pixel_values": pixels, "pixel_attention_mask": mask}


class SmolVLMAdapter(ModelAdapter):
    """SmolVLM for the training loop."""

    family = "smolvlm"
    terms = ("text",)
    parts = PARTS

    def __init__(self, network: Any, encoder: SmolVLMEncoder) -> None:
        self.network = network
        self.encoder = self._encoder = encoder

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        network: Any = self.network
        tensors = dict(batch.tensors)
        supervised = tensors.pop("supervised")
        hidden = network.model(**tensors, use_cache=False).last_hidden_state
        # Only the positions that predict a supervised token go through the vocabulary: full logits never exist.
        rows, columns = supervised[:, 1:].nonzero(as_tuple=True)
        logits = network.lm_head(hidden[rows, columns])
        token_losses = torch.nn.functional.cross_entropy(
            logits.float(), tensors["input_ids"][rows, columns + 1], reduction="none"
        )
        sums = torch.zeros(len(batch.ids), device=token_losses.device)
        return {"text": sums.index_add(0, rows, token_losses)}

    @torch.no_grad()
    def trace(self, batch: Batch, max_new_tokens: int) -> list[Trace]:
        network: Any = self.network
        tokenizer = self._encoder.tokenizer
        inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "supervised"}
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", UserWarning
            )  # sampling fields of the checkpoint's own config, unused when greedy
            made = network.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                num_beams=1,
                repetition_penalty=1.0,
                eos_token_id=self._encoder.end_token_id,
                pad_token_id=tokenizer.pad_token_id,
                output_logits=True,
                return_dict_in_generate=True,
            )
        new = made.sequences[:, batch.tensors["input_ids"].shape[1] :]
        logs = torch.stack([step.float().log_softmax(-1) for step in made.logits], dim=1)
        best = logs.topk(2, dim=-1).values.cpu()
        picked = logs.gather(-1, new[..., None])[..., 0].cpu()
        ends = [row.index(end) + 1 if (end := self._encoder.end_token_id) in row else len(row) for row in new.tolist()]
        texts = tokenizer.batch_decode(new, skip_special_tokens=True)
        return [
            Trace(
                text.strip(),
                tuple(new[row, :end].tolist()),
                tuple(picked[row, :end].tolist()),
                tuple((best[row, :end, 0] - best[row, :end, 1]).tolist()),
            )
            for row, (text, end) in enumerate(zip(texts, ends, strict=True))
        ]

    @torch.no_grad()
    def score_labels(self, batch: Batch, tree: LabelTree) -> NDArray[np.float64]:
        network: Any = self.network
        inputs = {name: tensor for name, tensor in batch.tensors.items() if name != "supervised"}
        mask = inputs["attention_mask"]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        # The prompt is read once; what follows a branching is read behind it, from the cache.
        read = network(**inputs, position_ids=positions, use_cache=True, logits_to_keep=1)
        at_branches = {}
        for prefix, followers in tree.branches.items():
            logits = read.logits[:, -1]
            if prefix:
                behind = torch.tensor([prefix], device=mask.device).expand(len(mask), -1)
                places = positions[:, -1:] + torch.arange(1, len(prefix) + 1, device=mask.device)
                logits = network(
                    input_ids=behind,
                    attention_mask=torch.cat([mask, torch.ones_like(behind)], dim=1),
                    position_ids=places,
                    past_key_values=read.past_key_values,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1]
                read.past_key_values.crop(-len(prefix))
            at_branches[prefix] = logits[:, list(followers)].double().cpu().numpy()
        if not at_branches:  # a single label
            return np.zeros((len(mask), len(tree.labels)))
        return tree.log_probabilities(at_branches)


def load(folder: str, revision: str | None, data: Data, device: DeviceContract | None = None) -> SmolVLMAdapter:
    """A checkpoint of either generation, weights in float32, images resized by Pillow."""
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor

    network = AutoModelForImageTextToText.from_pretrained(
        folder, revision=revision, dtype=torch.float32, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(folder, revision=revision)
    processor.image_processor = AutoImageProcessor.from_pretrained(folder, revision=revision, backend="pil")
    if device is None:
        return SmolVLMAdapter(network, SmolVLMEncoder(processor, data))
    from visiontune.models.smolvlm_device import SmolVLMDeviceEncoder

    return SmolVLMAdapter(network, SmolVLMDeviceEncoder(processor, data, device, network.config))


def chat_prompt(folder: str | None, revision: str | None = None) -> str:
    """What the checkpoint's chat template (None: the tiny model's) makes of a picture and a question, up to the answer,
    with {marker} and {question} in their places."""
    from transformers import AutoProcessor

    return prompt_of(None if folder is None else AutoProcessor.from_pretrained(folder, revision=revision))


def prompt_of(processor: Any) -> str:
    """`chat_prompt` of a processor; None stands for the tiny model's template."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages: Any = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "{question}"}]}]
    if processor is None:
        (text,), _ = render_jinja_template([messages], chat_template=CHAT_TEMPLATE, add_generation_prompt=True)
    else:
        text = processor.apply_chat_template(messages, add_generation_prompt=True)
    return text.replace("<image>", "{marker}")


def build_tiny(
    folder: Path,
    texts: Sequence[str],
    seed: int,
    *,
    image_size: int = 32,
    width: int = 96,
    layers: int = 3,
    patches_per_side: int = 4,
) -> None:
    """Write a small SmolVLM with random weights to `folder`: the real classes, a tokenizer trained on `texts`.

    Widths are multiples of 32, so that the model can be quantised in blocks of 32 later. The same arguments give the
    same files.
    """
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMProcessor
    from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
    from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

    tokenizer = _train_tokenizer(texts)
    scale_factor = 2
    config = SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "architectures": ["VLlama3ForCausalLM"],  # the name converters to other formats look for
            "vocab_size": -(-len(tokenizer) // 32) * 32,
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "num_key_value_heads": 1,
            "head_dim": 32,
            "rms_norm_eps": 1e-5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": 2 * width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 32,
            "image_size": image_size,
            "patch_size": image_size // patches_per_side,
        },
        scale_factor=scale_factor,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = SmolVLMForConditionalGeneration(config)
    network.generation_config.eos_token_id = tokenizer.eos_token_id
    network.generation_config.pad_token_id = tokenizer.pad_token_id
    tile = {"longest_edge": image_size}
    processor = SmolVLMProcessor(
        image_processor=SmolVLMImageProcessorPil(size=tile, max_image_size=tile, do_image_splitting=False),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=tile,
            max_image_size=tile,
            video_sampling={"max_frames": 8, "fps": 1, "video_size": tile},  # pyright: ignore[reportCallIssue]
        ),
        image_seq_len=(patches_per_side // scale_factor) ** 2,
        chat_template=CHAT_TEMPLATE,
    )
    network.save_pretrained(folder)
    processor.save_pretrained(folder)


def _train_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE tokenizer with SmolLM's splitting (digits one by one) and SmolVLM's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<end_of_utterance>", "<fake_token_around_image>"]
    special += ["<image>", "<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, "User: Assistant: "], trainer)
    tokenizer = _with_blank_line(tokenizer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=special[4:],
        model_max_length=2048,
        clean_up_tokenization_spaces=False,
    )


def _with_blank_line(tokenizer: Any) -> Any:
    """The tokenizer with a token for a blank line, which stands between the tiles of an image and its overview."""
    values = json.loads(tokenizer.to_str())
    newline = "\u010a"  # the byte 10, as byte-level tokenizers write it
    vocabulary, merges = values["model"]["vocab"], values["model"]["merges"]
    if newline * 2 not in vocabulary:
        vocabulary[newline * 2] = len(vocabulary)
        merges.append([newline, newline])
    return type(tokenizer).from_str(json.dumps(values))


# The turns of SmolVLM: "User:" before an image, "User: " before text, each turn closed by the end token and a new line.
CHAT_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}"
    "{{ ':' if message['content'][0]['type'] == 'image' else ': ' }}"
    "{% for part in message['content'] %}{{ part['text'] if part['type'] == 'text' else '<image>' }}{% endfor %}"
    "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
