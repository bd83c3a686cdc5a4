"""The networks of kdjax, in Flax NNX."""

from kdjax.models.zoo.catalogue import NETWORKS, build

__all__ = ["NETWORKS", "build"]
