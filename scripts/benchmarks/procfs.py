"""What the kernel says about a process: CPU time, resident memory, children. Linux only."""

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def cpu_seconds(pid: int) -> float:
    """User plus system time of all living threads of a process.

    From `schedstat`, which counts nanoseconds; kernels built without it leave `stat`, which counts
    in ticks of 10 ms. Exact while the process sleeps: the kernel books a running thread's time at
    its next tick or switch.
    """
    total_ns = 0
    for thread in (_PROC / str(pid) / "task").iterdir():
        try:
            total_ns += int((thread / "schedstat").read_bytes().split()[0])
        except FileNotFoundError:  # no schedstat, or the thread has just ended
            continue
    return total_ns / 1e9 if total_ns else _cpu_seconds_by_ticks(pid)


def tree_cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children, including children that have ended."""
    total = 0.0
    for member in (pid, *children(pid)):
        try:
            total += cpu_seconds(member)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total + reaped_cpu_seconds(pid)


def reaped_cpu_seconds(pid: int) -> float:
    """CPU time of a process's children that have ended."""
    fields = _stat(pid)
    return (int(fields[13]) + int(fields[14])) / _TICKS_PER_SECOND


def resident_bytes(pid: int) -> int:
    """Resident set size, shared pages included."""
    return int((_PROC / str(pid) / "statm").read_bytes().split()[1]) * _PAGE_BYTES


def children(pid: int) -> list[int]:
    """Direct children of a process."""
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int(_stat(int(entry.name))[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid:
            found.append(int(entry.name))
    return found


def command_line(pid: int) -> list[str]:
    """The arguments that a process was started with, the program included."""
    return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")


def machine_busy_seconds() -> float:
    """CPU time that all cores together have spent on anything, time stolen by a host included."""
    user, nice, system, _idle, _iowait, irq, softirq, steal, *_ = (
        int(field) for field in (_PROC / "stat").read_text().split("\n", 1)[0].split()[1:]
    )
    return (user + nice + system + irq + softirq + steal) / _TICKS_PER_SECOND


def pin(pid: int, core: int) -> None:
    """Keep every thread of a process, and what it starts from now on, on one core."""
    for thread in (_PROC / str(pid) / "task").iterdir():
        try:
            os.sched_setaffinity(int(thread.name), {core})
        except ProcessLookupError:
            continue


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie doesn't)."""
    try:
        return _stat(pid)[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _stat(pid: int) -> list[str]:
    # The second field is the command in parentheses and may hold anything, so count from its end.
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _cpu_seconds_by_ticks(pid: int) -> float:
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND
