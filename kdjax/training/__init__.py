"""The step, its state, and the runners that compile it."""

from kdjax.training.runners import Runner, make_runner
from kdjax.training.state import TrainState, Variables, content_hash, count_parameters, init_state
from kdjax.training.step import make_step

__all__ = [
    "Runner", "TrainState", "Variables", "content_hash", "count_parameters", "init_state", "make_runner", "make_step",
]  # fmt: skip
