"""Which system calls a boxed process may not make, as a program for the kernel's filter (classic BPF).

Owns the lists and their compilation; pure, nothing is installed here. What is not listed is allowed: the namespaces are
the wall, and this closes what they leave open: the kernel's large and young doors, and the ways to make new namespaces.
`last_filter`, on top of it, is installed when a program's limits stand, and keeps the one on core files. It may leave a
program its threads, and no process beside its own: the CPU time of a child that nobody collects is in no table, that of
a thread is its process's.
A filter that stands `alone`, without namespaces, also closes what they would have: what processes of one user may do to
each other, what outlives a trial, and what Landlock does not look at.
The order of a rule is the kernel's: the first that returns decides.
"""

import errno
import platform
import struct
from collections.abc import Iterator

# struct seccomp_data: the call's number, the architecture, the instruction's address, six arguments of 8 bytes.
NUMBER_AT, ARCHITECTURE_AT, ARGUMENT_AT = 0, 4, 16
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
AF_UNIX = 1
SOCK_TYPE, SOCK_STREAM, SOCK_SEQPACKET = 0xF, 1, 5
O_ACCMODE, O_TRUNC = 0o3, 0o1000
NEW_NAMESPACES = 0x7E020080  # CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
KEYSTROKES = (0x5412, 0x541C)  # TIOCSTI and TIOCLINUX type into somebody's terminal
LEASE, NOTIFY = 1024, 1026  # fcntl: hold up who writes to a shown file, hear who opens what lies in a shown folder
X32 = 0x40000000  # the same calls under other numbers

ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
NEVER = 0xFFFFFFFF  # a number that no call has
# Numbers on x86_64 and aarch64.
DENIED = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # keys outlive a trial: nothing may be carried over
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    # what lies in the page cache, or is put there, is one box's word to the next
    "fadvise64": (221, 223),
    "mincore": (27, 232),
    "cachestat": (451, 451),
    "preadv2": (327, 286),
    "pwritev2": (328, 287),
    # memory that is no process's own, so that nobody who watches processes sees it held
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    # files that all boxes show tell who opens them, whichever box that is
    "inotify_add_watch": (254, 27),
    # large surfaces that no training needs
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    # mounts and namespaces
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "unshare": (272, 97),
    "setns": (308, 268),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # the machine itself
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "adjtimex": (159, 171),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "vhangup": (153, 58),
    "iopl": (172, NEVER),
    "ioperm": (173, NEVER),
}
# A whole disk in a moment, before anybody looks: C libraries write zeros where it is not there.
UNSUPPORTED = {"fallocate": (285, 47)}
# The limit on core files, as it stands: at 0 each crash would be taken in by a program of the machine, outside.
LIMIT_CORE = 4
LIMITING = {"setrlimit": (160, 164), "prlimit64": (302, 261)}
# --- on top: threads only ---
FORKS = {"fork": (57, NEVER), "vfork": (58, NEVER)}
CLONE_THREAD = 0x10000
CHECKED = {
    "clone": (56, 220),
    "clone3": (435, 435),
    "socket": (41, 198),
    "socketpair": (53, 199),
    "ioctl": (16, 29),
    "fcntl": (72, 25),
}

# --- alone, without namespaces ---
DENIED_ALONE = {
    # sockets of the machine, which are files or names that Landlock does not look at; a socketpair stays
    "socket": (41, 198),
    "connect": (42, 203),
    "bind": (49, 200),
    # memory and queues that outlive a trial, should one ever be had
    "shmat": (30, 196),
    "shmctl": (31, 195),
    "semop": (65, 193),
    "semtimedop": (220, 192),
    "semctl": (66, 191),
    "msgsnd": (69, 189),
    "msgrcv": (70, 188),
    "msgctl": (71, 187),
    "mq_open": (240, 180),
    "mq_unlink": (241, 181),
    # files by their path, as far as Landlock (truncate: before its version 3) does not look
    "truncate": (76, 45),
    "chown": (92, NEVER),
    "lchown": (94, NEVER),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "setxattr": (188, 5),
    "lsetxattr": (189, 6),
    "fsetxattr": (190, 7),
    "removexattr": (197, 14),
    "lremovexattr": (198, 15),
    "fremovexattr": (199, 16),
    # other processes of the same user
    "ioprio_set": (251, 30),
}
# A copy of a file sets its mode and its times, and fails where it cannot: these do nothing, and say that all is well.
IDLE_ALONE = {
    "chmod": (90, NEVER),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "utime": (132, NEVER),
    "utimes": (235, NEVER),
    "futimesat": (261, NEVER),
    "utimensat": (280, 88),
}
# Of itself, which is 0, but of nobody else: the first argument is a process.
OWN_ALONE = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
CHECKED_ALONE = {
    "open": (2, NEVER),
    "openat": (257, 56),
    "openat2": (437, 437),
    "kill": (62, 129),
    "setpriority": (141, 140),
}
YOUNG = 452  # the first call of Linux 6.6; none from there on is needed, and some are the above under a new number
EVERYBODY = 0xFFFFFFFF  # -1


def seccomp_filter(machine: str = platform.machine(), *, alone: bool = False) -> bytes:
    """The filter for a processor, ready for the kernel.

    Raises:
        ValueError: a processor whose numbers we do not know.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"no system call filter for {machine}; it knows {', '.join(ARCHITECTURES)}")
    column = list(ARCHITECTURES).index(machine)
    without = _without_namespaces(column) if alone else ()
    return b"".join((*_head(machine, column), *without, *_always(column), _step(RETURN, ALLOW)))


def last_filter(machine: str = platform.machine(), *, threads_only: bool = False) -> bytes:
    """For when a program's limits stand: no other limit on core files, and, if so, no new process, only threads.

    Every kernel call of another kind is left to the filter before it.
    """
    column = list(ARCHITECTURES).index(machine)
    threads = _threads_only(column) if threads_only else ()
    return b"".join((*_of(machine), *_no_core_limit(column), *threads, _step(RETURN, ALLOW)))


def _no_core_limit(column: int) -> Iterator[bytes]:
    no = _refuse(errno.EPERM)
    yield from _argument(LIMITING["setrlimit"][column], 0, *_when(EQUAL, LIMIT_CORE, no), end=False)
    yield _step(LOAD, NUMBER_AT)
    # Without a new limit behind its third argument, in either half, it only asks for the old one.
    new = [step for half in (16, 20) for step in (_step(LOAD, ARGUMENT_AT + half), *_unless(EQUAL, 0, no))]
    yield from _argument(LIMITING["prlimit64"][column], 1, _step(EQUAL, LIMIT_CORE, 0, len(new)), *new, end=False)
    yield _step(LOAD, NUMBER_AT)


def _threads_only(column: int) -> Iterator[bytes]:
    no = _refuse(errno.EPERM)
    for fork in FORKS.values():
        yield from _when(EQUAL, fork[column], no)
    # The flags of clone3 lie behind a pointer: C libraries fall back to clone when it is not there.
    yield from _when(EQUAL, CHECKED["clone3"][column], _refuse(errno.ENOSYS))
    yield from _argument(CHECKED["clone"][column], 0, *_unless(ANY_BIT, CLONE_THREAD, no))


def _of(machine: str) -> Iterator[bytes]:
    yield _step(LOAD, ARCHITECTURE_AT)
    yield from _unless(EQUAL, ARCHITECTURES[machine], KILL)  # the 32-bit calls of the same kernel
    yield _step(LOAD, NUMBER_AT)


def _head(machine: str, column: int) -> Iterator[bytes]:
    yield from _of(machine)
    if machine == "x86_64":
        yield from _when(AT_LEAST, X32, _refuse(errno.ENOSYS))
    for denied in DENIED.values():
        yield from _when(EQUAL, denied[column], _refuse(errno.EPERM))
    for missing in UNSUPPORTED.values():
        yield from _when(EQUAL, missing[column], _refuse(errno.EOPNOTSUPP))


def _always(column: int) -> Iterator[bytes]:
    number = {name: numbers[column] for name, numbers in CHECKED.items()}
    # Its flags lie behind a pointer, where no filter sees them; C libraries then fall back to clone.
    yield from _when(EQUAL, number["clone3"], _refuse(errno.ENOSYS))
    yield from _argument(number["clone"], 0, *_when(ANY_BIT, NEW_NAMESPACES, _refuse(errno.EPERM)))
    for call in ("socket", "socketpair"):  # of any other family: vsock, netlink and raw ones know no network namespace
        yield from _argument(number[call], 0, *_unless(EQUAL, AF_UNIX, _refuse(errno.EPERM)))
    for call, requests in (("ioctl", KEYSTROKES), ("fcntl", (LEASE, NOTIFY))):
        for request in requests:
            yield from _argument(number[call], 1, *_when(EQUAL, request, _refuse(errno.EPERM)), end=False)
            yield _step(LOAD, NUMBER_AT)


def _without_namespaces(column: int) -> Iterator[bytes]:
    number = {name: numbers[column] for name, numbers in CHECKED_ALONE.items()}
    no = _refuse(errno.EPERM)
    yield from _when(AT_LEAST, YOUNG, _refuse(errno.ENOSYS))
    for denied in DENIED_ALONE.values():
        yield from _when(EQUAL, denied[column], no)
    for idle in IDLE_ALONE.values():
        yield from _when(EQUAL, idle[column], _refuse(0))
    for own in OWN_ALONE.values():
        yield from _argument(own[column], 0, *_unless(EQUAL, 0, no))
    mine = (*_unless(EQUAL, 0, no), _step(LOAD, ARGUMENT_AT + 8), *_unless(EQUAL, 0, no))
    yield from _argument(number["setpriority"], 0, *mine)
    yield from _argument(number["kill"], 0, *_when(EQUAL, EVERYBODY, no))
    # A datagram can be sent to any name.
    streams = (_step(AND, SOCK_TYPE), _step(EQUAL, SOCK_STREAM, 2, 0), *_unless(EQUAL, SOCK_SEQPACKET, no))
    yield from _argument(CHECKED["socketpair"][column], 1, *streams, end=False)
    yield _step(LOAD, NUMBER_AT)
    # Opened to read and cut at once: before its version 3 Landlock takes that for reading.
    cut = (_step(AND, O_ACCMODE | O_TRUNC), *_when(EQUAL, O_TRUNC, no))
    yield from _argument(number["open"], 1, *cut)
    yield from _argument(number["openat"], 2, *cut)
    yield from _when(EQUAL, number["openat2"], _refuse(errno.ENOSYS))


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _when(test: int, value: int, verdict: int) -> tuple[bytes, bytes]:
    return _step(test, value, 0, 1), _step(RETURN, verdict)


def _unless(test: int, value: int, verdict: int) -> tuple[bytes, bytes]:
    return _step(test, value, 1, 0), _step(RETURN, verdict)


def _argument(number: int, index: int, *steps: bytes, end: bool = True) -> Iterator[bytes]:
    """Of one call, look at the low half of an argument; the kernel takes no more of these four."""
    inner = (_step(LOAD, ARGUMENT_AT + 8 * index), *steps, *((_step(RETURN, ALLOW),) if end else ()))
    yield _step(EQUAL, number, 0, len(inner))
    yield from inner


def _refuse(code: int) -> int:
    return ERRNO | code
