"""Recipe files, whole or partial, the presets that travel with this package, and the page that lists all fields."""

from pathlib import Path

import yaml

from visiontune.errors import RecipeError
from visiontune.recipe import SCHEMA_VERSION, Fragment, Recipe, parse, sections


def read_fragment(path: Path) -> Fragment:
    """Read a recipe file, whole or partial, as plain values; a section with nothing in it is as if it were not there.

    Raises RecipeError for what cannot be read, is no mapping of sections, or is of a newer schema.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise RecipeError("There is no such recipe file.", where=str(path), fix="check the path") from error
    except OSError as error:
        raise RecipeError(
            f"The recipe file cannot be read: {error.strerror}.", where=str(path), fix="name a YAML file"
        ) from error
    except UnicodeDecodeError as error:
        raise RecipeError("The recipe file is not UTF-8.", where=str(path), fix="save it as UTF-8") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: of a date that is none
        raise RecipeError(
            f"The recipe is not YAML: {error}", where=str(path), fix="mend the line named above"
        ) from error
    if not isinstance(values, dict):
        raise RecipeError("A recipe is a mapping of sections.", where=str(path), fix="see docs/recipe.md")
    version = values.get("schema_version", SCHEMA_VERSION)
    if not isinstance(version, int) or version > SCHEMA_VERSION:
        raise RecipeError(
            f"The recipe has schema version {version}; this visiontune reads up to {SCHEMA_VERSION}.",
            where=str(path),
            fix="upgrade visiontune, or train again with this one",
        )
    for name in sections():
        if values.get(name) is not None and not isinstance(values[name], dict):
            found = f"'{name}' is a section with fields of its own; found {values[name]!r}."
            raise RecipeError(found, where=str(path), fix=f"write {name}: {{FIELD: VALUE}}; see docs/recipe.md")
    present = {name: value for name, value in values.items() if value is not None or name not in sections()}
    return Fragment(present, str(path))


def presets() -> dict[str, Path]:
    """The presets that travel with this package: fragments of a recipe, and with `epochs` how long to train."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "presets").glob("*.yaml"))}


def read_preset(name: str) -> tuple[Fragment, float | None]:
    """The fragment and the epochs (None: as derived) of a preset; raises RecipeError for an unknown one."""
    if name not in presets():
        raise RecipeError(f"There is no preset '{name}'.", where="--preset", fix=f"presets: {', '.join(presets())}")
    values = read_fragment(presets()[name])
    epochs = values.pop("epochs", None)
    return Fragment(values, values.where, name), epochs


def of_any_target(preset: Fragment) -> Fragment:
    """A preset without what few models do but those that write text: computing layers again for their backward."""
    machine = {name: value for name, value in preset.get("machine", {}).items() if name != "recompute"}
    others = {name: value for name, value in preset.items() if name != "machine"}
    return preset.with_values({**others, "machine": machine} if machine else others)


def load(path: Path) -> Recipe:
    """Read a whole recipe; raises RecipeError."""
    return parse(read_fragment(path), str(path))


def reference() -> str:
    """The fields of a recipe as Markdown tables, one a section: docs/recipe.md holds this text."""
    lines = []
    for name, section in sections().items():
        lines += [
            f"\n### {name}\n",
            (section.__doc__ or "").strip(),
            "",
            "| field | default | what it is |",
            "|---|---|---|",
        ]
        for inner, facts in section.model_fields.items():
            default = "derived" if facts.is_required() else f"`{facts.get_default(call_default_factory=True)}`"
            lines.append(f"| `{name}.{inner}` | {default} | {facts.description} |")
    return "\n".join(lines) + "\n"
