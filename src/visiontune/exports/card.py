"""The model card of an export, and Ollama's Modelfile: what the run folder and the certificate say, nothing else."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import yaml

from visiontune.contract import DeviceContract
from visiontune.exports.shipment import Shipment
from visiontune.files import write_text
from visiontune.models.load import is_tiny, read_config
from visiontune.run import Run

FORMS = {
    "adapter": ("peft", "adapter", "A LoRA adapter in PEFT's format."),
    "merged": ("transformers", "finetune", "The whole model in transformers' format."),
    "gguf": ("llama.cpp", "finetune", "Text model and projector for llama.cpp, in the GGUF format."),
}
CARD_NAME = "README.md"
LABELS_SHOWN = 30
UNKNOWN = "unknown"  # a licence, by the identifier of the hub's own list
MARKDOWN = re.compile(r"[\\`*\[\]<>|~$#&]|(?<![^\W_])_|_(?![^\W_])")


def write_card(run: Run, folder: Path, form: str, step: int, certified: tuple[Shipment, dict[str, Any]] | None) -> None:
    """Write README.md into an exported folder; `certified` is there for GGUF files.

    Folders of this computer say nothing elsewhere: of each only its own name stands in the card.
    """
    recipe = run.recipe
    library, relation, what = FORMS[form]
    shipment, certificate = certified or (None, None)
    scores = run.read_json("evaluations/validation/metrics.json")
    device: DeviceContract | None = recipe.device
    name = recipe.model.name
    public = not is_tiny(name) and not Path(name).exists()
    auto_class, auto_processor, task = _loaded_with(run)
    objects = recipe.objects
    front = {
        "library_name": library,
        **({"base_model": name, "base_model_relation": relation} if public else {}),
        **licence(run),
        "pipeline_tag": task,
        "tags": ["visiontune", *(["gguf"] if form == "gguf" else [])],
    }
    facts = {
        "form": form,
        "front": yaml.safe_dump(front, sort_keys=False, allow_unicode=True).rstrip(),
        "what": what,
        "name": run.path.resolve().name,
        "base": public_name(name),
        "base_is_public": public,
        "base_is_tiny": is_tiny(name),
        "revision": recipe.model.revision,
        "licence": front.get("license_name") or (None if front["license"] == UNKNOWN else front["license"]),
        "parts": ", ".join(f"{part}: {state}" for part, state in recipe.parts.items()),
        "data": ", ".join(f"{Path(u.path).name} (content hash {u.content_hash[:16]})" for u in recipe.data.datasets),
        "step": step,
        "question": recipe.data.prompt,
        "labels": _shortened(run.labels if objects is None else list(objects.classes)),
        "auto_class": auto_class,
        "auto_processor": auto_processor,
        "new_heads": ""
        if objects is None or not auto_class.startswith("RfDetr")
        else f", num_labels={len(objects.classes)}, ignore_mismatched_sizes=True",
        "scores": scores["metrics"] if scores and scores.get("step") == step else None,
        "receipts": run.receipts,
        "certificate": certificate,
        "shipment": shipment,
        "device": device,
        "recipe": public_recipe(run),
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visiontune"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    folders = [folder, run.path, Path(name), *(Path(use.path) for use in recipe.data.datasets)]
    environment.filters |= {
        "plain": lambda text: plain(_without_folders(text, folders)),
        "code": code,
        "fenced": fenced,
        "quoted": shlex.quote,
    }
    write_text(folder / CARD_NAME, environment.get_template("card.md").render(facts))


def _loaded_with(run: Run) -> tuple[str, str, str]:
    """The class and the processor of transformers that load a run's model, and the hub's name of its task."""
    if run.recipe.objects is None:
        return "AutoModelForImageTextToText", "AutoProcessor", "image-text-to-text"
    folder = run.base_folder if is_tiny(run.recipe.model.name) else run.recipe.model.name
    (name,) = read_config(str(folder), run.recipe.model.revision).architectures
    task = "object-detection" if "Detection" in name else "image-segmentation"
    return name, "AutoImageProcessor" if name.startswith("RfDetr") else "AutoProcessor", task


def plain(text: str) -> str:
    """A text as it is read, in one line, whatever of it Markdown would take for a sign of its own."""
    return MARKDOWN.sub(lambda sign: "&amp;" if sign[0] == "&" else f"\\{sign[0]}", " ".join(text.split()))


def code(text: str) -> str:
    """A text as inline code; line ends are shown as \\n, and backticks inside get longer ones around."""
    text = text.replace("\n", "\\n")
    marks = "`" * (_longest_backticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{marks}{pad}{text}{pad}{marks}"


def fenced(text: str, language: str) -> str:
    """A text as a block of code, the fence longer than any backticks inside."""
    fence = "`" * max(3, _longest_backticks(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)


def _shortened(labels: list[str] | None) -> str | None:
    """The labels as one text, the first ones and their count where there are many."""
    if labels is None or len(labels) <= LABELS_SHOWN:
        return None if labels is None else ", ".join(labels)
    return f"{', '.join(labels[:LABELS_SHOWN])} and others, {len(labels)} in all"


def _without_folders(text: str, folders: Sequence[Path]) -> str:
    """A sentence with the names of these folders in place of where they stand on this computer."""
    places = {str(place): place.name for folder in folders for place in (folder.absolute(), folder.resolve())}
    for place in sorted(places, key=len, reverse=True):
        text = text.replace(place, places[place])
    home = str(Path.home())
    return text if home == "/" else text.replace(home, "~")


def public_name(model: str) -> str:
    """A model's name without the folder on this computer that it may stand in."""
    return Path(model).name if Path(model).is_dir() else model


def public_recipe(run: Run) -> str:
    """The recipe as YAML without the folders of this computer, which say nothing elsewhere."""
    values = run.recipe.model_dump(mode="json", exclude={"why"})
    for use in values["data"]["datasets"]:
        use["path"] = Path(use["path"]).name
    values["model"]["name"] = public_name(values["model"]["name"])
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()


def licence(run: Run) -> dict[str, str]:
    """The front matter's lines about the licence: what the base model's own card names, as far as it is here."""
    name = run.recipe.model.name
    if is_tiny(name):
        return {"license": "apache-2.0"}  # random weights made by visiontune itself
    front = _front_matter(run)
    found = front.get("license")
    if isinstance(found, list):
        found = found[0] if len(found) == 1 else None
    if not found:
        return {"license": UNKNOWN}
    kept = {"license": str(found)}
    if found == "other":  # the hub asks for a name then, and a link
        kept["license_name"] = str(front.get("license_name") or "see-base-model")
        link = str(front.get("license_link") or "")
        if link.startswith(("https://", "http://")):
            kept["license_link"] = link
        elif not Path(name).exists():
            kept["license_link"] = f"https://huggingface.co/{name}" + (f"/blob/main/{link}" if link else "")
    return kept


def _front_matter(run: Run) -> dict[str, Any]:
    """What the base model's card says between its lines of three dashes; {} where it cannot be had."""
    name = run.recipe.model.name
    card = Path(name) / CARD_NAME
    if not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, CARD_NAME, revision=run.recipe.model.revision)
        if not isinstance(cached, str):
            return {}
        card = Path(cached)
    if not card.is_file():
        return {}
    return front_matter(card.read_text(encoding="utf-8", errors="replace"))


def front_matter(card: str) -> dict[str, Any]:
    """What a card says between its lines of three dashes; {} where it says nothing that can be read."""
    parts = re.split(r"^---\s*$", card, maxsplit=2, flags=re.MULTILINE)
    try:
        front = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
    except yaml.YAMLError:
        return {}  # a card of somebody else that is no YAML names no licence
    return front if isinstance(front, dict) else {}


def write_modelfile(folder: Path, shipment: Shipment) -> None:
    """Write Ollama's Modelfile. Ollama puts the picture in front of the text by itself."""
    before, rest = shipment.device.prompt.split("{marker}")
    between, after = rest.split("{question}")
    lines = [
        f"FROM ./{shipment.text_model}",
        f"FROM ./{shipment.projector}",
        f'TEMPLATE """{before}{{{{ .Prompt }}}}{after}"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_predict {shipment.device.max_new_tokens}",
        f"PARAMETER num_ctx {shipment.context}",
    ]
    if between:
        lines.insert(3, f"# The contract has {between!r} between picture and question: begin the question with it.")
    write_text(folder / "Modelfile", "\n".join(lines) + "\n")
