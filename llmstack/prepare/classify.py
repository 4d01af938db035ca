"""Linear classifiers of text: hashed words, logistic regression, calibration out of fold. Strings in, arrays out.

Words are runs of letters, marks, digits and underscores, in lower case. A document is the vector of log(1 + count) of
its words and word pairs in hashed buckets, divided by its L2 norm.

Source: features as in Joulin et al. 2017, Bag of Tricks for Efficient Text Classification, without its embedding layer;
their use on web text, DCLM, Li et al. 2024, section 4.4. Deviation: the loss is convex and minimised, so that the same
texts give the same classifier.
"""

import dataclasses
import functools
import hashlib
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llmstack.errors import BadInput

FORMAT = 1  # of saved classifiers; bump it when a text gets other features
CHARACTERS = 20_000  # of each text are read
BATCH = 512  # texts scored together
UNKNOWN = 1200  # distance above which resiliparse names no language


# What is in no word becomes a space: ASCII by this table, the rest by RE2, which is slow where it finds much.
ASCII = bytes(c if c > 127 or chr(c).isalnum() or c == ord('_') else ord(' ') for c in range(256))


@functools.lru_cache(1 << 18)
def _hash(word):
  """Returns int of 64 bits, the same in every process."""
  return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), 'little')


def _mix(a, b):
  """Returns uint64[n]: a hash of pairs that tells (a, b) from (b, a)."""
  x = (a * np.uint64(0x9E3779B97F4A7C15)) ^ (a >> np.uint64(32))
  x = (x ^ b) * np.uint64(0xBF58476D1CE4E5B9)
  return x ^ (x >> np.uint64(29))


def words(texts):
  """Returns (document int64[W], code int[W], distinct list[str]): the words of the texts in order, coded."""
  column = pc.utf8_lower(pa.array([text[:CHARACTERS] for text in texts], pa.large_string()))
  _, offsets, data = column.buffers()
  data = pa.py_buffer(data.to_pybytes().translate(ASCII) if data else b'')
  column = pa.Array.from_buffers(pa.large_string(), len(texts), [None, offsets, data])
  split = pc.split_pattern(pc.replace_substring_regex(column, r'[^\pL\pM\pN_ ]+', ' '), ' ')
  coded = split.flatten().dictionary_encode()
  document = np.repeat(np.arange(len(texts)), np.diff(split.offsets.to_numpy()))
  distinct, code = coded.dictionary.to_pylist(), coded.indices.to_numpy()
  real = np.array([word != '' for word in distinct], bool)[code]  # '' is between two spaces
  return document[real], code[real], distinct


def features(texts, buckets, ngrams=2):
  """Returns (document int64[M], bucket int64[M], value float32[M]), sorted, one entry for each bucket of a document.

  texts: list of str; only the first CHARACTERS of each count.
  ngrams: longest run of words that is a feature.
  """
  if buckets < 2 or ngrams < 1:
    raise BadInput(f'buckets = {buckets} and ngrams = {ngrams}: use at least 2 and 1')
  document, code, distinct = words(texts)
  word = np.fromiter(map(_hash, distinct), np.uint64, len(distinct))[code]
  small = np.int32 if len(texts) * buckets < 2**31 else np.int64  # sorts faster
  gram, keys = word, []
  for n in range(1, ngrams + 1):
    if n > 1:
      gram = _mix(gram[:-1], word[n - 1 :])
    first, last = document[: len(gram)], document[n - 1 :]
    keys.append((first * buckets + (gram % np.uint64(buckets)).astype(np.int64))[first == last].astype(small))
  key = np.sort(np.concatenate(keys))
  fresh = np.flatnonzero(np.diff(key, prepend=small(-1)))
  document, bucket = np.divmod(key[fresh].astype(np.int64), buckets)
  value = np.log1p(np.diff(np.append(fresh, len(key))))
  norm = np.sqrt(np.bincount(document, value * value, len(texts)))
  return document, bucket, (value / norm[document]).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Classifier:
  """weights float32[buckets], bias float, and what they mean.

  classes: names of label 0 and label 1; threshold: score from which a text counts as classes[1]; trained: dict of
  documents, positive and sha256 of the labelled texts.
  """

  weights: np.ndarray
  bias: float
  ngrams: int
  classes: tuple[str, str]
  threshold: float
  trained: dict

  def save(self, path):
    """Writes the classifier, whole or not at all."""
    meta = {k: v for k, v in vars(self).items() if k != 'weights'} | {'format': FORMAT}
    with open(f'{path}.tmp', 'wb') as f:
      np.savez_compressed(f, weights=self.weights, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8))
    os.replace(f'{path}.tmp', path)


def load(path):
  """Returns the Classifier that `save` wrote. Raises: BadInput where the file is none, or of another format."""
  try:
    with np.load(path, allow_pickle=False) as file:
      weights, meta = file['weights'], json.loads(file['meta'].tobytes())
  except (OSError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
    raise BadInput(f'{path} is not a classifier ({error}): give the classifier.npz of configs/classify.py') from None
  if meta.pop('format', None) != FORMAT:
    raise BadInput(f'{path} is a classifier of another format than {FORMAT}: train it again')
  return Classifier(weights=weights, **meta | {'classes': tuple(meta['classes'])})


def check(labels, folds):
  """Returns nothing; raises BadInput unless labels are 0 and 1 and each class has a document for every fold."""
  for at, label in enumerate(labels):
    if label not in (0, 1):
      raise BadInput(f'the label of document {at} is {label!r}: use 0 and 1')
  positive = sum(labels)
  negative = len(labels) - positive
  if not positive or not negative:
    raise BadInput(f'{positive} documents are labelled 1 and {negative} are labelled 0: give some of each')
  if not 1 <= folds <= min(positive, negative):
    raise BadInput(
      f'{folds} folds of {positive} documents labelled 1 and {negative} labelled 0: use at most as many as the '
      'rarer class has documents'
    )


def sigmoid(x):
  return 0.5 * (1 + np.tanh(0.5 * x))


def _minimise(loss, w, *, memory=10, steps=1000, tolerance=1e-6):
  """Returns the float64[D] where each slope of `loss` is below tolerance, or where rounding ends the search.

  scipy's spends nine tenths of its time waiting for the threads of BLAS, whose number also decides the last bits.

  loss: w -> (value, slope), convex.
  Source: L-BFGS, Nocedal & Wright 2006, algorithm 7.4, with backtracking.
  """
  dot = lambda a, b: float((a * b).sum())  # noqa: E731
  value, slope = loss(w)
  pairs = []
  for _ in range(steps):
    if np.abs(slope).max() < tolerance:
      break
    down, passed = -slope, []
    for s, y, rho in reversed(pairs):
      passed.append(rho * dot(s, down))
      down -= passed[-1] * y
    if pairs:
      down /= pairs[-1][2] * dot(pairs[-1][1], pairs[-1][1])
    for (s, y, rho), a in zip(pairs, reversed(passed)):
      down += (a - rho * dot(y, down)) * s
    size, fall = 1.0 if pairs else 1 / max(1.0, np.abs(slope).sum()), dot(slope, down)
    while size > 1e-9:
      new = w + size * down
      lower, steeper = loss(new)
      if lower <= value + 1e-4 * size * fall:
        break
      size /= 2
    else:
      break
    s, y = new - w, steeper - slope
    w, value, slope = new, lower, steeper
    if (curvature := dot(s, y)) > 0:
      pairs = [*pairs[1 - memory :], (s, y, 1 / curvature)]
  return w


def _fit(x, y, l2, balance):
  """Returns (weights float64[buckets], bias) at the minimum of mean log loss + l2 / 2 |weights|^2.

  x: csr_array [N,buckets]; y: bool[N].
  """
  weights = np.zeros(x.shape[1])
  columns = np.unique(x.indices)  # the others stay 0
  x = x[:, columns].astype(np.float64)
  transposed = x.T.tocsr()
  each = np.where(y, 0.5 / y.mean(), 0.5 / (1 - y.mean())) if balance else np.ones(len(y))
  each /= each.sum()
  sign = np.where(y, 1.0, -1.0)

  def loss(w):
    margin = sign * (x @ w[:-1] + w[-1])
    slope = -each * sign * sigmoid(-margin)
    value = (each * np.logaddexp(0, -margin)).sum() + l2 / 2 * (w[:-1] * w[:-1]).sum()
    return value, np.append(transposed @ slope + l2 * w[:-1], slope.sum())

  found = _minimise(loss, np.zeros(len(columns) + 1))
  weights[columns] = found[:-1]
  return weights, found[-1]


def _matrix(texts, buckets, ngrams):
  """Returns csr_array float32[N,buckets]."""
  from scipy.sparse import csr_array  # here: a third of a second that scoring has no need for

  parts = [features(texts[i : i + BATCH], buckets, ngrams) for i in range(0, len(texts), BATCH)]
  document = np.concatenate([part[0] + i * BATCH for i, part in enumerate(parts)])
  bucket, value = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
  return csr_array((value, (document, bucket)), (len(texts), buckets))


def train(texts, labels, *, buckets, ngrams, l2, balance, classes=('0', '1'), threshold=0.5):
  """Returns the Classifier of texts labelled 0 or 1.

  l2: penalty on the weights, not on the bias; the loss is a mean, so that it does not depend on the number of texts.
  balance: both classes weigh the same, whatever their numbers. Scores are then not probabilities of such texts.

  Raises: BadInput where a label is neither, or a class is missing.
  """
  check(labels, 1)
  y = np.array(labels, bool)
  weights, bias = _fit(_matrix(texts, buckets, ngrams), y, l2, balance)
  sha = hashlib.sha256()
  for text, label in zip(texts, labels):
    sha.update(b'%d%d ' % (label, len(text)) + text.encode())
  trained = dict(documents=len(y), positive=int(y.sum()), sha256=sha.hexdigest())
  return Classifier(weights.astype(np.float32), float(bias), ngrams, tuple(classes), float(threshold), trained)


def score(classifier, texts):
  """Returns float32[N]: the probability of classes[1]. A text without a word gets that of the bias."""
  out = np.zeros(len(texts), np.float32)
  for i in range(0, len(texts), BATCH):
    part = texts[i : i + BATCH]
    document, bucket, value = features(part, len(classifier.weights), classifier.ngrams)
    logit = np.bincount(document, value * classifier.weights[bucket], minlength=len(part)) + classifier.bias
    out[i : i + BATCH] = sigmoid(logit)
  return out


def fold_of(texts, labels, folds):
  """Returns int64[N]: the fold of each text. Folds have the same share of each class, copies of a text are in one fold,
  and the order of the texts makes no difference."""
  hashes = np.frombuffer(b''.join(hashlib.blake2b(t.encode(), digest_size=8).digest() for t in texts), '<u8')
  out = np.zeros(len(texts), np.int64)
  for label in (0, 1):
    here = np.flatnonzero(np.array(labels) == label)
    out[here] = np.unique(hashes[here], return_inverse=True)[1] % folds
  return out


def auc(y, p):
  """Returns float: the share of pairs (1, 0) in which the 1 scores higher; ties count half. y: bool[N]; p: float[N]."""
  _, at, counts = np.unique(p, return_inverse=True, return_counts=True)
  rank = (np.cumsum(counts) - (counts - 1) / 2)[at]
  positive = y.sum()
  return float((rank[y].sum() - positive * (positive + 1) / 2) / (positive * (len(y) - positive)))


def measure(y, p, *, precision, bins=10):
  """Returns the JSON dict of `report` for labels y bool[N] and scores p float[N].

  precision: that is wanted; `threshold` is the lowest score from which the texts have it, None where none has.
  """
  p = np.asarray(p, np.float64)
  inside = np.clip(p, 1e-15, 1 - 1e-15)
  at = np.minimum((p * bins).astype(int), bins - 1)
  n, mean, share = (np.bincount(at, w, bins) for w in (np.ones(len(p)), p, y))
  table = [
    [i / bins, (i + 1) / bins, int(n[i]), float(mean[i] / n[i]), float(share[i] / n[i])] for i in np.flatnonzero(n)
  ]
  order = np.argsort(-p, kind='stable')
  last = np.append(p[order][1:] != p[order][:-1], True)  # ties pass a threshold together
  right, passed = np.cumsum(y[order])[last], np.flatnonzero(last) + 1
  enough = np.flatnonzero(right / passed >= precision)
  cuts = {t / 10: p >= t / 10 for t in range(1, 10)}
  return dict(
    documents=len(y),
    positive=int(y.sum()),
    auc=auc(y, p),
    log_loss=float(-np.mean(np.where(y, np.log(inside), np.log1p(-inside)))),
    brier=float(np.mean((p - y) ** 2)),
    base_log_loss=float(-(y.mean() * np.log(y.mean()) + (1 - y.mean()) * np.log1p(-y.mean()))),
    calibration_error=float(np.abs(mean - share).sum() / len(y)),
    bins=table,
    cuts=[
      [t, float(y[k].mean()) if k.any() else None, float(y[k].sum() / y.sum()), int(k.sum())] for t, k in cuts.items()
    ],
    precision=precision,
    threshold=float(p[order][last][enough[-1]]) if len(enough) else None,
    recall=float(right[enough[-1]] / y.sum()) if len(enough) else 0.0,
  )


def report(texts, labels, folds=5, *, buckets, ngrams, l2, balance, precision):
  """Returns a JSON dict of scores that each text got from a classifier trained on the other folds.

  documents, positive, auc, log_loss, base_log_loss (of a score that is always the share of 1), brier, calibration_error
  (expected, over the bins), bins [[lo, hi, n, mean score, share of 1]], cuts [[threshold, precision, recall, n]], and
  threshold and recall for the wanted precision. Near-duplicates may still straddle two folds: deduplicate first.
  """
  if folds < 2:
    raise BadInput(f'folds = {folds}: use at least 2')
  check(labels, folds)
  y, fold, x = np.array(labels, bool), fold_of(texts, labels, folds), _matrix(texts, buckets, ngrams)
  p = np.zeros(len(y))
  for k in range(folds):
    weights, bias = _fit(x[fold != k], y[fold != k], l2, balance)
    p[fold == k] = sigmoid(x[fold == k] @ weights + bias)
  return measure(y, p, precision=precision)


def language(texts):
  """Returns (codes list[str], distances int64[N]) of resiliparse; a smaller distance is surer, and falls with length.

  'unknown' has UNKNOWN + 1, where resiliparse says 0 and would look surest.

  Raises: BadInput where resiliparse is missing.
  """
  try:
    from resiliparse.parse.lang import detect_fast
  except ImportError:
    raise BadInput("naming the language of a text needs resiliparse: pip install 'llmstack[data]'") from None
  found = [detect_fast(text, cutoff=UNKNOWN) for text in texts]
  distances = [UNKNOWN + 1 if code == 'unknown' else distance for code, distance in found]
  return [code for code, _ in found], np.array(distances, np.int64)
