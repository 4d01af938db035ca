"""What runs inside a box of `sandbox.py`: it closes the door behind itself, waits for one job and answers it.

Its text is given to an interpreter that has the standard library and nothing else. `spell` and `digest` are used on
the outside too: the box tells how what it computed is spelt, keyed with the job's nonce, and never learns what was
expected.
"""

import ctypes
import errno
import hashlib
import importlib.util
import json
import os
import resource
import struct
import sys


def spell(value):
  """Returns str, the same for values of plain data that are equal: 1, 1.0 and True; sets and dicts in any order."""
  if isinstance(value, bool | int | float):
    whole = value == value and value not in (float('inf'), -float('inf')) and value == int(value)
    return hex(int(value)) if whole else repr(float(value))
  if isinstance(value, list | tuple):
    kind = 'list' if isinstance(value, list) else 'tuple'
    return f'{kind}({",".join(map(spell, value))})'
  if isinstance(value, set | frozenset):
    return f'set({",".join(sorted(map(spell, value)))})'
  if isinstance(value, dict):
    return f'dict({",".join(sorted(f"{spell(k)}:{spell(v)}" for k, v in value.items()))})'
  if value is None or isinstance(value, str | bytes | complex):
    return repr(value)
  raise TypeError(f'a {type(value).__name__} cannot be compared from outside')


def digest(value, nonce):
  """Returns 32 hex characters: how the value is spelt, keyed with the job's nonce."""
  spelt = spell(value).encode('utf-8', 'surrogatepass')
  return hashlib.blake2b(spelt, digest_size=16, key=bytes.fromhex(nonce)).hexdigest()


# Calls that give memory which no limit of a process counts, or capabilities in a namespace of one's own:
# machine: (audit number, clone, (shmget, shmat, msgget, semget, memfd_create, memfd_secret, unshare, setns, clone3,
# mount, fsopen, open_tree, ptrace, bpf, perf_event_open, userfaultfd, io_uring_setup, add_key, request_key, keyctl)).
CALLS = {
  'x86_64': (0xC000003E, 56, (
    29, 30, 68, 64, 319, 447, 272, 308, 435, 165, 430, 428, 101, 321, 298, 323, 425, 248, 249, 250)),
  'aarch64': (0xC00000B7, 220, (
    194, 196, 186, 190, 279, 447, 97, 268, 435, 40, 430, 428, 117, 280, 241, 282, 425, 217, 218, 219)),
}  # fmt: skip


def forbid(machine):
  """Returns nothing; those calls, and clone with a user namespace, do not exist from here on.

  A classic BPF program over seccomp_data (nr at 0, arch at 4, the first argument at 16).
  Source: seccomp(2); bubblewrap has set no_new_privs.
  """
  audit, clone, calls = CALLS[machine]
  load, equal, above, masked, give = 0x20, 0x15, 0x35, 0x45, 0x06
  absent = (give, 0, 0, 0x00050000 | errno.ENOSYS)
  code = [(load, 0, 0, 4), (equal, 1, 0, audit), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]  # kill another machine's
  code += [(above, 0, 1, 0x40000000), absent]  # x32
  for call in calls:
    code += [(equal, 0, 1, call), absent]
  code += [(equal, 0, 3, clone), (load, 0, 0, 16), (masked, 0, 1, 0x10000000), absent, (give, 0, 0, 0x7FFF0000)]
  filters = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *line) for line in code))
  program = struct.pack('HP', len(code), ctypes.addressof(filters))
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.prctl(22, 2, program, 0, 0):  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
    raise OSError(ctypes.get_errno(), 'no seccomp filter')


class Told:
  """Makes data of whatever model-written code raises, SystemExit included: `error` is its sentence, or None."""

  error = None

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if kind:
      self.error = f'{kind.__name__}: {error}'[:300]
    return True


def module(name, text, names):
  """Returns the namespace of a module of this text, run with `names` in it."""
  with open(f'{name}.py', 'w') as file:
    file.write(text)
  spec = importlib.util.spec_from_file_location(name, f'{name}.py')
  made = sys.modules[name] = importlib.util.module_from_spec(spec)
  vars(made).update(names)
  spec.loader.exec_module(made)
  return {k: v for k, v in vars(made).items() if not k.startswith('__')}


def enclose(limits):
  """Returns nothing; gives up root, whose processes no limit counts, and sets what this process may use."""
  if os.getuid() == 0:
    nobody = (1 << 20) + int.from_bytes(os.urandom(3))  # processes are counted by user: no two boxes share one
    os.setgroups([])
    os.setresgid(nobody, nobody, nobody)
    os.setresuid(nobody, nobody, nobody)
  for name, value in limits.items():
    resource.setrlimit(getattr(resource, name), (value, value))
  forbid(os.uname().machine)


def main():
  sys.excepthook = lambda kind, error, trace: print(f'{kind.__name__}: {error}')
  enclose(json.loads(sys.argv[1]))
  for name in 'collections functools heapq itertools math random re string typing'.split():  # while it waits
    importlib.import_module(name)
  answer = os.dup(1)
  os.write(answer, b'ready\n')
  job = json.loads(sys.stdin.readline())
  nothing = os.open('/dev/null', os.O_RDWR)
  for fd in (0, 1, 2):
    os.dup2(nothing, fd)
  values, first = [], None
  with Told() as told:
    names = module('solution', job['code'], {})
    calls = module('tests', job['tests'], names)['calls']
    for call in calls:
      with Told() as here:
        values.append(digest(call(), job['nonce']))
      if here.error:
        values.append('-')
        first = first or here.error
  error = ' '.join((told.error or first or '').split())
  os.write(answer, f'{" ".join(values)}|{error}\n'.encode(errors='replace'))
  os._exit(0)


if __name__ == '__main__':
  main()
