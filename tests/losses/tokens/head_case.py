"""The arrays of a golden detection head, one row a location, and the way back to maps."""

import jax.numpy as jnp
import numpy as np


def rows(case, name, real):
    """`[B, channels, H, W]` of the reference as `[B H W, C]` class logits, or `[B H W, 4, K]` edge logits."""
    array = np.transpose(case.inputs[name], (0, 2, 3, 1))
    shape = (case.hyper["num_classes"],) if name in ("cls_score", "soft_label") else (4, case.hyper["reg_max"] + 1)
    return real(array.reshape(-1, *shape))


def locations(case, real):
    """Labels, box targets and centres of the locations."""
    anchors = np.float64(case.inputs["anchors"]).reshape(-1, 4)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    boxes = case.inputs["bbox_targets"].reshape(-1, 4)
    return jnp.asarray(case.inputs["labels"].reshape(-1)), real(boxes), real(centres)


def head_weights(case):
    """Of the GFL head's box and edge losses. A case that names none has the reference's, which are also ours."""
    named = {"box_weight": "loss_bbox_weight", "edge_weight": "loss_dfl_weight"}
    return {ours: case.hyper[theirs] for ours, theirs in named.items() if theirs in case.hyper}


def distillation_weights(case, region):
    """Weights and temperatures of what distillation adds to the head, likewise. That of the edges is of `region`'s term."""
    named = {"ld_weight": ("loss_ld", "w"), "vlr_weight": ("loss_ld_vlr", "w"), "class_weight": ("loss_kd", "w"),
             "temperature": (region, "T"), "class_temperature": ("loss_kd", "T")}  # fmt: skip
    return {ours: float(case.hyper[term][key]) for ours, (term, key) in named.items() if term in case.hyper}


def maps(gradient, like):
    """Rows as maps of the reference's shape."""
    batch, channels, height, width = like.shape
    return np.transpose(np.reshape(gradient, (batch, height, width, channels)), (0, 3, 1, 2))
