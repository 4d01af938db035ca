"""One step of learning by reward: prompts -> completions -> rewards -> advantages -> updates of the one step.

What was sampled stays ids (`trl#5224`): nothing that a reward decodes is encoded again for the learner. Between the
rollout and the updates everything is numpy on the host, a few numbers per token, and a pure function of the
parameters, the seed and the step; so a run that was killed anywhere goes on from its checkpoint as if it had not been.
"""

import functools
import math
import time
from typing import NamedTuple

import jax
import numpy as np

from llmstack import metrics, sharding
from llmstack.data import batch as batches
from llmstack.data import packing
from llmstack.errors import BadInput, Diverged
from llmstack.infer import decode
from llmstack.infer.rollout import power, rollout
from llmstack.losses import policy

HISTORY = {'reward': [], 'gold': [], 'agreement': []}  # of the last steps, for the alarm
SHAPES = 4  # widths, or numbers of rows, for which the update is compiled at most
ROOM = 16  # completions of a row that are always reckoned with, where so many fit


class Sampled(NamedTuple):
  """Q completions of P prompts, M of each side by side, and what they are worth."""

  prompts: list  # Q lists of ids
  out: object  # infer.rollout.Rollout
  texts: list
  scored: object  # rewards.Scored
  valid: np.ndarray  # bool[Q]: it has a reward
  greedy: np.ndarray  # float32[Q], the reward of its prompt's greedy answer; 0 where nobody asks for it

  def only(self, rows):
    """Returns the rows that are picked."""
    pick = lambda x: [x[i] for i in rows]  # noqa: E731
    s = self.scored
    scored = s._replace(total=s.total[rows], parts={k: v[rows] for k, v in s.parts.items()})
    out = type(self.out)(*(x[rows] for x in self.out))
    return Sampled(pick(self.prompts), out, pick(self.texts), scored, self.valid[rows], self.greedy[rows])


def joined(a, b):
  """Returns the Sampled of both, a's first."""
  if a is None:
    return b
  scored = a.scored._replace(
    total=np.concatenate([a.scored.total, b.scored.total]),
    parts={k: np.concatenate([v, b.scored.parts[k]]) for k, v in a.scored.parts.items()},
    failed={k: n + b.scored.failed[k] for k, n in a.scored.failed.items()},
    reasons=b.scored.reasons | a.scored.reasons,
  )
  out = type(a.out)(*(np.concatenate(x) for x in zip(a.out, b.out)))
  valid, greedy = (np.concatenate(x) for x in ((a.valid, b.valid), (a.greedy, b.greedy)))
  return Sampled(a.prompts + b.prompts, out, a.texts + b.texts, scored, valid, greedy)


class Sampler:
  """Completions of prompts by a policy, and their rewards.

  tuned: tune.Tuned. reward: rewards.Rewards. config: the task's, of which `rollout` is read.
  width: columns for prompts, as rollout has them; one for a whole run compiles the least.
  """

  def __init__(self, tuned, reward, mesh, config, width=None):
    self.tuned, self.reward, self.mesh, self.c, self.width = tuned, reward, mesh, config.rollout, width
    self.stops, self.pad = decode.stop_table([[i] for i in tuned.template.stops]), tuned.tokenizer.pad

  def __call__(self, params, frozen, prompts, samples, seeds, *, temperature, new_tokens):
    """Returns the Sampled of data.prompts.Prompts. seeds: uint32[P * samples]."""
    listed = [p for p in prompts for _ in range(samples)]
    ids, c = [p.ids for p in listed], self.c
    out = rollout(
      self.tuned.cfg, self.tuned.join(params, frozen), ids, seeds, mesh=self.mesh, slots=c.slots, refill=c.refill,
      new_tokens=new_tokens, temperature=temperature, stops=self.stops, pad=self.pad, width=self.width,
    )  # fmt: skip
    said = [row[:n].tolist() for row, n in zip(out.tokens, out.lengths)]
    texts = [self.tuned.template.reply(x) for x in said]
    info = [
      p.info | {'tokens': len(x), 'ended': bool(done), 'ids': x, 'prompt_ids': p.ids}
      for p, x, done in zip(listed, said, out.done)
    ]
    scored = self.reward([p.messages for p in listed], texts, info)
    return Sampled(ids, out, texts, scored, np.isfinite(scored.total), np.zeros(len(ids), np.float32))


def seeds(seed, step, turn, n):
  """Returns uint32[n]: what the rows of a rollout draw with, a pure function of its place in the run."""
  key = packing.seed_key('rollout', seed, step, turn)
  return (packing.scramble(key + np.arange(n, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32)


def lay_out(sampled, *, width, packed, multiple):
  """Returns (batch, places): the completions behind their prompts as a learner reads them, numpy.

  width: T. packed: several in a row, best fit; or one. multiple: the number of rows is one of it, the last ones empty.
  batch: a data.Batch of [B,T], mask 1 where the target was sampled, with `old_logp` float32[B,T] of the sampler there.
  places: [(row, slice of columns)] of each completion's targets; segment is where[2].
  """
  sizes = np.array([len(p) + n for p, n in zip(sampled.prompts, sampled.out.lengths)])
  if packed:
    row, start, segment = packing.place(sizes, width + 1)
  else:
    row, start, segment = np.arange(len(sizes)), np.zeros(len(sizes), int), np.ones(len(sizes), int)
  rows = -(-(int(row.max()) + 1) // multiple) * multiple
  tokens, segments = (np.zeros((rows, width + 1), np.int32) for _ in range(2))
  places = []
  for i, (r, s) in enumerate(zip(row, start)):
    prompt, n = sampled.prompts[i], int(sampled.out.lengths[i])
    tokens[r, s : s + sizes[i]] = [*prompt, *sampled.out.tokens[i, :n]]
    segments[r, s : s + sizes[i]] = segment[i]
    places.append((int(r), slice(s + len(prompt) - 1, s + len(prompt) - 1 + n), int(segment[i])))
  batch = batches.targets(tokens, segments)
  batch['mask'] = spread(places, np.ones(len(sizes), np.float32), batch)
  batch['old_logp'] = np.zeros_like(batch['mask'])
  for i, (r, columns, _) in enumerate(places):
    batch['old_logp'][r, columns] = sampled.out.sampling_logp[i, : sampled.out.lengths[i]]
  return batch, places


def spread(places, values, batch):
  """Returns float32[B,T]: each completion's number at its sampled targets, 0 elsewhere."""
  out = np.zeros(batch['tokens'].shape, np.float32)
  for (row, columns, _), value in zip(places, values):
    out[row, columns] = value
  return out


class Scale:
  """The running mean and spread of rewards, by which PPO's are divided. JSON in and out: it is in the checkpoint.

  Source: Welford 1962; reward normalisation as in 2403.17031, detail 22, over all rewards so far.
  """

  def __init__(self, state=(0, 0.0, 0.0)):
    self.n, self.mean, self.m2 = state

  def __call__(self, rewards):
    """Returns float32[n]: (rewards - mean) / standard deviation, once these are counted; NaN stays."""
    for x in rewards[np.isfinite(rewards)].tolist():
      self.n += 1
      delta = x - self.mean
      self.mean += delta / self.n
      self.m2 += delta * (x - self.mean)
    deviation = math.sqrt(self.m2 / (self.n - 1)) if self.n > 1 else 0.0
    return ((rewards - self.mean) / (deviation + 1e-4)).astype(np.float32)

  def state(self):
    return [self.n, self.mean, self.m2]


def trend(x, window):
  """Returns 1, -1 or 0: the last `window` numbers are above, below or like the `window` before them.

  A change is one of more than two standard errors. 0 where there are fewer.
  """
  if len(x) < 2 * window:
    return 0
  a, b = np.array(x[-2 * window : -window], float), np.array(x[-window:], float)
  error = math.sqrt((a.var(ddof=1) + b.var(ddof=1)) / window) if window > 1 else 0.0
  change = float(b.mean() - a.mean())
  return int(np.sign(change)) if abs(change) > 2 * error else 0


def diverging(history, window):
  """Returns what fell while the reward that is trained on rose, or None. history: {name: its number at each step}.

  That is 'gold', the reward that counts; or 'agreement' with it, unless gold rose: completions that are all good are
  hard to tell apart, and that is no harm.
  """
  up, gold, agreed = (trend(history[name], window) for name in ('reward', 'gold', 'agreement'))
  if up > 0 > gold:
    return 'gold'
  return 'agreement' if up > 0 > agreed and gold <= 0 else None


def agreement(proxy, gold, samples):
  """Returns the share of pairs of completions of one prompt that proxy orders as gold does; its ties count a half.

  proxy, gold: float32[P * samples]; pairs that gold does not tell apart, or of which a reward is not finite, do not
  count. NaN where none is left.
  """
  i, j = np.triu_indices(samples, 1)
  a, b = (x[:, i] - x[:, j] for x in (proxy.reshape(-1, samples), gold.reshape(-1, samples)))
  counts = np.isfinite(a) & np.isfinite(b) & (b != 0)
  return float(((np.sign(a * b) + 1) / 2)[counts].mean()) if counts.any() else math.nan


class Listed(NamedTuple):
  """Prompts, and what tells them from others."""

  prompts: list  # of data.prompts.Prompt
  fingerprint: str


def parts_of(config):
  """Returns how many minibatches of data.batch rows a rollout makes."""
  r = config.rollout
  return r.prompts * (1 if config.objective.kind == 'dpo' else r.samples) // config.data.batch


class Stream:
  """The prompts of a run as train.Job's stream: a step's batch is its number, and Online takes the prompts itself."""

  def __init__(self, listed, order, seed, batch):
    self.prompts, self.fingerprint = listed
    self.order, self.parts, self.seed, self.batch = order, {}, seed, batch

  def position(self, step):
    """Returns JSON: what the prompts of a run depend on. How many are taken is Online's state."""
    return {'prompts': self.fingerprint, 'seed': self.seed, 'batch': self.batch, 'step': step}

  def check(self, saved):
    """Returns nothing; raises BadInput where a run would continue on other prompts."""
    now = self.position(0)
    if lines := [f'  {k}: {saved[k]} -> {now[k]}' for k in ('prompts', 'seed', 'batch') if saved[k] != now[k]]:
      said = 'the prompts are not those that the checkpoint was trained on (checkpoint -> now):'
      raise BadInput('\n'.join([said, *lines, 'put them back, or begin a new run with init_from']))

  def iterate(self, start, stop, index, count):
    for step in range(start, stop):
      yield {'step': np.array(step)}

  def take(self, taken, n):
    """Returns the n prompts that come behind the first `taken`."""
    return [self.prompts[i] for i in self.order(np.arange(taken, taken + n))]


class Online:
  """The step of a train.Job that learns by reward.

  config, tuned, stream. sampler: Sampler. held_out: {name: Listed}, for evaluations.
  learner: what tasks/rl.py made of the objective: `read(params, frozen, batch)`, jitted, what is to be known of a batch
    before any update of it; `prepare(batch, places, sampled, read, beta, scale)`, the batch with its advantages.
  """

  def __init__(self, config, tuned, frozen, stream, held_out, sampler, learner, mesh):
    self.config, self.tuned, self.frozen, self.stream, self.held_out = config, tuned, frozen, stream, held_out
    self.sampler, self.learner, self.mesh = sampler, learner, mesh
    self.parts, self.packed = parts_of(config), config.data.packing == 'best_fit'
    c, sizes = config.data, [len(p.ids) for p in stream.prompts]
    self.longest = min(max(sizes) + config.rollout.new_tokens, c.length)
    self.most = (c.batch, self.columns(self.longest), 1)
    if self.packed:
      # Another row is begun only where the others have no place for the longest one: each but the last holds so many.
      rows = -(-c.batch * self.parts // ((c.length + 1) // self.longest))
      rows = -(-rows // self.multiple()) * self.multiple() // self.parts
      self.most = (rows, c.length, min(power((c.length + 1) // (min(sizes) + 1)), ROOM))

  def columns(self, needed):
    """Returns the width of rows that hold `needed` tokens: one of SHAPES, so that few updates are compiled."""
    whole, chunk = self.config.data.length, self.config.train.loss_chunk or 1
    step = -(-self.longest // (SHAPES * chunk)) * chunk
    return min(-(-max(needed, 1) // step) * step, whole)

  def shapes(self, *shape):
    """Returns the batch of one update of (rows, width, room), by default the largest, as sharded ShapeDtypeStructs."""
    empty = self.learner.empty(*(shape or self.most))
    where = {k: sharding.spec(batches.letters(k, x.ndim)) for k, x in empty.items()}
    put = lambda k, x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=jax.NamedSharding(self.mesh, where[k]))  # noqa: E731
    return {k: put(k, x) for k, x in empty.items()}

  def begin(self, update, compiled, log, watch, origin):
    """Returns (step, evaluate, more) for loop.fit; what a run had learnt about its rewards goes on where it stopped."""
    self.updates, self.compiled = {self.most: update}, compiled
    self.log, self.watch = log, watch
    fresh = {'taken': 0, 'beta': self.config.kl.beta, 'scale': [0, 0.0, 0.0], 'history': HISTORY}
    had = origin.meta['online'] if origin.resumes else fresh
    self.taken, self.beta, self.history = had['taken'], had['beta'], had['history']
    self.scale = Scale(had['scale'])
    return self.step, self.evaluate, self.state

  def close(self):
    """Ends what the rewards have running."""
    self.sampler.reward.close()

  def state(self):
    """Returns JSON for the checkpoint."""
    scale = self.scale.state()
    return {'online': {'taken': self.taken, 'beta': self.beta, 'scale': scale, 'history': self.history}}

  def sample(self, params, step):
    """Returns (Sampled of config.rollout.prompts groups, groups that were sampled and left out)."""
    r, kept, dropped = self.config.rollout, None, 0
    for turn in range(r.rounds):
      prompts = self.stream.take(self.taken, r.prompts)
      self.taken += r.prompts
      self.watch.beat('rollout')
      draws = seeds(self.config.seed, step, turn, r.prompts * r.samples)
      how = dict(new_tokens=r.new_tokens)
      new = self.sampler(params, self.frozen, prompts, r.samples, draws, temperature=r.temperature, **how)
      if self.config.objective.baseline == 'greedy':
        best = self.sampler(params, self.frozen, prompts, 1, draws[: r.prompts], temperature=0.0, **how)
        greedy, known = (np.repeat(x, r.samples) for x in (best.scored.total, best.valid))
        new = new._replace(greedy=greedy, valid=new.valid & known)
      if not r.dynamic:
        return new, 0
      # A group of one reward teaches nothing: others are sampled in its place (2503.14476, section 3.2).
      of = np.where(new.valid, new.scored.total, np.nan).reshape(r.prompts, r.samples)
      mixed = np.array([np.unique(x[np.isfinite(x)]).size > 1 for x in of])
      kept = joined(kept, new.only(np.flatnonzero(np.repeat(mixed, r.samples))))
      dropped += int((~mixed).sum())
      if len(kept.prompts) >= r.prompts * r.samples:
        break
    return kept.only(np.arange(min(len(kept.prompts), r.prompts * r.samples))), dropped

  def step(self, state, batch):
    """Returns (state, measurements) after one rollout and the updates on it."""
    k, o, r, began = int(batch['step']), self.config.objective, self.config.rollout, time.perf_counter()
    sampled, dropped = self.sample(self.tuned.policy(state.params), k)
    count = len(sampled.prompts)
    sampling = time.perf_counter() - began
    values = self.measured(sampled) | {'dropped': dropped, 'rollout_s': sampling}
    for name, why in sampled.scored.reasons.items():
      self.log.log(k + 1, 'failed', name=name, why=why, rows=sampled.scored.failed[name])
    if not sampled.valid.any():
      why = '; '.join(f'{name}: {said}' for name, said in sampled.scored.reasons.items())
      raise Diverged(
        f'step {k + 1}: ' + (f'not one of {count} completions has a reward ({why}): correct the rewards' if count else
        f'{r.rounds} rounds of prompts had no group with two different rewards: the task is too easy or too hard, '
        'raise rollout.rounds or set rollout.dynamic = False')
      )  # fmt: skip
    longest = max(len(p) + n for p, n in zip(sampled.prompts, sampled.out.lengths))
    width = self.config.data.length if self.packed else self.columns(int(longest))
    made, places = self.learner.lay_out(sampled, width, multiple=self.multiple())
    rows = len(made['tokens']) // self.parts
    place = lambda part: sharding.place(part, self.mesh, batches.letters)  # noqa: E731
    cut = lambda tree, of: {name: x[of] for name, x in tree.items()}  # noqa: E731
    self.watch.beat('reading')
    known = []
    if self.learner.reads:
      for i in range(self.parts):
        known.append(self.learner.read(state.params, self.frozen, place(cut(made, slice(i * rows, (i + 1) * rows)))))
      known = {name: np.concatenate([np.asarray(x[name]) for x in known]) for name in known[0]}
    made, more = self.learner.prepare(made, places, sampled, known or {}, self.beta, self.scale, self.most[2])
    values |= more
    if 'gate' in values:
      self.gate(values['gate'], k)
    self.adapt(values, count)
    found, room = [], made['valid'].shape[1]
    for epoch in range(o.epochs):
      key = packing.seed_key('minibatches', self.config.seed, k, epoch)
      dealt = packing.permute(np.arange(rows * self.parts, dtype=np.uint64), rows * self.parts, key)
      if self.parts == 1:
        dealt = np.arange(rows)  # the order of rows means nothing to one update
      for i in range(self.parts):
        part = cut(made, dealt[i * rows : (i + 1) * rows])
        state, measured = self.update(rows, width, room)(state, self.frozen, place(part))
        found.append(measured)
    found = jax.device_get(found)
    values['update_s'] = time.perf_counter() - began - sampling
    if 'gate' not in values:
      self.gate(found[0]['gate'], k)
      values['gate'] = found[0]['gate']
    last = ('lr', 'skipped', 'streak', 'param_norm', 'crc', 'spikes')
    mean = {n: found[-1][n] if n in last else np.mean([x[n] for x in found], dtype=np.float32) for n in found[0]}
    # Of all minibatches in their order; two passes over one must not cancel.
    mean['crc'] = np.uint32(functools.reduce(lambda total, x: (31 * total + int(x['crc'])) % 2**32, found, 0))
    self.watched(values, k)
    return state, {name: np.asarray(x) for name, x in (mean | values).items()}

  def multiple(self):
    """Returns what the number of rows is a multiple of: so many shapes, at most, are compiled of packed ones."""
    whole = self.config.data.batch * self.parts
    ways = self.mesh.shape['data'] * self.mesh.shape['fsdp'] * self.config.train.microbatches * self.parts
    return -(-whole // (SHAPES * ways)) * ways if self.packed else whole

  def update(self, *shape):
    """Returns the update compiled for a batch of rows, width and room."""
    if shape not in self.updates:
      self.updates[shape] = self.compiled(self.shapes(*shape))
    self.watch.beat('the step')
    return self.updates[shape]

  def gate(self, gap, step):
    """Raises Diverged where sampler and learner are not one model."""
    bound = self.config.rollout.gate
    if not gap <= bound:
      raise Diverged(
        f'step {step + 1}: the log-prob of a sampled token differs by {gap:.2e} between sampler and learner, more than '
        f'rollout.gate = {bound:.0e}: every ratio would be wrong by that; in bfloat16 raise it to what a first step '
        'says, in float32 it is a bug'
      )

  def adapt(self, values, count):
    kl = self.config.kl
    if kl.target is not None and 'kl' in values:
      self.beta = policy.adapted(self.beta, values['kl'], target=kl.target, horizon=kl.horizon, n=count)

  def measured(self, sampled):
    """Returns the numbers of a rollout: means over completions, of those with a reward."""
    s, n = sampled.scored, sampled.out.lengths
    mean = lambda x: float(np.nanmean(x)) if np.isfinite(x).any() else 0.0  # noqa: E731
    out = {'reward': mean(s.total), 'reward_std': float(np.nanstd(s.total)) if np.isfinite(s.total).any() else 0.0}
    out |= {f'reward/{name}': mean(part) for name, part in s.parts.items()}
    out |= {'failed': int((~sampled.valid).sum()), 'length': float(n.mean()) if len(n) else 0.0}
    groups = s.total.reshape(-1, self.config.rollout.samples)
    same = [np.unique(g[np.isfinite(g)]).size < 2 for g in groups]
    out |= {'ended': float(sampled.out.done.mean()) if len(n) else 0.0, 'same': float(np.mean(same)) if same else 0.0}
    out |= self.agreed(s, self.config.rollout.samples)
    # -log p of what was drawn is, on average, the entropy of the distribution it was drawn from.
    tokens = int(n.sum())
    out |= {'entropy': float(-sampled.out.sampling_logp.sum() / max(tokens, 1)), 'tokens': tokens}
    return out

  def agreed(self, scored, samples):
    """Returns {'agreement': of the reward with the one that counts}, or {} where that says nothing."""
    gold = self.config.rollout.gold
    share = agreement(scored.total, scored.parts[gold], samples) if gold and len(scored.total) else math.nan
    return {'agreement': share} if math.isfinite(share) else {}

  def watched(self, values, step):
    """Logs an alarm where the reward rises and the one that counts, or agreement with it, falls."""
    gold, window = self.config.rollout.gold, self.config.rollout.alarm
    if gold is None:
      return
    now = {'reward': 'reward', 'gold': f'reward/{gold}', 'agreement': 'agreement'}
    new = {name: [values[key]] if key in values else [] for name, key in now.items()}
    self.history = {name: [*before, *new[name]][-2 * window :] for name, before in self.history.items()}
    if fell := diverging(self.history, window):
      fell = f'reward/{gold}, which counts, fell' if fell == 'gold' else f'orders fewer pairs as reward/{gold} does'
      why = f'the reward rose over the last {window} steps, and {fell}: the policy may be exploiting its reward'
      self.log.log(step + 1, 'alarm', why=why)
      self.log.progress(f'step {step + 1:>6} alarm: {why}', end=True)
      self.history = HISTORY  # the next one is about what comes

  def evaluate(self, k, state):
    """Returns {'eval/reward': float} over held-out prompts; logs it, each part with its interval, and samples."""
    c, params, together = self.config.eval, self.tuned.policy(state.params), []
    for number, (name, listed) in enumerate(self.held_out.items()):
      if self.watch.poll():
        return {}
      self.watch.beat('evaluation')
      prompts = listed.prompts[: c.rows]
      draws = seeds(self.config.seed, 0, -1 - number, len(prompts) * c.samples)
      how = dict(temperature=c.temperature, new_tokens=c.new_tokens)
      sampled = self.sampler(params, self.frozen, prompts, c.samples, draws, **how)
      found = self.measured_eval(sampled, c.samples)
      self.log.log(k, 'eval', name=name, **found)
      shown = '  '.join(f'{n} {x:.3f}' for n, x in found.items() if n == 'reward' or n.startswith('reward/'))
      self.log.progress(f'step {k:>6} held out {name}: {shown}  length {found["length"]:.1f}', end=True)
      together.append(found['reward'])
      for i in range(0, min(len(prompts), c.shown) * c.samples, c.samples):
        asked = prompts[i // c.samples].messages[-1]['content']
        self.log.log(k, 'sample', prompt=asked, text=sampled.texts[i], reward=float(sampled.scored.total[i]))
    return {'eval/reward': float(np.mean(together))} if together else {}

  def measured_eval(self, sampled, samples):
    """Returns what `measured` does, without groups; parts of zeros and ones with a Wilson interval; the best of n."""
    s, n = sampled.scored, sampled.out.lengths
    out = {'reward': float(np.nanmean(s.total)) if sampled.valid.any() else 0.0, 'completions': len(n)}
    for name, part in s.parts.items():
      known = part[np.isfinite(part)]
      out[f'reward/{name}'] = float(known.mean()) if len(known) else 0.0
      if len(known) and np.isin(known, (0, 1)).all():
        out[f'low/{name}'], out[f'high/{name}'] = metrics.wilson(float(known.sum()), len(known))
    out |= {'length': float(n.mean()), 'ended': float(sampled.out.done.mean()), 'failed': int((~sampled.valid).sum())}
    out |= self.agreed(s, samples)
    if samples > 1 and sampled.valid.any():
      best = np.where(sampled.valid, s.total, -np.inf).reshape(-1, samples).max(1)
      # KL(best of n || policy) is at most this, whatever the rewards (2112.00861, section 3; equal without ties).
      out |= {'best_of_n': float(best[np.isfinite(best)].mean()), 'best_of_n_kl': math.log(samples) - 1 + 1 / samples}
    return out
