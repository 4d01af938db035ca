"""Learning from reward: PPO, the GRPO family and online DPO, on the one step. losses/policy.py names the algorithms.

The policy answers with the parameters that are about to be updated, on the mesh that trains them; tasks/online.py is
the step, this file what it learns: the objective, and what has to be known of a batch before its first update.
"""

import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np

from llmstack import sharding
from llmstack.data import prompts as asked
from llmstack.data import sources, tuning
from llmstack.errors import BadInput, at_least
from llmstack.infer.rollout import power
from llmstack.losses import lm, policy, preference
from llmstack.model import describe, init, unembed, value_head, values
from llmstack.tasks import online, prefer, rewarded, start, train, tune

CRITICS = ('none', 'shared', 'separate')


def logps(cfg, params, hidden, batch, *, temperature, chunk, also=None):
  """Returns float32[B,T]: the log-prob of each target at a temperature, 0 where nothing was sampled; see chunked_logp.

  The one temperature is the sampler's: the policy's, the reference's and the entropy's (trl#4159, OpenRLHF PR#1319).
  """
  head = lambda h: unembed(cfg, params, h) / temperature  # noqa: E731
  return lm.chunked_logp(hidden, head, batch['targets'], batch['mask'], chunk=chunk, also=also)


class Tuned(tune.Tuned):
  """A policy, with a critic beside it: none, a `value_head` on its own hidden states, or another model, `critic`."""

  def __init__(self, config, origin):
    super().__init__(config, origin)
    self.critic, self.estimator = config.critic.kind, None
    if self.critic == 'separate':
      self.estimator = start.Trained(config.critic.workdir or config.checkpoint.init_from)
      if self.estimator.tokenizer.fingerprint != self.tokenizer.fingerprint:
        raise BadInput(f'critic.workdir = {config.critic.workdir} has another tokenizer than the policy: give another')
      if self.estimator.cfg.length < config.data.length:
        raise BadInput(
          f'critic.workdir = {config.critic.workdir} is a model of {self.estimator.cfg.length} tokens, and '
          f'data.length = {config.data.length}: lower that or give another'
        )
    told = {'none': None, 'shared': 'shared'}
    self.record['critic'] = describe(self.estimator.cfg) if self.estimator else told[self.critic]

  def policy(self, params):
    """Returns the parameters of the policy alone."""
    return {k: v for k, v in params.items() if k not in start.CRITIC}

  def fresh(self):
    params = super().fresh()
    if self.critic == 'shared':
      params['value_head'] = value_head(self.cfg)
    if self.estimator:
      cfg = self.estimator.cfg
      key = jax.random.key(self.config.seed + 1)
      params['critic'] = init(cfg, key) | {'value_head': value_head(cfg)}
    return params

  def loaded(self, mesh):
    params = super().loaded(mesh)
    if self.critic == 'shared':
      where = sharding.param_shardings(jax.eval_shape(self.fresh), mesh)['value_head']
      params['value_head'] = jax.jit(lambda: value_head(self.cfg), out_shardings=where)()
    if self.estimator:
      params['critic'] = self.estimator.params(mesh)
      if 'value_head' not in params['critic']:
        where = sharding.param_shardings(jax.eval_shape(self.fresh), mesh)['critic']['value_head']
        params['critic']['value_head'] = jax.jit(lambda: value_head(self.estimator.cfg), out_shardings=where)()
    return params

  def worth(self, params, whole, hidden, batch):
    """Returns float32[B,T]: the critic's value before each target; the policy's `hidden` is what a shared one reads."""
    if self.critic == 'shared':
      return values(self.cfg, params, hidden)
    cfg = self.estimator.cfg
    return values(cfg, params['critic'], tune.hidden_of(cfg, params['critic'], batch))


class Policy:
  """What tasks/online.py asks of an objective: clipped policy gradients, with or without a critic.

  reads: whether anything is to be known of a batch before its first update.
  """

  def __init__(self, config, tuned):
    self.o, self.kl, self.c, self.tuned = config.objective, config.kl, config.critic, tuned
    self.temperature, self.chunk = config.rollout.temperature, config.train.loss_chunk
    self.packed = config.data.packing == 'best_fit'
    self.samples = config.rollout.samples
    self.relearnt = self.o.epochs * online.parts_of(config) > 1 or self.o.old == 'learner'
    self.referred = self.kl.placement != 'none'
    self.valued = tuned.critic != 'none'
    self.reads = self.relearnt or self.referred or self.valued
    self.read = jax.jit(self._read)

  def _read(self, params, frozen, batch):
    """Returns {name: float32[B,T]} of logp, ref_logp and values, those that are needed."""
    tuned, known = self.tuned, {}
    how = dict(temperature=self.temperature, chunk=self.chunk)
    if self.relearnt or self.valued:
      whole, hidden = tuned.hidden(tuned.policy(params), frozen, batch, None)
      if self.relearnt:
        known['logp'] = logps(tuned.cfg, whole, hidden, batch, **how)
      if self.valued:
        known['values'] = tuned.worth(params, whole, hidden, batch) * (batch['mask'] != 0)
    if self.referred:
      ref = frozen['ref'] if 'ref' in frozen else frozen['base']
      known['ref_logp'] = logps(tuned.cfg, ref, tune.hidden_of(tuned.cfg, ref, batch), batch, **how)
    return known

  def empty(self, rows, width, room=1):
    """Returns a batch of nothing. room: P, completions of a row."""
    names = ['mask', 'old_logp', 'advantages']
    names += ['ref_logp'] if self.kl.placement == 'loss' else []
    names += ['values', 'returns'] if self.valued else []
    names += ['weight'] if self.o.importance is not None else []
    batch = {k: np.zeros((rows, width), np.int32) for k in ('tokens', 'targets', 'segments', 'positions')}
    batch |= {k: np.zeros((rows, width), np.float32) for k in names}
    return batch | {'valid': np.zeros((rows, room), np.float32), 'beta': np.zeros((rows, 1), np.float32)}

  def lay_out(self, sampled, width, *, multiple):
    """Returns (batch, places) as online.lay_out does."""
    return online.lay_out(sampled, width=width, packed=self.packed, multiple=multiple)

  def prepare(self, batch, places, sampled, known, beta, scale, room=1):
    """Returns (batch with advantages, {name: number to log}).

    known: of `_read`, numpy. beta: of the KL. scale: online.Scale of the rewards. room: least P, completions of a row.
    """
    o, total, valid, more = self.o, sampled.scored.total, sampled.valid, {}
    seen = valid & (sampled.out.done | (not o.mask_truncated))
    batch['mask'] = batch['mask'] * online.spread(places, seen.astype(np.float32), batch)
    mask, room = batch['mask'], max(power(max((s for *_, s in places), default=1)), room)
    kl = None
    if 'logp' in known:
      more['gate'] = float(np.abs(np.where(mask > 0, known['logp'] - batch['old_logp'], 0)).max(initial=0))
    if o.importance is not None:
      batch['weight'] = np.asarray(
        truncated_weights(
          known['logp'], batch['old_logp'], mask, batch['segments'], room, cap=o.importance,
          level=o.importance_level, beyond=o.importance_beyond,
        )
      )  # fmt: skip
    if o.old == 'learner':
      batch['old_logp'] = known['logp']
    if self.referred:
      kl = np.asarray(token_kl(batch['old_logp'], known['ref_logp'], mask, estimator='k1'))
      more |= {'kl': float(kl.sum() / max(int(seen.sum()), 1)), 'kl_beta': float(beta)}
      if self.kl.placement == 'loss':
        batch['ref_logp'] = known['ref_logp']
      elif self.kl.estimator != 'k1':
        kl = np.asarray(token_kl(batch['old_logp'], known['ref_logp'], mask, estimator=self.kl.estimator))
    score = np.where(valid, scale(total) if o.scale_rewards else total, 0).astype(np.float32)
    scores, valid_of = (np.zeros((len(mask), room), np.float32) for _ in range(2))
    for i, (row, _, segment) in enumerate(places):
      scores[row, segment - 1], valid_of[row, segment - 1] = score[i], seen[i]
    batch['valid'], batch['beta'] = valid_of, np.full((len(mask), 1), beta, np.float32)
    inside = self.kl.placement == 'reward'
    if self.valued:
      advantages, returns = credit(
        scores, np.float32(beta) * kl if inside else None, known['values'], mask, batch['segments'], n=room,
        gamma=self.c.gamma, lam=self.c.lam,
      )  # fmt: skip
      batch |= {'values': known['values'], 'returns': np.asarray(returns)}
    else:
      if inside:  # of a completion: its sum
        score = score - beta * np.array([kl[row, columns].sum() for row, columns, _ in places], np.float32)
      advantages = group_advantages(
        score.reshape(-1, self.samples), seen.reshape(-1, self.samples).astype(np.float32), baseline=o.baseline,
        scale=o.scale, eps=o.eps,
        greedy=sampled.greedy[:: self.samples] if o.baseline == 'greedy' else None,
      )  # fmt: skip
      advantages = online.spread(places, np.asarray(advantages).ravel(), batch)
    if o.whiten:
      advantages = whiten(advantages, mask)
    batch['advantages'] = np.asarray(advantages, np.float32)
    return batch, more

  def loss(self, params, frozen, batch, rng):
    """Returns (sums, weights, metrics): clipped_policy, with whatever KL, entropy and value error the loss holds."""
    o, tuned, mask, segments = self.o, self.tuned, batch['mask'], batch['segments']
    n = batch['valid'].shape[1]
    whole, hidden = tuned.hidden(tuned.policy(params), frozen, batch, rng)
    logp = logps(
      tuned.cfg, whole, hidden, batch, temperature=self.temperature, chunk=self.chunk,
      also=lm.entropy if o.entropy else None,
    )  # fmt: skip
    logp, entropy = logp if o.entropy else (logp, None)
    share = functools.partial(policy.aggregate, mask=mask, segments=segments, n=n, how=o.aggregate, divisor=o.divisor)
    sums, weights, metrics = policy.clipped_policy(
      logp, batch['old_logp'], batch['advantages'], mask, segments, n, ratio=o.ratio, surrogate=o.surrogate,
      clip_low=o.clip_low, clip_high=o.clip_high, dual_clip=o.dual_clip, how=o.aggregate, divisor=o.divisor, tau=o.tau,
      weight=batch['weight'] if 'weight' in batch else None,
    )  # fmt: skip
    if self.kl.placement == 'loss':
      each = policy.kl_penalty(
        logp, batch['old_logp'], batch['ref_logp'], mask, estimator=self.kl.estimator, gradient=self.kl.gradient
      )
      total, weights['kl'] = share(each * batch['beta'])
      sums['kl'] = total
    if o.entropy:
      total, weights['entropy'] = share(entropy)
      sums['entropy'] = -o.entropy * total
    if self.valued:
      worth = tuned.worth(params, whole, hidden, batch)
      more = policy.clipped_value(
        worth, batch['values'], batch['returns'], mask, clip=self.c.clip, coefficient=self.c.coefficient
      )
      sums, weights, metrics = sums | more[0], weights | more[1], metrics | more[2]
    return sums, weights, metrics | {'gate': gap(logp, batch['old_logp'], mask)}


# On the host's arrays, but compiled: one by one, their operations would cost seconds at each new shape.
token_kl = jax.jit(policy.token_kl, static_argnames='estimator')
truncated_weights = jax.jit(policy.truncated_weights, static_argnums=4, static_argnames=('cap', 'level', 'beyond'))
group_advantages = jax.jit(policy.group_advantages, static_argnames=('baseline', 'scale', 'eps'))
whiten = jax.jit(functools.partial(policy.whiten, ddof=1))


@functools.partial(jax.jit, static_argnames=('n', 'gamma', 'lam'))
def credit(scores, kl, values, mask, segments, *, n, gamma, lam):
  """Returns (advantages, returns) float32[B,T] of GAE. kl: float32[B,T], what it costs, or None."""
  rewards = policy.token_rewards(scores, kl, mask, segments, n, beta=0 if kl is None else 1)
  return policy.gae(rewards, values, mask, segments, gamma=gamma, lam=lam)


def gap(logp, old_logp, mask):
  """Returns float32[]: the largest difference of a sampled token's log-prob, between learner and sampler."""
  return jnp.max(jnp.where(mask != 0, jnp.abs(jax.lax.stop_gradient(logp) - old_logp), 0))


class Pairs:
  """Online DPO: of each prompt's completions the best and the worst are a pair. Source: OAIF, 2402.04792."""

  reads = False

  def __init__(self, config, tuned):
    o = config.objective
    self.samples, self.temperature = config.rollout.samples, config.rollout.temperature
    self.how = dict(
      terms=dict(o.terms), beta=o.beta, label_smoothing=0.0, normalise=False, divergence='reverse_kl', alpha=None,
      ld_alpha=None,
    )  # fmt: skip
    self.objective = prefer.Objective(tuned, 'dpo', chunk=config.train.loss_chunk, soft_labels=False)

  def empty(self, rows, width, room=1):
    pair = {k: np.zeros((rows, 2, width), np.int32) for k in ('tokens', 'targets', 'segments', 'positions')}
    pair |= {k: np.zeros((rows, 2, width), np.float32) for k in ('mask', 'old_logp')}
    return pair | {k: np.zeros((rows, 1), np.float32) for k in ('margin', 'label', 'valid')}

  def lay_out(self, sampled, width, *, multiple):
    """Returns (batch of pairs, places). A prompt whose completions are worth the same, or nothing, is no pair."""
    of = np.where(sampled.valid, sampled.scored.total, np.nan).reshape(-1, self.samples)
    known = np.isfinite(of)
    best = np.where(known, of, -np.inf).argmax(1)
    worst = np.where(known, of, np.inf).argmin(1)
    first = np.arange(len(of)) * self.samples
    sides = [online.lay_out(sampled.only(first + side), width=width, packed=False, multiple=multiple)[0]
             for side in (best, worst)]  # fmt: skip
    batch = {k: np.stack([side[k] for side in sides], 1) for k in sides[0]}
    batch['valid'] = np.zeros((len(batch['tokens']), 1), np.float32)
    gap = of[np.arange(len(of)), best] - of[np.arange(len(of)), worst]
    batch['valid'][: len(of), 0] = np.nan_to_num(gap) > 0
    return batch | {'label': np.ones_like(batch['valid']), 'margin': np.zeros_like(batch['valid'])}, None

  def prepare(self, batch, places, sampled, known, beta, scale, room=1):
    return batch, {'pairs': float(batch['valid'].mean())}

  def loss(self, params, frozen, batch, rng):
    """Returns (sums, weights, metrics) of DPO; at temperature 1, where the implicit reward is defined."""
    logp, ref_logp = self.objective.logp(params, frozen, batch, rng), self.objective.ref_logp(frozen, batch)
    mask = batch['mask']
    sums, weights, metrics = preference.dpo(logp, ref_logp, mask, batch['segments'], batch['valid'], **self.how)
    return sums, weights, metrics | {'gate': gap(logp, batch['old_logp'], mask)}


def check(config):
  """Returns nothing; raises BadInput for what is wrong without a device."""
  tune.check(config)
  r, o, kl = config.rollout, config.objective, config.kl
  at_least(config, 1, 'rollout.prompts', 'rollout.samples', 'rollout.slots', 'rollout.refill', 'rollout.new_tokens')
  at_least(config, 1, 'rollout.rounds', 'eval.samples', 'objective.epochs')
  at_least(config, 2, 'rollout.alarm')
  if not r.temperature > 0:
    raise BadInput(f'rollout.temperature = {r.temperature} must be above 0: a greedy policy has nothing to compare')
  if config.model.dropout or config.lora.dropout:
    raise BadInput(
      f'model.dropout = {config.model.dropout} and lora.dropout = {config.lora.dropout}: the sampler has none, so that '
      'no ratio would be 1 (trl#744); set both to 0'
    )
  rows = r.prompts if o.kind == 'dpo' else r.prompts * r.samples
  if rows % config.data.batch:
    raise BadInput(
      f'rollout.prompts = {r.prompts} with rollout.samples = {r.samples} make {rows} rows, which do not divide into '
      f'minibatches of data.batch = {config.data.batch}: change one of them'
    )
  if not any(part.weight for part in config.rewards.values()):
    raise BadInput(f'rewards: no part of ({", ".join(config.rewards)}) has a weight, so nothing is learnt: give one')
  if r.gold is not None and r.gold not in config.rewards:
    raise BadInput(f'rollout.gold = {r.gold!r} is none of the rewards: {", ".join(config.rewards)}')
  if o.kind not in ('policy', 'dpo'):
    raise BadInput(f'objective.kind = {o.kind!r}: choose policy or dpo')
  if config.critic.kind not in CRITICS:
    raise BadInput(f'critic.kind = {config.critic.kind!r}: choose one of {", ".join(CRITICS)}')
  if o.kind == 'dpo':
    if r.samples < 2:
      raise BadInput('rollout.samples = 1: a pair needs two completions of a prompt')
    if r.temperature != 1 or config.critic.kind != 'none' or config.data.packing != 'padded':
      raise BadInput(
        'online DPO reads log-probs at temperature 1, one pair a row, without a critic: set rollout.temperature = 1.0, '
        'data.packing = padded and critic.kind = none'
      )
    if kl.placement in ('loss', 'reward') or kl.target is not None or o.mask_truncated:
      raise BadInput(
        'the KL of online DPO is objective.beta, and it reads whole pairs: set kl.placement = watch, kl.target = None '
        'and objective.mask_truncated = False'
      )
    return
  policy.check_kl(kl.estimator, kl.placement, kl.gradient)
  if kl.placement in ('loss', 'reward') and not kl.beta > 0:
    raise BadInput(f'kl.beta = {kl.beta} with kl.placement = {kl.placement}: give a positive one, or placement = watch')
  if kl.target is not None and not (kl.target > 0 and kl.horizon > 0 and kl.placement in ('loss', 'reward')):
    raise BadInput(
      f'kl.target = {kl.target} with kl.placement = {kl.placement} and kl.horizon = {kl.horizon}: a coefficient is '
      'adapted to a positive target over a positive horizon, where the KL is in the loss or the reward'
    )
  alone = config.critic.kind == 'none'
  if alone and o.baseline in ('mean', 'leave_one_out') and r.samples < 2:
    raise BadInput(f'objective.baseline = {o.baseline} with rollout.samples = 1: every advantage would be 0, use more')
  if o.importance is not None and o.old != 'learner':
    raise BadInput('objective.importance weighs the learner against the sampler: set objective.old = learner')


def read_prompts(config, tuned):
  """Returns (Listed to learn from, {name: Listed} held out), of config.data.sources.

  A source's `holdout` is the share of its prompts that is held out: 0.0 none, 1.0 all.
  """
  c, learnt, held_out = config.data, [], {}
  limit = min(tuned.cfg.length, c.length) - max(config.rollout.new_tokens, config.eval.new_tokens)
  for name, source in c.sources.items():
    counts = collections.Counter()
    files = (source.files,) if isinstance(source.files, str) else tuple(source.files)
    every = asked.prompts(
      sources.Source(files=files, on_error=c.on_error), tuned.template, limit=limit, instruction=source.instruction,
      too_long=c.too_long, counts=counts,
    )  # fmt: skip
    held = [p for p in every if tuning.here(tuning.said(p.messages), source.holdout, 'eval')]
    mine = [p for p in every if tuning.here(tuning.said(p.messages), source.holdout, 'train')]
    left = ''.join(f', {n:,} {kind}' for kind, n in counts.items() if n)
    start.say(f'{name}: {len(mine):,} prompts to learn from, {len(held):,} held out{left}')
    learnt += mine
    if held:
      held_out[name] = online.Listed(held, asked.fingerprint(held))
  if not learnt:
    raise BadInput('data.sources holds all of its prompts out: give one with holdout below 1')
  return online.Listed(learnt, asked.fingerprint(learnt)), held_out


def build(config, origin, mesh, watch):
  """Returns the Job of learning from reward."""
  tuned = Tuned(config, origin)
  tuned.check_layout(mesh)
  learnt, held_out = read_prompts(config, tuned)
  stream = online.Stream(learnt, asked.order(len(learnt.prompts), config.seed), config.seed, config.rollout.prompts)
  frozen, record, dpo = tuned.frozen(mesh), {}, config.objective.kind == 'dpo'
  if dpo or config.kl.placement != 'none':
    record = tune.same(origin, 'reference', tuned.base)
    if not tuned.lora:
      frozen['ref'] = tuned.base.params(mesh)
  learner = (Pairs if dpo else Policy)(config, tuned)
  job = tune.job(tuned, stream, held_out, learner.loss, mesh, frozen=frozen, record=record)
  every = [p for listed in (learnt, *held_out.values()) for p in listed.prompts]
  width = min(-(-max(len(p.ids) for p in every) // 16) * 16, tuned.cfg.length)
  sampler = online.Sampler(tuned, rewarded.rewards(config, tuned, mesh), mesh, config, width)
  return job._replace(online=online.Online(config, tuned, frozen, stream, held_out, sampler, learner, mesh))


def run(config, workdir):
  """Trains a policy on rewards."""
  at_least(config, 1, 'data.batch')
  train.run(config, workdir, check, build, updates=config.objective.epochs * online.parts_of(config))
