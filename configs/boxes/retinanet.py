"""kdjax compare configs/boxes/retinanet.py --methods labels ld ld_vlr dense_kd --seeds 0 1 2

Localization distillation on RetinaNet, whose edges are distributions, on pictures that need no download: as configs/boxes/gfl.py,
with the weights published for this head. No figures are given: it was run with --tiny alone.
"""

from kdjax.recipes.boxes import boxes_edges


def experiment(name: str = "ld_vlr"):
    return boxes_edges("retinanet", name)
