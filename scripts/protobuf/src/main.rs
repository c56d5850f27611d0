//! Makes `proto.rs` of each `.proto` of `crates/formats`: `cargo run --manifest-path scripts/protobuf/Cargo.toml`.

use std::path::Path;

/// Folders in `crates/formats/src`; in each, FOLDER.proto of the package FOLDER.
const FORMATS: [&str; 3] = ["caffe", "onnx", "tensorboard"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/formats/src");
    for format in FORMATS {
        let folder = source.join(format);
        let described = protox::compile([format!("{format}.proto")], [&folder])?;
        prost_build::Config::new().out_dir(&folder).compile_fds(described)?;
        // Every source file opens with what it is.
        let made = std::fs::read_to_string(folder.join(format!("{format}.rs")))?;
        let opening = format!("//! What `{format}.proto` describes.\n");
        std::fs::write(folder.join("proto.rs"), opening + &made)?;
        std::fs::remove_file(folder.join(format!("{format}.rs")))?;
    }
    Ok(())
}
