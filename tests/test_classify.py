"""prepare/classify: features by their definition, the optimum by its conditions, the report by hand."""

import collections
import hashlib
import json
import math
import os
import re
import time

import numpy as np
import pytest

pytest.importorskip('pyarrow', reason='pyarrow is in the extra `data`')
pytest.importorskip('scipy', reason='scipy is in the extra `data`')
from llmstack.data import world  # noqa: E402
from llmstack.errors import BadInput  # noqa: E402
from llmstack.main import load  # noqa: E402
from llmstack.prepare import classify  # noqa: E402

HOW = dict(buckets=1 << 12, ngrams=2, l2=1e-4, balance=False)
TEXTS = [
  'The cat, the CAT and the dog!', '', ' ...\n', 'snake_case x2 naïve Ünï—dash…end “quoted” नमस्ते', 'one', 'a b',
  '你好 世界',
]  # fmt: skip


def plain(text, buckets, ngrams):
  """Returns {bucket: value} by the definition, in Python's own integers."""
  big, found = 2**64, collections.Counter()
  words = re.findall(r'[^\W]+', text.lower().replace('नमस्ते', 'namaste'))
  words = ['नमस्ते' if w == 'namaste' else w for w in words]  # whose marks Python's \w leaves out
  hashes = [int.from_bytes(hashlib.blake2b(w.encode(), digest_size=8).digest(), 'little') for w in words]
  for n in range(1, ngrams + 1):
    for i in range(len(hashes) - n + 1):
      gram = hashes[i]
      for other in hashes[i + 1 : i + n]:
        gram = ((gram * 0x9E3779B97F4A7C15) % big) ^ (gram >> 32)
        gram = ((gram ^ other) * 0xBF58476D1CE4E5B9) % big
        gram ^= gram >> 29
      found[gram % buckets] += 1
  norm = math.sqrt(sum(math.log1p(c) ** 2 for c in found.values()))
  return {b: math.log1p(c) / norm for b, c in found.items()}


@pytest.mark.parametrize('buckets, ngrams', [(7, 1), (1 << 12, 2), (1 << 12, 3), (1 << 31, 2)])
def test_features_are_their_definition(buckets, ngrams):
  """A pair of words straddles two documents, a capital or a dash makes another word, or a key overflows."""
  document, bucket, value = classify.features(TEXTS, buckets, ngrams)
  assert (document.dtype, bucket.dtype, value.dtype) == (np.int64, np.int64, np.float32)
  for i, text in enumerate(TEXTS):
    wanted = plain(text, buckets, ngrams)
    assert dict(zip(bucket[document == i].tolist(), value[document == i])) == pytest.approx(wanted, abs=1e-6)
  assert (np.diff(document * float(buckets) + bucket) > 0).all()


def test_features_are_for_ever():
  """Another hash after an upgrade, or in another process: a saved classifier would score noise."""
  assert classify.features(['Hello, world'], 1 << 16)[1].tolist() == [12632, 46759, 47024]
  for empty in ([], [''], ['', '']):
    assert [len(x) for x in classify.features(empty, 16)] == [0, 0, 0]


def test_only_the_beginning_counts():
  """One book costs as much as all other documents together."""
  text = 'word ' * (classify.CHARACTERS // 5)
  (_, a, _), (_, b, _) = (classify.features([t], 1 << 16) for t in (text, text + 'and more of it'))
  assert a.tolist() == b.tolist()


def noisy(n, share, seed=0):
  """Returns (texts, labels): words of either class are likelier in it."""
  r = np.random.default_rng(seed)
  labels = (np.arange(n) < share * n).astype(int)
  texts = [
    ' '.join(f'w{i}' for i in r.integers(0, 60, 40) if r.random() < (0.6 if i % 2 == y else 0.4)) for y in labels
  ]
  return texts, labels.tolist()


@pytest.mark.parametrize('balance', [False, True])
def test_training_ends_at_the_optimum(balance):
  """The bias is penalised, the classes weigh the wrong way round, or the search stops early."""
  texts, labels = noisy(300, 0.2)
  made = classify.train(texts, labels, **HOW | {'balance': balance})
  p, y = classify.score(made, texts).astype(float), np.array(labels, float)
  weight = np.where(y == 1, 0.5 / 0.2, 0.5 / 0.8) / 300 if balance else np.full(300, 1 / 300)
  assert abs(weight @ (p - y)) < 1e-4  # the bias' slope
  document, bucket, value = classify.features(texts, HOW['buckets'])
  slope = np.bincount(bucket, value * (weight * (p - y))[document], HOW['buckets']) + HOW['l2'] * made.weights
  assert np.abs(slope).max() < 1e-5
  assert p[y == 1].mean() > p[y == 0].mean() + 0.2
  again = classify.train(texts, labels, **HOW | {'balance': balance})
  assert (again.weights == made.weights).all() and vars(again)['trained'] == made.trained
  assert made.trained['documents'] == 300 and made.trained['positive'] == 60


def test_scores_do_not_depend_on_the_batch(monkeypatch):
  """A border of a batch shifts the scores by one text; a text without words scores NaN."""
  texts, labels = noisy(50, 0.5)
  made = classify.train(texts, labels, **HOW)
  texts.insert(20, '')
  whole = classify.score(made, texts)
  monkeypatch.setattr(classify, 'BATCH', 7)
  np.testing.assert_array_equal(classify.score(made, texts), whole)
  assert whole.dtype == np.float32 and whole[20] == pytest.approx(1 / (1 + math.exp(-made.bias)))
  again = classify.train(*noisy(50, 0.5), **HOW)
  assert (again.weights == made.weights).all()


def test_a_saved_classifier_is_the_same(tmp_path):
  """Classes or threshold are lost on disk; a foreign file is unpickled, or fails with a stack trace."""
  texts, labels = noisy(50, 0.5)
  made = classify.train(texts, labels, **HOW, classes=('bad', 'good'), threshold=0.7)
  path = str(tmp_path / 'c.npz')
  made.save(path)
  back = classify.load(path)
  assert {k: v for k, v in vars(back).items() if k != 'weights'} == {
    k: v for k, v in vars(made).items() if k != 'weights'
  }
  assert (back.weights == made.weights).all() and os.listdir(tmp_path) == ['c.npz']
  for content in (dict(a=np.zeros(3)), dict(weights=np.zeros(2), meta=np.array([{}], object))):
    np.savez(str(tmp_path / 'other.npz'), **content)
    with pytest.raises(BadInput, match='other.npz is not a classifier'):
      classify.load(str(tmp_path / 'other.npz'))
  (tmp_path / 'text.npz').write_text('no archive')
  for name in ('text.npz', 'none.npz'):
    with pytest.raises(BadInput, match=f'{name} is not a classifier'):
      classify.load(str(tmp_path / name))
  meta = np.frombuffer(json.dumps({'format': 99}).encode(), np.uint8)
  np.savez(path, weights=made.weights, meta=meta)
  with pytest.raises(BadInput, match='another format than 1: train it again'):
    classify.load(path)


def test_the_report_by_hand():
  """A score of 1 falls out of the bins, ties at a threshold pass singly, or precision is recall."""
  y = np.array([1, 1, 0, 1, 0, 0], bool)
  m = classify.measure(y, np.array([1.0, 0.8, 0.8, 0.6, 0.6, 0.1]), precision=0.6)
  assert m['bins'] == [
    pytest.approx(b)
    for b in ([0.1, 0.2, 1, 0.1, 0], [0.6, 0.7, 2, 0.6, 0.5], [0.8, 0.9, 2, 0.8, 0.5], [0.9, 1.0, 1, 1, 1])
  ]
  assert m['calibration_error'] == pytest.approx((0.1 + 0.2 + 0.6 + 0) / 6)
  assert m['brier'] == pytest.approx((0 + 0.04 + 0.64 + 0.16 + 0.36 + 0.01) / 6)
  assert m['auc'] == (3 + 2.5 + 1.5) / 9
  assert m['cuts'][0] == [0.1, 0.5, 1.0, 6] and m['cuts'][6] == [0.7, pytest.approx(2 / 3), pytest.approx(2 / 3), 3]
  assert (m['threshold'], m['recall']) == (0.6, 1.0)
  m = classify.measure(y, np.array([0.1, 0.1, 0.1, 0.1, 0.1, 0.9]), precision=0.9)
  assert (m['threshold'], m['recall']) == (None, 0.0) and json.dumps(m)


def test_auc_is_the_share_of_ordered_pairs():
  """Ranks start at 0, or ties count whole."""
  r = np.random.default_rng(0)
  for _ in range(20):
    y, p = r.random(30) < 0.4, r.integers(0, 8, 30) / 8
    pairs = [(a > b) + (a == b) / 2 for a in p[y] for b in p[~y]]
    assert classify.auc(y, p) == pytest.approx(np.mean(pairs))


def test_scores_are_out_of_fold():
  """Texts score what they were trained on: noise, and even copies of noise, get an AUC of 1."""
  r = np.random.default_rng(0)
  texts = [' '.join(f'w{i}' for i in r.integers(0, 5000, 30)) for _ in range(300)]
  labels = r.integers(0, 2, 300).tolist()
  for t, y in ((texts, labels), (texts * 3, labels * 3)):
    found = classify.report(t, y, 5, **HOW, precision=0.9)
    assert abs(found['auc'] - 0.5) < 0.1, found['auc']
  assert classify.report(*noisy(300, 0.3), 5, **HOW, precision=0.9)['auc'] > 0.8
  order = r.permutation(300)
  fold = classify.fold_of(texts, labels, 5)
  again = classify.fold_of([texts[i] for i in order], [labels[i] for i in order], 5)
  assert (again == fold[order]).all() and min(collections.Counter(zip(fold, labels)).values()) >= 25


def test_bad_labels():
  """One class trains a constant; label -1 counts as 1; a fold without a class has no optimum."""
  report = lambda labels, folds: classify.report(['a'] * len(labels), labels, folds, **HOW, precision=0.9)  # noqa: E731
  for labels, folds, words in [
    ([1, 1, 1], 2, '3 documents are labelled 1 and 0 are labelled 0'), ([], 2, '0 documents are labelled 1'),
    ([0, 1, -1], 2, 'the label of document 2 is -1: use 0 and 1'), ([0, 1, None], 2, 'document 2 is None'),
    ([0, 0, 0, 1], 2, '2 folds of 1 documents labelled 1 and 3'), ([0, 1, 0, 1], 1, 'folds = 1: use at least 2'),
  ]:  # fmt: skip
    with pytest.raises(BadInput, match=words):
      report(labels, folds)
  with pytest.raises(BadInput, match='0 are labelled 0'):
    classify.train(['a', 'b'], [1, 1], **HOW)
  with pytest.raises(BadInput, match='buckets = 1 and ngrams = 2'):
    classify.features(['a'], 1)


def test_scoring_is_fast():
  """A Python loop over words: a hundred times slower than reading the text."""
  texts, labels = noisy(20, 0.5)
  made = classify.train(texts, labels, **HOW | {'buckets': 1 << 16})
  r = np.random.default_rng(0)
  documents = [' '.join(f'word{i}' for i in (r.pareto(1, 500) * 10).astype(int)) for _ in range(512)]
  start = time.process_time()
  classify.score(made, documents)
  assert sum(map(len, documents)) / (time.process_time() - start) > 3e6  # measured 15e6 and more


# The task


def settings(name, folder, **changes):
  config = load(f'configs/classify.py:{name}')
  config.files = (str(folder / 'documents.jsonl'),)
  config.labels = (str(folder / 'labels.jsonl'),)
  config.update(changes)
  return config


def test_the_task_finds_toxic_text_of_the_world(tmp_path, capsys, monkeypatch):
  """Labels are read in another order than texts; the saved threshold is not the report's."""
  from llmstack.tasks.classify import labelled, run

  world.generate(str(tmp_path), seed=1, documents=3000, noise=0.2)
  config = settings('toxic', tmp_path)
  run(config, str(tmp_path / 'run'))
  with open(tmp_path / 'run/calibration.json') as f:
    found = json.load(f)
  assert found['auc'] > 0.97 and found['positive'] == 90 and found['recall'] > 0.8
  assert f'from a score of {found["threshold"]:.3f}, precision 0.9' in capsys.readouterr().out
  made = classify.load(str(tmp_path / 'run/classifier.npz'))
  assert made.threshold == found['threshold'] and made.classes == ('other', 'toxic')
  texts, labels = labelled(config)
  assert classify.auc(np.array(labels, bool), classify.score(made, texts)) > 0.99

  from llmstack import metrics

  monkeypatch.setattr(metrics.importlib.util, 'find_spec', lambda name: None)
  assert 'no figure' in metrics.plot_calibration(found['bins'], str(tmp_path / 'none.png'), title='')
  assert not (tmp_path / 'none.png').exists()


def test_bad_labelled_files(tmp_path):
  """A label is another document's, a missing one counts as 0, or a figure is written for nothing."""
  from llmstack.tasks.classify import labelled, run

  def files(documents, labels):
    for name, rows in (('documents', documents), ('labels', labels)):
      (tmp_path / f'{name}.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return settings('quality', tmp_path, labels=() if not labels else (str(tmp_path / 'labels.jsonl'),))

  texts = [{'id': i, 'text': f'text {i}', 'label': i % 2} for i in range(12)]
  assert labelled(files(texts, []))[1] == [0, 1] * 6
  words = [{'id': t['id'], 'label': 'yes'} for t in texts]
  config = files(texts, words)
  with pytest.raises(BadInput, match="labels.jsonl:1: label is 'yes': use 0 and 1, or set positive"):
    labelled(config)
  config.positive = 'yes'
  assert labelled(config)[1] == [1] * 12
  with pytest.raises(BadInput, match='12 documents are labelled 1 and 0 are labelled 0'):
    run(config, str(tmp_path / 'run'))
  with pytest.raises(BadInput, match='files has 12 documents and labels has 11 lines'):
    labelled(files(texts, words[1:]))
  with pytest.raises(BadInput, match=r'labels.jsonl:1 has id 11 and .*documents.jsonl:1 0'):
    labelled(files(texts, words[::-1]))
  with pytest.raises(BadInput, match=r"documents.jsonl:3 has no field 'label', only \['text'\]"):
    labelled(files([*texts[:2], {'text': 'x'}], []))
  config = files(texts, [])
  config.train.l2 = 0.0
  with pytest.raises(BadInput, match='train.l2 = 0.0'):
    run(config, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


# Real text


def real(name):
  from llmstack.data import sources

  if 'LLMSTACK_DATA' not in os.environ:
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  source = sources.Source((os.path.join(os.environ['LLMSTACK_DATA'], 'filters', name),))
  return [row for _, row in sources.objects(source)]


def test_quality_of_real_pages():
  """A change of the features loses what they know about real pages, or the scores are no probabilities."""
  rows = real('dclm_human_quality_a.jsonl.gz')
  texts, labels = [r['text'] for r in rows], [r['label'] for r in rows]
  found = classify.report(texts, labels, 5, buckets=1 << 16, ngrams=2, l2=1e-4, balance=False, precision=0.9)
  length = classify.auc(np.array(labels, bool), np.array([len(t) for t in texts]))
  print(f'AUC {found["auc"]:.3f}, by length alone {length:.3f}, calibration error {found["calibration_error"]:.3f}')
  assert found['auc'] > max(0.83, length + 0.04) and found['calibration_error'] < 0.08


def test_languages():
  """Text of no known language comes out at distance 0, the surest of all."""
  pytest.importorskip('resiliparse', reason='resiliparse is in the extra `data`')
  rows = real('language_id_a.jsonl.gz')
  for name, code in (('English', 'en'), ('French', 'fr'), ('Russian', 'ru'), ('Thai', 'th')):
    codes, distances = classify.language([' '.join(r['text'] for r in rows if r['language'] == name)])
    assert codes == [code] and 0 < distances[0] < 600
  codes, distances = classify.language(['8 9', *(r['text'] for r in rows[:500])])
  assert 'unknown' in codes and all(d > classify.UNKNOWN for c, d in zip(codes, distances) if c == 'unknown')
