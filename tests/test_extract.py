"""Raw files -> documents: every format, and a planted fault for everything that a crawl has been seen to do."""

import gzip
import json
import os
import pathlib
import tracemalloc

import pytest
import zstandard

from llmstack.errors import BadInput
from llmstack.prepare.extract import Raw, Skipped, documents, files


def read(path, **raw):
  """Returns ({id without the file's name: text}, Skipped)."""
  raw, skipped = Raw((str(path),), **raw), Skipped()
  ((name, url),) = files(raw)
  pairs = list(documents(url, name, raw, skipped))
  out = dict(pairs)
  assert len(out) == len(pairs) and all(i.startswith(f'{name}:') for i in out)
  json.dumps(skipped.to_json())
  return {i.removeprefix(f'{name}:'): text for i, text in out.items()}, skipped


def put(folder, name, data):
  path = folder / name
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return path


def lines(*texts, **more):
  return ''.join(json.dumps({'text': t, **more}) + '\n' for t in texts).encode()


def record(text, kind='response', head='Content-Type: text/html', status='200 OK', length=None, extra=''):
  """Returns a WARC record: an HTTP response, or `text` itself for other kinds."""
  body = text.encode() if isinstance(text, str) else text
  media = 'text/plain'
  if kind == 'response':
    body, media = f'HTTP/1.1 {status}\r\n{head}\r\n\r\n'.encode() + body, 'application/http; msgtype=response'
  length = len(body) if length is None else length
  head = f'WARC/1.0\r\nWARC-Type: {kind}\r\nContent-Type: {media}\r\n{extra}Content-Length: {length}\r\n\r\n'
  return head.encode() + body + b'\r\n\r\n'


def page(word):
  return f'<html><body><p>The page about {word} has one paragraph.</p></body></html>'


def words(out):
  return [text.strip().split()[3] for text in out.values()]


# Which files and what they are called.


def test_names_do_not_depend_on_the_place(tmp_path):
  """An id holds an absolute path: a second run in another folder deduplicates nothing and resumes nothing."""
  for top in ('one', 'two/deeper'):
    for name in ('a/x.txt', 'a/b/x.txt', 'c.txt'):
      put(tmp_path, f'{top}/{name}', name)
    found = files(Raw((f'{tmp_path}/{top}/**/*.txt',)))
    assert [name for name, _ in found] == ['a/b/x.txt', 'a/x.txt', 'c.txt']
    assert all(pathlib.Path(url).read_text() == name for name, url in found)
  assert [name for name, _ in files(Raw((f'{tmp_path}/one/a/x.txt',)))] == ['x.txt']
  # One file that two patterns match is one file.
  assert len(files(Raw((f'{tmp_path}/one/a/*.txt', f'{tmp_path}/one/a/x.txt')))) == 1


def test_two_files_of_one_name_and_patterns_of_none(tmp_path):
  """Two files share their ids, or a typing error in a path is an empty source."""
  for name in ('a/x.txt', 'b/x.txt'):
    put(tmp_path, name, name)
  with pytest.raises(BadInput, match='both have the name x.txt: put them under one glob'):
    files(Raw((f'{tmp_path}/a/*', f'{tmp_path}/b/*')))
  with pytest.raises(BadInput, match='matches no file'):
    files(Raw((f'{tmp_path}/*.jsonl',)))
  with pytest.raises(BadInput, match='is a folder without data-'):
    files(Raw((str(tmp_path),)))


# Formats.


def test_text_of_any_suffix(tmp_path):
  """Source code is refused for its suffix, or a picture is read as text."""
  assert read(put(tmp_path, 'a.py', 'x = 1\n'))[0] == {'0': 'x = 1\n'}
  assert read(put(tmp_path, 'a.rst', 'one###two'), split_on='###')[0] == {'0': 'one', '1': 'two'}
  out, skipped = read(put(tmp_path, 'a.png', b'\x89PNG\0\0\1'))
  assert not out and skipped.counts == {'binary file': 1}


def test_fields_templates_and_own_ids(tmp_path):
  """A template loses its braces or a field; records lacking one stop the run or become 'None'."""
  rows = [
    {'q': '1+1?', 'a': '2', 'n': 7},
    {'q': 'null', 'a': None, 'n': 8},
    {'q': 'number', 'a': 4, 'n': 9},
    {'q': 'missing', 'n': 10},
    {'q': 'no id', 'a': 'x'},
    {'q': 'null id', 'a': 'x', 'n': None},
  ]
  path = put(tmp_path, 'a.jsonl', '\n'.join(map(json.dumps, rows)))
  out, skipped = read(path, text='{{{q}}}\n{a}', id='n')
  assert out == {'7': '{1+1?}\n2'}
  assert skipped.counts == {'null field': 1, 'field not text': 1, 'missing field': 1, 'no id of its own': 2}
  assert any(f'{path}:3' in place and 'int, not text' in place for place in skipped.places)
  with pytest.raises(BadInput, match=r"none of its 6 records has all of the fields \['body'\]"):
    read(path, text='body')
  for bad in ('{', '{}', '{a!r}', '{a:3}'):
    with pytest.raises(BadInput, match='text is'):
      Raw(('x',), text=bad)


@pytest.mark.parametrize('suffix', ['parquet', 'arrow', 'stream.arrow'])
def test_tables(tmp_path, suffix):
  """Rows of another format, of several batches, or with a null in them: left out or misnumbered."""
  pyarrow = pytest.importorskip('pyarrow')
  pytest.importorskip('pyarrow.parquet')

  table = pyarrow.table({'q': ['a', None, 'c', 'd'], 'key': ['k0', 'k1', 'k2', 'k3'], 'other': [1, 2, 3, 4]})
  path = str(tmp_path / f'a.{suffix}')
  if suffix == 'parquet':
    pyarrow.parquet.write_table(table, path, row_group_size=3)
  else:
    new = pyarrow.ipc.new_stream if 'stream' in suffix else pyarrow.ipc.new_file
    with new(path, table.schema) as writer:
      writer.write_table(table, max_chunksize=3)
  out, skipped = read(path, text='<{q}>')
  assert out == {'0': '<a>', '2': '<c>', '3': '<d>'} and skipped.counts == {'null field': 1}
  assert list(read(path, text='q', id='key')[0]) == ['k0', 'k2', 'k3']
  with pytest.raises(BadInput, match='none of its 4 records'):
    read(path, text='nowhere')
  data = pathlib.Path(path).read_bytes()
  for part in (data[: len(data) // 2], b'', b'not a table' * 9):  # a fault costs rows, never the run
    skipped = read(put(tmp_path, f'cut.{suffix}', part), text='q')[1]
    assert skipped.counts.get('corrupt') == 1, (part[:20], skipped.places)


def test_a_folder_written_by_save_to_disk(tmp_path):
  """A folder of Hugging Face datasets is refused, or its state.json is read as text."""
  pyarrow = pytest.importorskip('pyarrow')
  for n in range(2):
    (tmp_path / 'state.json').write_text('{}')
    table = pyarrow.table({'text': [f'part {n}']})
    with pyarrow.ipc.new_stream(str(tmp_path / f'data-0000{n}-of-00002.arrow'), table.schema) as writer:
      writer.write_table(table)
  raw = Raw((str(tmp_path),))
  assert [t for name, url in files(raw) for _, t in documents(url, name, raw, Skipped())] == ['part 0', 'part 1']


def test_a_corrupt_arrayrecord(tmp_path):
  """A flipped byte in a record ends the run with a RuntimeError of the reader."""
  module = pytest.importorskip('array_record.python.array_record_module')
  writer = module.ArrayRecordWriter(str(tmp_path / 'a.arrayrecord'), 'group_size:1')
  for _ in range(50):
    writer.write(lines(os.urandom(2000).hex()))
  writer.close()
  data = (tmp_path / 'a.arrayrecord').read_bytes()
  half = len(data) // 2
  skipped = read(put(tmp_path, 'b.arrayrecord', data[:half] + b'\xff' * 300 + data[half + 300 :]))[1]
  assert skipped.counts == {'corrupt': 1}


def test_parquet_goes_on_behind_a_corrupt_row_group(tmp_path):
  """One flipped byte costs the whole table."""
  pyarrow = pytest.importorskip('pyarrow')
  pytest.importorskip('pyarrow.parquet')

  path = tmp_path / 'a.parquet'
  table = pyarrow.table({'text': [f'row {n} ' * 50 for n in range(30)]})
  pyarrow.parquet.write_table(table, path, row_group_size=10, use_dictionary=False, compression='gzip')
  column = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
  data = bytearray(path.read_bytes())
  at = column.data_page_offset
  data[at + 40 : at + column.total_compressed_size] = b'\xff' * (column.total_compressed_size - 40)
  out, skipped = read(put(tmp_path, 'b.parquet', bytes(data)))
  assert skipped.counts == {'corrupt': 10} and list(out) == [str(n) for n in (*range(10), *range(20, 30))]


# Crawls. Resiliparse and FastWARC are of the extra `data`.


@pytest.fixture
def web():
  pytest.importorskip('fastwarc')
  pytest.importorskip('resiliparse')


def test_packages_that_are_missing(tmp_path, monkeypatch):
  """A traceback in place of what to install."""
  import sys

  for module, name in (('fastwarc.warc', 'a.warc'), ('resiliparse.extract', 'a.html')):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BadInput, match=r"pip install 'llmstack\[data\]'"):
      read(put(tmp_path, name, record('x')))


def test_which_records_are_documents(tmp_path, web):
  """A 404, a picture, a request or a crawler's own notes become documents."""
  data = (
    record('software: x', 'warcinfo') + record('GET /', 'request')
    + record(page('one'), extra='WARC-Target-URI: u:1\r\n')
    + record(page('two'), status='404 Not Found') + record(b'\x89PNG', head='Content-Type: image/png')
    + record('plain text in a page', head='Content-Type: text/plain') + record('as extracted', 'conversion')
  )  # fmt: skip
  out, skipped = read(put(tmp_path, 'a.warc', data))
  assert [t.strip() for t in out.values()] == [
    'The page about one has one paragraph.',
    'plain text in a page',
    'as extracted',
  ]
  assert data[int(list(out)[0]) :].startswith(b'WARC/1.0\r\nWARC-Type: response')
  assert skipped.counts == {'HTTP status': 1, 'not a page': 1}
  out, skipped = read(tmp_path / 'a.warc', id='url')
  assert list(out) == ['u:1'] and skipped.counts['no id of its own'] == 4


JAPANESE = '日本語のページです。文字化けしてはいけません。'


@pytest.mark.parametrize('charset', ['utf-8', 'shift_jis', 'utf-16', 'euc-jp'])
@pytest.mark.parametrize('said', ['header', 'meta', 'nowhere'])
def test_charsets(tmp_path, web, charset, said):
  """A page in another encoding is mojibake."""
  meta = f'<meta charset="{charset}">' if said == 'meta' else ''
  html = f'<html><head>{meta}<title>x</title></head><body><p>{JAPANESE * 4}</p></body></html>'.encode(charset)
  head = 'Content-Type: text/html' + (f'; charset="{charset}"' if said == 'header' else '')
  assert JAPANESE in read(put(tmp_path, 'a.warc', record(html, head=head)))[0].popitem()[1]
  if said != 'header':
    assert JAPANESE in read(put(tmp_path, 'a.html.gz', gzip.compress(html)))[0]['0']


def test_latin_1_and_a_false_charset(tmp_path, web):
  """A charset that is unknown or untrue stops the run or loses the page."""
  html = '<p>Les élèves où naît la forêt, déjà.</p>'
  for head, data in (('iso-8859-1', 'latin-1'), ('no-such', 'utf-8'), ('utf-8', 'latin-1')):
    made = record(html.encode(data), head=f'Content-Type: text/html; charset={head}')
    assert 'élèves où naît la forêt, déjà' in read(put(tmp_path, 'a.warc', made))[0].popitem()[1]


def test_charsets_that_only_the_page_knows(tmp_path, web):
  """A short page: detection guesses, and bytes of no encoding at all raise."""
  for head, meta in (('; charset="iso-8859-5"', ''), ('', '<meta charset="iso-8859-5">')):
    made = record(f'{meta}<p>Да</p>'.encode('iso-8859-5'), head=f'Content-Type: text/html{head}')
    assert read(put(tmp_path, 'a.warc', made))[0].popitem()[1].strip() == 'Да'
  made = record(b'<p>none \x81\xff\x8d</p>', head='Content-Type: text/html; charset=utf-8')
  assert 'none' in read(put(tmp_path, 'a.warc', made))[0].popitem()[1]


def test_chunked_and_compressed_bodies(tmp_path, web):
  """A compressed body is read as text, or one that cannot be decompressed ends the file."""
  packed = gzip.compress(page('gzip').encode())
  chunked = b''.join(b'%x\r\n%s\r\n' % (len(p), p) for p in (packed[:30], packed[30:], b''))
  broken = packed[:15] + bytes([packed[15] ^ 255]) + packed[16:]
  head = 'Content-Type: text/html\r\nContent-Encoding: gzip'
  data = (
    record(chunked, head=f'{head}\r\nTransfer-Encoding: chunked') + record(broken, head=head) + record(page('last'))
  )
  out, skipped = read(put(tmp_path, 'a.warc', data))
  assert words(out) == ['gzip', 'last'] and skipped.counts == {'undecodable body': 1}


def test_a_body_that_expands(tmp_path, web):
  """64 KB of gzip in a page are 64 MB of memory."""
  bomb = gzip.compress(b'<p>a' * 8_000_000)
  data = record(bomb, head='Content-Type: text/html\r\nContent-Encoding: gzip') + record(page('last'))
  out, skipped = read(put(tmp_path, 'a.warc', data), max_bytes=1 << 20)
  assert words(out) == ['last'] and skipped.counts == {'longer than max_bytes': 1}


@pytest.mark.parametrize('packed', [False, True])
def test_a_truncated_crawl(tmp_path, web, packed):
  """A download that broke off: half a page becomes a document, as it does with FastWARC alone."""
  pages = [record(page(w)) for w in ('one', 'two', 'three')]
  data = b''.join(map(gzip.compress, pages)) if packed else b''.join(pages)
  out, skipped = read(put(tmp_path, 'a.warc' + '.gz' * packed, data[:-30]))
  assert words(out) == ['one', 'two']
  assert skipped.counts['truncated' if packed else 'truncated record'] == 1
  begin = len(data) - len(gzip.compress(pages[2]) if packed else pages[2])
  assert all(f'byte {begin}' in place for place in skipped.places), skipped.places


def test_a_corrupt_member_costs_itself(tmp_path, web):
  """One flipped byte ends the file, as it does with FastWARC alone; or what its checksum refuses is a document."""
  members = [gzip.compress(record(page(w) + 'x' * 99)) for w in ('one', 'two', 'three', 'four')]
  for at in (12, 40, len(members[1]) - 6):  # in its tables, in its data, in its checksum
    bad = bytearray(members[1])
    bad[at] ^= 0x55
    path = put(tmp_path, 'a.warc.gz', members[0] + bytes(bad) + members[2] + members[3])
    out, skipped = read(path)
    assert words(out) == ['one', 'three', 'four']
    assert list(out) == ['0', str(sum(map(len, members[:2]))), str(sum(map(len, members[:3])))]
    assert skipped.counts == {'corrupt': 1}
    assert f'{path}, what begins at byte {len(members[0])} cannot' in skipped.places[0]
    assert skipped.places[0].endswith(f'skipped up to byte {len(members[0]) + len(bad)}')


@pytest.mark.parametrize('suffix, pack', [('gz', gzip.compress), ('zst', zstandard.ZstdCompressor().compress)])
def test_a_corrupt_member_of_lines(tmp_path, suffix, pack):
  """A corrupt part of a .jsonl.gz or .zst ends the file."""
  members = [pack(lines(f'{n} and more' * 20, f'{n} last')) for n in range(3)]
  bad = bytearray(members[1])
  bad[4:] = b'\xff' * (len(bad) - 4)
  path = put(tmp_path, f'a.jsonl.{suffix}', members[0] + bytes(bad) + members[2])
  out, skipped = read(path)
  assert [t[0] for t in out.values()] == ['0', '0', '2', '2'] and skipped.counts == {'corrupt': 1}
  assert f'byte {len(members[0])} cannot' in skipped.places[0]
  if suffix == 'gz':  # what a checksum refuses is not believed, longer than one read though it is
    big = bytearray(gzip.compress(lines(*(os.urandom(50).hex() for _ in range(999)))))
    big[-6] ^= 1
    out, skipped = read(put(tmp_path, 'd.jsonl.gz', bytes(big) + members[2]))
    assert [t[0] for t in out.values()] == ['2', '2'] and skipped.counts == {'corrupt': 1}
  # Text between separators around the fault is not whole and left out.
  members = [pack(f'{n} head###{n} tail'.encode()) for n in range(3)]
  out, _ = read(put(tmp_path, f'a.txt.{suffix}', members[0] + bytes(bad) + members[2]), split_on='###')
  assert list(out.values()) == ['0 head', '2 tail']
  out, skipped = read(put(tmp_path, f'b.txt.{suffix}', members[0] + bytes(bad) + members[2]))
  assert not out and skipped.counts == {'corrupt': 1}
  # A download that broke off keeps its whole lines.
  many = pack(lines(*(os.urandom(99).hex() for _ in range(2999))))
  out, skipped = read(put(tmp_path, f'c.jsonl.{suffix}', many[: len(many) // 2]))
  assert 0 < len(out) < 2999 and skipped.counts['truncated'] == 1


@pytest.mark.parametrize('packed', [False, True])
def test_garbage_between_records(tmp_path, web, packed):
  """Bytes of no record end the file, or the next record is lost with them."""
  a, b = record(page('one')), record(page('two'))
  pack = gzip.compress if packed else bytes
  for noise in (b'\0' * 5000, b'WARC/1.0\r\nno header\r\n\r\n' + b'x' * 70_000, b'\x1f\x8b\x08 WARC/1. '):
    out, skipped = read(put(tmp_path, 'a.warc' + '.gz' * packed, noise + pack(a) + noise + pack(b) + noise))
    assert ('garbage' in skipped.counts) == (noise[0] == 0 or noise[0] == (87 if packed else 31))
    assert words(out) == ['one', 'two'] and 3 <= sum(skipped.counts.values()) <= 6, skipped.places


@pytest.mark.parametrize('by', [40, -40])
def test_a_wrong_content_length(tmp_path, web, by):
  """A record that is longer or shorter than it says swallows the next one."""
  true = len(record(page('bad'))) - len(record('', length=10**3)) + 44
  data = record(page('one')) + record(page('bad'), length=true + by) + record(page('two'))
  out, skipped = read(put(tmp_path, 'a.warc', data))
  assert words(out) == ['one', 'two'] and skipped.counts == {'wrong Content-Length': 1}


def test_nesting_that_takes_minutes(tmp_path, web):
  """100,000 <div> in a page of 0.5 MB stop the run for five minutes: main content takes the square of their depth."""
  html = '<div>' * 100_000 + 'deep' + '</div>' * 100_000
  out, skipped = read(put(tmp_path, 'a.warc', record(html) + record('<p>x</p>' * 9999)))
  assert len(out) == 1 and skipped.counts == {'nested too deep': 1}


@pytest.mark.parametrize('name', ['whirlwind.warc', 'whirlwind.warc.wet', 'warcio-example.warc'])
def test_real_crawls_plain_and_packed(name, web):
  """The packed form of a crawl gives other documents than the plain one."""
  folder = os.environ.get('LLMSTACK_DATA')
  if not folder:
    pytest.skip('LLMSTACK_DATA does not name the folder of real data')
  plain, packed = (read(os.path.join(folder, 'warc', name + end)) for end in ('', '.gz'))
  assert list(plain[0].values()) == list(packed[0].values()) and len(plain[0]) == 1
  assert not plain[1].counts and not packed[1].counts


def test_records_of_one_gzip_member(tmp_path, web):
  """A crawl packed as a whole: its records share an id."""
  data = b''.join(record(page(w)) for w in ('one', 'two'))
  out, skipped = read(put(tmp_path, 'a.warc.gz', gzip.compress(data)))
  assert words(out) == ['one', 'two'] and list(out) == ['0', f'0+{len(record(page("one")))}'] and not skipped.counts


# Size and encoding.


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst', 'a.txt', 'a.warc', 'a.warc.gz'])
def test_a_record_of_200_megabytes(tmp_path, name):
  """A record longer than memory: it is held whole, or the records behind it are lost."""
  kind = name.split('.')[1]
  if kind == 'warc':
    pytest.importorskip('fastwarc')
    pytest.importorskip('resiliparse')
  block, blocks = b'a' * (1 << 20), 200
  head, tail = b'{"text": "', b'"}\n' + lines('last')
  if kind == 'txt':
    head, tail = b'first###', b'###last'
  if kind == 'warc':
    size = len(block) * blocks
    head = f'WARC/1.0\r\nWARC-Type: response\r\nContent-Length: {size}\r\n\r\n'.encode()
    tail = b'\r\n\r\n' + record('last', 'conversion')
  wrap = {
    'gz': lambda f: gzip.GzipFile(fileobj=f, mode='wb', compresslevel=1),
    'zst': zstandard.ZstdCompressor().stream_writer,
  }
  with open(tmp_path / name, 'wb') as raw:
    out = wrap[name.split('.')[2]](raw) if name.count('.') > 1 else raw
    out.write(head)
    for _ in range(blocks):
      out.write(block)
    out.write(tail)
    out.close()
  tracemalloc.start()
  try:
    out, skipped = read(tmp_path / name, split_on='###', max_bytes=4 << 20)
    peak = tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()
  assert list(out.values())[-1] == 'last' and skipped.counts == {'longer than max_bytes': 1}
  assert peak < 16 << 20, f'{peak >> 20} MiB'


def test_encodings_of_lines_and_texts(tmp_path):
  """A line in latin-1 stops the run, or becomes other characters; a UTF-16 export is one bad line."""
  data = lines('ok') + '{"text": "déjà"}\n'.encode('latin-1') + lines('last')
  out, skipped = read(put(tmp_path, 'a.jsonl', data))
  assert out == {'0': 'ok', '2': 'last'} and skipped.counts == {'not UTF-8': 1}
  assert ':2, byte 11' in skipped.places[0]
  out, skipped = read(put(tmp_path, 'b.jsonl', lines('one', 'two').decode().encode('utf-16')))
  assert out == {'0': 'one', '1': 'two'} and skipped.counts == {'re-encoded': 1}
  assert read(put(tmp_path, 'c.jsonl', b'\xef\xbb\xbf' + lines('mark')))[0] == {'0': 'mark'}
  pytest.importorskip('resiliparse')
  text = 'Les élèves où naît la forêt, déjà vus à Noël. ' * 9
  out, skipped = read(put(tmp_path, 'a.txt', text.encode('latin-1')))
  assert out == {'0': text} and skipped.counts == {'re-encoded': 1}


def test_json_that_is_none(tmp_path):
  """Lines that are not objects, that nest past the parser's depth or spell half a character stop the run."""
  bad = ['{"text": "cut', '[1]', '3', '[' * 100_000, '{"text": "\\ud800"}', '{"text": ""}', '']
  out, skipped = read(put(tmp_path, 'a.jsonl', '\n'.join(bad) + '\n' + lines('nul\0 here').decode()))
  assert list(out.values()) == ['nul here']
  assert skipped.counts == {'not JSON': 4, 'not UTF-8': 1, 'no text': 1, 'NUL bytes removed': 1}


@pytest.mark.parametrize('name', ['a.txt', 'a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst', 'a.warc.gz', 'a.html', 'b.txt.gz'])
def test_an_empty_file(tmp_path, name):
  """An empty file stops the run, or passes without a word."""
  if 'warc' in name:
    pytest.importorskip('fastwarc')
  out, skipped = read(put(tmp_path, name, gzip.compress(b'') if name.startswith('b') else b''))
  assert not out and skipped.counts == {'empty file': 1}


def test_a_file_that_is_gone_is_the_users(tmp_path):
  """A file removed after the listing passes for an empty one."""
  with pytest.raises(BadInput, match='cannot be opened'):
    list(documents(str(tmp_path / 'gone.jsonl'), 'gone.jsonl', Raw(('x',)), Skipped()))
