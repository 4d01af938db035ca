"""Which letter of which array lies on which mesh axis.

Two tables say everything. `AXES` gives the letters of each parameter by its role (the name of the
module that owns it), written as the matmul reads them, inputs -> outputs: fan-in, bias shapes and
adapter shapes follow from the arrow. `RULES` sends a letter to mesh axes. A mesh axis is used at
most once per array, first letter first: in 'BTD' the batch takes `fsdp`, so D stays whole; in 'DF'
the weight's D takes it.

Source: the notation of "How to Scale Your Model" (scaling-book).
"""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from llmstack.errors import BadInput

MESH_AXES = ('data', 'fsdp', 'tensor', 'context', 'expert')

AXES = {
  'embed': 'V->D', 'pos_embed': 'S->D', 'head': 'D->V', 'value_head': 'D->',
  'wq': 'D->NH', 'wk': 'D->KH', 'wv': 'D->KH', 'wo': 'NH->D',
  'w_gate': 'D->F', 'w_up': 'D->F', 'w_down': 'F->D',
  'attn_norm': '->D', 'mlp_norm': '->D', 'post_attn_norm': '->D', 'post_mlp_norm': '->D', 'final_norm': '->D',
  'q_norm': '->H', 'k_norm': '->H',
}  # fmt: skip

RULES = {
  'B': ('data', 'fsdp'), 'T': ('context',), 'D': ('fsdp',), 'N': ('tensor',), 'K': ('tensor',),
  'F': ('tensor',), 'V': ('tensor',), 'E': ('expert',),
}  # fmt: skip

FIX = {
  'B': 'data.batch', 'T': 'data.length', 'D': 'model.width', 'N': 'model.heads', 'K': 'model.kv_heads',
  'F': 'model.ff', 'V': 'model.vocab (round it up: ids past the tokenizer are never targets)',
}  # fmt: skip


def make_mesh(*, data=None, fsdp=1, tensor=1, context=1, expert=1, devices=None):
  """Returns a Mesh over all devices with the five axes; `data=None` takes the devices that are left.

  Raises: BadInput where the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = dict(data=data, fsdp=fsdp, tensor=tensor, context=context, expert=expert)
  rest = int(np.prod([s for s in sizes.values() if s is not None]))
  if rest < 1:
    raise BadInput(f'mesh sizes {sizes} must be positive: use 1 for an axis that is not wanted')
  if data is None:
    sizes['data'] = max(len(devices) // rest, 1)
  if int(np.prod(list(sizes.values()))) != len(devices):
    raise BadInput(
      f'mesh {sizes} needs {int(np.prod(list(sizes.values())))} devices and there are {len(devices)}: '
      'change config.mesh (on a CPU, JAX_NUM_CPU_DEVICES=8 emulates eight devices)'
    )
  # Explicit axis types, the default of jax.make_mesh, are not understood by flax linen.
  return jax.make_mesh(tuple(sizes.values()), MESH_AXES, (AxisType.Auto,) * 5, devices=devices)


def spec(letters):
  """Returns the PartitionSpec of an array with these letters."""
  used, out = set(), []
  for letter in letters:
    axes = tuple(a for a in RULES.get(letter, ()) if a not in used)
    used.update(axes)
    out.append(axes if len(axes) > 1 else axes[0] if axes else None)
  return P(*out)


def letters_of(path):
  """Returns the letters of the parameter at `path`, e.g. ('layers', 'wq', 'w') -> 'LDNH'.

  A low-rank adapter {a, b} lies beside its weight: 'LDR' and 'LRNH'. What a packed weight is stored in ('.', no rule)
  is on every device: its blocks run across the axes of the matrix.

  Raises: KeyError for a role that AXES does not know; it is never silently replicated.
  """
  *scope, role, leaf = path
  ins, outs = AXES[role].split('->')
  letters = {'w': ins + outs, 'a': ins + 'R', 'b': 'R' + outs, 'absmax_offset': ''}.get(leaf, outs)
  letters = '.' if leaf in ('nf4', 'absmax', 'absmax_scale') else letters
  return ('L' if 'layers' in scope else '') + letters


def keys(path):
  """Returns a jax key path as a tuple of strings."""
  return tuple(str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path)


def param_shardings(params, mesh, tree=None):
  """Returns NamedShardings for `params`, or for a `tree` of which parts mirror it (optimiser moments).

  A leaf of `tree` whose path ends in a parameter's path and whose shape is the parameter's is laid out
  like it; counters and factored statistics (Adafactor's rows and columns) are replicated.
  params, tree: trees of arrays or ShapeDtypeStructs.
  """
  known = {keys(p): (x.shape, spec(letters_of(keys(p)))) for p, x in jax.tree_util.tree_leaves_with_path(params)}

  def one(path, leaf):
    path = keys(path)
    for i in range(len(path)):
      shape, where = known.get(path[i:], (None, None))
      if shape == leaf.shape:
        return NamedSharding(mesh, where)
    return NamedSharding(mesh, P())

  return jax.tree_util.tree_map_with_path(one, params if tree is None else tree)


def laid_out(shapes, shardings):
  """Returns a tree of ShapeDtypeStructs that carry their shardings: the target of a restore."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)


def check_divisible(params, mesh, **sizes):
  """Returns nothing; raises BadInput with the letter, the sizes and the fix where a split is uneven.

  params: tree of shapes. sizes: further letters, e.g. B=batch, T=length.
  """
  arrays = [(p, letters_of(keys(p)), x.shape) for p, x in jax.tree_util.tree_leaves_with_path(params)]
  arrays += [(None, ''.join(sizes), tuple(sizes.values()))]
  for path, letters, shape in arrays:
    for letter, size, axes in zip(letters, shape, spec(letters)):
      axes = axes if isinstance(axes, tuple) else (axes,) if axes else ()
      ways = int(np.prod([mesh.shape[a] for a in axes]))
      if size % ways:
        where = f' (parameter {"/".join(keys(path))})' if path else ''
        raise BadInput(
          f'{letter} = {size}{where} is not divisible by mesh {" x ".join(axes)} = {ways}: '
          f'change {FIX.get(letter, letter)} or config.mesh.{axes[-1]}'
        )


def constrain(x, letters):
  """Returns x laid out by its letters under the current mesh; unchanged where our mesh is not set."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.axis_names != MESH_AXES:
    return x
  return jax.lax.with_sharding_constraint(x, spec(letters))


def place(batch, mesh, letters=lambda name, ndim: 'BT'[:ndim]):
  """Returns a dict of global arrays from this process's rows. letters: (name, number of axes) -> those of an array."""

  def one(name, x):
    return jax.make_array_from_process_local_data(NamedSharding(mesh, spec(letters(name, np.ndim(x)))), x)

  return {name: one(name, x) for name, x in batch.items()}
