"""What the layers of the zoo's networks are called in published state dicts: a table a family, see `weights/torch.py`."""

from kdjax.models.weights.names import mdistiller

NAMES = {**mdistiller.NAMES}  # by name of the zoo

__all__ = ["NAMES"]
