//! Tells the program where the LibTorch is that it was built with, so that no library path need be
//! set when it runs: a path would lead other PyTorch processes to it too.

fn main() {
    let libraries = std::env::var("DEP_TCH_LIBTORCH_LIB").expect("torch-sys says where they are");
    println!("cargo:rustc-link-arg=-Wl,-rpath={libraries}");
}
