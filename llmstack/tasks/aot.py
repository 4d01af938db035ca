"""The training step and the decode step, compiled for TPUs that are not here: do they fit, and what do they send?"""

import importlib.metadata
import importlib.util
import json
import os
import time

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import NamedSharding

from llmstack import errors, metrics, optim, sharding, state
from llmstack import step as steps
from llmstack.errors import BadInput
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.model import ModelConfig, allocate, check_attention, init, parameters, train_flops_per_token
from llmstack.plan import aot
from llmstack.tasks.pretrain import lm_loss


def devices_of(topology):
  """Returns the devices of a TPU slice, of which there need be none. Raises: BadInput without a TPU compiler."""
  if not os.environ.get('TPU_LIBRARY_PATH') and importlib.util.find_spec('libtpu') is None:
    needs = [r.split(';')[0] for r in importlib.metadata.requires('jax') if r.startswith('libtpu')]
    raise BadInput(
      f'the TPU compiler is missing: `make aot` installs it beside the virtual environment, or '
      f"pip install --no-deps '{needs[0]}'"
    )
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')  # else libtpu asks a cloud's metadata server for minutes
  try:
    return topologies.get_topology_desc(platform='tpu', topology_name=topology).devices
  except jax.errors.JaxRuntimeError as e:
    raise BadInput(f'topology = {topology!r} is none that libtpu knows, try v5e:4x4 or v4:2x2x4: {e}') from None


def laid_out(mesh, x, letters):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, sharding.spec(letters)))


def train_step(config, cfg, mesh):
  """Returns (jitted step, its arguments as shapes with shardings, model FLOPs of one call)."""
  c = config.train
  errors.at_least(config, 1, 'train.batch', 'train.length', 'train.microbatches', 'train.loss_chunk')
  if c.batch % c.microbatches or c.length % c.loss_chunk:
    raise BadInput(
      f'train.microbatches = {c.microbatches} must divide train.batch = {c.batch}, '
      f'and train.loss_chunk = {c.loss_chunk} train.length = {c.length}'
    )
  fresh = lambda: init(cfg, jax.random.key(0))  # noqa: E731
  sharding.check_divisible(jax.eval_shape(fresh), mesh, B=c.batch // c.microbatches, T=c.length)
  check_attention(cfg, mesh, c.length)
  tx = optim.make(name=config.train.optim, rate=lambda step: 1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)
  step = steps.make_step(
    lm_loss(cfg, z_loss=0.0, chunk=c.loss_chunk), tx, seed=0, microbatches=c.microbatches, clip=1.0
  )
  st = state.shapes_of(fresh, tx, mesh)
  dtypes = dict(tokens='int32', positions='int32', segments='int32', targets='int32', mask='float32')
  rows = jax.eval_shape(lambda: {k: jnp.zeros((c.batch, c.length), t) for k, t in dtypes.items()})
  batch = jax.tree.map(lambda x: laid_out(mesh, x, 'BT'), rows)
  step = jax.jit(step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, st), None))
  return step, (st, None, batch), c.batch * c.length * train_flops_per_token(cfg, c.length)


def decode_step(config, cfg, mesh):
  """Returns (jitted decode_one, its arguments as shapes with shardings, model FLOPs of one call)."""
  c = config.decode
  errors.at_least(config, 1, 'decode.batch', 'decode.length')
  shapes = jax.eval_shape(lambda: init(cfg, jax.random.key(0)))
  sharding.check_divisible(shapes, mesh, B=c.batch)
  params = sharding.laid_out(shapes, sharding.param_shardings(shapes, mesh))
  letters = decode.State(
    [{'k': 'BKSH', 'v': 'BKSH', 'pos': 'BS'}] * cfg.layers, logits='BV', positions='B', tail='B.', done='B'
  )

  def zeros():
    rows = lambda dtype, *more: jnp.zeros((c.batch, *more), dtype)  # noqa: E731
    cache = allocate(cfg, c.batch, c.length)
    return decode.State(cache, rows('float32', cfg.vocab), rows('int32'), rows('int32', 1), rows(bool))

  st = jax.tree.map(lambda x, l: laid_out(mesh, x, l), jax.eval_shape(zeros), letters)
  how = jax.eval_shape(lambda: (decode.row_keys(range(c.batch)), Sampling.of(c.batch, cfg.vocab)))
  keys, sampling = jax.tree.map(lambda x: laid_out(mesh, x, 'B'), how)
  stops = laid_out(mesh, jax.ShapeDtypeStruct((1, 1), 'int32'), '..')
  one = jax.jit(
    lambda *args: decode.decode_one(cfg, *args), donate_argnums=1,
    out_shardings=(jax.tree.map(lambda x: x.sharding, st), None),
  )  # fmt: skip
  attended = 4 * cfg.heads * cfg.head_width * sum(min(w, c.length) for w in cfg.window_of_layer)
  return one, (params, st, keys, sampling, stops), c.batch * (2 * parameters(cfg)[1] + attended)


def compiled(step, args, topology):
  """Returns (compiled program, seconds). Raises: BadInput where the compiler finds that it does not fit."""
  began = time.perf_counter()
  try:
    program = step.lower(*args).compile()
  except jax.errors.JaxRuntimeError as e:
    if 'RESOURCE_EXHAUSTED' not in str(e):
      raise
    first = next(line for line in str(e).splitlines() if 'RESOURCE_EXHAUSTED' in line)
    raise BadInput(
      f'this does not fit {topology}: {first}\n'
      'more fsdp or tensor, more microbatches, remat full or a smaller loss_chunk need less'
    ) from None
  return program, time.perf_counter() - began


def show(row, rows, length, hbm, peak):
  """Prints one program: GiB of a device by what they hold, and what it sends. hbm: GiB; peak: FLOP/s; or None."""
  held = {k: row[k] / aot.GIB for k in ('arguments', 'outputs', 'temporaries', 'code')}
  total, notes = sum(held.values()), {'arguments': f'{row["held"] / aot.GIB:.3f} by the shardings'}
  if not held['temporaries']:
    notes['temporaries'] = 'as reported, which is not to be believed'
  lines = [(what, gib, notes.get(what, '')) for what, gib in held.items()]
  lines += [('together', total, f'of {hbm:g} GiB, {total / hbm:.0%}' if hbm else '')]
  lines += [(kind, size / aot.GIB, f'in {n}') for kind, (n, size) in row['collectives'].items()]
  lines += [('model TFLOP', row['flops'] / 1e12, f'{1e3 * row["flops"] / peak:.2f} ms at peak' if peak else '')]
  print(f'\n{row["program"]}: {rows} rows x {length} tokens on {row["mesh"]}, compiled in {row["compile_s"]:.0f} s')
  print(f'  {"per device":<20}{"GiB":>10}')
  for what, figure, note in lines:
    print(f'  {what:<20}{figure:>10.3f}   {note}')


def run(config, workdir):
  """Prints a table of each program's memory, FLOPs and collectives per device; writes aot.json and the HLO texts."""
  jax.config.update('jax_platforms', 'cpu')
  devices = devices_of(config.topology)
  hbm, peak = aot.per_device(aot.HBM, devices), aot.per_device(metrics.PEAK, devices)
  cfg = ModelConfig(**config.model.to_dict())
  os.makedirs(errors.local(workdir, 'workdir'), exist_ok=True)
  size = f'{parameters(cfg)[0] / 1e9:.3f}B parameters in {cfg.layers} layers'
  print(f'{config.topology}: {len(devices)} x {devices[0].device_kind}; {size}, {cfg.attention}, remat {cfg.remat}')
  programs = {
    'train': (train_step, sharding.make_mesh(**config.mesh, devices=devices)),
    'decode': (decode_step, sharding.make_mesh(tensor=config.decode.tensor, devices=devices)),
  }
  out = []
  for name, (make, mesh) in programs.items():
    with jax.set_mesh(mesh):
      step, args, flops = make(config, cfg, mesh)
      program, seconds = compiled(step, args, config.topology)
    metrics.write(os.path.join(workdir, f'{name}.hlo'), program.as_text())
    out.append({
      'program': name, 'topology': config.topology, 'mesh': {k: v for k, v in mesh.shape.items() if v > 1},
      'compile_s': seconds, 'flops': flops / len(devices), 'held': aot.held(args),
      **aot.Memory.of(program)._asdict(), 'collectives': aot.collectives(program.as_text()),
    })  # fmt: skip
    show(out[-1], config[name].batch, config[name].length, hbm, peak)
  metrics.write(os.path.join(workdir, 'aot.json'), json.dumps(out, indent=2))
