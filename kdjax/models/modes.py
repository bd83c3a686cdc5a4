"""How a model is told whether it trains: the usual names of that argument, and whether it listened."""

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# Name: its value in training; in evaluation it has the other one.
WHILE_TRAINING = {
    **dict.fromkeys(("train", "training", "is_training", "is_train", "train_mode", "training_mode"), True),
    **dict.fromkeys(("deterministic", "use_running_average", "inference", "is_inference", "inference_mode"), False),
    **dict.fromkeys(("eval", "evaluate", "is_eval", "eval_mode", "test", "is_test", "test_mode"), False),
}


def named(mode: Mapping[str, bool] | None) -> Mapping[str, bool]:
    """The names that stand for the mode, with their value in training: the usual ones and a user's; none if his are {}."""
    return {} if mode == {} else {**WHILE_TRAINING, **(mode or {})}


def call_arguments(function: Callable, mode: Mapping[str, bool] | None, train: bool) -> dict[str, bool]:
    """What a model's call is to be told.

    Args:
      function: its `__call__`.
      mode: an argument's name and its value in training, `{"is_fitting": True}`, beside the usual ones; `{}` for none.
      train: whether it trains.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return {
        name: value == train
        for name, value in named(mode).items()
        if name in parameters or (takes_any and name in (mode or ()))
    }


def spoken(function: Callable, arrays: Iterable[Any], told: Mapping[str, Any]) -> tuple[list, dict[str, Any]]:
    """The arguments of `function(*arrays, **told)`, behind the arrays where it takes them by position alone."""
    kinds = {name: p.kind for name, p in inspect.signature(function).parameters.items()}
    places = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY and name in told]
    return [*arrays, *(told[name] for name in places)], {n: v for n, v in told.items() if n not in places}


def check_call(function: Callable, args: Iterable[Any], kwargs: Mapping[str, Any], model: str) -> None:
    """Raises where a model's call takes more, or less, than it is given."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(inspect.signature(function).parameters)
        raise ValueError(
            f"{model} cannot be called with the inputs alone ({error}): its __call__ takes {takes}; pass call=lambda module, "
            "inputs, **mode: module(..., **mode)."
        ) from None


def check_form(mode: Any) -> None:
    """Raises where `mode` is anything but names with the value that each has in training."""
    if mode is not None and not (isinstance(mode, Mapping) and all(isinstance(v, bool) for v in mode.values())):
        raise ValueError(
            f"mode={mode!r}: give the argument's name and its value in training, such as mode={{'is_fitting': True}}."
        )


def check_known(mode: Mapping[str, bool] | None, call: Callable, fields: Iterable[str], model: str) -> None:
    """Raises where a name in `mode` is neither an argument of the call nor a field."""
    parameters = inspect.signature(call).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    for name in mode or ():
        if name not in parameters and name not in set(fields):
            takes = ", ".join(n for n in parameters if n != "self")
            raise ValueError(f"mode= names {name!r}, and {model} has no such field and its __call__ takes {takes}.")


def unheard(model: str, what: str, call: Callable, told: Mapping[str, Any], flags: Iterable[str]) -> ValueError:
    """The error for a model that does in training what it does in evaluation.

    Args:
      model: its name.
      what: what does not change, such as "batch statistics that a training step leaves as they are".
      call: its `__call__`.
      told: the arguments by which it was told the mode.
      flags: boolean fields that might be the mode.
    """
    parameters = inspect.signature(call).parameters
    guesses = [n for n, p in parameters.items() if isinstance(p.default, bool) or p.annotation in (bool, "bool")]
    guesses = [name for name in [*guesses, *flags] if name not in told]
    defaults = {name: parameters[name].default for name in guesses if name in parameters}
    if told:
        given = ", ".join(f"{name}={value}" for name, value in told.items())
        problem = f"it was called with {given}, which does not reach all of it"
    else:
        takes = ", ".join(n for n in parameters if n != "self")
        problem = f"none of its arguments ({takes}) has a name known to mean the mode"
    if not guesses and not told and any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        mend = "pass mode={'train': True} (or another name) if it hands what it is given on to layers that take it"
    elif guesses:
        value = defaults.get(guesses[0]) is not True
        mend = f"pass mode={{{guesses[0]!r}: {value}}}, the argument's name and its value in training"
    else:
        mend = "give it an argument train, and hand it on to BatchNorm (use_running_average=not train) and Dropout"
    return ValueError(f"{model} has {what}: {problem}; {mend}, or mode={{}} if this is meant.")


def restless(model: str, what: str, call: Callable, told: Mapping[str, Any]) -> ValueError:
    """The error for a model that does in evaluation what belongs to training.

    Args:
      model: its name.
      what: what it does.
      call: its `__call__`.
      told: the arguments by which it was told the mode.
    """
    parameters = inspect.signature(call).parameters
    guess = next((n for n, p in parameters.items() if isinstance(p.default, bool) and n not in told), None)
    mend = f"pass mode={{{guess!r}: {parameters[guess].default}}}, the argument's name and its value in training" if guess else (
        "give it an argument train, and hand it on to BatchNorm (use_running_average=not train) and Dropout"
    )  # fmt: skip
    return ValueError(f"{model} {what} in evaluation; {mend}.")


def moves(model: str) -> ValueError:
    """The error for a model that is said to be the same in training and evaluation, and takes statistics of the batch."""
    return ValueError(
        f"mode={{}} says that {model} is the same in training and evaluation, and its batch statistics move in training; build "
        "it with use_running_average=True (or call eval() of an NNX module) if they are to stay, else leave out mode."
    )


STATISTICS = "batch statistics that training leaves as they are"
DROPOUT = "dropout that drops nothing in training"
MOVES, DROPS = "moves its batch statistics", "drops (Dropout)"
