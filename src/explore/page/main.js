// The explorer's page: puts its parts together. Each part is a module with a `start...` that listens to the state.
//
// What a test may click or read (stable):
//   #notice-text, #reload, #title, #checkpoint, #network-choice, #live (aria-live), #open-help, #help, #help-close, #copy-link,
//            #save-state
//   compare  #compare-toggle; the bar #compare with #compare-with (a select: K, or K,random), #epoch (a range), #epoch-text,
//            #epoch-before #epoch-after, #swap, #compare-close, #compare-note, #compare-error; beside the first network's:
//            #compare-classes li[data-class][data-probability], #compare-map (canvas), #compare-map-range,
//            #compare-activation[data-value], [data-picture="RULE:compared"]; #classes-of #compare-classes-of their names
//   run      #open-run with #run-state, #alarm-count; the dialog #run with #run-words, #run-loss-curve #run-error-curve (canvas),
//            #alarms [data-alarm], #filters (canvas), #run-close
//   class    #open-study, and the names in #classes; #class-study with #study-class, #study-title, #study-progress, #study-bar,
//            #study-maps [data-map][data-contribution] (aria-busy), #study-more, #study-images [data-image], #study-error;
//            #histogram [data-class][data-mean] (aria-busy), .first is the class looked at, #histogram-more; #study-close
//   preferred #preferred-start, #preferred-progress, #preferred-image (canvas, aria-busy), #preferred-activation[data-value],
//            #preferred-strongest, #preferred-words, #preferred-error
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
//            #pictures [data-picture="photo" | "RULE:trained" | "RULE:random" | "RULE:compared"] (aria-busy), in it canvas at the picture's own
//            pixels, .range, .gain, .instead (a sentence in the picture's place)
//   cover    #cover-size #cover-smaller #cover-larger #cover-remove #fill-mean #fill-grey #fill-blur
//            #sweep-what #sweep-class #sweep-steps #sweep-run #sweep-stop #sweep-progress #heat #heat-low #heat-high #sweep-over #sweep-caption
//   hold     #hold #held #held-name #held-value[data-value] #held-best #held-list [data-best] #held-go
//   top      #top-list [data-peak][data-image], #top-progress
//   published: #published (what the page is), #from-disk (hidden once scripts run), #maps-published, .tile[data-published] that
//            can be opened; what needs the program is marked data-program, what only a published page has data-published-only
//   saving   [data-save="image" | "map" | "compare-map" | "heat" | "top" | "preferred" | "study" | "histogram" | "curves" |
//            "filters" | a data-picture]; [data-keep] of the same names, shown if the report can be added to
// The link follows at once, but a quarter of a second after the last move of a drag, a held key or the camera.
// Performance: mark `zfnet:click`, measure `zfnet:unit` (timing.js). `html[data-ready]` once the network is known.

import * as api from './api.js'
import { startCamera } from './camera.js'
import { startChooser } from './chooser.js'
import { startClasses } from './classes.js'
import { startCompare } from './compare.js'
import { startCover } from './cover.js'
import { $, many } from './dom.js'
import { startHold } from './hold.js'
import { startKeys } from './keys.js'
import { followLinks, openLink } from './link.js'
import { startLive } from './live.js'
import { startLoading } from './load.js'
import { startMaps } from './maps.js'
import { epochOf, loadNetwork } from './nets.js'
import { startPreferred } from './preferred.js'
import { isPublished } from './published.js'
import { startSave } from './save.js'
import { startStage } from './stage.js'
import { any, listen, state } from './state.js'
import { startStrip } from './strip.js'
import { startStudy } from './study.js'
import { startSweep } from './sweep.js'
import { startTop } from './top.js'
import { startTour } from './tour.js'
import { startTraining } from './training.js'
import { startUnit } from './unit.js'
import { startUpload } from './upload.js'

/** A sentence for the whole page; none takes the last away. */
const tell = text => {
  $('notice-text').textContent = text
  $('notice').hidden = !text
}

const replaced = why => {
  tell(why)
  $('reload').hidden = false
}

const renderHead = () => {
  const { network } = state
  const { rows, columns } = network.input
  document.title = `${network.title}: explorer`
  $('title').textContent = network.title
  const epoch = epochOf(state.net)
  $('checkpoint').textContent = `${network.checkpoint}${epoch === null ? '' : `, after epoch ${epoch}`}; input ${columns} × ${rows}, ${many(network.classes.length)} classes; ${network.program}`
  document.documentElement.dataset.ready = 'true'
}

const renderPublished = () => {
  const { program, title, checkpoint, splits } = state.network
  const images = splits.reduce((total, { count }) => total + count, 0)
  $('published').textContent = `Published from ${program}: ${title} (${checkpoint}) on ${many(images)} image${images === 1 ? '' : 's'}. All else, as pictures of your own, covering, comparing or any other unit, needs the program (zfnet explore).`
  $('published').hidden = false
}

const begin = async () => {
  try {
    await loadNetwork(0)
  } catch (error) {
    tell(isPublished && error.status ? 'The folder data of this page is not beside it, or this browser cannot read it.' : `${error.message} Asking again every two seconds.`)
    setTimeout(begin, 2000)
    return
  }
  tell('')
  if (!isPublished) api.belongTo(state.networks[0].instance, replaced)
  // What asks comes before what draws, so that a click is on its way to the server first.
  startLoading()
  if (!isPublished) startUpload(tell)
  startChooser()
  startCamera(tell)
  startStage()
  startCover()
  startSweep()
  startClasses()
  startStrip()
  startMaps()
  startUnit()
  startStudy()
  startPreferred()
  startTop()
  startHold()
  startSave(tell)
  startCompare()
  startTraining()
  startKeys(tell)
  startLive()
  let told = ''
  listen(changed => {
    if (any(changed, 'network', 'net', 'runs')) renderHead()
    if (changed.has('network') && isPublished) renderPublished()
    if (changed.has('errors') && (state.errors.network ?? '') !== told) {
      told = state.errors.network ?? ''
      tell(told)
    }
  })
  const say = problems => { if (problems) tell(problems.join(' ')) }
  followLinks(say)
  await openLink(location.hash).then(say, error => tell(error.message))
  startTour()
}

// The hash is the state's, so jumps within the page (on narrow screens) leave it alone.
$('jump').addEventListener('click', event => {
  const to = event.target.closest('[data-jump]')?.dataset.jump
  if (!to) return
  event.preventDefault()
  // A class that is studied stands in the place of the maps.
  $(to === 'maps-pane' && state.study !== null ? 'class-study' : to).scrollIntoView({ behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' })
})
$('notice-close').addEventListener('click', () => tell(''))
$('reload').addEventListener('click', () => location.reload())
$('from-disk').hidden = true
begin()
