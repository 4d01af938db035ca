"""Distillation: a student learns a teacher's distribution, on a data set, or on what the student itself says.

Teacher and student share a vocabulary and nothing else. Off-policy, the teacher's logits are computed beside the
student's, or its top-k stored once beside the rows (`teacher.top_k`). On-policy, the student answers the prompts of the
batch inside the step, with the parameters that are about to be updated, and both models score what it said.
"""

import jax
import jax.numpy as jnp

from llmstack.errors import BadInput, at_least
from llmstack.infer import decode
from llmstack.infer.sampling import Sampling
from llmstack.losses import distill, lm
from llmstack.model import forward, unembed
from llmstack.tasks import beside, start, train, tune


def check(config):
  """Returns nothing; raises BadInput for what is wrong without a device."""
  tune.check(config)
  t = config.teacher
  at_least(config, 1, 'teacher.top_k', 'objective.new_tokens')
  if t.workdir is None:
    raise BadInput('teacher.workdir is not set: give the workdir of the model to learn from')
  if config.objective.on_policy and t.top_k is not None:
    raise BadInput(f'teacher.top_k = {t.top_k} stores logits of the data set, and on_policy has other text: unset one')
  if config.objective.on_policy and any(s.text for s in config.data.sources.values()):
    raise BadInput('objective.on_policy answers prompts, and a source with text = True has none: leave it out')
  if config.objective.on_policy and config.data.packing != 'padded':
    raise BadInput('objective.on_policy answers one prompt per row: set data.packing to padded')


def teacher_for(config, tuned):
  """Returns the teacher as start.Trained. Raises: BadInput for another vocabulary, or a window that is too short."""
  teacher = start.Trained(config.teacher.workdir)
  if teacher.tokenizer.fingerprint != tuned.tokenizer.fingerprint or teacher.cfg.vocab != tuned.cfg.vocab:
    raise BadInput(
      f'{teacher.where} has {teacher.cfg.vocab} entries of tokenizer {teacher.tokenizer.fingerprint}, and '
      f'{tuned.base.where} {tuned.cfg.vocab} of {tuned.tokenizer.fingerprint}: use models of one tokenizer'
    )
  if teacher.cfg.length < config.data.length:
    raise BadInput(f'data.length = {config.data.length} is longer than the window of {teacher.where}: lower it')
  return teacher


def rollout(tuned, config):
  """Returns (params, frozen, batch, key) -> a batch of the prompts with the student's own answers, [B,T] as before.

  A row's prompt is what comes before its first target; the answer may take what is left of the row, up to
  objective.new_tokens.
  """
  cfg, stops, pad = tuned.cfg, decode.stop_table([[i] for i in tuned.template.stops]), tuned.tokenizer.pad

  def run(params, frozen, batch, key):
    tokens, mask = batch['tokens'], batch['mask']
    B, T = tokens.shape
    column = jnp.arange(T)[None]
    real = (batch['segments'] > 0).sum(1)
    # mask[t] is about the token at t + 1: the prompt ends with the token of the first target's input.
    lengths = jnp.where(mask.sum(1) > 0, jnp.argmax(mask > 0, 1) + 1, jnp.maximum(real, 1))
    out = decode.generate(
      cfg, tuned.join(params, frozen), tokens, lengths, jax.random.split(key, B),
      Sampling.of(B, cfg.vocab, temperature=config.objective.sampling_temperature), stops,
      new_tokens=config.objective.new_tokens, pad=pad,
    )  # fmt: skip
    n = out.sampled.sum(1)
    said = column - lengths[:, None]  # place within the answer
    answer = jnp.take_along_axis(out.tokens, jnp.clip(said, 0, out.tokens.shape[1] - 1), 1)
    inside = (said >= 0) & (said < n[:, None])
    row = jnp.where(inside, answer, jnp.where(said < 0, tokens, 0))
    segments = ((said < n[:, None]) & (real > 0)[:, None]).astype(jnp.int32)
    learnt = jnp.roll(inside, -1, 1).at[:, -1].set(False) & (segments > 0)
    return batch | {
      'tokens': row, 'targets': jnp.roll(row, -1, 1).at[:, -1].set(0), 'segments': segments,
      'positions': jnp.where(segments > 0, column, 0), 'mask': learnt.astype(jnp.float32),
    }  # fmt: skip

  return run


def loss(tuned, teacher, config):
  """Returns loss_fn(params, frozen, batch, rng): divergence from the teacher, and objective.ce times cross-entropy."""
  o, chunk = config.objective, config.train.loss_chunk

  def head(cfg, params, hidden):
    return unembed(cfg, params, hidden)

  def loss_fn(params, frozen, batch, rng):
    whole, hidden = tuned.hidden(params, frozen, batch, rng)
    stored = 'teacher_logp' in batch
    pieces = [hidden, batch['targets'], batch['mask']]
    if stored:
      pieces += [batch['teacher_logp'], batch['teacher_ids']]
    else:
      at = [batch[k] for k in ('tokens', 'positions', 'segments')]
      pieces.append(jax.lax.stop_gradient(forward(teacher.cfg, frozen['teacher'], *at)[0]))

    def one(hidden, targets, mask, *of):
      logits = head(tuned.cfg, whole, hidden)
      how = dict(beta=o.beta, temperature=o.temperature, t_squared=o.t_squared)
      if stored:
        sums, weights, metrics = distill.top_k_jsd(logits, *of, mask, tail=o.tail, **how)
      else:
        sums, weights, metrics = distill.jsd(logits, head(teacher.cfg, frozen['teacher'], of[0]), mask, **how)
      nll, weight, more = lm.cross_entropy(logits, targets, mask, z_loss=0.0)
      if o.ce:
        sums, weights = sums | {'nll': o.ce * nll['nll']}, weights | weight
      return sums, weights, metrics | more

    return lm.in_chunks(one, pieces, chunk)

  return loss_fn


def build(config, origin, mesh, watch):
  """Returns the Job of distillation."""
  tuned = tune.Tuned(config, origin, layers=config.student.layers)
  teacher = teacher_for(config, tuned)
  record = tune.same(origin, 'teacher', teacher)
  tuned.check_layout(mesh)
  stream, held_out = tuned.rows('chat', watch)
  frozen, k = tuned.frozen(mesh), config.teacher.top_k
  if k is None:
    frozen['teacher'] = teacher.params(mesh)
  else:
    params = teacher.params(mesh)

    def top(batch):
      hidden = forward(teacher.cfg, params, *(batch[k] for k in ('tokens', 'positions', 'segments')))[0]
      logp, ids = jax.lax.top_k(jax.nn.log_softmax(unembed(teacher.cfg, params, hidden)), k)
      return {'teacher_logp': logp, 'teacher_ids': ids.astype(jnp.int32)}

    with jax.set_mesh(mesh), watch.pod.first('teacher'):
      for part in (*stream.parts.values(), *held_out.values()):
        beside.attach(part, f'top{k}', top, {'model': teacher.identity}, mesh, config.data.batch)
  answer = rollout(tuned, config) if config.objective.on_policy else None

  def before(state, frozen, batch):
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    return frozen, answer(state.params, frozen, batch, key)

  return tune.job(
    tuned, stream, held_out, loss(tuned, teacher, config), mesh, frozen=frozen, before=answer and before,
    record=record,
  )  # fmt: skip


def run(config, workdir):
  """Distils a teacher into a student."""
  train.run(config, workdir, check, build)
