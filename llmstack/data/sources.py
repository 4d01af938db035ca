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


class _Bad(BadInput):
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
      except _Bad as bad:
        if source.on_error == 'raise':
          raise
        counts[bad.kind] += 1
      else:
        yield Document(f'{posixpath.basename(path)}:{index}', text)


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
    for index, (_, line) in enumerate(_split(_content(path), b'\n')):
      if line.strip():
        yield index, f'{path}:{index + 1}', _Json(line)
  elif name.endswith(('.txt', '.md')):
    for index, (offset, piece) in enumerate(_split(_content(path), source.split_on.encode())):
      if piece.strip():
        yield index, f'{path}, part at byte {offset}', piece
  elif path.endswith('.parquet'):
    for index, value in enumerate(_parquet(path, source.field)):
      yield index, f'{path}, row {index}', value
  elif path.endswith(('.arrayrecord', '.array_record')):
    for index, record in enumerate(_arrayrecord(path)):
      json_like = record.lstrip().startswith(b'{')
      yield index, f'{path}, record {index}', _Json(record) if json_like else record
  else:
    raise _Bad(
      'unknown suffix',
      f'{path} has an unknown suffix: use .txt, .md or .jsonl (.gz, .zst), .parquet or .arrayrecord',
    )


class _Json(bytes):
  """Bytes that must hold a JSON object."""


def _text(raw, where, field):
  """Returns the text of a raw record."""
  if isinstance(raw, bytes):
    try:
      value = raw.decode()
    except UnicodeDecodeError as error:
      raise _Bad('not UTF-8', f'{where}, byte {error.start} in it is not UTF-8: re-encode the file') from None
    if isinstance(raw, _Json):
      value = _field(value, where, field)
  else:
    value = raw
  if not isinstance(value, str):
    raise _Bad('field not text', f'{where}: field {field!r} is {type(value).__name__}, not text: fix the row')
  if not value.isascii():
    try:
      value.encode()  # JSON can spell half a surrogate pair, which no UTF-8 can hold
    except UnicodeEncodeError:
      raise _Bad('not UTF-8', f'{where}: field {field!r} has a lone surrogate escape: fix the row') from None
  return value


def _field(line, where, field):
  try:
    record = json.loads(line)
  except json.JSONDecodeError as error:
    raise _Bad('not JSON', f'{where} is not JSON ({error.msg}): fix the line or set on_error skip') from None
  if not isinstance(record, dict):
    raise _Bad('not JSON', f'{where} is JSON but not an object: write {{"{field}": ...}}')
  if field not in record:
    raise _Bad('missing field', f'{where} has no field {field!r}, only {sorted(record)}: set source.field')
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
    raise _Bad('empty file', f'{path} is empty: write it again or leave it out of source.files')


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
        raise _Bad('corrupt file', f'{path} cannot be decompressed ({reason}): copy it again') from None
      chunk = stream.unused_data if stream.eof else b''
      stream = None if stream.eof else stream
  if stream is not None:
    raise _Bad('truncated file', f'{path} ends in the middle of its data: copy it again')


def _split(chunks, separator):
  """Yields (byte offset, piece) between separators; an empty separator gives one piece."""
  buffer, offset, searched = bytearray(), 0, 0
  for chunk in chunks:
    buffer += chunk
    start = 0
    while separator and (end := buffer.find(separator, max(start, searched))) >= 0:
      yield offset + start, bytes(buffer[start:end])
      start = end + len(separator)
    del buffer[:start]
    offset += start
    searched = max(0, len(buffer) - len(separator) + 1)  # a separator may straddle two chunks
  yield offset, bytes(buffer)


def _parquet(path, field):
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError:
    raise BadInput(f"{path} needs pyarrow: pip install 'llmstack[parquet]'") from None
  with fsspec.open(path, 'rb') as file:
    try:
      table = pyarrow.parquet.ParquetFile(file)
    except pyarrow.ArrowInvalid as error:
      raise _Bad('corrupt file', f'{path} is not a whole parquet file ({error}): copy it again') from None
    if field not in table.schema_arrow.names:
      names = sorted(table.schema_arrow.names)
      raise _Bad('missing field', f'{path} has no column {field!r}, only {names}: set source.field')
    for rows in table.iter_batches(columns=[field]):
      yield from rows.column(0).to_pylist()


def _arrayrecord(path):
  from array_record.python.array_record_module import ArrayRecordReader

  reader = ArrayRecordReader(path)
  total = reader.num_records()
  if not reader.ok():
    raise _Bad('corrupt file', f'{path} is empty or not a whole ArrayRecord file: copy it again')
  if not total:
    raise _Bad('empty file', f'{path} has no record: write it again or leave it out of source.files')
  for start in range(0, total, 1024):
    yield from reader.read(start, min(start + 1024, total))
  reader.close()
