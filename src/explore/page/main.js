// The explorer's page: puts its parts together. Each part is a module with a `start...` that listens to the state.
//
// What a test may click or read (stable):
//   #notice-text, #title, #checkpoint, #live (aria-live), #open-help, #help, #help-close, #copy-link, #save-state
//   image    #choose #previous #next #upload #file #camera; #chooser with #splits [data-split], #class-wanted, #search,
//            #chooser-count, #thumbs [data-image], #chooser-close
//            #stage (canvas; data-mode look, cover, crop; aria-busy while pixels are not of the state), #image-name[data-shown],
//            #image-class, #image-error; #mode-look #mode-cover #mode-crop; #view-in #view-out #view-reset #view-state
//   classes  #classes li[data-class][data-probability], .label is the data's own; aria-busy; #classes-error
//   layers   #layers [data-layer], aria-current="true" is the chosen
//   maps     #maps (aria-busy), in it .tile[data-map], aria-selected; #order-strength #order-number #only-firing #own-scale,
//            #maps-low #maps-high, #maps-error, #reading
//   unit     #unit-title, #unit-place, #unit-field, #activation[data-value], #peak, #map-large (canvas), #map-range, #overlay
//            #rules [data-rule], #rules-all, #random, #shared, #cut, #gain-less, #gain, #gain-more
//            #pictures [data-picture="photo" | "RULE:trained" | "RULE:random"] (aria-busy), in it canvas at the picture's own
//            pixels, .range, .gain, .instead (a sentence in the picture's place)
//   cover    #cover-size #cover-smaller #cover-larger #cover-remove #fill-mean #fill-grey #fill-blur
//            #sweep-class #sweep-steps #sweep-run #sweep-stop #sweep-progress #heat #heat-low #heat-high #sweep-over #sweep-caption
//   hold     #hold #held #held-name #held-value[data-value] #held-best #held-list [data-best] #held-go
//   top      #top-list [data-peak][data-image], #top-progress
//   saving   [data-save="image" | "map" | "heat" | "top" | a data-picture]
// The link follows at once, but a quarter of a second after the last move of a drag, a held key or the camera.
// Performance: mark `zfnet:click`, measure `zfnet:unit` (timing.js). `html[data-ready]` once the network is known.

import * as api from './api.js'
import { startCamera } from './camera.js'
import { startChooser } from './chooser.js'
import { startClasses } from './classes.js'
import { startCover } from './cover.js'
import { $, many, percent, short } from './dom.js'
import { startHold } from './hold.js'
import { startKeys } from './keys.js'
import { followLinks, parse } from './link.js'
import { classesAddress, startLoading } from './load.js'
import { startMaps } from './maps.js'
import { startSave } from './save.js'
import { startStage } from './stage.js'
import { any, change, layerOf, listen, state } from './state.js'
import { startStrip } from './strip.js'
import { startSweep } from './sweep.js'
import { startTop } from './top.js'
import { startTour } from './tour.js'
import { activation, startUnit } from './unit.js'
import { startUpload } from './upload.js'

/** A sentence for the whole page; none takes the last away. */
const tell = text => {
  $('notice-text').textContent = text
  $('notice').hidden = !text
}

/** Screen readers are told what the network thinks and what the unit does, once a hand has come to rest. */
const startLive = () => {
  let timer = 0
  const say = () => {
    const parts = []
    const best = state.classes?.of === classesAddress() ? state.classes.classes[0] : null
    if (best) parts.push(`The network thinks: ${best.name}, ${percent(best.probability)}.`)
    const layer = layerOf(state.layer), value = activation()
    if (layer && state.unit && value !== null) parts.push(`${layer.name}, map ${state.map}, y ${state.unit[0]}, x ${state.unit[1]}: activation ${short(value)}.`)
    const text = parts.join(' ')
    if ($('live').textContent !== text) $('live').textContent = text
  }
  listen(changed => {
    if (!any(changed, 'classes', 'pictures', 'maps', 'unit')) return
    clearTimeout(timer)
    timer = setTimeout(say, state.camera ? 3000 : 700)
  })
}

const renderHead = () => {
  const { network } = state
  const { rows, columns, channels } = network.input
  document.title = `${network.title}: explorer`
  $('title').textContent = network.title
  $('checkpoint').textContent = `${network.checkpoint}; input ${columns} × ${rows} × ${channels}, ${many(network.classes.length)} classes; ${network.program}`
  document.documentElement.dataset.ready = 'true'
}

const begin = async () => {
  let network
  try {
    network = await api.network()
  } catch (error) {
    tell(`${error.message} Asking again every two seconds.`)
    setTimeout(begin, 2000)
    return
  }
  tell('')
  // What asks comes before what draws, so that a click is on its way to the server first.
  startLoading()
  startUpload(tell)
  startChooser()
  startCamera(tell)
  startStage()
  startCover()
  startSweep()
  startClasses()
  startStrip()
  startMaps()
  startUnit()
  startTop()
  startHold()
  startSave(tell)
  startKeys(tell)
  startLive()
  change({ network })
  startTour()
  renderHead()
  const hash = location.hash
  followLinks(problems => tell(problems.join(' ')))
  const { patch, problems } = parse(hash, network)
  change(patch)
  if (problems.length) tell(problems.join(' '))
}

// The hash is the state's, so jumps within the page (on narrow screens) leave it alone.
$('jump').addEventListener('click', event => {
  const to = event.target.closest('[data-jump]')?.dataset.jump
  if (!to) return
  event.preventDefault()
  $(to).scrollIntoView({ behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' })
})
$('notice-close').addEventListener('click', () => tell(''))
begin()
