// Figure 7: the covered square stands at each place of the input in turn, and the heat map shows what is left of a
// class's probability, or of a map's activity, with it there.

import * as api from './api.js'
import { $, make, percent, press, short } from './dom.js'
import { put, viridis } from './draw.js'
import * as cover from './cover.js'
import { stepsOf, weightsOf } from './nets.js'
import { any, change, listen, state } from './state.js'

/** @type {AbortController | null} */
let running = null
let classWanted = null

/** What the network thinks of the image with nothing covered. */
const uncovered = () => {
  const of = state.image ? api.classesAt({ ...state, cover: null }) : null
  return [state.open, state.classes].find(found => found?.of === of)?.classes ?? []
}

const steps = () => Number($('sweep-steps').value)
const what = () => $('sweep-what').value
/** Whether there is anything to run it for. */
const runs = () => (what() === 'map' ? state.map !== null && !!state.layer : uncovered().length > 0)

/** The box of the place (row, column): the square about the middle of its cell. */
const boxAt = (sweep, row, column) => {
  const { rows, columns } = state.network.input
  const x = Math.round((column + 0.5) * columns / sweep.steps - sweep.side / 2)
  const y = Math.round((row + 0.5) * rows / sweep.steps - sweep.side / 2)
  return [x, y, x + sweep.side, y + sweep.side]
}

/** The sum of a map's activations. */
const activityOf = (maps, map) => {
  const { rows, columns, scales } = maps.head
  return maps.values.subarray(map * rows * columns, (map + 1) * rows * columns).reduce((sum, v) => sum + v, 0) / 127 * scales[map]
}

/** What is left with such a box, or without one. @returns {Promise<number>} */
const measured = async (sweep, box, signal) => {
  const shown = { ...sweep, cover: box }
  if (sweep.what === 'map') return activityOf(await api.maps(api.mapsAt(shown, sweep.layer), signal), sweep.map)
  const { classes } = await api.classes(api.classesAt(shown, sweep.class), signal)
  return classes.find(c => c.class === sweep.class).probability
}

/** A sweep that goes on with the checkpoint of the weights that it began with, which others have replaced; null if that is not kept. */
const withKept = sweep => {
  const { net, weights: { updates } } = sweep
  return stepsOf(net.checkpoint).some(({ step }) => step === updates) ? { ...sweep, net: { ...net, step: updates } } : null
}

const CHANGED = 'The weights have changed: run it again.'

/** Why it could not go on. */
const errorOf = ({ net }, error) => (error.isOutdated ? CHANGED : net.step !== null && error.status === 422 ? `${error.message} ${CHANGED}` : error.message)

/** A value of a sweep in words. */
const valueWords = ({ what }, v) => (what === 'map' ? short(v) : percent(v))

/** The ends of the scale: the least and the largest value met. */
export const rangeOf = sweep => {
  let low = Infinity, high = -Infinity
  for (const v of sweep.values) if (!Number.isNaN(v)) { low = Math.min(low, v); high = Math.max(high, v) }
  return low <= high ? { low, high } : { low: 0, high: 0 }
}

/** The heat map as pixels, one a place; what is not known yet lets the page through. */
export const sweepPixels = sweep => {
  const image = new ImageData(sweep.steps, sweep.steps)
  const { low, high } = rangeOf(sweep)
  sweep.values.forEach((v, i) => {
    if (Number.isNaN(v)) return
    image.data.set([...viridis(high > low ? (v - low) / (high - low) : 1), 255], i * 4)
  })
  return image
}

const stopSweep = () => {
  running?.abort()
  running = null
  if (state.sweep?.running) change({ sweep: { ...state.sweep, running: false } })
}

const run = async () => {
  stopSweep()
  const controller = new AbortController()
  running = controller
  const { image, view, fill, net, layer, map } = state
  const chosen = uncovered().find(c => c.class === classWanted) ?? uncovered()[0]
  if (!image || !runs()) return
  const of = what() === 'map' ? { what: 'map', layer, map, name: `${layer}, map ${map}` } : { what: 'class', class: chosen.class, name: chosen.name }
  const n = steps()
  const side = state.cover ? state.cover[2] - state.cover[0] : cover.usual()
  let sweep = { image, view, fill, net, weights: weightsOf(net), side, steps: n, ...of, values: new Float32Array(n * n).fill(NaN), base: null, done: 0, running: true, error: '' }
  change({ sweep, mode: 'cover' })
  for (let i = -1; i < n * n; i++) {
    const box = i < 0 ? null : boxAt(sweep, Math.floor(i / n), i % n)
    let value
    try {
      value = await measured(sweep, box, controller.signal).catch(error => {
        const kept = error.isOutdated ? withKept(sweep) : null
        if (!kept) throw error
        sweep = kept
        return measured(sweep, box, controller.signal)
      })
    } catch (error) {
      if (controller.signal.aborted) return
      change({ sweep: { ...sweep, running: false, error: errorOf(sweep, error) } })
      return
    }
    if (controller.signal.aborted) return
    if (i < 0) sweep = { ...sweep, base: value }
    else {
      sweep.values[i] = value
      sweep = { ...sweep, done: i + 1 }
    }
    change({ sweep })
  }
  running = null
  change({ sweep: { ...sweep, running: false } })
}

export const sweepCaption = sweep => {
  const { low, high } = rangeOf(sweep)
  return `${sweep.what === 'map' ? 'Activity (sum of the activations)' : 'Probability'} of ${sweep.name} with a square of ${sweep.side} pixels (${sweep.fill}) at each of ${sweep.steps} × ${sweep.steps} places: ${valueWords(sweep, low)} to ${valueWords(sweep, high)}`
    + (sweep.base === null ? '' : `, ${valueWords(sweep, sweep.base)} with nothing covered`)
    + (sweep.net.version === state.net.version ? '' : `; with the earlier weights${sweep.weights.epoch === null ? '' : ` of epoch ${sweep.weights.epoch}`}`)
}

const render = () => {
  const { sweep } = state
  const going = !!sweep?.running
  $('sweep-run').hidden = going
  $('sweep-stop').hidden = !going
  $('sweep-run').disabled = !runs()
  $('sweep-what').disabled = going
  $('sweep-class-label').hidden = what() === 'map'
  $('sweep-result').hidden = !sweep
  const select = $('sweep-class')
  const classes = uncovered()
  const key = classes.map(c => c.class).join(' ')
  if (select.dataset.key !== key && !going) {
    select.dataset.key = key
    select.replaceChildren(...classes.map(c => make('option', { value: c.class }, c.name)))
    if (classes.some(c => c.class === classWanted)) select.value = classWanted
  }
  select.disabled = going
  $('sweep-steps').disabled = going
  press($('sweep-over'), state.sweepOver)
  if (!sweep) return
  put($('heat'), sweepPixels(sweep))
  $('heat').setAttribute('aria-label', sweepCaption(sweep))
  const { low, high } = rangeOf(sweep)
  $('heat-low').textContent = valueWords(sweep, low)
  $('heat-high').textContent = valueWords(sweep, high)
  const bar = $('heat-bar')
  if (bar.width !== 64) {
    bar.width = 64
    bar.height = 1
    const context = bar.getContext('2d')
    for (let i = 0; i < 64; i++) {
      context.fillStyle = `rgb(${viridis(i / 63).join(' ')})`
      context.fillRect(i, 0, 1, 1)
    }
  }
  $('sweep-progress').max = sweep.steps ** 2
  $('sweep-progress').value = sweep.done
  $('sweep-progress').hidden = !going
  const words = sweep.done ? sweepCaption(sweep) + (going || sweep.done === sweep.steps ** 2 ? '.' : `; stopped after ${sweep.done}.`) : ''
  $('sweep-caption').textContent = [words, sweep.error].filter(Boolean).join(' ')
}

export const startSweep = () => {
  $('sweep-run').addEventListener('click', run)
  $('sweep-stop').addEventListener('click', stopSweep)
  $('sweep-what').addEventListener('change', render)
  $('sweep-over').addEventListener('click', () => change({ sweepOver: !state.sweepOver }))
  $('sweep-class').addEventListener('change', event => { classWanted = Number(event.target.value) })
  $('heat').addEventListener('click', event => {
    const { sweep } = state
    if (!sweep) return
    const box = event.target.getBoundingClientRect()
    const row = Math.min(sweep.steps - 1, Math.floor((event.clientY - box.top) / box.height * sweep.steps))
    const column = Math.min(sweep.steps - 1, Math.floor((event.clientX - box.left) / box.width * sweep.steps))
    change({ cover: boxAt(sweep, row, column), fill: sweep.fill })
  })
  listen(changed => {
    // It is of one image, one view and one checkpoint, and keeps the weights that it began with.
    if (state.sweep && (any(changed, 'image', 'view') || state.sweep.net.checkpoint !== state.net.checkpoint)) {
      stopSweep()
      change({ sweep: null })
    }
    if (any(changed, 'network', 'net', 'sweep', 'sweepOver', 'classes', 'open', 'image', 'layer', 'map')) render()
  })
}
