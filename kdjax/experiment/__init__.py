"""Experiments: what they are, how they are run and compared."""

from kdjax.experiment.spec import Data, Experiment, ExperimentError, Model, Phase

__all__ = ["Data", "Experiment", "ExperimentError", "Model", "Phase"]
