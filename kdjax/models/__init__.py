"""Networks, and what makes any network usable for distillation."""

from kdjax.models.adapters import as_output, from_apply, from_linen, from_nnx, output_shapes
from kdjax.models.functional import FunctionalModule, functionalise

__all__ = ["FunctionalModule", "as_output", "from_apply", "from_linen", "from_nnx", "functionalise", "output_shapes"]
