"""A byte-level BPE tokenizer of a merged folder as the keys of a GGUF file."""

from pathlib import Path
from typing import Any

from visiontune.errors import ModelError
from visiontune.exports.merged_folder import read_json, read_json_if_there

# Llama 3's splitting of a text into words, as its tokenizer.json writes it.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# What each name means to llama.cpp, as the steps that a tokenizer.json of the kind lists.
_SPLITTINGS: dict[str, list[dict[str, Any]]] = {
    "smollm": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    ],
    "gpt-2": [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}],
    "llama-bpe": [
        {"type": "Split", "pattern": {"Regex": _LLAMA3_WORDS}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
    ],
}


def splitting(tokenizer: dict[str, Any], where: Path) -> str:
    """The name that llama.cpp has for how the tokenizer cuts text into words: smollm, gpt-2 or llama-bpe.

    It is recognised from the steps in `tokenizer` (a parsed tokenizer.json). Raises ModelError for steps that are none
    of these, for a normalizer, and for a tokenizer that is no byte-level BPE: llama.cpp would split otherwise.
    """
    model, found = tokenizer["model"], tokenizer.get("pre_tokenizer") or {}
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback"):
        kind = "BPE with byte fallback (SentencePiece)" if model.get("byte_fallback") else model["type"]
        raise ModelError(f"The tokenizer is of the kind {kind}.", where=str(where), fix=_FIX)
    if tokenizer.get("normalizer"):
        raise ModelError(f"The tokenizer rewrites text first: {tokenizer['normalizer']}.", where=str(where), fix=_FIX)
    steps: list[dict[str, Any]] = found.get("pretokenizers", [found])
    # How offsets into the text are cut does not change the tokens; older files leave out defaults.
    steps = [{"use_regex": True, **step} if step.get("type") == "ByteLevel" else step for step in steps]
    steps = [{key: value for key, value in step.items() if key != "trim_offsets"} for step in steps]
    for name, known in _SPLITTINGS.items():
        # llama.cpp takes whole words before merges for Llama 3 alone.
        if steps == known and bool(model.get("ignore_merges")) == (name == "llama-bpe"):
            return name
    ignoring = " (with ignore_merges)" if model.get("ignore_merges") else ""
    raise ModelError(f"The tokenizer splits text in an unknown way{ignoring}: {found}.", where=str(where), fix=_FIX)


_FIX = f"use a model whose tokenizer is a byte-level BPE that splits like {', '.join(_SPLITTINGS)}"


def add_tokenizer(writer: Any, gguf: Any, folder: Path, vocab_size: int, template: str | None) -> None:
    """Add the tokenizer of `folder` and the chat template (its own where `template` is None) to a GGUFWriter.

    Ids up to `vocab_size` that the tokenizer does not use become `[PADn]`. Raises ModelError as `splitting` does, and
    for ids at or above `vocab_size`.
    """
    path = folder / "tokenizer.json"
    tokenizer = read_json(path)
    words = splitting(tokenizer, path)
    tokens = {token: gguf.TokenType.NORMAL for token in tokenizer["model"]["vocab"]}
    ids = {id: token for token, id in tokenizer["model"]["vocab"].items()}
    for added in tokenizer.get("added_tokens") or ():
        token = added["content"]
        ids[added["id"]] = token
        controls = added["special"] or _looks_special(token)
        tokens[token] = gguf.TokenType.CONTROL if controls else gguf.TokenType.USER_DEFINED
    if max(ids) >= vocab_size:
        raise ModelError(
            f"The tokenizer's largest id is {max(ids)}, the model has {vocab_size} embeddings.",
            where=str(path),
            fix="export the model together with the tokenizer that it was trained with",
        )
    texts, types = [], []
    for id in range(vocab_size):
        kind = tokens[ids[id]] if id in ids else gguf.TokenType.UNUSED
        text = ids.get(id, f"[PAD{id}]")
        texts.append(text.replace("\u2581", " ") if kind == gguf.TokenType.USER_DEFINED else text)
        types.append(int(kind))
    settings = read_json_if_there(folder / "tokenizer_config.json")
    if (space := settings.get("add_prefix_space")) is not None:
        writer.add_add_space_prefix(space)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(texts)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(folder, load_merges=True)
    special.chat_template = template if template is not None else chat_template(folder)
    special.add_special_token.setdefault("bos", False)
    special.add_to_gguf(writer, quiet=True)


def chat_template(folder: Path) -> str | None:
    """The folder's chat template: its own file, or that of the processor before that of the tokenizer."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if isinstance(template := read_json_if_there(folder / name).get("chat_template"), str):
            return template
    return None


def _looks_special(token: str) -> bool:
    """Converters to GGUF take these for control tokens even where a tokenizer marks them as text."""
    marks = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
    named = token in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
    return named or any(token.startswith(start) and token.endswith(end) for start, end in marks)
