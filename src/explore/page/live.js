// Screen readers are told what the network thinks and what the unit does, once a hand has come to rest.

import { $, percent, short } from './dom.js'
import { classesAddress, otherClassesAddress } from './load.js'
import { nameOf } from './nets.js'
import { any, layerOf, listen, state } from './state.js'
import { activation, otherActivation } from './unit.js'

let news = ''
let timer = 0

const say = () => {
  const parts = news ? [news] : []
  news = ''
  const best = state.classes?.of === classesAddress() ? state.classes.classes[0] : null
  if (best) parts.push(`The network thinks: ${best.name}, ${percent(best.probability)}.`)
  const layer = layerOf(state.layer), value = activation()
  if (layer && state.unit && value !== null) parts.push(`${layer.name}, map ${state.map}, y ${state.unit[0]}, x ${state.unit[1]}: activation ${short(value)}.`)
  if (state.compared) {
    const other = state.otherClasses?.of === otherClassesAddress() ? state.otherClasses.classes[0] : null, there = otherActivation()
    const words = [...(other ? [`${other.name}, ${percent(other.probability)}`] : []), ...(there === null ? [] : [`activation ${short(there)}`])]
    if (words.length) parts.push(`Beside it, ${nameOf(state.compared)}: ${words.join('; ')}.`)
  }
  const text = parts.join(' ')
  if ($('live').textContent !== text) $('live').textContent = text
}

const soon = () => {
  clearTimeout(timer)
  timer = setTimeout(say, state.camera ? 3000 : 700)
}

/** A sentence that comes before what is shown. */
export const announce = text => {
  news = text
  soon()
}

export const startLive = () => listen(changed => {
  if (any(changed, 'classes', 'pictures', 'maps', 'unit', 'otherClasses', 'otherMaps', 'compared')) soon()
})
