//! Makes `proto.rs` of each `.proto` of `crates/formats`: `cargo run --manifest-path scripts/protobuf/Cargo.toml`.

use std::path::Path;

/// Folders in `crates/formats/src`; in each, FOLDER.proto of the package FOLDER.
const FORMATS: [&str; 1] = ["onnx"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/formats/src");
    for format in FORMATS {
        let folder = source.join(format);
        let described = protox::compile([format!("{format}.proto")], [&folder])?;
        prost_build::Config::new().out_dir(&folder).compile_fds(described)?;
        std::fs::rename(folder.join(format!("{format}.rs")), folder.join("proto.rs"))?;
    }
    Ok(())
}
