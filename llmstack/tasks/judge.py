"""Prompts -> two completions of a policy -> a judge's verdicts -> preference pairs, and how far the judge is right.

With replies = 'file' the replies are those that people have compared already, and what they chose is the truth.

    WORKDIR/pairs.jsonl      {"prompt", "chosen", "rejected", "label", "first", "second", "mass"}
    WORKDIR/undecided.jsonl  {"prompt", "a", "b", "mass"}, pairs without a verdict, to be looked at
    WORKDIR/judge.json       what is printed

and beside these the fields of the prompt's record, and with a constitution the `principle` of the pair.
label: P(chosen is better), the mean over both orders. first, second: the same with chosen shown first, and second.
mass: the probability of either label, in both orders.
"""

import collections
import json
import os

import numpy as np

from llmstack import errors, metrics, sharding
from llmstack.align import constitution
from llmstack.align.judge import Verdicts
from llmstack.data import chat, records, sources
from llmstack.data import prompts as asked
from llmstack.errors import BadInput, Missed
from llmstack.infer import decode
from llmstack.infer.rollout import rollout
from llmstack.tasks import judges, online, rewarded, start

MARGINS = ('margin', 'score_chosen', 'score_rejected')  # which a record has for replies of its own


def read(config, records_of):
  """Returns at most config.limit of records_of(source, section of the config, counts), in an order of the seed."""
  found = []
  for name, c in config.data.sources.items():
    files = c.files if isinstance(c.files, str) else tuple(c.files)
    counts = collections.Counter()
    found += records_of(sources.Source(files, on_error=config.data.on_error), c, counts)
    if counts:
      start.say(f'{name}: left out {", ".join(f"{n} x {kind}" for kind, n in counts.items())}')
  if not found:
    raise BadInput(f'data.sources has nothing to compare: {", ".join(config.data.sources) or "name files"}')
  return [found[i] for i in asked.order(len(found), config.seed)(np.arange(min(len(found), config.limit)))]


def compared(config):
  """Returns ([Prompt], [(text, text)], float[n,2]): people's pairs in random order, and P(each is the better)."""
  one = lambda pair: len(pair.chosen) == len(pair.rejected) == 1  # noqa: E731
  pairs = read(config, lambda source, _, counts: [p for _, p in records.pairs(source, counts) if one(p)])
  swap = np.random.default_rng(config.seed).random(len(pairs)) < 0.5
  texts = [(p.chosen[0]['content'], p.rejected[0]['content']) for p in pairs]
  prompts = [asked.Prompt([], p.prompt, {}) for p in pairs]
  worth = np.array([(p.label, 1 - p.label) for p in pairs])
  return prompts, [x[::-1] if s else x for x, s in zip(texts, swap)], np.where(swap[:, None], worth[:, ::-1], worth)


def completions(config, mesh):
  """Returns ([Prompt], [(text, text)]): two completions of the policy for each prompt."""
  policy = start.Trained(config.policy, config.step)
  if policy.kind != 'lm':
    raise BadInput(f'policy: {policy.where} is a {policy.kind} model, which says nothing')
  if policy.template is None:
    raise BadInput(f'policy: {policy.where} has no chat template: tune it with configs/sft.py first')
  template = chat.template(policy.template, policy.tokenizer)
  limit = policy.cfg.length - config.new_tokens
  prompts = read(
    config, lambda source, c, counts: asked.prompts(
      source, template, limit=limit, instruction=c.instruction, counts=counts
    )
  )  # fmt: skip
  start.say(f'{len(prompts):,} prompts, two completions each')
  out = rollout(
    policy.cfg, policy.params(mesh), [p.ids for p in prompts for _ in range(2)],
    online.seeds(config.seed, 0, 0, 2 * len(prompts)), mesh=mesh, slots=config.slots, refill=max(config.slots // 4, 1),
    new_tokens=config.new_tokens, temperature=config.temperature,
    stops=decode.stop_table([[i] for i in template.stops]), pad=policy.tokenizer.pad,
  )  # fmt: skip
  texts = [template.reply(row[:n]) for row, n in zip(out.tokens, out.lengths)]
  return prompts, list(zip(texts[::2], texts[1::2]))


def ruled(config):
  """Returns one principle per pair, or None: pair number -> what makes a reply the better one, drawn from a file.

  Source: Constitutional AI, 2212.08073, section 4.1.
  """
  if config.constitution is None:
    return None
  if config.judge.kind == 'reward':
    raise BadInput('constitution: a reward model reads no principles, so choose judge.kind = model or endpoint')
  rules = [p.comparison for p in constitution.load(config.constitution) if p.comparison]
  if not rules:
    raise BadInput(f'{config.constitution} compares nothing: give at least one principle a line comparison: ...')
  return lambda row: rules[constitution.drawn(rules, config.seed, row, 0)]


def judged(compare, prompts, texts, group, principles=None):
  """Returns Verdicts on all pairs of texts, `group` at a time. principles: one per pair, or None."""
  found = []
  for i in range(0, len(texts), group):
    a, b = zip(*texts[i : i + group])
    rules = principles and principles[i : i + group]
    found.append(compare([p.messages for p in prompts[i : i + group]], list(a), list(b), rules))
    start.say(f'{min(i + group, len(texts)):,} of {len(texts):,} pairs judged')
  return Verdicts(*map(np.concatenate, zip(*found)))


def agreement(verdicts, worth):
  """Returns {right, of, low, high, chosen, rejected} of the verdicts on pairs that are worth different amounts.

  worth: float[n,2], what a and b are truly worth. right: how many verdicts are for the one that is worth more, of half
  each counts half. low, high: of right / of, 95 %. chosen, rejected: what they are worth, the mean over all verdicts.
  """
  known = np.isfinite(verdicts.p)
  a_wins = verdicts.p >= 0.5
  chosen, rejected = np.where(a_wins, worth[:, 0], worth[:, 1]), np.where(a_wins, worth[:, 1], worth[:, 0])
  telling = known & (worth[:, 0] != worth[:, 1])
  agreed = 0.5 * (1 + np.sign(verdicts.p - 0.5) * np.sign(worth[:, 0] - worth[:, 1]))
  right, of = float(agreed[telling].sum()), int(telling.sum())
  low, high = metrics.wilson(right, of) if of else (0.0, 1.0)
  mean = lambda x: float(x[known].mean()) if known.any() else None  # noqa: E731
  return {'right': right, 'of': of, 'low': low, 'high': high, 'chosen': mean(chosen), 'rejected': mean(rejected)}


def told(found):
  """Yields the lines that are printed."""
  failed = ''.join(f'; {why}: {n}' for why, n in found['failures'].items())
  counts = ', '.join(f'{found[name]} {name}' for name in ('decided', 'undecided', 'failed'))
  yield f'{found["pairs"]} pairs judged: {counts}{failed}'
  if found['decided']:
    yield (
      f'position bias {found["position_bias"]:+.3f}, {found["flipped"]:.1%} flipped by the order, '
      f'{found["neither"]:.1%} on neither label'
    )
  if truth := found.get('truth'):
    share = f'{truth["right"] / truth["of"]:.1%} ({truth["low"]:.1%} to {truth["high"]:.1%})' if truth['of'] else 'none'
    yield f'agrees with the truth on {share} of {truth["of"]} pairs that differ in it'
    if found['decided']:
      yield f'what it chooses is truly worth {truth["chosen"]:.3f}, what it rejects {truth["rejected"]:.3f}'


def run(config, workdir):
  """Writes the pairs, and prints how many there are and how far the judge is right.

  Raises: Missed where there is not one verdict.
  """
  errors.at_least(config, 1, 'limit', 'slots', 'new_tokens', 'group', 'judge.batch', 'judge.new_tokens')
  if config.replies not in ('policy', 'file'):
    raise BadInput(f"replies = {config.replies!r}: choose 'policy' or 'file'")
  truth = None if config.truth is None or config.replies == 'file' else rewarded.world(config.truth)
  rule, mesh = ruled(config), sharding.make_mesh(**config.mesh)
  compare, failures = judges.comparer(config.judge, mesh)
  prompts, texts, *worth = compared(config) if config.replies == 'file' else completions(config, mesh)
  told_apart = [i for i, (x, y) in enumerate(texts) if x.strip() != y.strip() and x.strip() and y.strip()]
  if not told_apart:
    raise BadInput('the policy says the same, or nothing, twice to every prompt: raise temperature')
  of = len(texts)
  prompts, texts, worth = (
    [prompts[i] for i in told_apart],
    [texts[i] for i in told_apart],
    [w[told_apart] for w in worth],
  )
  if truth is not None:
    messages, info = [p.messages for p in prompts], [p.info for p in prompts]
    if any('fact' not in i and 'harmful' not in i for i in info):
      raise BadInput(f'truth = {config.truth}, and a prompt has no field fact or harmful: set it to None, or ask those')
    worth = [np.array([truth(messages, list(side), info) for side in zip(*texts)], np.float64).T]
  principles = rule and [rule(row) for row in range(len(texts))]
  verdicts = judged(compare, prompts, texts, config.group, principles)
  found = {'prompts': of, 'same_or_empty': of - len(texts), 'failures': dict(+failures)} | verdicts.summary()
  if worth:
    found['truth'] = agreement(verdicts, *worth)
  rows = {'pairs': [], 'undecided': []}
  for i, (prompt, (a, b), p, orders, mass) in enumerate(zip(prompts, texts, *verdicts)):
    row = {k: v for k, v in prompt.info.items() if k not in MARGINS}
    row |= {'prompt': prompt.messages, 'mass': [None if np.isnan(m) else float(m) for m in mass]}
    row |= {'principle': principles[i]} if principles else {}
    if np.isnan(p):
      rows['undecided'].append(row | {'a': a, 'b': b})
      continue
    if p < 0.5:
      a, b, p, orders = b, a, 1 - p, 1 - orders[::-1]
    label = {'label': float(p), 'first': float(orders[0]), 'second': float(orders[1])}
    rows['pairs'].append(row | {'chosen': a, 'rejected': b} | label)
  os.makedirs(workdir, exist_ok=True)
  for name, listed in rows.items():
    metrics.write(os.path.join(workdir, f'{name}.jsonl'), ''.join(f'{json.dumps(row)}\n' for row in listed))
  metrics.write(os.path.join(workdir, 'judge.json'), json.dumps(found | {'config': config.to_dict()}, indent=2))
  for line in told(found):
    print(line)
  if not found['decided']:
    raise Missed(f'not one of {found["pairs"]} pairs has a verdict: see {workdir}/undecided.jsonl')
  print(f'{workdir}/pairs.jsonl')
