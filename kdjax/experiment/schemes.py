"""Training schemes as lists of phases: chains of teachers, and generations of one network.

A scheme is no special loop. It is phases that name each other, made here so that configs stay short.
"""

import dataclasses
import itertools

from kdjax.experiment.spec import Experiment, Phase
from kdjax.objectives import Objective, method


def student_phases(
    name: str, student: Phase, *, objective: Objective | None = None, share: float = 1 / 9
) -> tuple[Phase, ...]:
    """The phases that train a student by a method: one for most, two where a phase of its own goes before.

    Args:
      name: of the method, as in `kdjax methods`.
      student: the phase; its objective is replaced.
      objective: by this one, where a config has settings of its own for a method, else by the method's.
      share: of its steps that the phase before takes, so that every method has the same budget. A ninth is what the
        released benchmark code trains before (30 epochs), of that and its 240.
    """
    entry = method(name)
    last = dataclasses.replace(student, objective=objective or entry.objective)
    if entry.on_policy:
        last = dataclasses.replace(last, on_policy=entry.on_policy, teacher_writes=entry.teacher_writes)
    if entry.before is None:
        return (last,)
    length = student.duration
    before = dataclasses.replace(
        student, name=f"{student.name}-before", objective=entry.before,
        duration=dataclasses.replace(length, amount=length.amount * share),
    )  # fmt: skip
    rest = dataclasses.replace(length, amount=length.amount * (1 - share))
    return before, dataclasses.replace(last, duration=rest, start=before.name)


def with_method(experiment: Experiment, name: str) -> Experiment:
    """The same experiment with its student trained by another method, for as long in all."""
    lineage = experiment.lineage
    length = dataclasses.replace(
        experiment.student.duration, amount=sum(phase.duration.amount for phase in lineage)
    )  # fmt: skip
    student = dataclasses.replace(experiment.student, start="", duration=length)
    if len({phase.duration.unit for phase in lineage}) > 1 or len({phase.network for phase in lineage}) > 1:
        student = experiment.student  # it begins with another kind of phase, which stays
        lineage = (student,)
    others = tuple(phase for phase in experiment.phases if phase not in lineage)
    return dataclasses.replace(experiment, phases=(*others, *student_phases(name, student)))


def chain(*phases: Phase) -> tuple[Phase, ...]:
    """Each phase's network teaches the next: a teacher, its assistants, the student (Mirzadeh et al., 1902.03393)."""
    taught = [dataclasses.replace(phase, teacher=before.name) for before, phase in itertools.pairwise(phases)]
    return (*phases[:1], *taught)


def generations(first: Phase, again: Phase, count: int, *, ensemble: Phase | None = None) -> tuple[Phase, ...]:
    """Born-again networks (Furlanello et al., 1805.04770): `first`, then `count` times `again`, each taught by the last.

    Args:
      first: the phase without a teacher.
      again: how every later generation is trained; it is called by `again.name` and a number from 1, and begins with
        weights of its own.
      count: how many, besides the first.
      ensemble: a phase that all the later generations teach together, by their mean probability, or None. Its
        evaluations show the ensemble's accuracy beside the student's.
    """
    later = [
        dataclasses.replace(again, name=f"{again.name}{i}", seed_offset=again.seed_offset + i)
        for i in range(1, count + 1)
    ]
    phases = chain(first, *later)
    if ensemble is None:
        return phases
    return (*phases, dataclasses.replace(ensemble, teacher="+".join(phase.name for phase in later)))
