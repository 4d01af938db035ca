"""Pairs of replies on a page, one at a time and blind; a person's verdict is on disk before the next pair comes.

What may reach this server: requests that name this machine or an address (a foreign name that was bent to this address
is refused), with the token where there is one, and for a change from its own page. Requests choose from a table of
paths and never name a file. The browser is told the texts, and neither id nor file nor order: which model said what is
not in the page to be found.
"""

import collections
import contextlib
import errno
import fcntl
import hashlib
import hmac
import http.server
import importlib.resources
import ipaddress
import json
import os
import socket
import socketserver
import sys
import threading
import time
import urllib.parse
from typing import NamedTuple

from llmstack.data import records, sources
from llmstack.errors import BadInput

VERDICTS = ('left', 'right', 'tie', 'skip')
BODY = 4096  # bytes of a request's body, at most; a verdict has fewer than 100
PATIENCE = 30.0  # s without a byte after which a connection is closed
CONNECTIONS = 64  # at once
TOKEN = 16  # characters of a token, at least
HEADERS = {
  'Content-Security-Policy': "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
  "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
  'Cross-Origin-Resource-Policy': 'same-origin', 'Cross-Origin-Opener-Policy': 'same-origin',
  'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer', 'Cache-Control': 'no-store',
}  # fmt: skip


class Item(NamedTuple):
  """Two replies, a and b, to one prompt, each a list of messages; digest is the same for b and a."""

  id: str
  digest: str
  prompt: list
  a: list
  b: list


def _hash(*what):
  return hashlib.blake2b(json.dumps(what).encode(), digest_size=8).hexdigest()


def digest(prompt, a, b):
  """Returns 16 hex digits of a prompt and two replies, lists of messages, in whichever order the replies are given."""
  return _hash(prompt, *sorted((a, b), key=json.dumps))


def swapped(seed, id, rater):
  """Returns whether b is shown on the left: a fair coin that falls the same way whenever it is asked."""
  return int(_hash('order', seed, id, rater), 16) % 2 == 1


def read(path, on_error='raise', counts=None):
  """Returns [Item] of a file of {prompt, completions: [a, b]}, {prompt, a, b} or {chosen, rejected, prompt?}.

  prompt, a, b: text or messages; chosen and rejected also whole conversations, as `records.pairs` has them.
  id: the field `id`, or else the digest, which a pair that comes twice lacks the right to.
  counts: collections.Counter of what on_error 'skip' leaves out, by kind.
  Raises: BadInput, with the place, for what is no such pair, and for an id that comes twice.
  """
  if not os.path.isfile(path):
    raise BadInput(f'{path} is not a file: give JSON lines with prompt and completions, or chosen and rejected')
  counts = collections.Counter() if counts is None else counts
  found = {}
  for where, row in sources.rows(sources.Source((path,), on_error=on_error), counts):
    try:
      item = _item(where, row)
      if item.id in found:
        raise sources.Bad('repeated', f'{where}: id {item.id} came before: drop it, or give each its own id')
    except sources.Bad as bad:
      if on_error == 'raise':
        raise sources.Bad(bad.kind, f'{bad}; or have such pairs left out and counted with --on-error skip') from None
      counts[bad.kind] += 1
    else:
      found[item.id] = item
  if not found:
    raise BadInput(f'{path} has no pair to judge: give JSON lines with prompt and completions, or chosen and rejected')
  return list(found.values())


def _item(where, row):
  row = {k: v for k, v in row.items() if v is not None}
  if 'completions' in row:
    both = row['completions']
    if not isinstance(both, list) or len(both) != 2:
      raise sources.Bad('not two', f'{where}: completions is {both!r:.80}: give a list of two')
  else:
    names = next((n for n in (('a', 'b'), ('chosen', 'rejected')) if n[0] in row and n[1] in row), None)
    if names is None:
      wanted = 'prompt with completions, with a and b, or with chosen and rejected'
      raise sources.Bad('missing field', f'{where} has fields {sorted(row)}, where {wanted} are needed: rename them')
    both = [row[name] for name in names]
  prompt = {'prompt': row['prompt']} if 'prompt' in row else {}
  pair = records.compared(where, prompt | {'chosen': both[0], 'rejected': both[1]})
  same = digest(pair.prompt, pair.chosen, pair.rejected)
  id = row.get('id', same)
  if not isinstance(id, str | int) or not str(id):
    raise sources.Bad('bad id', f'{where}: id is {id!r:.80}: give text or a number')
  return Item(str(id), same, pair.prompt, pair.chosen, pair.rejected)


class Lines:
  """A file of JSON lines that one process writes: a line is on disk when add() has returned, or is not there at all."""

  def __init__(self, path):
    """torn: what a kill left of a last line, which nobody was told of as written; it is cut off here.

    Raises: BadInput where another process writes the file.
    """
    self.path, folder = path, os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder) or os.path.isdir(path):
      raise BadInput(f'{path} cannot be written: give the name of a file in a folder that exists')
    self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
      fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      os.close(self._fd)
      raise BadInput(f'{path} is being written by another process: stop that one, or give another --out') from None
    self._sync(folder)
    with open(path, 'rb') as f:
      content = f.read()
    self._size = content.rfind(b'\n') + 1
    self.torn = content[self._size :]
    self.lines = content[: self._size].split(b'\n')[:-1]
    if self.torn:
      self._cut(self._size)

  @staticmethod
  def _sync(folder):
    """The name of a new file is on disk only when its folder is."""
    fd = os.open(folder, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)

  def _cut(self, size):
    os.ftruncate(self._fd, size)
    os.fsync(self._fd)
    self._size = size

  def add(self, raw):
    """raw: bytes of one line without its end. Raises: OSError, and then nothing of the line is there."""
    try:
      if os.write(self._fd, raw + b'\n') <= len(raw):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      os.fsync(self._fd)
    except OSError:
      os.ftruncate(self._fd, self._size)
      raise
    self._size += len(raw) + 1
    self.lines.append(raw)

  def drop(self):
    """Takes the last line back."""
    self._cut(self._size - len(self.lines[-1]) - 1)
    self.lines.pop()

  def close(self):
    os.close(self._fd)


class Labels:
  """What one rater said of the items, and the two files that hold it.

  OUT.journal grows by a line for each verdict, skip and undo, and never shrinks. OUT holds the pairs that follow from
  it, for `records.pairs`: prompt, chosen, rejected, and label, 1 or, for a tie, 0.5; with id, rater, verdict ('a', 'b'
  or 'tie'), left (which of a and b was shown there) and time (unix seconds). Skips are in the journal alone. OUT grows
  too, but for an undo, which takes its last line back. A pair is written before its verdict and taken back after its
  undo, so that a kill leaves at most one line in OUT that the journal does not know, which the next start drops.
  """

  def __init__(self, items, out, rater, seed=0):
    """notes: sentences for the rater, on what a kill left.

    Raises: BadInput where the files are another rater's, of other pairs, or do not belong together.
    """
    self.items, self.rater, self.seed, self.notes = items, rater, seed, []
    self._lock = threading.Lock()
    if os.path.exists(out) and os.path.getsize(out) and not os.path.exists(f'{out}.journal'):
      raise BadInput(f'{out} is there and its {out}.journal is not: bring that back, or give another --out')
    self._said = {}  # id -> (verdict, left, time), in the order of the verdicts
    with contextlib.ExitStack() as opened:
      self._journal, self._pairs = (opened.enter_context(contextlib.closing(Lines(p))) for p in (f'{out}.journal', out))
      self._resume(out)
      self._close = opened.pop_all().close

  def _resume(self, out):
    known = {item.id: item for item in self.items}
    for n, line in enumerate(self._journal.lines, 1):
      self._replay(f'{out}.journal line {n}', line, known)
    for file in (self._journal, self._pairs):
      if file.torn:
        self.notes.append(f'{file.path}: a kill left half a line, which is cut off; that pair is asked again')
    wanted = [self._line(known[id]) for id, (verdict, *_) in self._said.items() if verdict != 'skip']
    if self._pairs.lines[:-1] == wanted and self._pairs.lines:
      self._pairs.drop()
      self.notes.append(f'{out}: its last pair, which {out}.journal does not hold, is dropped')
    if self._pairs.lines != wanted:
      raise BadInput(
        f'{out} does not hold what {out}.journal says: restore the one that was changed, or move both away'
      )

  def _replay(self, where, line, known):
    try:
      row = json.loads(line)
      id, verdict, rater, same = row['id'], row['verdict'], row['rater'], row['digest']
      said = verdict, row['left'], row['time']
      if verdict not in ('a', 'b', 'tie', 'skip', 'undo'):
        raise ValueError
    except (ValueError, KeyError, TypeError):
      raise BadInput(f'{where} is not what llmstack label writes ({line[:60]!r}): restore the file') from None
    if rater != self.rater:
      raise BadInput(
        f'{where} is of rater {rater!r}, and this one is {self.rater!r}: give each rater an --out of its own'
      )
    if id not in known or known[id].digest != same:
      raise BadInput(
        f'{where} judges pair {id}, which is not among these pairs: give the pairs of then, or another --out'
      )
    if verdict == 'undo':
      self._said.pop(id, None)
    else:
      self._said[id] = said

  def _line(self, item):
    verdict, left, when = self._said[item.id]
    best, other = (item.b, item.a) if verdict == 'b' else (item.a, item.b)
    row = {'prompt': item.prompt, 'chosen': best, 'rejected': other, 'label': 0.5 if verdict == 'tie' else 1.0}
    row |= {'id': item.id, 'rater': self.rater, 'verdict': verdict, 'left': left, 'time': when}
    return json.dumps(row, ensure_ascii=False).encode()

  def _log(self, item, verdict, left, when):
    row = {'id': item.id, 'digest': item.digest, 'verdict': verdict, 'left': left, 'rater': self.rater, 'time': when}
    self._journal.add(json.dumps(row).encode())

  def _page(self, item):
    return item and _hash('page', self.seed, item.id, self.rater)

  def _now(self):
    """Returns (the first item that nothing was said of, the last that something was said of), None for none."""
    ahead = next((item for item in self.items if item.id not in self._said), None)
    last = next(reversed(self._said), None)
    return ahead, next((item for item in self.items if item.id == last), None)

  def state(self):
    """Returns what the page may know, as JSON: progress, and the texts of the pair that is asked now."""
    with self._lock:
      return self._state()

  def _state(self):
    item, last = self._now()
    out = {'rater': self.rater, 'n': len(self.items), 'k': len(self._said), 'item': self._page(item)}
    out |= {'skipped': sum(v == 'skip' for v, *_ in self._said.values()), 'undo': self._page(last)}
    if item:
      sides = (item.b, item.a) if swapped(self.seed, item.id, self.rater) else (item.a, item.b)
      # Role and content only: what else a message has may say who wrote it.
      bare = lambda messages: [{'role': m['role'], 'content': m['content']} for m in messages]  # noqa: E731
      out |= {'prompt': bare(item.prompt), 'left': bare(sides[0]), 'right': bare(sides[1])}
    return out

  def judge(self, page, verdict):
    """Returns (whether it was taken down, state). page: the state's `item`; another window may have been faster."""
    with self._lock:
      item, _ = self._now()
      if item is None or page != self._page(item):
        return False, self._state()
      left, right = ('b', 'a') if swapped(self.seed, item.id, self.rater) else ('a', 'b')
      said = {'left': left, 'right': right}.get(verdict, verdict), left, round(time.time(), 3)
      self._said[item.id] = said
      try:
        if verdict != 'skip':
          self._pairs.add(self._line(item))
        try:
          self._log(item, *said)
        except OSError:
          if verdict != 'skip':
            self._pairs.drop()
          raise
      except OSError:
        del self._said[item.id]
        raise
      return True, self._state()

  def undo(self, page):
    """Returns (whether it was taken back, state). page: the state's `undo`."""
    with self._lock:
      _, item = self._now()
      if item is None or page != self._page(item):
        return False, self._state()
      verdict, left, _ = self._said[item.id]
      self._log(item, 'undo', left, round(time.time(), 3))
      del self._said[item.id]
      if verdict != 'skip':
        self._pairs.drop()
      return True, self._state()

  def close(self):
    self._close()


def loopback(host):
  """Returns whether only this machine can reach an address of this name."""
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == 'localhost'


def assets():
  """Returns {path of a request: (type, bytes)}: all that can be fetched."""
  text = lambda room, name: (importlib.resources.files(f'llmstack.{room}') / name).read_bytes()  # noqa: E731
  return {
    '/': ('text/html', text('serve', 'label.html')),
    '/label.css': ('text/css', text('report', 'page.css') + text('serve', 'label.css')),
    '/label.js': ('text/javascript', text('report', 'draw.js') + text('serve', 'label.js')),
  }


class Server(http.server.ThreadingHTTPServer):
  """Serves the page of some Labels until shutdown(); address is what to type into a browser."""

  daemon_threads = True

  def __init__(self, labels, host='127.0.0.1', port=0, token=None):
    """Raises: BadInput for an address that others reach without a token, a short token, a port that is taken."""
    if token is None and not loopback(host):
      raise BadInput(f'--host {host} can be reached from other machines: give --token-file, or leave out --host')
    if token is not None and (len(token) < TOKEN or not token.isascii() or not token.isprintable() or ' ' in token):
      raise BadInput(f'the token must be at least {TOKEN} printable characters without a space: write another one')
    self.labels, self.token, self.assets = labels, token, assets()
    self.names = {'localhost', host.lower(), socket.gethostname().lower()}
    self._room = threading.BoundedSemaphore(CONNECTIONS)
    self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
    try:
      super().__init__((host, port), Handler)
    except (OSError, OverflowError) as e:
      raise BadInput(f'--host {host} --port {port} cannot be listened at ({e}): give another one') from None
    self.port = self.server_address[1]
    name = socket.gethostname() if host in ('', '0.0.0.0', '::') else f'[{host}]' if ':' in host else host
    self.address = f'http://{name}:{self.port}/'
    # Cookies are shared by the ports of a host: the name tells servers apart, the value is not the token itself.
    self.cookie = f'llmstack-label-{self.port}', hmac.new((token or '').encode(), b'cookie', 'sha256').hexdigest()

  def server_bind(self):
    socketserver.TCPServer.server_bind(self)  # http.server would ask the network for a name here

  def process_request(self, request, client_address):
    if self._room.acquire(blocking=False):
      super().process_request(request, client_address)
    else:
      self.shutdown_request(request)

  def process_request_thread(self, request, client_address):
    try:
      super().process_request_thread(request, client_address)
    finally:
      self._room.release()

  def handle_error(self, request, client_address):
    """A browser that goes away is no error."""
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


class Refused(Exception):
  """A request that is answered with a status and a sentence."""


class Handler(http.server.BaseHTTPRequestHandler):
  server_version, sys_version = 'llmstack', ''
  timeout = PATIENCE

  def log_message(self, format, *args):
    """Nothing: the first request's line holds the token."""

  def do_GET(self):
    self._answer(self._get)

  def do_POST(self):
    self._answer(self._post)

  def _answer(self, how):
    try:
      self._known_host()
      how()
    except Refused as e:
      status, sentence = e.args
      self._send(status, 'application/json', json.dumps({'error': sentence}).encode())

  def _send(self, status, kind, body, **headers):
    self.send_response(status)
    for name, value in {'Content-Type': f'{kind}; charset=utf-8', 'Content-Length': len(body), **HEADERS}.items():
      self.send_header(name, value)
    for name, value in headers.items():
      self.send_header(name.replace('_', '-'), value)
    self.end_headers()
    self.wfile.write(body)

  def _state(self, status, state):
    self._send(status, 'application/json', json.dumps(state).encode())

  def _known_host(self):
    """A page of another site may have its name point here, but it cannot have an address or a name of ours."""
    host = self.headers.get('Host', '').lower()
    name = host.rpartition(':')[0] if not host.endswith(']') and ':' in host else host
    try:
      address = ipaddress.ip_address(name.strip('[]'))
      known = self.server.token is not None or address.is_loopback
    except ValueError:
      known = name in self.server.names
    if not known:
      raise Refused(421, 'this server is not known by that name: use the address that it printed')

  def _same(self, a, b):
    return hmac.compare_digest(a.encode(errors='replace'), b.encode(errors='replace'))

  def _admitted(self):
    if self.server.token is None:
      return
    name, value = self.server.cookie
    cookies = (c.strip().partition('=') for c in self.headers.get('Cookie', '').split(';'))
    bearer = self.headers.get('Authorization', '').removeprefix('Bearer ')
    if not (any(n == name and self._same(v, value) for n, _, v in cookies) or self._same(bearer, self.server.token)):
      raise Refused(401, 'this page needs its token: open it as /?token=TOKEN')

  def _get(self):
    path, _, query = self.path.partition('?')
    given = urllib.parse.parse_qs(query).get('token')
    if path == '/' and given and self.server.token is not None:
      if not self._same(given[0], self.server.token):
        raise Refused(401, 'that is not the token')
      cookie = '='.join(self.server.cookie) + '; Path=/; HttpOnly; SameSite=Strict'
      return self._send(303, 'text/plain', b'', Location='/', Set_Cookie=cookie)
    self._admitted()
    if path == '/state':
      self._state(200, self.server.labels.state())
    elif path in self.server.assets:
      self._send(200, *self.server.assets[path])
    else:
      raise Refused(404, 'there is nothing here')

  def _post(self):
    body = self._body()
    self._admitted()
    # Any site can have a browser send a form here, but not with the origin of our page.
    host = self.headers['Host']
    if self.headers.get('Origin') not in (f'http://{host}', f'https://{host}'):
      raise Refused(403, 'verdicts are taken from the page of this server only')
    if self.headers.get_content_type() != 'application/json':
      raise Refused(415, 'send JSON')
    try:
      given = json.loads(body)
      item, verdict = str(given['item']), given.get('verdict')
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
      raise Refused(400, 'send {"item": ..., "verdict": ...}') from None
    labels = self.server.labels
    try:
      if self.path == '/undo':
        taken, state = labels.undo(item)
      elif self.path == '/verdict' and verdict in VERDICTS:
        taken, state = labels.judge(item, verdict)
      elif self.path == '/verdict':
        raise Refused(400, f'the verdict is one of {", ".join(VERDICTS)}')
      else:
        raise Refused(404, 'there is nothing here')
    except OSError as e:
      raise Refused(507, f'it could not be written down ({e.strerror}): make room, then say it again') from None
    self._state(200 if taken else 409, state)

  def _body(self):
    """Returns the body, whole: one that is left unread would reset the connection before the answer is read."""
    length = self.headers.get('Content-Length', '')
    if not length.isascii() or not length.isdigit():
      raise Refused(411, 'send Content-Length')
    if int(length) > BODY:
      self.rfile.read(min(int(length), 1 << 20))
      raise Refused(413, f'a verdict has at most {BODY} bytes')
    return self.rfile.read(int(length))
