"""The methods that ship with edgeport, one folder each: `recipe.py` declares, `model.py` computes.

Installed as the package `edgeport_recipes`. Recipes do not import each other; what two need is in
`_shared`.
"""
