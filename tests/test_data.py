"""data/: sources, packing, packed folders and the stream of batches."""

import collections
import gzip
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers import crc

from llmstack.data import batch as batches
from llmstack.data import packing, sources
from llmstack.data.pipeline import Mixture, Rows
from llmstack.data.sources import Source, documents
from llmstack.data.tokenizer import Tokenizer, train
from llmstack.errors import BadInput

TEXTS = ['first\nline', 'zweites Dokument: ü 😀', 'third']


def gz(data):
  return gzip.compress(data, mtime=0)  # a time in a test's name would differ between workers


def jsonl(texts):
  return ''.join(json.dumps({'id': i, 'text': t}) + '\n' for i, t in enumerate(texts)).encode()


def zstd(data):
  import zstandard

  return zstandard.ZstdCompressor().compress(data)


def write_arrayrecord(path, records):
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    writer.write(record)
  writer.close()


def write(path, data):
  path.write_bytes(data)
  return str(path)


def source(*files, **fields):
  return Source(files=tuple(map(str, files)), **fields)


# Sources


def test_imports_are_light():
  """`import llmstack.data` that starts jax, or that costs grain's three seconds in every tool."""
  code = (
    'import sys\n'
    'from llmstack.data import batch, packing, pipeline, sources, tokenizer\n'
    'heavy = {"jax", "grain", "sentencepiece", "pyarrow"} & set(sys.modules)\n'
    'assert not heavy, heavy'
  )
  subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize(
  'name, data',
  [
    ('a.jsonl', jsonl(TEXTS)),
    ('a.jsonl', jsonl(TEXTS).rstrip()),
    ('a.jsonl.gz', gz(jsonl(TEXTS))),
    ('a.jsonl.gz', gz(jsonl(TEXTS[:1])) + gz(jsonl(TEXTS[1:]))),
    ('a.jsonl.zst', zstd(jsonl(TEXTS))),
    ('a.jsonl.zst', zstd(jsonl(TEXTS[:2])) + zstd(jsonl(TEXTS[2:]))),
    ('a.txt', '<|x|>'.join(TEXTS).encode()),
    ('a.txt.gz', gz(('<|x|>'.join(TEXTS) + '<|x|>').encode())),
    ('a.txt.zst', zstd('<|x|>'.join(TEXTS).encode())),
  ],
)
@pytest.mark.parametrize('read', [3, 1 << 20])
def test_formats(tmp_path, monkeypatch, name, data, read):
  """A separator, line or character that straddles two reads; a second gzip or zstd member lost."""
  monkeypatch.setattr(sources, 'READ', read)
  write(tmp_path / name, data)
  found = list(documents(source(tmp_path / 'a.*', split_on='<|x|>')))
  assert [d.text for d in found] == TEXTS
  assert found[0].id == f'{name}:0' and len({d.id for d in found}) == 3


def test_whole_text_file(tmp_path):
  """split_on '' must not cut a file at its newlines."""
  path = write(tmp_path / 'a.txt', b'one\n\n\ntwo\n')
  assert [d.text for d in documents(source(path))] == ['one\n\n\ntwo\n']


def test_parquet_and_arrayrecord(tmp_path):
  """Column formats and records read in another order, or records taken for JSON that are text."""
  import pyarrow

  parquet = pytest.importorskip('pyarrow.parquet')
  table = pyarrow.table({'n': [1, 2, 3], 'text': TEXTS})
  parquet.write_table(table, str(tmp_path / 'a.parquet'))
  write_arrayrecord(tmp_path / 'b.arrayrecord', [t.encode() for t in TEXTS])
  write_arrayrecord(tmp_path / 'c.array_record', jsonl(TEXTS).splitlines())
  assert [d.text for d in documents(source(tmp_path / '*'))] == TEXTS * 3
  with pytest.raises(BadInput, match=r"no column 'body', only \['n', 'text'\]"):
    list(documents(source(tmp_path / 'a.parquet', field='body')))
  with pytest.raises(BadInput, match="row 0: field 'n' is int, not text"):
    list(documents(source(tmp_path / 'a.parquet', field='n')))


GOOD = jsonl(TEXTS * 400)
BAD = [
  ('empty.jsonl', b'', 'empty file', r'empty\.jsonl is empty'),
  ('empty.txt.gz', gz(b""), 'empty file', r'empty\.txt\.gz is empty'),
  ('cut.jsonl.gz', gz(GOOD)[:-9], 'truncated file', r'cut\.jsonl\.gz ends in the middle'),
  ('cut.jsonl.zst', zstd(GOOD)[:-9], 'truncated file', r'cut\.jsonl\.zst ends in the middle'),
  ('not.jsonl.gz', b'plain text', 'corrupt file', r'not\.jsonl\.gz cannot be decompressed'),
  ('not.txt.zst', b'plain text', 'corrupt file', r'not\.txt\.zst cannot be decompressed'),
  ('x.arrayrecord', b'plain text', 'corrupt file', r'x\.arrayrecord is empty or not a whole'),
  ('x.parquet', b'plain text', 'corrupt file', r'x\.parquet is not a whole parquet'),
  ('x.csv', b'a,b', 'unknown suffix', r'x\.csv has an unknown suffix: use \.txt'),
  ('latin.txt', b'caf\xe9', 'not UTF-8', r'latin\.txt, part at byte 0, byte 3 in it is not UTF-8'),
  ('l.jsonl', b'{"text": "a"}\n{"text": "\xe9"}', 'not UTF-8', r'l\.jsonl:2, byte 10 in it is not'),
  ('j.jsonl', b'{"text": "a"}\n\n{"text', 'not JSON', r'j\.jsonl:3 is not JSON'),
  ('list.jsonl', b'["text"]', 'not JSON', r'list\.jsonl:1 is JSON but not an object'),
  ('f.jsonl', b'{"b": 1, "a": 2}', 'missing field', r"f\.jsonl:1 has no field 'text', only \['a', 'b'\]"),
  ('n.jsonl', b'{"text": null}', 'field not text', r"n\.jsonl:1: field 'text' is NoneType, not text"),
  ('s.jsonl', b'{"text": "\\ud800"}', 'not UTF-8', r's\.jsonl:1: .* lone surrogate'),
]  # fmt: skip


@pytest.mark.parametrize('name, data, kind, sentence', BAD, ids=[bad[0] for bad in BAD])
def test_bad_input(tmp_path, name, data, kind, sentence):
  """Bad files pass silently or as a stack trace; 'skip' loses what is good, or loses the count."""
  write(tmp_path / name, data)
  with pytest.raises(BadInput, match=sentence):
    list(documents(source(tmp_path / name)))
  write(tmp_path / 'zz.jsonl', jsonl(['good']))
  counts = collections.Counter()
  found = list(documents(source(tmp_path / '*', on_error='skip'), counts))
  assert found[-1].text == 'good' and counts == {kind: 1}


def test_no_file_and_same_name(tmp_path):
  """A typo in a glob that trains on nothing; two shards of one name whose ids collide."""
  with pytest.raises(BadInput, match=r'none-\*\.txt matches no file'):
    list(documents(source(tmp_path / 'none-*.txt')))
  for folder in 'de', 'en':
    (tmp_path / folder).mkdir()
    write(tmp_path / folder / '0.txt', folder.encode())
  with pytest.raises(BadInput, match='have the same name: rename one'):
    list(documents(source(tmp_path / '*/0.txt')))


@pytest.mark.parametrize('fields', [{'holdout': 1.0}, {'holdout_by': 'x'}, {'on_error': 'x'}])
def test_bad_source(fields):
  """A misspelt policy that quietly becomes the default."""
  with pytest.raises(BadInput, match=next(iter(fields))):
    source('a', **fields)


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5])
@pytest.mark.parametrize('by', ['document', 'tail'])
def test_parts_are_disjoint_and_everything(by, share):
  """Text in both splits (leaked evaluation), or in neither."""
  s = source('a', holdout=share, holdout_by=by)
  held = 0
  for i in range(2000):
    text = f'{i} ü{"x" * (i % 7)}'
    pair = [sources.part(text, s, split) for split in ('train', 'eval')]
    assert ''.join(pair) == text and (by == 'tail' or '' in pair)
    held += len(pair[1]) / len(text)
  assert abs(held / 2000 - share) < 0.07


def test_source_fingerprint(tmp_path):
  """A changed byte behind the same name and size."""
  path = tmp_path / 'a.txt'
  prints = [sources.fingerprint(source(write(path, data))) for data in (b'abc', b'abd', b'abc')]
  assert prints[0] == prints[2] != prints[1] and prints[0]['a.txt'][0] == 3


# Packing


def random_docs(rng, count, longest):
  """Documents whose token i of document d is unique: (d, i) can be read back from it."""
  sizes = np.append(rng.integers(1, longest, count), 2)
  starts = np.cumsum(sizes) - sizes
  return [np.arange(a, a + n) + 1 for a, n in zip(starts, sizes)], starts


@pytest.mark.parametrize('method', ['best_fit', 'concat'])
@pytest.mark.parametrize('seed', range(30))
def test_every_target_once(monkeypatch, method, seed):
  """A target lost at a cut, counted twice at a border, or asked across two documents."""
  rng = np.random.default_rng(seed)
  monkeypatch.setattr(packing, 'CHUNK', int(rng.integers(1, 300)))
  length = int(rng.integers(2, 24))
  docs, starts = random_docs(rng, int(rng.integers(1, 60)), int(rng.integers(2, 70)))
  tokens, segments = (np.stack(x) for x in zip(*packing.pack(docs, length, method)))
  assert tokens.shape[1] == length and tokens.dtype == segments.dtype == np.int32
  batch = batches.targets(tokens, segments)
  real = batch['mask'] == 1
  given, asked = batch['tokens'][real], batch['targets'][real]
  np.testing.assert_array_equal(asked, given + 1)  # its own predecessor, in its own document
  firsts = set((starts + 1).tolist())
  wanted = [t for t in range(1, sum(map(len, docs)) + 1) if t not in firsts]
  assert sorted(asked.tolist()) == wanted
  assert not tokens[segments == 0].any()


def test_concat_uses_every_position():
  """Padding in the middle of the concat stream."""
  docs, _ = random_docs(np.random.default_rng(0), 500, 90)
  rows = list(packing.pack(docs, 17, 'concat'))
  assert all(segments.all() for _, segments in rows[:-1])


def test_best_fit_keeps_short_documents_whole():
  """A document that would fit a row is cut (the truncation that best fit is for)."""
  docs, _ = random_docs(np.random.default_rng(0), 500, 33)
  kept = collections.Counter(len(doc) for doc in docs if len(doc) > 1)
  found = collections.Counter()
  for _, segments in packing.pack(docs, 32, 'best_fit'):
    found.update(np.bincount(segments)[1:].tolist())
  assert found == kept


@pytest.mark.parametrize('length', [257, 1025])
def test_fill_of_a_mix_of_lengths(length):
  """First fit, or best fit in arrival order, leaves several per cent of every row empty."""
  rng = np.random.default_rng(0)
  docs = [np.ones(n, np.int32) for n in (rng.lognormal(5, 1, 10_000) + 2).astype(int)]
  segments = np.stack([s for _, s in packing.pack(docs, length, 'best_fit')])
  assert (segments > 0).mean() > 0.999


def test_bad_packing():
  """A row that its stored uint16 segments cannot number; a misspelt method."""
  for length, method, sentence in ((1, 'concat', 'row length is 1'), (9, 'x', 'method is')):
    with pytest.raises(BadInput, match=sentence):
      list(packing.pack([], length, method))


def test_batch_by_hand():
  """Positions that run on into the next document; a mask one place off."""
  tokens = np.array([[5, 6, 7, 8, 9, 0, 0, 0]], np.int32)
  segments = np.array([[1, 1, 1, 2, 2, 0, 0, 0]], np.int32)
  batch = batches.targets(tokens, segments)
  assert batch['tokens'].tolist() == [[5, 6, 7, 8, 9, 0, 0]]
  assert batch['targets'].tolist() == [[6, 7, 8, 9, 0, 0, 0]]
  assert batch['segments'].tolist() == [[1, 1, 1, 2, 2, 0, 0]]
  assert batch['positions'].tolist() == [[0, 1, 2, 0, 1, 0, 0]]
  assert batch['mask'].tolist() == [[1, 1, 0, 1, 0, 0, 0]]
  assert {k: v.dtype.name for k, v in batch.items()} == {k: 'float32' if k == 'mask' else 'int32' for k in batch}


@pytest.mark.parametrize('size', [1, 2, 3, 5, 64, 1000, 4097])
def test_permutation(size):
  """An index drawn twice, or keys that all give one order."""
  images = [packing.permute(np.arange(size), size, np.uint64(key)) for key in range(3)]
  for image in images:
    assert sorted(image.tolist()) == list(range(size))
  if size >= 64:
    assert (images[0] != images[1]).mean() > 0.9 and (images[0] != np.arange(size)).mean() > 0.9


def test_permutation_is_for_ever():
  """Another order after an upgrade: every resumed run would silently read other data."""
  assert packing.permute(np.arange(8), 8, np.uint64(7)).tolist() == [5, 3, 0, 4, 7, 1, 6, 2]
  assert packing.permute(np.arange(2), 10**12, np.uint64(7)).tolist() == [896689274427, 509053524170]


# Packed folders

FIELDS = {'tokenizer': 't', 'split': 'train'}


def folder(path, count=50, length=9, seed=0, vocab=5000, **options):
  """Packs `count` rows whose first token names the row; returns the path."""
  rows = [(np.full(length, i, np.int32), np.ones(length, np.int32)) for i in range(count)]
  packing.write_rows(rows, str(path), vocab=vocab, seed=seed, manifest_fields=FIELDS, **options)
  return str(path)


@pytest.mark.parametrize('vocab', [5000, 100_000])
def test_rows_survive_the_disk(tmp_path, vocab):
  """uint16 tokens under a large vocabulary, a lost file border, a shuffle that drops or repeats."""
  rows = Rows(folder(tmp_path / 'p', 50, vocab=vocab, rows_per_file=20))
  assert [f['rows'] for f in rows.manifest['files']] == [20, 20, 10] and len(rows) == 50
  tokens, segments = rows.read(range(50)).values()
  assert sorted(tokens[:, 0].tolist()) == list(range(50)) and tokens[:, 0].tolist() != list(range(50))
  assert tokens.dtype == np.int32 and (segments == 1).all()
  np.testing.assert_array_equal(
    rows.read([31, 4])['tokens'], np.concatenate([rows.read([31])['tokens'], rows.read([4])['tokens']])
  )
  big = [(np.array([1, vocab - 1], np.int32), np.ones(2, np.int32))]
  packing.write_rows(big, str(tmp_path / 'b'), vocab=vocab, seed=0, manifest_fields=FIELDS)
  assert Rows(str(tmp_path / 'b')).read([0])['tokens'][0].tolist() == [1, vocab - 1]


def test_write_is_deterministic(tmp_path):
  """A fingerprint with a clock or a path in it; a seed that the shuffle ignores."""
  prints = [Rows(folder(tmp_path / str(i), seed=seed)).fingerprint for i, seed in enumerate((1, 1, 2))]
  first = Rows(str(tmp_path / '0')).read(range(50))['tokens']
  assert prints[0] == prints[1] != prints[2]
  assert (first != Rows(str(tmp_path / '2')).read(range(50))['tokens']).any()


def test_manifest_counts(tmp_path):
  """Fill and targets in the manifest drive the mixture: padding counted as tokens skews it."""
  rows = [(np.array([3, 4, 5, 0], np.int32), np.array([1, 1, 2, 0], np.int32))]
  made = packing.write_rows(rows, str(tmp_path / 'p'), vocab=9, seed=0, manifest_fields=FIELDS)
  assert (made['tokens'], made['targets'], made['fill'], made['length']) == (3, 1, 0.75, 4)


def test_interrupted_pack_leaves_nothing(tmp_path):
  """A folder that looks finished after a crash, or scratch files that fill the disk."""

  def rows():
    yield np.zeros(4, np.int32), np.ones(4, np.int32)
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    packing.write_rows(rows(), str(tmp_path / 'p'), vocab=9, seed=0, manifest_fields={})
  with pytest.raises(BadInput, match='no token is left to pack'):
    packing.write_rows([], str(tmp_path / 'p'), vocab=9, seed=0, manifest_fields={})
  with pytest.raises(ValueError, match='outside the vocabulary of 3'):
    packing.write_rows(
      [(np.full(4, 3, np.int32), np.ones(4, np.int32))],
      str(tmp_path / 'p'), vocab=3, seed=0, manifest_fields={},
    )  # fmt: skip
  assert os.listdir(tmp_path) == []


def test_damaged_folder(tmp_path):
  """A half-copied shard found at step 40,000 instead of at the start."""
  path = folder(tmp_path / 'p', 50, rows_per_file=20)
  shard = tmp_path / 'p' / 'rows-00001-of-00003.arrayrecord'
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-100])
  with pytest.raises(BadInput, match=rf'rows-00001-of-00003\.arrayrecord has {len(whole) - 100} by'):
    Rows(path)
  shard.write_bytes(b'')
  with pytest.raises(BadInput, match='has 0 bytes'):
    Rows(path)
  shard.unlink()
  with pytest.raises(BadInput, match='00001-of-00003.arrayrecord is missing'):
    Rows(path)
  shard.write_bytes(whole)
  manifest = tmp_path / 'p' / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('"targets": ', '"targets": 1'))
  with pytest.raises(BadInput, match='manifest.json was changed after packing'):
    Rows(path)
  with pytest.raises(BadInput, match='has no manifest.json'):
    Rows(str(tmp_path))


@pytest.fixture(scope='module')
def tok():
  return Tokenizer(train(['some words, and the words again\n'] * 50, kind='char', vocab=100))


def test_prepare(tmp_path, tok):
  """Packing twice what is there, or reusing rows of other text, length, tokenizer or holdout."""
  path = write(tmp_path / 'a.jsonl', jsonl(['some words', 'the words', ''] * 40))
  src = source(path, holdout=0.5, holdout_by='tail')
  options = dict(length=9, method='best_fit', seed=0, folder=str(tmp_path / 'packed'), split='train')
  first = packing.prepare('a', src, tok, **options)
  stamp = os.stat(first).st_mtime_ns
  assert packing.prepare('a', src, tok, **options) == first and os.stat(first).st_mtime_ns == stamp
  manifest = Rows(first).manifest
  assert manifest['documents'] == 80 and manifest['skipped'] == {'empty document': 40}
  assert manifest['source_bytes'] == 40 * 5 + 40 * 5 and manifest['tokens'] == 80 * 7
  tokens = Rows(first).read(range(len(Rows(first))))['tokens']
  assert tok.decode(tokens[0]) in ('some ', 'the w') and tokens[0][0] == tok.bos
  others = [
    packing.prepare('a', src, tok, **dict(options, **change))
    for change in ({'length': 10}, {'method': 'concat'}, {'seed': 1}, {'split': 'eval'})
  ]
  other_tok = Tokenizer(train(['some words, and the words again'], kind='char', vocab=100))
  others += [packing.prepare('a', src, other_tok, **options)]
  others += [packing.prepare('a', source(path, holdout=0.4, holdout_by='tail'), tok, **options)]
  write(tmp_path / 'a.jsonl', jsonl(['some words', 'the wordz', ''] * 40))
  others += [packing.prepare('a', src, tok, **options)]
  assert len({first, *others}) == 8
  # A packed folder is a source of its own, for the split and tokenizer it was made for.
  assert packing.prepare('b', source(first), tok, **options) == first
  with pytest.raises(BadInput, match='packed with split train, not eval'):
    packing.prepare('b', source(first), tok, **dict(options, split='eval'))
  with pytest.raises(BadInput, match='no token is left to pack into .*a-eval-'):
    packing.prepare('a', source(path), tok, **dict(options, split='eval'))


# The stream


@pytest.fixture(scope='module')
def parts(tmp_path_factory):
  root = tmp_path_factory.mktemp('parts')
  sizes = {'a': 101, 'b': 37, 'c': 260}
  return {n: Rows(folder(root / n, k, seed=k)) for n, k in sizes.items()}


def mixture(parts, weights=None, **options):
  weights = weights or {'a': 0.6, 'b': 0.1, 'c': 0.3}
  return Mixture(parts, weights, **{'seed': 5, 'batch': 8, **options})


def test_random_access_is_pure(parts):
  """A batch that depends on which batches were read before it."""
  one, two = mixture(parts), mixture(parts)
  forward = [crc(one.batch(i)) for i in range(12)]
  backward = [crc(two.batch(i)) for i in reversed(range(12))]
  assert forward == backward[::-1] and len(set(forward)) == 12


def test_every_row_once_per_epoch(parts):
  """An epoch that repeats rows and misses others, or the same order in every epoch."""
  one = mixture({'a': parts['a']}, {'a': 1.0})
  _, rows = one.locate(np.arange(303))
  epochs = rows.reshape(3, 101)
  assert all(sorted(epoch.tolist()) == list(range(101)) for epoch in epochs)
  assert (epochs[0] != epochs[1]).mean() > 0.8 and (epochs[1] != epochs[2]).mean() > 0.8
  assert one.epochs(101)['a'] == 8.0


class Planned:
  """What Rows tells of a folder, without the folder: enough to plan a mixture."""

  manifest = dict(length=9, vocab=9, tokenizer='t', targets=800)
  fingerprint = 'x'

  def __len__(self):
    return 100


def test_far_index():
  """Overflow: shares that go wrong after 2**32 examples."""

  one = mixture({'a': Planned(), 'b': Planned()}, {'a': 0.3, 'b': 0.7}, batch=1)
  assert one.epochs(10**13)['a'] == pytest.approx(0.3e11)
  component, row = one.locate(np.arange(10**13, 10**13 + 1000))
  assert abs((component == 0).sum() - 300) <= 2 and row.min() >= 0 and row.max() < 100


@pytest.mark.parametrize('count', [2, 4])
def test_processes_partition_the_batch(parts, count):
  """Hosts that read overlapping slices, or a stream that depends on how many hosts there are."""
  one = mixture(parts)
  for step in (0, 7):
    pieces = [mixture(parts).rows(step, i, count) for i in range(count)]
    for whole, split in zip(one.rows(step).values(), zip(*(p.values() for p in pieces))):
      np.testing.assert_array_equal(whole, np.concatenate(split))
  with pytest.raises(BadInput, match='batch 8 does not divide by 3 processes: use 6'):
    one.rows(0, 0, 3)


def test_resume_is_continue(parts):
  """Iterating from k after a restart gives another batch than running on to k."""
  whole = [crc(b) for b in mixture(parts).iterate(0, 9)]
  rest = [crc(b) for b in mixture(parts).iterate(4, 9, prefetch=5, threads=2)]
  inline = [crc(b) for b in mixture(parts).iterate(4, 9, threads=0)]
  assert len(whole) == 9 and whole[4:] == rest == inline


def test_reader_error_surfaces(tmp_path):
  """A reader thread that dies and leaves the training loop waiting for ever."""
  rows = Rows(folder(tmp_path / 'p'))
  one = mixture({'p': rows}, {'p': 1})
  stream = one.iterate(0, 100)
  next(stream)
  rows.read = lambda *_: (_ for _ in ()).throw(OSError('bucket is gone'))
  with pytest.raises(OSError, match='bucket is gone'):
    for _ in stream:
      pass
  stream.close()


def unequal(tmp_path):
  """Two components of which one has half of every row padded."""
  dense = Rows(folder(tmp_path / 'dense', 64))
  segments = np.array([1] * 5 + [0] * 4, np.int32)
  rows = [(np.full(9, i, np.int32) * segments, segments) for i in range(64)]
  made = str(tmp_path / 'sparse')
  packing.write_rows(rows, made, vocab=5000, seed=0, manifest_fields=FIELDS)
  return {'dense': dense, 'sparse': Rows(made)}


def test_shares_are_of_tokens(tmp_path):
  """Weights taken as shares of rows: a component of short documents gets half its tokens."""
  one = mixture(unequal(tmp_path), {'dense': 3, 'sparse': 1}, batch=64)
  counts = collections.Counter()
  for step in range(20):
    component, _ = one.locate(np.arange(step * 64, step * 64 + 64))
    for i, name in enumerate(one.parts):
      counts[name] += (component == i).sum() * one.parts[name].manifest['targets'] / 64
  assert counts['dense'] / counts.total() == pytest.approx(0.75, abs=0.002)


@pytest.mark.parametrize('weights', [[1] * 6, [0.0001, 0.2999, 0.7], [1, 4, 9, 16, 25, 36, 49, 64]])
def test_shares_hold_at_every_moment(weights):
  """Random draws, or rounded weights, drift from the share; blocks of one component do at once."""
  names = 'abcdefgh'[: len(weights)]
  one = mixture({n: Planned() for n in names}, dict(zip(names, weights)))
  component, _ = one.locate(np.arange(40_000))
  seen = np.cumsum(component[:, None] == np.arange(len(weights)), axis=0)
  wanted = np.arange(1, 40_001)[:, None] * np.array(weights) / sum(weights)
  assert np.abs(seen - wanted).max() < 2
  assert one.epochs(5000) == dict(zip(names, seen[-1] / 100))


def test_order_depends_on_seed_and_content(parts, tmp_path):
  """A seed or a change of content that leaves the order as it was."""
  orders = [
    mixture({'a': p}, {'a': 1}, seed=seed).locate(np.arange(50))[1].tolist()
    for p, seed in (
      (parts['a'], 5),
      (parts['a'], 6),
      (Rows(folder(tmp_path / 'p', 101, seed=9)), 5),
    )
  ]
  assert orders[0] != orders[1] and orders[0] != orders[2]


def test_position(parts, tmp_path):
  """Resuming on other data, weights, seed or batch without a word."""
  one = mixture(parts)
  position = json.loads(json.dumps(one.position(12)))
  assert position['step'] == 12 and position['epochs'] == one.epochs(12)
  one.check(position)
  mixture(parts, {'a': 6, 'b': 1, 'c': 3}).check(position)  # the same shares
  other = Rows(folder(tmp_path / 'b', 37, seed=1))
  changed = mixture({**parts, 'b': other}, {'a': 0.5, 'b': 0.2, 'c': 0.3}, seed=6, batch=16)
  with pytest.raises(BadInput) as error:
    changed.check(position)
  lines = str(error.value).splitlines()[1:]
  assert lines == [
    '  seed: checkpoint 5, now 6',
    '  batch: checkpoint 8, now 16',
    '  weights a: checkpoint 0.6, now 0.5',
    '  weights b: checkpoint 0.1, now 0.2',
    f'  fingerprints b: checkpoint {parts["b"].fingerprint}, now {other.fingerprint}',
  ]
  with pytest.raises(BadInput, match='fingerprints c: checkpoint [0-9a-f]+, now None'):
    mixture({k: parts[k] for k in 'ab'}, {'a': 1, 'b': 1}).check(position)


STAGES = [(0, {'a': 0.6, 'b': 0.4, 'c': 0}), (20, {'a': 0.1, 'b': 0.2, 'c': 0.7}), (50, {'a': 0.5, 'b': 0.5, 'c': 0})]


def test_weights_that_change_while_training(parts):
  """At the border of two stages rows are repeated or left out, a share is wrong, or batches depend on history."""
  one, batch = mixture(parts, STAGES), 8
  component, row = one.locate(np.arange(100 * batch))
  for (step, weights), end in zip(STAGES, (20, 50, 100)):
    here = component[step * batch : end * batch]
    targets = {n: p.manifest['targets'] / len(p) for n, p in parts.items()}
    rate = {n: w / targets[n] for n, w in weights.items()}
    for i, n in enumerate(parts):
      assert abs((here == i).sum() - len(here) * rate[n] / sum(rate.values())) <= 2 + np.log(3), (step, n)
  for i, part in enumerate(parts.values()):
    mine = row[component == i]
    for epoch in range(len(mine) // len(part)):  # also the epochs that a border divides
      assert sorted(mine[epoch * len(part) : (epoch + 1) * len(part)].tolist()) == list(range(len(part)))
  assert [crc(one.batch(k)) for k in (19, 20, 55)] == [crc(mixture(parts, STAGES).batch(k)) for k in (19, 20, 55)]
  for k in (0, 20, 21, 50, 77):
    counts = np.bincount(component[: k * batch], minlength=3)
    assert one.epochs(k) == {n: c / len(p) for (n, p), c in zip(parts.items(), counts.tolist())}
  plain = mixture(parts, {'a': 0.6, 'b': 0.1, 'c': 0.3})
  same = mixture(parts, [(0, {'a': 6, 'b': 1, 'c': 3})])
  np.testing.assert_array_equal(plain.locate(np.arange(99)), same.locate(np.arange(99)))
  assert plain.position(3) == same.position(3)
  position = one.position(30)
  one.check(json.loads(json.dumps(position)))
  with pytest.raises(BadInput, match=r"weights 20: checkpoint \{'a': 0.1, .*, now None"):
    plain.check(position)


@pytest.mark.parametrize(
  'stages, words',
  [([(1, {})], 'begin at 0 and rise'), ([(0, {}), (0, {})], 'begin at 0 and rise'),
   ([(0, {'a': 0, 'b': 0, 'c': 0})], 'the weight of a is 0'),
   ([*STAGES, (60, {'a': 0, 'b': 0, 'c': 0})], 'all weights are 0')],
)  # fmt: skip
def test_bad_stages(parts, stages, words):
  """A stage of nothing is an endless loop, or ends the run at its first step, hours later."""
  with pytest.raises(BadInput, match=words):
    mixture(parts, stages)


def test_bad_mixture(parts, tmp_path):
  """Components that do not go together, found as a shape error inside jit."""
  with pytest.raises(BadInput, match=r"weights name \['a'\] but the data is \['a', 'b', 'c'\]"):
    mixture(parts, {'a': 1})
  for weight in (0, -1, float('nan')):
    with pytest.raises(BadInput, match='the weight of b is'):
      mixture(parts, {'a': 1, 'b': weight, 'c': 1})
  with pytest.raises(BadInput, match=r"differ in length, \{'a': 9, 'b': 5\}"):
    mixture({'a': parts['a'], 'b': Rows(folder(tmp_path / 'p', length=5))}, {'a': 1, 'b': 1})


# Real text


@pytest.mark.parametrize('length', [257, 1025])
def test_books(tmp_path, length):
  """Fill or speed lost on real books, where one document fills thousands of rows."""
  if 'LLMSTACK_DATA' not in os.environ:
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  files = os.path.join(os.environ['LLMSTACK_DATA'], 'books', 'classic_books-00000*.jsonl.zst')
  # Bytes stand for tokens: packing and reading do not care, and encoding would take the time.
  docs = [np.frombuffer(d.text.encode(), np.uint8).astype(np.int32) for d in documents(source(files))]
  total = sum(map(len, docs))
  start = time.process_time()
  rows = list(packing.pack(docs, length, 'best_fit'))
  assert total / (time.process_time() - start) > 1e6
  assert np.mean([np.count_nonzero(s) for _, s in rows]) / length > 0.97
  made = str(tmp_path / 'p')
  packing.write_rows(rows[:4096], made, vocab=256, seed=0, manifest_fields=FIELDS)
  one = mixture({'p': Rows(made)}, {'p': 1}, batch=64)
  one.batch(0)
  start = time.process_time()
  for step in range(50):
    one.batch(step)
  assert 50 * 64 * (length - 1) / (time.process_time() - start) > 1e6
