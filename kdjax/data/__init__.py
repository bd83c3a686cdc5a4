"""Data: sets of TFDS without TensorFlow, folders of pictures, arrays; who is held out and labelled; batches by number.

    source = load("fashion_mnist", split="train")
    splits = make_splits(source.labels, validation=1000)
    pipeline = Pipeline(source, splits.train, batch_size=128, data_seed=0, labelled_mask=splits.labelled)
    for step, batch in enumerate(pipeline.iterate(0)):
        ...

How a task shows its inputs to a network is the task's own, see `kdjax.tasks`. TFDS and grain are imported where they are
first used; TensorFlow never, but by TFDS in `prepare` of its own sets.
"""

from kdjax.data.arrays import from_arrays
from kdjax.data.crops import Crop
from kdjax.data.errors import DataError
from kdjax.data.pictures import Reading
from kdjax.data.pipeline import Examples, Pipeline, evaluation_batches
from kdjax.data.sources import Source, load, stand_in
from kdjax.data.splits import Splits, make_splits

__all__ = [
    "Crop", "DataError", "Examples", "Pipeline", "Reading", "Source", "Splits", "evaluation_batches", "from_arrays", "load",
    "make_splits", "stand_in",
]  # fmt: skip
