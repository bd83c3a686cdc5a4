"""Commands on networks that are finished: `kdjax evaluate | export | predict | convert`."""

import argparse
from pathlib import Path

from kdjax.command_line import configure_jax
from kdjax.places import local
from kdjax.terminal import make_console, visible


def evaluate(argv):
    parser = argparse.ArgumentParser("kdjax evaluate", description="Evaluates the finished networks of a run.")
    parser.add_argument("run", help="run folder")
    parser.add_argument("--data-dir", default="", help="folder of prepared data sets; that of TFDS if not given")
    options = parser.parse_args(argv)
    configure_jax()
    from kdjax.experiment.artifacts import evaluate_run, saved_experiment
    from kdjax.experiment.folder import run_place
    from kdjax.experiment.tables import show_evaluation

    folder = run_place(options.run)
    task = saved_experiment(folder).data
    show_evaluation(task, evaluate_run(folder, options.data_dir or None), make_console())
    return 0


def export(argv):
    parser = argparse.ArgumentParser(
        "kdjax export", description="Writes a finished network to a file for other programs."
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("--phase", default="", help="whose network; the student's if not given")
    parser.add_argument(
        "--format", default="stablehlo", choices=("stablehlo", "safetensors", "npz", "huggingface"),
        help="the whole function for jax.export, the weights alone, or a folder that transformers loads (default: stablehlo)",
    )  # fmt: skip
    parser.add_argument("--to", default="", help="file or folder; NETWORK.FORMAT in the run folder if not given")
    options = parser.parse_args(argv)
    configure_jax()
    from kdjax.experiment.export import export, export_folder
    from kdjax.experiment.folder import run_place
    from kdjax.experiment.spec import ExperimentError
    from kdjax.experiment.trained import load_trained

    name = f"{options.phase or 'student'}.{options.format}"
    place = local(options.to, ExperimentError, "The file") if options.to else run_place(options.run) / name
    if options.format == "huggingface":
        trained = export_folder(options.run, options.phase or None, place)
        make_console().print(f"{trained.network.name} is in {place}.", soft_wrap=True)
        return 0
    trained = load_trained(options.run, options.phase or None)
    export(trained, options.format, place)
    make_console().print(f"{trained.network.name} is in {place}, {place.stat().st_size:,} bytes.", soft_wrap=True)
    return 0


def predict(argv):
    parser = argparse.ArgumentParser(
        "kdjax predict", description="Prints what a finished network says of pictures, or of texts."
    )
    parser.add_argument("run", help="run folder")
    parser.add_argument("files", nargs="*", metavar="FILE", help="picture of any size, or text file")
    parser.add_argument(
        "--text", nargs="+", default=[], help="texts themselves; of a pair both with a tab between them"
    )
    parser.add_argument("--phase", default="", help="whose network; the student's if not given")
    parser.add_argument("--top", type=int, default=3, help="classes, or boxes, of each picture (default: %(default)s)")
    parser.add_argument("--draw", default="", help="folder for the pictures with the boxes that are found")
    options = parser.parse_args(argv)
    if options.top < 1:
        parser.error(f"--top {options.top}: give 1 or more")
    if not options.files and not options.text:
        parser.error("give files, or texts by --text")
    configure_jax()
    from kdjax.experiment.folder import run_place
    from kdjax.experiment.predict import predict
    from kdjax.experiment.spec import ExperimentError

    files = [*(local(file, ExperimentError, "A file") for file in options.files), *options.text]
    console, draw = make_console(), local(options.draw, ExperimentError, "The folder") if options.draw else None
    if draw is not None:
        draw.mkdir(parents=True, exist_ok=True)
    for file, said in predict(run_place(options.run), files, phase=options.phase or None, top=options.top, draw=draw):
        classes = ", ".join(f"{visible(name)} {probability:.3f}" for name, probability in said)
        console.print(f"{visible(str(file))}: {classes}", soft_wrap=True, markup=False, highlight=False)
    return 0


def convert(argv):
    parser = argparse.ArgumentParser(
        "kdjax convert",
        description="Makes the folder of a finished run of published weights: kdjax distill CONFIG --teacher FOLDER "
        "learns from it, kdjax evaluate and kdjax export take it.",
    )
    parser.add_argument(
        "file", help=".safetensors, .pth (read without running it), .msgpack of Flax, or a folder of orbax"
    )
    parser.add_argument(
        "--network",
        required=True,
        help="of the zoo, such as resnet50 or tf_efficientnet_lite0, or a detector, such as gfl_r50",
    )
    parser.add_argument("--run", default="", help="run folder; runs/NETWORK if not given")
    per_channel = {"type": float, "nargs": "+", "metavar": "X", "default": ()}
    parser.add_argument(
        "--mean",
        **per_channel,
        help="of each channel, of pixels in 0..1; if not given, what most weights of the network were trained with",
    )
    parser.add_argument("--std", **per_channel, help="likewise")
    parser.add_argument("--classes", default="", help="text file with the names of its classes, one a line")
    parser.add_argument("--data", default="", help="what kdjax evaluate measures it on; if not given, one of these two")
    parser.add_argument(
        "--image-size", type=int, default=0, help="pixels a side; if not given, 32 or 224, or 800 x 1344"
    )
    parser.add_argument("--width", type=int, default=0, help="of the first stage, where it is not the published one")
    parser.add_argument("--ema", action="store_true", help="take the running average that the checkpoint holds")
    parser.add_argument("--overwrite", action="store_true", help="delete the run that is in the folder")
    options = parser.parse_args(argv)
    configure_jax()
    from kdjax.experiment.convert import convert as make
    from kdjax.experiment.convert import read_names
    from kdjax.experiment.folder import run_place
    from kdjax.experiment.spec import ExperimentError

    folder = run_place(options.run or Path("runs") / options.network)
    names = local(options.classes, ExperimentError, "The file of names") if options.classes else None
    made = make(
        local(options.file, ExperimentError, "The file"), options.network, folder, mean=options.mean, std=options.std,
        classes=read_names(names) if names else (), data=options.data, image_size=options.image_size,
        width=options.width, ema=options.ema, overwrite=options.overwrite,
    )  # fmt: skip
    numbers = lambda values: " ".join(f"{value:g}" for value in values)
    make_console().print(
        f"{made.network}: {made.num_classes:,} classes{'' if names else ' without names'}, {made.parameters:,} parameters by "
        f"{made.names} names, for {made.inputs} normalised by mean "
        f"{numbers(made.mean)} and std {numbers(made.std)}. It is in {folder}.",
        soft_wrap=True,
    )
    return 0
