"""What every training task does before its first step, in this order: settings, tokenizer, rows, model, state."""

import base64
import dataclasses
import functools
import hashlib
import json
import os
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from llmstack import sharding, state
from llmstack.checkpoint import Checkpoints, differences
from llmstack.data import batch as batches
from llmstack.data import packing, pipeline, sources
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput, at_least, local
from llmstack.model import (
  Lora,
  ModelConfig,
  adapter_parameters,
  check_attention,
  dequantise,
  describe,
  described,
  init,
  init_adapters,
  merge,
  parameters,
  quantise,
  value_head,
)  # fmt: skip

TOKENIZER_CHARACTERS = 16_000_000  # of each source: enough for a vocabulary, and seconds to train on

# How the same parameters are run may change between a save and a restore; what they are may not.
EXECUTION = ('attention', 'scan', 'remat', 'dtype', 'dropout', 'init_std')


def say(line):
  if jax.process_index() == 0:
    print(line, file=sys.stderr, flush=True)


def data_sources(config):
  """Returns {name: Source}."""
  at_least(config, 1, 'data.batch', 'data.length', 'tokenizer.vocab')
  out = {}
  for name, c in config.data.sources.items():
    out[name] = sources.Source(
      files=c.files if isinstance(c.files, str) else tuple(c.files), field=c.field, split_on=c.split_on,
      holdout=c.holdout, holdout_by=c.holdout_by, on_error=config.data.on_error,
    )  # fmt: skip
  return out


def tokenizer_for(config, srcs):
  """Returns the Tokenizer at tokenizer.path, or one trained on the sources' training text, kept in data.folder."""
  c = config.tokenizer
  if c.path is not None:
    return Tokenizer(c.path)
  for name, source in srcs.items():
    if packing.packed(source, 'train'):
      raise BadInput(f'source {name} is a packed folder: set tokenizer.path to the tokenizer it was packed with')
  reading = {name: dataclasses.asdict(s) | {'files': sources.fingerprint(s)} for name, s in srcs.items()}
  key = json.dumps([reading, c.kind, c.vocab, TOKENIZER_CHARACTERS], sort_keys=True).encode()
  path = os.path.join(config.data.folder, f'tokenizer-{hashlib.blake2b(key, digest_size=6).hexdigest()}.model')
  if not os.path.exists(path):
    say(f'training a {c.kind} tokenizer of {c.vocab} entries')
    proto = train(_training_text(srcs), kind=c.kind, vocab=c.vocab)
    os.makedirs(config.data.folder, exist_ok=True)
    with open(f'{path}.{os.getpid()}', 'wb') as f:
      f.write(proto)
    os.replace(f'{path}.{os.getpid()}', path)
  return Tokenizer(path)


def _training_text(srcs):
  for source in srcs.values():
    left = TOKENIZER_CHARACTERS
    for document in sources.documents(source):
      text = sources.part(document.text, source, 'train')[:left]
      yield text
      left -= len(text)
      if left <= 0:
        break


def open_rows(config, srcs, tokenizer, split):
  """Returns {name: Rows} of that split, packing what is not packed yet.

  A source without holdout, or one that came packed without it, has no 'eval'.
  """
  out = {}
  for name, source in srcs.items():
    came, held = packing.packed(source, 'train'), packing.packed(source, 'eval')
    if split == 'eval' and not (held not in (None, came) if came else source.holdout):
      continue
    folder = packing.prepare(
      name, source, tokenizer, length=config.data.length + 1, method=config.data.packing, seed=config.seed,
      folder=config.data.folder, split=split,
    )  # fmt: skip
    out[name] = pipeline.Rows(folder)
    m = out[name].manifest
    skipped = ''.join(f', skipped {n} x {kind}' for kind, n in m['skipped'].items())
    say(f'{name} ({split}): {m["rows"]:,} rows, {m["tokens"]:,} tokens, {m["fill"]:.1%} of positions used{skipped}')
  return out


def weights(config):
  """Returns {source: share}, or [(first step, {source: share})] of the plan that a preparation wrote.

  Raises: BadInput where the plan is for other sources.
  """
  names = list(config.data.sources)
  if config.data.plan is None:
    return {name: c.weight for name, c in config.data.sources.items()}
  try:
    with open(config.data.plan) as f:
      rows = json.load(f)
  except FileNotFoundError:
    raise BadInput(f'data.plan = {config.data.plan} does not exist: give the plan.json of a preparation') from None
  if differ := sorted({r['source'] for r in rows} ^ set(names)):
    raise BadInput(f'{config.data.plan} and data.sources differ in {", ".join(differ)}: give the sources of the plan')
  total, seen, out = sum(r['drawn_tokens'] for r in rows), 0, []
  for stage in sorted({r['stage'] for r in rows}):
    drawn = {r['source']: r['drawn_tokens'] for r in rows if r['stage'] == stage}
    out.append((round(config.train.steps * seen / total), dict.fromkeys(names, 0.0) | drawn))
    seen += sum(drawn.values())
  return out


def model_config(config, tokenizer):
  """Returns the ModelConfig; `vocab` None takes the tokenizer's size. Raises: BadInput where sizes do not fit."""
  c = config.model.to_dict()
  if c['vocab'] is None:
    c['vocab'] = tokenizer.vocab
  if c['vocab'] < tokenizer.vocab:
    raise BadInput(f'model.vocab = {c["vocab"]} is smaller than the tokenizer, which has {tokenizer.vocab} entries')
  if config.data.length > c['length']:
    raise BadInput(f'data.length = {config.data.length} is longer than model.length = {c["length"]}')
  return ModelConfig(**c)


def tuned_config(config, cfg):
  """Returns the ModelConfig of a base model as config.model runs it; `length` None keeps its own.

  Raises: BadInput where the rows are longer than the model's window.
  """
  c = config.model.to_dict()
  if c['length'] is None:
    del c['length']
  elif c['length'] > cfg.length and cfg.positions == 'learned':
    raise BadInput(f'model.length = {c["length"]} is more than the {cfg.length} positions that this model has learnt')
  cfg = dataclasses.replace(cfg, **c)
  if config.data.length > cfg.length:
    raise BadInput(
      f'data.length = {config.data.length} is longer than model.length = {cfg.length}: lower it, or set model.length'
    )
  return cfg


def record(cfg, config, tokenizer):
  """Returns what every checkpoint of a run holds besides its state and data position; JSON."""
  proto = base64.b64encode(tokenizer.proto).decode()
  return {'model': describe(cfg), 'config': config.to_dict(), 'tokenizer': proto}


CRITIC = ('value_head', 'critic')  # of the parameters of a policy, what PPO learns beside it


class Parameters(NamedTuple):
  """The state of a checkpoint that holds parameters and nothing else."""

  params: Any


def save_parameters(workdir, params, meta):
  """Returns the path of the parameters, saved as step 0 of an empty workdir, from where init_from takes them.

  params: tree of arrays. meta: as `record` makes it. Raises: BadInput for a workdir that holds a checkpoint already.
  """
  saved = Checkpoints.of(local(workdir, 'workdir'), create=True)
  try:
    if saved.latest() is not None:
      raise BadInput(f'{workdir} already holds checkpoint {saved.latest()}: choose an empty workdir')
    saved.save(0, Parameters(jax.tree.map(jnp.asarray, params)), meta | {'data': None})
  finally:
    saved.close()
  return os.path.join(workdir, 'checkpoints', '0')


def saved_tokenizer(meta):
  return Tokenizer(base64.b64decode(meta['tokenizer']))


class Trained:
  """A checkpoint of a model: to sample from, to begin with, to compare with.

  cfg, tokenizer; kind: 'lm' or 'reward' (which has a head more); template: name of its chat template, or None.
  where: for sentences. identity: of its parameters.
  """

  def __init__(self, workdir, step=None):
    self._saved = Checkpoints.of(workdir)
    self.workdir = workdir
    self.step, self.meta = self._saved.meta(step)
    self.where = f'checkpoint {self._saved.folder}/{self.step}'
    self.cfg, self.tokenizer = described(self.meta['model']), saved_tokenizer(self.meta)
    self.kind, self.template = self.meta.get('kind', 'lm'), self.meta.get('template')
    self.critic = self.meta.get('critic')  # 'shared', or the model of a separate one: left out of the parameters

  def trained(self):
    """Returns how many parameters were trained: all, or those of the adapter."""
    if 'adapter' not in self.meta:
      return parameters(self.cfg)[0]
    return adapter_parameters(self.cfg, self.lora())

  @functools.cached_property
  def identity(self):
    return self._saved.identity(self.step)

  def params(self, mesh):
    """Returns the parameters laid out on the mesh; those of an adapter merged into its base.

    Raises: BadInput where the base of an adapter is gone, or is another one.
    """
    params = self.own_params(mesh)
    if 'adapter' not in self.meta:
      return params
    head = {k: params.pop(k) for k in ('value_head',) if k in params}
    base = self.base().base_params(mesh, self.meta['adapter']['quantised'])
    together = lambda base, adapters: merge(dequantise(self.cfg, base), adapters, self.lora())  # noqa: E731
    return jax.jit(together)(base, params) | head

  def own_params(self, mesh):
    """Returns what the checkpoint itself holds, laid out on the mesh: of an adapter, no base."""
    shapes = jax.eval_shape(self._fresh)
    sharding.check_divisible(shapes, mesh)
    target = sharding.laid_out(shapes, sharding.param_shardings(shapes, mesh))
    params = self._saved.restore({'params': target}, self.step)[0]['params']
    return params if self.kind == 'reward' else {k: x for k, x in params.items() if k not in CRITIC}

  def lora(self):
    """Returns the Lora of this adapter."""
    return Lora(**self.meta['adapter']['lora'])

  def adapter_record(self, lora, quantised):
    """Returns what the checkpoints of an adapter of this model say of it; JSON."""
    told = vars(lora) | {'targets': list(lora.targets)}
    where = {'base': str(self.workdir), 'step': self.step, 'identity': self.identity}
    return {'adapter': {'lora': told, 'quantised': list(quantised)} | where}

  def base(self):
    """Returns the Trained that this adapter belongs to."""
    a = self.meta['adapter']
    try:
      base = Trained(a['base'], a['step'])
    except BadInput as e:
      raise BadInput(
        f'{self.where} is an adapter for {a["base"]}, step {a["step"]}, which cannot be read: {e}'
      ) from None
    if base.identity != a['identity']:
      raise BadInput(
        f'{self.where} is an adapter for another base: it was trained on {a["identity"]} and {base.where} is '
        f'{base.identity}: put the base back'
      )
    return base

  def base_params(self, mesh, quantised):
    """Returns the parameters as an adapter's base: quantised, or as they are."""
    params = self.params(mesh)
    return quantise(params, tuple(quantised)) if quantised else params

  def _fresh(self):
    key = jax.random.key(0)
    if 'adapter' in self.meta:
      params = init_adapters(self.cfg, self.lora(), key)
    else:
      params = init(self.cfg, key)
    if self.kind == 'reward' or self.critic == 'shared':
      params['value_head'] = value_head(self.cfg)
    elif self.critic:
      cfg = described(self.critic)
      params['critic'] = init(cfg, key) | {'value_head': value_head(cfg)}
    return params


class Origin:
  """Where parameters come from. First match wins: own workdir, resume_from, init_from, scratch.

  kind: 'own' | 'resume_from' (state and data position), 'init_from' (parameters only), 'scratch'.
  step, meta: of the checkpoint; 0 and None for scratch.
  """

  def __init__(self, config, own):
    self.kind, self._from = 'scratch', None
    if own.latest() is not None:
      self.kind, self._from = 'own', own
    elif config.checkpoint.resume_from:
      self.kind, self._from = 'resume_from', Checkpoints.of(config.checkpoint.resume_from)
    elif config.checkpoint.init_from:
      self.kind, self._from = 'init_from', Checkpoints.of(config.checkpoint.init_from)
    self.resumes = self.kind in ('own', 'resume_from')
    self.retokenized = False  # tokenizer.override took another tokenizer than the checkpoint's
    self.step, self.meta = self._from.meta() if self._from else (0, None)
    self.where = f'checkpoint {self._from.folder}/{self.step}' if self._from else ''
    if self.resumes and self.meta['data'] is None:
      raise BadInput(f'{self.where} holds parameters only: give its workdir as checkpoint.init_from')

  def tokenizer(self, config, srcs):
    """Returns the checkpoint's tokenizer, or the config's from scratch or where tokenizer.override asks for it.

    Raises: BadInput where they differ, or where the other one does not fit the model.
    """
    c = config.tokenizer
    if self.meta is None:
      return tokenizer_for(config, srcs)
    saved = saved_tokenizer(self.meta)
    if c.path is not None:
      given = Tokenizer(c.path)
      if saved.fingerprint == given.fingerprint:
        return saved
      differ = (
        f'{self.where} was trained with tokenizer {saved.fingerprint} of {saved.vocab} entries and tokenizer.path is '
        f'{given.fingerprint} of {given.vocab}'
      )
      if not c.override:
        raise BadInput(
          f'{differ}: leave tokenizer.path out to use the one in the checkpoint, or set tokenizer.override=True'
        )
      room = self.meta['model']['vocab']
      if (given.vocab if config.model.vocab is None else config.model.vocab) != room or given.vocab > room:
        fix = f'set model.vocab={room}' if given.vocab <= room else f'give one of at most {room} entries'
        raise BadInput(f'{differ}, but the model has model.vocab = {room}: {fix}')
      data = ', and step k reads batch k of the rows packed with it' if self.resumes else ''
      say(f'{differ}: tokenizer.override takes the latter{data}')
      self.retokenized = True
      return given
    if self.resumes:
      both = self.meta['config']['tokenizer'], c
      was, now = ({k: t[k] for k in ('path', 'kind', 'vocab')} for t in both)
      if was['path'] is None and (lines := differences(was, now, 'tokenizer.')):
        raise BadInput('\n'.join([f'{self.where} has another tokenizer (checkpoint -> config):', *lines]))
    return saved

  def check_data(self, mixture):
    """Returns nothing; raises BadInput where a run would continue on other data than it was trained on."""
    if self.resumes:
      now = {'fingerprints': mixture.position(0)['fingerprints']} if self.retokenized else {}
      mixture.check(self.meta['data'] | now)

  def check_model(self, cfg):
    """Returns nothing; raises BadInput that prints every difference of the two models."""
    if self.meta is None:
      return
    loose = EXECUTION
    if self.kind == 'init_from' and cfg.positions == 'rope':
      loose += ('length', 'windows')  # no parameter depends on them
    lines = differences(self.meta['model'], describe(cfg), 'model.')
    if hard := [line for line in lines if line.split(':')[0].split('.')[-1] not in loose]:
      raise BadInput('\n'.join([f'{self.where} holds another model (checkpoint -> config):', *hard]))
    if lines:
      say('\n'.join(['the same parameters, run in another way (checkpoint -> config):', *lines]))

  def state(self, init_params, tx, mesh, window, loaded=None):
    """Returns the TrainState on the mesh. window: of the spike rule, which may begin, end or change at a resume.

    loaded: () -> the parameters that a run begins with, which does not resume; None for init_from's, or fresh ones.
    """
    if self.resumes:
      say(f'continuing from step {self.step} of {self._from.folder}')
      _, (had,) = self.meta['tree'].get('recent/loss', (None, (0,)))
      st = self._from.restore(state.shapes_of(init_params, tx, mesh, had), self.step)[0]
      if had == window:
        return st
      say(f'the spike rule looked back on {had} steps and now does on {window}: its history begins anew')
      return state.forget(st, mesh, window)
    if loaded:
      return state.around(loaded(), tx, mesh, window)
    if self.kind == 'init_from':
      say(f'parameters from step {self.step} of {self._from.folder}')
      params = state.shapes_of(init_params, tx, mesh).params
      return state.around(self._from.restore({'params': params}, self.step)[0]['params'], tx, mesh, window)
    return state.init_sharded(init_params, tx, mesh, window)


def check_train(config):
  """Returns nothing; raises BadInput for what is wrong in the train and optim sections, on whatever devices."""
  at_least(config, 1, 'train.steps', 'train.log_every', 'train.bad_steps', 'train.microbatches', 'train.loss_chunk')
  at_least(config, 4, 'train.spike_window')
  batch, parts, chunk = config.data.batch, config.train.microbatches, config.train.loss_chunk
  if batch % parts:
    raise BadInput(f'data.batch = {batch} is not divisible by train.microbatches = {parts}')
  if chunk is not None and config.data.length % chunk:
    raise BadInput(f'train.loss_chunk = {chunk} does not divide data.length = {config.data.length}')
  if not config.optim.clip > 0:
    raise BadInput(f'optim.clip = {config.optim.clip} must be positive; inf for none')
  if config.train.spike_sigma is not None and not config.train.spike_sigma > 0:
    raise BadInput(f'train.spike_sigma = {config.train.spike_sigma} must be positive; None for none')


def check_layout(config, cfg, init_params, mesh):
  """Returns nothing; raises BadInput where batch, length, attention or a parameter does not fit the mesh."""
  rows = config.data.batch // config.train.microbatches
  sharding.check_divisible(jax.eval_shape(init_params), mesh, B=rows, T=config.data.length)
  check_attention(cfg, mesh, config.data.length)


def batch_shapes(stream, batch, mesh):
  """Returns the batch of one step as ShapeDtypeStructs that carry their shardings.

  stream: pipeline.Mixture. batch: sequences, all devices together.
  """
  empty = batches.make(next(iter(stream.parts.values())).read([]))
  shapes = {k: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for k, x in empty.items()}
  where = {k: NamedSharding(mesh, sharding.spec(batches.letters(k, x.ndim))) for k, x in shapes.items()}
  return sharding.laid_out(shapes, where)
