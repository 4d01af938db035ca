"""Runs of words that a corpus holds more than once: all but the first are cut. Pure.

Every window of n words has a 64-bit key; a window whose key was seen before, in the order of the parts and of their
words, is a repetition, and what such windows cover goes.

Source: Lee et al. 2022, Deduplicating Training Data Makes Language Models Better, section 4.1, which cuts repeated
substrings of 50 tokens, found by a suffix array. Deviation: words in lower case without punctuation, found by rolling
hashes, and the first occurrence stays.
"""

import re

import numpy as np
import pyarrow
import pyarrow.compute as pc

from llmstack.prepare import clean, rules

BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2^64
INVERSE = np.uint64(pow(int(BASE), -1, 2**64))
BLOCK = 4_000_000  # windows that are sorted at once
WORD = re.compile(r'\w+')


def keys(words, n):
  """Returns (uint64[M] key of each window of n words, int64[M] its first word, counted through the batch).

  words: arrow string[N], normalised; no window reaches over two of them.
  """
  owner, flat = rules.pieces(pc.utf8_split_whitespace(words))
  index, distinct = rules.encode(flat)
  first = np.flatnonzero(np.bincount(owner, minlength=len(words))[owner] >= n) if len(owner) else np.zeros(0, np.int64)
  ends = np.searchsorted(owner, owner, 'right')
  first = first[first + n <= ends[first]]
  powers = np.concatenate([[np.uint64(1)], np.cumprod(np.full(len(index), BASE))])
  sums = np.concatenate([[np.uint64(0)], np.cumsum(clean.line_keys(distinct)[index] * powers[:-1])])
  back = np.concatenate([[np.uint64(1)], np.cumprod(np.full(len(index), INVERSE))])
  key = (sums[first + n] - sums[first]) * back[first]
  key = (key ^ (key >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9)
  return key ^ (key >> np.uint64(32)), first


def repeated(parts):
  """Returns [int64[R]] per part: the windows, by their place in its keys, whose key was there before.

  parts: [uint64[M]] keys in the order of the corpus, memory-mapped if they are many: a block of them is sorted at once.
  """
  total = sum(map(len, parts))
  blocks = max(1, -(-total // BLOCK))
  out = [[] for _ in parts]
  for block in range(blocks):
    places = [np.flatnonzero(part % np.uint64(blocks) == block) for part in parts]
    key = np.concatenate([part[at] for part, at in zip(parts, places)])
    order = np.argsort(key, kind='stable')
    again = np.zeros(len(key), bool)
    again[order[1:]] = key[order[1:]] == key[order[:-1]]
    for mine, at, hit in zip(out, places, np.split(again, np.cumsum([len(at) for at in places])[:-1])):
      mine.append(at[hit])
  return [np.sort(np.concatenate(mine)) for mine in out]


def cut(text, covered):
  """Returns the text without the words that are covered, and what is between them. covered: bool per word."""
  words = list(WORD.finditer(text))
  if len(words) != len(covered):
    return text  # a letter whose small form is two: its words cannot be told apart
  begin = np.flatnonzero(np.diff(covered.astype(np.int8), prepend=0) == 1)
  end = np.flatnonzero(np.diff(covered.astype(np.int8), append=0) == -1)
  kept, at = [], 0
  for a, b in zip(begin, end):
    kept.append(text[at : words[a].start()])
    at = words[b].end()
  return re.sub(r'\n{3,}', '\n\n', ''.join([*kept, text[at:]])).strip()


def without(texts, later, n):
  """Returns the texts without their repetitions. later: int64[R], first words, as of `keys(normalise(texts), n)`."""
  if not len(later):
    return texts
  lists = pc.utf8_split_whitespace(clean.normalise(texts))
  owner, flat = rules.pieces(lists)
  cover = np.zeros(len(flat) + 1, np.int64)
  cover[later] += 1
  np.subtract.at(cover, later + n, 1)
  covered = np.cumsum(cover[:-1]) > 0
  counts = np.bincount(owner, minlength=len(texts))
  begins = np.cumsum(counts) - counts
  hit = np.bincount(owner[covered], minlength=len(texts)) > 0
  cuts = [cut(texts[i].as_py(), covered[begins[i] : begins[i] + counts[i]]) for i in np.flatnonzero(hit).tolist()]
  return pc.replace_with_mask(texts, pyarrow.array(hit), pyarrow.array(cuts, texts.type))
