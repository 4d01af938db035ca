"""Raw text -> shards to train on: read, clean and measure, judge, write, mix, tokenise and pack; then a report.

    WORKDIR/read, measured, verdicts, documents, shards   the stages, see llmstack.prepare.stages
    WORKDIR/tokenizer.model, plan.json, report.json, report.html

A stage refuses to go on in a folder that was made with other settings, and a run that was broken off goes on behind the
last part that is whole. Raw files are known by name and size: a change that keeps the size is not seen.
"""

import errno
import json
import os
import shutil
import sys
import time

import numpy as np

from llmstack import errors, report, runtime
from llmstack.data import sources
from llmstack.data.packing import digest, finish_folder, read_manifest
from llmstack.data.tokenizer import Tokenizer, foreign, train
from llmstack.errors import BadInput, SaveFailed
from llmstack.prepare import extract, mix, near, rules

ALL = rules.MEASURES | rules.OTHERS
CLASSIFIED = ('quality', 'spam', 'toxicity')
SAMPLED = 64  # parts of a source that the tokenizer is trained on


def say(line):
  print(line, file=sys.stderr, flush=True)


def save(path, text):
  """Returns nothing; the file appears whole or not at all."""
  with open(f'{path}.tmp', 'w', encoding='utf-8') as f:
    f.write(text)
  os.replace(f'{path}.tmp', path)


class Run:
  """The folder of one preparation, and the engine's settings."""

  def __init__(self, workdir, runner, workers):
    self.workdir, self.runner, self.workers, self.seconds = workdir, runner, workers, {}

  def path(self, *names):
    return os.path.join(self.workdir, *names)

  def open(self, name, settings, after=None):
    """Returns the folder of a stage; raises BadInput where it was made with other settings, or behind another stage."""
    folder, path = self.path(name), self.path(name, 'stage.json')
    os.makedirs(folder, exist_ok=True)
    settings = json.loads(json.dumps(settings))
    if after:
      with open(self.path(after, 'stage.json')) as f:
        settings['after'] = {after: digest(json.load(f))}
    if not os.path.exists(path):
      save(path, json.dumps(settings, indent=2))
    with open(path) as f:
      made = json.load(f)
    if made != settings:
      old, new = runtime.flat(made), runtime.flat(settings)
      lines = [f'  {k}: {old.get(k)} -> {new.get(k)}' for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
      raise BadInput(
        f'{folder} was made with other settings:\n'
        + '\n'.join(lines)
        + '\ngive another --workdir, or delete that folder'
        ' and the ones behind it'
      )
    return folder

  def map(self, name, function, items, settings, sizes):
    """Returns {part: counts}, in the order of the items, doing those that are not done yet.

    items: {part: item}. sizes: {part: bytes}; the largest are done first, so that no process waits long for another.
    """
    from llmstack.prepare import engine, stages

    begun, folder = time.monotonic(), settings['folder']
    counts = {part: stages.done(folder, part) for part in items}
    todo = {part: items[part] for part in sorted(items, key=lambda p: (-sizes[p], p)) if counts[part] is None}
    names = {json.dumps(item, sort_keys=True): part for part, item in todo.items()}
    done = len(items) - len(todo)
    show = sys.stderr.isatty()
    for item, result in engine.run(function, list(todo.values()), settings, workers=self.workers, runner=self.runner):
      counts[names[json.dumps(item, sort_keys=True)]] = result
      done += 1
      if show:
        print(f'\r{name:10} {done:>6} of {len(items)} parts, {time.monotonic() - begun:.0f} s', end='', file=sys.stderr)
    self.seconds[name] = round(time.monotonic() - begun, 2)
    there = f', {len(items) - len(todo)} were there' if len(todo) < len(items) else ''
    say(f'{chr(13) * show}{name:10} {len(items):>6} parts, {self.seconds[name]:.1f} s{there}')
    return counts


def _mixing(config):
  c = config.mix
  return dict(tokens=c.tokens, temperature=c.temperature, max_epochs=c.max_epochs, caps=c.caps.to_dict())


def limits_of(config):
  """Returns {measure: (low, high)} in the order of the config."""
  out = {name: tuple(map(float, limit)) for name, limit in config.filter.rules.items()}
  for name, (low, high) in out.items():
    if name not in ALL or not low <= high:
      raise BadInput(f'filter.rules.{name} = ({low}, {high}): use low <= high and one of {", ".join(ALL)}')
    if name in CLASSIFIED and not config.filter.classifiers[name]:
      raise BadInput(f'filter.rules.{name} needs filter.classifiers.{name}, the classifier.npz of configs/classify.py')
  return out


def raw_sources(config):
  """Returns {name: fields of extract.Raw}."""
  out = {}
  for name, c in config.sources.items():
    if not name.isidentifier():
      raise BadInput(f'source {name!r}: use letters, digits and _, because it names files')
    out[name] = dict(
      files=tuple(c.files), text=c.text, id=c.id, split_on=c.split_on, max_bytes=c.max_bytes, synthetic=c.synthetic
    )
    if not 0 <= c.holdout < 1:
      raise BadInput(f'sources.{name}.holdout = {c.holdout}: give a share from 0 to below 1')
  if not out:
    raise BadInput('the config names no source: add one to sources')
  return out


def read(run, raw):
  """Returns {source: {'parts', 'documents', 'bytes', 'skipped'}}."""
  from llmstack.prepare import stages

  items, files, weights = {}, {}, {}
  for source, fields in raw.items():
    found = extract.files(extract.Raw(**fields))
    files[source] = [[name, extract.size(url)] for name, url in found]
    size = stages.PART
    for (name, url), (_, more) in zip(found, files[source]):
      if size >= stages.PART:  # small files share a part
        item, size = {'part': f'{source}-{len(items):05d}', 'source': source, 'files': []}, 0
        items[item['part']] = item
      item['files'].append([name, url])
      size += more
      weights[item['part']] = size
  folder = run.open('read', {'files': files, 'raw': raw, 'part': stages.PART})
  counts = run.map('read', stages.read, items, {'folder': folder, 'raw': raw}, weights)
  out = {}
  for source in raw:
    mine = [counts[part] for part in items if items[part]['source'] == source]
    parts = [part for c in mine for part in c['parts']]
    skipped = extract.Skipped.merged([c['skipped'] for c in mine])
    out[source] = {'parts': {p: n for p, _, n in parts}, 'documents': sum(n for _, n, _ in parts), 'skipped': skipped}
    out[source]['bytes'] = sum(n for _, _, n in parts)
    for row in skipped.rows(source):
      say(f'{source}: {row["count"]} x {row["places"][0]}')
    if not parts:
      raise BadInput(
        f'source {source} has no document: {dict(skipped.counts) or "its files are empty"}; correct sources.{source}'
      )
  return out


def common_lines(run, parts, config):
  """Returns the path of the sorted keys of the lines that occur too often, or None where none are looked for."""
  c = config.clean
  if not c.common_lines:
    return None
  from llmstack.prepare import stages

  folder = run.open('lines', {'least': c.common_characters, 'most': c.common_lines}, after='read')
  settings = {'read': run.path('read'), 'folder': folder, 'least': c.common_characters}
  run.map('lines', stages.lines, {p: p for p in parts}, settings, parts)
  path = os.path.join(folder, 'common.npy')
  if not os.path.exists(path):
    found = []
    for block in range(16):  # by the first bits of the keys, so that a sixteenth of them is in memory
      lo, hi = block << 60, (block + 1 << 60) - 1
      keys = []
      for p in parts:
        own = np.load(os.path.join(folder, f'{p}.npy'), mmap_mode='r')
        keys.append(own[np.searchsorted(own, np.uint64(lo)) : np.searchsorted(own, np.uint64(hi), 'right')])
      key, count = np.unique(np.concatenate(keys), return_counts=True)
      found.append(key[count > c.common_lines])
    np.save(f'{path}.tmp.npy', np.concatenate(found))
    os.replace(f'{path}.tmp.npy', path)
  return path


def repetitions(run, parts, config):
  """Returns {'folder', 'words'}, where the repeated windows of each part are, or None where none are looked for."""
  words = config.clean.repeated
  if not words:
    return None
  from llmstack.prepare import spans, stages

  folder = run.open('windows', {'words': words}, after='read')
  run.map(
    'windows',
    stages.windows,
    {p: p for p in parts},
    {'read': run.path('read'), 'folder': folder, 'words': words},
    parts,
  )
  later = [os.path.join(folder, f'{p}.later.npy') for p in parts]
  if not all(map(os.path.exists, later)):
    keys = [np.load(os.path.join(folder, f'{p}.npy'), mmap_mode='r') for p in parts]
    for path, part, at in zip(later, parts, spans.repeated(keys)):
      first = np.load(os.path.join(folder, f'{part}.first.npy'), mmap_mode='r')
      np.save(f'{path}.tmp.npy', first[at])
      os.replace(f'{path}.tmp.npy', path)
  return {'folder': folder, 'words': words}


def measure(run, parts, config, known, repeated):
  """Returns {part: counts}."""
  from llmstack.prepare import stages

  c, classifiers = config.clean, {name: path for name, path in config.filter.classifiers.items() if path}
  evals = (
    [url for _, url in extract.files(extract.Raw(config.decontaminate.files))] if config.decontaminate.files else []
  )
  settings = dict(
    read=run.path('read'), folder=run.path('measured'), known=known, repeated=repeated,
    evals=evals, ngram=config.decontaminate.ngram,
    clean=dict(repair=c.repair, line_words=c.line_words, drop_policy=c.drop_policy, mask=c.mask),
    bad_words=list(config.filter.bad_words), classifiers=classifiers,
    minhash=dict(hashes=config.dedup.hashes, ngram=config.dedup.ngram, seed=config.seed),
  )  # fmt: skip
  about = settings | {'evals': [[url, extract.size(url)] for url in evals]}
  about['classifiers'] = {name: sources.fingerprint(sources.Source((path,))) for name, path in classifiers.items()}
  about['repeated'] = config.clean.repeated
  about['common'] = [config.clean.common_lines, config.clean.common_characters]
  run.open('measured', {k: v for k, v in about.items() if k not in ('read', 'folder', 'known')}, after='read')
  return run.map('measured', stages.measure, {p: p for p in parts}, settings, parts)


def verdicts(run, parts, config, limits, bands, rows):
  """Returns (Columns, reason, of), and writes them."""
  from llmstack.prepare import judge

  begun = time.monotonic()
  d, names = config.dedup, [m for m in ALL if m not in CLASSIFIED or config.filter.classifiers[m]]
  settings = dict(limits=limits, languages=config.filter.languages, bands=[bands, rows], **d)
  folder = run.open('verdicts', settings, after='measured')
  columns = judge.Columns(run.path('measured'), parts, names, bands, rows)
  reason, of = judge.reasons(
    columns, limits, config.filter.languages, exact=d.exact, near_duplicates=d.near, ngram=d.ngram, confirm=d.confirm,
    edit=d.edit,
  )  # fmt: skip
  judge.save(columns, reason, of, folder)
  run.seconds['verdicts'] = round(time.monotonic() - begun, 2)
  say(f'verdicts   {len(reason):>6,} documents, {run.seconds["verdicts"]:.1f} s')
  return columns, reason, of


def sample(run, parts, holdout, characters):
  """Returns texts of what is kept for training of a source, a little of each of up to SAMPLED of its parts."""
  from llmstack.prepare import stages

  out, parts = [], parts[:: -(-len(parts) // SAMPLED)]
  for n, part in enumerate(parts):
    left = characters // (len(parts) - n)
    for _, text in stages.texts(run.path('measured'), run.path('verdicts'), part, holdout, 'train'):
      out.append(text[:left])
      left -= len(out[-1])
      characters -= len(out[-1])
      if left <= 0:
        break
  return out


def tokenizer(run, sampled, config):
  """Returns the path of WORKDIR/tokenizer.model, trained on a sample of each source by its weight, or the one given.

  sampled: (source, characters) -> texts.
  """
  begun, c = time.monotonic(), config.tokenizer
  folder = run.open('tokenizer', c.to_dict() | {'stages': config.mix.stages}, after='verdicts')
  path = os.path.join(folder, 'tokenizer.model')
  if not os.path.exists(path):
    if c.path is not None:
      proto = Tokenizer(c.path).proto
    else:
      weights = {s: sum(w.get(s, 0) for _, w in config.mix.stages) for s in config.sources}
      each = {s: int(c.characters * w / sum(weights.values())) for s, w in weights.items() if w}
      proto = train((t for s, n in each.items() for t in sampled(s, n)), kind=c.kind, vocab=c.vocab, characters=2**62)
    with open(f'{path}.tmp', 'wb') as f:
      f.write(proto)
    os.replace(f'{path}.tmp', path)
  shutil.copyfile(path, run.path('tokenizer.model'))
  run.seconds['tokenizer'] = round(time.monotonic() - begun, 2)
  return path


def fertility(encoders, samples):
  """Returns [{'tokenizer', 'source', 'bytes_per_token', 'tokens_per_word', 'unknown_or_byte_share'}].

  encoders: {name: texts -> (tokens, bytes or unknown ones)}. samples: {source: texts}.
  """
  rows = []
  for name, encode in encoders.items():
    for source, texts in samples.items():
      tokens, odd = encode(texts)
      size, words = sum(len(t.encode()) for t in texts), sum(len(t.split()) for t in texts)
      rows.append({
        'tokenizer': name, 'source': source, 'bytes_per_token': size / max(tokens, 1),
        'tokens_per_word': tokens / max(words, 1), 'unknown_or_byte_share': odd / max(tokens, 1),
      })  # fmt: skip
  return rows


def shards(run, path, parts, sizes, holdout, config):
  """Returns {source: {split: manifest}}, after writing documents and rows. parts: {part: source}; sizes: in bytes."""
  from llmstack.prepare import stages

  c, tok = config.shards, Tokenizer(path)
  if c.kind not in ('text', 'tokens'):
    raise BadInput(f'shards.kind = {c.kind!r}: choose tokens or text')
  how = {'length': c.length + 1, 'method': c.packing, 'holdout': holdout}
  folder = run.open('shards', how | {'kind': c.kind, 'tokenizer': tok.fingerprint, 'seed': config.seed}, 'verdicts')
  os.makedirs(run.path('documents'), exist_ok=True)
  for source in set(parts.values()):
    for split in ('train', 'eval'):
      os.makedirs(os.path.join(folder, source, split), exist_ok=True)
  settings = how | {k: run.path(k) for k in ('measured', 'verdicts', 'documents')}
  settings |= {'folder': folder, 'tokenizer': None if c.kind == 'text' else path}
  counts, out = run.map('shards', stages.shard, {p: p for p in parts}, settings, sizes), {}
  for source, own in config.sources.items():
    for split in ('train', 'eval'):
      files = [counts[p][split] for p in parts if parts[p] == source and split in counts[p]]
      if not files:
        continue
      fields = dict(
        split=split, tokenizer=tok.fingerprint, method=c.packing, skipped={}, code=runtime.code(),
        config=config.to_dict(), holdout=holdout[source], synthetic=own.synthetic,
        **{k: sum(f[k] for f in files) for k in ('documents', 'source_bytes')},
      )  # fmt: skip
      place = os.path.join(folder, source, split)
      if c.kind == 'text':
        made = fields | {'files': files}
        save(os.path.join(place, 'documents.json'), json.dumps(made, indent=2))
      else:
        made = read_manifest(place) or finish_folder(
          place, files, vocab=tok.vocab, seed=config.seed, manifest_fields=fields
        )
      out.setdefault(source, {})[split] = made
  return out


def run(config, workdir):
  """Runs every stage behind the last part that is whole, prints the funnel and the plan, and writes the report.

  Raises: BadInput; SaveFailed where the disk is full.
  """
  try:
    prepare(config, workdir)
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    raise SaveFailed(
      f'{workdir} cannot be written to ({error.strerror}): make room and run the same command, which goes on behind '
      'the last whole part'
    ) from None


def prepare(config, workdir):
  from llmstack.prepare import engine, summary

  begun = time.time()
  errors.at_least(config, 1, 'dedup.hashes', 'dedup.ngram', 'decontaminate.ngram', 'workers', 'shards.length')
  errors.at_least(config, 0, 'clean.line_words', 'clean.common_lines', 'clean.common_characters', 'clean.repeated')
  errors.local(workdir, '--workdir')
  limits = limits_of(config)
  bands, rows = near.bands_for(config.dedup.threshold, config.dedup.hashes)
  raw = raw_sources(config)
  for name, path in config.filter.classifiers.items():
    if path and not os.path.isfile(path):
      raise BadInput(f'filter.classifiers.{name} = {path} does not exist: train it with configs/classify.py')
  stages_of_mix = [(share, dict(weights)) for share, weights in config.mix.stages]
  mix.plan({s: dict(documents=1, bytes=1, tokens=1) for s in raw}, stages_of_mix, **_mixing(config))
  others = {os.path.join(*p.split(os.sep)[-2:]): foreign(p) for p in config.tokenizer.compare}
  engine.use(config.runner)
  r = Run(os.path.abspath(workdir), config.runner, config.workers)
  got = read(r, raw)
  parts = {p: n for source in got.values() for p, n in source['parts'].items()}  # bytes of each
  measured = measure(r, parts, config, common_lines(r, parts, config), repetitions(r, parts, config))
  columns, reason, of = verdicts(r, list(parts), config, limits, bands, rows)
  holdout = {s: [c.holdout, c.holdout_by] for s, c in config.sources.items()}
  kept = {source: (columns.sources == source) & (reason == '') for source in raw}
  for source in [source for source, mine in kept.items() if not mine.any()]:
    say(f'{source}: the rules leave nothing of it, and it has no part in the mixture')
    del kept[source]
  if not kept:
    raise BadInput(f'the rules leave nothing of any source: loosen filter.rules; {r.path("verdicts")} says why')
  sampled = lambda source, n: sample(r, list(got[source]['parts']), holdout[source], n) if source in kept else []  # noqa: E731
  path = tokenizer(r, sampled, config)
  fertile = fertility({'ours': Tokenizer(path).pieces} | others, {source: sampled(source, 100_000) for source in kept})
  sizes = {}
  for source, mine in kept.items():
    n, size = int(mine.sum()), int(columns.size[mine].sum())
    per = next(f['bytes_per_token'] for f in fertile if f['source'] == source)
    sizes[source] = {'documents': n, 'bytes': size, 'tokens': round(size / per) + 2 * n}
  stages_of_mix = [(share, {s: w for s, w in weights.items() if s in sizes}) for share, weights in stages_of_mix]
  plan = mix.plan(sizes, stages_of_mix, **_mixing(config))
  print(mix.table(plan))
  manifests = shards(r, path, {p: s for s, source in got.items() for p in source['parts']}, parts, holdout, config)
  save(r.path('plan.json'), json.dumps(plan, indent=2))
  data = {
    'kind': 'prepare', 'made': begun, 'name': os.path.basename(r.workdir), 'config': config.to_dict(),
    'seconds': r.seconds, 'raw_bytes': sum(s['bytes'] for s in got.values()),
    **summary.documents(columns, reason, of, limits, config.seed, {s: f['synthetic'] for s, f in raw.items()}),
    **summary.cleaning(measured.values()),
    'curve': near.drawn(bands, rows, config.dedup.threshold, config.dedup.confirm),
    'mixture': {'rows': plan, 'tokens': sum(row['drawn_tokens'] for row in plan)},
    'tokenizer': {'rows': fertile},
    'skipped': [row for s, g in got.items() for row in g['skipped'].rows(s)],
    'shards': {
      s: {k: m.get(k) for k in ('rows', 'tokens', 'documents', 'fill')}
      | {'files': len(m['files']), 'bytes': sum(f['size'] for f in m['files'])}
      for s, splits in manifests.items() for m in [splits['train']]
    },
  }  # fmt: skip
  save(r.path('report.json'), json.dumps(data))
  save(r.path('report.html'), report.prepared(data))
  print(summary.table({s: d['funnel'] for s, d in data['sources'].items()}))
  megabytes, took = data['raw_bytes'] / 1e6, time.time() - begun
  say(f'{megabytes:,.1f} MB in {took:.1f} s, {megabytes / took:.1f} MB/s; {r.path("report.html")}')
