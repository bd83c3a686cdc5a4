"""kdjax distill configs/digits/smoke.py --method dkd

A minute-long check that everything works, on scikit-learn's 8x8 digits: nothing to learn from its numbers.
"""

from kdjax.data import Views
from kdjax.experiment import Data, Experiment, Model, Phase
from kdjax.objectives import method
from kdjax.schedules import Cosine, epochs
from kdjax.training.optimizers import AdamW


def experiment(name: str = "kd") -> Experiment:
    optimizer = AdamW(learning_rate=Cosine(start=2e-3))
    return Experiment(
        name="digits-smoke",
        data=Data(name="digits", batch_size=64, eval_batch_size=128, views=Views(mean=(0.3,), std=(0.38,))),
        phases=(
            Phase(name="teacher", network=Model(name="small_cnn", width=16), duration=epochs(4), optimizer=optimizer),
            Phase(
                name="student", network=Model(name="small_cnn", width=4), duration=epochs(4), optimizer=optimizer,
                objective=method(name).objective, teacher="teacher",
            ),
        ),
        log_every=5,
    )  # fmt: skip
