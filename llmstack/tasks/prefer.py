"""Preference optimisation: the DPO family, ORPO, CPO, SimPO and KTO, each a function of losses/preference."""

import jax
import jax.numpy as jnp

from llmstack import optim
from llmstack.errors import BadInput, at_least
from llmstack.losses import lm, preference
from llmstack.model import describe, unembed
from llmstack.tasks import beside, train, tune

KINDS = {
  'dpo': preference.dpo, 'cpo': preference.cpo, 'simpo': preference.simpo, 'orpo': preference.orpo,
  'kto': preference.kto,
}  # fmt: skip
REFERENCES = ('frozen', 'precomputed')


def logps(cfg, params, hidden, batch, *, chunk, also=None):
  """Returns float32[...,T]: the log-prob of each target, 0 where it is in no segment.

  hidden: [...,T,D]. chunk: positions of logits alive at once, or None. also: of losses/lm.chunked_logp.
  """
  head = lambda h: unembed(cfg, params, h)  # noqa: E731
  inside = (batch['segments'] > 0).astype(jnp.float32)
  flat = [x.reshape(-1, *x.shape[batch['tokens'].ndim - 1 :]) for x in (hidden, batch['targets'], inside)]
  out = lm.chunked_logp(flat[0], head, *flat[1:], chunk=chunk, also=also)
  return jax.tree.map(lambda x: x.reshape(batch['tokens'].shape), out)


def one_side(batch, side):
  """Returns the batch of one completion per prompt, [B,T], of a batch of pairs."""
  return {k: x[:, side] if x.ndim == 3 else x for k, x in batch.items()}


class Objective:
  """A loss on preferences, with whatever reference it needs.

  tuned: what has cfg and `hidden`, as tune.Tuned. kind: of KINDS. chunk: positions of logits alive at once, or None.
  soft_labels: whether to read the probability that chosen is better from the file's label.
  rest: arguments of the function in losses/preference; and wpo, of dpo, and nll_on_prompt, of orpo.
  """

  def __init__(self, tuned, kind, *, chunk, soft_labels, **rest):
    self.tuned, self.kind, self.chunk, self.soft_labels, self.rest = tuned, kind, chunk, soft_labels, rest
    self.wpo, self.full = rest.pop('wpo', False), rest.pop('nll_on_prompt', False)
    self.referred = kind in ('dpo', 'kto')

  @classmethod
  def of(cls, config, tuned):
    soft = config.reference.soft_labels
    return cls(tuned, chunk=config.train.loss_chunk, soft_labels=soft, **config.objective.to_dict())

  def ref_logp(self, frozen, batch):
    """Returns float32[...,T] of the reference: precomputed, of the base without its adapter, or of a frozen copy."""
    if 'ref_logp' in batch:
      return batch['ref_logp']
    params = frozen['ref'] if 'ref' in frozen else frozen['base']
    hidden = tune.hidden_of(self.tuned.cfg, params, batch)
    return jax.lax.stop_gradient(logps(self.tuned.cfg, params, hidden, batch, chunk=self.chunk))

  def logp(self, params, frozen, batch, rng, also=None):
    """Returns float32[...,T] of the policy, and what `also` of losses/lm.chunked_logp says beside it."""
    whole, hidden = self.tuned.hidden(params, frozen, batch, rng)
    return logps(self.tuned.cfg, whole, hidden, batch, chunk=self.chunk, also=also)

  def pairs(self, params, frozen, batch, rng):
    """Returns (sums, weights, metrics) of a loss on pairs."""
    logp = self.logp(params, frozen, batch, rng, lm.collision if self.wpo else None)
    logp, collision = logp if self.wpo else (logp, None)
    mask, segments, valid = batch['mask'], batch['segments'], batch['valid']
    how = dict(self.rest)
    if 'label_smoothing' in how:  # a soft label is one that is wrong with probability 1 - label
      e = how['label_smoothing']
      how['label_smoothing'] = e + (1 - 2 * e) * (1 - batch['label']) if self.soft_labels else e
    if self.kind == 'orpo':
      inside = (segments > 0) & (segments == jnp.roll(segments, -1, -1))
      how['nll_mask'] = inside.at[..., -1].set(False).astype(jnp.float32) if self.full else mask
    if self.kind == 'dpo':
      if self.wpo:
        how['weight'] = preference.wpo_weight(logp, collision, mask, segments, valid)
      return preference.dpo(logp, self.ref_logp(frozen, batch), mask, segments, valid, **how)
    return KINDS[self.kind](logp, mask, segments, valid, **how)

  def rated(self, params, frozen, batch, rng):
    """Returns (sums, weights, metrics) of KTO; its baseline stands in `frozen`."""
    own = one_side(batch, 0)
    logp, ref_logp = self.logp(params, frozen, own, rng), self.ref_logp(frozen, own)
    desirable = (batch['label'] > 0.5).astype(jnp.float32)
    return preference.kto(
      logp, ref_logp, own['mask'], own['segments'], batch['valid'], desirable, z0=frozen['z0'], **self.rest
    )

  def loss(self, params, frozen, batch, rng):
    return (self.rated if self.kind == 'kto' else self.pairs)(params, frozen, batch, rng)

  def baseline(self, params, frozen, batch, microbatches):
    """Returns float32[]: KTO's z0, the mean log-ratio of mismatched pairs over the whole batch, detached."""

    def part(batch):
      other = one_side(batch, 1)
      logp = jax.lax.stop_gradient(self.logp(params, frozen, other, None))
      masks = other['mask'], other['segments'], batch['valid']
      return preference.kto_baseline(logp, self.ref_logp(frozen, other), *masks)

    parts = jax.tree.map(lambda x: x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1), batch)
    total, count = jax.tree.map(jnp.sum, jax.lax.map(part, parts))
    return total / jnp.maximum(count, 1.0)


def check(config):
  """Returns nothing; raises BadInput for what is wrong without a device."""
  tune.check(config)
  o, r = config.objective, config.reference
  if o.kind not in KINDS:
    raise BadInput(f'objective.kind = {o.kind!r}: choose one of {", ".join(KINDS)}')
  if r.kind not in REFERENCES:
    raise BadInput(f'reference.kind = {r.kind!r}: choose one of {", ".join(REFERENCES)}')
  at_least(config, 1, 'reference.every')
  if config.data.prompt is not None and (o.kind == 'kto' or o.kind == 'orpo' and o.nll_on_prompt):
    why = 'a completion at a time, alone' if o.kind == 'kto' else 'the log-probs of prompts (objective.nll_on_prompt)'
    raise BadInput(f'data.prompt = {config.data.prompt} shares prompts, and {o.kind} reads {why}: set it to None')
  if r.every is not None and (r.kind != 'frozen' or config.lora.rank or o.kind not in ('dpo', 'kto')):
    raise BadInput(f'reference.every = {r.every} moves a frozen copy: unset lora.rank and use reference.kind = frozen')
  if 'terms' in o:
    unknown = [t for t in o.terms if t not in preference.TERMS]
    if unknown:
      raise BadInput(f'objective.terms has {unknown[0]!r}: choose from {", ".join(preference.TERMS)}')
    if config.train.microbatches > 1 and any(t in preference.SORTED for t in o.terms):
      raise BadInput(f'aot sorts over the whole batch: set train.microbatches = {config.train.microbatches} to 1')


def build(config, origin, mesh, watch):
  """Returns the Job of preference optimisation."""
  tuned = tune.Tuned(config, origin)
  tuned.check_layout(mesh)
  stream, held_out = tuned.rows('rated' if config.objective.kind == 'kto' else 'pairs', watch)
  objective, r = Objective.of(config, tuned), config.reference
  if r.soft_labels:
    tune.check_given(stream.parts, 'label', 'reference.soft_labels', unsaid=(0, 1))
  frozen, record = tuned.frozen(mesh), {}
  if objective.referred and not tuned.lora and r.every is None:  # with adapters, their record names the base
    record = tune.same(origin, 'reference', tuned.base)
  if objective.referred and r.kind == 'precomputed':
    params = tuned.base.params(mesh)
    of = {'model': tuned.base.identity, 'run': describe(tuned.cfg)}
    with jax.set_mesh(mesh), watch.pod.first('reference'):
      for part in (*stream.parts.values(), *held_out.values()):
        compute = lambda batch: {'ref_logp': objective.ref_logp({'ref': params}, batch)}  # noqa: E731
        beside.attach(part, 'ref', compute, of, mesh, config.data.batch)
  elif objective.referred and not tuned.lora and r.every is None:
    frozen['ref'] = tuned.base.params(mesh)

  def before(state, frozen, batch):
    if r.every is not None:
      frozen = frozen | {'ref': state.opt_state.reference}
    if config.objective.kind == 'kto':
      frozen = frozen | {'z0': objective.baseline(state.params, frozen, batch, config.train.microbatches)}
    return frozen, batch

  return tune.job(
    tuned, stream, held_out, objective.loss, mesh, frozen=frozen, before=before, record=record,
    wrap=r.every and (lambda tx: optim.followed(tx, every=r.every, mix=r.mix)),
  )  # fmt: skip


def run(config, workdir):
  """Optimises a policy on preferences."""
  train.run(config, workdir, check, build)
