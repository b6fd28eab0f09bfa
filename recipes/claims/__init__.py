"""The papers' claims, each with a recipe that was fixed before it was run: `python -m recipes.claims --help`."""
