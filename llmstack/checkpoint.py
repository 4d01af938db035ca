"""Checkpoints: state, data position, resolved config and tokenizer in one atomic step folder that proves itself.

The only importer of orbax. A checkpoint is `<folder>/<step>/{state, meta, MANIFEST.json}`: arrays, a JSON object with
{'tree', 'config', 'data', 'tokenizer', 'versions'}, and size and blake2b of every file. `tree` is our own list of
paths, shapes and dtypes, because orbax casts a float32 array into a bfloat16 target without a word.

Orbax checks no array bytes, takes any folder with a number for a checkpoint, falls back to nothing and is silent about
a save that failed. Hence:
- The manifest is written in orbax's callback before it renames the temporary folder: files are hashed as they were
  written, and a step is committed together with its manifest or not at all. A step without one is debris, or older
  than manifests: it is used, with a sentence that says so, only where no step has a manifest that holds.
- Steps are verified before they are read, newest first, and newest means the highest number, whatever the clock said.
  A run moves a bad one to `corrupt-<step>-<time>` and goes on from the one before it; commands that only read pass it
  by. Where none holds, nothing is moved and BadInput lists them all, each time, rather than start from scratch.
- `save` looks for free space first; `poll`, once per step, says what became of the save in flight.
- Steps are deleted by us (rename, then remove), so that a run killed in between leaves no half step.
- One run writes at a time: `lease.py`.

In a run of several processes, process 0 holds the lease, verifies, decides and tells the others.
"""

import concurrent.futures
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import threading
import time
from typing import NamedTuple

import jax
import numpy as np

from llmstack import lease
from llmstack.errors import BadInput, SaveFailed
from llmstack.sharding import keys

MANIFEST = 'MANIFEST.json'
NO_MANIFEST = 'no manifest'
TEMPORARY = '.orbax-checkpoint-tmp'
MARGIN = 1_000_000  # bytes of a checkpoint besides its arrays
ATTEMPTS = 3  # failed saves in a row that end the run
# What orbax writes while it commits, after the manifest: a time and a word. Added by the next poll; nothing reads them.
LATE = ('_CHECKPOINT_METADATA', 'commit_success.txt')


def tree_spec(tree):
  """Returns {path: [dtype, shape]} of a tree of arrays."""
  return {'/'.join(keys(p)): [str(x.dtype), list(x.shape)] for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def fields(state):
  """Returns the fields of a NamedTuple that hold arrays; orbax would count an empty one as part of the tree."""
  return {k: v for k, v in state._asdict().items() if jax.tree.leaves(v)}


def digest(tree):
  """Returns a hex digest of every leaf's path, dtype, shape and bytes: equal if and only if bit-identical."""
  h = hashlib.blake2b(digest_size=16)
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    h.update(f'{"/".join(keys(path))} {x.dtype} {x.shape}'.encode() + x.tobytes())
  return h.hexdigest()


def check_tree(saved, wanted, where):
  """Returns nothing; raises BadInput that names the leaves which are missing, extra or of another shape or dtype."""
  lines = [f'  {k}: not in the checkpoint' for k in wanted if k not in saved]
  lines += [f'  {k}: in the checkpoint only' for k in saved if k not in wanted]
  lines += [
    f'  {k}: {saved[k][0]}{saved[k][1]} in the checkpoint, {wanted[k][0]}{wanted[k][1]} wanted'
    for k in wanted
    if k in saved and saved[k] != wanted[k]
  ]
  if lines:
    more = [f'  ... and {len(lines) - 8} more'] if len(lines) > 8 else []
    raise BadInput('\n'.join([f'{where} does not fit this model and optimiser:', *lines[:8], *more]))


def differences(saved, wanted, prefix=''):
  """Returns lines 'key: saved -> wanted' for two nested dicts of plain values."""
  out = []
  for k in sorted({*saved, *wanted}):
    a, b = saved.get(k, '(absent)'), wanted.get(k, '(absent)')
    if isinstance(a, dict) and isinstance(b, dict):
      out += differences(a, b, f'{prefix}{k}.')
    elif a != b:
      out.append(f'  {prefix}{k}: {a!r} -> {b!r}')
  return out


def fingerprint(value):
  """Returns a hex digest of a JSON value."""
  return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=8).hexdigest()


def _size(n):
  return f'{n / 1e9:.2f} GB' if n >= 1e9 else f'{n / 1e6:.1f} MB'


def _fingerprints(meta):
  """Returns {'config', 'tokenizer', 'data'}: digests of what the state depends on; '' of what the meta lacks."""
  data = meta.get('data')
  parts = {'config': meta.get('config'), 'tokenizer': meta.get('tokenizer')}
  parts['data'] = {k: v for k, v in data.items() if k not in ('step', 'epochs')} if data else data  # not the position
  return {k: '' if v is None else fingerprint(v) for k, v in parts.items()}


def _files(folder):
  """Returns the paths of all regular files in a step, relative to it, without its manifest."""
  out = [os.path.relpath(os.path.join(at, name), folder) for at, _, names in os.walk(folder) for name in names]
  return sorted(name for name in out if not name.startswith(MANIFEST))


def _entry(path):
  """Returns [size in bytes, hex digest] of a file."""
  with open(path, 'rb') as f:
    h = hashlib.file_digest(f, lambda: hashlib.blake2b(digest_size=16))
    return [f.tell(), h.hexdigest()]


def _hashed(folder, names):
  """Yields (name, entry or OSError); several threads, as hashing one file runs at 0.6 GB/s."""

  def one(name):
    try:
      return name, _entry(os.path.join(folder, name))
    except OSError as e:
      return name, e

  # Half of the cores at most: a save is hashed while the training goes on.
  with concurrent.futures.ThreadPoolExecutor(max(1, min(8, os.cpu_count() // 2))) as pool:
    yield from pool.map(one, names)


def _text(manifest):
  """Returns the only text that means this manifest; its last line seals the others."""
  lines = [f'{json.dumps(k)}: {json.dumps(v, sort_keys=True)}' for k, v in sorted(manifest.items())]
  seal = hashlib.blake2b('\n'.join(lines).encode(), digest_size=16).hexdigest()
  return '{\n' + ',\n'.join([*lines, f'"seal": "{seal}"']) + '\n}\n'


def _write(folder, manifest):
  path = os.path.join(folder, MANIFEST)
  with open(f'{path}.tmp', 'w') as f:
    f.write(_text(manifest))
    f.flush()
    os.fsync(f.fileno())
  os.replace(f'{path}.tmp', path)


def read_manifest(path):
  """Returns (manifest of a step folder, ''), or (None, what is wrong with it)."""
  try:
    with open(os.path.join(path, MANIFEST), encoding='utf-8') as f:
      text = f.read()
    manifest = json.loads(text)
    del manifest['seal']
    if _text(manifest) == text:
      return manifest, ''
  except FileNotFoundError:
    return None, NO_MANIFEST
  except (ValueError, TypeError, KeyError):  # not JSON, not an object, or without its seal
    pass
  except OSError as e:
    return None, f'{MANIFEST} cannot be read ({e.strerror})'
  return None, f'{MANIFEST} is damaged'


def verify(path):
  """Returns what is wrong with a step folder, naming the file; '' if every byte is what was written.

  Reads every file once: 0.6 GB/s and core. Files that the manifest does not know are let be: nothing reads them.
  """
  manifest, problem = read_manifest(path)
  if problem:
    return problem
  if str(manifest['step']) != os.path.basename(path):
    return f'it is a copy of step {manifest["step"]}'
  for name, (size, _) in manifest['files'].items():  # cheap, and finds what was cut off before reading the rest
    try:
      got = os.path.getsize(os.path.join(path, name))
    except OSError as e:
      return f'{name} cannot be read ({e.strerror})'
    if got != size:
      return f'{name} has {got:,} bytes, {size:,} were written'
  for name, got in _hashed(path, manifest['files']):
    if isinstance(got, OSError):
      return f'{name} cannot be read ({got.strerror})'
    if got != manifest['files'][name]:
      return f'{name} holds other bytes than were written'
  return ''


def _looks_whole(path):
  """Returns whether a step without a manifest has the parts of a checkpoint."""
  try:
    with open(os.path.join(path, 'meta', 'metadata')) as f, open(os.path.join(path, 'state', '_METADATA')) as g:
      return 'tree' in json.load(f) and bool(json.load(g))
  except (OSError, ValueError, TypeError):
    return False


def _steps(folder):
  """Returns {step: path} of the folders whose names are numbers as orbax writes them."""
  with os.scandir(folder) as entries:
    return {int(e.name): e.path for e in entries if re.fullmatch('0|[1-9][0-9]*', e.name) and e.is_dir()}


def kept(metrics, *, keep, keep_every, best):
  """Returns {step: why} of the steps that the rules keep.

  metrics: {step: {name: value}}. keep: newest steps, None for all. keep_every: multiples of it, for good. best: None,
  or (metric, 'min' | 'max'): the best step by it; of equal ones the first.
  """
  steps = sorted(metrics)
  why = {step: [] for step in steps}
  for step in steps if keep is None else steps[-keep:]:
    why[step].append('newest' if keep else 'all')
  for step in steps if keep_every else ():
    if step % keep_every == 0:
      why[step].append(f'every {keep_every}')
  if best:
    name, mode = best
    values = {step: metrics[step].get(name, math.nan) for step in steps}
    sign = 1 if mode == 'min' else -1
    if ranked := sorted((sign * v, step) for step, v in values.items() if not math.isnan(v)):
      why[ranked[0][1]].append(f'best {name}')
  return {step: ', '.join(reasons) for step, reasons in why.items() if reasons}


class Status(NamedTuple):
  """One step folder, or one that was set aside."""

  step: int
  path: str
  bytes: int
  time: float | None  # of saving, seconds since 1970; None without a manifest
  state: str  # 'verified' | 'no manifest' | 'set aside' | 'corrupt: <file> ...'
  why: str  # it is kept, by the rules of the run that saved last; '' if they would not keep it
  metrics: dict  # {name: value} of the evaluation at this step


def listing(folder):
  """Returns [Status] of a folder of checkpoints, by step, each verified now; [] if there is no such folder.

  May be called while a run is writing: steps that are deleted meanwhile are left out.
  """
  if not os.path.isdir(folder):
    return []
  found = {step: (path, *read_manifest(path)) for step, path in _steps(folder).items()}
  manifests = {step: manifest or {'metrics': {}} for step, (_, manifest, _) in found.items()}
  rules = next((manifests[s]['rules'] for s in sorted(found, reverse=True) if 'rules' in manifests[s]), None)
  why = kept({s: m['metrics'] for s, m in manifests.items()}, **rules) if rules else {}
  out = []

  def add(step, path, state):
    try:
      size = sum(os.path.getsize(os.path.join(path, name)) for name in _files(path))
    except FileNotFoundError:
      return
    if os.path.isdir(path):
      m = manifests.get(step, {}) if state != 'set aside' else {}
      out.append(Status(step, path, size, m.get('time'), state, why.get(step, '') if m else '', m.get('metrics', {})))

  for step in sorted(found):
    path = found[step][0]
    problem = verify(path)
    add(step, path, {'': 'verified', NO_MANIFEST: NO_MANIFEST}.get(problem, f'corrupt: {problem}'))
  for name in sorted(os.listdir(folder)):
    if match := re.fullmatch(r'corrupt-(\d+)-.*', name):
      add(int(match[1]), os.path.join(folder, name), 'set aside')
  return out


def agree(decide):
  """Returns what decide() returned in process 0, JSON, in every process; so is its BadInput raised."""
  if jax.process_count() == 1:
    return decide()
  from jax.experimental import multihost_utils

  said = b''
  if jax.process_index() == 0:
    try:
      said = json.dumps([decide(), None]).encode()
    except BadInput as e:
      said = json.dumps([None, str(e)]).encode()
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
  letters = np.zeros(size, np.int32)
  if said:
    letters[:] = list(said)
  value, problem = json.loads(bytes(np.asarray(multihost_utils.broadcast_one_to_all(letters)).tolist()))
  if problem is not None:
    raise BadInput(problem)
  return value


def _say(line):
  if jax.process_index() == 0:
    print(line, file=sys.stderr, flush=True)


class _Quiet(logging.Filter):
  """Keeps the tracebacks that orbax logs for a failed save off the screen; poll says what they mean in a sentence."""

  error = None

  def filter(self, record):
    if record.exc_info:
      self.error = record.exc_info[1]
    return not record.exc_info


class Checkpoints:
  """The checkpoints of one folder. Saving is asynchronous; poll() looks, wait() and close() wait."""

  def __init__(self, folder, *, keep=None, keep_every=None, best=None, create=False):
    """keep, keep_every, best: see kept(). create: False only reads, and a missing folder is BadInput.

    Raises: BadInput where the folder cannot be written to, another run writes into it, or no checkpoint in it holds.
    """
    if '://' in folder:
      raise BadInput(f'{folder} is a URL: checkpoints are kept in a local or mounted folder yet')
    import orbax.checkpoint as ocp  # 1.5 s

    self._ocp = ocp
    # orbax accepts a relative path, returns True from save() and fails in the background.
    self.folder = os.path.abspath(folder)
    self._rules = {'keep': keep, 'keep_every': keep_every, 'best': best}
    self._sure, self._metrics = set(), {}  # steps that were verified; metrics of steps
    self._writes, self._lease, self._newest = create, None, None
    self._flight = self._record = None  # step of the save in flight, and its manifest without the files
    self._failures, self._lost = 0, ''  # in a row; the sentence about the last one, until it was raised
    self._removing = None
    if not create and not os.path.isdir(self.folder):
      raise BadInput(f'there are no checkpoints in {folder}: give the workdir of a run that has saved one')
    logging.getLogger('absl').setLevel(logging.ERROR)
    self._quiet = _Quiet()
    if create:
      self._newest = agree(self._open)
      if self._newest is not None:
        self._sure.add(self._newest)
      logging.getLogger('absl').addFilter(self._quiet)
    options = ocp.CheckpointManagerOptions(
      create=create, read_only=not create, async_options=ocp.AsyncOptions(post_finalization_callback=self._seal)
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'meta'))

  @classmethod
  def of(cls, workdir, **options):
    """Returns the checkpoints of a run."""
    return cls(os.path.join(workdir, 'checkpoints'), **options)

  def _open(self):
    """Returns the newest step that holds, or None: process 0 takes the lease, sweeps and verifies."""
    try:
      os.makedirs(self.folder, exist_ok=True)
      self._lease = lease.Lease(self.folder)
    except OSError as e:
      raise BadInput(f'{self.folder} cannot be written to ({e.strerror}): give another --workdir') from None
    try:
      for name in os.listdir(self.folder):
        if TEMPORARY in name or name.startswith('deleted-'):
          shutil.rmtree(os.path.join(self.folder, name))
        if TEMPORARY in name:
          _say(f'removed {self.folder}/{name}, which a run that was killed had not finished')
      return self._choose()
    except (BadInput, OSError):
      self._lease.release()
      raise

  def _choose(self):
    """Returns the newest step that holds, or None in an empty folder; a run moves worse ones away."""
    steps, bad, found = _steps(self.folder), {}, None
    for step in sorted(steps, reverse=True):
      problem = '' if step in self._sure else verify(steps[step])
      if not problem:
        found = step
        break
      bad[step] = problem
    if not all(os.path.isdir(steps[step]) for step in bad):
      return self._choose()  # a run that is writing has just deleted one
    if bad and found is None:
      found = next((s for s in bad if bad[s] == NO_MANIFEST and _looks_whole(steps[s])), None)
      if found is None:
        lines = [f'  {step}: {problem}' for step, problem in bad.items()]
        lines = [f'no checkpoint in {self.folder} can be trusted:', *lines]
        raise BadInput('\n'.join([*lines, 'put back a copy of one of them, or remove them all to start again']))
      self._say_unverified(found)
    for step in [s for s in bad if s > found]:
      then = f'checkpoint {found} is used'
      if self._lease:
        name = f'corrupt-{step}-{time.strftime("%Y%m%dT%H%M%S")}'
        os.rename(steps[step], os.path.join(self.folder, name))
        then = f'moved to {name}, going on from checkpoint {found}'
      _say(f'checkpoint {self.folder}/{step} is damaged: {bad[step]}; {then}')
    return found

  def _say_unverified(self, step):
    _say(f'checkpoint {self.folder}/{step} has no manifest, older versions wrote none: it is used unverified')

  def latest(self):
    """Returns the newest committed step that holds, or None. Raises: BadInput where there are steps and none holds."""
    if self._writes:
      return self._newest
    step = agree(self._choose)
    self._sure |= set() if step is None else {step}
    return step

  def check_space(self, state):
    """Returns nothing; raises BadInput with both sizes where a checkpoint of `state` does not fit on the disk."""
    if problem := self._too_full(state):
      raise BadInput(f'{problem}: free some space, or give a --workdir on another disk')

  def _too_full(self, state):
    """Returns the sentence about too little space for a tree of arrays, or ''."""
    if self._removing:
      self._removing.join()
    need = sum(x.nbytes for x in jax.tree.leaves(state)) + MARGIN
    free = shutil.disk_usage(self.folder).free
    return f'a checkpoint needs {_size(need)} and {self.folder} has {_size(free)} free' if free < need else ''

  def save(self, step, state, meta, metrics=None):
    """Returns nothing; starts writing, after the save before it has landed.

    state: NamedTuple of arrays. meta: JSON object. metrics: {name: float} of an evaluation of this state.
    Raises: SaveFailed after ATTEMPTS failures in a row, in a run of several processes after one; BadInput where
      another run has taken the folder over.
    """
    self._land()
    if self._lease:
      self._lease.check(now=True)
    state = fields(state)
    versions = {'jax': jax.__version__, 'orbax': self._ocp.__version__}
    meta = meta | {'tree': tree_spec(state), 'versions': versions}
    if problem := self._too_full(state):
      self._failed(step, problem)
      return
    self._record = {
      'step': step, 'time': time.time(), 'run': self._lease.run if self._lease else '', 'tree': meta['tree'],
      'versions': versions | {'python': sys.version.split()[0], 'numpy': np.__version__}, 'rules': self._rules,
      'fingerprints': _fingerprints(meta), 'metrics': metrics or {},
    }  # fmt: skip
    args = self._ocp.args.Composite(state=self._ocp.args.PyTreeSave(state), meta=self._ocp.args.JsonSave(meta))
    try:
      if not self._manager.save(step, args=args):
        raise RuntimeError(f'orbax refused to save step {step}: {self.folder} already holds a newer one')
    except OSError as e:
      self._failed(step, e)
      return
    self._flight = step

  def _seal(self):
    """Writes the manifest of the step that is about to be committed; orbax's thread, process 0."""
    folder = os.path.join(self.folder, f'{self._record["step"]}{TEMPORARY}')
    files = {}
    for name, entry in _hashed(folder, [name for name in _files(folder) if name not in LATE]):
      if isinstance(entry, OSError):
        raise entry
      files[name] = entry
    _write(folder, self._record | {'files': files})

  def poll(self):
    """Returns at once; when the save in flight has landed, says so or says why not. To be called every step.

    Raises: SaveFailed and BadInput as save() does.
    """
    if self._lease:
      self._lease.check()
    if self._flight is None:
      return
    if self._quiet.error and jax.process_count() > 1:  # the others sit in a barrier, for which this one never comes
      self._failed(self._flight, self._quiet.error)
    if not self._manager.is_saving_in_progress():
      self._land()

  def _land(self):
    """Waits for the save in flight and draws the consequences."""
    if self._flight is None:
      return
    step, self._flight = self._flight, None
    try:
      self._manager.wait_until_finished()  # raises once what went wrong in the background; check_for_errors does not
    except (ValueError, OSError, RuntimeError) as e:
      self._failed(step, e)
      return
    self._newest, self._failures, self._lost = step, 0, ''
    self._sure.add(step)
    if self._lease:
      self._tidy(step)

  def _tidy(self, step):
    """Adds what orbax wrote while it committed to the manifest, and removes the steps that no rule keeps."""
    path = os.path.join(self.folder, str(step))
    try:
      late = dict(_hashed(path, [name for name in LATE if os.path.exists(os.path.join(path, name))]))
      _write(path, self._record | {'files': read_manifest(path)[0]['files'] | late})
    except OSError as e:  # a full disk: the manifest stays as it was committed
      _say(f'{path}/{MANIFEST} was not completed: {e.strerror}')
    steps = _steps(self.folder)
    self._metrics[step] = self._record['metrics']
    for s in steps.keys() - self._metrics:
      self._metrics[s] = (read_manifest(steps[s])[0] or {'metrics': {}})['metrics']
    keep = kept({s: self._metrics[s] for s in steps}, **self._rules)
    gone = {steps[s]: os.path.join(self.folder, f'deleted-{s}') for s in steps if s not in keep and s != step}
    for path, name in gone.items():
      os.rename(path, name)  # whole or gone, whenever the run is killed
    if gone:
      self._removing = threading.Thread(target=lambda: [shutil.rmtree(name, True) for name in gone.values()])
      self._removing.start()

  def _failed(self, step, cause):
    """Says that a save failed, removes what there is of it, and counts. Raises: SaveFailed as save() says."""
    self._failures += 1
    self._quiet.error = None
    cause = ': '.join(str(cause).split('\n')[0].split(': ')[-2:])
    newest = 'there is none yet' if self._newest is None else f'the newest is still {self._newest}'
    lost = f'checkpoint {step} was not saved ({cause}); {newest}'
    if jax.process_count() > 1:
      self._flight = self._manager = None  # waiting for it would be waiting for the others
      raise SaveFailed(f'{lost}; the processes cannot go on together: free the disk and start again')
    shutil.rmtree(os.path.join(self.folder, f'{step}{TEMPORARY}'), ignore_errors=True)
    if self._failures == ATTEMPTS:
      raise SaveFailed(f'{lost}; {self._failures} saves in a row failed: free the disk and start again')
    _say(f'{lost}; failure {self._failures} of {ATTEMPTS}, the next save tries again')
    self._lost = lost

  def meta(self, step=None):
    """Returns (step, meta) of a checkpoint, the newest by default."""
    step = self.latest() if step is None else step
    if step is None:
      raise BadInput(f'{self.folder} holds no checkpoint yet: that run has not saved one')
    steps = _steps(self.folder)
    if step not in steps:
      raise BadInput(f'{self.folder} has no checkpoint {step}: it has {sorted(steps)}')
    if step not in self._sure:
      agree(lambda: self._insist(steps[step]))
      self._sure.add(step)
    args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
    return step, self._manager.restore(step, args=args)['meta']

  def identity(self, step):
    """Returns a hex digest of the state's files, equal for copies of it: what an adapter says it belongs to."""
    path = _steps(self.folder)[step]
    manifest, _ = read_manifest(path)
    files = manifest['files'] if manifest else dict(_hashed(path, _files(path)))
    return fingerprint({name: list(entry) for name, entry in files.items() if name.startswith('state/')})

  def _insist(self, path):
    """Returns nothing; raises BadInput where a step that was asked for by number does not hold."""
    problem = verify(path)
    if problem == NO_MANIFEST and _looks_whole(path):
      self._say_unverified(os.path.basename(path))
    elif problem:
      raise BadInput(f'checkpoint {path} is damaged: {problem}: put back a copy of it, or ask for another step')

  def restore(self, target, step=None):
    """Returns (state like `target`, meta), laid out on the target's shardings, whatever mesh it was saved from.

    target: NamedTuple of ShapeDtypeStructs with shardings, or {'params': ...} for the parameters only.
    Raises: BadInput naming the leaves that do not fit.
    """
    step, meta = self.meta(step)
    partial = isinstance(target, dict)
    item = target if partial else fields(target)
    saved = meta['tree']
    if partial:
      saved = {k: v for k, v in saved.items() if k.split('/')[0] in item}
    check_tree(saved, tree_spec(item), f'checkpoint {self.folder}/{step}')
    restore_args = self._ocp.checkpoint_utils.construct_restore_args(item)
    args = self._ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
    state = self._manager.restore(step, args=self._ocp.args.Composite(state=args))['state']
    return (state if partial else target._replace(**state)), meta

  def wait(self):
    """Returns when the last save is committed with its manifest. Raises: SaveFailed if it is not and will not be."""
    self._land()
    if lost := self._lost:
      self._lost = ''  # raised once
      raise SaveFailed(f'{lost}: free the disk and start again')

  def close(self):
    """Waits, and gives the folder free for another run. Raises: SaveFailed as wait() does."""
    try:
      self.wait()
    finally:
      if self._removing:
        self._removing.join()
      if self._lease:
        self._lease.release()
      logging.getLogger('absl').removeFilter(self._quiet)
      if self._manager:
        self._manager.close()
