//! From files on disk to batches of pixels: folders, decoding, order, and the threads that load.

pub mod decode;
pub mod folder;
pub mod images;
pub mod loader;
pub mod order;
pub mod synthetic;
