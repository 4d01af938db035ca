"""Who writes into a folder: one run at a time, named by a file.

`WRITER` is made with O_EXCL and holds run, host and pid; its modification time is touched every RENEW seconds by a
daemon thread. A second run is refused by name: at once on the same host, after RENEW seconds or so if the holder is on
another, for whose sign of life it waits. The lease of a process that is gone is taken over at once on the same host,
and EXPIRE seconds after its last renewal on another. Ages are differences of two times of the same file system, so
the clocks of the hosts do not matter. What this cannot prevent: a process stopped for longer than EXPIRE that is woken
in the middle of a write. It finds out at its next check.
"""

import atexit
import json
import os
import secrets
import socket
import sys
import threading
import time

from llmstack.errors import BadInput

NAME = 'WRITER'
RENEW, EXPIRE = 15.0, 60.0  # seconds


def _text(path):
  try:
    with open(path) as f:
      return f.read()
  except FileNotFoundError:
    return None


def begun(pid):
  """Returns when a process of this host began, in clock ticks since boot; None if it is gone. 0 where unknown."""
  if sys.platform != 'linux':
    try:
      os.kill(pid, 0)
    except ProcessLookupError:
      return None
    except PermissionError:
      pass
    return 0
  try:
    # A command's name may hold spaces and brackets: fields are counted from the last bracket.
    fields = _text(f'/proc/{pid}/stat').rpartition(')')[2].split()
  except (AttributeError, ProcessLookupError):
    return None
  return None if fields[0] in 'ZX' else int(fields[19])


def here():
  """Returns what tells apart the machines on which a pid means another process: host, boot and pid namespace."""
  if sys.platform != 'linux':
    return socket.gethostname()
  return f'{socket.gethostname()} {_text("/proc/sys/kernel/random/boot_id").strip()} {os.readlink("/proc/self/ns/pid")}'


def read(folder):
  """Returns the holder's {'run', 'host', 'pid', 'begun', 'here', 'time'}; None if there is none, {} if unreadable."""
  text = _text(os.path.join(folder, NAME))
  try:
    held = None if text is None else json.loads(text)
  except ValueError:  # being written, or cut off by a full disk
    return {}
  return held if held is None or isinstance(held, dict) else {}


def describe(held):
  """Returns 'run R on host H, pid P, since T'."""
  if not held:
    return 'a run that left no name'
  since = time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(held['time']))
  return f'run {held["run"]} on host {held["host"]}, pid {held["pid"]}, since {since}'


def age(folder):
  """Returns the seconds since the lease was renewed; None if it is not there."""
  probe, now = os.path.join(folder, f'{NAME}.{secrets.token_hex(4)}'), time.time()
  try:
    with open(probe, 'w'):
      now = os.stat(probe).st_mtime
    os.unlink(probe)
  except OSError:  # a read-only file system: our clock has to do
    pass
  try:
    return now - os.stat(os.path.join(folder, NAME)).st_mtime
  except FileNotFoundError:
    return None


def ended(folder, held):
  """Returns why the lease is over, as half a sentence; '' while it holds."""
  if held.get('here') == here():
    if begun(held['pid']) == held['begun']:
      return ''
    return f'process {held["pid"]} of this host is gone'
  seconds = age(folder)
  return f'it was not renewed for {seconds:.0f} s' if seconds is not None and seconds > EXPIRE else ''


class Lease:
  """The right to write into `folder`, until release(), the end of the process, or check() raises."""

  def __init__(self, folder):
    """Raises: BadInput naming the run that holds it; OSError where the folder cannot be written to."""
    self.folder, self.path = folder, os.path.join(folder, NAME)
    self.run = f'{time.strftime("%Y%m%d-%H%M%S")}-{secrets.token_hex(2)}'
    pid = os.getpid()
    self._mine = {
      'run': self.run, 'host': socket.gethostname(), 'pid': pid, 'begun': begun(pid), 'here': here(),
      'time': time.time(),
    }  # fmt: skip
    while not self._create():
      held = read(folder)
      if held is None or not held and (age(folder) or 0) < 1:
        time.sleep(0.05)  # released, or being written, in this moment
        continue
      own = (held.get('here'), held.get('pid')) == (here(), pid)  # an object of this process that was never closed
      why = '' if own else self._await_end(held)
      if read(folder) != held:
        continue
      if not why and not own:
        raise BadInput(
          f'{folder} is being written by {describe(held)}: stop that run, or give this one another --workdir'
        )
      if self._replace(held):
        if not own:
          print(f'{folder} was left by {describe(held)}; taken over, as {why}', file=sys.stderr, flush=True)
        break
    self._stop, self._looked = threading.Event(), time.monotonic()
    threading.Thread(target=self._renew, name='lease', daemon=True).start()
    atexit.register(self.release)

  def _await_end(self, held):
    """Returns why the lease is over; '' once it was renewed or replaced. Waits for what another host may do."""
    seen, why = age(self.folder), ended(self.folder, held)
    if why or held.get('here') == here() or seen is None:
      return why
    print(f'{self.folder} was last written by {describe(held)}: waiting for {EXPIRE:.0f} s without a sign of life',
          file=sys.stderr, flush=True)  # fmt: skip
    while not why and seen is not None and read(self.folder) == held:
      time.sleep(0.5)
      before, seen, why = seen, age(self.folder), ended(self.folder, held)
      if seen is not None and seen < before:
        return ''  # renewed
    return why

  def _create(self):
    """Returns whether the file was not there and is now ours."""
    try:
      fd = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
      return False
    try:
      with os.fdopen(fd, 'w') as f:
        json.dump(self._mine, f)
    except OSError:  # a full disk: no lease rather than a nameless one
      os.unlink(self.path)
      raise
    return True

  def _replace(self, held):
    """Returns whether we, and no other, replaced the lease `held`."""
    guard = f'{self.path}.takeover'
    try:
      os.close(os.open(guard, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
      try:
        if time.time() - os.path.getmtime(guard) > EXPIRE:
          os.unlink(guard)  # of a run that died right here
      except FileNotFoundError:
        pass
      time.sleep(0.1)
      return False
    try:
      if read(self.folder) != held:
        return False
      with open(f'{self.path}.{self.run}', 'w') as f:
        json.dump(self._mine, f)
      os.replace(f'{self.path}.{self.run}', self.path)
      return True
    finally:
      os.unlink(guard)

  def _renew(self):
    while not self._stop.wait(RENEW):
      try:
        if read(self.folder) == self._mine:
          os.utime(self.path)  # needs no space on a full disk
      except OSError as e:  # storage that is away for a while; whoever writes finds out
        print(f'{self.path} could not be renewed: {e.strerror}', file=sys.stderr, flush=True)

  def check(self, now=False):
    """Returns nothing; raises BadInput if another run has taken over. Looks every RENEW seconds, or now."""
    if not now and time.monotonic() < self._looked + RENEW:
      return
    self._looked = time.monotonic()
    held = read(self.folder)
    if held is None and self._create():  # removed by hand
      return
    if held != self._mine:
      raise BadInput(
        f'{self.folder} was taken over by {describe(held)}: this is run {self.run}, pid '
        f'{self._mine["pid"]}, which had not renewed its lease; it stops here and writes nothing more'
      )

  def release(self):
    self._stop.set()
    atexit.unregister(self.release)
    if read(self.folder) == self._mine:
      os.unlink(self.path)
