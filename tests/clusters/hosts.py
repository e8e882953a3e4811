"""Two hosts in Linux namespaces on this machine: each with its own network, name, processes and sshd; one cable."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.launch.processes import wait_until

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "srun": "slurm-client",
    "munged": "munge",
    "ompi_info": "openmpi-bin",
    "pdsh": "pdsh",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
"""Program -> Debian package."""

ADDRESSES = {"node1": "10.77.0.1", "node2": "10.77.0.2"}

_DAEMON = re.compile(r"sleep infinity|sshd: .*\[listener\]|munged|slurmctld|.*slurmscriptd|slurmd( |$)")

_SSH_CONFIG = """\
Host node1 node2
  IdentityFile {folder}/key
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking yes
"""
_SSHD_CONFIG = """\
HostKey {folder}/key
AuthorizedKeysFile {folder}/key.pub
PermitRootLogin yes
StrictModes no
UsePAM no
MaxStartups 100
"""
# /etc/ssh and /etc/hosts are this test's; the first process waits, so that it reaps orphans.
_FIRST_PROCESS = """\
hostname {name}
mount --bind {folder}/hosts /etc/hosts
mount --bind {folder} /etc/ssh
mount -t tmpfs tmpfs /run
mkdir /run/sshd /run/munge
ip link set lo up
$(command -v sshd || echo /usr/sbin/sshd) -f {folder}/sshd_config -E {folder}/{name}.log
touch {folder}/{name}.ready
sleep infinity &
wait
"""


def require_programs() -> None:
    """Skip, or fail under `make clusters`, where something is not installed or not permitted."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = sorted({package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None})
    reason = ""
    if missing:
        reason = f"needs Debian packages: apt-get install {' '.join(missing)}"
    elif subprocess.run(["unshare", "--net", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        reason = "needs root, for network namespaces (in a container: --privileged)"
    if reason and os.environ.get("MUNEOX_CLUSTERS") == "required":
        pytest.fail(reason, pytrace=False)
    if reason:
        pytest.skip(reason)


class Hosts:
    """node1 and node2, which share this machine's files. Names, addresses and ssh are theirs alone."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        names = "".join(f"{address} {name}\n" for name, address in ADDRESSES.items())
        (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key")], check=True)
        public = (folder / "key.pub").read_text()
        (folder / "known_hosts").write_text("".join(f"{name},{at} {public}" for name, at in ADDRESSES.items()))
        (folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=folder))
        (folder / "sshd_config").write_text(_SSHD_CONFIG.format(folder=folder))
        self._unshare = {name: self._start(name) for name in ADDRESSES}
        self._first = {name: self._child(process) for name, process in self._unshare.items()}
        self._connect()

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        namespaces = ["--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = _FIRST_PROCESS.format(name=name, folder=shlex.quote(str(self.folder)))
        process = subprocess.Popen(["unshare", *namespaces, "sh", "-e", "-c", script])
        ready = self.folder / f"{name}.ready"
        wait_until(lambda: ready.exists() or process.poll() is not None, 20, f"{name} has not started")
        assert process.poll() is None, f"{name} cannot be set up"
        return process

    @staticmethod
    def _child(process: subprocess.Popen[bytes]) -> int:
        return int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])

    def _connect(self) -> None:
        one, two = (str(pid) for pid in self._first.values())
        pair = ["type", "veth", "peer", "name", "eth0", "netns", two]
        subprocess.run(["ip", "link", "add", "eth0", "netns", one, *pair], check=True)
        for name, address in ADDRESSES.items():
            self.run(name, ["ip", "addr", "add", f"{address}/24", "dev", "eth0"])
            self.run(name, ["ip", "link", "set", "eth0", "up"])

    def command(self, name: str, command: Sequence[str], cwd: Path | None = None) -> list[str]:
        """`command` as a process of host `name`."""
        enter = ["nsenter", f"--target={self._first[name]}", "--net", "--mount", "--uts", "--pid"]
        return [*enter, "env", f"--chdir={cwd or '/'}", *command]

    def run(self, name: str, command: Sequence[str], cwd: Path | None = None, **options: Any) -> str:
        """Run it to its end and return what it prints. AssertionError if it fails."""
        line = self.command(name, command, cwd)
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False, **options)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], cwd: Path, output: Path
    ) -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            return subprocess.Popen(
                self.command(name, command, cwd),
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Process id -> command line of all processes of both hosts but the daemons and the first ones."""
        namespaces = {os.readlink(f"/proc/{pid}/ns/pid") for pid in self._first.values()}
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(folder / "ns" / "pid") in namespaces:
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
            except OSError:  # it has ended
                continue
        first = set(self._first.values())
        return {pid: line for pid, line in found.items() if line and pid not in first and not _DAEMON.match(line)}

    def close(self) -> None:
        """End every process of both hosts, which is what the kernel does at the end of their first ones."""
        for process in self._unshare.values():
            process.kill()
            process.wait()
