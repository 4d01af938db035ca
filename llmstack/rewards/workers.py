"""Warm processes that are asked one line and answer one line, each within a time limit.

JSON goes through pipes; nothing is pickled and nothing forked from this process, which may hold an accelerator.
"""

import concurrent.futures
import json
import os
import queue
import selectors
import signal
import subprocess
import sys
import time

import numpy as np

from llmstack.errors import BadInput
from llmstack.rewards import Failed

START = 120.0  # seconds until a process is ready; importing sympy on a loaded machine takes 16


def exchange(process, line, seconds, limit=1 << 16):
  """Returns bytes, the next line that a process says after it was told `line` (b'' for nothing), or Failed.

  process: Popen with pipes for stdin and stdout. seconds: for all of it. limit: bytes that are read at most.
  """
  deadline, reply, pending = time.monotonic() + seconds, bytearray(), memoryview(line)
  with selectors.DefaultSelector() as ready:
    ready.register(process.stdout, selectors.EVENT_READ)
    if pending:
      os.set_blocking(process.stdin.fileno(), False)
      ready.register(process.stdin, selectors.EVENT_WRITE)
    while (left := deadline - time.monotonic()) > 0:
      for key, _ in ready.select(left):
        if key.fileobj is process.stdin:
          try:
            pending = pending[os.write(key.fd, pending) :]
          except BrokenPipeError:
            pending = pending[:0]  # it ended; what it said before is still to be read
          if not pending:
            ready.unregister(process.stdin)
          continue
        chunk = os.read(key.fd, 1 << 16)
        reply += chunk
        if b'\n' in chunk:
          return bytes(reply[: reply.index(b'\n')])
        if not chunk:
          return Failed('the process ended without an answer')
        if len(reply) > limit:
          return Failed(f'the answer is longer than {limit} bytes')
  return Failed(f'no answer within {seconds:g} s')


def end(process):
  """Returns nothing; kills a process, None for none, with all of its group and reaps it."""
  if process is None:
    return
  try:
    os.killpg(process.pid, signal.SIGKILL)
  except ProcessLookupError:
    pass
  process.wait()
  process.stdin.close()
  process.stdout.close()


class Pool:
  """`size` warm processes, asked by as many threads. One that fails is killed with its group and replaced.

  command: arguments to start one; it says a line when it is ready.
  seconds: limit of one answer. once: whether each process is thrown away after one answer.

  Raises:
    BadInput: one of the first does not get ready.
  """

  def __init__(self, command, *, size, seconds, once=False, **how):
    self.size, self._command, self._seconds, self._once, self._how = size, command, seconds, once, how
    # The threads live as long as the pool: a box ends with the thread that started it.
    self._threads = concurrent.futures.ThreadPoolExecutor(size)
    self._warm = queue.SimpleQueue()
    refused = list(self._threads.map(lambda _: self._put(*self._ready(self._start())), range(size)))
    if any(refused):
      self.close()
      raise BadInput(f'{self.name} does not start: {next(filter(None, refused))}')

  def _start(self):
    """Returns Popen, or None where the machine has no more processes to give; the next row tries again."""
    pipes = {'stdin': subprocess.PIPE, 'stdout': subprocess.PIPE, 'bufsize': 0}
    try:
      return subprocess.Popen(self._command, start_new_session=True, **pipes, **self._how)
    except OSError:
      return None

  def _ready(self, process):
    """Returns (process, '' where it is ready, or Failed)."""
    process = process or self._start()
    said = exchange(process, b'', START) if process else Failed('no process could be started')
    if isinstance(said, bytes):
      said = '' if said == b'ready' else Failed(said.decode(errors='replace'))
    return process, said

  def _put(self, process, said=None):
    """Returns `said`; None for a process of which is not known whether it is ready."""
    self._warm.put((process, said))
    return said

  def ask(self, lines):
    """Returns [what `_read` makes of the answer, or Failed] of each line, in order."""
    return list(self._threads.map(self._one, lines))

  def _one(self, line):
    process, said = self._warm.get()
    if said is None:
      process, said = self._ready(process)
    value = said if said else self._read(exchange(process, line, self._seconds))
    if self._once or isinstance(value, Failed):
      end(process)
      self._put(self._start())
    else:
      self._put(process, '')
    return value

  def close(self):
    """Returns nothing; ends all processes."""
    self._threads.shutdown()
    while not self._warm.empty():
      end(self._warm.get()[0])

  def __enter__(self):
    return self

  def __exit__(self, *error):
    self.close()


class Workers(Pool):
  """A reward whose rows are computed by a function (prompt, completion, info) -> float in processes of their own.

  name: 'package.module:function'. size: processes. seconds: limit of one row; one that takes longer fails.

  Raises:
    BadInput: the name has another form, or the function cannot be imported.
  """

  def __init__(self, name, *, size=1, seconds=10.0):
    if name.count(':') != 1 or not all(name.split(':')):
      raise BadInput(f'reward function {name!r}: write package.module:function')
    self.name = f'reward function {name}'
    env = os.environ | {'PYTHONPATH': os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, '-m', 'llmstack.rewards.worker', name, str(seconds)]
    super().__init__(command, size=size, seconds=seconds, env=env)

  def __call__(self, prompts, completions, info):
    """Returns [float or Failed]."""
    return self.ask([f'{json.dumps(each, default=_plain)}\n'.encode() for each in zip(prompts, completions, info)])

  def _read(self, said):
    """Returns the value that a worker said, or Failed; an error is told as text."""
    if isinstance(said, Failed):
      return said
    try:
      value = json.loads(said)
    except ValueError:
      return Failed(f'the answer is {said!r:.80}, not JSON')
    return Failed(value) if isinstance(value, str) else value


def _plain(value):
  """Returns what JSON can hold of numpy's numbers and arrays."""
  if isinstance(value, np.generic | np.ndarray):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} in info is nothing that JSON holds')
