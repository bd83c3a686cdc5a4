"""Networks of the study of properties, and one number for each property and network."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kdjax.analysis import closer_share, fooling_rate, grad_cam, iterative_fgsm, variants
from kdjax.analysis.fidelity import agreement
from kdjax.analysis.statistics import spread
from kdjax.data.fashion_mnist import CLASS_NAMES, embedded
from kdjax.experiment.config import load_config
from kdjax.experiment.run import run
from kdjax.experiment.spec import Experiment
from kdjax.experiment.trained import Trained, load_trained
from kdjax.objectives import CRD, KD, CrossEntropy, FitNet
from kdjax.schedules import Cosine, Duration, WarmUp, percent, steps
from kdjax.studies.finding import Size
from kdjax.studies.students import students, train
from kdjax.training.optimizers import SGD

OBJECTIVES = {
    "kd": 0.5 * CrossEntropy() + 0.5 * KD(temperature=4.0),
    "hint": CrossEntropy() + 5.0 * FitNet(stage=1),
    "crd": CrossEntropy() + 0.8 * CRD(negatives=4096, shared_negatives=True),
}
MEAN, STD = 0.286, 0.353
SIZES = tuple(level / 255 for level in (2, 4, 8, 12, 16, 24, 32))  # of attacks, of pixels from 0 to 1
FOOLED = 0.85  # of the images, the teacher at least: the smallest attack that does it
INDEPENDENT = "independent"


def base(size: Size, folder: Path) -> Experiment:
    """A teacher and a student on clean images."""
    made = load_config("fashion_mnist/few_labels")("kd")
    views = dataclasses.replace(made.data.views, crop_padding=0, flip=False, mean=(MEAN,), std=(STD,))
    made = made.replace_phase("teacher", duration=steps(900))
    rate = 0.05 * (WarmUp(length=percent(10)) * Cosine())
    made = made.replace_phase(
        "student", duration=steps(4000 if size == "full" else 600),
        optimizer=SGD(learning_rate=rate, nesterov=True, weight_decay=5e-4, clip=5.0),
    )  # fmt: skip
    made = dataclasses.replace(
        made, name="properties",
        data=dataclasses.replace(made.data, validation=0, labelled=0, eval_batch_size=500, views=views),
        evaluate_every=Duration(100, "percent"), checkpoint_every=Duration(100, "percent"), cache_dir=str(folder / "cache"),
    )  # fmt: skip
    return made.tiny() if size == "tiny" else made


def train_all(size, folder, methods, seeds, *, announce, overwrite, progress, data_dir):
    """`((teachers by name, {(teacher, method): students}), {(teacher, method): top-1})`; independent ones have no teacher."""
    plain = base(size, folder)
    jitter = dataclasses.replace(plain.data.views.jitter, brightness=0.8, contrast=0.8)
    views = dataclasses.replace(plain.data.views, crop_padding=3, jitter=jitter)
    seen = two_domains(folder / "domains.npz", 96 if size == "tiny" else 12_000)
    variants_of = {
        "plain": plain,
        "other": dataclasses.replace(plain, seed=100),
        "invariant": dataclasses.replace(plain, data=dataclasses.replace(plain.data, views=views)),
        "domains": dataclasses.replace(plain, data=dataclasses.replace(plain.data, name=str(seen))),
    }
    teachers, taught, accuracy = {}, {}, {}
    for name, experiment in variants_of.items():
        announce(f"teacher {name}")
        place = folder / "teachers" / name
        alone = dataclasses.replace(experiment, phases=experiment.phases[:1])
        result = run(alone, place, resume=place.exists() and not overwrite, overwrite=overwrite, progress=progress)
        teachers[name] = load_trained(place)
        accuracy[f"{name}, teacher"] = spread([result["teacher"]["last"]["student"]["top1"]])
        objectives = {method: OBJECTIVES[method] for method in methods}
        objectives |= {INDEPENDENT: CrossEntropy()} if name == "plain" else {}
        one = plain.replace_phase("teacher", weights=f"../../../teachers/{name}/teacher")
        found = train(
            {
                method: one.replace_phase("student", objective=objective, teacher_cache="float32" if method == "kd" else "")
                for method, objective in objectives.items()
            },
            seeds, folder / "students" / name, announce=announce, overwrite=overwrite, progress=progress, data_dir=data_dir,
        )  # fmt: skip
        for method in objectives:
            taught[name, method] = students(folder / "students" / name, method, seeds)
            accuracy[INDEPENDENT if method == INDEPENDENT else f"{name}, {method}"] = found[method]["metrics"]["top1"]
    return (teachers, taught), accuracy


def two_domains(path: Path, count: int) -> Path:
    """A data set of the first so many embedded images, clean, inverted and textured."""
    x, y, _ = embedded("train")
    x, y = jnp.asarray(x[:count, ..., None]), np.tile(y[:count], 3)
    test = embedded("test")
    path.parent.mkdir(parents=True, exist_ok=True)
    seen = np.concatenate([x, variants.inverted(x), variants.textured(x, jax.random.key(1))])
    np.savez(path, x_train=seen, y_train=y, x_test=test[0], y_test=test[1], class_names=np.asarray(CLASS_NAMES))
    return path


def measure(teachers, taught, images, labels) -> tuple[dict, dict]:
    """`({property: {"teacher, method" or independent: values by seed}}, further facts)`."""
    view = teachers["plain"].view
    ask = {"teacher": asking(teachers["plain"]), "student": asking(taught["plain", INDEPENDENT][0])}
    shown = {"clean": {"clean": view(images)}} | {
        kind: {name: view(changed) for name, changed in several.items()} for kind, several in changes(images).items()
    }
    attacked = attack(ask["teacher"], shown["clean"]["clean"], labels)
    tried: dict[float, float] = {}
    for strength in SIZES:
        tried[strength] = float(attacked(teachers["plain"].variables, strength)[1])
        if tried[strength] >= FOOLED:
            break
    shown["attack"] = {name: attacked(teachers[name].variables, strength)[0] for name in ("plain", "other")}
    say = lambda kind, network: {
        (group, name): ask[kind](network.variables, x)[0] for group, xs in shown.items() for name, x in xs.items()
    }
    look = lambda kind, network: ask[kind](network.variables, shown["clean"]["clean"], labels)[1]
    told = {name: say("teacher", network) for name, network in teachers.items()}
    said = {key: [say("student", network) for network in several] for key, several in taught.items()}
    maps = {
        key: [look("student", n) for n in several] for key, several in taught.items() if key[0] in ("plain", "other")
    }
    target, alone = look("teacher", teachers["plain"]), maps["plain", INDEPENDENT]
    hit = {name: logits_moved(told[name], name) for name in ("plain", "other")}
    rates = lambda logits, by: float(
        fooling_rate(lambda z: z, logits["clean", "clean"], logits["attack", by], where=hit[by])
    )
    top1 = lambda logits: float(jnp.mean(jnp.argmax(logits, axis=-1) == labels))
    kept = lambda logits, kind: {
        name: float(agreement(logits[kind, name], logits["clean", "clean"])) for name in shown[kind]
    }
    consensus = lambda logits: {
        name: float(agreement(logits["domain", name], told["plain"]["domain", name])) for name in shown["domain"]
    }
    second = lambda logits: {name: top1(logits["domain", name]) for name in ("inverted", "textured")}
    mean = lambda by: float(np.mean(list(by.values())))
    ways = {
        "what fools it": lambda z: rates(z, "plain"),
        "answers off-domain": lambda z: mean(consensus(z)),
        "ignores shifts": lambda z: mean(kept(z, "shift")),
        "ignores crops": lambda z: mean(kept(z, "crop")),
        "ignores light": lambda z: mean(kept(z, "light")),
        "a second domain": lambda z: mean(second(z)),
    }
    title = lambda key: INDEPENDENT if key[1] == INDEPENDENT else f"{key[0]}, {key[1]}"
    values: dict[str, Any] = {
        name: {title(key): [way(z) for z in said[key]] for key in said} for name, way in ways.items()
    }
    # Two independent students are compared as a distilled and an independent one are: each with the one of the next seed.
    others = {key: several[1:] + several[:1] if key[1] == INDEPENDENT else several for key, several in maps.items()}
    values["where it looks"] = {
        title(key): [float(closer_share(target, a, b)) for a, b in zip(several, alone, strict=True)]
        for key, several in others.items()
    }
    each = lambda way: (
        {f"{name}, teacher": way(told[name]) for name in told}
        | {title(key): _means([way(z) for z in several]) for key, several in said.items()}
    )
    facts = {
        "attack": strength, "teacher_fooled": tried[strength], "tried": tried,
        "fooled by an attack on the other teacher": {title(k): spread([rates(z, "other") for z in zs]) for k, zs in said.items()},
        "consensus": each(consensus), "domains": each(second),
        "kept": each(lambda z: kept(z, "shift") | kept(z, "crop") | kept(z, "light")),
    }  # fmt: skip
    return values, facts


def changes(images: Any) -> dict[str, dict[str, Any]]:
    """Variants of stored images by kind and name."""
    far = lambda n: [variants.shifted(images, *by) for by in ((n, 0), (-n, 0), (0, n), (0, -n))]
    shift = {
        f"{n} px {way}": x for n in (1, 2, 3) for way, x in zip(("down", "up", "right", "left"), far(n), strict=True)
    }
    light = {f"brightness x{f:g}": variants.brightened(images, f) for f in (0.4, 0.7, 1.4, 1.8)}
    light |= {f"contrast x{f:g}": variants.contrasted(images, f) for f in (0.4, 0.7, 1.4, 1.8)}
    return {
        "shift": shift, "light": light, "crop": {f"middle {n} px": variants.zoomed(images, n) for n in (26, 24, 22)},
        "domain": {
            "inverted": variants.inverted(images), "rotated": variants.rotated(images),
            "textured": variants.textured(images, jax.random.key(2)), "edges": variants.edges(images),
            "silhouette": variants.silhouette(images),
        },
    }  # fmt: skip


def asking(network: Trained) -> Callable[..., tuple[Any, Any]]:
    """A function from any such network's weights, what it sees `[N, H, W, C]` and classes `[N]`, zeros if not given, to its
    logits and where it sees the classes, compiled once."""
    classify = network.network.parts["classify"]

    @jax.jit
    def both(variables, x, labels):
        said = network.network.apply(variables.params, variables.state, x, train=False)[0]
        head = lambda maps: classify(variables.params, variables.state, jnp.mean(maps, axis=(1, 2)))
        return said.logits, grad_cam(head, said.features[-1], labels)

    return lambda variables, x, labels=None: both(
        variables, x, jnp.zeros(len(x), jnp.int32) if labels is None else labels
    )


def attack(ask: Callable, clean: Any, labels: Any) -> Callable[[Any, float], tuple[Any, Any]]:
    """From weights and the size of an attack on them to the changed images and the share that fools these weights."""
    bounds = ((0 - MEAN) / STD, (1 - MEAN) / STD)

    @jax.jit
    def found(variables, size):
        network = lambda x: ask(variables, x)[0]
        x = iterative_fgsm(network, clean, labels, size=size / STD, step=size / STD / 4, steps=5, bounds=bounds)
        return x, fooling_rate(network, clean, x)

    return found


def logits_moved(logits: dict, by: str) -> Any:
    """Which images fool a network by the attack on itself."""
    return jnp.argmax(logits["attack", by], axis=-1) != jnp.argmax(logits["clean", "clean"], axis=-1)


def _means(several: list[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([one[name] for one in several])) for name in several[0]}
