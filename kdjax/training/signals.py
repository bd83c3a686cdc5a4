"""Signals that ask a run to stop."""

import contextlib
import signal

STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def stop_signals():
    """Collects the names of SIGTERM, SIGINT and SIGHUP instead of dying of them; a second SIGINT does interrupt."""
    received: list[str] = []
    previous = {}

    def receive(number, frame):
        if number == signal.SIGINT and received:
            raise KeyboardInterrupt
        received.append(signal.Signals(number).name)

    try:
        for number in STOPPING:
            if signal.getsignal(number) != signal.SIG_IGN or number != getattr(
                signal, "SIGHUP", None
            ):  # nohup ignores it
                previous[number] = signal.signal(number, receive)
    except ValueError:  # not in the main thread: signals are somebody else's
        pass
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
