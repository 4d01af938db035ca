"""What tuning tasks share: a base model, whole or behind adapters, chat templates, and rows of conversations.

A tuning task trains `params` beside `frozen`; `Tuned.join` makes of both what the model function takes. Without
`lora.rank` the parameters are the model's own.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from llmstack import sharding
from llmstack.checkpoint import differences
from llmstack.data import chat, pipeline, sources, tuning
from llmstack.errors import BadInput, at_least
from llmstack.model import (
  Lora,
  adapter_parameters,
  check_attention,
  combine,
  forward,
  init,
  init_adapters,
  parameters,
  value_head,
)  # fmt: skip
from llmstack.tasks import start, train
from llmstack.tasks.sample import complete_ids


def check(config):
  """Returns nothing; raises BadInput for what is wrong in the sections that every tuning task has."""
  at_least(config, 1, 'data.batch', 'data.length', 'data.prompt', 'lora.rank')
  if config.data.prompt is not None:
    check_prompt(config)
  if config.task != 'rl':
    data_sources(config)
  if config.checkpoint.init_from is None:
    raise BadInput('checkpoint.init_from is not set: give the workdir of the model to tune')
  if config.task in ('reward', 'prefer') and any(s.text for s in config.data.sources.values()):
    raise BadInput('data.sources has one with text = True, which holds no pairs: leave it out')
  if config.data.packing not in ('best_fit', 'padded'):
    raise BadInput(f'data.packing = {config.data.packing!r}: choose best_fit, or padded for one conversation per row')


def check_prompt(config):
  """Returns nothing; raises BadInput where data.prompt, columns of prompts that pairs share, is of no use."""
  c, how = config.data, f'data.prompt = {config.data.prompt}'
  if config.task not in ('reward', 'prefer'):
    raise BadInput(f'{how} is for pairs of completions, which task {config.task} does not read: set it to None')
  if c.prompt >= c.length:
    raise BadInput(f'{how} leaves nothing of data.length = {c.length} for completions: lower it, or set it to None')
  chunk, own = config.train.loss_chunk, c.length - c.prompt
  if chunk is not None and own % chunk:
    raise BadInput(f'train.loss_chunk = {chunk} does not divide data.length - data.prompt = {own}: change one of them')


def data_sources(config):
  """Returns {name: Source} of files with conversations."""
  return {
    name: sources.Source(
      files=(c.files,) if isinstance(c.files, str) else tuple(c.files), holdout=c.holdout, on_error=config.data.on_error
    )
    for name, c in config.data.sources.items()
  }


def folders(config, template, kind, split):
  """Returns {name: folder} of packed rows of a split, made where they are missing; no 'eval' of what holds none out."""
  c = config.data
  return {
    name: tuning.prepare(
      name, source, template, kind='text' if c.sources[name].text else kind, length=c.length,
      packed=c.packing == 'best_fit', too_long=c.too_long, train_on=config.chat.train_on, seed=config.seed,
      folder=c.folder, split=split, prompt=c.prompt or 0,
    )
    for name, source in data_sources(config).items()
    if split == 'train' or source.holdout
  }  # fmt: skip


class Tuned:
  """A base model and what of it is trained.

  base: start.Trained. cfg, tokenizer, template. lora: model.Lora, or None for all parameters.
  reward: whether a scalar head is trained on top. layers: those of the base that are kept, () for all.
  """

  def __init__(self, config, origin, *, reward=False, layers=()):
    self.config, self.reward, self.layers = config, reward, tuple(layers)
    self.base = start.Trained(config.checkpoint.init_from)
    self.tokenizer = self.base.tokenizer
    self.cfg = start.tuned_config(config, self.base.cfg)
    if self.layers:
      self.cfg = self._fewer()
    if origin.resumes or not self.layers:
      origin.check_model(self.cfg)
    if self.base.kind == 'reward' and not reward:
      raise BadInput(f'{self.base.where} is a reward model, which says nothing: give the workdir of a language model')
    self.template = chat.template(config.chat.template, self.tokenizer)
    c = config.lora
    self.lora = c.rank and Lora(rank=c.rank, alpha=c.alpha, rs=c.rs, targets=c.targets, dropout=c.dropout)
    self.quantised = tuple(c.targets) if c.rank and c.quantise else ()
    if c.quantise and not c.rank:
      raise BadInput('lora.quantise needs lora.rank: quantised weights are not trained, adapters beside them are')
    self.record = self._record(origin)

  def _fewer(self):
    """Returns the config of a model with only some of the base's layers. Raises: BadInput for layers that it lacks."""
    if bad := [i for i in self.layers if not 0 <= i < self.base.cfg.layers]:
      raise BadInput(f'student.layers names {bad[0]}, and {self.base.where} has layers 0 to {self.base.cfg.layers - 1}')
    if self.config.lora.rank:
      raise BadInput('student.layers makes another model, and lora.rank adapts a whole one: unset one of them')
    windows = tuple(self.base.cfg.window_of_layer[i] for i in self.layers) if self.cfg.windows else ()
    return dataclasses.replace(self.cfg, layers=len(self.layers), windows=windows)

  def _record(self, origin):
    """Returns what checkpoints say of the base; raises BadInput where a resumed run had another one."""
    record = {'kind': 'reward' if self.reward else 'lm', 'template': self.config.chat.template}
    if self.lora:
      record |= self.base.adapter_record(self.lora, self.quantised)
    if origin.resumes:
      was, now = ({k: v for k, v in m.get('adapter', {}).items() if k != 'base'} for m in (origin.meta, record))
      if lines := differences(was, now, 'adapter.'):
        said = f'{origin.where} is an adapter for another base, or another adapter (checkpoint -> config):'
        raise BadInput('\n'.join([said, *lines, 'set that back, or give another --workdir']))
    return record

  def fresh(self):
    """Returns new trainable parameters: adapters, or all; and the head of a reward model, zero."""
    key = jax.random.key(self.config.seed)
    params = init_adapters(self.cfg, self.lora, key) if self.lora else init(self.cfg, key)
    return params | ({'value_head': value_head(self.cfg)} if self.reward else {})

  def loaded(self, mesh):
    """Returns the trainable parameters of a run's beginning, on the mesh."""
    shapes = jax.eval_shape(self.fresh)
    where = sharding.param_shardings(shapes, mesh)
    if self.lora:
      return jax.jit(self.fresh, out_shardings=where)()
    params = self.base.params(mesh)
    if self.layers:
      pick = lambda x: x[jnp.asarray(self.layers)]  # noqa: E731
      params |= {'layers': jax.tree.map(pick, params['layers'])}
    if not self.reward or 'value_head' in params:
      return params
    head = jax.jit(lambda: value_head(self.cfg), out_shardings=where['value_head'])()
    return params | {'value_head': head}

  def frozen(self, mesh):
    """Returns {'base': parameters} that are not trained, quantised where the config says so; {} without adapters."""
    return {'base': self.base.base_params(mesh, self.quantised)} if self.lora else {}

  def join(self, params, frozen, rng=None):
    """Returns the parameters that the model function takes. rng: key for the adapters' dropout."""
    if not self.lora:
      return params
    head = {k: v for k, v in params.items() if k == 'value_head'}
    adapters = {k: v for k, v in params.items() if k != 'value_head'}
    return combine(frozen['base'], adapters, self.lora, rng) | head

  def hidden(self, params, frozen, batch, rng):
    """Returns (joined parameters, hidden dtype[..., T,D]) of a batch, whose rows may be pairs [B,M,T]."""
    rngs = (None, None) if rng is None else jax.random.split(rng)
    whole = self.join(params, frozen, rngs[0] if self.lora else None)
    return whole, hidden_of(self.cfg, whole, batch, rngs[1])

  def says(self):
    """Returns what is trained, for a line of the log."""
    total = parameters(self.cfg)[0]
    if not self.lora:
      return f'{total / 1e6:.2f}M parameters'
    own = adapter_parameters(self.cfg, self.lora)
    return f'{own:,} parameters of adapters, {own / total:.2%} of {total / 1e6:.2f}M'

  def rows(self, kind, watch):
    """Returns (Mixture, {name: Rows} held out) of config.data, with conversations of `kind` packed where needed."""
    c = self.config
    with watch.pod.first('rows'):
      made = [folders(c, self.template, kind, split) for split in ('train', 'eval')]
    parts, held_out = ({name: pipeline.Rows(folder) for name, folder in m.items()} for m in made)
    for split, rows in (('train', parts), ('eval', held_out)):
      for name, part in rows.items():
        say_rows(name, split, part.manifest)
    shares = {name: s.weight for name, s in c.data.sources.items()}
    stream = pipeline.Mixture(parts, shares, seed=c.seed, batch=c.data.batch)
    for name, epochs in stream.epochs(c.train.steps).items():
      start.say(f'{name}: {epochs:.2f} epochs in {c.train.steps:,} steps')
    return stream, held_out

  def answers(self, mesh):
    """Returns params -> [(prompt, reply)] for eval.prompts, each a user's only message; None without any."""
    c = self.config.eval
    prompts = [self.template.prompt([{'role': 'user', 'content': p}]) for p in c.prompts]
    for text, ids in zip(c.prompts, prompts):
      if len(ids) > self.cfg.length - c.new_tokens:
        raise BadInput(
          f'eval.prompts has {text!r} of {len(ids)} tokens and eval.new_tokens = {c.new_tokens}: together they must '
          f'fit into model.length = {self.cfg.length}'
        )

    def run(params, frozen):
      replies = complete_ids(
        self.cfg, self.join(params, frozen), self.tokenizer, prompts, mesh=mesh, new_tokens=c.new_tokens,
        seeds=range(len(prompts)), eos=self.template.stops, temperature=0.0,
      )  # fmt: skip
      return [(text, self.template.reply(reply.tokens.tolist())) for text, reply in zip(c.prompts, replies)]

    return run if prompts else None

  def check_layout(self, mesh):
    start.check_layout(self.config, self.cfg, self.fresh, mesh)
    check_attention(self.cfg, mesh, self.config.data.length, self.config.data.prompt)


def same(origin, what, model):
  """Returns {what: which model it is} for the checkpoints, of a start.Trained that a run is measured against.

  Raises: BadInput where the run that is resumed had another one.
  """
  was = origin.resumes and origin.meta.get(what)
  if was and was['identity'] != model.identity:
    raise BadInput(
      f'{origin.where} had the {what} {was["workdir"]}, step {was["step"]}, and is resumed with {model.where}: '
      'give that one again, or another --workdir'
    )
  return {what: {'workdir': str(model.workdir), 'step': model.step, 'identity': model.identity}}


def check_given(parts, field, setting, unsaid):
  """Returns nothing; raises BadInput where no pair of a source says what a setting is to read.

  parts: {name: pipeline.Rows} of pairs. field: 'margin' or 'label'. unsaid: its values where nobody says it.
  """
  for name, part in parts.items():
    if all(np.isin(part.read([i])[field], unsaid).all() for i in range(len(part))):
      raise BadInput(f'{setting} = True, and no pair of {name} says its {field}: set it to False')


def hidden_of(cfg, params, batch, rng=None):
  """Returns dtype[...,T,D] of a batch, whose rows may be [B,T] or pairs [B,M,T].

  Prompts that pairs share go through the model once, in one row with the two completions.
  """
  names, shared = ('tokens', 'positions', 'segments'), 0
  if 'prompt' in batch:
    B, shared = batch['prompt'].shape
    prompts = (batch[k] for k in ('prompt', 'prompt_positions', 'prompt_segments'))
    rows = [jnp.concatenate([p, batch[k].reshape(B, -1)], 1) for p, k in zip(prompts, names)]
  else:
    rows = [batch[k].reshape(-1, batch[k].shape[-1]) for k in names]
  hidden = forward(cfg, params, *rows, rng=rng, shared=shared)[0][:, shared:]
  return hidden.reshape(*batch['tokens'].shape, -1)


def say_rows(name, split, m):
  """Says what became of a source's records, on one line."""
  left = {'too long': m['too_long_rows'], 'repeated': m['repeated'], **m['skipped']}
  how = {'too long': f' ({m["too_long"]})', 'repeated': ' (kept)'}
  left = ''.join(f', {n:,} {what}{how.get(what, "")}' for what, n in left.items() if n)
  start.say(
    f'{name} ({split}): {m["documents"]:,} examples in {m["rows"]:,} rows, {m["tokens"]:,} tokens, '
    f'{m["targets"]:,} to learn, {m["fill"]:.1%} of positions used{left}'
  )


def job(tuned, stream, held_out, loss_fn, mesh, **more):
  """Returns the train.Job of a tuned model. more: what the objective adds to it."""
  frozen = more.pop('frozen', None) or tuned.frozen(mesh)
  answers = None if tuned.reward else tuned.answers(mesh)
  return train.Job(
    tuned.cfg, tuned.tokenizer, stream, held_out, loss_fn, tuned.fresh, tuned.says(),
    loaded=functools.partial(tuned.loaded, mesh), frozen=frozen,
    answers=answers and (lambda params: answers(params, frozen)), record=tuned.record | more.pop('record', {}), **more,
  )  # fmt: skip
