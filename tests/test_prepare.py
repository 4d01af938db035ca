"""Raw text to documents: every measure by hand, the S-curve by enumeration, the world by its labels."""

import errno
import itertools
import json
import os
import re
import signal

import numpy as np
import pyarrow
import pytest

from llmstack.data import pipeline, sources, world
from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput, SaveFailed
from llmstack.main import load
from llmstack.prepare import clean, decontaminate, mix, near, rules, spans, verify

# Daft leaves the pipes of its worker processes to the garbage collector.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')


def one(text, *bad_words):
  return {name: float(v[0]) for name, v in rules.measure(pyarrow.array([text]), bad_words).items()}


def test_measures_by_hand():
  """A share is of the wrong total, a title counts as a sentence, or punctuation hides a word."""
  m = one('# A list ...\n\n- one two\n- one two\n\nThe end of that.\n\nTHE END…', 'list')
  assert m['words'] == 16 and m['stop_words'] == 3 and m['bad_words'] == 1
  share = lambda a, b: pytest.approx(a / b)  # noqa: E731
  assert m['symbols'] == share(3, 16) and m['bullets'] == share(2, 5) and m['ellipses'] == share(2, 5)
  assert m['alphabetic'] == share(12, 16)  # '#', '...' and two '-'
  assert m['duplicate_lines'] == share(1, 5) and m['duplicate_line_characters'] == share(9, 12 + 9 + 9 + 16 + 8)
  assert m['duplicate_paragraphs'] == 0 and m['line_ends'] == share(3, 5) and m['short_lines'] == 1
  assert m['capitals'] == share(8, 35) and m['sentences'] == 2 and m['braces'] == 0
  assert set(m) == set(rules.MEASURES) and not any(one('').values())


def test_a_document_measures_the_same_in_any_company():
  """An n-gram, a line or a word is counted across the border of two documents of a batch."""
  r = np.random.RandomState(0)
  texts = ['', ' ', 'a', 'a a', 'a a a a', 'x{}', '\n\nb b b\n\n', 'Äpfel und Äpfel…']
  texts += [' '.join(r.choice(['so', 'it', 'goes\n', 'on.', 'and\n\n'], n)) for n in (3, 20, 200)]
  alone = [one(text) for text in texts]
  for order in (range(len(texts)), r.permutation(len(texts)), [4, 4, 4]):
    many = rules.measure(pyarrow.array([texts[i] for i in order]))
    for place, i in enumerate(order):
      assert alone[i] == {name: float(v[place]) for name, v in many.items()}, texts[i]


def plain_ngrams(words, n):
  """Returns (share of characters of the most frequent n-gram, share in those seen before), by their definition."""
  total = sum(map(len, words))
  grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
  seen, covered = set(), set()
  for i, gram in enumerate(grams):
    if gram in seen:
      covered.update(range(i, i + n))
    seen.add(gram)
  counts = {g: grams.count(g) for g in grams}
  most = max(counts.values(), default=0)
  top = max((sum(map(len, g)) * most for g, c in counts.items() if c == most), default=0) if most > 1 else 0
  return top / total, sum(len(words[i]) for i in covered) / total


def test_ngrams_are_their_definition():
  """Two n-grams share a key, an overlap counts twice, or the last n-gram is forgotten."""
  r = np.random.RandomState(0)
  for length in (1, 2, 9, 10, 11, 60, 200):
    for vocabulary in (1, 2, 4, 30):
      words = [f'w{"x" * (i % 3)}{i}' for i in r.randint(0, vocabulary, length)]
      m = one(' '.join(words))
      for n in rules.TOP:
        assert m[f'top_{n}gram'] == pytest.approx(plain_ngrams(words, n)[0]), (words, n)
      for n in rules.DUPLICATE:
        assert m[f'duplicate_{n}grams'] == pytest.approx(plain_ngrams(words, n)[1]), (words, n)


def lines(text, **settings):
  return clean.drop_lines(
    pyarrow.array(['as it was', text]), **{'line_words': 0, 'drop_policy': False} | settings
  ).to_pylist()


def test_lines_that_are_no_text_go():
  """A menu stays, a sentence that only mentions one goes with it, or a text that loses nothing is changed."""
  page = 'Home\nWe use cookies. OK\n\n\n\nThe tree is old.\nA list of things to buy\n'
  assert lines(page) == ['as it was', page]
  assert lines(page, line_words=3, drop_policy=True) == ['as it was', 'The tree is old.\nA list of things to buy']
  assert lines('Privacy policy\n', drop_policy=True) == ['as it was', '']
  known = np.sort(clean.line_keys(['Home', 'nothing like it']))
  assert lines(page, known=known)[1] == page.replace('Home\n', '').replace('\n\n\n\n', '\n\n').strip()


def test_keys_of_lines():
  """Two lines share a key because of their length, their place in the batch, or a slice of it."""
  texts = ['', 'a', 'b', 'ab', 'ba', 'a\0', 'ü' * 300, 'a', 'aa']
  keys = clean.line_keys(texts)
  assert keys[0] == 0 and keys[1] == keys[7] and len(set(keys.tolist())) == 8
  assert (clean.line_keys(pyarrow.array(texts)[3:]) == keys[3:]).all() and not clean.line_keys(['', '']).any()
  assert keys[1] == 10697319642511596270, 'keys are stored: they may never change'


def test_words_of_ascii_are_those_of_unicode():
  """The fast path for ASCII joins two words, keeps a space at an end, or lets one document's text into the next."""
  r = np.random.RandomState(0)
  texts = [
    '',
    ' ',
    '. .',
    'A',
    'a b',
    ' A-b_2 ',
    '\n\n',
    *(''.join(r.choice(list('aZ9_ .\n-'), n)) for n in r.randint(0, 9, 400)),
  ]
  for some in (texts, texts[::-1], [*texts, 'Ä b\u00a0C', ''], ['é'], [''], []):
    array = pyarrow.array(some, pyarrow.string())
    want = [' '.join(re.sub(r'[\W]+', ' ', text.lower()).split()) for text in some]
    assert clean.normalise(array).to_pylist() == want
    assert clean.normalise(array[1:]).to_pylist() == want[1:]


def test_repair():
  """Mojibake, a NUL or a carriage return reaches the tokenizer; or good typography, accents and code are "repaired"."""
  bad = ['It\u00e2\u20ac\u2122s caf\u00c3\u00a9.\nfine', 'a\0b\x07c\r\nd\re\fg', '\ufeffstart']
  good = ['It\u2019s \u201cfine\u201d \ufb01 \u2460 \u65e5\u672c', 'x\ty\n&amp; <b>', '']
  assert clean.repair(pyarrow.array(bad)).to_pylist() == ['It\u2019s caf\u00e9.\nfine', 'abc\nd\ne\ng', 'start']
  same = pyarrow.array(good)
  assert clean.repair(same).to_pylist() == good and not clean.changed(same, clean.repair(same)).any()


def test_personal_data_is_masked():
  """An address stays, or numbers, versions and private addresses are taken for it."""
  text = 'Mail a.b+c@mail.example.co.uk, call (415) 555-2671 or +49 30 1234 5678, from 8.8.8.8 or 192.168.0.1. '
  text += 'Key AKIAIOSFODNN7EXAMPLE, ghp_' + 'a' * 36 + '.'
  masked, counts = clean.mask(pyarrow.array([text, 'Version 1.2.3, 10-20-30, 3.14 and 555 2671 and x@y stay.']))
  assert masked[0].as_py() == ('Mail <EMAIL>, call <PHONE> or <PHONE>, from <IP> or 192.168.0.1. Key <KEY>, <KEY>.')
  assert masked[1].as_py() == 'Version 1.2.3, 10-20-30, 3.14 and 555 2671 and x@y stay.'
  assert counts == {'EMAIL': 1, 'IP': 1, 'PHONE': 2, 'KEY': 2}


def test_n_grams_of_evaluation_sets_are_found_where_they_are():
  """A leak is missed at the end of a text or over a line break, or found across two documents, or in a template."""
  r = np.random.RandomState(0)
  words = [f'w{i}' for i in range(400)]
  secret = [' '.join(r.choice(words, n)) for n in (13, 20, 40, 8, 7)]
  template = 'please choose the one best answer to the question that is put here below now'
  index = decontaminate.Index(secret + [f'{template} {i}' for i in range(20)], ['a'] * 5 + ['b'] * 20, 13)
  say = lambda s: s.upper().replace(' ', ',\n', 3)  # noqa: E731
  texts = [
    f'x y {say(secret[0])}',
    f'{secret[1]} z',
    secret[2][:30],
    secret[2][30:],
    secret[3],
    secret[4],
    template,
    '',
    'q',
  ]
  words_of = clean.normalise(pyarrow.array(texts))
  found = index.find(words_of)
  plain = set()
  for d, text in enumerate(words_of.to_pylist()):  # by the definition
    said = text.split()
    for e in secret:
      w = e.split()
      k = 13 if len(w) >= 13 else len(w)
      grams = {tuple(w[i : i + k]) for i in range(len(w) - k + 1)} if k >= 8 else set()
      plain |= {(d, i, k, 'a') for i in range(len(said)) if tuple(said[i : i + k]) in grams}
  assert set(found) == plain and {f[0] for f in found} >= {0, 1, 4} and not {f[0] for f in found} & {5, 6, 7, 8}
  text = 'First.\n\nSome of it\nhere.\n\nLast one.'
  assert decontaminate.cut(text, [(2, 2)]) == 'First.\n\nLast one.' and decontaminate.cut(text, [(0, 2)]) == 'Last one.'
  assert decontaminate.cut('all of it', [(0, 3)]) == ''


def test_the_curve_is_the_share_of_pairs_that_share_a_band():
  """bands and rows are swapped, or a key mixes rows of two bands."""
  assert near.curve(1, 3, 0.5) == 0.125 and near.curve(3, 1, 0.5) == 0.875
  r = np.random.RandomState(0)
  for bands, rows, j in itertools.product((4, 14), (2, 8), (0.5, 0.8)):
    a = r.randint(0, 2**32, (4000, bands * rows), dtype=np.uint32)
    b = np.where(r.rand(*a.shape) < j, a, a + np.uint32(1))
    met = (near.keys(a, bands, rows) == near.keys(b, bands, rows)).any(0).mean()
    assert met == pytest.approx(near.curve(bands, rows, j), abs=0.03)
  bands, rows = near.bands_for(0.8, 128)
  assert near.curve(bands, rows, 0.8) >= 0.99 > near.curve(128 // (rows + 1), rows + 1, 0.8)
  with pytest.raises(BadInput, match='raise dedup.hashes'):
    near.bands_for(0.1, 4)


def test_clusters_are_chains_and_keep_the_longest():
  """A cluster depends on the order of documents, or identical documents make a quadratic number of pairs."""
  pairs = near.candidates(np.array([7, 5, 7, 5, 7, 9], np.uint64))
  assert sorted(map(tuple, pairs.tolist())) == [(0, 2), (0, 4), (1, 3)]
  assert len(near.candidates(np.zeros(100_000, np.uint64))) == 99_999
  ids, sizes = np.array(['f', 'e', 'd', 'c', 'b', 'a']), np.array([1, 3, 2, 3, 2, 9])
  component = near.clusters(6, np.array([[0, 2], [2, 4], [1, 3]]))
  kept = set(ids[near.keepers(component, sizes, ids)])
  assert kept == {'b', 'c', 'a'}
  order = np.random.RandomState(0).permutation(6)
  back = np.argsort(order)
  again = near.clusters(6, back[np.array([[0, 2], [2, 4], [1, 3]])])
  assert set(ids[order][near.keepers(again, sizes[order], ids[order])]) == kept


def test_repetitions_are_cut_but_for_the_first():
  """Both occurrences go, a window reaches over two texts, or the words cut are not those that were found."""
  r = np.random.RandomState(0)
  n, quote = 5, 'To be, or not to be: that is THE question!'
  texts = [
    '',
    'a b',
    f'He said:\n\n{quote} And went.',
    quote,
    f'x {quote.lower()} y',
    *(' '.join(r.choice(list('abcd'), 30)) for _ in range(6)),
  ]
  for bounds in ([0, len(texts)], [0, 3, 4, len(texts)]):
    parts = [pyarrow.array(texts[a:b]) for a, b in itertools.pairwise(bounds)]
    found = [spans.keys(clean.normalise(p), n) for p in parts]
    seen, want = set(), []
    for text in texts:  # by the definition
      words = clean.normalise(pyarrow.array([text]))[0].as_py().split()
      gone = np.zeros(len(words), bool)
      for i in range(len(words) - n + 1):
        if tuple(words[i : i + n]) in seen:
          gone[i : i + n] = True
        seen.add(tuple(words[i : i + n]))
      want.append([w for w, g in zip(words, gone) if not g])
    later = spans.repeated([key for key, _ in found])
    left = [spans.without(p, first[at], n) for p, (_, first), at in zip(parts, found, later)]
    flat = [t for p in left for t in p.to_pylist()]
    assert [t.split() for t in clean.normalise(pyarrow.array(flat)).to_pylist()] == want
    assert flat[2] == texts[2] and flat[3] == '!' and flat[4] == 'x ! y'


def test_repeated_paragraphs_go_in_a_whole_run(tmp_path):
  """The keys of two processes differ, or repetitions are looked for in other text than they are cut from."""
  notice = 'this very same notice of eleven words stands on every page'
  pages = [
    f'Page {i} of {i * i} tells of {i + 7} things that {i * 31} others do not.\n\n{notice}\n\nEnd {i}.'
    for i in range(30)
  ]
  report = prepare(tmp_path / 'run', pages, clean__repeated=8, dedup__near=False, sources__world__holdout=0.0)
  kept = list(documents(tmp_path / 'run').values())
  assert len(kept) == 30 and sum(notice in text for text in kept) == 1 and len(report['edits']['repetitions']) > 1


def test_edit_similarity():
  """A pair is compared by characters, or by sets of words, which shuffled templates share."""
  texts = ['the cat sat on the mat', 'the cat sat on a mat', 'the mat sat on the cat', 'x', '']
  pairs = np.array([[0, 0], [0, 1], [0, 2], [0, 3], [3, 4], [4, 4]])
  assert near.edit_similarity(texts, pairs).tolist() == pytest.approx([1, 5 / 6, 4 / 6, 0, 0, 1])


@pytest.mark.parametrize(
  'text, share',
  [
    ('2 + 2 = 4', 1),
    ('2 + 2 = 5\n3 * 4 = 12', 0.5),
    ('7 - 9 = -2.', 1),
    ('no sum', 0),
    ('12 + 2 = 1', 0),
    ('1 + 2 + 3 = 6', 0),
  ],
)
def test_equations_are_checked(text, share):
  """A wrong sum is trained on, or the tail of a longer one is taken for a sum."""
  assert verify.equations(text) == share


def test_the_plan_of_a_mixture_by_hand():
  """An epoch's limit is passed in a later stage, what a source cannot give is lost, or a share is wrong."""
  sizes = {'a': 1000, 'b': 100, 'c': 10}
  sizes = {s: {'documents': 1, 'bytes': 4 * n, 'tokens': n} for s, n in sizes.items()}
  how = dict(tokens=2000, temperature=1.0, max_epochs=2.0, caps={'a': 1500})
  rows = mix.plan(sizes, [(0.5, {'a': 1, 'b': 1}), (0.5, {'a': 1, 'b': 1, 'c': 5})], **how)
  drawn = {(r['stage'], r['source']): (r['drawn_tokens'], round(r['epochs'], 3), r['capped']) for r in rows}
  assert drawn == {
    (0, 'a'): (909, 0.909, ''), (0, 'b'): (91, 0.909, ''),
    (1, 'a'): (591, 1.5, 'cap'), (1, 'b'): (109, 2.0, 'epochs'), (1, 'c'): (20, 2.0, 'epochs'),
  }  # fmt: skip
  flat = mix.plan(sizes, [(1.0, dict.fromkeys(sizes, 1))], **how | {'temperature': 2.0, 'tokens': 100, 'caps': {}})
  assert [r['share'] for r in flat if r['source'] == 'a'] == [pytest.approx(1000**0.5 / (1000**0.5 + 10 + 10**0.5))]
  assert sum(r['drawn_tokens'] for r in flat) == 100 and 'epochs' not in mix.table(flat).split('\n')[1]


@pytest.mark.parametrize(
  'stages, how, words',
  [
    ([(1.0, {'a': 0.0})], {}, 'weights of stage 0 are .*one of them above 0'),
    ([(1.0, {'a': -1.0})], {}, 'use numbers from 0'),
    ([(0.5, {'a': 1.0})], {}, 'shares that sum to 1'),
    ([(1.0, {'z': 1.0})], {}, 'mix names z, and the sources are a'),
    ([(1.0, {'a': 1.0})], {'temperature': 0.0}, 'must be above 0'),
    ([(1.0, {'a': 1.0})], {'caps': {'a': 0}}, 'at least one token'),
  ],
)
def test_mixtures_that_make_no_sense(stages, how, words):
  """Weights that sum to nothing divide by zero after hours of work."""
  with pytest.raises(BadInput, match=words):
    sizes = {'a': {'documents': 1, 'bytes': 1, 'tokens': 1}}
    mix.plan(sizes, stages, **dict(tokens=1, temperature=1.0, max_epochs=1.0, caps={}) | how)


def documents(workdir):
  """Returns {id: text} of what is kept."""
  out = {}
  for path in sorted((workdir / 'documents').glob('*.jsonl.zst')):
    out |= {d['id']: d['text'] for _, d in sources.objects(sources.Source((str(path),)))}
  return out


def prepare(workdir, texts=None, **changes):
  """Runs configs/prepare.py:world, on one source of these texts; returns report.json. changes: {'a__b': value}."""
  from llmstack.tasks.prepare import run

  config = load('configs/prepare.py:world').unlock()
  config.filter.classifiers.spam = ''
  config.filter.rules = {'words': (2, float('inf'))}
  config.shards.length, config.tokenizer.vocab, config.workers = 32, 300, 2
  if texts is not None:
    path = workdir.parent / f'{workdir.name}.jsonl'
    path.write_text(''.join(json.dumps({'id': f'd{i}', 'text': t}) + '\n' for i, t in enumerate(texts)))
    config.sources.world.files = (str(path),)
  for key, value in changes.items():
    config.update_from_flattened_dict({key.replace('__', '.'): value})
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('llmstack.prepare.stages.PART', 50_000)  # each file is a part
    run(config, str(workdir))
  return json.loads((workdir / 'report.json').read_text())


@pytest.fixture(scope='module')
def world_text(tmp_path_factory):
  """Returns (folder, {id: label}) of a world of 3,000 documents, in three files."""
  folder = tmp_path_factory.mktemp('world') / 'text'
  world.generate(str(folder), seed=1, documents=3000, noise=0.2)
  lines = (folder / 'documents.jsonl').read_text().splitlines(keepends=True)
  for i in range(3):
    (folder / f'raw-{i}.jsonl').write_text(''.join(lines[i::3]))
  labels = sources.objects(sources.Source((str(folder / 'labels.jsonl'),), field='kind'))
  return folder, {r['id']: r for _, r in labels}


@pytest.fixture(scope='module')
def prepared(world_text, tmp_path_factory):
  """Returns (workdir, report, settings) of that world."""
  workdir = tmp_path_factory.mktemp('run') / 'run'
  rules_ = {'words': (8, float('inf')), 'bad_words': (float('-inf'), 0)}
  settings = dict(
    sources__world__files=(str(world_text[0] / 'raw-*.jsonl'),), filter__rules=rules_, tokenizer__vocab=400
  )
  return workdir, prepare(workdir, **settings), settings


def test_the_world_is_cleaned_by_its_labels(world_text, prepared):
  """A rule removes lists or questions, boilerplate stays, both copies of a text go, or an edited copy passes."""
  labels = world_text[1]
  kept = {i.rsplit(':', 1)[1]: text for i, text in documents(prepared[0]).items()}
  assert not any(labels[i]['kind'] == 'toxic' for i in kept)
  assert not any('rivacy policy' in text or 'newsletter' in text for text in kept.values())
  family = {i: r['duplicate_of'] or i for i, r in labels.items()}
  good = {i for i, r in labels.items() if r['kind'] not in ('toxic', 'boilerplate', 'spam')}
  stays = {f: sum(family[i] == f for i in kept if i in good) for f in {family[i] for i in good}}
  copies = sum(r['duplicate_of'] is not None for r in labels.values())
  extra = sum(n - 1 for n in stays.values() if n > 1)
  lost = sum(n == 0 for n in stays.values())
  assert 1 - extra / copies >= 0.95, 'recall of duplicates'
  assert copies / (copies + lost) >= 0.95, 'precision'


def test_what_is_left_is_the_same_however_the_work_is_divided(world_text, prepared, tmp_path):
  """Which copy is kept, or a part's number, depends on how many processes there are or which one is done first."""
  for workers in (1, 4):
    prepare(tmp_path / f'{workers}', workers=workers, **prepared[2])
    assert documents(tmp_path / f'{workers}') == documents(prepared[0])


def test_rows_are_what_pretraining_reads(prepared):
  """The manifest does not hold for the rows, held-out text is trained on, or documents and rows differ."""
  workdir, report, _ = prepared
  tokenizer, said = Tokenizer(str(workdir / 'tokenizer.model')), {}
  for split in ('train', 'eval'):
    rows = pipeline.Rows(str(workdir / 'shards/world' / split))
    tokens, segments = rows.read(range(len(rows))).values()
    said[split] = ' '.join(tokenizer.decode(t[s == k]) for t, s in zip(tokens, segments) for k in range(1, s.max() + 1))
    assert int((segments > 0).sum()) == rows.manifest['tokens'] and rows.manifest['split'] == split
  train = report['shards']['world']
  assert train['documents'] + rows.manifest['documents'] == len(documents(workdir))
  assert train['files'] > 2, 'several parts'
  held = [t for p in sorted(workdir.glob('documents/*.eval.*')) for t in sources.documents(sources.Source((str(p),)))]
  assert held and all(d.text[:40] in said['eval'] and d.text not in said['train'] for d in held)


def test_the_funnel_adds_up(world_text, prepared):
  """Documents vanish between two stages, or are counted under two rules."""
  workdir, report, _ = prepared
  funnel = report['sources']['world']['funnel']
  assert funnel[0][1] == len(world_text[1]) and funnel[-1][1] == len(documents(workdir))
  for column in (1, 2):
    assert sum(row[column] for row in funnel[1:-1]) == funnel[-1][column]
  assert funnel[-1][2] == sum(len(t.encode()) for t in documents(workdir).values())
  sizes = report['clusters']['sizes']
  gone = {row[0]: -row[1] for row in funnel}
  assert sum((size - 1) * n for size, n in sizes) == gone['- exact duplicate'] + gone['- near duplicate']


def test_a_second_run_does_nothing_and_goes_on_behind_what_is_whole(prepared, capsys):
  """A stage is made again, a part that is missing is not, or a part that was being written is taken for whole."""
  workdir, _, settings = prepared

  def stamp():
    made = [p for p in workdir.rglob('*') if p.suffix in ('.parquet', '.zst', '.arrayrecord')]
    return {p: p.stat().st_mtime_ns for p in made}

  before, rows = stamp(), pipeline.Rows(str(workdir / 'shards/world/train')).manifest
  prepare(workdir, **settings)
  assert stamp() == before
  victim = sorted((workdir / 'shards').glob('*.json'))[1]
  assert victim.name != 'stage.json'
  part = victim.stem
  victim.unlink()  # what a kill leaves: rows that may be half there
  (workdir / f'shards/world/train/rows-{part}.arrayrecord').write_bytes(b'half')
  (workdir / 'shards/world/train/manifest.json').unlink()
  prepare(workdir, **settings)
  changed = {p.name for p, t in stamp().items() if t != before[p]}
  assert {name.removeprefix('rows-').split('.')[0] for name in changed} == {part}
  assert pipeline.Rows(str(workdir / 'shards/world/train')).manifest == rows


def test_other_settings_are_refused_with_the_difference(prepared):
  """Rows of one threshold are trained on under another."""
  workdir, _, settings = prepared
  for key, value, words in [
    ('dedup__edit', 0.7, r'(?s)verdicts was made with other settings:.*edit: 0.78 -> 0.7'),
    ('clean__mask', False, r'measured was made with .*\n  clean.mask: True -> False'),
    ('shards__length', 64, r'shards was made with .*\n  length: 33 -> 65'),
  ]:
    with pytest.raises(BadInput, match=words):
      prepare(workdir, **settings, **{key: value})


def test_many_copies_of_one_document(tmp_path):
  """A cluster of n documents costs n x n pairs."""
  texts = ['all the same words, again and again and again'] * 20_000 + ['quite another text, which stays as it is']
  report = prepare(tmp_path / 'run', texts, sources__world__holdout=0.0)
  assert len(documents(tmp_path / 'run')) == 2 and report['clusters']['sizes'] == [[20_000, 1]]


def test_evaluation_text_is_cut_and_named(tmp_path):
  """A benchmark's question is trained on, or a whole page is lost because of it."""
  secret = 'how many apples does tom have when ann gives him three of her seven apples today'
  (tmp_path / 'eval.jsonl').write_text(json.dumps({'question': secret.capitalize() + '?', 'answer': '3'}) + '\n')
  page = 'A page about fruit, and nothing else.\n\n' * 9
  texts = [page + f'Quiz: {secret.upper()}?\n\nThe end of it.', secret, 'another text, of no importance']
  how = dict(decontaminate__files=(str(tmp_path / 'eval.jsonl'),), sources__world__holdout=0.0)
  report = prepare(tmp_path / 'run', texts, **how, filter__rules={'leaked': (0, 0.5)})
  kept = documents(tmp_path / 'run')
  assert len(kept) == 2 and not any('APPLES' in text for text in kept.values())
  assert next(iter(kept.values())).endswith('The end of it.') and report['leaked'] == {'eval.jsonl': 2}
  assert {leak['ngram'] for leak in report['leaks']} == {' '.join(secret.split()[:13])}


@pytest.mark.parametrize(
  'changes, words',
  [
    (dict(filter__rules={'wordz': (1, 2)}), 'use low <= high and one of words'),
    (dict(filter__rules={'words': (3, 2)}), 'low <= high'),
    (dict(filter__rules={'quality': (0, 1)}), 'needs filter.classifiers.quality'),
    (dict(filter__classifiers__spam='no.npz'), 'no.npz does not exist: train it with configs/classify.py'),
    (dict(runner='spark'), 'choose one of native, ray'),
    (dict(dedup__hashes=4, dedup__threshold=0.1), 'raise dedup.hashes'),
    (dict(sources__world__files=('nowhere-*.jsonl',)), 'matches no file'),
    (dict(sources__world__text='body'), r"none of its 1 records has all of the fields \['body', 'id'\]"),
    (dict(shards__kind='rows'), 'choose tokens or text'),
    (dict(filter__rules={'words': (99, 100)}), 'leave nothing of any source'),
    (dict(workers=0), 'workers = 0 must be at least 1'),
  ],
)
def test_bad_settings(tmp_path, changes, words):
  """A misspelled rule is a filter that does nothing; a bad path is a traceback from another process."""
  with pytest.raises(BadInput, match=words):
    prepare(tmp_path / 'run', ['a text of some words'], **changes)


def test_an_empty_source_is_told(tmp_path):
  """A preparation of nothing ends as a success."""
  with pytest.raises(BadInput, match='source world has no document: .*no text'):
    prepare(tmp_path / 'run', ['', '  '])


def fill(item, settings):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_full_disk_is_told(tmp_path, monkeypatch):
  """A traceback from another process, or a part that is half there and taken for whole."""
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')]))
  monkeypatch.setattr('llmstack.prepare.stages.measure', fill)
  with pytest.raises(SaveFailed, match='make room and run the same command'):
    prepare(tmp_path / 'run', ['a text of some words'])
  monkeypatch.undo()
  assert prepare(tmp_path / 'run', ['a text of some words'], sources__world__holdout=0.0)['shards']


def test_documents_as_shards(tmp_path):
  """Text that is to be read at random is not what was kept."""
  prepare(tmp_path / 'run', ['one text of five words', 'and another one of six words'], shards__kind='text')
  (path,) = (tmp_path / 'run').glob('shards/world/train/rows-*.arrayrecord')
  assert [d.text for d in sources.documents(sources.Source((str(path),)))] == [*documents(tmp_path / 'run').values()]


def die_once(item, settings):
  mark = os.path.join(settings['folder'], f'{item}')
  if item in settings['die'] and not os.path.exists(mark):
    open(mark, 'w').close()
    os.kill(os.getpid(), signal.SIGKILL)
  return item * 2


def test_a_worker_that_dies_is_replaced(tmp_path, capsys, monkeypatch):
  """One killed process ends hours of work, or its part is left out."""
  monkeypatch.setenv('PYTHONPATH', os.pathsep.join([os.path.dirname(__file__), os.environ.get('PYTHONPATH', '')]))
  from llmstack.prepare import engine

  settings = {'folder': str(tmp_path), 'die': [2, 5]}
  assert sorted(engine.run(die_once, list(range(8)), settings, workers=2)) == [(i, 2 * i) for i in range(8)]
  assert 'a process died' in capsys.readouterr().err
