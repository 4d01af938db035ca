"""What a frozen model says about packed rows, computed once and stored beside them.

`NAME-MODEL.npz`-like folders would hide which field is which: each field is one .npy file, mapped into memory, and a
.json beside it names the rows and the model that it is of.
"""

import json
import os

import jax
import numpy as np

from llmstack import sharding
from llmstack.data import batch as batches
from llmstack.errors import BadInput
from llmstack.tasks import start


def padded(part, first, batch):
  """Returns (the batch of rows first..., filled up with padding to `batch` rows, how many are real)."""
  read = part.read(range(first, min(first + batch, len(part))))
  n = len(read['tokens'])
  return batches.make({k: np.pad(x, ((0, batch - n), *[(0, 0)] * (x.ndim - 1))) for k, x in read.items()}), n


def attach(part, name, compute, of, mesh, batch):
  """Puts the arrays of `compute` beside the rows of `part`, computing and storing them unless they are there.

  part: pipeline.Rows. name: of the files. compute: batch -> {field: array[B, ...]}, jitted here; call under the mesh.
  of: {'model': its identity, ...}, what the arrays depend on besides the rows; JSON.

  Raises: BadInput for files that are of another model or other rows, or cut short.
  """
  of = {'rows': part.fingerprint} | of
  path = os.path.join(part.folder, f'{name}-{of["model"][:12]}')
  if os.path.exists(f'{path}.json'):
    with open(f'{path}.json') as f:
      try:
        told = json.load(f)
      except ValueError as e:
        raise BadInput(f'{path}.json is damaged ({e}): remove it, and it is computed again') from None
    if differ := [k for k in of if told['of'].get(k) != of[k]]:
      raise BadInput(f'{path}.json is of other {" and ".join(differ)}: remove it, and it is computed again')
    try:
      found = {field: np.load(f'{path}.{field}.npy', mmap_mode='r') for field in told['shapes']}
    except (ValueError, FileNotFoundError) as e:
      raise BadInput(f'{path}.*.npy is damaged ({e}): remove {path}.json, and it is computed again') from None
    part.beside |= found
    return
  if jax.process_count() > 1:
    raise BadInput(f'{path}.json does not exist and is computed by one process: start once without --processes')
  start.say(f'{name} of {len(part):,} rows -> {path}.*.npy')
  run, stored = jax.jit(compute), {}
  for i in range(0, len(part), batch):
    made, n = padded(part, i, batch)
    for field, x in jax.device_get(run(sharding.place(made, mesh, batches.letters))).items():
      if field not in stored:
        file = f'{path}.{field}.npy'
        stored[field] = np.lib.format.open_memmap(file, 'w+', x.dtype, (len(part), *x.shape[1:]))
      if not np.isfinite(x[:n]).all():
        raise BadInput(f'{name} of rows {i} to {i + n - 1} of {part.folder} is not finite: that model is damaged')
      stored[field][i : i + n] = x[:n]
  for array in stored.values():
    array.flush()
  with open(f'{path}.json.tmp', 'w') as f:
    json.dump({'of': of, 'shapes': {field: list(x.shape) for field, x in stored.items()}}, f)
  os.replace(f'{path}.json.tmp', f'{path}.json')
  part.beside |= stored
