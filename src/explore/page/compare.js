// A second network beside the first: another checkpoint, an epoch kept of a run, or untrained weights. This is the bar
// that chooses it; what is shown of it stands beside the first's, in the parts for that (classes.js, unit.js).

import { $, clamp, make, press } from './dom.js'
import { checkpointsOf, counterpart, epochOf, goToCheckpoint, loadNetwork, nameOf, netOf, stepsOf, titleOf } from './nets.js'
import { any, change, fail, listen, state } from './state.js'

/** @type {import('./api.js').Net | null} What was compared when the bar was last open. */
let last = null

/** Where the slider can stand: the kept checkpoints, and the checkpoint's own weights where those are not kept. @returns {(number | null)[]} */
const places = checkpoint => {
  const kept = stepsOf(checkpoint).map(({ step }) => step)
  return kept.includes(state.runs[checkpoint]?.step) ? kept : [...kept, null]
}

const placeOf = net => {
  const all = places(net.checkpoint)
  const at = all.indexOf(net.step ?? state.runs[net.checkpoint]?.step)
  return at < 0 ? all.length - 1 : at
}

/** What the first network was when its training began, as far as that is kept; else chance. */
const beginning = () => {
  const { checkpoint } = state.net
  const all = places(checkpoint)
  return all.length > 1 ? netOf(checkpoint, all[0]) : netOf(checkpoint, null, true)
}

// Two networks are to be compared: what hardly fires in one shall not look as strong as in the other.
export const compareWithBeginning = () => change({ compared: beginning(), shared: true }, { push: true })

const usual = () => (checkpointsOf(state.network).length > 1 ? netOf(state.net.checkpoint ? 0 : 1) : beginning())

export const toggleCompare = () => {
  if (state.compared) last = state.compared
  change(state.compared ? { compared: null } : { compared: last ? netOf(last.checkpoint, last.step, last.untrained) : usual(), shared: true })
}

/** Earlier or later in the training of the compared network. */
export const stepEpoch = (by, again) => {
  const { compared } = state
  if (!compared) return
  const all = places(compared.checkpoint)
  const at = compared.untrained ? (by > 0 ? 0 : -1) : clamp(placeOf(compared) + by, 0, all.length - 1)
  if (at >= 0) change({ compared: netOf(compared.checkpoint, all[at]) }, { follow: again })
}

/** Whether both are checkpoints as they were given, so that each can stand in the other's place. */
const swaps = () => !!state.compared && !state.compared.untrained && state.compared.step === null && state.compared.checkpoint !== state.net.checkpoint

/** Exchanges the two. */
export const swap = () => { if (swaps()) goToCheckpoint(state.compared.checkpoint) }

export const stepCheckpoint = () => {
  const all = checkpointsOf(state.network)
  if (all.length > 1) goToCheckpoint((state.net.checkpoint + 1) % all.length)
}

const optionsOf = () => checkpointsOf(state.network).flatMap((_, k) => {
  const own = k === state.net.checkpoint, title = titleOf(k)
  return [[`${k}`, !own ? title : places(k).length > 1 ? 'its epochs' : 'itself'], [`${k},random`, own ? 'untrained' : `${title}, untrained`]]
})

const APART = 'Maps of networks that were trained apart have nothing in common but their numbers.'

const renderChoice = () => {
  const options = optionsOf()
  const key = JSON.stringify(options)
  const select = $('compare-with')
  if (select.dataset.key !== key) {
    select.dataset.key = key
    select.replaceChildren(...options.map(([value, words]) => make('option', { value }, words)))
  }
  const { checkpoint, untrained } = state.compared
  select.value = `${checkpoint}${untrained ? ',random' : ''}`
}

const render = () => {
  const { compared } = state
  press($('compare-toggle'), !!compared)
  $('compare').hidden = !compared
  document.body.classList.toggle('comparing', !!compared)
  if (!compared) return
  renderChoice()
  const all = places(compared.checkpoint)
  const slider = $('epoch')
  $('epochs').hidden = compared.untrained || all.length < 2
  slider.max = all.length - 1
  slider.value = placeOf(compared)
  const epoch = epochOf(compared), of = state.runs[compared.checkpoint]?.epochs
  const words = epoch === null ? nameOf(compared) : `epoch ${epoch}${of ? ` of ${of}` : ''}`
  $('epoch-text').textContent = words
  slider.setAttribute('aria-valuetext', words)
  $('swap').disabled = !swaps()
  $('swap').title = swaps() ? 'Key E' : 'Two checkpoints of the command line can be exchanged, at their newest weights'
  const apart = compared.checkpoint !== state.net.checkpoint
  $('compare-note').textContent = [counterpart()?.sentence, apart && APART].filter(Boolean).join(' ')
  const { otherClasses, otherMaps, other } = state.errors
  $('compare-error').textContent = [...new Set([other, otherClasses, otherMaps].filter(Boolean))].join(' ')
}

const renderMasthead = () => {
  const all = checkpointsOf(state.network)
  const select = $('network-choice')
  select.hidden = all.length < 2
  if (select.options.length !== all.length) select.replaceChildren(...all.map(({ title, checkpoint }, k) => make('option', { value: k }, `${title} (${checkpoint})`)))
  select.value = state.net.checkpoint
}

export const startCompare = () => {
  $('network-choice').addEventListener('change', event => goToCheckpoint(Number(event.target.value)).then(renderMasthead))
  $('compare-toggle').addEventListener('click', toggleCompare)
  $('compare-close').addEventListener('click', toggleCompare)
  $('swap').addEventListener('click', swap)
  $('compare-with').addEventListener('change', event => {
    const [checkpoint, untrained] = event.target.value.split(',')
    const k = Number(checkpoint)
    // Of the network that is looked into, the beginning; of another, what it has become.
    change({ compared: netOf(k, !untrained && k === state.net.checkpoint ? places(k)[0] : null, !!untrained) })
  })
  $('epoch-before').addEventListener('click', () => stepEpoch(-1, true))
  $('epoch-after').addEventListener('click', () => stepEpoch(1, true))
  $('epoch').addEventListener('input', event => {
    const { checkpoint } = state.compared
    change({ compared: netOf(checkpoint, places(checkpoint)[Number(event.target.value)]) }, { follow: true })
  })
  listen(changed => {
    if (changed.has('compared') && state.compared && !state.networks[state.compared.checkpoint]) {
      loadNetwork(state.compared.checkpoint).then(() => {
        fail('other', null)
        // Its version was not known either.
        const { compared } = state
        if (compared) change({ compared: netOf(compared.checkpoint, compared.step, compared.untrained) })
      }, error => fail('other', error))
    }
    if (any(changed, 'network', 'net')) renderMasthead()
    if (any(changed, 'network', 'networks', 'runs', 'net', 'compared', 'layer', 'map', 'errors')) render()
  })
}
