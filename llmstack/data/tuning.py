"""Conversations and preference pairs -> packed rows, in folders that `pipeline.Rows` opens.

A row of conversations is one of text with a mask: 1 on what the assistant says, the end of its turn included. A row of
pairs has two sides, [2,T+1]: pair j has its chosen completion in segment j + 1 of the first side and its rejected one
in that of the second, each behind the prompt; the last column stays free, so that the last token of every completion
is an input too and a reward can be read from it. Rows for KTO are such rows as well: the first side has the
completion, the second one the completion of another prompt behind the same prompt, and the label says whether the first
is desirable.

With data.prompt the two completions of a pair share their prompt: a row has a part of that many columns for prompts,
and pair j has its own in segment j + 1 there, but for the last token, with which its segment begins on both sides: it
is the input of which the first token of either completion is the target. What of a prompt finds no room there stands
on both sides as well.
"""

import collections
import hashlib
import json
import logging
import os

import numpy as np

from llmstack.data import packing, records, sources
from llmstack.errors import BadInput

FORMAT = 1  # of what is made of a record
KINDS = ('chat', 'text', 'pairs', 'rated')
TOO_LONG = ('drop', 'truncate', 'refuse')

log = logging.getLogger(__name__)


def prepare(name, source, template, *, kind, length, packed, too_long, train_on, seed, folder, split, prompt=0):
  """Returns the path of the rows of `source`, making them unless they are there already.

  The path names everything that the rows depend on, as that of `packing.prepare` does.

  name: of the component, for the path.
  template: chat.Template.
  kind: 'chat', 'pairs', 'rated', or 'text': documents beside conversations, all of which is trained on (replay).
  length: T, tokens of the longest conversation that fits.
  packed: several to a row, or one.
  too_long: 'drop', 'truncate' (the end is cut off; of a pair's prompt the beginning) or 'refuse'.
  train_on: 'assistant', 'last' (its last turn) or 'all'; of pairs it is always the completion.
  split: 'train' or 'eval', a share `source.holdout` of the prompts, by their hash.
  prompt: of `length`, tokens of a row that are for prompts that two completions share; 0 for none.

  Raises:
    BadInput: the source is bad, this split of it is empty, or a row is too long and that is to be refused.
  """
  if kind not in KINDS or too_long not in TOO_LONG:
    raise BadInput(f'data.too_long = {too_long!r}: choose one of {", ".join(TOO_LONG)}')
  fields = dict(
    source=sources.fingerprint(source), on_error=source.on_error, holdout=source.holdout, split=split,
    tokenizer=template.tokenizer.fingerprint, template=template.fingerprint, train_on=train_on, of=kind,
    packed=packed, too_long=too_long,
  )  # fmt: skip
  fields |= dict(prompt=prompt) if prompt else {}
  path = os.path.join(folder, f'{name}-{split}-{packing.digest([fields, length, seed, FORMAT])[:12]}')
  if packing.read_manifest(path):
    return path
  fields.update(documents=0, repeated=0, too_long_rows=0, skipped=collections.Counter())
  make = {'chat': _conversations, 'text': _documents, 'pairs': _pairs, 'rated': _rated}[kind]
  more = (prompt,) if kind == 'pairs' else ()
  examples = list(make(source, template, length, too_long, train_on, split, fields, *more))
  if not examples:
    left_out = ', '.join(f'{n} x {what}' for what, n in fields['skipped'].items())
    raise BadInput(
      f'{name} has no row for {split}: {fields["too_long_rows"]} too long for data.length = {length}'
      f'{", skipped " * bool(left_out)}{left_out}; check the files, data.length, or holdout = {source.holdout}'
    )
  rows, pairs = arranged(examples, length=length, packed=packed, prompt=prompt)
  stored = dict(kind='pairs' if pairs else 'chat', pairs=pairs, prompt=prompt)
  packing.write_rows(rows, path, vocab=template.tokenizer.vocab, seed=seed, manifest_fields=fields, **stored)
  return path


def arranged(examples, *, length, packed, prompt=0):
  """Returns (iterator of the fields of each row, as packing.row_dtype has them, and P; 0 of what is no pair).

  examples: [{'sides': [(ids, mask)]}], of pairs two sides, 'margin' and 'label', and with `prompt` what is `apart`.
  length, packed, prompt: as for `prepare`.
  """
  size = np.array([max(len(ids) for ids, _ in example['sides']) for example in examples])
  if prompt:
    size = np.array([(len(example['prompt']), n) for example, n in zip(examples, size)])
  if not packed:
    row, start, segment = np.arange(len(size)), 0 * size, np.ones(len(size), int)
  elif prompt:
    row, start, segment = packing.place_two(size, (prompt, length - prompt))
  else:
    row, start, segment = packing.place(size, length)
  pairs = int(segment.max()) if len(examples[0]['sides']) == 2 else 0
  return _rows(examples, row, start, segment, length - prompt + 1, pairs, prompt), pairs


def _rows(examples, row, start, segment, length, pairs, prompt):
  order = np.argsort(row, kind='stable')
  for members in np.split(order, np.flatnonzero(np.diff(row[order])) + 1):
    sides = 2 if pairs else 1
    tokens, segments, mask = (np.zeros((sides, length), np.int32) for _ in range(3))
    margin, label = np.zeros(pairs, np.float32), np.zeros(pairs, np.float32)
    prompts = np.zeros((2, prompt), np.int32)  # tokens and segments
    for i in members:
      ahead, begin = start[i] if prompt else (0, start[i])
      for side, (ids, learnt) in enumerate(examples[i]['sides']):
        place = side, slice(begin, begin + len(ids))
        tokens[place], segments[place], mask[place] = ids, segment[i], learnt
      if prompt:
        ids = examples[i]['prompt']
        prompts[:, ahead : ahead + len(ids)] = ids, np.full(len(ids), segment[i])
      if pairs:
        margin[segment[i] - 1], label[segment[i] - 1] = examples[i]['margin'], examples[i]['label']
    shared = prompts if prompt else ()
    yield (tokens, segments, mask, *shared, margin, label) if pairs else (tokens[0], segments[0], mask[0])


def said(messages):
  return [(m['role'], m['content']) for m in messages]


def here(messages, holdout, split):
  """Returns whether a prompt, [(role, text)], belongs to the split; equal prompts fall on one side."""
  text = json.dumps(messages)
  hashed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
  return (hashed < holdout * 2**64) == (split == 'eval')


def _fits(sides, length, where, too_long, counts, ahead=0, room='data.length'):
  """Returns the sides cut to `length`, or None where they are to be dropped; counts those that do not fit.

  ahead: tokens that they share, which take nothing of `length`. room: what it is called.
  """
  longest = max(len(ids) for ids, _ in sides) - ahead
  if longest <= length:
    return sides
  counts['too_long_rows'] += 1
  if too_long == 'refuse':
    behind = f' behind {ahead} of its prompt' if ahead else ''
    raise BadInput(
      f'{where} has {longest} tokens{behind} and {room} = {length}: raise it, or set data.too_long to drop or truncate'
    )
  return None if too_long == 'drop' else [(ids[: ahead + length], mask[: ahead + length]) for ids, mask in sides]


def _conversations(source, template, length, too_long, train_on, split, counts):
  seen = set()
  for where, messages in records.conversations(source, counts['skipped']):
    first = next(i for i, m in enumerate(messages) if m['role'] == 'assistant')
    if not here(said(messages[:first]), source.holdout, split):
      continue
    counts['documents'] += 1
    ids, mask = template.encode(messages, train_on=train_on)
    counts['repeated'] += (key := ids.tobytes()) in seen
    seen.add(key)
    sides = _fits([(ids, mask)], length, where, too_long, counts)
    if sides and not sides[0][1][1:].any():
      counts['skipped']['nothing to learn from after truncation'] += 1
    elif sides:
      yield {'sides': sides}


def _documents(source, template, length, too_long, train_on, split, counts):
  """Yields documents as they were pretrained on, in pieces that fit; nothing of them is too long."""
  found, held = sources.documents(source, counts['skipped']), source.holdout
  texts = (d.text for d in found if here([('document', d.text)], held, split))
  for ids in packing.encode(texts, template.tokenizer):
    counts['documents'] += 1
    for i in range(0, len(ids) - 1, length - 1):
      piece = ids[i : i + length]
      yield {'sides': [(piece, np.ones(len(piece), np.uint8))]}


def behind(template, prompt, completion):
  """Returns (ids, mask) of a completion's messages behind its prompt; the mask is 1 on the completion alone."""
  return template.encode([*prompt, *completion], after=len(prompt))


def _cut_prompt(sides, length, at_most):
  """Returns the sides with the beginning of their common prompt cut off (not its BOS), so that they fit if they can."""
  over = max(len(ids) for ids, _ in sides) - length
  prompt = min(int(np.argmax(mask)) for _, mask in sides)
  over = min(over, max(prompt - at_most, 0))
  if over <= 0:
    return sides
  keep = lambda x: np.concatenate([x[:1], x[1 + over :]])  # noqa: E731
  return [(keep(ids), keep(mask)) for ids, mask in sides]


def _ahead(sides, room):
  """Returns how many tokens the sides share: of their prompt all but the last one, and at most `room`."""
  first = min(int(np.argmax(mask)) for _, mask in sides)
  differ = np.flatnonzero(sides[0][0][:first] != sides[1][0][:first])  # a template may look ahead
  return max(min(room, first - 1, *differ[:1].tolist()), 0)


def apart(sides, room):
  """Returns {'sides': what each has of its own, 'prompt': the ids before, at most `room` of them} of whole sides."""
  n = _ahead(sides, room)
  return {'sides': [(ids[n:], mask[n:]) for ids, mask in sides], 'prompt': sides[0][0][:n]}


def _both(prompt, completions, template, length, where, too_long, counts, room=0):
  """Returns the sides of a pair, whole, or None. room: of `length`, tokens that are for what they share."""
  sides = [behind(template, prompt, completion) for completion in completions]
  own, name = length - room, 'data.length - data.prompt' if room else 'data.length'
  longest = max(len(ids) for ids, _ in sides) - _ahead(sides, room)
  if longest > own and too_long == 'truncate':
    sides = _cut_prompt(sides, length, at_most=room + 1 if room else length // 2)
    counts['too_long_rows'] += max(len(ids) for ids, _ in sides) - _ahead(sides, room) <= own  # else counted below
  sides = _fits(sides, own, where, too_long, counts, _ahead(sides, room), name)
  if sides and not all(mask.any() for _, mask in sides):
    counts['skipped']['no completion left after truncation'] += 1
    return None
  if sides and all(np.array_equal(a, b) for a, b in zip(*sides)):
    counts['skipped']['equal after truncation'] += 1
    return None
  return sides


def _pairs(source, template, length, too_long, train_on, split, counts, room):
  seen = set()
  for where, pair in records.pairs(source, counts['skipped']):
    if not here(said(pair.prompt), source.holdout, split):
      continue
    counts['documents'] += 1
    if sides := _both(pair.prompt, (pair.chosen, pair.rejected), template, length, where, too_long, counts, room):
      key = tuple(ids.tobytes() for ids, _ in sides)
      counts['repeated'] += key in seen
      seen.add(key)
      yield apart(sides, room) | {'margin': pair.margin, 'label': pair.label}


def _rated(source, template, length, too_long, train_on, split, counts):
  """Yields each completion beside that of the next prompt that is another one.

  KTO's baseline compares a prompt with completions of others. The paper's code rotates the micro-batch by one; here
  the rotation is of the whole data set, so that no batch is too small for it, and no completion meets its own prompt.
  """
  rated = [r for r in records.rated(source, counts['skipped']) if here(said(r[1]), source.holdout, split)]
  if rated and all(prompt == rated[0][1] for _, prompt, *_ in rated):
    raise BadInput(f'{", ".join(source.files)} has one prompt only, and KTO compares completions of different ones')
  for i, (where, prompt, completion, desirable) in enumerate(rated):
    other = next(o for k in range(1, len(rated)) if (o := rated[(i + k) % len(rated)])[1] != prompt)
    counts['documents'] += 1
    if sides := _both(prompt, (completion, other[2]), template, length, where, too_long, counts):
      yield {'sides': sides, 'margin': 0.0, 'label': float(desirable)}
