"""Knowledge or regularisation: what is measured, where the answer is known, and the command in its tiny form."""

import json

import numpy as np
import pytest

from kdjax.cli import main
from kdjax.studies import regulariser
from kdjax.studies.regulariser import CONTROL, asymmetry, measured, ranks, shuffled, verdict

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 10, 400).astype(np.uint8)


def drawn(near, share=1.0):
    """Logits of a network near another: of its own where `share` is 0."""
    return (share * near + 2 * (1.01 - share) * RNG.normal(size=(400, 10))).astype(np.float32)


def networks(shares, teachers=3, orders=4):
    made = {f"teacher{k}": drawn(3 * np.eye(10)[LABELS], 0.5) for k in range(teachers)}
    for name, share in shares.items():
        for k in range(teachers):
            for order in range(orders):
                made[f"{name}-{k}-{order}"] = drawn(made[f"teacher{k}"], share)
    return made


def said(shares):
    found = measured(networks(shares), LABELS, 3, 4)
    tests = ranks(found)
    gains = {
        n: {"top1": regulariser.paired_gain(by["top1"].mean(1), found[CONTROL]["top1"].mean(1))}
        for n, by in found.items()
    }
    payoff = asymmetry(found["KD 0.9"], found[CONTROL])
    return found, tests, verdict(found, gains, tests, payoff, "KD 0.9")


def test_what_is_near_its_teacher_is_said_to_have_learnt_of_it():
    found, tests, text = said({CONTROL: 0.0, "KD_0.9": 0.9, "noise_0.9": 0.0, "shuffled_0.9": 0.0})
    assert found["KD 0.9"]["js_divergence"].shape == (3, 4)
    assert (found["KD 0.9"]["own_agreement"] > 0.2).all() and abs(found[CONTROL]["own_agreement"].mean()) < 0.05
    assert {t["teachers"] for t in tests["KD 0.9"][CONTROL].values()} == {3}
    assert text.startswith("Knowledge of this teacher is transferred")


def test_what_is_not_near_it_is_not():
    _, tests, text = said({CONTROL: 0.5, "KD_0.9": 0.5, "noise_0.9": 0.0, "shuffled_0.9": 0.5})
    assert tests["KD 0.9"][CONTROL]["js_divergence"]["teachers"] < 3
    assert text.startswith("A transfer of knowledge is not established")


def test_the_payoff_is_of_errors_less_of_what_is_right():
    control = {"same_errors": np.full((2, 2), 0.6), "when_right": np.full((2, 2), 0.9)}
    by = {"same_errors": np.full((2, 2), 0.8), "when_right": np.full((2, 2), 0.95)}
    found = asymmetry(by, control)
    np.testing.assert_allclose(found["points"]["mean"], 0.2 - 0.05)
    np.testing.assert_allclose(found["of_room"]["mean"], 0.5 - 0.5, atol=1e-12)


def test_shuffled_answers_keep_their_class():
    logits = RNG.normal(size=(400, 10))
    found = shuffled(logits, LABELS, RNG)
    for label in range(10):
        rows = label == LABELS
        assert sorted(map(tuple, found[rows])) == sorted(map(tuple, logits[rows]))
    assert np.mean(np.all(found == logits, axis=1)) < 0.1


@pytest.mark.slow  # four kinds of students are compiled, a minute
def test_from_the_command_line(tmp_path):
    assert main(["study", "regulariser", "--tiny", "--run", str(tmp_path / "study")]) == 0
    found = json.loads((tmp_path / "study/numbers.json").read_text())
    assert set(found["numbers"]["values"]) == {CONTROL, "KD 0.9", "noise 0.9", "shuffled 0.9"}
    assert found["verdict"] in (tmp_path / "study/index.html").read_text().replace("&#x27;", "'")
