"""A trained network made cheap to run: normalisation folded into kernels, lower precision, constants computed once."""

from kdjax.models.frozen.freezing import Freezer, FreezeReport, Frozen, freeze

__all__ = ["FreezeReport", "Freezer", "Frozen", "freeze"]
