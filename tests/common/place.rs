//! A folder of its own for a test, with a small data set and network.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;
use zfnet::data::synthetic;

/// A network for pictures of 20 pixels, whose steps take a millisecond.
const TINY: &str = r#"
name = "tiny"
classes = 10
input = { size = 16, resize = 20, std = 64.0 }
layers = [
  { type = "conv", name = "conv1", channels = 8, kernel = 5, stride = 2 },
  { type = "relu" },
  { type = "maxpool", kernel = 3, stride = 2 },
  { type = "lrn" },
  { type = "conv", name = "conv2", channels = 12, kernel = 3, pad = 1 },
  { type = "relu" },
  { type = "fc", name = "fc3", outputs = 16 },
  { type = "relu" },
  { type = "dropout" },
  { type = "fc", name = "fc4" },
]
[recipe]
init = "he"
learning_rate = 0.01
schedule = "step"
steps = [2]
epochs = 4
batch_size = 16
dropout = 0.3
crops = "random"
rms_limit = 0.3
"#;

/// Two variants of that network.
pub const VARIANTS: &str = r#"
base = "tiny.toml"
paper = { network = "ZFNet", train = 33.1, val = 38.4, top5 = 16.5 }
note = "a < note"
[recipe]
epochs = 2
steps = [1]
[[variant]]
name = "without <2>"
drop = ["conv2"]
paper = { train = 41.8, val = 45.4, top5 = 22.1 }
[[variant]]
name = "wider"
channels = { conv1 = 10, fc3 = 24 }
"#;

/// Training pictures of each of the ten classes.
pub const TRAIN: usize = 6;
/// Validation pictures of each class.
pub const VAL: usize = 2;

/// A folder with `data` and `tiny.toml`; commands run in it.
pub struct Place {
    root: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("tiny.toml"), TINY).unwrap();
        synthetic::write_folder(&root.path().join("data"), 3, 20, TRAIN, VAL, |_| ()).unwrap();
        Place { root }
    }

    /// The same with `variants.toml`: what an ablation is made of.
    pub fn with_variants() -> Self {
        let place = Place::new();
        fs::write(place.path("variants.toml"), VARIANTS).unwrap();
        place
    }

    /// A path in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The images of a split and class.
    pub fn images(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut images: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        images.sort();
        images
    }
}
