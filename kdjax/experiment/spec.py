"""An experiment as data: one frozen dataclass that says a whole run. Everything else is built from it.

Its phases are run in order, and each trains one network: a teacher, a student that an earlier phase's network teaches, the
same student again with another objective. Warm-ups, chains of assistants and born-again generations are lists of phases.
"""

import dataclasses
import os
from typing import Literal

from kdjax.objectives import CrossEntropy, Objective, part_names, reads_teacher, unmixed
from kdjax.schedules import Adaptive, Duration, Schedule, epochs
from kdjax.tasks import Model, Task
from kdjax.training.finite import OnNan
from kdjax.training.optimizers import SGD, Optimizer


class ExperimentError(Exception):
    """What is wrong with an experiment or its files, and the mend, in one sentence."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One network's training: an objective, a length, and where its teacher and first weights come from."""

    name: str = "student"
    """name of the phase and of its network"""
    network: Model
    """what is trained: one of the networks of the experiment's task"""
    objective: Objective = CrossEntropy()
    """what is minimised"""
    duration: Duration = epochs(10)
    """length of the training"""
    optimizer: Optimizer = SGD()
    """how"""
    precision: Literal["float32", "bfloat16"] = "float32"
    """what the student computes in while it trains; its parameters, statistics and losses stay float32"""
    microbatches: int = 1
    """pieces in which a step's batch is run, to need less memory; the loss stays that of the whole batch"""
    remat: bool = False
    """whether the student's blocks are computed again in the backward pass, to need less memory (not on CPU)"""
    mix: bool = True
    """whether this network's inputs are mixed where the data's views say so (mixup, cutmix)"""
    labels: Literal["all", "labelled"] = "labelled"
    """labels this network may use: all, or those of the examples that data.labelled chose"""
    teacher: str = ""
    """earlier phase whose network teaches; several, joined by +, teach together; empty for none"""
    teacher_precision: Literal["", "float32", "bfloat16", "int8"] = ""
    """freeze the teacher: its BatchNorm folded into its kernels, and it computes in this; empty to run it as it is"""
    teacher_cache: str = ""
    """keep what the teacher says of each view, so that it runs once for each, in this and later runs: float32, float16, or topK
    such as top16; empty to run it at every step"""
    teacher_outputs: str = ""
    """file of what a teacher said of each training example, .npz or .jsonl, instead of a teacher; the same for every view"""
    on_policy: float | Schedule | Adaptive = 0.0
    """share of the steps whose examples the student writes itself, behind prompts of the data; for decoders"""
    teacher_writes: float = 0.0
    """where it writes, the teacher's share in the mixture of both that tokens are drawn from, 0 to 1"""
    start: str = ""
    """earlier phase whose weights this network begins with; empty for fresh ones"""
    weights: str = ""
    """folder of a finished phase or run whose network to take as it is, instead of training"""
    ema_decay: float = 0.0
    """decay per step of a moving average of the weights, which is then what is evaluated and kept; 0 for none"""
    keep: Literal["last", "best"] = "last"
    """which weights are the phase's result: of the last step, or of the best evaluation"""
    seed_offset: int = 0
    """added to the run's seed for this network, so that networks of one kind begin differently"""

    def __post_init__(self):
        outputs = os.path.expanduser(self.teacher_outputs)
        if outputs and os.path.exists(outputs):  # a saved run is read from anywhere
            object.__setattr__(self, "teacher_outputs", os.path.abspath(outputs))

    @property
    def teachers(self) -> tuple[str, ...]:
        """Names of the phases whose networks teach."""
        return tuple(self.teacher.split("+")) if self.teacher else ()

    @property
    def taught(self) -> bool:
        """Whether the objective reads a teacher."""
        return reads_teacher(self.objective.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole run."""

    name: str = "experiment"
    """what reports call it, and what the run folder is named after"""
    data: Task
    """the task: which examples there are, how they are shown, and what is asked of a network"""
    phases: tuple[Phase, ...] = ()
    """what is trained, in order"""
    seed: int = 0
    """seed of initial weights and dropout"""
    data_seed: int | None = None
    """seed of the order of examples and of their views; the same as seed if not given"""
    evaluate_every: Duration = epochs(1)
    """how often the networks are evaluated while training"""
    checkpoint_every: Duration = epochs(1)
    """how often a checkpoint is written"""
    log_every: int = 20
    """training metrics are logged every so many steps"""
    cache_dir: str = ""
    """where teachers' outputs are kept; a folder of the user's cache if not given"""
    workers: int = 0
    """processes that read and decode pictures to train on, beside this one, of each host; 0 for threads of this one, which open
    some thousand pictures a second. Batches are the same"""
    steps_per_dispatch: int = 0
    """optimizer steps in one call of the device, between evaluations and checkpoints; 0 for 16, and for 1 on CPU"""
    on_nan: OnNan = "stop"
    """where a loss, a gradient or parameters are not finite: stop; skip, that step is left out; restore, go on with the newest
    state that gave a finite loss, without the batches since; the last two a bounded number of times"""
    runner: Literal["jit", "fsdp", "pmap"] = "jit"
    """how the step is compiled: jit over a mesh of all devices; fsdp, the same with parameters and optimizer spread; or pmap"""

    def phase(self, name: str) -> Phase:
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise ExperimentError(f"No phase {name!r}; there are {', '.join(p.name for p in self.phases) or 'none'}.")

    def replace_phase(self, name: str, /, **changes) -> "Experiment":
        """A copy with fields of one phase changed."""
        self.phase(name)
        phases = tuple(dataclasses.replace(p, **changes) if p.name == name else p for p in self.phases)
        return dataclasses.replace(self, phases=phases)

    def seen_by(self, phase: Phase) -> "Experiment":
        """The same with its data as the networks of a phase need them, `Task.for_networks`.

        Raises:
          ValueError: they cannot be shown the same examples.
        """
        teachers = [self.phase(name).network for name in phase.teachers]
        data = self.data.for_networks(phase.network, teachers, writes=bool(phase.on_policy))
        if phase.start and self.data.for_networks(self.phase(phase.start).network, [phase.network]) != (
            self.data.for_networks(self.phase(phase.start).network, ())
        ):
            raise ValueError(
                f"Phase {phase.name!r} starts from the weights of {phase.start!r}, which reads other tokens; leave start empty."
            )
        if data is self.data:
            return self
        phases = tuple(dataclasses.replace(p, network=self.data.written_out(p.network)) for p in self.phases)
        return dataclasses.replace(self, data=data, phases=phases)

    @property
    def student(self) -> Phase:
        """The phase an experiment is about: its last."""
        if not self.phases:
            raise ExperimentError("The experiment has no phases; give it at least one.")
        return self.phases[-1]

    @property
    def lineage(self) -> tuple[Phase, ...]:
        """The phases that train the student itself: those it starts from, and its own."""
        names = [self.student.name]
        while (start := self.phase(names[0]).start) and start not in names:
            names.insert(0, start)
        return tuple(phase for phase in self.phases if phase.name in names)

    def problems(self) -> list[str]:
        """What is wrong with the experiment by itself, a sentence each; an empty list if nothing is."""
        found = []
        seen: list[str] = []
        if not self.phases:
            found.append("The experiment has no phases; give it at least one.")
        for phase in self.phases:
            if phase.name in seen:
                found.append(f"Two phases are called {phase.name!r}; give each its own name.")
            if not phase.name.replace("_", "").replace("-", "").isalnum():
                found.append(f"Phase name {phase.name!r} is used as a folder; use letters, digits, - and _.")
            sources = [("teacher", name) for name in phase.teachers] + [("start", phase.start)] * bool(phase.start)
            for field, source in sources:
                if source not in seen:
                    earlier = ", ".join(seen) or "none"
                    found.append(
                        f"Phase {phase.name!r} takes its {field} from {source!r}, not an earlier phase ({earlier})."
                    )
                    continue
                deployed = [n for n, p in part_names(self.phase(source).objective).items() if p.deploys]
                if deployed:
                    found.append(
                        f"Phase {phase.name!r} takes its {field} from {source!r}, whose network is deployed with its "
                        f"{deployed[0]!r} behind it and is no plain {self.phase(source).network.name}; take another phase."
                    )
            if phase.teacher_outputs and (phase.teacher or phase.teacher_cache or phase.teacher_precision):
                found.append(
                    f"Phase {phase.name!r} has teacher_outputs, which are instead of a teacher; leave teacher, teacher_cache and "
                    "teacher_precision empty."
                )
            given = phase.weights or phase.network.trained
            if phase.taught and not (phase.teacher or phase.teacher_outputs or given):
                reading = [n for n, part in part_names(phase.objective).items() if reads_teacher([part])]
                found.append(
                    f"Phase {phase.name!r} has no teacher, but its objective {reading[0]!r} reads one; set teacher."
                )
            if phase.on_policy and (phase.teacher_cache or phase.teacher_outputs):
                found.append(
                    f"Phase {phase.name!r} has on_policy, and what the student will write no teacher was asked before; leave "
                    "teacher_cache and teacher_outputs empty."
                )
            if not isinstance(phase.on_policy, Schedule | Adaptive) and not 0 <= phase.on_policy <= 1:
                found.append(f"Phase {phase.name!r} has on_policy={phase.on_policy}; it is a share, 0 to 1.")
            if isinstance(phase.on_policy, Adaptive) and phase.on_policy.replay < self.data.batch_size:
                found.append(
                    f"Phase {phase.name!r} has on_policy.replay={phase.on_policy.replay}, less than a batch of "
                    f"{self.data.batch_size} that is written at once; use that or more."
                )
            if not 0 <= phase.teacher_writes <= 1:
                found.append(f"Phase {phase.name!r} has teacher_writes={phase.teacher_writes}; it is a share, 0 to 1.")
            elif phase.teacher_writes and not (phase.on_policy and phase.taught):
                found.append(
                    f"Phase {phase.name!r} has teacher_writes={phase.teacher_writes}, and no teacher is asked while it writes; "
                    "set on_policy and an objective that reads a teacher, or teacher_writes to 0."
                )
            if phase.on_policy and type(self.data).written is Task.written:
                found.append(
                    f"Phase {phase.name!r} has on_policy, and networks do not write {self.data.noun} themselves; set it to 0."
                )
            if phase.microbatches < 1 or self.data.batch_size % phase.microbatches:
                found.append(
                    f"Phase {phase.name!r} has microbatches={phase.microbatches}, into which data.batch_size="
                    f"{self.data.batch_size} does not divide."
                )
            if not 0 <= phase.ema_decay < 1:
                found.append(
                    f"Phase {phase.name!r} has ema_decay={phase.ema_decay}; it must be at least 0 and below 1."
                )
            seen.append(phase.name)
        data = self.data
        if data.mixup or data.cutmix:
            for phase in self.phases:
                found += [
                    f"data.views mixes inputs (mixup, cutmix), but the objective {name!r} of phase {phase.name!r} reads {read}, "
                    "which are not mixed for it; use one that takes mixed labels (cross_entropy, label_smoothing) or reads the "
                    "teacher only, set the phase's mix to False, or mixup and cutmix to 0."
                    for name, read in unmixed(part_names(phase.objective)).items() if phase.mix and not phase.weights
                ][:1]  # fmt: skip
        for field in ("seed", "data_seed"):
            if not -(2**31) <= (getattr(self, field) or 0) < 2**31:
                found.append(f"{field}={getattr(self, field)} has more than 32 bits; use a smaller one.")
        if seeds_of(self)[1] < 0:
            found.append(
                f"{'seed' if self.data_seed is None else 'data_seed'}={seeds_of(self)[1]} is negative, and the order of examples "
                "takes none; use data_seed=0 or more."
            )
        for field in ("batch_size", "eval_batch_size"):
            if getattr(data, field) < 1:
                found.append(f"data.{field}={getattr(data, field)}; it must be at least 1.")
        found += data.problems()
        if self.steps_per_dispatch < 0:
            found.append(f"steps_per_dispatch={self.steps_per_dispatch}; it must be at least 1, or 0 to choose.")
        if self.steps_per_dispatch > 1 and not data.one_shape:
            found.append(
                f"steps_per_dispatch={self.steps_per_dispatch} needs batches of one shape, and data makes several; use 1."
            )
        if self.workers < 0:
            found.append(f"workers={self.workers}; it must be at least 1, or 0 for none.")
        if self.log_every < 1:
            found.append(f"log_every={self.log_every}; it must be at least 1.")
        return found

    def tiny(self) -> "Experiment":
        """A copy that runs in seconds, to see that everything works: a few steps of small batches, narrow networks.

        At a tenth of the learning rates: six steps have no room for a warm-up, without which some objectives diverge.
        """
        data = self.data.shrunk()
        phases = tuple(
            dataclasses.replace(
                phase,
                duration=Duration(6, "steps"),
                microbatches=1 if data.batch_size % phase.microbatches else phase.microbatches,
                network=self.data.shrunk_network(phase.network),
                optimizer=dataclasses.replace(phase.optimizer, learning_rate=0.1 * phase.optimizer.learning_rate),
            )
            for phase in self.phases
        )
        return dataclasses.replace(
            self,
            name=f"{self.name}-tiny",
            data=data,
            phases=phases,
            log_every=2,
            evaluate_every=Duration(3, "steps"),
            checkpoint_every=Duration(3, "steps"),
        )


def seeds_of(experiment: Experiment) -> tuple[int, int]:
    """`(seed, data_seed)` of an experiment."""
    return experiment.seed, experiment.seed if experiment.data_seed is None else experiment.data_seed
