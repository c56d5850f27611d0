//! Files from others: images, folders, tars and development kits, as they should be and as they should not.

mod decode;
mod folder;
mod source;
