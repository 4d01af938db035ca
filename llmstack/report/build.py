"""Workdirs -> one JSON object -> one self-contained page. The page draws, this file only reads and thins."""

import base64
import datetime
import glob
import hashlib
import html
import importlib.resources
import itertools
import json
import math
import os
import re
import statistics
import time

from llmstack import lease
from llmstack.errors import BadInput

POINTS = 600  # of a curve; a longer one keeps mean, least and greatest of each bucket
SAMPLES = 40  # logged steps whose samples are shown
NOT_CURVES = {'step', 'kind', 'name', 'crc', 'streak', 'skipped', 'tokens', 'tokens_per_step', 'first_step_s', 'time'}


def read(workdir):
  """Returns (rows of metrics.jsonl, resolved config) of a training run; it may still be running.

  Raises: BadInput where the folder is not a training run's, or a line is not what a run writes.
  """
  if not os.path.isdir(workdir):
    raise BadInput(f'{workdir} is not a folder: give the --workdir of a training run')
  path = os.path.join(workdir, 'metrics.jsonl')
  if not os.path.isfile(path):
    raise BadInput(f'{workdir} has no metrics.jsonl, which a training run writes: give the --workdir of one')
  rows = []
  with open(path, encoding='utf-8', errors='replace') as f:
    for n, line in enumerate(f, 1):
      if not line.endswith('\n'):
        break  # being written, or cut short by a kill
      try:
        row = json.loads(line)
        if not (isinstance(row['step'], int) and isinstance(row['kind'], str)):
          raise TypeError
        if row['kind'] == 'train' and not (row['tokens_per_s'] > 0 <= row['input_share']):
          raise TypeError
      except (json.JSONDecodeError, KeyError, TypeError):
        raise BadInput(
          f'{path} line {n} is not a row of a run ({line.strip()[:60]!r}): restore the file, or delete that line'
        ) from None
      rows.append(row)
  if not any(row['kind'] == 'train' for row in rows):
    raise BadInput(f'{path} has no training step yet: the first one is logged when it is done, try again then')
  path = os.path.join(workdir, 'config.json')
  if not os.path.isfile(path):
    raise BadInput(f'{workdir} has metrics.jsonl but no config.json: copy the one of that run beside it')
  with open(path, encoding='utf-8') as f:
    try:
      return rows, json.load(f)
    except json.JSONDecodeError as e:
      raise BadInput(f'{path} is not JSON ({e}): restore the file') from None


def flat(config, prefix=''):
  """Returns {'section.key': value} of a nested config."""
  out = {}
  for k, v in config.items():
    out |= flat(v, f'{prefix}{k}.') if isinstance(v, dict) and v else {prefix + k: v}
  return out


def number(x):
  """Returns a finite number with six digits, or None: JSON has no NaN, and the page draws a gap."""
  if isinstance(x, bool) or not isinstance(x, (int, float)) or not math.isfinite(x):
    return None
  return x if isinstance(x, int) else float(f'{x:.6g}')


def curve(steps, values):
  """Returns {'s': steps, 'v': values}; above POINTS points, per bucket the middle step, the mean and 'lo', 'hi'."""
  values = [number(v) for v in values]
  n = len(steps)
  if n <= POINTS:
    return {'s': steps, 'v': values}
  out = {'s': [], 'v': [], 'lo': [], 'hi': []}
  edges = [0, *(1 + i * (n - 2) // (POINTS - 2) for i in range(POINTS - 1)), n]  # the first and the last stay alone
  for part in itertools.starmap(range, itertools.pairwise(edges)):
    good = [values[j] for j in part if values[j] is not None]
    out['s'].append(steps[part[len(part) // 2]])
    for key, f in (('v', statistics.fmean), ('lo', min), ('hi', max)):
      out[key].append(number(f(good)) if good else None)
  return out


def few(items, most):
  """Returns at most `most` of the items, evenly spaced, the first and the last among them."""
  n = len(items)
  return items if n <= most else [items[round(i * (n - 1) / (most - 1))] for i in range(most)]


def timeline(rows, per_step):
  """Returns (steps, tokens, seconds, share) at the training rows, and of what the time went into.

  seconds: since the first step was dispatched: training windows, plus the evaluations and saves that were timed.
  share: {'first', 'train', 'input', 'eval', 'save', 'other'} in seconds; 'eval' and 'save' are None where no
  row has eval_s or save_s, 'other' where none has `time`. A resumed run's first window is one step long.
  """
  steps, tokens, seconds = [], [], []
  spent = dict.fromkeys(('first', 'train', 'input'), 0.0)
  timed = {k: any(f'{k}_s' in row for row in rows) for k in ('eval', 'save')}
  spent |= {k: 0.0 if known else None for k, known in timed.items()}
  total = seen = last = 0
  for row in rows:
    for key in ('eval', 'save'):
      if f'{key}_s' in row:
        spent[key] += row[f'{key}_s']
        total += row[f'{key}_s']
    if row['kind'] != 'train':
      continue
    each = row.get('tokens_per_step', per_step)
    starts = 'first_step_s' in row
    window = (1 if starts else row['step'] - last) * each / row['tokens_per_s']
    wait = window * row['input_share']
    spent['input'] += wait
    spent['first' if starts else 'train'] += window - wait
    total += window
    seen += (row['step'] - last) * each
    last = row['step']
    steps.append(last)
    tokens.append(seen)
    seconds.append(round(total, 3))
  stamps = [row['time'] for row in rows if 'time' in row]
  begun = next((r['time'] - r.get('first_step_s', 0) for r in rows if 'time' in r and r['kind'] == 'train'), None)
  spent['other'] = max(0.0, stamps[-1] - begun - total) if stamps and begun is not None else None
  return steps, tokens, seconds, spent


def events(rows):
  """Returns [{'step', 'what', 'kind': 'bad' | 'resumed' | 'alarm'}]: non-finite updates, restarts, and all alarms."""
  out, skipped, last = [], 0, None
  for row in rows:
    if row['kind'] == 'train':
      k, new = row['step'], row.get('skipped', 0) - skipped
      bad = [name for name in ('nll', 'loss', 'grad_norm') if name in row and number(row[name]) is None]
      if new > 0:
        out.append({'step': k, 'kind': 'bad', 'what': f'{new} update{"s" * (new > 1)} skipped, not finite'})
      elif bad:
        out.append({'step': k, 'kind': 'bad', 'what': f'{bad[0]} not finite'})
      if 'first_step_s' in row and last is not None:
        out.append({'step': k, 'kind': 'resumed', 'what': f'started again after step {k - 1}'})
      skipped, last = row.get('skipped', 0), k
  alarms = [row for row in rows if row['kind'] == 'alarm']
  return few(out, POINTS) + [{'step': row['step'], 'kind': 'alarm', 'what': row['why']} for row in alarms]


def failures(rows):
  """Returns [[name, completions, steps, first step, last step, the last's reason]] of rewards that failed."""
  found = {}
  for row in rows:
    if row['kind'] == 'failed':
      n, steps, first, *_ = found.get(row['name'], (0, 0, row['step']))
      found[row['name']] = n + row['rows'], steps + 1, first, row['step'], row['why']
  return [[name, *what] for name, what in found.items()]


def held_out(group):
  """Returns {column: curve} of the evaluations under one name: loss and accuracy, and what is said of rewards."""
  of_rewards = ('reward', 'length', 'ended', 'low/', 'high/')
  names = [k for k in dict.fromkeys(itertools.chain(*group)) if k.startswith(of_rewards)]
  return {k: curve([r['step'] for r in group], [r.get(k) for r in group]) for k in ('nll', 'accuracy', *names)}


def state(workdir, rows, wanted):
  """Returns {'state': 'done' | 'diverged' | 'running' | 'stopped', 'step', 'of', 'last', 'writer'}.

  last: unix seconds of the last row. writer: who holds the lease, or why nobody does; '' where it was given back.
  """
  step = max(row['step'] for row in rows)
  last = rows[-1].get('time', os.path.getmtime(os.path.join(workdir, 'metrics.jsonl')))
  failed = [int(m[1]) for p in glob.glob('nonfinite-*.npz', root_dir=workdir) if (m := re.match(r'nonfinite-(\d+)', p))]
  folder = os.path.join(workdir, 'checkpoints')
  held = lease.read(folder)
  over = held is not None and lease.ended(folder, held)
  out = {'step': step, 'of': wanted, 'last': last, 'writer': ''}
  if held is not None and not over:
    return out | {'state': 'running', 'writer': lease.describe(held)}
  if wanted is not None and step >= wanted:
    return out | {'state': 'done'}
  if max(failed, default=0) > step:
    return out | {'state': 'diverged', 'step': max(failed)}
  return out | {'state': 'stopped', 'writer': over or ''}


def run(workdir):
  """Returns everything that the page shows of one run, as JSON."""
  from llmstack.checkpoint import listing  # here, because it imports jax

  rows, config = read(workdir)
  settings = flat(config)
  per_step = settings.get('data.batch', 1) * settings.get('data.length', 1)
  train = [row for row in rows if row['kind'] == 'train']
  steps, tokens, seconds, spent = timeline(rows, per_step)
  names = [k for k in dict.fromkeys(itertools.chain(*train)) if k not in NOT_CURVES]
  names = [k for k in names if any(number(row.get(k)) is not None for row in train)]
  later = [row for row in train if 'first_step_s' not in row] or train
  evals, samples = {}, {}
  for row in rows:
    if row['kind'] == 'eval':
      evals.setdefault(row['name'], []).append(row)
    elif row['kind'] == 'sample':
      rated = [number(row['reward'])] if 'reward' in row else []
      samples.setdefault(row['prompt'], []).append([row['step'], row['text'], *rated])
  middle = lambda k: number(statistics.median(r[k] for r in later)) if all(k in r for r in later) else None  # noqa: E731
  return {
    'path': workdir,
    'config': config,
    **state(workdir, rows, settings.get('train.steps')),
    'at': dict(zip(('step', 'tokens', 'time'), zip(*few(list(zip(steps, tokens, seconds)), POINTS)))),
    'train': {k: curve([r['step'] for r in train if k in r], [r[k] for r in train if k in r]) for k in names},
    'eval': {name: held_out(group) for name, group in evals.items()},
    'events': events(rows),
    'failures': failures(rows),
    # The reward that counts, of which the policy sees less or nothing; the name of its column.
    'gold': 'gold' if 'gold' in names else f'reward/{gold}' if (gold := settings.get('rollout.gold')) else None,
    'weights': {m[1]: v for k, v in settings.items() if (m := re.fullmatch(r'rewards\.(.+)\.weight', k))},
    'spent': {k: v if v is None else round(v, 3) for k, v in spent.items()},
    'first_step_s': number(train[0].get('first_step_s')),
    'tokens_per_s': middle('tokens_per_s'),
    'mfu': middle('mfu'),
    'skipped': train[-1].get('skipped', 0),
    'samples': {prompt: few(texts, SAMPLES) for prompt, texts in samples.items()},
    'samples_logged': max(map(len, samples.values()), default=0),
    'checkpoints': [s._asdict() for s in listing(os.path.join(workdir, 'checkpoints'))],
    'clip': number(settings.get('optim.clip')),
  }


def label(paths):
  """Returns a short name for each path: as many of its last parts as tell them apart."""
  parts = [os.path.abspath(p).split(os.sep) for p in paths]
  for n in range(1, max(map(len, parts)) + 1):
    names = [os.sep.join(p[-n:]) for p in parts]
    if len(set(names)) == len(names):
      return names
  raise BadInput(f'the same workdir is given twice among {", ".join(paths)}: give each once')


def comparable(configs):
  """Returns whether the runs predict the same tokens: otherwise nats per token must not be compared."""
  first, *rest = ({'tokenizer': r.get('tokenizer'), 'sources': r.get('data', {}).get('sources')} for r in configs)
  given = (first['tokenizer'] or {}).get('path')  # else it was trained on the sources
  return all(r['tokenizer'] == first['tokenizer'] and (given or r['sources'] == first['sources']) for r in rest)


def collect(workdirs, now=None):
  """Returns the data of the page. workdirs: folders of training runs. now: unix seconds, for the tests."""
  now = time.time() if now is None else now
  runs = [{'name': name, **run(path)} for name, path in zip(label(workdirs), workdirs)]
  settings = [flat(r['config']) for r in runs]
  spelled = [{k: json.dumps(v) for k, v in s.items()} for s in settings]  # 1 is not True here, nor absent null
  keys = sorted(set(itertools.chain(*settings)))
  differ = [k for k in keys if len({s.get(k) for s in spelled}) > 1]
  return {
    'made': now,
    'runs': runs,
    'keys': len(keys),
    'differ': [[k, *([s[k]] if k in s else [] for s in settings)] for k in differ],
    'comparable': comparable([r['config'] for r in runs]),
  }


def fill(name, title, data, *, own_style=False):
  """Returns the page whose body is <name>.html and whose script is <name>.js, about `data`, which has 'made'.

  own_style: whether there is <name>.css, too. No request leaves it, and no text in it can become markup.
  """
  asset = lambda file: (importlib.resources.files('llmstack.report') / file).read_text(encoding='utf-8')  # noqa: E731
  style, script = asset('page.css'), asset('draw.js') + asset(f'{name}.js')
  style += asset(f'{name}.css') if own_style else ''
  # Only these two hashes may style and run, and nothing may be fetched, whatever a sample says.
  sha = lambda text: "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"  # noqa: E731
  text = json.dumps(data, separators=(',', ':'), allow_nan=False, ensure_ascii=False)
  values = {
    'csp': f"default-src 'none'; img-src data:; style-src {sha(style)}; script-src {sha(script)}",
    'title': html.escape(f'{title}: llmstack report'),
    'made': datetime.datetime.fromtimestamp(data['made'], datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
    'style': style,
    'main': asset(f'{name}.html'),
    'data': text.replace('<', '\\u003c'),  # it ends a script element in HTML, whatever JSON thinks of it
    'script': script,
  }
  out = re.sub(r'\{\{(\w+)\}\}', lambda m: values[m[1]], asset('frame.html'))
  return out.encode(errors='replace').decode()  # half a surrogate pair, from a text cut within one, is not UTF-8


def page(data):
  """Returns the HTML of `collect`'s data."""
  return fill('page', ', '.join(r['name'] for r in data['runs']), data)
