"""The command line."""

from visiontune.cli.command_line import main, recipe_options

__all__ = ["main", "recipe_options"]
