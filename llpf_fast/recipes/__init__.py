"""Settings of known path searches, one YAML file each, with typed overrides."""

from .loading import load_recipe, recipe_descriptions, recipe_names

__all__ = ["load_recipe", "recipe_descriptions", "recipe_names"]
