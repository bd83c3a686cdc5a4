"""kdjax compare configs/cifar100/self_distillation.py --methods labels born_again kd dkd tf_kd_self --seeds 0 1 2

Self-distillation: a network teaches another of its own kind, resnet32, by the CIFAR-100 protocol (240 epochs; see
`kdjax.recipes.cifar100`). `born_again` is that of Furlanello et al. (ICML 2018, arXiv 1805.04770; published with DenseNets and
wide networks), `tf_kd_self` that of Yuan et al. (CVPR 2020, arXiv 1909.11723); neither was published for this
network. Without any teacher: `--methods uskd dml tf_kd_regularizer`. Needs `kdjax data prepare cifar100`;
hours on one GPU; not run here. `fashion_mnist/born_again.py` trains three generations in minutes.
"""

from kdjax.recipes.cifar100 import cifar100


def experiment(name: str = "born_again"):
    made = cifar100("resnet32", "resnet32", name)
    return made.replace_phase(made.student.name, seed_offset=1)
