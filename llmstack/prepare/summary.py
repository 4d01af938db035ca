"""What a person needs to judge the rules of a preparation, as JSON; llmstack.report draws it."""

import collections

import numpy as np
import pyarrow

from llmstack.prepare import clean, rules
from llmstack.prepare.judge import DUPLICATES


def documents(columns, reason, of, limits, seed, synthetic):
  """Returns the keys sources, examples, histograms, clusters and languages of a report.

  columns, reason, of: of `judge`. limits: {measure: (low, high)}. synthetic: {source: bool}.
  """
  return {
    'sources': {s: {'funnel': f, 'synthetic': synthetic[s]} for s, f in funnel(columns, reason, limits).items()},
    'examples': examples(columns, reason, of, limits, seed),
    'histograms': histograms(columns, reason, limits),
    'clusters': clusters(columns, of),
    'languages': shares(columns, reason),
  }


def cleaning(counts, most=6):
  """Returns the keys edits, leaks, leaked and masked. counts: of the measured parts."""
  counts, found = list(counts), {}
  for c in counts:
    for step, edits in c['edits'].items():
      found.setdefault(step, []).extend(edits)
  few = {step: edits[:: max(1, len(edits) // most)][:most] for step, edits in found.items()}
  leaks = [dict(id=i, source=i.split('/')[0], eval=e, ngram=g) for c in counts for i, e, g in c['leaks']]
  return {
    'edits': {
      step: [{'id': i, 'source': i.split('/')[0], 'before': a, 'after': b} for i, a, b in edits]
      for step, edits in few.items()
    },
    'leaks': leaks[:200],
    'leaked': dict(collections.Counter(leak['eval'] for leak in leaks)),
    'masked': {kind: sum(c['masked'].get(kind, 0) for c in counts) for kind in clean.PII},
  }


def table(funnels):
  """Returns documents and megabytes after each step: all sources, and how many documents each source lost."""
  rows = {}
  for source, steps in funnels.items():
    for name, n, size in steps:
      rows.setdefault(name, {})[source] = n, size
  order = ['read', 'cleaned', *sorted(set(rows) - {'read', 'cleaned', 'kept'}), 'kept']
  lines = [f'{"":34}{"documents":>12}{"MB":>11}' + ''.join(f'{s[:11]:>12}' for s in funnels)]
  for name in order:
    n, size = (sum(v[i] for v in rows[name].values()) for i in (0, 1))
    each = ''.join(f'{rows[name].get(s, (0, 0))[0]:>12,}' for s in funnels)
    lines.append(f'{name:34}{n:>12,}{size / 1e6:>11,.2f}{each}')
  return '\n'.join(lines)


def funnel(columns, reason, order):
  """Returns {source: [[step, documents, bytes]]}. order: names of the rules as they were applied."""
  out = {}
  for source in dict.fromkeys(columns.sources):
    mine = columns.sources == source
    steps = [['read', int(mine.sum()), int(columns.raw[mine].sum())]]
    steps.append(['cleaned', int(mine.sum()), int(columns.size[mine].sum())])
    for name in (*order, 'language', *DUPLICATES):
      if (hit := mine & (reason == name)).any():
        steps.append([f'- {name}', -int(hit.sum()), -int(columns.size[hit].sum())])
    kept = mine & (reason == '')
    out[source] = [*steps, ['kept', int(kept.sum()), int(columns.size[kept].sum())]]
  return out


def examples(columns, reason, of, limits, seed, most=8, characters=700):
  """Returns {rule: [{id, source, value, low, high, text, of, of_text}]}, a sample of what each removed."""
  said = lambda name, i: columns.languages[i].as_py() if name == 'language' else None  # noqa: E731
  out = {}
  for name in dict.fromkeys(reason[reason != '']):
    at = np.flatnonzero(reason == name)
    at = np.sort(np.random.RandomState(seed).permutation(at)[:most])
    low, high = limits.get(name, (None, None))
    copies = np.unique(of[at][of[at] >= 0])
    texts = dict(
      zip([*at.tolist(), *copies.tolist()], columns.texts(at) + (columns.texts(copies) if len(copies) else []))
    )
    out[name] = [
      {
        'id': columns.ids[i].as_py(), 'source': columns.sources[i],
        'value': float(columns.measures[name][i]) if name in columns.measures else said(name, i),
        'low': _finite(low), 'high': _finite(high), 'text': texts[i][:characters],
        'of': columns.ids[of[i]].as_py() if of[i] >= 0 else '',
        'of_text': texts[of[i]][:characters] if of[i] >= 0 else '',
      }
      for i in at.tolist()
    ]  # fmt: skip
  return out


def _finite(x):
  return x if x is not None and np.isfinite(x) else None


def histograms(columns, reason, limits, bins=40):
  """Returns {measure: {edges, kept, removed, low, high, says, origin}}; the ends hold what lies outside."""
  out, kept = {}, reason == ''
  for name, value in columns.measures.items():
    value = np.nan_to_num(value, nan=0.0)
    low, high = (_finite(x) for x in limits.get(name, (None, None)))
    least, most = np.quantile(value, [0.005, 0.995])
    if least == most and low is None and high is None:
      continue  # of all documents alike
    wide = max(most - least, 1e-6) / 10  # shown beyond a limit
    ends = [least, most, *(x + side for x, side in ((low, -wide), (high, wide)) if x is not None)]
    edges = np.linspace(min(ends), max(max(ends), min(ends) + 1e-6), bins + 1)
    inside = np.clip(value, edges[0], edges[-1])
    m = (rules.MEASURES | rules.OTHERS)[name]
    out[name] = {
      'edges': [float(f'{e:.6g}') for e in edges], 'low': low, 'high': high, 'says': m.says, 'origin': m.source,
      'kept': np.histogram(inside[kept], edges)[0].tolist(), 'removed': np.histogram(inside[~kept], edges)[0].tolist(),
    }  # fmt: skip
  return out


def clusters(columns, of, most=5, characters=400):
  """Returns {'sizes': [[size, count]], 'largest': [{'size', 'text', 'ids'}]} of texts that have copies."""
  copies = np.flatnonzero(of >= 0)
  root = of[copies].copy()
  while (again := of[root] >= 0).any():  # an exact copy of a near-duplicate
    root[again] = of[root[again]]
  keep, counts = np.unique(root, return_counts=True)
  sizes, how_many = np.unique(counts + 1, return_counts=True)
  largest = keep[np.argsort(-counts, kind='stable')[:most]]
  return {
    'sizes': np.stack([sizes, how_many], 1).tolist(),
    'largest': [
      {
        'size': int((root == i).sum()) + 1, 'text': columns.texts(np.array([i]))[0][:characters],
        'ids': columns.ids.take(pyarrow.array([i, *copies[root == i][:9]])).to_pylist(),
      }
      for i in largest.tolist()
    ],
  }  # fmt: skip


def shares(columns, reason):
  """Returns {source: {language: documents kept}}."""
  kept, out = reason == '', {}
  for source in dict.fromkeys(columns.sources):
    counts = columns.languages.filter(pyarrow.array(kept & (columns.sources == source))).value_counts().to_pylist()
    out[source] = {c['values']: c['counts'] for c in sorted(counts, key=lambda c: -c['counts'])}
  return out
