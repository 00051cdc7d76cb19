"""The model card of an export, and Ollama's Modelfile: what the run folder and the certificate say, nothing else."""

from pathlib import Path
from typing import Any

import jinja2
import yaml

from visiontune.contract import DeviceContract
from visiontune.exports.shipment import Shipment
from visiontune.files import write_text
from visiontune.models.load import is_tiny
from visiontune.run import Run

FORMS = {
    "adapter": ("peft", "A LoRA adapter in PEFT's format."),
    "merged": ("transformers", "The whole model in transformers' format, the adapter merged into its weights."),
    "gguf": ("llama.cpp", "Text model and projector for llama.cpp, in the GGUF format."),
}
LICENCE_FILE = "README.md"


def write_card(run: Run, folder: Path, form: str, step: int, certified: tuple[Shipment, dict[str, Any]] | None) -> None:
    """Write README.md into an exported folder; `certified` is there for GGUF files."""
    recipe = run.recipe
    library, what = FORMS[form]
    shipment, certificate = certified or (None, None)
    scores = run.read_json("evaluations/validation/metrics.json")
    device: DeviceContract | None = recipe.device
    public = not is_tiny(recipe.model.name) and not Path(recipe.model.name).exists()
    facts = {
        "form": form,
        "library": library,
        "what": what,
        "name": run.path.resolve().name,
        "base": Path(recipe.model.name).name if Path(recipe.model.name).is_dir() else recipe.model.name,
        "base_is_public": public,
        "revision": recipe.model.revision,
        "licence": licence(run),
        "parts": ", ".join(f"{part}: {state}" for part, state in recipe.parts.items()),
        "data": ", ".join(f"{Path(u.path).name} (content hash {u.content_hash[:16]})" for u in recipe.data.datasets),
        "step": step,
        "question": recipe.data.prompt,
        "labels": run.labels,
        "scores": scores["metrics"] if scores and scores.get("step") == step else None,
        "scores_of": "Of the trained model; the certificate says what the shipped file reaches." if certificate else "",
        "receipts": run.receipts,
        "certificate": certificate,
        "device": device,
        "recipe": public_recipe(run),
    }
    if shipment is not None:
        names = ("example_prompt", "text_model", "projector")
        facts |= {name: getattr(shipment, name) for name in names}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("visiontune"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown, not HTML
    )
    write_text(folder / "README.md", environment.get_template("card.md").render(facts))


def public_recipe(run: Run) -> str:
    """The recipe as YAML without the folders of this computer, which say nothing elsewhere."""
    values = run.recipe.model_dump(mode="json", exclude={"why"})
    for use in values["data"]["datasets"]:
        use["path"] = Path(use["path"]).name
    if Path(values["model"]["name"]).is_dir():
        values["model"]["name"] = Path(values["model"]["name"]).name
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110).rstrip()


def licence(run: Run) -> str | None:
    """The licence that the base model's own card names, as far as it is on this computer."""
    name = run.recipe.model.name
    if is_tiny(name):
        return "apache-2.0"  # random weights made by visiontune itself
    card = Path(name) / LICENCE_FILE
    if not Path(name).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, LICENCE_FILE, revision=run.recipe.model.revision)
        if not isinstance(cached, str):
            return None
        card = Path(cached)
    if not card.is_file():
        return None
    parts = card.read_text(encoding="utf-8", errors="replace").split("---")
    try:
        front = yaml.safe_load(parts[1]) if len(parts) > 2 and not parts[0].strip() else None
    except yaml.YAMLError:
        return None  # a card of somebody else that is no YAML names no licence
    return str(front["license"]) if isinstance(front, dict) and front.get("license") else None


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
