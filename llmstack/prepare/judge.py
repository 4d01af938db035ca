"""Which documents stay: rules on their measures, exact and near-duplicates; and what a report shows of it.

Runs in one process over the parts in the order of their names, so that the outcome depends neither on how many workers
there were nor on which runner. It holds about 200 bytes of a document, none of its text.
"""

import os

import numpy as np
import pyarrow
import pyarrow.parquet

from llmstack.prepare import near, stages

DUPLICATES = ('exact duplicate', 'near duplicate')
PAIRS = 2000  # whose texts are in memory at once


class Columns:
  """What is needed of all parts at once, rows in the order of the parts.

  ids: arrow string; part, row: int; source, language: object; raw, size, terms: int64; digest: uint64; keys:
  uint64[bands,N]; measures {name: float32[N]}.
  """

  def __init__(self, folder, parts, names, bands, rows):
    self.folder, self.parts = folder, parts
    got, keys = {}, []
    for p, part in enumerate(parts):
      t = stages.load(folder, part, ['id', 'raw', 'size', 'terms', 'language', 'digest', 'signature', *names])
      keys.append(near.keys(_signature(t), bands, rows))
      for column in t.column_names:
        if column != 'signature':
          got.setdefault(column, []).append(t[column].combine_chunks())
      got.setdefault('part', []).append(pyarrow.array(np.full(len(t), p, np.int32)))
      got.setdefault('row', []).append(pyarrow.array(np.arange(len(t), dtype=np.int32)))
    whole = {c: pyarrow.concat_arrays(v) for c, v in got.items()}
    for c in ('raw', 'size', 'terms', 'digest', 'part', 'row'):
      setattr(self, c, whole[c].to_numpy())
    self.ids, self.keys = whole['id'], np.concatenate(keys, 1)
    self.languages = whole['language']
    self.measures = {n: whole[n].to_numpy() for n in names}
    self.sources = np.array([part.rsplit('-', 2)[0] for part in parts], object)[self.part]

  def __len__(self):
    return len(self.ids)

  def signatures(self, at):
    """Returns uint32[len(at),hashes] of these documents, read again. at: int64, increasing."""
    out = []
    for p in np.unique(self.part[at]):
      t = stages.load(self.folder, self.parts[p], ['signature'])
      out.append(_signature(t)[self.row[at[self.part[at] == p]]])
    return np.concatenate(out)

  def texts(self, at):
    """Returns the texts of these documents, read again. at: int64, increasing."""
    out = []
    for p in np.unique(self.part[at]):
      t = stages.load(self.folder, self.parts[p], ['text'])
      out += t['text'].take(pyarrow.array(self.row[at[self.part[at] == p]])).to_pylist()
    return out


def _signature(table):
  flat = table['signature'].combine_chunks()
  return flat.flatten().to_numpy().reshape(len(flat), -1)


def reasons(columns, limits, languages, *, exact, near_duplicates, ngram, confirm, edit):
  """Returns (reason object[N], of int64[N]): '' and -1 for what is kept.

  limits: {measure: (low, high)}, the first that is broken is the reason. languages: codes to keep, empty for all.
  exact, near_duplicates: whether to look for them. ngram: words; a shorter text has no set of n-grams and is compared
  exactly only. confirm: least share of equal minima. edit: least edit similarity of words, 0 to leave that test out.
  """
  n = len(columns)
  reason, of = np.full(n, '', object), np.full(n, -1, np.int64)
  for name, (low, high) in limits.items():
    value = columns.measures[name]
    reason[(reason == '') & ~((value >= low) & (value <= high))] = name
  if languages:
    kept = pyarrow.compute.is_in(columns.languages, pyarrow.array(list(languages)))
    reason[(reason == '') & ~kept.to_numpy(zero_copy_only=False)] = 'language'

  def drop(at, component, why):
    ids = columns.ids.take(pyarrow.array(at)).to_numpy(zero_copy_only=False)
    keep = near.keepers(component, columns.size[at], ids)
    of_component = np.empty(component.max(initial=-1) + 1, np.int64)
    of_component[component[keep]] = at[keep]
    reason[at[~keep]], of[at[~keep]] = why, of_component[component[~keep]]

  at = np.flatnonzero(reason == '')
  if exact:
    drop(at, np.unique(columns.digest[at], return_inverse=True)[1], DUPLICATES[0])
  at = np.flatnonzero((reason == '') & (columns.terms >= ngram))
  if near_duplicates:
    drop(at, near.clusters(len(at), _pairs(columns, at, confirm, edit)), DUPLICATES[1])
  return reason, of


def _pairs(columns, at, confirm, edit):
  """Returns int64[E,2]: pairs of the documents `at`, by their places in it, that are near-duplicates."""
  pairs = np.unique(np.concatenate([near.candidates(key[at]) for key in columns.keys]), axis=0)
  met, flat = np.unique(pairs, return_inverse=True)
  if len(pairs):
    pairs = pairs[near.similarity(columns.signatures(at[met]), flat.reshape(pairs.shape)) >= confirm]
  out = []
  for start in range(0, len(pairs) if edit else 0, PAIRS):
    some = pairs[start : start + PAIRS]
    met, flat = np.unique(some, return_inverse=True)
    out.append(some[near.edit_similarity(columns.texts(at[met]), flat.reshape(some.shape)) >= edit])
  return np.concatenate(out) if out else pairs


def save(columns, reason, of, folder):
  """Returns nothing; writes the verdicts that are not there yet, a part beside each measured one."""
  ids = columns.ids
  for p, part in enumerate(columns.parts):
    path = os.path.join(folder, f'{part}.parquet')
    if os.path.exists(path):
      continue
    here = columns.part == p
    copies = of[here]
    whose = ids.take(pyarrow.array(copies, mask=copies < 0))
    table = pyarrow.table({'reason': pyarrow.array(reason[here], pyarrow.string()), 'of': whose})
    pyarrow.parquet.write_table(table, f'{path}.tmp')
    os.replace(f'{path}.tmp', path)
