"""Networks, and what makes any network usable for distillation."""

from kdjax.models.adapters import as_output, from_apply, from_linen, from_nnx, output_shapes
from kdjax.models.ensemble import ensemble, join_members
from kdjax.models.frozen.freezing import Freezer, FreezeReport, Frozen, freeze
from kdjax.models.functional import FunctionalModule, functionalise
from kdjax.models.microbatches import in_microbatches
from kdjax.models.precision import in_precision

__all__ = [
    "FreezeReport", "Freezer", "Frozen", "FunctionalModule", "as_output", "ensemble", "freeze", "from_apply", "from_linen",
    "from_nnx", "functionalise", "in_microbatches", "in_precision", "join_members", "output_shapes",
]  # fmt: skip
