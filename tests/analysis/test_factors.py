"""Main effects of tables whose effects are known."""

import itertools

import numpy as np
import pytest

from kdjax.analysis.factors import main_effects, noise_share, variance_shares

FIRST, SECOND = {"a": 0.0, "b": 3.0, "c": 6.0}, {"x": 1.0, "y": -1.0}
ADDITIVE = {(i, j): 10 + FIRST[i] + SECOND[j] for i, j in itertools.product(FIRST, SECOND)}


def test_effects_of_an_additive_table_are_its_terms():
    first, second = main_effects(ADDITIVE)
    assert {name: gain["mean"] for name, gain in first.items()} == {"a": -4.5, "b": 0.0, "c": 4.5}
    assert second["x"]["mean"] == 2.0 and len(second["x"]["values"]) == 3
    assert first["c"]["half_width"] == 0.0, "the same in every combination"
    (one, other), rest = variance_shares(ADDITIVE)
    np.testing.assert_allclose([one, other, rest], [6 / 7, 1 / 7, 0], atol=1e-12)


def test_what_is_the_same_by_another_name_counts_once():
    cells = {(i, j): FIRST[i] + {"x": 1.0, "y": 5.0, "z": 5.2}[j] for i in FIRST for j in "xyz"}
    first, second = main_effects(cells, same=lambda c: (c[0], c[1].replace("z", "y")))
    assert len(first["a"]["values"]) == 2 and len(second["x"]["values"]) == 3
    np.testing.assert_allclose(first["c"]["mean"], 4.5)
    plain = main_effects(cells)[0]["a"]
    assert len(plain["values"]) == 3


def test_a_pure_interaction_is_no_main_effect():
    crossed = {("a", "x"): 1.0, ("a", "y"): -1.0, ("b", "x"): -1.0, ("b", "y"): 1.0}
    for effects in main_effects(crossed):
        for gain in effects.values():
            assert gain["mean"] == 0 and gain["half_width"] > 10
    assert variance_shares(crossed) == ([0.0, 0.0], 1.0)


def test_order_of_combinations_is_nothing():
    turned = dict(reversed(list(ADDITIVE.items())))
    assert main_effects(turned)[0]["c"]["mean"] == 4.5


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match=r"no value for \('b', 'y'\)"):
        main_effects({k: v for k, v in ADDITIVE.items() if k != ("b", "y")})
    with pytest.raises(ValueError, match="single option"):
        main_effects({("a", "x"): 1.0, ("a", "y"): 2.0})


def test_noise_is_what_differs_from_seed_to_seed():
    """Of runs whose noise is known it is that over their number; what a seed does to all of them alike is none."""
    rng = np.random.default_rng(0)
    cells = {(f"a{i}", f"b{j}"): i - 2.0 * j for i in range(20) for j in range(20)}
    shift = np.array([0.0, 5.0, -3.0])
    runs = {c: mean + shift + 4.0 * rng.normal(size=3) for c, mean in cells.items()}
    spread = np.var([np.mean(values) for values in runs.values()], ddof=1)
    np.testing.assert_allclose(noise_share(runs), 4.0**2 / 3 / spread, rtol=0.1)
    assert noise_share({c: mean + shift for c, mean in cells.items()}) == pytest.approx(0, abs=1e-12)
    assert np.isnan(noise_share({c: [mean] for c, mean in cells.items()}))
    assert np.isnan(noise_share({c: [1.0, 1.0] for c in cells}))
