"""Several processes, and what can happen to them: real command lines on loopback, signals, and the state afterwards.

`faults` are marked so; their number is that of the table of faults they come from.
"""

import pathlib
import signal
import time

import numpy as np
import pytest
from pods import HEARTBEAT, Pod, training

from llmstack import metrics
from llmstack.checkpoint import Checkpoints
from llmstack.main import cli

faults = pytest.mark.faults
TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """One text, its rows, and compiled programs, for all runs of the module."""
  return tmp_path_factory.mktemp('pods')


def rows(workdir, kind='train'):
  return [r for r in metrics.read(workdir) if r['kind'] == kind]


def steps(workdir):
  return sorted(int(p.name) for p in (workdir / 'checkpoints').glob('[0-9]*') if p.name.isdigit())


def log_of(workdir):
  """Returns what has to be the same in a run that was broken off: one row per step, and each batch."""
  return [(r['step'], r['crc'], r['loss']) for r in rows(workdir)], [
    (r['step'], r['nll'], r['tokens']) for r in rows(workdir, 'eval')
  ]


def run(folder, workdir, layout, fault='', **settings):
  processes, devices = layout
  return Pod(folder, training(folder, workdir, **settings), processes=processes, devices=devices, fault=fault)


@pytest.fixture(scope='module')
def whole(folder):
  """Returns layout -> (digest, position, log) of a run that nobody touched."""
  known = {}

  def of(layout):
    if layout not in known:
      name = f'whole-{layout[0]}x{layout[1]}'
      run(folder, name, layout).ends(*[0] * layout[0])
      known[layout] = state(folder, name)
    return known[layout]

  return of


def state(folder, workdir):
  from test_kill import result

  digest, position, _ = result(folder, workdir)
  return digest, position, log_of(folder / workdir)


def resumed(folder, workdir, layout):
  """Returns the state after the same command was run again."""
  run(folder, workdir, layout).ends(*[0] * layout[0])
  return state(folder, workdir)


def close(a, b, what):
  for x, y in zip(a, b, strict=True):
    assert x['step'] == y['step'] and abs(x[what] - y[what]) < 2e-5, (x, y)


def test_two_processes_are_one(tmp_path):
  """Hosts read rows twice, evaluate a part, sample other text, or save what another layout cannot restore."""
  settings = dict(train_steps=4, eval_every=2, checkpoint_every=2, optim_schedule='constant', optim_warmup=1)
  Pod(tmp_path, training(tmp_path, 'two', **settings), processes=2, devices=4).ends(0, 0)
  a, b = tmp_path / 'one', tmp_path / 'two'
  assert steps(b) == [2, 4]
  cli(['llmstack', *map(str, training(tmp_path, 'one', **settings))])
  assert [r['crc'] for r in rows(a)] == [r['crc'] for r in rows(b)] and len(rows(b)) == 4
  close(rows(a), rows(b), 'loss')
  close(rows(a, 'eval'), rows(b, 'eval'), 'nll')
  assert [r['tokens'] for r in rows(a, 'eval')] == [r['tokens'] for r in rows(b, 'eval')]
  assert [r['text'] for r in rows(a, 'sample')] == [r['text'] for r in rows(b, 'sample')] and len(
    rows(b, 'sample')
  ) == 2


@faults
@pytest.mark.parametrize('layout, number, who', [((2, 4), TERM, 1), ((1, 8), TERM, 0), ((1, 8), INT, 0)])
def test_2_and_5_a_signal_stops_at_the_next_step(folder, whole, layout, number, who):
  """SIGTERM is ignored, or kills without a save; hosts save different steps; the resumed run is another one."""
  name = f'signal-{layout[0]}-{number}'
  pod = run(folder, name, layout)
  pod.until_step(folder / name, 9)
  began = time.monotonic()
  pod.send(number, who).ends(*[42] * layout[0])
  print(f'{layout} {number.name}: {time.monotonic() - began:.1f} s, saved {steps(folder / name)[-1]}')
  assert all('run the same command again' in pod.log(i) and number.name in pod.log(i) for i in range(layout[0]))
  assert steps(folder / name)[-1] == rows(folder / name)[-1]['step'] < 24
  assert resumed(folder, name, layout) == whole(layout)


@faults
@pytest.mark.parametrize('layout', [(2, 2), (1, 4)])
def test_3_signals_to_all_twice_and_during_a_save(folder, whole, layout):
  """A second SIGTERM kills the save that the first one asked for, or two steps are saved for one stop."""
  name = f'twice-{layout[0]}'
  pod = run(folder, name, layout)
  pod.until_saving(folder / name, 8)
  pod.send(TERM)
  time.sleep(0.3)
  pod.send(TERM).ends(*[42] * layout[0])
  assert [s for s in steps(folder / name) if s > 8][1:] == [] and not list(
    (folder / name / 'checkpoints').glob('*tmp*')
  )
  assert resumed(folder, name, layout) == whole(layout)


@faults
@pytest.mark.parametrize('layout', [(2, 2), (1, 4)])
def test_4_a_signal_in_an_evaluation(folder, whole, layout):
  """An evaluation runs to its end first, its half is logged as the whole, or it is missing afterwards."""
  name = f'evaluation-{layout[0]}'
  pod = run(folder, name, layout, 'def evaluating():\n  say("EVALUATING")\n  time.sleep(1.5)')
  pod.until_said('EVALUATING')
  pod.send(TERM).ends(*[42] * layout[0])
  assert steps(folder / name)[-1] == 8 and not rows(folder / name, 'eval'), pod.tails()
  assert resumed(folder, name, layout) == whole(layout)


@faults
@pytest.mark.parametrize('words', ['training a', 'readme (eval)'])
@pytest.mark.parametrize('layout', [(2, 2), (1, 4)])
def test_4_a_signal_before_step_1(tmp_path, layout, words):
  """A signal while text is packed or the step compiles is lost, waits for the compiler, or leaves half a checkpoint."""
  pod = run(tmp_path, 'early', layout, limit_fault(words))
  pod.until_said(words)
  began = time.monotonic()
  pod.send(TERM, layout[0] - 1).ends(*[42] * layout[0])
  print(f'{layout} after {words!r}: {time.monotonic() - began:.1f} s')
  assert not (tmp_path / 'early/checkpoints').exists() or not list((tmp_path / 'early/checkpoints').glob('[0-9]*'))
  assert all('nothing is lost' in pod.log(i) for i in range(layout[0]))


def limit_fault(words):
  """Returns a fault that makes training a tokenizer, or compiling, last: what a signal has to interrupt."""
  if words == 'readme (eval)':
    return 'import jax\njax.config.update("jax_enable_compilation_cache", False)'
  return """
from llmstack.tasks import start
real_train = start.train
def train(*a, **k):
  time.sleep(3)
  return real_train(*a, **k)
start.train = train
"""


STALL = 'def at(step):\n  if step == 10 and me == {who}:\n    say("STALLED")\n    time.sleep(1000)'


@faults
def test_4_a_signal_while_waiting_for_data(folder, whole):
  """A process that waits for storage cannot be stopped. Alone it loses nothing; in a pod the others wait for it."""
  pod = run(folder, 'stalled-1', (1, 4), STALL.format(who=0))
  pod.until_step(folder / 'stalled-1', 9)
  pod.send(TERM).ends(42)
  assert steps(folder / 'stalled-1')[-1] == 10, 'ten batches came'
  assert resumed(folder, 'stalled-1', (1, 4)) == whole((1, 4))
  pod = run(folder, 'stalled-2', (2, 2), STALL.format(who=1), runtime_grace_s=6.0)
  pod.until_step(folder / 'stalled-2', 9)
  began = time.monotonic()
  pod.send(TERM).ends(42, 42)
  print(f'stalled in a pod: {time.monotonic() - began:.1f} s')
  assert steps(folder / 'stalled-2')[-1] == 8, 'what was done since the last checkpoint is lost'
  assert resumed(folder, 'stalled-2', (2, 2)) == whole((2, 2))


@faults
@pytest.mark.parametrize('who', [1, 0])
def test_6_and_7_a_killed_process_ends_the_others(folder, whole, who):
  """The others wait for ever for a process that is gone."""
  name = f'killed-{who}'
  pod = run(folder, name, (2, 2))
  pod.until_step(folder / name, 10)
  began = time.monotonic()
  pod.send(KILL, who)
  statuses = pod.wait()
  print(f'process {who} killed: {statuses} after {time.monotonic() - began:.1f} s')
  assert statuses[who] == -KILL and statuses[1 - who] not in (0, 1, 78)
  assert time.monotonic() - began < HEARTBEAT + 5 + 5, 'and 5 s for a busy machine'
  assert resumed(folder, name, (2, 2)) == whole((2, 2))


@faults
def test_8_killed_during_a_save(folder, whole):
  """Half a checkpoint is taken for a whole one, or its leftovers stop the next save."""
  pod = run(folder, 'saving', (2, 2))
  pod.until_saving(folder / 'saving', 8)
  pod.kill()
  assert steps(folder / 'saving') in ([4], [4, 8])
  assert resumed(folder, 'saving', (2, 2)) == whole((2, 2))
  assert not list((folder / 'saving/checkpoints').glob('*tmp*'))


@faults
def test_9_a_hang_is_seen_named_and_ended(folder, whole):
  """A process that lives and does nothing holds the others for ever, and nobody says which one it is."""
  pod = run(folder, 'hung', (2, 2), STALL.format(who=1), runtime_hang_s=8.0)
  pod.until_said('STALLED', 1)
  began = time.monotonic()
  pod.ends(42, 42)
  print(f'hung: {time.monotonic() - began:.1f} s')
  for i in range(2):
    assert 'hung: process 1 (' in pod.log(i) and 'then waiting for data' in pod.log(i), pod.tails()
    assert 'the others wait for it' in pod.log(i) and 'Thread 0x' in pod.log(i)
    assert 'loop.py' in (folder / f'hung/hang-process{i}.txt').read_text()
  assert resumed(folder, 'hung', (2, 2)) == whole((2, 2))


@faults
def test_10_a_straggler_is_named(folder):
  """One slow host makes all of them slow, and nobody knows which."""
  pod = run(folder, 'slow', (2, 2), 'def at(step):\n  if me == 1:\n    time.sleep(0.5)').ends(0, 0)
  lines = [line for line in pod.log(0).splitlines() if line.startswith('warning: ')]
  assert lines and all('process 1' in line for line in lines), pod.tails()
  print(lines[0])


@faults
def test_11_an_exception_on_one_host_ends_all_of_them(folder, whole):
  """The one that failed waits for the others at the exit, and they wait for it in a collective."""
  pod = run(folder, 'raised', (2, 2), 'def at(step):\n  if step == 10 and me == 1:\n    raise OSError("disk on fire")')
  pod.until_step(folder / 'raised', 9)
  began = time.monotonic()
  pod.ends(1, 1)
  print(f'raised: {time.monotonic() - began:.1f} s')
  assert 'Traceback' in pod.log(1) and 'disk on fire' in pod.log(1)
  assert 'process 1' in pod.log(0) and 'disk on fire' in pod.log(0)
  assert time.monotonic() - began < 20
  assert resumed(folder, 'raised', (2, 2)) == whole((2, 2))


@faults
@pytest.mark.parametrize('layout', [(2, 2), (1, 4)])
def test_12_the_last_checkpoint_is_there_at_the_end(folder, layout):
  """The process ends while its last save is still being written."""
  name = f'end-{layout[0]}'
  run(folder, name, layout, train_steps=2, optim_warmup=1, checkpoint_every=2, model_width=512, model_ff=2048).ends(
    *[0] * layout[0]
  )
  assert steps(folder / name) == [2] and not list((folder / name / 'checkpoints').glob('*tmp*'))
  assert Checkpoints(str(folder / name / 'checkpoints')).meta()[1]['data']['step'] == 2
  assert sum(f.stat().st_size for f in (folder / name / 'checkpoints/2').rglob('*')) > 30e6


@faults
def test_25_processes_that_disagree_do_not_start(folder):
  """One host trains with another learning rate, another text, or other code, and the loss is nobody's."""
  pod = Pod(folder, training(folder, 'lr'), processes=2, devices=2, extra={1: ['--config.optim.lr=0.5']}).ends(78, 78)
  for i in range(2):
    assert 'config.optim.lr: 0.003 on process 0' in pod.log(i) and '0.5 on process 1' in pod.log(i)
  pod = run(folder, 'code', (2, 2), 'if me:\n  runtime.code = lambda: "another"').ends(78, 78)
  assert all("'another' on process 1" in pod.log(i) for i in range(2))
  fault = 'if me:\n  real = pipeline.Mixture.position\n  pipeline.Mixture.position = lambda *a: real(*a) | {"seed": 7}'
  pod = run(folder, 'data', (2, 2), fault).ends(78, 78)
  assert all('data.seed: 0 on process 0' in pod.log(i) for i in range(2)), pod.tails()


@faults
def test_27_other_numbers_of_hosts_see_the_same_batches(folder, whole):
  """After a resume on more or fewer hosts rows are read twice or never."""
  for layout, last in [((2, 4), 6), ((1, 8), 14), ((4, 2), 24)]:
    run(folder, 'hosts', layout, train_steps=last, optim_schedule='constant').ends(*[0] * layout[0])
  run(folder, 'hosts-1', (1, 8), optim_schedule='constant').ends(0)
  a, b = rows(folder / 'hosts'), rows(folder / 'hosts-1')
  assert [(r['step'], r['crc']) for r in a] == [(r['step'], r['crc']) for r in b] and len(a) == 24
  close(a, b, 'loss')


@faults
def test_36_clocks_that_are_wrong(folder, whole):
  """The newest checkpoint is the one with the latest time, or hosts save different steps, each by its clock."""
  skew = 'real_time = time.time\ntime.time = lambda: real_time() + {}'
  pod = run(folder, 'clocks', (2, 2), skew.format('86400 * me'))
  pod.until_step(folder / 'clocks', 10)
  pod.send(TERM, 1).ends(42, 42)
  at = steps(folder / 'clocks')[-1]
  pod = run(folder, 'clocks', (2, 2), skew.format('-86400')).ends(0, 0)
  assert f'continuing from step {at}' in pod.log() and state(folder, 'clocks') == whole((2, 2))


@faults
def test_decoding_on_two_processes(folder, whole, capfd):
  """`sample` prints the text once per process, other text, or stops at an array that is not all here."""
  whole((1, 8))
  argv = ['--config', pathlib.Path('configs/sample.py').absolute(), '--workdir', folder / 'whole-1x8']
  argv += ['--config.prompt=ant bee', '--config.new_tokens=12', '--config.samples=3', '--config.temperature=0.7']
  one = Pod(folder, argv, processes=1, devices=8).ends(0)
  two = Pod(folder, argv, processes=2, devices=4).ends(0, 0)
  said = lambda log: [line for line in log.splitlines() if line.startswith('ant bee')]  # noqa: E731
  assert said(one.log()) == said(two.log(0)) and len(said(one.log())) == 3 and not said(two.log(1))


@faults
def test_nobody_comes(folder):
  """A pod of which a host is missing waits for ever, or ends with a stack of C++."""
  argv = [*training(folder, 'alone'), '--coordinator', '127.0.0.1:1', '--processes', 2, '--process', 1, '--patience', 5]
  pod = Pod(folder, argv).ends(42)
  assert 'process 1 of 2 at 127.0.0.1:1 did not find the others within 5 s' in pod.log(), pod.tails()
  assert 'JAX_PLATFORMS=cpu' in pod.log() and 'PATH=' not in pod.log()


def test_close_compares():
  """The comparison of two logs holds whatever they say."""
  with pytest.raises(AssertionError):
    close([{'step': 1, 'loss': 1.0}], [{'step': 1, 'loss': 1.001}], 'loss')
  with pytest.raises(ValueError):
    close([], [{'step': 1, 'loss': np.nan}], 'loss')
