"""Networks, and what makes any network usable for distillation."""

from kdjax.models.ensemble import ensemble, join_members
from kdjax.models.frozen.freezing import Freezer, FreezeReport, Frozen, freeze
from kdjax.models.functional import FunctionalModule, functionalise, to_nnx
from kdjax.models.linen import from_linen
from kdjax.models.microbatches import in_microbatches
from kdjax.models.nnx import from_nnx
from kdjax.models.outputs import as_output, module_paths, output_shapes, two_heads
from kdjax.models.plain import from_apply
from kdjax.models.precision import float32_products, in_precision
from kdjax.models.tokens import token_maps

__all__ = [
    "FreezeReport",
    "Freezer",
    "Frozen",
    "FunctionalModule",
    "as_output",
    "ensemble",
    "float32_products",
    "freeze",
    "from_apply",
    "from_linen",
    "from_nnx",
    "functionalise",
    "in_microbatches",
    "in_precision",
    "join_members",
    "module_paths",
    "output_shapes",
    "to_nnx",
    "token_maps",
    "two_heads",
]  # fmt: skip
