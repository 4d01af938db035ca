"""Pretraining: packed rows and next-token loss into the loop.

The functions above `run` are the steps that any training task takes, in order: mesh, tokenizer, data, model,
state. This is the last room that sees a ConfigDict.
"""

import base64
import hashlib
import json
import os
import sys

import jax
import jax.numpy as jnp

from llmstack import loop, metrics, optim, sharding, state
from llmstack import step as steps
from llmstack.checkpoint import Checkpoints, differences
from llmstack.data import batch as batches
from llmstack.data import packing, pipeline, sources
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput
from llmstack.losses import lm
from llmstack.model import ModelConfig, forward, init, parameters, train_flops_per_token, unembed
from llmstack.tasks.sample import complete, encode_prompt

TOKENIZER_CHARACTERS = 16_000_000  # of each source, enough for a vocabulary and seconds to train on


def say(line):
  if jax.process_index() == 0:
    print(line, file=sys.stderr, flush=True)


def data_sources(config):
  """Returns {name: Source}."""
  names = {name: c for name, c in config.data.sources.items()}
  return {
    name: sources.Source(
      files=tuple(c.files), field=c.field, split_on=c.split_on, holdout=c.holdout, holdout_by=c.holdout_by,
      on_error=config.data.on_error,
    )
    for name, c in names.items()
  }  # fmt: skip


def tokenizer_for(config, srcs):
  """Returns the Tokenizer at tokenizer.path, or one trained on the sources' training text, kept in data.folder."""
  c = config.tokenizer
  if c.path is not None:
    return Tokenizer(c.path)
  content = {name: sources.fingerprint(s) for name, s in srcs.items()}
  key = hashlib.blake2b(json.dumps([content, c.kind, c.vocab], sort_keys=True).encode(), digest_size=6)
  path = os.path.join(config.data.folder, f'tokenizer-{key.hexdigest()}.model')
  if not os.path.exists(path):
    say(f'training a {c.kind} tokenizer of {c.vocab} entries')
    texts = (text for s in srcs.values() for text in _first_characters(s, TOKENIZER_CHARACTERS))
    proto = train(texts, kind=c.kind, vocab=c.vocab)
    os.makedirs(config.data.folder, exist_ok=True)
    with open(f'{path}.{os.getpid()}', 'wb') as f:
      f.write(proto)
    os.replace(f'{path}.{os.getpid()}', path)
  return Tokenizer(path)


def _first_characters(source, characters):
  for document in sources.documents(source):
    text = sources.part(document.text, source, 'train')[:characters]
    yield text
    characters -= len(text)
    if characters <= 0:
      return


def open_rows(config, srcs, tokenizer, split):
  """Returns {name: Rows} of that split, packing what is not packed yet; sources without a holdout have no 'eval'."""
  out = {}
  for name, source in srcs.items():
    if split == 'train' or source.holdout:
      out[name] = pipeline.Rows(
        packing.prepare(
          name, source, tokenizer, length=config.data.length + 1, method=config.data.packing, seed=config.seed,
          folder=config.data.folder, split=split,
        )
      )  # fmt: skip
  return out


def model_config(config, tokenizer):
  """Returns the ModelConfig; `vocab` None takes the tokenizer's size. Raises: BadInput where sizes do not fit."""
  c = config.model.to_dict()
  if c['vocab'] is None:
    c['vocab'] = tokenizer.vocab
  if c['vocab'] < tokenizer.vocab:
    raise BadInput(f'model.vocab = {c["vocab"]} is smaller than the tokenizer, which has {tokenizer.vocab} entries')
  return ModelConfig(**c)


def describe(cfg):
  """Returns the model config as plain JSON values."""
  return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(cfg).items()}


# How the same parameters are run may change between a save and a restore; what they are may not.
EXECUTION = ('scan', 'remat', 'dtype', 'dropout', 'init_std')


def check_model(saved, cfg, where):
  """Returns nothing; raises BadInput that prints every difference of the two models."""
  own = {k: v for k, v in describe(cfg).items() if k not in EXECUTION}
  lines = differences({k: v for k, v in saved.items() if k not in EXECUTION}, own, 'model.')
  if lines:
    raise BadInput('\n'.join([f'{where} holds another model (checkpoint -> config):', *lines]))


def check_tokenizer(meta, tokenizer, where):
  """Returns nothing; raises BadInput where the tokenizer is not the checkpoint's."""
  saved = Tokenizer(base64.b64decode(meta['tokenizer']))
  if saved.fingerprint != tokenizer.fingerprint:
    raise BadInput(
      f'{where} was trained with tokenizer {saved.fingerprint} of {saved.vocab} entries and the config gives '
      f'{tokenizer.fingerprint} of {tokenizer.vocab}: set tokenizer.path to null or to the right file'
    )


def origin(config, own):
  """Returns (kind, Checkpoints or None): where parameters come from, first match wins."""
  opened = lambda workdir: Checkpoints(os.path.join(workdir, 'checkpoints'))  # noqa: E731
  if own.latest() is not None:
    return 'own', own
  if config.checkpoint.resume_from:
    return 'resume_from', opened(config.checkpoint.resume_from)
  if config.checkpoint.init_from:
    return 'init_from', opened(config.checkpoint.init_from)
  return 'scratch', None


def lm_loss(cfg, *, z_loss, chunk):
  """Returns loss_fn(params, frozen, batch, rng) of next-token cross-entropy."""

  def loss_fn(params, frozen, batch, rng):
    hidden, _ = forward(cfg, params, batch['tokens'], batch['positions'], batch['segments'], rng=rng)
    head = lambda h: unembed(cfg, params, h)  # noqa: E731
    if chunk is None:
      return lm.cross_entropy(head(hidden), batch['targets'], batch['mask'], z_loss=z_loss)
    return lm.chunked_cross_entropy(hidden, head, batch['targets'], batch['mask'], z_loss=z_loss, chunk=chunk)

  return loss_fn


def evaluator(config, evaluate, parts, log, place, sampler):
  """Returns (k, state) -> None: held-out loss of each source, then samples; both are logged."""
  rows, batch = config.eval.rows, config.data.batch

  def run(k, st):
    for name, part in parts.items():
      total = None
      for start in range(0, min(rows, len(part)), batch):
        tokens, segments = part.read(range(start, min(start + batch, rows, len(part))))
        short = ((0, batch - len(tokens)), (0, 0))  # a last batch is filled up with padding: no loss there
        made = batches.targets(*(jnp.pad(x, short).__array__() for x in (tokens, segments)))
        out = evaluate(st.params, None, place(made))
        total = out if total is None else jax.tree.map(jnp.add, total, out)
      values = {m: float(a) / float(b) for m, (a, b) in jax.device_get(total).items()}
      log.log(k, 'eval', name=name, tokens=float(total['nll'][1]), **values)
      shown = '  '.join(f'{m} {v:.4f}' for m, v in values.items())
      log.progress(f'step {k:>6} held out {name}: {shown}', end=True)
    for prompt, text in zip(config.eval.prompts, sampler(st.params)):
      log.log(k, 'sample', prompt=prompt, text=text)

  return run


def run(config, workdir):
  """Trains to config.train.steps, resuming from workdir where it can; prints the final held-out losses."""
  mesh = sharding.make_mesh(**config.mesh)
  os.makedirs(workdir, exist_ok=True)
  own = Checkpoints(os.path.join(workdir, 'checkpoints'), keep=config.checkpoint.keep, create=True)
  kind, source = origin(config, own)
  step, meta = source.meta() if source else (0, None)
  where = f'checkpoint {source.folder}/{step}' if source else ''
  srcs = data_sources(config)
  if meta and config.tokenizer.path is None:
    if lines := differences(meta['config']['tokenizer'], config.tokenizer.to_dict(), 'tokenizer.'):
      if kind != 'init_from' and meta['config']['tokenizer']['path'] is None:
        raise BadInput('\n'.join([f'{where} has another tokenizer (checkpoint -> config):', *lines]))
    tokenizer = Tokenizer(base64.b64decode(meta['tokenizer']))
  else:
    tokenizer = tokenizer_for(config, srcs)
    if meta:
      check_tokenizer(meta, tokenizer, where)
  cfg = model_config(config, tokenizer)
  if meta:
    check_model(meta['model'], cfg, where)
  if config.data.length > cfg.length:
    raise BadInput(f'data.length = {config.data.length} is longer than model.length = {cfg.length}')
  if config.data.batch % config.train.microbatches:
    raise BadInput(
      f'data.batch = {config.data.batch} is not divisible by train.microbatches = {config.train.microbatches}'
    )
  chunk = config.train.loss_chunk
  if chunk is not None and config.data.length % chunk:
    raise BadInput(f'train.loss_chunk = {chunk} does not divide data.length = {config.data.length}')
  room = cfg.length - config.eval.new_tokens
  for prompt in config.eval.prompts:
    if len(encode_prompt(tokenizer, prompt)) > room:
      raise BadInput(
        f'eval.prompts has {prompt!r} and eval.new_tokens = {config.eval.new_tokens}: together they do not fit into '
        f'model.length = {cfg.length}'
      )
  fresh = lambda: init(cfg, jax.random.key(config.seed))  # noqa: E731
  per_microbatch = config.data.batch // config.train.microbatches
  sharding.check_divisible(jax.eval_shape(fresh), mesh, B=per_microbatch, T=config.data.length)

  parts = open_rows(config, srcs, tokenizer, 'train')
  mixture = pipeline.Mixture(
    parts,
    {name: c.weight for name, c in config.data.sources.items()},
    seed=config.seed,
    batch=config.data.batch,
  )
  if kind in ('own', 'resume_from'):
    mixture.check(meta['data'])
  rate = optim.schedule(
    kind=config.optim.schedule, lr=config.optim.lr, warmup=config.optim.warmup, steps=config.train.steps,
    end=config.optim.end, decay=config.optim.decay,
  )  # fmt: skip
  tx = optim.make(
    name=config.optim.name, rate=rate, b1=config.optim.b1, b2=config.optim.b2, eps=config.optim.eps,
    weight_decay=config.optim.weight_decay,
  )  # fmt: skip
  loss_fn = lm_loss(cfg, z_loss=config.train.z_loss, chunk=chunk)
  resolved = config.to_dict()
  peak = metrics.peak_flops()
  with open(os.path.join(workdir, 'config.json'), 'w') as f:
    json.dump(resolved, f, indent=2)

  with jax.set_mesh(mesh):
    target = state.shapes_of(fresh, tx, mesh)
    if kind in ('own', 'resume_from'):
      st, _ = source.restore(target, step)
      say(f'continuing from step {step} of {source.folder}')
    else:
      st = state.init_sharded(fresh, tx, mesh)
      if kind == 'init_from':
        st = st._replace(params=source.restore({'params': target.params}, step)[0]['params'])
        say(f'parameters from step {step} of {source.folder}')
    total, _ = parameters(cfg)
    say(
      f'{total / 1e6:.2f}M parameters, {config.data.batch * config.data.length} tokens per step, '
      f'{dict(mesh.shape)} on {jax.devices()[0].device_kind}, rows { ({n: len(p) for n, p in parts.items()}) }'
    )
    first = int(st.step)
    if first >= config.train.steps:
      say(f'nothing to do: {workdir} is at step {first} and train.steps is {config.train.steps}')
      return
    update = jax.jit(
      steps.make_step(loss_fn, tx, seed=config.seed, microbatches=config.train.microbatches, clip=config.optim.clip),
      donate_argnums=0,
      out_shardings=(jax.tree.map(lambda x: x.sharding, target), None),
    )
    place = lambda batch: sharding.place(batch, mesh)  # noqa: E731
    log = metrics.Metrics(workdir, resume_step=first, tensorboard=config.train.tensorboard)

    def sampler(params):
      texts = complete(
        cfg, params, tokenizer, config.eval.prompts, mesh=mesh, new_tokens=config.eval.new_tokens,
        seeds=range(len(config.eval.prompts)), temperature=0.0,
      )  # fmt: skip
      return [t.text for t in texts]

    record = {
      'model': describe(cfg), 'config': resolved, 'tokenizer': base64.b64encode(tokenizer.proto).decode(),
    }  # fmt: skip
    try:
      loop.fit(
        st,
        lambda s, batch: update(s, None, batch),
        mixture.iterate(first, config.train.steps, jax.process_index(), jax.process_count()),
        steps=config.train.steps, metrics=log, checkpoints=own,
        meta=lambda k: record | {'data': mixture.position(k)},
        evaluate=evaluator(
          config, jax.jit(steps.make_eval(loss_fn)), open_rows(config, srcs, tokenizer, 'eval'), log, place, sampler
        ),
        log_every=config.train.log_every, eval_every=config.eval.every, save_every=config.checkpoint.every,
        tokens_per_step=config.data.batch * config.data.length,
        flops_per_token=train_flops_per_token(cfg, config.data.length), peak_flops=peak,
        bad_steps=config.train.bad_steps, workdir=workdir, place=place, crc=batches.crc,
      )  # fmt: skip
    finally:
      log.close()
      own.close()
