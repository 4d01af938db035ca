"""Documents -> rows of T+1 tokens -> a folder of ArrayRecord files with a manifest.

A row is one training example: tokens and, beside them, segments, the number of the document within
the row (0 = padding). A document longer than a row goes into pieces that overlap by one token, the
last target of one being the first input of the next: every token but a document's first is a
target exactly once, and no target crosses from one document to another.
"""

import collections
import contextlib
import hashlib
import itertools
import json
import logging
import os
import tempfile

import numpy as np

from llmstack.data import sources
from llmstack.data.batch import loss_mask
from llmstack.errors import BadInput

FORMAT = 1  # of the row files and the manifest
CHUNK = 1 << 22  # tokens that are packed together: bounds memory, and the search for a fit
ROWS_PER_FILE = 1 << 16
BLOCK = 1024  # rows handled at once while writing

log = logging.getLogger(__name__)


def pack(docs, length, method):
  """Yields rows (tokens int32[T+1], segments int32[T+1]).

  docs: iterable of int[n], each with its BOS and EOS. One of a single token has no target and is
    left out.
  length: T+1.
  method: 'best_fit' cuts only documents longer than a row and fits the rest whole; 'concat' cuts
    one endless stream, so that nothing is padded and most rows begin inside a document.

  Source: best_fit is Ding et al. 2024, Fewer Truncations Improve Language Modeling, section 3, on
    chunks of about 4M tokens rather than on the whole corpus, so that memory is bounded.
  """
  if method not in ('best_fit', 'concat'):
    raise BadInput(f'packing method is {method!r}: choose best_fit or concat')
  if not 2 <= length <= 65536:
    raise BadInput(f'row length is {length}: choose from 2 to 65536 (segments are stored as uint16)')
  docs = (np.asarray(doc, np.int32) for doc in docs if len(doc) > 1)
  yield from (_best_fit if method == 'best_fit' else _concat)(docs, length)


def _chunks(docs):
  """Yields lists of documents of about CHUNK tokens."""
  chunk, size = [], 0
  for doc in docs:
    chunk.append(doc)
    size += len(doc)
    if size >= CHUNK:
      yield chunk
      chunk, size = [], 0
  if chunk:
    yield chunk


def _concat(docs, length):
  step = length - 1
  stream, owner = np.zeros(0, np.int32), np.zeros(0, np.int32)  # tokens, and whose they are
  for chunk in itertools.chain(_chunks(docs), [None]):
    if chunk is None:
      missing = -(len(stream) - 1) % step if len(stream) > 1 else 0
      stream, owner = np.pad(stream, (0, missing)), np.pad(owner, (0, missing), constant_values=-1)
    else:
      following = np.arange(len(chunk), dtype=np.int32) + (owner[-1] + 1 if len(owner) else 0)
      owner = np.concatenate([owner, np.repeat(following, [len(doc) for doc in chunk])])
      stream = np.concatenate([stream, *chunk])
    count = max(0, len(stream) - 1) // step
    window = np.arange(count)[:, None] * step + np.arange(length)
    tokens, owners = stream[window], owner[window]
    segments = np.ones_like(owners)
    segments[:, 1:] += np.cumsum(owners[:, 1:] != owners[:, :-1], axis=1, dtype=np.int32)
    segments[owners < 0] = 0
    yield from zip(tokens, segments)
    # The border token opens the next chunk's first row, as it does between rows.
    stream, owner = stream[count * step :], owner[count * step :]


def _best_fit(docs, length):
  for chunk in _chunks(docs):
    pieces = [doc[i : i + length] for doc in chunk for i in range(0, len(doc) - 1, length - 1)]
    size = np.array([len(piece) for piece in pieces])
    row, start, segment = place(size, length)
    tokens = np.zeros((row.max() + 1) * length, np.int32)
    segments = np.zeros_like(tokens)
    flat = np.concatenate(pieces)
    target = np.repeat(row * length + start - (np.cumsum(size) - size), size) + np.arange(len(flat))
    tokens[target] = flat
    segments[target] = np.repeat(segment, size)
    yield from zip(tokens.reshape(-1, length), segments.reshape(-1, length))


def place(size, length):
  """Returns (row, start, segment) of each piece: best fit, longest piece first.

  Rows with room wait in one stack per amount of room, and the bits of the integer `rooms` say
  which stacks are not empty: the tightest fit is the lowest bit at or above the size, found in
  length/64 machine words.
  """
  row, start, segment = (np.empty(len(size), np.int64) for _ in range(3))
  waiting = [[] for _ in range(length + 1)]
  used = []  # pieces per row
  rooms = 0
  for piece in np.argsort(-size, kind='stable').tolist():
    need = int(size[piece])
    if fits := rooms >> need:
      room = need + (fits & -fits).bit_length() - 1
      r = waiting[room].pop()
      if not waiting[room]:
        rooms ^= 1 << room
    else:
      r, room = len(used), length
      used.append(0)
    used[r] += 1
    row[piece], start[piece], segment[piece] = r, length - room, used[r]
    if left := room - need:
      waiting[left].append(r)
      rooms |= 1 << left
  return row, start, segment


def place_two(size, room, group=1 << 14):
  """Returns (row, start, segment) of pieces that take room of two kinds, start int64[n,2]: best fit, largest first.

  A piece is as large as the greater share that it takes of either room, and fits best where the rest of both shares
  is least. Every open row is looked at, so pieces are placed in groups.

  size: int[n,2]. room: int[2], of an empty row.
  """
  room, count = np.asarray(room), 0
  row, segment, start = np.empty(len(size), np.int64), np.empty(len(size), np.int64), np.empty(size.shape, np.int64)
  for begin in range(0, len(size), group):
    part = size[begin : begin + group]
    left, used = np.tile(room, (len(part), 1)), np.zeros(len(part), np.int64)
    last = 0  # rows of the group that are in use
    for piece in np.argsort(-(part / room).max(1), kind='stable').tolist():
      rest = left[:last] - part[piece]
      loose = np.where((rest >= 0).all(1), (rest / room).sum(1), np.inf)
      r = int(loose.argmin()) if last and np.isfinite(loose.min()) else last
      last = max(last, r + 1)
      i = begin + piece
      used[r] += 1
      row[i], start[i], segment[i] = count + r, room - left[r], used[r]
      left[r] -= part[piece]
    count += last
  return row, start, segment


def permute(index, size, key):
  """Returns int64[n]: the images of `index` under a permutation of range(size) that key names.

  A Feistel network on just enough bits, walked until it falls inside: any element in O(1), no
  table, and (unlike numpy's generators) the same in every numpy for ever.

  index: int[n] in range(size).
  key: uint64, or uint64[n] for a permutation per element.

  Source: Black and Rogaway 2002, Ciphers with Arbitrary Finite Domains, section 4 (cycle walking).
  """
  out = np.array(index, np.uint64)
  key = np.broadcast_to(np.asarray(key, np.uint64), out.shape)
  bits = (size - 1).bit_length()
  walking = np.arange(len(out)) if bits else np.arange(0)
  while len(walking):
    x, k = out[walking], key[walking]
    low = bits // 2
    for turn in range(8):
      high, half = x >> np.uint64(low), x & np.uint64((1 << low) - 1)
      mixed = (high ^ scramble(half + k + np.uint64(turn))) & np.uint64((1 << (bits - low)) - 1)
      x, low = (half << np.uint64(bits - low)) | mixed, bits - low
    out[walking] = x
    walking = walking[x >= size]
  return out.astype(np.int64)


def scramble(x):
  """Returns uint64[n], well mixed. Source: splitmix64's finaliser (Steele et al. 2014)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def digest(value):
  """Returns 32 hex characters: blake2b of the value's canonical JSON."""
  canonical = json.dumps(value, sort_keys=True, separators=(',', ':')).encode()
  return hashlib.blake2b(canonical, digest_size=16).hexdigest()


def seed_key(*parts):
  """Returns uint64: the permutation key of these JSON values."""
  return np.uint64(int(digest(parts)[:16], 16))


def row_dtype(length, vocab, kind='text', pairs=0, prompt=0):
  """Returns the numpy dtype of one stored row, its fields one after the other, little-endian.

  kind: 'text' has tokens and segments; 'chat' also the mask of what is trained on; 'pairs' has all three for two
    completions per prompt, and a margin and a label for each of up to `pairs` of them.
  prompt: columns of the prompts that the two share, 0 where each has its own.
  """
  token = '<u2' if vocab <= 65536 else '<u4'
  shape = (2, length) if kind == 'pairs' else (length,)
  fields = [('tokens', token, shape), ('segments', '<u2', shape)]
  if kind != 'text':
    fields.append(('mask', 'u1', shape))
  if prompt:
    fields += [('prompt', token, (prompt,)), ('prompt_segments', '<u2', (prompt,))]
  if kind == 'pairs':
    fields += [('margin', '<f4', (pairs,)), ('label', '<f4', (pairs,))]
  return np.dtype(fields)


def write_rows(
  rows, folder, *, vocab, seed, manifest_fields, rows_per_file=ROWS_PER_FILE, kind='text', pairs=0, prompt=0
):
  """Returns the manifest of `folder`, which appears whole or not at all, rows globally shuffled.

  rows: iterable of (tokens int32[T+1], segments int32[T+1]), or of what else a row of this kind has.
  folder: path to create.
  seed: of the shuffle. Rows are spilled to disk first, so memory stays bounded.
  manifest_fields: {name: JSON value}, read after the last row, so that it may hold running counts.

  Raises:
    BadInput: there is no row.
  """
  folder = os.path.abspath(folder)
  os.makedirs(os.path.dirname(folder), exist_ok=True)
  with tempfile.TemporaryDirectory(dir=os.path.dirname(folder), prefix='.packing-') as scratch:
    spill = os.path.join(scratch, 'spill')
    counts = _spill(rows, spill, vocab, kind, pairs, prompt)
    if not counts['targets']:
      raise BadInput(
        f'no token is left to pack into {folder}: check the source and its field, or set another holdout or holdout_by'
      )
    partial = os.path.join(scratch, 'rows')
    os.mkdir(partial)
    dtype = row_dtype(counts['length'], vocab, kind, pairs, prompt)
    manifest = dict(manifest_fields, format=FORMAT, vocab=vocab, seed=seed, **counts)
    manifest |= {} if kind == 'text' else dict(kind=kind, pairs=pairs)
    manifest |= dict(prompt=prompt) if prompt else {}
    manifest['token_dtype'] = dtype['tokens'].base.name
    manifest['files'] = _write_files(np.memmap(spill, dtype, 'r'), partial, seed, rows_per_file)
    manifest['fingerprint'] = digest(manifest)
    with open(os.path.join(partial, 'manifest.json'), 'w') as file:
      json.dump(manifest, file, indent=2, sort_keys=True)
    try:
      os.rename(partial, folder)
    except OSError:
      if not os.path.exists(os.path.join(folder, 'manifest.json')):
        raise
      log.info('%s was packed by another process meanwhile', folder)
  return manifest


def _blocks(rows, vocab, counts, kind='text', pairs=0, prompt=0):
  """Yields blocks of stored rows; counts: rows, length, tokens and targets, updated."""
  rows = iter(rows)
  while block := list(itertools.islice(rows, BLOCK)):
    fields = [np.stack(part) for part in zip(*block)]
    tokens, segments = fields[:2]
    if tokens.min() < 0 or tokens.max() >= vocab:
      raise ValueError(f'token {tokens.max()} is outside the vocabulary of {vocab}')
    counts['length'] = tokens.shape[-1]
    dtype = row_dtype(tokens.shape[-1], vocab, kind, pairs, prompt)
    stored = np.empty(len(block), dtype)
    for name, field in zip(dtype.names, fields, strict=True):
      stored[name] = field
    counts['rows'] += len(block)
    counts['tokens'] += sum(int(np.count_nonzero(stored[name])) for name in dtype.names if 'segments' in name)
    learnt = loss_mask(segments) if kind == 'text' else loss_mask(segments) & (fields[2][..., 1:] != 0)
    counts['targets'] += int(np.count_nonzero(learnt))
    yield stored


def _spill(rows, path, vocab, kind, pairs, prompt):
  """Returns {rows, length, tokens, targets, fill}; writes the rows to `path` as they come."""
  counts = dict(rows=0, length=0, tokens=0, targets=0)
  with open(path, 'wb') as file:
    for stored in _blocks(rows, vocab, counts, kind, pairs, prompt):
      file.write(stored.tobytes())
  places = counts['rows'] * (counts['length'] * (2 if kind == 'pairs' else 1) + prompt)
  return counts | dict(fill=counts['tokens'] / places if places else 0.0)


@contextlib.contextmanager
def _writing(path):
  """Yields write(bytes) into a new ArrayRecord file."""
  from array_record.python.array_record_module import ArrayRecordWriter

  writer = ArrayRecordWriter(path, 'group_size:1,uncompressed')
  try:
    yield writer.write
  finally:
    writer.close()


def _file(path):
  """Returns {size, blake2b} of a file."""
  with open(path, 'rb') as file:
    content = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
  return dict(size=os.path.getsize(path), blake2b=content.hexdigest())


def _write_files(stored, folder, seed, rows_per_file):
  """Returns [{name, size, rows, blake2b}] of the files written from the shuffled rows."""
  key = seed_key('write', seed)
  total, files = len(stored), []
  shards = -(-total // rows_per_file)
  for shard in range(shards):
    name = f'rows-{shard:05d}-of-{shards:05d}.arrayrecord'
    path = os.path.join(folder, name)
    begin, stop = shard * rows_per_file, min(total, (shard + 1) * rows_per_file)
    with _writing(path) as write:
      for start in range(begin, stop, BLOCK):
        for i in permute(np.arange(start, min(start + BLOCK, stop)), total, key):
          write(stored[i].tobytes())
    files.append(dict(name=name, rows=stop - begin, **_file(path)))
  return files


def write_shard(rows, path, vocab):
  """Returns {rows, length, tokens, targets, size, blake2b} of one file of rows in the order they come.

  For corpora that are packed file by file (`finish_folder`); the pipeline's order is random all the same.
  """
  counts = dict(rows=0, length=0, tokens=0, targets=0)
  with _writing(path) as write:
    for block in _blocks(rows, vocab, counts):
      for row in block:
        write(row.tobytes())
  return counts | _file(path)


def write_documents(records, path):
  """Returns {rows, size, blake2b} of one file of JSON objects, for random access to text."""
  rows = 0
  with _writing(path) as write:
    for record in records:
      write(json.dumps(record, ensure_ascii=False).encode())
      rows += 1
  return dict(rows=rows, **_file(path))


def finish_folder(folder, shards, *, vocab, seed, manifest_fields):
  """Returns the manifest of a folder of `write_shard` files, written last: without it the folder is not whole.

  shards: ['name' of the file and its counts] in order; files without a row are left out.
  manifest_fields: {name: JSON value}.

  Raises:
    BadInput: there is no target.
  """
  shards = [c for c in shards if c['rows']]
  counts = {k: sum(c[k] for c in shards) for k in ('rows', 'tokens', 'targets')}
  if not counts['targets']:
    raise BadInput(f'no token is left to pack into {folder}: loosen the rules, or leave the source out')
  length = shards[0]['length']
  files = [{k: c[k] for k in ('name', 'size', 'rows', 'blake2b')} for c in shards]
  manifest = dict(
    manifest_fields, format=FORMAT, vocab=vocab, seed=seed, length=length, **counts,
    fill=counts['tokens'] / (counts['rows'] * length), files=files,
    token_dtype=row_dtype(length, vocab)['tokens'].base.name,
  )  # fmt: skip
  manifest['fingerprint'] = digest(manifest)
  path = os.path.join(folder, 'manifest.json')
  with open(f'{path}.tmp', 'w') as file:
    json.dump(manifest, file, indent=2, sort_keys=True)
  os.replace(f'{path}.tmp', path)
  return manifest


def prepare(name, source, tokenizer, *, length, method, seed, folder, split):
  """Returns the path of the packed rows of `source`, packing them unless they are there already.

  The path names everything the rows depend on: contents of the source files, tokenizer, length,
  method, seed and holdout. A source of one folder that holds a manifest.json, or one in its train and eval, is used as
  it is.

  name: of the component, for the path.
  tokenizer: Tokenizer.
  length: T+1.
  folder: where packed folders live.
  split: 'train' or 'eval'.

  Raises:
    BadInput: the source is bad, or this split of it is empty.
  """
  if ready := packed(source, split):
    manifest = read_manifest(ready)
    wanted = dict(length=length, tokenizer=tokenizer.fingerprint, split=split)
    if wrong := [f'{k} {manifest.get(k)}, not {v}' for k, v in wanted.items() if manifest.get(k) != v]:
      raise BadInput(f'{ready} was packed with {"; ".join(wrong)}: pack the text again')
    return ready
  fields = dict(
    source=sources.fingerprint(source),
    reading=[source.field, source.split_on, source.on_error],
    holdout=[source.holdout, source.holdout_by],
    split=split,
    tokenizer=tokenizer.fingerprint,
    method=method,
  )
  path = os.path.join(folder, f'{name}-{split}-{digest([fields, length, seed, FORMAT])[:12]}')
  if read_manifest(path):
    return path
  fields.update(documents=0, source_bytes=0, skipped=collections.Counter())
  rows = pack(encode(_training_text(source, split, fields), tokenizer), length, method)
  manifest = write_rows(rows, path, vocab=tokenizer.vocab, seed=seed, manifest_fields=fields)
  log.info(
    'packed %s: %d documents, %d tokens, %d rows, %.2f %% of positions used, skipped %s',
    path, manifest['documents'], manifest['tokens'], manifest['rows'], 100 * manifest['fill'],
    dict(manifest['skipped']),
  )  # fmt: skip
  return path


def packed(source, split):
  """Returns the folder of a source that is packed, or that holds a packed folder per split; None where it is text."""
  if len(source.files) != 1:
    return None
  folder = source.files[0].rstrip('/')
  if read_manifest(folder):
    return folder
  return f'{folder}/{split}' if read_manifest(f'{folder}/{split}') else None


def read_manifest(folder):
  """Returns the manifest of a packed folder, None where there is none."""
  fs, root = sources.filesystem(folder)
  if not fs.exists(f'{root}/manifest.json'):
    return None
  with fs.open(f'{root}/manifest.json', 'rb') as file:
    return json.load(file)


def _training_text(source, split, counts):
  """Yields the text of each document of the split; updates the counts."""
  for document in sources.documents(source, counts['skipped']):
    if not document.text:
      counts['skipped']['empty document'] += 1
    if text := sources.part(document.text, source, split):
      counts['documents'] += 1
      counts['source_bytes'] += len(text.encode())
      yield text


def encode(texts, tokenizer):
  """Yields int32[n] per text, BOS and EOS around it."""
  bos, eos = ([] if i is None else [i] for i in (tokenizer.bos, tokenizer.eos))
  texts = iter(texts)
  while group := list(itertools.islice(texts, 256)):
    for ids in tokenizer.encode_batch(group):
      yield np.concatenate([bos, ids, eos]).astype(np.int32)
