// The networks of the page: the one looked into, and the one beside it; what answers in the one to a unit of the other.

import * as api from './api.js'
import { clamp } from './dom.js'
import { change, fail, layerOf, state } from './state.js'

/** Those of the command line. @returns {{title: string, checkpoint: string}[]} */
export const checkpointsOf = network => network.checkpoints ?? [{ title: network.title, checkpoint: network.checkpoint }]

/** @returns {api.Net} */
export const netOf = (checkpoint, step = null, untrained = false) => ({ checkpoint, step, untrained, version: state.runs[checkpoint]?.version ?? '' })

const loading = new Map()

/** Makes a checkpoint's network and run known. A program that knows of no runs has none. */
export const loadNetwork = checkpoint => {
  if (state.networks[checkpoint]) return Promise.resolve()
  if (!loading.has(checkpoint)) {
    const run = api.run(checkpoint).catch(() => null)
    loading.set(checkpoint, Promise.all([api.network(checkpoint), run]).then(([network, run]) => {
      change({ networks: { ...state.networks, [checkpoint]: network }, runs: { ...state.runs, [checkpoint]: run } })
    }).finally(() => loading.delete(checkpoint)))
  }
  return loading.get(checkpoint)
}

/** A checkpoint of the command line in few words: its network, or its path where two are of one network. */
export const titleOf = checkpoint => {
  const all = checkpointsOf(state.network)
  const { title, checkpoint: path } = all[checkpoint]
  return all.filter(other => other.title === title).length > 1 ? path : title
}

/** Checkpoints kept of a run, in the order of training. @returns {{step: number, epoch: number}[]} */
export const stepsOf = checkpoint => state.runs[checkpoint]?.steps ?? []

export const epochOf = ({ checkpoint, step, untrained }) => {
  const run = state.runs[checkpoint]
  return untrained ? null : step === null ? run?.epoch ?? null : run?.steps.find(kept => kept.step === step)?.epoch ?? null
}

/** How far a network was trained, as far as that is known. @returns {{updates: number | null, epoch: number | null, untrained: boolean}} */
export const weightsOf = net => ({
  updates: net.untrained ? null : net.step ?? state.runs[net.checkpoint]?.step ?? null, epoch: epochOf(net), untrained: net.untrained,
})

const momentOf = net => {
  if (net.untrained) return 'untrained'
  const epoch = epochOf(net)
  return epoch !== null ? `epoch ${epoch}` : net.step !== null ? `after ${net.step} updates` : ''
}

/** One of the two networks shown, in as few words as tell it from the other. */
export const nameOf = net => {
  const { compared } = state
  if (!compared || compared.checkpoint === state.net.checkpoint) return momentOf(net) || 'trained'
  return [titleOf(net.checkpoint), net.step !== null || net.untrained ? momentOf(net) : ''].filter(Boolean).join(', ')
}

/** The layer of that name; else that of the same kind which as many of its kind precede. */
const layerLike = (layer, from, to) => {
  const alike = network => network.layers.filter(other => other.kind === layer.kind)
  return to.layers.find(other => other.name === layer.name) ?? alike(to)[alike(from).indexOf(layer)] ?? null
}

/** The unit whose receptive field's middle lies next to that of a unit of another layer, in shares of the image. */
const placeLike = (unit, layer, from, into, to) => {
  const along = (at, axis, size, count) => {
    if (count === 1) return 0
    const middle = (layer.offset[axis] + at * layer.stride[axis] + layer.field[axis] / 2) / from.input[size] * to.input[size]
    return clamp(Math.round((middle - into.offset[axis] - into.field[axis] / 2) / into.stride[axis]), 0, count - 1)
  }
  return [along(unit[0], 1, 'rows', into.rows), along(unit[1], 0, 'columns', into.columns)]
}

const coverLike = (cover, from, to) => cover?.map((v, i) => Math.round(v * (i % 2 ? to.input.rows / from.input.rows : to.input.columns / from.input.columns))) ?? null

/** A layer, map, place and cover of one network in another; `sentence` says what that does not have. */
const answering = (from, to) => {
  const { image, view, fill, map, unit } = state
  const shown = { image, view, fill, cover: coverLike(state.cover, from, to) }
  const of = layerOf(state.layer)
  const layer = of && layerLike(of, from, to)
  if (!layer) return { shown, layer: null, map: null, unit: null, sentence: of ? `It has no layer like ${of.name}.` : '' }
  if (map === null || map >= layer.maps) return { shown, layer, map: null, unit: null, sentence: map === null ? '' : `Its ${layer.name} has the maps 0 to ${layer.maps - 1}, so none that answers to map ${map}.` }
  const single = layer.rows === 1 && layer.columns === 1
  const sentence = layer.name === of.name ? '' : `Its ${layer.name} is beside ${of.name} here: the same depth among its kind.`
  return { shown, layer, map, unit: unit && (of.rows === 1 && !single ? [layer.rows >> 1, layer.columns >> 1] : placeLike(unit, of, from, layer, to)), sentence }
}

/** What answers in the compared network to what is chosen; null while that network is not known. */
export const counterpart = () => {
  const { compared, network, networks, image } = state
  const to = compared && networks[compared.checkpoint]
  if (!to || !image) return null
  const found = answering(network, to)
  return { ...found, shown: { ...found.shown, net: compared } }
}

/** The chosen network's unit that answers to one of the compared network. */
export const unitBack = unit => {
  const { compared, network, networks } = state
  return placeLike(unit, counterpart().layer, networks[compared.checkpoint], layerOf(state.layer), network)
}

let navigations = 0
/** Begins to go to another network, which may take a while to come. @returns {() => boolean} whether nothing was begun since */
export const beginNavigation = () => {
  const own = ++navigations
  return () => own === navigations
}

/** Looks into another checkpoint, at the same place as far as it has it. One that is compared changes places with it. */
export const goToCheckpoint = async checkpoint => {
  const isWanted = beginNavigation()
  try {
    await loadNetwork(checkpoint)
  } catch (error) {
    if (isWanted()) fail('network', error)
    return
  }
  if (!isWanted()) return
  fail('network', null)
  const { compared, net } = state
  const exchanged = compared?.checkpoint === checkpoint && compared.step === null && !compared.untrained
  const network = state.networks[checkpoint]
  const { shown, layer, map, unit } = answering(state.network, network)
  const first = network.layers.find(other => other.rows > 1) ?? network.layers[0]
  const { rules } = network
  change({
    network, net: netOf(checkpoint), cover: shown.cover, layer: (layer ?? first)?.name ?? null, map, unit, held: null, hover: null,
    rule: rules.includes(state.rule) ? state.rule : rules[0], study: state.study !== null && state.study < network.classes.length ? state.study : null,
    compared: exchanged ? netOf(net.checkpoint) : compared,
  }, { push: true })
}
