"""The losses once more, in NumPy float64, written from their formulas: classes are removed, not masked."""

import numpy as np


def log_softmax(logits, temperature=1.0):
    """Exact to rounding at any size of logits; -inf stays -inf."""
    scaled = np.asarray(logits, np.float64) / temperature
    return scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)


def softmax(logits, temperature=1.0):
    return np.exp(log_softmax(logits, temperature))


def kl(log_p, log_q):
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1)


def kd(student, teacher, temperature=1.0):
    """`[...]` values with the factor T^2."""
    return temperature**2 * kl(log_softmax(teacher, temperature), log_softmax(student, temperature))


def kd_gradient(student, teacher, temperature=1.0):
    """`[..., C]`, of the sum of the values."""
    return temperature * (softmax(student, temperature) - softmax(teacher, temperature))


def kd_temperature_gradient(student, teacher, temperature):
    """`[...]`, d/dT of the values, through both softmaxes and T^2."""
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    p, q = np.exp(log_p), np.exp(log_q)
    # d/dT of log softmax(z / T) is (mean of z under it - z) / T^2
    slope_p = ((p * teacher).sum(-1, keepdims=True) - teacher) / temperature**2
    slope_q = ((q * student).sum(-1, keepdims=True) - student) / temperature**2
    slope = np.where(p > 0, p * (slope_p * (log_p - log_q) + slope_p - slope_q), 0.0).sum(-1)
    return 2 * temperature * kl(log_p, log_q) + temperature**2 * slope


def without(row, label):
    """The row with the label's class taken out."""
    return np.delete(np.asarray(row, np.float64), label)


def dkd_parts(student, teacher, labels, temperature=1.0):
    """(TCKD, NCKD), each `[B]`, for `[B, C]` logits."""
    target, rest = [], []
    for s, t, y in zip(student, teacher, labels, strict=True):
        binary = []
        for z in (t, s):
            z = np.asarray(z, np.float64) / temperature
            everything = np.logaddexp.reduce(z)
            others = np.logaddexp.reduce(without(z, y)) if len(z) > 1 else -np.inf
            binary.append(np.array([z[y] - everything, others - everything]))
        target.append(temperature**2 * kl(*binary))
        rest.append(kd(without(s, y), without(t, y), temperature) if len(s) > 1 else 0.0)
    return np.array(target), np.array(rest)


def dkd_gradient(student, teacher, labels, *, alpha, beta, temperature=1.0):
    """`[B, C]`, of the sum of the values."""
    gradient = np.zeros(np.shape(student))
    for i, (s, t, y) in enumerate(zip(student, teacher, labels, strict=True)):
        others = np.arange(len(s)) != y
        q_s, q_t = softmax(without(s, y), temperature), softmax(without(t, y), temperature)
        excess = softmax(s, temperature)[y] - softmax(t, temperature)[y]
        gradient[i, y] = alpha * temperature * excess
        gradient[i, others] = temperature * (beta * (q_s - q_t) - alpha * excess * q_s)
    return gradient


def swap_label_to_top(teacher, labels):
    """Each row's largest logit and its label's logit exchanged."""
    swapped = np.array(teacher)
    for row, label in zip(swapped, labels, strict=True):
        top = row.argmax()
        row[[top, label]] = row[[label, top]]
    return swapped


def skew_jensen(p, q, alpha):
    """The defining quotient, in extended precision, since it cancels."""
    p, q, alpha = np.longdouble(p), np.longdouble(q), np.longdouble(alpha)

    def generator(x):
        return np.where(x > 0, x * np.log(np.where(x > 0, x, 1)), 0).sum(-1)

    mixed = generator((1 - alpha) * p + alpha * q)
    return ((1 - alpha) * generator(p) + alpha * generator(q) - mixed) / (alpha * (1 - alpha))
