"""The plan of a mixture: how many tokens of each source are trained on, and how often each of them is seen. Pure.

The share of a source goes with weight x size^(1/temperature): temperature 1 keeps the natural proportions, a higher
one raises the small sources (Arivazhagan et al. 2019, section 4). No source is read more than `max_epochs` times nor
beyond its cap; what it cannot give, the others give in proportion (after UniMax, Chung et al. 2023).
"""

import math

from llmstack.errors import BadInput


def plan(sizes, stages, *, tokens, temperature, max_epochs, caps):
  """Returns [{stage, source, weight, documents, bytes, tokens, share, drawn_tokens, epochs, capped}], JSON.

  sizes: {source: {'documents', 'bytes', 'tokens'}}. stages: [(share of the tokens, {source: weight})], one after the
  other. tokens: to be drawn in all. caps: {source: tokens drawn at most}. `epochs` counts those up to the end of the
  stage; capped: '', 'epochs' or 'cap'. Where no source can give more, fewer tokens are drawn.

  Raises: BadInput where weights, shares, caps or temperature make no sense.
  """
  _check(sizes, stages, tokens, temperature, max_epochs, caps)
  limit = {s: min(max_epochs * size['tokens'], caps.get(s, math.inf)) for s, size in sizes.items()}
  given, rows = dict.fromkeys(sizes, 0.0), []
  for number, (share, weights) in enumerate(stages):
    rate = {s: w * sizes[s]['tokens'] ** (1 / temperature) for s, w in weights.items() if w}
    drawn = _fill(share * tokens, rate, {s: limit[s] - given[s] for s in rate})
    total = sum(drawn.values())
    for s in sorted(drawn, key=lambda s: (-drawn[s], s)):
      given[s] += drawn[s]
      full = drawn[s] > 0 and given[s] >= limit[s] * (1 - 1e-9)
      size = {k: sizes[s][k] for k in ('documents', 'bytes', 'tokens')}
      rows.append({
        'stage': number, 'source': s, 'weight': weights[s], **size, 'share': drawn[s] / total if total else 0.0,
        'drawn_tokens': round(drawn[s]), 'epochs': given[s] / max(sizes[s]['tokens'], 1),
        'capped': ('cap' if limit[s] == caps.get(s) else 'epochs') if full or not drawn[s] else '',
      })  # fmt: skip
  return rows


def _fill(wanted, rate, room):
  """Returns {source: tokens}: `wanted` in proportion to `rate`, none above its room, the rest to the others."""
  drawn, open_ = dict.fromkeys(rate, 0.0), dict(rate)
  while open_ and wanted > 1e-6:
    unit = wanted / sum(open_.values())
    full = {s for s in open_ if open_[s] * unit >= room[s] - drawn[s]}
    for s in full or open_:
      more = room[s] - drawn[s] if full else open_[s] * unit
      drawn[s] += more
      wanted -= more
    if not full:
      break
    open_ = {s: r for s, r in open_.items() if s not in full}
  return drawn


def _check(sizes, stages, tokens, temperature, max_epochs, caps):
  if tokens < 1 or temperature <= 0 or max_epochs <= 0:
    raise BadInput(
      f'mix.tokens = {tokens}, mix.temperature = {temperature}, mix.max_epochs = {max_epochs}: all must be above 0'
    )
  shares = [share for share, _ in stages]
  if not stages or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
    raise BadInput(f'the shares of mix.stages are {shares}: use shares that sum to 1')
  for number, (_, weights) in enumerate(stages):
    if unknown := sorted({*weights, *caps} - {*sizes}):
      raise BadInput(f'mix names {", ".join(unknown)}, and the sources are {", ".join(sorted(sizes))}: correct mix')
    bad = {s: w for s, w in weights.items() if not (w >= 0 and math.isfinite(w))}
    if bad or not sum(weights.values()):
      raise BadInput(f'the weights of stage {number} are {bad or weights}: use numbers from 0, one of them above 0')
  if bad := {s: c for s, c in caps.items() if not c >= 1}:
    raise BadInput(f'mix.caps are {bad}: use at least one token, or leave the source out of the weights')


def table(rows):
  """Returns the plan as lines of text."""
  head = ('stage', 'source', 'documents', 'MB', 'tokens', 'drawn', 'share', 'epochs', '')
  lines = [
    [
      str(r['stage']), r['source'], f'{r["documents"]:,}', f'{r["bytes"] / 1e6:,.2f}', f'{r["tokens"]:,}',
      f'{r["drawn_tokens"]:,}', f'{r["share"]:.1%}', f'{r["epochs"]:.2f}', r['capped'],
    ]
    for r in rows
  ]  # fmt: skip
  width = [max(len(line[i]) for line in [head, *lines]) for i in range(len(head))]
  left = (1, 8)  # names
  return '\n'.join(
    '  '.join(cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, width))).rstrip()
    for line in [head, *lines]
  )
