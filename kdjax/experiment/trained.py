"""A finished network, to be used: its run folder is all that is needed, no data set and no step."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from kdjax.experiment.artifacts import saved_experiment
from kdjax.experiment.folder import NETWORK, network_folder, read_network, read_result, run_place
from kdjax.experiment.networks import make_network, make_networks
from kdjax.experiment.program import Builder
from kdjax.experiment.spec import Experiment, ExperimentError
from kdjax.tasks.dataset import BESIDE
from kdjax.tasks.facts import dataset_of
from kdjax.tasks.given import GivenNetwork, named
from kdjax.training import Variables
from kdjax.training.checkpoints import load_network
from kdjax.types import Network, Tree


class Trained:
    """A finished network as a pure function from inputs as the data set stores them to its output. Jit it like any other.

    Attributes:
      network, variables: what it is made of.
      inputs: shapes of what it takes, with a batch axis of 1: images uint8 `[1, H, W, C]`, say.
      view: what makes the network's inputs of these.
      seen: shapes of what the network sees of these, after normalisation.
      classes: their names, in the order of the logits; empty if they are not known.
      task: what its examples are, as it was shown them.
    """

    def __init__(
        self,
        network: Network,
        variables: Variables,
        view: Callable[[Any], Any],
        inputs: Tree,
        classes: Sequence[str] = (),
        task: Any = None,
    ):
        self.classes, self.task = tuple(classes), task
        self.network, self.variables, self.inputs, self.view = network, variables, inputs, view
        self.seen = jax.eval_shape(view, inputs)

    def __call__(self, inputs: Any) -> Any:
        return self.network.apply(self.variables.params, self.variables.state, self.view(inputs), train=False)[0]

    def as_network(self) -> Network:
        """The network with these weights, as a teacher: it sees what the networks of that experiment see, as `network` does."""
        copies = lambda: jax.tree.map(jnp.array, (self.variables.params, self.variables.state))
        return self.network._replace(init=lambda key: copies())

    def __repr__(self):
        return f"Trained({self.network.name})"


def load_trained(
    folder: str | Path,
    phase: str | None = None,
    data_dir: str | None = None,
    *,
    network: Any = None,
    preprocess: Callable[[Any], Any] | None = None,
) -> Trained:
    """A finished network of a run as a function from inputs to its output.

    Args:
      folder: run folder.
      phase: which network; the last phase's, the student, if not given.
      data_dir: folder of prepared data sets, for runs that were written before a network knew its data; else not read.
      network, preprocess: what `kdjax.distill` was given for it, where it was.

    Raises:
      ExperimentError, CheckpointError: there is no such network, or it is damaged.
    """
    folder = run_place(folder)
    experiment = saved_experiment(folder)
    chosen = experiment.phase(phase).name if phase else experiment.student.name
    if network is not None:
        given = GivenNetwork(name=named(network, chosen), network=network)
        experiment = experiment.replace_phase(chosen, network=given)
    if preprocess is not None:
        experiment = dataclasses.replace(experiment, data=dataclasses.replace(experiment.data, preprocess=preprocess))
    return trained_of(experiment, folder, chosen, data_dir)


def trained_of(experiment: Experiment, folder: Path, phase: str, data_dir: str | None = None) -> Trained:
    """The finished network of a phase of an experiment that was run in a folder; raises as `load_trained`."""
    chosen = experiment.phase(phase)
    brings = chosen.network.trained and not chosen.weights  # its weights, and has no file of them here
    place = folder / phase if brings else network_folder(chosen, folder / phase)
    if not (place / NETWORK).exists() and not brings:
        raise ExperimentError(f"{place} holds no finished network; go on with the run by --resume.")
    facts = ((read_result(place) or {}) if brings else read_network(place)).get("data")
    try:
        experiment = experiment.seen_by(chosen)
        chosen = experiment.phase(phase)
        dataset = dataset_of(facts) if facts else Builder(data_dir).dataset(experiment.data)
        if any(
            part.deploys for part in chosen.objective.parts
        ):  # something of it, or of the teacher, is behind the student
            network = make_networks(experiment, chosen, dataset).deployment.network
        else:
            network = make_network(experiment.data, chosen.network, dataset)
    except ValueError as error:
        raise ExperimentError(str(error)) from error
    inputs = dataset.shapes(1)["inputs"]
    if isinstance(inputs, dict):
        inputs = {name: x for name, x in inputs.items() if name != BESIDE}
    said = experiment.data.evaluation_view, inputs, dataset.info.class_names, experiment.data
    if brings:
        return Trained(network, Variables(*network.init(jax.random.key(0))), *said)
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    template = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        Variables(*jax.eval_shape(network.init, jax.random.key(0))),
    )
    variables, _ = load_network(place, template)
    return Trained(network, variables, *said)
