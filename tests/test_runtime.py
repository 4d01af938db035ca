"""The supervisor, and what a watch says, without a pod; tests/test_pods.py has the real thing."""

import json
import signal
import subprocess
import sys

import pytest

from llmstack import runtime
from llmstack.errors import BadInput, Diverged, Stopped
from llmstack.main import cli
from llmstack.tasks import supervise

# Appends a line to a file, then ends as the next of the given words says: a status, a signal, or `wait` for one.
CHILD = """
import os, signal, sys, time
path, *ends = sys.argv[1:]
with open(path, 'a') as f:
  f.write('run\\n')
end = ends[min(len(open(path).readlines()), len(ends)) - 1]
if end == 'wait':
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
  print('waiting', flush=True)
  time.sleep(60)
if end.startswith('SIG'):
  os.kill(os.getpid(), getattr(signal, end))
sys.exit(int(end))
"""


def supervised(folder, ends, *options):
  """Returns (process, file with a line per run)."""
  runs = folder / 'runs'
  line = [sys.executable, '-m', 'llmstack.main', 'supervise', *options, '--backoff', '0.01', '--']
  line += [sys.executable, '-c', CHILD, str(runs), *ends]
  return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True), runs


@pytest.mark.parametrize(
  'ends, status, runs',
  [(['42', 'SIGKILL', '137', '0'], 0, 4), (['42', '78', '0'], 78, 2), (['1', '0'], 1, 1), (['SIGINT', '0'], 130, 1)],
)
def test_only_what_a_retry_can_mend_is_restarted(tmp_path, ends, status, runs):
  """A bad config is tried ten times, or a preempted run is not tried again."""
  process, file = supervised(tmp_path, ends)
  _, said = process.communicate(timeout=60)
  assert process.returncode == status and len(file.read_text().split()) == runs, said
  assert said.count('restart') == runs - 1


def test_restarts_are_limited_and_a_signal_goes_to_the_command(tmp_path):
  """A run that always dies is restarted for ever; SIGTERM kills the supervisor and leaves the run behind."""
  process, file = supervised(tmp_path, ['42'], '--restarts', '2')
  _, said = process.communicate(timeout=60)
  assert process.returncode == 42 and len(file.read_text().split()) == 3 and 'gave up' in said
  (tmp_path / 'b').mkdir()
  process, file = supervised(tmp_path / 'b', ['wait', '0'])
  assert process.stdout.readline() == 'waiting\n'
  process.send_signal(signal.SIGTERM)
  process.communicate(timeout=60)
  assert process.returncode == 42 and len(file.read_text().split()) == 1


def test_supervise_needs_neither_jax_nor_a_wrong_flag(capsys):
  """The supervisor takes the accelerator's memory, or runs its own flags as the command."""
  probe = 'import sys; from llmstack import main; from llmstack.tasks import supervise; sys.exit("jax" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', probe]).returncode == 0
  for argv in (['true'], ['--restarts', 'x', '--', 'true'], ['--retries', '3', '--', 'true'], ['--']):
    with pytest.raises(SystemExit) as e:
      cli(['llmstack', 'supervise', *argv])
    assert e.value.code == 78 and 'supervise' in capsys.readouterr().err
  assert supervise.worth_while(255) and not supervise.worth_while(127)


def test_every_end_has_its_status():
  """A divergence is restarted, a stop is taken for a bug, or a bug's traceback is lost."""
  for e, number, words in [
    (BadInput('x'), 78, 'error: x'), (FileNotFoundError(2, 'no such file', 'p'), 78, 'error: p: no such file'),
    (Stopped('x'), 42, 'stopped: x'), (Diverged('x'), 1, 'stopped: x'), (SystemExit(3), 3, ''), (SystemExit(), 0, ''),
    (KeyboardInterrupt(), 130, 'stopped'),
  ]:  # fmt: skip
    assert runtime.status(e)[0] == number and runtime.status(e)[1].startswith(words)
  assert runtime.status(ZeroDivisionError('x')) == (1, None)


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--process', '1'], ['belong together']),
    (['--coordinator', 'host', '--processes', '2', '--process', '0'], ['give HOST:PORT']),
    (['--coordinator', 'host:1', '--processes', '2', '--process', '2'], ['an index from 0 to 1']),
  ],
)
def test_half_a_pod_is_refused(flags, words, capsys):
  """A forgotten flag trains every host for itself."""
  with pytest.raises(SystemExit) as e:
    cli(['llmstack', '--config', 'configs/pretrain.py:tiny', '--workdir', 'x', *flags])
  said = capsys.readouterr().err
  assert e.value.code == 78 and all(word in said for word in words), said


def test_jax_looks_for_others_only_where_they_can_be(monkeypatch):
  """A laptop waits for a pod, or a task of SLURM trains alone."""
  assert not runtime.detected()
  for name, value in dict(JOB_ID=7, STEP_NODELIST='a,b', PROCID=0, LOCALID=0, NTASKS=2).items():
    monkeypatch.setenv(f'SLURM_{name}', str(value))
  assert runtime.detected()
  monkeypatch.setenv('SLURM_NTASKS', '1')
  assert not runtime.detected()


def beats(watch, *beats):
  for i, beat in enumerate(beats):
    watch.pod.tell(f'beats/{i}', json.dumps({'name': f'process {i} (h{i})'} | beat))


def test_the_one_who_is_late_is_named():
  """The watch names the process that waits, not the one it waits for."""
  watch = runtime.Watch()
  beats(watch, dict(beats=40, done=9, phase='the device', age=3), dict(beats=31, done=7, phase='data', age=13))
  assert watch._late() == 'hung: process 1 (h1) last finished step 7, then data, 13 s ago; the others wait for it'
  beats(watch, *[dict(beats=40, done=9, phase='the device', age=3)] * 2)
  assert 'all processes are at the same place' in watch._late()


def test_a_straggler_is_named_once_and_a_fast_one_never(capsys):
  """Milliseconds of noise are called a straggler, or a slow host is warned of at every look."""
  watch = runtime.Watch()

  def look(host_seconds):
    for n in range(4):
      beats(watch, *[dict(steps=10 * n, host=h * 10 * n, now=10.0 * n) for h in host_seconds])
      watch._stragglers()
    return capsys.readouterr().err.count('warning: process 1 (h1) waits')

  assert look([0.001, 0.004]) == 0 and look([0.3, 0.8]) == 0
  watch._before.clear()
  assert look([0.05, 0.9]) == 1 and look([0.05, 0.9]) == 0


def test_stop_is_agreed_for_the_poll_after_the_furthest():
  """A process is told to stop at a step it has passed, and never stops."""
  watch = runtime.Watch()
  assert [watch.poll() for _ in range(3)] == [False] * 3
  watch.pod.tell('polls/1', '5')
  watch._agree('SIGTERM')
  assert [watch.poll() for _ in range(4)] == [False, False, True, True] and watch.stopping
