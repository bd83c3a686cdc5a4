"""Whether the other processes of a run are there: a connection of each to the first, which the system closes when it dies.

A process that is stopped (SIGSTOP) keeps its connection, and so do all while they compile; a host that is gone is noticed by
TCP's own probes.
"""

import atexit
import contextlib
import functools
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SILENT, PROBES, BETWEEN = 4, 3, 3  # seconds until a silent host is probed, how often, and seconds between: 13 in all
BYE = b"."  # the last that a process sends which ends well
WAIT = 120.0  # seconds for the others to connect
_partings: list[Callable[[], None]] = []  # of the watch of this process


def part() -> None:
    """For a process that ends by an error which all have met and say: the others are not to take it for one that died."""
    for say in _partings:
        say()
    time.sleep(1)  # for their own sentence, before JAX ends those whose coordinator is gone


def watch(client, host: str, number: int, count: int) -> None:
    """Ends this process, with a sentence, as soon as another one has died.

    Args:
      client: of JAX's coordination service, by which the processes find each other.
      host: of the first process.
      number: of this process.
      count: of all.
    """
    connections: dict[int, socket.socket] = {}
    try:
        if number == 0:
            listener = socket.create_server(("", 0), backlog=count)
            token = secrets.token_hex(16)
            client.key_value_set("kdjax/watch", f"{listener.getsockname()[1]} {token}")
            accept(listener, token, count, connections)
        else:
            port, token = client.blocking_key_value_get("kdjax/watch", int(1000 * WAIT)).split()
            connections[0] = socket.create_connection((host, int(port)), timeout=WAIT)
            connections[0].sendall(f"{token}{number:08d}".encode())
    except OSError as error:  # a firewall, say: JAX itself notices a dead process in some minutes
        print(f"kdjax: the processes of this run cannot watch each other ({error}); one that dies is noticed late.",
              file=sys.stderr)  # fmt: skip
        leave(connections, threading.Event())
        return
    ending = threading.Event()
    for other, connection in connections.items():
        keep_alive(connection)
        threading.Thread(target=listen, args=(connection, other, connections, ending), daemon=True).start()
    sys.excepthook = patiently(sys.excepthook)
    atexit.register(leave, connections, ending)
    _partings.append(functools.partial(say_goodbye, connections, ending))


def patiently(say: Callable[..., object]) -> Callable[..., None]:
    """Says an error that nobody caught a second later: it may be that another process is gone, which `listen` says by then."""

    def later(*error: Any) -> None:
        time.sleep(1)
        say(*error)

    return later


def accept(listener: socket.socket, token: str, count: int, connections: dict[int, socket.socket]) -> None:
    """Waits for the connections of all others, by number; strangers are sent away."""
    listener.settimeout(WAIT)
    with listener:
        while len(connections) < count - 1:
            connection, _ = listener.accept()
            connection.settimeout(WAIT)
            said = receive(connection, len(token) + 8).decode(errors="replace")
            if secrets.compare_digest(said[: len(token)].encode(), token.encode()):
                connections[int(said[len(token) :])] = connection
            else:
                connection.close()


def receive(connection: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer where the other end has closed."""
    found = b""
    while len(found) < size and (more := connection.recv(size - len(found))):
        found += more
    return found


def keep_alive(connection: socket.socket) -> None:
    """Has the system ask whether the other host is there."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", SILENT), ("TCP_KEEPINTVL", BETWEEN), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def listen(
    connection: socket.socket, other: int, connections: dict[int, socket.socket], ending: threading.Event
) -> None:
    """Waits until the other process ends, well or not; the first one passes on which it was."""
    try:
        said = receive(connection, 9)
    except OSError:
        said = b""
    if said[:1] == BYE or ending.is_set():
        return
    gone = int(said[1:]) if len(said) == 9 else other
    for third in connections.values():
        if third is not connection:
            with contextlib.suppress(OSError):
                third.sendall(f"!{gone:08d}".encode())
    print(
        f"kdjax: error: Process {gone} of this run is gone, so that the others end too; start all of them again with --resume.",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    os._exit(1)


def leave(connections: dict[int, socket.socket], ending: threading.Event) -> None:
    """Says that this process ends well; or ends it at once where an error ends it that nobody caught, for JAX would have it wait
    for the others, and the others would wait for it."""
    if getattr(sys, "last_value", None) is not None and not hasattr(sys, "ps1"):  # its traceback was printed
        time.sleep(1)  # the error may be that another process is gone, which `listen` then says
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
    say_goodbye(connections, ending)


def say_goodbye(connections: dict[int, socket.socket], ending: threading.Event) -> None:
    """Tells the others that this process ends, and takes their end for no death."""
    ending.set()
    for connection in connections.values():
        with contextlib.suppress(OSError):
            connection.sendall(BYE)
