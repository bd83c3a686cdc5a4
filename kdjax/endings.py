"""How a command ends: signals, disks, listeners and other processes that fail are a sentence and an exit status."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable

from kdjax.places import disk_fault
from kdjax.terminal import Unheard, visible

# Whose sentence is for the user. By name: most commands never import where they are defined.
OURS = ("ExperimentError", "TrainingError", "CheckpointError", "DataError", "CacheError")
TRAIN_EXTRA = ("orbax", "tensorflow_datasets", "grain", "tyro", "rich", "tensorboardX", "PIL")


def guarded(command: Callable[[], int], *, own_process: bool = False) -> int:
    """Runs a command and returns its exit status. Signals and errors that are not the program's are a sentence.

    Args:
      command: returns the exit status where nothing goes wrong.
      own_process: nothing but the command is in this process, which ends at once where it would otherwise wait: for threads
        that cannot end, or for the other processes of a run, which wait for it in their next step.
    """
    threading.excepthook, sys.unraisablehook = in_the_background, of_nobody
    with own_signals() as own:
        try:
            return command()
        except BaseException as error:
            for number in own:
                signal.signal(number, signal.SIG_IGN)  # until the sentence is said
            return ended_by(error, own_process)


def ended_by(error: BaseException, own_process: bool) -> int:
    """Says in a sentence what ended a command, or raises it again. The exit status."""
    if isinstance(error, KeyboardInterrupt | Terminated):
        name = getattr(error, "name", "SIGINT")
        say(f"kdjax: stopped by {name}. What was saved before is kept; say --resume to go on from there.")
        return leave(128 + signal.Signals[name], own_process and among_others())
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] in TRAIN_EXTRA:
        return fail(f"The kdjax command needs {error.name}; run pip install 'kdjax[train]'.")
    if not isinstance(error, Exception):
        raise error
    if type(error).__name__ == "Stopped":
        say(f"{error}\nIts state is saved; run the same command with --resume to go on.")
        return 128 + (signal.SIGINT if "SIGINT" in str(error) else signal.SIGTERM)
    if unheard(error):
        return 128 + signal.SIGPIPE
    if type(error).__name__ in OURS:
        return leave(parted(fail(str(error)), error), own_process and among_others())  # the others may not have met it
    sentence = disk_fault(error)
    if sentence:  # at once: writers in the background would say the same again, at length
        return leave(parted(fail(sentence), error), own_process)
    if own_process and among_others():
        traceback.print_exc()
        return leave(1, True)
    raise error


def among_others() -> bool:
    """Whether this is one of several processes of a run."""
    return "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized()


def parted(status: int, error: BaseException) -> int:
    """The exit status, once the other processes know of an error that all have met that nobody died."""
    if getattr(error, "said_by_all", False):
        sys.modules["kdjax.training.watch"].part()
    return status


def leave(status: int, at_once: bool) -> int:
    """The exit status; or the end of this process, which waits for nobody."""
    if at_once:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(status)
    return status


class Terminated(BaseException):
    """A signal asked the command to end where there is no state to save."""

    def __init__(self, name: str):
        self.name = name


@contextlib.contextmanager
def own_signals():
    """Within it, SIGTERM ends the command with a sentence wherever it is; while a phase trains, its loop saves the state first.
    SIGHUP (a terminal that is closed) is taken for SIGTERM, unless it is ignored, as under nohup. Gives the numbers of those
    that nobody else handles; they are as before at the end."""
    previous = {}

    def terminate(number, frame):
        raise Terminated(signal.Signals(number).name)

    def hang_up(number, frame):
        signal.raise_signal(signal.SIGTERM)

    handlers = {"SIGTERM": terminate, "SIGHUP": hang_up}
    try:
        for name, handler in handlers.items():
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is signal.SIG_DFL:
                previous[number] = signal.signal(number, handler)
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield tuple(previous)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def in_the_background(raised) -> None:
    """What becomes of an error in a thread: one of the disk is said in the foreground, where it comes up again."""
    if raised.exc_value is None or disk_fault(raised.exc_value) is None:
        threading.__excepthook__(raised)


def of_nobody(raised) -> None:
    """What becomes of an error that nobody can catch: those of a writer whose loop was closed, on a full disk, and of a signal
    that came while the interpreter cleared up, are not shown."""
    of_signal = isinstance(raised.exc_value, KeyboardInterrupt | Terminated)
    if not of_signal and "Event loop is closed" not in str(raised.exc_value):
        sys.__unraisablehook__(raised)


def unheard(error: BaseException) -> bool:
    """Whether an error is that standard output takes no more. Nothing more is written there then."""
    if not isinstance(error, Unheard | BrokenPipeError):
        return False
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, Unheard):
        say(f"kdjax: standard output takes no more ({error}); what was run is kept, and `kdjax evaluate RUN` shows it.")
    return True


def say(sentence: str) -> None:
    """On standard error, if anybody listens."""
    with contextlib.suppress(OSError, ValueError):
        print(visible(sentence), file=sys.stderr, flush=True)


def fail(sentence: str) -> int:
    say(f"kdjax: error: {sentence}")
    return 1
