// One pair at a time: what the server says is drawn, what a person says is sent. Texts become text nodes only.
const SAID = { left: '1 is better', right: '2 is better', tie: 'tie', skip: 'skipped' }
const KEYS = { ArrowLeft: 'left', 1: 'left', ArrowRight: 'right', 2: 'right', ' ': 'tie', 0: 'tie', s: 'skip', u: 'undo' }
let state = null
let busy = false

const say = (text, warn) => {
  $('said').textContent = text
  $('said').className = warn ? 'note warn' : 'note'
}
const turns = (messages, alone) => messages.map((m) => el('div', { class: 'turn' },
  alone && messages.length === 1 ? null : el('h2', {}, m.role), el('p', { class: 'words', dir: 'auto' }, visible(m.content))))
const reply = (name, look, messages) => el('section', { class: `reply ${look}`, 'aria-label': `Reply ${name}` }, el('h2', {}, name), ...turns(messages, true))

function draw() {
  const { k, n, skipped } = state
  $('rater').textContent = state.rater
  $('progress').replaceChildren(`${whole(k)} of ${whole(n)}`, el('small', {}, skipped ? `, ${whole(skipped)} skipped` : ''))
  $('done').style.width = `${(100 * k) / n}%`
  $('bar').hidden = false
  for (const id of ['left', 'tie', 'right', 'skip']) $(id).disabled = !state.item
  $('undo').disabled = !state.undo
  $('main').replaceChildren(...(state.item ? [
    el('section', { class: 'prompt', 'aria-label': 'Prompt' }, ...turns(state.prompt)),
    el('div', { class: 'replies' }, reply('1', 'r0', state.left), reply('2', 'r1', state.right)),
  ] : [el('div', { class: 'end' }, el('h1', {}, 'That was the last one'),
    el('p', { class: 'note' }, `${many(k - skipped, 'pair')} judged, ${whole(skipped)} skipped. All of it is saved; this window may be closed.`))]))
  document.documentElement.dataset.ready = k
  scrollTo(0, 0)
}

async function ask(path, body) {
  if (busy) return
  busy = true
  try {
    const how = body && { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) }
    const answer = await fetch(path, how)
    const got = await answer.json()
    if (got.error) return say(got.error, true)
    state = got
    if (answer.status === 409) say('Another window was faster: this is the pair that is asked now.', true)
    else if (path === '/undo') say('Taken back.')
    else if (body) say(`Taken down: ${SAID[body.verdict]}.`)
    draw()
  } catch {
    say('The server does not answer, so this was not taken down. Start it again, then try again.', true)
  } finally {
    busy = false
  }
}

function choose(what) {
  if (!state || $(what).disabled) return
  if (what === 'undo') ask('/undo', { item: state.undo })
  else ask('/verdict', { item: state.item, verdict: what })
}

for (const what of [...Object.keys(SAID), 'undo']) {
  $(what).addEventListener('click', (e) => {
    if (e.detail) $(what).blur() // else the next space would press this button again instead of saying tie
    choose(what)
  })
}
addEventListener('keydown', (e) => {
  const what = KEYS[e.key.length === 1 ? e.key.toLowerCase() : e.key]
  if (!what || e.ctrlKey || e.metaKey || e.altKey || (e.key === ' ' && e.target.closest('button'))) return
  e.preventDefault()
  if (!e.repeat) choose(what) // a key that is held down is one verdict
})
ask('/state')
