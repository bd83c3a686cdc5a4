"""Networks of the zoo as `--tiny` makes them: every one of them has the width that it is given."""

import jax
import jax.numpy as jnp
import pytest

from kdjax.models import zoo
from kdjax.tasks.classification import Classification, Classifier
from kdjax.tasks.classification.networks import make_classifier

QUICK = ("resnet8", "wrn_16_2", "vgg8", "mobilenetv2", "shufflenetv1", "shufflenetv2", "small_cnn", "mobilenet_v2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in zoo.NETWORKS])
def test_every_network_may_be_tiny(name):
    """Shapes alone: of the weights."""
    model = Classification().shrunk_network(Classifier(name=name))
    assert model.width == (120 if name == "shufflenetv1" else 4)
    network = make_classifier(model, jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), 5)
    params, _ = jax.eval_shape(network.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) < 500_000


def test_ones_own_network_stays_as_it_is():
    model = Classifier(name="my_models.py:Net", options=("depth=3",))
    assert Classification().shrunk_network(model) == model
