//! The program as a user runs it, in a folder of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub use super::place::*;

impl Place {
    /// The program with arguments separated by blanks, on a machine that shows no GPU.
    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zfnet"));
        command.args(arguments.split_whitespace()).current_dir(self.path(""));
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
        let output = Command::new("bash").args(["-c", &script]).current_dir(self.path("")).output();
        Ran::new(arguments, output.unwrap())
    }

    /// Runs a line of bash in which `zfnet` is the program.
    pub fn run_in_shell(&self, line: &str) -> Ran {
        let script = format!("zfnet() {{ '{}' \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_zfnet"));
        let mut bash = Command::new("bash");
        bash.args(["-c", &script]).current_dir(self.path("")).env("CUDA_VISIBLE_DEVICES", "");
        Ran::new(line, bash.output().unwrap())
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
