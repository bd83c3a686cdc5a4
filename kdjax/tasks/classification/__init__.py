"""Image classification: one class each, or soft labels."""

from kdjax.data import Crop
from kdjax.tasks.classification.data import Classification
from kdjax.tasks.classification.networks import Classifier
from kdjax.tasks.classification.policies import Erase, Jitter, Policy
from kdjax.tasks.classification.strong import Strong
from kdjax.tasks.classification.views import Views
from kdjax.tasks.registry import register

register(
    Classification, Classifier, Views, Strong, Crop, Policy, Jitter, Erase, former={"Data": Classification, "Model": Classifier}
)  # fmt: skip

__all__ = ["Classification", "Classifier", "Crop", "Erase", "Jitter", "Policy", "Strong", "Views"]
