"""Mutual learning: two networks in training, each the other's teacher (Zhang et al., "Deep Mutual Learning", CVPR 2018).

Not another step: `make_step`'s own, taken once for each network, with the other's weights of the moment as its peer. The
two states travel as one `TrainState`, so that checkpoints, resuming and evaluation are those of a single network; the
peer's parameters, statistics and optimizer are kept beside the student's under "peer" and do not reach the deployed
student.
"""

import dataclasses
from typing import Literal

from kdjax.training.state import TrainState, Variables
from kdjax.training.step import Step

# Added to a run's seed for the peer: two networks that begin alike would have nothing to tell each other.
PEER_SEED = 1_000_003

Order = Literal["sequential", "simultaneous"]


def make_mutual_step(step: Step, order: Order = "sequential") -> Step:
    """A step of a `joined` state of two networks of one architecture.

    Args:
      step: what `make_step` gives for one of them, with an objective that reads its peer.
      order: "sequential", as in the paper: the peer is updated against the student's new weights; or "simultaneous":
        both against the weights from before.

    Returns:
      A step whose metrics are the student's, and the peer's as "peer_loss", "peer_top1", ...
    """
    if order not in ("sequential", "simultaneous"):
        raise ValueError(f'order is {order!r}; use "sequential" or "simultaneous".')

    def mutual(state: TrainState, teacher, batch):
        student, peer = split(state)
        new_student, metrics = step(student, teacher, batch, weights(peer))
        taught_by = new_student if order == "sequential" else student
        new_peer, other = step(peer, teacher, batch, weights(taught_by))
        return join(new_student, new_peer), metrics | {f"peer_{name}": value for name, value in other.items()}

    mutual.axis = step.axis
    return mutual


def join(student: TrainState, peer: TrainState) -> TrainState:
    """Two states as one; the peer's views of the data are the student's."""
    return dataclasses.replace(
        student,
        params={**student.params, "peer": peer.params},
        state={**student.state, "peer": peer.state},
        opt_state={"student": student.opt_state, "peer": peer.opt_state},
        keys={**student.keys, "peer": peer.keys["train"]},
    )


def split(state: TrainState) -> tuple[TrainState, TrainState]:
    """The two states that `join` made one."""
    mine = lambda tree: {name: value for name, value in tree.items() if name != "peer"}
    student = dataclasses.replace(
        state, params=mine(state.params), state=mine(state.state), opt_state=state.opt_state["student"],
        keys=mine(state.keys),
    )  # fmt: skip
    peer = TrainState(
        step=state.step,
        params=state.params["peer"],
        state=state.state["peer"],
        opt_state=state.opt_state["peer"],
        ema=None,
        keys={**student.keys, "train": state.keys["peer"]},
    )
    return student, peer


def weights(state: TrainState) -> Variables:
    return Variables(state.params["student"], state.state["student"])
