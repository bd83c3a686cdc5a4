"""Experiments: what they are, how they are run and compared."""

from kdjax.experiment.spec import Experiment, ExperimentError, Phase

__all__ = ["Experiment", "ExperimentError", "Phase"]
