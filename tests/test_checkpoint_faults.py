"""Damage, full disks, two writers, kills: the message, what is lost, and that no wrong byte is ever restored."""

import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llmstack import lease
from llmstack.checkpoint import Checkpoints, digest, kept, listing, verify
from llmstack.errors import BadInput, SaveFailed
from llmstack.main import cli


class Tiny(NamedTuple):
  step: Any
  params: Any


def tiny(k, n=20_000):
  """Returns a state of n random floats."""
  r = np.random.default_rng(k)
  return Tiny(jnp.int32(k), {'w': jnp.asarray(r.standard_normal(n, np.float32)), 'b': jnp.full((3, 4), float(k))})


def meta(k):
  return {'data': {'step': k, 'seed': 0}, 'config': {'optim': {'lr': 0.1}}, 'tokenizer': 'AAAA'}


def target(n=20_000):
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one), tiny(0, n))


def save(saved, *steps, **metrics):
  for k in steps:
    saved.save(k, tiny(k), meta(k), {name: values[k] for name, values in metrics.items()})
  saved.wait()


@pytest.fixture(scope='module')
def original(tmp_path_factory):
  """Steps 10 and 20, saved and closed."""
  path = str(tmp_path_factory.mktemp('original') / 'checkpoints')
  saved = Checkpoints(path, create=True)
  save(saved, 10, 20)
  saved.close()
  return path


@pytest.fixture
def folder(original, tmp_path):
  return shutil.copytree(original, str(tmp_path / 'run' / 'checkpoints'))


@pytest.fixture
def opened():
  """Returns Checkpoints for writing that are closed at the end, whatever became of them."""
  all_of_them = []

  def make(path, **options):
    all_of_them.append(Checkpoints(path, create=True, **options))
    return all_of_them[-1]

  yield make
  for saved in all_of_them:
    saved.wait = lambda: None
    saved.close()


def step_files(step):
  return sorted(os.path.join(at, name) for at, _, names in os.walk(step) for name in names)


def largest(step):
  return max(step_files(os.path.join(step, 'state')), key=os.path.getsize)


def change(path, edit):
  with open(path, 'rb') as f:
    data = bytearray(f.read())
  with open(path, 'wb') as f:
    f.write(edit(data))


def flip(path, bit=None):
  """Flips one bit, in the middle by default."""
  bit = os.path.getsize(path) * 4 if bit is None else bit

  def edit(data):
    data[bit // 8] ^= 1 << bit % 8
    return data

  change(path, edit)


def inside(name):
  return lambda step: os.path.join(step, name)


def merged(step):
  return os.path.join(step, 'state', 'd', os.listdir(os.path.join(step, 'state', 'd'))[0])


ocdbt, sharding_, metadata = inside('state/manifest.ocdbt'), inside('state/_sharding'), inside('state/_METADATA')
position, manifest = inside('meta/metadata'), inside('MANIFEST.json')
DAMAGE = {
  'bit flip in an array': (largest, flip),
  'bit flip in the merged index': (merged, flip),
  'array truncated by one byte': (largest, lambda p: change(p, lambda d: d[:-1])),
  'array truncated by half': (largest, lambda p: change(p, lambda d: d[: len(d) // 2])),
  'array emptied': (largest, lambda p: change(p, lambda d: b'')),
  'array deleted': (largest, os.unlink),
  'page zeroed': (largest, lambda p: change(p, lambda d: d[:4096] + bytes(4096) + d[8192:])),
  'ocdbt manifest flipped': (ocdbt, flip),
  'ocdbt manifest truncated': (ocdbt, lambda p: change(p, lambda d: d[:9])),
  'ocdbt manifest deleted': (ocdbt, os.unlink),
  'd/ deleted': (inside('state/d'), shutil.rmtree),
  '_METADATA garbage': (metadata, lambda p: change(p, lambda d: b'garbage')),
  '_METADATA deleted': (metadata, os.unlink),
  '_CHECKPOINT_METADATA garbage': (inside('_CHECKPOINT_METADATA'), lambda p: change(p, lambda d: b'garbage')),
  '_CHECKPOINT_METADATA deleted': (inside('_CHECKPOINT_METADATA'), os.unlink),
  '_sharding deleted': (sharding_, os.unlink),
  'commit_success.txt deleted': (inside('commit_success.txt'), os.unlink),
  'state/ missing': (inside('state'), shutil.rmtree),
  'data position truncated': (position, lambda p: change(p, lambda d: d[: len(d) // 2])),
  'data position changed': (position, lambda p: change(p, lambda d: d.replace(b'"step": 20', b'"step": 21'))),
  'manifest flipped': (manifest, flip),
  'manifest truncated': (manifest, lambda p: change(p, lambda d: d[:-1])),
  'manifest emptied': (manifest, lambda p: change(p, lambda d: b'')),
  'manifest deleted': (manifest, os.unlink),
}


@pytest.mark.parametrize('damage', DAMAGE)
def test_a_damaged_step_is_set_aside_and_the_one_before_it_used(damage, folder, opened, capfd):
  """Orbax restores wrong weights (flips), or dies with a page of its internals, and never falls back."""
  where, harm = DAMAGE[damage]
  path = where(os.path.join(folder, '20'))
  before = digest(tiny(20)), [os.path.relpath(path, os.path.join(folder, '20'))]
  harm(path)
  saved = opened(folder)
  assert saved.latest() == 10
  said = capfd.readouterr().err
  assert f'checkpoint {folder}/20 is damaged: ' in said and 'going on from checkpoint 10' in said, said
  named = 'no manifest' if damage == 'manifest deleted' else before[1][0]
  assert named in said and said.count('\n') == 1, said
  (aside,) = [name for name in os.listdir(folder) if name.startswith('corrupt-20-')]
  assert aside in said and sorted(os.listdir(folder)) == ['10', 'WRITER', aside]
  if damage in ('bit flip in an array', 'data position changed', 'state/ missing', 'manifest deleted'):
    state, m = saved.restore(target())
    assert digest(state) == digest(tiny(10)) and m['data'] == meta(10)['data']


def test_every_single_bit_of_a_checkpoint_is_guarded(original, tmp_path):
  """A flipped bit is restored: orbax alone lets 300 of 300 through."""
  step = shutil.copytree(os.path.join(original, '20'), str(tmp_path / '20'))
  r, found, control = random.Random(0), 0, 0
  files = step_files(step)
  for n in range(300):
    path = files[n % len(files)]
    bit = r.randrange(os.path.getsize(path) * 8)
    flip(path, bit)
    found += os.path.relpath(path, step) in verify(step)
    flip(path, bit)
    control += verify(step) == ''
  assert (found, control) == (300, 300)


def test_orbax_would_have_taken_it(folder):
  """The other tests prove nothing if orbax notices by itself: this is what they guard against."""
  want = digest(tiny(20))
  path, wrong = largest(os.path.join(folder, '20')), 0
  for at in (2, 3, 4, 5):
    flip(path, os.path.getsize(path) * at)
    saved = Checkpoints(folder)
    saved._sure.add(20)  # not verified
    wrong += digest(saved.restore(target(), 20)[0]) != want
    flip(path, os.path.getsize(path) * at)
  assert wrong == 4


def test_where_nothing_holds_the_run_ends_and_nothing_is_moved(folder, capfd):
  """All steps are set aside, and the next start begins again at step 0 without a word."""
  flip(largest(os.path.join(folder, '20')))
  os.unlink(os.path.join(folder, '10', 'meta', 'metadata'))
  for create in (True, True, False):
    with pytest.raises(BadInput) as e:
      Checkpoints(folder, create=create).latest()
    first, *lines = str(e.value).split('\n')
    assert first == f'no checkpoint in {folder} can be trusted:'
    assert lines[0].startswith('  20: state/') and lines[1].startswith('  10: meta/metadata cannot be read')
    assert sorted(os.listdir(folder)) == ['10', '20']


def test_reading_passes_a_bad_step_by_and_changes_nothing(folder, capfd):
  """`sample` renames a checkpoint under a run that is writing, or reads the bad one."""
  bad = largest(os.path.join(folder, '20'))
  flip(bad)
  before = step_files(folder)
  saved = Checkpoints(folder)
  assert saved.latest() == 10 and digest(saved.restore(target())[0]) == digest(tiny(10))
  said = capfd.readouterr().err
  assert os.path.basename(bad) in said and 'checkpoint 10 is used' in said
  with pytest.raises(BadInput, match=f'{os.path.basename(bad)} holds other bytes than were written: put back a copy'):
    saved.restore(target(), 20)
  assert step_files(folder) == before


def test_strays_are_never_latest(folder, opened, capfd):
  """An empty `30/` or a half copy becomes the newest step, and the restore dies with a KeyError."""
  os.mkdir(os.path.join(folder, '30'))
  shutil.copytree(os.path.join(folder, '20', 'state'), os.path.join(folder, '40', 'state'))
  shutil.copytree(os.path.join(folder, '20'), os.path.join(folder, '50'))
  shutil.copytree(os.path.join(folder, '20'), os.path.join(folder, '020'))
  for name in ('60', 'foo'):
    open(os.path.join(folder, name), 'w').close()
  os.makedirs(os.path.join(folder, '70.orbax-checkpoint-tmp', 'state'))
  os.makedirs(os.path.join(folder, 'deleted-5', 'state'))
  assert Checkpoints(folder).latest() == 20
  capfd.readouterr()
  assert opened(folder).latest() == 20
  said = capfd.readouterr().err
  for words in (
    'checkpoint {}/30 is damaged: no manifest; moved to corrupt-30-',
    'checkpoint {}/40 is damaged: no manifest; moved to corrupt-40-',
    'checkpoint {}/50 is damaged: it is a copy of step 20; moved to corrupt-50-',
    'removed {}/70.orbax-checkpoint-tmp, which a run that was killed had not finished',
  ):
    assert words.format(folder) in said, said
  left = [name for name in os.listdir(folder) if 'corrupt' not in name]
  assert sorted(left) == ['020', '10', '20', '60', 'WRITER', 'foo']


def test_a_save_below_the_bad_step_is_written(folder, opened):
  """Back at 10 after a bad 20, orbax's save(15) returns False and writes nothing."""
  flip(largest(os.path.join(folder, '20')))
  saved = opened(folder)
  save(saved, 15, 20)
  assert saved.latest() == 20 and digest(saved.restore(target(), 15)[0]) == digest(tiny(15))
  assert [s.state for s in listing(folder)] == ['verified', 'verified', 'verified', 'set aside']


def test_checkpoints_older_than_manifests_are_used_and_said_to_be_unverified(folder, opened, capfd):
  """An upgrade makes the runs of the version before unreadable, or trusts them silently."""
  for k in (10, 20):
    os.unlink(os.path.join(folder, str(k), 'MANIFEST.json'))
  shutil.rmtree(os.path.join(folder, '20', 'meta'))
  saved = opened(folder)
  assert saved.latest() == 10 and digest(saved.restore(target())[0]) == digest(tiny(10))
  said = capfd.readouterr().err
  assert f'checkpoint {folder}/10 has no manifest, older versions wrote none: it is used unverified' in said


def test_newest_is_the_highest_number_whatever_the_clock_says(folder, opened, monkeypatch, capfd):
  """A clock that was put back makes an old step the newest, or a run refuse its own lease."""
  real = time.time()
  monkeypatch.setattr(time, 'time', lambda: real - 365 * 86400)
  saved = opened(folder)
  save(saved, 30)
  os.utime(os.path.join(folder, '30'), (0, 0))
  assert saved.latest() == Checkpoints(folder).latest() == 30
  times = [s.time for s in listing(folder)]
  assert times[2] < times[0] < times[1]


def test_the_rules_of_keeping():
  """The best step is deleted, NaN is the best, or of equal ones the last is kept and moves on with every save."""
  scores = {10: 3.0, 20: 1.0, 30: float('nan'), 40: 2.0, 50: 1.0}
  metrics = {k: {'eval/nll': v} for k, v in scores.items()} | {60: {}}
  rule = dict(keep=2, keep_every=None, best=None)
  assert kept(metrics, **rule) == {50: 'newest', 60: 'newest'}
  assert kept(metrics, **rule | {'keep_every': 20}) == {
    20: 'every 20', 40: 'every 20', 50: 'newest', 60: 'newest, every 20',
  }  # fmt: skip
  assert kept(metrics, **rule | {'best': ('eval/nll', 'min')})[20] == 'best eval/nll'
  assert kept(metrics, **rule | {'best': ('eval/nll', 'max')})[10] == 'best eval/nll'
  assert kept(metrics, **rule | {'best': ('acc', 'max')}) == {50: 'newest', 60: 'newest'}
  assert list(kept(metrics, **rule | {'keep': None})) == [10, 20, 30, 40, 50, 60]


def test_steps_are_kept_over_a_restart_by_the_same_rules(tmp_path, opened, capfd):
  """After a restart the best step is forgotten, since only the process that saved it knew its metric."""
  path = str(tmp_path / 'run' / 'checkpoints')
  options = dict(keep=2, keep_every=40, best=('eval/nll', 'min'))
  scores = {10: 2.0, 20: 1.0, 30: 3.0, 40: 4.0, 50: 5.0, 60: 6.0, 70: 7.0}
  saved = opened(path, **options)
  save(saved, 10, 20, 30, 40, **{'eval/nll': scores})
  saved.close()
  saved = opened(path, **options)
  save(saved, 50, 60, 70, **{'eval/nll': scores})
  saved.close()
  assert [(s.step, s.why, s.metrics['eval/nll']) for s in listing(path)] == [
    (20, 'best eval/nll', 1.0), (40, 'every 40', 4.0), (60, 'newest', 6.0), (70, 'newest', 7.0),
  ]  # fmt: skip
  assert cli_status('checkpoints', str(tmp_path / 'run')) == 0
  out = capfd.readouterr().out
  assert 'best eval/nll' in out and 'eval/nll 1.0000' in out and 'no run is writing here' in out
  assert out.endswith('4 checkpoints, as written\n')


def cli_status(*argv):
  try:
    cli(['llmstack', *argv])
  except SystemExit as e:
    return e.code


def test_the_verb_names_what_does_not_hold_while_a_run_is_writing(folder, opened, capfd):
  """`llmstack checkpoints` says all is well, cannot look while a run holds the folder, or ends with 0."""
  saved = opened(folder)
  bad = largest(os.path.join(folder, '10'))
  flip(bad)
  assert cli_status('checkpoints', os.path.dirname(folder)) == 78
  out = capfd.readouterr().out
  assert f'corrupt: {os.path.relpath(bad, os.path.join(folder, "10"))} holds other bytes' in out
  assert f'being written by run {saved._lease.run} on host' in out and f'pid {os.getpid()}' in out
  assert '2 checkpoints, 1 of them not as written' in out
  assert cli_status('checkpoints', folder) == 78 and 'there are no checkpoints in' in capfd.readouterr().err
  assert cli_status('checkpoints') == 78 and 'takes one workdir' in capfd.readouterr().err


def test_polling_never_blocks_and_latest_is_what_is_committed(folder, opened):
  """The step in flight counts as saved, as orbax's latest_step says; or each step waits for the disk."""
  saved = opened(folder)
  saved.save(30, tiny(30, 3_000_000), meta(30))
  polls = 0
  while saved._flight is not None:
    assert saved.latest() == 20
    saved.poll()
    polls += 1
  assert polls > 20 and saved.latest() == 30
  assert verify(os.path.join(folder, '30')) == ''


def test_training_on_while_a_save_is_in_flight_does_not_change_it(folder, opened):
  """The next steps donate the arrays that are being written, and the checkpoint holds half of each step."""
  n = 5_000_000
  state, update = tiny(30, n), jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
  want = digest(state)
  saved = opened(folder)
  saved.save(30, state, meta(30))
  updates = 0
  while saved._flight is not None:
    state = update(state)
    saved.poll()
    updates += 1
  assert updates > 3 and digest(saved.restore(target(n), 30)[0]) == want


# The library's own threads complain of a closed event loop when several arrays fail at once; nobody can catch it.
FAILING = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def limited(n):
  """Files beyond n bytes cannot be written by this process: what a full disk does, without one."""
  resource.setrlimit(resource.RLIMIT_FSIZE, (n, resource.RLIM_INFINITY))


@pytest.fixture
def unlimited():
  yield
  limited(resource.RLIM_INFINITY)


def fail(saved, k):
  """Saves with no room for the arrays, and polls as the loop does until it has landed."""
  limited(200_000)
  saved.save(k, tiny(k, 500_000), meta(k))
  try:
    while saved._flight is not None:
      saved.poll()
  finally:
    limited(resource.RLIM_INFINITY)


@FAILING
def test_a_failed_save_is_told_at_once_and_tried_again(folder, opened, unlimited, capfd):
  """Orbax says nothing, counts the step as saved, leaves its parts on the full disk, and fails the next save too."""
  saved = opened(folder)
  for n, k in enumerate((30, 40), 1):
    fail(saved, k)
    said = capfd.readouterr().err
    assert f'checkpoint {k} was not saved (' in said and 'File too large' in said, said
    assert f'the newest is still 20; failure {n} of 3, the next save tries again' in said
    assert said.count('\n') == 1, said
    assert saved.latest() == 20 and sorted(os.listdir(folder)) == ['10', '20', 'WRITER']
  save(saved, 50)
  assert saved.latest() == 50 and not capfd.readouterr().err
  for k in (60, 70):
    fail(saved, k)
  with pytest.raises(
    SaveFailed, match='checkpoint 80 was not saved .*; the newest is still 50; 3 saves in a row failed'
  ):
    fail(saved, 80)
  assert [s.state for s in listing(folder)] == ['verified'] * 3


@FAILING
def test_a_last_save_that_fails_is_not_a_good_end(folder, opened, unlimited):
  """The run ends with status 0 and its last checkpoint is not there."""
  saved = opened(folder)
  limited(200_000)
  saved.save(30, tiny(30, 500_000), meta(30))
  with pytest.raises(SaveFailed, match=r'checkpoint 30 was not saved \(.*File too large.*the newest is still 20: free'):
    saved.close()
  assert lease.read(folder) is None


def test_no_save_is_begun_without_the_space_for_it(folder, opened, capfd):
  """A save fills the disk for everybody else before it fails."""
  saved = opened(folder)
  vast = Tiny(np.int32(0), {'w': np.broadcast_to(np.float32(0), (10**15,))})
  free = shutil.disk_usage(folder).free
  saved.save(30, vast, meta(30))
  said = capfd.readouterr().err
  assert f'a checkpoint needs 4000000.00 GB and {folder} has {free / 1e9:.0f}'[:-2] in said, said
  assert 'checkpoint 30 was not saved' in said and 'failure 1 of 3' in said
  with pytest.raises(BadInput, match='a checkpoint needs .* GB and .* GB free: free some space, or give a --workdir'):
    saved.check_space(vast)
  assert sorted(os.listdir(folder)) == ['10', '20', 'WRITER']


@pytest.mark.parametrize('workdir', ['file/run', '/proc/run', 'gs://bucket/run'])
def test_a_folder_that_cannot_be_written_ends_the_run_at_its_start(workdir, tmp_path, monkeypatch, capfd):
  """Orbax takes any path, returns True from save, and fails in the background, hours later."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'file').write_text('not a folder')
  assert cli_status('--config', f'{os.path.dirname(__file__)}/../configs/pretrain.py:tiny', '--workdir', workdir) == 78
  said = capfd.readouterr().err
  assert workdir in said and ('cannot be written to' in said or 'is a URL' in said) and 'Traceback' not in said, said


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch, opened):
  """A relative path saves into nothing."""
  monkeypatch.chdir(tmp_path)
  save(opened('run/checkpoints'), 10)
  assert [s.state for s in listing(str(tmp_path / 'run' / 'checkpoints'))] == ['verified']


HOLD = (
  'import sys, time; from llmstack.lease import Lease; x = Lease(sys.argv[1]); print(x.run, flush=True); time.sleep(99)'
)


@pytest.fixture
def holder(folder):
  """Another process that holds the lease of `folder`, and the name of its run."""
  process = subprocess.Popen([sys.executable, '-c', HOLD, folder], stdout=subprocess.PIPE, text=True)
  yield process, process.stdout.readline().strip()
  process.kill()
  process.wait()
  process.stdout.close()


def test_a_second_writer_is_refused_by_name_and_a_dead_one_is_followed(folder, holder, opened, capfd):
  """Two runs interleave their steps in one folder; or a crash locks it for ever."""
  process, run = holder
  with pytest.raises(BadInput) as e:
    Checkpoints(folder, create=True)
  host = lease.read(folder)['host']
  assert f'{folder} is being written by run {run} on host {host}, pid {process.pid}, since 2' in str(e.value)
  assert 'stop that run, or give this one another --workdir' in str(e.value)
  assert Checkpoints(folder).latest() == 20, 'reading needs no lease'
  process.kill()  # and not waited for: a zombie holds nothing
  deadline = time.monotonic() + 10
  while lease.begun(process.pid) is not None and time.monotonic() < deadline:
    time.sleep(0.01)
  saved = opened(folder)
  said = capfd.readouterr().err
  assert f'left by run {run}' in said and f'as process {process.pid} of this host is gone' in said, said
  save(saved, 30)
  saved.close()
  assert lease.read(folder) is None


def test_of_several_that_follow_a_dead_run_one_wins(folder, holder):
  """Two restarts find the same stale lease, both replace it, and both write."""
  holder[0].kill()
  holder[0].wait()
  at = f'import time; time.sleep({time.time() + 0.3} - time.time()); '
  argv = [sys.executable, '-c', at + HOLD, folder]
  heirs = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)]
  try:
    deadline = time.monotonic() + 20
    while sum(p.poll() is None for p in heirs) > 1 and time.monotonic() < deadline:
      time.sleep(0.02)
    (winner,) = (p for p in heirs if p.poll() is None)
    assert lease.read(folder)['pid'] == winner.pid
  finally:
    for p in heirs:
      p.kill()
  said = [p.communicate()[1] for p in heirs if p is not winner]
  assert all(f'pid {winner.pid}, since' in text for text in said), said
  winner.communicate()


def foreign(folder, seconds):
  """Makes the lease one of another host, renewed so many seconds ago."""
  held = {'run': 'theirs', 'host': 'elsewhere', 'pid': os.getpid(), 'begun': 1, 'here': 'elsewhere boot 7', 'time': 0.0}
  path = os.path.join(folder, 'WRITER')
  with open(path, 'w') as f:
    json.dump(held, f)
  os.utime(path, (time.time() - seconds,) * 2)
  return path


def test_the_lease_of_another_host_expires(folder, opened, capfd):
  """A pid of another host is looked for on this one; or a host that is gone locks the folder for ever."""
  foreign(folder, lease.EXPIRE - 1)
  saved = opened(folder)
  said = capfd.readouterr().err
  assert 'last written by run theirs on host elsewhere' in said and 'waiting for 60 s without a sign of life' in said
  assert 'taken over, as it was not renewed for 6' in said
  assert not [name for name in os.listdir(folder) if name.startswith('WRITER.')]
  saved.poll()


def test_the_lease_of_a_living_run_on_another_host_is_respected(folder):
  """Clocks of two hosts differ by more than the time of expiry, and both write."""
  path = foreign(folder, lease.EXPIRE - 5)
  touch = subprocess.Popen(['sh', '-c', f'sleep 1; touch {path}'])
  with pytest.raises(BadInput, match='being written by run theirs on host elsewhere'):
    Checkpoints(folder, create=True)
  touch.wait()


def test_a_run_whose_lease_was_taken_stops(folder, opened):
  """A run that was asleep for a minute wakes up and writes into the folder of its successor."""
  saved = opened(folder)
  foreign(folder, 0)
  saved._lease._looked -= lease.RENEW  # that long ago
  for write in (saved.poll, lambda: saved.save(30, tiny(30), meta(30))):
    with pytest.raises(BadInput, match=f'taken over by run theirs .*: this is run {saved._lease.run}'):
      write()
  saved.close()
  assert lease.read(folder)['run'] == 'theirs' and '30' not in os.listdir(folder)


SAVE = """
import sys, time
from llmstack.checkpoint import Checkpoints
from test_checkpoint_faults import meta, tiny
saved = Checkpoints(sys.argv[1], create=True)
saved.save(20, tiny(20, int(sys.argv[2])), meta(20))
print('in flight', flush=True)
if sys.argv[3] == 'wait':
  time.sleep(99)
saved.close()
"""


def saving(folder, n, end):
  """Returns a process whose save of n floats as step 20 is in flight."""
  here = os.path.dirname(os.path.abspath(__file__))
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=os.pathsep.join([os.path.dirname(here), here]))
  argv = [sys.executable, '-c', SAVE, folder, str(n), end]
  process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == 'in flight\n'
  return process


@pytest.mark.faults
def test_killed_at_any_moment_of_a_save(original, tmp_path, opened, capfd):
  """A step is there without its manifest or in part; or what the killed run left stays for ever."""
  r, outcomes = random.Random(time.time_ns()), []
  for n, after in enumerate([0, 0.02, *(r.uniform(0, 1) for _ in range(4))]):
    folder = shutil.copytree(original, str(tmp_path / str(n)))
    shutil.rmtree(os.path.join(folder, '20'))
    process = saving(folder, 10_000_000, 'wait')
    time.sleep(after)
    process.kill()
    process.wait()
    process.stdout.close()
    left = sorted(os.listdir(folder))
    capfd.readouterr()
    t = time.perf_counter()
    saved = opened(folder)
    seconds = time.perf_counter() - t
    said = capfd.readouterr().err
    assert saved.latest() == (20 if '20' in left else 10) and f'as process {process.pid} of this host is gone' in said
    assert (
      ('20.orbax-checkpoint-tmp' in left) == (f'removed {folder}/20.orbax-checkpoint-tmp' in said) == ('20' not in left)
    )
    assert {s.state for s in listing(folder)} == {'verified'}
    save(saved, 30)
    outcomes.append((round(after, 2), saved.latest(), left, round(seconds, 2)))
  print(*outcomes, said, sep='\n')
  assert any('20' not in left for _, _, left, _ in outcomes), 'none was killed in time'


@pytest.mark.faults
def test_a_normal_end_waits_for_a_big_state(original, tmp_path):
  """sys.exit(0) while the last save is in flight loses it, with exit status 0."""
  folder = shutil.copytree(original, str(tmp_path / 'checkpoints'))
  shutil.rmtree(os.path.join(folder, '20'))
  process = saving(folder, 50_000_000, 'end')
  assert '20' not in os.listdir(folder), 'too small to tell'
  assert process.wait(timeout=60) == 0
  process.stdout.close()
  assert [(s.step, s.state) for s in listing(folder)] == [(10, 'verified'), (20, 'verified')]
  assert lease.read(folder) is None


@pytest.fixture
def disk(tmp_path):
  """Returns a function that mounts a file system of some megabytes, read-only or not."""
  path = tmp_path / 'disk'
  path.mkdir()

  def mount(options):
    if subprocess.run(['mount', '-t', 'tmpfs', '-o', options, 'none', path], stderr=subprocess.DEVNULL).returncode:
      pytest.skip('may not mount a file system here')
    return str(path)

  yield mount
  subprocess.run(['umount', '-l', path], stderr=subprocess.DEVNULL)


@FAILING
@pytest.mark.faults
def test_a_disk_that_fills_up_while_a_save_is_in_flight(disk, opened, capfd):
  """As the test with limited files, with the real thing: 60 MB, of which another program takes most."""
  folder = os.path.join(disk('size=60m'), 'run', 'checkpoints')
  saved = opened(folder)
  save(saved, 10)
  saved.save(20, tiny(20, 8_000_000), meta(20))
  with open(os.path.join(folder, '..', 'other'), 'wb') as f:
    os.posix_fallocate(f.fileno(), 0, shutil.disk_usage(folder).free - 4_000_000)
  while saved._flight is not None:
    saved.poll()
  said = capfd.readouterr().err
  print(said)
  assert 'checkpoint 20 was not saved (' in said and 'No space left on device' in said and 'still 10' in said
  assert sorted(os.listdir(folder)) == ['10', 'WRITER']
  saved.save(30, tiny(30, 8_000_000), meta(30))
  said = capfd.readouterr().err
  print(said)
  assert 'a checkpoint needs 33.0 MB' in said and 'MB free); the newest is still 10; failure 2 of 3' in said
  os.unlink(os.path.join(folder, '..', 'other'))
  save(saved, 40)
  assert [(s.step, s.state) for s in listing(folder)] == [(10, 'verified'), (40, 'verified')]


@pytest.mark.faults
def test_a_read_only_disk_ends_the_run_at_its_start(disk, capfd):
  """Everything is read, packed and compiled before the first save fails."""
  path = disk('size=1m')
  os.makedirs(os.path.join(path, 'run'))
  disk('remount,ro')
  config = f'{os.path.dirname(__file__)}/../configs/pretrain.py:tiny'
  assert cli_status('--config', config, '--workdir', f'{path}/run') == 78
  said = capfd.readouterr().err
  print(said)
  assert f'{path}/run/checkpoints cannot be written to (Read-only file system): give another --workdir' in said


@pytest.mark.faults
def test_two_trainings_in_one_workdir(tmp_path):
  """Two command lines interleave their checkpoints and delete each other's temporary folders."""
  root = os.path.join(os.path.dirname(__file__), '..')
  env = dict(os.environ, JAX_PLATFORMS='cpu', PYTHONPATH=os.path.abspath(root))
  argv = [sys.executable, '-m', 'llmstack.main', '--config', f'{root}/configs/pretrain.py:tiny', '--workdir']
  argv += [str(tmp_path / 'run'), f'--config.data.folder={tmp_path}', '--config.train.steps=100000']
  with open(tmp_path / 'first.log', 'w') as log:
    first = subprocess.Popen(argv, env=env, cwd=root, stderr=log)
  try:
    while not lease.read(str(tmp_path / 'run' / 'checkpoints')):
      assert first.poll() is None, (tmp_path / 'first.log').read_text()
      time.sleep(0.1)
    t = time.perf_counter()
    second = subprocess.run(argv, env=env, cwd=root, capture_output=True, text=True, timeout=60)
    print(second.stderr, time.perf_counter() - t)
    assert second.returncode == 78 and f'pid {first.pid}, since' in second.stderr, second.stderr
  finally:
    first.kill()
    first.wait()
