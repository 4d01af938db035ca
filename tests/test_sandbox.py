"""rewards/sandbox.py: each way out of the box that has been tried, and each way to a verdict that was not earned."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from llmstack.errors import BadInput
from llmstack.rewards import box, code
from llmstack.rewards.sandbox import Sandbox

MARK = f'llmstack-orphan-{os.getpid()}'


@pytest.fixture(scope='module', autouse=True)
def secret():
  os.environ['LLMSTACK_TEST_SECRET'] = 'hunter2'
  yield
  del os.environ['LLMSTACK_TEST_SECRET']


def boxes(**options):
  """Returns a Sandbox, or skips with the reason why there is none."""
  if shutil.which('bwrap') is None:
    pytest.skip('bubblewrap is not installed: apt-get install bubblewrap')
  try:
    return Sandbox(**{'size': 2, 'seconds': 1.0} | options)
  except BadInput as bad:
    pytest.skip(str(bad))


@pytest.fixture(scope='module')
def sandbox(secret):
  with boxes() as pool:
    yield pool


@pytest.fixture(scope='module')
def several(secret):
  """Boxes with room for eight processes."""
  with boxes(processes=8) as pool:
    yield pool


@pytest.fixture(scope='module')
def service():
  """The address of a listener on loopback, and of one with an abstract name."""
  with socket.create_server(('127.0.0.1', 0)) as tcp, socket.socket(socket.AF_UNIX) as unix:
    unix.bind(f'\0llmstack-{os.getpid()}')
    unix.listen()
    yield tcp.getsockname()[1], f'\0llmstack-{os.getpid()}'


PROBE = """
import ctypes, os, socket, sys
libc = ctypes.CDLL(None)
def tried(act):
  try:
    return act() or 'done'
  except OSError as error:
    return type(error).__name__
"""
REFUSED = 'ConnectionRefusedError FileNotFoundError OSError PermissionError ProcessLookupError'.split()
# name: (expression, what it may be in the box, what it is outside, None where that is not tried)
ESCAPES = {
  'environment': ("os.environ.get('LLMSTACK_TEST_SECRET', 'none')", ['none'], 'hunter2'),
  'loopback': ("tried(lambda: socket.create_connection(('127.0.0.1', {port}), 1).close())", REFUSED, 'done'),
  'abstract socket': ('tried(lambda: socket.socket(socket.AF_UNIX).connect({name!r}))', REFUSED, 'done'),
  'network': ("tried(lambda: socket.create_connection(('198.51.100.1', 80), 1).close())", REFUSED, None),
  'password file': ("tried(lambda: open('/etc/passwd').close())", REFUSED, 'done'),
  'shadow': ("tried(lambda: open('/etc/shadow').close())", REFUSED, None),
  'parent in /proc': ("tried(lambda: open('/proc/{pid}/environ').close())", REFUSED, 'done'),
  'read of a file': ("tried(lambda: open('{folder}/read').close())", REFUSED, 'done'),
  'write of a file': ("tried(lambda: open('{folder}/written', 'w').close())", REFUSED, 'done'),
  'write to /': ("tried(lambda: open('/written', 'w').close())", REFUSED, None),
  'write to /usr': ("tried(lambda: open('/usr/written', 'w').close())", REFUSED, None),
  'write to the interpreter': ("tried(lambda: open(sys.executable, 'a').close())", REFUSED, None),
  'kill of the parent': ('tried(lambda: os.kill({pid}, 0))', REFUSED, 'done'),
  'root': ('tried(lambda: os.setuid(0))', REFUSED, None),
  'shell through ctypes': ("libc.system(b'exit 0') and 'refused' or 'done'", ['refused'], 'done'),
  'namespace': ("libc.unshare(0x10000000) and 'refused' or 'done'", ['refused'], None),
  'shared memory': ("libc.shmget(0, 4096, 0o1600) < 0 and 'refused' or 'done'", ['refused'], 'done'),
  'memory file': ("tried(lambda: os.close(os.memfd_create('x')))", REFUSED, 'done'),
  'trace': ("libc.ptrace(16, 1, 0, 0) and 'refused' or 'done'", ['refused'], None),
}  # fmt: skip


@pytest.mark.parametrize('name', ESCAPES)
def test_no_way_out(name, sandbox, service, tmp_path):
  """What guards within a process let through (reliability.md, section 6): secrets, loopback, files, processes.

  Where it can be tried, the same probe succeeds outside: the test would see a leak.
  """
  (tmp_path / 'read').touch()
  expression, inside, outside = ESCAPES[name]
  told = {'port': service[0], 'name': service[1], 'pid': os.getpid(), 'folder': tmp_path}
  expression = expression.format(**told)
  (verdict,) = sandbox.run([(PROBE, '', [(expression, value) for value in inside])])
  assert any(verdict.passed), verdict
  if outside is not None:
    script = f'{PROBE}\nsys.stdout.write({expression})'
    assert subprocess.run([sys.executable, '-I', '-c', script], capture_output=True, text=True).stdout == outside


USES = {
  'memory': ('bytearray(1 << 30)', 'MemoryError'),
  'memory by small pieces': ('[bytes(1 << 20) for _ in range(1 << 20)]', 'MemoryError'),
  'one huge file': ("open('x', 'wb').write(bytes(64 << 20))", 'OSError'),
  'many files': ("[open(str(i), 'wb').write(bytes(1 << 20)) for i in range(64)]", 'OSError: [Errno 28]'),
  'open files': ("[open('/dev/null') for _ in range(1000)]", 'OSError: [Errno 24]'),
  'processes': ('__import__("os").fork()', 'BlockingIOError'),
  'threads': ('__import__("threading").Thread(target=print).start()', "RuntimeError: can't start new thread"),
  'recursion': ('(lambda f: f(f))(lambda f: f(f))', 'RecursionError'),
  'CPU': ('[0 for _ in iter(int, 1)]', 'no answer within 1 s'),
}


@pytest.mark.parametrize('name', USES)
def test_uses_are_limited(name, sandbox):
  """Allocation without end, a huge file or a loop takes the machine down, or the rows beside it."""
  expression, error = USES[name]
  bad, good = sandbox.run([('', '', [(expression, None)]), ('x = 2', '', [('x + x', 4)])])
  assert bad.passed == (False,) and bad.error.startswith(error) and good.passed == (True,)


BOMB = """
import os, time
def bomb():
  count = 0
  try:
    while count < 100:
      if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
      count += 1
  except OSError:
    return 5 <= count < 8
"""


def test_a_fork_bomb_stops_at_its_own_limit(several):
  """RLIMIT_NPROC is not applied to root (reliability.md: 200 of 200 forks), or counts all boxes together."""
  assert [v.passed for v in several.run([(BOMB, '', [('bomb()', True)])] * 2)] == [(True,), (True,)]


ORPHAN = f"""
import os, signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 32))
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
  signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
  os.setsid()
  if os.fork() == 0:
    os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', '{MARK}'])
time.sleep(60)
"""


def orphans():
  """Returns [pid] of processes on this machine, in any namespace, that ORPHAN started."""
  out = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      if path.read_bytes().rstrip(b'\0').endswith(MARK.encode()):
        out.append(int(path.parent.name))
    except OSError:
      pass  # it ended
  return out


def test_an_orphan_dies_with_its_box(several):
  """A child that left the group and ignores signals runs on after the time limit, as it does behind a guard."""
  (verdict,) = several.run([(ORPHAN, '', [('1', 1)])])
  assert verdict.error == 'no answer within 1 s' and not verdict.passed[0]
  until = time.monotonic() + 10
  while orphans() and time.monotonic() < until:  # the kernel takes a namespace down behind its first process
    time.sleep(0.01)
  assert not orphans()
  guarded = subprocess.Popen([sys.executable, '-c', ORPHAN], start_new_session=True)
  while not orphans():
    time.sleep(0.01)
  os.killpg(guarded.pid, signal.SIGKILL)
  guarded.wait()
  left = orphans()
  assert left
  for pid in left:
    os.kill(pid, signal.SIGKILL)


FIND = """
import os, sys
frame, job = sys._getframe(), None
while frame:
  job, main, frame = job or frame.f_locals.get('job'), frame.f_globals, frame.f_back
key = main['digest']({}, job['nonce']).encode()
os.write(3, key + b' ' + key + b'|\\n')
"""
ALL = """
class All({}):
  def __eq__(self, other): return True
  def __bool__(self): return True
def f(x): return All()
"""
KEY = """
import os, __main__
os.write(3, ' '.join(__main__.digest(value, '00' * 16) for value in (5, 6)).encode() + b'|\\n')
"""
CHEATS = {
  'leaves before the tests': 'import os; os._exit(0)',
  'leaves politely': 'raise SystemExit(0)',
  'leaves when it is called': 'def f(x): raise SystemExit(0)',
  'says that it passed': 'print("passed"); print("1 passed in 0.01s"); f = print',
  'guesses the answer and its key': "import os; os.write(3, b'0' * 32 + b' ' + b'0' * 32 + b'|\\n')",
  'answers what is no text': "import os; os.write(3, b'\\xff|\\n' * 9999)",
  'writes without end where the answer goes': "import os\nwhile 1:\n  os.write(3, b'x' * 4096)",
  'is equal to everything': ALL.format('object'),
  'is a number that is equal to everything': ALL.format('int'),
  'changes how values are spelt': 'import __main__\n__main__.spell = lambda value: "True"\ndef f(x): return 4',
  'knows the values and guesses the key': KEY,
  'finds the key and guesses the value': FIND.format(4),
  'ends the harness': 'import os, signal; os.kill(os.getpid(), signal.SIGKILL)',
  'removes all files': "import os\nfor name in os.listdir('.'): os.remove(name)",
  'does not parse': 'def f(x:',
  'has no such function': 'g = 1',
}  # fmt: skip


@pytest.mark.parametrize('name', CHEATS)
def test_no_verdict_is_given_away(name, sandbox):
  """`os._exit(0)`, a printed 'passed' or a patched harness counts as a pass; or they spoil the next row."""
  calls = [('f(2)', 5), ('f(3)', 6)]
  bad, good = sandbox.run([(CHEATS[name], '', calls), ('def f(x): return x + 3', '', calls)])
  assert bad.passed == (False, False), bad
  assert good.passed == (True, True) and not good.error


def test_what_judges_inside_can_be_deceived(sandbox):
  """The limit that `code.tests` tells of: `None`, what a test of any other form must have, is easily guessed."""
  tests = code.tests({'tests': ['assert f(2) < 6', 'assert f(3) == 6']})
  (verdict,) = sandbox.run([(FIND.format(None), *tests)])
  assert verdict.passed == (True, False)


def test_noise_is_no_failure(sandbox):
  """A solution that prints, or leaves files and patched modules behind, loses its reward or spoils the next row."""
  noisy = 'import sys, math\nmath.pi = 3\nopen("left", "w").close()\nfor i in range(10**5): print(i)\nx = 1'
  look = "import os, math\nx = int(not os.path.exists('left') and math.pi > 3)"
  assert all(
    v.passed == (True,) and not v.error for v in sandbox.run([(noisy, '', [('x', 1)]), (look, '', [('x', 1)])] * 3)
  )


def test_each_test_counts_for_itself(sandbox):
  """One failing call ends the run: a share of passed tests would always be 0 behind it."""
  text = 'def f(x):\n  return 10 // x'
  (verdict,) = sandbox.run([(text, '', [('f(5)', 2), ('f(0)', 1), ('f(2)', 5)])])
  assert verdict == ((True, False, True), 'ZeroDivisionError: integer division or modulo by zero')


def test_unit_tests_of_real_forms(sandbox):
  """The asserts of MBPP and the check of HumanEval, a fenced reply, and a row whose tests are missing."""
  reply = 'Here it is:\n```python\ndef add(a, b):\n  return a + b\n```\nIt adds.'
  wrong = 'def add(a, b):\n  return a - b'
  mbpp = {'test_list': ['assert add(1, 2) == 3', 'x = add(2, 2)\nassert x > 3 and\\\n x < 5', 'assert add(0, 0) == 0']}
  human = {'test': 'def check(f):\n  assert f(1, 2) == 3\n  assert f("a", "b") == "ab"\n', 'entry_point': 'add'}
  reward = code.UnitTests(sandbox)
  assert reward([[]] * 4, [reply, wrong] * 2, [mbpp, mbpp, human, human]) == [1.0, 0.0, 1.0, 0.0]
  assert code.UnitTests(sandbox, share=True)([[]], [wrong], [mbpp]) == [1 / 3]
  with pytest.raises(ValueError, match="no 'tests'"):
    reward([[]], [reply], [{'answer': '3'}])


def test_what_is_compared_outside():
  """The expected value goes into the box with the test, where the solution reads it."""
  setup, calls = code.tests({'tests': ['assert f([1]) == {"a": (1, 2)}', 'assert f(2) < 3']})
  assert calls == [('f([1])', {'a': (1, 2)}), ('_test_1()', None)] and '(1, 2)' not in setup


EQUAL = [(1, 1.0), (True, 1), ({1, 2, 30}, {30, 2, 1}), ({'a': 1, 'b': 2}, {'b': 2, 'a': 1.0}), ((1, [2]), (1.0, [2]))]
DIFFERENT = [
  ('1', 1),
  ([1], (1,)),
  (b'1', '1'),
  (0.1, 0.2),
  (None, 'None'),
  ([], ''),
  ({}, set()),
  (['1,0x1'], ['1', 1]),
]


def test_values_are_spelt_as_python_compares_them():
  """1.0 for 1 or a dict in another order fails a right solution; a string passes for a list or a number."""
  for a, b in EQUAL:
    assert a == b and box.spell(a) == box.spell(b), (a, b)
  for a, b in DIFFERENT:
    assert a != b and box.spell(a) != box.spell(b), (a, b)
  box.spell(10**10000), box.spell([1e300, float('nan'), -float('inf')])


def test_without_bubblewrap_it_refuses(monkeypatch, tmp_path):
  """Code runs unguarded where isolation cannot be had, or the reason is lost."""
  monkeypatch.setenv('PATH', str(tmp_path))
  with pytest.raises(BadInput, match='apt-get install bubblewrap'):
    Sandbox()
  (tmp_path / 'bwrap').write_text('#!/bin/sh\necho "bwrap: No permissions to create new namespace"\nexit 1\n')
  (tmp_path / 'bwrap').chmod(0o755)
  with pytest.raises(BadInput, match='No permissions to create new namespace'):
    Sandbox()
