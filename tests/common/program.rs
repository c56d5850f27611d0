//! The program as a user runs it, in a folder of its own with a small data set and network.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

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

    /// The program with arguments separated by blanks, on a machine that shows no GPU.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfnet"));
        command.args(arguments.split_whitespace()).current_dir(&self.root);
        command.env("CUDA_VISIBLE_DEVICES", "");
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, arguments: &str) -> Ran {
        Ran::new(arguments, self.command(arguments).output().unwrap())
    }

    /// Runs it from a shell that has set limits first.
    pub fn run_limited(&self, limits: &str, arguments: &str) -> Ran {
        let program = env!("CARGO_BIN_EXE_zfnet");
        let script = format!("{limits}; exec '{program}' {arguments}");
        let output = Command::new("bash").args(["-c", &script]).current_dir(&self.root).output();
        Ran::new(arguments, output.unwrap())
    }

    /// The images of a split and class.
    pub fn images(&self, folder: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.path(folder)).unwrap();
        let mut images: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        images.sort();
        images
    }

    /// The strongest unit of a layer of the model `run` in an image, as `LAYER:MAP`.
    pub fn unit_that_fires(&self, layer: &str, image: &Path) -> String {
        self.run(&format!("project run {} --out looked", image.display())).ok();
        let json = fs::read_to_string(self.path("looked/projections.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let layers = json["images"][0]["layers"].as_array().unwrap();
        let layer = layers.iter().find(|l| l["name"] == layer).unwrap();
        format!("{}:{}", layer["name"].as_str().unwrap(), layer["units"][0]["map"])
    }

    /// What a run has left: the weights, the momentum, the metrics, and where `last` points.
    pub fn results(&self, run: &str) -> [Vec<u8>; 4] {
        let read = |file: &str| fs::read(self.path(run).join(file)).unwrap();
        [
            read("last/model.safetensors"),
            read("last/optimizer.safetensors"),
            read("metrics.jsonl"),
            fs::read_link(self.path(run).join("last"))
                .unwrap()
                .into_os_string()
                .into_encoded_bytes(),
        ]
    }
}

/// A command that has ended.
pub struct Ran {
    arguments: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn new(arguments: &str, output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(!stderr.contains("panicked"), "{arguments}: {stderr}");
        Ran { arguments: arguments.to_owned(), code: output.status.code(), stdout, stderr }
    }

    /// Asserts success.
    pub fn ok(self) -> Self {
        let Ran { arguments, code, stderr, .. } = &self;
        assert_eq!(*code, Some(0), "{arguments}: {stderr}");
        self
    }

    /// Asserts that it ended with an error that holds all these words.
    pub fn refused(self, words: &[&str]) -> Self {
        let Ran { arguments, code, stderr, .. } = &self;
        assert_eq!(*code, Some(1), "{arguments}: {stderr}");
        let error = stderr.rsplit("error: ").next().unwrap_or_default();
        for word in words {
            assert!(error.contains(word), "{arguments}: `{word}` is not in: {stderr}");
        }
        self
    }

    /// Asserts success and reads what was printed as JSON.
    pub fn json(self) -> serde_json::Value {
        let ran = self.ok();
        serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("no JSON: {}", ran.stdout))
    }
}
