// The picture that a map would fire at most: made from noise by gradient ascent (Yosinski et al. 2015), once asked for.

import * as api from './api.js'
import { $, many, short } from './dom.js'
import { put } from './draw.js'
import { topAddress } from './load.js'
import { Progress } from './progress.js'
import { any, change, listen, state } from './state.js'

const isComplete = ({ head }) => head.step >= head.steps || !!head.failed
const progress = new Progress('preferred', api.preferred, isComplete, 333)

const key = () => `${state.layer}/${state.map}`
const isWanted = () => state.map !== null && state.preferredOf === key()
const address = () => (isWanted() ? api.preferredAt(state.net, state.layer, state.map) : null)

/** The picture, if it is of the chosen map. */
export const preferredHere = () => (state.preferred && state.preferred.of === address() ? state.preferred : null)

/** Whether it has come, or been refused, or is not asked for. */
export const preferredComplete = () => {
  const here = preferredHere()
  return !isWanted() || !!state.errors.preferred || !!here && isComplete(here)
}

export const togglePreferred = () => {
  if (state.layer && state.map !== null) change({ preferredOf: isWanted() ? null : key() })
}

/** The map's strongest over the data, as far as that is known. */
const strongest = () => {
  const { top } = state
  return top && top.of === topAddress() ? top.peaks[0]?.value ?? null : null
}

const SYNTHESISED = 'Synthesised by gradient ascent; not what the network saw.'

/** What it reached, in words. */
const words = ({ head }) => {
  const data = strongest()
  return `activation ${short(head.activation)}${data === null ? '' : `; the map's strongest over the data is ${short(data)}`}`
}
export const preferredCaption = () => [`Preferred image of ${state.layer}, map ${state.map}`, words(preferredHere()), SYNTHESISED]

const pixels = ({ head, values }) => {
  const image = new ImageData(head.columns, head.rows)
  for (let i = 0; i < head.rows * head.columns; i++) image.data.set([values[3 * i], values[3 * i + 1], values[3 * i + 2], 255], 4 * i)
  return image
}

const render = () => {
  const wanted = isWanted(), here = preferredHere()
  $('preferred-start').textContent = wanted ? 'Hide' : 'Synthesise'
  $('preferred-result').hidden = !wanted
  $('preferred-error').textContent = !wanted ? '' : state.errors.preferred ?? here?.head.failed ?? ''
  const going = wanted && !preferredComplete()
  $('preferred-bar').hidden = !going
  if (here && going) {
    $('preferred-bar').max = here.head.steps
    $('preferred-bar').value = here.head.step
  } else $('preferred-bar').removeAttribute('value')
  $('preferred-progress').textContent = going ? here ? `step ${many(here.head.step)} of ${many(here.head.steps)}` : 'waiting' : ''
  // That of the last weights stays until the new ones have answered.
  const shown = wanted && state.preferred && api.withoutVersion(state.preferred.of) === api.withoutVersion(address()) ? state.preferred : null
  $('preferred-figure').hidden = !shown
  if (!shown) return
  const canvas = $('preferred-image')
  canvas.setAttribute('aria-busy', String(!here))
  put(canvas, pixels(shown))
  canvas.classList.toggle('tiny', canvas.width < 240)
  canvas.setAttribute('aria-label', `Preferred image of ${state.layer}, map ${state.map}, synthesised`)
  $('preferred-activation').textContent = here ? short(here.head.activation) : ''
  $('preferred-activation').dataset.value = here?.head.activation ?? ''
  const data = strongest()
  $('preferred-strongest').textContent = data === null ? '' : short(data)
  $('preferred-fact').hidden = data === null
  $('preferred-words').textContent = SYNTHESISED
}

export const startPreferred = () => {
  $('preferred-start').addEventListener('click', togglePreferred)
  listen(changed => {
    if (any(changed, 'network', 'net', 'layer', 'map', 'preferredOf')) progress.want(address())
    if (any(changed, 'network', 'net', 'layer', 'map', 'preferredOf', 'preferred', 'top', 'errors')) render()
  })
}
