"""What every training task does around its objective: settings, origin, layout, compiling, and the loop.

A task is `build(config, origin, mesh, watch) -> Job`; the Job says what is trained on what, and `run` does the rest.
"""

import contextlib
import json
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llmstack import errors, loop, memory, metrics, optim, runtime, sharding, state
from llmstack import step as steps
from llmstack.checkpoint import Checkpoints
from llmstack.data import batch as batches
from llmstack.model import ModelConfig, train_flops_per_token
from llmstack.tasks import start


class Job(NamedTuple):
  """What is trained on what. Trees are those of the model, or of what an objective adds to it."""

  cfg: ModelConfig
  tokenizer: Any
  stream: Any  # pipeline.Mixture
  held_out: dict  # name -> pipeline.Rows
  loss_fn: Any  # (params, frozen, batch, rng) -> (sums, weights, metrics)
  fresh: Any  # () -> trainable parameters, which are also evaluated abstractly
  says: str  # what is trained, for the first line
  loaded: Any = None  # () -> trainable parameters of a run that begins from others; None: fresh, or origin's
  frozen: Any = None  # tree of arrays on the mesh that the loss reads
  before: Any = None  # (state, frozen, batch) -> (frozen, batch): what the whole batch needs before it is divided
  wrap: Any = None  # optax transformation -> another one around it
  answers: Any = None  # params -> [(prompt, text)], the samples of an evaluation
  record: dict = {}  # what the checkpoints of this task hold besides those of every one; JSON
  online: Any = None  # rl.Online, whose steps make their own batches; None where a step is one update on a batch


def checksum(batch):
  """Returns uint32[] of the global batch: tokens, targets, mask, shared prompts. The same on any number of hosts."""
  total = jnp.zeros((), jnp.uint32)
  for n, name in enumerate(('tokens', 'targets', 'mask', *(['prompt'] if 'prompt' in batch else []))):
    x = batch[name].reshape(-1, batch[name].shape[-1]).astype(jnp.uint32)
    place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, 0) * x.shape[1] + jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, 1
    )
    x = (x + jnp.uint32(1 + n)) * jnp.uint32(0x9E3779B1) ^ place * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 15) * jnp.uint32(0xC2B2AE35)
    total += jnp.sum(x ^ x >> 13, dtype=jnp.uint32)
  return total


def evaluator(config, evaluate, job, log, place, watch):
  """Returns (k, state) -> metrics of all sources together; each source's, and samples, are logged.

  Each process reads its slice of every batch. Asked to stop between two batches it returns {} and logs nothing.
  """
  batch = config.data.batch
  local = batch // jax.process_count()

  def run(k, st):
    totals = {}
    for name, part in job.held_out.items():
      rows, outs = min(config.eval.rows, len(part)), []
      for i in range(jax.process_index() * local, rows + jax.process_index() * local, batch):
        if watch.poll():
          return {}
        watch.beat('evaluation')
        read = part.read(range(min(i, rows), min(i + local, rows)))
        # A last batch is filled up with padding: no loss there.
        short = {k: np.pad(x, ((0, local - len(x)), *[(0, 0)] * (x.ndim - 1))) for k, x in read.items()}
        outs.append(evaluate(st, place(batches.make(short))))
        jax.block_until_ready(outs[-2:-1])  # one batch ahead of the device, as in training
      totals[name] = jax.tree.map(lambda *x: float(sum(x)), *jax.device_get(outs))
    if watch.poll():
      return {}
    watch.beat('samples')
    answers = job.answers(st.params) if job.answers else ()
    for name, total in totals.items():
      values = {m: a / b for m, (a, b) in total.items() if b}
      log.log(k, 'eval', name=name, tokens=total[next(iter(total))][1], **values)
      shown = '  '.join(f'{m} {v:.4f}' for m, v in values.items())
      log.progress(f'step {k:>6} held out {name}: {shown}', end=True)
    for prompt, text in answers:
      log.log(k, 'sample', prompt=prompt, text=text)
    together = list(totals.values())
    sums = {m: [sum(x) for x in zip(*(total[m] for total in together))] for m in (together or [{}])[0]}
    return {f'eval/{m}': a / b for m, (a, b) in sums.items() if b}

  return run


def run(config, workdir, check, build, updates=1):
  """Trains to config.train.steps, resuming from workdir where it can; logs, evaluates, saves and draws the curves.

  check: config -> nothing; raises BadInput for what is wrong without a device.
  build: (config, origin, mesh, watch) -> Job. updates: of the optimiser in one step.
  """
  watch = runtime.here()
  errors.at_least(config, 1, 'runtime.hang_s', 'runtime.grace_s')
  watch.configure(workdir, hang_s=config.runtime.hang_s, grace_s=config.runtime.grace_s)
  start.check_train(config)
  errors.at_least(config, 1, 'checkpoint.every', 'checkpoint.keep', 'checkpoint.keep_every')
  errors.at_least(config, 1, 'eval.rows', 'eval.every', 'eval.new_tokens')
  errors.local(config.data.folder, 'data.folder')
  check(config)
  o = config.optim
  warmup, decay, steps = (n * updates for n in (o.warmup, o.decay, config.train.steps))
  rate = optim.schedule(kind=o.schedule, lr=o.lr, warmup=warmup, steps=steps, end=o.end, decay=decay)
  tx = optim.make(name=o.name, rate=rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)
  mesh = sharding.make_mesh(**config.mesh)
  own = Checkpoints.of(
    errors.local(workdir, 'workdir'), keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every,
    best=config.checkpoint.best and (config.checkpoint.best, 'min'), create=True,
  )  # fmt: skip
  with contextlib.closing(own):
    origin = start.Origin(config, own)
    job = build(config, origin, mesh, watch)
    with contextlib.closing(job.online) if job.online else contextlib.nullcontext():
      _fit(config, workdir, job, origin, own, mesh, tx, rate, watch)


def _fit(config, workdir, job, origin, own, mesh, tx, rate, watch):
  """Trains to config.train.steps; `own`, the Checkpoints of the workdir, and the job are closed by the caller."""
  tx = job.wrap(tx) if job.wrap else tx
  origin.check_data(job.stream)
  watch.pod.agree(
    'start',
    {
      'data': job.stream.position(origin.step if origin.resumes else 0),
      'tokenizer': job.tokenizer.fingerprint,
      'held out': {name: part.fingerprint for name, part in job.held_out.items()},
      'model': start.describe(job.cfg),
      'parameters': [origin.kind, origin.step],
    },
  )
  peak = metrics.peak_flops()
  window = config.train.spike_window if config.train.spike_sigma is not None else 0
  budget = memory.Budget(
    microbatches=config.train.microbatches, remat=config.model.remat, fsdp=config.mesh.fsdp, batch=config.data.batch
  )
  inner = steps.make_step(
    job.loss_fn, tx, seed=config.seed, microbatches=config.train.microbatches,
    clip=config.optim.clip, spike_sigma=config.train.spike_sigma,
  )  # fmt: skip

  def one_step(state, frozen, batch):
    read = batch
    if job.before:
      frozen, batch = job.before(state, frozen, batch)
    new, measured = inner(state, frozen, batch)
    return new, measured | {'crc': checksum(read), 'lr': rate(state.step - new.skipped)}

  @jax.jit
  def measure(state, frozen, batch):
    if job.before:
      frozen, batch = job.before(state, frozen, batch)
    return steps.make_eval(job.loss_fn)(state.params, frozen, batch)

  with jax.set_mesh(mesh), budget:
    first = origin.step if origin.resumes else 0
    seen = {r['step'] for r in metrics.read(workdir) if r['kind'] == 'eval'}
    ends = first % config.eval.every == 0 or first == config.train.steps
    owed = origin.kind == 'own' and bool(job.held_out) and ends and first not in seen  # a stop broke it off
    if first >= config.train.steps and not owed:
      start.say(f'nothing to do: {workdir} is at step {first} and train.steps is {config.train.steps}')
      return
    target = state.shapes_of(job.fresh, tx, mesh, window)
    layout = jax.tree.map(lambda x: x.sharding, target)

    def compiled(shapes):
      watch.beat('compiling')
      update = jax.jit(one_step, donate_argnums=0, out_shardings=(layout, None))
      return update.lower(target, job.frozen, shapes).compile()

    shapes = job.online.shapes() if job.online else start.batch_shapes(job.stream, config.data.batch, mesh)
    update = compiled(shapes)
    memory.trim()
    places = sum(int(np.prod(shapes[k].shape)) for k in ('tokens', 'prompt') if k in shapes)
    start.say(
      f'{job.says}, {places} tokens per step, {dict(mesh.shape)} on {jax.devices()[0].device_kind}; '
      f'{budget.check(update)}'
    )
    metrics.write(os.path.join(workdir, 'config.json'), json.dumps(config.to_dict(), indent=2))
    watch.beat('restoring or initialising the state')
    st = origin.state(job.fresh, tx, mesh, window, job.loaded)
    memory.trim()
    own.check_space(st)
    place = lambda batch: sharding.place(batch, mesh, batches.letters)  # noqa: E731
    log = metrics.Metrics(workdir, resume_step=first, tensorboard=config.train.tensorboard)
    record = start.record(job.cfg, config, job.tokenizer) | job.record
    if job.online:
      step, evaluate, more = job.online.begin(update, compiled, log, watch, origin)
    else:
      step, more = (lambda s, batch: update(s, job.frozen, batch)), dict
      evaluate = evaluator(config, lambda s, batch: measure(s, job.frozen, batch), job, log, place, watch)
    try:
      loop.fit(
        st,
        step,
        job.stream.iterate(first, config.train.steps, jax.process_index(), jax.process_count()),
        steps=config.train.steps, metrics=log, checkpoints=own,
        meta=lambda k: record | {'data': job.stream.position(k)} | more(),
        evaluate=evaluate,
        log_every=config.train.log_every, eval_every=config.eval.every, save_every=config.checkpoint.every,
        tokens_per_step=places, flops_per_token=train_flops_per_token(job.cfg, config.data.length),
        peak_flops=None if job.online else peak,
        bad_steps=config.train.bad_steps, workdir=workdir, place=(lambda batch: batch) if job.online else place,
        watch=watch,
        owed=owed, first=first,
      )  # fmt: skip
    finally:
      log.close()
  if not jax.process_index():
    start.say(metrics.plot(workdir))
