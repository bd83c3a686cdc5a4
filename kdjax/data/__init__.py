"""Data: TFDS sources without TensorFlow, batches by number, views made on the device.

    source = load("fashion_mnist", split="train")
    splits = make_splits(source.labels, validation=1000)
    pipeline = Pipeline(source, splits.train, batch_size=128, data_seed=0, labelled_mask=splits.labelled)
    for step, batch in enumerate(pipeline.iterate(0)):
        inputs = views.train(batch.inputs, batch.index, step // pipeline.steps_per_epoch, key)  # in the compiled step

TFDS and grain are imported where they are first used; TensorFlow never, but by TFDS in `prepare` of its own sets.
"""

from kdjax.data.augment import Views
from kdjax.data.catalogue import DataError
from kdjax.data.pipeline import Pipeline, evaluation_batches
from kdjax.data.sources import Source, load
from kdjax.data.splits import Splits, make_splits
from kdjax.data.strong import Strong

__all__ = [
    "DataError", "Pipeline", "Source", "Splits", "Strong", "Views", "evaluation_batches", "load", "make_splits",
]  # fmt: skip
