// The chain of layers: the map of the page. Each with its size, and its receptive field against the input.

import { $, make, many } from './dom.js'
import { NOT_PUBLISHED, layersShown } from './published.js'
import { any, change, fieldOf, listen, state } from './state.js'

export const goToLayer = (name, how = { push: true }) => {
  if (name !== state.layer) change({ layer: name, map: null, unit: null, hover: null }, how)
}

/** The next layer towards the classes or towards the image. */
export const stepLayer = (by, how) => {
  const layers = layersShown(state.network)
  const next = layers[layers.findIndex(layer => layer.name === state.layer) + by]
  if (next) goToLayer(next.name, how)
}

const NAMES = { conv: 'convolution', relu: 'relu', maxpool: 'max pooling', avgpool: 'average pooling', lrn: 'normalisation', fc: 'fully connected', batchnorm: 'batch normalisation' }

const card = layer => {
  const { input } = state.network
  const share = Math.min(1, Math.max(layer.field[0] / input.columns, layer.field[1] / input.rows))
  const glyph = make('span', { class: 'glyph', 'aria-hidden': 'true' }, make('i'))
  const side = Math.max(8, share * 100)
  glyph.firstChild.style.width = `${side}%`
  glyph.firstChild.style.height = `${side}%`
  const size = layer.rows === 1 && layer.columns === 1 ? many(layer.maps) : `${many(layer.maps)} × ${layer.rows} × ${layer.columns}`
  const kind = NAMES[layer.kind] ?? layer.kind
  const label = `${layer.name}, ${kind}, ${layer.maps} maps of ${layer.rows} by ${layer.columns}, receptive field ${fieldOf(layer)} pixels, stride ${layer.stride[0]}`
  const attributes = { type: 'button', class: 'card', 'data-layer': layer.name, 'data-kind': layer.kind, 'aria-label': label, title: `${kind}${layer.parameters ? `, ${many(layer.parameters)} parameters` : ''}, stride ${layer.stride[0]}`, onclick: () => goToLayer(layer.name) }
  if (!layersShown(state.network).includes(layer)) Object.assign(attributes, { disabled: true, title: NOT_PUBLISHED })
  return make('li', {}, make('button', attributes, glyph, make('span', { class: 'words' }, make('b', {}, layer.name), make('span', {}, size), make('span', {}, `field ${fieldOf(layer)}`))))
}

export const startStrip = () => listen(changed => {
  const list = $('layers')
  if (changed.has('network')) list.replaceChildren(...state.network.layers.map(card))
  if (!any(changed, 'network', 'layer')) return
  for (const button of list.querySelectorAll('.card')) {
    const here = button.dataset.layer === state.layer
    if (!here) button.removeAttribute('aria-current')
    else {
      button.setAttribute('aria-current', 'true')
      // Only the strip is scrolled, never the page.
      const strip = $('strip')
      const middle = button.offsetLeft + button.offsetWidth / 2 - strip.clientWidth / 2
      strip.scrollTo({ left: middle, behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' })
    }
  }
})
