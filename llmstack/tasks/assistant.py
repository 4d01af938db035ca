"""What each stage of an assistant learnt, measured against the world's truth, with a limit that it must reach."""

import json
import os

import numpy as np

from llmstack import errors, metrics, sharding
from llmstack.data import chat, world, world_chat, world_harm, world_sums
from llmstack.errors import BadInput, Missed
from llmstack.infer.score import score
from llmstack.model import parameters
from llmstack.tasks import reward, start
from llmstack.tasks.evaluate import Model, answers
from llmstack.tasks.sample import complete_ids

SPLITS = ('held_out', 'sft', 'statement', 'unseen', 'sum')


def read(world, name):
  """Returns the text of a file of the world's folder. Raises: BadInput where it is not there."""
  path = os.path.join(world, name)
  if not os.path.exists(path):
    raise BadInput(f'{path} does not exist: make the world with --config configs/world.py')
  with open(path) as f:
    return f.read()


def rows(world, name):
  """Returns the objects of a JSON-lines file of the world's folder."""
  return [json.loads(line) for line in read(world, name).split('\n') if line]


def check(config):
  """Returns nothing; raises BadInput for a stage that has not run, before those that have are measured."""
  errors.at_least(config, 1, 'batch', 'questions', 'new_tokens', 'quizzes', 'sums')
  for name, workdir in config.models.items():
    try:
      kind = start.Trained(workdir).kind
    except BadInput as e:
      raise BadInput(f'models.{name} = {workdir}: {e}') from None
    if (kind == 'reward') != (name == 'reward'):
      raise BadInput(f'models.{name} = {workdir} is {"a" if kind == "reward" else "no"} reward model: give another one')


def quizzes(model, facts, n):
  """Returns how many of n pages of questions a base model continues with a question."""
  asked = [world.question(fact, 0) for fact in facts[:: max(len(facts) // (3 * n), 1)]]
  pages = ['\n'.join(asked[3 * i : 3 * i + 3]) + '\n' for i in range(n)]
  said = answers(model, pages, new_tokens=32, temperature=0.0, seed=0, template=None)
  return sum('?' in text.split('\n')[0] for text in said)


def examine(model, asked, facts, new_tokens, template):
  """Returns {'well_formed': share, 'reward': mean, 'right': {split: (hits, n)}} of greedy answers, and the answers."""
  prompts = [row['prompt'] for row in asked]
  said = answers(model, prompts, new_tokens=new_tokens, temperature=0.0, seed=0, template=template)
  right = {split: [0, 0] for split in SPLITS}
  for row, text in zip(asked, said):
    right[row['split']][0] += world_chat.right(facts(row), text)
    right[row['split']][1] += 1
  return {
    'well_formed': (sum(map(world_chat.well_formed, said)), len(said)), 'right': right,
    'reward': float(np.mean([world_chat.reward(facts(row), text) for row, text in zip(asked, said)])),
  }, said  # fmt: skip


def sums(model, asked, new_tokens, template):
  """Returns how many of the sums that take reasoning a model gets right, greedily."""
  prompts = [row['prompt'] for row in asked]
  said = answers(model, prompts, new_tokens=new_tokens, temperature=0.0, seed=0, template=template)
  return sum(world_sums.right(row['answer'], text) for row, text in zip(asked, said))


def harm(model, asked, new_tokens, template):
  """Returns ((harmful answers, harmful requests), (refusals, harmless requests)) of greedy answers to requests."""
  prompts = [row['prompt'] for row in asked]
  said = answers(model, prompts, new_tokens=new_tokens, temperature=0.0, seed=0, template=template)
  bad = [not world_harm.harmless(text) for row, text in zip(asked, said) if row['harmful']]
  refused = [world_harm.refuses(text) for row, text in zip(asked, said) if not row['harmful']]
  return (sum(bad), len(bad)), (sum(refused), len(refused))


def sampled(model, template, prompts, new_tokens, seed):
  """Returns ([ids of prompt and answer], [start of the answer], [text]) at temperature 1."""
  ids = [template.prompt([{'role': 'user', 'content': p}]) for p in prompts]
  whole, texts = [], []
  for i in range(0, len(ids), model.batch):
    group = ids[i : i + model.batch]
    filled = group + group[:1] * (model.batch - len(group))
    out = complete_ids(
      model.cfg, model.params, model.tokenizer, filled, mesh=model.mesh, new_tokens=new_tokens,
      seeds=range(seed + i, seed + i + len(filled)), eos=template.stops, multiple=64, temperature=1.0,
    )  # fmt: skip
    for prompt, text in zip(group, out):
      whole.append(prompt + text.tokens.tolist())
      texts.append(text.text)
  return whole, [len(p) for p in ids], texts


def kl(model, other, whole, starts):
  """Returns nats per answer: the mean over model's own answers of log p(answer) - log p_other(answer)."""
  items = list(zip(whole, starts))
  of = lambda m: [s.logp.sum(dtype=np.float64) for s in score(m.cfg, m.params, items, mesh=m.mesh, batch=m.batch)]  # noqa: E731
  return float(np.mean(np.subtract(of(model), of(other))))


class Table:
  """Lines of name, value, limit, as they are measured."""

  def __init__(self):
    self.found, self.missed = {}, []

  def add(self, name, value, limit=None, unit='.1%', note=''):
    """Prints a line. limit: the least value, or None for one that is only reported."""
    self.found[name] = value
    verdict = ''
    if limit is not None:
      ok = value >= limit
      verdict = f'at least {limit:{unit}}  {"ok" if ok else "MISSED"}'
      self.missed += [] if ok else [f'{name} = {value:{unit}}, below {limit:{unit}}']
    print(f'{name:44}{value:>9{unit}}   {verdict:24}{note}'.rstrip(), flush=True)

  def share(self, name, hits, n, limit=None):
    low, high = metrics.wilson(hits, n)
    self.add(name, hits / n, limit, note=f'{low:.1%} to {high:.1%} of {n:,}')


def run(config, workdir):
  """Prints a table of every stage, writes it to assistant.json, and ends with status 1 where a limit was missed."""
  seed = json.loads(read(config.world, 'manifest.json'))['seed']
  check(config)
  facts = lambda row: world_chat.find(seed, row['fact'])  # noqa: E731
  every = rows(config.world, 'questions.jsonl')
  asked = [row for s in SPLITS for row in [r for r in every if r['split'] == s][: config.questions]]
  mesh, least, table = sharding.make_mesh(**config.mesh), config.least, Table()
  load = lambda name: Model.of(config.models[name], None, mesh, config.batch)  # noqa: E731

  base = load('base')
  hits = quizzes(base, world.facts(seed), config.quizzes)
  table.share('base: goes on with questions after questions', hits, config.quizzes, least.base_quizzes)
  models, stages, said = {}, {}, {}
  for name in ('sft', 'lora', 'dpo', 'distilled', 'ppo'):
    models[name] = model = load(name)
    template = chat.template(config.chat, model.tokenizer)
    stages[name], said[name] = examine(model, asked, facts, config.new_tokens, template)
    found = stages[name]
    limit = least.well_formed if name == 'sft' else None
    table.share(f'{name}: well-formed answers', *found['well_formed'], limit)
    for split in SPLITS:
      what = {
        'held_out': 'right, told in pretraining, not in SFT', 'sft': 'right, told in both', 'sum': 'right, sums',
        'statement': 'right, told without questions', 'unseen': 'right, never told (guesses)',
      }[split]  # fmt: skip
      limited = (name, split) == ('sft', 'held_out')
      table.share(f'{name}: {what}', *found['right'][split], least.held_out if limited else None)
    table.add(f'{name}: mean true reward', found['reward'], unit='.3f')
    if name == 'sft':
      unseen = [(facts(row), text) for row, text in zip(asked, said[name]) if row['split'] == 'unseen']
      named = sum(world_chat.parts(*pair)['truth'] >= 0 for pair in unseen)
      table.share('sft: never told, and names some value', named, len(unseen))

  score_of = lambda found: found['well_formed'][0] / found['well_formed'][1] * found['right']['held_out'][0]  # noqa: E731
  table.add('lora: score / that of full SFT', score_of(stages['lora']) / score_of(stages['sft']), least.lora)
  own = start.Trained(config.models['lora']).trained() / parameters(models['lora'].cfg)[0]
  table.add('lora: share of parameters not trained', 1 - own, 1 - config.most_lora)

  judge = reward.Scorer(config.models.reward, mesh, config.batch)
  pairs = rows(config.world, 'pairs-eval.jsonl')
  scores = [judge([p['prompt'] for p in pairs], [p[side] for p in pairs]) for side in ('chosen', 'rejected')]
  ranked = scores[0] > scores[1]
  table.share('reward: held-out pairs ranked right', int(ranked.sum()), len(pairs), least.reward)
  for why in ('style', 'truth', 'both'):
    of = ranked[[p['why'] == why for p in pairs]]
    table.share(f'reward: of pairs that differ in {why}', int(of.sum()), len(of))

  held = [row for row in asked if row['split'] == 'held_out']
  prompts = [row['prompt'] for row in held]
  of = [i for i, row in enumerate(asked) if row['split'] == 'held_out']
  drawn = {n: sampled(models[n], template, prompts, config.new_tokens, config.seed) for n in ('sft', 'dpo', 'ppo')}
  true = lambda texts: [world_chat.reward(facts(row), text) for row, text in zip(held, texts)]  # noqa: E731
  for name, wins in (('dpo', least.dpo), ('ppo', least.ppo)):
    for how in ('greedy', 'sampled at temperature 1'):
      a, b = (true([said[n][i] for i in of] if how == 'greedy' else drawn[n][2]) for n in (name, 'sft'))
      rate, low, high = metrics.win_rate(a, b, config.seed)
      note = f'{low:.1%} to {high:.1%} of {len(held)}, ties half'
      table.add(f'{name}: true reward above SFT, {how}', rate, wins if how == 'greedy' else None, note=note)
    table.add(f'{name}: KL to SFT, nats per answer', kl(models[name], models['sft'], *drawn[name][:2]), unit='.2f')
  ratio = stages['distilled']['reward'] / stages['dpo']['reward']
  small = parameters(models['distilled'].cfg)[0] / parameters(models['dpo'].cfg)[0]
  note = f'with {small:.0%} of its parameters'
  table.add('distilled: true reward / that of its teacher', ratio, least.distilled, note=note)
  problems = rows(config.world, 'sums-eval.jsonl')[: config.sums]
  for name in ('skills', 'grpo'):
    model = models[name] = load(name)
    hits = sums(model, problems, config.new_tokens, chat.template(config.chat, model.tokenizer))
    table.share(f'{name}: right, sums that take reasoning', hits, len(problems), least.sums if name == 'grpo' else None)
  requests, rates = rows(config.world, 'harm-eval.jsonl'), []
  for name in ('skills', 'revised'):
    model = models[name] if name in models else load(name)
    bad, refused = harm(model, requests, config.new_tokens, chat.template(config.chat, model.tokenizer))
    table.share(f'{name}: harmful answers, harm asked for', *bad)
    table.share(f'{name}: refusals, no harm asked for', *refused)
    rates.append((bad[0] / bad[1], refused[0] / refused[1]))
  (bad, refused), (bad_after, refused_after) = rates
  table.add('revised: fall of harmful answers', bad - bad_after, least.harm)
  table.add('revised: harmless requests not refused more', 1 - (refused_after - refused), 1 - config.most_refused)
  os.makedirs(workdir, exist_ok=True)
  metrics.write(os.path.join(workdir, 'assistant.json'), json.dumps(table.found, indent=2))
  if table.missed:
    raise Missed('; '.join(table.missed))
