//! What must hold for any bytes at all that pose as weights of PyTorch, as safetensors or as what lies beside them: an
//! error that says what is wrong or a sound answer, never a panic. Shared by `tests/mutated.rs` and the targets in
//! `fuzz/`.
#![allow(dead_code)] // a fuzz target uses one of these

use std::io::Cursor;

use zfnet_formats::{Tensors, kind, pytorch, safetensors, sidecar};

/// A file of PyTorch.
pub fn pytorch(bytes: &[u8]) {
    if let Some(tensors) = told(pytorch::parse(Cursor::new(bytes))) {
        assert!(tensors.ordered);
        sound(&tensors, bytes.len());
    }
}

/// A safetensors file.
pub fn safetensors(bytes: &[u8]) {
    if let Some(tensors) = told(safetensors::parse(Cursor::new(bytes))) {
        assert!(!tensors.ordered);
        sound(&tensors, bytes.len());
    }
}

/// Files beside weights, and a file of any kind.
pub fn sidecar(bytes: &[u8]) {
    told(kind::kind_of(Cursor::new(bytes), None));
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for (config, preprocessor) in [(Some(text), None), (None, Some(text))] {
        let sidecar = sidecar::parse(config, preprocessor);
        for note in &sidecar.notes {
            told(Err::<(), _>(note.clone()));
        }
        let Some(found) = sidecar.preprocessing else { continue };
        assert!(matches!(found.mean.len(), 1..=16384) && found.mean.len() == found.std.len());
        assert!(found.scale.is_finite() && found.scale > 0.0);
        assert!(found.mean.iter().all(|value| value.is_finite()));
        assert!(found.std.iter().all(|&value| value > 0.0 && value.is_finite()));
        assert!(found.crop.is_none_or(|crop| crop.iter().all(|&side| side > 0)));
    }
}

fn told<T>(read: Result<T, String>) -> Option<T> {
    if let Err(reason) = &read {
        assert!(reason.len() > 10, "{reason:?} says nothing");
        assert!(reason.len() < 2000, "an error of {} bytes", reason.len());
        assert!(!reason.chars().any(char::is_control), "{reason:?} would change a terminal");
    }
    read.ok()
}

fn sound(found: &Tensors, bytes: usize) {
    assert!(!found.tensors.is_empty(), "an answer without tensors");
    let mut names: Vec<_> = found.tensors.iter().map(|tensor| &tensor.name).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), found.tensors.len(), "two tensors of one name");
    let mut values = 0;
    for tensor in &found.tensors {
        assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>(), "{}", tensor.name);
        values += tensor.values.len();
    }
    assert!(4 * values <= 16 * bytes + (64 << 10), "{values} values of {bytes} bytes");
    for note in &found.notes {
        assert!(!note.chars().any(char::is_control), "{note:?} would change a terminal");
    }
}
