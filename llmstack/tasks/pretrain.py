"""Pretraining: packed rows and next-token loss into the loop."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np

from llmstack import errors, loop, memory, metrics, optim, runtime, sharding, state
from llmstack import step as steps
from llmstack.checkpoint import Checkpoints
from llmstack.data import batch as batches
from llmstack.data import pipeline
from llmstack.errors import BadInput
from llmstack.losses import lm
from llmstack.model import describe, forward, init, parameters, train_flops_per_token, unembed
from llmstack.tasks import start
from llmstack.tasks.sample import complete


def lm_loss(cfg, *, z_loss, chunk):
  """Returns loss_fn(params, frozen, batch, rng) of next-token cross-entropy."""

  def loss_fn(params, frozen, batch, rng):
    hidden, _ = forward(cfg, params, batch['tokens'], batch['positions'], batch['segments'], rng=rng)
    head = lambda h: unembed(cfg, params, h)  # noqa: E731
    if chunk is None:
      return lm.cross_entropy(head(hidden), batch['targets'], batch['mask'], z_loss=z_loss)
    return lm.chunked_cross_entropy(hidden, head, batch['targets'], batch['mask'], z_loss=z_loss, chunk=chunk)

  return loss_fn


def checksum(batch):
  """Returns uint32[] of the global batch's tokens, targets and mask; the same for any number of hosts and devices."""
  total = jnp.zeros((), jnp.uint32)
  for n, name in enumerate(('tokens', 'targets', 'mask')):
    x = batch[name].astype(jnp.uint32)
    place = jax.lax.broadcasted_iota(jnp.uint32, x.shape, 0) * x.shape[1] + jax.lax.broadcasted_iota(
      jnp.uint32, x.shape, 1
    )
    x = (x + jnp.uint32(1 + n)) * jnp.uint32(0x9E3779B1) ^ place * jnp.uint32(0x85EBCA6B)
    x = (x ^ x >> 15) * jnp.uint32(0xC2B2AE35)
    total += jnp.sum(x ^ x >> 13, dtype=jnp.uint32)
  return total


def evaluator(config, evaluate, parts, log, place, sampler, watch):
  """Returns (k, state) -> metrics of all sources together; each source's, and samples, are logged.

  Each process reads its slice of every batch. Asked to stop between two batches it returns {} and logs nothing.
  """
  batch = config.data.batch
  local = batch // jax.process_count()

  def run(k, st):
    totals = {}
    for name, part in parts.items():
      rows, outs = min(config.eval.rows, len(part)), []
      for i in range(jax.process_index() * local, rows + jax.process_index() * local, batch):
        if watch.poll():
          return {}
        watch.beat('evaluation')
        tokens, segments = part.read(range(min(i, rows), min(i + local, rows)))
        short = ((0, local - len(tokens)), (0, 0))  # a last batch is filled up with padding: no loss there
        made = batches.targets(np.pad(tokens, short), np.pad(segments, short))
        outs.append(evaluate(st.params, None, place(made)))
        jax.block_until_ready(outs[-2:-1])  # one batch ahead of the device, as in training
      totals[name] = jax.tree.map(lambda *x: float(sum(x)), *jax.device_get(outs))
    if watch.poll():
      return {}
    watch.beat('samples')
    texts = sampler(st.params)
    for name, total in totals.items():
      values = {m: a / b for m, (a, b) in total.items()}
      log.log(k, 'eval', name=name, tokens=total['nll'][1], **values)
      shown = '  '.join(f'{m} {v:.4f}' for m, v in values.items())
      log.progress(f'step {k:>6} held out {name}: {shown}', end=True)
    for prompt, text in zip(config.eval.prompts, texts):
      log.log(k, 'sample', prompt=prompt, text=text.text)
    together = list(totals.values())
    sums = {m: [sum(x) for x in zip(*(total[m] for total in together))] for m in (together or [{}])[0]}
    return {f'eval/{m}': a / b for m, (a, b) in sums.items()}

  return run


def check_samples(config, cfg, tokenizer):
  """Returns nothing; raises BadInput for an eval prompt that would fail in the middle of training."""
  errors.at_least(config, 1, 'eval.rows', 'eval.every', 'eval.new_tokens')
  for prompt in config.eval.prompts:
    if not 0 < len(tokenizer.prompt(prompt)) <= cfg.length - config.eval.new_tokens:
      raise BadInput(
        f'eval.prompts has {prompt!r} of {len(tokenizer.prompt(prompt))} tokens and eval.new_tokens = '
        f'{config.eval.new_tokens}: together they must fit into model.length = {cfg.length}, and not be empty'
      )


def run(config, workdir):
  """Trains to config.train.steps, resuming from workdir where it can; logs, evaluates, saves and draws the curves."""
  # All that can be wrong without a device is found before one is started.
  watch = runtime.here()
  errors.at_least(config, 1, 'runtime.hang_s', 'runtime.grace_s')
  watch.configure(workdir, hang_s=config.runtime.hang_s, grace_s=config.runtime.grace_s)
  srcs = start.data_sources(config)
  start.check_train(config)
  errors.at_least(config, 1, 'checkpoint.every', 'checkpoint.keep', 'checkpoint.keep_every')
  errors.local(config.data.folder, 'data.folder')
  o = config.optim
  rate = optim.schedule(kind=o.schedule, lr=o.lr, warmup=o.warmup, steps=config.train.steps, end=o.end, decay=o.decay)
  tx = optim.make(name=o.name, rate=rate, b1=o.b1, b2=o.b2, eps=o.eps, weight_decay=o.weight_decay)
  mesh = sharding.make_mesh(**config.mesh)
  own = Checkpoints.of(
    errors.local(workdir, 'workdir'), keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every,
    best=config.checkpoint.best and (config.checkpoint.best, 'min'), create=True,
  )  # fmt: skip
  origin = start.Origin(config, own)
  with watch.pod.first('tokenizer'):
    tokenizer = origin.tokenizer(config, srcs)
  cfg = start.model_config(config, tokenizer)
  origin.check_model(cfg)
  fresh = lambda: init(cfg, jax.random.key(config.seed))  # noqa: E731
  start.check_layout(config, cfg, fresh, mesh)
  check_samples(config, cfg, tokenizer)
  with watch.pod.first('rows'):
    parts, held_out = (start.open_rows(config, srcs, tokenizer, split) for split in ('train', 'eval'))
  mixture = pipeline.Mixture(parts, start.weights(config), seed=config.seed, batch=config.data.batch)
  origin.check_data(mixture)
  watch.pod.agree(
    'start',
    {
      'data': mixture.position(origin.step if origin.resumes else 0),
      'tokenizer': tokenizer.fingerprint,
      'held out': {name: part.fingerprint for name, part in held_out.items()},
      'model': describe(cfg),
      'parameters': [origin.kind, origin.step],
    },
  )
  loss_fn = lm_loss(cfg, z_loss=config.train.z_loss, chunk=config.train.loss_chunk)
  peak = metrics.peak_flops()

  window = config.train.spike_window if config.train.spike_sigma is not None else 0
  budget = memory.Budget(
    microbatches=config.train.microbatches, remat=config.model.remat, fsdp=config.mesh.fsdp, batch=config.data.batch
  )
  inner = steps.make_step(
    loss_fn, tx, seed=config.seed, microbatches=config.train.microbatches, clip=o.clip,
    spike_sigma=config.train.spike_sigma,
  )  # fmt: skip

  def one_step(state, frozen, batch):
    new, measured = inner(state, frozen, batch)
    return new, measured | {'crc': checksum(batch), 'lr': rate(state.step - new.skipped)}

  with jax.set_mesh(mesh), budget:
    first = origin.step if origin.resumes else 0
    seen = {r['step'] for r in metrics.read(workdir) if r['kind'] == 'eval'}
    ends = first % config.eval.every == 0 or first == config.train.steps
    owed = origin.kind == 'own' and bool(held_out) and ends and first not in seen  # a stop broke it off
    if first >= config.train.steps and not owed:
      start.say(f'nothing to do: {workdir} is at step {first} and train.steps is {config.train.steps}')
      return
    target = state.shapes_of(fresh, tx, mesh, window)
    update = jax.jit(
      one_step, donate_argnums=0, out_shardings=(jax.tree.map(lambda x: x.sharding, target), None)
    )  # fmt: skip
    watch.beat('compiling')
    update = update.lower(target, None, start.batch_shapes(config, mesh)).compile()
    memory.trim()
    start.say(
      f'{parameters(cfg)[0] / 1e6:.2f}M parameters, {config.data.batch * config.data.length} tokens per step, '
      f'{dict(mesh.shape)} on {jax.devices()[0].device_kind}; {budget.check(update)}'
    )
    metrics.write(os.path.join(workdir, 'config.json'), json.dumps(config.to_dict(), indent=2))
    watch.beat('restoring or initialising the state')
    st = origin.state(fresh, tx, mesh, window)
    memory.trim()
    own.check_space(st)
    place = lambda batch: sharding.place(batch, mesh)  # noqa: E731
    log = metrics.Metrics(workdir, resume_step=first, tensorboard=config.train.tensorboard)

    def sampler(params):
      return complete(
        cfg, params, tokenizer, config.eval.prompts, mesh=mesh, new_tokens=config.eval.new_tokens,
        seeds=range(len(config.eval.prompts)), temperature=0.0,
      )  # fmt: skip

    record = start.record(cfg, config, tokenizer)
    try:
      loop.fit(
        st,
        lambda s, batch: update(s, None, batch),
        mixture.iterate(first, config.train.steps, jax.process_index(), jax.process_count()),
        steps=config.train.steps, metrics=log, checkpoints=own,
        meta=lambda k: record | {'data': mixture.position(k)},
        evaluate=evaluator(config, jax.jit(steps.make_eval(loss_fn)), held_out, log, place, sampler, watch),
        log_every=config.train.log_every, eval_every=config.eval.every, save_every=config.checkpoint.every,
        tokens_per_step=config.data.batch * config.data.length,
        flops_per_token=train_flops_per_token(cfg, config.data.length), peak_flops=peak,
        bad_steps=config.train.bad_steps, workdir=workdir, place=place, watch=watch,
        owed=owed,
      )  # fmt: skip
    finally:
      log.close()
      own.close()
  if not jax.process_index():
    start.say(metrics.plot(workdir))
