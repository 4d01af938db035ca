"""Daft as the engine: one function over many parts, in processes of this machine or, with `runner='ray'`, of a cluster.

The only importer of daft. A part is a file that one process reads and another one that it writes; what travels through
the query are their names and small results, so that memory is that of the parts in work and a stage that was broken off
goes on behind the parts that are there.
"""

import errno
import functools
import json
import os
import sys
import time

os.environ.setdefault('DAFT_ANALYTICS_ENABLED', '0')  # before the import
os.environ.setdefault('DAFT_PROGRESS_BAR', '0')

import pyarrow

from llmstack.errors import BadInput

try:
  import daft
except ImportError:
  raise BadInput("preparing data needs daft: pip install 'llmstack[data]'") from None

RUNNERS = ('native', 'ray')
TRIES = 3  # of a part whose process died
DIED = 'closed the connection unexpectedly'  # daft, of a process


@functools.cache
def use(runner):
  """Returns nothing; chooses where queries run: once per process, or daft raises."""
  if runner not in RUNNERS:
    raise BadInput(f'runner = {runner!r}: choose one of {", ".join(RUNNERS)}')
  if runner == 'native':
    daft.set_runner_native()
  else:
    try:
      import ray  # noqa: F401
    except ImportError:
      raise BadInput("runner = 'ray' needs ray: pip install 'llmstack[ray]'") from None
    daft.set_runner_ray()


def run(function, items, settings, *, workers, runner='native'):
  """Yields (item, result) as they are done, in any order.

  function: (item, settings) -> result, defined at the top of a module; called once per item, except that an item whose
    process died (killed, out of memory) is tried again, TRIES times in all: it writes its files whole or not at all.
  items, settings, results: JSON values. workers: processes.

  Raises: BadInput that the function raised, OSError where the disk was full; RuntimeError where an item's process died
    every time.
  """
  use(runner)
  left = {json.dumps(item, sort_keys=True): item for item in items}
  for attempt in range(TRIES):
    if not left:
      return
    try:
      for key, answer in _query(function, list(left), settings, min(workers, len(left)), runner):
        if 'bad' in answer:
          raise BadInput(answer['bad'])
        if 'full' in answer:
          raise OSError(errno.ENOSPC, answer['full'])
        yield left.pop(key), answer['result']
    except RuntimeError as error:  # ray tries again by itself
      if DIED not in str(error):
        raise
      if attempt == TRIES - 1:
        raise RuntimeError(
          f'a process died {TRIES} times at one of {len(left)} parts, {next(iter(left))} among them; most likely '
          'memory ran out: lower workers or max_bytes'
        ) from None
      print(f'a process died: {len(left)} parts are left and tried again', file=sys.stderr)


def _query(function, keys, settings, workers, runner):
  """Yields (key, {'result'} or {'bad'})."""

  @daft.cls(use_process=True, max_concurrency=workers)
  class Work:
    @daft.method.batch(return_dtype=daft.DataType.string(), batch_size=1)
    def __call__(self, parts):
      out = []
      for part in parts.to_pylist():
        try:
          answer = {'result': function(json.loads(part), settings)}
        except BadInput as bad:
          answer = {'bad': str(bad)}
        except OSError as error:
          if error.errno != errno.ENOSPC:
            raise
          answer = {'full': str(error)}
        out.append(json.dumps(answer | {'pid': os.getpid()}))
      return out

  frame = daft.from_pydict({'part': keys})
  if runner == 'ray':
    frame = frame.into_partitions(len(keys))
  processes = set()
  try:
    for row in frame.select('part', Work()(daft.col('part')).alias('answer')).iter_rows(results_buffer_size=None):
      answer = json.loads(row['answer'])
      processes.add(answer['pid'])
      yield row['part'], answer
  finally:
    if runner == 'native':
      _wait(processes)


def _wait(processes, seconds=10.0):
  """Returns when daft has ended its processes: where the interpreter ends before, daft's threads bring it down."""
  end = time.monotonic() + seconds
  while time.monotonic() < end and any(map(_alive, processes)):
    time.sleep(0.01)
  time.sleep(0.05)


def _alive(pid):
  try:
    os.kill(pid, 0)
  except ProcessLookupError:
    return False
  return True


def minhash(words, *, hashes, ngram, seed):
  """Returns uint32[N,hashes] minima over the n-grams of words.

  words: arrow string[N], lower case, single spaces. A text shorter than one n-gram has that of all its words.
  """
  made = daft.Series.from_arrow(pyarrow.chunked_array([words]).combine_chunks(), 'words').minhash(
    num_hashes=hashes, ngram_size=ngram, seed=seed, hash_function='xxhash'
  )
  return made.to_arrow().flatten().to_numpy().reshape(-1, hashes)
