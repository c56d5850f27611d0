// The keyboard: every act has a key, and `?` lists them.

import { toggleCamera } from './camera.js'
import { openChooser, stepImage } from './chooser.js'
import { stepCheckpoint, stepEpoch, swap, toggleCompare } from './compare.js'
import * as cover from './cover.js'
import { $, make } from './dom.js'
import { toggleHold } from './hold.js'
import { isPublished } from './published.js'
import { change, state } from './state.js'
import { stepLayer } from './strip.js'
import { togglePreferred } from './preferred.js'
import { toggleStudy } from './study.js'
import { toggleTraining } from './training.js'
import { goToPeak, moveUnit, stepGain, stepMap, stepRule, toggleRandom } from './unit.js'
import * as view from './view.js'

const larger = () => (state.mode === 'cover' && state.cover ? cover.resize(1.25) : view.zoom(1 / 1.25))
const smaller = () => (state.mode === 'cover' && state.cover ? cover.resize(1 / 1.25) : view.zoom(1.25))
const once = { push: true }, walk = { follow: true }

/** Key, act. The keys are those of `KeyboardEvent.key`, as typed. @type {Record<string, (again: boolean) => void>} */
const ACTS = {
  ArrowLeft: again => moveUnit(-1, 0, again), ArrowRight: again => moveUnit(1, 0, again),
  ArrowUp: again => moveUnit(0, -1, again), ArrowDown: again => moveUnit(0, 1, again),
  '[': again => stepMap(-1, again), ']': again => stepMap(1, again),
  ',': again => stepLayer(-1, again ? walk : once), '.': again => stepLayer(1, again ? walk : once),
  n: () => stepImage(1), p: () => stepImage(-1), i: openChooser,
  r: toggleRandom, a: () => state.network.rules.length > 1 && change({ all: !state.all }), s: () => change({ shared: !state.shared }),
  h: toggleHold, m: goToPeak, g: () => stepGain(1), G: () => stepGain(-1), f: () => change({ cut: !state.cut }), o: () => change({ overlay: !state.overlay }),
  d: toggleCompare, e: swap, '{': again => stepEpoch(-1, again), '}': again => stepEpoch(1, again), u: stepCheckpoint, t: toggleTraining, k: toggleStudy, w: togglePreferred,
  c: cover.toggle, x: () => { change({ mode: state.mode === 'crop' ? 'look' : 'crop' }); $('stage').focus({ preventScroll: true }) },
  '+': larger, '=': larger, '-': smaller, 0: view.reset,
  Escape: () => change({ mode: 'look' }),
  '?': () => openHelp(),
}

/** What a published page cannot do: keys as they come, and as they are listed. */
const NEED_THE_PROGRAM = ['r', 'd', 'e', '{', '}', 'u', 'k', 'w', 'c', 'x', '+', '=', '-', '−', '0', 'v', 'Escape', 'Esc']
const isHere = key => !isPublished || !NEED_THE_PROGRAM.includes(key)

const HELP = [
  ['← → ↑ ↓', 'move the unit within its map'], ['m', "the map's strongest unit"], ['[ ]', 'the map before, the next (in the order shown)'], [', .', 'the layer before, the next'],
  ['p n', 'the image before, the next'], ['i', 'choose an image'], ['1 2 3', 'the rule of the projection'], ['a', 'all rules side by side'],
  ['r', 'the same unit with untrained weights'], ['s', 'one scale for all projections shown'], ['g G', 'more gain, less gain'], ['f', 'cut to the receptive field, or the whole image'],
  ['o', 'the map over the image'], ['h', 'hold the unit, or release it'], ['c', 'cover with a square, or take it away; arrows then move it (Shift: one pixel)'],
  ['d', 'compare: a second network beside this one'], ['{ }', 'the second network, an epoch earlier or later'], ['e', 'exchange the two'], ['u', 'the next checkpoint of the command line'], ['k', 'a class: which maps tell it, and which classes the map tells'], ['w', 'the preferred image of the map, synthesised'], ['t', 'the training of this network: curves, alarms'],
  ['x', 'crop; arrows then move the square'], ['+ −', 'zoom, or the size of the cover'], ['0', "the network's own preparation"], ['v', 'the camera'], ['Esc', 'back to looking'], ['?', 'this help'],
]

const openHelp = () => { if (!$('help').open) $('help').showModal() }

// Where text is written, or a list is chosen from, letters and arrows are that element's own.
const typing = ({ target: element, key }) => (element?.type === 'range'
  ? /^(Arrow|Home|End|Page)/.test(key)
  : !!element?.closest?.('input, textarea, select, [contenteditable]'))

/** @param {(text: string) => void} tell */
export const startKeys = tell => {
  ACTS.v = () => toggleCamera(tell)
  const hasRules = state.networks[0].rules.length > 1
  $('help-keys').replaceChildren(...HELP.filter(([keys]) => isHere(keys.split(' ')[0]) && (hasRules || !['1 2 3', 'a'].includes(keys))).map(([keys, words]) => make('div', {}, make('dt', {}, ...keys.split(' ').flatMap(key => [make('kbd', {}, key), ' '])), make('dd', {}, words))))
  $('open-help').addEventListener('click', openHelp)
  $('help-close').addEventListener('click', () => $('help').close())
  $('help').addEventListener('click', event => { if (event.target === $('help')) $('help').close() })
  addEventListener('keydown', event => {
    // Brackets and braces need AltGr on many keyboards, which is Ctrl and Alt to some systems.
    const bare = !event.altKey && !event.ctrlKey || event.getModifierState('AltGraph')
    if (!bare || event.metaKey || event.isComposing || !state.network) return
    if (document.querySelector('dialog[open]') || typing(event)) return
    const rule = /^[1-9]$/.test(event.key) ? state.network.rules[Number(event.key) - 1] : null
    // Letters hold whatever Caps Lock says, but for the pair g, G.
    const key = event.key in ACTS ? event.key : event.key?.toLowerCase()
    const act = rule ? () => stepRule(rule) : ACTS[key]
    if (!act || !isHere(key)) return
    if (!state.image && !['?', 'i', 'v', 'n', 't', 'u'].includes(event.key)) return
    event.preventDefault()
    act(event.repeat)
  })
}
