"""How a process joins a pod, is told to stop, is seen to hang, and ends.

Exit status: 0 done; 42 stopped safely or hung, restart me; 1 a bug, or training diverged; 78 the configuration, data
or checkpoint is wrong, which no retry will mend; 130 interrupted twice.

Why this is not `multihost_utils.reached_preemption_sync_point`: jax.distributed.initialize takes SIGTERM for itself
(a Python handler set before is replaced, and whoever does not ask ignores SIGTERM), it does not know SIGINT, it
counts training steps only, so that nobody stops within an evaluation, and orbax feeds it numbers of its own. Here
Python keeps the signals and the same protocol runs over the coordinator's key-value store, with polls as its clock.

A Python handler runs between two bytecodes of the main thread, minutes late where that thread compiles. So the
signal is read from a file descriptor by a thread of our own (`signal.set_wakeup_fd`), and the bound is: from SIGTERM
to the end of the process at most `grace_s`, whatever the main thread does; in a pod a second more. What is lost:
nothing where the next poll (step, batch of an evaluation, in one process also a wait for data) is reached in that
time; what was done since the last checkpoint where it is not, as in a compilation longer than `grace_s`.
Before the interpreter has come to this module (0.5 s) SIGTERM kills with 143.
"""

import contextlib
import faulthandler
import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import select
import signal
import socket
import statistics
import sys
import threading
import time
import traceback

from llmstack.errors import BadInput, Diverged, Missed, SaveFailed, Stopped, exhausted

STOPPED, BUG, WRONG, INTERRUPTED = 42, 1, 78, 130

TICK = 1.0  # s between two looks at the others
FINISH = 20.0  # s that a checkpoint in flight has after an error
DAY = 86_400.0  # s, for a wait that is ended by the other's failure rather than by the clock
DATA = 'waiting for data'  # the phase in which nobody else keeps a process waiting
STRAGGLER = 3.0  # times the median
ENVIRONMENT = ('TPU_', 'MEGASCALE_', 'SLURM_', 'JAX_')
FILES = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)


def status(e):
  """Returns (exit status, sentence) of what ended a task; the sentence is None where a traceback is due."""
  if isinstance(e, SystemExit):
    return (e.code if isinstance(e.code, int) else int(e.code is not None)), ''
  if isinstance(e, BadInput):
    return WRONG, f'error: {e}'
  if isinstance(e, FILES):
    return WRONG, f'error: {e.filename}: {e.strerror}: give another path'
  if isinstance(e, Stopped):
    return STOPPED, f'stopped: {e}'
  if isinstance(e, (Diverged, Missed, SaveFailed)):
    return BUG, f'stopped: {e}'
  if isinstance(e, KeyboardInterrupt):
    return INTERRUPTED, 'stopped; the last checkpoint is kept'
  return BUG, None


def say(line):
  print(f'\n{line}', file=sys.stderr, flush=True)


def code():
  """Returns a hash of the sources that run: the same on every host, or they do not run the same program."""
  h = hashlib.blake2b(digest_size=6)
  root = pathlib.Path(__file__).parent
  for path in sorted(root.rglob('*.py')):
    h.update(str(path.relative_to(root)).encode() + path.read_bytes())
  return h.hexdigest()


def flat(value, prefix=''):
  """Returns {dotted key: value} of nested dicts."""
  if not isinstance(value, dict):
    return {prefix: value}
  return {k: v for name, x in value.items() for k, v in flat(x, f'{prefix}.{name}' if prefix else str(name)).items()}


def detected():
  """Returns whether jax can find the other processes by itself: TPU hosts, and steps of SLURM with several tasks."""
  slurm = all(k in os.environ for k in ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID', 'SLURM_LOCALID'))
  chips = glob.glob('/dev/accel*') + glob.glob('/dev/vfio/[0-9]*')
  tpu = os.environ.get('JAX_PLATFORMS', 'tpu') != 'cpu' and chips and importlib.util.find_spec('libtpu')
  return slurm and int(os.environ.get('SLURM_NTASKS', 1)) > 1 or bool(tpu)


class Pod:
  """The processes that run one program, and what they tell each other: short texts by key, and barriers.

  One process is a pod of one, which talks to itself.
  """

  def __init__(self, index=0, count=1, client=None, heartbeat=0.0):
    """client: of jax's coordination service, which lives in process 0."""
    self.index, self.count, self.heartbeat, self._client, self._notes = index, count, heartbeat, client, {}
    self.name = f'process {index} ({socket.gethostname()})'

  @classmethod
  def join(cls, coordinator=None, processes=None, process=None, *, patience, heartbeat):
    """Returns the Pod after jax.distributed has started, or a pod of one where nothing asks for more.

    coordinator: 'HOST:PORT' of process 0. patience: s that the others have to come. heartbeat: s without a sign of
    life after which a process counts as dead and every other one aborts.
    Raises: BadInput for half a set of flags; Stopped, with the environment that decides, where the others do not come.
    """
    given = [x is not None for x in (coordinator, processes, process)]
    if any(given) and not all(given):
      raise BadInput('--coordinator HOST:PORT, --processes N and --process I belong together: give all three or none')
    if all(given) and not (0 <= process < processes and ':' in coordinator):
      raise BadInput(
        f'--coordinator {coordinator} --processes {processes} --process {process}: give HOST:PORT, and an index from '
        f'0 to {processes - 1}'
      )
    if not (any(given) or detected()) or processes == 1:
      return cls()
    import jax
    from jax._src import distributed  # the store and the barriers have no public name

    jax.config.update('jax_enable_preemption_service', False)
    how = {'cluster_detection_method': 'deactivate'} if all(given) else {}
    asked = f'process {process} of {processes} at {coordinator}' if all(given) else 'this process'
    seen = [f'  {k}={v}' for k, v in sorted(os.environ.items()) if k.startswith(ENVIRONMENT)]
    lines = [f'{asked} did not find the others within {patience:.0f} s', 'What decides it here:', *seen]

    def give_up():
      say('stopped: ' + '\n'.join(lines))
      os._exit(STOPPED)

    timer = threading.Timer(patience, give_up)  # jax would abort, with a stack of C++ for an explanation
    timer.daemon = True
    timer.start()
    try:
      jax.distributed.initialize(
        coordinator, processes, process, initialization_timeout=int(patience) + 60, shutdown_timeout_seconds=60,
        heartbeat_timeout_seconds=int(heartbeat), **how,
      )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as e:
      if isinstance(e, ValueError) and not all(given):
        print(f'alone: there are TPU chips, but jax sees no pod ({e})', file=sys.stderr)
        return cls()
      raise Stopped('\n'.join([f'{asked} could not join: {e}', *lines[1:]])) from None
    finally:
      timer.cancel()
    return cls(jax.process_index(), jax.process_count(), distributed.global_state.client, heartbeat)

  def tell(self, key, text, *, once=False):
    """Returns nothing; the text of a key that is told `once` stays the first one."""
    if self._client is None:
      if not once or key not in self._notes:
        self._notes[key] = text
      return
    try:
      self._client.key_value_set(f'llmstack/{key}', text, allow_overwrite=not once)
    except RuntimeError:  # told already, or the coordinator is gone, and then jax ends this process
      pass

  def heard(self, key):
    """Returns the text, or None."""
    if self._client is None:
      return self._notes.get(key)
    try:
      return self._client.key_value_try_get(f'llmstack/{key}')
    except RuntimeError:
      return None

  def told(self, key):
    """Returns {process: text} of what was told as 'key/<process>'."""
    if self._client is None:
      return {int(k.split('/')[-1]): v for k, v in self._notes.items() if k.startswith(f'{key}/')}
    try:
      return {int(k.split('/')[-1]): v for k, v in self._client.key_value_dir_get(f'llmstack/{key}/')}
    except RuntimeError:
      return {}

  def meet(self, name, seconds):
    """Returns whether every process came to this barrier in time; a name is used once."""
    if self._client is None:
      return True
    try:
      self._client.wait_at_barrier(f'llmstack/{name}', int(seconds * 1000))
    except RuntimeError:
      return False
    return True

  @contextlib.contextmanager
  def first(self, name):
    """A context that process 0 goes through before the others do: they find what it has written."""
    if self.index:
      self.meet(f'first/{name}', DAY)
    yield
    if not self.index:
      self.meet(f'first/{name}', DAY)

  def agree(self, name, facts):
    """Returns nothing where all processes have the same facts; raises BadInput on every one of them where not.

    facts: nested dicts of plain values.
    """
    if self.count == 1:
      return
    mine = {k: repr(v) for k, v in flat(json.loads(json.dumps(facts))).items()}
    if not self.index:
      self.tell(f'agree/{name}', json.dumps([self.name, mine]))
    if not self.meet(f'agree/{name}/facts', DAY):
      raise Stopped(f'not every process came to compare the {name}; nothing is lost, run the same command again')
    host, wanted = json.loads(self.heard(f'agree/{name}'))
    lines = [
      f'  {k}: {wanted.get(k, "(absent)")} on {host}, {mine.get(k, "(absent)")} on {self.name}'
      for k in sorted({*wanted, *mine})
      if wanted.get(k) != mine.get(k)
    ]
    if lines:
      self.tell(f'agree/{name}/differences/{self.index}', '\n'.join(lines[:8]))
    self.meet(f'agree/{name}/compared', DAY)
    if differences := self.told(f'agree/{name}/differences'):
      said = f'the processes do not agree on the {name}: give each the same command, code and files'
      raise BadInput('\n'.join([said, *differences.values()]))


class Watch:
  """What this process does while a task runs: signals, the agreement to stop, the watch over hangs, the end.

  Without `start` (a task run inside another program) nobody asks it to stop and it ends nothing.
  """

  def __init__(self):
    self.pod, self.stopping = Pod(), False
    self._owner = False  # of the process: whether it may end it
    self._workdir, self._hang, self._grace = None, None, 60.0
    self._lock = threading.Lock()  # held while the processes agree where to stop
    self._polls, self._last, self._why, self._seen = 0, None, None, 0
    self._deadline = None  # (monotonic time, status, sentence)
    self._phase, self._since, self._beats, self._done = None, time.monotonic(), 0, 0
    self._host, self._steps = 0.0, 0  # s that it waited for data, and steps, since the start
    self._printed = None
    self._told, self._before, self._warned = 0.0, {}, {}

  def start(self):
    """Returns nothing; from here on this process is ours: SIGTERM and SIGINT stop it safely."""
    self._owner = True
    read, write = os.pipe()
    os.set_blocking(read, False)
    os.set_blocking(write, False)
    self._signals = read
    thread = threading.Thread(target=self._run, name='watch', daemon=True)
    thread.start()

    def handle(number, _):
      if not thread.is_alive():  # a bug of ours; nobody else would answer
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, handle)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

  def configure(self, workdir, *, hang_s, grace_s):
    """Returns nothing. hang_s: without a beat, after which the run ends. grace_s: from a signal to the end."""
    self._workdir, self._hang, self._grace = workdir, hang_s, grace_s

  # What the main thread says.

  def beat(self, phase, *, done=None):
    """Returns nothing. phase: what begins now; None: nothing that could hang. done: last finished step."""
    now = time.monotonic()
    if self._phase == DATA:  # in every other phase the others may keep it waiting
      self._host += now - self._since
    if done is not None:
      self._steps += 1
      self._done = done
    self._phase, self._since, self._beats = phase, now, self._beats + 1

  def poll(self):
    """Returns whether to stop here: after a signal every process gets True at the same one of its polls."""
    with self._lock:
      self._polls += 1
      self.stopping = self.stopping or self._last is not None and self._polls >= self._last
    return self.stopping

  @property
  def urgent(self):
    """Whether to stop without waiting for anything: nobody else has to stop at the same place."""
    return self._why is not None and self.pod.count == 1

  @property
  def why(self):
    return self._why or 'asked to'

  def ending(self, e, *, last=False):
    """Returns nothing; says at once what went wrong, to the log and to the other processes.

    From here on the process ends within FINISH seconds, whatever still waits for a checkpoint or for the others.
    e: exception, or None where nothing went wrong. last: nobody will make another one of it.
    """
    if e is None or e is self._printed or isinstance(e, Stopped):
      return
    number, sentence = status(e)
    memory = sentence is None and exhausted(e)
    foreign = self.pod.count > 1 and type(e).__name__ == 'JaxRuntimeError' and not memory
    patience = FINISH + (self.pod.heartbeat + 5) * foreign
    if number and self._owner:
      said = f'a checkpoint in flight was not done {patience:.0f} s after the error: ended without it'
      self._deadline = time.monotonic() + patience, number, said
    if memory and not last:
      return  # memory.Budget makes a sentence of it
    self._printed = e
    if sentence is None:
      traceback.print_exception(e)
      sys.stderr.flush()
    elif sentence:
      say(sentence)
    if foreign:
      self._blame()
    if number:
      why = sentence or f'{type(e).__name__}: {e}'
      self.pod.tell('end', json.dumps({'status': number, 'who': self.pod.name, 'why': why}), once=True)

  def _blame(self):
    """Waits to hear whether a collective failed because another process did: that one's status is then ours.

    One that was killed says nothing, and jax aborts this process within the heartbeat, with a status to restart.
    """
    until = time.monotonic() + self.pod.heartbeat + 5
    while time.monotonic() < until:
      if end := self.pod.heard('end'):
        self._other(**json.loads(end))
      time.sleep(TICK)

  def __enter__(self):
    return self

  def __exit__(self, kind, e, _):
    """Ends the process with the status of what happened."""
    self.ending(e, last=True)
    if isinstance(e, Stopped):
      say(status(e)[1])
    self.leave(0 if e is None else status(e)[0])

  def leave(self, number):
    """Ends the process: process 0 last, because the others abort where it is gone before them."""
    sys.stdout.flush()
    sys.stderr.flush()
    self.pod.meet('leave', FINISH + 5)
    if self.pod.count > 1 and not self.pod.index:
      time.sleep(0.5)
    if self._owner and (number or self.pod.count > 1):
      os._exit(number)  # sys.exit would wait for threads: orbax's, a reader's, jax's barrier of 300 s
    if number:
      raise SystemExit(number)

  # What the watching thread does.

  def _run(self):
    while True:
      if select.select([self._signals], [], [], TICK)[0]:
        for number in os.read(self._signals, 64):
          self._signalled(signal.Signals(number))
      now = time.monotonic()
      if self._deadline and now > self._deadline[0]:
        self._stacks(self._deadline[2])
        self.leave(self._deadline[1])
      if self._why is None and (why := self.pod.heard('stop')):
        self._agree(why)
      if self._printed is None and (end := self.pod.heard('end')):
        self._other(**json.loads(end))
      if self._hang and self._phase and now - self._since > self._hang:
        self.pod.tell('end', json.dumps({'status': STOPPED, 'who': self.pod.name, 'why': ''}), once=True)
      if self.pod.count > 1 and now - self._told > min(5.0, (self._hang or 60) / 4):
        self._tell_beat()
        if not self.pod.index:
          self._stragglers()

  def _signalled(self, number):
    self._seen += number == signal.SIGINT
    if self._seen > 1:
      say('interrupted twice: ended at once; the last checkpoint is kept')
      os._exit(INTERRUPTED)
    if self._why is None:
      self.pod.tell('stop', f'{number.name} on {self.pod.name}' if self.pod.count > 1 else number.name, once=True)

  def _agree(self, why):
    """Finds the poll at which everybody stops: the one after the furthest that any process has come to."""
    with self._lock:
      self.pod.tell(f'polls/{self.pod.index}', str(self._polls))
      self.pod.meet('polls', self._grace)
      furthest = max(map(int, self.pod.told('polls').values()))
      if furthest < 2:  # nobody has finished a step
        say(f'stopped: {why}, before the first step was done; nothing is lost, run the same command again')
        self.leave(STOPPED)
      self._why, self._last = why, furthest + 1
      said = f'no place to stop within {self._grace:.0f} s of {why}: ended; the last checkpoint is kept, run it again'
      self._deadline = time.monotonic() + self._grace, STOPPED, said
    say(f'{why}: stops after this step, within {self._grace:.0f} s')

  def _other(self, status, who, why):
    """Ends this process because another one has failed or something hangs."""
    if status == STOPPED:
      self._tell_beat()
      self.pod.meet('hang', 5.0)
      self._stacks(self._late())
    else:
      say(f'{who} ended with status {status}, so this one does: {why}')
    self.leave(status)

  def _tell_beat(self):
    self._told = now = time.monotonic()
    beat = dict(
      name=self.pod.name, beats=self._beats, done=self._done, phase=self._phase, age=now - self._since,
      steps=self._steps, host=self._host, now=now,
    )  # fmt: skip
    self.pod.tell(f'beats/{self.pod.index}', json.dumps(beat))

  def _beats_told(self):
    return [json.loads(text) for text in self.pod.told('beats').values()]

  def _late(self):
    """Returns the sentence that names who hangs. A process is late that has said fewer beats than another."""
    beats = self._beats_told()
    least = min(beats, key=lambda b: b['beats'])
    line = f'{least["name"]} last finished step {least["done"]}, then {least["phase"]}, {least["age"]:.0f} s ago'
    if len(beats) == 1:
      return f'hung: {line}'
    if least['beats'] == max(b['beats'] for b in beats):
      return f'hung: all processes are at the same place, so the device or the network hangs: {line}'
    return f'hung: {line}; the others wait for it'

  def _stacks(self, line):
    """Prints the line and every thread's stack, and leaves both in the workdir."""
    say(line)
    faulthandler.dump_traceback(sys.stderr)
    if self._workdir:
      with open(os.path.join(self._workdir, f'hang-process{self.pod.index}.txt'), 'w') as f:
        print(line, file=f, flush=True)
        faulthandler.dump_traceback(f)

  def _stragglers(self):
    """Warns of a process that waits for its data STRAGGLER times as long as the median, and a quarter of the step."""
    beats = {b['name']: b for b in self._beats_told()}
    old = {name: self._before.setdefault(name, b) for name, b in beats.items()}
    steps = {name: b['steps'] - old[name]['steps'] for name, b in beats.items()}
    if min(steps.values(), default=0) < 5:
      return
    rates = {name: [(b[k] - old[name][k]) / steps[name] for k in ('host', 'now')] for name, b in beats.items()}
    self._before = beats
    middle = statistics.median_low(host for host, _ in rates.values())
    for name, (host, step) in rates.items():
      if host > max(STRAGGLER * middle, step / 4) and time.monotonic() > self._warned.get(name, 0):
        self._warned[name] = time.monotonic() + 600
        own = f'{host:.2f} s of a step of {step:.2f} s'
        say(f'warning: {name} waits {own} for its own data, the others for it; the median is {middle:.2f} s')


_here = Watch()


def here():
  """Returns the Watch of this process."""
  return _here


def begin():
  """Returns a new Watch, which `here` gives from now on."""
  global _here
  _here = Watch()
  return _here
