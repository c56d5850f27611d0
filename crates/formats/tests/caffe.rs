//! Caffe's files: what is read of them, and what is refused with which words.

#[path = "common/naive.rs"]
mod naive;

use std::fs;
use std::io::{Write, stderr};
use std::path::{Path, PathBuf};

use naive::{Maps, forward};
use zfnet_formats::{Op, caffe};

/// A folder of the shared data, beside the crate or where ZFNET_SHARED says.
fn shared(folder: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let root = std::env::var_os("ZFNET_SHARED").map_or_else(beside, PathBuf::from);
    let folder = root.join("data").join(folder);
    if !folder.is_dir() {
        // Not `eprintln!`, which nobody sees of a test that passes.
        writeln!(stderr(), "skipped: {} is not there", folder.display()).expect("stderr");
        return None;
    }
    Some(folder)
}

/// A file that Caffe has written. It says itself that pixels are scaled by 1/256.
#[test]
fn shared_lenet_gets_the_ten_digits_right() {
    let Some(folder) = shared("weights") else { return };
    let bytes = fs::read(folder.join("lenet.caffemodel")).unwrap();
    let chain = caffe::read(&bytes, None, None).unwrap();
    for layer in &chain.layers {
        let sizes = match &layer.op {
            Op::Conv { weight, .. } | Op::Fc { weight, .. } => format!("{:?}", weight.shape),
            op => format!("{op:?}"),
        };
        println!("{}: {sizes}", layer.name);
    }
    println!("{:?}, {:?}, {:#?}", chain.input, chain.preprocessing, chain.notes);
    let names: Vec<_> = chain.layers.iter().map(|layer| &*layer.name).collect();
    assert_eq!(names, ["conv1", "pool1", "conv2", "pool2", "ip1", "relu1", "ip2"]);
    assert_eq!((chain.name.as_str(), chain.input.channels, chain.input.size), ("LeNet", 1, None));
    let preprocessing = chain.preprocessing.as_ref().unwrap();
    assert_eq!(preprocessing.scale, 1. / 256.);
    assert_eq!((&*preprocessing.mean, &*preprocessing.std), (&[0.][..], &[1.][..]));
    assert!(!preprocessing.bgr);
    let mut digits: Vec<_> =
        fs::read_dir(folder.join("digits")).unwrap().map(|file| file.unwrap().path()).collect();
    digits.sort();
    assert_eq!(digits.len(), 10);
    for digit in digits {
        let file = digit.file_stem().unwrap().to_str().unwrap();
        let label: usize = file.split('_').nth(1).unwrap().parse().unwrap();
        let file = std::io::BufReader::new(fs::File::open(&digit).unwrap());
        let mut reader = png::Decoder::new(file).read_info().unwrap();
        let mut pixels = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut pixels).unwrap();
        assert_eq!(info.color_type, png::ColorType::Grayscale, "{}", digit.display());
        let values = pixels.iter().map(|&pixel| f64::from(pixel) * f64::from(preprocessing.scale));
        let sizes = [1, info.height as usize, info.width as usize];
        let logits = forward(&chain, Maps { sizes, values: values.collect() }).values;
        let best = (0..10).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        println!("{}: {best} of {logits:.1?}", digit.display());
        assert_eq!(best, label, "{}", digit.display());
    }
}
