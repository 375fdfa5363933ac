"""``llpf recipes``: the table of recipes, or one recipe with every setting."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .options import user_path

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

HELP = "list the recipes, or show one with every setting"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("name", type=user_path, nargs="?", metavar="NAME", help="show this one as YAML")


def run(args: Namespace) -> int:
    show(args.name)
    return 0


def show(name: str | None = None) -> None:
    """Print the table of recipes, or one recipe's settings as YAML that ``--recipe FILE.yaml`` takes."""
    from ..recipes import load_recipe, recipe_descriptions

    if name is not None:
        import yaml

        print(yaml.safe_dump(load_recipe(name).as_dict(), sort_keys=False), end="")
        return
    descriptions = recipe_descriptions()
    width = max(map(len, descriptions))
    for recipe, description in descriptions.items():
        print(f"{recipe:<{width}}  {description}")
