"""Wrappers stand for the objective within them in all that is asked of an objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from kdjax.objectives import DHKD, FT, KD, METHODS, OFD, TTM, LoCa, OnHead, RandomTeacher, SimKD, Standardize
from kdjax.objectives.logits.wrappers import temperature_of
from kdjax.recipes.cifar100 import DKD_BETA, of_pair
from kdjax.types import Batch, Clock, Context, ModelOutput


@pytest.mark.parametrize("inner", [DHKD(align=True), OFD(), FT(), SimKD(), KD()], ids=lambda x: type(x).__name__)
def test_what_is_asked_of_an_objective_is_asked_of_the_inner_one(inner):
    if "teacher.logits" not in inner.reads:
        wrapped = object.__new__(Standardize)  # which refuses objectives that compare no logits
        object.__setattr__(wrapped, "inner", inner)
    else:
        wrapped = Standardize(inner=inner)
    for name in (
        "views",
        "group",
        "trains",
        "decays",
        "any_classes",
        "per_element",
        "teacher_mode",
        "carries",
        "deploys",
        "combines",
    ):
        assert getattr(wrapped, name) == getattr(inner, name), name
    if inner.combines:
        gradients = {"task": jnp.array([1.0, 0.0]), "distill": jnp.array([-1.0, 1.0])}
        np.testing.assert_array_equal(wrapped.combine(gradients), inner.combine(gradients))


def test_a_teacher_is_calibrated_as_softly_as_it_is_heard():
    """Also within other wrappers; at 1 by what has no temperature."""
    assert temperature_of(KD(temperature=4.0)) == 4 and temperature_of(TTM()) == 1
    assert temperature_of(OnHead(inner=Standardize(inner=KD(temperature=3.0)))) == 3
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(3 * rng.standard_normal((6, 5)), jnp.float32) for _ in range(2))
    labels = jnp.arange(6, dtype=jnp.int32) % 5
    output = lambda x: ModelOutput(logits=x, taps={"head": x})
    ctx = Context(output(student), output(teacher), Batch.of(student, labels), Clock().at(0))
    plain, nested = LoCa(inner=KD(temperature=4.0)), LoCa(inner=OnHead(inner=KD(temperature=4.0), head="head"))
    wanted = losses.loca_logits(teacher, labels, alpha=plain.alpha, temperature=4.0)
    for objective in (plain, nested):
        np.testing.assert_allclose(objective.logits(ctx)[1], wanted, rtol=1e-6)


def test_every_teacher_of_an_ensemble_has_noise_of_its_own():
    x = jnp.zeros((4, 3))
    teacher = ModelOutput(logits=x, taps={"members": jnp.zeros((4, 2, 3))})
    ctx = Context(ModelOutput(logits=x), teacher, Batch.of(x), Clock().at(0), key=jax.random.key(0))
    members = RandomTeacher(inner=KD())._change(ctx).teacher.taps["members"]
    assert members.shape == (4, 2, 3) and np.abs(members[:, 0] - members[:, 1]).min() > 0


def test_standardised_methods_are_as_released():
    """beta is alpha's ninefold by another nine, the temperature that is set is not that of DKD, but the first of MLLD's."""
    part = METHODS["lskd_dkd"].objective.parts[1]
    assert (part.inner.alpha, part.inner.beta, part.inner.temperature) == (9, 81, 4)
    assert METHODS["lskd_mlld"].objective.parts[-1].temperatures == (2, 3, 5, 2, 6)
    assert METHODS["mlld_official"].objective.parts[-1].temperatures == (4, 3, 5, 2, 6)


def test_a_pairs_beta_is_also_that_of_its_corrected_teacher():
    pair, beta = next((pair, beta) for pair, beta in DKD_BETA.items() if beta != 8)
    plain, corrected, standard = (of_pair(*pair, name).parts[1] for name in ("dkd", "loca_dkd", "lskd_dkd"))
    assert plain.beta == corrected.inner.beta == beta and standard.inner.beta == 81
    assert dataclasses.replace(corrected.inner, beta=8.0) == METHODS["loca_dkd"].objective.parts[1].inner
