"""Files of text -> a stream of documents, and which part of each is held out for evaluation.

Formats go by suffix: `.txt`, `.md`, `.jsonl` (each may end in `.gz` or `.zst`), `.parquet`, and
`.arrayrecord`, whose records are JSON objects (they begin with '{') or UTF-8 text. Paths may be
globs or URLs that fsspec knows (`gs://bucket/shards/*.jsonl.zst`).
"""

import collections
import dataclasses
import functools
import hashlib
import json
import posixpath
import zlib
from typing import NamedTuple

import fsspec

from llmstack.errors import BadInput

READ = 1 << 20  # bytes per read


class Document(NamedTuple):
  id: str  # basename:index
  text: str


@dataclasses.dataclass(frozen=True)
class Source:
  """Which files, how they split into documents, and what is held out.

  files: paths, globs or URLs.
  field: the text's name in JSON objects and parquet tables.
  split_on: separator between the documents of a .txt file; '' = the file is one document.
  holdout: share held out for evaluation, 0 for none.
  holdout_by: 'document' = whole documents, chosen by a hash of their text, so that copies of one
    text fall on one side; 'tail' = the last share of the characters of every document.
  on_error: 'raise', or 'skip' = count bad records and files by kind and go on.
  """

  files: tuple[str, ...]
  field: str = 'text'
  split_on: str = ''
  holdout: float = 0.0
  holdout_by: str = 'document'
  on_error: str = 'raise'

  def __post_init__(self):
    if isinstance(self.files, str) or not self.files:
      raise BadInput(f'source.files is {self.files!r}: give a tuple of at least one path or glob')
    if not 0 <= self.holdout < 1:
      raise BadInput(f'source.holdout is {self.holdout}: give a share from 0 to below 1')
    for name, allowed in (('holdout_by', ('document', 'tail')), ('on_error', ('raise', 'skip'))):
      if getattr(self, name) not in allowed:
        raise BadInput(f'source.{name} is {getattr(self, name)!r}: choose from {allowed}')


class Bad(BadInput):
  """A bad file or record; `kind` is what skipped ones are counted under."""

  def __init__(self, kind, sentence):
    super().__init__(sentence)
    self.kind = kind


def filesystem(url):
  """Returns (fsspec filesystem, path). Raises: BadInput where the package for that kind of URL is missing."""
  try:
    return fsspec.core.url_to_fs(url)
  except (ImportError, ValueError) as error:
    raise BadInput(f'{url} cannot be opened: {error}; for gs:// install llmstack[gcs]') from None


def paths(source):
  """Returns [path], every file the patterns match, sorted by basename.

  Raises:
    BadInput: a pattern matches no file, or two files share a basename (ids would be ambiguous).
  """
  found = {}
  for pattern in source.files:
    fs, root = filesystem(pattern)
    matches = [path for path in fs.glob(root) if fs.isfile(path)]
    if not matches:
      raise BadInput(f'{pattern} matches no file: correct source.files')
    for path in matches:
      url = path if 'file' in fs.protocol else fs.unstrip_protocol(path)
      if found.setdefault(posixpath.basename(path), url) != url:
        raise BadInput(
          f'{url} and {found[posixpath.basename(path)]} have the same name: rename one, '
          'because document ids begin with it'
        )
  return [found[name] for name in sorted(found)]


def documents(source, counts=None):
  """Yields Document(id, text), files in sorted order; blank lines and blank parts are no documents.

  counts: collections.Counter that receives what on_error='skip' leaves out, by kind.

  Raises:
    BadInput: with the file and the line or byte, unless source.on_error is 'skip'.
  """
  counts = collections.Counter() if counts is None else counts
  for path in paths(source):
    records = _records(path, source)
    while True:
      # A bad record leaves its reader alive; a bad file ends it, and the loop with it.
      try:
        index, where, raw = next(records)
        text = _text(raw, where, source.field)
      except StopIteration:
        break
      except Bad as bad:
        if source.on_error == 'raise':
          raise
        counts[bad.kind] += 1
      else:
        yield Document(f'{posixpath.basename(path)}:{index}', text)


def objects(source):
  """Yields (where, dict) for each JSON line, in the order of `documents`. Raises: BadInput as it does."""
  for path in paths(source):
    for _, where, raw in _records(path, source):
      if not isinstance(raw, Json):
        raise BadInput(f'{where} is not a JSON line: give .jsonl files')
      yield where, parse(raw, where)


def rows(source, counts=None):
  """Yields (where, dict) for each JSON object or row of a parquet table, in the order of `documents`.

  counts, Raises: as `documents` has them.
  """
  counts = collections.Counter() if counts is None else counts
  for path in paths(source):
    records = _records(path, source)
    if path.endswith('.parquet'):
      records = ((i, f'{path}, row {i}', row) for i, row in enumerate(_parquet(path)))
    while True:
      try:
        _, where, raw = next(records)
        if not isinstance(raw, dict | Json):
          raise Bad('not a record', f'{where} is text, not a record with fields: give .jsonl or .parquet files')
        row = raw if isinstance(raw, dict) else parse(raw, where)
      except StopIteration:
        break
      except Bad as bad:
        if source.on_error == 'raise':
          raise
        counts[bad.kind] += 1
      else:
        yield where, row


def part(text, source, split):
  """Returns str: what of this document belongs to `split`; '' for nothing.

  'train' and 'eval' are disjoint and together everything.
  """
  if split not in ('train', 'eval'):
    raise ValueError(f'split is {split!r}: train or eval')
  if source.holdout_by == 'tail':
    cut = len(text) - round(len(text) * source.holdout)
    return text[:cut] if split == 'train' else text[cut:]
  hashed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big')
  return text if (hashed < source.holdout * 2**64) == (split == 'eval') else ''


def fingerprint(source):
  """Returns {basename: [bytes, blake2b hex]} over the full contents of every file."""
  out = {}
  for path in paths(source):
    fs, inner = filesystem(path)
    out[posixpath.basename(path)] = list(_digest(path, fs.ukey(inner)))
  return out


@functools.cache
def _digest(path, version):
  """Returns (bytes, blake2b hex), read once per process while `version` (size, time, etag) stays the same."""
  digest, size = hashlib.blake2b(digest_size=16), 0
  with fsspec.open(path, 'rb') as file:
    while chunk := file.read(READ):
      digest.update(chunk)
      size += len(chunk)
  return size, digest.hexdigest()


def _records(path, source):
  """Yields (index, where, raw) of one file; raw is bytes, a dict or a parquet value."""
  name = path.removesuffix('.gz').removesuffix('.zst')
  if name.endswith('.jsonl'):
    for index, (_, line) in enumerate(split(_content(path), b'\n')):
      if line.strip():
        yield index, f'{path}:{index + 1}', Json(line)
  elif name.endswith(('.txt', '.md')):
    for index, (offset, piece) in enumerate(split(_content(path), source.split_on.encode())):
      if piece.strip():
        yield index, f'{path}, part at byte {offset}', piece
  elif path.endswith('.parquet'):
    for index, value in enumerate(_parquet(path, source.field)):
      yield index, f'{path}, row {index}', value
  elif path.endswith(('.arrayrecord', '.array_record')):
    for index, record in enumerate(arrayrecord(path)):
      json_like = record.lstrip().startswith(b'{')
      yield index, f'{path}, record {index}', Json(record) if json_like else record
  else:
    raise Bad(
      'unknown suffix',
      f'{path} has an unknown suffix: use .txt, .md or .jsonl (.gz, .zst), .parquet or .arrayrecord',
    )


class Json(bytes):
  """Bytes that must hold a JSON object."""


def _text(raw, where, field):
  """Returns the text of a raw record."""
  return checked(pick(parse(raw, where), where, field) if isinstance(raw, Json) else raw, where, field)


def decoded(raw, where):
  """Returns str of UTF-8 bytes. Raises: Bad."""
  try:
    return raw.decode()
  except UnicodeDecodeError as error:
    raise Bad('not UTF-8', f'{where}, byte {error.start} in it is not UTF-8: re-encode the file') from None


def checked(value, where, field):
  """Returns str of a field's value, text or its UTF-8 bytes. Raises: Bad for anything else."""
  value = decoded(value, where) if isinstance(value, bytes) else value
  if not isinstance(value, str):
    raise Bad('field not text', f'{where}: field {field!r} is {type(value).__name__}, not text: fix the row')
  if not value.isascii():
    try:
      value.encode()  # JSON can spell half a surrogate pair, which no UTF-8 can hold
    except UnicodeEncodeError:
      raise Bad('not UTF-8', f'{where}: field {field!r} has a lone surrogate escape: fix the row') from None
  return value


def parse(line, where):
  """Returns dict of one JSON line. Raises: Bad."""
  try:
    record = json.loads(decoded(line, where))
  except (json.JSONDecodeError, RecursionError) as error:
    raise Bad('not JSON', f'{where} is not JSON ({error}): fix the line or set on_error skip') from None
  if not isinstance(record, dict):
    raise Bad('not JSON', f'{where} is JSON but not an object: write {{"text": ...}}')
  return record


def pick(record, where, field):
  """Returns record[field]. Raises: Bad, naming the fields that are there."""
  if field not in record:
    raise Bad('missing field', f'{where} has no field {field!r}, only {sorted(record)}: set source.field')
  return record[field]


def _content(path):
  """Yields the file's bytes in chunks, decompressed."""
  empty = True
  with fsspec.open(path, 'rb') as file:
    chunks = iter(lambda: file.read(READ), b'')
    for chunk in _inflate(path, chunks) if path.endswith(('.gz', '.zst')) else chunks:
      empty = empty and not chunk
      yield chunk
  if empty:
    raise Bad('empty file', f'{path} is empty: write it again or leave it out of source.files')


def _inflate(path, chunks):
  """Yields decompressed bytes; knows a truncated file, which zstandard's own reader does not."""
  if path.endswith('.gz'):
    open_stream, error = lambda: zlib.decompressobj(wbits=31), zlib.error
  else:
    import zstandard

    open_stream, error = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
  stream = None
  for chunk in chunks:
    while chunk:  # a file may be several streams in a row
      stream = stream or open_stream()
      try:
        yield stream.decompress(chunk)
      except error as reason:
        raise Bad('corrupt file', f'{path} cannot be decompressed ({reason}): copy it again') from None
      chunk = stream.unused_data if stream.eof else b''
      stream = None if stream.eof else stream
  if stream is not None:
    raise Bad('truncated file', f'{path} ends in the middle of its data: copy it again')


def split(chunks, separator, limit=None):
  """Yields (byte offset, piece) between separators; an empty separator gives one piece.

  limit: bytes of a piece; None stands for a longer one, of which no more than this is ever held.
  A chunk of None says that bytes were lost there: what lies around it, up to the separators, is left out.
  """
  buffer, offset, searched = bytearray(), 0, 0
  begin = fault = None  # of a piece that began before the buffer: its offset, and 'long' or 'lost'
  for chunk in chunks:
    if chunk is None:
      offset, searched, fault = offset + len(buffer), 0, 'lost'
      buffer.clear()
      continue
    buffer += chunk
    start = 0
    while separator and (end := buffer.find(separator, max(start, searched))) >= 0:
      if fault == 'long' or limit is not None and not fault and end - start > limit:
        yield begin if fault else offset + start, None
      elif not fault:
        yield offset + start, bytes(buffer[start:end])
      fault = None
      start = end + len(separator)
    del buffer[:start]
    offset += start
    if limit is not None and len(buffer) > limit + len(separator):
      begin, fault = (begin, fault) if fault else (offset, 'long')
      drop = len(buffer) - max(0, len(separator) - 1)
      del buffer[:drop]
      offset += drop
    searched = max(0, len(buffer) - len(separator) + 1)  # a separator may straddle two chunks
  if fault == 'long' or limit is not None and not fault and len(buffer) > limit:
    yield begin if fault else offset, None
  elif not fault:
    yield offset, bytes(buffer)


def _parquet(path, field=None):
  """Yields the values of a column, or dicts of all columns."""
  import pyarrow
  import pyarrow.parquet

  with fsspec.open(path, 'rb') as file:
    try:
      table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
      raise Bad('corrupt file', f'{path} is not a whole parquet file ({error}): copy it again') from None
    if field is not None and field not in table.schema_arrow.names:
      names = sorted(table.schema_arrow.names)
      raise Bad('missing field', f'{path} has no column {field!r}, only {names}: set source.field')
    for batch in table.iter_batches(columns=[field] if field else None):
      yield from batch.column(0).to_pylist() if field else batch.to_pylist()


def arrayrecord(path):
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(path)
  total = reader.num_records()
  if not reader.ok():
    raise Bad('corrupt file', f'{path} is empty or not a whole ArrayRecord file: copy it again')
  if not total:
    raise Bad('empty file', f'{path} has no record: write it again or leave it out of source.files')
  for start in range(0, total, 1024):
    yield from reader.read(start, min(start + 1024, total))
  reader.close()
