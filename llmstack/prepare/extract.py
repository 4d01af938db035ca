"""Raw files of any kind -> documents (id, text). What is bad in them is skipped, counted and named.

By suffix, each also with `.gz` or `.zst` behind it where that can be:
  .jsonl .ndjson .json   a JSON object a line
  .parquet .arrow        rows; also a folder that datasets' `save_to_disk` wrote; .arrayrecord: JSON objects or text
  .warc .wet .wat        pages with status 200 that are HTML or plain text, and texts that a crawl extracted
  .html .htm .xhtml      one page, its main content
  anything else          text, cut at `split_on`; a file with NUL bytes at its beginning is binary and skipped

A fault in a .gz or .zst costs the member (frame) that it is in: reading goes on with the next one. A member larger than
`max_bytes` is read as it comes, so that what precedes its fault is kept.
"""

import codecs
import collections
import dataclasses
import glob
import io
import os
import posixpath
import re
import string
import zlib

import fsspec

from llmstack.data import sources
from llmstack.data.sources import Bad
from llmstack.errors import BadInput

PLACES = 20  # named of each kind
# Compressed bytes at a time, which can be a thousand times as many in gzip and 32,000 times in zstd.
PIECE = {'.gz': 8192, '.zst': 128}
HEADERS = 1 << 16  # bytes, more than any WARC record's
DEPTH = 3000  # nested elements; finding a page's main content takes the square of it, at 3000 a fifth of a second
# Elements that end one another are left out: a page may have thousands of <li>, none in another.
NESTING = re.compile(
  r'<(/?)(?:div|span|b|i|u|em|font|a|ul|ol|table|section|article|blockquote|center|small|big)\b', re.I
)
MAGIC = {'.gz': b'\x1f\x8b\x08', '.zst': b'\x28\xb5\x2f\xfd'}
BEGIN = re.compile(rb'WARC/1\.\d\r?\n')  # of a WARC record, at most 10 bytes
BLANK = re.compile(rb'[\r\n]*')
PAGES = ('text/html', 'application/xhtml+xml', 'text/plain')


@dataclasses.dataclass(frozen=True)
class Raw:
  """Where the raw text of one source is, and which part of a record it is.

  files: paths, globs (** for any depth) or URLs.
  text: the field of records, or a template of fields: '{question}\\n{answer}'.
  id: the field that holds an id of its own, or a WARC header ('url' for short); '' = the place in the file.
  split_on: separator between the documents of a text file; '' = the file is one document.
  max_bytes: of one record; longer ones are skipped.
  synthetic: it was written by a model.
  """

  files: tuple[str, ...]
  text: str = 'text'
  id: str = ''
  split_on: str = ''
  max_bytes: int = 64 << 20
  synthetic: bool = False

  def __post_init__(self):
    if isinstance(self.files, str) or not self.files:
      raise BadInput(f'files is {self.files!r}: give a tuple of at least one path or glob')
    if self.max_bytes < 1:
      raise BadInput(f'max_bytes is {self.max_bytes}: give at least 1')
    _fields(self.text)


class Skipped:
  """What was left out: how many of each kind, and where the first of each kind were, as sentences."""

  def __init__(self):
    self.counts, self.places = {}, []

  def add(self, kind, where, n=1):
    before = self.counts.get(kind, 0)
    self.counts[kind] = before + n
    if before < PLACES:
      self.places.append(f'{kind}: {where}')

  def to_json(self):
    return {'counts': self.counts, 'places': self.places}

  def rows(self, source):
    """Returns [{'source', 'kind', 'count', 'places'}]."""
    named = lambda kind: [place for place in self.places if place.startswith(f'{kind}: ')][:PLACES]  # noqa: E731
    return [{'source': source, 'kind': k, 'count': n, 'places': named(k)} for k, n in self.counts.items()]

  @classmethod
  def merged(cls, parts):
    """Returns the Skipped of several; parts: of `to_json`."""
    out = cls()
    for part in parts:
      out.places += part['places']
      for kind, n in part['counts'].items():
        out.counts[kind] = out.counts.get(kind, 0) + n
    return out


def files(raw):
  """Returns [(name, url)] sorted by name, which is the path below the part of the pattern that has no wildcard.

  Raises: BadInput where a pattern matches no file, or two files have one name.
  """
  found, seen = {}, set()
  for pattern in raw.files:
    fs, root = sources.filesystem(pattern)
    if fs.isdir(root):
      folder, matches = root, fs.glob(posixpath.join(root, 'data-*.arrow'))
      if not matches:
        raise BadInput(f'{pattern} is a folder without data-*.arrow: name its files, as in {pattern.rstrip("/")}/**')
    elif fs.isfile(root):
      folder, matches = posixpath.dirname(root), [root]
    else:
      folder = posixpath.dirname(re.split(r'[*?\[]', root)[0])
      if 'file' in fs.protocol:  # ten times as fast where ** goes through a large folder
        matches = [path for path in glob.glob(root, recursive=True) if os.path.isfile(path)]
      else:
        matches = [path for path, info in fs.glob(root, detail=True).items() if info['type'] in ('file', 'link')]
    if not matches:
      raise BadInput(f'{pattern} matches no file: correct files')
    for path in sorted(matches):
      url, name = (path if 'file' in fs.protocol else fs.unstrip_protocol(path)), posixpath.relpath(path, folder)
      if url in seen:
        continue
      seen.add(url)
      if found.setdefault(name, url) != url:
        raise BadInput(f'{url} and {found[name]} both have the name {name}: put them under one glob, ids begin with it')
  return sorted(found.items())


def size(url):
  """Returns int, bytes of a file or URL."""
  fs, path = sources.filesystem(url)
  return fs.size(path)


def documents(url, name, raw, skipped):
  """Yields (id, text) of one file; skipped: Skipped, receives what is left out.

  Raises: BadInput where the file cannot be opened, a package is missing, or no record has the fields asked for.
  """
  fields = _fields(raw.text)
  records, lacking, where = 0, 0, url
  for key, where, value in _records(url, raw, skipped):
    try:
      if isinstance(value, sources.Json):
        value = sources.parse(value, where)
      if isinstance(value, dict):
        records += 1
        lacking += any(field not in value for field in fields) or bool(raw.id and raw.id not in value)
        key = _own(value, where, raw.id) if raw.id else key
        value = _spell(value, where, raw.text, fields)
      text = sources.checked(value, where, raw.text)
    except Bad as bad:
      skipped.add(bad.kind, str(bad))
      continue
    if len(text) > raw.max_bytes:
      skipped.add('longer than max_bytes', f'{where} has {len(text)} characters, max_bytes is {raw.max_bytes}')
      continue
    if '\0' in text:
      skipped.add('NUL bytes removed', where)
      text = text.replace('\0', '')
    if not text.strip():
      skipped.add('no text', where)
      continue
    yield f'{name}:{key}', text
  if records and lacking == records:
    asked = [*fields, raw.id] if raw.id else fields
    raise BadInput(f'{url}: none of its {records} records has all of the fields {asked}: correct text and id; {where}')


def _fields(text):
  """Returns the fields of a template, or [text]. Raises: BadInput."""
  if '{' not in text:
    return [text]
  try:
    parts = list(string.Formatter().parse(text))
  except ValueError as error:
    raise BadInput(f'text is {text!r}: {error}; write fields as {{field}}, a brace as {{{{') from None
  fields = [field for _, field, _, _ in parts if field is not None]
  if not all(fields) or any(spec or conversion for _, _, spec, conversion in parts):
    raise BadInput(f'text is {text!r}: every field needs a name and nothing else, as in {{question}}')
  return fields


def _spell(record, where, text, fields):
  values = {}
  for field in fields:
    value = sources.pick(record, where, field)
    if value is None:
      raise Bad('null field', f'{where}: field {field!r} is null')
    values[field] = sources.checked(value, where, field)
  if '{' not in text:
    return values[text]
  return ''.join(before + values.get(field, '') for before, field, _, _ in string.Formatter().parse(text))


def _own(record, where, field):
  value = record.get(field)
  if isinstance(value, bool) or not isinstance(value, str | int) or value == '':
    raise Bad('no id of its own', f'{where}: field {field!r} is {value!r}, no id')
  return sources.checked(str(value), where, field)


def _records(url, raw, skipped):
  """Yields (key, where, value): Json, a dict of fields, or text as str or UTF-8 bytes."""
  name = re.sub(r'\.(gz|zst)$', '', url)
  suffix = posixpath.splitext(name)[1].lower()
  if suffix in ('.parquet', '.arrow'):
    reader = _rows(url, suffix, raw, skipped)
  elif suffix in ('.arrayrecord', '.array_record'):
    reader = _arrayrecord(url, raw, skipped)
  elif suffix in ('.jsonl', '.ndjson', '.json'):
    reader = _lines(url, raw, skipped)
  elif suffix in ('.warc', '.wet', '.wat'):
    reader = _pages(url, raw, skipped)
  elif suffix in ('.html', '.htm', '.xhtml'):
    reader = _page(url, raw, skipped)
  else:
    reader = _pieces(url, raw, skipped)
  try:
    yield from reader
  except (FileNotFoundError, PermissionError) as error:
    raise BadInput(f'{url} cannot be opened: {error}') from None


def _lines(url, raw, skipped):
  # What a fault leaves of a line ends there: the next member's first line is whole, as a rule.
  chunks = (b'\n' if chunk is None else chunk for chunk in _utf8(url, raw, skipped))
  for index, (offset, line) in enumerate(sources.split(chunks, b'\n', raw.max_bytes)):
    if line is None:
      skipped.add('longer than max_bytes', f'{url}:{index + 1}, which begins at byte {offset}')
    elif line and not line.isspace():
      yield index, f'{url}:{index + 1}', sources.Json(line)


def _pieces(url, raw, skipped):
  known = url.removesuffix('.gz').removesuffix('.zst').endswith(('.txt', '.md'))
  chunks = _utf8(url, raw, skipped)
  first = next(chunks, None)
  if first is None:
    return
  if not known and b'\0' in first:
    skipped.add('binary file', f'{url} has a NUL in its first {len(first)} bytes and is none of the formats read here')
    return
  chunks = (chunk for part in ((first,), chunks) for chunk in part)
  for index, (offset, piece) in enumerate(sources.split(chunks, raw.split_on.encode(), raw.max_bytes)):
    where = f'{url}, part at byte {offset}'
    if piece is None:
      skipped.add('longer than max_bytes', where)
    elif piece and not piece.isspace():
      yield index, where, _decoded(piece, where, skipped)


def _page(url, raw, skipped):
  chunks = (chunk for _, chunk in _content(url, raw, skipped))
  for offset, page in sources.split(chunks, b'', raw.max_bytes):
    if page is None:
      skipped.add('longer than max_bytes', f'{url}, from byte {offset}')
    elif page and (text := _main(page, '', url, skipped)) is not None:
      yield 0, url, text


def _resiliparse():
  """Returns (html2text, encoding), the modules."""
  try:
    from resiliparse.extract import html2text
    from resiliparse.parse import encoding
  except ImportError:
    raise BadInput("pages and texts that are not UTF-8 need resiliparse: pip install 'llmstack[data]'") from None
  return html2text, encoding


def _decoded(data, where, skipped, charset='', html=False):
  """Returns str: by its byte order mark, then `charset`, then what an HTML page says, then UTF-8, then by detection."""
  for mark, name in (
    (codecs.BOM_UTF8, 'utf-8'),
    (codecs.BOM_UTF16_LE, 'utf-16-le'),
    (codecs.BOM_UTF16_BE, 'utf-16-be'),
  ):
    if data.startswith(mark):
      return data[len(mark) :].decode(name, 'replace')
  if not charset and not html:
    try:
      return data.decode()
    except UnicodeDecodeError:
      skipped.add('re-encoded', where)
  _, encoding = _resiliparse()
  known = encoding.map_encoding_to_html5(charset.strip('\'" '), fallback_utf8=False) if charset else None
  return encoding.bytes_to_str(data, known or encoding.detect_encoding(data, from_html_meta=html), errors='replace')


def _main(page, charset, where, skipped):
  """Returns the main text of a page; None where that is not to be had."""
  html2text, _ = _resiliparse()
  html = _decoded(page, where, skipped, charset, html=True)
  if html.count('<') > DEPTH:
    depth = deepest = 0
    for tag in NESTING.finditer(html):
      depth = max(0, depth - 1) if tag[1] else depth + 1
      deepest = max(deepest, depth)
    if deepest > DEPTH:
      skipped.add('nested too deep', f'{where}: {deepest} elements in one another')
      return None
  return html2text.extract_plain_text(html, main_content=True)


def _content(url, raw, skipped):
  """Yields (byte of the file where its gzip member or zstd frame begins, bytes); (byte, None) where some are lost."""
  empty = True
  with fsspec.open(url, 'rb') as file:
    suffix = posixpath.splitext(url)[1]
    if suffix in MAGIC:
      chunks = _inflated(url, file, suffix, raw.max_bytes, skipped)
    else:
      chunks = ((0, chunk) for chunk in iter(lambda: file.read(sources.READ), b''))
    for start, chunk in chunks:
      empty = False
      yield start, chunk
  if empty:
    skipped.add('empty file', url)


def _inflated(url, file, suffix, limit, skipped):
  """Yields what `_content` does; a member of up to `limit` bytes is held until its checksum is seen to be right."""
  if suffix == '.gz':
    fresh, error = lambda: zlib.decompressobj(wbits=31), zlib.error
  else:
    import zstandard

    fresh, error = zstandard.ZstdDecompressor().decompressobj, zstandard.ZstdError
  magic, piece = MAGIC[suffix], PIECE[suffix]
  chunk, start = file.read(piece), 0
  while chunk:
    if len(chunk) < len(magic):
      chunk += file.read(piece)
    if not chunk.startswith(magic) and chunk[1:4] != b'\x2a\x4d\x18':  # the latter: a zstd frame to be skipped
      begin = start
      chunk, start = _forward(file, chunk, start, magic)
      skipped.add('garbage', f'{url}, bytes {begin} to {start} are no {suffix} data')
      yield start, None
      continue
    stream, held, size, end, fault = fresh(), collections.deque(), 0, start, None
    while not stream.eof and chunk:
      end += len(chunk)
      try:
        out = stream.decompress(chunk)
      except error as reason:
        fault = 'corrupt', f'{url}, what begins at byte {start} cannot be decompressed ({reason}): skipped up to'
        break
      size += len(out)
      if out:
        held.append(out)
      while held and size > limit:
        yield start, held.popleft()
      chunk = stream.unused_data if stream.eof else file.read(piece)
    if not fault and not stream.eof:
      fault = 'truncated', f'{url} ends at byte {end} in the middle of what begins at byte {start}; read up to'
    while held and (not fault or fault[0] == 'truncated'):
      yield start, held.popleft()
    if not fault:
      start = end - len(chunk)
      chunk = chunk or file.read(piece)
      continue
    bad = start
    file.seek(bad + 1)
    chunk, start = _forward(file, file.read(piece), bad + 1, magic)
    skipped.add(fault[0], f'{fault[1]} byte {start}')
    yield bad, None


def _forward(file, chunk, start, magic):
  """Returns (chunk, its place in the file) from the next magic number on; the chunk is empty at the file's end."""
  while (at := chunk.find(magic)) < 0:
    more = file.read(sources.READ)
    if not more:
      return b'', start + len(chunk)
    keep = min(len(chunk), len(magic) - 1)
    start += len(chunk) - keep
    chunk = chunk[len(chunk) - keep :] + more
  return chunk[at:], start + at


def _utf8(url, raw, skipped):
  """Yields bytes, None where some are lost; without a byte order mark, and UTF-16 as UTF-8."""
  decoder, first = None, True
  for _, chunk in _content(url, raw, skipped):
    if first and chunk:
      first = False
      if chunk.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder('utf-16')('replace')
        skipped.add('re-encoded', url)
      chunk = chunk.removeprefix(codecs.BOM_UTF8)
    yield decoder.decode(chunk).encode() if decoder and chunk else chunk


def _rows(url, suffix, raw, skipped):
  import pyarrow
  import pyarrow.parquet

  wanted, index = {*_fields(raw.text), raw.id} - {''}, 0
  with fsspec.open(url, 'rb') as file:
    try:
      batches = (_parquet if suffix == '.parquet' else _arrow)(url, file, wanted, skipped)
      for batch in batches:
        if isinstance(batch, int):  # rows that are lost
          index += batch
          continue
        names = [name for name in batch.schema.names if name in wanted]
        columns = [batch.column(name).to_pylist() for name in names]
        for row in range(batch.num_rows):
          yield index + row, f'{url}, row {index + row}', {name: c[row] for name, c in zip(names, columns)}
        index += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
      skipped.add('corrupt', f'{url}, after row {index}: {error}')
    else:
      if not index:
        skipped.add('empty file', url)


def _parquet(url, file, wanted, skipped):
  import pyarrow
  import pyarrow.parquet

  table = pyarrow.parquet.ParquetFile(file)
  columns = [name for name in table.schema_arrow.names if name in wanted]
  for group in range(table.num_row_groups):
    rows = table.metadata.row_group(group).num_rows
    if not columns:
      yield pyarrow.RecordBatch.from_pydict({'': pyarrow.nulls(rows)})
      continue
    try:
      for batch in table.iter_batches(1024, row_groups=[group], columns=columns):
        rows -= batch.num_rows
        yield batch
    except (pyarrow.ArrowException, OSError) as error:
      skipped.add('corrupt', f'{url}, row group {group}: {rows} rows cannot be read ({error})', rows)
      yield rows


def _arrow(url, file, wanted, skipped):
  import pyarrow.ipc

  # The file format is the stream format between a magic number of 8 bytes and a footer, which truncation takes away.
  file.seek(8 if file.read(6) == b'ARROW1' else 0)
  yield from pyarrow.ipc.open_stream(file)


def _arrayrecord(url, raw, skipped):
  try:
    for index, record in enumerate(sources.arrayrecord(url)):
      where = f'{url}, record {index}'
      if len(record) > raw.max_bytes:
        skipped.add('longer than max_bytes', where)
      else:
        yield index, where, sources.Json(record) if record.lstrip().startswith(b'{') else record
  except Bad as bad:
    skipped.add(bad.kind, str(bad))
  except RuntimeError as error:  # what array_record raises for a block whose hash is wrong
    skipped.add('corrupt', f'{url}: {error}; the records of its block of 1024 and those behind it are not read')


def _pages(url, raw, skipped):
  try:
    from fastwarc.warc import ArchiveIterator
  except ImportError:
    raise BadInput(f"{url} needs fastwarc: pip install 'llmstack[data]'") from None
  header = 'WARC-Target-URI' if raw.id == 'url' else raw.id
  for place, where, data in _warc(url, raw, skipped):
    kind = re.search(rb'(?im)^WARC-Type:[ \t]*(\w+)', data)
    if kind is None or kind[1].lower() not in (b'response', b'conversion'):
      continue
    try:
      record = next(ArchiveIterator(io.BytesIO(data), parse_http=True, auto_decode='all'))
      body = record.reader.read(raw.max_bytes + 1)
    except (OSError, StopIteration) as error:
      skipped.add('undecodable body', f'{where}: {error!r}')
      continue
    if len(body) > raw.max_bytes:
      skipped.add('longer than max_bytes', f'{where}, decompressed')
      continue
    if header and not record.headers.get(header):
      skipped.add('no id of its own', f'{where} has no header {header}')
      continue
    if header:
      place = record.headers.get(header).strip('<>')
    if kind[1].lower() == b'conversion':
      yield place, where, _decoded(body, where, skipped)
      continue
    status = record.http_headers and record.http_headers.status_code
    if status != 200:
      skipped.add('HTTP status', f'{where}: {status}')
    elif record.http_content_type not in PAGES:
      skipped.add('not a page', f'{where}: {record.http_content_type}')
    elif record.http_content_type == 'text/plain':
      yield place, where, _decoded(body, where, skipped, record.http_charset or '')
    elif (text := _main(body, record.http_charset or '', where, skipped)) is not None:
      yield place, where, text


def _warc(url, raw, skipped):
  """Yields (place, where, bytes) of whole WARC records; place: the byte in the file, '+n' into its gzip member."""
  chunks = _content(url, raw, skipped)
  buffer, base, marks, searching, ended = bytearray(), 0, collections.deque(), False, False
  packed = url.endswith(tuple(MAGIC))

  def fill():
    """Returns whether there was more; not so at the end of the file or of what is whole."""
    nonlocal ended
    start, chunk = next(chunks, (None, None))
    ended = start is None
    if chunk is None:
      return False
    if not marks or marks[-1][1] != start:
      marks.append((base + len(buffer), start))
    buffer.extend(chunk)
    return True

  def cut(n):
    nonlocal base
    del buffer[:n]
    base += n

  while True:
    while len(marks) > 1 and marks[1][0] <= base:
      marks.popleft()
    if blank := BLANK.match(buffer).end():
      cut(blank)
      continue
    if len(buffer) < 10 and not ended and fill():
      continue
    if not buffer:
      if ended:
        return
      continue
    place = base
    if packed:
      at, start = marks[0]
      place = f'{start}+{base - at}' if base > at else start
    where = f'{url}, byte {place}'
    if not BEGIN.match(buffer):
      found = BEGIN.search(buffer)
      if not searching:
        skipped.add('garbage', f'{where} begins no WARC record: skipped up to the next')
        searching = True
      cut(found.start() if found else max(1, len(buffer) - 9))
      if not found and not fill():
        cut(len(buffer))
      continue
    while (head := buffer.find(b'\r\n\r\n', 0, HEADERS)) < 0 and len(buffer) < HEADERS and fill():
      pass
    length = re.search(rb'(?im)^Content-Length:[ \t]*(\d{1,18})\r?$', buffer[:head]) if head >= 0 else None
    if length is None:
      if not searching:
        skipped.add('bad header', f'{where}: a WARC record without an end of its header or without Content-Length')
      searching = True
      cut(7)
      continue
    size = head + 4 + int(length[1])
    if int(length[1]) > raw.max_bytes:
      skipped.add('longer than max_bytes', f'{where}: {int(length[1])} bytes, max_bytes is {raw.max_bytes}')
      searching = False
      while size > len(buffer):
        size -= len(buffer)
        cut(len(buffer))
        if not fill():
          skipped.add('truncated record', f'{where}: {size} of its bytes are not there')
          size = 0
      cut(size)
      continue
    while len(buffer) < size + 2 and fill():
      pass
    if len(buffer) < size or len(buffer) > size and not buffer.startswith((b'\r', b'\n', b'WARC/'), size):
      kind = 'truncated record' if len(buffer) < size else 'wrong Content-Length'
      skipped.add(kind, f'{where}: Content-Length is {int(length[1])}, {len(buffer) - head - 4} bytes are there')
      searching = True
      cut(head + 4)
      continue
    searching = False
    yield place, where, bytes(buffer[:size]) + b'\r\n\r\n'
    cut(size)
