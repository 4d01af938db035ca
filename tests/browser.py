"""A headless Chromium that is driven as a person would: real keys, real clicks, by its debugging protocol over a pipe.

The protocol is JSON between NUL bytes on descriptors 3 and 4 of the browser; nothing beyond the standard library.
"""

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import signal
import time

BROWSERS = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
PATH = next(filter(None, map(shutil.which, BROWSERS)), None)
MISSING = f'no browser: none of {", ".join(BROWSERS)} is on PATH'
# key: (code, Windows' number, text that it types)
KEYS = {'ArrowLeft': ('ArrowLeft', 37, ''), 'ArrowRight': ('ArrowRight', 39, ''), ' ': ('Space', 32, ' ')}
KEYS |= {'Tab': ('Tab', 9, ''), 'Enter': ('Enter', 13, '\r')}


class Browser:
  """One window. errors: what the page wrote to the console or threw."""

  def __init__(self, folder, size=(1280, 900), dark=False, touch=False, patience=30.0):
    self.patience, self.errors, self._ids, self._buffer = patience, [], itertools.count(1), b''
    self._loaded = 0
    # Numbers from 10 on, so that none of them is itself 3 or 4.
    fds = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (*os.pipe(), *os.pipe())]
    theirs_in, self._out, self._in, theirs_out = fds
    argv = [PATH, '--headless', '--no-sandbox', '--disable-gpu', '--remote-debugging-pipe', '--no-first-run']
    argv += [f'--user-data-dir={folder}/profile', 'about:blank']
    self.pid = os.posix_spawn(PATH, argv, os.environ, setpgroup=0, file_actions=[
      (os.POSIX_SPAWN_DUP2, theirs_in, 3), (os.POSIX_SPAWN_DUP2, theirs_out, 4),
      (os.POSIX_SPAWN_OPEN, 2, f'{folder}/browser.log', os.O_WRONLY | os.O_CREAT, 0o644),
    ])  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    self.session = None
    target = next(t for t in self.send('Target.getTargets')['targetInfos'] if t['type'] == 'page')
    self.session = self.send('Target.attachToTarget', targetId=target['targetId'], flatten=True)['sessionId']
    for domain in ('Page', 'Runtime', 'Log'):
      self.send(f'{domain}.enable')
    width, height = size
    self.send('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=1, mobile=touch)
    self.send('Emulation.setTouchEmulationEnabled', enabled=touch)
    scheme = {'name': 'prefers-color-scheme', 'value': 'dark' if dark else 'light'}
    self.send('Emulation.setEmulatedMedia', features=[scheme])

  def __enter__(self):
    return self

  def __exit__(self, *_):
    os.killpg(self.pid, signal.SIGKILL)
    os.waitpid(self.pid, 0)
    os.close(self._in)
    os.close(self._out)

  def _message(self, until):
    while b'\0' not in self._buffer:
      ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
      chunk = os.read(self._in, 1 << 20) if ready else b''
      assert chunk, f'the browser is silent for {self.patience:.0f} s or gone'
      self._buffer += chunk
    line, _, self._buffer = self._buffer.partition(b'\0')
    got = json.loads(line)
    if got.get('method') in ('Runtime.exceptionThrown', 'Runtime.consoleAPICalled', 'Log.entryAdded'):
      self.errors.append(json.dumps(got['params']))
    self._loaded += got.get('method') == 'Page.loadEventFired'
    return got

  def send(self, method, **params):
    """Returns the result of a command of the protocol."""
    number = next(self._ids)
    message = {'id': number, 'method': method, 'params': params}
    message |= {'sessionId': self.session} if self.session else {}
    os.write(self._out, json.dumps(message).encode() + b'\0')
    until = time.monotonic() + self.patience
    while True:
      got = self._message(until)
      if got.get('id') == number:
        assert 'error' not in got, f'{method}: {got["error"]}'
        return got['result']

  def eval(self, script):
    """Returns the value of an expression of the page."""
    got = self.send('Runtime.evaluate', expression=script, returnByValue=True, awaitPromise=True)
    assert 'exceptionDetails' not in got, f'{script}: {got["exceptionDetails"]}'
    return got['result'].get('value')

  def wait(self, script):
    """Returns once an expression of the page is true."""
    until = time.monotonic() + self.patience
    while not self.eval(f'Boolean({script})'):
      assert time.monotonic() < until, f'never true: {script}'
      time.sleep(0.02)

  def open(self, url):
    """Returns once the page and its scripts are loaded."""
    before, until = self._loaded, time.monotonic() + self.patience
    self.send('Page.navigate', url=url)
    while self._loaded == before:
      self._message(until)

  def key(self, key, repeat=False):
    """Presses a key; repeat: as one that is held down."""
    name = f'Key{key.upper()}' if key.isalpha() else f'Digit{key}'
    code, number, text = KEYS[key] if key in KEYS else (name, ord(key.upper()), key)
    given = {'key': key, 'code': code, 'windowsVirtualKeyCode': number}
    self.send('Input.dispatchKeyEvent', type='keyDown', text=text, autoRepeat=repeat, **given)
    if not repeat:
      self.send('Input.dispatchKeyEvent', type='keyUp', **given)

  def click(self, selector):
    """Scrolls to a node and presses the mouse in its middle, whatever lies on top of it there."""
    x, y = self.eval(
      f'(() => {{ const n = document.querySelector({json.dumps(selector)}); n.scrollIntoView({{ block: "center" }});'
      ' const b = n.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2] })()'
    )
    for kind in ('mousePressed', 'mouseReleased'):
      self.send('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

  def text(self, selector='body'):
    return self.eval(f'document.querySelector({json.dumps(selector)}).innerText')

  def screenshot(self, path):
    with open(path, 'wb') as f:
      f.write(base64.b64decode(self.send('Page.captureScreenshot', format='png')['data']))
