"""Image classification: small uint8 images of one size, one class each."""

from kdjax.tasks.classification.data import Classification
from kdjax.tasks.classification.networks import Classifier
from kdjax.tasks.classification.strong import Strong
from kdjax.tasks.classification.views import Views
from kdjax.tasks.registry import register

register(Classification, Classifier, Views, Strong, former={"Data": Classification, "Model": Classifier})

__all__ = ["Classification", "Classifier", "Strong", "Views"]
