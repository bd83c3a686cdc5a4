"""What the layers of the zoo's networks are called in published state dicts: a table a family, see `weights/torch.py`."""

from kdjax.models.weights.names import imagenet, mdistiller

# By name of the zoo; the second is where there are further tables for one network, each for other publishers.
NAMES = {**mdistiller.NAMES, **{name: tables[0] for name, tables in imagenet.NAMES.items()}}
OTHERS = {name: tables[1:] for name, tables in imagenet.NAMES.items() if len(tables) > 1}

__all__ = ["NAMES", "OTHERS"]
