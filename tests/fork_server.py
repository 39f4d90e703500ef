"""Start Python programs as processes of their own in which what takes seconds to import is there already.

This imports the commands' code once, in a process that does nothing else, and forks for each program: one with its own
number, streams, signals and exit status, that does what `python` with the same words does. `conftest.start` asks for
them: a line of JSON on a socket, answered with the process's number and, at its end, its exit status as `subprocess`
gives it.
"""

import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import struct
import sys


def serve(place, modules):
    """Return in each process that is to be a program, with what is wanted of it; end when standard input does."""
    sys.path[0] = os.getcwd()  # as for `python -m`; beside this file `training` is that of the tests
    for module in modules:
        importlib.import_module(module)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{place}.new")
    listener.listen()
    os.rename(f"{place}.new", place)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        if not os.fork():
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return watched(connection)
        connection.close()
    sys.exit()


def watched(connection):
    """Return in the process that is to be a program; in that which forks it, tell of it until it has ended."""
    wanted = json.loads(connection.makefile().readline())
    process = os.fork()
    if process:
        connection.sendall(struct.pack("i", process))
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(struct.pack("i", status))
        os._exit(0)
    connection.close()
    return wanted


def become(wanted):
    os.setsid()
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, how) in enumerate(((os.devnull, os.O_RDONLY), (wanted["out"], flags), (wanted["err"], flags))):
        opened = os.open(path, how)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    if wanted["largest_file"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (wanted["largest_file"],) * 2)
    kind, what, *words = wanted["words"]
    sys.argv = [what if kind == "-m" else kind, *words]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


become(serve(sys.argv[1], sys.argv[2:]))
