"""Checkpoints: state, data position, resolved config and tokenizer in one atomic step folder.

The only importer of orbax. A checkpoint is `<folder>/<step>/{state, meta}`: arrays, and a JSON object with
{'tree', 'config', 'data', 'tokenizer', 'versions'}. `tree` is our own list of paths, shapes and dtypes,
because orbax casts a float32 array into a bfloat16 target without a word.
"""

import hashlib
import logging
import os

import fsspec
import jax
import numpy as np

from llmstack.errors import BadInput
from llmstack.sharding import keys


def tree_spec(tree):
  """Returns {path: [dtype, shape]} of a tree of arrays."""
  return {'/'.join(keys(p)): [str(x.dtype), list(x.shape)] for p, x in jax.tree_util.tree_leaves_with_path(tree)}


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


class Checkpoints:
  """The checkpoints of one folder. Saving is asynchronous; close() waits."""

  def __init__(self, folder, *, keep=None, create=False):
    """keep: newest steps to keep, None for all. create: False only reads, and a missing folder is BadInput."""
    import orbax.checkpoint as ocp  # 1.5 s

    self._ocp = ocp
    # orbax accepts a relative path, returns True from save() and fails in the background.
    self.folder = folder if '://' in folder else os.path.abspath(folder)
    if not create and not fsspec.core.url_to_fs(self.folder)[0].exists(self.folder):
      raise BadInput(f'there are no checkpoints in {folder}: give the workdir of a run that has saved one')
    logging.getLogger('absl').setLevel(logging.ERROR)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, create=create, cleanup_tmp_directories=create, read_only=not create
    )
    self._manager = ocp.CheckpointManager(self.folder, options=options, item_names=('state', 'meta'))

  @classmethod
  def of(cls, workdir, **options):
    """Returns the checkpoints of a run."""
    return cls(os.path.join(workdir, 'checkpoints'), **options)

  def latest(self):
    """Returns the newest committed step, or None."""
    return max(self._manager.all_steps(), default=None)

  def save(self, step, state, meta):
    """Returns nothing; starts writing. state: NamedTuple of arrays. meta: JSON object."""
    state = state._asdict()
    meta = meta | {
      'tree': tree_spec(state),
      'versions': {'jax': jax.__version__, 'orbax': self._ocp.__version__},
    }
    args = self._ocp.args.Composite(state=self._ocp.args.PyTreeSave(state), meta=self._ocp.args.JsonSave(meta))
    if not self._manager.save(step, args=args):
      raise RuntimeError(f'orbax refused to save step {step}: {self.folder} already holds a newer one')

  def meta(self, step=None):
    """Returns (step, meta) of a checkpoint, the newest by default."""
    step = self.latest() if step is None else step
    if step is None:
      raise BadInput(f'{self.folder} holds no checkpoint yet: that run has not saved one')
    if step not in self._manager.all_steps():
      raise BadInput(f'{self.folder} has no checkpoint {step}: it has {sorted(self._manager.all_steps())}')
    args = self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())
    return step, self._manager.restore(step, args=args)['meta']

  def restore(self, target, step=None):
    """Returns (state like `target`, meta), laid out on the target's shardings, whatever mesh it was saved from.

    target: NamedTuple of ShapeDtypeStructs with shardings, or {'params': ...} for the parameters only.
    Raises: BadInput naming the leaves that do not fit.
    """
    step, meta = self.meta(step)
    partial = isinstance(target, dict)
    item = target if partial else target._asdict()
    saved = meta['tree']
    if partial:
      saved = {k: v for k, v in saved.items() if k.split('/')[0] in item}
    check_tree(saved, tree_spec(item), f'checkpoint {self.folder}/{step}')
    restore_args = self._ocp.checkpoint_utils.construct_restore_args(item)
    args = self._ocp.args.PyTreeRestore(item=item, restore_args=restore_args, partial_restore=partial)
    state = self._manager.restore(step, args=self._ocp.args.Composite(state=args))['state']
    return (state if partial else type(target)(**state)), meta

  def wait(self):
    """Returns when everything that was started is on disk; raises what went wrong in the background."""
    self._manager.wait_until_finished()
    self._manager.check_for_errors()

  def close(self):
    self._manager.wait_until_finished()
    self._manager.close()
