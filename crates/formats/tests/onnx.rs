//! Graphs as exporters write them, and as nobody should.

use std::fs;
use std::path::PathBuf;

use zfnet_formats::onnx::read;
use zfnet_formats::{Chain, Op};

/// What a chain is made of, a word a layer.
fn words(chain: &Chain) -> String {
    let word = |op: &Op| match op {
        Op::Conv { weight, stride, pad, groups, .. } => {
            let pad = if pad.iter().all(|side| *side == pad[0]) {
                format!("{}", pad[0])
            } else {
                format!("{pad:?}")
            };
            format!(
                "conv{:?}/{}+{pad}{}",
                weight.shape,
                stride[0],
                if *groups > 1 { format!("g{groups}") } else { String::new() }
            )
        }
        Op::Fc { weight, .. } => format!("fc{:?}", weight.shape),
        Op::Relu => "relu".into(),
        Op::MaxPool { kernel, stride, pad, .. } => format!(
            "pool{}/{}{}",
            kernel[0],
            stride[0],
            if *pad == [0; 4] { String::new() } else { format!("+{pad:?}") }
        ),
        Op::Lrn { size, .. } => format!("lrn{size}"),
        Op::Dropout { rate } => format!("dropout{rate}"),
    };
    chain.layers.iter().map(|layer| word(&layer.op)).collect::<Vec<_>>().join(" ")
}

#[test]
#[ignore = "needs the graphs that come with PyPI's onnx: LIGHT=SITE-PACKAGES/onnx/backend/test/data/light"]
fn the_model_zoo_is_read() {
    let folder = PathBuf::from(std::env::var("LIGHT").unwrap());
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    files.sort();
    for file in files {
        let bytes = fs::read(&file).unwrap();
        match read(&bytes, None, None) {
            Ok(chain) => println!(
                "{}: {:?} {}\n  {:?}",
                file.display(),
                chain.input,
                words(&chain),
                chain.notes
            ),
            Err(error) => println!("{}: {error}", file.display()),
        }
    }
}
