"""What of a text is in an evaluation set: word n-grams, found exactly, and the paragraphs that hold them taken out.

Source: GPT-3, Brown et al. 2020, appendix C: 13-grams of words in lower case without punctuation; an n-gram that many
records share is a template and no evidence, nor is one that repeats a few words. A record of fewer words counts as a
whole if it has 8. Deviation: GPT-3
cuts 200 characters around a match, here its paragraph goes.
"""

import re

import numpy as np
import pyarrow
import pyarrow.compute as pc

from llmstack.prepare import rules
from llmstack.prepare.clean import normalise

SHORTEST = 8  # words of a record
COMMON = 10  # records of one file; an n-gram in more is a template
MIX = np.uint64(0xBF58476D1CE4E5B9)
SIEVE = 24  # bits of the table that most n-grams of a text fail


class Index:
  """The n-grams of evaluation records.

  texts: list of str, one per record. names: list of str, the file of each. n: words of an n-gram.
  """

  def __init__(self, texts, names, n):
    self.n, self.names = n, names
    owner, words = rules.pieces(pc.utf8_split_whitespace(normalise(pyarrow.array(texts, pyarrow.string()))))
    self._ids, self._words = rules.encode(words)
    lengths = np.bincount(owner, minlength=len(texts))
    starts = np.cumsum(lengths) - lengths
    files = rules.encode(pyarrow.array(names, pyarrow.string()))[0] if names else np.zeros(0, np.int64)
    self._grams = {}  # length -> (keys sorted, place of each, record of each)
    self._first = min(SHORTEST, n)
    self._sieve = np.zeros(1 << SIEVE, bool)  # of the first words of every n-gram
    for k in range(self._first, n + 1):
      many = np.maximum(lengths - k + 1, 0) if k == n else (lengths == k).astype(np.int64)
      record = np.repeat(np.arange(len(texts)), many)
      place = starts[record] + np.arange(len(record)) - np.repeat(np.cumsum(many) - many, many)
      if not len(place):
        continue
      keys = _keys(self._ids, place, k)
      order = np.argsort(keys, kind='stable')  # within a key, places and with them records and files rise
      keys, place, record = keys[order], place[order], record[order]
      ids = np.sort(self._ids[place[:, None] + np.arange(k)].astype(np.int32), axis=1)
      good = (np.diff(ids, axis=1) > 0).sum(1) + 1 >= k // 2
      new_key = np.diff(keys, prepend=~keys[0]) != 0
      new_file = new_key | (np.diff(files[record], prepend=-1) != 0)
      new_record = new_key | (np.diff(record, prepend=-1) != 0)
      in_file = np.add.reduceat(new_record, np.flatnonzero(new_file), dtype=np.int64)  # records of each key and file
      most = np.maximum.reduceat(in_file, np.searchsorted(np.flatnonzero(new_file), np.flatnonzero(new_key)))
      good &= most[np.cumsum(new_key) - 1] <= COMMON
      self._grams[k] = keys[good], place[good], record[good]
      self._sieve[_keys(self._ids, place[good], self._first) >> np.uint64(64 - SIEVE)] = True

  def find(self, words):
    """Returns [(document, first word, length, name of the evaluation file)] of every n-gram found.

    words: arrow string[N], normalised.
    """
    if not self._grams:
      return []
    owner, flat = rules.pieces(pc.utf8_split_whitespace(words))
    index, distinct = rules.encode(flat)
    known = np.asarray(pc.fill_null(pc.index_in(distinct, self._words), -1)).astype(np.int64)
    ids = known[index]
    firsts = np.cumsum(counts := np.bincount(owner, minlength=len(words))) - counts
    # How many words from here on are known and of the same document.
    stop = np.flatnonzero((ids < 0) | np.append(owner[1:] != owner[:-1], True))
    after = np.repeat(stop, np.diff(stop, prepend=-1))
    run = after - np.arange(len(ids)) + (ids[after] >= 0)
    maybe = np.flatnonzero(run >= self._first)
    maybe = maybe[self._sieve[_keys(ids, maybe, self._first) >> np.uint64(64 - SIEVE)]]
    out = []
    for k, (keys, places, records) in self._grams.items():
      at = maybe[run[maybe] >= k]
      if not len(at) or not len(keys):
        continue
      mine = _keys(ids, at, k)
      spot = np.minimum(np.searchsorted(keys, mine), len(keys) - 1)
      for i, j in zip(at[hit := keys[spot] == mine].tolist(), spot[hit].tolist()):
        if (ids[i : i + k] == self._ids[places[j] : places[j] + k]).all():
          out.append((int(owner[i]), int(i - firsts[owner[i]]), k, self.names[records[j]]))
    return sorted(out)


def _keys(ids, place, k):
  """Returns uint64[M]: one key for the k ids from each place on."""
  out = np.zeros(len(place), np.uint64)
  for j in range(k):
    out = (out ^ (ids[place + j].astype(np.uint64) + np.uint64(1))) * MIX
    out ^= out >> np.uint64(29)
  return out


def cut(text, matches):
  """Returns the text without the paragraphs that a match touches. matches: [(first word, length)]."""
  parts = re.split(r'(\n\s*\n)', text)
  sizes = np.array([len(w.split()) for w in normalise(pyarrow.array(parts, pyarrow.string())).to_pylist()])
  ends = np.cumsum(sizes)
  hit = np.zeros(len(parts), bool)
  for first, length in matches:
    hit |= (ends > first) & (ends - sizes < first + length) & (sizes > 0)
  between = [*parts[1::2], '']
  return ''.join(p + b for p, b, bad in zip(parts[::2], between, hit[::2]) if not bad).strip('\n')
