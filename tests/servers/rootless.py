"""Runs a Docker engine as the user nobody, who is not root. Takes a folder for its files.

Run it as root in a separate mount namespace (`unshare --mount`): it mounts what an administrator
would set up for such a user over the machine's files, visible only in that namespace.
"""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import sys
from pathlib import Path


def main(program: str, name: str) -> None:
    """Do it; this process becomes *program*."""
    folder = Path(name)
    user = pwd.getpwnam("nobody")
    for file in ("subuid", "subgid"):
        (folder / file).write_text(f"{user.pw_name}:100000:65536\n")
        lay(folder / file, f"/etc/{file}")
    tun = folder / "tun"
    os.mknod(tun, stat.S_IFCHR, os.makedev(10, 200))
    tun.chmod(0o666)
    lay(tun, "/dev/net/tun")
    for each in ("home", "run"):
        (folder / each).mkdir(mode=0o700)
        os.chown(folder / each, user.pw_uid, user.pw_gid)
    folder.chmod(0o711)
    os.setgroups([])
    os.setgid(user.pw_gid)
    os.setuid(user.pw_uid)
    os.chdir(folder / "home")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder / "home"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
    }
    # A network that no other engine of this machine has: its gateway is nobody's here.
    options = ["--storage-driver=vfs", "--bip=172.29.7.1/24", f"--data-root={folder}/home/data"]
    os.execve(program, [program, *options], environment)  # noqa: S606 - none is wanted


def lay(source: Path, target: str) -> None:
    """Lay a file over one of the machine's."""
    command = ["mount", "--bind", str(source), target]
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
