"""Looks at text as the model will see it: packed rows, documents, or what a preparation wrote.

    llmstack inspect PATH [--rows 0:4] [--find TEXT] [--tokenizer FILE] [--field text]

PATH: a packed folder (manifest.json), a file of documents (.jsonl, .txt, .md, each also .gz or .zst; .parquet), or a
workdir, whose packed folders and documents are listed. --find shows the rows or documents that hold TEXT, of all of
them unless --rows says which; status 1 where none does. Pages through $PAGER, in colour, on a terminal only.
"""

import argparse
import glob
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import unicodedata

import numpy as np

from llmstack.data import batch, packing, pipeline, sources
from llmstack.data.tokenizer import Tokenizer
from llmstack.errors import BadInput

BLOCK = 256  # rows read at once
# What reading another program's manifest.json, or a damaged one, raises.
NO_MANIFEST = (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError)
BOLD, DIM, FOUND = '1', '2', '7'  # of ANSI


class Parser(argparse.ArgumentParser):
  def error(self, message):
    raise BadInput(f'{message}: llmstack inspect PATH [--rows 0:4] [--find TEXT] [--tokenizer FILE] [--field text]')


def span(text):
  """Returns (start, stop), stop None for the end, of 'A:B', 'A:', ':B' or 'A'."""
  m = re.fullmatch(r'(\d+)|(\d*):(\d*)', text)
  if not m:
    raise BadInput(f'--rows {text!r} is no range: give A:B, counted from 0 and without B, or one number')
  if m[1]:
    return int(m[1]), int(m[1]) + 1
  return int(m[2] or 0), int(m[3]) if m[3] else None


def visible(text):
  """Returns the text with what a terminal would obey, or not show, as escapes; newlines and tabs stay."""
  kinds = ('Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zl', 'Zp')
  return ''.join(
    c if c in '\n\t' or unicodedata.category(c) not in kinds else c.encode('unicode_escape').decode() for c in text
  )


class Ink:
  """Colours, or none. find: what is set off in every text; '' for nothing."""

  def __init__(self, colour, find):
    self.colour, self.find = colour, find

  def __call__(self, style, text):
    return f'\x1b[{style}m{text}\x1b[0m' if self.colour else text

  def lines(self, text):
    """Yields the lines of a document, indented."""
    if self.find and self.colour:
      text = self(FOUND, visible(self.find)).join(visible(part) for part in text.split(self.find))
    else:
      text = visible(text)
    for line in text.split('\n'):
      yield f'    {line}'


def tokenizer_for(folder, wanted, path):
  """Returns (Tokenizer or None, a sentence about it).

  wanted: the manifest's fingerprint. path: of --tokenizer; None looks in the folder and the three above it.
  """
  if path is not None:
    if (t := Tokenizer(path)).fingerprint != wanted:
      raise BadInput(f'--tokenizer {path} is {t.fingerprint}, but the rows were packed with {wanted}: give that one')
    return t, f'tokenizer {wanted}, {path}'
  other = []
  for up in range(4):  # a preparation has it three above its rows
    place = os.path.abspath(os.path.join(folder, *['..'] * up))
    for path in sorted(glob.glob(os.path.join(glob.escape(place), 'tokenizer*.model'))):
      if (t := Tokenizer(path)).fingerprint == wanted:
        return t, f'tokenizer {wanted}, {path}'
      other.append(f'{path} is {t.fingerprint}')
  why = ', '.join(other) or 'no tokenizer.model in the folder or above it'
  return None, f'tokenizer {wanted} not found ({why}): ids are shown, --tokenizer FILE gives text'


def words(ids, tokenizer):
  """Returns the text of ids, with BOS and EOS named, which decode to nothing; the ids without a tokenizer."""
  if tokenizer is None:
    return ' '.join(map(str, ids))
  out = ''
  for special, run in itertools.groupby(ids, lambda i: i in (tokenizer.bos, tokenizer.eos)):
    run = list(run)
    out += ''.join('<BOS>' if i == tokenizer.bos else '<EOS>' for i in run) if special else tokenizer.decode(run)
  return out


def ranges(places):
  """Returns '3, 7 to 9' of sorted numbers."""
  runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
  return ', '.join(str(r[0]) if len(r) == 1 else f'{r[0]} to {r[-1]}' for r in runs if len(r))


def show_row(name, tokens, segments, learnt, tokenizer, ink):
  """Yields the lines of one row: what counts in the loss, then each document's piece.

  learnt: int[T+1] what is trained on, or None for everything; of a conversation the rest stands in brackets.
  """
  counted = batch.loss_mask(segments[None])[0]
  padding = segments == 0
  # targets[t] is the token at t + 1.
  into = np.flatnonzero(~counted & ~padding[1:]) + 1
  counted &= True if learnt is None else learnt[1:] > 0
  pieces = [np.flatnonzero(segments == s) for s in range(1, segments.max() + 1)]
  yield ink(BOLD, name) + f'  {len(tokens) - padding.sum()} tokens, {len(pieces)} pieces of documents'
  masked = [f'{ranges(into)} (a document begins there)'] * bool(len(into))
  masked += [f'{ranges(np.flatnonzero(padding))} (padding)'] * bool(padding.any())
  yield ink(
    DIM,
    f'  {counted.sum()} of {len(counted)} targets count in the loss' + '; masked: ' * bool(masked) + ', '.join(masked),
  )
  for n, at in enumerate(pieces, 1):
    ids = tokens[at].tolist()
    begun, over = '', ''
    if tokenizer is not None:
      begun = '' if tokenizer.bos is None or ids[0] == tokenizer.bos else ', continues a document'
      over = '' if tokenizer.eos is None or ids[-1] == tokenizer.eos else ', is continued'
    yield ink(DIM, f'  piece {n}: {len(at)} tokens, {at[0]} to {at[-1]}{begun}{over}')
    if learnt is None:
      yield from ink.lines(words(ids, tokenizer))
      continue
    runs = np.split(at, np.flatnonzero(np.diff(learnt[at])) + 1)
    texts = [(words(tokens[run].tolist(), tokenizer), learnt[run[0]]) for run in runs]
    yield from ink.lines(''.join(text if said else f'[{text}]' for text, said in texts))
  yield ''


def show_manifest(folder, m):
  """Yields what a manifest says, in short."""
  size, files, more = sum(f['size'] for f in m['files']), len(m['files']), len(m.get('source', ())) - 5
  yield f'{folder}: {m["rows"]:,} rows of {m["length"]} tokens, {size / 1e6:,.1f} MB in {files} file{"s" * (files > 1)}'
  counts = [f'{m["tokens"]:,} tokens', f'{m["targets"]:,} of them targets', f'{m["fill"]:.2%} of positions used']
  counts += [f'{m[k]:,} {k.replace("_", " ")}' for k in ('documents', 'source_bytes') if k in m]
  counts += [f'skipped {n} x {kind}' for kind, n in m.get('skipped', {}).items()]
  yield '  ' + ', '.join(counts)
  made = [f'vocabulary {m["vocab"]:,}', *(f'{k} {m[k]}' for k in ('split', 'method', 'seed') if k in m)]
  yield '  ' + ', '.join(made)
  if 'source' in m:
    yield '  from ' + ', '.join(list(m['source'])[:5]) + f' and {more} more' * (more > 0)


def packed(folder, flags, ink):
  """Yields the lines of a packed folder. Raises: BadInput where it is not as it was written."""
  try:
    rows = pipeline.Rows(folder)
    m = rows.manifest
    head = list(show_manifest(folder, m))
  except NO_MANIFEST as e:
    raise BadInput(f'{folder}/manifest.json is not that of packed rows ({e!r}): pack the folder again') from None
  except RuntimeError as e:
    raise BadInput(f'a row file of {folder} cannot be opened ({e}): copy it again') from None
  tokenizer, says = tokenizer_for(folder, m.get('tokenizer'), flags.tokenizer)
  if flags.find and tokenizer is None:
    raise BadInput(f'--find {flags.find!r} needs the text, and {says}')
  start, stop = flags.rows or (0, len(rows) if flags.find else min(4, len(rows)))
  stop = len(rows) if stop is None else stop
  if not start < stop <= len(rows):
    raise BadInput(f'--rows {start}:{stop} is not within 0:{len(rows)}, the rows of {folder}')
  yield from [*head, f'  {says}', '']
  hits = 0
  for block in range(start, stop, BLOCK):
    numbers = range(block, min(block + BLOCK, stop))
    try:
      read = rows.read(numbers)
    except (RuntimeError, ValueError, IndexError) as e:
      raise BadInput(f'{folder} cannot be read at rows {numbers[0]} to {numbers[-1]} ({e}): copy it again') from None
    two, shared = rows.kind == 'pairs', 'prompt' in read
    names = (*[', prompts'] * shared, ', chosen', ', rejected') if two else ('',)
    masks = read['mask'] if 'mask' in read else [None] * len(numbers)
    for i, (number, *row) in enumerate(zip(numbers, read['tokens'], read['segments'], masks)):
      sides = list(zip(*row)) if two else [row]
      if shared:
        prompts = read['prompt'][i], read['prompt_segments'][i]
        sides.insert(0, (*prompts, np.zeros_like(prompts[0])))
      if flags.find:
        texts = (tokenizer.decode(t[s == k]) for t, s, _ in sides for k in range(1, s.max() + 1))
        if not any(flags.find in text for text in texts):
          continue
      hits += 1
      for side, name in zip(sides, names):
        yield from show_row(f'row {number}{name}', *side, tokenizer, ink)
  yield from ending(hits, f'rows {start} to {stop - 1}', flags)


def documents(path, flags, ink):
  """Yields the lines of a file of documents."""
  start, stop = flags.rows or (0, None if flags.find else 4)
  hits = number = 0
  for number, d in enumerate(sources.documents(sources.Source((glob.escape(path),), field=flags.field)), 1):
    if number <= start:
      continue
    if stop is not None and number > stop:
      break
    if flags.find not in d.text:
      continue
    hits += 1
    yield ink(BOLD, visible(d.id)) + f'  {len(d.text):,} characters, {len(d.text.encode()):,} bytes'
    yield from ink.lines(d.text)
    yield ''
  if number <= start:
    raise BadInput(f'--rows {start}:{"" if stop is None else stop} is not within 0:{number}, the documents of {path}')
  yield from ending(hits, f'documents {start} to {number - 1}', flags)


def ending(hits, where, flags):
  flags.hits = hits
  if flags.find:
    yield f'{hits} of {where} hold{"s" * (hits == 1)} {flags.find!r}'


def workdir(folder):
  """Yields what a preparation, or packing, left in a folder. Raises: BadInput where it is neither."""
  found = sorted(p for depth in ('*', '*/*', '*/*/*', '*/*/*/*') for p in glob.glob(f'{glob.escape(folder)}/{depth}'))
  shards = [os.path.dirname(p) for p in found if os.path.basename(p) == 'manifest.json']
  texts = [p for p in found if os.path.isfile(p) and p.removesuffix('.gz').removesuffix('.zst').endswith('.jsonl')]
  if not shards and not texts:
    raise BadInput(f'{folder} holds neither packed rows nor documents: give a packed folder, a file, or a workdir')
  yield f'{folder}: llmstack inspect with one of'
  for shard in shards:
    try:
      yield from (f'  {line}' for line in itertools.islice(show_manifest(shard, packing.read_manifest(shard)), 2))
    except NO_MANIFEST:
      yield f'  {shard}: its manifest.json is not that of packed rows'
  for path in texts:
    yield f'  {path}: {os.path.getsize(path) / 1e6:,.1f} MB'


def lines(flags, ink):
  """Returns an iterator of the lines to print."""
  fs, root = sources.filesystem(flags.path)
  if fs.isdir(root):
    return packed(flags.path, flags, ink) if fs.exists(f'{root}/manifest.json') else workdir(flags.path)
  if not fs.exists(root):
    raise BadInput(f'{flags.path} does not exist: give a packed folder, a file of documents, or a workdir')
  return documents(flags.path, flags, ink)


def command(argv):
  """Returns 0, or 1 where --find found nothing."""
  parser = Parser(prog='llmstack inspect', description='Text as the model will see it.')
  parser.add_argument('path', help='a packed folder, a file of documents, or a workdir')
  parser.add_argument('--rows', help='A:B, counted from 0; 0:4 by default')
  parser.add_argument('--find', default='', help='show those that hold this text')
  parser.add_argument('--tokenizer', help='.model; by default the one in the folder or beside it')
  parser.add_argument('--field', default='text', help='of documents in .jsonl and .parquet')
  flags = parser.parse_args(argv)
  flags.rows, flags.hits = span(flags.rows) if flags.rows else None, 1
  terminal = sys.stdout.isatty()
  out = lines(flags, Ink(terminal and not os.environ.get('NO_COLOR'), flags.find))
  first = list(itertools.islice(out, 1))  # a wrong path is said here, not behind a pager
  pager = shlex.split(os.environ.get('PAGER') or 'less')
  try:
    if terminal and shutil.which(pager[0]):
      # R: colours are shown; F, X: what fits on the screen stays there.
      with subprocess.Popen(pager, stdin=subprocess.PIPE, env={'LESS': 'FRX'} | os.environ, encoding='utf-8') as child:
        child.stdin.writelines(f'{line}\n' for line in itertools.chain(first, out))
    else:
      for line in itertools.chain(first, out):
        print(line)
      sys.stdout.flush()
  except BrokenPipeError:  # the reader has seen enough; Python must not flush what is left
    if not terminal:
      os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  return int(not flags.hits)
