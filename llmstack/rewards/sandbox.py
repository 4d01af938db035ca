"""Boxes for model-written Python: bubblewrap with no network, no files, no secrets, and limits on all that it uses.

A box is an interpreter that waits behind the closed door (`box.py`), does one job and is thrown away; the next one
starts meanwhile. What is computed inside is compared outside. Nothing less than this is offered: guards within one
process let secrets, loopback and orphans through.

  network, processes, users, IPC   namespaces of its own; nothing of the parent is visible, /proc is not mounted
  files        /usr and the interpreter, read-only; /tmp in memory, of `disk` bytes; no /etc, no /home
  user         neither root nor any other user of this machine, because root's processes are not limited
  resources    processes and threads, address space, seconds of CPU, size of a file, open files, no core dumps
  end          SIGKILL to the group after `seconds`; the namespace takes whatever left the group with it
"""

import importlib.util
import json
import os
import pathlib
import secrets
import shutil
import subprocess
import sys
from typing import NamedTuple

from llmstack.errors import BadInput
from llmstack.rewards import Failed, box
from llmstack.rewards.workers import Pool


class Verdict(NamedTuple):
  """What came out of a job.

  passed: tuple of bool, one for each call.
  error: sentence of the first thing that went wrong, '' for nothing.
  """

  passed: tuple
  error: str


class Sandbox(Pool):
  """A pool of boxes, `size` at a time.

  seconds: limit of one job, wall clock and CPU. memory: bytes of address space of each process.
  processes: how many, with threads; so a box holds at most memory * processes + disk bytes.

  Raises:
    BadInput: bubblewrap is not installed, or cannot isolate on this machine.
  """

  def __init__(self, *, size=2, seconds=10.0, memory=512 << 20, processes=1, disk=16 << 20):
    if not (bwrap := shutil.which('bwrap')):
      raise BadInput('model-written code runs in bubblewrap only: apt-get install bubblewrap (Linux)')
    if os.uname().machine not in box.CALLS:
      raise BadInput(f'no list of system calls to forbid on {os.uname().machine}: run code on {" or ".join(box.CALLS)}')
    limits = {
      'RLIMIT_NPROC': processes, 'RLIMIT_AS': memory, 'RLIMIT_CPU': int(seconds) + 1, 'RLIMIT_FSIZE': disk,
      'RLIMIT_NOFILE': 64, 'RLIMIT_CORE': 0,
    }  # fmt: skip
    # Root mounts without a user namespace, because the interpreter may lie where only root can read, and becomes nobody
    # inside. Others need a namespace in which they may mount; it counts processes too.
    root = os.getuid() == 0
    alone = ['--unshare-ipc', '--unshare-pid', '--unshare-net', '--unshare-uts', '--unshare-cgroup-try']
    python, home = os.path.realpath(sys.executable), sys.base_prefix
    command = [bwrap, *(alone if root else ['--unshare-all', '--uid', '65534', '--gid', '65534'])]
    command += ['--die-with-parent', '--clearenv', '--hostname', 'box', '--ro-bind', '/usr', '/usr']
    for name in ('lib', 'lib64'):
      if os.path.islink(f'/{name}'):
        command += ['--symlink', f'usr/{name}', f'/{name}']
      elif os.path.isdir(f'/{name}'):
        command += ['--ro-bind', f'/{name}', f'/{name}']
    for path, bind in [('/dev/null', '--dev-bind')] + [(home, '--ro-bind')] * (not f'{home}/'.startswith('/usr/')):
      for folder in reversed(pathlib.Path(path).parents[:-1]):  # which bubblewrap would make for the owner only
        command += ['--perms', '0755', '--dir', str(folder)]
      command += [bind, path, path]
    command += ['--size', str(disk), '--perms', '1777', '--tmpfs', '/tmp']
    command += ['--chdir', '/tmp', '--remount-ro', '/', python, '-I', '-S', '-B', '-c']
    command += [importlib.util.find_spec(box.__name__).loader.get_source(box.__name__)]
    self.name = 'the box of bubblewrap'
    super().__init__([*command, json.dumps(limits)], size=size, seconds=seconds, once=True, stderr=subprocess.STDOUT)

  def run(self, jobs):
    """Returns [Verdict or Failed], in order. Failed: the box itself did not start, so nothing is known of the code.

    jobs: [(code, setup, calls)], texts of the solution and of definitions that the tests need, and [(expression, the
      value that it must have)]; an expression sees the names of both.
    """
    nonces = [secrets.token_hex(16) for _ in jobs]
    lines = []
    for (code, setup, calls), nonce in zip(jobs, nonces):
      tests = '\n'.join([setup, 'calls = [', *(f'  lambda: ({expression}),' for expression, _ in calls), ']'])
      lines.append(f'{json.dumps({"code": code, "tests": tests, "nonce": nonce})}\n'.encode())
    return [
      said if isinstance(said, Failed) else _verdict(*said, job[2], nonce)
      for said, job, nonce in zip(self.ask(lines), jobs, nonces)
    ]

  def _read(self, said):
    """Returns (digests, error) of an answer, which may be anything; a box that ends without one is the code's doing."""
    if isinstance(said, Failed):
      return [], str(said)
    values, _, error = said.decode(errors='replace').partition('|')
    return values.split(), error


def _verdict(values, error, calls, nonce):
  values += ['-'] * (len(calls) - len(values))
  passed = tuple(value == box.digest(expected, nonce) for value, (_, expected) in zip(values, calls))
  return Verdict(passed, error)
