"""Prompts -> drafts -> critiques by a principle -> revisions, a few rounds, by one model -> chats and pairs.

    WORKDIR/steps.jsonl   {"row", "prompt", "draft", "rounds": [...], "final", "left_out"}: all that was said,
                          beside the fields of the prompt's record
    WORKDIR/chats.jsonl   {"messages", "row"}: the prompt and the last revision, for SFT
    WORKDIR/pairs.jsonl   {"prompt", "chosen", "rejected", "row"}: the last revision and the draft, where they differ
    WORKDIR/counts.json   what is printed

What went wrong is in `failed` of a round and counted:
- a draft that is empty, or does not end within new_tokens, leaves its prompt out of chats and pairs;
- a critique or revision that is empty, does not end, or whose prompt is too long, keeps the answer as it is;
- a critique that begins with config.fine asks for no revision, which a small model might only spoil (fine = '' revises
  always, as the paper does);
- a revision that is the draft again is a chat and no pair.

Groups of prompts are written whole to WORKDIR/parts, and a run that was broken off goes on behind the last one.
"""

import collections
import hashlib
import json
import os

from llmstack import errors, metrics, sharding
from llmstack.align import constitution
from llmstack.data import chat, prompts, sources
from llmstack.errors import BadInput
from llmstack.tasks import start
from llmstack.tasks.evaluate import Model
from llmstack.tasks.sample import complete_ids

STAGES = 100  # seeds that a row may draw with: a draft, and two texts a round


def say(model, template, conversations, seeds, *, temperature, new_tokens):
  """Returns [(text, why)] of what the assistant says next; why: '' or 'empty', 'unfinished' or 'too long'."""
  ids = [template.prompt(messages) for messages in conversations]
  fit = sorted((i for i, p in enumerate(ids) if len(p) + new_tokens <= model.cfg.length), key=lambda i: len(ids[i]))
  out = [('', 'too long')] * len(ids)
  for at in range(0, len(fit), model.batch):
    group = fit[at : at + model.batch]
    filled = group + group[:1] * (model.batch - len(group))  # one number of rows, which is compiled once
    texts = complete_ids(
      model.cfg, model.params, model.tokenizer, [ids[i] for i in filled], mesh=model.mesh, new_tokens=new_tokens,
      seeds=[seeds[i] % 2**32 for i in filled], eos=template.stops, multiple=64, temperature=temperature,
    )  # fmt: skip
    for i, found in zip(group, texts):
      text = found.text.strip()
      out[i] = (text, '' if text and found.done else 'unfinished' if text else 'empty')
  return out


def steps(say, asked, principles, *, seed, first, rounds, critique, revision, fine=''):
  """Returns a dict per prompt, as in steps.jsonl: what was said, and why something was not.

  say(conversations, seeds, second) -> [(text, why)]; second: False for drafts. asked: [Prompt].
  first: number of the first row; with the seed it decides all draws. critique, revision: templates.
  fine: how a critique begins after which the answer stays as it is; '' revises always.
  """
  of = [dict(row=first + i, prompt=p.messages, draft='', rounds=[], final='', left_out='') for i, p in enumerate(asked)]

  def each(rows, stage, conversations):
    seeds = [seed + row['row'] * STAGES + stage for row in rows]
    return zip(rows, say(conversations, seeds, stage > 0)) if rows else ()

  for row, (text, why) in each(of, 0, [row['prompt'] for row in of]):
    row.update(draft=text, final=text, left_out=why and f'draft {why}')
  of_draft = [row for row in of if not row['left_out']]
  for at in range(rounds):
    drawn = [constitution.drawn(principles, seed, row['row'], at) for row in of_draft]
    for row, i in zip(of_draft, drawn):
      row['rounds'].append(dict(principle=i, **principles[i]._asdict(), said='', revised='', failed=''))
    asks = [
      constitution.critique_prompt(critique, principles[i], row['prompt'], row['final'])
      for row, i in zip(of_draft, drawn)
    ]
    for row, (text, why) in each(of_draft, 2 * at + 1, asks):
      row['rounds'][-1].update(said=text, failed=why and f'critique {why}')
    to_revise = [
      row for row in of_draft
      if not (now := row['rounds'][-1])['failed'] and not (fine and now['said'].startswith(fine))
    ]  # fmt: skip
    asks = [
      constitution.revision_prompt(
        revision, principles[(now := row['rounds'][-1])['principle']], row['prompt'], row['final'], now['said']
      )
      for row in to_revise
    ]
    for row, (text, why) in each(to_revise, 2 * at + 2, asks):
      row['rounds'][-1].update(revised=text, failed=why and f'revision {why}')
      row['final'] = row['final'] if why else text
  return of


def counted(rows):
  """Returns {what: how many} of rows of steps.jsonl."""
  counts = collections.Counter(prompts=len(rows))
  for row in rows:
    counts.update(r['failed'] for r in row['rounds'] if r['failed'])
    counts[row['left_out'] or ('unchanged' if row['final'] == row['draft'] else 'revised')] += 1
  return dict(counts)


def told(row):
  """Returns a row of steps.jsonl as lines to read."""
  lines = [f'--- {row["row"]}', *(f'{m["role"]}: {m["content"]}' for m in row['prompt'])]
  lines.append(f'draft: {row["draft"]}{_note("left out", row["left_out"])}')
  for i, r in enumerate(row['rounds'], 1):
    lines += [f'  {i}. {r["critique"]}', f'     critique: {r["said"]}{_note("kept as it was", r["failed"])}']
    if r['revised']:
      lines += [f'     {r["revision"]}', f'     revision: {r["revised"]}']
  return '\n'.join([*lines, f'final: {row["final"]}'])


def _note(what, why):
  return why and f'  [{what}: {why}]'


def lines(rows):
  return ''.join(json.dumps(row) + '\n' for row in rows)


def read(path):
  """Returns the objects of a JSON-lines file that this task wrote."""
  with open(path) as f:
    return [json.loads(line) for line in f]


def show(workdir, n):
  """Prints the first n rows of what is there, of a run that is under way too."""
  path, parts = os.path.join(workdir, 'steps.jsonl'), os.path.join(workdir, 'parts')
  if os.path.exists(path):
    found = [path]
  else:
    found = sorted(os.path.join(parts, name) for name in os.listdir(parts)) if os.path.isdir(parts) else []
    found = [name for name in found if name.endswith('.jsonl')]
  if not found:
    raise BadInput(f'{workdir} holds no steps.jsonl to show: run it with show = 0 first')
  rows = [row for name in found for row in read(name)]
  print('\n\n'.join(told(row) for row in rows[:n]))


def settled(config, workdir, **depends):
  """Writes what a run depends on to WORKDIR/settings.json; raises BadInput where it was made with others.

  depends: of settings, those whose content counts.
  """
  settings = {k: v for k, v in json.loads(config.to_json()).items() if k not in ('show', 'mesh')}
  settings |= depends
  kept = os.path.join(workdir, 'settings.json')
  if os.path.exists(kept):
    with open(kept) as f:
      made = json.load(f)
    if differ := sorted(k for k in settings if made.get(k) != settings[k]):
      raise BadInput(f'{workdir} was made with another {", ".join(differ)}: give another --workdir')
  os.makedirs(os.path.join(workdir, 'parts'), exist_ok=True)
  metrics.write(kept, json.dumps(settings, indent=2))


def run(config, workdir):
  """Writes the files above and prints how many drafts were revised; with config.show, prints what is there."""
  errors.at_least(config, 1, 'rounds', 'new_tokens', 'batch', 'group')
  errors.at_least(config, 0, 'show', 'temperature', 'second_temperature')
  if config.show:
    return show(workdir, config.show)
  if 2 * config.rounds >= STAGES:
    raise BadInput(f'rounds = {config.rounds}: at most {STAGES // 2 - 1}')
  constitution.check_template(config.critique, 'critique', ('request', 'draft', 'ask'))
  constitution.check_template(config.revision, 'revision', ('request', 'draft', 'critique', 'ask'))
  principles = constitution.load(config.constitution)
  model = Model.of(config.model, config.step, sharding.make_mesh(**config.mesh), config.batch)
  if model.template is None:
    raise BadInput(f'model: {config.model} has no chat template: tune it with configs/sft.py first')
  template = chat.template(model.template, model.tokenizer)
  left = collections.Counter()
  files = (config.files,) if isinstance(config.files, str) else tuple(config.files)
  source = sources.Source(files, on_error=config.on_error)
  asked = prompts.prompts(source, template, limit=model.cfg.length - config.new_tokens, counts=left)
  rules = json.dumps([(p.critique, p.revision) for p in principles])  # what it says, not where it lies
  rules = hashlib.sha256(rules.encode()).hexdigest()
  settled(config, workdir, step=model.step, constitution=rules, files=prompts.fingerprint(asked))

  def next_(conversations, seeds, second):
    temperature = config.second_temperature if second else config.temperature
    return say(model, template, conversations, seeds, temperature=temperature, new_tokens=config.new_tokens)

  rows = []
  for part, at in enumerate(range(0, len(asked), config.group)):
    path, group = os.path.join(workdir, 'parts', f'{part:05d}.jsonl'), asked[at : at + config.group]
    if not os.path.exists(path):
      made = steps(
        next_, group, principles, seed=config.seed, first=at, rounds=config.rounds, critique=config.critique,
        revision=config.revision, fine=config.fine,
      )  # fmt: skip
      metrics.write(path, lines([p.info | row for p, row in zip(group, made)]))
    rows += read(path)
    start.say(f'{len(rows):,} of {len(asked):,} prompts')
  kept = [row for row in rows if not row['left_out']]
  reply = lambda row: [*row['prompt'], {'role': 'assistant', 'content': row['final']}]  # noqa: E731
  written = {
    'steps': rows,
    'chats': [{'messages': reply(row), 'row': row['row']} for row in kept],
    'pairs': [
      {'prompt': row['prompt'], 'chosen': row['final'], 'rejected': row['draft'], 'row': row['row']}
      for row in kept if row['final'] != row['draft']
    ],
  }  # fmt: skip
  for name, made in written.items():
    metrics.write(os.path.join(workdir, f'{name}.jsonl'), lines(made))
  counts = counted(rows) | dict(left)
  metrics.write(os.path.join(workdir, 'counts.json'), json.dumps(counts, indent=2))
  print('\n'.join(f'{what:24}{n:>8,}' for what, n in counts.items()))
