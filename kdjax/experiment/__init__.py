"""Experiments: what they are, how they are run and compared.

One phase on its way from config to result, in the order to read it:

    spec.py        what a phase says, and the task whose examples it learns from (`kdjax.tasks`)
    networks.py    its student and teacher, and the objective bound to both
    compiled.py    its step and its evaluation, compiled
    feeding.py     its batches; teacher_outputs.py if its teacher's outputs are kept
    program.py     these three together, built once for all seeds
    phase.py       the training: first state (warm_start.py), loop, result
    artifacts.py   what is kept of it, found again, and used

Around it: config.py and serialization.py read experiments, schemes.py writes lists of phases, given_teacher.py takes
a teacher from elsewhere, folder.py keeps run folders; run.py runs the phases of one, replicas.py several seeds as one
program, compare.py several methods; dry_run.py and accounting.py say what a phase costs, ahead/ what its step costs
on devices that are not here, tables.py, plots.py and report.py what it came to.
"""

from kdjax.experiment.spec import Experiment, ExperimentError, Phase

__all__ = ["Experiment", "ExperimentError", "Phase"]
