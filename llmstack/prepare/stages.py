"""The stages of a preparation, each a function of one part: (item, settings) -> counts, JSON in and out.

    read/PART.parquet        id, text                       one file of a source gives as many parts as it needs
    measured/PART.parquet    id, text (cleaned), raw and size (bytes before and after), terms (words that MinHash sees),
                             language, a column per measure, digest, signature
    verdicts/PART.parquet    reason ('' = kept), of (whose copy it is); rows as in measured/PART
    documents/PART.jsonl.zst {"id", "text"} of what is kept; PART.eval.jsonl.zst of what is held out
    shards/SOURCE/SPLIT/rows-PART.arrayrecord

PART is SOURCE-FILE-NUMBER, so that parts in the order of their names are the order of the source. A part is written
under another name and moved when it is whole; its counts lie beside it in PART.json.
"""

import functools
import hashlib
import json
import os

import numpy as np
import pyarrow
import pyarrow.compute as pc
import pyarrow.parquet
import zstandard

from llmstack.data import packing, sources
from llmstack.data.tokenizer import Tokenizer
from llmstack.prepare import classify, clean, decontaminate, engine, extract, rules, spans

PART = 8 << 20  # bytes of text in a part, about
NAMED = 5000  # characters that tell the language
EXAMPLES = 4  # of each edit of a part, for the report


def done(folder, part):
  """Returns the counts of a part that is whole, or None."""
  try:
    with open(os.path.join(folder, f'{part}.json')) as f:
      return json.load(f)
  except FileNotFoundError:
    return None


def _finish(folder, part, counts):
  """Returns the counts, after writing them beside the part: last, so that they say it is whole."""
  path = os.path.join(folder, f'{part}.json')
  with open(f'{path}.tmp', 'w') as f:
    json.dump(counts, f)
  os.replace(f'{path}.tmp', path)
  return counts


def _table(path, columns):
  pyarrow.parquet.write_table(pyarrow.table(columns), f'{path}.tmp', compression='zstd', compression_level=1)
  os.replace(f'{path}.tmp', path)


def load(folder, part, columns):
  """Returns the arrow table of a part."""
  return pyarrow.parquet.read_table(os.path.join(folder, f'{part}.parquet'), columns=columns, use_threads=False)


def read(item, settings):
  """Reads files of a source into parts; returns {'parts': [[name, documents, bytes]], 'skipped': {...}}.

  item: {'part', 'source', 'files': [[name, url]]}. settings: {'folder', 'raw': {source: fields of extract.Raw}}.
  """
  raw = extract.Raw(**settings['raw'][item['source']])
  skipped, parts, ids, texts, size = extract.Skipped(), [], [], [], 0

  def flush():
    nonlocal ids, texts, size
    part = f'{item["part"]}-{len(parts):05d}'
    table = {'id': ids, 'text': pyarrow.array(texts, pyarrow.string())}
    _table(os.path.join(settings['folder'], f'{part}.parquet'), table)
    parts.append([part, len(ids), size])
    ids, texts, size = [], [], 0

  for name, url in item['files']:
    for i, text in extract.documents(url, name, raw, skipped):
      ids.append(f'{item["source"]}/{i}')
      texts.append(text)
      size += len(text) if text.isascii() else len(text.encode())
      if size >= PART:
        flush()
  if ids:
    flush()
  return _finish(settings['folder'], item['part'], {'parts': parts, 'skipped': skipped.to_json()})


def lines(part, settings):
  """Writes PART.npy, the sorted keys of the lines of a part that are long enough to count; returns how many.

  settings: {'read', 'folder', 'least': characters}.
  """
  _, each = rules.pieces(pc.split_pattern(load(settings['read'], part, ['text'])['text'].combine_chunks(), '\n'))
  keys = np.sort(clean.line_keys(each.filter(pc.greater_equal(pc.utf8_length(each), settings['least']))))
  path = os.path.join(settings['folder'], f'{part}.npy')
  np.save(f'{path}.tmp.npy', keys)
  os.replace(f'{path}.tmp.npy', path)
  return _finish(settings['folder'], part, len(keys))


def windows(part, settings):
  """Writes PART.npy, the keys of the windows of a part, and PART.first.npy, their first words; returns how many.

  settings: {'read', 'folder', 'words' of a window}.
  """
  texts_ = load(settings['read'], part, ['text'])['text'].combine_chunks()
  found = spans.keys(clean.normalise(texts_), settings['words'])
  for array, name in zip(found, (f'{part}.npy', f'{part}.first.npy')):
    path = os.path.join(settings['folder'], name)
    np.save(f'{path}.tmp.npy', array)
    os.replace(f'{path}.tmp.npy', path)
  return _finish(settings['folder'], part, len(found[0]))


def measure(part, settings):
  """Cleans and measures a part; returns {'bytes', 'changed': {step: documents}, 'masked', 'edits', 'leaks', ...}.

  settings: {'read', 'folder', 'clean': {...}, 'repeated': {'folder', 'words'} or None, 'known': path or None,
    'bad_words', 'evals': [url], 'ngram', 'classifiers': {measure: path}, 'minhash': {...}}.
  """
  t = load(settings['read'], part, ['id', 'text'])
  ids, texts = t['id'].combine_chunks(), t['text'].combine_chunks()
  c, size, edits, touched = settings['clean'], pc.binary_length(texts).to_numpy(), {}, {}

  def step(name, after):
    nonlocal texts
    hit = clean.changed(texts, after)
    touched[name] = int(hit.sum())
    if at := np.flatnonzero(hit)[:EXAMPLES].tolist():
      edits[name] = [[ids[i].as_py(), *_difference(texts[i].as_py(), after[i].as_py())] for i in at]
    texts = after

  if settings['repeated']:
    later = np.load(os.path.join(settings['repeated']['folder'], f'{part}.later.npy'))
    step('repetitions', spans.without(texts, later, settings['repeated']['words']))
  if c['repair']:
    step('repair', clean.repair(texts))
  known = np.load(settings['known']) if settings['known'] else None
  if c['line_words'] or c['drop_policy'] or known is not None:
    step('lines', clean.drop_lines(texts, line_words=c['line_words'], drop_policy=c['drop_policy'], known=known))
  masked = {}
  if c['mask']:
    after, masked = clean.mask(texts)
    step('personal data', after)
  words, leaks = clean.normalise(texts), []
  measures = {}
  leaked = np.zeros(len(texts))
  if settings['evals']:
    found = _evals(tuple(settings['evals']), settings['ngram']).find(words)
    per = {}
    for d, first, length, name in found:
      per.setdefault(d, []).append((first, length, name))
    cuts, hit = [], np.zeros(len(texts), bool)
    for d, matches in sorted(per.items()):
      said = words[d].as_py().split()
      for name in sorted({m[2] for m in matches}):
        first, length, _ = next(m for m in matches if m[2] == name)
        leaks.append([ids[d].as_py(), name, ' '.join(said[first : first + length])])
      text = texts[d].as_py()
      cuts.append(decontaminate.cut(text, [m[:2] for m in matches]))
      hit[d], leaked[d] = True, 1 - len(cuts[-1]) / len(text)
    if cuts:
      cuts = pyarrow.array(cuts, texts.type)
      step('leaks', pc.replace_with_mask(texts, pyarrow.array(hit), cuts))
      words = pc.replace_with_mask(words, pyarrow.array(hit), clean.normalise(cuts))
  measures |= rules.measure(texts, settings['bad_words']) | {'leaked': leaked.astype(np.float32)}
  for name, path in settings['classifiers'].items():
    measures[name] = classify.score(classify.load(path), texts.to_pylist()).astype(np.float32)
  languages, distance = classify.language(pc.utf8_slice_codeunits(texts, 0, NAMED).to_pylist())
  measures['language_distance'] = np.asarray(distance, np.float32)
  digest = [hashlib.blake2b(' '.join(t.lower().split()).encode(), digest_size=8).digest() for t in texts.to_pylist()]
  signature = engine.minhash(words, **settings['minhash'])
  after = pc.binary_length(texts).to_numpy()
  _table(
    os.path.join(settings['folder'], f'{part}.parquet'),
    {
      'id': ids, 'text': texts, 'raw': size, 'size': after, 'language': pyarrow.array(languages), **measures,
      'terms': pc.count_substring(words, ' ').to_numpy() + 1,
      'digest': np.frombuffer(b''.join(digest), np.uint64),
      'signature': pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(signature.ravel()), signature.shape[1]),
    },
  )  # fmt: skip
  counts = {'documents': len(ids), 'bytes': int(after.sum()), 'changed': touched, 'masked': masked}
  return _finish(settings['folder'], part, counts | {'edits': edits, 'leaks': leaks})


def _difference(before, after, around=160):
  """Returns excerpts of both texts around the first place where they differ."""
  at = next((i for i, (a, b) in enumerate(zip(before, after)) if a != b), min(len(before), len(after)))
  begin = max(0, at - around // 2)
  return before[begin : begin + 2 * around], after[begin : begin + 2 * around]


@functools.cache
def _evals(files, n):
  """Returns the Index of evaluation files: every string of a record counts."""
  texts, names = [], []
  for url in files:
    for _, record in sources.objects(sources.Source((url,))):
      texts.append(' '.join(_strings(record)))
      names.append(os.path.basename(url))
  return decontaminate.Index(texts, names, n)


def _strings(value):
  if isinstance(value, str):
    yield value
  elif isinstance(value, (dict, list)):
    for inner in value.values() if isinstance(value, dict) else value:
      yield from _strings(inner)


def texts(measured, verdicts, part, holdout, split):
  """Yields (id, text) of what is kept of a part and belongs to a split. holdout: (share, by) of `sources.Source`."""
  kept = pc.equal(load(verdicts, part, ['reason'])['reason'], '')
  t = load(measured, part, ['id', 'text']).filter(kept)
  holding = sources.Source(('-',), holdout=holdout[0], holdout_by=holdout[1])
  for i, text in zip(t['id'].to_pylist(), t['text'].to_pylist()):
    if text := sources.part(text, holding, split):
      yield i, text


@functools.cache
def _tokenizer(path):
  """Returns the Tokenizer, with the words that it remembers from other parts."""
  return Tokenizer(path)


def shard(part, settings):
  """Writes what is kept of a part, as documents and as rows; returns {split: counts and the entry of the manifest}.

  settings: {'measured', 'verdicts', 'documents', 'folder', 'tokenizer': path, or None for documents in place of rows,
    'holdout': {source: [share, by]}, 'length', 'method'}.
  """
  source = part.rsplit('-', 2)[0]
  holdout, out = settings['holdout'][source], {}
  for split in ('train', 'eval') if holdout[0] else ('train',):
    documents = list(texts(settings['measured'], settings['verdicts'], part, holdout, split))
    if not documents:
      continue
    path = os.path.join(settings['documents'], f'{part}{".eval" * (split == "eval")}.jsonl.zst')
    with zstandard.open(f'{path}.tmp', 'wb', cctx=zstandard.ZstdCompressor(1)) as f:
      for i, text in documents:
        f.write((json.dumps({'id': i, 'text': text}, ensure_ascii=False) + '\n').encode())
    os.replace(f'{path}.tmp', path)
    counts = {'documents': len(documents), 'source_bytes': sum(len(text.encode()) for _, text in documents)}
    path = os.path.join(settings['folder'], source, split, f'rows-{part}.arrayrecord')
    if settings['tokenizer'] is None:
      counts |= packing.write_documents(({'id': i, 'text': text} for i, text in documents), f'{path}.tmp')
    else:
      tokenizer = _tokenizer(settings['tokenizer'])
      ids = packing.encode((text for _, text in documents), tokenizer)
      counts |= packing.write_shard(
        packing.pack(ids, settings['length'], settings['method']), f'{path}.tmp', tokenizer.vocab
      )
    os.replace(f'{path}.tmp', path)
    out[split] = counts | {'name': os.path.basename(path)}
  return _finish(settings['folder'], part, out)
