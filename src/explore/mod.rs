//! `zfnet explore`: a page in the browser on which a network's features are looked at while it runs.
//!
//! ```text
//! browser   page/      draws, asks for what is missing (docs of the addresses: server.rs)
//!    |
//! server.rs            threads of its own: HTTP, who may ask (guard.rs), images (pictures.rs)
//!    |  Job
//! engine.rs            the caller's thread: the network. One job at a time; what nobody waits for any more
//!                      is not computed
//! ```

mod address;
mod engine;
mod guard;
mod pictures;
mod server;

pub use engine::{Engine, Job};
pub use guard::Guard;
pub use pictures::Pictures;
pub use server::{Listening, Settings, listen};

/// A list of a few things by their keys, of which those that have not been asked for lately are forgotten.
struct Recent<V> {
    most: usize,
    /// The last asked for first.
    kept: Vec<(String, V)>,
}

impl<V: Clone> Recent<V> {
    fn new(most: usize) -> Self {
        Recent { most, kept: Vec::new() }
    }

    fn get(&mut self, key: &str) -> Option<V> {
        let place = self.kept.iter().position(|(kept, _)| kept == key)?;
        self.kept[..=place].rotate_right(1);
        Some(self.kept[0].1.clone())
    }

    fn put(&mut self, key: String, value: V) {
        self.kept.retain(|(kept, _)| *kept != key);
        self.kept.insert(0, (key, value));
        self.kept.truncate(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::Recent;

    #[test]
    fn what_was_asked_for_last_is_kept() {
        let mut recent = Recent::new(2);
        recent.put("a".into(), 1);
        recent.put("b".into(), 2);
        assert_eq!(recent.get("a"), Some(1));
        recent.put("c".into(), 3);
        assert_eq!((recent.get("a"), recent.get("b"), recent.get("c")), (Some(1), None, Some(3)));
        recent.put("a".into(), 4);
        assert_eq!((recent.kept.len(), recent.get("a")), (2, Some(4)));
    }
}
