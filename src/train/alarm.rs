//! What training says is wrong: the sign that was seen, the likely cause, and one thing to try.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Files, classes or pairs that a line names; of the others it says how many.
const NAMED: usize = 4;
/// The name of [`Sign::Stuck`].
pub(super) const STUCK: &str = "stuck";
/// Classes that a line names of those that are exchanged.
const NAMED_CLASSES: usize = 12;
/// Layers of which a line has numbers: of more, so many of the lowest and of the highest half.
const LAYERS: usize = 10;

/// One alarm, for a line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alarm {
    /// What was seen.
    pub sign: Sign,
    /// Its likely cause, by what was measured.
    pub cause: String,
    /// One thing to try.
    pub remedy: Remedy,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// The loss has not left that of guessing.
    Stuck {
        /// Mean loss of the last updates.
        loss: f64,
        /// Loss of who knows nothing but how frequent each class is.
        guessing: f64,
        /// Updates so far.
        updates: u32,
        /// Standard deviation of the network's input.
        input_std: f64,
        /// What each layer shows at that moment, from below.
        layers: Vec<LayerNumbers>,
    },
    /// The loss has risen far above what it was.
    Rose {
        /// Mean loss of the last updates.
        loss: f64,
        /// The lowest that this mean has been.
        lowest: f64,
        /// Loss of guessing.
        guessing: f64,
    },
    /// The loss is no longer a finite number.
    NotFinite {
        /// Lowest layer with an output that is not finite; `None` if only the loss is not.
        layer: Option<String>,
        /// Images of the batch.
        files: Vec<String>,
    },
    /// Maps (units of a fully connected layer) that were never above zero in an epoch.
    Dead {
        /// The layer.
        layer: String,
        /// How many.
        dead: usize,
        /// Of how many.
        maps: usize,
        /// Images that were looked at.
        images: usize,
    },
    /// One map makes most of a layer's output.
    Dominated {
        /// The layer.
        layer: String,
        /// The map.
        map: usize,
        /// Its share of the sum of squares.
        share: f64,
    },
    /// Validation is no better than guessing, though the training loss falls.
    ValidationAtChance {
        /// Top-1 error.
        error: f64,
        /// That of who always says the most frequent class.
        guessing_error: f64,
        /// Mean training loss of the epoch.
        train_loss: f64,
    },
    /// Most validation images of each of these classes are taken for one of another, round in a circle.
    Permuted {
        /// The class by the validation split, and what the network calls it.
        classes: Vec<[String; 2]>,
    },
    /// Classes that were predicted for no validation image.
    NeverPredicted {
        /// The classes.
        classes: Vec<String>,
        /// Epochs one after the other.
        epochs: u32,
    },
    /// Validation images that are also among the training images.
    SharedImages {
        /// How many.
        shared: usize,
        /// The validation image, and the training image that it is most like, of each.
        pairs: Vec<[String; 2]>,
        /// Validation and training images that were compared.
        compared: [usize; 2],
    },
}

/// What a layer with weights shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerNumbers {
    /// The layer.
    pub layer: String,
    /// Mean of its output, after the relu.
    pub activation_mean: f64,
    /// Standard deviation of its output.
    pub activation_std: f64,
    /// Standard deviation of the gradient of one sample's loss by that output.
    pub gradient_std: f64,
    /// Root mean square of its weights.
    pub weight_rms: f64,
    /// Root mean square of an update of them, as a share of it.
    pub update: f64,
}

/// One thing to try.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remedy {
    /// Another learning rate.
    LearningRate(f32),
    /// Initial weights of He et al. (2015).
    HeInitialization,
    /// Another divisor of what the network sees.
    InputStd(f32),
    /// Biases that begin at zero.
    ZeroBiases,
    /// A limit of filters' root mean square.
    RmsLimit(f32),
    /// See what weights and layers a training begins with.
    CheckStart,
    /// See whether images lie under the right classes.
    CheckLabels,
    /// See whether classes stand for the same in both splits.
    CheckClasses,
    /// See what the class's training images show.
    CheckImages,
    /// More training images.
    MoreImages,
    /// Take away what both splits share.
    RemoveShared,
}

impl Sign {
    /// Its name, as pages have it.
    pub fn name(&self) -> &'static str {
        match self {
            Sign::Stuck { .. } => STUCK,
            Sign::Rose { .. } | Sign::NotFinite { .. } => "diverged",
            Sign::Dead { .. } => "dead",
            Sign::Dominated { .. } => "dominated",
            Sign::ValidationAtChance { .. } => "validation at chance",
            Sign::Permuted { .. } => "classes exchanged",
            Sign::NeverPredicted { .. } => "never predicted",
            Sign::SharedImages { .. } => "shared images",
        }
    }

    /// What makes two signs the same one, which is told once.
    pub(crate) fn key(&self) -> String {
        match self {
            Sign::Dead { layer, .. } | Sign::Dominated { layer, .. } => {
                format!("{}: {layer}", self.name())
            }
            _ => self.name().into(),
        }
    }
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Alarm { sign, cause, remedy } = self;
        let line = format!("{}: {sign}; likely: {cause}; try {remedy}", sign.name());
        // Names of files and classes may hold anything.
        f.write_str(&line.replace(char::is_control, "\u{fffd}"))
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sign::Stuck { loss, guessing, updates, input_std, layers } => {
                let numbers = |of: fn(&LayerNumbers) -> f64| {
                    let one =
                        |layer: &LayerNumbers| format!("{} {}", layer.layer, short(of(layer)));
                    let half = if layers.len() > LAYERS { LAYERS / 2 } else { layers.len() };
                    let (lowest, others) = layers.split_at(half);
                    let highest = &others[others.len() - others.len().min(half)..];
                    let gap = (highest.len() < others.len()).then(|| "...".to_owned());
                    let all = lowest.iter().map(one).chain(gap).chain(highest.iter().map(one));
                    all.collect::<Vec<_>>().join(", ")
                };
                write!(
                    f,
                    "after {updates} updates the loss is {loss:.4}, that of guessing {guessing:.4} (standard \
                     deviations of activations: input {}, {}; of gradients: {})",
                    short(*input_std),
                    numbers(|layer| layer.activation_std),
                    numbers(|layer| layer.gradient_std)
                )
            }
            Sign::Rose { loss, lowest, guessing } => write!(
                f,
                "the loss has risen from {lowest:.4} to {loss:.4} (guessing has {guessing:.4})"
            ),
            Sign::NotFinite { layer, files } => {
                match layer {
                    Some(layer) => write!(f, "the output of {layer} is no longer finite")?,
                    None => write!(f, "the loss is no longer finite")?,
                }
                write!(f, ", with a batch of {}", named(files, NAMED))
            }
            Sign::Dead { layer, dead, maps, images } => write!(
                f,
                "{dead} of {maps} maps of {layer} fired for none of the {images} images looked at lately"
            ),
            Sign::Dominated { layer, map, share } => {
                write!(f, "map {map} alone makes {:.0} % of what {layer} gives", 100.0 * share)
            }
            Sign::ValidationAtChance { error, guessing_error, train_loss } => write!(
                f,
                "the training loss has fallen to {train_loss:.4}, but the validation error is {:.1} %, that of \
                 guessing {:.1} %",
                100.0 * error,
                100.0 * guessing_error
            ),
            Sign::Permuted { classes } => {
                let pairs: Vec<String> = classes
                    .iter()
                    .map(|[class, taken_for]| format!("{class} for {taken_for}"))
                    .collect();
                write!(
                    f,
                    "most validation images are taken for one other class: {}",
                    named(&pairs, NAMED_CLASSES)
                )
            }
            Sign::NeverPredicted { classes, epochs } => write!(
                f,
                "{} predicted for no validation image in {epochs} epochs",
                if classes.len() == 1 {
                    format!("{} was", named(classes, NAMED))
                } else {
                    format!("{} were", named(classes, NAMED))
                }
            ),
            Sign::SharedImages { shared, pairs, compared: [val, train] } => {
                let names: Vec<String> =
                    pairs.iter().map(|[val, train]| format!("{val} and {train}")).collect();
                write!(
                    f,
                    "{shared} of {val} validation images look like one of {train} training images: {}",
                    named(&names, NAMED)
                )
            }
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Remedy::LearningRate(rate) => write!(f, "a learning rate of {rate}"),
            Remedy::HeInitialization => {
                write!(f, "initial weights by He et al. (standard deviation sqrt(2 / fan-in))")
            }
            Remedy::InputStd(std) => {
                write!(f, "to divide pixels by {std} (std of the network's input)")
            }
            Remedy::ZeroBiases => write!(f, "biases that begin at zero"),
            Remedy::RmsLimit(limit) => write!(f, "a limit of {limit} of the filters' RMS"),
            Remedy::CheckLabels => {
                write!(f, "to look at some training images of each class: do they belong there?")
            }
            Remedy::CheckClasses => write!(
                f,
                "to look at some images of the same class in both splits: do they show the same?"
            ),
            Remedy::CheckStart => write!(
                f,
                "to look at what the layers begin with: weights from elsewhere, or a layer that makes its input small \
                 or large"
            ),
            Remedy::CheckImages => write!(f, "to look at the class's training images"),
            Remedy::MoreImages => write!(f, "more training images of the class"),
            Remedy::RemoveShared => {
                write!(
                    f,
                    "to take these images out of one of the splits: the error is too low with them"
                )
            }
        }
    }
}

/// The first few of a list, and how many more there are.
fn named(names: &[String], most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let first = names[..names.len() - more].join(", ");
    if more > 0 { format!("{first} and {more} more") } else { first }
}

/// A number with two digits, whatever its size.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        size if (0.01..1000.0).contains(&size) => {
            let digits = (1.0 - size.log10().floor()).clamp(0.0, 3.0);
            format!("{value:.0$}", digits as usize)
        }
        _ => format!("{value:.1e}"),
    }
}
