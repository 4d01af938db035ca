"""What several checkpoints answer to the same prompt, side by side, and how likely each holds the others' answers.

    llmstack compare --prompt TEXT [--prompt TEXT ...] [--chat llmstack] [--html FILE] base sft dpo ...

Prints the answers, in columns where the terminal is wide enough; in colour on a terminal, where a token's background is
its probability. --html writes a page that also shows what each checkpoint would have said in a token's place.
"""

import argparse
import itertools
import os
import shutil
import sys
import textwrap
import time
import unicodedata

import jax
import numpy as np

from llmstack import report, sharding
from llmstack.errors import BadInput
from llmstack.model import parameters
from llmstack.report.build import label
from llmstack.report.compared import level
from llmstack.tasks.evaluate import Model
from llmstack.tasks.inspect import visible
from llmstack.tasks.sample import asked, complete_ids, endings, seed_range, template_for

TOKENS = 64  # of an answer, at most
TOP = 5  # alternatives shown for a token
COLUMN = 36  # characters; narrower columns are not read
# Of the 256 colours of a terminal, from likely to unlikely: blue to orange, which no colour blindness mixes up.
SHADES = (153, 189, 230, 223, 215, 208)


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise BadInput(f'{message}: llmstack compare --prompt TEXT [--chat llmstack] [--html FILE] WORKDIR [WORKDIR ...]')


def flags(argv):
  """Returns the flags. Raises: BadInput."""
  parser = Parser(prog='llmstack compare', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('workdir', nargs='+', help='the --workdir of a training run')
  parser.add_argument('--prompt', action='append', required=True, help='text to go on from; may be given several times')
  parser.add_argument(
    '--chat',
    help='template in which the prompt is a message, for all: llmstack, chatml, a file; none; default: its own, each',
  )
  parser.add_argument('--new-tokens', type=int, help=f'at most; by default {TOKENS}, or what a model has room for')
  parser.add_argument('--temperature', type=float, default=0.0, help='0, the default, takes the likeliest token')
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--html', help='page to write')
  parser.add_argument('--verbose', action='store_true', help='list every token')
  given = parser.parse_args(argv)
  if any(not p.strip() for p in given.prompt):
    raise BadInput('--prompt is empty: give the text that the checkpoints answer')
  if given.new_tokens is not None and given.new_tokens < 1:
    raise BadInput(f'--new-tokens {given.new_tokens} must be at least 1')
  seed_range(given.seed, len(given.prompt))
  if given.html is not None:
    folder = os.path.dirname(os.path.abspath(given.html))
    if not os.path.isdir(folder) or os.path.isdir(given.html):
      raise BadInput(f'--html {given.html} cannot be written: give the name of a file in a folder that exists')
  return given


def spelled(tokenizer, before, ids):
  """Returns [(text, special)] of ids that follow `before`: plain texts join to the answer, control tokens are named."""
  stream, names = tokenizer.stream(), {i: text for text, i in tokenizer.symbols.items()}
  stream.feed(before)
  out = []
  for i in ids:
    text = '' if i in names else stream.feed(i)
    # The first bytes of a character have no text yet, ids past the tokenizer's vocabulary never.
    out.append((text, False) if text else (names.get(i, f'<{i}>'), True))
  return out


def alternative(tokenizer, before, i):
  """Returns how one id would be written behind others; a leading space stays where a model strips it at the start."""
  head = tokenizer.decode(before[-8:])
  text = tokenizer.decode([*before[-8:], i])
  return (text[len(head) :] if text.startswith(head) else tokenizer.decode([i])) or spelled(tokenizer, [], [i])[0][0]


class Answer:
  """What one model said: ids: list of the prompt; said: list, its end included; text: without the end."""

  def __init__(self, author, ids, text, stops):
    self.author, self.ids, self.text = author, ids, text.text
    self.said = text.tokens.tolist()
    self.ended = self.said[-1] in stops
    self.done = text.done


def template_of(chat, model):
  """Returns the template that a model is asked in: the given one, or None asks in that which it was tuned with."""
  name = model.template if chat is None else chat
  return template_for(None if name == 'none' else name, model.tokenizer)


def answers(models, names, prompts, given):
  """Returns [[Answer per model] per prompt]. Raises: BadInput, with the workdir, for a prompt that does not fit."""
  out = [[] for _ in prompts]
  for model, name in zip(models, names):
    try:
      template = template_of(given.chat, model)
      ids = [template.prompt(asked(p)) if template else model.tokenizer.prompt(p) for p in prompts]
      stops = endings(model.tokenizer, template and template.stops)
      room = min(TOKENS, max(1, model.cfg.length - max(map(len, ids))))
      texts = complete_ids(
        model.cfg, model.params, model.tokenizer, ids, mesh=model.mesh, new_tokens=given.new_tokens or room,
        seeds=range(given.seed, given.seed + len(ids)), eos=template and template.stops, temperature=given.temperature,
      )  # fmt: skip
    except BadInput as e:
      raise BadInput(f'{name}: {e}') from None
    for group, i, text in zip(out, ids, texts):
      group.append(Answer(model, i, text, stops))
  return out


def under(model, answer, prompt, chat):
  """Returns (ids, start, whether they are encoded anew) of an answer as a model reads it; start is where it begins.

  A model with the author's tokenizer is given the author's tokens, another one the text in its own; the end of the
  answer, where it has one, is the model's own end.
  """
  if model.tokenizer.fingerprint == answer.author.tokenizer.fingerprint:
    return answer.ids + answer.said, len(answer.ids), False
  template = template_of(chat, model)
  stops = endings(model.tokenizer, template and template.stops)
  if template:
    ids = template.prompt(asked(prompt))
    whole, start = ids + model.tokenizer.encode_plain(answer.text).tolist(), len(ids)
  elif answer.text:
    whole, start, _ = model.pair(prompt, answer.text)
  else:
    whole = model.tokenizer.prompt(prompt)
    start = len(whole)
  return whole + stops[:1] * answer.ended, start, True


def measured(models, rounds, prompts, chat):
  """Returns for each prompt and answer the view of each model, as JSON: its tokens and what it would have said."""
  out = [[{'text': a.text, 'done': a.done, 'under': []} for a in group] for group in rounds]
  for model in models:
    places = list(itertools.product(range(len(prompts)), range(len(models))))
    items = [under(model, rounds[p][a], prompts[p], chat) for p, a in places]
    some = [i for i, (ids, start, _) in enumerate(items) if len(ids) > start]
    found = dict(zip(some, model.score([items[i][:2] for i in some], top=min(TOP, model.cfg.vocab))))
    for i, (p, a) in enumerate(places):
      out[p][a]['under'].append(view(model, *items[i], found[i]) if i in found else None)
  return out


def view(model, ids, start, anew, scored):
  """Returns {'tokens': [[text, special, logp, rank, [[text, logp], ...]]], 'total': nats, 'anew', 'cut'}."""
  tokens = []
  for k, (text, special) in enumerate(spelled(model.tokenizer, ids[:start], ids[start:])):
    best = zip(scored.ids[k].tolist(), scored.top[k].tolist())
    others = [[alternative(model.tokenizer, ids[: start + k], i), round(v, 4)] for i, v in best]
    tokens.append([text, special, round(float(scored.logp[k]), 4), int(scored.rank[k]), others])
  total = float(scored.logp.sum(dtype=np.float64))
  return {'tokens': tokens, 'total': round(total, 4), 'anew': anew, 'cut': len(ids) > model.cfg.length + 1}


def compare(workdirs, given):
  """Returns the data of the page. All models are held at once."""
  names = label(workdirs)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])  # a few rows; more devices would hold copies
  models = [Model.of(w, None, mesh, max(2, len(given.prompt))) for w in workdirs]
  rounds = answers(models, names, given.prompt, given)
  return {
    'made': time.time(), 'chat': given.chat, 'temperature': given.temperature, 'seed': given.seed,
    'new_tokens': given.new_tokens or TOKENS,
    'models': [
      {
        'name': name, 'path': w, 'step': m.step, 'parameters': parameters(m.cfg)[0],
        'tokenizer': m.tokenizer.fingerprint,
      } for name, w, m in zip(names, workdirs, models)
    ],
    'prompts': [
      {'prompt': p, 'answers': a}
      for p, a in zip(given.prompt, measured(models, rounds, given.prompt, given.chat))
    ],
  }  # fmt: skip


def cells(c):
  """Returns how many columns of a terminal a character takes."""
  return 0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in 'WF' else 1


def wrapped(tokens, width, colour):
  """Returns lines of exactly `width` columns: tokens broken at spaces where that is possible, each in its shade."""
  paint = lambda text, logp: f'\x1b[38;5;16;48;5;{SHADES[level(logp)]}m{text}\x1b[0m' if colour else text  # noqa: E731
  marks = [(c, logp) for text, _, logp, *_ in tokens for c in visible(text).replace('\t', '  ')]
  lines, line, at = [], [], 0
  for c, logp in marks:
    if c == '\n':
      lines, line = [*lines, line], []
      continue
    if sum(cells(d) for d, _ in line) + cells(c) > width:
      at = next((i for i in range(len(line), 0, -1) if line[i - 1][0] == ' '), len(line))
      lines, line = [*lines, line[:at]], line[at:]
    line = [*line, (c, logp)]
  return [
    ''.join(paint(''.join(c for c, _ in run), logp) for logp, run in itertools.groupby(text, lambda m: m[1]))
    + ' ' * (width - sum(cells(c) for c, _ in text))
    for text in [*lines, line]
  ]


def printed(data, width, colour, verbose):
  """Yields the lines for a terminal of `width` columns."""
  names = [m['name'] for m in data['models']]
  n, gap = len(names), 3
  column = (width - gap * (n - 1)) // n
  side = column >= COLUMN
  column = column if side else width
  bold = lambda text: f'\x1b[1m{text}\x1b[0m' if colour else text  # noqa: E731
  for asked_ in data['prompts']:
    yield from (bold(line) for line in textwrap.wrap(f'> {visible(asked_["prompt"])}', width) or ['>'])
    yield ''
    blocks = []
    for i, (model, answer) in enumerate(zip(data['models'], asked_['answers'])):
      own = answer['under'][i]
      tokens = own['tokens']
      about = f'{len(tokens)} tokens, mean log-prob {own["total"] / len(tokens):.3f}' + ', not ended' * (
        not answer['done']
      )
      head = [f'{model["name"]}, step {model["step"]}', *textwrap.wrap(about, column)]
      block = [bold(head[0][:column].ljust(column)), *(line.ljust(column) for line in head[1:])]
      block += wrapped(tokens, column, colour)
      for text, _, logp, rank, others in tokens if verbose else ():
        best = '' if rank == 0 else f'  {others[0][0]!r} {np.exp(others[0][1]):.0%}'
        line = f'{logp:8.3f} {np.exp(logp):6.1%} #{rank + 1:<4} {text!r}{best}'
        block.append(line[:column].ljust(column))
      blocks.append(block)
    if side:
      yield from ((' ' * gap).join(line) for line in itertools.zip_longest(*blocks, fillvalue=' ' * column))
      yield ''
    else:
      yield from itertools.chain(*([*block, ''] for block in blocks))
    if n > 1:
      yield from table(names, asked_['answers'])


def table(names, found):
  """Yields the log-prob of each answer under each model: rows are answers."""
  first, wide = max(map(len, names)) + 12, max(16, *(len(n) + 2 for n in names))
  yield 'log-prob of the answer (per token)'.ljust(first) + ''
  yield ' ' * first + ''.join(f'{n:>{wide}}' for n in names)
  for name, answer in zip(names, found):
    cell = lambda v: '-' if v is None else f'{v["total"]:.1f} ({v["total"] / len(v["tokens"]):.2f})' + '*' * v['anew']  # noqa: E731
    yield f'{name + " says":{first}}' + ''.join(f'{cell(v):>{wide}}' for v in answer['under'])
  views = [v for answer in found for v in answer['under'] if v]
  if any(v['anew'] for v in views):
    yield '* another tokenizer than the author of the answer: the text is encoded anew, so tokens differ'
  if any(v['cut'] for v in views):
    yield 'some answers are longer than a model reads: it is given the end of what comes before'
  yield ''


def command(argv):
  """Prints the answers, writes the page where one is asked for, and returns 0."""
  given = flags(argv)
  data = compare(given.workdir, given)
  colour = sys.stdout.isatty() and 'NO_COLOR' not in os.environ
  width = max(40, shutil.get_terminal_size((100, 24)).columns)
  for line in printed(data, width, colour, given.verbose):
    print(line.rstrip())
  if given.html is not None:
    text = report.compared(data)
    with open(f'{given.html}.new', 'w', encoding='utf-8') as f:
      f.write(text)
    os.replace(f'{given.html}.new', given.html)
    print(f'{given.html}: {len(text) / 1e3:.0f} kB')
  return 0
