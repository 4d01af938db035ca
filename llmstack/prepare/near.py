"""Near-duplicates by MinHash: bands, their S-curve, keys and clusters. Pure: arrays in, arrays out.

Two documents are near-duplicates where the Jaccard similarity of their sets of word n-grams is at least a threshold.
`hashes` minima estimate it with a standard deviation of sqrt(J (1 - J) / hashes). Documents that share all rows of one
band become candidates, and candidates are confirmed by the estimate, so that bands may be cut for recall.

Source: Broder 1997; the choice of bands, Leskovec, Rajaraman & Ullman, Mining of Massive Datasets, section 3.4.
"""

import numpy as np

from llmstack.errors import BadInput


def curve(bands, rows, jaccard):
  """Returns float[...]: the share of pairs of this similarity that share a band, 1 - (1 - J^rows)^bands."""
  return 1 - (1 - np.asarray(jaccard, float) ** rows) ** bands


def drawn(bands, rows, threshold, confirm):
  """Returns the curve as JSON."""
  j = np.arange(51) / 50
  out = {'bands': bands, 'rows': rows, 'threshold': threshold, 'confirm': confirm}
  return out | {'jaccard': j.tolist(), 'found': curve(bands, rows, j).tolist()}


def bands_for(threshold, hashes, recall=0.99):
  """Returns (bands, rows): the steepest curve, of at most `hashes` minima, that finds `recall` of pairs at `threshold`.

  Raises: BadInput where no choice does.
  """
  if not 0 < threshold < 1 or hashes < 1:
    raise BadInput(f'dedup.threshold = {threshold} and dedup.hashes = {hashes}: use 0 < threshold < 1, hashes >= 1')
  for rows in range(hashes, 0, -1):
    if curve(hashes // rows, rows, threshold) >= recall:
      return hashes // rows, rows
  raise BadInput(
    f'{hashes} hashes do not find {recall:.0%} of pairs at dedup.threshold = {threshold}: raise dedup.hashes'
  )


def keys(signatures, bands, rows):
  """Returns uint64[bands,N]: one key for each band of each document. signatures: uint32[N,hashes]."""
  x = signatures[:, : bands * rows].reshape(-1, bands, rows).astype(np.uint64)
  out = np.full(x.shape[:2], 0x9E3779B97F4A7C15, np.uint64)
  for i in range(rows):  # multiply and mix; wraps around
    out = (out ^ x[:, :, i]) * np.uint64(0xBF58476D1CE4E5B9)
    out ^= out >> np.uint64(29)
  return np.ascontiguousarray(out.T)


def candidates(key):
  """Returns int64[E,2] pairs (first of the group, another of it) that share a key; linear in N. key: uint64[N]."""
  order = np.argsort(key, kind='stable')
  fresh = np.ones(len(key), bool)
  fresh[1:] = key[order][1:] != key[order][:-1]
  first = order[np.flatnonzero(fresh)][np.cumsum(fresh) - 1]
  return np.stack([first, order], 1)[~fresh]


def similarity(signatures, pairs):
  """Returns float[E]: the share of minima on which each pair agrees, an estimate of its Jaccard similarity."""
  return (signatures[pairs[:, 0]] == signatures[pairs[:, 1]]).mean(1)


def edit_similarity(texts, pairs):
  """Returns float[E]: 1 - Levenshtein distance of the words / those of the longer text, of each pair of texts.

  Source: Lee et al. 2022, Deduplicating Training Data Makes Language Models Better, section 4.2, who ask for 0.8.
  """
  from rapidfuzz.distance import Levenshtein

  words = [text.split() for text in texts]
  return np.array([Levenshtein.normalized_similarity(words[a], words[b]) for a, b in pairs.tolist()])


def clusters(n, pairs):
  """Returns int64[n]: the connected component of each document. pairs: int64[E,2]."""
  from scipy.sparse import coo_array  # here: a third of a second that workers have no need for
  from scipy.sparse.csgraph import connected_components

  graph = coo_array((np.ones(len(pairs), np.int8), (pairs[:, 0], pairs[:, 1])), (n, n))
  return connected_components(graph, directed=False)[1]


def keepers(component, sizes, ids):
  """Returns bool[N]: the longest document of each component, and of equally long ones the smallest id.

  component: int[N]; sizes: int[N], characters; ids: str[N]. Neither the order of the documents nor how they are split
  into parts makes a difference.
  """
  order = np.lexsort((ids, -np.asarray(sizes), component))
  first = np.diff(component[order], prepend=-1) != 0
  keep = np.zeros(len(component), bool)
  keep[order[first]] = True
  return keep
