"""What attacks do, as lines of Python that end with an error where they are stopped. Names of places are given to them.

`secret`, `code`, `port`, `unix`, `neighbour`, `victim` and `shared` are fields of `Place` (`test_attacks.py`). None
changes anything of the machine, also where it works.
"""

SECRET = "planted-secret"  # noqa: S105

CALL = "import ctypes; libc = ctypes.CDLL(None, use_errno=True); n = ctypes.c_long\n"

ATTACKS = {
    "read a file outside": f"assert open(secret).read() == {SECRET!r}",
    "read it through a link": f"import os; os.symlink(secret, 'l'); assert open('l').read() == {SECRET!r}",
    "read it from an outsider's root": f"assert open(f'/proc/{{victim}}/root{{secret}}').read() == {SECRET!r}",
    "see the folder of the tests": "import os; assert 'secret' in os.listdir(os.path.dirname(secret))",
    "search the folders around it": "import os\n"
    "assert any('secret' in files for _, _, files in os.walk(os.path.dirname(os.path.dirname(secret))))",
    "follow a process to its folder": "import os; assert 'secret' in os.listdir(f'/proc/{victim}/cwd')",
    "read the machine's accounts": "open('/etc/shadow').close()",
    "list the machine's users": "import os, pwd; assert len(open('/etc/passwd').readlines()) > 1",
    "cut a file outside": "import os; os.truncate(secret, os.path.getsize(secret))",
    "write to it through a link": "import os; os.symlink(secret, 'w'); open('w', 'r+').close()",
    "spoil what a neighbour wrote": "open(f'{neighbour}/model.pt', 'r+').close()",
    "link a file outside into its scratch": "import os; os.link(secret, 'hard')",
    "watch a file outside": f"{CALL}assert libc.inotify_add_watch(libc.inotify_init(), secret.encode(), 0xfff) > 0, "
    "OSError('Error')",
    "watch who opens shown code": f"{CALL}watch = libc.inotify_add_watch(libc.inotify_init(), code.encode(), 0xfff)\n"
    "assert watch > 0, OSError('Error')",
    "hear who opens what lies beside it": "import fcntl, os\n"
    "fcntl.fcntl(os.open(os.path.dirname(code), os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_ACCESS)",
    "hold up who writes to shown code": "import fcntl\nfile = open(code)\n"
    "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_RDLCK)\nfcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)",
    "leave a bit in a file's access time": "import os; before = os.stat(code).st_atime\n"
    "open(code).read(); assert os.stat(code).st_atime != before, OSError('Error')",
    "hold memory in a file without a name": "import os; os.write(os.memfd_create('x'), bytes(2**20))",
    "hold memory in a segment": f"{CALL}segment = libc.shmget(0, n(2**20), 0o1600)\n"
    "assert segment >= 0, OSError('Error')\nlibc.shmctl(segment, 0, None)",
    "hold memory in semaphores": f"{CALL}import os\nheld = libc.semget(0, 30000, 0o1600)\n"
    "assert held >= 0, OSError('Error')\nlibc.semctl(held, 0, 0)",
    "hold memory in messages": f"{CALL}held = libc.msgget(0, 0o1600)\n"
    "assert held >= 0, OSError('Error')\nlibc.msgctl(held, 0, None)",
    "take a disk at once": f"{CALL}file = open('large', 'wb')\n"
    "assert libc.fallocate(file.fileno(), 1, n(0), n(2**22)) == 0, OSError('Error')",
    "be dumped to a program of the machine": "import resource as r\n"
    "r.setrlimit(r.RLIMIT_CORE, (0, r.getrlimit(r.RLIMIT_CORE)[1]))",
    "be dumped to it by an odd address": f"{CALL}import mmap, os\nlibc.mmap.restype = n\n"
    "at = libc.mmap(n(2**32), n(4096), 3, 0x100022, -1, n(0)); assert at == 2**32, at\n"  # its lower half is 0
    "number = {'x86_64': 302, 'aarch64': 261}[os.uname().machine]\n"
    "assert libc.syscall(n(number), n(0), n(4), n(at), n(0)) == 0, OSError('Error')",
    "rewrite the first process of its tree": "import os; open(f'/proc/{os.getppid()}/mem', 'r+b', 0).close()",
    "cut shown code by reading it": "import os; os.open(code, os.O_RDONLY | os.O_TRUNC)",
    "change the times of shown code": "import os; before = os.stat(code).st_mtime\n"
    "os.utime(code, (1, before + 9)); assert os.stat(code).st_mtime != before, OSError('Error')",
    "write to shown code": "open(code, 'a').close()",
    "change the mode of shown code": "import os; mode = lambda: os.stat(code).st_mode & 0o777; before = mode()\n"
    "os.chmod(code, before ^ 0o022); assert mode() != before, OSError('Error')",
    "replace shown code": "import os; open('new', 'w').close(); os.replace('new', code)",
    "write to Python": "import os; open(os.__file__, 'r+').close()",
    "plant a module": "import os, tempfile; tempfile.TemporaryFile(dir=os.path.dirname(os.__file__)).close()",
    "write to kernel settings": "open('/proc/sys/kernel/core_pattern', 'r+').close()",
    "call this machine": "import socket; socket.create_connection(('127.0.0.1', port), 2)",
    "send a datagram": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', port))",
    "call a unix socket": "import socket; socket.socket(1).connect(unix)",
    "call a socket without a file": "import socket; socket.socket(1).connect(b'\\0' + unix.encode())",
    "listen on a port": "import socket; socket.create_server(('127.0.0.1', 0))",
    "see who listens": "assert unix in open('/proc/net/unix').read(), OSError('Error')",
    "open a socket to the wire": "import socket; socket.socket(17, 3, 0)",
    "open a netlink socket": "import socket; socket.socket(16, 3, 0)",
    "see another process": "import os; os.stat(f'/proc/{victim}/cmdline'); os.kill(victim, 0)",
    "read its command": "assert 'sleep' in open(f'/proc/{victim}/cmdline').read()",
    "read its memory": "open(f'/proc/{victim}/mem', 'rb').close()",
    "signal everybody": "import os; os.kill(-1, 0)",
    "change its limits": "import resource as r; r.prlimit(victim, r.RLIMIT_CPU, r.prlimit(victim, r.RLIMIT_CPU))",
    "move it to other cores": "import os; os.sched_setaffinity(victim, os.sched_getaffinity(victim))",
    "find its shared memory": f"{CALL}libc.shmat.restype = n; assert libc.shmat(shared, None, 0) != -1, "
    "OSError('Error')",
    "read its environment": f"assert {SECRET!r} in open(f'/proc/{{victim}}/environ').read()",
    "lower its priority": "import os; os.setpriority(0, victim, min(19, os.getpriority(0, victim) + 1))",
    "trace a process": f"{CALL}assert libc.ptrace(n(0), n(0), n(0), n(0)) == 0, OSError('Error')",
    "change its root": "import os; os.chroot('.')",
    "make a device": "import os; os.mknod('null', 0o20600, os.makedev(1, 3)); os.unlink('null')",
    "become another user": "import os; os.setuid(12345)",
    "run before all others": "import os; os.nice(-1)",
    "run in real time": "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))",
    "drive the kernel by a ring": f"{CALL}ring = ctypes.create_string_buffer(120)\n"
    "assert libc.syscall(n(425), n(1), ring) > 0, OSError('Error')",
    "reach the machine's console keys": "open('/proc/sysrq-trigger', 'w').close()",
    "name the machine": "import socket; socket.sethostname(socket.gethostname())",
    "ask what others have read": "import os; f = os.open(code, os.O_RDONLY); os.read(f, 9)\n"
    "os.preadv(f, [bytearray(9)], 0, os.RWF_NOWAIT)",
    "tell others by what it drops from the cache": "import os; f = os.open(code, os.O_RDONLY)\n"
    "os.posix_fadvise(f, 0, 0, os.POSIX_FADV_DONTNEED)",
    "look into the cache through a map": f"{CALL}import mmap; m = mmap.mmap(-1, 4096)\n"
    "at = ctypes.addressof(ctypes.c_char.from_buffer(m)); v = ctypes.create_string_buffer(1)\n"
    "assert libc.mincore(n(at), n(4096), v) == 0, OSError('Error')",
    "make a user namespace": "import os, ctypes\nassert ctypes.CDLL(None).unshare(0x10000000) == 0, OSError('Error')",
    "read kernel keys": f"{CALL}import os\nnumber = {{'x86_64': 250, 'aarch64': 219}}[os.uname().machine]\n"
    "assert libc.syscall(n(number), n(0), n(-3), n(1)) > 0, OSError('Error')",
}
ROOT_ONLY = {
    "read the machine's accounts",
    "write to kernel settings",
    "write to Python",
    "plant a module",
    "open a socket to the wire",
    "read its memory",
    "rewrite the first process of its tree",
    "change its root",
    "make a device",
    "become another user",
    "run before all others",
    "run in real time",
    "reach the machine's console keys",
    "name the machine",
}
# Doors that some kernels do not have, or that their owner has shut for all.
RARE = {
    "take a disk at once",
    "run in real time",
    "drive the kernel by a ring",
    "reach the machine's console keys",
    "leave a bit in a file's access time",
}

# What one box leaves, and how the next one finds it and takes it back; `{word}` is the test's own.
CARRIES = {
    "a file in /tmp": ("open('/tmp/{word}', 'w').close()", "import os; os.unlink('/tmp/{word}')"),
    "a file in memory": ("open('/dev/shm/{word}', 'w').close()", "import os; os.unlink('/dev/shm/{word}')"),
    "a queue": (
        f"{CALL}assert libc.mq_open(b'/{{word}}', n(0o102), n(0o600), None) >= 0, OSError('Error')",
        f"{CALL}assert libc.mq_unlink(b'/{{word}}') == 0, OSError('Error')",
    ),
    "a segment": (
        f"{CALL}assert libc.shmget(0x{{word}}, n(4096), 0o1600) >= 0, OSError('Error')",
        f"{CALL}found = libc.shmget(0x{{word}}, n(0), 0); libc.shmctl(found, 0, None)\n"
        "assert found >= 0, OSError('Error')",
    ),
    "a key": (
        f"{CALL}import os\nadd = {{'x86_64': 248, 'aarch64': 217}}[os.uname().machine]\n"
        "assert libc.syscall(n(add), b'user', b'{word}', b'x', n(1), n(-4)) > 0, OSError('Error')",
        f"{CALL}import os\ncontrol = {{'x86_64': 250, 'aarch64': 219}}[os.uname().machine]\n"
        "found = libc.syscall(n(control), n(10), n(-4), b'user', b'{word}', n(0))\n"
        "assert found > 0, OSError('Error')\nlibc.syscall(n(control), n(9), n(found), n(-4))",
    ),
}

# Kinds of sockets that a machine may have: of each family one that needs no address. 1 is of the box itself.
FAMILIES = """
import socket
opened = set()
for family in range(46):
    for kind, protocol in ((1, 0), (2, 0), (3, 0), (5, 0), (3, 1), (1, 262)):
        try:
            socket.socket(family, kind, protocol).close()
            opened.add(family)
        except OSError:
            pass
assert opened > {1}, 'Error'
"""

# Ways to a process whose CPU time nobody would add up: a parent that ignores its children leaves them to no table.
HIDERS = {
    "fork": "if os.fork() == 0: os._exit(0)",
    "a daemon": "pid = os.fork()\nif pid == 0: os.setsid(); os._exit(0)",
    "vfork": "import subprocess, sys\nsubprocess.run([sys.executable, '-c', ''], check=True)",
    "posix_spawn": "os.posix_spawn(sys.executable, [sys.executable, '-c', ''], {})",
    "a shell": "signal.signal(signal.SIGCHLD, signal.SIG_DFL)\nassert os.system('true') == 0, OSError('Error')",
    "clone": f"{CALL}import signal\nnumber = {{'x86_64': 56, 'aarch64': 220}}[os.uname().machine]\n"
    "pid = libc.syscall(n(number), n(signal.SIGCHLD), n(0), n(0), n(0), n(0))\n"
    "if pid == 0: os._exit(0)\nassert pid > 0, OSError('Error')",
    "clone3": f"{CALL}import struct\nwanted = struct.pack('<8Q', 0, 0, 0, 0, 17, 0, 0, 0)\n"
    "pid = libc.syscall(n(435), wanted, n(len(wanted)))\n"
    "if pid == 0: os._exit(0)\nassert pid > 0, OSError('Error')",
}
