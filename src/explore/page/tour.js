// Things to try, in the help: what the paper's figures are about, each one click away.

import { $, button, make } from './dom.js'
import { compareWithBeginning } from './compare.js'
import * as cover from './cover.js'
import { isPublished, layersShown } from './published.js'
import { change, state } from './state.js'
import { goToLayer } from './strip.js'
import { toggleStudy } from './study.js'

const spatial = () => layersShown(state.network).filter(layer => layer.rows > 1)

/** A title, words, what it does, where to look; and whether a published page can do it. */
const THINGS = [
  ['Climb the layers', 'The first layer answers to edges and colours, the last to whole objects. Go on with the keys , and . and watch the nine strongest patches.', () => goToLayer(spatial()[0].name), null, true],
  ['See what they share', "A map's nine strongest patches look unlike each other; their projections show what the unit was after in all of them.", () => goToLayer(spatial().at(-1).name), 'top', true],
  ['Cover it', 'Drag the square over the object, then over the background. Where the class collapses, the network was looking.', cover.begin, 'stage'],
  ['Watch it learn', 'Another network beside this one: an earlier epoch of its training, where it has kept some. Move the slider: low layers settle early, high ones late.', compareWithBeginning, 'compare'],
  ['Ask what tells a class', 'The maps that speak most for a class, its most probable images, and on which classes the chosen map fires.', () => { if (state.study === null) toggleStudy() }, 'class-study'],
  ['Forget the training', 'The same unit with untrained weights. What both projections show is the image and the rule, not what was learnt.', () => change({ random: true }), 'pictures'],
  ['Doubt the rule', 'Deconvnet, gradient and guided backpropagation side by side: three answers to one question.', () => change({ all: true }), 'pictures', true],
]

export const startTour = () => {
  const things = THINGS.filter(([title, , , , here]) => (here || !isPublished) && (title !== 'Doubt the rule' || state.network.rules.length > 1))
  $('tour').replaceChildren(...things.map(([title, words, act, where]) => make('li', {}, make('b', {}, title), ' ', make('span', {}, words), ' ',
    button('Try it', {
      onclick: () => {
        $('help').close()
        if (!state.image) return
        act()
        if (where) requestAnimationFrame(() => $(where).scrollIntoView({ block: 'nearest', behavior: 'smooth' }))
      },
    }))))
}
