"""Distillation losses: pure functions from arrays to values, for the most part one per example.

Student first, teacher second, the rest by keyword; classes on the last axis. Values of examples are not averaged here. What
compares examples with each other takes `where` and `axis_name`, and gives a value an example or, where its docstring says
so, one of the whole batch. Every module says in its `__all__` what it adds to this namespace.
"""

import types as _types
import typing as _typing
from difflib import get_close_matches as _get_close_matches

from kdjax.losses.detection.anchored import *
from kdjax.losses.detection.assignment import *
from kdjax.losses.detection.boxes import *
from kdjax.losses.detection.crops import *
from kdjax.losses.detection.dense import *
from kdjax.losses.detection.localization import *
from kdjax.losses.detection.matching import *
from kdjax.losses.detection.regions import *
from kdjax.losses.features.attention import *
from kdjax.losses.features.boundary import *
from kdjax.losses.features.classifier_reuse import *
from kdjax.losses.features.fsp import *
from kdjax.losses.features.margin import *
from kdjax.losses.features.pooling import *
from kdjax.losses.features.projection import *
from kdjax.losses.features.review import *
from kdjax.losses.features.semantic import *
from kdjax.losses.features.stages import *
from kdjax.losses.gradients import *
from kdjax.losses.logits.binary import *
from kdjax.losses.logits.correction import *
from kdjax.losses.logits.correlation import *
from kdjax.losses.logits.decoupled import *
from kdjax.losses.logits.logit import *
from kdjax.losses.logits.multi_teacher import *
from kdjax.losses.logits.multilevel import *
from kdjax.losses.logits.regularization import *
from kdjax.losses.logits.second_order import *
from kdjax.losses.logits.self_distillation import *
from kdjax.losses.logits.target_transforms import *
from kdjax.losses.logits.teacher_free import *
from kdjax.losses.relations.affinity import *
from kdjax.losses.relations.affinity_parts import *
from kdjax.losses.relations.contrastive import *
from kdjax.losses.relations.geometry import *
from kdjax.losses.relations.pairs import *
from kdjax.losses.relations.relational import *
from kdjax.losses.tokens.divergences import *
from kdjax.losses.tokens.fused_linear import *
from kdjax.losses.tokens.sequence import *
from kdjax.losses.tokens.states import *
from kdjax.losses.tokens.topk import *
from kdjax.losses.tokens.written import *

# Names by which a loss is looked for, and what has it here.
_CALLED = {
    "attention_transfer": "`at`", "contrastive": "`nce`", "crd": "`nce`, and `kdjax.objectives.CRD` with its banks",
    "dml": "`kd`, and `kdjax.objectives.DML` with its peer", "hinton": "`kd`", "kl": "`forward_kl`", "kl_div": "`forward_kl`",
    "kl_divergence": "`forward_kl`", "js": "`jsd`", "gkd": "`jsd`", "mse": "`logit_mse`", "lskd": "`standardize`, then `kd`",
    "logit_standardization": "`standardize`, then `kd`", "similarity_preserving": "`sp`", "similarity": "`sp`",
    "reviewkd": "`hcl`, and `kdjax.objectives.ReviewKD` with its fusion", "decoupled": "`dkd`", "label_smoothing":
    "`label_smoothing_xent`", "bce": "`binary_cross_entropy`", "giou": "`box_iou`",
    "focal": "`sigmoid_focal`, or `quality_focal`", "iou": "`box_iou`", "hint": "`fitnet`", "hints": "`fitnet`",
    "total_variation": "`tvd`", "soft_target": "`kd`", "soft_targets": "`kd`", "correlation": "`dist`", "wasserstein": "`uld`",
    "minillm": "`reverse_kl`", "distillm": "`skew_fkl`",
}  # fmt: skip


def __dir__() -> list[str]:
    return __all__


def _missing(name: str):
    if name.startswith("__"):
        raise AttributeError(name)
    plain = name.lower().removesuffix("_loss").removesuffix("loss").rstrip("_")
    near = [plain] if plain in __all__ else _get_close_matches(plain, __all__, n=3, cutoff=0.6)
    if plain in _CALLED:
        mend = f"see {_CALLED[plain]}."
    elif near:
        mend = f"did you mean {' or '.join(f'`{each}`' for each in near)}?"
    else:
        mend = "`dir(kdjax.losses)` lists what there is."
    raise AttributeError(f"kdjax.losses has no {name!r}; {mend}")


if not _typing.TYPE_CHECKING:  # for a type checker knows what there is
    __getattr__ = _missing


__all__ = sorted(
    name for name, value in globals().items() if not (name.startswith("_") or isinstance(value, _types.ModuleType))
)
