"""Losses of hidden states and attention against the original implementations, and what holds of them by definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kdjax import losses
from tests.golden_cases import PRECISIONS, cases
from tests.losses.computing import computing_in


def mean_over(values, where):
    return jnp.sum(jnp.where(where, values, 0)) / jnp.sum(where)


def checked(case, precision, loss, names):
    """`loss`, a function of a dict of inputs, and its gradients by those of `names`."""
    with computing_in(precision) as array:
        inputs = {
            key: array(x) if np.issubdtype(x.dtype, np.floating) else jnp.asarray(x) for key, x in case.inputs.items()
        }
        ours = {name: inputs[name] for name in names}
        run = jax.jit(jax.value_and_grad(lambda ours: loss(inputs | ours)))
        value, gradients = run(ours)
        case.check(value, "out", "loss", precision)
        for name in set(names) & set(case.grads["f64"]):
            case.check(gradients[name], "grad", name, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", cases("distilbert_triple"), ids=lambda case: case.id)
def test_distilbert(case, precision):
    h = case.hyper

    def loss(x):
        mask, student, teacher = x["mask"] != 0, x["student"], x["teacher"]
        chosen = x["labels"] > -1 if h["restrict"] else mask
        total = h["alpha_ce"] * h["temperature"] ** 2 * mean_over(
            losses.forward_kl(student, teacher, temperature=h["temperature"]), chosen
        )  # fmt: skip
        guessed = losses.cross_entropy(student, labels=jnp.maximum(x["labels"], 0))
        total += h["alpha_mlm"] * mean_over(guessed, x["labels"] > -1) if h["alpha_mlm"] else 0
        total += h["alpha_mse"] * mean_over(jnp.sum((student - teacher) ** 2, axis=-1), chosen)
        if h["alpha_clm"]:
            later = x["labels"][:, 1:]
            after = losses.cross_entropy(student[:, :-1], labels=jnp.maximum(later, 0))
            total += h["alpha_clm"] * mean_over(after, later > -1)
        return total + h["alpha_cos"] * mean_over(losses.hidden_cosine(x["student_hidden"], x["teacher_hidden"]), mask)

    checked(case, precision, loss, ("student", "student_hidden"))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", cases("bert_pkd", symbol="patience_loss"), ids=lambda case: case.id)
def test_patience(case, precision):
    loss = lambda x: jnp.mean(
        losses.patience(x["student_patience"], x["teacher_patience"], normalized=case.hyper["normalized"])
    )
    checked(case, precision, loss, ("student_patience",))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "case", [case for case in cases("tinybert") if "s_att_0" in case.inputs], ids=lambda case: case.id
)
def test_tinybert(case, precision):
    ours, theirs = case.hyper["student_layers"], case.hyper["teacher_layers"]

    def loss(x):
        scores = sum(jnp.mean(losses.attention_scores(x[f"s_att_{j}"], x[f"t_att_{(j + 1) * theirs // ours - 1}"]))
                     for j in range(ours))  # fmt: skip
        states = sum(
            jnp.mean(losses.hidden_mse(x[f"s_rep_{j}"], x[f"t_rep_{j * theirs // ours}"])) for j in range(ours + 1)
        )
        return scores + states

    names = [f"s_att_{j}" for j in range(ours)] + [f"s_rep_{j}" for j in range(ours + 1)]
    checked(case, precision, loss, names)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", cases("minilm_relation"), ids=lambda case: case.id)
def test_minilm(case, precision):
    of = {1: "q", 2: "k", 3: "v"}

    def loss(x):
        pair = lambda role, a, b: (x[f"{role}_{of[a]}"], x[f"{role}_{of[b]}"])
        return sum(weight * jnp.mean(losses.attention_relations(
            pair("s", a, b), pair("t", a, b), heads=case.hyper["relation_heads"], mask=x["mask"],
        )) for a, b, weight in case.hyper["relations"])  # fmt: skip

    checked(case, precision, loss, ("s_q", "s_k", "s_v"))


# TextBrewer's losses of the same tensors. It takes scores at or below this for those of padding, where no mask is given.
PADDED = -1e-3


def by_head(case, x):
    """Scores as the loss compares them: head by head, or of all heads at once."""
    if "sum" in case.symbol:
        return jnp.sum(x, axis=1, keepdims=True)
    return jnp.mean(x, axis=1, keepdims=True) if "mean" in case.symbol else x


def brewed_scores(case, x):
    student, teacher = by_head(case, x["s"]), by_head(case, x["t"])
    there = x["mask"] != 0
    if "mse" in case.symbol:
        if not case.hyper["masked"]:
            student, teacher = (jnp.where(y <= PADDED, 0, y) for y in (student, teacher))
            return jnp.mean(losses.attention_scores(student, teacher))
        places = jnp.sum(there, axis=1) ** 2
        return jnp.sum(losses.attention_scores(student, teacher, mask=x["mask"]) * places) / jnp.sum(places)
    share = jax.nn.softmax(teacher)
    kept = there[:, None, None, :] if case.hyper["masked"] else teacher > PADDED
    values = losses.cross_entropy_with_targets(student, jnp.where(kept, share, 0))
    queries = there[:, None] if case.hyper["masked"] else True
    return mean_over(values, jnp.broadcast_to(queries, values.shape))


def brewed_states(case, x):
    if case.symbol == "pkd_loss":  # summed over the entries of a state
        return jnp.mean(losses.patience(x["s"][:, :1], x["t"][:, :1])) * x["s"].shape[-1]
    loss = losses.hidden_mse if case.symbol == "hid_mse_loss" else losses.hidden_cosine
    values = loss(x["s"], x["t"])
    return mean_over(values, (x["mask"] != 0) if case.hyper["masked"] else jnp.ones(values.shape, bool))


def brewed_relations(case, x):
    """Of two layers' states, whose padding is left out: products over tokens, which is FSP's, or over the width."""
    there = (x["mask"] != 0).astype(x["s_0"].dtype)
    first, second = ([x[f"{role}_{i}"] * there[..., None] for role in "st"] for i in range(2))
    if case.symbol == "fsp_loss":
        length = jnp.sum(there, axis=1)[:, None, None]
        products = [jnp.einsum("bld,ble->bde", a, b) / length for a, b in zip(first, second, strict=True)]
        return jnp.mean(losses.hidden_mse(*products))
    products = [jnp.einsum("bld,bmd->blm", a, b) / a.shape[-1] for a, b in zip(first, second, strict=True)]
    places = jnp.sum(there, axis=1) ** 2
    return jnp.sum(losses.hidden_mse(*products)) * there.shape[1] / jnp.sum(places)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", cases("textbrewer"), ids=lambda case: case.id)
def test_textbrewer(case, precision):
    brewed = brewed_relations if "s_0" in case.inputs else brewed_scores if "att" in case.symbol else brewed_states
    names = [name for name in case.inputs if name.startswith("s")]
    checked(case, precision, lambda x: brewed(case, x), names)


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32) for _ in range(2))


MASK = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]])


def test_padding_counts_for_nothing(vectors):
    """Nor does it get a gradient; and a row of padding alone is 0, not nan."""
    student, teacher = vectors
    other = jnp.where(MASK[..., None] != 0, student, 7.0)

    @jax.jit
    def both(x):
        relation = losses.attention_relations((x, x), (teacher, teacher), heads=2, mask=MASK)
        scores = losses.attention_scores(x[:, None, :, :5], teacher[:, None, :, :5], mask=MASK)
        return jnp.stack([relation, scores])

    values = both(student)
    np.testing.assert_allclose(values[:, 0], both(other)[:, 0], rtol=1e-6)
    assert np.all(values[:, 1] == 0) and np.all(values[:, 0] > 0)
    gradient = jax.grad(lambda x: jnp.sum(both(x)))(student)
    assert np.all(np.isfinite(gradient)) and not np.any(gradient[0, 3:]) and not np.any(gradient[1])


def test_of_itself_each_is_0(vectors):
    x, _ = vectors
    for value in (
        losses.hidden_cosine(x, 3 * x), losses.hidden_mse(x, x), losses.patience(x, 2 * x),
        losses.attention_scores(x[None], x[None]), losses.attention_relations((x, x), (x, x), heads=4),
    ):  # fmt: skip
        np.testing.assert_allclose(value, 0, atol=1e-6)


def test_what_does_not_fit_is_said(vectors):
    x, _ = vectors
    for call, said in (
        (lambda: losses.hidden_mse(x, x[..., :4]), "project the student's"), (lambda: losses.patience(x[0], x[0]), "first token"),
        (lambda: losses.attention_relations((x, x), (x, x), heads=3), "use a divisor of both widths"),
        (lambda: losses.attention_relations((x, x), (x, x), heads=2, mask=np.ones((2, 4))), "one value a token"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            call()
