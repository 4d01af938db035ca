"""Packed folders -> an endless, seekable stream of batches.

Words: `index` counts examples of the global stream; `turn` counts the examples that one component
has given; `row` is a row of a packed folder. index -> (component, turn) -> (epoch, row) are pure
functions in O(1), so that resume is a seek and any number of processes sees the same stream.
"""

import math

import numpy as np

from llmstack.data import batch as batches
from llmstack.data import packing, sources
from llmstack.errors import BadInput

FORMAT = 1  # of positions: bump it when the order of the stream changes


class Rows:
  """A packed folder, opened for random access.

  folder: path or URL that `packing.write_rows` filled.

  Raises:
    BadInput: the manifest or a file is missing, changed or cut short.
  """

  def __init__(self, folder):
    self.folder, self.manifest = folder, packing.read_manifest(folder)
    if self.manifest is None:
      raise BadInput(f'{folder} has no manifest.json: give a packed folder')
    unsigned = {k: v for k, v in self.manifest.items() if k != 'fingerprint'}
    self.fingerprint = self.manifest['fingerprint']
    if packing.digest(unsigned) != self.fingerprint:
      raise BadInput(f'{folder}/manifest.json was changed after packing: pack the folder again')
    if self.manifest['format'] != packing.FORMAT:
      raise BadInput(f'{folder} is format {self.manifest["format"]}, not {packing.FORMAT}: repack it')
    fs, root = sources.filesystem(folder)
    for file in self.manifest['files']:
      path = f'{root}/{file["name"]}'
      size = fs.size(path) if fs.exists(path) else None
      if size != file['size']:
        raise BadInput(
          f'{path} {"is missing" if size is None else f"has {size} bytes"}, the manifest says '
          f'{file["size"]} bytes: copy it again or pack the folder again'
        )
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    self._records = ArrayRecordDataSource([f'{folder}/{f["name"]}' for f in self.manifest['files']])
    self.kind, self._pairs = self.manifest.get('kind', 'text'), self.manifest.get('pairs', 0)
    shape = (self._pairs, self.manifest.get('prompt', 0))
    self._dtype = packing.row_dtype(self.manifest['length'], self.manifest['vocab'], self.kind, *shape)
    self.beside = {}  # field -> array of which the leading axis is the row

  def __len__(self):
    return self.manifest['rows']

  def read(self, rows, pairs=None):
    """Returns {field: array[n, ...]} of these rows, in this order: tokens and segments int32[n,T+1], or [n,M,T+1].

    What else there is depends on the kind (packing.row_dtype), and on what was put `beside`.
    pairs: P, at least that of this folder, which is the default.
    """
    rows = [int(row) for row in rows]
    stored = np.frombuffer(b''.join(self._records.__getitems__(rows) if rows else []), self._dtype)
    out = {}
    for name in self._dtype.names:
      if name in batches.LETTERS:
        out[name] = np.zeros((len(rows), self._pairs if pairs is None else pairs), np.float32)
        out[name][:, : stored[name].shape[1]] = stored[name]
      else:
        out[name] = stored[name].astype(np.int32)
    return out | {name: array[rows] for name, array in self.beside.items()}


class Mixture:
  """An endless stream of batches over packed folders.

  parts: {name: Rows}.
  weights: {name: share of the training tokens (targets)}, normalised here; or, where they change while training,
    [(first step, {name: share})], the first of them at step 0, in which a share may be 0.
  seed: of the order within each component, anew in every epoch.
  batch: sequences per global batch.

  After any number of examples of a stage each component has given its share of them within 2 + ln(components)
  rows. A share of tokens becomes a share of rows by the component's mean targets per row. A component goes on where the
  stage before left it, so that each row is seen once per epoch across the stages.

  Raises:
    BadInput: names differ, a weight is not positive, or the parts do not go together.
  """

  def __init__(self, parts, weights, *, seed, batch):
    stages = [(0, weights)] if isinstance(weights, dict) else list(weights)
    steps = [step for step, _ in stages]
    if not steps or steps[0] != 0 or steps != sorted(set(steps)):
      raise BadInput(f'the stages of the mixture begin at steps {steps}: begin at 0 and rise')
    for _, stage in stages:
      if not parts or set(parts) != set(stage):
        raise BadInput(f'weights name {sorted(stage)} but the data is {sorted(parts)}: match them')
      for name, weight in stage.items():
        if not (weight >= 0 and math.isfinite(weight)) or not weight and len(stages) == 1:
          raise BadInput(f'the weight of {name} is {weight}: make it positive or drop the component')
      if not any(stage.values()):
        raise BadInput(f'all weights are 0 in {stage}: make one positive')
    if batch < 1:
      raise BadInput(f'batch is {batch}: give a positive number of sequences')
    for key in ('length', 'vocab', 'tokenizer', 'kind', 'template', 'prompt'):
      values = {name: part.manifest.get(key) for name, part in parts.items()}
      if len(set(values.values())) > 1:
        raise BadInput(f'components differ in {key}, {values}: pack them alike')
    self.parts, self.seed, self.batch_size = dict(parts), seed, batch
    self._pairs = max(part.manifest.get('pairs', 0) for part in parts.values())
    self.weights = [(step, {n: w[n] / sum(w.values()) for n in sorted(w)}) for step, w in stages]
    self._stages, given = [], dict.fromkeys(parts, np.uint64(0))
    for (step, w), end in zip(self.weights, [*steps[1:], None]):
      rate = {n: x * len(parts[n]) / parts[n].manifest['targets'] for n, x in w.items() if x}
      # Largest first: each split's rounding then costs the later components least.
      names = sorted(rate, key=lambda name: (-rate[name], name))
      left = np.cumsum([rate[name] for name in names][::-1])[::-1]
      shares = [np.uint64(round(rate[n] / s * 2**32)) for n, s in zip(names, left)]
      self._stages.append((np.uint64(step * batch), names, shares, given))
      if end is not None:
        given = self._given(len(self._stages) - 1, end * batch)
    self._keys = {n: packing.seed_key('order', seed, part.fingerprint) for n, part in parts.items()}

  def locate(self, index):
    """Returns (component int64[n] in order of `parts`, row int64[n]) of these examples.

    index: int[n] place in the global stream.
    """
    order = list(self.parts)
    component, row = np.empty(len(index), np.int64), np.empty(len(index), np.int64)
    index = np.asarray(index, np.uint64)
    starts = np.array([start for start, *_ in self._stages], np.uint64)
    stage = np.searchsorted(starts, index, 'right') - 1
    for s in np.unique(stage):
      start, names, shares, given = self._stages[s]
      place = np.flatnonzero(stage == s)
      turn = index[place] - start
      for name, share in zip(names, shares):
        before = _count(turn, share)
        here = _count(turn + np.uint64(1), share) > before
        component[place[here]] = order.index(name)
        row[place[here]] = self._row(name, given[name] + before[here])
        place, turn = place[~here], (turn - before)[~here]
    return component, row

  def _given(self, stage, index):
    """Returns {name: uint64 turns} that each component has had before this example, which lies in or ends the stage."""
    start, names, shares, given = self._stages[stage]
    given, turn = dict(given), np.array([index], np.uint64) - start
    for name, share in zip(names, shares):
      count = _count(turn, share)
      given[name] += count[0]
      turn = turn - count
    return given

  def _row(self, name, turn):
    size = np.uint64(len(self.parts[name]))
    key = packing.scramble(self._keys[name] + (turn // size) * np.uint64(0x9E3779B97F4A7C15))
    return packing.permute(turn % size, int(size), key)

  def rows(self, step, process_index=0, process_count=1):
    """Returns what Rows.read does: this process's slice of global batch `step`.

    Raises:
      BadInput: the batch does not divide by process_count.
    """
    if self.batch_size % process_count:
      raise BadInput(
        f'batch {self.batch_size} does not divide by {process_count} processes: '
        f'use {self.batch_size // process_count * process_count or process_count}'
      )
    local = self.batch_size // process_count
    start = step * self.batch_size + process_index * local
    component, row = self.locate(np.arange(start, start + local))
    out = {}
    for i, part in enumerate(self.parts.values()):
      if (here := np.flatnonzero(component == i)).size:
        for name, values in part.read(row[here], self._pairs).items():
          out.setdefault(name, np.empty((local, *values.shape[1:]), values.dtype))[here] = values
    return out

  def batch(self, step, process_index=0, process_count=1):
    """Returns the Batch of this process's slice of global batch `step`."""
    return batches.make(self.rows(step, process_index, process_count))

  def iterate(self, start, stop, process_index=0, process_count=1, *, threads=1, prefetch=2):
    """Returns an iterator of Batch for steps start..stop-1, read ahead in the background.

    An exception of a reader surfaces in `next`; `close()` ends the threads.

    threads: readers; more than one pays only where reads are slow, as from a bucket.
    prefetch: batches read ahead.
    """
    import grain

    steps = _Steps(self, start, stop, process_index, process_count)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(steps).to_iter_dataset(options))

  def epochs(self, step):
    """Returns {name: passes over the component that are done before `step`}."""
    index = step * self.batch_size
    stage = sum(int(start) <= index for start, *_ in self._stages) - 1
    return {name: int(n) / len(self.parts[name]) for name, n in self._given(stage, index).items()}

  def position(self, step):
    """Returns a JSON dict: where the stream stands before `step`, and what it depends on."""
    return dict(
      format=FORMAT,
      step=step,
      seed=self.seed,
      batch=self.batch_size,
      weights=self.weights[0][1] if len(self.weights) == 1 else {str(step): w for step, w in self.weights},
      fingerprints={name: self.parts[name].fingerprint for name in sorted(self.parts)},
      epochs=self.epochs(step),
    )

  def check(self, position):
    """Returns nothing; raises unless `position` was made by a Mixture that streams the same.

    Raises:
      BadInput: one line per difference, with both values.
    """
    here, lines = self.position(0), []
    for key in ('format', 'seed', 'batch', 'weights', 'fingerprints'):
      saved, now = position[key], here[key]
      if not isinstance(now, dict):
        saved, now = {'': saved}, {'': now}
      for name in sorted(set(saved) | set(now)):
        if (a := saved.get(name)) != (b := now.get(name)):
          lines.append(f'  {key} {name}'.rstrip() + f': checkpoint {a}, now {b}')
    if lines:
      raise BadInput(
        'the data is not what the checkpoint was trained on: restore it, or start a new run from '
        'the parameters with init_from\n' + '\n'.join(lines)
      )


def _count(turn, share):
  """Returns uint64[n] floor(turn * share / 2**32), without overflow."""
  high, low = turn >> np.uint64(32), turn & np.uint64(0xFFFFFFFF)
  return high * share + ((low * share) >> np.uint64(32))


class _Steps:
  """Batches of steps start..stop-1 as the random-access source that grain reads."""

  def __init__(self, mixture, start, stop, process_index, process_count):
    self._mixture, self._start, self._stop = mixture, start, stop
    self._process = process_index, process_count

  def __len__(self):
    return self._stop - self._start

  def __getitem__(self, i):
    return self._mixture.batch(self._start + i, *self._process)
