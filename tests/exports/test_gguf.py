"""GGUF files are those of llama.cpp's own converter and quantiser, and llama.cpp computes with them what torch does."""

import json
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models_by_formula import CASES, LAYERED_CASES, TEMPLATE, Case, build, described

from visiontune.errors import MachineError, ModelError, VisiontuneError
from visiontune.exports import quantise
from visiontune.exports.gguf import QUANTISATIONS, GGUFFile, predicted_bytes, write_gguf
from visiontune.exports.gguf_layout import position_rows
from visiontune.exports.merged_folder import StoredTensor, read_json

OFFICIAL = read_json(Path(__file__).with_name("official_gguf.json"))
OUR_KEYS = {"visiontune.version", "tokenizer.ggml.add_bos_token"}  # written always; the official one writes some
THEIR_KEYS = {"general.size_label"}  # how many parameters, for listings


@pytest.fixture
def smolvlm(tmp_path: Path) -> Path:
    build(CASES["smolvlm"], tmp_path / "smolvlm")
    return tmp_path / "smolvlm"


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(read_json(path) | fields), encoding="utf-8")


def keys_of(file: GGUFFile) -> dict[str, Any]:
    return described(file.path)["keys"]


@pytest.mark.parametrize("quantisation", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", CASES)
def test_files_equal_those_of_the_official_converter(name: str, quantisation: str, tmp_path: Path) -> None:
    case, official = CASES[name], OFFICIAL["converted"][name][quantisation]
    build(case, tmp_path / "model")
    longest_edge = None if case.family == "llama" else 64  # what the folder's processor says
    files = write_gguf(tmp_path / "model", tmp_path, quantisation, longest_edge=longest_edge, name="Model")
    assert len(files) == len(official)
    for file, expected in zip(files, official.values(), strict=True):
        made = described(file.path)
        assert made["tensors"] == expected["tensors"], "types, shapes and bytes"
        assert made["keys"].items() >= {k: v for k, v in expected["keys"].items() if k not in THEIR_KEYS}.items()
        assert made["keys"].keys() - expected["keys"].keys() <= OUR_KEYS
        assert file.tensors == len(made["tensors"])
        assert file.bytes == file.path.stat().st_size


@pytest.mark.parametrize("quantisation", ["q4_0", "q4_k_m", "q5_k_m", "q6_k"])
@pytest.mark.parametrize("name", LAYERED_CASES)
def test_mixed_types_and_their_bytes_are_those_of_the_official_quantiser(
    name: str, quantisation: str, tmp_path: Path
) -> None:
    build(LAYERED_CASES[name], tmp_path / "model")
    (file,) = write_gguf(tmp_path / "model", tmp_path, quantisation)
    made, official = described(file.path)["tensors"], OFFICIAL["quantised"][name][quantisation]
    output = "token_embd.weight" if LAYERED_CASES[name].tied else "output.weight"
    if quantisation == "q4_0" and official[output].startswith("Q6_K"):
        assert made.pop(output).startswith("Q8_0"), "Q6_K is not the gguf package's to write"
        official = {tensor: about for tensor, about in official.items() if tensor != output}
    assert made == official
    kinds = [about.split()[0] for about in described(file.path)["tensors"].values()]
    assert file.types == {kind: kinds.count(kind) for kind in kinds}
    assert keys_of(file)["general.file_type"] == {"q4_0": 2, "q4_k_m": 15, "q5_k_m": 17, "q6_k": 18}[quantisation]


IN_LLAMA_CPP = """
import base64, io, json, sys
import xllamacpp
from PIL import Image
model, projector, *prompt = sys.argv[1:]
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.mmproj.path = model, projector
parameters.n_ctx, parameters.n_parallel, parameters.warmup = 512, 1, False
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
# A letter comes next: the server tells nothing about a token that is no whole character. What is likely before the
# grammar chooses is not changed by it.
asked = {"temperature": 0, "n_predict": 1, "max_tokens": 1, "grammar": "root ::= [!-~]+"}
found = {}
if projector:
    image = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(image, "PNG")
    url = "data:image/png;base64," + base64.b64encode(image.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    answer = server.handle_chat_completions(asked | {"messages": [{"role": "user", "content": content}]})
else:
    answer = server.handle_completions(asked | {"logprobs": 5, "prompt": [int(token) for token in prompt]})
    first = answer["choices"][0]["logprobs"]["content"][0]
    found = {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}
if "choices" not in answer:
    sys.exit(str(answer))
print("ANSWER", json.dumps([answer["usage"]["prompt_tokens"], found]))
"""


def ask_llama_cpp(model: Path, *, projector: Path | None = None, prompt: list[int] | None = None) -> tuple[int, Any]:
    """Tokens of the prompt, and the five most likely next ones with their log-probabilities."""
    arguments = [str(model), str(projector or ""), *map(str, prompt or ())]
    ran = subprocess.run(
        [sys.executable, "-c", IN_LLAMA_CPP, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    answers = [line for line in ran.stdout.splitlines() if line.startswith("ANSWER ")]
    assert answers, ran.stderr[-2000:]
    tokens, found = json.loads(answers[0].removeprefix("ANSWER "))
    return tokens, {int(token): logprob for token, logprob in found.items()}


@pytest.mark.parametrize("name", ["smolvlm", "llama 3", "llama, tied", "llama, rows of 256"])
def test_llama_cpp_and_transformers_agree_on_the_next_token(name: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    case = (CASES | LAYERED_CASES)[name]
    build(case, tmp_path / "model")
    kind = AutoModelForCausalLM if case.family == "llama" else AutoModelForImageTextToText
    network = kind.from_pretrained(tmp_path / "model", dtype=torch.float32).eval()
    prompt = [1, *range(20, 120), 273]
    with torch.no_grad():
        expected = network(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    for quantisation, allowed in (("f32", 2e-3), ("q8_0", 0.05), ("q4_k_m", 0.2)):
        model = write_gguf(tmp_path / "model", tmp_path, quantisation)[0]
        _, found = ask_llama_cpp(model.path, prompt=prompt)
        assert len(found) == 5
        for token, logprob in found.items():
            assert logprob == pytest.approx(expected[token].item(), abs=allowed), quantisation
    assert expected.max() - expected.min() > 1, "flat answers would agree whatever the weights"


def test_llama_cpp_cuts_the_tiles_that_the_file_says(smolvlm: Path, tmp_path: Path) -> None:
    counted = {}
    for image_size, longest_edge in ((None, None), (None, 64), (16, None)):
        model, projector = write_gguf(smolvlm, tmp_path, "q8_0", image_size=image_size, longest_edge=longest_edge)
        counted[image_size, longest_edge], _ = ask_llama_cpp(model.path, projector=projector.path)
        keys = keys_of(projector)
        assert keys["clip.vision.image_size"] == (image_size or 32)
        assert keys["clip.vision.preproc_image_size"] == (longest_edge or image_size or 32)
    tile = (32 // 8 // 2) ** 2
    one, four, small = counted[None, None], counted[None, 64], counted[16, None]
    assert small == one - 2 * tile + 2 * 1, "two tiles of one token instead of four each"
    assert four > one + 3 * tile - 1, "four tiles and the overview instead of two tiles; their marks come on top"


@pytest.mark.parametrize(("own_side", "side"), [(4, 2), (7, 3), (27, 18), (32, 16), (32, 24), (32, 22)])
def test_a_smaller_projector_has_the_positions_that_transformers_uses(own_side: int, side: int) -> None:
    from transformers import SmolVLMVisionConfig
    from transformers.models.smolvlm.modeling_smolvlm import SmolVLMVisionEmbeddings

    def embeddings(side: int) -> SmolVLMVisionEmbeddings:
        config = SmolVLMVisionConfig(hidden_size=6, image_size=2 * side, patch_size=2)
        return SmolVLMVisionEmbeddings(config)

    own, small = embeddings(own_side), embeddings(side)
    pixels = torch.linspace(-1, 1, 3 * (2 * side) ** 2).reshape(1, 3, 2 * side, 2 * side)
    whole = torch.ones(1, side, side, dtype=torch.bool)
    with torch.no_grad():
        small.patch_embedding.weight.copy_(own.patch_embedding.weight)
        small.patch_embedding.bias.copy_(own.patch_embedding.bias)
        small.position_embedding.weight.copy_(own.position_embedding.weight[position_rows(own_side, side)])
        assert torch.equal(small(pixels, whole), own(pixels, whole))
        small.position_embedding.weight.copy_(own.position_embedding.weight[: side**2])
        assert not torch.equal(small(pixels, whole), own(pixels, whole))


def test_positions_agree_for_every_size_of_the_published_models() -> None:
    for own_side in (7, 26, 27, 32):
        boundaries = torch.arange(1 / own_side, 1.0, 1 / own_side)
        for side in range(1, own_side + 1):
            places = (torch.arange(side) * (1.0 / torch.tensor([side]))).clamp(max=1 - 1e-6)
            row = torch.bucketize(places, boundaries, right=True)
            assert position_rows(own_side, side).tolist() == (row[:, None] * own_side + row).flatten().tolist()


def test_the_projector_of_a_smaller_size_keeps_those_rows_of_the_table(smolvlm: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    def table(file: GGUFFile) -> np.ndarray:
        return next(t.data for t in GGUFReader(file.path).tensors if t.name == "v.position_embd.weight")

    whole = table(write_gguf(smolvlm, tmp_path, "f32")[1])
    small = table(write_gguf(smolvlm, tmp_path, "f32", image_size=16)[1])
    assert np.array_equal(small, whole[[0, 2, 8, 10]])


def test_parts_and_bfloat16_make_no_difference(tmp_path: Path) -> None:
    case, made = CASES["smolvlm"], []
    build(case, tmp_path / "one", rounded=True)
    build(case, tmp_path / "parts", rounded=True, parts=3)
    build(case, tmp_path / "bf16", stored="BF16")
    build(case, tmp_path / "other")
    for folder in ("one", "parts", "bf16", "other"):
        made.append([file.path.read_bytes() for file in write_gguf(tmp_path / folder, tmp_path, "q8_0")])
    assert made[0] == made[1] == made[2]
    assert made[0] != made[3]


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_sizes_are_known_before_anything_is_written(quantisation: str, tmp_path: Path) -> None:
    for name in ("smolvlm", "smolvlm, rows of 48", "llama, rows of 256, tied"):
        build((CASES | LAYERED_CASES)[name], tmp_path / name)
        for image_size in (None, 16) if "smolvlm" in name else (None,):
            predicted = predicted_bytes(tmp_path / name, quantisation, image_size)
            files = write_gguf(tmp_path / name, tmp_path / "out", quantisation, image_size=image_size)
            sizes = [file.bytes for file in files]
            assert list(predicted) == (sizes if len(sizes) == 2 else [*sizes, None])


def test_q8_0_is_within_half_a_step(tmp_path: Path) -> None:
    import gguf

    build(CASES["smolvlm"], tmp_path / "model")
    exact, rounded = (write_gguf(tmp_path / "model", tmp_path, kind)[0] for kind in ("f32", "q8_0"))
    exact = {tensor.name: tensor.data for tensor in gguf.GGUFReader(exact.path).tensors}
    checked = 0
    for tensor in gguf.GGUFReader(rounded.path).tensors:
        if tensor.tensor_type.name == "Q8_0":
            blocks = exact[tensor.name].reshape(-1, 32)
            step = np.abs(blocks).max(axis=1, keepdims=True) / 127
            found = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(-1, 32)
            # The step itself is kept as a float16: up to 127 steps, each off by 2**-11 of itself.
            assert (np.abs(found - blocks) <= step * (0.5 + 127 * 2**-11)).all()
            checked += 1
    assert checked == 16


def test_embeddings_beyond_the_tokenizer_are_named_and_unused(smolvlm: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader, TokenType

    fields = GGUFReader(write_gguf(smolvlm, tmp_path, "q8_0")[0].path).fields
    tokens, types = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type"))
    assert len(tokens) == len(types) == 288
    assert tokens[275:279] == [" row", "<late>", "[PAD277]", "[PAD278]"]
    kinds = [TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.CONTROL]
    assert types[273:] == [*kinds, *[TokenType.UNUSED] * 11]
    assert set(types[8:273]) == {TokenType.NORMAL}


def test_the_template_is_the_folders_or_the_one_given(smolvlm: Path, tmp_path: Path) -> None:
    key = "tokenizer.chat_template"
    change(smolvlm / "tokenizer_config.json", chat_template="of the tokenizer")
    assert keys_of(write_gguf(smolvlm, tmp_path, "q8_0")[0])[key] == TEMPLATE, "the processor's, which training used"
    assert keys_of(write_gguf(smolvlm, tmp_path, "q8_0", with_template="given")[0])[key] == "given"
    (smolvlm / "chat_template.jinja").unlink()
    assert keys_of(write_gguf(smolvlm, tmp_path, "q8_0")[0])[key] == "of the tokenizer"


def test_names_say_the_type_and_the_projector_of_small_types_is_q8_0(smolvlm: Path, tmp_path: Path) -> None:
    names = [[file.path.name for file in write_gguf(smolvlm, tmp_path, q, name="ours")] for q in ("f16", "q4_k_m")]
    assert names == [["ours-F16.gguf", "mmproj-ours-F16.gguf"], ["ours-Q4_K_M.gguf", "mmproj-ours-Q8_0.gguf"]]


@pytest.mark.parametrize("quantisation", ["q8_0", "q4_k_m"])
def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_beside(
    smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantisation: str
) -> None:
    out = tmp_path / "out"
    before = write_gguf(smolvlm, out, quantisation)[0].path.read_bytes()
    entries = sorted(path.name for path in out.iterdir())
    read, seen = StoredTensor.read, []

    def break_down(tensor: StoredTensor) -> Any:
        seen.append([path.stat().st_size for path in out.iterdir() if path.name.startswith(".")])
        if len(seen) > 5:
            raise OSError("the disk is gone")
        return read(tensor) * 2

    monkeypatch.setattr(StoredTensor, "read", break_down)
    with pytest.raises(OSError, match="the disk is gone"):
        write_gguf(smolvlm, out, quantisation)
    assert seen[-1], "it broke while a file was being written"
    assert sorted(path.name for path in out.iterdir()) == entries
    assert (out / f"model-{quantisation.upper()}.gguf").read_bytes() == before


REFUSED_CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "family": ({"model_type": "qwen2_vl"}, "type 'qwen2_vl'.*supported types: smolvlm, idefics3, llama"),
    "text model": ({"text_config": {"model_type": "gemma"}}, "text model is of type 'gemma'"),
    "sizes": ({"vision_config": {"image_size": 40, "patch_size": 8}}, "Tiles of 40 .* would do: 16, 32$"),
    "positions": ({"vision_config": {"image_size": 48}}, "36 patches of a tile, the model has 16"),
    "rotary": (
        {"text_config": {"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}},
        "Rotary embeddings of this kind are not supported: .*yarn",
    ),
    "half rotary": ({"text_config": {"rope_parameters": {"partial_rotary_factor": 0.5}}}, "not supported: .*0.5"),
    "vocabulary": ({"text_config": {"vocab_size": 320}}, "The config says 320 tokens, the embeddings have 288"),
    "activation": ({"vision_config": {"hidden_act": "relu"}}, "'relu' stands where llama.cpp has"),
}


@pytest.mark.parametrize("name", REFUSED_CONFIGS)
def test_models_that_llama_cpp_would_compute_otherwise_are_refused(name: str, smolvlm: Path, tmp_path: Path) -> None:
    fields, message = REFUSED_CONFIGS[name]
    config = read_json(smolvlm / "config.json")
    for field, value in fields.items():
        config[field] = config[field] | value if isinstance(value, dict) else value
    change(smolvlm / "config.json", **config)
    with pytest.raises(ModelError) as caught:
        write_gguf(smolvlm, tmp_path / "out", "q8_0")
    assert_says(caught.value, message)
    assert not (tmp_path / "out").exists()


def assert_says(error: VisiontuneError, message: str) -> None:
    assert re.search(message, str(error), re.DOTALL), str(error)
    assert error.fix


@pytest.mark.parametrize("image_size", [24, 64, 0, -16])
def test_image_sizes_that_do_not_fit_are_refused_with_those_that_do(smolvlm: Path, image_size: int) -> None:
    with pytest.raises(ModelError) as caught:
        predicted_bytes(smolvlm, "q8_0", image_size)
    assert_says(caught.value, f"Tiles of {image_size} pixels.*sizes that would do: 16, 32$")


REFUSED_TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "sentencepiece": ({"model": {"type": "BPE", "byte_fallback": True, "vocab": {}}}, "byte fallback .SentencePiece"),
    "unigram": ({"model": {"type": "Unigram", "vocab": []}}, "of the kind Unigram"),
    "normalizer": ({"normalizer": {"type": "NFC"}}, "rewrites text first: .*NFC"),
    "words": ({"pre_tokenizer": {"type": "Whitespace"}}, "unknown way: .*Whitespace.*smollm, gpt-2, llama-bpe"),
    "prefix": (
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
        "unknown way: .*'add_prefix_space': True",
    ),
    "no words": ({"pre_tokenizer": None}, "unknown way"),
    "whole words": (
        {"model": {"type": "BPE", "ignore_merges": True, "vocab": {}}},
        "unknown way .with ignore_merges.",
    ),
}


@pytest.mark.parametrize("name", REFUSED_TOKENIZERS)
def test_tokenizers_that_llama_cpp_would_apply_otherwise_are_refused(name: str, smolvlm: Path, tmp_path: Path) -> None:
    fields, message = REFUSED_TOKENIZERS[name]
    change(smolvlm / "tokenizer.json", **fields)
    with pytest.raises(ModelError) as caught:
        write_gguf(smolvlm, tmp_path / "out", "q8_0")
    assert_says(caught.value, message)
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_larger_than_the_embeddings_is_refused(smolvlm: Path, tmp_path: Path) -> None:
    tokenizer = read_json(smolvlm / "tokenizer.json")
    tokenizer["added_tokens"].append(tokenizer["added_tokens"][-1] | {"id": 288, "content": "<more>"})
    change(smolvlm / "tokenizer.json", **tokenizer)
    with pytest.raises(ModelError, match="largest id is 288, the model has 288 embeddings"):
        write_gguf(smolvlm, tmp_path, "q8_0")


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    build(CASES["smolvlm, tied"], tmp_path / "tied")
    change(tmp_path / "tied" / "config.json", tie_word_embeddings=False)
    config = read_json(tmp_path / "tied" / "config.json")
    config["text_config"]["tie_word_embeddings"] = False
    change(tmp_path / "tied" / "config.json", **config)
    with pytest.raises(ModelError, match=r"no 'lm_head.weight', and the config does not tie"):
        write_gguf(tmp_path / "tied", tmp_path, "q8_0")
    build(CASES["llama, tied"], tmp_path / "llama")
    change(tmp_path / "llama" / "config.json", num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"no place in a GGUF file, the first is 'model.layers.1.input_layernorm"):
        write_gguf(tmp_path / "llama", tmp_path, "q8_0")
    change(tmp_path / "llama" / "config.json", num_hidden_layers=3)
    with pytest.raises(ModelError, match=r"There is no tensor 'model.layers.2.input_layernorm.weight'"):
        write_gguf(tmp_path / "llama", tmp_path, "q8_0")


def test_cut_and_missing_files_are_named(tmp_path: Path) -> None:
    build(CASES["smolvlm"], tmp_path / "model", parts=2)
    part = tmp_path / "model" / "model-00002-of-00002.safetensors"
    whole = part.read_bytes()
    part.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match=r"model-00002-of-00002.safetensors is cut"):
        write_gguf(tmp_path / "model", tmp_path, "q8_0")
    index = read_json(tmp_path / "model" / "model.safetensors.index.json")
    part.write_bytes(whole)
    promised = index["weight_map"] | {"model.more.weight": part.name}
    change(tmp_path / "model" / "model.safetensors.index.json", weight_map=promised)
    with pytest.raises(ModelError, match=r"1 tensors are not in the files .* 'model.more.weight'"):
        write_gguf(tmp_path / "model", tmp_path, "q8_0")
    part.unlink()
    with pytest.raises(ModelError, match=r"There is no model-00002-of-00002.safetensors"):
        write_gguf(tmp_path / "model", tmp_path, "q8_0")


def test_weights_of_integers_are_refused(smolvlm: Path, tmp_path: Path) -> None:
    path = smolvlm / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype": "F32"', b'"dtype": "I32"'))
    with pytest.raises(ModelError) as caught:
        write_gguf(smolvlm, tmp_path, "q8_0")
    assert_says(caught.value, "'model.text_model.embed_tokens.weight' holds I32 values.*F64, F32, F16, BF16")


def test_a_folder_without_its_processor_is_refused(smolvlm: Path, tmp_path: Path) -> None:
    (smolvlm / "processor_config.json").unlink()
    with pytest.raises(ModelError) as caught:
        write_gguf(smolvlm, tmp_path, "q8_0")
    assert_says(caught.value, "has 'image_mean'.*together with its processor")


def test_the_first_token_is_added_where_the_tokenizer_adds_it_and_else_never(tmp_path: Path) -> None:
    for name, adds in (("smolvlm", False), ("llama 3", True)):
        build(CASES[name], tmp_path / name)
        assert keys_of(write_gguf(tmp_path / name, tmp_path, "q8_0")[0])["tokenizer.ggml.add_bos_token"] is adds


@pytest.mark.parametrize(("quantisation", "value"), [("f16", 7e4), ("q8_0", float("nan")), ("f32", float("inf"))])
def test_values_that_a_type_cannot_hold_are_refused(
    smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quantisation: str, value: float
) -> None:
    read = StoredTensor.read

    def spoilt(tensor: StoredTensor) -> Any:
        values = read(tensor)
        if tensor.name.endswith("layers.1.mlp.up_proj.weight"):
            values[0, 0] = value
        return values

    monkeypatch.setattr(StoredTensor, "read", spoilt)
    with pytest.raises(ModelError, match=f"'blk.1.ffn_up.weight' are not finite in {quantisation.upper()}"):
        write_gguf(smolvlm, tmp_path / "out", quantisation)
    assert not list((tmp_path / "out").iterdir())


def test_the_whole_model_is_never_in_memory(tmp_path: Path) -> None:
    build(LAYERED_CASES["llama, rows of 256"], tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path, "f32")  # imports and caches are not what is counted
    for quantisation in ("f32", "q8_0", "q4_k_m"):
        tracemalloc.start()
        write_gguf(tmp_path / "model", tmp_path, quantisation)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        largest = 288 * 256 * 4
        assert peak < 6 * largest < 0.2 * (tmp_path / "model-F32.gguf").stat().st_size


def test_missing_packages_and_unknown_quantisations_are_errors_with_a_fix(
    smolvlm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VisiontuneError) as caught:
        write_gguf(smolvlm, tmp_path, "q3")
    assert_says(caught.value, "no quantisation 'q3'.*f32, f16, bf16, q8_0, q4_0, q4_k_m")
    quantise.ggml.cache_clear()
    for package, quantisation in (("xllamacpp", "q4_k_m"), ("gguf", "q8_0")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MachineError) as missing:
            write_gguf(smolvlm, tmp_path, quantisation)
        assert_says(missing.value, f"{package}.*pip install 'visiontune\\[gguf\\]'")


def test_a_tile_that_its_patches_do_not_fill_is_the_models_own_size(smolvlm: Path, tmp_path: Path) -> None:
    config = read_json(smolvlm / "config.json")
    change(smolvlm / "config.json", vision_config=config["vision_config"] | {"image_size": 38})  # as 384 = 27 * 14 + 6
    assert keys_of(write_gguf(smolvlm, tmp_path, "q8_0")[1])["clip.vision.image_size"] == 38
    assert keys_of(write_gguf(smolvlm, tmp_path, "q8_0", image_size=16)[1])["clip.vision.image_size"] == 16


def test_a_text_model_has_no_image_size(tmp_path: Path) -> None:
    build(Case("llama"), tmp_path / "model")
    with pytest.raises(ModelError, match="A text model has no image size"):
        write_gguf(tmp_path / "model", tmp_path, "q8_0", image_size=32)
