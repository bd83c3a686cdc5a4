"""How a metric is compared and shown."""

from kdjax.training.metrics import Metric

TOP1 = Metric("top1", "top-1 %", 100, 2, unit="points")
NLL = Metric("nll", "NLL", 1, 3, higher_is_better=False)


def test_which_value_is_better():
    assert TOP1.better(0.8, 0.7) and not TOP1.better(0.7, 0.7)
    assert NLL.better(0.7, 0.8) and not NLL.better(0.8, 0.8)


def test_as_a_person_reads_it():
    assert TOP1.text(0.87314) == "87.31" and TOP1.said(0.87314) == "top-1 87.31 %"
    assert TOP1.change(0.0011) == "+0.11 points" and TOP1.amount(-0.0559) == "5.59 points of top-1"
    assert NLL.said(0.5) == "NLL 0.500" and NLL.change(-0.25) == "-0.250" and NLL.amount(0.25) == "0.250 NLL"
