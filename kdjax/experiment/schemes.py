"""Training schemes as lists of phases: chains of teachers, and generations of one network.

A scheme is no special loop. It is phases that name each other, made here so that configs stay short.
"""

import dataclasses
import itertools

from kdjax.experiment.spec import Phase


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
